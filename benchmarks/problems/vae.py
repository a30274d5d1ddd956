"""Burda's variational autoencoder with one stochastic layer, as a latent model of any batch of binary images."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.func import functional_call

from estimators import Block, DiagonalGaussian, LatentModel, Parameters

from .family import Family, glorot, logit_of, require_positive
from .gaussian import ALL


class Encoder(nn.Module):
    """pixels -> hidden -> hidden -> (loc, log_scale), tanh between."""

    def __init__(self, pixels: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.first = nn.Linear(pixels, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.loc = nn.Linear(hidden, latent)
        self.log_scale = nn.Linear(hidden, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.tanh(self.second(torch.tanh(self.first(x))))
        return self.loc(features), self.log_scale(features)


class Decoder(nn.Module):
    """latent -> hidden -> hidden -> logits of the pixels, tanh between."""

    def __init__(self, latent: int, hidden: int, pixels: int) -> None:
        super().__init__()
        self.first = nn.Linear(latent, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.logits = nn.Linear(hidden, pixels)

    def forward(self, z: Tensor) -> Tensor:
        return self.logits(torch.tanh(self.second(torch.tanh(self.first(z)))))


@lru_cache(maxsize=8)
def architecture(pixels: int, hidden: int, latent: int) -> tuple[Encoder, Decoder]:
    """The networks without numbers: on the meta device, where they draw nothing from the global generator."""
    with torch.device("meta"):
        return Encoder(pixels, hidden, latent), Decoder(latent, hidden, pixels)


@dataclass(frozen=True, eq=False)
class VAE(LatentModel):
    """p(z) = N(0, I), p(x|z) = Bernoulli(decoder(z)), q(z|x) = N(loc(x), diag scale(x)^2).

    Arguments:
        x: zeros and ones, ``(batch, pixels)``.
        hidden, latent: widths.

    theta and phi are the named parameters of :class:`Decoder` and :class:`Encoder`.

    References:
        Burda, Grosse & Salakhutdinov (2016), section 5: pixels = 784, hidden = 200, latent = 50.
    """

    x: Tensor
    hidden: int
    latent: int
    _encoder: Encoder = field(init=False, repr=False)
    _decoder: Decoder = field(init=False, repr=False)
    _signs: Tensor = field(init=False, repr=False)

    offers = ALL

    def __post_init__(self) -> None:
        encoder, decoder = architecture(self.x.shape[-1], self.hidden, self.latent)
        # Frozen, so set as the dataclass machinery does. The signs are kept because every likelihood needs them.
        for name, value in (("_encoder", encoder), ("_decoder", decoder), ("_signs", torch.rsub(self.x, 1, alpha=2))):
            object.__setattr__(self, name, value)

    @property
    def data(self) -> Tensor:
        return self.x

    def guide(self, phi: Block) -> DiagonalGaussian:
        return DiagonalGaussian(*functional_call(self._encoder, phi, (self.x,), tie_weights=False))

    def prior(self, theta: Block) -> DiagonalGaussian:
        zero = self.x.new_zeros(()).expand(*self.x.shape[:-1], self.latent)
        return DiagonalGaussian(zero, zero)

    def log_likelihood(self, theta: Block, z: Tensor) -> Tensor:
        return bernoulli_log_prob(self._signs, functional_call(self._decoder, theta, (z,), tie_weights=False))

    def log_joint(self, theta: Block, z: Tensor) -> Tensor:
        return self.prior(theta).log_prob(z) + self.log_likelihood(theta, z)


def initial_parameters(hidden: int, latent: int, mean: Tensor, generator: torch.Generator) -> Parameters:
    """Glorot's uniform weights, zero biases; the output bias is the logit of the mean image clipped to 0.001..0.999.

    Arguments:
        mean: the mean training image, ``(pixels,)``; its type and device become the parameters'.
        generator: on the CPU, so that the start is the same on every device.

    References:
        Glorot & Bengio (2010); Burda et al. (2016), and their code (yburda/iwae) for the output bias.
    """
    encoder, decoder = architecture(mean.shape[-1], hidden, latent)
    theta = glorot(decoder, generator, mean)
    theta["logits.bias"] = logit_of(mean)
    return {"theta": theta, "phi": glorot(encoder, generator, mean)}


def bernoulli_log_prob(signs: Tensor, logits: Tensor) -> Tensor:
    """log p of zeros and ones x, summed over the last axis; ``signs`` are 1 - 2x."""
    # x l - log(1 + e^l) = -log(1 + e^((1 - 2x) l)): stable for any logit, and under vmap(grad) half the time of the
    # two-term form and a sixth of binary_cross_entropy_with_logits.
    return -nn.functional.softplus(signs * logits).sum(-1)


@dataclass(frozen=True)
class OneLayer(Family):
    """Burda's VAE with one stochastic layer (:class:`VAE`)."""

    hidden: int = 200
    latent: int = 50

    def validate_sizes(self) -> None:
        require_positive(self, ("hidden", "latent"))

    def model_of(self, x: Tensor) -> LatentModel:
        return VAE(x, self.hidden, self.latent)

    def start(self, mean: Tensor, generator: torch.Generator) -> Parameters:
        return initial_parameters(self.hidden, self.latent, mean, generator)

    def prior_sample(self, theta: Block, count: int, generator: torch.Generator) -> Tensor:
        bias = theta["logits.bias"]
        return torch.randn(count, self.latent, generator=generator, dtype=bias.dtype, device=bias.device)

    @torch.no_grad()
    def images(self, theta: Block, z: Tensor, generator: torch.Generator) -> Tensor:
        _, decoder = architecture(theta["logits.bias"].shape[0], self.hidden, self.latent)
        return functional_call(decoder, theta, (z,)).sigmoid()
