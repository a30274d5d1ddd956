"""The toy of Rainforth et al. against tensor quadrature (D = 1, 2), Monte Carlo (D = 20) and its known slopes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from benchmarks.references.rainforth import Rainforth


def make(dimension: int, count: int, spread: float, seed: int = 0, **options: float) -> Rainforth:
    """Data from the model, parameters at the optimum plus normal noise of standard deviation `spread`."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=dimension)
    x = theta + math.sqrt(2) * rng.normal(size=(count, dimension))
    theta = x.mean(0)
    return Rainforth(
        x,
        theta + spread * rng.normal(size=dimension),
        0.5 * np.eye(dimension) + spread * rng.normal(size=(dimension, dimension)),
        theta / 2 + spread * rng.normal(size=dimension),
        **options,
    )


def draw(toy: Rainforth, x: np.ndarray, eps: np.ndarray) -> dict[str, np.ndarray]:
    """Bound (...) and gradients wrt b and theta (..., D) of points x (..., D) at noise eps (..., K, D)."""
    centre = (x @ toy.weight.T + toy.bias)[..., None, :]
    z = centre + math.sqrt(toy.variance) * eps
    x = x[..., None, :]
    log_w = -0.5 * ((z - toy.theta) ** 2 + (x - z) ** 2 + math.log(4 * math.pi**2)).sum(-1)
    log_w += 0.5 * (eps**2 + math.log(2 * math.pi * toy.variance)).sum(-1)
    peak = log_w.max(-1, keepdims=True)
    w = np.exp(log_w - peak)
    bound = (peak + np.log(w.mean(-1, keepdims=True)))[..., 0]
    w = (w / w.sum(-1, keepdims=True))[..., None]
    joint = (toy.theta - z) + (x - z)
    path = joint + (z - centre) / toy.variance
    return {
        "value": bound,
        "iwae": (w * joint).sum(-2),
        "stl": (w * path).sum(-2),
        "dreg": (w**2 * path).sum(-2),
        "theta": (w * (z - toy.theta)).sum(-2),
    }


@pytest.mark.parametrize(
    ("dimension", "num_samples", "spread", "variance", "points"),
    [
        (1, 1, 0.3, 2 / 3, 201),
        (1, 2, 0.3, 2 / 3, 121),
        (1, 2, 1.0, 1.5, 301),
        (1, 3, 0.3, 0.4, 61),
        (2, 2, 0.1, 2 / 3, 41),
    ],
)
def test_against_tensor_quadrature(
    dimension: int, num_samples: int, spread: float, variance: float, points: int
) -> None:
    """All blocks, data averaged over points with independent noise."""
    toy = make(dimension, 5 if dimension == 1 else 2, spread, variance=variance, max_num_samples=10)
    line = np.linspace(-9, 9, points)
    eps = np.stack([g.ravel() for g in np.meshgrid(*[line] * (dimension * num_samples), indexing="ij")], axis=-1)
    square = (eps**2).sum(-1)
    eps, weight = eps[square < 75], np.exp(-square[square < 75] / 2)
    eps, weight = eps.reshape(-1, num_samples, dimension), weight / weight.sum()
    count, expected, value = len(toy.x), {}, 0.0
    for x in toy.x:
        sample = draw(toy, x, eps)
        value += weight @ sample.pop("value") / count
        for name, g in sample.items():
            mean = weight @ g
            var = weight @ (g - mean) ** 2
            for block, m, v in (("", mean, var), ("*x", np.outer(mean, x), np.outer(var, x**2))):
                old = expected.get(name + block, (0.0, 0.0))
                expected[name + block] = (old[0] + m / count, old[1] + v / count**2)
    assert toy.bound(num_samples) == pytest.approx(value, rel=1e-9)
    for estimator in ("iwae", "stl", "dreg"):
        blocks = toy.moments(estimator, num_samples)
        for name, key in (("bias", estimator), ("weight", f"{estimator}*x"), ("theta", "theta")):
            mean, var = expected[key]
            np.testing.assert_allclose(blocks[name].mean, mean, rtol=1e-7, atol=1e-9)
            np.testing.assert_allclose(blocks[name].variance, var, rtol=1e-7, atol=1e-10)
        mean = np.concatenate([expected[f"{estimator}*x"][0].ravel(), expected[estimator][0]])
        var = np.concatenate([expected[f"{estimator}*x"][1].ravel(), expected[estimator][1]])
        assert blocks["phi"].snr == pytest.approx(np.linalg.norm(mean) / math.sqrt(var.sum()), rel=1e-6)
        assert blocks["phi"].trace == pytest.approx(var.sum(), rel=1e-7)
        each = np.abs(expected[estimator][0]) / np.sqrt(expected[estimator][1])
        assert blocks["bias"].coordinate_snr == pytest.approx(each.mean(), rel=1e-6)


