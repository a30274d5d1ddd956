"""Estimators that use that the guide is Gaussian."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp

from .contract import Block, Draw, Gradient, Guide, LatentModel, Parameters
from .elbo import ElboEstimator, _gaussian
from .guides import DiagonalGaussian


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
            _, slope, hessian = expansion(model, {k: v.detach() for k, v in theta.items()}, z.detach())
            scale, curvature = held.scale, hessian.diagonal(dim1=-2, dim2=-1)
            slope = slope + (z.detach() - held.loc) / scale.square()
            curvature = curvature + 1 / scale.square()
            of_phi = (slope.mean(0) * guide.loc + (scale * curvature).mean(0) * guide.scale).sum()
            points = log_p[0].numel()
            value = (log_p - held.log_prob(z)).mean()
            return (of_phi + log_p.mean(0).sum()) / points, value.detach()

        (phi, theta), value = grad(surrogate, argnums=(0, 1), has_aux=True)(parameters["phi"], parameters["theta"])
        return Gradient(value, theta, phi)


@dataclass(frozen=True)
class PriceFirstOrder(ElboEstimator):
    """Price's theorem without second derivatives, through Stein's identity, for a diagonal Gaussian guide.

    .. math:: \\nabla_{\\mu} E \\log p = E \\, \\nabla \\log p, \\qquad
              \\nabla_{\\Sigma} E \\log p = \\tfrac12 E [\\Sigma^{-1} (z - \\mu) \\, \\nabla \\log p(x, z)^T]

    plus the gradient of q's entropy in closed form, and from (mu, Sigma) to phi by the chain rule. With z = mu + sigma eps
    it is the total derivative ``reparameterization`` draw by draw, reached without a derivative through the sampling path.

    Warning:
        Sigma is the covariance: with respect to sigma the half goes away, d Sigma = 2 sigma d sigma. Of a full matrix the
        estimate is not symmetric draw by draw.

    References:
        Price (1958); Rezende, Mohamed & Wierstra (2014).

    Example:
        >>> sorted(PriceFirstOrder.needs)  # no second derivatives
        ['gaussian']
    """

    name = "price-first-order"
    citations = ("price1958", "rezende2014")
    needs = frozenset({"gaussian"})

    def gradient(self, model: LatentModel, parameters: Parameters, noise: Any) -> Gradient:
        at = evaluated(model, parameters, noise)
        of_covariance = 0.5 * (at.z - at.loc) / at.scale.square() * at.slope
        of_scale = (2 * at.scale * of_covariance).mean(0) + 1 / at.scale
        return Gradient(at.log_w.mean(), at.theta, chain(model, parameters["phi"], at.slope.mean(0), of_scale))


@dataclass(frozen=True)
class MeasureValued(ElboEstimator):
    """Measure-valued (weak) derivatives of a diagonal Gaussian guide: differences of values, never a slope in z.

    .. math:: \\nabla_{\\mu_i} E f = E \\frac{f(\\mu + \\sigma W_i) - f(\\mu - \\sigma W_i)}{\\sigma_i \\sqrt{2 \\pi}}, \\qquad
              \\nabla_{\\sigma_i} E f = E \\frac{f(\\mu + \\sigma M_i) - f(\\mu + \\sigma N_i)}{\\sigma_i}

    for f = log p(x, z) - log q(z) with q held, where in coordinate i W is Weibull with shape 2 and scale root 2, M a
    double-sided Maxwell variable and N standard normal; the other coordinates are those of the sample. Coupled: M is the
    length of a three-dimensional normal vector with the sign of its first coordinate, and N is that coordinate, so N = U M
    with U uniform and independent of M. As N is the sample's own noise, one sample takes 1 + 3D evaluations of
    log p(x, z) and not 4D. Needs nothing of log p(x, z) but values: steps and kinks do no harm.

    Warning:
        With M and N (or the two sides of W) drawn independently it is still unbiased, but far noisier.

    References:
        Rosca, Figurnov, Mohamed & Mnih (2019); Mohamed, Rosca, Figurnov & Mnih (2020), section 6.

    Example:
        >>> from estimators import DiagonalGaussian
        >>> q = DiagonalGaussian(torch.zeros(1, 3), torch.zeros(1, 3))
        >>> MeasureValued(num_samples=2).draws(q, 7, torch.Generator())[0].noise.shape
        torch.Size([7, 2, 5, 1, 3])
    """

    name = "measure-valued"
    citations = ("rosca2019", "mohamed2020")
    needs = frozenset({"gaussian"})

    def draws(self, guide: Guide, replicates: int, generator: torch.Generator) -> list[Draw]:
        """Five standard normals in place of one: the sample's own, two that make it Maxwell, two that make a Weibull."""
        return [Draw(torch.arange(replicates), guide.noise((replicates, self.num_samples, 5), generator))]

    def gradient(self, model: LatentModel, parameters: Parameters, noise: Any) -> Gradient:
        phi, theta = parameters["phi"], parameters["theta"]
        held = _gaussian(model.guide(phi))
        normal, *others = noise.unbind(1)
        maxwell = normal.sign() * _length(normal, *others[:2])
        weibull = _length(*others[2:])

        def f(theta: Block, noise: Tensor) -> Tensor:
            z = held.transform(noise)
            return model.log_joint(theta, z) - held.log_prob(z)

        log_w, pull_back = vjp(lambda theta: f(theta, normal), theta)  # type: ignore[misc]
        (theta_gradient,) = pull_back(torch.full_like(log_w, 1 / log_w.numel()))
        moved = f(theta, torch.stack([one_by_one(normal, to) for to in (weibull, -weibull, maxwell)]))
        up, down, wide = moved.movedim(1, -1)  # each (K, *batch, D)
        of_loc = (up - down) / (held.scale * math.sqrt(2 * math.pi))
        of_scale = (wide - log_w[..., None]) / held.scale
        return Gradient(log_w.mean(), theta_gradient, chain(model, phi, of_loc.mean(0), of_scale.mean(0)))


