"""The one-dimensional Gaussian under a guide that is none: a mixture of two."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor
from torch.func import grad

from estimators import Block, Guide, MixtureOfGaussians, Parameters, Target

from ..references.on_a_line import Mesh, finer, graded, settled
from .gaussian import UnitGaussian
from .scalar_latent import ScalarLatent

MOST_NODES = 2**20
"""Of the posterior on a line."""
REACH = 26.0
"""Standard deviations of a Gaussian: even what grows nearly as fast as it falls has ended there."""


@dataclass(frozen=True)
class GaussianMixtureGuide(ScalarLatent, UnitGaussian):
    """z ~ N(prior_loc, 1), x | z ~ N(z, 1), as ``gaussian-1d``, with a mixture of two Gaussians for a guide.

    Arguments:
        loc1, loc2, scale1, scale2: the components' means and standard deviations. weight1: the first one's probability.
        x: the one data point. prior_loc: the prior's mean; theta.

    phi: ``logits`` (1, 2), ``loc`` and ``log_scale`` (1, 2, 1).

    References:
        Figurnov, Mohamed & Mnih (2018); Jankowiak & Obermeyer (2018).
    """

    loc1: float = 0.0
    loc2: float = 1.4
    scale1: float = 0.7
    scale2: float = 0.9
    weight1: float = 0.35
    x: float = 1.0
    prior_loc: float = 0.2

    name = "gaussian-mixture-guide"
    version = "3"
    summary = "the one-dimensional Gaussian with a mixture of two Gaussians for a guide"
    citations = ("figurnov2018", "jankowiak2018")

    def validate(self) -> None:
        for field in ("scale1", "scale2"):
            self.require(getattr(self, field) > 0, f"{field} must be positive, not {getattr(self, field)}")
        self.require(0 < self.weight1 < 1, f"weight1 must lie between 0 and 1, not {self.weight1}")

    @cached_property
    def parameters(self) -> Parameters:
        scales = [[math.log(self.scale1)], [math.log(self.scale2)]]
        return {
            "theta": {"prior_loc": self.tensor([self.prior_loc])},
            "phi": {
                "logits": self.tensor([[math.log(self.weight1), math.log1p(-self.weight1)]]),
                "loc": self.tensor([[[self.loc1], [self.loc2]]]),
                "log_scale": self.tensor([scales]),
            },
        }

    @cached_property
    def data(self) -> Tensor:
        return self.tensor([[self.x]])

    def guide(self, phi: Block) -> Guide:
        return MixtureOfGaussians(phi["logits"], phi["loc"], phi["log_scale"])

    @property
    def mesh(self) -> Mesh:
        # The components and the posterior, N((x + prior_loc) / 2, 1 / 2): three steps for one in the midst of each.
        places = [self.loc1, self.loc2, (self.x + self.prior_loc) / 2]
        return graded(places, [3 * scale for scale in (self.scale1, self.scale2, math.sqrt(0.5))], REACH / 3)

    def closed_forms(self) -> dict[str, Callable[[Parameters], Tensor]]:
        def log_marginal(p: Parameters) -> Tensor:
            return -0.25 * (self.data - p["theta"]["prior_loc"]).square().sum() - 0.5 * math.log(4 * math.pi)

        return {"log_marginal": log_marginal}

    def summed(self, target: Target) -> tuple[float, Parameters] | None:
        if target.setting == "chi-square" and max(self.scale1, self.scale2) >= 1:
            return None  # E_q[q / p] is infinite, however little of q the wide component is: no grid reaches that far
        if target.name != "forward_kl":
            return super().summed(target)

        def on(nodes: int) -> tuple[float, Parameters]:
            z, dz = self.mesh(nodes)
            log_posterior = -(z[..., 0] - (self.x + self.prior_loc) / 2).square() - 0.5 * math.log(math.pi)

            def value(p: Parameters) -> Tensor:
                return (log_posterior.exp() * dz * (self.guide(p["phi"]).log_prob(z) - log_posterior)).sum()

            return float(value(self.parameters)), grad(value)(self.parameters)

        return settled(on, finer(MOST_NODES))