@pytest.mark.parametrize(("spread", "variance", "num_samples"), [(0.02, 2 / 3, 30), (0.1, 2 / 3, 8), (0.05, 4 / 9, 8)])
def test_against_monte_carlo(spread: float, variance: float, num_samples: int) -> None:
    """D = 20, three points: z-scores of all means and of the variance traces."""
    toy = make(20, 3, spread, seed=3, variance=variance)
    rng, replicates, batches = np.random.default_rng(5), 2000, 6
    parts: dict[str, list[np.ndarray]] = {}
    for _ in range(batches):
        eps = rng.standard_normal((replicates, 3, num_samples, 20))
        for name, g in draw(toy, toy.x, eps).items():
            parts.setdefault(name, []).append(g.mean(1))
            if name != "value":
                parts.setdefault(f"{name}*x", []).append((g[..., :, None] * toy.x[:, None, :]).mean(1).reshape(-1, 400))
    samples = {name: np.concatenate(g) for name, g in parts.items()}
    total = replicates * batches
    z = (samples["value"].mean() - toy.bound(num_samples)) / (samples["value"].std() / math.sqrt(total))
    assert abs(z) < 4.5
    for estimator in ("iwae", "stl", "dreg"):
        blocks = toy.moments(estimator, num_samples)
        for name, key in (("bias", estimator), ("weight", f"{estimator}*x"), ("theta", "theta")):
            g, block = samples[key], blocks[name]
            z = (g.mean(0) - block.mean.ravel()) / np.sqrt(block.variance.ravel() / total)
            assert np.abs(z).max() < 4.5, (estimator, name)
            square = ((g - block.mean.ravel()) ** 2).sum(1)  # its mean is the trace
            assert abs(square.mean() - block.trace) < 4.5 * square.std() / math.sqrt(total), (estimator, name)


def test_closed_forms() -> None:
    toy = make(2, 5, 0.3)
    assert toy.log_marginal() == pytest.approx(multivariate_normal(toy.theta, 2 * np.eye(2)).logpdf(toy.x).mean())
    nodes, weights = np.polynomial.hermite_e.hermegauss(6)
    eps = np.stack([g.ravel() for g in np.meshgrid(nodes, nodes)], axis=-1)
    weights = np.outer(weights, weights).ravel() / weights.sum() ** 2

    def elbo(problem: Rainforth) -> float:
        return float(np.mean([weights @ draw(problem, x, eps[:, None])["value"] for x in problem.x]))

    def forward(problem: Rainforth) -> float:
        total = []
        for x in problem.x:
            z = (problem.theta + x) / 2 + math.sqrt(0.5) * eps
            q = multivariate_normal(problem.weight @ x + problem.bias, problem.variance * np.eye(2))
            total.append(
                weights @ (q.logpdf(z) - multivariate_normal((problem.theta + x) / 2, 0.5 * np.eye(2)).logpdf(z))
            )
        return float(np.mean(total))

    def marginal(problem: Rainforth) -> float:
        return float(multivariate_normal(problem.theta, 2 * np.eye(2)).logpdf(problem.x).mean())

    for target, value in (("elbo", elbo), ("forward_kl", forward), ("log_marginal", marginal)):
        gradient = toy.gradient(target)
        assert gradient["value"] == pytest.approx(value(toy), abs=1e-11)
        assert ("theta" in gradient) == (target != "forward_kl")
        for name in gradient.keys() - {"value"}:
            base = getattr(toy, name)
            for index in np.ndindex(base.shape):
                shift = np.zeros(base.shape)
                shift[index] = 1e-4
                up, down = (value(replace(toy, **{name: base + sign * shift})) for sign in (1, -1))
                assert gradient[name][index] == pytest.approx((up - down) / 2e-4, abs=1e-7)


