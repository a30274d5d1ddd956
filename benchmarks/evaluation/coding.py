"""What passes through z: the ELBO as a lossy code, a rate for each layer and the distortion that is left."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from estimators import DiagonalGaussian, Guide, Hierarchical, LatentModel, Parameters
from estimators.contract import Latent


class Code(NamedTuple):
    """In nats, float64.

    ``rates``: for each layer ``(points,)``, the mean of log q(z_l | .) - log p(z_l | .), layers in the order of the latents;
    they add up to KL(q || p). ``distortion (points,)``: the mean of -log p(x | z). ``units (D,)``: the rate of each latent,
    averaged over points, where guide and prior are diagonal Gaussians.
    """

    rates: tuple[Tensor, ...]
    distortion: Tensor
    units: Tensor | None

    @property
    def elbo(self) -> Tensor:
        """-(distortion + rates), ``(points,)``."""
        return -(self.distortion + sum(self.rates))

    def __str__(self) -> str:
        layers = ", ".join(f"z{i + 1} {float(rate.mean()):.2f}" for i, rate in enumerate(self.rates))
        return f"rate {layers}; distortion {float(self.distortion.mean()):.2f}; ELBO {float(self.elbo.mean()):.2f} nats"


@torch.no_grad()
def lossy_code(
    model: LatentModel, parameters: Parameters, num_samples: int, generator: torch.Generator, *, chunk: int = 10
) -> Code:
    """Rates and distortion of every data point, by ``num_samples`` samples of the guide, ``chunk`` at a time.

    The rate of a single layer of diagonal Gaussians is the closed form.

    Raises:
        TypeError: for a model that does not give its prior and its likelihood apart.

    References:
        Chen et al. (2017), section 2.1, for the bits-back view; Alemi et al. (2018) for rate and distortion.
    """
    theta = parameters["theta"]
    guide = model.guide(parameters["phi"])
    try:
        prior = model.prior(theta)
    except NotImplementedError as problem:
        raise TypeError(str(problem)) from None
    closed = isinstance(guide, DiagonalGaussian) and isinstance(prior, DiagonalGaussian)
    rates: list[Tensor] = []
    distortion = torch.zeros(())
    for begin in range(0, num_samples, chunk):
        count = min(chunk, num_samples - begin)
        z = guide.transform(guide.noise((count,), generator))
        found = [q - p for q, p in zip(_layers(guide, z), _layers(prior, z), strict=True)]
        shares = [each.double().sum(0) / num_samples for each in found]
        rates = [a + b for a, b in zip(rates, shares, strict=True)] if rates else shares
        distortion = distortion - model.log_likelihood(theta, z).double().sum(0) / num_samples
    if not closed:
        return Code(tuple(rates), distortion, None)
    assert isinstance(guide, DiagonalGaussian) and isinstance(prior, DiagonalGaussian)
    ratio = (guide.log_scale - prior.log_scale).double()
    squares = (2 * ratio).exp() + ((guide.loc - prior.loc) / prior.scale).double().square()
    units = 0.5 * (squares - 1) - ratio
    return Code((units.sum(-1),), distortion, units.reshape(-1, units.shape[-1]).mean(0))


def _layers(density: Guide, z: Latent) -> tuple[Tensor, ...]:
    return density.log_probs(z) if isinstance(density, Hierarchical) else (density.log_prob(z),)
