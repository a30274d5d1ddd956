"""Exact importance-weighted bounds in D dimensions: log-weights that are a quadratic form in normal noise.

For a linear Gaussian model and a diagonal Gaussian guide, with z = loc + S eps and the posterior N(m, P^-1),

    log r = log w - log p(x) = k + c'eps + eps'M eps,   c = S P (m - loc),   M = (I - S P S)/2,

and in the eigenbasis eps = U eta of M, with eigenvalues l_d and b = U'c, log r = k + sum_d b_d eta_d + l_d eta_d^2. Its law
is a generalised chi-square. Under the tilt r^-u, which may be complex, the eta_d stay independent and normal:

    E r^-u = e^(-u k) prod_d v_d^(1/2) exp(u^2 b_d^2 v_d / 2),   v_d = 1/(1 + 2 u l_d),   mean of eta_d: -u b_d v_d.

So E[r^-u f] is known for every polynomial f of eps, and the Laplace transforms that `self_normalized` asks for are
Mellin-Barnes integrals of it (`quadratic_moments` has those of variances),

    E[(t r)^p f exp(-t r)] = (2 pi i)^-1 int Gamma(u + p) t^-u E[r^-u f] du,   -p < Re u < 1/(2 max -l_d),

with -Gamma(u) and -1 < Re u < 0 giving 1 - E exp(-t r). The integrand is analytic and falls as exp(-pi |Im u| / 2): the
trapezoid rule converges exponentially in 1/step. For t <= 1 the line is Re u = -1/2, for t > 1 one to the right of
zero, so that t^-u is never large. Every integral is also computed with both steps doubled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from .linear_gaussian import LinearGaussian
from .self_normalized import LOG_T_STEP, Level, QuadratureError, SelfNormalizedSums, budget

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]
Features = Callable[[Complex, Complex], Complex]
"""From means and variances of eta under a tilt, each ``(U, D)``, to the expectations of F functions of it, ``(U, F)``."""

HEIGHT = 27.0  # |Gamma(u + 1)| at Im u = 27 is below 1e-17 of what it is at zero
HIGHER = 2.0  # and |Gamma(u + p)| at so much more for each p above 1
ALIAS = 38.0  # -log of the neglected images of the integrand, one period of the trapezoid rule away, for K = 1
MOST_NODES = 60_000
MOST_NUMBERS = 2**24
"""Of the transforms, values of t times features and powers: 128 MiB of each grid."""
AT_ONCE = 2**20
"""Numbers of the integrand, nodes times features and powers: 16 MiB of each array of them."""
BLOCK = 64
LEFT = -0.5


def monomials(mean: Complex, spread: Complex) -> Complex:
    """Features 1, eta_d, and eta_d eta_e for d <= e, in that order."""
    first, second = np.triu_indices(mean.shape[1])
    pairs = mean[:, first] * mean[:, second] + np.where(first == second, spread[:, first], 0.0)
    return np.concatenate([np.ones((len(mean), 1)), mean, pairs], axis=1)


@dataclass(frozen=True)
class QuadraticForm:
    """log r = constant + linear'eta + sum_d curvature_d eta_d^2, eta standard normal in D dimensions.

    Arguments:
        constant: k. linear: b, shape (D,). curvature: l, shape (D,), below 1/2.
    """

    constant: float
    linear: tuple[float, ...]
    curvature: tuple[float, ...]

    @cached_property
    def _arrays(self) -> tuple[Array, Array]:
        return np.array(self.linear), np.array(self.curvature)

    def log_moment(self, power: float) -> float:
        """log E r^power; infinite where the moment does not exist."""
        b, curvature = self._arrays
        inverse = 1.0 - 2.0 * power * curvature
        if inverse.min() <= 0.0:
            return math.inf
        return float(power * self.constant + np.sum(power**2 * b**2 / inverse - np.log(inverse)) / 2.0)

    @cached_property
    def right(self) -> float:
        """Re u of the line for t > 1. The integrand must be of moderate size up to twice that; at the strip's end it is not."""
        line = min(1.0, 0.5 / max(-min(self.curvature), 1e-300)) / 3.0
        while self.log_moment(-2.0 * line) > 5.0 and line > 1e-4:
            line /= 1.5
        return line

    def reach(self) -> float:
        """log t beyond which E exp(-t r) is negligible, by Chernoff's bound over Re u."""
        strip = min(50.0, 0.5 / max(-min(self.curvature), 1e-300))
        lines = strip * np.linspace(0.02, 0.98, 60)
        return float(min((self.log_moment(-u) + 40.0 + math.lgamma(u)) / u for u in lines))

    def transforms(
        self, log_t: Array, line: float, step: float, features: Features, powers: Sequence[int]
    ) -> tuple[Array, list[Array]]:
        """Along a line Re u, at t (T,): E exp(-t r), less one where the line is left of zero, shape (T,); and for each power
        p E[(t r)^p f exp(-t r)] for all features f, shape (T, F)."""
        height = HEIGHT + HIGHER * (max(powers) - 1)
        nodes: Complex = line + 1j * step * np.arange(math.ceil(height / step) + 1)  # the other half is its conjugate
        table = np.zeros((len(log_t), self._columns(features, powers)))
        for u in np.array_split(nodes, math.ceil(len(nodes) * table.shape[1] / AT_ONCE)):
            values = self._integrand(u, features, powers) * step / np.pi
            values[u == line] /= 2.0
            # The grid is uniform: t^-u of a block of rows is that of its first row times that of the first block.
            block = np.exp(-(log_t[:BLOCK, None] - log_t[:1, None]) * u)
            # Real parts alone are asked for: half of the work.
            parts = np.concatenate([block.real, -block.imag], axis=1)
            for start in range(0, len(log_t), BLOCK):
                rows, right = table[start : start + BLOCK], np.exp(-log_t[start] * u)[:, None] * values
                rows += parts[: len(rows)] @ np.concatenate([right.real, right.imag])
        return table[:, 0], np.split(table[:, 1:], len(powers), axis=1)

    def _columns(self, features: Features, powers: Sequence[int]) -> int:
        """Of the integrand: Gamma(u) alone, and the features for each power."""
        probe: Complex = np.ones((1, len(self.linear)), dtype=np.complex128)
        return 1 + len(powers) * features(probe, probe).shape[1]

    def _integrand(self, u: Complex, features: Features, powers: Sequence[int]) -> Complex:
        """Gamma(u) E r^-u, and Gamma(u + p) E[r^-u f] for each power p and all features f; shape (U, 1 + P F)."""
        from scipy.special import gamma  # late: what only lists problems need not wait for it

        b, curvature = self._arrays
        spread = 1.0 / (1.0 + 2.0 * u[:, None] * curvature)
        mean = -u[:, None] * b * spread
        # The product of square roots, each on its principal branch: 1 + 2 u l has a positive real part within the strip.
        moment = np.exp(-u * self.constant + (u[:, None] ** 2 * b**2 * spread + np.log(spread)).sum(1) / 2.0)
        expected = features(mean, spread)
        return np.concatenate(
            [(moment * gamma(u))[:, None], *((moment * gamma(u + p))[:, None] * expected for p in powers)], axis=1
        )

    def sums(
        self, max_num_samples: int, features: Features = monomials, powers: Sequence[int] = (1,)
    ) -> SelfNormalizedSums:
        """Moments of self-normalised sums of these features, for weights to these powers.

        Raises:
            QuadratureError: where the integrals take too many nodes, or their values too much memory.
        """
        # How far the lines may move either way: to the poles of Gamma at 0 and -1, and to twice the right one.
        alias = ALIAS + 1.5 * math.log(max_num_samples)  # the images do not fall with t, and are met K times
        steps = (2.0 * np.pi * 0.5 / alias, 2.0 * np.pi * self.right / alias)
        if HEIGHT / steps[1] > MOST_NODES:
            nodes = f"its integrals take {HEIGHT / steps[1]:.2g} nodes, and {MOST_NODES} are the most"
            raise QuadratureError(f"the guide is too wide, or too far off: {nodes}")
        low, high = -budget(max_num_samples), max(5.0, self.reach())
        numbers = (high - low) / LOG_T_STEP * self._columns(features, powers)
        if numbers > MOST_NUMBERS:
            raise QuadratureError(f"the transforms take {numbers:.2g} numbers, and {MOST_NUMBERS:.2g} are the most")
        log_t = np.arange(low, high, LOG_T_STEP)
        levels = []
        for stride in (1, 2):
            width = stride / 2.0  # half the step that is enough, so that the coarse grid is good, too
            grid = log_t[::stride]
            left = grid <= 0.0
            below, of_below = self.transforms(grid[left], LEFT, steps[0] * width, features, powers)
            above, of_above = self.transforms(grid[~left], self.right, steps[1] * width, features, powers)
            complement, phi = np.concatenate([-below, 1.0 - above]), np.concatenate([1.0 + below, above])
            small = np.log1p(-np.minimum(complement, 0.5))
            log_phi = np.where(complement < 0.5, small, np.log(np.maximum(phi, 1e-300)))
            found = {p: np.concatenate(both) for p, *both in zip(powers, of_below, of_above, strict=True)}
            levels.append(Level(stride * LOG_T_STEP, grid, log_phi, found))
        # The transforms have an absolute error near rounding, and are met K times.
        return SelfNormalizedSums.tabulated(levels[0], levels[1], max_num_samples, 1e-13 + 1e-15 * max_num_samples)


