"""Laplace transforms of a weight whose logarithm is a quadratic function of one normal number.

    log r = c + b eps + a eps^2,   A_p(t) = E[(t r)^p eps^j exp(-t r)],   phi(t) = E exp(-t r)

As a function of eps, exp(-t r) climbs from 0 to 1 around the two roots of t r = 1, within 1/|b + 2 a eps|: for a wide guide, or
data far off, a ten-thousandth of a standard deviation. So every t has a rule of its own: Gauss-Legendre panels between the
places where log(t r) takes given values, whose number does not depend on how steep log r is. As a function of v = log t, the
transforms have a width of one near v = -max log r, and widths in proportion to the distance from there: where that is far, so are
the nodes, v - v0 = GRADE sinh(y / GRADE) at equal steps of y.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .self_normalized import LOG_T_STEP, POWERS, Level, SelfNormalizedSums, budget

Array = NDArray[np.float64]

LEVELS = np.array([*range(-64, -8, 8), -8.0, -5.0, -3.0, -1.5, 0.0, 1.0, 2.0, 2.7, 3.3, 3.9, 4.4, 4.9])
"""Of log(t r), between which exp(-t r) and its products with powers of t r up to the fourth are smooth; above, they are 0."""
NORMAL = 13
"""Ends of panels at equal distances, for the normal density itself."""
PANEL = (10, 16)
"""Nodes of a panel, on the coarse grid and on the fine one."""
FEATURES = 5
"""eps^0 to eps^4."""
GRADE = 30.0
UNIFORM = 1200.0
"""The longest range of v that has equal steps: 8,000 of them. Only they have covariances."""
BLOCK = 256
"""Values of t at once: 256 of them have 200,000 nodes."""


def sums(constant: float, linear: float, curvature: float, max_num_samples: int) -> SelfNormalizedSums:
    """Moments of self-normalised sums of up to so many weights; the features are eps^0 to eps^4.

    Arguments:
        constant, linear, curvature: c, b and a. E r need not be one.
    """
    end = math.sqrt(2.0 * budget(max_num_samples))
    vertex = np.clip(-linear / (2.0 * curvature), -end, end) if curvature else 0.0
    probe = np.append(np.linspace(-end, end, 2001), vertex)
    shape = (linear + curvature * probe) * probe
    # A whole number, and none where the posterior lies within reach, so that nothing near zero is rounded.
    centre = min(0.0, float(round(constant + shape.max())))
    log_ratio = constant - centre + shape
    low = -budget(max_num_samples) - max(0.0, float((log_ratio - probe**2 / 2.0).max()) + 2.0)
    high = max(5.0, 4.5 - float(log_ratio.min()))
    log_t, step = _grid(low, high, -max(0.0, float(log_ratio.max())))
    levels = [
        _level(log_t[::stride], stride * step[::stride], (constant - centre, linear, curvature), end, nodes)
        for stride, nodes in ((1, PANEL[1]), (2, PANEL[0]))
    ]
    return SelfNormalizedSums.tabulated(levels[0], levels[1], max_num_samples, 1e-13, centre=centre)


def _grid(low: float, high: float, middle: float) -> tuple[Array, Array]:
    """v and dv/dy times the step of y, both (V,)."""
    if high - low <= UNIFORM:
        log_t = np.arange(low, high, LOG_T_STEP)
        return log_t, np.full_like(log_t, LOG_T_STEP)
    ends = [math.asinh((end - middle) / GRADE) for end in (low, high)]
    y = np.arange(ends[0], ends[1], LOG_T_STEP / GRADE)
    return middle + GRADE * np.sinh(y), LOG_T_STEP * np.cosh(y)


def _level(log_t: Array, step: Array, form: tuple[float, float, float], end: float, nodes: int) -> Level:
    phi, complement = np.empty_like(log_t), np.empty_like(log_t)
    transforms = {p: np.empty((len(log_t), FEATURES)) for p in POWERS}
    x, w = np.polynomial.legendre.leggauss(nodes)
    for start in range(0, len(log_t), BLOCK):
        rows = slice(start, start + BLOCK)
        ends = _ends(log_t[rows], form, end)
        half = np.diff(ends, axis=1)[..., None] / 2.0
        eps = (ends[:, :-1, None] + half * (x + 1.0)).reshape(len(ends), -1)
        weight = (half * w).reshape(len(ends), -1) * np.exp(-(eps**2) / 2.0) / math.sqrt(2.0 * math.pi)
        tr = np.exp(np.minimum(log_t[rows, None] + form[0] + (form[1] + form[2] * eps) * eps, 7.0))  # exp(-e^7) is 0
        decay = np.exp(-tr)
        phi[rows], complement[rows] = (weight * decay).sum(1), (weight * -np.expm1(-tr)).sum(1)
        moments = np.stack([weight * eps**j for j in range(FEATURES)], axis=2)
        for p in POWERS:
            decay *= tr
            transforms[p][rows] = (decay[:, None] @ moments)[:, 0]
    with np.errstate(divide="ignore"):  # log1p where phi is near one, log where it is small
        log_phi = np.where(complement < 0.5, np.log1p(-np.minimum(complement, 0.5)), np.log(phi))
    return Level(step, log_t, np.maximum(log_phi, -745.0), transforms)


def _ends(log_t: Array, form: tuple[float, float, float], end: float) -> Array:
    """Ends of the panels for each t, ascending, (V, P): some of them may be empty."""
    constant, linear, curvature = form
    vertex = float(np.clip(-linear / (2.0 * curvature), -end, end)) if curvature else 0.0
    top = constant + (linear + curvature * vertex) * vertex if curvature < 0.0 else math.inf
    # Where t r is small everywhere, r itself has to be resolved, from its greatest value down.
    shift = np.minimum(-log_t, top)[:, None] + LEVELS - constant
    root = np.sqrt(np.maximum(linear**2 + 4.0 * curvature * shift, 0.0))
    far = -(linear + math.copysign(1.0, linear) * root) / 2.0
    with np.errstate(divide="ignore", invalid="ignore"):  # a straight line has one root, a flat one none
        roots = np.concatenate([far / curvature, -shift / far], axis=1) if curvature else -shift / far
    fixed = np.append(np.linspace(-end, end, NORMAL), vertex)
    return np.sort(np.concatenate([np.clip(np.nan_to_num(roots), -end, end), np.tile(fixed, (len(log_t), 1))], axis=1))
