"""L_K of one scalar latent for any K: one integral over t of the Laplace transform of its weights, each a sum over a grid.

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
BEYOND = 5.0
"""log(t r) from which exp(-t r) is nothing."""
NEVER = -41.0
"""Of the logarithm of a probability."""
MOST_STEPS = 20_000
AT_ONCE = 2**17
"""Numbers of each array: they fit a cache."""


def log_mean(log_w: Tensor, mass: Tensor, num_samples: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """L_K of weights at nodes (N,) of a law with this mass, and its derivatives by log-weights and by masses, both (N,).

    The latter up to a constant: masses have a sum of one. ``None`` where small weights reach too far down for the rule over v.
    """
    K, centre = num_samples, torch.logsumexp(log_w + mass.log(), 0)
    log_r = torch.where(mass > 0, log_w - centre, 0.0)
    order = log_r.argsort()
    # Where all K weights are below this, which they never are.
    least = log_r[order][mass[order].cumsum(0).log() * K > NEVER][0]
    highest = BEYOND - float(least) + math.log(K)
    steps = math.ceil((highest - LOWEST) / LOG_T_STEP)
    if steps > MOST_STEPS:
        return None
    gap, by_log_w, by_mass = torch.zeros_like(centre), torch.zeros_like(mass), torch.zeros_like(mass)
    v = LOWEST + LOG_T_STEP * torch.arange(steps, dtype=mass.dtype)
    for some in v.split(max(1, AT_ONCE // len(mass))):
        y = (log_r + some[:, None] - math.log(K)).clamp(max=700.0).exp()  # t r
        left = -torch.expm1(-y)
        complement, phi = left @ mass, (-y).exp() @ mass
        log_phi = torch.where(complement < 0.5, torch.log1p(-complement.clamp(max=0.5)), phi.log())
        e = some.clamp(max=7.0).exp()
        excess = K * log_phi + e
        near = (-e).exp() * torch.expm1(excess.clamp(max=1.0))  # exact where both terms are near one
        gap += torch.where(excess.abs() < 1, near, (K * log_phi).exp() - (-e).exp()).sum()
        slope = K * ((K - 1) * log_phi).exp()  # less the derivative of the integrand by phi
        by_log_w += slope @ (y * (-y).exp()) * mass
        by_mass += slope @ left
    return centre - LOG_T_STEP * gap, LOG_T_STEP * by_log_w, LOG_T_STEP * by_mass
