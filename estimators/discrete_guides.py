"""Guides over discrete latents: sampled from uniform noise, and small enough ones listed state by state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .contract import Guide


@dataclass(frozen=True)
class Bernoulli(Guide):
    """D independent Bernoulli variables: z = 1 where the uniform noise is below sigmoid(logits).

    Between 0 and 1 :meth:`log_prob` is continued linearly in z, as relaxations need it.

    Arguments:
        logits: ``(*batch, D)``.

    Example:
        >>> q = Bernoulli(torch.tensor([0.0, 2.0]))
        >>> q.transform(torch.tensor([0.6, 0.6]))
        tensor([0., 1.])
        >>> q.states()
        tensor([[0., 0.],
                [0., 1.],
                [1., 0.],
                [1., 1.]])
        >>> torch.allclose(q.log_prob(q.states()).logsumexp(0), torch.tensor(0.0), atol=1e-6)
        True
    """

    logits: Tensor
    reparameterizable = False
    noise_law = "uniform"

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.rand(
            (*shape, *self.logits.shape), generator=generator, dtype=self.logits.dtype, device=self.logits.device
        )

    @property
    def probs(self) -> Tensor:
        """P(z = 1), ``(*batch, D)``."""
        return self.logits.sigmoid()

    def transform(self, noise: Tensor) -> Tensor:
        return (noise < self.probs.detach()).to(self.logits.dtype)

    def log_prob(self, z: Tensor) -> Tensor:
        return (z * self.logits - softplus(self.logits)).sum(-1)

    def detach(self) -> Bernoulli:
        return Bernoulli(self.logits.detach())

    def states(self) -> Tensor:
        axes = [torch.tensor([0.0, 1.0], dtype=self.logits.dtype, device=self.logits.device)] * self.logits.shape[-1]
        return torch.cartesian_prod(*axes).reshape(-1, len(axes))

    def edges(self) -> Tensor:
        return torch.stack([self.probs, 1 - self.probs]).detach()


@dataclass(frozen=True)
class Categorical(Guide):
    """D independent categorical variables of C values each, z one-hot, by inversion of the distribution function.

    Arguments:
        logits: ``(*batch, D, C)``; they need not be normalised. One uniform number is drawn for each variable.

    Example:
        >>> q = Categorical(torch.tensor([[0.0, 0.0, 0.0]]))
        >>> q.transform(torch.tensor([0.5]))
        tensor([[0., 1., 0.]])
        >>> q.states().shape
        torch.Size([3, 1, 3])
    """

    logits: Tensor
    reparameterizable = False
    noise_law = "uniform"

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        size = (*shape, *self.logits.shape[:-1])
        return torch.rand(size, generator=generator, dtype=self.logits.dtype, device=self.logits.device)

    @property
    def log_probs(self) -> Tensor:
        """Normalised logits, ``(*batch, D, C)``."""
        return self.logits.log_softmax(-1)

    def transform(self, noise: Tensor) -> Tensor:
        # Upper edges of all cells but the last: what rounding leaves above them belongs to the last.
        edges = self.log_probs.detach().exp().cumsum(-1)[..., :-1]
        values = (noise[..., None] >= edges).sum(-1)
        return one_hot_like(values, self.logits)

    def log_prob(self, z: Tensor) -> Tensor:
        return (z * self.log_probs).sum((-2, -1))

    def detach(self) -> Categorical:
        return Categorical(self.logits.detach())

    def states(self) -> Tensor:
        variables, values = self.logits.shape[-2:]
        each = torch.arange(values, device=self.logits.device)
        return one_hot_like(torch.cartesian_prod(*[each] * variables).reshape(-1, variables), self.logits)

    def edges(self) -> Tensor:
        edges = self.log_probs.detach().exp().cumsum(-1)[..., :-1].movedim(-1, 0)
        return torch.cat([edges, 1 - edges])


def one_hot_like(values: Tensor, logits: Tensor) -> Tensor:
    """Whole numbers ``(..., D)`` as one-hot vectors ``(..., D, C)`` of the type of ``logits (*batch, D, C)``."""
    # Not torch's one_hot, which looks at the largest value and so does not run under vmap.
    return (values[..., None] == torch.arange(logits.shape[-1], device=logits.device)).to(logits.dtype)
