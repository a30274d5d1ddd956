"""The bent posterior against scipy: nested adaptive quadrature over the plane, densities by scipy.stats."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from benchmarks.problems import Banana
from benchmarks.specs import SpecError
from estimators import BLOCKS, Target

PROBLEMS = [Banana(), Banana(curvature=-1.1, noise_scale=0.5, x=-0.4, loc1=-0.6, scale2=0.75)]
AXIS = np.linspace(-9, 9, 601)


def numbers(problem):
    return {block: {name: leaf.numpy().copy() for name, leaf in problem.parameters[block].items()} for block in BLOCKS}


def log_joint(problem, theta, z1, z2):
    mean = z2 + theta["curvature"] * (z1**2 - 1)
    prior = stats.norm.logpdf(z1, theta["prior_loc"][0]) + stats.norm.logpdf(z2, theta["prior_loc"][1])
    return prior + stats.norm.logpdf(problem.x, mean, np.exp(theta["log_noise_scale"]))


def log_guide(phi, z1, z2):
    scale = np.exp(phi["log_scale"])
    return stats.norm.logpdf(z1, phi["loc"][0], scale[0]) + stats.norm.logpdf(z2, phi["loc"][1], scale[1])


def value_of(problem, target, p):
    """By the trapezoid rule in the plane; nothing is integrated by hand."""
    z1, z2 = np.meshgrid(AXIS, AXIS, indexing="ij")
    area = (AXIS[1] - AXIS[0]) ** 2
    log_p, log_q = log_joint(problem, p["theta"], z1, z2), log_guide(p["phi"], z1, z2)
    if target == "elbo":
        return (np.exp(log_q) * (log_p - log_q)).sum() * area
    log_marginal = np.log(np.exp(log_p).sum() * area)
    if target == "log_marginal":
        return log_marginal
    return (np.exp(log_p - log_marginal) * (log_q - log_p + log_marginal)).sum() * area


@pytest.mark.parametrize("target", ["elbo", "log_marginal", "forward_kl"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=["wide", "thin"])
def test_exact_targets_against_differences_of_their_values(problem, target):
    found, base = problem.exact(Target(target)), numbers(problem)
    assert found.value == pytest.approx(value_of(problem, target, base), abs=1e-10)
    assert set(found.gradient) == ({"phi"} if target == "forward_kl" else set(BLOCKS))
    for block, leaves in found.gradient.items():
        for name, leaf in leaves.items():
            truth = np.zeros(leaf.numel())
            for place in range(leaf.numel()):
                ends = []
                for step in (1e-5, -1e-5):
                    moved = {b: {n: v.copy() for n, v in base[b].items()} for b in BLOCKS}
                    moved[block][name] = moved[block][name] + step * np.eye(leaf.numel())[place].reshape(leaf.shape)
                    ends.append(value_of(problem, target, moved))
                truth[place] = (ends[0] - ends[1]) / 2e-5
            np.testing.assert_allclose(leaf.numpy().reshape(-1), truth, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "problem",
    [
        Banana(curvature=40, noise_scale=0.01),
        Banana(curvature=0.1, x=1000.0),
        Banana(curvature=-3.0, x=-2000.0),
        Banana(curvature=0.0),
    ],
    ids=lambda p: p.spec,
)
def test_log_p_far_from_the_default_settings(problem):
    """By Gauss-Legendre rules in pieces: sharp ridges, and a posterior far from the prior; a straight line."""
    m1, m2 = problem.parameters["theta"]["prior_loc"].tolist()

    def log_joint(z):
        spread = np.sqrt(1 + problem.noise_scale**2)
        return stats.norm.logpdf(z, m1, 1) + stats.norm.logpdf(problem.x, m2 + problem.curvature * (z**2 - 1), spread)

    x, w = np.polynomial.legendre.leggauss(40)
    z = (np.arange(-130, 130, 0.02)[:, None] + 0.01 * (x + 1)).ravel()
    terms = log_joint(z)
    expected = terms.max() + np.log((np.exp(terms - terms.max()).reshape(-1, 40) @ w).sum() * 0.01)
    assert problem.exact(Target("log_marginal")).value == pytest.approx(expected, rel=1e-11)


def test_a_ridge_too_sharp_for_any_grid_is_not_claimed():
    assert Banana(curvature=1e7).exact(Target("log_marginal")) is None


def test_against_nested_adaptive_quadrature():
    """scipy's dblquad, for what the trapezoid rule above and the closed forms might have in common."""
    problem = PROBLEMS[0]
    p = numbers(problem)
    theta, phi = p["theta"], p["phi"]

    def plane(function):
        return integrate.dblquad(lambda b, a: function(a, b), -6, 6, -6, 6, epsabs=1e-8, epsrel=1e-8)[0]

    def normal(x, loc, scale):
        return np.exp(-0.5 * ((x - loc) / scale) ** 2) / (scale * np.sqrt(2 * np.pi))

    def joint(a, b):
        s = np.exp(theta["log_noise_scale"])
        ridge = normal(problem.x, b + theta["curvature"] * (a * a - 1), s)
        return normal(a, theta["prior_loc"][0], 1.0) * normal(b, theta["prior_loc"][1], 1.0) * ridge

    def guide(a, b):
        scale = np.exp(phi["log_scale"])
        return normal(a, phi["loc"][0], scale[0]) * normal(b, phi["loc"][1], scale[1])

    log_marginal = np.log(plane(joint))
    assert problem.exact(Target("log_marginal")).value == pytest.approx(log_marginal, abs=1e-7)
    elbo = plane(lambda a, b: guide(a, b) * (np.log(joint(a, b)) - np.log(guide(a, b))))
    assert problem.exact(Target("elbo")).value == pytest.approx(elbo, abs=1e-6)
    assert problem.exact(Target("iwae", 1)).value == pytest.approx(elbo, abs=1e-6)


