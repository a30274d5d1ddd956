"""Files of named tensors beside one text (safetensors): written whole or not at all, and looked at before they are read.

A file from elsewhere may claim anything. :func:`look` reads its head alone and compares what that claims with the size of
the file, so whoever wants the tensors can first see whether their names, types and shapes are those that they need; no
memory is taken for what is not there. Nothing in such a file is code.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .data import DataError, write_bytes
from .files import at_once

LONGEST_HEAD = 2**26
"""Bytes of the head of a file: names, types, shapes and the text."""
DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
}


class Kind(NamedTuple):
    """Type and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, leaf: Tensor) -> Kind:
        return cls(leaf.dtype, tuple(leaf.shape))

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


@dataclass(frozen=True)
class Head:
    """What a file says of itself. The text is not to be believed before :meth:`read` has compared the checksum."""

    path: Path
    text: str
    kinds: Mapping[str, Kind]
    checksum: str
    size: int

    def require(self, expected: Mapping[str, Kind]) -> None:
        """Refuse, before memory is taken for them, tensors of other names, types or shapes than the expected ones.

        Raises:
            DataError: naming the first that differs.
        """
        for name in sorted({*self.kinds, *expected}):
            there, wanted = self.kinds.get(name), expected.get(name)
            if there != wanted:
                raise DataError(f"{self.path}: {name!r} is {there or 'absent'}, and should be {wanted or 'absent'}")

    def read(self) -> dict[str, Tensor]:
        """The tensors.

        Raises:
            DataError: if they are not those that were stored.
        """
        try:
            with open(self.path, "rb") as stream:
                content = stream.read(self.size + 1)
            tensors = safetensors.torch.load(content)
        except OSError as problem:
            raise DataError(f"cannot read {self.path}: {problem.strerror}") from problem
        except (safetensors.SafetensorError, ValueError) as problem:
            raise DataError(f"{self.path} is damaged: {str(problem)[:200]}") from problem
        kinds = {name: Kind.of(leaf) for name, leaf in tensors.items()}
        if kinds != self.kinds or self.checksum != _checksum(self.text, tensors):
            raise DataError(f"{self.path} was altered: the checksum does not match the content")
        return tensors


def save(path: Path, tensors: Mapping[str, Tensor], text: str) -> None:
    """Write tensors, a text, and the checksum of both.

    Raises:
        DataError: if the folder cannot be written.
    """
    kept = {name: leaf.detach().cpu().contiguous() for name, leaf in tensors.items()}
    write_bytes(path, safetensors.torch.save(kept, {"text": text, "checksum": _checksum(text, kept)}))


def look(path: Path) -> Head:
    """The head of a file that :func:`save` wrote.

    Raises:
        DataError: if it cannot be read, is no such file, or has not the size that its head asks for.
    """
    try:
        with at_once(path) as stream:
            size = os.fstat(stream.fileno()).st_size  # of a pipe: nothing
            first = stream.read(8)
            length = int.from_bytes(first, "little")
            if len(first) < 8 or not 2 <= length <= min(size - 8, LONGEST_HEAD):
                raise DataError(f"{path} is no file of tensors, or only a part of one")
            head = stream.read(length)
    except OSError as problem:
        raise DataError(f"cannot read {path}: {problem.strerror}") from problem
    try:
        claims = json.loads(head)
        told = claims.pop("__metadata__")
        kinds = {name: _kind(claim) for name, claim in claims.items()}
        end = _end(claims, kinds)
        text, checksum = str(told["text"]), str(told["checksum"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise DataError(f"{path} is no file of tensors, or was altered ({type(problem).__name__})") from problem
    if 8 + length + end != size:
        raise DataError(f"{path} has {size} bytes where {8 + length + end} belong: part of one, or altered")
    return Head(path, text, kinds, checksum, size)


def _kind(claim: Any) -> Kind:
    shape = tuple(claim["shape"])
    if len(shape) > 64 or not all(type(side) is int and 0 <= side < 2**63 for side in shape):
        raise ValueError("no shape")
    return Kind(DTYPES[claim["dtype"]], shape)


def _end(claims: Mapping[str, Any], kinds: Mapping[str, Kind]) -> int:
    """Where the last tensor ends, if each begins where the one before it ends and takes what its shape asks for."""
    end = 0
    for begin, stop, name in sorted((*claims[name]["data_offsets"], name) for name in kinds):
        if begin != end or stop != begin + kinds[name].dtype.itemsize * math.prod(kinds[name].shape):
            raise ValueError("no place")
        end = stop
    return int(end)


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        leaf = tensors[name]
        digest.update(f"{name} {leaf.dtype} {tuple(leaf.shape)}".encode())
        digest.update(leaf.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
