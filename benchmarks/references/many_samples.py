"""L_K of one or two latents for any K: one integral over t of the Laplace transform of the weights, itself a sum over a grid.

With r = w / c for any c, phi(t) = E_q exp(-t r) and v = log t,

    L_K = log c - int phi(e^v / K)^K - exp(-e^v) dv,

and phi is a sum over the nodes of `on_a_line`, as is its derivative. The trapezoid rule over v converges exponentially, too
(:mod:`.self_normalized`, where the identity comes from).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .self_normalized import LOG_T_STEP

LOWEST = -45.0
"""Of v. Below, what is integrated is of the order of exp(v) or less."""
GRADE = 30.0
"""Far from v = 0 phi varies over widths in proportion to the distance: v = GRADE sinh(y / GRADE), at equal steps of y."""
BEYOND = 5.0
"""log(t r) from which exp(-t r) is nothing."""
NEVER = -41.0
"""Of the logarithm of a probability."""
UNSETTLED = 1e-6
"""Nats by which half of the steps in v may differ from all of them; the error of all is about the square of it."""
MOST_TERMS = 2**28
"""Values of t times nodes: some seconds."""
AT_ONCE = 2**17
"""Numbers of each array: they fit a cache."""


def log_mean(log_w: Tensor, mass: Tensor, num_samples: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """L_K of weights at nodes (N,) of a law with this mass, and its derivatives by log-weights and by masses, both (N,).

    The latter up to a constant: masses have a sum of one. ``None`` where the rule over v does not settle, or has too many terms.
    """
    K, centre = num_samples, torch.logsumexp(log_w + mass.log(), 0)
    log_r = torch.where(mass > 0, log_w - centre, 0.0)
    order = log_r.argsort()
    # Where all K weights are below this, which they never are.
    least = log_r[order][mass[order].cumsum(0).log() * K > NEVER][0]
    v, dv = _rule(BEYOND - float(least) + math.log(K), mass)
    if len(v) * len(mass) > MOST_TERMS:
        return None
    gaps, by_log_w, by_mass = [], torch.zeros_like(mass), torch.zeros_like(mass)
    size = max(1, AT_ONCE // len(mass))
    for some, width in zip(v.split(size), dv.split(size), strict=True):
        y = (log_r + some[:, None] - math.log(K)).clamp(max=700.0).exp()  # t r
        left = -torch.expm1(-y)
        complement, phi = left @ mass, (-y).exp() @ mass
        log_phi = torch.where(complement < 0.5, torch.log1p(-complement.clamp(max=0.5)), phi.log())
        e = some.clamp(max=7.0).exp()
        excess = K * log_phi + e
        near = (-e).exp() * torch.expm1(excess.clamp(max=1.0))  # exact where both terms are near one
        gaps.append(width * torch.where(excess.abs() < 1, near, (K * log_phi).exp() - (-e).exp()))
        slope = width * K * ((K - 1) * log_phi).exp()  # less the derivative of the integrand by phi
        by_log_w += slope @ (y * (-y).exp()) * mass
        by_mass += slope @ left
    gap = torch.cat(gaps)
    if not abs(float(gap.sum() - 2 * gap[::2].sum())) <= UNSETTLED:
        return None
    return centre - gap.sum(), by_log_w, by_mass


def _rule(highest: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """v and the steps that stand at it."""
    low, high = (GRADE * math.asinh(end / GRADE) for end in (LOWEST, highest))
    y = torch.arange(low, high + LOG_T_STEP, LOG_T_STEP, dtype=like.dtype) / GRADE
    return GRADE * y.sinh(), LOG_T_STEP * y.cosh()