def bound_of_two(problem, p):
    axis = np.linspace(-7.3, 7.3, 65)
    eps = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    mass = np.exp(-0.5 * (eps**2).sum(1))
    eps, mass = eps[mass > 1e-12], mass[mass > 1e-12] / mass.sum()
    z1, z2 = (p["phi"]["loc"] + np.exp(p["phi"]["log_scale"]) * eps).T
    log_w = log_joint(problem, p["theta"], z1, z2) - log_guide(p["phi"], z1, z2)
    return mass @ np.logaddexp(log_w[:, None], log_w) @ mass - np.log(2)


@pytest.mark.parametrize(("problem", "error"), [(PROBLEMS[0], 1e-7), (PROBLEMS[1], 5e-5)], ids=["wide", "thin"])
def test_the_bound_of_two_samples(problem, error):
    """On the thin ridge log w falls by hundreds within a step, which is what the two rules differ by."""
    found, base = problem.exact(Target("iwae", 2)), numbers(problem)
    assert found.value == pytest.approx(bound_of_two(problem, base), abs=error / 10)
    assert problem.exact(Target("elbo")).value < found.value < problem.exact(Target("log_marginal")).value
    for block, name in (("theta", "curvature"), ("phi", "log_scale")) if error < 1e-6 else (("theta", "curvature"),):
        leaf = found.gradient[block][name].numpy()
        truth = np.zeros(leaf.size)
        for place in range(leaf.size):
            ends = []
            for step in (1e-4, -1e-4):
                moved = {b: {n: v.copy() for n, v in base[b].items()} for b in BLOCKS}
                moved[block][name] = moved[block][name] + step * np.eye(leaf.size)[place].reshape(leaf.shape)
                ends.append(bound_of_two(problem, moved))
            truth[place] = (ends[0] - ends[1]) / 2e-4
        np.testing.assert_allclose(leaf.reshape(-1), truth, atol=error)


