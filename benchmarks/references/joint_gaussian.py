"""Exact values where latents and data are jointly normal and the guide is any normal density, by the algebra of such laws.

    z ~ N(m, F F'),  x|z ~ N(A z + b, N N'),  q(z|x) = N(a_x, G G')

Laws are given by factors of their covariances and solved for by orthogonal factors, never by forming a covariance: of noise a
hundred thousand times smaller than the latents that would leave no digit. Gradients are those of the *values* by autograd, in
float64, so no estimator's algebra enters. Averages over the data points; ascent sign.
"""

from __future__ import annotations

import math
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
        mean, factor: m ``(D,)`` and F ``(D, D)`` of the prior, all layers' latents in one vector.
        weight, bias, noise: A ``(n, D)``, b ``(n,)`` and N ``(n, n)``.
        x: data ``(points, n)``.
        guide_mean: ``(points, D)``. guide_factor: G ``(D, D)``.
    """

    mean: Tensor
    factor: Tensor
    weight: Tensor
    bias: Tensor
    noise: Tensor
    x: Tensor
    guide_mean: Tensor
    guide_factor: Tensor

    def value(self, target: str) -> Tensor:
        """Mean over the data of a target of :data:`TARGETS`."""
        if target == "elbo":
            return self.elbo()
        if target == "forward_kl":
            return -self._kl_from(*self.posterior())
        if target != "log_marginal":
            raise KeyError(target)
        # The ELBO of the posterior, held: there its slope along q is zero, which leaves log p(x)'s own, and of the posterior's
        # rounding no trace. What it is in units of the prior is known, and only slopes are solved for.
        xi, factor = (each.detach() for each in self._posterior_of_xi())
        m, F = self.mean.detach(), self.factor.detach()
        moved, turned = self.mean - m + xi @ (self.factor - F).mT, (self.factor - F) @ factor
        xi_, factor_ = xi - _solve(self.factor, moved.mT).mT, factor - _solve(self.factor, turned)
        return self._elbo(m + xi @ F.mT, F @ factor, xi_, factor_)

    def elbo(self, mean: Tensor | None = None, spread: Tensor | None = None) -> Tensor:
        """Mean over the data of the ELBO; of q with noise N(e, T T') in place of a standard normal where that is given.

        Arguments:
            mean: e, ``(points, D)``. spread: T, ``(D, D)``.
        """
        G = self.guide_factor
        mean = self.guide_mean if mean is None else self.guide_mean + mean @ G.mT
        factor = G if spread is None else G @ spread
        return self._elbo(mean, factor, _solve(self.factor, (mean - self.mean).mT).mT, _solve(self.factor, factor))

    def posterior(self) -> tuple[Tensor, Tensor]:
        """Means ``(points, D)`` and one factor ``(D, D)`` of p(z|x)."""
        mean, factor = self._posterior_of_xi()
        return self.mean + mean @ self.factor.mT, self.factor @ factor

    def _posterior_of_xi(self) -> tuple[Tensor, Tensor]:
        """The same of xi, where z = m + F xi, by least squares."""
        rows = self.x - self.bias - self.mean @ self.weight.mT
        one = torch.eye(len(self.mean)).to(self.mean)
        q, r = torch.linalg.qr(torch.cat([_solve(self.noise, self.weight @ self.factor), one]))
        right = torch.cat([_solve(self.noise, rows.mT), one.new_zeros(len(one), len(rows))])
        mean, inverse = (torch.linalg.solve_triangular(r, each, upper=True) for each in (q.mT @ right, one))
        return mean.mT, inverse

    def tail_ratio(self) -> float:
        """rho, the smallest eigenvalue of G'P G, with P the posterior precision."""
        return float(torch.linalg.svdvals(_solve(self.posterior()[1], self.guide_factor)).min().square())

    def _elbo(self, mean: Tensor, factor: Tensor, xi: Tensor, factor_of_xi: Tensor) -> Tensor:
        """E_q log p(x|z) + E_q log p(z) + the entropy of q, in sums of squares; q by its mean and factor, of z and of xi."""
        rows = self.x - self.bias - mean @ self.weight.mT
        squares = _squares(self.noise, rows.mT) + xi.square().sum(1)
        spread = _squares(self.noise, self.weight @ factor).sum() + factor_of_xi.square().sum()
        log_dets = _log_det(factor) - _log_det(self.factor) - _log_det(self.noise)
        constant = 0.5 * len(self.mean) - 0.5 * len(self.bias) * math.log(2 * math.pi)
        return constant + log_dets - 0.5 * (squares.mean() + spread)

    def _kl_from(self, mean: Tensor, factor: Tensor) -> Tensor:
        """KL(N(mean, factor factor') || q)."""
        squares = _squares(self.guide_factor, (self.guide_mean - mean).mT).mean()
        spread = _squares(self.guide_factor, factor).sum()
        return 0.5 * (squares + spread - len(factor)) + _log_det(self.guide_factor) - _log_det(factor)


def _solve(factor: Tensor, columns: Tensor) -> Tensor:
    return torch.linalg.solve(factor, columns)


def _squares(factor: Tensor, columns: Tensor) -> Tensor:
    """The squared length of each column in units of a factor."""
    return _solve(factor, columns).square().sum(0)


def _log_det(factor: Tensor) -> Tensor:
    return torch.linalg.slogdet(factor)[1]


def differentiated(
    law: Callable[[Parameters], JointGaussian], parameters: Parameters, target: str
) -> tuple[float, Parameters]:
    """Value and gradient of a target, where ``law`` gives the joint law at any parameters (float64)."""
    return float(law(parameters).value(target)), grad(lambda p: law(p).value(target))(parameters)
