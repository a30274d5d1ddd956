"""Discrete variables as thresholds of continuous ones: what relaxations and their control variates share.

A product of Bernoulli or of categorical variables is drawn by moving its logits with logistic or Gumbel noise, z = logits +
noise, and rounding: b = H(z). Rounded softly, z is a relaxed sample. Given b and fresh noise v, z~(v, b, logits) is z once
more, drawn from its law given b; here v is the one for which z~ = z (Tucker et al., 2017), so only derivatives differ.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .contract import Guide
from .discrete_guides import Bernoulli, Categorical, one_hot_like


@dataclass(frozen=True)
class Relaxation(ABC):
    """Abstract: the continuous variables z ``(K, *batch, *event)`` behind a discrete guide.

    Arguments:
        logits: natural parameters ``(*batch, *event)``: log-odds, or logarithms of probabilities.
    """

    logits: Tensor

    @abstractmethod
    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Uniform numbers, ``(*shape, *batch, *event)``."""

    @abstractmethod
    def perturbed(self, noise: Tensor) -> Tensor:
        """z, whose derivative by the logits is one."""

    @abstractmethod
    def hard(self, z: Tensor) -> Tensor:
        """b = H(z), of which the guide's log-density is a function."""

    @abstractmethod
    def soft(self, z: Tensor, temperature: Tensor | float) -> Tensor:
        """The relaxed sample: b in the limit of temperature zero."""

    @abstractmethod
    def mean(self) -> Tensor:
        """E b, differentiable in the logits."""

    @abstractmethod
    def conditional(self, b: Tensor, noise: Tensor) -> Tensor:
        """z~(v, b, logits): z given b, from fresh uniform numbers v; differentiable in the logits."""

    @abstractmethod
    def conditional_slope(self, z: Tensor) -> Tensor:
        """The derivative of z~(v, b, logits) by its logits, v held, at the v for which z~ = z."""


@dataclass(frozen=True)
class Binary(Relaxation):
    """Logistic noise for Bernoulli variables, from the guide's own uniform numbers u: z = logits - logit(u).

    Given b = 1, z~ = softplus(logit(v) + softplus(logits)), so that dz~/dlogits = (1 - exp(-z)) p; and likewise for b = 0.
    """

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return Bernoulli(self.logits).noise(shape, generator)

    def perturbed(self, noise: Tensor) -> Tensor:
        return self.logits - torch.logit(_open(noise))

    def hard(self, z: Tensor) -> Tensor:
        return (z > 0).to(z.dtype)

    def soft(self, z: Tensor, temperature: Tensor | float) -> Tensor:
        return (z / temperature).sigmoid()

    def mean(self) -> Tensor:
        return self.logits.sigmoid()

    def conditional(self, b: Tensor, noise: Tensor) -> Tensor:
        sign = 2 * b - 1
        return sign * softplus(torch.logit(_open(noise)) + softplus(sign * self.logits))

    def conditional_slope(self, z: Tensor) -> Tensor:
        return -torch.expm1(-z.abs()) * torch.where(z > 0, self.logits, -self.logits).detach().sigmoid()


@dataclass(frozen=True)
class OneHot(Relaxation):
    """Gumbel noise for categorical variables, one uniform number for each value: z = log p - log(-log u).

    exp(-z) are exponential variables of rates p, of which b names the first. Given b, the first one is free of p, and what
    the others still wait is exponential again: exp(-z~_i) = e + E_i / p_i, so that dz~_i/dlog p_i = 1 - exp(z_i - max z).
    """

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        size = (*shape, *self.logits.shape)
        return torch.rand(size, generator=generator, dtype=self.logits.dtype, device=self.logits.device)

    def perturbed(self, noise: Tensor) -> Tensor:
        return self.logits - (-_open(noise).log()).log()

    def hard(self, z: Tensor) -> Tensor:
        return one_hot_like(z.argmax(-1), z)

    def soft(self, z: Tensor, temperature: Tensor | float) -> Tensor:
        return (z / temperature).softmax(-1)

    def mean(self) -> Tensor:
        return self.logits.exp()

    def conditional(self, b: Tensor, noise: Tensor) -> Tensor:
        waiting = (-_open(noise).log()).log()
        first = (b * waiting).sum(-1, keepdim=True)
        return -torch.where(b > 0, first, torch.logaddexp(first, waiting - self.logits))

    def conditional_slope(self, z: Tensor) -> Tensor:
        return -torch.expm1(z - z.amax(-1, keepdim=True))


def relaxation_of(guide: Guide) -> Relaxation:
    """The continuous variables behind a product of Bernoulli or categorical variables.

    Example:
        >>> relaxation = relaxation_of(Bernoulli(torch.tensor([0.0, 2.0])))
        >>> z = relaxation.perturbed(torch.tensor([0.6, 0.6]))
        >>> relaxation.hard(z)
        tensor([0., 1.])
        >>> relaxation.soft(z, 0.5)
        tensor([0.3077, 0.9604])
    """
    if isinstance(guide, Bernoulli):
        return Binary(guide.logits)
    if isinstance(guide, Categorical):
        return OneHot(guide.log_probs)
    raise TypeError(f"a product of Bernoulli or categorical variables is needed here, not {type(guide).__name__}")


def _open(uniform: Tensor) -> Tensor:
    """Numbers in (0, 1): generators may return zero, whose logarithm is no number."""
    limits = torch.finfo(uniform.dtype)
    return uniform.clamp(limits.tiny, 1 - limits.eps / 2)
