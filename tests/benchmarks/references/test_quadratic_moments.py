"""Exact variances in D dimensions against four independent computations: closed forms at K = 1, the 1-D and the isotropic
integrals, and tensor quadrature written from the densities."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.problems import GaussianMeanField
from benchmarks.problems import LinearGaussian as Problem
from benchmarks.references import GaussianIWAE, LinearGaussian, QuadratureError, Rainforth
from benchmarks.references import quadratic_moments as exact
from benchmarks.references.quadratic_form import iwae_gradient
from benchmarks.references.quadratic_moments import moments

ESTIMATORS = ("iwae", "stl", "dreg", "rws", "rws_dreg")
PHI = ("loc", "log_scale")
THETA = ("weight", "bias", "log_noise_scale", "prior_loc")


def drawn(dim, data_dim, points, seed, wide=0.0):
    """A model and a guide with nothing at its optimum."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((data_dim, dim)) / math.sqrt(dim)
    precision = np.eye(dim) + weight.T @ weight / 0.81
    bias, prior = rng.standard_normal(data_dim), 0.5 * rng.standard_normal(dim)
    x = rng.standard_normal((points, data_dim))
    mean = np.linalg.solve(precision, (prior + (x - bias) @ weight / 0.81).T).T
    loc = mean + 0.4 * rng.standard_normal((points, dim))
    log_scale = -0.5 * np.log(np.diag(precision)) + wide + 0.2 * rng.standard_normal((points, dim))
    return LinearGaussian(weight, bias, math.log(0.9), prior, x, loc, log_scale)


@pytest.mark.parametrize("wide", [-0.4, 0.0, 0.4])
@pytest.mark.parametrize(
    ("name", "closed"),
    [("iwae", "reparameterization"), ("stl", "sticking_the_landing"), ("dreg", "sticking_the_landing")],
)
def test_one_sample_has_the_closed_forms(name, closed, wide):
    problem = drawn(3, 4, 2, seed=1, wide=wide)
    found, of_phi, of_theta = moments(problem, name, 1), problem.variance(closed), problem.model_variance()
    for block in (of_phi, of_theta):
        for each, variance in block.items():
            np.testing.assert_allclose(found[each][1], variance, rtol=1e-9, atol=1e-12)


def test_one_score_has_the_variance_of_a_score():
    problem = drawn(3, 4, 2, seed=1)
    found = moments(problem, "rws", 1)
    np.testing.assert_allclose(found["loc"][1], np.exp(-2 * problem.log_scale) / 4, rtol=1e-10)
    np.testing.assert_allclose(found["log_scale"][1], 2 / 4, rtol=1e-10)
    np.testing.assert_allclose(found["loc"][0], 0, atol=1e-12)


@pytest.mark.parametrize("K", [2, 3, 64])
@pytest.mark.parametrize("wide", [-0.4, 0.3])
def test_means_are_the_gradients_of_the_bound(K, wide):
    """Two rules with one expectation, by integrals of different powers, and the derivative of the value."""
    problem = drawn(2, 3, 2, seed=2, wide=wide)
    gradient = iwae_gradient(problem, K)
    for name in ("iwae", "dreg"):
        found = moments(problem, name, K)
        for each in (*PHI, *THETA):
            np.testing.assert_allclose(found[each][0], gradient[each], atol=1e-9)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(("loc", "log_scale"), [(-1.4, 0.1), (0.7, -0.9)])
@pytest.mark.parametrize("K", [2, 1000])
def test_one_dimension(name, loc, log_scale, K):
    """Against `gaussian_iwae`, whose transforms are quadratures over eps: other integrals altogether."""
    one = np.ones((1, 1))
    problem = LinearGaussian(
        one, np.zeros(1), 0.0, np.array([-0.3]), np.array([[1.2]]), loc * one, np.array([[log_scale]])
    )
    found = moments(problem, name, K)
    for each, other in GaussianIWAE.unit_model(1.2, -0.3, loc, log_scale).moments(name, K).items():
        assert found[each][0].item() == pytest.approx(other.mean, rel=1e-8, abs=1e-10)
        assert found[each][1].item() == pytest.approx(other.variance, rel=1e-6)


@pytest.mark.parametrize("K", [2, 500])
def test_the_isotropic_case(K):
    """Against `rainforth`, in four dimensions: two-dimensional integrals over the radius and the angle."""
    rng = np.random.default_rng(3)
    x, theta = rng.standard_normal((2, 4)), 0.3 * rng.standard_normal(4)
    weight, bias = 0.5 * np.eye(4) + 0.1 * rng.standard_normal((4, 4)), 0.2 * rng.standard_normal(4)
    toy = Rainforth(x, theta, weight, bias)
    problem = LinearGaussian(
        np.eye(4), np.zeros(4), 0.0, theta, x, x @ weight.T + bias, np.full((2, 4), 0.5 * math.log(2 / 3))
    )
    for name in ("iwae", "stl", "dreg"):
        found, other = moments(problem, name, K), toy.moments(name, K)
        # Each point's mean is divided by their number, and so is its share of the variance, squared.
        np.testing.assert_allclose(found["loc"][0].sum(0), other["bias"].mean, atol=1e-9)
        np.testing.assert_allclose(found["loc"][1].sum(0), other["bias"].variance, rtol=1e-6)
        np.testing.assert_allclose(found["prior_loc"][1], other["theta"].variance, rtol=1e-6)


