"""Files written whole or not at all, and read without waiting for what is no file. Imports no torch."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import BinaryIO


def write_text(path: Path, text: str) -> int:
    """Write all of ``text`` or nothing (:func:`write_bytes`)."""
    return write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> int:
    """Write all of ``content`` or nothing: temporary file beside the goal, fsync, atomic replace. Gives its inode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not of tempfile, whose files nobody but their owner may read.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
            inode = os.fstat(stream.fileno()).st_ino
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return inode


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of at most so many bytes; nothing is waited for, as a pipe by that name would ask.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is something else, or larger.
    """
    with at_once(path) as stream:
        found = os.fstat(stream.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size > most:
            raise ValueError(f"no regular file of at most {most} bytes")
        return stream.read(found.st_size + 1)  # room is made for all that is asked for


def at_once(path: Path) -> BinaryIO:
    """The file opened for reading; a pipe is opened too, and empty, where one would otherwise wait for a writer."""
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))
