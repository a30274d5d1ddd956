"""Multilevel estimators: how fast their levels fall, and the two whose phi is unbiased as well.

On a latent of two states everything symmetric in the samples is a sum over binomial counts, so levels are exact for any
number of samples.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import estimators
from benchmarks.check import check, exit_code
from benchmarks.problems import SigmoidBeliefNet
from benchmarks.registry import Registry
from estimators import Refusal, Target
from estimators.quadrature import gauss_legendre, product
from estimators.testing import exact_expectation

PROBLEMS = [SigmoidBeliefNet(dim=1, data_dim=3, seed=seed) for seed in (1, 2)]
DISCRETE = "sigmoid-belief-net[dim=3,data_dim=4,seed=2]"
SCHEMES = ("russian-roulette", "single-sample")


def states_of(problem):
    """log w and log q of both states."""
    guide = problem.guide(problem.parameters["phi"])
    states = guide.states()[:, None]
    log_q = guide.log_prob(states)[:, 0]
    return problem.log_joint(problem.parameters["theta"], states)[:, 0] - log_q, log_q


def variance_of(log_w, log_q):
    """Var(w / p(x))."""
    r = (log_w - (log_q + log_w).logsumexp(0)).exp()
    return float((log_q.exp() * (r - 1).square()).sum())


def ordered(counts, of):
    """``(of, len(counts))``: which of the samples are in state 1, the first ones of them."""
    return torch.arange(of)[:, None] < counts


def halves(problem, size):
    """Log-weights ``(2 size, columns)``, each column another pair of counts in the two halves, and their probabilities."""
    log_w, log_q = states_of(problem)
    n = torch.arange(size + 1)
    law = torch.distributions.Binomial(size, probs=log_q[1].exp()).log_prob(n.double()).exp()
    pairs = torch.cartesian_prod(n, n)
    upper = torch.cat([ordered(pairs[:, 0], size), ordered(pairs[:, 1], size)])
    return torch.where(upper, log_w[1], log_w[0]), law[pairs[:, 0]] * law[pairs[:, 1]]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.spec)
def test_antithetic_levels_fall_as_four_to_the_minus_k(problem):
    """E[Delta_k^2] -> 3 Var(r)^2 / (16 4^k): slope -2, where an increment without its halves' mean has slope -1."""
    estimator = estimators.MultilevelSingleSample()
    leading = 3 * variance_of(*states_of(problem)) ** 2 / 16
    squares = []
    for level in (4, 5, 6, 7):
        log_w, law = halves(problem, 2**level)
        increment = (estimator.value(log_w) - log_w.mean(0)) / estimator.increments(level)[-1]
        squares.append(float((law * increment.square()).sum()))
    slopes = np.diff(np.log2(squares))
    assert slopes[-1] == pytest.approx(-2.0, abs=0.05) and abs(slopes + 2).max() < 0.2
    assert squares[-1] * 4**7 == pytest.approx(leading, rel=0.06)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.spec)
def test_levels_without_the_antithetic_mean_fall_as_two_to_the_minus_k(problem):
    """E[(L_2n - L_n)^2] -> Var(r) / (2 n) over nested samples: slope -1, SUMO's increments grouped by doubling."""
    variance = variance_of(*states_of(problem))
    squares = []
    for level in (4, 5, 6, 7):
        n = 2**level
        log_w, law = halves(problem, n)
        longer, shorter = estimators.IWAE(2 * n).value(log_w), estimators.IWAE(n).value(log_w[:n])
        squares.append(float((law * (longer - shorter).square()).sum()))
    assert np.diff(np.log2(squares))[-1] == pytest.approx(-1.0, abs=0.03)
    assert squares[-1] * 2 * 2**7 == pytest.approx(variance, rel=0.03)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.spec)
