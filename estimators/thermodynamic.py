"""The thermodynamic variational objective: log p(x) as an integral over a path of densities from q to the posterior.

With pi_beta proportional to q^(1 - beta) p^beta, log p(x) is the integral of E_pi_beta log w over beta from 0 to 1. The left
Riemann sum lies below it, the right one above; with a single interval they are the ELBO and the EUBO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .contract import Estimator, Refusal, Target, Weights


class Thermodynamic(NamedTuple):
    """Value ``(*batch)`` of the Riemann sum, and its coefficients ``(K, *batch)`` of the scores and of the model."""

    value: Tensor
    score: Tensor
    model: Tensor


def thermodynamic(log_w: Tensor, intervals: int, correction: float = 1.0, upper: bool = False) -> Thermodynamic:
    """The left Riemann sum over equal intervals from ``log_w (K, *batch)``, each expectation self-normalised.

    With f = log w, the gradient of E_pi f is E_pi[grad f] + Cov_pi(grad log pi, f): for phi grad f = -h and grad log pi =
    (1 - beta) h, for theta t and beta t. At beta = 0 the term E_q[-h] = 0 is dropped.

    Arguments:
        correction: a factor of the covariances.
        upper: the right Riemann sum.
    """
    step = torch.arange(intervals, dtype=log_w.dtype, device=log_w.device) + upper
    beta = step.reshape(-1, *(1,) * log_w.ndim) / intervals
    w = (beta * log_w).softmax(1)
    mean = (w * log_w).sum(1, keepdim=True)
    covariance = correction * w * (log_w - mean)
    score = (1 - beta) * covariance - torch.where(beta > 0, w, 0.0)
    return Thermodynamic(mean[:, 0].mean(0), score.mean(0), (w + beta * covariance).mean(0))


@dataclass(frozen=True)
class _Thermodynamic(Estimator):
    """Abstract: a Riemann sum over ``intervals``."""

    num_samples: int = 2
    intervals: int = 5

    family = "divergences"
    min_num_samples = 2
    snr_slopes = {"theta": 0.5, "phi": 0.5}
    snr_tail_ratios = {"theta": 0.5, "phi": 0.5}
    upper: ClassVar[bool] = False
    """Whether it is the right sum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.intervals < 1:
            raise Refusal(f"{self.label()} needs intervals >= 1, not {self.intervals}")

    def value(self, log_w: Tensor) -> Tensor:
        return thermodynamic(log_w, self.intervals, upper=self.upper).value

    def weights(self, log_w: Tensor) -> Weights:
        found = thermodynamic(log_w, self.intervals, self.num_samples / (self.num_samples - 1), self.upper)
        return Weights(path=None, score=found.score, model=found.model)


@dataclass(frozen=True)
class TVO(_Thermodynamic):
    """Thermodynamic variational objective with its covariance gradient, self-normalised over K samples.

    .. math:: \\frac{1}{T} \\sum_{t=0}^{T-1} E_{\\pi_{\\beta_t}} \\log w, \\qquad \\beta_t = t / T, \\qquad
              \\nabla_\\phi E_{\\pi_\\beta} \\log w =
              (1 - \\beta) \\, \\mathrm{Cov}_{\\pi_\\beta}(h, \\log w) - E_{\\pi_\\beta} h

    theta: E t + beta Cov(t, log w). Expectations under pi_beta weigh the samples by w^beta, normalised; covariances are
    multiplied by K/(K - 1), so that T = 1 is ``leave-one-out``. Needs no reparameterisation.

    Arguments:
        num_samples: K >= 2.
        intervals: T, equal in length.

    Warning:
        Self-normalised, hence biased by order 1/K for T > 1; a lower bound of log p(x) only in the limit of many samples.

    References:
        Masrani, Le & Wood (2019).

    Example:
        >>> TVO(num_samples=2, intervals=1).weights(torch.tensor([1.0, 3.0])).score
        tensor([-1.,  1.])
        >>> TVO(intervals=1).targets["phi"].unbiased, TVO(intervals=5).targets["phi"].unbiased
        (True, False)
    """

    name = "tvo"
    citations = ("masrani2019",)

    @property
    def targets(self) -> dict[str, Target | None]:
        target = Target("tvo", setting=self.intervals, unbiased=self.intervals == 1)
        return {"theta": target, "phi": target}


@dataclass(frozen=True)
class EvidenceUpperBound(_Thermodynamic):
    """Evidence upper bound (EUBO) and its refinements: the right Riemann sum of the thermodynamic integral, self-normalised.

    .. math:: \\frac{1}{T} \\sum_{t=1}^{T} E_{\\pi_{\\beta_t}} \\log w, \\qquad \\beta_t = t / T, \\qquad
              T = 1: \\; E_{p(z \\mid x)} \\log w = \\log p(x) + \\mathrm{KL}(p(z \\mid x) \\,\\|\\, q)

    with the covariance gradient of ``tvo``. Gradients point uphill, as everywhere: phi is to *minimise* it, and for T = 1 its
    gradient is minus wake-phi. Together with ``tvo`` it encloses log p(x). Needs no reparameterisation.

    Arguments:
        num_samples: K >= 2.
        intervals: T, equal in length.

    Warning:
        Self-normalised, hence biased by order 1/K, downwards where the weights have heavy tails: an upper bound of log p(x)
        only in the limit of many samples.

    References:
        Dieng, Tran, Ranganath, Paisley & Blei (2017); Masrani, Le & Wood (2019) for T > 1.

    Example:
        >>> EvidenceUpperBound(num_samples=2).weights(torch.tensor([0.0, 0.0])).score
        tensor([-0.5000, -0.5000])
        >>> str(EvidenceUpperBound(intervals=3).targets["phi"])
        'tvo_upper(3)'
    """

    intervals: int = 1

    name = "evidence-upper-bound"
    citations = ("dieng2017", "masrani2019")
    upper = True

    @property
    def targets(self) -> dict[str, Target | None]:
        target = Target("tvo_upper", setting=self.intervals, unbiased=False)
        return {"theta": target, "phi": target}
