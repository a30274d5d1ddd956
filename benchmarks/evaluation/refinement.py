"""Samples nearer to the posterior than the guide's own: moved by Markov chains, or chosen among several by their weights.

All serve to look at a trained model; none is an estimator of a gradient, and no density comes with the samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad

from estimators import LatentModel, Parameters
from estimators.contract import Latent
from estimators.trees import tree_leaves, tree_map

from .annealing import ACCEPTANCE, Density, transition


class Refined(NamedTuple):
    """Latents ``(chains, points, *event)``, and the share of moves that was accepted at each data point."""

    z: Latent
    acceptance: Tensor


def hamiltonian(
    model: LatentModel,
    parameters: Parameters,
    chains: int,
    generator: torch.Generator,
    *,
    moves: int = 10,
    leapfrogs: int = 10,
    first_step: float = 0.1,
    adaptation: int = 30,
) -> Refined:
    """Chains that start at the guide's samples and take a few Hamiltonian moves, which leave the posterior as it is.

    Their law is never further from the posterior, in KL, than the guide is. Step sizes are adapted, one for each data
    point, on chains of their own that are thrown away.

    Arguments:
        moves: Metropolis-adjusted, of ``leapfrogs`` steps each. adaptation: moves that step sizes are tuned on, to an
            acceptance rate of .65.

    References:
        Neal (2011); Hoffman (2017) and Wolf, Karl & van der Smagt (2016) for chains that a guide starts.
    """
    density, start, shaped = _flat(model, parameters)
    z = start(chains, generator)
    size = torch.full(z.shape[1:-1], first_step, dtype=z.dtype, device=z.device)
    for _ in range(adaptation):
        z, accepted = transition(density, z, size, leapfrogs, generator)
        size = size * torch.exp(0.5 * (accepted.to(z.dtype).mean(0) - ACCEPTANCE)).clamp(0.5, 2.0)
    z = start(chains, generator)
    rate = torch.zeros_like(size)
    for _ in range(moves):
        z, accepted = transition(density, z, size, leapfrogs, generator)
        rate += accepted.to(z.dtype).mean(0) / moves
    return Refined(shaped(z), rate)


def langevin(
    model: LatentModel,
    parameters: Parameters,
    chains: int,
    generator: torch.Generator,
    *,
    moves: int = 100,
    step: float = 0.1,
) -> Latent:
    """Chains that start at the guide's samples and take unadjusted Langevin moves.

    .. math:: z \\leftarrow z + \\tfrac{h}{2} \\nabla_z \\log p(x, z) + \\sqrt h \\, n, \\qquad h = \\mathrm{step}^2

    Warning:
        No move is refused, so they settle at another law than the posterior: for a Gaussian one of precision P, at the
        covariance P^-1 (I - h P / 4)^-1, and nowhere if an eigenvalue of P exceeds 4 / h.

    References:
        Roberts & Tweedie (1996).
    """
    density, start, shaped = _flat(model, parameters)
    slope = grad(lambda z: density(z).sum())
    z = start(chains, generator)
    for _ in range(moves):
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        z = z + 0.5 * step**2 * slope(z) + step * noise
    return shaped(z)


@torch.no_grad()
def corrected(
    model: LatentModel, parameters: Parameters, num_samples: int, draws: int, generator: torch.Generator
) -> Latent:
    """Independent draws of q_IW, what the bound of K samples takes for the posterior: ``(draws, *points, *event)``.

    .. math:: q_{IW}(z \\mid x) = E_{z_{2:K} \\sim q} \\frac{p(x, z)}{K^{-1} \\{w(z) + \\sum_{k>1} w(z_k)\\}}

    Each draw has K samples of its own, of which one is kept with probabilities proportional to their weights. K = 1 is the
    guide; as K grows it becomes the posterior, and E_{q_IW} f is the mean of the self-normalised estimate of it.

    References:
        Cremer, Morris & Duvenaud (2017); Rubin (1988) for sampling-importance-resampling.
    """
    guide = model.guide(parameters["phi"])
    z = guide.transform(guide.noise((draws, num_samples), generator))
    log_w = model.log_joint(parameters["theta"], z) - guide.log_prob(z)
    uniform = torch.rand(log_w.shape, generator=generator, dtype=log_w.dtype, device=log_w.device)
    # The largest of log w plus standard Gumbel noise is a draw from the normalised weights.
    chosen = (log_w - torch.log(-torch.log(uniform.clamp_min(torch.finfo(log_w.dtype).tiny)))).argmax(1, keepdim=True)

    def pick(leaf: Tensor) -> Tensor:
        place = chosen.reshape(*chosen.shape, *[1] * (leaf.dim() - chosen.dim()))
        return leaf.take_along_dim(place, 1)[:, 0]

    return tree_map(pick, z)


def _flat(
    model: LatentModel, parameters: Parameters
) -> tuple[Density, Callable[[int, torch.Generator], Tensor], Callable[[Tensor], Latent]]:
    """log p(x, z) of latents ``(chains, points, D)`` with all layers in one; the guide's samples so; and the way back."""
    theta = {name: leaf.detach() for name, leaf in parameters["theta"].items()}
    guide = model.guide({name: leaf.detach() for name, leaf in parameters["phi"].items()})
    if not guide.reparameterizable:
        raise TypeError(f"chains move along slopes in z, which {type(guide).__name__}'s latents do not have")
    probe = torch.Generator(tree_leaves(parameters["phi"])[0].device).manual_seed(0)
    like = guide.transform(guide.noise((1,), probe))
    sizes = [leaf.shape[-1] for leaf in tree_leaves(like)]

    def shaped(z: Tensor) -> Latent:
        if isinstance(like, Tensor):
            return z
        parts = iter(z.split(sizes, -1))
        return tree_map(lambda _: next(parts), like)

    def start(chains: int, generator: torch.Generator) -> Tensor:
        return torch.cat(tree_leaves(guide.transform(guide.noise((chains,), generator))), -1).detach()

    return lambda z: model.log_joint(theta, shaped(z)), start, shaped
