"""Exact values and gradients for one scalar latent: sums over a grid of z itself, weighted by the guide's density.

The *value* is summed and then differentiated by autograd with z held, so neither an estimator's algebra nor the guide's
derivative of its draws enters. Grids are uniform in a coordinate y that runs over the whole line (log z, logit z, or one in
which every feature of the integrand is wide): the trapezoid rule then converges exponentially in 1/step. How small a step
must be depends on how steep the log-weights are, so it is halved until that changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.func import grad_and_value, vjp

from estimators import LatentModel, Parameters, Target
from estimators.trees import tree_leaves, tree_map

from .bounds import bound
from .many_samples import log_mean

Grid = tuple[Tensor, Tensor]
"""z (N, *batch, 1) and dz (N, *batch), the steps in z that stand at the nodes; in a plane (N, *batch, 2) and areas."""
Mesh = Callable[[int], Grid]
"""A grid of so many nodes: always over the same range, and ever finer."""
Found = tuple[float, Parameters]
"""A value in nats, and its gradient."""
NODES = 256
"""Of the first grid; each further one has twice as many."""
MOST_TERMS = 2**25
"""Of a sum over pairs, data points counted singly: 8,192 nodes of one data point, 512 nodes of 256."""
MOST_NUMBERS = 2**20
"""Of a sum over single nodes, numbers of the data counted singly: they are in memory at once."""
AT_ONCE = 2**18
MOST_SAMPLES = 2
NEGLIGIBLE = 1e-9
"""Of a sum, what the terms at the ends of the grid may be; and of the guide's mass, what may lie beyond them."""
SETTLED = 1e-9
"""Nats by which the last halving of the step may have changed the value; the gradient, by ten times that part of it. The error
that is left is far below, since every halving squares it once log w is resolved; before, it divides it by four."""
ROUNDING = 1e-14
"""Relative, of the value's terms."""
NOT_HERE = 40.0
"""Nats below its mode where a density has ended."""


