"""IWAE-K in one dimension against tensor sums (K <= 3), nested scipy quadrature, Monte Carlo and asymptotics."""

from __future__ import annotations

import math
import time
import tracemalloc

import numpy as np
import pytest
from scipy.integrate import quad

from benchmarks.references.gaussian_iwae import ESTIMATORS, GaussianIWAE
from benchmarks.references.self_normalized import QuadratureError, SelfNormalizedSums

X, PRIOR = 1.0, 0.2
TRUTH = GaussianIWAE(loc=0.4, log_scale=math.log(1.1))  # m 0, s 1: the example of the asymptotic figures


def at(delta: float, scale: float) -> GaussianIWAE:
    return GaussianIWAE.unit_model(X, PRIOR, (X + PRIOR) / 2 + delta, math.log(scale))


def normal(x: np.ndarray | float, loc: float, variance: float) -> np.ndarray:
    return -((x - loc) ** 2) / (2 * variance) - 0.5 * np.log(2 * np.pi * variance)


def draw(problem: GaussianIWAE, eps: np.ndarray) -> dict[str, np.ndarray]:
    """Bound and gradient estimates of the unit model at noise eps (..., K), written from their definitions."""
    scale = math.exp(problem.log_scale)
    z = problem.loc + scale * eps
    log_w = normal(z, PRIOR, 1.0) + normal(X, z, 1.0) - normal(z, problem.loc, scale**2)
    peak = log_w.max(-1, keepdims=True)
    w = np.exp(log_w - peak)
    total = w.sum(-1, keepdims=True)
    bound = (peak + np.log(total / eps.shape[-1]))[..., 0]
    w = w / total
    joint = (PRIOR - z) + (X - z)  # d log p(x, z)/dz
    path = joint + (z - problem.loc) / scale**2
    result = {"value": bound, "prior_loc": (w * (z - PRIOR)).sum(-1)}
    weights = {"stl": w, "dreg": w**2, "rws_dreg": w - w**2}
    for name, moved in (("loc", 1.0), ("log_scale", scale * eps)):
        score = eps / scale if name == "loc" else eps**2 - 1
        entropy = 0.0 if name == "loc" else 1.0  # -d log q(z(eps))/d log_scale
        result[f"iwae {name}"] = (w * (joint * moved + entropy)).sum(-1)
        result[f"rws {name}"] = (w * score).sum(-1)
        for estimator, coefficient in weights.items():
            result[f"{estimator} {name}"] = (coefficient * path * moved).sum(-1)
    return result


def tensor(problem: GaussianIWAE, num_samples: int, count: int) -> dict[str, tuple[float, float]]:
    """Mean and variance of every entry of `draw`, by the trapezoid rule in K dimensions on [-9.5, 9.5]."""
    line = np.linspace(-9.5, 9.5, count)
    grids = np.meshgrid(*[line] * num_samples, indexing="ij")
    eps = np.stack([g.ravel() for g in grids], axis=-1)
    square = (eps**2).sum(-1)
    eps, weight = eps[square < 90], np.exp(-square[square < 90] / 2)
    weight /= weight.sum()
    result = {}
    for name, g in draw(problem, eps).items():
        mean = weight @ g
        result[name] = (float(mean), float(weight @ (g - mean) ** 2))
    return result


CASES = [(K, d, s, n) for d in (0.0, 0.5, -3.0) for K, s, n in ((1, 0.2, 801), (1, 3.0, 801), (2, 0.2, 401))] + [
    (2, 0.5, 0.7, 301), (2, 3.0, 1.3, 601), (2, -1.0, 3.0, 2001), (3, 0.5, 0.9, 91), (3, 1.0, 0.5, 91),
]  # fmt: skip


@pytest.mark.parametrize(("num_samples", "delta", "scale", "count"), CASES)
def test_against_tensor_quadrature(num_samples: int, delta: float, scale: float, count: int) -> None:
    problem = at(delta, scale)
    expected = tensor(problem, num_samples, count)
    mean, variance = expected["value"]
    assert problem.bound(num_samples).value == pytest.approx(mean, rel=1e-10)
    assert problem.bound_variance(num_samples).value == pytest.approx(variance, rel=1e-9, abs=1e-12)
    gap = (problem.log_marginal - mean) ** 2 + variance
    assert problem.squared_gap(num_samples).value == pytest.approx(gap, rel=1e-9)
    for estimator in ESTIMATORS:
        for name, moment in problem.moments(estimator, num_samples).items():
            mean, variance = expected[name if name == "prior_loc" else f"{estimator} {name}"]
            assert moment.mean == pytest.approx(mean, rel=1e-9, abs=1e-11), (estimator, name)
            assert moment.variance == pytest.approx(variance, rel=1e-8, abs=1e-11), (estimator, name)
    gradient = problem.gradient(num_samples)
    for name in ("loc", "log_scale"):
        assert gradient[name] == pytest.approx(expected[f"iwae {name}"][0], rel=1e-9, abs=1e-11)


