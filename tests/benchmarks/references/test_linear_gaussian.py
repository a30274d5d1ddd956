"""Closed forms of the linear Gaussian model against Gauss-Hermite sums, scipy densities and finite differences."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.linalg import eigvals
from scipy.stats import multivariate_normal

from benchmarks.references.linear_gaussian import ESTIMATORS, LinearGaussian

PARAMETERS = ("weight", "bias", "log_noise_scale", "prior_loc", "loc", "log_scale")


def make(count: int | None = None, n: int = 3, d: int = 2, seed: int = 0) -> LinearGaussian:
    rng = np.random.default_rng(seed)
    batch = () if count is None else (count,)
    return LinearGaussian(
        weight=rng.normal(size=(n, d)),
        bias=rng.normal(size=n),
        log_noise_scale=-0.2,
        prior_loc=rng.normal(size=d),
        x=2.0 * rng.normal(size=(*batch, n)),
        loc=rng.normal(size=(*batch, d)),
        log_scale=0.3 * rng.normal(size=(*batch, d)) - 0.5,
    )


def hermite(dimension: int, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Tensor rule for N(0, I), exact for polynomials of degree 2 points - 1 in each variable."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    grid = np.array(list(product(nodes, repeat=dimension)))
    return grid, np.prod(list(product(weights / weights.sum(), repeat=dimension)), axis=1)


def points(problem: LinearGaussian):
    """Each data point's x, loc, scale."""
    return zip(
        np.atleast_2d(problem.x), np.atleast_2d(problem.loc), np.exp(np.atleast_2d(problem.log_scale)), strict=True
    )


def log_joint(problem: LinearGaussian, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    s2 = np.exp(2 * problem.log_noise_scale)
    noise = x - z @ problem.weight.T - problem.bias
    prior = z - problem.prior_loc
    constant = -0.5 * (len(x) * np.log(2 * np.pi * s2) + z.shape[-1] * np.log(2 * np.pi))
    return constant - (noise**2).sum(-1) / (2 * s2) - (prior**2).sum(-1) / 2


def log_guide(loc: np.ndarray, scale: np.ndarray, z: np.ndarray) -> np.ndarray:
    return (-(((z - loc) / scale) ** 2) / 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)).sum(-1)