def by_tensor_rule(problem, name, nodes):
    """Mean and variance of an estimate of two samples in two dimensions, by Gauss-Hermite in all four numbers."""
    node, weight = np.polynomial.hermite_e.hermegauss(nodes)
    eps = np.stack(np.meshgrid(*[node] * 4, indexing="ij"), -1).reshape(-1, 2, 2)
    weights = np.prod(np.meshgrid(*[weight / weight.sum()] * 4, indexing="ij"), axis=0).ravel()
    eps, weights = eps[weights > 1e-15], weights[weights > 1e-15]
    (x,), (loc,), scale = problem.x, problem.loc, np.exp(problem.log_scale[0])
    z, s2 = loc + scale * eps, math.exp(2 * problem.log_noise_scale)
    e = x - problem.bias - z @ problem.weight.T
    log_w = (0.5 * eps**2 - 0.5 * (z - problem.prior_loc) ** 2).sum(-1) - 0.5 * (e**2).sum(-1) / s2
    w = np.exp(log_w - log_w.max(1, keepdims=True))
    w /= w.sum(1, keepdims=True)
    score = np.concatenate([eps / scale, eps**2 - 1], -1)
    slope = e @ problem.weight / s2 - (z - problem.prior_loc) + eps / scale  # of log p(x, z) - log q in z, q held
    path = np.concatenate([slope, slope * scale * eps], -1)
    rows = {
        "iwae": lambda: w[..., None] * (path - score),
        "stl": lambda: w[..., None] * path,
        "dreg": lambda: w[..., None] ** 2 * path,
        "rws": lambda: w[..., None] * score,
        "rws_dreg": lambda: (w - w**2)[..., None] * path,
        "model": lambda: (
            w[..., None]
            * np.concatenate(
                [
                    (e[..., :, None] * z[..., None, :] / s2).reshape(*e.shape[:2], -1),
                    e / s2,
                    (e**2).sum(-1, keepdims=True) / s2 - len(x),
                    z - problem.prior_loc,
                ],
                -1,
            )
        ),
    }[name]().sum(1)
    mean = weights @ rows
    return mean, weights @ (rows - mean) ** 2


@pytest.mark.parametrize("name", [*ESTIMATORS, "model"])
def test_two_samples_in_two_dimensions(name):
    problem = drawn(2, 3, 1, seed=4)
    coarse, fine = by_tensor_rule(problem, name, 18), by_tensor_rule(problem, name, 24)
    found = moments(problem, "dreg" if name == "model" else name, 2)
    for part in (0, 1):
        ours = np.concatenate([np.ravel(found[each][part]) for each in (THETA if name == "model" else PHI)])
        assert np.abs(coarse[part] - fine[part]).max() < 2e-4  # about the rule's own error at 18 nodes
        np.testing.assert_allclose(ours, fine[part], atol=np.abs(coarse[part] - fine[part]).max() + 1e-7)


def test_two_functions_of_four_variables_are_expected_and_squared():
    """`Polynomials` against the moments of many draws of a real normal law; |z| < 4.5."""
    rng = np.random.default_rng(0)
    f = exact.Polynomials.of(rng.normal(size=2), rng.normal(size=(2, 4)), rng.normal(size=(2, 4, 4)))
    mean, spread = rng.normal(size=(1, 4)), rng.uniform(0.5, 2, size=(1, 4))
    eta = mean + np.sqrt(spread) * rng.standard_normal((200_000, 4))
    values = f.constant + eta @ f.linear.T + np.einsum("ni,fij,nj->nf", eta, f.curvature, eta)
    draws = np.concatenate([values, values**2], 1)
    z = (draws.mean(0) - f(mean.astype(complex), spread.astype(complex))[0].real) / draws.std(0) * math.sqrt(len(draws))
    assert np.abs(z).max() < 4.5


def test_problems_know_these_variances():
    problem = Problem(dim=3, data_dim=4, seed=1, points=2)
    found = moments(problem._closed_form, "dreg", 8)
    assert problem.exact_variance("dreg", 8, "phi") == pytest.approx(sum(found[name][1].sum() for name in PHI))
    assert problem.exact_variance("iwae-stl", 8, "theta") == pytest.approx(sum(found[n][1].sum() for n in THETA[:3]))
    of_rank = GaussianMeanField(dim=2, rho=0.8)
    assert of_rank.exact_variance("iwae", 8, "phi") > of_rank.exact_variance("dreg", 8, "phi") > 0


def test_too_many_parameters_are_left_alone():
    problem = Problem(dim=40, data_dim=100)
    with pytest.raises(QuadratureError, match="too many"):
        moments(problem._closed_form, "iwae", 2)
    assert problem.exact_variance("iwae", 2, "phi") is None
