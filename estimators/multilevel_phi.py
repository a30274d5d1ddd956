"""Multilevel estimators whose phi is unbiased too: of the wake-phi gradient, and of the thermodynamic objective.

A self-normalised average over 2^j samples is a smooth function of means, so the increments between a block and its halves
fall as those of the log-mean-weight do, and the same randomisation over levels removes the bias in the limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .contract import Refusal, Target, Weights
from .multilevel import Multilevel, blocks
from .thermodynamic import thermodynamic

SCHEMES = ("russian-roulette", "single-sample")


@dataclass(frozen=True)
class MultilevelGradient(Multilevel):
    """Abstract: multilevel with either way of weighting levels."""

    scheme: str = "russian-roulette"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scheme not in SCHEMES:
            raise Refusal(f"{self.name} takes scheme={' or scheme='.join(SCHEMES)}, not {self.scheme!r}")

    def increments(self, level: int) -> list[float]:
        return self.every_level(level) if self.scheme == "russian-roulette" else self.last_level(level)


@dataclass(frozen=True)
class UnbiasedReweightedWakeSleep(MultilevelGradient):
    """Reweighted wake-sleep without its bias: wake-phi and wake-theta by multilevel randomisation.

    .. math:: g_0 + \\sum_{k=0}^{N} \\frac{\\overline{g_{2^{k+1}} - \\tfrac{1}{2} (g^A_{2^k} + g^B_{2^k})}}{P(N \\ge k)},
              \\qquad g_S = \\sum_{k \\in S} \\tilde w_k^S h_k

    which is the phi-gradient of minus the multilevel estimate of log p(x) with every z held; g_0 is the mean over single
    samples. With ``scheme=single-sample`` the drawn level alone, divided by its probability. theta: the same with t_k.

    Arguments:
        num_samples: always 1; how many samples are used is the estimator's own affair.
        cap: highest level M. With it phi has the bias of 2^(M+1) samples, and theta is unbiased for their bound.
        r: probability of stopping at a level, between 1/2 (finite cost) and 3/4 (finite variance).
        scheme: ``russian-roulette`` or ``single-sample``.

    Warning:
        Variance needs moments of w, as for ``multilevel-russian-roulette``: for Gaussians and r = 0.6, rho > 0.62.

    References:
        Shi & Cornish (2021); Bornschein & Bengio (2015) for the gradient.

    Example:
        >>> UnbiasedReweightedWakeSleep(cap=1).weights(torch.tensor([0.0, 0.0])).score
        tensor([0.5000, 0.5000])
        >>> str(UnbiasedReweightedWakeSleep().targets["phi"])
        'forward_kl'
    """

    name = "unbiased-reweighted-wake-sleep"
    family = "wake-sleep"
    citations = ("shi2021", "bornschein2015")

    @property
    def targets(self) -> dict[str, Target | None]:
        return {"theta": self.evidence, "phi": Target("forward_kl", unbiased=self.cap == 0)}

    def weights(self, log_w: Tensor) -> Weights:
        w = self.slopes(log_w)
        return Weights(path=None, score=w, model=w)


@dataclass(frozen=True)
class MultilevelTVO(MultilevelGradient):
    """Thermodynamic variational objective without the bias of self-normalisation (ML-TVO).

    .. math:: v_1 + \\sum_{k=0}^{N} \\frac{\\overline{v_{2^{k+1}} - \\tfrac{1}{2} (v^A_{2^k} + v^B_{2^k})}}{P(N \\ge k)},
              \\qquad v_S = \\frac{1}{T} \\sum_{t=0}^{T-1} \\sum_{k \\in S} \\tilde w_k^{(\\beta_t)} \\log w_k,
              \\quad \\beta_t = t / T

    with w~^(beta) proportional to w^beta within S; the gradient is the same combination of the covariance gradients of
    ``tvo``, without its factor K/(K-1).

    Arguments:
        num_samples: always 1; how many samples are used is the estimator's own affair.
        cap: highest level M. With it the estimate has the bias of 2^(M+1) samples; 0 means none.
        r: probability of stopping at a level, between 1/2 (finite cost) and 3/4 (finite variance).
        scheme: ``russian-roulette`` or ``single-sample``.
        intervals: T, of the left Riemann sum over beta, equal in length.

    Warning:
        Unbiased for the Riemann sum, not for its integral log p(x). Variance needs moments of w^beta up to the largest
        beta, (T - 1)/T, so less than ``multilevel-russian-roulette`` needs.

    References:
        Masrani, Le & Wood (2019); Shi & Cornish (2021).

    Example:
        >>> str(MultilevelTVO(intervals=5).targets["phi"])
        'tvo(5)'
    """

    intervals: int = 5

    name = "multilevel-tvo"
    citations = ("masrani2019", "shi2021")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.intervals < 1:
            raise Refusal(f"{self.name} needs intervals >= 1, not {self.intervals}")

    @property
    def targets(self) -> dict[str, Target | None]:
        target = Target("tvo", setting=self.intervals, unbiased=self.cap == 0)
        return {"theta": target, "phi": target}

    def value(self, log_w: Tensor) -> Tensor:
        return self._combined(log_w)[0]

    def weights(self, log_w: Tensor) -> Weights:
        _, score, model = self._combined(log_w)
        return Weights(path=None, score=score, model=model)

    def _combined(self, log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value, score, model = torch.zeros_like(log_w[0]), torch.zeros_like(log_w), torch.zeros_like(log_w)
        for power, coefficient in enumerate(self.coefficients(log_w)):
            grouped = blocks(log_w, 2**power)
            found = thermodynamic(grouped.movedim(1, 0), self.intervals)
            value = value + coefficient * found.value.mean(0)
            share = coefficient / grouped.shape[0]
            score = score + share * found.score.movedim(0, 1).reshape(log_w.shape)
            model = model + share * found.model.movedim(0, 1).reshape(log_w.shape)
        return value, score, model
