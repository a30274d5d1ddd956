"""f-divergences, tail-adaptive weights and the thermodynamic objective: exact, and against autograd of the formulas."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import estimators
from benchmarks.problems import Gaussian1D, LinearGaussian, SigmoidBeliefNet
from benchmarks.references.bounds import DIVERGENCES as REFERENCES
from estimators import Refusal, Target
from estimators.divergences import DIVERGENCES
from estimators.quadrature import gauss_legendre, product
from estimators.testing import exact_expectation

POINTS = [
    Gaussian1D(loc=1.5, scale=0.6, x=1.3, prior_loc=0.2),  # rho = 0.72
    Gaussian1D(loc=-1.4, scale=1.1, x=-1.3, prior_loc=-0.3),  # rho = 2.42
    Gaussian1D(loc=1.6, scale=0.8, x=1.5, prior_loc=0.5),  # rho = 1.28
]
DISCRETE = [SigmoidBeliefNet(dim=1, data_dim=3, seed=1), SigmoidBeliefNet(dim=2, data_dim=3, seed=2)]


def as_row(value, gradient):
    leaves = [leaf.reshape(-1) for block in ("theta", "phi") for leaf in gradient[block].values()]
    return torch.cat([torch.tensor([value], dtype=torch.float64), *leaves])


def uniform_grid(guide, samples):
    shape = guide.noise((samples,), torch.Generator()).shape
    edges = guide.edges()[:, None].expand(-1, *shape).flatten(1).T.tolist()
    grid, weight = product([gauss_legendre(each, 1) for each in edges])
    return grid.reshape(-1, *shape), weight


def test_both_tables_name_the_same_divergences():
    assert set(DIVERGENCES) == set(REFERENCES)


@pytest.mark.parametrize("name", REFERENCES)
def test_derivatives_are_those_of_the_definition(name):
    """F, F' and F' - F'' of the estimators against autograd of the references' F."""
    t = torch.linspace(-20, 20, 81, dtype=torch.float64)

    def first(t):
        return torch.func.grad(REFERENCES[name])(t)

    ours = DIVERGENCES[name]
    slope = torch.func.vmap(first)(t)
    second = torch.func.vmap(torch.func.grad(first))(t) if name != "kl" else torch.zeros_like(t)
    # The references take differences of numbers as large as t e^t.
    slack = {"rtol": 1e-9, "atol": 1e-6 if name == "jensen-shannon" else 1e-11}
    torch.testing.assert_close(ours.value(t), REFERENCES[name](t), **slack)
    torch.testing.assert_close(ours.slope(t), slope, **slack)
    torch.testing.assert_close(ours.doubly(t), slope - second, **slack)
    assert bool((slope > 0).all()) and bool((slope - second > 0).all())  # rising in t, concave in e^t
    assert abs(float(ours.value(torch.zeros(1, dtype=torch.float64)))) < 1e-15


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bounded_ones_stay_finite_far_out(name, dtype):
    t = torch.tensor([-3000.0, -100.0, -50.0, 29.9, 30.1, 50.0, 100.0, 3000.0], dtype=dtype)
    got = DIVERGENCES[name]
    if name in ("jensen-shannon", "skew-kl", "kl"):
        assert bool(torch.stack([got.value(t), got.slope(t), got.doubly(t)]).isfinite().all())
        assert bool((got.slope(t).diff() >= 0).all())


