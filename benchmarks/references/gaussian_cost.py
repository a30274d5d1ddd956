"""Expected costs E_q f(z) of one Gaussian q = N(mu, sigma^2), and exact variances of estimators of their gradients.

Means are closed forms. Variances are integrals over one or two numbers of noise, by rules that converge exponentially, and
closed forms beside them where there are any: each is tested against the other.

References:
    Mohamed, Rosca, Figurnov & Mnih (2020), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .self_normalized import QuadratureError

Array = NDArray[np.float64]
Function = Callable[[Array], Array]
COSTS = ("quadratic", "exp", "cos")
REACH = 14.0
"""Standard deviations over which noise is integrated; beyond lies less than 1e-43."""
SETTLED, ROUNDING = 1e-9, 1e-13
"""The part of a variance that twice as many nodes may change, and the part of the mean square."""
MOST_NODES = 2**22
"""Of all numbers of noise together."""


def trapezoid(points: int) -> tuple[Array, Array]:
    """Nodes and weights of an expectation over a standard normal: the uniform rule, which no smooth function resists."""
    x = np.linspace(-REACH, REACH, points)
    return x, np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi) * (x[1] - x[0])


def legendre(low: float, high: float, panels: int, nodes: int = 20) -> tuple[Array, Array]:
    """Nodes and weights of an integral from ``low`` to ``high``, panel by panel."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    edges = np.linspace(low, high, panels + 1)
    half = (edges[1] - edges[0]) / 2
    return (edges[:-1, None] + half * (x + 1)).ravel(), np.tile(half * w, panels)


