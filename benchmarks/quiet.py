"""Undisturbed seconds: while one worker takes times, the others on this machine wait.

Workers hold a shared lock for each batch of replicates; who takes times holds the lock alone. Advisory file locks of the
operating system, so a worker that dies leaves nothing behind.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

PREFIX, OWNER = "gradest-locks-", "owner"
LONG = 1.0
"""Seconds from which a wait is worth remembering."""
_FOLDER: Path | None = None
_NAME = ""
_HELD: set[int] = set()
"""Descriptors of the lock files that are open now."""


def between(folder: str) -> None:
    """From here on, this process shares its locks with all that name the same folder; before, nobody waits."""
    global _FOLDER
    _FOLDER = Path(folder)


@contextmanager
def folder() -> Iterator[str]:
    """A new folder for locks, removed at the end; and with it those of processes that were killed before they could do so."""
    for owner in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{OWNER}"):
        with suppress(OSError):  # another's, or gone already
            _remove_if_left(owner)
    made = tempfile.mkdtemp(prefix=PREFIX)
    file = _open(Path(made) / OWNER)
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield made
    finally:
        os.close(file)
        shutil.rmtree(made, ignore_errors=True)


def _remove_if_left(owner: Path) -> None:
    """Remove the folder of an owner's file that nobody has held for a minute or more: as long as its maker lives, it does."""
    file = os.open(owner, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        facts = os.fstat(file)
        if facts.st_uid == os.getuid() and time.time() - facts.st_mtime > 60:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(owner.parent, ignore_errors=True)
    finally:
        os.close(file)


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


def after_fork() -> None:
    """In a process that an estimator forked in the middle of a section: let go of what it inherited.

    A lock is held for as long as any copy of its descriptor is open: a child that sleeps would hold up every worker.
    """
    global _FOLDER
    _FOLDER = None
    while _HELD:
        os.close(_HELD.pop())


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
    if _FOLDER is None:  # forked between the two locks of a section
        yield
        return
    file = _open(_FOLDER / name)
    _HELD.add(file)
    try:
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
    finally:
        if file in _HELD:  # not in a forked child, which has closed its copy
            _HELD.discard(file)
            os.close(file)


def _open(path: Path) -> int:
    """A lock file, made where it is missing: whoever shares a machine may be the first, or be left by the last."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, flags, 0o600)


def _sign(folder: Path, name: str) -> Path:
    return folder / f"waiting-{name}"
