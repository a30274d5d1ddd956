"""The index of a run folder: what its records say in short, so that a hundred thousand need not be read to be counted.

It may be removed at any time, and is believed of a file only while that has not changed since. Imports neither torch nor
the records' schema.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Set
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .files import read_bytes

LARGEST = 2**31
"""Bytes of an index that is read: twenty million records have fewer."""
LONGEST = 1e12
"""Seconds that are believed of a cell, thirty thousand years: sums of them are numbers."""


class Entry(NamedTuple):
    """A line of the index: what a record says in short, and how its file is known to be the one that was checked.

    While the ``marks`` are the same, nobody has written to the file since; while its :func:`digest` is the same, nothing in
    it is another than when its checksum was computed.
    """

    name: str
    marks: str
    digest: str
    status: str
    seconds: float

    def line(self) -> str:
        text = f"{self.name} {self.marks} {self.digest} {self.status} {self.seconds!r}"
        return f"{text} {_sum(text)}\n"


def marks(stat: os.stat_result) -> str:
    """By what a file is known to be the same without being read."""
    # The time of the last change of the inode cannot be set back, so neither a flipped bit nor a copy goes unseen.
    return f"{stat.st_ino},{stat.st_size},{stat.st_mtime_ns},{stat.st_ctime_ns}"


def digest(content: bytes) -> str:
    """By what the bytes of a file are known to be the same: 64 bits, against accidents."""
    return hashlib.sha256(content).hexdigest()[:16]


def _sum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def note(run: Path, entries: list[Entry]) -> None:
    """Append to the index: one write, so that lines of several processes do not mix; a torn line does not count."""
    # A pipe by that name is no reason to wait for whoever might read it, nor a link one to write into somebody's file.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    file = os.open(run / ".index", flags, 0o666)
    try:
        os.write(file, "".join(entry.line() for entry in entries).encode())
    finally:
        os.close(file)


def entries(run: Path, known: Set[str]) -> dict[str, Entry]:
    """The lines of an index that are whole and name a status that is ``known``, by file name; the last of each counts."""
    found: dict[str, Entry] = {}
    try:
        text = read_bytes(run / ".index", LARGEST).decode("ascii", "replace")
    except (OSError, ValueError):
        return found
    for line in text.split("\n"):
        parts = line.split(" ")
        if len(parts) == 6 and parts[3] in known and _sum(line[: -len(parts[5]) - 1]) == parts[5]:
            name, marks, digest, status, seconds, _ = parts
            with suppress(ValueError):  # a line that somebody made up
                if 0 <= float(seconds) <= LONGEST:
                    found[name] = Entry(name, marks, digest, status, float(seconds))
    return found
