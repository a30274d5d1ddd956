"""Gaussian problems against torch.distributions, and their exact targets against differences of integrals done here."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import distributions as td

from benchmarks.problems import Gaussian1D, LinearGaussian, Rainforth
from benchmarks.specs import SpecError
from estimators import BLOCKS, Parameters, Target

GAUSSIAN = Gaussian1D(loc=0.3, scale=0.9, x=1.4, prior_loc=-0.2)
LINEAR = LinearGaussian(dim=2, data_dim=3, seed=1, points=2, noise_scale=0.8)
TOY = Rainforth(dim=1, points=3, perturbation=0.3, seed=2)
PROBLEMS = [GAUSSIAN, LINEAR, TOY, Rainforth(dim=3, points=2)]


def identity(problem) -> str:
    return f"{problem.name}-{getattr(problem, 'dim', 1)}"


# Densities, written with torch.distributions; theta, phi -> one distribution per data point


def prior(problem, theta):
    if problem.name == "linear-gaussian":
        return td.MultivariateNormal(torch.zeros(problem.dim).double(), torch.eye(problem.dim).double())
    dim = problem.data.shape[-1]
    return td.MultivariateNormal(theta["prior_loc"], torch.eye(dim).double())


def likelihood(problem, theta, z):
    if problem.name == "linear-gaussian":
        mean = torch.einsum("nd,...d->...n", theta["weight"], z) + theta["bias"]
        return td.Independent(td.Normal(mean, theta["log_noise_scale"].exp()), 1)
    return td.Independent(td.Normal(z, 1.0), 1)


def guide(problem, phi):
    if problem.name == "rainforth":
        loc = torch.einsum("ij,nj->ni", phi["weight"], problem.data) + phi["bias"]
        return td.Independent(td.Normal(loc, math.sqrt(2 / 3)), 1)  # 2/3 is the covariance
    if problem.name == "linear-gaussian":
        return td.Independent(td.Normal(phi["loc"], phi["log_scale"].exp()), 1)
    return td.Independent(td.Normal(phi["loc"], phi["log_scale"].exp()), 1).expand((1,))


@pytest.mark.parametrize("problem", PROBLEMS, ids=identity)
@pytest.mark.parametrize("leading", [(), (4,), (2, 4)])
def test_densities(problem, leading):
    theta, phi = problem.parameters["theta"], problem.parameters["phi"]
    q = guide(problem, phi)
    z = q.sample(leading)
    points = len(problem.data)
    log_prior, log_likelihood = prior(problem, theta).log_prob(z), likelihood(problem, theta, z).log_prob(problem.data)
    ours = problem.log_joint(theta, z)
    assert ours.shape == (*leading, points)
    torch.testing.assert_close(ours, log_prior + log_likelihood)
    torch.testing.assert_close(problem.log_likelihood(theta, z), log_likelihood)
    torch.testing.assert_close(problem.prior(theta).log_prob(z), log_prior)
    torch.testing.assert_close(problem.guide(phi).log_prob(z), q.log_prob(z))


@pytest.mark.parametrize("problem", PROBLEMS, ids=identity)
def test_noise_becomes_draws_of_the_guide(problem):
    """Mean and standard deviation of 20,000 draws of each latent; beyond 4.5 standard errors with probability 7e-6 each."""
    own = problem.guide(problem.parameters["phi"])
    z = own.transform(own.noise((20_000,), torch.Generator().manual_seed(0)))
    q = guide(problem, problem.parameters["phi"])
    assert ((z.mean(0) - q.mean).abs() < 4.5 * q.stddev / 20_000**0.5).all()
    assert ((z.var(0) / q.variance - 1).abs() < 4.5 * (2 / 20_000) ** 0.5).all()


@pytest.mark.parametrize("problem", PROBLEMS, ids=identity)
def test_precision_and_shapes(problem):
    single = replace(problem, dtype="float32")
    assert single.spec == problem.spec
    for block in BLOCKS:
        for name, leaf in single.parameters[block].items():
            assert leaf.dtype == torch.float32
            assert torch.equal(leaf, problem.parameters[block][name].float())
    assert single.data.dtype == torch.float32
    # What is exact is computed in double precision all the same.
    assert single.exact(Target("elbo")).value == problem.exact(Target("elbo")).value


# Exact targets: values from quadrature or from multivariate normals, gradients by central differences of these


def gauss_hermite(num_samples: int, dim: int, nodes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes ``(n, K, dim)`` and weights of a tensor rule for K standard normal vectors."""
    node, weight = np.polynomial.hermite_e.hermegauss(nodes)
    axes = num_samples * dim
    grids = np.stack(np.meshgrid(*[node] * axes, indexing="ij"), -1).reshape(-1, num_samples, dim)
    weights = np.prod(np.meshgrid(*[weight / weight.sum()] * axes, indexing="ij"), axis=0).ravel()
    return torch.tensor(grids), torch.tensor(weights)


