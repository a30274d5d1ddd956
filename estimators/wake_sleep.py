"""The wake-sleep family: phi follows the forward Kullback-Leibler divergence KL(p(z|x) || q)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .contract import Estimator, Target, Weights


@dataclass(frozen=True)
class ReweightedWakeSleep(Estimator):
    """Reweighted wake-sleep: wake-theta and wake-phi updates from the same samples.

    .. math:: \\sum_k \\tilde w_k h_k \\quad (\\phi), \\qquad \\sum_k \\tilde w_k t_k \\quad (\\theta)

    Needs no reparameterisation. theta is unbiased for L_K.

    Warning:
        phi is a self-normalised estimate of -grad KL(p(z|x) || q): consistent, with bias of order 1/K.

    References:
        Bornschein & Bengio (2015); Le et al. (2019).

    Example:
        >>> ReweightedWakeSleep(num_samples=2).weights(torch.tensor([0.0, 0.0])).score
        tensor([0.5000, 0.5000])
    """

    name = "reweighted-wake-sleep"
    family = "wake-sleep"
    citations = ("bornschein2015", "le2019")
    snr_slopes = {"theta": 0.5, "phi": 0.5}
    snr_tail_ratios = {"theta": 0.5, "phi": 0.5}

    @property
    def targets(self) -> dict[str, Target | None]:
        return {"theta": Target("iwae", self.num_samples), "phi": Target("forward_kl", unbiased=False)}

    def value(self, log_w: Tensor) -> Tensor:
        return log_w.logsumexp(0) - math.log(self.num_samples)

    def weights(self, log_w: Tensor) -> Weights:
        w = log_w.softmax(0)
        return Weights(path=None, score=w, model=w)
