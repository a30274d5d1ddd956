"""Exact values and gradients by summing over everything: all states of a discrete latent, or a grid of Gaussian noise.

The *value* is summed and then differentiated by autograd, so no estimator's algebra enters.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad

from estimators import LatentModel, Parameters, Target
from estimators.testing import gauss_hermite

from .bounds import bound

MOST_TERMS = 2**20
"""Of a sum, data points counted singly."""
Value = Callable[[Parameters], Tensor]


def enumerated(model: LatentModel, parameters: Parameters, target: Target) -> tuple[float, Parameters] | None:
    """Value and gradient of a target by summing over all K-tuples of states; ``None`` where there are too many.

    Arguments:
        model: offers ``enumerable``.
        target: any that :func:`benchmarks.references.bounds.bound` knows, ``log_marginal``, ``forward_kl`` or ``tvo``.
    """
    with torch.no_grad():
        log_p, _ = _table(model, parameters)
    states, points = log_p.shape[0], log_p[0].numel()
    defined = bound(target)
    samples = defined[0] if defined else 1
    if points * samples * states**samples > MOST_TERMS:
        return None

    def value(p: Parameters) -> Tensor:
        log_p, log_q = _table(model, p)
        log_w = log_p - log_q
        if defined:
            tuples = torch.cartesian_prod(*[torch.arange(states)] * samples).reshape(-1, samples).T
            probability = log_q[tuples].sum(0).exp()
            return (probability * defined[1](log_w[tuples])).sum(0).mean()
        if target.name == "log_marginal":
            return log_p.logsumexp(0).mean()
        if target.name == "forward_kl":
            posterior = log_p.log_softmax(0).detach()
            return (posterior.exp() * (log_q - posterior)).sum(0).mean()
        if target.name == "tvo":
            return _thermodynamic(log_w, log_q, int(target.setting or 1)).mean()
        raise KeyError(target.name)

    if defined is None and target.name not in ("log_marginal", "forward_kl", "tvo"):
        return None
    return _differentiated(value, parameters)


def quadrature(
    model: LatentModel, parameters: Parameters, target: Target, nodes: int = 60
) -> tuple[float, Parameters] | None:
    """Value and gradient of a bound by Gauss-Hermite quadrature over the noise of its K samples.

    ``None`` where the guide's noise is not normal, or one point's K samples take more than three numbers of it.
    """
    defined = bound(target)
    if defined is None:
        return None
    samples, function = defined
    guide = model.guide(parameters["phi"])
    shape = guide.noise((samples,), torch.Generator(_device(parameters))).shape
    batch = guide.log_prob(guide.transform(torch.zeros(shape, dtype=_dtype(parameters), device=_device(parameters))))
    event = shape[batch.ndim :]
    dimensions = samples * event.numel()
    if guide.noise_law != "normal" or dimensions > 3:
        return None
    x, w = (each.to(_device(parameters)) for each in gauss_hermite(nodes))
    grid = torch.cartesian_prod(*[x] * dimensions).reshape(-1, samples, *[1] * (batch.ndim - 1), *event)
    weight = torch.cartesian_prod(*[w] * dimensions).reshape(len(grid), -1).prod(1)
    noise = grid.expand(-1, samples, *batch.shape[1:], *event).transpose(0, 1).to(_dtype(parameters))

    def value(p: Parameters) -> Tensor:
        guide = model.guide(p["phi"])
        z = guide.transform(noise)
        log_w = model.log_joint(p["theta"], z) - guide.log_prob(z)
        return torch.tensordot(weight.to(log_w.dtype), function(log_w), 1).mean()

    return _differentiated(value, parameters)


def _differentiated(value: Value, parameters: Parameters) -> tuple[float, Parameters]:
    return float(value(parameters)), grad(value)(parameters)


def _table(model: LatentModel, parameters: Parameters) -> tuple[Tensor, Tensor]:
    """log p(x, z) and log q(z | x) of every state, ``(S, *batch)``."""
    guide = model.guide(parameters["phi"])
    states = guide.states()
    probe = guide.transform(guide.noise((1,), torch.Generator(_device(parameters))))
    batch = probe.shape[1 : probe.ndim - states.ndim + 1]
    z = states.reshape(len(states), *[1] * len(batch), *states.shape[1:]).expand(-1, *batch, *states.shape[1:])
    return model.log_joint(parameters["theta"], z), guide.log_prob(z)


def _thermodynamic(log_w: Tensor, log_q: Tensor, intervals: int) -> Tensor:
    """Left Riemann sum of the thermodynamic integral, over equal intervals of beta."""
    total = torch.zeros_like(log_w[0])
    for step in range(intervals):
        power = (log_q + step / intervals * log_w).log_softmax(0).exp()
        total = total + (power * log_w).sum(0) / intervals
    return total


def _device(parameters: Parameters) -> torch.device:
    return next(leaf.device for block in parameters.values() for leaf in block.values())


def _dtype(parameters: Parameters) -> torch.dtype:
    return next(leaf.dtype for block in parameters.values() for leaf in block.values())
