"""One file that a training goes on from as if it had never stopped: parameters, optimiser, random streams, what was learnt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import tensors as files
from ..data import DataError
from ..schema import canonical_json

FORMAT = 2
FACTS: dict[str, Any] = {
    **{"settings": dict, "points": list, "step": int, "evaluations": int, "pixels": int},
    **{"seconds": (int, float), "processor_seconds": (int, float), "value": (float, type(None))},
}
"""What the facts of every checkpoint are."""


def save(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and plain facts, whole or not at all.

    Raises:
        DataError: if the folder cannot be written.
    """
    files.save(path, tensors, canonical_json({**facts, "format": FORMAT}))


def look(path: Path) -> tuple[files.Head, dict[str, Any]]:
    """What a checkpoint says of itself, before any tensor is read: what it holds, and its facts.

    Raises:
        DataError: if it is absent, truncated, or of another format.
    """
    head = files.look(path)
    try:
        facts = json.loads(head.text)
        found = facts.get("format")
    except (ValueError, AttributeError, RecursionError) as problem:
        raise DataError(f"{path} is no checkpoint of a training") from problem
    if found != FORMAT:
        raise DataError(f"{path} has format {found!r}, not {FORMAT}")
    for name, kind in FACTS.items():
        if not isinstance(facts.get(name, ...), kind):
            raise DataError(f"{path} is no checkpoint of a training: it lacks {name!r}")
    return head, facts


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`save` wrote.

    Raises:
        DataError: if it is absent, truncated, altered, or of another format.
    """
    head, facts = look(path)
    return head.read(), facts


def nested(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, dict[str, Tensor]]:
    """``prefix/a/b`` as ``{"a": {"b": ...}}``."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, leaf in tensors.items():
        head, _, rest = key.partition("/")
        if head == prefix:
            block, _, name = rest.partition("/")
            found.setdefault(block, {})[name] = leaf
    return found