@dataclass(frozen=True)
class GaussianCost:
    """f by its name and k, under N(mu, sigma^2): ``quadratic`` (z - k)^2, ``exp`` exp(-k z^2), ``cos`` cos(k z)."""

    cost: str
    k: float
    mu: float
    sigma: float

    def f(self, z: Array) -> Array:
        """The cost."""
        return {"quadratic": (z - self.k) ** 2, "exp": np.exp(-self.k * z**2), "cos": np.cos(self.k * z)}[self.cost]

    def slope(self, z: Array) -> Array:
        """f'."""
        k = self.k
        return {
            "quadratic": 2 * (z - k), "exp": -2 * k * z * np.exp(-k * z**2), "cos": -k * np.sin(k * z)
        }[self.cost]  # fmt: skip

    def curvature(self, z: Array) -> Array:
        """f''."""
        k = self.k
        return {
            "quadratic": np.full_like(z, 2.0),
            "exp": (4 * k**2 * z**2 - 2 * k) * np.exp(-k * z**2),
            "cos": -(k**2) * np.cos(k * z),
        }[self.cost]

    def gradient(self) -> dict[str, float]:
        """E f as ``value`` and its derivatives with respect to ``k``, ``loc`` and ``scale``, in closed form."""
        k, mu, sigma = self.k, self.mu, self.sigma
        if self.cost == "quadratic":
            return {"value": (mu - k) ** 2 + sigma**2, "k": -2 * (mu - k), "loc": 2 * (mu - k), "scale": 2 * sigma}
        if self.cost == "exp":
            s = 1 + 2 * k * sigma**2
            value = math.exp(-k * mu**2 / s) / math.sqrt(s)
            return {
                "value": value,
                "k": -value * (sigma**2 / s + mu**2 / s**2),
                "loc": -2 * k * mu / s * value,
                "scale": value * 4 * k * sigma * (k * mu**2 / s**2 - 0.5 / s),
            }
        damping = math.exp(-0.5 * k**2 * sigma**2)
        cosine, sine = math.cos(k * mu) * damping, math.sin(k * mu) * damping
        return {
            "value": cosine,
            "k": -mu * sine - k * sigma**2 * cosine,
            "loc": -k * sine,
            "scale": -(k**2) * sigma * cosine,
        }

    def variance(self, estimator: str, parameter: str) -> float:
        """Of one single-sample estimate with respect to ``loc`` or ``scale``, by quadrature.

        Arguments:
            estimator: ``score``, ``optimal-baseline`` (the best constant for this parameter), ``pathwise``,
                ``total-derivative`` (pathwise minus the score), ``bonnet-price`` or ``measure-valued`` (coupled).

        Raises:
            QuadratureError: where the cost is so steep that no rule that can be summed settles.
        """
        before, finer = math.nan, 1
        while finer <= 2**10:
            if estimator == "measure-valued":
                square = self._loc_square(finer) if parameter == "loc" else self._scale_square(finer)
                found = square - self.gradient()[parameter] ** 2
            else:
                found, square = self._variance(estimator, parameter, finer)
            # Not to be turned round: the first has none before it.
            if abs(found - before) <= SETTLED * found + ROUNDING * square:
                return found
            before, finer = found, 2 * finer
        raise QuadratureError(f"{self.cost} costs, k = {self.k:g}, sigma = {self.sigma:g}: {estimator} has not settled")

    def _variance(self, estimator: str, parameter: str, finer: int) -> tuple[float, float]:
        """And the mean square; with so many times more nodes."""
        eps, w = trapezoid(2800 * finer + 1)
        z = self.mu + self.sigma * eps
        score = {"loc": eps, "scale": eps**2 - 1}[parameter] / self.sigma
        f = self.f(z)
        along = {"loc": 1.0, "scale": eps}[parameter]
        estimate = {
            "score": lambda: f * score,
            "optimal-baseline": lambda: (f - (w @ (f * score**2)) / (w @ score**2)) * score,
            "pathwise": lambda: self.slope(z) * along,
            "total-derivative": lambda: self.slope(z) * along - score,
            "bonnet-price": lambda: self.slope(z) if parameter == "loc" else self.sigma * self.curvature(z),
        }[estimator]()
        return float(w @ (estimate - w @ estimate) ** 2), float(w @ estimate**2)

    def _loc_square(self, finer: int) -> float:
        """E of the squared difference over a Weibull (Rayleigh) number, density r exp(-r^2 / 2)."""
        r, w = legendre(0.0, REACH, 28 * finer)
        difference = self.f(self.mu + self.sigma * r) - self.f(self.mu - self.sigma * r)
        return float((w * r * np.exp(-0.5 * r**2)) @ difference**2) / (2 * math.pi * self.sigma**2)

    def _scale_square(self, finer: int) -> float:
        """E of the squared difference over a double-sided Maxwell number m, and u m with u uniform; not a number where there
        are too many nodes."""
        m, w = trapezoid(1400 * finer + 1)
        u, v = legendre(0.0, 1.0, panels=8 * finer)
        if len(m) * len(u) > MOST_NODES:
            return math.nan
        difference = self.f(self.mu + self.sigma * m)[:, None] - self.f(self.mu + self.sigma * m[:, None] * u)
        return float((w * m**2) @ difference**2 @ v) / self.sigma**2

    def closed_variance(self, estimator: str, parameter: str) -> float | None:
        """The same in closed form, where there is one."""
        a, sigma = self.mu - self.k, self.sigma
        if self.cost == "quadratic":
            c0, c1, c2 = a**2, 2 * a * sigma, sigma**2
            return {
                ("score", "loc"): ((c0 + 3 * c2) ** 2 + 2 * c1**2 + 6 * c2**2) / sigma**2,
                ("score", "scale"): (2 * (c0 + 5 * c2) ** 2 + 10 * c1**2 + 24 * c2**2) / sigma**2,
                ("optimal-baseline", "loc"): 8 * a**2 + 6 * sigma**2,
                ("optimal-baseline", "scale"): 40 * a**2 + 24 * sigma**2,
                ("pathwise", "loc"): 4 * sigma**2,
                ("pathwise", "scale"): 4 * a**2 + 8 * sigma**2,
                ("bonnet-price", "loc"): 4 * sigma**2,
                ("bonnet-price", "scale"): 0.0,
                ("measure-valued", "loc"): a**2 * (16 / math.pi - 4),
                ("measure-valued", "scale"): 4 * a**2 + 4 * sigma**2,
            }.get((estimator, parameter))
        power = self._fourier_power() if self.cost == "cos" else self._tilted_power()
        mean = self.gradient()[parameter]
        square = {
            ("score", "loc"): power(0, 2) / sigma**2,
            ("score", "scale"): (power(0, 4) - 2 * power(0, 2) + power(0, 0)) / sigma**2,
            ("pathwise", "loc"): power(1, 0),
            ("pathwise", "scale"): power(1, 2),
            ("bonnet-price", "loc"): power(1, 0),
        }.get((estimator, parameter))
        return None if square is None else square - mean**2

    def _fourier_power(self) -> Callable[[int, int], float]:
        """E [f^2 eps^n] or E [f'^2 eps^n] of a cosine: squares are cosines of twice the frequency."""
        k, b = self.k, 2 * self.k * self.sigma

        def power(derivative: int, n: int) -> float:
            plain = {0: 1.0, 2: 1.0, 4: 3.0}[n]
            # E [cos(2 k mu + b eps) eps^n] by derivatives of exp(-b^2 / 2) in b
            waving = (
                {0: 1.0, 2: 1 - b**2, 4: 3 - 6 * b**2 + b**4}[n] * math.exp(-0.5 * b**2) * math.cos(2 * k * self.mu)
            )
            return 0.5 * (plain + waving) if derivative == 0 else 0.5 * k**2 * (plain - waving)

        return power

    def _tilted_power(self) -> Callable[[int, int], float]:
        """The same of exp(-k z^2): its square times q is a Gaussian again, N(m, v) in eps times a number."""
        k, mu, sigma = self.k, self.mu, self.sigma
        s = 1 + 4 * k * sigma**2
        mass, m, v = math.exp(-2 * k * mu**2 / s) / math.sqrt(s), -4 * k * mu * sigma / s, 1 / s
        moments = [1.0, m]
        for n in range(2, 7):
            moments.append(m * moments[n - 1] + (n - 1) * v * moments[n - 2])

        def power(derivative: int, n: int) -> float:
            if derivative == 0:
                return mass * moments[n]
            z_squared = mu**2 * moments[n] + 2 * mu * sigma * moments[n + 1] + sigma**2 * moments[n + 2]
            return 4 * k**2 * mass * z_squared

        return power
