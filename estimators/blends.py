"""Mixtures of two multi-sample gradients. Notation as in :mod:`estimators.multisample`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .contract import Estimator, Refusal, Target, TotalDerivative, Weights


@dataclass(frozen=True)
class CIWAE(Estimator):
    """Combination of the ELBO and the importance-weighted bound (CIWAE), total derivative.

    .. math:: \\beta \\, \\overline{\\log w} + (1 - \\beta) \\log K^{-1} \\sum_k w_k, \\qquad
              \\sum_k \\left( \\frac{\\beta}{K} + (1 - \\beta) \\tilde w_k \\right) (P_k - h_k)

    Both terms from the same K samples; beta = 1 is the reparameterised ELBO, beta = 0 the importance-weighted bound.

    Arguments:
        num_samples: K.
        beta: weight of the ELBO, between 0 and 1.

    References:
        Rainforth et al. (2018), section 4.

    Example:
        >>> str(CIWAE(num_samples=4, beta=0.25).targets["phi"])
        'ciwae-4(0.25)'
        >>> CIWAE(num_samples=2).weights(torch.tensor([0.0, math.log(3.0)])).path
        tensor([0.3750, 0.6250])
    """

    beta: float = 0.5

    name = "ciwae"
    family = "multi-sample"
    citations = ("rainforth2018",)
    needs = frozenset({"reparameterizable"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta <= 1:
            raise Refusal(f"{self.label()} takes beta between 0 and 1, not {self.beta}")

    @property
    def targets(self) -> dict[str, Target | None]:
        target = Target("ciwae", self.num_samples, setting=self.beta)
        return {"theta": target, "phi": target}

    def value(self, log_w: Tensor) -> Tensor:
        bound = log_w.logsumexp(0) - math.log(self.num_samples)
        return self.beta * log_w.mean(0) + (1 - self.beta) * bound

    def weights(self, log_w: Tensor) -> Weights:
        w = self.beta / self.num_samples + (1 - self.beta) * log_w.softmax(0)
        return TotalDerivative.of(w, model=w)


@dataclass(frozen=True)
class DReGAlpha(Estimator):
    """Mixture of two doubly reparameterised gradients: of the importance-weighted bound and of wake-phi (DReG(alpha)).

    .. math:: \\sum_k \\left[ (1 - \\alpha) \\tilde w_k^2 + \\alpha (\\tilde w_k - \\tilde w_k^2) \\right] P_k
              \\quad (\\phi), \\qquad \\sum_k \\tilde w_k t_k \\quad (\\theta)

    alpha = 0 is ``dreg``, 1 is ``reweighted-wake-sleep-dreg``, and 1/2 half of ``iwae-stl``.

    Arguments:
        num_samples: K.
        alpha: share of the wake-phi direction, between 0 and 1.

    Warning:
        For alpha > 0 biased for L_K: the expectation is (1 - alpha) times its gradient plus alpha times the wake-phi
        direction, which is the gradient of no stated objective.

    References:
        Tucker, Lawson, Gu & Maddison (2019).

    Example:
        >>> DReGAlpha(num_samples=2).targets["phi"].unbiased, DReGAlpha(num_samples=2, alpha=0.0).targets["phi"].unbiased
        (False, True)
        >>> DReGAlpha(num_samples=2, alpha=0.5).weights(torch.tensor([0.0, 0.0])).path
        tensor([0.2500, 0.2500])
    """

    alpha: float = 0.5

    name = "dreg-alpha"
    family = "multi-sample"
    citations = ("tucker2019",)
    needs = frozenset({"reparameterizable"})
    snr_slopes = {"theta": 0.5}
    snr_tail_ratios = {"theta": 0.5}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise Refusal(f"{self.label()} takes alpha between 0 and 1, not {self.alpha}")

    @property
    def targets(self) -> dict[str, Target | None]:
        K = self.num_samples
        return {"theta": Target("iwae", K), "phi": Target("iwae", K, unbiased=self.alpha == 0)}

    def value(self, log_w: Tensor) -> Tensor:
        return log_w.logsumexp(0) - math.log(self.num_samples)

    def weights(self, log_w: Tensor) -> Weights:
        w = log_w.softmax(0)
        path = (1 - self.alpha) * w.square() + self.alpha * (w - w.square())
        return Weights(path=path, score=None, model=w)
