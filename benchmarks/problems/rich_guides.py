"""Guides of more than a diagonal Gaussian for the one-layer variational autoencoder: full rank, a mixture, a flow."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from estimators import Block, DiagonalGaussian, Guide, LatentModel, Parameters
from estimators.guides import FullRankGaussian
from estimators.implicit_guides import MixtureOfGaussians

from ..specs import SpecError, nearest
from .digits import TrainedOnDigits
from .family import Family, glorot, logit_of, part, require_positive
from .vae import VAE, Decoder

OFFERS = frozenset({"reparameterizable", "twice_differentiable", "invertible_prior", "data"})
COMPONENTS, COUPLINGS, COUPLING_WIDTH = 4, 4, 64
HEADS: dict[str, Callable[[int], dict[str, int]]] = {
    "full-rank": lambda D: {"loc": D, "log_scale": D, "below": D * (D - 1) // 2},
    "mixture": lambda D: {"logits": COMPONENTS, "loc": COMPONENTS * D, "log_scale": COMPONENTS * D},
    "flow": lambda D: {"loc": D, "log_scale": D},
}
"""Of each guide: what its network gives, and how many numbers of it."""


class Features(nn.Module):
    """pixels -> hidden -> hidden -> each head, tanh between; the features, too."""

    def __init__(self, pixels: int, hidden: int, heads: dict[str, int]) -> None:
        super().__init__()
        self.first = nn.Linear(pixels, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, size) for name, size in heads.items()})

    def forward(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        features = torch.tanh(self.second(torch.tanh(self.first(x))))
        return {name: head(features) for name, head in self.heads.items()}, features


class Couplings(nn.Module):
    """Affine coupling layers of zuko, which leave every other coordinate alone in turn; they are told the features of x.

    References:
        Dinh, Sohl-Dickstein & Bengio (2017).
    """

    def __init__(self, latent: int, context: int) -> None:
        super().__init__()
        zuko = _zuko()
        self.layers = nn.ModuleList(
            zuko.flows.GeneralCouplingTransform(
                latent,
                context,
                mask=torch.arange(latent) % 2 == i % 2,
                hidden_features=(COUPLING_WIDTH,),
                activation=nn.Tanh,
            )
            for i in range(COUPLINGS)
        )

    def forward(self, given: Tensor, features: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Where ``given`` goes, and the logarithm of the Jacobian's determinant there."""
        # The layers make their transforms of the parameters at the moment: all of that must happen in one call.
        total = given.new_zeros(())
        for layer in reversed(self.layers) if inverse else self.layers:
            transform = layer(features)
            given, log_slope = (transform.inv if inverse else transform).call_and_ladj(given)
            total = total + log_slope
        return given, total


