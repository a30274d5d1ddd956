"""Where an amortised bound is lost: to the family of densities that q is taken from, and to the network that picks one.

log p(x) - ELBO(q) = (log p(x) - ELBO(q*)) + (ELBO(q*) - ELBO(q)): approximation gap, then amortisation gap, with q* the best
member of a family for the data point alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad_and_value

from estimators import Block, Guide, LatentModel, Parameters

from .local_guides import FAMILIES

WINDOW, PATIENCE = 100, 10
CHUNK = 500
"""Samples of each data point at once."""


@dataclass(frozen=True)
class Gaps:
    """Per data point, in nats, float64 ``(points,)``.

    ``best`` is the ELBO of the best member of the family, ``bound`` the importance-sampled bound of log p(x) with that member
    as proposal, over the same samples: often far tighter than the guide's own.
    """

    log_marginal: Tensor
    elbo: Tensor
    best: Tensor
    bound: Tensor

    @property
    def approximation(self) -> Tensor:
        """What the family cannot reach."""
        return self.log_marginal - self.best

    @property
    def amortisation(self) -> Tensor:
        """What the guide's network does not reach within the family."""
        return self.best - self.elbo


def variational_gaps(
    model: LatentModel,
    parameters: Parameters,
    log_marginal: Tensor,
    generator: torch.Generator,
    *,
    family: str = "diagonal",
    num_samples: int = 50,
    evaluation_samples: int = 5000,
    learning_rate: float = 0.01,
    max_steps: int = 10_000,
) -> Gaps:
    """Gaps of a model with one layer of latents, by optimising q for each data point on its own.

    The amortisation gap is that of the guide's network only where the guide is of the same family; beyond it, the second
    gap holds what a richer family gains as well.

    Arguments:
        log_marginal: log p(x) of each data point, ``(points,)``, from wherever it is known best.
        family: a key of :data:`~benchmarks.evaluation.local_guides.FAMILIES`: ``diagonal``, ``full-rank``, or ``flow``, four
            affine coupling layers (which needs zuko).
        num_samples: of each step's path-derivative gradient. evaluation_samples: of the ELBOs that are compared, on common
            noise.

    Raises:
        TypeError: for latents of several layers, or that no gradient goes through.

    References:
        Cremer, Li & Duvenaud (2018): Adam, 50 samples, stopped after ten windows of 100 steps without improvement.
    """
    guide = model.guide({name: leaf.detach() for name, leaf in parameters["phi"].items()})
    if not (guide.reparameterizable and isinstance(guide.noise((), torch.Generator(generator.device)), Tensor)):
        raise TypeError(f"gaps need one layer of latents that a gradient goes through, not {type(guide).__name__}'s")
    start, build = FAMILIES[family]
    local = start(guide, generator)
    best = build(_optimised(model, parameters, build, local, generator, num_samples, learning_rate, max_steps))
    common = generator.get_state()
    elbo, _ = _bounds(model, parameters, guide, evaluation_samples, generator)
    generator.set_state(common)
    return Gaps(log_marginal.double(), elbo, *_bounds(model, parameters, best, evaluation_samples, generator))


def _optimised(
    model: LatentModel,
    parameters: Parameters,
    build: Callable[[Block], Guide],
    local: Block,
    generator: torch.Generator,
    num_samples: int,
    learning_rate: float,
    max_steps: int,
) -> Block:
    theta = {name: leaf.detach() for name, leaf in parameters["theta"].items()}
    leaves = {name: leaf.requires_grad_() for name, leaf in local.items()}
    optimiser = torch.optim.Adam(leaves.values(), lr=learning_rate, maximize=True)

    def objective(phi: Block, noise: Tensor) -> Tensor:
        guide = build(phi)
        z = guide.transform(noise)
        return (model.log_joint(theta, z) - guide.detach().log_prob(z)).mean(0).sum()

    slope = grad_and_value(objective)
    like = build(local)
    best, waited, window = -math.inf, 0, 0.0
    for step in range(1, max_steps + 1):
        noise = like.noise((num_samples,), generator)
        slopes, value = slope({name: leaf.detach() for name, leaf in leaves.items()}, noise)
        for name, leaf in leaves.items():
            leaf.grad = slopes[name]
        # The rate falls towards the end, so that what remains is not the noise of the last steps.
        optimiser.param_groups[0]["lr"] = learning_rate * min(1.0, 2 * (1 - step / max_steps) + 1e-3)
        optimiser.step()
        window += float(value) / WINDOW
        if step % WINDOW == 0:
            best, waited = (window, 0) if window > best else (best, waited + 1)
            window = 0.0
            if waited >= PATIENCE:
                break
    return {name: leaf.detach() for name, leaf in leaves.items()}


@torch.no_grad()
def _bounds(
    model: LatentModel, parameters: Parameters, guide: Guide, num_samples: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """ELBO and L_K of each data point, ``(points,)`` float64; guides whose noise is alike see the same noise."""
    parts = []
    for begin in range(0, num_samples, CHUNK):
        z = guide.transform(guide.noise((min(CHUNK, num_samples - begin),), generator))
        parts.append((model.log_joint(parameters["theta"], z) - guide.log_prob(z)).double())
    log_w = torch.cat(parts)
    return log_w.mean(0), log_w.logsumexp(0) - math.log(num_samples)
