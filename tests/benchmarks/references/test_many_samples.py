"""L_K of scalar latents: against Laplace transforms of another kind, sums over pairs, rules for gamma and beta laws, differences."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from benchmarks.problems import BetaBernoulli, GammaPoisson, Gaussian1D, GaussianMixtureGuide
from benchmarks.references import on_a_line
from benchmarks.references.many_samples import log_mean
from benchmarks.references.on_a_line import graded, summed
from estimators import BLOCKS, Target

PROBLEMS = [
    GammaPoisson(),
    GammaPoisson(observations=100, points=2, perturbation=0.6),
    BetaBernoulli(),
    BetaBernoulli(observations=40, points=2, perturbation=0.6),
    GaussianMixtureGuide(),
    GaussianMixtureGuide(loc1=-3.0, scale2=3.0),
]


def agree(found, expected, tolerance):
    assert found[0] == pytest.approx(expected[0], abs=tolerance)
    for block in BLOCKS:
        for name, leaf in expected[1][block].items():
            torch.testing.assert_close(found[1][block][name], leaf, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("K", [3, 10, 10_000])
@pytest.mark.parametrize(("scale", "x"), [(0.6, 1.3), (4.0, -2.0)])
def test_a_normal_law(K, scale, x):
    """Whose exact value comes from panels about the roots of a quadratic function (`laplace`)."""
    problem = Gaussian1D(loc=1.5, scale=scale, x=x, prior_loc=0.2)
    found = summed(problem, problem.parameters, Target("iwae", K), graded([1.5, (x + 0.2) / 2], [scale, 0.7], 14.0))
    known = problem.exact(Target("iwae", K))
    agree(found, (known.value, known.gradient), 1e-10)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda each: each.spec)
def test_two_samples_are_sums_over_pairs(problem, monkeypatch):
    pairs = summed(problem, problem.parameters, Target("iwae", 2), problem.mesh)
    monkeypatch.setattr(on_a_line, "MOST_SAMPLES", 1)
    agree(summed(problem, problem.parameters, Target("iwae", 2), problem.mesh), pairs, 1e-9)


def test_three_samples_of_a_gamma_guide():
    """Over triples of nodes of Gauss's rule for the gamma law itself."""
    problem = GammaPoisson(observations=3, perturbation=0.2)
    theta, phi = ({name: leaf.exp().flatten().numpy() for name, leaf in problem.parameters[b].items()} for b in BLOCKS)
    shape, rate = phi["log_concentration"][0], phi["log_rate"][0]
    nodes, weights = special.roots_genlaguerre(60, shape - 1)
    z, x = nodes / rate, problem.data.numpy().flatten()
    log_w = stats.gamma.logpdf(z, theta["log_prior_concentration"][0], scale=1 / theta["log_prior_rate"][0])
    log_w += stats.poisson.logpmf(x[:, None], z).sum(0) - stats.gamma.logpdf(z, shape, scale=1 / rate)
    assert triples(log_w, weights) == pytest.approx(problem.exact(Target("iwae", 3)).value, abs=1e-9)


def test_three_samples_of_a_beta_guide():
    """Over triples of nodes of Gauss-Legendre rules between quantiles: at its ends log w is singular."""
    problem = BetaBernoulli(observations=4, perturbation=0.2)
    theta, phi = (
        {name: leaf.exp().flatten().numpy()[0] for name, leaf in problem.parameters[b].items()} for b in BLOCKS
    )
    (a, b), (p, q) = phi.values(), theta.values()
    x, w = np.polynomial.legendre.leggauss(12)
    ends = stats.beta.ppf(
        [0, 1e-14, 1e-11, 1e-8, 1e-5, 1e-3, 0.02, 0.1, 0.3, 0.6, 0.85, 0.97, 1 - 1e-3, 1 - 1e-5, 1 - 1e-8, 1], a, b
    )
    z = (ends[:-1, None] + np.diff(ends)[:, None] * (1 + x) / 2).flatten()
    weights, x = (np.diff(ends)[:, None] * w).flatten() * stats.beta.pdf(z, a, b), problem.data.numpy().flatten()
    log_w = stats.beta.logpdf(z, p, q) + stats.bernoulli.logpmf(x[:, None], z).sum(0) - stats.beta.logpdf(z, a, b)
    assert triples(log_w, weights) == pytest.approx(problem.exact(Target("iwae", 3)).value, abs=1e-9)


