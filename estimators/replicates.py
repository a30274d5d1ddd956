"""Independent replicates of an estimate, vectorised over explicit noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.func import vmap

from .contract import BLOCKS, Estimator, Gradient, LatentModel, Parameters
from .trees import tree_leaves, tree_map

Rows: TypeAlias = Callable[[Any], Tensor]
"""From the noise of several replicates, ``(rows, K, ...)``, to their estimates, ``(rows, 1 + P)``."""


def coordinates(parameters: Parameters) -> list[tuple[str, str, int]]:
    """Names of the columns of :func:`flatten` after the first: block, parameter, and place in the flattened parameter."""
    return [
        (block, name, place)
        for block in BLOCKS
        for name, leaf in parameters[block].items()
        for place in range(leaf.numel())
    ]


def flatten(gradient: Gradient, parameters: Parameters) -> Tensor:
    """Stacked gradients as a matrix ``(R, 1 + P)``: the value, then theta, then phi, in the order of the parameters."""
    rows = gradient.value.shape[0]
    blocks = {"theta": gradient.theta, "phi": gradient.phi}
    leaves = [blocks[block][name].reshape(rows, -1) for block in BLOCKS for name in parameters[block]]
    return torch.cat([gradient.value[:, None].to(leaves[0].dtype), *leaves], 1)


def vectorised(estimator: Estimator, model: LatentModel, parameters: Parameters) -> Rows:
    """The estimates of given noise, all at once: what :func:`stacked` draws noise for."""

    def rows(noise: Any) -> Tensor:
        return flatten(vmap(lambda one: estimator.gradient(model, parameters, one))(noise), parameters)

    return rows


def stacked(
    estimator: Estimator,
    model: LatentModel,
    parameters: Parameters,
    replicates: int,
    generator: torch.Generator,
    rows_of: Rows | None = None,
) -> Tensor:
    """``replicates`` independent estimates, ``(replicates, 1 + P)``, columns as in :func:`flatten`.

    Estimates that draw different numbers of samples are computed in groups of equal length, so none pays for another.
    ``rows_of`` stands in for :func:`vectorised` of the same estimator: the same estimates, made in another way.

    Raises:
        RuntimeError: if the estimator writes into the noise that it is given: its estimates are of other noise then.
    """
    rows_of = rows_of or vectorised(estimator, model, parameters)
    with torch.no_grad():
        guide = model.guide(parameters["phi"])
        draws = estimator.draws(guide, replicates, generator)
    out: Tensor | None = None
    for draw in draws:
        before = _versions(draw.noise)
        rows = rows_of(draw.noise)
        if _versions(draw.noise) != before:
            raise RuntimeError("the estimator wrote into the noise that it was given")
        if len(draws) == 1:
            return rows
        if out is None:
            out = rows.new_empty(replicates, rows.shape[1])
        out[draw.rows.to(rows.device)] = rows
    assert out is not None
    return out


def _versions(noise: Any) -> list[int]:
    """How often each tensor has been written to."""
    return [leaf._version for leaf in tree_leaves(noise)]


def warmed_up(
    estimator: Estimator, model: LatentModel, parameters: Parameters, generator: torch.Generator
) -> Estimator:
    """The estimator after it has learnt from ``warm_up`` draws; itself if it learns nothing, or was warmed up before."""
    if not estimator.warm_up or estimator.state is not None:
        return estimator
    with torch.no_grad():
        guide = model.guide(parameters["phi"])
    for _ in range(estimator.warm_up):
        for draw in estimator.draws(guide, 1, generator):
            estimator = estimator.adapted(model, parameters, tree_map(lambda leaf: leaf[0], draw.noise))
    return estimator


def batches(
    estimator: Estimator,
    model: LatentModel,
    parameters: Parameters,
    replicates: int,
    generator: torch.Generator,
    size: int,
    rows_of: Rows | None = None,
) -> Iterator[Tensor]:
    """``replicates`` estimates in batches of at most ``size`` rows; memory does not grow with ``replicates``."""
    for start in range(0, replicates, size):
        yield stacked(estimator, model, parameters, min(size, replicates - start), generator, rows_of)
