"""Undisturbed seconds: while one worker takes times, the others on this machine wait.

Workers hold a shared lock for each batch of replicates; who takes times holds the lock alone. Advisory file locks of the
operating system, so a worker that dies leaves nothing behind.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_FOLDER: Path | None = None


def between(folder: str) -> None:
    """From here on, this process shares its locks with all that name the same folder; before, nobody waits."""
    global _FOLDER
    _FOLDER = Path(folder)


@contextmanager
def busy() -> Iterator[None]:
    """Work that may run beside others, but not beside :func:`alone`."""
    if _FOLDER is None:
        yield
        return
    with _locked("door", fcntl.LOCK_SH):
        pass  # whoever waits to be alone keeps the door shut, so that it is not starved
    with _locked("room", fcntl.LOCK_SH):
        yield


@contextmanager
def alone() -> Iterator[None]:
    """Work beside which nothing else may run."""
    if _FOLDER is None:
        yield
        return
    with _locked("door", fcntl.LOCK_EX), _locked("room", fcntl.LOCK_EX):
        yield


def quietly(source: Iterator[T]) -> Iterator[T]:
    """The same items, none of them made while another worker takes times."""
    while True:
        with busy():
            item = next(source, None)
        if item is None:
            return
        yield item


@contextmanager
def _locked(name: str, kind: int) -> Iterator[None]:
    assert _FOLDER is not None
    with open(_FOLDER / name, "a") as file:
        fcntl.flock(file, kind)
        yield