def test_gradient_is_that_of_the_bound() -> None:
    """Finite differences of the tensor value, which never sees a gradient."""
    step, num_samples, parameters = 1e-4, 2, {"loc": 1.1, "log_scale": math.log(0.6)}
    gradient = GaussianIWAE.unit_model(X, PRIOR, **parameters).gradient(num_samples)
    for name in parameters:
        up, down = (
            tensor(GaussianIWAE.unit_model(X, PRIOR, **(parameters | {name: parameters[name] + sign * step})), 2, 201)
            for sign in (1, -1)
        )
        assert gradient[name] == pytest.approx((up["value"][0] - down["value"][0]) / (2 * step), rel=1e-6)


@pytest.mark.parametrize(("num_samples", "delta", "scale"), [(1000, 0.5, 0.9), (1000, -3.0, 0.2), (64, 1.0, 3.0)])
def test_bound_against_nested_adaptive_quadrature(num_samples: int, delta: float, scale: float) -> None:
    """E log S = int (e^-t - phi^K) dt/t by scipy, phi from adaptive quadrature over z; no transform tables."""
    problem = at(delta, scale)
    posterior, evidence = (X + PRIOR) / 2, normal(X, PRIOR, 2.0)

    def complement(v: float) -> float:  # 1 - phi(e^v)
        def integrand(eps: float) -> float:
            z = problem.loc + scale * eps
            log_r = normal(z, posterior, 0.5) - normal(z, problem.loc, scale**2)
            return -math.expm1(-math.exp(min(v + log_r, 7.0))) * math.exp(-(eps**2) / 2) / math.sqrt(2 * math.pi)

        return sum(quad(integrand, a, a + 4, epsabs=1e-15, epsrel=1e-12, limit=200)[0] for a in range(-10, 10, 4))

    def integrand(v: float) -> float:
        power = math.exp(num_samples * math.log1p(-min(complement(v), 1 - 1e-16)))
        return math.exp(-num_samples * math.exp(v)) - power

    start = -math.log(num_samples)
    end = 12.0 if scale < 2 else 60.0
    parts = [quad(integrand, a, a + 6, epsabs=1e-11, epsrel=1e-10)[0] for a in np.arange(start - 24, start + end, 6)]
    assert problem.log_marginal == pytest.approx(evidence, abs=1e-14)
    assert problem.bound(num_samples).value == pytest.approx(evidence + sum(parts), abs=2e-9)


@pytest.mark.parametrize(("delta", "scale", "num_samples"), [(0.5, 0.6, 64), (-1.0, 1.2, 20), (0.3, 2.5, 300)])
def test_against_monte_carlo(delta: float, scale: float, num_samples: int) -> None:
    problem, replicates = at(delta, scale), 4_000_000 // num_samples
    rng = np.random.default_rng([7, num_samples])
    samples = draw(problem, rng.standard_normal((replicates, num_samples)))
    exact = {"value": (problem.bound(num_samples).value, problem.bound_variance(num_samples).value)}
    for estimator in ESTIMATORS:
        for name, moment in problem.moments(estimator, num_samples).items():
            exact[name if name == "prior_loc" else f"{estimator} {name}"] = moment[:2]
    assert set(exact) == set(samples)
    for name, (mean, variance) in exact.items():
        g = samples[name]
        deviation = g - g.mean()
        kurtosis = np.mean(deviation**4) / g.var() ** 2
        assert abs(g.mean() - mean) < 4.5 * math.sqrt(variance / replicates), name
        assert abs(g.var(ddof=1) / variance - 1) < 4.5 * math.sqrt((kurtosis - 1) / replicates), name


