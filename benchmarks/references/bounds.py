"""Targets as what they are by definition: functions of the log-weights of K samples, to be averaged over the samples.

Written from the definitions, plainly and slowly, and never used by an estimator: what is judged does not judge itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from estimators import Target

STEEPEST = 1e8
"""The largest |1 - alpha|: beyond, rounding of its multiple of log w is no smaller than what ties between samples add."""
DIVERGENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "kl": lambda t: t,
    "hellinger": lambda t: 2 * torch.expm1(t / 2),
    "chi-square": lambda t: -torch.expm1(-t),
    "jensen-shannon": lambda t: _jensen_shannon(t),
    "skew-kl": lambda t: softplus(t, threshold=40.0) - math.log(2),
}
"""F of the ``f_divergence`` target E_q F(log w), by name: F(t) = -f(e^t) for the divergence E_q f(p/q), up to a multiple of
e^t - 1, chosen so that F rises in t and is concave in e^t. Then E_q F(log w) <= F(log p(x)), and F(0) = 0. In order: KL(q || p),
int (sqrt p - sqrt q)^2, chi^2(q || p), the mean of KL(p || m) and KL(q || m), and KL(q || m), with m = (p + q)/2."""


def bound(target: Target) -> tuple[int, Callable[[Tensor], Tensor]] | None:
    """The number of samples and the function of log-weights ``(K, ...)`` whose mean is the target; ``None`` for others."""
    K, setting = target.num_samples or 1, target.setting
    if target.name == "elbo":
        return 1, lambda log_w: log_w.mean(0)
    if target.name == "iwae":
        return K, log_mean
    if target.name == "renyi":
        alpha = float(setting or 0.0)
        if alpha == 1.0:
            return K, lambda log_w: log_w.mean(0)
        return None if abs(1 - alpha) > STEEPEST else (K, lambda log_w: power_mean(log_w, 1 - alpha))
    if target.name == "ciwae":
        beta = float(setting or 0.0)
        return K, lambda log_w: beta * log_w.mean(0) + (1 - beta) * log_mean(log_w)
    if target.name == "jackknife":
        return K, lambda log_w: jackknife(log_w, int(setting or 1))
    if target.name == "f_divergence" and setting in DIVERGENCES:
        return 1, lambda log_w: DIVERGENCES[str(setting)](log_w).mean(0)
    return None


def _jensen_shannon(t: Tensor) -> Tensor:
    """((1 + e^t) log(1 + e^t) - e^t t) / 2 - log 2, with e^t taken out of the difference where it is large."""
    u, v = (-t.clamp_min(0)).exp(), t.clamp_max(0).exp()
    large, small = t + (1 + u) * u.log1p() / u.clamp_min(1e-300), (1 + v) * v.log1p() - v * t.clamp_max(0)
    return torch.where(t > 0, large, small) / 2 - math.log(2)


def log_mean(log_w: Tensor) -> Tensor:
    """log of the mean of exp along the first axis."""
    return log_w.logsumexp(0) - math.log(log_w.shape[0])


def power_mean(log_w: Tensor, power: float) -> Tensor:
    """log of the mean of exp(power log w), over ``power``: also where that is so small that the logarithm is all rounding."""
    middle = log_w.mean(0)
    exponent = power * (log_w - middle)
    small = exponent.abs().amax(0) < 0.5
    near = torch.where(small, exponent, 0.0).expm1().mean(0).log1p() / power + middle
    return torch.where(small, near, log_mean(power * log_w) / power)


def jackknife(log_w: Tensor, order: int) -> Tensor:
    """Nowozin's combination, subset by subset."""
    K = log_w.shape[0]
    total = torch.zeros_like(log_w[0])
    for j in range(order + 1):
        coefficient = (-1) ** j * (K - j) ** order / (math.factorial(order - j) * math.factorial(j))
        subsets = [log_mean(log_w[list(kept)]) for kept in itertools.combinations(range(K), K - j)]
        total = total + coefficient * torch.stack(subsets).mean(0)
    return total
