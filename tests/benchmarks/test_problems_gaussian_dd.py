"""Gaussian posteriors with a chosen rho, against scipy's densities and cubature that is exact for quadratics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import estimators
from benchmarks.problems import GaussianFullRank, GaussianMeanField
from benchmarks.specs import SpecError
from estimators import BLOCKS, Target
from estimators.quadrature import exact_expectation

KINDS = [GaussianMeanField, GaussianFullRank]
PROBLEMS = [kind(dim=dim, rho=0.8, seed=dim) for kind in KINDS for dim in (1, 2, 4)]


def identity(problem) -> str:
    return f"{problem.name}-{problem.dim}"


def numbers(problem):
    return {block: {name: leaf.numpy().copy() for name, leaf in problem.parameters[block].items()} for block in BLOCKS}


def factor(phi):
    """The guide's L, written entry by entry."""
    L = np.diag(np.exp(phi["log_scale"]))
    if "below" in phi:
        rest = iter(phi["below"])
        for row in range(len(L)):
            for column in range(row):
                L[row, column] = next(rest)
    return L


def log_joint(problem, theta, z):
    x = problem.data.numpy()[0]
    likelihood = stats.norm.logpdf(x, z @ theta["weight"].T, np.exp(theta["log_noise_scale"])).sum(-1)
    return stats.norm.logpdf(z, theta["prior_loc"]).sum(-1) + likelihood


def log_guide(phi, z):
    L = factor(phi)
    return stats.multivariate_normal(phi["loc"], L @ L.T).logpdf(z)


def posterior(problem, theta):
    """In information form."""
    x, A = problem.data.numpy()[0], theta["weight"]
    precision = np.eye(problem.dim) + A.T @ A * np.exp(-2 * theta["log_noise_scale"])
    linear = theta["prior_loc"] + A.T @ x * np.exp(-2 * theta["log_noise_scale"])
    return np.linalg.solve(precision, linear), precision


def value_of(problem, target, p):
    dim = problem.dim
    points = np.sqrt(dim) * np.concatenate([np.eye(dim), -np.eye(dim)])  # exact for quadratics
    mean, precision = posterior(problem, p["theta"])
    law = stats.multivariate_normal(mean, np.linalg.inv(precision))
    if target == "elbo":
        z = p["phi"]["loc"] + points @ factor(p["phi"]).T
        return np.mean(log_joint(problem, p["theta"], z) - log_guide(p["phi"], z))
    if target == "log_marginal":
        return log_joint(problem, p["theta"], mean + 0.2) - law.logpdf(mean + 0.2)
    z = mean + points @ np.linalg.cholesky(np.linalg.inv(precision)).T
    return np.mean(log_guide(p["phi"], z) - law.logpdf(z))


@pytest.mark.parametrize("problem", PROBLEMS, ids=identity)
def test_densities(problem):
    p, q = numbers(problem), problem.guide(problem.parameters["phi"])
    noise = q.noise((5,), torch.Generator().manual_seed(0))
    z = q.transform(noise)
    np.testing.assert_allclose(z[:, 0], p["phi"]["loc"] + noise[:, 0].numpy() @ factor(p["phi"]).T, rtol=1e-12)
    np.testing.assert_allclose(q.log_prob(z)[:, 0], log_guide(p["phi"], z[:, 0].numpy()), rtol=1e-10)
    theta = problem.parameters["theta"]
    np.testing.assert_allclose(problem.log_joint(theta, z)[:, 0], log_joint(problem, p["theta"], z[:, 0].numpy()))
    torch.testing.assert_close(problem.prior(theta).log_prob(z) + problem.log_likelihood(theta, z),
                               problem.log_joint(theta, z))  # fmt: skip


