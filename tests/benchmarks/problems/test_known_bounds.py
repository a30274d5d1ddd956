"""Bounds that several problems share, where the guide is wide and far off: against grids of z, and moments in closed form."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from benchmarks.problems import Banana, Gaussian1D, GaussianMeanField, LinearGaussian, Rainforth
from benchmarks.problems.known_bounds import small_bound
from benchmarks.references.quadratic_form import form_of
from estimators import Target

WIDE = Gaussian1D(loc=-2.2, scale=1.9, x=-0.4, prior_loc=1.3)  # rho = 7.2: 60 Gauss-Hermite nodes are off by 0.01 nat


def on_a_grid(function, samples, x, prior_loc, loc, log_scale):
    """E function(log w) over K samples by equal steps of z, where the target is smooth in everything."""
    z = np.linspace(-2.2 - 9 * 1.9, -2.2 + 9 * 1.9, 1801 if samples == 2 else 6001)
    log_q = -0.5 * ((z - loc) / math.exp(log_scale)) ** 2 - log_scale - 0.5 * math.log(2 * math.pi)
    log_w = -0.5 * (z - prior_loc) ** 2 - 0.5 * (x - z) ** 2 - math.log(2 * math.pi) - log_q
    mass = np.exp(log_q) * (z[1] - z[0])
    if samples == 1:
        return float(mass @ function(log_w[None]))
    return float(mass @ function(np.stack(np.broadcast_arrays(log_w[:, None], log_w))) @ mass)


def log_mean(log_w):
    return logsumexp(log_w, 0) - math.log(len(log_w))


CASES = {
    "renyi 0.3": (Target("renyi", 2, setting=0.3), 2, lambda log_w: log_mean(0.7 * log_w) / 0.7),
    "renyi -1.5": (Target("renyi", 2, setting=-1.5), 2, lambda log_w: log_mean(2.5 * log_w) / 2.5),
    "ciwae": (Target("ciwae", 2, setting=0.35), 2, lambda log_w: 0.35 * log_w.mean(0) + 0.65 * log_mean(log_w)),
    "jackknife": (Target("jackknife", 2, setting=1), 2, lambda log_w: 2 * log_mean(log_w) - log_w.mean(0)),
    "skew-kl": (Target("f_divergence", setting="skew-kl"), 1, lambda log_w: np.logaddexp(0, log_w[0]) - math.log(2)),
    "hellinger": (Target("f_divergence", setting="hellinger"), 1, lambda log_w: 2 * np.expm1(log_w[0] / 2)),
}


@pytest.mark.parametrize("case", CASES)
def test_bounds_under_a_wide_guide(case):
    target, samples, function = CASES[case]
    found, at = WIDE.exact(target), [-0.4, 1.3, -2.2, math.log(1.9)]
    error = 1e-7
    assert found.value == pytest.approx(on_a_grid(function, samples, *at), abs=error)
    ours = [found.gradient["theta"]["prior_loc"], *found.gradient["phi"].values()]
    for place, slope in enumerate(ours, 1):
        step = np.eye(4)[place] * 1e-3
        value = {s: on_a_grid(function, samples, *(at + s * step)) for s in (-2, -1, 1, 2)}
        assert float(slope) == pytest.approx(
            (8 * (value[1] - value[-1]) - (value[2] - value[-2])) / 12e-3, abs=10 * error
        )


@pytest.mark.parametrize("scale", [1.9, 1.05, 1.0])
def test_what_has_no_mean_is_not_known(scale):
    """E q/p: of a guide more than root 2 as wide as the posterior infinite, and of the last all but."""
    assert Gaussian1D(scale=scale).exact(Target("f_divergence", setting="chi-square")) is None


@pytest.mark.parametrize(
    "problem",
    [
        Gaussian1D(scale=0.6, loc=0.9),
        LinearGaussian(dim=2, points=2),
        GaussianMeanField(dim=2, rho=0.8),
        LinearGaussian(),
    ],
    ids=lambda p: p.spec,
)
def test_one_that_has_is_the_closed_form(problem):
    """E (1 - q/p) from E r^-1 of a quadratic form, r = w / p(x)."""
    form = problem._closed_form
    expected = np.mean(
        [1 - math.exp(form_of(form, i)[0].log_moment(-1) - each) for i, each in enumerate(form._log_marginals)]
    )
    found = problem.exact(Target("f_divergence", setting="chi-square"))
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert found.method == "trapezoid rule over all noise"  # and so has settled


@pytest.mark.parametrize(("dim", "K"), [(1, 3), (1, 4), (2, 2)])
def test_three_and_four_numbers_of_noise(dim, K):
    """By quadrature over all noise as by the law of a quadratic form, another integral altogether."""
    problem = GaussianMeanField(dim=dim, rho=0.9)
    found, expected = small_bound(problem, Target("iwae", K)), problem.exact(Target("iwae", K))
    assert "quadratic form" in expected.method and found.method == "trapezoid rule over all noise"
    assert found.value == pytest.approx(expected.value, abs=1e-8)
    for block, leaves in found.gradient.items():
        for name, leaf in leaves.items():
            torch.testing.assert_close(leaf, expected.gradient[block][name], rtol=1e-7, atol=1e-7)


def test_four_numbers_of_one_sample():
    """Of which there is room for 32^4 nodes: E r^(1/2) of a quadratic form, and what has no mean."""
    problem = LinearGaussian(dim=4, data_dim=5)
    form = problem._closed_form
    expected = 2 * math.exp(form_of(form, 0)[0].log_moment(0.5) + form._log_marginals[0] / 2) - 2
    assert problem.exact(Target("f_divergence", setting="hellinger")).value == pytest.approx(expected, abs=1e-9)
    assert problem.exact(Target("f_divergence", setting="chi-square")) is None
    assert problem.exact(Target("renyi", 1, setting=0.3)).value == problem.exact(Target("elbo")).value


@pytest.mark.parametrize("kind", [Gaussian1D, LinearGaussian, GaussianMeanField, Rainforth])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_sums_of_bounds_of_many_samples(kind, dtype):
    problem = Rainforth(dim=2, points=1, perturbation=0.3, dtype=dtype) if kind is Rainforth else kind(dtype=dtype)
    double = Rainforth(dim=2, points=1, perturbation=0.3) if kind is Rainforth else kind()
    elbo, *bounds = (double.exact(each) for each in (Target("elbo"), *(Target("iwae", K) for K in (8, 7, 6))))
    for target, coefficients, parts in (
        (Target("ciwae", 8, setting=0.25), (0.25, 0.75), (elbo, bounds[0])),
        (Target("jackknife", 8, setting=2), (32, -49, 18), bounds),
    ):
        found = problem.exact(target)
        assert found.value == pytest.approx(sum(c * each.value for c, each in zip(coefficients, parts, strict=True)))
        for block, leaves in found.gradient.items():
            for name, leaf in leaves.items():
                expected = sum(c * each.gradient[block][name] for c, each in zip(coefficients, parts, strict=True))
                torch.testing.assert_close(leaf, expected.to(leaf.dtype), rtol=1e-6, atol=1e-6)
    assert Gaussian1D().exact(Target("jackknife", 8, setting=2)).value == pytest.approx(
        Gaussian1D()._integrals.jackknife(8, 2), rel=1e-10
    )


@pytest.mark.parametrize(
    ("problem", "alpha", "error"),
    [(Gaussian1D(), 100.0, 3e-6), (Gaussian1D(), -50.0, 1e-7), (Gaussian1D(scale=2.0), 5.0, 1e-7), (Gaussian1D(x=20.0), 5.0, 1e-6)],
)  # fmt: skip
def test_steep_bounds_say_how_far_they_have_settled(problem, alpha, error):
    """Against sums on either side of the diagonal z1 < z2, where the integrand has no kink, by Gauss-Legendre rules."""
    x, w = np.polynomial.legendre.leggauss(30)
    ends = np.linspace(-9, 9, 61)
    u1 = (ends[:-1, None] + 0.15 * (x + 1)).ravel()
    d1 = np.tile(0.15 * w, 60)
    parts = np.array([0, 1e-4, 1e-3, 5e-3, 0.02, 0.05, 0.1, 0.2, 0.35, 0.6, 1])
    fraction = (parts[:-1, None] + np.diff(parts)[:, None] / 2 * (x + 1)).ravel()
    weight = (np.diff(parts)[:, None] / 2 * w).ravel()
    u2, d2 = u1[:, None] + (9 - u1[:, None]) * fraction, (9 - u1[:, None]) * weight

    def log_w(u):
        z = problem.loc + problem.scale * u
        log_p = -0.5 * (z - problem.prior_loc) ** 2 - 0.5 * (problem.x - z) ** 2 - math.log(2 * math.pi)
        return log_p + 0.5 * u**2 + math.log(problem.scale) + 0.5 * math.log(2 * math.pi)

    mass = 2 * d1[:, None] * d2 * np.exp(-0.5 * (u1[:, None] ** 2 + u2**2)) / (2 * math.pi)
    power = 1 - alpha
    values = (np.logaddexp(power * log_w(u1)[:, None], power * log_w(u2)) - math.log(2)) / power
    found = problem.exact(Target("renyi", 2, setting=alpha))
    assert found.value == pytest.approx(float((mass * values).sum()), abs=error)
    assert "settled to" in found.method and float(found.method.split("settled to")[1].split()[0]) <= error


def test_what_a_reference_has_settled_to_holds_for_its_gradient():
    """Four numbers of noise; the derivative in loc_0 by a grid of one sample and Laplace's integral of the logarithm."""
    problem = Banana(curvature=-1.5, noise_scale=0.5, x=-1.0, scale1=0.5, scale2=1.2)
    found = problem.exact(Target("renyi", 2, setting=0.5))
    stated = re.search("settled to (.*) nats and (.*) of the gradient", found.method)
    size = math.hypot(*(float(leaf.norm()) for block in found.gradient.values() for leaf in block.values()))
    assert abs(float(found.gradient["phi"]["loc"].flatten()[0]) - 5.0963096884) <= float(stated[2]) * size
    assert float(stated[1]) < 1e-5


@pytest.mark.parametrize("problem", [Gaussian1D(), GaussianMeanField(), Rainforth(dim=2, points=3)])
def test_a_sum_of_bounds_that_is_all_rounding_is_not_claimed(problem):
    """Orders of which the coefficients are 10^11 and more; log p(x) is the limit of those of which they are not."""
    assert problem.exact(Target("jackknife", 1000, setting=6)) is None
    assert problem.exact(Target("jackknife", 100, setting=10)) is None
    found = problem.exact(Target("jackknife", 1000, setting=2)).value
    assert found == pytest.approx(problem.exact(Target("log_marginal")).value, abs=1e-6)
