"""The two-layer hierarchy against scipy's densities: cubature and trapezoid rules here, information form there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.problems import TwoLayerGaussian
from benchmarks.specs import SpecError
from estimators import BLOCKS, Target

TINY = TwoLayerGaussian(data_dim=2, points=2, seed=4)
WIDE = TwoLayerGaussian(dim=2, upper_dim=3, data_dim=4, points=2, seed=1, noise_scale=0.7)
PROBLEMS = [TINY, WIDE]


def identity(problem) -> str:
    return f"{problem.dim}-{problem.upper_dim}"


def numbers(problem):
    return {block: {name: leaf.numpy().copy() for name, leaf in problem.parameters[block].items()} for block in BLOCKS}


def normal(x, mean, log_scale):
    return stats.norm.logpdf(x, mean, np.exp(log_scale)).sum(-1)


def log_joint(problem, theta, z1, z2, x):
    """log p(x, z1, z2), one scipy density for each layer; z1, z2 ``(..., D)``."""
    upper = normal(z2, theta["prior_loc"], 0.0)
    lower = normal(z1, z2 @ theta["upper_weight"].T + theta["upper_bias"], theta["upper_log_scale"])
    return upper + lower + normal(x, z1 @ theta["weight"].T + theta["bias"], theta["log_noise_scale"])


def log_guide(phi, z1, z2, x):
    lower = normal(z1, phi["weight"] @ x + phi["bias"], phi["log_scale"])
    return lower + normal(z2, z1 @ phi["upper_weight"].T + phi["upper_bias"], phi["upper_log_scale"])


def sampled(problem, phi, eps, x):
    """z1 and z2 of noise ``(..., dim + upper_dim)``."""
    z1 = phi["weight"] @ x + phi["bias"] + np.exp(phi["log_scale"]) * eps[..., : problem.dim]
    z2 = z1 @ phi["upper_weight"].T + phi["upper_bias"] + np.exp(phi["upper_log_scale"]) * eps[..., problem.dim :]
    return z1, z2


def sigma_points(size):
    """Equally weighted points that have every moment of a standard normal vector up to the third: exact for quadratics."""
    return np.sqrt(size) * np.concatenate([np.eye(size), -np.eye(size)])


def posterior(problem, theta, x):
    """Mean and precision of (z1, z2) in information form: each layer adds the outer product of what it compares."""
    d, u = problem.dim, problem.upper_dim
    precision, linear = np.zeros((d + u, d + u)), np.zeros(d + u)
    layers = [
        (np.hstack([np.zeros((u, d)), np.eye(u)]), theta["prior_loc"], 0.0),
        (np.hstack([np.eye(d), -theta["upper_weight"]]), theta["upper_bias"], theta["upper_log_scale"]),
        (np.hstack([theta["weight"], np.zeros((len(x), u))]), x - theta["bias"], theta["log_noise_scale"]),
    ]
    for compares, to, log_scale in layers:
        precision += compares.T @ compares * np.exp(-2 * log_scale)
        linear += compares.T @ to * np.exp(-2 * log_scale)
    return np.linalg.solve(precision, linear), precision


def value_of(problem, target, p):
    """A target's value from densities alone, mean over the points."""
    theta, phi, values = p["theta"], p["phi"], []
    for x in problem.data.numpy():
        if target.name == "elbo":
            z1, z2 = sampled(problem, phi, sigma_points(problem.dim + problem.upper_dim), x)
            values.append(np.mean(log_joint(problem, theta, z1, z2, x) - log_guide(phi, z1, z2, x)))
            continue
        mean, precision = posterior(problem, theta, x)
        law = stats.multivariate_normal(mean, np.linalg.inv(precision))
        if target.name == "log_marginal":  # Bayes' rule anywhere
            z = mean + 0.3
            z1, z2 = z[: problem.dim], z[problem.dim :]
            values.append(log_joint(problem, theta, z1, z2, x) - law.logpdf(z))
        else:
            z = mean + sigma_points(len(mean)) @ np.linalg.cholesky(np.linalg.inv(precision)).T
            z1, z2 = z[:, : problem.dim], z[:, problem.dim :]
            values.append(np.mean(log_guide(phi, z1, z2, x) - law.logpdf(z)))
    return float(np.mean(values))


