"""Bounds of K samples in D dimensions against four independent computations: closed forms at K = 1, the 1-D and the isotropic
integrals, tensor quadrature, and differences of values; and against long Monte Carlo."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from benchmarks.problems import LinearGaussian as Problem
from benchmarks.references import GaussianIWAE, LinearGaussian, Rainforth
from benchmarks.references.quadratic_form import QuadraticForm, iwae_gradient
from benchmarks.references.self_normalized import QuadratureError
from estimators import Target


def drawn(dim, data_dim, points, seed, spread=0.4, wide=0.0):
    """A model and a guide with nothing at its optimum."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((data_dim, dim)) / math.sqrt(dim)
    precision = np.eye(dim) + weight.T @ weight / 0.81
    bias, prior = rng.standard_normal(data_dim), 0.5 * rng.standard_normal(dim)
    x = rng.standard_normal((points, data_dim)) * 1.5
    mean = np.linalg.solve(precision, (prior + (x - bias) @ weight / 0.81).T).T
    loc = mean + spread * rng.standard_normal((points, dim))
    log_scale = -0.5 * np.log(np.diag(precision)) + wide + spread * rng.standard_normal((points, dim))
    return LinearGaussian(weight, bias, math.log(0.9), prior, x, loc, log_scale)


def moved(problem, name, place, step):
    fields = {field: getattr(problem, field) for field in problem.__dataclass_fields__}
    value = np.array(fields[name], dtype=float)
    value[place] += step
    return LinearGaussian(**{**fields, name: value if value.ndim else float(value)})


@pytest.mark.parametrize("wide", [-0.6, 0.0, 0.5])
def test_one_sample_is_the_elbo(wide):
    problem = drawn(3, 4, 2, seed=1, wide=wide)
    found, closed = iwae_gradient(problem, 1), problem.gradient("elbo")
    for name, value in closed.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("loc", "log_scale"), [(1.5, -0.5), (-1.4, 0.1), (0.2, 0.8), (0.7, -1.2)])
@pytest.mark.parametrize("K", [2, 10, 1000, 100_000])
def test_one_dimension(loc, log_scale, K):
    """Against `gaussian_iwae`, whose transforms are quadratures over eps: other integrals altogether."""
    one = np.ones((1, 1))
    problem = LinearGaussian(
        one, np.zeros(1), 0.0, np.array([-0.3]), np.array([[1.2]]), loc * one, np.array([[log_scale]])
    )
    found = iwae_gradient(problem, K)
    other = GaussianIWAE.unit_model(1.2, -0.3, loc, log_scale).gradient(K)
    for name in ("value", "loc", "log_scale", "prior_loc"):
        assert np.asarray(found[name]).item() == pytest.approx(float(np.asarray(other[name]).item()), abs=1e-10)
    assert found["error"] < 1e-10


@pytest.mark.parametrize("K", [2, 16, 500])
def test_the_isotropic_case(K):
    """Against `rainforth`, in five dimensions: two-dimensional integrals over the radius and the angle."""
    rng = np.random.default_rng(3)
    x, theta = rng.standard_normal((2, 5)), 0.3 * rng.standard_normal(5)
    weight, bias = 0.5 * np.eye(5) + 0.1 * rng.standard_normal((5, 5)), 0.2 * rng.standard_normal(5)
    toy = Rainforth(x, theta, weight, bias).bound_gradient(K)
    locs = x @ weight.T + bias
    log_scale = np.full((2, 5), 0.5 * math.log(2 / 3))
    found = iwae_gradient(LinearGaussian(np.eye(5), np.zeros(5), 0.0, theta, x, locs, log_scale), K)
    assert found["value"] == pytest.approx(float(toy["value"]), abs=1e-9)
    np.testing.assert_allclose(found["loc"].sum(0), toy["bias"], atol=1e-9)  # each point's is divided by their number
    np.testing.assert_allclose(np.einsum("ni,nj->ij", found["loc"], x), toy["weight"], atol=1e-9)
    np.testing.assert_allclose(found["prior_loc"], toy["theta"], atol=1e-9)


def by_tensor_rule(problem, K, nodes):
    """E log mean w by Gauss-Hermite in all K D numbers, written from the densities."""
    node, weight = np.polynomial.hermite_e.hermegauss(nodes)
    _, dim = problem.weight.shape
    grids = np.stack(np.meshgrid(*[node] * (K * dim), indexing="ij"), -1).reshape(-1, K, dim)
    weights = np.prod(np.meshgrid(*[weight / weight.sum()] * (K * dim), indexing="ij"), axis=0).ravel()
    total = 0.0
    for x, loc, log_scale in zip(problem.x, problem.loc, problem.log_scale, strict=True):
        z = loc + np.exp(log_scale) * grids
        noise = math.exp(2 * problem.log_noise_scale)
        log_w = -0.5 * ((z - problem.prior_loc) ** 2).sum(-1) - 0.5 * ((x - z @ problem.weight.T - problem.bias) ** 2).sum(-1) / noise  # fmt: skip
        log_w += -0.5 * len(x) * math.log(2 * math.pi * noise) + (0.5 * grids**2 + log_scale).sum(-1)
        top = log_w.max(1, keepdims=True)
        total += weights @ (np.log(np.exp(log_w - top).mean(1)) + top[:, 0])
    return total / len(problem.x)


def test_two_samples_in_two_dimensions():
    problem = drawn(2, 3, 2, seed=4)
    coarse, fine = by_tensor_rule(problem, 2, 24), by_tensor_rule(problem, 2, 32)
    assert abs(coarse - fine) < 1e-6  # about the rule's own error at 24 nodes, and more than that at 32
    assert iwae_gradient(problem, 2)["value"] == pytest.approx(fine, abs=abs(coarse - fine))


