"""Exact values and gradients of the ELBO with relaxed latents, by quadrature over the noise that relaxes them.

A Bernoulli variable of log-odds a relaxes to sigmoid((a + l) / T), l logistic; a categorical one of C values to the softmax of
(log p + g) / T, where of the Gumbel noise g only the C - 1 differences from its last count, whose joint density is known:

    (C - 1)! prod_i exp(-d_i) / (1 + sum_i exp(-d_i))^C            (C = 2: logistic)

The value is integrated and then differentiated by autograd, so no estimator's algebra enters. Each coordinate is l = pi sinh(t)
at equal steps of t, which is the tanh-sinh rule for the uniform number behind it: powers of that number at its ends do no harm.
How small a step must be depends on how steep the likelihood is between 0 and 1, so it falls until that changes nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.func import grad_and_value

from estimators import Bernoulli, Categorical, LatentModel, Parameters, Target
from estimators.quadrature import Rule, product
from estimators.trees import tree_map

from .on_a_line import Found, finer, settled
from .summation import NEGLIGIBLE

MOST_NODES = 2**20
"""Of all coordinates together."""
MOST_NUMBERS = 2**27
"""Nodes times numbers of the data: seconds."""
AT_ONCE = 2**20
"""Of these, so many are in memory at a time."""
COUNTS = {1: (256, 2.0), 2: (90, 1.4), 3: (40, 1.25)}
"""By coordinates: the first number of nodes of each, and how many times more the next is."""
REACH = 3.3
"""Of t: beyond, the logistic density is below 1e-17."""


def relaxed(model: LatentModel, parameters: Parameters, target: Target) -> Found | None:
    """Value and gradient of ``relaxed_elbo`` at the temperature that ``target.setting`` gives, log q continued linearly.

    ``None`` where there are more than three coordinates, counting one for each Bernoulli variable and one less than its values
    for a categorical one, of which there may be one; and where no rule that can be summed settles.
    """
    guide = model.guide(parameters["phi"])
    temperature = float(target.setting or 0)
    if target.name != "relaxed_elbo" or temperature <= 0:
        return None
    if isinstance(guide, Bernoulli):
        coordinates, noise = guide.logits.shape[-1], _logistics
    elif isinstance(guide, Categorical) and guide.logits.shape[-2] == 1:
        coordinates, noise = guide.logits.shape[-1] - 1, gumbel_differences
    else:
        return None
    if coordinates not in COUNTS:
        return None
    size = model.data.numel() + guide.logits.numel()
    most = int(min(MOST_NODES, MOST_NUMBERS // size) ** (1 / coordinates)) - 1

    def on(nodes: int) -> Found:
        rule = (each.to(guide.logits) for each in noise(coordinates, 2 * REACH / nodes))
        return _on(model, parameters, temperature, *rule, max(1, AT_ONCE // size))

    return settled(on, finer(most, *COUNTS[coordinates]))


def _on(
    model: LatentModel, parameters: Parameters, temperature: float, noise: Tensor, weight: Tensor, at_once: int
) -> Found:
    """Value and gradient by one rule, of points ``(N, count)`` and weights ``(N,)``."""

    def part(p: Parameters, noise: Tensor, weight: Tensor) -> Tensor:
        guide = model.guide(p["phi"])
        if isinstance(guide, Bernoulli):
            moves = noise.reshape(-1, *[1] * (guide.logits.ndim - 1), noise.shape[1])
            z = ((guide.logits + moves) / temperature).sigmoid()
        else:
            assert isinstance(guide, Categorical)
            moves = torch.nn.functional.pad(noise, (0, 1))
            moved = guide.log_probs + moves.reshape(-1, *[1] * (guide.logits.ndim - 1), moves.shape[1])
            z = (moved / temperature).softmax(-1)
        log_w = model.log_joint(p["theta"], z) - guide.log_prob(z)
        return torch.tensordot(weight, log_w, 1).mean()

    value, gradient = 0.0, tree_map(torch.zeros_like, parameters)
    kept = weight > NEGLIGIBLE
    for some, weights in zip(noise[kept].split(at_once), weight[kept].split(at_once), strict=True):
        slope, summand = grad_and_value(part)(parameters, some, weights)
        value, gradient = value + float(summand), tree_map(torch.add, gradient, slope)
    return value, gradient


def _logistics(count: int, step: float) -> Rule:
    return product([logistic(step)] * count)


def logistic(step: float) -> Rule:
    """Nodes and weights for the expectation over one logistic number, float64.

    Example:
        >>> l, w = logistic(0.1)
        >>> round(float((w * l**2).sum() * 3 / math.pi**2), 12)
        1.0
    """
    noise, measure = _line(step)
    size = noise.abs()
    return noise, measure * (-size - 2 * torch.log1p((-size).exp())).exp()


def gumbel_differences(count: int, step: float) -> tuple[Tensor, Tensor]:
    """Points ``(N, count)`` and weights ``(N,)`` for the differences of ``count`` Gumbel numbers from one more.

    Example:
        >>> d, w = gumbel_differences(2, 0.05)
        >>> round(float(w.sum()), 10), round(float((w * d[:, 0] * d[:, 1]).sum() * 6 / math.pi**2), 10)
        (1.0, 1.0)
    """
    line, measure = _line(step)
    d = torch.cartesian_prod(*[line] * count).reshape(-1, count)
    across = torch.cartesian_prod(*[measure.log()] * count).reshape(-1, count).sum(1)
    together = torch.nn.functional.pad(-d, (0, 1)).logsumexp(1)
    return d, math.factorial(count) * (across - d.sum(1) - (count + 1) * together).exp()


def _line(step: float) -> Rule:
    t = torch.arange(-REACH, REACH + step / 2, step, dtype=torch.float64)
    return math.pi * t.sinh(), math.pi * t.cosh() * step
