"""Multilevel estimators, of log p(x) here and of gradients in :mod:`estimators.multilevel_phi`: randomised over levels whose variance falls faster than their cost grows.

Level k compares 2^(k+1) samples with their two halves, which cancels the leading error of both, so that
Delta_k = L^_(2^(k+1)) - (L^A_(2^k) + L^B_(2^k))/2 has E[Delta_k^2] of order 4^-k at a cost of order 2^k. A length N with
P(N >= k) = (1 - r)^k between those two rates makes both variance and expected cost finite, which no SUMO can have.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .contract import Draw, Estimator, Guide, Refusal, Target, TotalDerivative, Weights

LAST = 24
"""Levels beyond this, of probability below 1e-9 at r = 0.6, are not drawn: without a cap of its own the estimate is, to the
letter, unbiased for the bound of 2^25 samples."""


@dataclass(frozen=True)
class Multilevel(Estimator):
    """Abstract: a level N is drawn, then 2^(N+1) samples; whatever is estimated is its mean over single samples plus
    weighted increments between blocks of doubled size.

    Arguments:
        num_samples: always 1; how many samples are used is the estimator's own affair.
        cap: highest level M. With it the estimate is unbiased for L_(2^(M+1)); 0 means none.
        r: probability of stopping at a level, between 1/2 (finite cost) and 3/4 (finite variance).
    """

    cap: int = 0
    r: float = 0.6

    family = "debiasing"
    citations: ClassVar[tuple[str, ...]] = ("shi2021",)
    random_cost = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples != 1:
            raise Refusal(f"{self.name} draws its own number of samples: num_samples must be 1, not {self.num_samples}")
        if not 0 <= self.cap <= LAST:
            raise Refusal(f"{self.name} needs cap between 0 (none) and {LAST}, not {self.cap}")
        if not 0.5 < self.r < 0.75:
            raise Refusal(f"{self.name} needs r between 0.5 and 0.75, not {self.r}")

    @classmethod
    def usual_num_samples(cls) -> int:
        return 1

    @property
    def evidence(self) -> Target:
        """What the value and theta are unbiased for: log p(x), or with a cap the longest bound."""
        return Target("iwae", 2 ** (self.cap + 1)) if self.cap else Target("log_marginal")

    @property
    def last(self) -> int:
        """The highest level that can be drawn."""
        return self.cap or LAST

    def survival(self, k: Tensor) -> Tensor:
        """P(N >= k), float64: (1 - r)^k, and zero beyond the last level."""
        return torch.where(k > self.last, 0.0, (1 - self.r) ** k.double())

    def draws(self, guide: Guide, replicates: int, generator: torch.Generator) -> list[Draw]:
        uniform = torch.rand(replicates, generator=generator, dtype=torch.float64, device=generator.device)
        levels = (uniform[:, None] < self.survival(torch.arange(1, LAST + 1, device=uniform.device))).sum(1)
        groups = []
        for level in torch.unique(levels).tolist():
            rows = (levels == level).nonzero()[:, 0]
            groups.append(Draw(rows.cpu(), guide.noise((len(rows), 2 ** (level + 1)), generator)))
        return groups

    @abstractmethod
    def increments(self, level: int) -> list[float]:
        """The weight of each increment Delta_0 ... Delta_level, once that level was drawn."""

    def every_level(self, level: int) -> list[float]:
        """Russian roulette: each level up to the drawn one, divided by its survival probability."""
        return [(1 - self.r) ** -k for k in range(level + 1)]

    def last_level(self, level: int) -> list[float]:
        """Single sample: the drawn level alone, divided by its probability."""
        below = (1 - self.r) ** level
        return [0.0] * level + [1 / (below if level == self.last else self.r * below)]

    def coefficients(self, log_w: Tensor) -> list[float]:
        """The coefficient of the mean over blocks of 1, 2, 4, ..., K samples."""
        level = log_w.shape[0].bit_length() - 2
        coefficient = [1.0] + [0.0] * (level + 1)
        for k, weight in enumerate(self.increments(level)):
            coefficient[k + 1] += weight
            coefficient[k] -= weight
        return coefficient

    def value(self, log_w: Tensor) -> Tensor:
        total = torch.zeros_like(log_w[0])
        for power, coefficient in enumerate(self.coefficients(log_w)):
            bounds = blocks(log_w, 2**power).logsumexp(1) - power * math.log(2)
            total = total + coefficient * bounds.mean(0)
        return total

    def slopes(self, log_w: Tensor) -> Tensor:
        """The derivative of the value in each log-weight: the same combination of the blocks' softmaxes."""
        w = torch.zeros_like(log_w)
        for power, coefficient in enumerate(self.coefficients(log_w)):
            grouped = blocks(log_w, 2**power)
            w = w + coefficient / grouped.shape[0] * grouped.softmax(1).reshape(log_w.shape)
        return w


def blocks(log_w: Tensor, size: int) -> Tensor:
    """``(K / size, size, *batch)``."""
    return log_w.reshape(-1, size, *log_w.shape[1:])


@dataclass(frozen=True)
class MultilevelEvidence(Multilevel):
    """Abstract: theta ascends the value S; phi, which log p(x) does not depend on, ascends -S^2."""

    needs = frozenset({"reparameterizable"})

    @property
    def targets(self) -> dict[str, Target | None]:
        return {"theta": self.evidence, "phi": None}

    def weights(self, log_w: Tensor) -> Weights:
        w = self.slopes(log_w)
        return TotalDerivative.of(-2 * self.value(log_w) * w, model=w)


@dataclass(frozen=True)
class MultilevelRussianRoulette(MultilevelEvidence):
    """Multilevel Russian roulette: every level up to N, each divided by its survival probability.

    .. math:: \\overline{\\log w} + \\sum_{k=0}^{N} \\frac{\\overline{\\Delta}_k}{P(N \\ge k)}

    Each Delta_k is averaged over the disjoint blocks of the 2^(N+1) samples. theta ascends the value S; phi, which
    log p(x) does not depend on, ascends -S^2.

    Warning:
        Variance needs moments of w: for Gaussians and r = 0.6, rho > 0.62. With a cap it always exists, and the target is
        L_(2^(cap+1)), no longer log p(x).

    References:
        Shi & Cornish (2021), ML-RR.

    Example:
        >>> [round(weight, 2) for weight in MultilevelRussianRoulette().increments(2)]
        [1.0, 2.5, 6.25]
    """

    name = "multilevel-russian-roulette"

    def increments(self, level: int) -> list[float]:
        return self.every_level(level)


@dataclass(frozen=True)
class MultilevelSingleSample(MultilevelEvidence):
    """Multilevel single-sample estimator: the drawn level alone, divided by its probability.

    .. math:: \\overline{\\log w} + \\frac{\\Delta_N}{P(N)}

    theta ascends the value S; phi, which log p(x) does not depend on, ascends -S^2.

    Warning:
        As :class:`MultilevelRussianRoulette`, with somewhat more variance. Levels start at 0: geometric draws that start
        at 1 are off by whole nats.

    References:
        Shi & Cornish (2021), ML-SS.

    Example:
        >>> [round(weight, 2) for weight in MultilevelSingleSample().increments(2)]
        [0.0, 0.0, 10.42]
    """

    name = "multilevel-single-sample"

    def increments(self, level: int) -> list[float]:
        return self.last_level(level)
