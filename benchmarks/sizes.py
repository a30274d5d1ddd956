"""The interval of a size that is seen with noise: of |b|, where b and noise are known by their sum alone; and of a ratio.

|b + e|^2 exceeds |b|^2 by the noise's own, and near zero that is all there is. What it is for a given |b| depends on how the
noise is spread over the coordinates: on tr(S), tr(S^2) and the variance along b, S the noise's covariance.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special
from torch import Tensor

Z95 = float(-special.ndtri(0.025))
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
        trace: tr(S), positive. square_trace: tr(S^2), at most tr(S)^2. along: variance of e along b.
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

    from scipy import optimize  # half a second with what it imports, which whoever hands out cells need not wait for

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


def variance_along(squared: float, trace: float, square_trace: float, seen: float, large: float) -> float:
    """Variance of the noise e along b, of which b + e is known, and the variance ``seen`` along that.

    Noise itself lies where there is most of it, and what that adds is taken away: E[(b + e)' S (b + e)] = b' S b + tr(S^2). As
    little is left near the floor, there b counts as lying where noise is ``large``.

    Arguments:
        squared: |b + e|^2. trace, square_trace: tr(S), positive, and tr(S^2). large: by :func:`large_variance`.
    """
    own = max(seen * squared - square_trace, 0.0)
    return (own + large * trace / 2) / (max(squared - trace, 0.0) + trace / 2)


def square_trace(gram: Tensor, freedom: int) -> float:
    """tr(S^2) without bias, from vectors of covariance S about their mean, given their products; normal vectors.

    Arguments:
        gram: products of the centred vectors, ``(n, n)``. freedom: how many of them are free, usually n - 1.

    References:
        Srivastava (2005), section 2.
    """
    squares, trace = float(gram.square().sum()), float(gram.trace())
    return (squares - trace**2 / freedom) / ((freedom - 1) * (freedom + 2))


def cube_trace(gram: Tensor, freedom: int) -> float:
    """tr(S^3) without bias, as :func:`square_trace`; needs three degrees of freedom.

    Expectations of tr(W)^3, tr(W) tr(W^2) and tr(W^3) of a Wishart matrix W are combinations of those of S, which are solved for.

    References:
        Letac & Massam (2004), section 4.
    """
    n, square = freedom, gram @ gram
    trace, traces = float(gram.trace()), (float(square.trace()), float((square * gram).sum()))
    expectations = np.array(
        [
            [n**3, 6 * n**2, 8 * n],
            [n**2, n**3 + n**2 + 4 * n, 4 * n**2 + 4 * n],
            [n, 3 * n**2 + 3 * n, n**3 + 3 * n**2 + 4 * n],
        ]
    )
    return float(np.linalg.solve(expectations, [trace**3, trace * traces[0], traces[1]])[2])


def large_variance(gram: Tensor, freedom: int, square_trace: float) -> float:
    """tr(S^3) / tr(S^2), a variance where there is much noise: between tr(S^2) / tr(S), that along noise itself, and the largest.

    Arguments:
        gram, freedom: as of :func:`square_trace`. square_trace: tr(S^2), as it is believed.
    """
    trace = float(gram.trace()) / freedom
    if not trace > 0:
        return 0.0
    least, most = square_trace / trace, math.sqrt(square_trace)
    return least if freedom < 3 else min(max(cube_trace(gram, freedom) / square_trace, least), most)


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