def ratio_moments(problem: GaussianIWAE) -> tuple[float, float, float]:
    """Central moments 2, 3, 4 of r for m 0, s 1, by quadrature over z."""

    def raw(power: int) -> float:
        scale = problem.scale

        def integrand(z: float) -> float:
            log_q = normal(z, problem.loc, scale**2)
            return math.exp(power * (normal(z, 0.0, 1.0) - log_q) + log_q)

        return quad(integrand, -30, 30, epsabs=1e-14, epsrel=1e-13, limit=500)[0]

    e2, e3, e4 = raw(2), raw(3), raw(4)
    return e2 - 1, e3 - 3 * e2 + 2, e4 - 4 * e3 + 6 * e2 - 3


def test_large_k_asymptotics() -> None:
    mu2, mu3, mu4 = ratio_moments(TRUTH)
    b1 = -mu2 / 2
    b2 = mu3 / 3 - 3 * mu2**2 / 4
    b3 = -(mu4 - 3 * mu2**2) / 4 + 2 * mu2 * mu3 - 5 * mu2**3 / 2
    assert (mu2, b1, b2, b3) == pytest.approx((0.136517, -0.068258, -0.017326, -0.005058), abs=6e-7)
    for k, bias, spread in ((4, 1.0682, 1.115), (16, 1.0162, 1.027), (64, 1.0040, 1.0065), (256, 1.0010, 1.0016)):
        assert k * TRUTH.bound(k).value / b1 == pytest.approx(bias, abs=6e-5)
        assert k * TRUTH.bound_variance(k).value / mu2 == pytest.approx(spread, abs=6e-4)
    for k in (64, 256, 1000):
        series = b1 / k + b2 / k**2 + b3 / k**3
        assert TRUTH.bound(k).value == pytest.approx(series, abs=0.05 / k**4)


def test_jackknife() -> None:
    mu2, mu3, mu4 = ratio_moments(TRUTH)
    b2 = mu3 / 3 - 3 * mu2**2 / 4
    b3 = -(mu4 - 3 * mu2**2) / 4 + 2 * mu2 * mu3 - 5 * mu2**3 / 2
    for k, ratio in ((16, 1.038), (64, 1.009), (256, 1.002)):
        assert TRUTH.jackknife(k) * -(k * (k - 1)) / b2 == pytest.approx(ratio, abs=6e-4)
    for k, ratio in ((16, 1.033), (64, 1.009)):
        assert TRUTH.jackknife(k, order=2) * k * (k - 1) * (k - 2) / b3 == pytest.approx(ratio, abs=1e-3)
    problem = at(0.5, 0.9)
    one, two, three = (tensor(problem, k, n) for k, n in ((1, 401), (2, 201), (3, 91)))
    assert problem.jackknife(2) == pytest.approx(2 * two["value"][0] - one["value"][0], rel=1e-11)
    second = 4.5 * three["value"][0] - 4 * two["value"][0] + 0.5 * one["value"][0]
    assert problem.jackknife(3, order=2) == pytest.approx(second, rel=1e-10)
    gradient = problem.jackknife_gradient(3)
    for name in ("loc", "log_scale", "prior_loc"):
        key = name if name == "prior_loc" else f"iwae {name}"
        assert gradient[name] == pytest.approx(3 * three[key][0] - 2 * two[key][0], rel=1e-9)
    with pytest.raises(ValueError, match="order"):
        problem.jackknife(2, order=2)


@pytest.mark.parametrize(
    ("rho", "slope"), [(0.3, -0.463), (0.4, -0.703), (0.45, -0.839), (0.55, -0.992), (0.6, -0.999)]
)
def test_heavy_tails_slow_the_bias(rho: float, slope: float) -> None:
    """Local slopes of the bias at K = 2^20, from the design's exact table."""
    problem = GaussianIWAE(loc=0.0, log_scale=0.5 * math.log(rho))
    gaps = [problem.bound(2**k).value for k in (19, 20)]
    assert math.log2(gaps[1] / gaps[0]) == pytest.approx(slope, abs=6e-3)


@pytest.mark.parametrize(
    ("rho", "slope"), [(0.55, -0.41), (0.64, -0.24), (0.7, -0.01), (0.75, 0.25), (0.8, 0.48), (0.9, 0.5)]
)
def test_dreg_needs_light_tails(rho: float, slope: float) -> None:
    """Local SNR slopes of DReG between K = 2^18 and 2^20 at delta = 0.3: sqrt(K) only for rho > 3/4."""
    problem = GaussianIWAE(loc=0.3, log_scale=0.5 * math.log(rho))
    moments = [problem.moments("dreg", 2**k)["loc"] for k in (18, 20)]
    snr = [abs(moment.mean) / math.sqrt(moment.variance) for moment in moments]
    assert math.log2(snr[1] / snr[0]) / 2 == pytest.approx(slope, abs=6e-3)


