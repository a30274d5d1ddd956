"""A variational autoencoder whose decoder looks at the pixels that came before: what it can tell by itself, z need not."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import conv2d

from estimators import Block, DiagonalGaussian, LatentModel, Parameters

from .digits import TrainedOnDigits
from .family import Family, glorot, logit_of, require_positive, side
from .gaussian import ALL
from .vae import Encoder, bernoulli_log_prob

MAPS = 4
"""Pictures that z is made into before it is mixed with what the convolutions see."""


class PixelDecoder(nn.Module):
    """Logits of each pixel from z and the pixels before it in reading order, by masked convolutions with tanh between.

    .. math:: h_0 = \\tanh(M_A x + U z), \\qquad h_l = h_{l-1} + \\tanh(M_B^{(l)} h_{l-1}), \\qquad
              \\mathrm{logits} = w^\\top h_L + b

    The kernel of M_A (5 x 5) sees only what comes before its centre; those of M_B (3 x 3) also the centre itself.
    """

    def __init__(self, latent: int, hidden: int, channels: int, layers: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.first = nn.Linear(latent, hidden)
        self.maps = nn.Linear(hidden, MAPS * side * side)
        self.mix = nn.Conv2d(MAPS, channels, 1)
        self.seen = nn.Conv2d(1, channels, 5, padding=2)
        self.deeper = nn.ModuleList([nn.Conv2d(channels, channels, 3, padding=1) for _ in range(layers)])
        self.logits = nn.Conv2d(channels, 1, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(side * side))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """``(..., *batch, pixels)`` from z ``(..., *batch, latent)`` and x ``(*batch, pixels)``."""
        square = (self.side, self.side)
        told = self.mix(self.maps(torch.tanh(self.first(z))).reshape(-1, MAPS, *square))
        seen = _masked(self.seen, (2 * x - 1).reshape(-1, 1, *square), centre=False)
        features = torch.tanh(told.reshape(*z.shape[:-1], -1, *square) + seen.reshape(*x.shape[:-1], -1, *square))
        features = features.reshape(-1, *features.shape[-3:])
        for layer in self.deeper:
            assert isinstance(layer, nn.Conv2d)
            features = features + torch.tanh(_masked(layer, features, centre=True))
        return self.logits(features).reshape(*z.shape[:-1], -1) + self.bias


def _masked(layer: nn.Conv2d, given: Tensor, *, centre: bool) -> Tensor:
    """A convolution whose kernel is zero after its centre, and at it unless ``centre``."""
    height, width = layer.kernel_size
    place = torch.arange(height * width, device=given.device)
    middle = height * width // 2
    mask = (place <= middle if centre else place < middle).reshape(height, width).to(given.dtype)
    return conv2d(given, layer.weight * mask, layer.bias, padding=(height // 2, width // 2))


@lru_cache(maxsize=8)
def architecture(pixels: int, latent: int, hidden: int, channels: int, layers: int) -> tuple[Encoder, PixelDecoder]:
    """The networks without numbers: on the meta device."""
    with torch.device("meta"):
        return Encoder(pixels, hidden, latent), PixelDecoder(latent, hidden, channels, layers, side(pixels))


@dataclass(frozen=True, eq=False)
class PixelCNN(LatentModel):
    """p(z) = N(0, I), p(x|z) = prod_i Bernoulli(x_i; logit_i(z, x_1, ..., x_{i-1})), q diagonal Gaussian.

    Arguments:
        x: zeros and ones, ``(batch, pixels)``, a square image in reading order.
        latent, hidden: widths of z and of the fully connected layers. channels, layers: of the masked convolutions.

    theta and phi are the named parameters of :class:`PixelDecoder` and of the encoder of ``digits-vae``.

    References:
        van den Oord et al. (2016) for masked convolutions; Gulrajani et al. (2017) for them in a VAE; Chen et al. (2017)
        for what such a decoder leaves to z.
    """

    x: Tensor
    latent: int
    hidden: int
    channels: int
    layers: int
    _encoder: Encoder = field(init=False, repr=False)
    _decoder: PixelDecoder = field(init=False, repr=False)
    _signs: Tensor = field(init=False, repr=False)

    offers = ALL

    def __post_init__(self) -> None:
        sizes = (self.latent, self.hidden, self.channels, self.layers)
        encoder, decoder = architecture(self.x.shape[-1], *sizes)
        for name, value in (("_encoder", encoder), ("_decoder", decoder), ("_signs", 1 - 2 * self.x)):
            object.__setattr__(self, name, value)

    @property
    def data(self) -> Tensor:
        return self.x

    def guide(self, phi: Block) -> DiagonalGaussian:
        return DiagonalGaussian(*functional_call(self._encoder, phi, (self.x,)))

    def prior(self, theta: Block) -> DiagonalGaussian:
        zero = self.x.new_zeros(()).expand(*self.x.shape[:-1], self.latent)
        return DiagonalGaussian(zero, zero)

    def log_likelihood(self, theta: Block, z: Tensor) -> Tensor:
        return bernoulli_log_prob(self._signs, functional_call(self._decoder, theta, (z, self.x)))

    def log_joint(self, theta: Block, z: Tensor) -> Tensor:
        return self.prior(theta).log_prob(z) + self.log_likelihood(theta, z)


@dataclass(frozen=True)
class Autoregressive(Family):
    """:class:`PixelCNN` of any sizes."""

    latent: int = 20
    hidden: int = 100
    channels: int = 12
    layers: int = 2

    def validate_sizes(self) -> None:
        require_positive(self, ("latent", "hidden", "channels", "layers"))

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        return self.latent, self.hidden, self.channels, self.layers

    def model_of(self, x: Tensor) -> LatentModel:
        return PixelCNN(x, *self._sizes)

    def start(self, mean: Tensor, generator: torch.Generator) -> Parameters:
        encoder, decoder = architecture(mean.shape[0], *self._sizes)
        theta = glorot(decoder, generator, mean)
        theta["bias"] = logit_of(mean)
        return {"theta": theta, "phi": glorot(encoder, generator, mean)}

    def prior_sample(self, theta: Block, count: int, generator: torch.Generator) -> Tensor:
        bias = theta["bias"]
        return torch.randn(count, self.latent, generator=generator, dtype=bias.dtype, device=bias.device)

    @torch.no_grad()
    def images(self, theta: Block, z: Tensor, generator: torch.Generator) -> Tensor:
        """Draws, one pixel after the other: each takes a pass through the decoder."""
        pixels = theta["bias"].shape[0]
        _, decoder = architecture(pixels, *self._sizes)
        x = z.new_zeros(*z.shape[:-1], pixels)
        for place in range(pixels):
            probability = functional_call(decoder, theta, (z, x))[..., place].sigmoid()
            x[..., place] = torch.bernoulli(probability, generator=generator)
        return x


@dataclass(frozen=True)
class PixelVAE(TrainedOnDigits, Autoregressive):
    """VAE with an autoregressive decoder on 28x28 digits: a small PixelCNN that is told z.

    Trained and frozen as :class:`~benchmarks.problems.digits.DigitsVAE`, on the same digits. Strokes and their edges are
    predicted from their neighbours, so far fewer nats pass through z than in ``digits-vae``
    (:func:`benchmarks.evaluation.lossy_code`).

    Arguments:
        latent, hidden, channels, layers: widths (:class:`PixelCNN`).
        epochs, batch, learning_rate, objective, train_num_samples, seed, checkpoint, points: as of ``digits-vae``.

    theta and phi: the decoder's and the encoder's named parameters.

    References:
        Gulrajani et al. (2017); Chen et al. (2017).
    """

    epochs: int = 10

    name = "pixel-vae"
    summary = "VAE with an autoregressive decoder (a small PixelCNN) on MNIST digits, trained by this suite"
    citations = ("kingma2014", "gulrajani2017")
    offers = ALL
