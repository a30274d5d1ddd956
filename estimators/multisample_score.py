"""Score-function gradients of the importance-weighted bound: nothing is asked of the guide but samples and densities.

All are sum_k (log mean w - w~_k - c_k) h_k with different control variates c_k; theta takes w~. Notation as in
:mod:`estimators.multisample`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .contract import Draw, Guide, Refusal, Target, Weights
from .multisample import ImportanceWeighted
from .subsets import logsumexp_of_others


@dataclass(frozen=True)
class MultiSampleScore(ImportanceWeighted):
    """Score-function gradient of the importance-weighted bound, without a control variate.

    .. math:: \\sum_k (\\log \\hat Z - \\tilde w_k) \\, h_k, \\qquad \\hat Z = K^{-1} \\sum_k w_k

    Warning:
        Every score is multiplied by the whole log Z, so the variance grows with \\|log p(x)\\| and with K.

    References:
        Mnih & Rezende (2016), section 2.

    Example:
        >>> MultiSampleScore(num_samples=2).weights(torch.tensor([0.0, 0.0])).score
        tensor([-0.5000, -0.5000])
    """

    name = "multi-sample-score"
    citations = ("mnih2016",)
    needs = frozenset()
    snr_slopes = {"theta": 0.5, "phi": -0.5}

    def weights(self, log_w: Tensor) -> Weights:
        w = log_w.softmax(0)
        return Weights(path=None, score=self.value(log_w) - w, model=w)


@dataclass(frozen=True)
class VIMCO(ImportanceWeighted):
    """Variational inference for Monte Carlo objectives: each sample's baseline is the bound with that sample replaced.

    .. math:: \\sum_k (\\log \\hat Z - \\log \\hat Z^{[-k]} - \\tilde w_k) \\, h_k

    where in Z^[-k] the weight w_k gives way to the mean of the others, ``baseline`` ``geometric`` or ``arithmetic``.

    Arguments:
        num_samples: K >= 2.
        baseline: ``geometric`` (the mean of log-weights, published default) or ``arithmetic``.

    Warning:
        Written as log(1 - w~) it underflows in single precision once one weight dominates; here nothing is subtracted.

    References:
        Mnih & Rezende (2016).

    Example:
        >>> VIMCO(num_samples=2).weights(torch.tensor([0.0, 0.0])).score
        tensor([-0.5000, -0.5000])
    """

    baseline: str = "geometric"
    num_samples: int = 2

    name = "vimco"
    citations = ("mnih2016",)
    needs = frozenset()
    min_num_samples = 2
    snr_slopes = {"theta": 0.5}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.baseline not in ("geometric", "arithmetic"):
            raise Refusal(f"vimco takes baseline=geometric or baseline=arithmetic, not {self.baseline!r}")

    def weights(self, log_w: Tensor) -> Weights:
        K, w = self.num_samples, log_w.softmax(0)
        others = logsumexp_of_others(log_w)
        arithmetic = self.baseline == "arithmetic"
        replacing = others - math.log(K - 1) if arithmetic else (log_w.sum(0) - log_w) / (K - 1)
        # log Z - log Z^[-k] as a difference of two small numbers, each to its own last digit, not of two large ones.
        return Weights(path=None, score=_log1p_exp(log_w - others) - _log1p_exp(replacing - others) - w, model=w)


@dataclass(frozen=True)
class OVIS(ImportanceWeighted):
    """Score-function gradient with the asymptotically optimal control variate (OVIS, the form without extra draws).

    .. math:: \\sum_k (\\log \\hat Z - \\log \\hat Z_{-k} + \\log \\tfrac{K}{K-1} - \\tilde w_k) \\, h_k
              \\qquad (\\gamma = 0)

    where Z_{-k} is the mean of the other weights. In general the score weights are
    -log(1 - w~_k) - (1 - gamma) w~_k + gamma log(1 - 1/K).

    Arguments:
        num_samples: K >= 2.
        gamma: between 0 (large effective sample size) and 1 (one weight dominates).

    Warning:
        Unbiased for gamma = 0 alone. For gamma > 0 the expectation is the gradient of L_K plus gamma times the wake-phi
        direction; its signal-to-noise ratio is then not that of an importance-weighted gradient.

    References:
        Lievin, Dittadi, Christensen & Winther (2020).

    Example:
        >>> OVIS(num_samples=2).targets["phi"].unbiased, OVIS(num_samples=2, gamma=1.0).targets["phi"].unbiased
        (True, False)
    """

    gamma: float = 0.0
    num_samples: int = 2

    name = "ovis"
    citations = ("lievin2020",)
    needs = frozenset()
    min_num_samples = 2
    snr_slopes = {"theta": 0.5, "phi": 0.5}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gamma <= 1:
            raise Refusal(f"ovis takes gamma between 0 and 1, not {self.gamma}")

    @property
    def targets(self) -> dict[str, Target | None]:
        K = self.num_samples
        return {"theta": Target("iwae", K), "phi": Target("iwae", K, unbiased=self.gamma == 0)}

    def weights(self, log_w: Tensor) -> Weights:
        w = log_w.softmax(0)
        without = _log1p_exp(log_w - logsumexp_of_others(log_w))  # -log(1 - w~)
        score = without - (1 - self.gamma) * w + self.gamma * math.log(1 - 1 / self.num_samples)
        return Weights(path=None, score=score, model=w)


@dataclass(frozen=True)
class OVISMonteCarlo(ImportanceWeighted):
    """OVIS-MC: each sample's control variate is its own signal, averaged over fresh draws in its place.

    .. math:: \\sum_{k=1}^{K} (d_k(z_k) - S^{-1} \\sum_{s=1}^{S} d_k(z^{(s)})) \\, h_k, \\qquad
              d_k(z) = \\log \\hat Z_{k \\to z} - \\tilde w_{k \\to z}

    where k -> z puts z in the place of z_k, in the mean of the weights and in their normalisation. The same ``extra`` draws
    serve every k; ``num_samples`` + ``extra`` samples are drawn in all.

    Arguments:
        num_samples: K.
        extra: S, at least 1.

    References:
        Lievin, Dittadi, Christensen & Winther (2020).

    Example:
        >>> OVISMonteCarlo(num_samples=2).weights(torch.tensor([0.0, 0.0, 0.0])).score
        tensor([0., 0., 0.])
    """

    extra: int = 1

    name = "ovis-mc"
    citations = ("lievin2020",)
    needs = frozenset()
    snr_slopes = {"theta": 0.5, "phi": 0.5}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.extra < 1:
            raise Refusal(f"ovis-mc needs extra >= 1, not {self.extra}")

    def draws(self, guide: Guide, replicates: int, generator: torch.Generator) -> list[Draw]:
        noise = guide.noise((replicates, self.num_samples + self.extra), generator)
        return [Draw(torch.arange(replicates), noise)]

    def value(self, log_w: Tensor) -> Tensor:
        kept = log_w[: -self.extra]
        return kept.logsumexp(0) - math.log(kept.shape[0])

    def weights(self, log_w: Tensor) -> Weights:
        kept, fresh = log_w[: -self.extra], log_w[-self.extra :]
        w, none = kept.softmax(0), torch.zeros_like(fresh)
        others = logsumexp_of_others(kept)
        sums = torch.logaddexp(others, fresh[:, None])  # (S, K, *batch): the s-th fresh draw in the place of the k-th
        replaced = sums - (fresh[:, None] - sums).exp()
        score = kept.logsumexp(0) - w - replaced.mean(0)
        return Weights(path=None, score=torch.cat([score, none]), model=torch.cat([w, none]))


def _log1p_exp(x: Tensor) -> Tensor:
    """log(1 + exp(x)), to its last digit where it is small and where it is large."""
    return torch.logaddexp(x, torch.zeros_like(x))