def test_published_sumo_tail_has_no_variance() -> None:
    """Partial sums of sum_k (V_k - V_{k+1})(1/P(N >= k) - 1) explode; k^2 (V_k - V_{k+1}) tends to Var r."""
    k = np.arange(1, 301)
    v = np.array([TRUTH.squared_gap(int(j)).value for j in range(1, 302)])
    survival = np.where(k < 80, 1.0 / k, 0.9 ** (k - 80.0) / 80)
    partial = np.cumsum((v[:-1] - v[1:]) * (1 / survival - 1))
    np.testing.assert_allclose(partial[[78, 149, 299]], [0.45, 9.3, 1.5e7], rtol=0.01)
    assert 300**2 * (v[-2] - v[-1]) / ratio_moments(TRUTH)[0] == pytest.approx(1.0, abs=1e-3)


def test_wake_sleep_limits() -> None:
    """STL and RWS tend to the forward-KL gradient ((m - loc)/scale^2, (s^2 + delta^2)/scale^2 - 1)."""
    problem = at(0.5, 0.9)
    limit = {"loc": -0.5 / 0.81, "log_scale": (0.5 + 0.25) / 0.81 - 1}
    assert problem.forward_kl_gradient() == pytest.approx(limit)
    for estimator in ("stl", "rws"):
        means = problem.means(estimator, 10**5)
        for name, target in limit.items():
            assert means[name].value == pytest.approx(target, abs=1e-4)


@pytest.mark.parametrize("num_samples", [1, 5, 1000])
def test_perfect_guide(num_samples: int) -> None:
    problem = at(0.0, math.sqrt(0.5))
    assert problem.tail_ratio() == pytest.approx(1.0)
    assert problem.bound(num_samples).value == pytest.approx(float(normal(X, PRIOR, 2.0)), abs=1e-13)
    for estimator in ("stl", "dreg", "rws_dreg"):
        for name in ("loc", "log_scale"):
            moment = problem.moments(estimator, num_samples)[name]
            assert abs(moment.mean) < 1e-13
            assert abs(moment.variance) < 1e-26
    moment = problem.moments("iwae", num_samples)["loc"]  # all weights equal: mean of K normals of variance 1/s^2 = 2
    assert moment.variance == pytest.approx(2.0 / num_samples, rel=1e-10)


@pytest.mark.parametrize("survival", [[1.0], [0.5], [0.8, 0.3]])
def test_sumo_against_tensor_quadrature(survival: list[float]) -> None:
    """Averages over N exactly and over z by the trapezoid rule, straight from the definition of the estimator."""
    problem, cap = at(0.4, 0.8), len(survival)
    line = np.linspace(-9, 9, 81)
    eps = np.stack([g.ravel() for g in np.meshgrid(*[line] * (cap + 1), indexing="ij")], axis=-1)
    weight = np.exp(-(eps**2).sum(-1) / 2)
    weight /= weight.sum()
    bounds = [draw(problem, eps[:, : k + 1])["value"] for k in range(cap + 1)]
    tail = [1.0, *survival, 0.0]
    mean = square = 0.0
    for n in range(cap + 1):  # P(N = n) = P(N >= n) - P(N >= n + 1)
        value = bounds[0] + sum((bounds[k] - bounds[k - 1]) / survival[k - 1] for k in range(1, n + 1))
        mean += (tail[n] - tail[n + 1]) * (weight @ value)
        square += (tail[n] - tail[n + 1]) * (weight @ value**2)
    exact = problem.sumo_moments(np.array(survival))
    assert exact[0] == pytest.approx(mean, rel=1e-11)
    assert exact[1] == pytest.approx(square - mean**2, rel=1e-7)


