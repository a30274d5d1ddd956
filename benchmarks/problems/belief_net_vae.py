"""Sigmoid belief networks with Bernoulli latents and an amortised guide: what discrete estimators are trained on."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.func import functional_call

from estimators import Bernoulli, Block, LatentModel, Parameters

from ..specs import SpecError
from .digits import TrainedOnDigits
from .family import Family, glorot, joined, logit_of, part, require_positive
from .vae import bernoulli_log_prob

OFFERS = frozenset({"bernoulli", "factorised", "relaxable", "data", "simulable"})


class Logits(nn.Module):
    """in -> hidden -> out with tanh between, or linear where ``hidden`` is 0."""

    def __init__(self, size_in: int, hidden: int, size_out: int) -> None:
        super().__init__()
        if hidden:
            self.first = nn.Linear(size_in, hidden)
        self.hidden = hidden
        self.logits = nn.Linear(hidden or size_in, size_out)

    def forward(self, given: Tensor) -> Tensor:
        return self.logits(torch.tanh(self.first(given)) if self.hidden else given)


@dataclass(frozen=True)
class ForImages(Bernoulli):
    """The guide, which knows how many pixels the images have that its model draws."""

    pixels: int

    def simulation_noise(self, shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        like = self.logits[..., :1].expand(*self.logits.shape[:-1], self.pixels)
        return self.noise(shape, generator), Bernoulli(like).noise(shape, generator)


@lru_cache(maxsize=8)
def architecture(pixels: int, hidden: int, latent: int) -> tuple[Logits, Logits]:
    """Encoder and decoder without numbers: on the meta device."""
    with torch.device("meta"):
        return Logits(pixels, hidden, latent), Logits(latent, hidden, pixels)


@dataclass(frozen=True, eq=False)
class BeliefNet(LatentModel):
    """z_d ~ Bernoulli(sigmoid(prior_logits_d)), Bernoulli pixels given z and q(z|x) a product of Bernoullis, by networks.

    Arguments:
        x: zeros and ones, ``(batch, pixels)``.
        hidden: tanh units between, 0 for linear maps. latent: units of z.

    theta: ``prior_logits`` (latent,) and the decoder's ``x.*``; phi: the encoder's.

    References:
        Neal (1992); Mnih & Gregor (2014).
    """

    x: Tensor
    hidden: int
    latent: int
    _encoder: Logits = field(init=False, repr=False)
    _decoder: Logits = field(init=False, repr=False)
    _signs: Tensor = field(init=False, repr=False)

    offers = OFFERS

    def __post_init__(self) -> None:
        encoder, decoder = architecture(self.x.shape[-1], self.hidden, self.latent)
        for name, value in (("_encoder", encoder), ("_decoder", decoder), ("_signs", 1 - 2 * self.x)):
            object.__setattr__(self, name, value)

    @property
    def data(self) -> Tensor:
        return self.x

    def guide(self, phi: Block) -> ForImages:
        return ForImages(functional_call(self._encoder, phi, (self.x,)), self.x.shape[-1])

    def prior(self, theta: Block) -> Bernoulli:
        return Bernoulli(theta["prior_logits"].expand(*self.x.shape[:-1], self.latent))

    def log_likelihood(self, theta: Block, z: Tensor) -> Tensor:
        return bernoulli_log_prob(self._signs, functional_call(self._decoder, part(theta, "x"), (z,)))

    def log_joint(self, theta: Block, z: Tensor) -> Tensor:
        return self.prior(theta).log_prob(z) + self.log_likelihood(theta, z)

    def simulate(self, theta: Block, noise: tuple[Tensor, Tensor]) -> tuple[Tensor, BeliefNet]:
        z = self.prior(theta).transform(noise[0])
        x = Bernoulli(functional_call(self._decoder, part(theta, "x"), (z,))).transform(noise[1])
        return z, BeliefNet(x, self.hidden, self.latent)


@dataclass(frozen=True)
class BernoulliLatents(Family):
    """:class:`BeliefNet` of any sizes."""

    latent: int = 200
    hidden: int = 0

    def validate_sizes(self) -> None:
        require_positive(self, ("latent",))
        if self.hidden < 0:
            raise SpecError(f"hidden must be at least 0, not {self.hidden}")

    def model_of(self, x: Tensor) -> LatentModel:
        return BeliefNet(x, self.hidden, self.latent)

    def start(self, mean: Tensor, generator: torch.Generator) -> Parameters:
        encoder, decoder = architecture(mean.shape[0], self.hidden, self.latent)
        theta = joined({"x": glorot(decoder, generator, mean)})
        theta["x.logits.bias"] = logit_of(mean)
        return {"theta": theta | {"prior_logits": mean.new_zeros(self.latent)}, "phi": glorot(encoder, generator, mean)}

    def prior_sample(self, theta: Block, count: int, generator: torch.Generator) -> Tensor:
        return torch.bernoulli(theta["prior_logits"].sigmoid().expand(count, self.latent), generator=generator)

    @torch.no_grad()
    def images(self, theta: Block, z: Tensor, generator: torch.Generator) -> Tensor:
        _, decoder = architecture(theta["x.logits.bias"].shape[0], self.hidden, self.latent)
        return functional_call(decoder, part(theta, "x"), (z,)).sigmoid()


@dataclass(frozen=True)
class BeliefNetVAE(TrainedOnDigits, BernoulliLatents):
    """Sigmoid belief network with Bernoulli latents on 28x28 digits, and a guide that is a network of x.

    Trained and frozen as :class:`~benchmarks.problems.digits.DigitsVAE`, on the same digits; by the leave-one-out score
    estimator with four samples unless told otherwise, for nothing here can be reparameterised.

    Arguments:
        latent: binary latents. hidden: tanh units between them and the pixels, both ways; 0 for linear maps.
        epochs, batch, learning_rate, objective, train_num_samples, seed, checkpoint, points: as of ``digits-vae``.

    theta: ``prior_logits`` (latent,) and the decoder's named parameters; phi: the encoder's.

    References:
        Neal (1992); Mnih & Gregor (2014); Dong, Mnih & Tucker (2020) for 200 latents under a linear map.
    """

    objective: str = "leave-one-out"
    train_num_samples: int = 4

    name = "belief-net-vae"
    summary = "200 Bernoulli latents under a sigmoid belief network on MNIST digits, trained by this suite"
    citations = ("neal1992", "mnih2014")
    offers = OFFERS
