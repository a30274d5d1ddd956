"""The store: what a run folder holds, its reader and its writer.

With its schema (:mod:`benchmarks.schema`) it is all that the report shares with the measuring code, so it imports no torch.
JSON on disk, validated on the way in, checksummed on the way out.

Layout of a run folder::

    manifest.json            what was asked for, and the bibliography of what was used
    environment.json         versions, processor, threads; no host name, no user name
    cells/<id>.json          one record per finished cell
    moments/<id>.safetensors mean and variance of every coordinate, of blocks of at most 10,000 coordinates
    training/<id>.json       curves of a VAE that the suite trained
    study/<kind>.json        what a study found; pictures/<name>.safetensors the images of its models
    report.html
    .index                   what the records in cells/ say, in short (:func:`summary`); may be removed at any time
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from .files import read_bytes, write_bytes
from .files import write_text as write_text  # for reports, which import nothing else of this package
from .index import Entry, digest, entries, marks, note
from .outside import plain as plain
from .outside import shown
from .schema import SCHEMA_VERSION, STATUSES, Record, Status, canonical_json

LARGEST = 2**28
"""Bytes of a record that is read: a manifest of ten million cells has fewer."""

R = TypeVar("R", bound=BaseModel)

_JSON: TypeAdapter[Any] = TypeAdapter(Any)
"""Any JSON in UTF-8 without halves of characters: read in half of the time that Python's own reader takes."""


class RecordError(ValueError):
    """A stored record that cannot be believed: unreadable, truncated, altered, or of an unknown schema."""


def pretty(data: Any) -> str:
    """JSON for a person to read."""
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def _require_text(canonical: str) -> None:
    """Refuse halves of characters, which JSON can spell and no file of text can hold (``UnicodeEncodeError``)."""
    if "\\ud" in canonical:
        json.dumps(json.loads(canonical), ensure_ascii=False).encode()


def _checksum(canonical: str) -> str:
    return hashlib.sha256(canonical.encode()).hexdigest()


def write(path: Path, record: BaseModel) -> None:
    """Write a record with the checksum of its content; that of a cell gets a line in the run's index.

    Raises:
        OSError: if it cannot be written.
        ValueError: if it holds what JSON in UTF-8 cannot, such as NaN or half a character.
    """
    body = record.model_dump(mode="json")
    canonical = canonical_json(body)
    _require_text(canonical)
    content = pretty({**body, "checksum": _checksum(canonical)}).encode()
    inode = write_bytes(path, content)
    if isinstance(record, Record) and path.parent.name == "cells":
        with suppress(OSError):  # without the line, the record itself is read
            found = path.stat()
            if found.st_ino == inode:  # not that of another run on this folder, which was quicker
                note(path.parent.parent, [_entry(path.name, found, digest(content), record)])


def write_cell(run: Path, record: Record) -> None:
    """Write the record of a cell into a run folder; a failure does not take the place of a result that is there already.

    Raises:
        OSError, ValueError: as :func:`write`.
    """
    path = run / "cells" / f"{record.id}.json"
    if record.status not in ("ok", "refused"):
        with suppress(RecordError):
            if _read_cell(path)[0].status == "ok":
                return
    write(path, record)


def read(path: Path, kind: type[R]) -> R:
    """Read a record of a known kind.

    Raises:
        RecordError: if the file is not JSON, its checksum does not match its content, its schema version is unknown, or a
            field is missing, unknown or of the wrong type.
    """
    return _believed(path.name, _content(path), kind)


def _content(path: Path) -> bytes:
    try:
        return read_bytes(path, LARGEST)
    except (OSError, ValueError) as problem:
        raise RecordError(f"{path.name}: unreadable ({type(problem).__name__})") from problem