def test_sumos_increments_fall_as_one_over_k_squared(problem):
    """k^2 E[Delta_k^2] -> Var(r): so no tail gives SUMO both a finite variance and a finite cost."""
    (low, high), log_q = states_of(problem)
    found = []
    for k in (64, 128, 256):
        n = torch.arange(k + 1)
        law = torch.distributions.Binomial(k, probs=log_q[1].exp()).log_prob(n.double()).exp()
        total = 0.0
        for last, probability in ((low, log_q[0].exp()), (high, log_q[1].exp())):
            log_w = torch.cat([torch.where(ordered(n, k), high, low), last.expand(1, k + 1)])
            # m = k samples and one increment, whose weight is 1: the value is L_(k + 1)
            increment = estimators.SUMO(num_samples=k).value(log_w) - estimators.IWAE(k).value(log_w[:k])
            total += float(probability * (law * increment.square()).sum())
        found.append(k**2 * total)
    assert found[-1] == pytest.approx(variance_of(*states_of(problem)), rel=0.03)
    assert np.diff(np.log2(found))[-1] == pytest.approx(0.0, abs=0.03)


def uniform_grid(guide, samples):
    shape = guide.noise((samples,), torch.Generator()).shape
    edges = guide.edges()[:, None].expand(-1, *shape).flatten(1).T.tolist()
    grid, weight = product([gauss_legendre(each, 1) for each in edges])
    return grid.reshape(-1, *shape), weight


def over_levels(estimator, problem):
    """The exact mean of a capped estimator: over all states within each level, and over the law of the level."""
    guide = problem.guide(problem.parameters["phi"])
    survival = estimator.survival(torch.arange(estimator.cap + 2))
    total = 0.0
    for level in range(estimator.cap + 1):
        grid = uniform_grid(guide, 2 ** (level + 1))
        mean, _ = exact_expectation(estimator, problem, problem.parameters, grid=grid)
        total = total + (survival[level] - survival[level + 1]) * mean
    return total


def over_tuples(problem, samples, scalar):
    """Gradient row of E scalar(log_p, log_q) over tuples of states whose probability is held."""
    leaves = {b: {n: leaf.clone().requires_grad_() for n, leaf in ls.items()} for b, ls in problem.parameters.items()}
    states = problem.guide(leaves["phi"]).states()[:, None]
    tuples = torch.cartesian_prod(*[torch.arange(2)] * samples).reshape(-1, samples).T
    log_p = problem.log_joint(leaves["theta"], states)[:, 0][tuples]
    log_q = problem.guide(leaves["phi"]).log_prob(states)[:, 0][tuples]
    value = (log_q.sum(0).exp().detach() * scalar(log_p, log_q)).sum()
    every = [leaf for ls in leaves.values() for leaf in ls.values()]
    found = torch.autograd.grad(value, every, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(every, found, strict=True)], float(
        value.detach()
    )


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.spec)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_capped_wake_phi_has_the_mean_of_the_longest_block(scheme, problem):
    """phi: E sum_k w~_k h_k of four samples; theta and value: L_4."""
    estimator = estimators.UnbiasedReweightedWakeSleep(cap=1, scheme=scheme)
    mean = over_levels(estimator, problem)
    exact = problem.exact(Target("iwae", 4))
    wake, _ = over_tuples(problem, 4, lambda log_p, log_q: ((log_p - log_q).detach().softmax(0) * log_q).sum(0))
    theta = [leaf.reshape(-1) for leaf in exact.gradient["theta"].values()]
    expected = torch.cat([torch.tensor([exact.value], dtype=torch.float64), *theta, wake[-1].reshape(-1)])
    torch.testing.assert_close(mean, expected, rtol=0, atol=1e-11)
    assert estimator.targets == {"theta": Target("iwae", 4), "phi": Target("forward_kl", unbiased=False)}
    assert estimators.UnbiasedReweightedWakeSleep().targets["phi"] == Target("forward_kl")


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.spec)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("intervals", [1, 3])
def test_the_capped_thermodynamic_objective_has_the_mean_of_the_longest_block(intervals, scheme, problem):
    """Value and both gradients of the self-normalised formula with four samples, tuple by tuple, by autograd."""
    estimator = estimators.MultilevelTVO(cap=1, scheme=scheme, intervals=intervals)

    def value(log_p, log_q):
        log_w = (log_p - log_q).detach()
        return sum(((b * log_w).softmax(0) * log_w).sum(0) for b in np.arange(intervals) / intervals) / intervals

    def live(log_p, log_q):
        total, log_w = 0.0, (log_p - log_q).detach()
        for b in np.arange(intervals) / intervals:
            log_pi = b * log_p + (1 - b) * log_q
            tilted = (b * log_w + log_pi - log_pi.detach()).softmax(0)  # lives through pi: its slope is the covariance
            total = total + (tilted * log_w).sum(0) + ((b * log_w).softmax(0) * (log_p - log_q)).sum(0)
        return total / intervals

    gradient, _ = over_tuples(problem, 4, live)
    _, expected = over_tuples(problem, 4, lambda p, q: value(p, q) + 0 * p.sum(0))
    row = torch.cat([torch.tensor([expected], dtype=torch.float64), *(g.reshape(-1) for g in gradient)])
    torch.testing.assert_close(over_levels(estimator, problem), row, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["unbiased-reweighted-wake-sleep", "multilevel-tvo"])
