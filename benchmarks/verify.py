"""Stored cells measured once more: the same machine and versions give the same numbers, bit for bit, or a reason is named."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import environment, records, runner
from .files import read_bytes
from .records import RecordError
from .schema import Cell, Record

TIMINGS = (
    *("seconds", "cost.seconds_per_gradient", "cost.seconds_interval", "cost.gradients_per_second"),
    *("cost.allocated_bytes", "cost.joules_per_gradient"),
)
"""Fields of a record that belong to the moment at which it was made."""


def sample(folder: Path, cells: Sequence[Cell], count: int) -> list[Cell]:
    """At most ``count`` of the cells whose result is stored; by the order of their ids, which are hashes."""
    stored = records.summary(folder).cells
    kept = [cell for cell in cells if stored.get(cell.id, ("", 0.0))[0] in ("ok", "nonfinite")]
    return sorted(kept, key=lambda cell: cell.id)[:count]


def verify(folder: Path, cells: Sequence[Cell], **options: Any) -> list[str]:
    """A line for each of the given cells of a run folder that does not come out as it is stored; the folder stays as it is.

    ``options`` are those of :func:`benchmarks.runner.run`.
    """
    with tempfile.TemporaryDirectory(prefix="gradest-verify-") as place:
        again = Path(place)
        runner.run(again, list(cells), **options)
        lines = []
        for cell in cells:
            try:
                old, new = (records.read(each / "cells" / f"{cell.id}.json", Record) for each in (folder, again))
                found = differences(old, new) or _other_moments(cell, folder, again)
            except RecordError as problem:
                found = [str(problem)]
            if found:
                lines.append(f"{cell.id} {cell.estimator} on {cell.problem}, K = {cell.num_samples}: {found[0]}")
    return lines


def differences(old: Record, new: Record) -> list[str]:
    """What differs between two records of one cell, timings aside: place, stored value, value found now."""
    before, after = _leaves(old.model_dump(mode="json")), _leaves(new.model_dump(mode="json"))
    return [
        f"{place} is stored as {before.get(place)!r}, now {after.get(place)!r}"
        for place in sorted(before | after)
        if before.get(place) != after.get(place) and not place.startswith(TIMINGS)
    ]


def _leaves(value: Any, place: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        pairs: Any = value.items()
    elif isinstance(value, list) and value:
        pairs = enumerate(value)
    else:
        return {place: value}
    below = [_leaves(each, f"{place}.{key}".lstrip(".")) for key, each in pairs]
    return {where: leaf for part in below for where, leaf in part.items()}


def _other_moments(cell: Cell, *folders: Path) -> list[str]:
    old, new = (
        read_bytes(path, records.LARGEST) if path.is_file() else None
        for path in (folder / "moments" / f"{cell.id}.safetensors" for folder in folders)
    )
    return ["the moments of its coordinates differ"] if old != new else []


def other_machine(folder: Path) -> list[str]:
    """What the run's environment says that does not hold here, each with both values: a reason for numbers to differ."""
    try:
        stored = json.loads(read_bytes(folder / "environment.json", records.LARGEST))
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(stored, dict):
        return []
    here = environment.describe(workers=0)
    apart = ("workers", "memory (GiB)", "logical cores")
    return [
        f"{name}: {stored.get(name)}, here {value}"
        for name, value in here.items()
        if name not in apart and name in stored and stored[name] != value
    ]
