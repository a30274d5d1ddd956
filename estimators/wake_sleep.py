"""The wake-sleep family: phi follows the forward Kullback-Leibler divergence KL(p(z|x) || q)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .contract import Estimator, Target, Weights


@dataclass(frozen=True)
class WakeSleep(Estimator):
    """Abstract: theta is unbiased for L_K, phi a self-normalised estimate for the forward divergence."""

    family = "wake-sleep"
    snr_slopes = {"theta": 0.5, "phi": 0.5}
    snr_tail_ratios = {"theta": 0.5, "phi": 0.5}

    @property
    def targets(self) -> dict[str, Target | None]:
        return {"theta": Target("iwae", self.num_samples), "phi": Target("forward_kl", unbiased=False)}

    def value(self, log_w: Tensor) -> Tensor:
        return log_w.logsumexp(0) - math.log(self.num_samples)


@dataclass(frozen=True)
class ReweightedWakeSleep(WakeSleep):
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
    citations = ("bornschein2015", "le2019")

    def weights(self, log_w: Tensor) -> Weights:
        w = log_w.softmax(0)
        return Weights(path=None, score=w, model=w)


@dataclass(frozen=True)
class ReweightedWakeSleepDReG(WakeSleep):
    """Reweighted wake-sleep with its phi-gradient doubly reparameterised.

    .. math:: \\sum_k (\\tilde w_k - \\tilde w_k^2) P_k \\quad (\\phi), \\qquad
              \\sum_k \\tilde w_k t_k \\quad (\\theta)

    The same expectation as the wake-phi update, through the sampling path.

    Warning:
        As the wake-phi update, a self-normalised estimate: biased for -grad KL(p(z|x) || q) by order 1/K; zero at K = 1.

    References:
        Tucker, Lawson, Gu & Maddison (2019).

    Example:
        >>> ReweightedWakeSleepDReG(num_samples=2).weights(torch.tensor([0.0, 0.0])).path
        tensor([0.2500, 0.2500])
    """

    name = "reweighted-wake-sleep-dreg"
    citations = ("tucker2019",)
    needs = frozenset({"reparameterizable"})

    def weights(self, log_w: Tensor) -> Weights:
        w = log_w.softmax(0)
        return Weights(path=w - w.square(), score=None, model=w)