@pytest.mark.parametrize(("K", "points", "wide"), [(3, 2, -0.5), (3, 1, 0.3), (64, 1, -0.2)])
def test_gradients_are_those_of_the_value(K, points, wide):
    """Central differences of fourth order of the value, of every single number."""
    problem = drawn(2, 2, points, seed=5, wide=wide)
    found = iwae_gradient(problem, K)
    h = 1e-3
    for name in ("weight", "bias", "log_noise_scale", "prior_loc", "loc", "log_scale"):
        shape = np.shape(getattr(problem, name))
        for place in np.ndindex(shape):
            at = {s: iwae_gradient(moved(problem, name, place, s * h), K)["value"] for s in (-2, -1, 1, 2)}
            slope = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * h)
            assert np.asarray(found[name])[place] == pytest.approx(slope, abs=1e-9)


def test_long_monte_carlo():
    """D = 3, K = 64, 100,000 draws of the bound and of its gradient in each guide mean: |z| < 4.5."""
    problem = drawn(3, 4, 1, seed=6, spread=0.25)
    assert problem.tail_ratio() > 0.3
    found, rng = iwae_gradient(problem, 64), np.random.default_rng(0)
    x, loc, scale = problem.x[0], problem.loc[0], np.exp(problem.log_scale[0])
    mean, precision = problem.posterior()
    values, slopes = [], []
    for _ in range(20):
        eps = rng.standard_normal((5000, 64, 3))
        z = loc + scale * eps
        squares = ((x - z @ problem.weight.T - problem.bias) ** 2).sum(-1) / math.exp(2 * problem.log_noise_scale)
        log_w = -0.5 * (((z - problem.prior_loc) ** 2).sum(-1) + squares) + 0.5 * (eps**2).sum(-1)
        log_w += np.log(scale).sum() - 0.5 * len(x) * math.log(2 * math.pi) - len(x) * problem.log_noise_scale
        top = log_w.max(1, keepdims=True)
        w = np.exp(log_w - top)
        values.append(np.log(w.mean(1)) + top[:, 0])
        slopes.append(np.einsum("rk,rkd->rd", w / w.sum(1, keepdims=True), -(z - mean[0]) @ precision))
    draws = np.concatenate([np.concatenate(values)[:, None], np.concatenate(slopes)], axis=1)
    expected = np.array([found["value"], *found["loc"][0]])
    z = (draws.mean(0) - expected) / (draws.std(0) / math.sqrt(len(draws)))
    assert np.abs(z).max() < 4.5


def test_the_bound_rises_to_log_p():
    problem = drawn(4, 5, 1, seed=7, wide=0.3)
    values = [iwae_gradient(problem, K)["value"] for K in (1, 2, 8, 100, 10_000)]
    assert values == sorted(values)
    assert 0 < problem.log_marginal() - values[-1] < 1e-3


@pytest.mark.parametrize("K", [1, 5, 1000])
def test_a_guide_that_is_the_posterior_has_no_gap(K):
    weight = np.diag([1.0, 0.5, 2.0])
    precision = 1 + np.diag(weight) ** 2
    x = np.array([[0.5, -1.0, 0.3]])
    loc = (x @ weight) / precision
    problem = LinearGaussian(weight, np.zeros(3), 0.0, None, x, loc, -0.5 * np.log(precision)[None])
    found = iwae_gradient(problem, K)
    assert found["value"] == pytest.approx(problem.log_marginal(), abs=1e-12)
    assert max(np.abs(found[name]).max() for name in ("loc", "log_scale")) < 1e-12
    np.testing.assert_allclose(found["weight"], problem.gradient("log_marginal")["weight"], atol=1e-11)


def test_moments_of_the_form():
    """E r = 1 when r is a density ratio; E r^2 exists iff the largest curvature is below 1/4."""
    assert QuadraticForm(0.0, (0.5,), (0.2,)).log_moment(2) < math.inf
    assert QuadraticForm(0.0, (0.5,), (0.3,)).log_moment(2) == math.inf
    eps, weight = np.polynomial.hermite_e.hermegauss(80)
    direct = (weight / weight.sum()) @ np.exp(0.7 * (0.1 + 0.4 * eps + 0.05 * eps**2))
    assert QuadraticForm(0.1, (0.4,), (0.05,)).log_moment(0.7) == pytest.approx(math.log(direct), rel=1e-12)


def test_too_wide_a_guide_is_refused():
    with pytest.raises(QuadratureError, match="too wide"):
        QuadraticForm(0.0, (1.0,), (-5000.0,)).sums(2)


def test_what_would_take_too_much_memory_is_refused_at_once():
    """A guide of unit width about a posterior 10^5 times narrower; and so many features that their values alone are gigabytes."""
    tracemalloc.start()
    with pytest.raises(QuadratureError, match="60000 are the most"):
        Problem(noise_scale=1e-5).exact(Target("iwae", 10))
    with pytest.raises(QuadratureError, match=r"1.7e\+07 are the most"):
        Problem(dim=120, data_dim=130).exact(Target("iwae", 10))
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()


def test_the_problem_knows_every_bound():
    problem = Problem(dim=3, data_dim=4, seed=1, points=2)
    found = problem.exact(Target("iwae", 64))
    assert "quadratic form" in found.method
    expected = iwae_gradient(problem._closed_form, 64)
    assert found.value == expected["value"]
    assert found.gradient["theta"]["weight"].shape == (4, 3)
    np.testing.assert_allclose(found.gradient["phi"]["loc"].numpy(), expected["loc"])
    assert problem.exact(Target("iwae", 1)).method == "closed form"