def log_marginal(problem, parameters: Parameters) -> float:
    theta = parameters["theta"]
    if problem.name == "linear-gaussian":
        weight, n = theta["weight"], problem.data_dim
        covariance = weight @ weight.T + (2 * theta["log_noise_scale"]).exp() * torch.eye(n).double()
        law = td.MultivariateNormal(theta["bias"], covariance)
    else:
        dim = problem.data.shape[-1]
        law = td.MultivariateNormal(theta["prior_loc"], 2 * torch.eye(dim).double())
    return float(law.log_prob(problem.data).mean())


def posterior(problem, theta):
    """By conditioning the joint normal law of (z, x)."""
    dim = problem.data.shape[-1] if problem.name != "linear-gaussian" else problem.dim
    weight = (
        theta.get("weight", torch.eye(dim).double()) if problem.name == "linear-gaussian" else torch.eye(dim).double()
    )
    noise = (2 * theta["log_noise_scale"]).exp() if problem.name == "linear-gaussian" else torch.ones(()).double()
    centre = prior(problem, theta).mean
    offset = theta["bias"] if problem.name == "linear-gaussian" else torch.zeros(dim).double()
    covariance = weight @ weight.T + noise * torch.eye(len(weight)).double()
    gain = weight.T @ torch.linalg.inv(covariance)
    mean = centre + (problem.data - offset - centre @ weight.T) @ gain.T
    return td.MultivariateNormal(mean, torch.eye(dim).double() - gain @ weight)


def value_of(problem, target: Target, parameters: Parameters) -> float:
    theta, phi = parameters["theta"], parameters["phi"]
    if target.name == "log_marginal":
        return log_marginal(problem, parameters)
    q = guide(problem, phi)
    if target.name == "forward_kl":
        full = td.MultivariateNormal(q.mean, torch.diag_embed(q.variance))
        return -float(td.kl_divergence(posterior(problem, theta), full).mean())
    num_samples = target.num_samples or 1
    dim = q.mean.shape[-1]
    # The integrand of the ELBO is a quadratic: three nodes are exact. That of the bound is smooth.
    eps, weights = gauss_hermite(num_samples, dim, 3 if num_samples == 1 else 60)
    z = q.mean + q.stddev * eps[:, :, None, :]  # (n, K, points, dim)
    log_w = prior(problem, theta).log_prob(z) + likelihood(problem, theta, z).log_prob(problem.data) - q.log_prob(z)
    bound = log_w.logsumexp(1) - math.log(num_samples)
    return float((weights @ bound).mean())


CASES = [
    *[(GAUSSIAN, Target(name)) for name in ("elbo", "log_marginal", "forward_kl")],
    *[(GAUSSIAN, Target("iwae", K)) for K in (1, 2, 3)],
    *[(LINEAR, Target(name)) for name in ("elbo", "log_marginal", "forward_kl")],
    (LINEAR, Target("iwae", 1)),
    *[(TOY, Target(name)) for name in ("elbo", "log_marginal", "forward_kl")],
    *[(TOY, Target("iwae", K)) for K in (1, 2)],
    *[(Rainforth(dim=3, points=2, perturbation=0.2), Target(name)) for name in ("elbo", "log_marginal", "forward_kl")],
]


