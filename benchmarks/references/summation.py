"""Exact values and gradients by summing over everything: all states of a discrete latent, or a grid of Gaussian noise.

The *value* is summed and then differentiated by autograd, so no estimator's algebra enters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vjp

from estimators import Guide, LatentModel, Parameters, Target
from estimators.quadrature import MOST_NODES, Rule, gauss_hermite, product
from estimators.trees import tree_leaves, tree_map

from .bounds import bound

MOST_TERMS = 2**20
"""Of a sum, data points counted singly."""
NEGLIGIBLE = 1e-17
"""Weights of nodes below this, and of tuples of them, are left out."""
MOST_NUMBERS = 2**22
"""Of a rule over noise: nodes times numbers of the data. They are in memory at once."""
MOST_TUPLES = 2**25
"""Of nodes, before those of little weight and all orders but one are left out."""
MOST_TERMS_OF_NOISE = 2**26
"""Of those that are left, times K and data points: seconds."""
AT_ONCE = 2**20
"""Of these, so many are in memory at a time."""
RIEMANN = {"tvo": 0, "tvo_upper": 1}
"""Riemann sums of the thermodynamic integral, and the first end of an interval that they take."""
Value = Callable[[Parameters], Tensor]


def enumerated(model: LatentModel, parameters: Parameters, target: Target) -> tuple[float, Parameters] | None:
    """Value and gradient of a target by summing over all K-tuples of states; ``None`` where there are too many.

    Arguments:
        model: offers ``enumerable``.
        target: any that :func:`benchmarks.references.bounds.bound` knows, ``log_marginal``, ``forward_kl``, ``tvo`` or ``tvo_upper``.
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
        if target.name in RIEMANN:
            return _thermodynamic(log_w, log_q, int(target.setting or 1), RIEMANN[target.name]).mean()
        raise KeyError(target.name)

    if defined is None and target.name not in ("log_marginal", "forward_kl", *RIEMANN):
        return None
    return _differentiated(value, parameters)


def numbers_of_noise(model: LatentModel, parameters: Parameters, target: Target) -> int | None:
    """How many normal numbers the K samples of one data point take; ``None`` for other noise and for what is no bound."""
    defined, guide = bound(target), model.guide(parameters["phi"])
    if defined is None or guide.noise_law != "normal":
        return None
    return defined[0] * sum(_events(guide, _device(parameters))[2])


def _events(guide: Guide, device: torch.device) -> tuple[Any, tuple[int, ...], list[int]]:
    """Noise of one sample, the shape of the batch, and how many numbers of noise a data point takes in each layer."""
    probe = guide.noise((1,), torch.Generator(device))
    batch = guide.log_prob(guide.transform(probe)).shape[1:]
    return probe, tuple(batch), [layer.shape[1 + len(batch) :].numel() for layer in tree_leaves(probe)]


def quadrature(
    model: LatentModel, parameters: Parameters, target: Target, rule: Rule | None = None, *, most: int = 3
) -> tuple[float, Parameters] | None:
    """Value and gradient of a bound by quadrature over the noise of its K samples.

    Log-weights are computed at every node of one sample's noise, all layers' together, and the bound at K-tuples of such
    nodes. ``None`` where the guide's noise is not normal, where one point's K samples take more than ``most`` numbers of it, and
    where the sums would take too much memory.

    Arguments:
        rule: for one standard normal number; a Gauss-Hermite rule of 60 nodes without one.
    """
    defined, numbers = bound(target), numbers_of_noise(model, parameters, target)
    if defined is None or numbers is None or numbers > most:
        return None
    samples, function = defined
    device, dtype = _device(parameters), _dtype(parameters)
    probe, batch, sizes = _events(model.guide(parameters["phi"]), device)
    events = [layer.shape[1 + len(batch) :] for layer in tree_leaves(probe)]
    rule = rule or gauss_hermite(60)
    if len(rule[0]) ** sum(sizes) > MOST_NODES:
        return None
    grid, weight = (each.to(device) for each in product([rule] * sum(sizes)))
    # Of the largest weight and not of one, so that how far a rule reaches does not depend on how fine it is.
    kept = weight > NEGLIGIBLE * weight.max()
    grid, weight = grid[kept], weight[kept]
    if len(weight) * model.data.numel() > MOST_NUMBERS or len(weight) ** samples > MOST_TUPLES:
        return None
    pieces = zip(grid.split(sizes, 1), events, strict=True)

    def layer(_: Tensor) -> Tensor:
        piece, event = next(pieces)
        return piece.reshape(-1, *[1] * len(batch), *event).expand(-1, *batch, *event).to(dtype)

    noise = tree_map(layer, probe)
    tuples, together = _tuples(weight, samples)
    points = math.prod(batch)
    if tuples.numel() * points > MOST_TERMS_OF_NOISE:
        return None

    def weighed(p: Parameters) -> Tensor:
        guide = model.guide(p["phi"])
        z = guide.transform(noise)
        return model.log_joint(p["theta"], z) - guide.log_prob(z)

    def part(log_w: Tensor, tuples: Tensor, together: Tensor) -> Tensor:
        return torch.tensordot(together, function(log_w[tuples]), 1).mean()

    log_w, pull = vjp(weighed, parameters)
    value, cotangent = 0.0, torch.zeros_like(log_w)
    size = max(1, AT_ONCE // (samples * points))
    for some, weights in zip(tuples.split(size, 1), together.to(log_w.dtype).split(size), strict=True):
        slope, summand = grad_and_value(part)(log_w, some, weights)
        value, cotangent = value + float(summand), cotangent + slope
    return value, pull(cotangent)[0]


def trapezoid(nodes: int, reach: float = 8.5) -> Rule:
    """Nodes and weights for a standard normal number: equal steps, exponentially accurate in their inverse.

    Where a bound's logarithm bends sharply these settle sooner than Gauss-Hermite rules.

    Example:
        >>> x, w = trapezoid(40)
        >>> round(float((w * x**6).sum()), 9)
        15.0
    """
    x = torch.linspace(-reach, reach, nodes, dtype=torch.float64)
    weight = (-0.5 * x.square()).exp()
    return x, weight / weight.sum()


def _tuples(weight: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Places ``(K, N)`` of K-tuples of nodes and their weights ``(N,)``; bounds are symmetric, so each counts in one order."""
    nodes = torch.arange(len(weight), device=weight.device)
    places, together, run = nodes[None], weight, torch.ones_like(nodes)
    for k in range(2, samples + 1):
        counts = (together[:, None] * weight > NEGLIGIBLE) & (places[-1][:, None] <= nodes)
        old, new = counts.nonzero(as_tuple=True)
        run = torch.where(places[-1][old] == new, run[old] + 1, 1)
        # k!/(run lengths)! orders, one more element at a time
        together = together[old] * weight[new] * k / run
        places = torch.cat([places[:, old], new[None]])
    return places, together


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


def _thermodynamic(log_w: Tensor, log_q: Tensor, intervals: int, first: int) -> Tensor:
    """Riemann sum of the thermodynamic integral over equal intervals of beta, at their left ends (0) or right ones (1)."""
    total = torch.zeros_like(log_w[0])
    for step in range(first, first + intervals):
        power = (log_q + step / intervals * log_w).log_softmax(0).exp()
        total = total + (power * log_w).sum(0) / intervals
    return total


def _device(parameters: Parameters) -> torch.device:
    return next(leaf.device for block in parameters.values() for leaf in block.values())


def _dtype(parameters: Parameters) -> torch.dtype:
    return next(leaf.dtype for block in parameters.values() for leaf in block.values())