@pytest.fixture(scope="module")
def paper() -> Rainforth:
    """The setting of the paper: D = 20, N = 1024, parameters 0.01 from the optimum."""
    return make(20, 1024, 0.01)


def test_one_sample(paper: Rainforth) -> None:
    """K = 1: the ELBO; Var g_b is 4 g/N (total derivative) or (1/sqrt g - 2 sqrt g)^2/N (path derivative)."""
    elbo = paper.gradient("elbo")
    for estimator, variance in (("iwae", 8 / 3), ("stl", 1 / 6), ("dreg", 1 / 6)):
        blocks = paper.moments(estimator, 1)
        np.testing.assert_allclose(blocks["bias"].variance, variance / 1024, rtol=1e-9)
        for name in ("bias", "weight", "theta"):
            np.testing.assert_allclose(blocks[name].mean, elbo[name], atol=1e-11)
    assert paper.bound(1) == pytest.approx(elbo["value"], rel=1e-12)
    gradient = paper.bound_gradient(1)
    for name in ("value", "weight", "bias", "theta"):
        np.testing.assert_allclose(gradient[name], elbo[name], atol=1e-10)


def test_slopes_of_the_paper(paper: Rainforth) -> None:
    """SNR ~ K^-1/2 for the guide under IWAE, K^+1/2 under DReG and for the model once K is large."""
    grid = np.array([54, 234, 1000])

    def slope(estimator: str, block: str) -> float:
        snr = [paper.moments(estimator, int(k))[block].coordinate_snr for k in grid]
        return float(np.polyfit(np.log(grid), np.log(snr), 1)[0])

    assert slope("iwae", "bias") == pytest.approx(-0.498, abs=0.005)
    assert 0.46 < slope("dreg", "bias") < 0.505
    assert slope("iwae", "theta") == pytest.approx(0.48, abs=0.04)


def test_ovis_variant() -> None:
    """Covariance 4/9, the setting a public repository ran by mistake: its variances at K = 3, times per-seed spread."""
    blocks = {name: make(20, 1024, 0.01, seed=2, variance=4 / 9).moments(name, 3) for name in ("iwae", "stl", "dreg")}
    expected = {"iwae": (7.8e-4, 0.03), "stl": (1.21e-5, 0.03), "dreg": (3.3e-6, 0.12)}
    for name, (variance, spread) in expected.items():
        assert blocks[name]["bias"].variance.mean() == pytest.approx(variance, rel=spread)


def test_wide_data_and_degenerate_cases() -> None:
    far = make(20, 64, 0.5, max_num_samples=100)  # |delta|^2 in the hundreds
    assert far.elbo() < far.bound(100) < far.log_marginal()
    np.testing.assert_allclose(far.moments("iwae", 100)["bias"].mean, far.moments("dreg", 100)["bias"].mean, rtol=1e-6)
    single = make(2, 1, 0.1)
    assert np.isfinite(single.moments("dreg", 5)["phi"].snr)
    with pytest.raises(ValueError, match="unknown estimator"):
        single.moments("rws", 5)
    with pytest.raises(ValueError, match="unknown target"):
        single.gradient("iwae")
    with pytest.raises(ValueError, match="variance"):
        make(2, 3, 0.1, variance=0.5)
    with pytest.raises(ValueError, match="num_samples"):
        single.bound(10**6)
