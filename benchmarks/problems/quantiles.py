"""Quantiles of distributions whose draws torch makes in place, as functions that vectorise."""

from __future__ import annotations

import torch
from torch import Tensor

NEWTON_STEPS = 30
"""Of the Gamma quantile: it doubles its digits in each of the last few."""
BISECTIONS = 31
"""Of the Poisson quantile: counts up to 2^30."""


def gamma_quantile(u: Tensor, concentration: Tensor) -> Tensor:
    """The Gamma(concentration, 1) quantile of ``u``, and its first derivative in ``concentration``.

    Newton's method on the logarithm of the quantile; the derivative is -(dF/da) / f, with dF/da by a central difference of
    the regularised incomplete gamma function in double precision, good to nine digits.

    Example:
        >>> u = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        >>> y = gamma_quantile(u, torch.tensor(1.0, dtype=torch.float64))
        >>> torch.allclose(y, -torch.log1p(-u))
        True
    """
    dtype = u.dtype
    a = concentration.detach().double().expand(u.shape)
    u = u.detach().double().clamp(1e-300, 1 - 1e-16)
    wilson = a * (1 - 1 / (9 * a) + torch.special.ndtri(u) / (3 * a.sqrt())) ** 3
    small = torch.exp((u.log() + torch.lgamma(a + 1)) / a)
    t = torch.where((wilson > 0.1 * a) & (a > 0.5), wilson, small).clamp_min(1e-290).log()
    for _ in range(NEWTON_STEPS):
        y = t.exp()
        log_density = a * t - y - torch.lgamma(a)  # of t
        below = torch.special.gammainc(a, y) - u
        t = t - (below * torch.exp(-log_density.clamp_min(-600.0))).clamp(-1.0, 1.0)
    y = t.exp()
    step = 1e-5 * a
    slope = (torch.special.gammainc(a + step, y) - torch.special.gammainc(a - step, y)) / (2 * step)
    derivative = -slope * torch.exp(torch.lgamma(a) + y - (a - 1) * t)
    y, derivative = y.to(dtype), derivative.to(dtype)
    return y + derivative * (concentration - concentration.detach())


def poisson_quantile(u: Tensor, rate: Tensor) -> Tensor:
    """The least count whose distribution function is at least ``u``, by bisection; no derivative.

    Example:
        >>> poisson_quantile(torch.tensor([0.1, 0.5, 0.9]), torch.tensor(2.0))
        tensor([0., 2., 4.])
    """
    rate, wanted = rate.detach().double(), u.detach().double()
    low = torch.full_like(wanted + rate, -1.0)
    high = torch.full_like(low, 2.0**30)
    for _ in range(BISECTIONS):
        middle = torch.floor((low + high) / 2)
        enough = torch.special.gammaincc(middle + 1, rate.expand_as(middle)) >= wanted
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high.to(u.dtype)