@pytest.mark.parametrize("target", ["elbo", "log_marginal", "forward_kl"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=identity)
def test_exact_targets_against_differences_of_their_values(problem, target):
    found, base = problem.exact(Target(target)), numbers(problem)
    assert found.value == pytest.approx(float(value_of(problem, target, base)), rel=1e-10)
    for block, leaves in found.gradient.items():
        for name, leaf in leaves.items():
            truth = np.zeros(leaf.numel())
            for place in range(leaf.numel()):
                ends = []
                for step in (1e-5, -1e-5):
                    moved = {b: {n: v.copy() for n, v in base[b].items()} for b in BLOCKS}
                    moved[block][name] = moved[block][name] + step * np.eye(max(1, leaf.numel()))[place].reshape(
                        leaf.shape
                    )
                    ends.append(value_of(problem, target, moved))
                truth[place] = (ends[0] - ends[1]) / 2e-5
            np.testing.assert_allclose(leaf.numpy().reshape(-1), truth, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rho", [0.3, 0.5, 0.9, 1.7])
@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_rho_is_the_one_asked_for(kind, dim, rho):
    """From the densities: the smallest eigenvalue of L' P L; and whether w has a variance follows from it."""
    problem = kind(dim=dim, rho=rho, seed=3)
    p = numbers(problem)
    _, precision = posterior(problem, p["theta"])
    L = factor(p["phi"])
    assert np.linalg.eigvalsh(L.T @ precision @ L).min() == pytest.approx(rho)
    assert problem.tail_ratio == pytest.approx(rho)
    # E_q (w/p(x))^2 is the integral of a Gaussian with precision 2 P - Q: it exists where that is positive definite.
    exists = np.linalg.eigvalsh(2 * precision - np.linalg.inv(L @ L.T)).min() > 1e-12
    assert exists == (rho > 0.5)


@pytest.mark.parametrize("problem", PROBLEMS, ids=identity)
def test_the_guide_stands_where_it_was_put(problem):
    mean, precision = posterior(problem, numbers(problem)["theta"])
    away = numbers(problem)["phi"]["loc"] - mean
    assert np.sqrt(away @ precision @ away) == pytest.approx(0.5)


def test_the_guide_of_full_rank_can_be_the_posterior():
    still = GaussianFullRank(dim=3, rho=1.0, spread=1.0, shift=0.0)
    assert still.exact(Target("elbo")).value == pytest.approx(still.exact(Target("log_marginal")).value, abs=1e-12)
    assert GaussianFullRank(dim=3, rho=0.9, spread=3.0).tail_ratio == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("kind", "dim", "K"), [(GaussianMeanField, 1, 3), (GaussianFullRank, 2, 2), (GaussianMeanField, 4, 1)]
)
def test_small_bounds(kind, dim, K):
    """Against the trapezoid rule over all noise; one sample makes the ELBO."""
    problem = kind(dim=dim, rho=0.8, seed=dim)
    found = problem.exact(Target("iwae", K)).value
    if K == 1:
        assert found == pytest.approx(problem.exact(Target("elbo")).value, abs=1e-11)
        return
    p, axis = numbers(problem), np.linspace(-7, 7, 33 if dim == 2 else 91)
    eps = np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), -1).reshape(-1, dim)
    mass = np.exp(-0.5 * (eps**2).sum(1))
    eps, mass = eps[mass > 1e-12], mass[mass > 1e-12] / mass.sum()
    z = p["phi"]["loc"] + eps @ factor(p["phi"]).T
    log_w = log_joint(problem, p["theta"], z) - log_guide(p["phi"], z)
    pairs = np.logaddexp(log_w[:, None], log_w)
    if K == 2:
        expected = mass @ pairs @ mass
    else:
        expected = np.einsum("i,j,k,ijk->", mass, mass, mass, np.logaddexp(pairs[:, :, None], log_w))
    assert found == pytest.approx(float(expected) - np.log(K), abs=1e-8)


def test_what_is_not_known_is_none():
    assert GaussianFullRank(dim=5).exact(Target("renyi", 2, setting=0.5)) is None
    assert GaussianMeanField(dim=5).exact(Target("renyi", 2, setting=0.5)) is None
    assert GaussianMeanField(dim=5).exact(Target("tvo")) is None


def test_precision():
    single = GaussianFullRank(dtype="float32")
    assert single.exact(Target("elbo")).value == GaussianFullRank().exact(Target("elbo")).value
    q = single.guide(single.parameters["phi"])
    assert q.transform(q.noise((2,), torch.Generator())).dtype == torch.float32
    assert replace(single, dtype="float64").spec == single.spec


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{"dim": 0}, {"rho": 0.0}, {"seed": -1}, {"noise_scale": 0.0}])
def test_settings_that_make_no_sense_are_refused(kind, settings):
    with pytest.raises(SpecError, match=f"{kind.name}: {next(iter(settings))}"):
        kind(**settings)
    with pytest.raises(SpecError, match="spread"):
        GaussianFullRank(spread=0.5)


ONE_SAMPLE = [
    "reparameterization",
    "sticking-the-landing",
    "reparameterization-analytic-kl",
    "score-function",
    "bonnet-price",
]


@pytest.mark.parametrize(
    ("name", "dim"), [*((name, dim) for name in ONE_SAMPLE for dim in (1, 3)), ("leave-one-out", 1)]
)
def test_exact_variances_by_quadrature_of_the_estimates(name, dim):
    """Every estimate is a polynomial in the noise: Gauss-Hermite sums over all of it are exact."""
    problem = GaussianMeanField(dim=dim, rho=0.6, seed=4)
    K = 1 if name in ONE_SAMPLE else 2
    estimator = estimators.get(name, num_samples=K)
    _, variance = exact_expectation(estimator, problem, problem.parameters, nodes=12)
    split = 1 + sum(leaf.numel() for leaf in problem.parameters["theta"].values())
    assert problem.exact_variance(name, K, "phi") == pytest.approx(float(variance[split:].sum()), rel=1e-9)
    of_theta = problem.exact_variance(name, K, "theta")
    assert (of_theta is None) == (name == "reparameterization-analytic-kl")
    if of_theta is not None:
        assert of_theta == pytest.approx(float(variance[1:split].sum()), rel=1e-9)
    assert problem.exact_variance("vimco", 2, "phi") is None and problem.exact_variance(name, K, "value") is None
