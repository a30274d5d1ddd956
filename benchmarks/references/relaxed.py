"""Exact values and gradients of the ELBO with relaxed latents, by quadrature over the noise that relaxes them.

A Bernoulli variable of log-odds a relaxes to sigmoid((a + l) / T), l logistic; a categorical one of C values to the softmax of
(log p + g) / T, where of the Gumbel noise g only the C - 1 differences from its last count, whose joint density is known:

    (C - 1)! prod_i exp(-d_i) / (1 + sum_i exp(-d_i))^C            (C = 2: logistic)

The value is integrated and then differentiated by autograd, so no estimator's algebra enters. Each coordinate is l = pi sinh(t)
at equal steps of t, which is the tanh-sinh rule for the uniform number behind it: powers of that number at its ends do no harm.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.func import grad

from estimators import Bernoulli, Categorical, LatentModel, Parameters, Target
from estimators.quadrature import Rule, product

from .summation import NEGLIGIBLE

MOST_NODES = 2**20
REACH = 3.3
"""Of t: beyond, the logistic density is below 1e-17."""


def relaxed(model: LatentModel, parameters: Parameters, target: Target) -> tuple[float, Parameters] | None:
    """Value and gradient of ``relaxed_elbo`` at the temperature that ``target.setting`` gives, log q continued linearly.

    ``None`` where there are too many latents: products of Bernoulli variables are taken up to about three of them at
    temperatures from a half, and categorical ones if there is one of at most three values.
    """
    guide = model.guide(parameters["phi"])
    temperature = float(target.setting or 0)
    if target.name != "relaxed_elbo" or temperature <= 0:
        return None
    if isinstance(guide, Bernoulli):
        coordinates = guide.logits.shape[-1]
    elif isinstance(guide, Categorical) and guide.logits.shape[-2] == 1 and guide.logits.shape[-1] <= 3:
        coordinates = guide.logits.shape[-1] - 1
    else:
        return None
    step = 0.1 * min(1.0, 1.4 * temperature)
    if isinstance(guide, Categorical):
        step = min(step, 0.06)
    if (2 * REACH / step) ** coordinates * guide.logits.shape[:-1].numel() > MOST_NODES:
        return None
    if isinstance(guide, Bernoulli):
        noise, weight = product([logistic(step)] * coordinates)
    else:
        noise, weight = gumbel_differences(coordinates, step)
    noise, weight = noise[weight > NEGLIGIBLE].to(guide.logits), weight[weight > NEGLIGIBLE].to(guide.logits)

    def value(p: Parameters) -> Tensor:
        guide = model.guide(p["phi"])
        if isinstance(guide, Bernoulli):
            z = (
                (guide.logits + noise.reshape(-1, *[1] * (guide.logits.ndim - 1), coordinates)) / temperature
            ).sigmoid()
        else:
            assert isinstance(guide, Categorical)
            moves = torch.nn.functional.pad(noise, (0, 1))
            moved = guide.log_probs + moves.reshape(-1, *[1] * (guide.logits.ndim - 1), coordinates + 1)
            z = (moved / temperature).softmax(-1)
        log_w = model.log_joint(p["theta"], z) - guide.log_prob(z)
        return torch.tensordot(weight, log_w, 1).mean()

    return float(value(parameters)), grad(value)(parameters)


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