def _length(*parts: Tensor) -> Tensor:
    """The Euclidean length of vectors whose coordinates are given one by one."""
    return torch.stack(parts).square().sum(0).sqrt()


def one_by_one(noise: Tensor, other: Tensor) -> Tensor:
    """``(D, ..., D)``: in copy i the i-th number of the last axis comes from ``other``, the rest from ``noise``."""
    dimensions = noise.shape[-1]
    chosen = torch.eye(dimensions, dtype=torch.bool, device=noise.device)
    return torch.where(chosen.reshape(dimensions, *(1,) * (noise.ndim - 1), dimensions), other, noise)


class Evaluated(NamedTuple):
    """A Gaussian guide's sample and what one pass through log p(x, z) tells of it."""

    loc: Tensor
    scale: Tensor
    z: Tensor
    log_w: Tensor
    slope: Tensor
    """Of log p(x, z) in z, ``(K, *batch, D)``."""
    theta: Block
    """The mean of the samples' and data points' theta-gradients."""


def evaluated(model: LatentModel, parameters: Parameters, noise: Any) -> Evaluated:
    """Values, slopes in z and the theta-gradient at the samples that ``noise`` gives, in one pass."""
    guide = _gaussian(model.guide(parameters["phi"]))
    z = guide.transform(noise)
    log_p, pull_back = vjp(model.log_joint, parameters["theta"], z)  # type: ignore[misc]
    theta, slope = pull_back(torch.full_like(log_p, 1 / log_p.numel()))
    return Evaluated(guide.loc, guide.scale, z, log_p - guide.log_prob(z), slope * log_p.numel(), theta)


def chain(model: LatentModel, phi: Block, of_loc: Tensor, of_scale: Tensor) -> Block:
    """The phi-gradient, mean over data points, from gradients ``(*batch, D)`` with respect to a guide's loc and scale."""

    def moments(phi: Block) -> tuple[Tensor, Tensor]:
        guide = _gaussian(model.guide(phi))
        return guide.loc, guide.scale

    points = of_loc[..., 0].numel()
    _, pull_back = vjp(moments, phi)  # type: ignore[misc]
    (gradient,) = pull_back((of_loc / points, of_scale / points))
    return gradient


def expansion(model: LatentModel, theta: Block, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value ``(...)``, slope ``(..., D)`` and Hessian ``(..., D, D)`` of log p(x, z) in z ``(..., D)``."""

    def slope(z: Tensor) -> tuple[Tensor, Tensor]:
        def total(z: Tensor) -> tuple[Tensor, Tensor]:
            log_p = model.log_joint(theta, z)
            return log_p.sum(), log_p

        return grad(total, has_aux=True)(z)

    dimensions = z.shape[-1]
    axes = torch.eye(dimensions, dtype=z.dtype, device=z.device)
    axes = axes.reshape(dimensions, *(1,) * (z.ndim - 1), dimensions)
    copies = z.repeat(dimensions, *(1,) * z.ndim)
    # One pass over D copies of z, each pushed along its own axis, which gives one row of the Hessian each.
    slopes, rows, values = jvp(slope, (copies,), (axes.expand_as(copies).contiguous(),), has_aux=True)  # type: ignore[misc]
    return values[0], slopes[0], rows.movedim(0, -2)