def differences(problem, target, block, name, value=value_of, step=1e-5):
    base = numbers(problem)
    found = np.zeros(base[block][name].size)
    for place in range(found.size):
        ends = []
        for sign in (1, -1):
            moved = {b: {n: leaf.copy() for n, leaf in base[b].items()} for b in BLOCKS}
            flat = moved[block][name].reshape(-1)
            flat[place] += sign * step
            moved[block][name] = flat.reshape(base[block][name].shape)
            ends.append(value(problem, target, moved))
        found[place] = (ends[0] - ends[1]) / (2 * step)
    return found.reshape(base[block][name].shape)


@pytest.mark.parametrize("problem", PROBLEMS, ids=identity)
def test_densities(problem):
    theta, phi = problem.parameters["theta"], problem.parameters["phi"]
    q = problem.guide(phi)
    noise = q.noise((2, 4), torch.Generator().manual_seed(0))
    z = q.transform(noise)
    assert [leaf.shape for leaf in z] == [(2, 4, 2, problem.dim), (2, 4, 2, problem.upper_dim)]
    p = numbers(problem)
    for point, x in enumerate(problem.data.numpy()):
        z1, z2 = (leaf[:, :, point].numpy() for leaf in z)
        ours = problem.log_joint(theta, z)[:, :, point]
        np.testing.assert_allclose(ours, log_joint(problem, p["theta"], z1, z2, x), rtol=1e-12)
        np.testing.assert_allclose(q.log_prob(z)[:, :, point], log_guide(p["phi"], z1, z2, x), rtol=1e-12)
        both = np.concatenate([leaf[:, :, point].numpy() for leaf in noise], -1)
        for got, expected in zip((z1, z2), sampled(problem, p["phi"], both, x), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-12)
    torch.testing.assert_close(problem.prior(theta).log_prob(z) + problem.log_likelihood(theta, z),
                               problem.log_joint(theta, z))  # fmt: skip


