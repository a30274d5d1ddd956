"""Whether estimates are independent of one another, as every error bound of the test takes them to be."""

from __future__ import annotations

import math

import torch
from torch import Tensor

CLIP = 0.01
"""Part of the draws, at either end, that count no more than the one at the edge: two rare ones make no correlation."""
LEVEL = 5.0
"""Standard errors of a correlation of normal numbers, beyond those that the largest of so many has by chance."""


def dependence(deviations: Tensor) -> str | None:
    """Why rows ``(R, J)``, the deviations of R estimates from their mean along J directions, are not independent, or ``None``.

    Neighbours may be correlated, as by a moving baseline; or draws come again, as of a generator that is seeded anew.
    """
    spread = deviations.square().mean(0)
    noisy = spread > 1e-24
    if not bool(noisy.any()):
        return None
    n, standardised = len(deviations), deviations[:, noisy] / spread[noisy].sqrt()
    lag = (standardised[1:] * standardised[:-1]).mean(0).abs()
    if bool((lag > _limit(n, standardised.shape[1], standardised.abs().amax(0))).any()):
        return f"neighbouring estimates are correlated ({float(lag.max()):.2f})"
    mix = torch.randn(standardised.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = _correlations(standardised @ mix.to(standardised))
    if found is not None:
        correlation, largest = found
        worst = int(correlation.abs().argmax())
        if float(correlation[worst].abs()) > float(_limit(n, n, largest)):
            return f"estimates that are {worst + 1} apart are correlated ({float(correlation[worst]):.2f})"
    return None


def _limit(n: int, among: int, largest: Tensor) -> Tensor:
    """What the largest ``among`` correlations of n numbers stay below, the numbers of variance 1 and at most ``largest`` in size.

    Where t standard errors would do for normal products, those that are as large as M need t (1 + t' M / (3 n^(1/2)))^(1/2) = t'
    of them: a few rare draws that happen to be neighbours make a correlation, too.

    References:
        Freedman (1975), theorem 1.6 (Bernstein's inequality for martingales).
    """
    square = (LEVEL + math.sqrt(2 * math.log(among))) ** 2
    skew = square * largest.square() / (3 * math.sqrt(n))
    return (skew + (skew.square() + 4 * square).sqrt()) / 2 / math.sqrt(n)


def _correlations(x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Of numbers ``(R,)`` at lags from 1 to 15/16 of R, each as uncertain as the first, and the largest of them in standard
    deviations; ``None`` of what hardly varies.
    """
    n = len(x)
    low, high = x.kthvalue(max(1, int(CLIP * n))).values, x.kthvalue(n - int(CLIP * n)).values
    x = x.clamp(low, high)
    x = x - x.mean()
    square = x.square().mean()
    if float(square) < 1e-12 * float((high - low).square()) or float(high - low) == 0:
        return None
    spectrum = torch.fft.rfft(x, n=2 * n)
    lags = torch.arange(1, 15 * n // 16, device=x.device)
    sums = torch.fft.irfft(spectrum.abs().square(), n=2 * n)[1 : 15 * n // 16]
    return sums / square / (n * (n - lags)).sqrt(), x.abs().max() / square.sqrt()
