"""Expectations under gamma and beta laws, from what Stirling's formula leaves over: no difference of large numbers.

With log Gamma(a) = (a - 1/2) log a - a + log(2 pi)/2 + rest(a), the leading parts of log densities combine to deviances

    excess(t) = t - log(1 + t),   deviance(t) = (1 + t) log(1 + t) - t,

which are small where the laws are close; written out, sums of log Gamma at 1e10 are off by 1e-5. All are tensors of one shape,
float64, and may be differentiated.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.special import digamma

LEAST = 10.0
"""From which the series are exact to rounding."""
REST = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)
"""Of 1/a, 1/a^3 and so on."""
BEHIND = (-1 / 12, 1 / 120, -1 / 252, 1 / 240, -1 / 132, 691 / 32760)
"""Of 1/a^2, 1/a^4 and so on."""


def rest(a: Tensor) -> Tensor:
    """log Gamma(a) less Stirling's formula for it.

    Example:
        >>> float(rest(torch.tensor(1.0).double())) == 1 - math.log(2 * math.pi) / 2
        True
    """
    small, large = a.clamp_max(LEAST), a.clamp_min(LEAST)
    direct = torch.lgamma(small) - (small - 0.5) * small.log() + small - 0.5 * math.log(2 * math.pi)
    return torch.where(a < LEAST, direct, _series(REST, large) * large)


def mean_log(a: Tensor) -> Tensor:
    """E log z less log E z of a gamma law of concentration a, which is digamma(a) - log a."""
    small, large = a.clamp_max(LEAST), a.clamp_min(LEAST)
    return torch.where(a < LEAST, digamma(small) - small.log(), _series(BEHIND, large) - 0.5 / large)


def _series(coefficients: tuple[float, ...], a: Tensor) -> Tensor:
    """Of the even powers of 1/a, from the second on."""
    total, square = torch.zeros_like(a), a.square().reciprocal()
    for coefficient in reversed(coefficients):
        total = (total + coefficient) * square
    return total


def excess(t: Tensor) -> Tensor:
    """t - log(1 + t), never negative."""
    return t - t.log1p()


def deviance(t: Tensor) -> Tensor:
    """(1 + t) log(1 + t) - t, never negative."""
    return (1 + t) * t.log1p() - t


def poisson(x: Tensor, mean: Tensor) -> Tensor:
    """log p(x) of counts under a Poisson law."""
    some = x.clamp_min(1)
    around = -0.5 * (2 * math.pi * some).log() - rest(some)
    return torch.where(x > 0, around - mean * deviance((some - mean) / mean), -mean)


def gamma_kl(c: Tensor, r: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """KL(Gamma(c, r) || Gamma(a, b)) of concentrations and rates."""
    apart = excess((b * c - a * r) / (a * r))
    return a * apart + 0.5 * (c / a).log() + (c - a) * mean_log(c) + rest(a) - rest(c)


def beta_kl(c: Tensor, d: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """KL(Beta(c, d) || Beta(a, b))."""
    m, n, across = c + d, a + b, a * d - b * c
    apart = n * (c / m * deviance(across / (n * c)) + d / m * deviance(-across / (n * d)))
    halves = 0.5 * ((c / a).log() + (d / b).log() - (m / n).log())
    logs = (c - a) * mean_log(c) + (d - b) * mean_log(d) - (m - n) * mean_log(m)
    return apart + halves + logs + rest(a) + rest(b) - rest(n) - rest(c) - rest(d) + rest(m)