DEFINITIONS = {
    "kl": lambda p, q: q * (q / p).log(),
    "hellinger": lambda p, q: (p.sqrt() - q.sqrt()) ** 2,
    "chi-square": lambda p, q: (p - q) ** 2 / p,
    "jensen-shannon": lambda p, q: (p * (2 * p / (p + q)).log() + q * (2 * q / (p + q)).log()) / 2,
    "skew-kl": lambda p, q: q * (2 * q / (p + q)).log(),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_the_gap_is_the_divergence_by_that_name(name):
    """-E_q F(log p/q) for two normalised densities, against the divergence's own integral."""
    z = torch.linspace(-14, 14, 4001, dtype=torch.float64)
    laws = torch.tensor([[0.3, 1.2], [-0.4, 0.9]], dtype=torch.float64)
    p, q = (torch.distributions.Normal(*law).log_prob(z) for law in laws)
    step = float(z[1] - z[0])
    gap = -float((q.exp() * DIVERGENCES[name].value(p - q)).sum()) * step
    assert gap == pytest.approx(float(DEFINITIONS[name](p.exp(), q.exp()).sum()) * step, rel=1e-9)


# E_q[q / p] does not exist where q's variance is at least twice the posterior's: rho = 2.42.
PAIRS = [(name, p) for name in REFERENCES for p in POINTS if not (name == "chi-square" and p.tail_ratio >= 2)]


@pytest.mark.parametrize(("name", "problem"), PAIRS, ids=lambda p: getattr(p, "spec", p))
def test_every_form_is_unbiased_for_the_derivative_of_the_value(name, problem):
    """Over a grid of noise: the value's definition is summed and differentiated, the estimators are averaged."""
    noise = torch.linspace(-13, 13, 1301, dtype=torch.float64)
    weight = torch.exp(-0.5 * noise.square())
    weight = weight / weight.sum()
    start = [problem.prior_loc, problem.loc, math.log(problem.scale)]
    prior_loc, loc, log_scale = start = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in start]
    z = loc + log_scale.exp() * noise
    log_p = torch.distributions.Normal(prior_loc, 1.0).log_prob(z)
    log_p = log_p + torch.distributions.Normal(z, 1.0).log_prob(torch.tensor(problem.x, dtype=torch.float64))
    log_w = log_p - torch.distributions.Normal(loc, log_scale.exp()).log_prob(z)
    value = (weight * REFERENCES[name](log_w)).sum()
    truth = np.array([value.item(), *(slope.item() for slope in torch.autograd.grad(value, start))])
    forms = [
        estimators.FDivergence(divergence=name),
        estimators.FDivergence(divergence=name, doubly=False),
        estimators.FDivergenceScore(divergence=name),
    ]
    for estimator in forms:
        assert estimator.targets["phi"] == Target("f_divergence", setting=name)
        mean, _ = exact_expectation(estimator, problem, problem.parameters, grid=(noise.reshape(-1, 1, 1, 1), weight))
        np.testing.assert_allclose(mean.numpy(), truth, atol=1e-8 * np.linalg.norm(truth), rtol=0)


@pytest.mark.parametrize("problem", DISCRETE, ids=lambda p: p.spec)
@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("num_samples", [1, 2, 3])
def test_score_functions_with_their_baseline_are_unbiased_on_discrete_latents(num_samples, name, problem):
    estimator = estimators.FDivergenceScore(num_samples=num_samples, divergence=name)
    grid = uniform_grid(problem.guide(problem.parameters["phi"]), num_samples)
    mean, _ = exact_expectation(estimator, problem, problem.parameters, grid=grid)
    exact = problem.exact(estimator.targets["phi"])
    torch.testing.assert_close(mean, as_row(exact.value, exact.gradient), rtol=1e-10, atol=1e-10)
    bound = REFERENCES[name](torch.tensor(problem.exact(Target("log_marginal")).value, dtype=torch.float64))
    assert exact.value < float(bound)  # E F(log w) <= F(log p(x))


def test_kl_is_the_elbo_family():
    """The doubly reparameterised form is sticking the landing, the score form the leave-one-out score function."""
    log_w = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = estimators.FDivergence(num_samples=4, divergence="kl").weights(log_w)
    torch.testing.assert_close(ours.path, torch.full_like(log_w, 0.25))
    assert ours.score is None
    score = estimators.FDivergenceScore(num_samples=4, divergence="kl").weights(log_w).score
    torch.testing.assert_close(score, estimators.LeaveOneOut(num_samples=4).weights(log_w).score)