def _believed(name: str, content: bytes, kind: type[R], *, checked: bool = False) -> R:
    """The record that a file holds; with ``checked``, these very bytes have fitted their checksum before.

    Raises:
        RecordError: as :func:`read`.
    """
    try:
        body = _JSON.validate_json(content)
    except ValueError as problem:
        raise RecordError(f"{name}: unreadable (no JSON)") from problem
    if not isinstance(body, dict):
        raise RecordError(f"{name}: not a record")
    stated = body.pop("checksum", None)
    version = body.get("schema_version")
    if version != SCHEMA_VERSION:
        raise RecordError(f"{name}: schema version {shown(version)}, this gradest reads {SCHEMA_VERSION}")
    try:
        if not checked and stated != _checksum(canonical_json(body)):
            raise RecordError(f"{name}: the checksum does not match the content")
        return kind.model_validate(body)
    except ValidationError as problem:
        raise RecordError(f"{name}: {problem.error_count()} fields do not fit the schema") from problem
    except ValueError as problem:
        raise problem if isinstance(problem, RecordError) else RecordError(f"{name}: {problem}") from problem


def read_cells(run: Path) -> tuple[dict[str, Record], dict[str, str]]:
    """All records of a run folder by cell id, and by file name the reason why each of the others was not believed.

    A hundred thousand of them take 2 GB: :func:`each_cell` has one in memory at a time, :func:`summary` none.
    """
    unreadable: dict[str, str] = {}
    return {record.id: record for record in each_cell(run, unreadable)}, unreadable


def each_cell(run: Path, unreadable: dict[str, str]) -> Iterator[Record]:
    """The records of a run folder in the order of their ids; what is not believed goes into ``unreadable``, with why."""
    known = {name: entry.digest for name, entry in entries(run, STATUSES).items()}
    folder = run / "cells"
    for name in sorted(each.name for each in _files(run)):
        try:
            yield _read_cell(folder / name, known.get(name))[0]
        except RecordError as problem:
            unreadable[name] = str(problem)


def _read_cell(path: Path, known: str | None = None) -> tuple[Record, str]:
    """The record of a cell and the digest of its file; checked against its checksum but where that digest is ``known``.

    Raises:
        RecordError: if it cannot be believed, or is that of another cell than its name says.
    """
    content = _content(path)
    seen = digest(content)
    record = _believed(path.name, content, Record, checked=seen == known)
    if record.id != path.stem or record.cell.id != record.id:
        raise RecordError(f"{path.name}: holds the record of another cell")
    return record, seen


def _entry(name: str, found: os.stat_result, seen: str, record: Record) -> Entry:
    return Entry(name, marks(found), seen, record.status, record.seconds)


class Summary(NamedTuple):
    """What a run folder holds, in short and in no order: status and seconds by cell id, and files not believed, with reasons."""

    cells: dict[str, tuple[Status, float]]
    unreadable: dict[str, str]


def summary(run: Path) -> Summary:
    """Status and seconds of every record of a run folder.

    A record that was checked once is not read again while its file is the same by inode, size, and times of modification
    and change; 100,000 of them take a second. Whatever else is there is read, and checked in full where its bytes are new.
    """
    known = entries(run, STATUSES)
    found: dict[str, tuple[Status, float]] = {}
    unreadable: dict[str, str] = {}
    unknown: dict[str, os.stat_result] = {}
    for each in _files(run):
        try:
            stat = each.stat()
        except OSError as problem:  # a link to nothing; a file that is gone by now was that of another run
            if each.is_symlink():
                unreadable[each.name] = f"{each.name}: unreadable ({type(problem).__name__})"
            continue
        entry = known.get(each.name)
        if entry is not None and entry.marks == marks(stat):
            found[each.name.removesuffix(".json")] = (entry.status, entry.seconds)  # type: ignore[assignment]
        else:
            unknown[each.name] = stat
    fresh: list[Entry] = []
    for name, stat in sorted(unknown.items()):
        entry = known.get(name)
        try:
            record, seen = _read_cell(run / "cells" / name, entry.digest if entry else None)
        except RecordError as problem:
            unreadable[name] = str(problem)
            continue
        # The marks are of before the reading: whoever wrote in between makes them differ.
        fresh.append(_entry(name, stat, seen, record))
        found[record.id] = (record.status, record.seconds)
    if fresh:
        with suppress(OSError):  # a folder that can only be read
            note(run, fresh)
    return Summary(found, unreadable)


def _files(run: Path) -> Iterator[os.DirEntry[str]]:
    """What has the name of a cell's record in a run folder, in no order; nothing where there is no such folder."""
    with suppress(OSError), os.scandir(run / "cells") as found:
        yield from (each for each in found if each.name.endswith(".json") and not each.name.startswith("."))
