"""A Pyro guide as a density that explicit noise is transformed to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import vmap

from estimators import Block, Guide
from estimators.trees import tree_leaves, tree_map

if TYPE_CHECKING:
    from .pyro_problem import PyroProblem


class PyroGuide(Guide):
    """A Pyro guide at parameters phi; noise and latents are dicts by site."""

    def __init__(self, problem: PyroProblem, phi: Block) -> None:
        self.problem, self.phi = problem, phi
        self._program = problem.program
        self._last: tuple[Any, Tensor] | None = None
        self.reparameterizable = all(site.smooth for site in self._program.sites.values())  # type: ignore[misc]
        laws = {law for site in self._program.sites.values() for law, _ in site.noise}
        self.noise_law = laws.pop() if len(laws) == 1 else "own"  # type: ignore[misc]

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Any:
        like = self.problem.like

        def fresh(law: str, size: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
            sample = torch.randn if law == "normal" else torch.rand
            return sample((*shape, *size), generator=generator, dtype=like.dtype, device=like.device)

        drawn = {}
        for name, site in self._program.sites.items():
            # All K samples of an estimate look at the same subset of a plate: it is of the data, not of z.
            of = (*shape[:-1], 1) if site.subset and len(shape) > 1 else shape
            drawn[name] = tuple(fresh(law, size, of).expand((*shape, *size)) for law, size in site.noise)
        return drawn

    def transform(self, noise: Any) -> dict[str, Tensor]:
        z, log_q = over_leading(noise, self._noise_rank, self._sample)
        self._last = (noise, log_q)
        return z

    def log_prob(self, z: dict[str, Tensor]) -> Tensor:
        return over_leading(z, self.problem.latent_rank, self._log_prob)

    def log_prob_transformed(self, noise: Any) -> Tensor:
        if self._last is not None and self._last[0] is noise:
            return self._last[1]  # one run of the guide gave both
        self.transform(noise)
        assert self._last is not None
        return self._last[1]

    def detach(self) -> PyroGuide:
        return PyroGuide(self.problem, {name: leaf.detach() for name, leaf in self.phi.items()})

    @property
    def _noise_rank(self) -> int:
        """Dimensions of the first tensor of one draw's noise."""
        return next(len(site.noise[0].shape) for site in self._program.sites.values() if site.noise)

    def _sample(self, noise: Any) -> tuple[dict[str, Tensor], Tensor]:
        z, log_q = self._program.sample(self.phi, noise, self.problem.plate or None)
        return self.problem.to_front(z), log_q

    def _log_prob(self, z: dict[str, Tensor]) -> Tensor:
        return self._program.guide_log_prob(self.phi, self.problem.from_front(z), self.problem.plate or None)


def over_leading(tree: Any, rank: int, function: Callable[[Any], Any]) -> Any:
    """``function`` of one draw, vectorised over the leading dimensions; ``rank``: of the tree's first tensor in one draw."""
    leaves = tree_leaves(tree)
    first = leaves[0]
    leading = first.shape[: first.ndim - rank]
    if not leading:
        return function(tree)
    flat = tree_map(lambda leaf: leaf.reshape(-1, *leaf.shape[len(leading) :]), tree)
    out = vmap(function)(flat)
    return tree_map(lambda leaf: leaf.reshape(*leading, *leaf.shape[1:]), out)
