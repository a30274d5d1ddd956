"""The first tier of the unbiasedness test: the expectation over all noise, where there is so little that it can be summed over."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .contract import Estimator, Guide, LatentModel, Parameters
from .quadrature import exact_expectation

MOST_CELLS = 50_000
"""Estimates that are computed for one expectation over uniform noise."""
NODES = {1: 60, 2: 60, 3: 27}
"""For each of so many normal numbers of noise."""
TOLERANCE = 0.005
"""The bias to be seen, as a part of the block's gradient or in nats of the value: no less than what a truth that was found by
a long run may be off by."""
DOUBT = 20
"""How many times the difference of two rules a deviation must be, to be no inaccuracy of theirs."""


def settled_expectation(
    estimator: Estimator, model: LatentModel, parameters: Parameters
) -> tuple[Tensor, Tensor] | None:
    """Mean of the estimate by quadrature, and how far coarser rules are from it, each ``(1 + P,)`` in float64.

    ``None`` where nothing can be said: noise of its own or tied together, noise of a law that no rule is made for, or too
    much of it.
    """
    if type(estimator).draws is not Estimator.draws:
        return None
    guide = model.guide(parameters["phi"])
    nodes = _nodes(guide, estimator.num_samples, next(iter(parameters["phi"].values()), torch.zeros(())).device)
    if nodes is None:
        return None
    try:
        fine, *coarser = (exact_expectation(estimator, model, parameters, nodes=count)[0] for count in nodes)
    except ValueError:  # noise of another shape than it says
        return None
    return fine, torch.stack([(fine - each).abs() for each in coarser]).amax(0)


def deviation(
    exact: tuple[Tensor, Tensor],
    expected: Tensor,
    tested: Tensor,
    directions: tuple[Tensor, Tensor],
    centred: Tensor,
    tolerance: float,
) -> tuple[int | None, float, float]:
    """The direction along which a computed expectation is not the truth (``None``: none), by how much, and as a part.

    It is trusted where it deviates by far more than two rules do from each other, and where the draws have the same mean:
    what is summed over may not be what is drawn. Where it is not, the part is NaN.

    Arguments:
        directions: unit vectors ``(J, columns)``, and the size that a part is a part of, ``(J,)``.
        centred: draws less the truth, along the directions, ``(R, J)``.
    """
    (mean, error), (vectors, scales) = (each.to(expected) for each in exact), directions
    if not bool(mean[tested].isfinite().all()):
        return None, math.nan, math.nan
    off = vectors @ torch.where(tested, mean - expected, 0.0)
    doubt = DOUBT * (vectors.abs() @ torch.where(tested, error, 0.0))
    spread = centred.std(0) / math.sqrt(len(centred))
    if not bool(((centred.mean(0) - off).abs() < 6 * spread + doubt + 1e-6 * off.abs() + 1e-12).all()):
        return None, math.nan, math.nan
    part = torch.maximum(off.abs(), doubt) / scales
    wrong = (off.abs() > doubt) & (off.abs() / scales > tolerance)
    if not bool(wrong.any()):
        return None, math.nan, float(part.max())
    worst = int(torch.where(wrong, off.abs() / scales, 0.0).argmax())
    return worst, float(off[worst]), float(off[worst].abs() / scales[worst])


def _nodes(guide: Guide, num_samples: int, device: torch.device) -> tuple[int, ...] | None:
    """Of the finest rule and of the coarser ones."""
    noise = guide.noise((num_samples,), torch.Generator(device).manual_seed(0))
    if not isinstance(noise, Tensor) or guide.noise_law == "own":
        return None
    if guide.noise_law == "normal":
        fine = NODES.get(noise.numel())
        # Two coarser ones: of a jump, one may be as wrong as the finest by chance.
        return None if fine is None else (fine, round(0.8 * fine), round(0.62 * fine))
    cells = math.prod(len(set(each)) + 1 for each in guide.edges().flatten(1).T.tolist()) ** num_samples
    for fine in (3, 2):
        if cells * fine ** noise.numel() <= MOST_CELLS:
            return fine, fine - 1
    return None