def summed(model: LatentModel, parameters: Parameters, target: Target, mesh: Mesh) -> Found | None:
    """Value and gradient of a bound of at most two samples, or of L_K, on the first grid that the one before it agrees with.

    ``None`` for more samples of others; for what is no bound; for a mean that does not exist, or not on this range: terms at its ends
    count, or some of the guide's mass lies beyond them; and where no grid that can be summed settles.
    """
    defined = bound(target)
    points, size = mesh(2)[1][0].numel(), model.data.numel()
    pairs = math.isqrt(2 * MOST_TERMS // points)  # nodes of which there are so many pairs
    if target.name == "iwae" and (target.num_samples or 1) > MOST_SAMPLES:
        many = target.num_samples or 1
        return settled(lambda nodes: of_many(model, parameters, many, mesh(nodes)), finer(pairs))
    if defined is None or defined[0] > MOST_SAMPLES:
        return None
    samples, function = defined
    most = finer(MOST_NUMBERS // size if samples == 1 else pairs)
    return settled(lambda nodes: _on(model, parameters, samples, function, mesh(nodes)), most)


def settled(on: Callable[[int], Found | None], counts: Iterable[int]) -> Found | None:
    """What a rule of so many nodes finds, at the first of ``counts`` that changes nothing of what the one before it has found.

    ``None`` if not even the last does.
    """
    found = refined(on, counts)
    return found[0] if found is not None and found[1] <= SETTLED else None


def refined(on: Callable[[int], Found | None], counts: Iterable[int]) -> tuple[Found, float] | None:
    """The same, or what the last rule finds; and what it has changed (:func:`change`).

    Rules that find nothing, for want of nodes or of memory, are passed over; ``None`` if fewer than two do.
    """
    before, moved = None, math.inf
    for nodes in counts:
        found = on(nodes)
        if found is None:
            continue
        if before is not None:
            moved = change(found, before)
        before = found
        if moved <= SETTLED:
            break
    return None if before is None or moved == math.inf else (before, moved)


def finer(most: int, first: int = NODES, ratio: float = 2.0) -> list[int]:
    """Numbers of nodes, each so many times the one before.

    Example:
        >>> finer(1024), finer(100, first=40, ratio=1.25)
        ([256, 512, 1024], [40, 50, 62, 78, 98])
    """
    return [round(first * ratio**k) for k in range(99) if round(first * ratio**k) <= most]


def between(log_density: Callable[[Tensor], Tensor], mode: Tensor) -> tuple[Tensor, Tensor]:
    """Where a unimodal density on the line has ended, on either side of its mode; all ``(*batch)``."""
    distance = torch.logspace(-9, 6, 601, dtype=mode.dtype).reshape(-1, *[1] * mode.ndim)
    ends = []
    for side in (-1, 1):
        ended = log_density(mode + side * distance) < log_density(mode) - NOT_HERE
        ends.append(mode + side * distance.flatten()[ended.to(torch.uint8).argmax(0)])
    return ends[0], ends[1]


def graded(places: Sequence[float], widths: Sequence[float], reach: float) -> Mesh:
    """A mesh over all of the line within ``reach`` widths of some place, as fine there as each width asks for.

    It is uniform in y(z) = sum_i asinh((z - place_i) / width_i), which is analytic and rises.
    """
    place, width = (torch.tensor(each, dtype=torch.float64)[:, None] for each in (places, widths))
    ends = torch.stack([(place - reach * width).min(), (place + reach * width).max()])

    def height(z: Tensor) -> Tensor:
        return torch.asinh((z - place) / width).sum(0)

    def mesh(nodes: int) -> Grid:
        first, last = height(ends)
        y = torch.linspace(float(first), float(last), nodes, dtype=torch.float64)
        low, high = ends[0].expand(nodes), ends[1].expand(nodes)
        for _ in range(80):  # halvings: more than a number of double precision has digits
            middle = (low + high) / 2
            below = height(middle) < y
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        z = (low + high) / 2
        slope = ((z - place).square() + width.square()).rsqrt().sum(0)
        return z[:, None, None], ((last - first) / (nodes - 1) / slope)[:, None]

    return mesh


def _on(
    model: LatentModel, parameters: Parameters, samples: int, function: Callable[[Tensor], Tensor], grid: Grid
) -> Found | None:
    """Value and gradient on one grid; ``None`` where it does not hold all that counts."""
    held = _held(model, parameters, grid)
    if held is None:
        return None
    log_w, mass, pull = held
    if not _ended(mass * (function(log_w[None]) if samples == 1 else log_w)):
        return None
    # A constant that is taken out of the sum: what is left does not multiply the rounding of the mass by all of log p(x).
    middle = (mass * log_w).sum(0)

    def part(log_w: Tensor, mass: Tensor, tuples: Tensor, times: Tensor) -> Tensor:
        together = times.reshape(-1, *[1] * (mass.ndim - 1)) * mass[tuples].prod(0)
        return (together * (function(log_w[tuples]) - middle)).sum(0).mean()

    value, cotangents = middle.mean(), (torch.zeros_like(log_w), torch.zeros_like(mass))
    nodes = len(mass)
    tuples = torch.triu_indices(nodes, nodes) if samples == 2 else torch.arange(nodes)[None]
    times = torch.where(tuples[0] == tuples[-1], 1.0, 2.0 if samples == 2 else 1.0).to(mass)
    size = max(1, AT_ONCE // mass[0].numel())
    for some, so_often in zip(tuples.split(size, 1), times.split(size), strict=True):
        slopes, summand = grad_and_value(part, argnums=(0, 1))(log_w, mass, some, so_often)
        value = value + summand
        cotangents = tree_map(torch.add, cotangents, slopes)
    return float(value), pull(cotangents)[0]


def of_many(model: LatentModel, parameters: Parameters, num_samples: int, grid: Grid) -> Found | None:
    """L_K and its gradient on one grid, which may be one of a plane as well; ``None`` where that does not hold all that counts."""
    held = _held(model, parameters, grid)
    if held is None or not _ended(held[0] * held[1]):
        return None
    log_w, mass, pull = held
    columns = list(zip(log_w.flatten(1).unbind(1), mass.flatten(1).unbind(1), strict=True))
    found = [log_mean(*column, num_samples) for column in columns]
    if any(each is None for each in found):
        return None
    value, by_log_w, by_mass = (torch.stack(each, -1) / len(columns) for each in zip(*filter(None, found), strict=True))
    return float(value.sum()), pull((by_log_w.reshape(log_w.shape), by_mass.reshape(mass.shape)))[0]


def _held(
    model: LatentModel, parameters: Parameters, grid: Grid
) -> tuple[Tensor, Tensor, Callable[[tuple[Tensor, Tensor]], tuple[Parameters]]] | None:
    """Log-weights at the nodes, the guide's mass there, and what pulls their cotangents back; ``None`` if mass is missing."""
    z, dz = grid

    def weighed(p: Parameters) -> tuple[Tensor, Tensor]:
        log_q = model.guide(p["phi"]).log_prob(z)
        log_w, mass = model.log_joint(p["theta"], z) - log_q, log_q.exp() * dz
        # Where there is none of the guide, no F of large weights makes up for that: all grow more slowly than weights do.
        return torch.where((mass == 0) & (log_w > 0), 0.0, log_w), mass

    (log_w, mass), pull = vjp(weighed, parameters)
    # Not to be turned round: what is not a number does not count as held.
    return (log_w, mass, pull) if bool(((mass.sum(0) - 1).abs() <= NEGLIGIBLE).all()) else None


def _ended(terms: Tensor) -> bool:
    """Whether the first and the last of them count for nothing; what is not a number does count."""
    sizes = terms.abs()
    return bool((sizes[[0, -1]] <= NEGLIGIBLE * sizes.sum(0)).all())


def change(found: Found, before: Found) -> float:
    """In nats, that of the value, rounding apart, or a tenth of that part of the gradient; not a number is as far as can be."""
    fine, coarse = (torch.cat([leaf.reshape(-1) for leaf in tree_leaves(each[1])]) for each in (found, before))
    value = abs(found[0] - before[0]) - ROUNDING * abs(found[0])
    moved = max(value, float((fine - coarse).norm() / (1 + fine.norm())) / 10)
    return moved if moved == moved else math.inf
