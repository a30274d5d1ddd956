"""The interval of a size that is seen with noise: of |b|, where b and noise are known by their sum alone; and of a ratio.

|b + e|^2 exceeds |b|^2 by the noise's own, and near zero that is all there is. What it is for a given |b| depends on how the
noise is spread over the coordinates: on tr(S), tr(S^2) and the variance along b, S the noise's covariance.
"""

from __future__ import annotations

import math

from scipy import optimize, special, stats
from torch import Tensor

Z95 = float(stats.norm.isf(0.025))
FAR = 1e4
"""Degrees of freedom, with non-centrality, from which a normal law stands for a chi-squared one."""
TOP = 37.0
"""Standard errors that are told apart: beyond, their probability has no number."""


def interval(
    squared: float, trace: float, square_trace: float, along: float, wider: float = 1.0
) -> tuple[float, float]:
    """95 % interval of |b| from ``squared`` = |b + e|^2, e normal with covariance S.

    For each size |b|, the law of |b + e|^2 is a multiple of a non-central chi-squared one that has its mean and variance
    (Satterthwaite's approximation; exact where S is a multiple of a projection that holds b). As |b| is not negative, sizes
    are tested by the ratio of likelihoods, so the interval is never empty and covers alike at zero and far from it.

    Arguments:
        trace: tr(S), positive. square_trace: tr(S^2), at most tr(S)^2. along: variance of e along b + e.
        wider: factor on all errors, for what is not known of S.

    References:
        Feldman & Cousins (1998), section IV B.
    """
    unit, squared, along = math.sqrt(trace), squared / trace, along / trace
    square_trace = min(max(square_trace / trace / trace, 1e-12), 1.0)

    def above(squared: float, s: float) -> float:
        """Standard errors by which ``squared`` lies above what is expected at |b|^2 = s, as its probability tells."""
        scale = (square_trace + 2 * s * along) / (1 + 2 * s)
        if (1 + s) / scale > FAR:
            found = (squared - s - 1) / math.sqrt(2 * square_trace + 4 * s * along)
            return min(max(found, -TOP), TOP)
        less = (
            special.chndtr(squared / scale, 1 / scale, s / scale)
            if s > 0
            else special.chdtr(1 / scale, squared / scale)
        )
        return min(max(float(special.ndtri(less)), -TOP), TOP)

    def believable(s: float) -> float:
        """Probability at |b|^2 = s of no larger ratio of likelihoods than that seen, less 5 %.

        As of one normal number with mean m >= 0, of which ``gap`` is the error: that is normal, whatever m stands for it.
        """
        gap, m = above(squared, s) / wider, above(1 + s, 0.0) - above(1.0, 0.0)
        if s == 0 or m <= 0:
            return float(special.ndtr(-gap)) - 0.05
        square = gap**2 - min(m + gap, 0.0) ** 2
        reach = math.sqrt(max(square, 0.0))
        lowest = -reach if reach <= m else (m**2 - square) / (2 * m) - m
        return float(special.ndtr(-reach) + special.ndtr(lowest)) - 0.05

    middle = max(squared - 1, 0.0)
    if believable(middle) <= 0:  # no noise but rounding
        return unit * math.sqrt(middle), unit * math.sqrt(middle)
    low = 0.0 if believable(0.0) >= 0 else optimize.brentq(believable, 0.0, middle)
    step = max(math.sqrt(2 * square_trace + 4 * middle * along), 1e-12 * middle)
    end = middle + step
    while believable(end) > 0:
        step *= 2
        end += step
    return unit * math.sqrt(low), unit * math.sqrt(optimize.brentq(believable, middle, end))


def square_trace(gram: Tensor, freedom: int) -> float:
    """tr(S^2) without bias, from vectors of covariance S about their mean, given their products; normal vectors.

    Arguments:
        gram: products of the centred vectors, ``(n, n)``. freedom: how many of them are free, usually n - 1.

    References:
        Srivastava (2005), section 2.
    """
    squares, trace = float(gram.square().sum()), float(gram.trace())
    return (squares - trace**2 / freedom) / ((freedom - 1) * (freedom + 2))


def ratio_interval(s: float, limits: tuple[float, float], V: float, factor: float) -> tuple[float, float]:
    """95 % interval of s/V from intervals of its parts, ``limits`` of s and (V/factor, V factor) of V: Donner & Zou's MOVER.

    The parts' errors are joined in quadrature. Where V is known to no better than a factor of two, ends are divided by ends.

    References:
        Donner & Zou (2012), section 2.3.
    """
    low, high = limits
    if factor >= 2:
        return low / (V * factor), high * factor / V
    shrink, grow = V / factor * (2 * V - V / factor), V * factor * (2 * V - V * factor)
    below = (s * V) ** 2 - low * (2 * s - low) * grow
    above = (s * V) ** 2 - high * (2 * s - high) * shrink
    return (
        max((s * V - math.sqrt(max(below, 0.0))) / grow, 0.0) if low > 0 else 0.0,
        (s * V + math.sqrt(max(above, 0.0))) / shrink,
    )
