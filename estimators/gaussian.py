"""Estimators that use that the guide is Gaussian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp

from .contract import Block, Gradient, LatentModel, Parameters
from .elbo import ElboEstimator, _gaussian


@dataclass(frozen=True)
class BonnetPrice(ElboEstimator):
    """Bonnet's theorem for the mean, Price's for the scale, of a diagonal Gaussian guide.

    .. math:: \\nabla_{\\mu} E f = E \\nabla f, \\qquad \\nabla_{\\sigma_i} E f = \\sigma_i E \\, \\partial^2_{ii} f,
              \\qquad f = \\log p(x, z) - \\log \\bar q(z)

    and from (mu, sigma) to phi by the chain rule, averaged over K samples. The log-scale gradient has zero variance on
    any Gaussian target. It needs second derivatives, so it is no weights rule and overrides :meth:`gradient`; each sample
    costs 1 + D evaluations (one gradient and D Hessian-vector products).

    Warning:
        Through ReLU networks the Hessian misses the kinks and the estimate is biased; such models are refused.

    References:
        Bonnet (1964); Price (1958); Opper & Archambeau (2009); Rezende, Mohamed & Wierstra (2014).

    Example:
        >>> sorted(BonnetPrice.needs)
        ['gaussian', 'twice_differentiable']
    """

    name = "bonnet-price"
    citations = ("bonnet1964", "price1958", "opper2009", "rezende2014")
    needs = frozenset({"gaussian", "twice_differentiable"})

    def gradient(self, model: LatentModel, parameters: Parameters, noise: Any) -> Gradient:
        def surrogate(phi: Block, theta: Block) -> tuple[Tensor, Tensor]:
            guide = _gaussian(model.guide(phi))
            held = guide.detach()
            z = held.transform(noise)
            log_p = model.log_joint(theta, z)
            slope, curvature = _derivatives(model, {k: v.detach() for k, v in theta.items()}, z.detach())
            scale = held.scale
            slope = slope + (z.detach() - held.loc) / scale.square()
            curvature = curvature + 1 / scale.square()
            of_phi = (slope.mean(0) * guide.loc + (scale * curvature).mean(0) * guide.scale).sum()
            points = log_p[0].numel()
            value = (log_p - held.log_prob(z)).mean()
            return (of_phi + log_p.mean(0).sum()) / points, value.detach()

        (phi, theta), value = grad(surrogate, argnums=(0, 1), has_aux=True)(parameters["phi"], parameters["theta"])
        return Gradient(value, theta, phi)


def _derivatives(model: LatentModel, theta: Block, z: Tensor) -> tuple[Tensor, Tensor]:
    """First derivatives and diagonal second derivatives of log p(x, z) in z, each shaped as z ``(K, *batch, D)``."""

    def slope(z: Tensor) -> Tensor:
        return grad(lambda z: model.log_joint(theta, z).sum())(z)

    dimensions = z.shape[-1]
    axes = torch.eye(dimensions, dtype=z.dtype, device=z.device)
    axes = axes.reshape(dimensions, *(1,) * (z.ndim - 1), dimensions)
    copies = z.repeat(dimensions, *(1,) * z.ndim)
    # One pass over D copies of z, each pushed along its own axis: the diagonal, never the D x D matrix.
    slopes, along = jvp(slope, (copies,), (axes.expand_as(copies).contiguous(),))  # type: ignore[misc]
    return slopes[0], (along * axes).sum(0)