def test_single_levels_without_a_cap_are_unbiased_where_weights_are_bounded(name):
    """`gradest check` on a belief network; false alarms 1e-9. A bias above 5 % of the gradient is excluded at 99 %.

    The other scheme is the default one, which the conformance suite checks.
    """
    registry = Registry()
    estimator = registry.estimator(f"{name}[scheme=single-sample]", 1)
    found = check(estimator, [registry.problem(DISCRETE)], override=None, seed=3, max_draws=2_000_000)
    assert exit_code(found) == 0, [str(each.finding) for each in found]
    assert set(found[0].targets) == {"theta", "phi"}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_phi_is_unbiased_for_the_forward_divergence_of_a_wide_gaussian_guide(scheme):
    """rho = 2.42, bounded weights."""
    registry = Registry()
    problems = [registry.problem("gaussian-1d[loc=-1.4,scale=1.1,x=-1.3,prior_loc=-0.3]")]
    estimator = registry.estimator(f"unbiased-reweighted-wake-sleep[scheme={scheme}]", 1)
    found = check(estimator, problems, override=None, seed=2, max_draws=2_000_000)
    assert exit_code(found) == 0, [str(each.finding) for each in found]


def test_the_wake_phi_gradient_is_that_of_the_value_with_samples_held():
    """Per draw: phi is minus the slope of the multilevel value in log q at fixed z, theta the slope in log p."""
    log_w = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for scheme in SCHEMES:
        estimator = estimators.UnbiasedReweightedWakeSleep(scheme=scheme)
        (slope,) = torch.autograd.grad(estimator.value(log_w).sum(), log_w)
        weights = estimator.weights(log_w.detach())
        torch.testing.assert_close(weights.score, slope)
        torch.testing.assert_close(weights.model, slope)


def test_the_value_of_the_thermodynamic_one_is_differentiated_in_theta():
    log_w = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for scheme in SCHEMES:
        estimator = estimators.MultilevelTVO(scheme=scheme, intervals=4)
        (slope,) = torch.autograd.grad(estimator.value(log_w).sum(), log_w)
        torch.testing.assert_close(estimator.weights(log_w.detach()).model, slope)


@pytest.mark.parametrize("name", ["unbiased-reweighted-wake-sleep", "multilevel-tvo"])
def test_settings_that_cannot_be(name):
    for settings, part in (
        ({"scheme": "both"}, "scheme="),
        ({"num_samples": 2}, "num_samples must be 1"),
        ({"r": 0.8}, "r "),
    ):
        with pytest.raises(Refusal, match=part):
            estimators.get(name, **settings)
    assert math.isclose(estimators.get(name, cap=3).survival(torch.tensor(3)), 0.4**3)
