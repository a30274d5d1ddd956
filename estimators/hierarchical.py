"""Guides and priors of several stochastic layers: a chain of densities, each given those that were sampled before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .contract import Block, Guide

Layer: TypeAlias = Callable[..., Guide]
"""``layer(parameters, *shallower)``: a layer's density from the parameters and the latents sampled before it, in order."""


@dataclass(frozen=True)
class Hierarchical(Guide):
    """Several stochastic layers, sampled in turn: noise and latents are tuples with one entry for each.

    .. math:: q(z \\mid x) = q_\\phi(z_1 \\mid x) \\prod_{l=2}^L q_\\phi(z_l \\mid z_{l-1}, \\dots, z_1)

    :meth:`detach` holds the parameters and nothing else: what a deeper layer's density takes from a shallower z stays
    live. The two are told apart by handing parameters and latents to each layer separately, so a layer must take its
    parameters from its first argument and not from a closure.

    Arguments:
        parameters: a block, all that the layers are built from.
        layers: one callable for each latent, in the order of the latents; each gives a guide with normal noise.
        top_down: sampled from the last layer to the first, as priors are whose guides go up. A layer is then given the
            deeper latents, the deepest first.

    Warning:
        A deeper layer built anew from numbers (its mean detached) also forgets how that mean moves with z_1. The path
        derivative of log w is then another one; sticking the landing stays unbiased, because what is lost is a score of
        mean zero, but it no longer vanishes at q = posterior, and doubly reparameterised gradients become biased.

    References:
        Sønderby et al. (2016) for such guides; Bauer & Mnih (2021) for their doubly reparameterised gradients.

    Example:
        >>> from estimators import DiagonalGaussian
        >>> phi = {"loc": torch.zeros(1, 2), "slope": torch.tensor(0.5)}
        >>> first = lambda phi: DiagonalGaussian(phi["loc"], torch.zeros(1, 2))
        >>> second = lambda phi, z: DiagonalGaussian(phi["slope"] * z, torch.zeros_like(z))
        >>> q = Hierarchical(phi, (first, second))
        >>> [leaf.shape for leaf in q.noise((5,), torch.Generator().manual_seed(0))]
        [torch.Size([5, 1, 2]), torch.Size([5, 1, 2])]
        >>> z = q.transform((torch.ones(5, 1, 2), torch.zeros(5, 1, 2)))
        >>> q.log_prob(z).shape, float(z[1][0, 0, 0])
        (torch.Size([5, 1]), 0.5)
    """

    parameters: Block
    layers: tuple[Layer, ...]
    top_down: bool = False
    reparameterizable = True

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        found: dict[int, Tensor] = {}
        single: list[Tensor] = []
        for place in self._order():
            guide = self.layers[place](self.parameters, *single)
            if guide.noise_law != "normal":
                raise TypeError(f"layers take normal noise, not {type(guide).__name__}'s")
            found[place] = guide.noise(shape, generator)
            # Deeper layers' shapes are read off one draw: those of many would have the leading dimensions in them.
            single.append(guide.transform(found[place].reshape(-1, *found[place].shape[len(shape) :])[0]))
        return tuple(found[place] for place in range(len(self.layers)))

    def transform(self, noise: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self._chain(lambda guide, place: guide.transform(noise[place]))

    def inverse(self, z: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        found = {place: guide.inverse(z[place]) for place, guide in self._given(z)}
        return tuple(found[place] for place in range(len(self.layers)))

    def log_prob(self, z: tuple[Tensor, ...]) -> Tensor:
        return _sum(guide.log_prob(z[place]) for place, guide in self._given(z))

    def log_probs(self, z: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """log density of each layer given those sampled before it, in the order of the latents."""
        found = {place: guide.log_prob(z[place]) for place, guide in self._given(z)}
        return tuple(found[place] for place in range(len(self.layers)))

    def log_prob_transformed(self, noise: tuple[Tensor, ...]) -> Tensor:
        found: list[Tensor] = []

        def step(guide: Guide, place: int) -> Tensor:
            found.append(guide.log_prob_transformed(noise[place]))
            return guide.transform(noise[place])

        self._chain(step)
        return _sum(iter(found))

    def detach(self) -> Hierarchical:
        held = {name: leaf.detach() for name, leaf in self.parameters.items()}
        return Hierarchical(held, self.layers, self.top_down)

    def _order(self) -> list[int]:
        places = list(range(len(self.layers)))
        return places[::-1] if self.top_down else places

    def _chain(self, step: Callable[[Guide, int], Any]) -> tuple[Tensor, ...]:
        """One latent after the other, each by ``step`` from its layer's density."""
        found: dict[int, Tensor] = {}
        for place in self._order():
            found[place] = step(self.layers[place](self.parameters, *found.values()), place)
        return tuple(found[place] for place in range(len(self.layers)))

    def _given(self, z: tuple[Tensor, ...]) -> Iterator[tuple[int, Guide]]:
        """Each layer's place, and its density given the latents before it."""
        before: list[Tensor] = []
        for place in self._order():
            yield place, self.layers[place](self.parameters, *before)
            before.append(z[place])


def _sum(terms: Iterator[Tensor]) -> Tensor:
    total = next(terms)
    for term in terms:
        total = total + term
    return total
