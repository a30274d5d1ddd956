"""Undisturbed seconds: while one worker takes times, the others on this machine wait.

Workers hold a shared lock for each batch of replicates; who takes times holds the lock alone. Advisory file locks of the
operating system, so a worker that dies leaves nothing behind.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

LONG = 1.0
"""Seconds from which a wait is worth remembering."""
_FOLDER: Path | None = None
_NAME = ""


def between(folder: str) -> None:
    """From here on, this process shares its locks with all that name the same folder; before, nobody waits."""
    global _FOLDER
    _FOLDER = Path(folder)


def known_as(name: str) -> None:
    """From here on, a file says of whoever goes by that name that it had to wait (:func:`has_waited`)."""
    global _NAME
    _NAME = name


def has_waited(folder: str, name: str) -> bool:
    """Whether the process known by that name waited for others for long, or to its end; asked once, then forgotten."""
    try:
        _sign(Path(folder), name).unlink()
    except FileNotFoundError:
        return False
    return True


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
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            sign = _sign(_FOLDER, _NAME)
            known = sign.exists()
            sign.touch()
            start = time.monotonic()
            fcntl.flock(file, kind)
            if not known and time.monotonic() - start < LONG:
                sign.unlink(missing_ok=True)
        yield


def _sign(folder: Path, name: str) -> Path:
    return folder / f"waiting-{name}"