@dataclass(frozen=True)
class FlowGuide(Guide):
    """z = loc + exp(log_scale) * f(noise), f by coupling layers: density and inverse cost what a draw costs.

    Arguments:
        base: the diagonal Gaussian of loc and log_scale, ``(*batch, D)``.
        features: of x, ``(*batch, context)``.
        parameters: of the coupling layers. couplings: their network.
    """

    base: DiagonalGaussian
    features: Tensor
    parameters: Block
    couplings: nn.Module
    reparameterizable = True

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return self.base.noise(shape, generator)

    def transform(self, noise: Tensor) -> Tensor:
        return self.base.transform(self._flow(noise, inverse=False)[0])

    def inverse(self, z: Tensor) -> Tensor:
        return self._flow(self.base.inverse(z), inverse=True)[0]

    def log_prob(self, z: Tensor) -> Tensor:
        noise, log_slope = self._flow(self.base.inverse(z), inverse=True)
        return self.base.log_prob_transformed(noise) + log_slope

    def log_prob_transformed(self, noise: Tensor) -> Tensor:
        return self.base.log_prob_transformed(noise) - self._flow(noise, inverse=False)[1]

    def detach(self) -> FlowGuide:
        held = {name: leaf.detach() for name, leaf in self.parameters.items()}
        return FlowGuide(self.base.detach(), self.features.detach(), held, self.couplings)

    def _flow(self, given: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        arguments = (given, self.features)
        return functional_call(self.couplings, self.parameters, arguments, {"inverse": inverse})


@lru_cache(maxsize=8)
def architecture(pixels: int, hidden: int, latent: int, guide: str) -> tuple[Features, Decoder, nn.Module]:
    """Encoder and decoder without numbers, and the coupling layers, whose own numbers are never used."""
    with torch.device("meta"):
        networks = Features(pixels, hidden, HEADS[guide](latent)), Decoder(latent, hidden, pixels)
    return *networks, couplings(latent, hidden) if guide == "flow" else nn.Identity()


@lru_cache(maxsize=8)
def couplings(latent: int, context: int) -> Couplings:
    """Coupling layers, whose own numbers are never used."""
    with torch.random.fork_rng(devices=[]):
        return Couplings(latent, context)


def still(network: nn.Module, generator: torch.Generator, like: Tensor) -> Block:
    """Parameters of coupling layers that leave everything where it is: what scales and shifts are read from is zero."""
    flow = glorot(network, generator, like)
    return flow | {name: torch.zeros_like(leaf) for name, leaf in flow.items() if ".hyper.2." in name}


@dataclass(frozen=True, eq=False)
class GuidedVAE(LatentModel):
    """The model of ``digits-vae`` with another guide.

    Arguments:
        x: zeros and ones, ``(batch, pixels)``.
        hidden, latent: widths. family: a key of :data:`HEADS`.

    theta: the decoder's named parameters; phi: ``network.*`` of the encoder and, for a flow, ``flow.*``.
    """

    x: Tensor
    hidden: int
    latent: int
    family: str
    _vae: VAE = field(init=False, repr=False)
    _encoder: Features = field(init=False, repr=False)
    _couplings: nn.Module = field(init=False, repr=False)

    offers = OFFERS

    def __post_init__(self) -> None:
        encoder, _, couplings = architecture(self.x.shape[-1], self.hidden, self.latent, self.family)
        vae = VAE(self.x, self.hidden, self.latent)
        for name, value in (("_vae", vae), ("_encoder", encoder), ("_couplings", couplings)):
            object.__setattr__(self, name, value)

    @property
    def data(self) -> Tensor:
        return self.x

    def guide(self, phi: Block) -> Guide:
        heads, features = functional_call(self._encoder, part(phi, "network"), (self.x,))
        if self.family == "full-rank":
            return FullRankGaussian(**heads)
        if self.family == "flow":
            return FlowGuide(DiagonalGaussian(**heads), features, part(phi, "flow"), self._couplings)
        shape = (*self.x.shape[:-1], COMPONENTS, self.latent)
        loc, log_scale = heads["loc"].reshape(shape), heads["log_scale"].reshape(shape)
        return MixtureOfGaussians(heads["logits"], loc, log_scale)

    def prior(self, theta: Block) -> DiagonalGaussian:
        return self._vae.prior(theta)

    def log_likelihood(self, theta: Block, z: Tensor) -> Tensor:
        return self._vae.log_likelihood(theta, z)

    def log_joint(self, theta: Block, z: Tensor) -> Tensor:
        return self._vae.log_joint(theta, z)


@dataclass(frozen=True)
class Guided(Family):
    """:class:`GuidedVAE` of any sizes."""

    family: str = "full-rank"
    hidden: int = 200
    latent: int = 20

    def validate_sizes(self) -> None:
        require_positive(self, ("hidden", "latent"))
        if self.family not in HEADS:
            raise SpecError(f"no guide {self.family!r}; {nearest(self.family, HEADS)}")
        if self.family == "flow":
            if self.latent < 2:
                raise SpecError("a flow needs at least 2 latents: its layers move one half given the other")
            _zuko()

    def model_of(self, x: Tensor) -> LatentModel:
        return GuidedVAE(x, self.hidden, self.latent, self.family)

    def start(self, mean: Tensor, generator: torch.Generator) -> Parameters:
        """As of ``digits-vae``; the guide starts as a diagonal Gaussian, or as components of which each is one."""
        encoder, decoder, layers = architecture(mean.shape[0], self.hidden, self.latent, self.family)
        theta = glorot(decoder, generator, mean)
        theta["logits.bias"] = logit_of(mean)
        network, flow = glorot(encoder, generator, mean), still(layers, generator, mean)
        network |= {name: torch.zeros_like(leaf) for name, leaf in network.items() if name.startswith("heads.below")}
        return {
            "theta": theta,
            "phi": {f"network.{k}": v for k, v in network.items()} | {f"flow.{k}": v for k, v in flow.items()},
        }

    def prior_sample(self, theta: Block, count: int, generator: torch.Generator) -> Tensor:
        bias = theta["logits.bias"]
        return torch.randn(count, self.latent, generator=generator, dtype=bias.dtype, device=bias.device)

    @torch.no_grad()
    def images(self, theta: Block, z: Tensor, generator: torch.Generator) -> Tensor:
        decoder = architecture(theta["logits.bias"].shape[0], self.hidden, self.latent, self.family)[1]
        return functional_call(decoder, theta, (z,)).sigmoid()


@dataclass(frozen=True)
class RichGuideVAE(TrainedOnDigits, Guided):
    """The VAE of ``digits-vae`` with a guide that can follow a posterior further: what the gap to log p(x) owes to q.

    Trained and frozen as :class:`~benchmarks.problems.digits.DigitsVAE`, on the same digits.

    Arguments:
        family: ``full-rank``, a Gaussian whose covariance has a Cholesky factor for each image; ``mixture``, of four
            diagonal Gaussians; ``flow``, four affine coupling layers over a diagonal Gaussian, which needs zuko
            (``pip install 'gradest[flows]'``).
        hidden, latent: widths.
        epochs, batch, learning_rate, objective, train_num_samples, seed, checkpoint, points: as of ``digits-vae``.

    theta: the decoder's named parameters; phi: ``network.*`` of the encoder and, for a flow, ``flow.*`` of its layers.

    References:
        Cremer, Li & Duvenaud (2018) for the gap; Dinh, Sohl-Dickstein & Bengio (2017) for the coupling layers.
    """

    name = "rich-guide-vae"
    summary = "the VAE on digits with a full-rank, mixture or flow guide"
    citations = ("burda2016", "cremer2018", "dinh2017")
    offers = OFFERS


def _zuko() -> Any:
    try:
        return importlib.import_module("zuko")
    except ModuleNotFoundError:
        raise SpecError("a flow needs zuko: python -m pip install 'gradest[flows]'") from None
