"""Whether the draws of an estimator look as if they had a variance."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CARRIED = 0.5
"""Part of the sum of squares that the largest thousandth of the draws may carry."""
SUSPECT = 0.2
"""The same, where their tail index is above 1/2 too."""
SECOND_LOOK = 4
"""Times as many fresh draws are judged, and believed, where the first ones look heavy: one draw in 80,000 may do that."""


def heavy_tail(rows: Tensor, fresh: Iterator[Tensor], expected: Tensor, tested: Tensor) -> tuple[str, int] | None:
    """What the largest draws carry, and of how many draws, where that refuses the estimator; else None.

    Arguments:
        rows: the first draws ``(R, 1 + P)``.
        fresh: batches of others, of which some are taken where the first look heavy.
        expected, tested: the truth ``(1 + P,)``, and the mask of the columns that have one.
    """
    if _carried(_squares(rows, expected, tested)) is None:
        return None
    wanted = SECOND_LOOK * len(rows)
    squares: list[Tensor] = []  # of the norms alone: so many rows would not always fit into memory
    while sum(map(len, squares)) < wanted:
        squares.append(_squares(next(fresh), expected, tested))
    carried = _carried(torch.cat(squares)[:wanted])
    return None if carried is None else (carried, len(rows) + wanted)


def _squares(rows: Tensor, expected: Tensor, tested: Tensor) -> Tensor:
    """Squared distances from the truth ``(R, 2)`` of value and gradient."""
    squares = torch.where(tested, rows - expected, 0.0).square()
    return torch.stack([squares[:, 0], squares[:, 1:].sum(1)], 1)


def _carried(squares: Tensor) -> str | None:
    for name, column in zip(("value", "gradient"), squares.T, strict=True):
        if float(column.sum()) <= 0:
            continue
        top = column.topk(max(2, len(column) // 1000)).values
        share = float(top.sum() / column.sum())
        # Hill's estimator on the norms: their tail index, which must stay below 1/2 for a variance to exist.
        hill = float((top / top[-1]).log().mean() / 2)
        if share > CARRIED or (share > SUSPECT and hill > 0.5):
            return f"the largest 0.1 % of the draws carry {share:.0%} of the {name}'s sum of squares"
    return None
