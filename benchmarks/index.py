"""The index of a run folder: what its records say in short, so that a hundred thousand need not be read to be counted.

It may be removed at any time, and is believed of a file only while that has not changed since. Imports neither torch nor
the records' schema.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .files import read_bytes

LARGEST = 2**31
"""Bytes of an index that is read: twenty million records have fewer."""


class Entry(NamedTuple):
    """A line of the index: what a record says in short, and by what marks its file is known not to have changed since."""

    name: str
    marks: str
    status: str
    seconds: float

    @classmethod
    def of(cls, name: str, stat: os.stat_result, status: str, seconds: float) -> Entry:
        # The time of the last change of the inode cannot be set back, so neither a flipped bit nor a copy goes unseen.
        return cls(name, f"{stat.st_ino},{stat.st_size},{stat.st_mtime_ns},{stat.st_ctime_ns}", status, seconds)

    def line(self) -> str:
        text = f"{self.name} {self.marks} {self.status} {self.seconds!r}"
        return f"{text} {hashlib.sha256(text.encode()).hexdigest()[:8]}\n"


def note(run: Path, entries: list[Entry]) -> None:
    """Append to the index: one write, so that lines of several processes do not mix; a torn line does not count."""
    # A pipe by that name is no reason to wait for whoever might read it.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0)
    file = os.open(run / ".index", flags, 0o666)
    try:
        os.write(file, "".join(entry.line() for entry in entries).encode())
    finally:
        os.close(file)


def entries(run: Path, known: set[str]) -> dict[str, Entry]:
    """The lines of an index that are whole and name a status that is ``known``, by file name; the last of each counts."""
    found: dict[str, Entry] = {}
    try:
        text = read_bytes(run / ".index", LARGEST).decode("ascii", "replace")
    except (OSError, ValueError):
        return found
    for line in text.split("\n"):
        body, _, digest = line.rpartition(" ")
        parts = body.split(" ")
        if len(parts) == 4 and parts[2] in known and hashlib.sha256(body.encode()).hexdigest()[:8] == digest:
            with suppress(ValueError):  # a line that somebody made up
                found[parts[0]] = Entry(parts[0], parts[1], parts[2], float(parts[3]))
    return found
