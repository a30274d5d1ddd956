"""Annealed importance sampling with Hamiltonian transitions, and its reverse on simulated data.

Forward it gives a lower bound of log p(x) in expectation; run back from an exact posterior sample, which simulated data
have, an upper bound. Step sizes are adapted in a run of their own and then frozen, for each temperature and data point: a
kernel that learns from its own chain leaves nothing invariant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad

from estimators import Guide, LatentModel, Parameters

Density = Callable[[Tensor], Tensor]
ACCEPTANCE = 0.65
"""What the step size is tuned to (Neal, 2011; Wu et al., 2017)."""
SHARPNESS = 4.0
"""Of the sigmoid schedule: temperatures crowd where the distributions change fastest, at both ends."""


@dataclass(frozen=True)
class Annealing:
    """How long: ``steps`` temperatures, one transition of ``leapfrogs`` steps at each, ``chains`` for each data point."""

    steps: int = 1000
    chains: int = 16
    leapfrogs: int = 10
    first_step: float = 0.1

    def temperatures(self) -> Tensor:
        """0 = beta_0 < ... < beta_steps = 1, float64.

        Example:
            >>> Annealing(steps=2).temperatures()
            tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64)
        """
        raw = torch.sigmoid(SHARPNESS * torch.linspace(-1, 1, self.steps + 1, dtype=torch.float64))
        return (raw - raw[0]) / (raw[-1] - raw[0])


@dataclass(frozen=True)
class Bounds:
    """log-weights ``(chains, points)`` in nats, and the mean acceptance rate of each data point's transitions."""

    log_weights: Tensor
    acceptance: Tensor

    @property
    def log_marginal(self) -> Tensor:
        """log of the mean weight of each data point, ``(points,)``."""
        return self.log_weights.logsumexp(0) - math.log(len(self.log_weights))


def annealed_importance_sampling(
    model: LatentModel,
    parameters: Parameters,
    start: Guide,
    generator: torch.Generator,
    settings: Annealing = Annealing(),
) -> Bounds:
    """log p(x) of every data point: E exp(log_weights) = p(x).

    Arguments:
        start: a normalised density that is sampled from: the prior, or the guide itself, which needs fewer steps.
        generator: of all randomness.

    References:
        Neal (2001); Wu et al. (2017) for the schedule and settings.
    """
    joint = _joint(model, parameters)
    steps = _tuned(joint, start, generator, settings)
    z = start.transform(start.noise((settings.chains,), generator)).detach()
    return _walk(joint, start, z, settings.temperatures(), steps, generator, settings)


def bidirectional(
    model: LatentModel,
    parameters: Parameters,
    exact: Tensor,
    start: Guide,
    generator: torch.Generator,
    settings: Annealing = Annealing(),
) -> tuple[Bounds, Bounds]:
    """Lower and upper bounds of log p(x) for data drawn from the model together with ``exact`` latents ``(points, D)``.

    The upper one's log-weights are of 1/p(x), negated: minus the log of the mean of exp(-log_weights) is at least log p(x)
    in expectation.

    References:
        Grosse, Ghahramani & Adams (2015); Wu et al. (2017).
    """
    joint = _joint(model, parameters)
    steps = _tuned(joint, start, generator, settings)
    z = start.transform(start.noise((settings.chains,), generator)).detach()
    lower = _walk(joint, start, z, settings.temperatures(), steps, generator, settings)
    z = exact.detach().expand(settings.chains, *exact.shape)
    back = _walk(joint, start, z, settings.temperatures().flip(0), steps.flip(0), generator, settings)
    return lower, Bounds(-back.log_weights, back.acceptance)


def upper_bound(reverse: Bounds) -> Tensor:
    """The stochastic upper bound of each data point that a reverse run gives, ``(points,)``."""
    return math.log(len(reverse.log_weights)) - (-reverse.log_weights).logsumexp(0)


def _joint(model: LatentModel, parameters: Parameters) -> Density:
    theta = {name: leaf.detach() for name, leaf in parameters["theta"].items()}
    return lambda z: model.log_joint(theta, z)


def _tuned(joint: Density, start: Guide, generator: torch.Generator, settings: Annealing) -> Tensor:
    """Step sizes ``(steps, points)`` from a run that adapts them to :data:`ACCEPTANCE`."""
    start = start.detach()
    z = start.transform(start.noise((settings.chains,), generator)).detach()
    size = torch.full(joint(z).shape[1:], settings.first_step, dtype=z.dtype, device=z.device)
    sizes = []
    for beta in settings.temperatures()[1:].tolist():
        sizes.append(size)
        z, accepted = transition(_tempered(joint, start, beta), z, size, settings.leapfrogs, generator)
        size = size * torch.exp(0.1 * (accepted.to(z.dtype).mean(0) - ACCEPTANCE) / ACCEPTANCE).clamp(0.5, 2.0)
    return torch.stack(sizes)


def _walk(
    joint: Density,
    start: Guide,
    z: Tensor,
    temperatures: Tensor,
    steps: Tensor,
    generator: torch.Generator,
    settings: Annealing,
) -> Bounds:
    """Weights along the temperatures, in whichever direction they run.

    Up, the transition at each new temperature follows its weight; down, the transition at the old one precedes it: each run
    is then the reverse of the other.
    """
    start = start.detach()
    log_weights = torch.zeros(joint(z).shape, dtype=torch.float64, device=z.device)
    rising = bool(temperatures[-1] > temperatures[0])
    rate = torch.zeros(log_weights.shape[1:], dtype=torch.float64, device=z.device)
    for size, before, after in zip(steps, temperatures[:-1].tolist(), temperatures[1:].tolist(), strict=True):
        if not rising:
            z, accepted = transition(_tempered(joint, start, before), z, size, settings.leapfrogs, generator)
        log_weights += (after - before) * (joint(z) - start.log_prob(z)).double()
        if rising:
            z, accepted = transition(_tempered(joint, start, after), z, size, settings.leapfrogs, generator)
        rate += accepted.double().mean(0) / len(steps)
    return Bounds(log_weights, rate)


def _tempered(joint: Density, start: Guide, beta: float) -> Density:
    return lambda z: beta * joint(z) + (1 - beta) * start.log_prob(z)


def transition(
    density: Density, z: Tensor, size: Tensor, leapfrogs: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One Hamiltonian move of every chain ``(chains, points, D)``; the new places, and which were accepted.

    References:
        Neal (2011).
    """
    slope = grad(lambda z: density(z).sum())
    momentum = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
    epsilon = size[..., None]
    energy = density(z) - 0.5 * momentum.square().sum(-1)
    place, moved = z, momentum + 0.5 * epsilon * slope(z)
    for step in range(leapfrogs):
        place = place + epsilon * moved
        moved = moved + (epsilon if step + 1 < leapfrogs else 0.5 * epsilon) * slope(place)
    change = density(place) - 0.5 * moved.square().sum(-1) - energy
    uniform = torch.rand(change.shape, generator=generator, dtype=z.dtype, device=z.device)
    accepted = uniform.log() < change.nan_to_num(-math.inf)
    return torch.where(accepted[..., None], place, z), accepted