@pytest.mark.parametrize("target", ["elbo", "log_marginal", "forward_kl"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=identity)
def test_exact_targets_against_differences_of_their_values(problem, target):
    found = problem.exact(Target(target))
    assert found.value == pytest.approx(value_of(problem, Target(target), numbers(problem)), rel=1e-10)
    assert set(found.gradient) == ({"phi"} if target == "forward_kl" else set(BLOCKS))
    for block, leaves in found.gradient.items():
        for name, leaf in leaves.items():
            assert leaf.shape == problem.parameters[block][name].shape
            truth = differences(problem, Target(target), block, name)
            np.testing.assert_allclose(leaf.numpy(), truth, rtol=1e-6, atol=1e-7)


def test_log_p_and_forward_kl_are_the_integrals_that_define_them():
    """Trapezoid rule in the plane of (z1, z2): no algebra of normal laws at all."""
    p, axis = numbers(TINY), np.linspace(-9, 9, 361)
    z1, z2 = (leaf[..., None] for leaf in np.meshgrid(axis, axis, indexing="ij"))
    log_marginal, forward = [], []
    for x in TINY.data.numpy():
        log_p = log_joint(TINY, p["theta"], z1, z2, x)
        total = np.log(np.exp(log_p).sum() * 0.05**2)
        log_marginal.append(total)
        forward.append((np.exp(log_p - total) * (log_guide(p["phi"], z1, z2, x) - log_p + total)).sum() * 0.05**2)
    assert TINY.exact(Target("log_marginal")).value == pytest.approx(np.mean(log_marginal), abs=1e-10)
    assert TINY.exact(Target("forward_kl")).value == pytest.approx(np.mean(forward), abs=1e-10)


def bound_of_two(problem, target, p):
    """E log (w_1 + w_2)/2, or its like, by the trapezoid rule over the noise of both layers of both samples."""
    axis = np.linspace(-7, 7, 36)
    eps = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    mass = np.exp(-0.5 * (eps**2).sum(1))
    eps, mass = eps[mass > 1e-12], mass[mass > 1e-12] / mass.sum()
    values = []
    for x in problem.data.numpy():
        z1, z2 = sampled(problem, p["phi"], eps, x)
        log_w = log_joint(problem, p["theta"], z1, z2, x) - log_guide(p["phi"], z1, z2, x)
        alpha = 1 - (target.setting or 0.0)
        inner = np.logaddexp(alpha * log_w[:, None], alpha * log_w) - np.log(2)
        values.append(mass @ inner @ mass / alpha)
    return np.mean(values)


@pytest.mark.parametrize("target", [Target("iwae", 2), Target("renyi", 2, setting=0.5)], ids=str)
def test_bounds_of_two_samples(target):
    problem = replace(TINY, points=1)
    found = problem.exact(target)
    assert found.value == pytest.approx(bound_of_two(problem, target, numbers(problem)), abs=1e-8)
    for block, name in (
        ("theta", "upper_weight"),
        ("theta", "prior_loc"),
        ("phi", "upper_weight"),
        ("phi", "log_scale"),
    ):
        truth = differences(problem, target, block, name, bound_of_two, 1e-4)
        np.testing.assert_allclose(found.gradient[block][name].numpy(), truth, atol=2e-7)


def test_what_is_not_known_is_none():
    assert TINY.exact(Target("renyi", 3, setting=0.5)) is None
    assert WIDE.exact(Target("renyi", 2, setting=0.5)) is None
    assert TINY.exact(Target("sleep")) is None


def test_without_perturbation_the_guide_is_the_posterior():
    """One latent in each layer; with several, each block still stands at its diagonal optimum given the other's mean."""
    still = replace(TINY, perturbation=0.0)
    assert still.exact(Target("elbo")).value == pytest.approx(still.exact(Target("log_marginal")).value, abs=1e-13)
    assert still.tail_ratio == pytest.approx(1.0)
    for leaf in replace(WIDE, perturbation=0.0).exact(Target("elbo")).gradient["phi"].values():
        assert leaf.abs().max() < 1e-12


@pytest.mark.parametrize("problem", PROBLEMS, ids=identity)
def test_the_tail_ratio_is_where_the_power_of_the_weights_stops_being_integrable(problem):
    """rho is the smallest generalised eigenvalue of posterior and guide precision, here in information form."""
    p = numbers(problem)
    _, precision = posterior(problem, p["theta"], problem.data.numpy()[0])
    d, u = problem.dim, problem.upper_dim
    rows = np.hstack([-p["phi"]["upper_weight"], np.eye(u)]) * np.exp(-p["phi"]["upper_log_scale"])[:, None]
    own = np.zeros((d + u, d + u))
    own[:d, :d] = np.diag(np.exp(-2 * p["phi"]["log_scale"]))
    own += rows.T @ rows
    values = np.linalg.eigvals(np.linalg.solve(own, precision)).real
    assert problem.tail_ratio == pytest.approx(values.min())


def test_precision_is_the_problem_s_own_and_exact_values_are_not():
    single = replace(TINY, dtype="float32")
    assert single.exact(Target("iwae", 2)).value == TINY.exact(Target("iwae", 2)).value
    assert single.exact(Target("elbo")).gradient["phi"]["bias"].dtype == torch.float32
    assert all(
        leaf.dtype == torch.float32 for leaf in single.guide(single.parameters["phi"]).noise((2,), torch.Generator())
    )


@pytest.mark.parametrize(
    "settings", [{"dim": 0}, {"upper_dim": 0}, {"data_dim": 0}, {"points": 0}, {"seed": -1}, {"noise_scale": 0.0}]
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(SpecError, match=f"two-layer-gaussian: {next(iter(settings))}"):
        TwoLayerGaussian(**settings)