@pytest.mark.parametrize(("problem", "target"), CASES, ids=lambda case: str(getattr(case, "name", case)))
def test_exact_targets_against_differences_of_their_values(problem, target):
    found = problem.exact(target)
    assert found.value == pytest.approx(value_of(problem, target, problem.parameters), rel=1e-9, abs=1e-9)
    assert set(found.gradient) == ({"phi"} if target.name == "forward_kl" else set(BLOCKS))
    for block, leaves in found.gradient.items():
        assert {name: leaf.shape for name, leaf in leaves.items()} == {
            name: leaf.shape for name, leaf in problem.parameters[block].items()
        }
        for name, leaf in leaves.items():
            differences = torch.zeros_like(leaf)
            for place in range(leaf.numel()):
                values = []
                for step in (1e-4, -1e-4):
                    moved = {b: {n: t.clone() for n, t in problem.parameters[b].items()} for b in BLOCKS}
                    moved[block][name].view(-1)[place] += step
                    values.append(value_of(problem, target, moved))
                differences.view(-1)[place] = (values[0] - values[1]) / 2e-4
            torch.testing.assert_close(leaf, differences, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("problem", [GAUSSIAN, TOY], ids=identity)
def test_bounds_rise_to_the_marginal(problem):
    values = [problem.exact(Target("iwae", K)).value for K in (1, 2, 10, 100, 1000)]
    limit = problem.exact(Target("log_marginal")).value
    assert values == sorted(values) and values[0] == pytest.approx(problem.exact(Target("elbo")).value)
    assert 0 < limit - values[-1] < 1e-2


def test_what_is_not_known_is_none():
    assert LINEAR.exact(Target("renyi", 3, setting=0.5)) is None
    assert LINEAR.exact_variance("vimco", 2, "phi") is None
    assert GAUSSIAN.exact_variance("jackknife", 2, "phi") is None
    assert GAUSSIAN.exact_variance("iwae", 2, "value") is None
    assert GAUSSIAN.exact_variance("reparameterization-analytic-kl", 1, "theta") is None


@pytest.mark.parametrize("problem", [*PROBLEMS, LinearGaussian(), Rainforth(20, 8)], ids=identity)
def test_the_tail_ratio_is_the_smallest_eigenvalue(problem):
    precision = torch.linalg.inv(posterior(problem, problem.parameters["theta"]).covariance_matrix)
    scales = guide(problem, problem.parameters["phi"]).stddev
    least = torch.linalg.eigvalsh(scales[:, :, None] * precision * scales[:, None, :]).min()
    assert problem.tail_ratio == pytest.approx(float(least))


def test_the_linear_guide_stands_at_the_mean_field_optimum_moved():
    still = LinearGaussian(dim=3, data_dim=4, seed=3, points=2, perturbation=0.0)
    for leaf in still.exact(Target("elbo")).gradient["phi"].values():
        assert leaf.abs().max() < 1e-12
    moved = LinearGaussian(dim=3, data_dim=4, seed=3, points=2, perturbation=0.5)
    for name, leaf in moved.parameters["phi"].items():
        shift = (leaf - still.parameters["phi"][name]) / 0.5
        assert 0.1 < shift.abs().mean() < 3  # standard normals


def test_rainforth_stands_near_its_optimum():
    toy = Rainforth(dim=3, points=200, perturbation=0.0, seed=5)
    theta, phi = toy.parameters["theta"], toy.parameters["phi"]
    torch.testing.assert_close(theta["prior_loc"], toy.data.mean(0))
    torch.testing.assert_close(phi["weight"], torch.eye(3).double() / 2)
    torch.testing.assert_close(phi["bias"], toy.data.mean(0) / 2)
    # x ~ N(theta, 2 I): variances of 200 draws, beyond 4.5 standard errors of 10 % with probability 7e-6 each
    assert ((toy.data.var(0) / 2 - 1).abs() < 0.45).all()


@pytest.mark.parametrize("kind", [LinearGaussian, Rainforth])
def test_seeds_give_other_problems_and_the_same_one_again(kind):
    assert torch.equal(kind(seed=4).data, kind(seed=4).data)
    assert not torch.equal(kind(seed=4).data, kind(seed=5).data)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Gaussian1D, {"scale": 0.0}),
        (Gaussian1D, {"scale": -1.0}),
        (LinearGaussian, {"dim": 0}),
        (LinearGaussian, {"data_dim": 0}),
        (LinearGaussian, {"points": 0}),
        (LinearGaussian, {"noise_scale": 0.0}),
        (LinearGaussian, {"seed": -1}),
        (Rainforth, {"dim": 0}),
        (Rainforth, {"points": 0}),
        (Rainforth, {"seed": -1}),
    ],
)
def test_settings_that_make_no_sense_are_refused(kind, settings):
    with pytest.raises(SpecError, match=f"{kind.name}: {next(iter(settings))}"):
        kind(**settings)
