"""The thermodynamic variational objective: log p(x) as an integral over a path of densities from q to the posterior.

With pi_beta proportional to q^(1 - beta) p^beta, log p(x) is the integral of E_pi_beta log w over beta from 0 to 1, and the
left Riemann sum lies below it; with a single interval it is the ELBO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .contract import Estimator, Refusal, Target, Weights


class Thermodynamic(NamedTuple):
    """Value ``(*batch)`` of the Riemann sum, and its coefficients ``(K, *batch)`` of the scores and of the model."""

    value: Tensor
    score: Tensor
    model: Tensor


def thermodynamic(log_w: Tensor, intervals: int, correction: float = 1.0) -> Thermodynamic:
    """The left Riemann sum over equal intervals from ``log_w (K, *batch)``, each expectation self-normalised.

    With f = log w, the gradient of E_pi f is E_pi[grad f] + Cov_pi(grad log pi, f): for phi grad f = -h and grad log pi =
    (1 - beta) h, for theta t and beta t. At beta = 0 the term E_q[-h] = 0 is dropped.

    Arguments:
        correction: a factor of the covariances.
    """
    beta = torch.arange(intervals, dtype=log_w.dtype, device=log_w.device).reshape(-1, *(1,) * log_w.ndim) / intervals
    w = (beta * log_w).softmax(1)
    mean = (w * log_w).sum(1, keepdim=True)
    covariance = correction * w * (log_w - mean)
    score = (1 - beta) * covariance - torch.where(beta > 0, w, 0.0)
    return Thermodynamic(mean[:, 0].mean(0), score.mean(0), (w + beta * covariance).mean(0))


@dataclass(frozen=True)
class TVO(Estimator):
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

    num_samples: int = 2
    intervals: int = 5

    name = "tvo"
    family = "divergences"
    citations = ("masrani2019",)
    min_num_samples = 2
    snr_slopes = {"theta": 0.5, "phi": 0.5}
    snr_tail_ratios = {"theta": 0.5, "phi": 0.5}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.intervals < 1:
            raise Refusal(f"{self.label()} needs intervals >= 1, not {self.intervals}")

    @property
    def targets(self) -> dict[str, Target | None]:
        target = Target("tvo", setting=self.intervals, unbiased=self.intervals == 1)
        return {"theta": target, "phi": target}

    def value(self, log_w: Tensor) -> Tensor:
        return thermodynamic(log_w, self.intervals).value

    def weights(self, log_w: Tensor) -> Weights:
        found = thermodynamic(log_w, self.intervals, self.num_samples / (self.num_samples - 1))
        return Weights(path=None, score=found.score, model=found.model)