def form_of(problem: LinearGaussian, point: int) -> tuple[QuadraticForm, Array]:
    """log r of one data point in the eigenbasis of its curvature, and that basis U (D, D): eps = U eta."""
    precision, scale = problem._precision, np.sqrt(problem._data[2][point])
    delta, pull = problem._data[1][point] - problem._posterior_mean[point], problem._pull[point]
    curvature, basis = np.linalg.eigh((np.eye(len(scale)) - scale[:, None] * precision * scale) / 2.0)
    linear = basis.T @ (scale * pull)
    constant = 0.5 * (problem._log_det + delta @ pull) + float(np.log(scale).sum())
    return QuadraticForm(float(constant), tuple(linear.tolist()), tuple(curvature.tolist())), basis


@lru_cache(maxsize=16)  # of up to 200 MiB each
def tables(form: QuadraticForm, max_num_samples: int) -> SelfNormalizedSums:
    """:meth:`QuadraticForm.sums` of the monomials, kept for the next who asks."""
    return form.sums(max_num_samples)


def iwae_gradient(problem: LinearGaussian, num_samples: int) -> dict[str, float | Array]:
    """L_K = E log (1/K) sum_k w_k, averaged over the data, and its gradient, for any K.

    The gradient is E sum_k w~_k (d log w_k), the derivative of log w at fixed eps, a polynomial of degree two.

    Keys: value, error (of the value, the grids' difference), weight, bias, log_noise_scale, prior_loc, loc, log_scale.
    """
    x, locs, variances = problem._data
    precision, pulls, log_marginals = problem._precision, problem._pull, problem._log_marginals
    count, n = len(x), len(problem.bias)
    noise = float(np.exp(2.0 * problem.log_noise_scale))
    value = error = log_noise_scale = 0.0
    weight, bias = np.zeros_like(problem.weight), np.zeros(n)
    prior_loc, loc, log_scale = np.zeros(locs.shape[1]), np.zeros_like(locs), np.zeros_like(locs)
    for point in range(count):
        scale, pull = np.sqrt(variances[point]), pulls[point]
        curved = scale[:, None] * precision * scale
        form, basis = form_of(problem, point)
        sums = tables(form, num_samples)
        log_mean = sums.log_mean(num_samples)
        value += (log_marginals[point] + log_mean.value) / count
        error += log_mean.error / count
        first, second = weighted_moments(sums, num_samples, basis)
        # Weighted means of z and z z' (z = loc + S eps), under normalised weights.
        slope = pull - precision @ (scale * first)  # of d log p(x, z)/dz = -P (z - m)
        loc[point] = slope / count
        log_scale[point] = (1.0 + scale * pull * first - np.diag(curved @ second)) / count
        z = locs[point] + scale * first
        zz = scale[:, None] * second * scale + np.outer(locs[point], z) + np.outer(z - locs[point], locs[point])
        rest = x[point] - problem.bias
        residual = rest - problem.weight @ z
        weight += (np.outer(rest, z) - problem.weight @ zz) / noise / count
        bias += residual / noise / count
        prior_loc += (z - problem.prior_loc) / count
        squares = rest @ rest - 2.0 * rest @ (problem.weight @ z) + np.sum((problem.weight @ zz) * problem.weight)
        log_noise_scale += (squares / noise - n) / count
    return {
        "value": float(value), "error": float(error), "weight": weight, "bias": bias,
        "log_noise_scale": float(log_noise_scale), "prior_loc": prior_loc,
        "loc": loc.reshape(problem.loc.shape), "log_scale": log_scale.reshape(problem.loc.shape),
    }  # fmt: skip


def weighted_moments(sums: SelfNormalizedSums, num_samples: int, basis: Array) -> tuple[Array, Array]:
    """E sum_k w~_k eps_k (D,) and E sum_k w~_k eps_k eps_k' (D, D)."""
    size = len(basis)
    found = sums.means(num_samples)
    if abs(found[0] - 1.0) > 1e-9:  # the normalised weights sum to one
        raise QuadratureError(f"the normalised weights sum to {found[0]:.12g}")
    second = np.zeros((size, size))
    second[np.triu_indices(size)] = found[1 + size :]
    second = second + np.triu(second, 1).T
    return basis @ found[1 : 1 + size], basis @ second @ basis.T