def conditioned(problem: LinearGaussian, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and covariance by conditioning the joint Gaussian of (z, x)."""
    a, s2 = problem.weight, np.exp(2 * problem.log_noise_scale)
    gain = a.T @ np.linalg.inv(a @ a.T + s2 * np.eye(len(a)))
    return problem.prior_loc + gain @ (x - problem.bias - a @ problem.prior_loc), np.eye(a.shape[1]) - gain @ a


def value(problem: LinearGaussian, target: str) -> float:
    """A target from its definition."""
    a, s2, total = problem.weight, np.exp(2 * problem.log_noise_scale), []
    eps, w = hermite(a.shape[1], 4)
    for x, loc, scale in points(problem):
        if target == "elbo":
            z = loc + scale * eps
            total.append(w @ (log_joint(problem, x, z) - log_guide(loc, scale, z)))
        elif target == "log_marginal":
            density = multivariate_normal(problem.bias + a @ problem.prior_loc, a @ a.T + s2 * np.eye(len(a)))
            total.append(density.logpdf(x))
        else:
            mean, covariance = conditioned(problem, x)
            z = mean + eps @ np.linalg.cholesky(covariance).T
            posterior = multivariate_normal(mean, covariance).logpdf(z)
            total.append(w @ (log_guide(loc, scale, z) - posterior))
    return float(np.mean(total))


def difference(problem: LinearGaussian, target: str, name: str) -> np.ndarray:
    """Central finite differences of `value` with respect to one parameter."""
    base, step = np.asarray(getattr(problem, name), dtype=float), 1e-4
    result = np.empty(base.shape)
    for index in np.ndindex(base.shape):
        shift = np.zeros(base.shape)
        shift[index] = step
        up, down = (value(replace(problem, **{name: base + sign * shift}), target) for sign in (1, -1))
        result[index] = (up - down) / (2 * step)
    return result


@pytest.mark.parametrize("count", [None, 3])
@pytest.mark.parametrize("target", ["elbo", "log_marginal", "forward_kl"])
def test_values_and_gradients(target: str, count: int | None) -> None:
    problem = make(count)
    gradient = problem.gradient(target)
    assert gradient["value"] == pytest.approx(value(problem, target), abs=1e-11)
    assert getattr(problem, target)() == gradient["value"]
    names = PARAMETERS if target != "forward_kl" else ("loc", "log_scale")
    assert set(gradient) == {"value", *names}
    for name in names:
        assert np.shape(gradient[name]) == np.shape(getattr(problem, name))
        np.testing.assert_allclose(gradient[name], difference(problem, target, name), atol=3e-6, err_msg=name)


@pytest.mark.parametrize("count", [None, 3])
def test_posterior_and_tail_ratio(count: int | None) -> None:
    problem = make(count)
    mean, precision = problem.posterior()
    expected = [conditioned(problem, x) for x, _, _ in points(problem)]
    np.testing.assert_allclose(np.atleast_2d(mean), [m for m, _ in expected], atol=1e-12)
    np.testing.assert_allclose(np.linalg.inv(precision), expected[0][1], atol=1e-12)
    ratios = [
        eigvals(np.linalg.inv(covariance) @ np.diag(scale**2)).real.min()
        for (_, covariance), (_, _, scale) in zip(expected, points(problem), strict=True)
    ]
    assert problem.tail_ratio() == pytest.approx(min(ratios), rel=1e-10)


def estimates(problem: LinearGaussian, x, loc, scale, estimator: str, eps: np.ndarray) -> dict[str, np.ndarray]:
    """Estimates at noise eps (..., K, d), written from the definitions."""
    z = loc + scale * eps
    s2 = np.exp(2 * problem.log_noise_scale)
    likelihood = (x - z @ problem.weight.T - problem.bias) @ problem.weight / s2
    joint, score_z = likelihood - (z - problem.prior_loc), -(z - loc) / scale**2
    log_w = log_joint(problem, x, z) - log_guide(loc, scale, z)
    score = {"loc": eps / scale, "log_scale": eps**2 - 1}
    num_samples = eps.shape[-2]
    if estimator == "score_function":
        return {name: (log_w[..., None] * h).mean(-2) for name, h in score.items()}
    if estimator == "leave_one_out":
        centred = (log_w - log_w.mean(-1, keepdims=True))[..., None]
        return {name: (centred * h).sum(-2) / (num_samples - 1) for name, h in score.items()}
    if estimator == "analytic_kl":
        result = {"loc": likelihood - (loc - problem.prior_loc), "log_scale": likelihood * scale * eps - scale**2 + 1}
    elif estimator == "reparameterization":  # log q = -log scale - eps^2/2 depends on log_scale alone
        result = {"loc": joint, "log_scale": joint * scale * eps + 1}
    else:
        result = {"loc": joint - score_z, "log_scale": (joint - score_z) * scale * eps}
    if estimator == "bonnet_price":
        hessian = -np.diag(problem.weight.T @ problem.weight) / s2 - 1
        result["log_scale"] = np.broadcast_to(1 + scale**2 * hessian, eps.shape)
    return {name: g.mean(-2) for name, g in result.items()}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    ("count", "num_samples", "d"), [(None, 1, 2), (2, 1, 3), (None, 2, 2), (3, 2, 1), (None, 3, 2)]
)
def test_variances(estimator: str, count: int | None, num_samples: int, d: int) -> None:
    """Polynomials of degree 8 at most in each noise variable: the tensor rule is exact."""
    if estimator == "leave_one_out" and num_samples == 1:
        with pytest.raises(ValueError, match="more samples"):
            make(count, d=d).variance(estimator, 1)
        return
    problem = make(count, d=d)
    eps, w = hermite(num_samples * d, 5)
    eps = eps.reshape(-1, num_samples, d)
    exact = problem.variance(estimator, num_samples)
    scale_of_data = len(np.atleast_2d(problem.x))
    target = problem.gradient("elbo")
    for i, (x, loc, scale) in enumerate(points(problem)):
        for name, g in estimates(problem, x, loc, scale, estimator, eps).items():
            mean = w @ g
            np.testing.assert_allclose(mean / scale_of_data, np.atleast_2d(target[name])[i], atol=1e-10)
            variance = w @ (g - mean) ** 2 / scale_of_data**2
            np.testing.assert_allclose(np.atleast_2d(exact[name])[i], variance, rtol=1e-9, atol=1e-12)
    assert exact["loc"].shape == problem.loc.shape


@pytest.mark.parametrize(("count", "num_samples"), [(None, 1), (2, 1), (None, 2)])
def test_model_variance(count: int | None, num_samples: int) -> None:
    problem = make(count)
    eps, w = hermite(num_samples * 2, 5)
    eps = eps.reshape(-1, num_samples, 2)
    s2, exact = np.exp(2 * problem.log_noise_scale), problem.model_variance(num_samples)
    expected: dict[str, np.ndarray] = {}
    for x, loc, scale in points(problem):
        z = loc + scale * eps
        noise = x - z @ problem.weight.T - problem.bias
        gradients = {
            "weight": noise[..., :, None] * z[..., None, :] / s2,
            "bias": noise / s2,
            "log_noise_scale": (noise**2).sum(-1) / s2 - len(x),
            "prior_loc": z - problem.prior_loc,
        }
        for name, g in gradients.items():
            g = g.mean(1)
            variance = np.tensordot(w, (g - np.tensordot(w, g, 1)) ** 2, 1) / len(np.atleast_2d(problem.x)) ** 2
            expected[name] = expected.get(name, 0.0) + variance
    assert set(exact) == set(expected)
    for name in expected:
        np.testing.assert_allclose(exact[name], expected[name], rtol=1e-10, err_msg=name)


def test_sticking_the_landing_vanishes_at_the_posterior_only_if_it_is_factorised() -> None:
    problem = make(d=1)
    mean, precision = problem.posterior()
    at_posterior = replace(problem, loc=mean, log_scale=-0.5 * np.log(np.diag(precision)))
    for exact in at_posterior.variance("sticking_the_landing").values():
        np.testing.assert_allclose(exact, 0.0, atol=1e-24)
    assert at_posterior.elbo() == pytest.approx(value(problem, "log_marginal"), abs=1e-11)
    problem = make(d=2)
    mean, precision = problem.posterior()
    optimum = replace(problem, loc=mean, log_scale=-0.5 * np.log(np.diag(precision)))
    assert optimum.variance("sticking_the_landing")["loc"].min() > 1e-3


def test_default_prior_and_refusals() -> None:
    problem = make()
    np.testing.assert_array_equal(replace(problem, prior_loc=None).prior_loc, np.zeros(2))
    for name in ("bias", "loc", "log_scale", "prior_loc"):
        with pytest.raises(ValueError, match=name):
            replace(problem, **{name: np.zeros(7)})
    with pytest.raises(ValueError, match="unknown target"):
        problem.gradient("iwae")
    with pytest.raises(ValueError, match="unknown estimator"):
        problem.variance("dreg")
