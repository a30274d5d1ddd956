"""Exact moments of self-normalised sums of K independent weights, for any K, by Laplace transforms.

Let r_1..r_K be independent copies of a positive weight r with mean one, S their sum and w_k = r_k / S. Writing 1/S^p as
a gamma integral decouples the K samples: every moment below is one integral over t of one-sample expectations.
With phi(t) = E exp(-t r) and v = log t,

    E log(S/K)           = -int G dv,   E log^2(S/K) = int 2 (v + gamma) G dv,   G(v) = phi(e^v / K)^K - exp(-e^v)
    E sum_k w_k^p a_k    = K / Gamma(p) int A_p phi^(K-1) dv,   A_p(t) = E[(t r)^p a exp(-t r)]
    E (sum_k w_k^p a_k) (sum_k w_k^q b_k)
                         = 1 / Gamma(p+q) int {K E[(t r)^(p+q) a b exp(-t r)] phi^(K-1) + K (K-1) A_p B_q phi^(K-2)} dv

Both integrals (the sample and v) are trapezoid sums of analytic, rapidly decaying functions: they converge
exponentially in 1/step (Trefethen and Weideman 2014). Every integral is also computed with both steps doubled; the
difference is the error reported, and a result whose difference is large raises `QuadratureError`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

POWERS = (1, 2, 3, 4)  # of w_k, in the transforms: an estimator with w_k^2 has a second moment with w_k^4
LOG_T_STEP = 0.15  # exp(-exp(v)) is bounded for abs(Im v) < pi/2: error exp(-pi^2 / step), 5e-15 when doubled
STRIP = 0.8  # the part of that strip used when choosing a step: at its very edge the integrands no longer decay
BUDGET = 40.0  # -log of what may be neglected
TOLERANCE = 1e-6  # largest difference between the two grids; the fine grid's own error is about its square


class QuadratureError(ArithmeticError):
    """The two grids disagree: the exact value cannot be vouched for."""


class Exact(NamedTuple):
    """An exact number and the absolute difference between its two grids, a generous bound of its error."""

    value: float
    error: float


@dataclass(frozen=True)
class Level:
    """One grid. step of log_t, one or (V,); log_t (V,), log_phi (V,), transforms[p] (V, F): E[(t r)^p f_j exp(-t r)]."""

    step: float | Array
    log_t: Array
    log_phi: Array
    transforms: dict[int, Array]

    def phi_power(self, exponent: int) -> Array:
        """phi^exponent, shape (V,); one for exponent 0 even where phi underflows."""
        return np.exp(exponent * self.log_phi) if exponent > 0 else np.ones_like(self.log_phi)


def budget(max_num_samples: int) -> float:
    """-log of the probability that may be neglected: moments fall as fast as K^-3 and are K times a tail."""
    return BUDGET + 4.0 * math.log(max_num_samples)


def sample_step(slope: Array, log_density: Array, max_num_samples: int) -> float:
    """Trapezoid step of a sample coordinate y.

    Arguments:
        slope: |d log r / dy|, shape (E,).
        log_density: log of the density of y up to a constant, shape (E,).
        max_num_samples: largest K the grid is to serve.

    exp(-t r(y)) is bounded for |Im y| < pi / (2 slope), an error exp(-pi^2 / (step slope)) at that y; it is weighed by
    the density there, so that steep slopes in the tails cost little.
    """
    needed = budget(max_num_samples) - (log_density.max() - log_density)
    bound = STRIP * np.pi**2 / (np.maximum(slope, 1e-300) * np.maximum(needed, 1.0))
    return float(bound[needed > 0].min())


class SelfNormalizedSums:
    """Moments of sums of normalised weights, from a quadrature rule of one sample.

    Arguments:
        log_ratio: log r at the nodes of a uniform grid, shape (E,).
        weights: probabilities of the nodes, proportional to the density on that grid, shape (E,).
        features: functions f_j of the sample at the nodes, shape (E, F), or their conditional means given r.
        max_num_samples: largest K asked for.
    """

    def __init__(self, log_ratio: Array, weights: Array, features: Array, max_num_samples: int) -> None:
        self.max_num_samples, self.floor, self.centre = max_num_samples, 1e-13, 0.0
        coarse = np.zeros_like(weights)
        coarse[::2] = weights[::2]
        rules = [np.concatenate([w[:, None], w[:, None] * features], axis=1) / w.sum() for w in (weights, coarse)]
        self.fine, self.coarse = self._levels(log_ratio, np.concatenate(rules, axis=1))

    @classmethod
    def tabulated(
        cls, fine: Level, coarse: Level, max_num_samples: int, floor: float, centre: float = 0.0
    ) -> SelfNormalizedSums:
        """From transforms that were found otherwise than by a quadrature rule of one sample.

        Arguments:
            floor: their absolute error. centre: they are those of r exp(-centre), whose normalised weights are the same.
        """
        sums = cls.__new__(cls)
        sums.fine, sums.coarse = fine, coarse
        sums.max_num_samples, sums.floor, sums.centre = max_num_samples, floor, centre
        return sums

    def _levels(self, log_ratio: Array, rule: Array) -> tuple[Level, Level]:
        """Tabulate the transforms. rule (E, 2 (1 + F)): fine and coarse weights, alone and times each feature."""
        # t must reach from far below 1/(K E r) to far above 1/r_min
        lower = -budget(self.max_num_samples)
        log_t = np.arange(lower, max(5.0, 4.5 - log_ratio.min()), LOG_T_STEP)
        width = rule.shape[1]
        phi, complement = np.empty((len(log_t), width)), np.empty((len(log_t), width))
        transforms = {p: np.empty((len(log_t), width)) for p in POWERS}
        for start in range(0, len(log_t), 64):
            rows = slice(start, start + 64)
            self._fill(log_t[rows], log_ratio, rule, phi[rows], complement[rows], [transforms[p][rows] for p in POWERS])
        half = width // 2
        levels = []
        for offset, stride in ((0, 1), (half, 2)):
            one_minus, p0 = complement[::stride, offset], phi[::stride, offset]
            with np.errstate(divide="ignore"):  # log1p where phi is near one, log where it is small
                log_phi = np.where(one_minus < 0.5, np.log1p(-np.minimum(one_minus, 0.5)), np.log(p0))
            table = {p: transforms[p][::stride, offset + 1 : offset + half] for p in POWERS}
            levels.append(Level(stride * LOG_T_STEP, log_t[::stride], np.maximum(log_phi, -745.0), table))
        return levels[0], levels[1]

    def _fill(
        self, log_t: Array, log_ratio: Array, rule: Array, phi: Array, complement: Array, outputs: list[Array]
    ) -> None:
        """Transforms of a few rows t, leaving out the nodes where exp(-t r) is 0 or 1 to machine precision."""
        low = log_ratio < -50.0 - math.log(self.max_num_samples) - log_t[-1]
        kept = np.flatnonzero(~low & (log_ratio < 7.0 - log_t[0]))
        weights = rule[kept]
        y = np.exp(np.minimum(log_t[:, None] + log_ratio[kept], 7.0))  # exp(-e^7) is 0: no overflow, no nan
        decay = np.exp(-y)
        phi[:] = decay @ weights + rule[low].sum(axis=0)
        high = rule[log_ratio >= 7.0 - log_t[0]]
        complement[:] = -np.expm1(-y) @ weights + high.sum(axis=0)
        for output in outputs:
            decay *= y
            output[:] = decay @ weights

    def _integral(self, integrands: tuple[Array, Array], what: str) -> Exact:
        """Trapezoid sums over v on both grids, and their agreement relative to the integral of |integrand|."""
        fine, coarse = ((level.step * f).sum() for level, f in zip((self.fine, self.coarse), integrands, strict=True))
        size = (self.fine.step * np.abs(integrands[0])).sum()
        error = abs(fine - coarse)
        if not error <= TOLERANCE * max(size, 1e-300) + self.floor:
            raise QuadratureError(f"{what}: the two grids give {fine:.9g} and {coarse:.9g}")
        return Exact(float(fine), float(error))

    def _check(self, num_samples: int) -> None:
        if not 1 <= num_samples <= self.max_num_samples:
            raise ValueError(f"num_samples must lie in 1..{self.max_num_samples}, got {num_samples}")

    def log_mean(self, num_samples: int) -> Exact:
        """E log(S/K)."""
        fine, coarse = (-gap for _, gap in self._gaps(num_samples))
        centred = self._integral((fine, coarse), "E log")
        return Exact(self.centre + centred.value, centred.error)

    def log_mean_moments(self, num_samples: int) -> tuple[Exact, Exact]:
        """E log(S/K) and E log^2(S/K)."""
        fine, coarse = (2.0 * (scaled + np.euler_gamma) * gap for scaled, gap in self._gaps(num_samples))
        first, second = self.log_mean(num_samples), self._integral((fine, coarse), "E log^2")
        moved = self.centre * (2.0 * first.value - self.centre)
        return first, Exact(second.value + moved, second.error + 2.0 * abs(self.centre) * first.error)

    def _gaps(self, num_samples: int) -> list[tuple[Array, Array]]:
        """v and G(v) on both grids."""
        self._check(num_samples)
        found = []
        for level in (self.fine, self.coarse):
            scaled = level.log_t + math.log(num_samples)  # v of t = e^v / K, the table's own argument
            y = np.exp(np.minimum(scaled, 7.0))
            # G = e^-y (exp(K log phi + y) - 1), exact where both terms are near one
            excess = num_samples * level.log_phi + y
            with np.errstate(over="ignore"):
                near = np.exp(-y) * np.expm1(np.minimum(excess, 1.0))
            found.append((scaled, np.where(np.abs(excess) < 1.0, near, level.phi_power(num_samples) - np.exp(-y))))
        return found

    def mean(self, num_samples: int, power: int, a: Array) -> Exact:
        """E sum_k w_k^power a_k, a given by its coefficients (F,) of the features."""
        self._check(num_samples)
        scale = num_samples / math.gamma(power)
        terms = [
            scale * (level.transforms[power] @ a) * level.phi_power(num_samples - 1)
            for level in (self.fine, self.coarse)
        ]
        return self._integral((terms[0], terms[1]), f"mean, K={num_samples}, power {power}")

    def means(self, num_samples: int) -> Array:
        """E sum_k w_k f_k of every feature, shape (F,)."""
        self._check(num_samples)
        levels = (self.fine, self.coarse)
        weights = [num_samples * level.step * level.phi_power(num_samples - 1) for level in levels]
        fine, coarse = (w @ level.transforms[1] for w, level in zip(weights, levels, strict=True))
        room = TOLERANCE * (weights[0] @ np.abs(self.fine.transforms[1])) + self.floor
        if not (np.abs(fine - coarse) <= room).all():
            raise QuadratureError(f"means, K={num_samples}: the two grids differ by {np.abs(fine - coarse).max():.2g}")
        return fine

    def product(self, num_samples: int, powers: tuple[int, int], a: Array, b: Array, ab: Array) -> Exact:
        """E (sum_k w_k^p a_k)(sum_k w_k^q b_k); a, b and their product are coefficients (F,) of the features."""
        self._check(num_samples)
        p, q = powers
        terms = []
        for level in (self.fine, self.coarse):
            term = num_samples * (level.transforms[p + q] @ ab) * level.phi_power(num_samples - 1)
            if num_samples > 1:
                pairs = (level.transforms[p] @ a) * (level.transforms[q] @ b) * level.phi_power(num_samples - 2)
                term = term + num_samples * (num_samples - 1) * pairs
            terms.append(term / math.gamma(p + q))
        return self._integral((terms[0], terms[1]), f"second moment, K={num_samples}, powers {powers}")

    def log_mean_covariances(self, num_samples: int) -> Array:
        """Cov(log S_k/k, log S_n/n) for k = 1..n, n = num_samples, the k samples being the first of the n; shape (n,).

        With s = k e^a and t = n e^b:  int int phi(e^b)^(n-k) [phi(e^a + e^b)^k - phi(e^a)^k phi(e^b)^k] da db. phi of
        the sum is interpolated. The last entry is Var(log S_n/n), known from `log_mean_moments`: it is the check.
        """
        self._check(num_samples)
        log_t, log_phi = self.fine.log_t, self.fine.log_phi
        if np.ptp(self.fine.step) > 0.0:
            raise QuadratureError("covariances need equal steps of log t, and its range is too long for them")
        used = (log_phi > -45.0) & (log_t > -38.0 - math.log(num_samples))
        log_t, log_phi = log_t[used], log_phi[used]
        from scipy.interpolate import make_interp_spline  # half a second, which only this needs

        spline = make_interp_spline(log_t, np.log(-log_phi), k=7)
        v, value = log_t[::2], log_phi[::2]  # every other point: a product rule, its error 5e-15
        index = np.arange(len(v))
        joint = value[np.maximum(index[:, None], index)]  # e^a + e^b is the larger of them, but near the diagonal
        for offset in range(min(len(v), math.ceil(40.0 / (2 * LOG_T_STEP)))):
            near = v[offset:] + math.log1p(math.exp(-2 * LOG_T_STEP * offset))
            rows, columns = index[offset:], index[: len(v) - offset]
            joint[rows, columns] = joint[columns, rows] = -np.exp(spline(np.minimum(near, log_t[-1])))
        # the two sums share samples, so joint >= apart: no overflow
        apart = np.minimum(value[:, None] + value - joint, 0.0)
        result = np.empty(num_samples)
        for k in range(1, num_samples + 1):
            inner = -np.exp(k * joint) * np.expm1(k * apart)
            result[k - 1] = (2 * LOG_T_STEP) ** 2 * (inner @ np.exp((num_samples - k) * value)).sum()
        first, second = self.log_mean_moments(num_samples)
        variance = second.value - first.value**2
        if not abs(result[-1] - variance) <= TOLERANCE * variance + 1e-13:
            raise QuadratureError(
                f"Var log S, K={num_samples}: {result[-1]:.9g} in two dimensions, {variance:.9g} in one"
            )
        return result
