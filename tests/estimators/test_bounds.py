"""Renyi bounds, mixtures of bounds and the jackknife's doubly reparameterised form: exact, and against each other.

Truth is the derivative of a value that is summed over a grid of noise by the trapezoidal rule, which converges exponentially,
or over all states of discrete latents. The estimators' means are summed over the same grid.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import estimators
from benchmarks.problems import Gaussian1D, SigmoidBeliefNet
from estimators import Refusal, Target
from estimators.quadrature import gauss_legendre, product
from estimators.testing import exact_expectation

POINTS = [
    Gaussian1D(loc=1.5, scale=0.6, x=1.3, prior_loc=0.2),  # rho = 0.72
    Gaussian1D(loc=-1.4, scale=1.1, x=-1.3, prior_loc=-0.3),  # rho = 2.42
    Gaussian1D(loc=1.6, scale=0.8, x=1.5, prior_loc=0.5),  # rho = 1.28
]
STEPS = {1: 801, 2: 241, 3: 61}
TOLERANCE = {1: 1e-9, 2: 1e-9, 3: 1e-6}
ALPHAS = (-1.0, 0.0, 0.5, 1.0, 2.0)


def log_mean_exp(log_w):
    return log_w.logsumexp(0) - math.log(log_w.shape[0])


def renyi(alpha):
    return lambda log_w: log_w.mean(0) if alpha == 1 else log_mean_exp((1 - alpha) * log_w) / (1 - alpha)


def jackknife(order):
    def bound(log_w):
        K, total = log_w.shape[0], 0.0
        for j in range(order + 1):
            factor = (-1) ** j * (K - j) ** order / (math.factorial(order - j) * math.factorial(j))
            subsets = [log_mean_exp(log_w[list(kept)]) for kept in itertools.combinations(range(K), K - j)]
            total = total + factor * torch.stack(subsets).mean(0)
        return total

    return bound


def normal_grid(num_samples):
    """Noise ``(N, K)`` on +-9 and its weights."""
    x = torch.linspace(-9, 9, STEPS[num_samples], dtype=torch.float64)
    noise = torch.cartesian_prod(*[x] * num_samples).reshape(-1, num_samples)
    weight = torch.exp(-0.5 * noise.square().sum(1))
    kept = weight > 1e-18
    return noise[kept], weight[kept] / weight[kept].sum()


def derivative_of_the_value(objective, problem, num_samples):
    """Value and gradient in (prior_loc, loc, log_scale) of E objective(log w)."""
    noise, weight = normal_grid(num_samples)
    noise = noise.T
    start = [problem.prior_loc, problem.loc, math.log(problem.scale)]
    prior_loc, loc, log_scale = start = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in start]
    q, z = torch.distributions.Normal(loc, log_scale.exp()), loc + log_scale.exp() * noise
    prior, likelihood = torch.distributions.Normal(prior_loc, 1.0), torch.distributions.Normal(z, 1.0)
    log_w = prior.log_prob(z) + likelihood.log_prob(torch.tensor(problem.x, dtype=torch.float64)) - q.log_prob(z)
    value = (weight * objective(log_w)).sum()
    return np.array([value.item(), *(slope.item() for slope in torch.autograd.grad(value, start))])


def mean_of(estimator, problem):
    noise, weight = normal_grid(estimator.num_samples)
    mean, _ = exact_expectation(estimator, problem, problem.parameters, grid=(noise[..., None, None], weight))
    return mean.numpy()


def assert_close(mean, truth, tolerance):
    np.testing.assert_allclose(mean, truth, atol=tolerance * np.linalg.norm(truth), rtol=0)


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
@pytest.mark.parametrize(("num_samples", "alpha"), [*itertools.product([1, 2], ALPHAS), (3, 0.5)])
def test_renyi_bounds_are_unbiased_for_the_bound_of_k_samples(num_samples, alpha, problem):
    truth = derivative_of_the_value(renyi(alpha), problem, num_samples)
    for name in ("renyi", "renyi-dreg", *(["renyi-score"] if num_samples > 1 else [])):
        estimator = estimators.get(name, num_samples=num_samples, alpha=alpha)
        assert estimator.targets["phi"] == Target("renyi", num_samples, setting=alpha)
        assert_close(mean_of(estimator, problem), truth, TOLERANCE[num_samples])


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
@pytest.mark.parametrize("order", [1.5, 2.0])
def test_the_chi_upper_bound_is_the_renyi_bound_of_one_minus_n(order, problem):
    estimator = estimators.get("chi-upper-bound", num_samples=2, order=order)
    truth = derivative_of_the_value(lambda log_w: log_mean_exp(order * log_w) / order, problem, 2)
    assert_close(mean_of(estimator, problem), truth, 1e-9)
    assert estimator.targets["phi"] == Target("renyi", 2, setting=1 - order)


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("num_samples", [1, 2])
def test_ciwae_is_unbiased_for_its_mixture(num_samples, beta, problem):
    truth = derivative_of_the_value(
        lambda log_w: beta * log_w.mean(0) + (1 - beta) * log_mean_exp(log_w), problem, num_samples
    )
    assert_close(mean_of(estimators.CIWAE(num_samples, beta=beta), problem), truth, 1e-9)


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
@pytest.mark.parametrize(("num_samples", "order"), [(2, 1), (3, 1), (3, 2)])
def test_both_jackknives_are_unbiased_for_the_jackknifed_bound(num_samples, order, problem):
    truth = derivative_of_the_value(jackknife(order), problem, num_samples)
    for name in ("jackknife", "jackknife-dreg"):
        estimator = estimators.get(name, num_samples=num_samples, order=order)
        assert estimator.targets["phi"] == Target("jackknife", num_samples, setting=order)
        assert_close(mean_of(estimator, problem), truth, TOLERANCE[num_samples])


def test_the_jackknifes_coefficients_multiply_doubly_reparameterised_gradients():
    """K DReG_K - (K-1) mean_j DReG_(K-1), draw by draw."""
    K = 4
    log_w = torch.randn(K, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = K * log_w.softmax(0) ** 2
    for j in range(K):
        kept = [k for k in range(K) if k != j]
        expected[kept] -= (K - 1) / K * log_w[kept].softmax(0) ** 2
    torch.testing.assert_close(estimators.JackknifeDReG(K).weights(log_w).path, expected)


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_dreg_alpha_mixes_the_bound_with_the_wake_phi_direction(alpha, problem):
    """B5 = B1 + D2 extended: E = (1 - a) grad L_K + a E[wake-phi]; its bias is what that says."""
    estimator = estimators.DReGAlpha(num_samples=2, alpha=alpha)
    bound = derivative_of_the_value(log_mean_exp, problem, 2)
    wake = mean_of(estimators.ReweightedWakeSleep(num_samples=2), problem)[2:]
    mean = mean_of(estimator, problem)
    assert_close(mean[:2], bound[:2], 1e-9)
    np.testing.assert_allclose(mean[2:], (1 - alpha) * bound[2:] + alpha * wake, atol=1e-9 * np.linalg.norm(bound))
    assert estimator.targets["phi"].unbiased == (alpha == 0)
    if alpha == 0.3:
        assert np.linalg.norm(mean[2:] - bound[2:]) > 0.05 * np.linalg.norm(bound[2:])


IDENTITIES = [
    ("renyi[alpha=0]", "iwae", None),
    ("renyi[alpha=1]", "reparameterization", None),
    ("renyi-dreg[alpha=0]", "dreg", None),
    ("renyi-dreg[alpha=1]", "sticking-the-landing", None),
    ("renyi-score[alpha=0]", "ovis", math.log(4 / 3)),
    ("renyi-score[alpha=1]", "leave-one-out", 1 / 4),
    ("ciwae[beta=0]", "iwae", None),
    ("ciwae[beta=1]", "reparameterization", None),
    ("dreg-alpha[alpha=0]", "dreg", None),
    ("dreg-alpha[alpha=1]", "reweighted-wake-sleep-dreg", None),
    ("chi-upper-bound[order=3]", "renyi[alpha=-2]", None),
]


def from_spec(spec, num_samples):
    name, _, rest = spec.rstrip("]").partition("[")
    settings = {key: float(value) for key, value in (part.split("=") for part in rest.split(",") if part)}
    return estimators.get(name, num_samples=num_samples, **settings)


@pytest.mark.parametrize(("ours", "theirs", "constant"), IDENTITIES)
def test_limits_are_the_estimators_that_are_known(ours, theirs, constant):
    """Weight by weight, up to the stated constant times each score, which has mean zero."""
    log_w = 3 * torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one, other = (from_spec(spec, 4).weights(log_w) for spec in (ours, theirs))
    for name in ("path", "score", "model"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        if a is not None:
            shift = -(constant or 0.0) if name == "score" else 0.0
            a, b = (torch.as_tensor(v, dtype=torch.float64).expand(4, 5) for v in (a, b))
            torch.testing.assert_close(a, b + shift)


def uniform_grid(guide, samples):
    """Every cell of the noise of ``samples`` draws: exact for what depends on z alone."""
    shape = guide.noise((samples,), torch.Generator()).shape
    edges = guide.edges()[:, None].expand(-1, *shape).flatten(1).T.tolist()
    grid, weight = product([gauss_legendre(each, 1) for each in edges])
    return grid.reshape(-1, *shape), weight


DISCRETE = [SigmoidBeliefNet(dim=1, data_dim=3, seed=seed) for seed in (1, 2)]


@pytest.mark.parametrize("problem", DISCRETE, ids=lambda p: p.spec)
@pytest.mark.parametrize("num_samples", [2, 3, 4])
def test_renyi_by_scores_is_unbiased_on_discrete_latents(num_samples, problem):
    for alpha in ALPHAS:
        estimator = estimators.RenyiScore(num_samples=num_samples, alpha=alpha)
        grid = uniform_grid(problem.guide(problem.parameters["phi"]), num_samples)
        assert_expected(estimator, problem, grid)


@pytest.mark.parametrize("problem", DISCRETE, ids=lambda p: p.spec)
@pytest.mark.parametrize(("num_samples", "extra"), [(1, 1), (2, 1), (2, 3), (4, 1)])
def test_ovis_with_fresh_draws_is_unbiased(num_samples, extra, problem):
    estimator = estimators.OVISMonteCarlo(num_samples=num_samples, extra=extra)
    assert_expected(estimator, problem, uniform_grid(problem.guide(problem.parameters["phi"]), num_samples + extra))


def assert_expected(estimator, problem, grid):
    mean, _ = exact_expectation(estimator, problem, problem.parameters, grid=grid)
    exact = problem.exact(estimator.targets["phi"])
    truth = [torch.tensor([exact.value], dtype=torch.float64)]
    truth += [leaf.reshape(-1) for block in ("theta", "phi") for leaf in exact.gradient[block].values()]
    torch.testing.assert_close(mean, torch.cat(truth), rtol=0, atol=1e-10)


def test_ovis_with_fresh_draws_against_its_definition():
    """Each fresh draw put in each sample's place, one by one."""
    K, S = 3, 2
    log_w = 2 * torch.randn(K + S, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    expected = []
    for k in range(K):
        signals = []
        for value in (log_w[k], *log_w[K:]):
            replaced = log_w[:K].clone()
            replaced[k] = value
            signals.append(log_mean_exp(replaced) - replaced.softmax(0)[k])
        expected.append(signals[0] - torch.stack(signals[1:]).mean())
    got = estimators.OVISMonteCarlo(num_samples=K, extra=S).weights(log_w)
    torch.testing.assert_close(got.score[:K], torch.stack(expected))
    torch.testing.assert_close(got.model[:K], log_w[:K].softmax(0))
    assert not got.score[K:].any() and not got.model[K:].any()


def two_states(problem, counts):
    """Log-weights ``(K, K + 1)``, column n with n samples in state 1, and the columns' binomial log-probabilities."""
    guide = problem.guide(problem.parameters["phi"])
    states = guide.states()[:, None]
    log_q = guide.log_prob(states)[:, 0]
    log_w = problem.log_joint(problem.parameters["theta"], states)[:, 0] - log_q
    n = torch.arange(counts + 1)
    law = torch.distributions.Binomial(counts, probs=log_q[1].exp()).log_prob(n.double())
    return torch.where(torch.arange(counts)[:, None] < n, log_w[1], log_w[0]), law, (log_w, log_q)


@pytest.mark.parametrize("problem", DISCRETE, ids=lambda p: p.spec)
@pytest.mark.parametrize("alpha", [-2.0, -1.0, 0.0, 0.5])
def test_renyi_bounds_rise_to_their_limit_as_one_over_k(alpha, problem):
    """Exact for any K on two states. The gap to (1 - a)^-1 log E w^(1-a) is Var(u) / (2 (1-a) K), u = w^(1-a) of mean one; for
    alpha < 0 the limit lies above log p(x), but the bound of one sample, the ELBO, below it."""
    values = []
    for K in (1, 2, 4, 16, 64, 256, 1024):
        log_w, law, (state_w, log_q) = two_states(problem, K)
        values.append(float((law.exp() * estimators.Renyi(num_samples=K, alpha=alpha).value(log_w)).sum()))
    limit = float((log_q + (1 - alpha) * state_w).logsumexp(0)) / (1 - alpha)
    log_marginal = problem.exact(Target("log_marginal")).value
    assert all(low < high for low, high in itertools.pairwise(values)) and values[-1] < limit
    u = ((1 - alpha) * (state_w - limit)).exp()
    variance = float((log_q.exp() * (u - 1).square()).sum())
    assert (limit - values[-1]) * 1024 == pytest.approx(variance / (2 * (1 - alpha)), rel=0.02)
    assert values[0] < log_marginal
    if alpha < 0:
        assert log_marginal < values[-1]
    else:
        assert values[-1] < log_marginal


@pytest.mark.parametrize(
    "name", ["renyi", "renyi-dreg", "renyi-score", "ciwae", "dreg-alpha", "chi-upper-bound", "ovis-mc"]
)
def test_single_precision_is_enough(name):
    """One weight far above the rest, where 1 - w~ would be zero."""
    log_w = torch.tensor([0.0, -40.0, -41.0, -43.0, -39.5], dtype=torch.float64)
    estimator = estimators.get(name, num_samples=4 if name == "ovis-mc" else 5)
    for exact, single in zip(estimator.weights(log_w), estimator.weights(log_w.float()), strict=True):
        if exact is not None:
            torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings", "part"),
    [
        ("renyi", {"alpha": math.inf}, "finite alpha"),
        ("chi-upper-bound", {"order": 1.0}, "order above 1"),
        ("ciwae", {"beta": 1.2}, "beta between 0 and 1"),
        ("dreg-alpha", {"alpha": -0.1}, "alpha between 0 and 1"),
        ("ovis-mc", {"extra": 0}, "extra >= 1"),
        ("jackknife-dreg", {"num_samples": 2, "order": 2}, "num_samples > 2"),
    ],
)
def test_settings_that_cannot_be(name, settings, part):
    with pytest.raises(Refusal, match=part):
        estimators.get(name, **settings)
