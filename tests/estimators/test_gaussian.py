"""Stein's form of Price's theorem and measure-valued derivatives of a Gaussian guide."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from one_sample import (
    BENT,
    COS,
    EXP,
    GAUSSIAN,
    LINEAR,
    SHARED,
    by_hand,
    close,
    noise_for,
    same,
)

import estimators
from benchmarks.problems import Gaussian1D
from estimators.quadrature import exact_expectation


@pytest.mark.parametrize("problem", [GAUSSIAN, LINEAR, SHARED, BENT], ids=lambda p: p.name)
def test_steins_form_of_prices_theorem_is_the_total_derivative(problem):
    """For z = mu + sigma eps they are one and the same, whatever the model."""
    noise = noise_for(problem)
    one, other = (
        estimators.get(name, num_samples=4).gradient(problem, problem.parameters, noise)
        for name in ("price-first-order", "reparameterization")
    )
    same(one, other)


@pytest.mark.parametrize("problem", [LINEAR, SHARED, BENT], ids=lambda p: p.name)
def test_measure_valued_derivatives_written_out(problem):
    """One coordinate and one sample at a time, from the definitions of the Weibull and Maxwell variables."""
    noise = problem.guide(problem.parameters["phi"]).noise((3, 5), torch.Generator().manual_seed(4))
    guide = problem.guide(problem.parameters["phi"])
    loc, scale = guide.loc, guide.scale

    def f(eps):
        z = loc + scale * eps
        q = torch.distributions.Normal(loc, scale)
        return problem.log_joint(problem.parameters["theta"], z) - q.log_prob(z).sum(-1)

    of_loc, of_scale = torch.zeros_like(loc), torch.zeros_like(loc)
    for eps, a, b, c, d in noise:
        weibull, maxwell = torch.hypot(c, d), torch.sign(eps) * torch.sqrt(eps**2 + a**2 + b**2)
        for i in range(loc.shape[-1]):
            up, down, wide = eps.clone(), eps.clone(), eps.clone()
            up[:, i], down[:, i], wide[:, i] = weibull[:, i], -weibull[:, i], maxwell[:, i]
            of_loc[:, i] += (f(up) - f(down)) / (3 * scale[:, i] * math.sqrt(2 * math.pi))
            of_scale[:, i] += (f(wide) - f(eps)) / (3 * scale[:, i])
    got = estimators.get("measure-valued", num_samples=3).gradient(problem, problem.parameters, noise)
    same(got, by_hand(problem, noise[:, 0], of_loc, of_scale))


@pytest.mark.parametrize("problem", [EXP, COS, Gaussian1D(-1.4, 1.1, -1.3, -0.3)], ids=lambda p: p.spec)
def test_measure_valued_derivatives_and_their_variance(problem):
    """Over a Maxwell number by its length, sign and the uniform share of it that is the normal one; over a Weibull number."""
    x, w = np.polynomial.legendre.leggauss(160)
    radius, of_radius = torch.tensor(6 * (x + 1)), torch.tensor(6 * w)
    u, v = np.polynomial.legendre.leggauss(60)
    share, of_share = torch.tensor((u + 1) / 2), torch.tensor(v / 2)
    normal = math.sqrt(2 / math.pi) * torch.exp(-radius.square() / 2)
    estimator, zero = estimators.get("measure-valued"), torch.zeros((), dtype=torch.float64)
    columns = []
    for kind in ("scale", "loc"):
        if kind == "scale":  # (length, share, sign)
            m, s, sign = torch.cartesian_prod(radius, share, torch.tensor([-1.0, 1.0], dtype=torch.float64)).T
            weight = torch.cartesian_prod(
                of_radius * radius.square() * normal, of_share, torch.tensor([0.5, 0.5]).double()
            )
            five = [sign * m * s, m * (1 - s.square()).sqrt(), zero, m, zero]
        else:
            weight = (of_radius * radius * torch.exp(-radius.square() / 2))[:, None]
            five = [zero, zero, zero, radius, zero]
        rows = weight.shape[0]
        noise = torch.stack([part.expand(rows) for part in five], 1)[:, None, :, None, None]
        mean, variance = exact_expectation(
            estimator, problem, problem.parameters, grid=(noise, weight.prod(1) / weight.prod(1).sum())
        )
        assert float(weight.prod(1).sum()) == pytest.approx(1.0, abs=1e-12)
        columns.append((mean, variance))
    (by_scale, spread_scale), (by_loc, spread_loc) = columns
    mean = torch.cat([by_scale[:2], by_loc[2:3], by_scale[3:]])
    close(mean, problem)
    if problem in (EXP, COS):
        total = float(spread_scale[3] + spread_loc[2])
        assert total == pytest.approx(problem.exact_variance("measure-valued", 1, "phi"), rel=1e-8)
