"""Relatives of DReG: the mean exactly, whatever the coefficients; what they are at their corners; what learning is worth.

Means and variances are sums over a grid of noise by the trapezoidal rule; the truth is the derivative of the summed value.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import estimators
from benchmarks.problems import Gaussian1D, LinearGaussian
from estimators import Refusal, Target
from estimators.dreg_variants import _least_squares
from estimators.quadrature import exact_expectation
from estimators.replicates import coordinates, stacked, warmed_up

POINTS = [
    Gaussian1D(loc=1.5, scale=0.6, x=1.3, prior_loc=0.2),  # rho = 0.72
    Gaussian1D(loc=-1.4, scale=1.1, x=-1.3, prior_loc=-0.3),  # rho = 2.42
]


def with_coefficients(*c, num_samples=2):
    return estimators.DReGControlVariate(num_samples, state={"coefficients": torch.tensor(c, dtype=torch.float64)})


def truth(problem, num_samples):
    found = problem.exact(Target("iwae", num_samples))
    leaves = [found.gradient[b][n][i] for b, n, i in coordinates(problem.parameters)]
    return np.array([found.value, *map(float, leaves)])


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
@pytest.mark.parametrize("c", [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0.3, -0.7, 0.2, 1.5)])
def test_it_is_unbiased_whatever_the_coefficients(c, problem):
    mean, _ = exact_expectation(with_coefficients(*c), problem, problem.parameters, nodes=100)
    expected = truth(problem, 2)
    np.testing.assert_allclose(mean.numpy(), expected, atol=1e-6 * np.linalg.norm(expected), rtol=0)


@pytest.mark.parametrize(
    ("c", "name"),
    [((0, 0, 0, 0), "dreg"), ((0, 1, 0, 0), "iwae"), ((1, 1, 0, 0), "ovis")],
    ids=["dreg", "iwae", "ovis"],
)
def test_its_corners_are_known(c, name):
    problem = LinearGaussian(dim=2, points=3)
    ours = stacked(
        with_coefficients(*c, num_samples=4), problem, problem.parameters, 5, torch.Generator().manual_seed(0)
    )
    other = estimators.get(name, num_samples=4)
    theirs = stacked(other, problem, problem.parameters, 5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
def test_what_is_learnt_has_less_variance_than_any_corner(problem):
    """Exact variances of phi, after the usual 100 draws: at most 0.9 of the best corner's."""
    learnt = warmed_up(estimators.DReGControlVariate(2), problem, problem.parameters, torch.Generator().manual_seed(3))

    def variance(one):
        return float(exact_expectation(one, problem, problem.parameters, nodes=100)[1][-2:].sum())

    corners = {name: variance(estimators.get(name, num_samples=2)) for name in ("dreg", "iwae", "ovis")}
    assert variance(learnt) < 0.9 * min(corners.values()), (variance(learnt), corners)


def test_least_squares_of_dependent_contrasts_settle():
    """Two equal contrasts share what one of them would get."""
    x = torch.randn(200, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[:, 0] += 3 * x[:, 2]
    x[:, 4] = x[:, 2]
    c = _least_squares(x.T @ x)
    assert float(c[1] + c[3]) == pytest.approx(-3, abs=0.3) and float(c[1]) == pytest.approx(float(c[3]), rel=1e-6)


def test_it_learns_only_from_what_it_was_given():
    problem = POINTS[0]
    one = warmed_up(estimators.DReGControlVariate(2), problem, problem.parameters, torch.Generator().manual_seed(1))
    assert one.state["coefficients"].shape == (4,)
    again = one.adapted(problem, problem.parameters, torch.zeros(2, 1, 1, dtype=torch.float64))
    assert not torch.equal(again.state["moments"], one.state["moments"]) and one.state["moments"].shape == (5, 5)
    with pytest.raises(Refusal, match="num_samples >= 2"):
        estimators.DReGControlVariate(1)


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
def test_the_normalised_one_by_its_definition_and_its_bias(problem):
    """Draw by draw dreg divided by the sum of its own weights; in the mean far longer than the gradient of L_K."""
    K = 3
    log_w = torch.randn(K, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w2 = log_w.softmax(0).square()
    torch.testing.assert_close(estimators.DReGNorm(K).weights(log_w).path, w2 / w2.sum(0))
    mean, _ = exact_expectation(estimators.DReGNorm(2), problem, problem.parameters, nodes=100)
    expected = truth(problem, 2)
    np.testing.assert_allclose(mean[:2].numpy(), expected[:2], atol=1e-6)
    assert np.linalg.norm(mean[2:].numpy() - expected[2:]) > 0.1 * np.linalg.norm(expected[2:])
    assert not estimators.DReGNorm(2).targets["phi"].unbiased and estimators.DReGNorm(1).targets["phi"].unbiased
