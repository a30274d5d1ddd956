"""Expected costs of one Gaussian, on which the variances of the three great families of estimators are published."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from estimators import Block, DiagonalGaussian, Parameters, Target

from ..references.gaussian_cost import COSTS, GaussianCost
from ..references.self_normalized import QuadratureError
from .problem import Problem, Reference

VARIANCES = {
    "score-function": "score",
    "reparameterization": "total-derivative",
    "price-first-order": "total-derivative",  # draw by draw
    "sticking-the-landing": "pathwise",
    "bonnet-price": "bonnet-price",
    "measure-valued": "measure-valued",
}
"""Estimators whose exact variance is known, and what the references call them."""


@dataclass(frozen=True)
class ExpectedCost(Problem):
    """E f(z) under q = N(loc, scale^2), as an evidence lower bound.

    log p(x, z) = f(z) + log q0(z), where q0 is q at the measured parameters and does not move with them. So log w is
    f(z) there, and the ELBO is E_q f - KL(q || q0): KL and its gradient are zero at q0, so its gradient is that of E_q f.
    Sticking the landing is the pathwise estimator of the paper, and the score function its score-function estimator;
    reparameterisation has the noise of -h in addition.

    Arguments:
        cost: ``quadratic`` (z - k)^2, ``exp`` exp(-k z^2) or ``cos`` cos(k z).
        k: theta. loc, scale: the guide's mean and standard deviation; phi, with no logarithm.

    References:
        Mohamed, Rosca, Figurnov & Mnih (2020), section 3.
    """

    cost: str = "quadratic"
    k: float = 0.5
    loc: float = 1.0
    scale: float = 1.0

    name = "gaussian-cost"
    version = "2"
    summary = "quadratic, exponential and cosine costs of one Gaussian, with exact variances"
    citations = ("mohamed2020",)
    offers = frozenset({"reparameterizable", "gaussian", "twice_differentiable"})
    exact_targets = ("elbo",)

    def validate(self) -> None:
        self.require(self.cost in COSTS, f"cost must be one of {', '.join(COSTS)}, not {self.cost!r}")
        self.require(self.scale > 0, f"scale must be positive, not {self.scale}")
        floor = -1 / (4 * self.scale**2)
        self.require(self.cost != "exp" or self.k > floor, f"k must exceed {floor:.4g}, or exp(-k z^2) has no variance")

    @cached_property
    def parameters(self) -> Parameters:
        phi = {"loc": self.tensor([self.loc]), "scale": self.tensor([self.scale])}
        return {"theta": {"k": self.tensor(self.k)}, "phi": phi}

    @cached_property
    def data(self) -> Tensor:
        """There is none: one point, whose x is empty."""
        return self.tensor([[]])

    @cached_property
    def _reference(self) -> GaussianCost:
        return GaussianCost(self.cost, self.k, self.loc, self.scale)

    def exact(self, target: Target) -> Reference | None:
        if target.name != "elbo":
            return None
        return self.reference(target, self._reference.gradient(), "closed form")

    def exact_variance(self, estimator: str, num_samples: int, block: str) -> float | None:
        if estimator not in VARIANCES or block != "phi":
            return None
        try:
            single = sum(self._reference.variance(VARIANCES[estimator], parameter) for parameter in ("loc", "scale"))
        except QuadratureError:
            return None
        return single / num_samples

    def guide(self, phi: Block) -> DiagonalGaussian:
        return DiagonalGaussian(phi["loc"][None], phi["scale"].log()[None])

    def log_joint(self, theta: Block, z: Tensor) -> Tensor:
        x, k = z[..., 0], theta["k"]
        if self.cost == "quadratic":
            f = (x - k).square()
        else:
            f = torch.exp(-k * x.square()) if self.cost == "exp" else torch.cos(k * x)
        return f + self.guide(self.parameters["phi"]).log_prob(z)
