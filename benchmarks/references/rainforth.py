"""Exact bounds, gradients and signal-to-noise ratios of the Gaussian toy of Rainforth et al. 2018, for any K.

    z ~ N(theta, I),  x|z ~ N(z, I),  q(z|x) = N(A x + b, g I),  x and z in R^D,  g = 2/3 in the paper

The posterior is N((theta + x)/2, I/2). Per data point let delta = A x + b - (theta + x)/2 and rho = 2 g. With
z = A x + b + sqrt(g) eps,

    log r = D/2 log rho - |delta|^2 - 2 sqrt(g) delta'eps + (1 - rho)/2 |eps|^2
          = constant + (1 - rho)/2 |eps + e0|^2,   e0 = 2 sqrt(g) delta / (rho - 1),

so r depends on the radius R = |eps + e0| alone, a noncentral chi variable; given R the direction is von Mises-Fisher
around delta: one-dimensional quadrature (`self_normalized`). By symmetry the gradient wrt b of one point has mean
kappa delta and covariance v_par dd' + v_perp (I - dd'), d = delta/|delta|, where kappa, v_par and v_perp are smooth
functions of |delta|^2; they are interpolated (Chebyshev) over the range of the data. Gradients wrt A are those wrt b
times x', and the model gradient is (x - theta)/2 - g_b/2 with g_b the IWAE gradient, sample by sample.

References: Rainforth et al. 2018, Tighter variational bounds are not necessarily better; Tucker et al. 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .self_normalized import QuadratureError, SelfNormalizedSums, budget, sample_step

Array = NDArray[np.float64]

POWERS = {"iwae": (1, "total"), "stl": (1, "path"), "dreg": (2, "path")}
TARGETS = ("elbo", "log_marginal", "forward_kl", "sleep")
LARGEST_ORDER = 128
TOLERANCE = 1e-7  # between interpolants of order n/2 and n; that of order n is then far better


class Block(NamedTuple):
    """Exact moments of one block of a gradient estimate. mean and variance: shape of the parameter, per coordinate."""

    mean: Array
    variance: Array

    @property
    def trace(self) -> float:
        """Trace of the covariance: variance summed over coordinates."""
        return float(self.variance.sum())

    @property
    def snr(self) -> float:
        """|mean|_2 / sqrt(trace)."""
        return float(np.linalg.norm(self.mean) / math.sqrt(self.trace))

    @property
    def coordinate_snr(self) -> float:
        """Mean over coordinates of |mean| / standard deviation, the figure of Rainforth et al."""
        return float(np.mean(np.abs(self.mean) / np.sqrt(self.variance)))


@dataclass(frozen=True, eq=False)
class Rainforth:
    """The toy problem at one parameter value; every quantity is the mean over the N points, each with its own noise.

    Arguments:
        x: data, shape (N, D).
        theta: prior mean, shape (D,).
        weight, bias: A (D, D) and b (D,) of the guide's mean A x + b.
        variance: g, the guide's variance; anything but 1/2, where the log weight is linear in eps.
        max_num_samples: largest K asked for; tables are built once for all K up to it.

    Example:
        >>> x = np.array([[0.5, -1.0], [1.5, 0.0]])
        >>> toy = Rainforth(x, theta=np.zeros(2), weight=0.4 * np.eye(2), bias=np.zeros(2))
        >>> toy.elbo() < toy.bound(10) < toy.log_marginal()
        True
    """

    x: Array
    theta: Array
    weight: Array
    bias: Array
    variance: float = 2.0 / 3.0
    max_num_samples: int = 1000
    _tables: dict[float, SelfNormalizedSums] = field(default_factory=dict, init=False, repr=False)
    _curves: dict[int, Array] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if abs(self.variance - 0.5) < 1e-3:
            raise ValueError("variance must differ from 1/2: the radius |eps + e0| is infinite there")

    @property
    def rho(self) -> float:
        """Guide variance over posterior variance, 4/3 in the paper: above one, the weights are bounded."""
        return 2.0 * self.variance

    @property
    def delta(self) -> Array:
        """Guide mean minus posterior mean, shape (N, D)."""
        return self.x @ self.weight.T + self.bias - (self.theta + self.x) / 2.0

    def log_marginal(self) -> float:
        """Mean of log N(x; theta, 2 I)."""
        squares = np.sum((self.x - self.theta) ** 2, axis=1)
        return float(np.mean(-squares / 4.0) - len(self.theta) / 2.0 * math.log(4.0 * math.pi))

    def elbo(self) -> float:
        """log_marginal - KL(q || posterior), KL = |delta|^2 + D/2 (rho - 1 - log rho)."""
        kl = np.sum(self.delta**2, axis=1) + len(self.theta) / 2.0 * (self.rho - 1.0 - math.log(self.rho))
        return self.log_marginal() - float(np.mean(kl))

    def forward_kl(self) -> float:
        """Mean of -KL(posterior || q), KL = |delta|^2/(2 g) + D/2 (1/rho - 1 + log rho)."""
        spread = np.sum(self.delta**2, axis=1) / (2.0 * self.variance)
        return -float(np.mean(spread)) - len(self.theta) / 2.0 * (1.0 / self.rho - 1.0 + math.log(self.rho))

    def sleep(self) -> float:
        """E log q(z|x) over z and x of the model. z - A x - b has mean m = (I - A) theta - b, and the square of its
        length the mean |m|^2 + |I - A|^2 + |A|^2, of the prior's and the likelihood's noise."""
        D = len(self.theta)
        square = np.sum(self._dream_mean**2) + np.sum((np.eye(D) - self.weight) ** 2) + np.sum(self.weight**2)
        return -D / 2.0 * math.log(2.0 * math.pi * self.variance) - float(square) / (2.0 * self.variance)

    @property
    def _dream_mean(self) -> Array:
        return self.theta - self.weight @ self.theta - self.bias

    def gradient(self, target: str) -> dict[str, float | Array]:
        """Closed-form value and gradients of elbo, log_marginal, forward_kl or sleep: keys value, weight, bias, theta.

        The phi gradients of log_marginal are zero; forward_kl and sleep have no theta gradient.
        """
        if target not in TARGETS:
            raise ValueError(f"unknown target {target!r}; known: {', '.join(TARGETS)}")
        if target == "sleep":
            mean, D = self._dream_mean, len(self.theta)
            slope_weight = (np.outer(mean, self.theta) + np.eye(D) - 2.0 * self.weight) / self.variance
            return {"value": self.sleep(), "weight": slope_weight, "bias": mean / self.variance}
        delta, count = self.delta, len(self.x)
        slope = {"elbo": -2.0, "log_marginal": 0.0, "forward_kl": -1.0 / self.variance}[target]
        result = {"value": getattr(self, target)(), "weight": slope * delta.T @ self.x / count}
        result["bias"] = slope * delta.mean(axis=0)
        if target == "log_marginal":
            result["theta"] = np.mean(self.x - self.theta, axis=0) / 2.0
        elif target == "elbo":
            result["theta"] = np.mean((self.x - self.theta) / 2.0 + delta, axis=0)
        return result

    def bound(self, num_samples: int) -> float:
        """L_K, mean over the data."""
        return self.log_marginal() + float(self._per_point(num_samples)[0].mean())

    def bound_gradient(self, num_samples: int) -> dict[str, float | Array]:
        """Gradient of L_K: keys value, weight, bias, theta; means of the DReG form, which does not cancel."""
        blocks = self.moments("dreg", num_samples)
        return {"value": self.bound(num_samples)} | {name: blocks[name].mean for name in ("weight", "bias", "theta")}

    def moments(self, estimator: str, num_samples: int) -> dict[str, Block]:
        """Mean and per-coordinate variance of one estimate: keys weight, bias, phi (both, flat) and theta.

        Arguments:
            estimator: iwae, stl (biased for K > 1) or dreg. The model gradient sum_k w_k (z_k - theta) is the same.
            num_samples: K.
        """
        if estimator not in POWERS:
            raise ValueError(f"unknown estimator {estimator!r}; known: {', '.join(POWERS)}")
        curves = self._per_point(num_samples)
        gradient, variance = self._bias_moments(curves, estimator)
        count = len(self.x)
        weight = Block(gradient.T @ self.x / count, variance.T @ self.x**2 / count**2)
        bias = Block(gradient.mean(axis=0), variance.sum(axis=0) / count**2)
        phi = Block(*(np.concatenate([w.ravel(), b]) for w, b in zip(weight, bias, strict=True)))
        # the mean from DReG, equal and more accurate; the variance is that of the IWAE gradient over four
        mean = np.mean((self.x - self.theta) / 2.0 - self._bias_moments(curves, "dreg")[0] / 2.0, axis=0)
        theta = Block(mean, self._bias_moments(curves, "iwae")[1].sum(axis=0) / count**2 / 4.0)
        return {"weight": weight, "bias": bias, "phi": phi, "theta": theta}

    def _bias_moments(self, curves: Array, estimator: str) -> tuple[Array, Array]:
        """Mean and variance of each point's gradient wrt b, shapes (N, D)."""
        kappa, parallel, perpendicular = curves[1 + 3 * list(POWERS).index(estimator) :][:3]
        delta = self.delta
        share = delta**2 / np.maximum(np.sum(delta**2, axis=1, keepdims=True), 1e-300)
        variance = parallel[:, None] * share + perpendicular[:, None] * (1.0 - share)
        return kappa[:, None] * delta, variance

    def _per_point(self, num_samples: int) -> Array:
        """Rows L_K - log p(x), then kappa, v_par, v_perp of each estimator; columns the N points."""
        if num_samples not in self._curves:
            self._curves[num_samples] = self._interpolate(num_samples)
        return self._curves[num_samples]

    def _interpolate(self, num_samples: int) -> Array:
        """Chebyshev-Lobatto interpolation in |delta|^2, of doubled order until two interpolants agree."""
        squares = np.sum(self.delta**2, axis=1)
        low, high = max(squares.min(), 1e-8), max(squares.max(), 1e-8)  # kappa needs |delta| > 0
        if high - low <= 1e-12 * high:
            return np.repeat(self._at(low, num_samples)[:, None], len(squares), axis=1)
        position = np.clip((2.0 * squares - low - high) / (high - low), -1.0, 1.0)
        order, previous = 8, None
        while order <= LARGEST_ORDER:
            nodes = np.cos(np.pi * np.arange(order + 1) / order)  # nested: tables are reused
            values = np.array([self._at((low + high + (high - low) * node) / 2.0, num_samples) for node in nodes])
            interpolant = np.polynomial.chebyshev.chebfit(nodes, values, order)
            result = np.polynomial.chebyshev.chebval(position, interpolant)
            if previous is not None:
                scale = np.abs(values).max(axis=0)[:, None] + 1e-12
                if np.abs((result - previous) / scale).max() < TOLERANCE:
                    return result
            order, previous = 2 * order, result
        raise QuadratureError(f"|delta|^2 from {low:.3g} to {high:.3g} is too wide to interpolate at K={num_samples}")

    def _at(self, square: float, num_samples: int) -> Array:
        """The rows of `_per_point` at one |delta|^2, shape (10,)."""
        square = float(f"{square:.15e}")
        if square not in self._tables:
            self._tables[square] = self._build(math.sqrt(square))
        sums, length = self._tables[square], math.sqrt(square)
        rows = [sums.log_mean_moments(num_samples)[0].value]
        scale = math.sqrt(self.variance)
        for power, kind in POWERS.values():
            # derivative wrt b: total -(delta + scale eps)/s^2, path also + eps/scale; along delta and across
            a, slope = -2.0 * length, -2.0 * scale + (1.0 / scale if kind == "path" else 0.0)
            along = np.array([a, slope, 0.0, 0.0])
            mean = sums.mean(num_samples, power, along).value
            square_along = np.array([a**2, 2.0 * a * slope, slope**2, 0.0])
            second = sums.product(num_samples, (power, power), along, along, square_along).value
            none = np.zeros(4)
            across = sums.product(num_samples, (power, power), none, none, np.array([0.0, 0.0, 0.0, slope**2])).value
            rows += [mean / length, second - mean**2, across]
        return np.array(rows)

    def _build(self, length: float) -> SelfNormalizedSums:
        """Table for |delta| = length; features 1, E u, E u^2 and E eps_perp^2 per coordinate, given R; u = eps'd.

        R has density R^(D-1) exp(-(R-k)^2/2) ive(D/2-1, kR) / (kR)^(D/2-1), k = |e0|. The grid is uniform in y with
        R = log(1 + e^y): linear where R is large, and without the boundary at R = 0.
        """
        from scipy.special import ive  # late: what only lists problems need not wait for it

        dimension, rho = len(self.theta), self.rho
        centre = 2.0 * math.sqrt(self.variance) * length / (rho - 1.0)  # e0'd, of the sign of rho - 1
        size = abs(centre)

        def log_density(y: Array) -> Array:
            radius = np.logaddexp(0.0, y)
            argument = size * radius
            bessel = ive(dimension / 2.0 - 1.0, argument)
            power = (dimension / 2.0 - 1.0) * np.log(argument)
            series = -math.lgamma(dimension / 2.0) - (dimension / 2.0 - 1.0) * math.log(2.0) - argument
            with np.errstate(divide="ignore"):
                shape = np.where(argument > 1e-5, np.log(bessel) - power, series)
            jacobian = -np.logaddexp(0.0, -y)
            return (dimension - 1.0) * np.log(radius) + jacobian - (radius - size) ** 2 / 2.0 + shape

        cut = budget(self.max_num_samples)
        largest = size + math.sqrt(dimension) + math.sqrt(2.0 * cut) + 2.0
        probe = np.linspace(-cut / dimension - 7.0, largest, 20001)
        density = log_density(probe)
        inside = np.flatnonzero(density > density.max() - cut - 5.0)
        low, high = probe[inside[0]], probe[inside[-1]]
        slope = np.abs(rho - 1.0) * np.logaddexp(0.0, probe[inside])
        mass = np.exp(density - density.max())
        spread = math.sqrt(np.average((probe - np.average(probe, weights=mass)) ** 2, weights=mass))
        step = min(sample_step(slope, density[inside], self.max_num_samples), 0.3 * spread)
        y = np.linspace(low, high, 2 * math.ceil((high - low) / step / 2.0) + 1)
        density, radius = log_density(y), np.logaddexp(0.0, y)
        log_ratio = dimension / 2.0 * math.log(rho) - length**2 + (1.0 - rho) / 2.0 * (radius**2 - centre**2)
        argument = size * radius
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = ive(dimension / 2.0, argument) / ive(dimension / 2.0 - 1.0, argument)  # E cos given R
        cosine = np.where(argument > 1e-5, cosine, argument / dimension)
        across = np.where(argument > 1e-5, cosine / argument, 1.0 / dimension)  # E sin^2 per perpendicular coordinate
        along = 1.0 - (dimension - 1.0) * across  # E cos^2
        first = math.copysign(1.0, centre) * radius * cosine
        square = radius**2 * along - 2.0 * centre * first + centre**2
        features = np.stack([np.ones_like(y), first - centre, square, radius**2 * across], axis=1)
        return SelfNormalizedSums(log_ratio, np.exp(density - density.max()), features, self.max_num_samples)