def test_sumo_against_monte_carlo() -> None:
    problem, cap, replicates = at(0.4, 1.2), 20, 40_000
    survival = 1.0 / np.arange(1, cap + 1)
    rng = np.random.default_rng(11)
    eps = rng.standard_normal((replicates, cap + 1))
    length = np.searchsorted(-survival, -rng.random(replicates), side="right")  # N >= k iff u <= P(N >= k)
    bounds = np.stack([draw(problem, eps[:, : k + 1])["value"] for k in range(cap + 1)], axis=1)
    terms = np.diff(bounds, axis=1) / survival * (length[:, None] > np.arange(cap))
    value = bounds[:, 0] + terms.sum(1)
    mean, variance = problem.sumo_moments(survival)
    kurtosis = np.mean((value - value.mean()) ** 4) / value.var() ** 2
    assert abs(value.mean() - mean) < 4.5 * math.sqrt(variance / replicates)
    assert abs(value.var() / variance - 1) < 4.5 * math.sqrt((kurtosis - 1) / replicates)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="unknown estimator"):
        TRUTH.moments("vimco", 2)
    assert "prior_loc" not in TRUTH.gradient(2)
    eps = np.linspace(-8, 8, 9)  # far too coarse
    sums = SelfNormalizedSums(0.3 * eps - 0.045, np.exp(-(eps**2) / 2), np.vander(eps, 5, increasing=True), 10)
    with pytest.raises(QuadratureError, match="two grids"):
        sums.log_mean_moments(3)
    with pytest.raises(ValueError, match="num_samples"):
        sums.log_mean_moments(11)


def bound_of_two(x: float, loc: float, scale: float) -> float:
    """E log((w1 + w2) / 2) by Gauss-Legendre rules: for each eps1, panels of eps2 between the places where log w2 - log w1 takes
    given values, so that no kink and no step falls within one."""
    node, weight = np.polynomial.legendre.leggauss(30)
    curvature, slope = 0.5 - scale**2, scale * (x + PRIOR - 2 * loc)
    vertex = -slope / (2 * curvature)

    def log_w(eps: np.ndarray) -> np.ndarray:
        z = loc + scale * eps
        return normal(z, PRIOR, 1.0) + normal(x, z, 1.0) - normal(z, loc, scale**2)

    def panels(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ends = np.sort(np.clip(ends, -9, 9), axis=-1)
        half = np.diff(ends)[..., None] / 2
        eps = (ends[..., :-1, None] + half * (node + 1)).reshape(*ends.shape[:-1], -1)
        mass = (half * weight).reshape(eps.shape) * np.exp(-(eps**2) / 2) / math.sqrt(2 * math.pi)
        return eps, mass

    near = vertex + np.outer([-1, 1], [0, 0.3, 1, 2, 4]).ravel() / scale
    first, mass = panels(np.append(np.linspace(-9, 9, 37), near))
    steps = np.array([-40, -16, -8, -4, -2, -1, -0.5, 0, 0.5, 1, 2, 4, 8, 16, 40])
    root = np.sqrt(np.maximum((first[:, None] - vertex) ** 2 + steps / curvature, 0.0))
    fixed = np.tile(np.append(np.linspace(-9, 9, 13), vertex), (len(first), 1))
    second, masses = panels(np.concatenate([vertex - root, vertex + root, fixed], axis=1))
    both = np.logaddexp(log_w(first)[:, None], log_w(second)) - math.log(2)
    return float(mass @ (masses * both).sum(1))


STEEP = [(1.0, 0.4, 300.0), (1000.0, 0.4, 0.8), (-50.0, 0.4, 0.1)]


@pytest.mark.parametrize(("x", "loc", "scale"), STEEP)
def test_steep_weights(x: float, loc: float, scale: float) -> None:
    """Two samples by another quadrature, ten by Monte Carlo; derivatives by differences; and little time and memory for it."""
    problem = GaussianIWAE.unit_model(x, PRIOR, loc, math.log(scale))
    assert problem.bound(2).value == pytest.approx(bound_of_two(x, loc, scale), rel=1e-12)
    tracemalloc.start()
    start = time.process_time()
    gradient = problem.gradient(10)
    assert time.process_time() - start < 5
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()
    z = loc + scale * np.random.default_rng(7).standard_normal((100_000, 10))
    log_w = normal(z, PRIOR, 1.0) + normal(x, z, 1.0) - normal(z, loc, scale**2)
    values = np.logaddexp.reduce(log_w, axis=1) - math.log(10)
    assert abs(values.mean() - gradient["value"]) < 4.5 * values.std() / math.sqrt(len(values))
    below, above = (GaussianIWAE.unit_model(x, PRIOR, loc, math.log(scale) + h).bound(10).value for h in (-1e-4, 1e-4))
    assert gradient["log_scale"] == pytest.approx((above - below) / 2e-4, rel=1e-6)


def test_equal_steps_alone_have_covariances() -> None:
    with pytest.raises(QuadratureError, match="equal steps"):
        at(0.4, 30.0).sumo_moments(1.0 / np.arange(1, 4))
