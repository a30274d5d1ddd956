"""Guides: densities that are sampled by transforming explicit noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .contract import Guide


@dataclass(frozen=True)
class DiagonalGaussian(Guide):
    """z = loc + exp(log_scale) * noise, with standard normal noise.

    Arguments:
        loc: ``(*batch, D)``.
        log_scale: logarithm of the standard deviations, same shape.

    Example:
        >>> q = DiagonalGaussian(torch.zeros(3, 2), torch.zeros(3, 2))
        >>> q.noise((5,), torch.Generator().manual_seed(0)).shape
        torch.Size([5, 3, 2])
        >>> q.log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """

    loc: Tensor
    log_scale: Tensor
    reparameterizable = True

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randn((*shape, *self.loc.shape), generator=generator, dtype=self.loc.dtype, device=self.loc.device)

    @property
    def scale(self) -> Tensor:
        """Standard deviations, ``(*batch, D)``."""
        return self.log_scale.exp()

    def transform(self, noise: Tensor) -> Tensor:
        return self.loc + self.scale * noise

    def log_prob(self, z: Tensor) -> Tensor:
        # Passes over (K, *batch, D) are what this costs: constants are added after the sum, and loc is negated before
        # it is spread, so that its gradient is negated after it was summed.
        squares = ((z + (-self.loc)) * torch.exp(-self.log_scale)).square().sum(-1)
        return -0.5 * squares - (self.log_scale.sum(-1) + 0.5 * math.log(2 * math.pi) * self.loc.shape[-1])

    def log_prob_transformed(self, noise: Tensor) -> Tensor:
        # The noise is the standardised z, so phi enters through the log-determinant alone.
        return -0.5 * noise.square().sum(-1) - (
            self.log_scale.sum(-1) + 0.5 * math.log(2 * math.pi) * self.loc.shape[-1]
        )

    def inverse(self, z: Tensor) -> Tensor:
        return (z - self.loc) * torch.exp(-self.log_scale)

    def detach(self) -> DiagonalGaussian:
        return DiagonalGaussian(self.loc.detach(), self.log_scale.detach())

    def kl(self, other: DiagonalGaussian) -> Tensor:
        """KL(self || other), ``(*batch)``, in nats."""
        return torch.distributions.kl_divergence(
            torch.distributions.Normal(self.loc, self.scale, validate_args=False),
            torch.distributions.Normal(other.loc, other.scale, validate_args=False),
        ).sum(-1)


@dataclass(frozen=True)
class FullRankGaussian(Guide):
    """z = loc + L noise, with standard normal noise and L lower triangular with a positive diagonal.

    .. math:: z \\sim N(\\mathrm{loc}, L L^\\top), \\qquad L_{ii} = \\exp(\\mathrm{log\\_scale}_i)

    Arguments:
        loc: ``(*batch, D)``.
        log_scale: logarithm of the diagonal of L, ``(*batch, D)``.
        below: what stands below it, row by row, ``(*batch, D (D - 1) / 2)``.

    Example:
        >>> q = FullRankGaussian(torch.zeros(2), torch.zeros(2), torch.tensor([0.5]))
        >>> q.scale_tril
        tensor([[1.0000, 0.0000],
                [0.5000, 1.0000]])
        >>> q.inverse(q.transform(torch.tensor([1.0, 2.0])))
        tensor([1., 2.])
    """

    loc: Tensor
    log_scale: Tensor
    below: Tensor
    reparameterizable = True

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randn((*shape, *self.loc.shape), generator=generator, dtype=self.loc.dtype, device=self.loc.device)

    @property
    def scale_tril(self) -> Tensor:
        """L, ``(*batch, D, D)``."""
        dimensions = self.loc.shape[-1]
        rows, columns = torch.tril_indices(dimensions, dimensions, -1, device=self.loc.device)[:, :, None, None]
        axis = torch.arange(dimensions, device=self.loc.device)
        # A sum over constant masks, one for each place: nothing is assigned, so any functional transform goes through.
        places = ((rows == axis[:, None]) & (columns == axis)).to(self.loc.dtype)
        return torch.diag_embed(self.log_scale.exp()) + torch.tensordot(self.below, places, 1)

    def transform(self, noise: Tensor) -> Tensor:
        return self.loc + (self.scale_tril @ noise[..., None])[..., 0]

    def inverse(self, z: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.scale_tril, (z - self.loc)[..., None], upper=False)[..., 0]

    def log_prob(self, z: Tensor) -> Tensor:
        return self.log_prob_transformed(self.inverse(z))

    def log_prob_transformed(self, noise: Tensor) -> Tensor:
        # The noise is the whitened z, so phi enters through the log-determinant alone.
        return -0.5 * noise.square().sum(-1) - (
            self.log_scale.sum(-1) + 0.5 * math.log(2 * math.pi) * self.loc.shape[-1]
        )

    def detach(self) -> FullRankGaussian:
        return FullRankGaussian(self.loc.detach(), self.log_scale.detach(), self.below.detach())


def standard_log_prob(x: Tensor, loc: Tensor) -> Tensor:
    """log N(x; loc, I), summed over the last axis: :meth:`DiagonalGaussian.log_prob` without the scale.

    Example:
        >>> x = torch.tensor([0.5, -1.0])
        >>> torch.allclose(standard_log_prob(x, x.new_zeros(2)), DiagonalGaussian(x * 0, x * 0).log_prob(x))
        True
    """
    # Plus minus loc: a gradient with respect to loc is then summed before it is negated, not the other way round.
    return -0.5 * (x + (-loc)).square().sum(-1) - 0.5 * math.log(2 * math.pi) * x.shape[-1]
