"""Expectations over all noise of an estimator, exactly: nothing is sampled, so nothing is left to chance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from .contract import Estimator, LatentModel, Parameters
from .replicates import flatten

Rule = tuple[Tensor, Tensor]
"""Nodes and weights, each ``(n,)``, float64; the weights sum to one."""
MOST_NODES = 2**20
SMALLEST = 1e-30
"""Products of weights below this are left out."""


def gauss_hermite(nodes: int) -> Rule:
    """Nodes and weights for the expectation over a standard normal, float64 (Golub & Welsch, 1969).

    Example:
        >>> x, w = gauss_hermite(10)
        >>> round(float((w * x**4).sum()), 12)
        3.0
    """
    off_diagonal = torch.arange(1, nodes, dtype=torch.float64).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(off_diagonal, 1) + torch.diag(off_diagonal, -1))
    return values, vectors[0].square()


def gauss_legendre(edges: Sequence[float], nodes: int) -> Rule:
    """Nodes and weights for the expectation over a uniform number on (0, 1), cell by cell between ``edges``.

    Exact for what is a polynomial of degree below ``2 nodes`` within each cell: with one node, for what is constant there.

    Example:
        >>> x, w = gauss_legendre([0.3], nodes=1)
        >>> x, w
        (tensor([0.1500, 0.6500], dtype=torch.float64), tensor([0.3000, 0.7000], dtype=torch.float64))
    """
    k = torch.arange(1, nodes, dtype=torch.float64)
    off_diagonal = k / (4 * k.square() - 1).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(off_diagonal, 1) + torch.diag(off_diagonal, -1))
    unit, weight = (values + 1) / 2, vectors[0].square()
    bounds = sorted({0.0, 1.0, *(edge for edge in edges if 0.0 < edge < 1.0)})
    cells = list(itertools.pairwise(bounds))
    return (
        torch.cat([low + (high - low) * unit for low, high in cells]),
        torch.cat([(high - low) * weight for low, high in cells]),
    )


def product(rules: Sequence[Rule]) -> tuple[Tensor, Tensor]:
    """The product of one-dimensional rules: ``(N, len(rules))`` points and their weights ``(N,)``.

    Raises:
        ValueError: if there are more than 2^20 points.
    """
    count = math.prod(len(x) for x, _ in rules)
    if count > MOST_NODES:
        raise ValueError(f"{count} nodes are too many to sum over; at most {MOST_NODES}")
    grid = torch.cartesian_prod(*[x for x, _ in rules]).reshape(-1, len(rules))
    weight = torch.cartesian_prod(*[w for _, w in rules]).reshape(-1, len(rules)).prod(1)
    kept = weight > SMALLEST
    return grid[kept], weight[kept]


def exact_expectation(
    estimator: Estimator,
    model: LatentModel,
    parameters: Parameters,
    *,
    nodes: int = 60,
    grid: tuple[Any, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean and variance of an estimator by quadrature over *all* of its noise; nothing is sampled.

    Normal noise by Gauss-Hermite rules, for smooth estimators and at most three numbers of it in all (K times the latent's
    size); uniform noise by Gauss-Legendre rules between the guide's edges, where one node is exact for what depends on z
    alone.

    Arguments:
        nodes: of each rule; for uniform noise of each of its cells.
        grid: for estimators with noise of their own: every value of it, ``(N, ...)`` or a tree of such, and weights ``(N,)``.

    Returns:
        mean and variance, each ``(1 + P,)``, columns as in :func:`estimators.replicates.flatten`.

    Raises:
        ValueError: if the estimator draws other noise than the guide's and no grid is given, or too much of it.
    """
    noise, weight = _grid(estimator, model, parameters, nodes) if grid is None else grid
    rows = flatten(vmap(lambda noise: estimator.gradient(model, parameters, noise))(noise), parameters).double()
    mean = weight @ rows
    return mean, weight @ (rows - mean).square()


def _grid(estimator: Estimator, model: LatentModel, parameters: Parameters, nodes: int) -> tuple[Tensor, Tensor]:
    guide = model.guide(parameters["phi"])
    noise = estimator.draws(guide, 1, torch.Generator().manual_seed(0))[0].noise
    if estimator.random_cost or not isinstance(noise, Tensor):
        raise ValueError(f"{estimator.label()} has noise of its own: give the grid")
    shape = noise.shape[1:]
    if shape != guide.noise((estimator.num_samples,), torch.Generator()).shape:
        raise ValueError(f"{estimator.label()} has noise of its own, of shape {tuple(shape)}: give the grid")
    if guide.noise_law == "normal":
        if math.prod(shape) > 3:
            raise ValueError(f"{estimator.label()}: noise of shape {tuple(shape)} is too large for quadrature")
        grid, weight = product([gauss_hermite(nodes)] * math.prod(shape))
    elif guide.noise_law == "uniform":
        edges = guide.edges()[:, None].expand(-1, *shape).flatten(1).T.tolist()
        grid, weight = product([gauss_legendre(each, nodes) for each in edges])
    else:
        raise ValueError(f"{type(guide).__name__} has noise of its own: give the grid")
    return grid.reshape(-1, *shape).to(noise), weight
