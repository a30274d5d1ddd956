"""Tier 0: the expectation over all noise, by quadrature. Nothing is sampled, so nothing is left to chance.

Truth comes from finite differences or autograd of *values* (closed forms, quadrature of log mean w over a tensor grid),
never from the estimator's own algebra.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import estimators
from benchmarks.problems import Gaussian1D
from estimators import Refusal
from estimators.debiasing import TAILS
from estimators.testing import exact_expectation, gauss_hermite

POINTS = [
    Gaussian1D(loc=1.5, scale=0.6, x=1.3, prior_loc=0.2),  # rho = 0.72
    Gaussian1D(loc=-1.4, scale=1.1, x=-1.3, prior_loc=-0.3),  # rho = 2.42
    Gaussian1D(loc=1.6, scale=0.8, x=1.5, prior_loc=0.5),  # rho = 1.28
]
ELBO = ["score-function", "leave-one-out", "reparameterization", "reparameterization-analytic-kl", "sticking-the-landing",
        "bonnet-price"]  # fmt: skip
MULTI_SAMPLE = ["iwae", "dreg", "multi-sample-score", "vimco", "ovis"]
WAKE = ["reweighted-wake-sleep", "reweighted-wake-sleep-dreg"]
WITHOUT_EXACT_VARIANCE = {"multi-sample-score", "vimco", "ovis", "miwae", "piwae"}
NODES = {1: 80, 2: 140, 3: 60}


def pairs(names, num_samples):
    """Estimators with each number of samples that they allow."""
    return [(name, K) for name in names for K in num_samples if estimators.REGISTRY[name].min_num_samples <= K]


def value_of(objective, problem, num_samples):
    """E objective(log w) over a tensor grid, as a differentiable function of (prior_loc, loc, log_scale)."""
    x, w = gauss_hermite(NODES[num_samples])
    grid = torch.cartesian_prod(*[x] * num_samples).reshape(-1, num_samples).T
    weight = torch.cartesian_prod(*[w] * num_samples).reshape(-1, num_samples).prod(1)

    def value(prior_loc, loc, log_scale):
        z = loc + log_scale.exp() * grid
        log_p = -0.5 * (z - prior_loc) ** 2 - 0.5 * (problem.x - z) ** 2 - math.log(2 * math.pi)
        log_q = -0.5 * grid**2 - log_scale - 0.5 * math.log(2 * math.pi)
        return (weight * objective(log_p - log_q)).sum()

    start = [torch.tensor(v, dtype=torch.float64, requires_grad=True)
             for v in (problem.prior_loc, problem.loc, math.log(problem.scale))]  # fmt: skip
    out = value(*start)
    return np.array([out.item(), *(g.item() for g in torch.autograd.grad(out, start))])


def log_mean_exp(log_w):
    return log_w.logsumexp(0) - math.log(log_w.shape[0])


def jackknife(log_w):
    n = log_w.shape[0]
    left = torch.stack([log_mean_exp(torch.cat([log_w[:j], log_w[j + 1 :]])) for j in range(n)])
    return n * log_mean_exp(log_w) - (n - 1) * left.mean(0)


def mean_of(name, problem, num_samples):
    estimator = estimators.get(name, num_samples=num_samples)
    mean, _ = exact_expectation(estimator, problem, problem.parameters, nodes=NODES[num_samples])
    return mean.numpy()


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
@pytest.mark.parametrize(
    ("name", "num_samples"),
    pairs(ELBO, [1, 2, 3]),
)
def test_the_elbo_family_is_unbiased(name, num_samples, problem):
    truth = value_of(lambda log_w: log_w.mean(0), problem, 1)
    np.testing.assert_allclose(mean_of(name, problem, num_samples), truth, atol=1e-8 * np.linalg.norm(truth))


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
@pytest.mark.parametrize(("name", "num_samples"), pairs(MULTI_SAMPLE, [1, 2, 3]))
def test_the_multi_sample_family_is_unbiased(name, num_samples, problem):
    truth = value_of(log_mean_exp, problem, num_samples)
    np.testing.assert_allclose(mean_of(name, problem, num_samples), truth, atol=1e-6 * np.linalg.norm(truth))


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
@pytest.mark.parametrize("num_samples", [2, 3])
def test_arithmetic_vimco_is_unbiased_too(num_samples, problem):
    estimator = estimators.VIMCO(num_samples=num_samples, baseline="arithmetic")
    mean, _ = exact_expectation(estimator, problem, problem.parameters, nodes=NODES[num_samples])
    truth = value_of(log_mean_exp, problem, num_samples)
    np.testing.assert_allclose(mean.numpy(), truth, atol=1e-6 * np.linalg.norm(truth))


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_ovis_with_gamma_adds_gamma_times_the_wake_phi_direction(gamma, problem):
    estimator = estimators.OVIS(num_samples=2, gamma=gamma)
    mean, _ = exact_expectation(estimator, problem, problem.parameters, nodes=NODES[2])
    iwae, wake = mean_of("iwae", problem, 2)[2:], mean_of("reweighted-wake-sleep", problem, 2)[2:]
    np.testing.assert_allclose(mean.numpy()[2:], iwae + gamma * wake, atol=1e-6 * np.linalg.norm(iwae))
    assert np.linalg.norm(gamma * wake) > 0.05 * np.linalg.norm(iwae)


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
@pytest.mark.parametrize("num_samples", [1, 2, 3])
def test_both_wake_phi_updates_have_one_expectation(num_samples, problem):
    one, other = (mean_of(f"reweighted-wake-sleep{form}", problem, num_samples) for form in ("", "-dreg"))
    np.testing.assert_allclose(one, other, atol=1e-6 * (1 + np.linalg.norm(one)))


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
def test_groups_estimate_their_own_bound(problem):
    """Two groups of one: the ELBO for both blocks, or for phi alone."""
    elbo = value_of(lambda log_w: log_w.mean(0), problem, 1)
    np.testing.assert_allclose(mean_of("miwae", problem, 2), elbo, atol=1e-7 * np.linalg.norm(elbo))
    both = value_of(log_mean_exp, problem, 2)
    piwae = mean_of("piwae", problem, 2)
    np.testing.assert_allclose(piwae[:2], both[:2], atol=1e-6 * np.linalg.norm(both))
    np.testing.assert_allclose(piwae[2:], elbo[2:], atol=1e-7 * np.linalg.norm(elbo))


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
@pytest.mark.parametrize("num_samples", [2, 3])
def test_the_jackknife_is_the_combination_of_bounds_that_it_says(num_samples, problem):
    truth = value_of(jackknife, problem, num_samples)
    np.testing.assert_allclose(mean_of("jackknife", problem, num_samples), truth, atol=1e-6 * np.linalg.norm(truth))
    K = num_samples
    bounds = K * value_of(log_mean_exp, problem, K) - (K - 1) * value_of(log_mean_exp, problem, K - 1)
    np.testing.assert_allclose(truth, bounds, atol=1e-5 * np.linalg.norm(bounds))


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
@pytest.mark.parametrize("num_samples", [2, 3])
def test_the_bias_of_sticking_the_landing_is_the_wake_phi_direction(num_samples, problem):
    """E[iwae-stl] = grad L_K + E[wake-phi], and it is far from zero: the positive control of this file."""
    iwae, stl, wake = (
        mean_of(name, problem, num_samples)[2:] for name in ("iwae", "iwae-stl", "reweighted-wake-sleep")
    )
    np.testing.assert_allclose(stl, iwae + wake, atol=1e-6 * np.linalg.norm(stl))
    assert np.linalg.norm(stl - iwae) > 0.05 * np.linalg.norm(iwae)


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
@pytest.mark.parametrize(
    ("name", "num_samples"),
    pairs([*ELBO, *MULTI_SAMPLE, "iwae-stl", "miwae", "piwae", *WAKE], [1, 2]),
)
def test_variances_are_the_exact_ones(name, num_samples, problem):
    """Quadrature of the estimator's second moment against the closed forms and integrals of the references."""
    estimator = estimators.get(name, num_samples=num_samples)
    _, variance = exact_expectation(estimator, problem, problem.parameters, nodes=NODES[num_samples])
    for block, columns in (("theta", slice(1, 2)), ("phi", slice(2, 4))):
        exact = problem.exact_variance(name, num_samples, block)
        if exact is None and name in WITHOUT_EXACT_VARIANCE:
            continue
        if exact is None:
            assert name == "reparameterization-analytic-kl" and block == "theta"
            assert float(variance[columns].sum()) < 1e-20  # the whole theta-gradient is in the closed-form KL here
            continue
        assert float(variance[columns].sum()) == pytest.approx(exact, rel=5e-5, abs=1e-12)  # the rule is that good