@pytest.mark.parametrize("problem", PROBLEMS, ids=["wide", "thin"])
def test_densities(problem):
    p, q = numbers(problem), problem.guide(problem.parameters["phi"])
    z = q.transform(q.noise((3, 4), torch.Generator().manual_seed(1)))
    assert z.shape == (3, 4, 1, 2)
    z1, z2 = z[..., 0, :].numpy().transpose(2, 0, 1)
    theta = problem.parameters["theta"]
    np.testing.assert_allclose(problem.log_joint(theta, z)[..., 0], log_joint(problem, p["theta"], z1, z2), rtol=1e-12)
    np.testing.assert_allclose(q.log_prob(z)[..., 0], log_guide(p["phi"], z1, z2), rtol=1e-12)
    torch.testing.assert_close(problem.prior(theta).log_prob(z) + problem.log_likelihood(theta, z),
                               problem.log_joint(theta, z))  # fmt: skip


@pytest.mark.parametrize(("scale2", "exists"), [(0.65, False), (0.8, True)])
def test_weights_have_a_variance_where_the_documentation_says(scale2, exists):
    """The integral of p^2 / q within growing squares: settled, or growing still."""
    problem = replace(PROBLEMS[0], scale2=scale2)
    p = numbers(problem)
    within = []
    for reach in (6.0, 9.0, 12.0):
        z1, z2 = np.meshgrid(
            np.linspace(-reach / 2, reach / 2, 501), np.linspace(-(reach**1.5), reach**1.5, 1501), indexing="ij"
        )
        terms = np.exp(2 * log_joint(problem, p["theta"], z1, z2) - log_guide(p["phi"], z1, z2))
        within.append(terms.sum() * (reach / 500) * (2 * reach**1.5 / 1500))
    assert (abs(within[2] / within[1] - 1) < 1e-6) == exists


def test_without_curvature_it_is_gaussian():
    flat = Banana(curvature=0.0)
    law = stats.norm(-0.2, np.sqrt(1 + 0.8**2))
    assert flat.exact(Target("log_marginal")).value == pytest.approx(law.logpdf(0.6), abs=1e-12)


def test_what_is_not_known_is_none():
    assert Banana().exact(Target("renyi", 3, setting=0.5)) is None
    assert Banana().exact(Target("tvo")) is None


def test_precision():
    assert Banana(dtype="float32").exact(Target("forward_kl")).value == Banana().exact(Target("forward_kl")).value
    assert Banana(dtype="float32").exact(Target("elbo")).gradient["phi"]["loc"].dtype == torch.float32


@pytest.mark.parametrize("settings", [{"noise_scale": 0.0}, {"scale1": -1.0}, {"scale2": 0.0}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(SpecError, match=f"banana: {next(iter(settings))}"):
        Banana(**settings)


@pytest.mark.parametrize("K", [2, 8, 100])
def test_bounds_of_many_samples_by_sampling(K):
    """Their mean over draws of numpy's own, with the average of log w, whose mean is the ELBO, as control; 4.5 standard errors."""
    problem, rng = PROBLEMS[0], np.random.default_rng(K)
    p = numbers(problem)
    eps = rng.standard_normal((2_000_000 // K, K, 2))
    z1, z2 = np.moveaxis(p["phi"]["loc"] + np.exp(p["phi"]["log_scale"]) * eps, -1, 0)
    log_w = log_joint(problem, p["theta"], z1, z2) - log_guide(p["phi"], z1, z2)
    bounds, means = np.logaddexp.reduce(log_w, axis=1) - np.log(K), log_w.mean(1)
    slope = np.cov(bounds, means)[0, 1] / means.var()
    controlled = bounds - slope * (means - problem.exact(Target("elbo")).value)
    error = controlled.std() / len(controlled) ** 0.5
    assert error < 3e-3
    assert abs(controlled.mean() - problem.exact(Target("iwae", K)).value) < 4.5 * error


def test_bounds_rise_to_log_p():
    problem = PROBLEMS[0]
    values = [problem.exact(Target("iwae", K)).value for K in (1, 2, 3, 8, 100, 10_000)]
    assert values == sorted(values) and values[-1] < problem.exact(Target("log_marginal")).value < values[-1] + 1e-3
