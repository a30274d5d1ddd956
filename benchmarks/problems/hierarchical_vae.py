"""Burda's variational autoencoder with any number of stochastic layers, the guide going up and the prior down."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.func import functional_call

from estimators import Block, DiagonalGaussian, Hierarchical, LatentModel, Parameters
from estimators.hierarchical import Layer

from ..specs import SpecError
from .digits import TrainedOnDigits
from .family import Family, glorot, joined, logit_of, part, widths
from .vae import Decoder, Encoder, bernoulli_log_prob

OFFERS = frozenset({"reparameterizable", "twice_differentiable", "invertible_prior", "data"})


@lru_cache(maxsize=8)
def architecture(
    pixels: int, latents: tuple[int, ...], hidden: tuple[int, ...]
) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Networks of theta and of phi by name, without numbers: on the meta device."""
    below = (pixels, *latents)
    with torch.device("meta"):
        phi = {f"z{i + 1}": Encoder(below[i], hidden[i], latents[i]) for i in range(len(latents))}
        theta: dict[str, nn.Module] = {"x": Decoder(latents[0], hidden[0], pixels)}
        for i in range(1, len(latents)):
            theta[f"z{i}"] = Encoder(latents[i], hidden[i], latents[i - 1])
    return theta, dict(phi)


@dataclass(frozen=True, eq=False)
class LayeredVAE(LatentModel):
    """z_L ~ N(0, I), z_l | z_{l+1} and q(z_l | z_{l-1}) diagonal Gaussians by networks, Bernoulli pixels given z_1.

    .. math:: p(x, z) = p(x \\mid z_1) \\prod_{l<L} p(z_l \\mid z_{l+1}) \\; p(z_L), \\qquad
              q(z \\mid x) = q(z_1 \\mid x) \\prod_{l>1} q(z_l \\mid z_{l-1})

    Arguments:
        x: zeros and ones, ``(batch, pixels)``.
        latents: sizes of z_1, ..., z_L.
        hidden: widths of the two hidden layers (tanh) of each network between z_{l-1} and z_l, both ways; z_0 is x.

    Latents are tuples (z_1, ..., z_L). theta: ``x.*`` of the network to the pixels, ``z1.*`` of that to z_1, and so on;
    phi: ``z1.*`` of the network from x, ``z2.*`` of that from z_1, and so on.

    References:
        Burda, Grosse & Salakhutdinov (2016), section 5: latents 100 and 50, hidden 200 and 100.
    """

    x: Tensor
    latents: tuple[int, ...]
    hidden: tuple[int, ...]
    _theta: dict[str, nn.Module] = field(init=False, repr=False)
    _phi: dict[str, nn.Module] = field(init=False, repr=False)
    _signs: Tensor = field(init=False, repr=False)

    offers = OFFERS

    def __post_init__(self) -> None:
        theta, phi = architecture(self.x.shape[-1], self.latents, self.hidden)
        for name, value in (("_theta", theta), ("_phi", phi), ("_signs", 1 - 2 * self.x)):
            object.__setattr__(self, name, value)

    @property
    def data(self) -> Tensor:
        return self.x

    def guide(self, phi: Block) -> Hierarchical:
        def layer(name: str) -> Layer:
            network = self._phi[name]
            return lambda phi, *before: _gaussian(network, part(phi, name), before[-1] if before else self.x)

        return Hierarchical(phi, tuple(layer(f"z{i + 1}") for i in range(len(self.latents))))

    def prior(self, theta: Block) -> Hierarchical:
        def layer(name: str) -> Layer:
            network = self._theta[name]
            return lambda theta, *deeper: _gaussian(network, part(theta, name), deeper[-1])

        def top(theta: Block) -> DiagonalGaussian:
            zero = self.x.new_zeros(()).expand(*self.x.shape[:-1], self.latents[-1])
            return DiagonalGaussian(zero, zero)

        layers = (*(layer(f"z{i}") for i in range(1, len(self.latents))), top)
        return Hierarchical(theta, layers, top_down=True)

    def log_likelihood(self, theta: Block, z: tuple[Tensor, ...]) -> Tensor:
        return bernoulli_log_prob(self._signs, functional_call(self._theta["x"], part(theta, "x"), (z[0],)))

    def log_joint(self, theta: Block, z: tuple[Tensor, ...]) -> Tensor:
        return self.prior(theta).log_prob(z) + self.log_likelihood(theta, z)


@dataclass(frozen=True)
class Layered(Family):
    """:class:`LayeredVAE` of any sizes, which are written as ``100-50``."""

    latents: str = "100-50"
    hidden: str = "200-100"

    def validate_sizes(self) -> None:
        latents, hidden = self._sizes
        if len(latents) != len(hidden):
            raise SpecError(
                f"latents and hidden must name as many layers, not {len(latents)} ({self.latents}) and {len(hidden)} "
                f"({self.hidden})"
            )

    @property
    def _sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return widths(self.latents, "latents"), widths(self.hidden, "hidden")

    def model_of(self, x: Tensor) -> LatentModel:
        return LayeredVAE(x, *self._sizes)

    def start(self, mean: Tensor, generator: torch.Generator) -> Parameters:
        networks = architecture(mean.shape[0], *self._sizes)
        theta, phi = (joined({name: glorot(n, generator, mean) for name, n in each.items()}) for each in networks)
        theta["x.logits.bias"] = logit_of(mean)
        return {"theta": theta, "phi": phi}

    @torch.no_grad()
    def prior_sample(self, theta: Block, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        bias = theta["x.logits.bias"]
        prior = LayeredVAE(bias.new_zeros(1, bias.shape[0]), *self._sizes).prior(theta)
        found = prior.transform(prior.noise((count,), generator))
        return tuple(leaf[:, 0] for leaf in found)

    @torch.no_grad()
    def images(self, theta: Block, z: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        decoder = architecture(theta["x.logits.bias"].shape[0], *self._sizes)[0]["x"]
        return functional_call(decoder, part(theta, "x"), (z[0],)).sigmoid()


@dataclass(frozen=True)
class HierarchicalVAE(TrainedOnDigits, Layered):
    """VAE of L stochastic layers on 28x28 digits, Burda's of two by default; both q and p are chains of Gaussians.

    Trained and frozen as :class:`~benchmarks.problems.digits.DigitsVAE`, on the same digits.

    Arguments:
        latents: sizes of z_1, ..., z_L, joined by dashes; as many as you like.
        hidden: widths of the two hidden layers of the networks between z_(l-1) and z_l, for each l.
        epochs, batch, learning_rate, objective, train_num_samples, seed, checkpoint, points: as of ``digits-vae``.

    theta and phi: networks' named parameters (:class:`LayeredVAE`).

    References:
        Burda, Grosse & Salakhutdinov (2016), section 5; Sønderby et al. (2016) for more layers.
    """

    name = "hierarchical-vae"
    summary = "VAE with two stochastic layers (100 and 50) on MNIST digits, or any number, trained by this suite"
    citations = ("burda2016", "sonderby2016")
    offers = OFFERS


def _gaussian(network: nn.Module, parameters: Block, given: Tensor) -> DiagonalGaussian:
    return DiagonalGaussian(*functional_call(network, parameters, (given,)))