def test_bonnet_price_has_no_variance_in_log_scale_on_a_gaussian_target():
    problem = POINTS[0]
    _, variance = exact_expectation(estimators.get("bonnet-price"), problem, problem.parameters)
    assert float(variance[3]) < 1e-24
    assert float(variance[2]) > 0.01


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("cap", [1, 5, 80, 200])
def test_sumo_pays_each_increment_its_full_weight(cap, tail):
    """sum_n pmf(n) 1{n >= k} / P(N >= k) = 1: the weights of a randomised truncation, for every term."""
    sumo = estimators.SUMO(cap=cap, tail=tail)
    k = torch.arange(1, cap + 2)
    survival = sumo.survival(k)
    pmf = survival[:-1] - survival[1:]
    reached = torch.flip(torch.cumsum(torch.flip(pmf, [0]), 0), [0])
    torch.testing.assert_close(reached / survival[:-1], torch.ones(cap, dtype=torch.float64), rtol=1e-12, atol=0)


def test_sumo_expects_the_published_number_of_terms():
    """E[N] = sum_k P(N >= k) = H_79 + 10/80 = 5.078, the 'k = 5' of Luo et al."""
    total = float(estimators.SUMO().survival(torch.arange(1, 2000)).sum())
    assert total == pytest.approx(sum(1 / k for k in range(1, 80)) + 10 / 80, abs=1e-9)