@pytest.mark.parametrize("name", REFERENCES)
def test_no_noise_where_q_is_the_posterior(name):
    problem = Gaussian1D(loc=0.75, scale=math.sqrt(0.5), x=1.2, prior_loc=0.3)
    noise = torch.randn(5, 3, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for row in noise:
        phi = estimators.FDivergence(num_samples=3, divergence=name).gradient(problem, problem.parameters, row).phi
        assert max(float(leaf.abs().max()) for leaf in phi.values()) < 1e-12


def test_tail_adaptive_weights_are_powers_of_the_tail_probability():
    """Sample by sample from the definition; ties share the greater rank."""
    log_w = torch.tensor([0.3, -2.0, 5.0, 0.3, -2.5], dtype=torch.float64)
    for beta in (-1.0, -0.5, 0.0):
        tails = [sum(float(other) >= float(one) for other in log_w) / 5 for one in log_w]
        expected = torch.tensor([tail**beta for tail in tails], dtype=torch.float64)
        got = estimators.TailAdaptive(num_samples=5, beta=beta).weights(log_w)
        torch.testing.assert_close(got.path, expected / expected.sum())
        torch.testing.assert_close(got.model, log_w.softmax(0))
        assert got.score is None


def test_tail_adaptive_multiplies_path_derivatives():
    """Against autograd of sum_k gamma_k [log p(x, z_k) - log q-bar(z_k)]."""
    problem = LinearGaussian(dim=2, data_dim=3, points=2, seed=1)
    p = problem.parameters
    noise = torch.randn(4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    phi = {name: leaf.clone().requires_grad_() for name, leaf in p["phi"].items()}
    z = phi["loc"] + phi["log_scale"].exp() * noise
    held = torch.distributions.Normal(p["phi"]["loc"], p["phi"]["log_scale"].exp())
    path = problem.log_joint(p["theta"], z) - held.log_prob(z).sum(-1)
    rank = path.detach().argsort(0, descending=True).argsort(0) + 1
    gamma = (1 / rank) / (1 / rank).sum(0)
    expected = torch.autograd.grad((gamma * path).sum(0).mean(), list(phi.values()))
    got = estimators.TailAdaptive(num_samples=4).gradient(problem, p, noise)
    for ours, theirs in zip(got.phi.values(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


SIDES = pytest.mark.parametrize("kind", [estimators.TVO, estimators.EvidenceUpperBound], ids=lambda kind: kind.name)


def covariance_gradient(log_p, log_q, intervals, correction, first):
    """A scalar whose gradient is the covariance gradient of a Riemann sum: E[grad f] + c Cov(grad log pi, f)."""
    total = 0.0
    for step in range(first, first + intervals):
        beta = step / intervals
        log_pi = (1 - beta) * log_q + beta * log_p
        f = log_p - log_q
        base = beta * f.detach() + log_pi - log_pi.detach()  # SNIS weights that live through pi alone
        w = (beta * f.detach()).softmax(0)
        live = f if step else log_p  # at beta = 0, E[-grad log q] = 0 is dropped
        total = total + ((w * live).sum(0) + correction * (base.softmax(0) * f.detach()).sum(0)) / intervals
    return total


@pytest.mark.parametrize("problem", [POINTS[0], LinearGaussian(dim=2, data_dim=3, points=2, seed=1), DISCRETE[1]],
                         ids=lambda p: p.name)  # fmt: skip
@SIDES
@pytest.mark.parametrize("intervals", [1, 4])
def test_the_thermodynamic_gradient_against_autograd_of_its_formula(intervals, kind, problem):
    p = problem.parameters
    guide = problem.guide(p["phi"])
    noise = guide.noise((4,), torch.Generator().manual_seed(5))
    z = guide.transform(noise).detach()
    live = {block: {n: leaf.clone().requires_grad_() for n, leaf in p[block].items()} for block in p}
    log_p, log_q = problem.log_joint(live["theta"], z), problem.guide(live["phi"]).log_prob(z)
    scalar = covariance_gradient(log_p, log_q, intervals, 4 / 3, first=int(kind.upper)).mean()
    leaves = [leaf for block in live.values() for leaf in block.values()]
    expected = torch.autograd.grad(scalar, leaves)
    got = kind(num_samples=4, intervals=intervals).gradient(problem, p, noise)
    for ours, theirs in zip([*got.theta.values(), *got.phi.values()], expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_one_interval_is_the_leave_one_out_elbo():
    log_w = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    one, other = estimators.TVO(num_samples=4, intervals=1), estimators.LeaveOneOut(num_samples=4)
    for ours, theirs in zip(one.weights(log_w), other.weights(log_w), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, torch.as_tensor(theirs, dtype=torch.float64).expand(4, 3))
    torch.testing.assert_close(one.value(log_w), other.value(log_w))


def test_one_right_interval_is_the_evidence_upper_bound():
    """log p(x) + KL(p(z | x) || q), whose phi-gradient is minus forward KL's; with T intervals the two sums close in on log p."""
    for problem in DISCRETE:
        log_p, kl = problem.exact(Target("log_marginal")), problem.exact(Target("forward_kl"))
        found = problem.exact(Target("tvo_upper", setting=1))
        assert found.value == pytest.approx(log_p.value - kl.value, abs=1e-12)
        for name, leaf in kl.gradient["phi"].items():
            torch.testing.assert_close(found.gradient["phi"][name], -leaf)
        gaps = [
            problem.exact(Target("tvo_upper", setting=T)).value - problem.exact(Target("tvo", setting=T)).value
            for T in (1, 2, 4)
        ]
        # their difference is (E_p - E_q) log w / T
        assert gaps == pytest.approx([gaps[0], gaps[0] / 2, gaps[0] / 4], rel=1e-9) and gaps[0] > 0


@SIDES
@pytest.mark.parametrize("seed", [1, 2])
def test_the_bias_of_the_thermodynamic_objective_falls_as_one_over_k(seed, kind):
    """Exact on two states for any K: value and gradient come from the number of samples in each state alone."""
    problem = SigmoidBeliefNet(dim=1, data_dim=3, seed=seed)
    p = problem.parameters
    states = problem.guide(p["phi"]).states()[:, None]
    score = torch.func.jacrev(lambda phi: problem.guide(phi).log_prob(states))(p["phi"])["logits"].reshape(2)
    log_q = problem.guide(p["phi"]).log_prob(states)[:, 0]
    log_w = problem.log_joint(p["theta"], states)[:, 0] - log_q
    exact = problem.exact(Target(kind(intervals=5).targets["phi"].name, setting=5))
    truth = torch.tensor([exact.value, float(exact.gradient["phi"]["logits"])], dtype=torch.float64)
    errors = []
    for K in (64, 128, 256):
        n = torch.arange(K + 1)
        law = torch.distributions.Binomial(K, probs=log_q[1].exp()).log_prob(n.double()).exp()
        upper = torch.arange(K)[:, None] < n
        estimator, drawn = kind(num_samples=K, intervals=5), torch.where(upper, log_w[1], log_w[0])
        phi = (estimator.weights(drawn).score * torch.where(upper, score[1], score[0])).sum(0)
        errors.append(torch.stack([(law * estimator.value(drawn)).sum(), (law * phi).sum()]) - truth)
    for one, half in itertools.pairwise(errors):
        assert bool((one.abs() > 1e-7).all())
        torch.testing.assert_close(one / half, torch.full((2,), 2.0, dtype=torch.float64), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("name", "settings", "part"),
    [
        ("f-divergence", {"divergence": "total"}, "jensen-shannon"),
        ("f-divergence-score", {"divergence": "x"}, "hellinger"),
        ("tvo", {"intervals": 0}, "intervals >= 1"),
        ("evidence-upper-bound", {"intervals": 0}, "intervals >= 1"),
        ("multilevel-tvo", {"intervals": 0}, "intervals >= 1"),
    ],
)
def test_settings_that_cannot_be(name, settings, part):
    with pytest.raises(Refusal, match=part):
        estimators.get(name, **settings)
