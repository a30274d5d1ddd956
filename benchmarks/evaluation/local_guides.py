"""Families of densities whose members belong to one data point each: no network picks them, so nothing is amortised.

A member's parameters have the data points as their first axis. Each starts where the model's own guide stands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from estimators import Block, DiagonalGaussian, Guide
from estimators.guides import FullRankGaussian

from ..problems.rich_guides import FlowGuide, couplings, still

SPREAD_SAMPLES = 1000
"""Draws that tell where a guide stands that does not state its own mean and scale."""


class LocalFlow(FlowGuide):
    """A flow with coupling layers of its own for each data point: ``parameters`` are ``(points, ...)``."""

    def detach(self) -> LocalFlow:
        held = {name: leaf.detach() for name, leaf in self.parameters.items()}
        return LocalFlow(self.base.detach(), self.features, held, self.couplings)

    def _flow(self, given: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        def one(parameters: Block, given: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
            return functional_call(self.couplings, parameters, (given, features), {"inverse": inverse})

        return vmap(one, in_dims=(0, -2, 0), out_dims=(-2, -1))(self.parameters, given, self.features)


class LocalFamily(NamedTuple):
    """``start`` gives a member's parameters near a guide; ``build`` the members, one for each data point."""

    start: Callable[[Guide, torch.Generator], Block]
    build: Callable[[Block], Guide]


@torch.no_grad()
def _diagonal(guide: Guide, generator: torch.Generator) -> Block:
    if isinstance(guide, DiagonalGaussian):
        return {"loc": guide.loc.clone(), "log_scale": guide.log_scale.expand_as(guide.loc).clone()}
    z = guide.transform(guide.noise((SPREAD_SAMPLES,), generator))
    return {"loc": z.mean(0), "log_scale": z.std(0).log()}


@torch.no_grad()
def _full_rank(guide: Guide, generator: torch.Generator) -> Block:
    if isinstance(guide, FullRankGaussian):
        return {name: getattr(guide, name).clone() for name in ("loc", "log_scale", "below")}
    local = _diagonal(guide, generator)
    D = local["loc"].shape[-1]
    return local | {"below": local["loc"].new_zeros(*local["loc"].shape[:-1], D * (D - 1) // 2)}


@torch.no_grad()
def _flow(guide: Guide, generator: torch.Generator) -> Block:
    local = _diagonal(guide, generator)
    points, D = local["loc"].shape
    first = still(couplings(D, 0), generator, local["loc"])
    return local | {f"flow.{name}": leaf.expand(points, *leaf.shape).clone() for name, leaf in first.items()}


def _build_flow(local: Block) -> LocalFlow:
    flow = {name.removeprefix("flow."): leaf for name, leaf in local.items() if name.startswith("flow.")}
    points, D = local["loc"].shape
    base = DiagonalGaussian(local["loc"], local["log_scale"])
    return LocalFlow(base, base.loc.new_zeros(points, 0), flow, couplings(D, 0))


FAMILIES: dict[str, LocalFamily] = {
    "diagonal": LocalFamily(_diagonal, lambda local: DiagonalGaussian(**local)),
    "full-rank": LocalFamily(_full_rank, lambda local: FullRankGaussian(**local)),
    "flow": LocalFamily(_flow, _build_flow),
}