def test_the_other_tails_are_what_they_say():
    """0.8^(k - 1), five on average; 1/k, which ends at 512 unless a cap ends it, and so has another target."""
    k = torch.arange(1, 600)
    geometric, reciprocal = (estimators.SUMO(tail=tail).survival(k) for tail in ("geometric", "reciprocal"))
    np.testing.assert_allclose(geometric, 0.8 ** np.arange(599.0), rtol=1e-12)
    assert float(geometric.sum()) == pytest.approx(5.0)
    np.testing.assert_allclose(reciprocal, np.where(np.arange(1, 600) <= 512, 1 / np.arange(1.0, 600.0), 0.0))
    assert not estimators.SUMO(tail="geometric").variance_exists
    assert str(estimators.SUMO(tail="reciprocal").targets["theta"]) == "iwae-513"
    assert str(estimators.SUMO(2, cap=4, tail="reciprocal").targets["theta"]) == "iwae-6"
    with pytest.raises(Refusal, match="tail=published, reciprocal, geometric, not 'soft'"):
        estimators.SUMO(tail="soft")


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("cap", [0, 4])
def test_sumo_lengths_follow_their_law(cap, tail):
    """Chi-square of 100,000 lengths against the pmf; false alarm 1e-6."""
    from scipy import stats

    sumo = estimators.SUMO(cap=cap, tail=tail)
    lengths = sumo.lengths(100_000, torch.Generator().manual_seed(4)).numpy()
    assert lengths.min() == 1
    edges = np.arange(1, 5) if cap else np.array([1, 2, 3, 5, 10, 20, 35, *([80, 90] if tail != "geometric" else [])])
    survival = sumo.survival(torch.tensor(edges)).numpy()
    expected = 100_000 * (survival - np.append(survival[1:], 0.0))
    observed = np.histogram(lengths, np.append(edges, 10_000))[0]
    assert stats.chisquare(observed, expected).pvalue > 1e-6


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
def test_the_jackknife_of_second_order_combines_three_bounds(problem):
    """K = 3: a = 9/2, -4, 1/2, in value and gradient."""
    estimator = estimators.Jackknife(num_samples=3, order=2)
    assert estimator.coefficients() == [4.5, -4.0, 0.5]
    mean, _ = exact_expectation(estimator, problem, problem.parameters, nodes=NODES[3])
    bounds = [value_of(log_mean_exp, problem, k) for k in (3, 2, 1)]
    truth = 4.5 * bounds[0] - 4.0 * bounds[1] + 0.5 * bounds[2]
    np.testing.assert_allclose(mean.numpy(), truth, atol=1e-5 * np.linalg.norm(truth))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_jackknife_removes_powers_of_one_over_K(order):
    """sum_j a_j = 1, and sum_j a_j (K - j)^-i = 0 for i = 1 ... m: the bias's first m terms cancel."""
    K = 7
    a = np.array(estimators.Jackknife(num_samples=K, order=order).coefficients())
    n = K - np.arange(order + 1.0)
    assert a.sum() == pytest.approx(1.0, abs=1e-9)
    for power in range(1, order + 1):
        assert (a * n**-power).sum() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("name", ["multilevel-russian-roulette", "multilevel-single-sample"])
