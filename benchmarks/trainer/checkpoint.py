"""One file that a training goes on from as if it had never stopped: parameters, optimiser, random streams, what was learnt."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..data import DataError, write_bytes
from ..records import canonical_json

FORMAT = 1


def save(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and plain facts, whole or not at all.

    Raises:
        DataError: if the folder cannot be written.
    """
    kept = {name: leaf.detach().cpu().contiguous() for name, leaf in tensors.items()}
    text = canonical_json({**facts, "format": FORMAT})
    write_bytes(path, safetensors.torch.save(kept, {"facts": text, "checksum": _checksum(text, kept)}))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`save` wrote.

    Raises:
        DataError: if it is absent, truncated, altered, or of another format.
    """
    try:
        content = path.read_bytes()
        tensors = safetensors.torch.load(content)
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
    except OSError as problem:
        raise DataError(f"cannot read checkpoint {path}: {problem.strerror}") from problem
    except (safetensors.SafetensorError, ValueError) as problem:
        raise DataError(f"{path} is no checkpoint, or only a part of one") from problem
    text = metadata.get("facts", "")
    if metadata.get("checksum") != _checksum(text, tensors):
        raise DataError(f"{path} was altered, or is no checkpoint of a training")
    facts = json.loads(text)
    if facts.get("format") != FORMAT:
        raise DataError(f"{path} has format {facts.get('format')}, not {FORMAT}")
    return tensors, facts


def nested(tensors: dict[str, Tensor], prefix: str) -> dict[str, dict[str, Tensor]]:
    """``prefix/a/b`` as ``{"a": {"b": ...}}``."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, leaf in tensors.items():
        head, _, rest = key.partition("/")
        if head == prefix:
            block, _, name = rest.partition("/")
            found.setdefault(block, {})[name] = leaf
    return found


def _checksum(facts: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        leaf = tensors[name]
        digest.update(f"{name} {leaf.dtype} {tuple(leaf.shape)}".encode())
        digest.update(leaf.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
