"""Exact values where latents and data are jointly normal and the guide is any normal density, by the algebra of such laws.

    z ~ N(m, S),  x|z ~ N(A z + b, R),  q(z|x) = N(a_x, Q)

Gradients are those of the *values* by autograd, in float64, so no estimator's algebra enters. Averages over the data
points; ascent sign.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad

from estimators import Parameters

TARGETS = ("elbo", "log_marginal", "forward_kl")


@dataclass(frozen=True)
class JointGaussian:
    """A joint normal law with its data, and a normal guide.

    Arguments:
        mean, covariance: of the prior, all layers' latents in one vector, ``(D,)`` and ``(D, D)``.
        weight, bias, noise: A ``(n, D)``, b ``(n,)`` and R ``(n, n)``.
        x: data ``(points, n)``.
        guide_mean: ``(points, D)``.
        guide_covariance: Q ``(D, D)``, or one for each point.
    """

    mean: Tensor
    covariance: Tensor
    weight: Tensor
    bias: Tensor
    noise: Tensor
    x: Tensor
    guide_mean: Tensor
    guide_covariance: Tensor

    def posterior(self) -> tuple[Tensor, Tensor]:
        """Means ``(points, D)`` and the one covariance of p(z|x), by conditioning the law of (z, x)."""
        across = self.covariance @ self.weight.T
        gain = torch.linalg.solve(self._marginal_covariance, across.T).T
        return self.mean + self._residual @ gain.T, self.covariance - gain @ across.T

    @property
    def _marginal_covariance(self) -> Tensor:
        return self.weight @ self.covariance @ self.weight.T + self.noise

    @property
    def _residual(self) -> Tensor:
        return self.x - self.bias - self.weight @ self.mean

    def value(self, target: str) -> Tensor:
        """Mean over the data of a target of :data:`TARGETS`."""
        mean, covariance = self.posterior()
        if target == "forward_kl":
            return -kl(mean, covariance, self.guide_mean, self.guide_covariance).mean()
        law = torch.distributions.MultivariateNormal(
            self._residual.new_zeros(()).expand_as(self._residual), self._marginal_covariance, validate_args=False
        )
        log_marginal = law.log_prob(self._residual).mean()
        if target == "log_marginal":
            return log_marginal
        if target != "elbo":
            raise KeyError(target)
        return log_marginal - kl(self.guide_mean, self.guide_covariance, mean, covariance).mean()

    def tail_ratio(self) -> float:
        """rho, the smallest eigenvalue of Q^(1/2) P Q^(1/2), with P the posterior precision."""
        factor = torch.linalg.cholesky(self.guide_covariance)
        return float(torch.linalg.eigvalsh(factor.mT @ torch.linalg.inv(self.posterior()[1]) @ factor).min())


def kl(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> Tensor:
    """KL(N(mean, covariance) || N(other_mean, other_covariance)), ``(points,)``."""
    shift = (other_mean - mean)[..., None]
    solved = torch.linalg.solve(other_covariance, torch.cat([covariance.expand(*shift.shape[:-1], -1), shift], -1))
    trace = solved[..., :-1].diagonal(dim1=-2, dim2=-1).sum(-1)
    square = (shift * solved[..., -1:]).sum((-2, -1))
    log_dets = torch.logdet(other_covariance) - torch.logdet(covariance)
    return 0.5 * (trace + square - mean.shape[-1] + log_dets)


def differentiated(
    law: Callable[[Parameters], JointGaussian], parameters: Parameters, target: str
) -> tuple[float, Parameters]:
    """Value and gradient of a target, where ``law`` gives the joint law at any parameters (float64)."""
    return float(law(parameters).value(target)), grad(lambda p: law(p).value(target))(parameters)