@pytest.mark.parametrize("cap", [1, 4, 10])
def test_multilevel_pays_each_increment_its_full_weight(name, cap):
    """sum_n pmf(n) weight_n(k) = 1 for every level k: the expectation telescopes to L_(2^(cap + 1))."""
    estimator = estimators.get(name, cap=cap)
    survival = estimator.survival(torch.arange(cap + 2)).numpy()
    assert survival[0] == 1.0 and survival[-1] == 0.0
    pmf = survival[:-1] - survival[1:]
    paid = np.zeros(cap + 1)
    for level in range(cap + 1):
        paid[: level + 1] += pmf[level] * np.array(estimator.increments(level))
    np.testing.assert_allclose(paid, 1.0, rtol=1e-12)


def test_multilevel_costs_what_its_law_says():
    """E[2^(N+1)] = 2 r / (1 - 2 (1 - r)) = 6 at r = 0.6, truncated here by a cap; 4.5 sigma."""
    estimator = estimators.get("multilevel-russian-roulette", cap=6)
    guide = POINTS[0].guide(POINTS[0].parameters["phi"])
    draws = estimator.draws(guide, 50_000, torch.Generator().manual_seed(8))
    sizes = np.concatenate([np.full(len(draw.rows), draw.noise.shape[1]) for draw in draws])
    survival = estimator.survival(torch.arange(8)).numpy()
    expected = sum((survival[n] - survival[n + 1]) * 2 ** (n + 1) for n in range(7))
    assert abs(sizes.mean() - expected) < 4.5 * sizes.std() / math.sqrt(len(sizes))
    assert sum((0.6 * 0.4**n) * 2 ** (n + 1) for n in range(200)) == pytest.approx(6.0)


@pytest.mark.parametrize("cap", [1, 2])
def test_capped_sumo_is_unbiased_for_the_longest_bound(cap):
    """Within forced lengths the mean is exact by quadrature; mixed by the pmf they make L_(1 + cap)."""
    problem = POINTS[0]
    sumo = estimators.SUMO(cap=cap)
    survival = sumo.survival(torch.arange(1, cap + 2)).numpy()
    total = np.zeros(2)
    for length in range(1, cap + 1):
        x, w = gauss_hermite(60)
        grid = torch.cartesian_prod(*[x] * (length + 1)).reshape(-1, length + 1, 1, 1)
        weight = torch.cartesian_prod(*[w] * (length + 1)).reshape(len(grid), -1).prod(1)
        rows = torch.func.vmap(lambda noise: sumo.gradient(problem, problem.parameters, noise))(grid)
        mean = np.array([float(weight @ rows.value), float(weight @ rows.theta["prior_loc"][:, 0])])
        total += (survival[length - 1] - survival[length]) * mean
    truth = value_of(log_mean_exp, problem, 1 + cap)[:2]
    np.testing.assert_allclose(total, truth, atol=1e-6)
