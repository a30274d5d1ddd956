"""Bounds of jointly normal latents and data: against quadrature, another algebra, differences of values, and sampling."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.func import grad

from benchmarks.problems import GaussianFullRank, GaussianMeanField, TwoLayerGaussian
from benchmarks.problems.known_bounds import small_bound
from benchmarks.references.joint_bounds import iwae
from benchmarks.references.quadratic_form import iwae_gradient
from estimators import BLOCKS, Target


def agree(found, expected, tolerance):
    (value, gradient), (known, theirs) = found, expected
    assert value == pytest.approx(known, abs=tolerance)
    for block in BLOCKS:
        for name, leaf in theirs[block].items():
            torch.testing.assert_close(
                gradient[block][name], torch.as_tensor(leaf, dtype=torch.float64), rtol=0, atol=10 * tolerance
            )


@pytest.mark.parametrize(
    ("problem", "K"),
    [
        (GaussianFullRank(dim=1), 4),
        (GaussianFullRank(dim=2, shift=2.0), 2),
        (GaussianMeanField(dim=2, rho=0.4), 2),
        (GaussianFullRank(dim=1, noise_scale=1e-5), 2),
        (TwoLayerGaussian(points=3), 2),
    ],
    ids=lambda each: each.spec if hasattr(each, "spec") else "",
)
def test_quadrature_over_all_noise(problem, K):
    """Which knows nothing of normal laws: it sums the estimate that a rule gives over a grid."""
    known = small_bound(problem, Target("iwae", K))
    assert known.method == "trapezoid rule over all noise"
    scale = max(float(leaf.abs().max()) for leaf in known.gradient["phi"].values() if leaf.numel())
    agree(iwae(problem.law, problem.parameters, K), (known.value, known.gradient), 1e-9 * max(1.0, scale))


@pytest.mark.parametrize("K", [2, 8, 64])
def test_the_algebra_of_diagonal_guides(K):
    problem = GaussianMeanField(dim=4, rho=0.7, shift=1.0)
    theirs = iwae_gradient(problem._closed_form, K)
    known = {block: {name: theirs[name] for name in leaves} for block, leaves in problem.parameters.items()}
    agree(iwae(problem.law, problem.parameters, K), (theirs["value"], known), 1e-8)


@pytest.mark.parametrize("problem", [GaussianFullRank(dim=4), TwoLayerGaussian(dim=3, upper_dim=2, points=4)], ids=str)
def test_one_sample_is_the_elbo_and_many_come_to_log_p(problem):
    law, parameters = problem.law, problem.parameters
    elbo, log_p = (float(law(parameters).value(name)) for name in ("elbo", "log_marginal"))
    agree(iwae(law, parameters, 1), (elbo, grad(lambda p: law(p).value("elbo"))(parameters)), 1e-9)
    values = [elbo, *(iwae(law, parameters, K)[0] for K in (2, 8, 100, 10_000)), log_p]
    assert all(one < other for one, other in itertools.pairwise(values))
    assert values[-1] - values[-2] < (values[-1] - values[0]) / 8


@pytest.mark.parametrize("problem", [GaussianFullRank(dim=3), TwoLayerGaussian(dim=2, upper_dim=2)], ids=str)
def test_the_gradient_is_that_of_the_value(problem):
    """Along a random direction of all parameters, by differences of fourth order."""
    parameters, rng = problem.parameters, torch.Generator().manual_seed(0)
    gradient = iwae(problem.law, parameters, 8)[1]
    along = {
        block: {name: torch.randn(leaf.shape, generator=rng, dtype=leaf.dtype) for name, leaf in leaves.items()}
        for block, leaves in parameters.items()
    }

    def value(step):
        moved = {b: {n: leaf + step * along[b][n] for n, leaf in leaves.items()} for b, leaves in parameters.items()}
        return iwae(problem.law, moved, 8)[0]

    h = 0.01
    difference = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
    slope = sum(float((gradient[b][n] * leaf).sum()) for b, leaves in along.items() for n, leaf in leaves.items())
    assert slope == pytest.approx(difference, rel=1e-5)


def test_sampling():
    """Half a million bounds of eight samples, by densities written out anew; 4.5 standard errors."""
    problem, rng = GaussianFullRank(dim=3, rho=1.5), np.random.default_rng(0)
    theta, phi = ({name: leaf.numpy() for name, leaf in problem.parameters[block].items()} for block in BLOCKS)
    factor = np.diag(np.exp(phi["log_scale"]))
    factor[np.tril_indices(3, -1)] = phi["below"]
    eps = rng.standard_normal((500_000, 8, 3))
    z = phi["loc"] + eps @ factor.T
    residual = (problem.data.numpy()[0] - z @ theta["weight"].T) / np.exp(theta["log_noise_scale"])
    log_w = -0.5 * ((residual**2).sum(-1) + ((z - theta["prior_loc"]) ** 2).sum(-1) - (eps**2).sum(-1))
    log_w += phi["log_scale"].sum() - 4 * theta["log_noise_scale"] - 2 * np.log(2 * np.pi)
    bounds = np.logaddexp.reduce(log_w, axis=1) - np.log(8)
    error = bounds.std() / len(bounds) ** 0.5
    assert error < 2e-3
    assert abs(bounds.mean() - problem.exact(Target("iwae", 8)).value) < 4.5 * error


def test_a_guide_that_is_too_far_off_falls_back_on_quadrature_and_one_that_is_too_wide_is_refused():
    assert "trapezoid" in GaussianFullRank(dim=1, shift=40.0).exact(Target("iwae", 2)).method
    with pytest.raises(ArithmeticError, match="too wide"):
        GaussianFullRank(dim=2, rho=1e4).exact(Target("iwae", 8))