def triples(log_w, weights):
    weights = weights / weights.sum()
    together = np.logaddexp(np.logaddexp(log_w[:, None, None], log_w[:, None]), log_w) - math.log(3)
    return np.einsum("i,j,k,ijk", weights, weights, weights, together)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda each: each.spec)
def test_bounds_rise_to_log_p_and_gradients_are_those_of_the_values(problem):
    law = [problem.exact(Target("elbo")), *(problem.exact(Target("iwae", K)) for K in (2, 3, 8, 100, 10_000))]
    values = [each.value for each in (*law, problem.exact(Target("log_marginal")))]
    assert all(one < other for one, other in itertools.pairwise(values))
    rng, h = torch.Generator().manual_seed(0), 1e-3
    along = {b: {n: torch.randn(leaf.shape, generator=rng, dtype=leaf.dtype) for n, leaf in leaves.items()}
             for b, leaves in problem.parameters.items()}  # fmt: skip

    def value(step):
        moved = {b: {n: leaf + step * along[b][n] for n, leaf in leaves.items()}
                 for b, leaves in problem.parameters.items()}  # fmt: skip
        return summed(problem, moved, Target("iwae", 8), problem.mesh)[0]

    difference = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
    gradient = problem.exact(Target("iwae", 8)).gradient
    slope = sum(float((gradient[b][n] * leaf).sum()) for b, leaves in along.items() for n, leaf in leaves.items())
    assert slope == pytest.approx(difference, rel=1e-6, abs=1e-7)


def test_combinations():
    """Jackknife and CIWAE of four samples, from the bounds that they are made of."""
    problem = GammaPoisson()
    three, four = (problem.exact(Target("iwae", K)).value for K in (3, 4))
    assert problem.exact(Target("jackknife", 4, setting=1)).value == pytest.approx(4 * four - 3 * three, abs=1e-12)
    elbo = problem.exact(Target("elbo")).value
    assert problem.exact(Target("ciwae", 4, setting=0.3)).value == pytest.approx(0.3 * elbo + 0.7 * four, abs=1e-12)


def test_a_step_far_down_is_not_claimed_and_one_nearby_is_right():
    mass = torch.full((2,), 0.5, dtype=torch.float64)
    assert log_mean(torch.tensor([0.0, -1e5], dtype=torch.float64), mass, 3) is None
    value, by_log_w, by_mass = log_mean(torch.tensor([0.0, -40.0], dtype=torch.float64), mass, 3)
    # all three small with probability 1/8; else one to three of them are large
    expected = -40 / 8 + sum(math.comb(3, n) / 8 * math.log(n / 3) for n in (1, 2, 3))
    assert value == pytest.approx(expected, abs=1e-9)
    assert by_log_w.tolist() == pytest.approx([7 / 8, 1 / 8], abs=1e-12)  # of E log, by a common shift of either
    assert float(by_mass[0] - by_mass[1]) == pytest.approx(120 * 0.25 + slope(), rel=1e-9)


def slope():
    """Of sum_n C(3,n) p^n (1-p)^(3-n) log(n/3), n > 0, by p at 1/2."""
    return sum(
        math.comb(3, n) * (n * 0.5 ** (n - 1) * 0.5 ** (3 - n) - (3 - n) * 0.5**n * 0.5 ** (2 - n)) * math.log(n / 3)
        for n in (1, 2, 3)
    )
