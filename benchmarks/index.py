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
    file = os.open(run / ".index", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        os.write(file, "".join(entry.line() for entry in entries).encode())
    finally:
        os.close(file)


def entries(run: Path, known: set[str]) -> dict[str, Entry]:
    """The lines of an index that are whole and name a status that is ``known``, by file name; the last of each counts."""
    found: dict[str, Entry] = {}
    try:
        text = (run / ".index").read_text(encoding="ascii", errors="replace")
    except OSError:
        return found
    for line in text.split("\n"):
        body, _, digest = line.rpartition(" ")
        parts = body.split(" ")
        if len(parts) == 4 and parts[2] in known and hashlib.sha256(body.encode()).hexdigest()[:8] == digest:
            with suppress(ValueError):  # a line that somebody made up
                found[parts[0]] = Entry(parts[0], parts[1], parts[2], float(parts[3]))
    return found
