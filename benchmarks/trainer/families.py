"""Families of models by name, and a view of one that draws data of its own, for sleep updates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from estimators import Block, Guide, LatentModel, Parameters

from ..problems.belief_net_vae import BernoulliLatents
from ..problems.family import Family
from ..problems.hierarchical_vae import Layered
from ..problems.pixel_vae import Autoregressive
from ..problems.rich_guides import Guided
from ..problems.vae import OneLayer
from ..specs import SpecError, convert, nearest, parse

FAMILIES: dict[str, type[Family]] = {
    "vae": OneLayer,
    "hierarchical-vae": Layered,
    "pixel-vae": Autoregressive,
    "belief-net-vae": BernoulliLatents,
    "rich-guide-vae": Guided,
}


def family(spec: str) -> Family:
    """The family of a specification such as ``vae[hidden=100,latent=20]``.

    Raises:
        SpecError: for an unknown name or setting, or sizes that make no network.
    """
    name, raw = parse(spec)
    if name not in FAMILIES:
        raise SpecError(f"no family of models {name!r}; {nearest(name, FAMILIES)}")
    made = FAMILIES[name](**convert(FAMILIES[name], raw))
    try:
        made.validate_sizes()
    except SpecError as problem:
        raise SpecError(f"{name}: {problem}") from None
    return made


def can_dream(family: Family, model: LatentModel) -> bool:
    """Whether data can be drawn from explicit noise: not pixel by pixel, each given those before it."""
    return bool(model.offers & {"analytic_kl", "invertible_prior"}) and not isinstance(family, Autoregressive)


class Dreaming(LatentModel):
    """A model that draws its own data: latents from the prior, independent pixels given them."""

    def __init__(self, model: LatentModel, family: Family, parameters: Parameters, pixels: int) -> None:
        self.model, self.family = model, family
        self.offers = model.offers | {"simulable"}
        self.lacking = model.lacking
        self._prior = model.prior(parameters["theta"])
        self._pixels = pixels

    def log_joint(self, theta: Block, z: Any) -> Tensor:
        return self.model.log_joint(theta, z)

    def guide(self, phi: Block) -> Guide:
        return Dreamer(self.model.guide(phi), self._prior, self._pixels)

    def simulate(self, theta: Block, noise: Any) -> tuple[Any, LatentModel]:
        latent, uniform = noise
        z = self.model.prior(theta).transform(latent)
        means = self.family.images(theta, z, torch.Generator())
        return z, self.family.model_of((uniform < means).to(uniform.dtype))


class Dreamer(Guide):
    """A guide that says what its model's latents and data are drawn from."""

    def __init__(self, guide: Guide, prior: Guide, pixels: int) -> None:
        self.inner, self.prior, self.pixels = guide, prior, pixels

    @property
    def reparameterizable(self) -> bool:  # type: ignore[override]
        return self.inner.reparameterizable

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Any:
        return self.inner.noise(shape, generator)

    def transform(self, noise: Any) -> Any:
        return self.inner.transform(noise)

    def log_prob(self, z: Any) -> Tensor:
        return self.inner.log_prob(z)

    def log_prob_transformed(self, noise: Any) -> Tensor:
        return self.inner.log_prob_transformed(noise)

    def detach(self) -> Guide:
        return self.inner.detach()

    def simulation_noise(self, shape: tuple[int, ...], generator: torch.Generator) -> tuple[Any, Tensor]:
        latent = self.prior.noise(shape, generator)
        like = self.inner.log_prob(self.inner.transform(self.inner.noise((1,), generator)))
        uniform = torch.rand(
            (*shape, *like.shape[1:], self.pixels), generator=generator, dtype=like.dtype, device=like.device
        )
        return latent, uniform
