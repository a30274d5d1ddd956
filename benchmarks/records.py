"""The record: what one cell leaves behind, its schema, its reader and its writer.

This is the one module that the report shares with the measuring code, so it imports no torch. Everything here is plain
data: JSON on disk, validated on the way in, checksummed on the way out.

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
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from .files import read_bytes, write_bytes
from .files import write_text as write_text  # for reports, which import nothing else of this package
from .index import LONGEST, Entry, digest, entries, marks, note
from .outside import plain as plain
from .outside import shown

SCHEMA_VERSION = 5

SHARED = "shared draws"
"""The entry of a cell's versions that says by which arithmetic its estimates share draws with others' (``--share``)."""

LARGEST = 2**28
"""Bytes of a record that is read: a manifest of ten million cells has fewer."""

Status = Literal["ok", "refused", "error", "timeout", "killed", "nonfinite"]
STATUSES = frozenset(get_args(Status))
Verdict = Literal["PASS", "BIASED", "INCONCLUSIVE", "HEAVY_TAIL", "NONFINITE", "NO_REFERENCE"]
Block = Literal["value", "theta", "phi"]
MatmulPrecision = Literal["highest", "high", "medium"]
"""How float32 matrices are multiplied, in torch's own words. ``highest``: as float32. ``high``: as TF32 or sums of bfloat16,
``medium``: as bfloat16, where the device is faster at these; elsewhere all three are the same."""

TOO_LARGE = 2**63
Whole = Annotated[int, Field(ge=-TOO_LARGE, lt=TOO_LARGE)]
"""Whole numbers of 64 bits, as a table holds them."""

R = TypeVar("R", bound=BaseModel)

_JSON: TypeAdapter[Any] = TypeAdapter(Any)
"""Any JSON in UTF-8 without halves of characters: read in half of the time that Python's own reader takes."""


class RecordError(ValueError):
    """A stored record that cannot be believed: unreadable, truncated, altered, or of an unknown schema."""


class _Plain(BaseModel):
    # "constants": a NaN within settings is refused by the writer, where pydantic's default would store null.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants")


class Cell(_Plain):
    """The identity of one measurement: problem, estimator, settings, seed, and the versions of the two components.

    ``problem`` and ``estimator`` are canonical specifications, every parameter spelled out, such as
    ``gaussian-1d[loc=0.5,scale=0.9,x=1.0,prior_loc=0.0]``.
    """

    problem: str
    estimator: str
    num_samples: int = Field(ge=1, lt=TOO_LARGE)  # not a Whole: of two bounds on the same side pydantic heeds one
    replicates: int = Field(ge=2, lt=TOO_LARGE)
    seed: int = Field(ge=0, lt=TOO_LARGE)
    dtype: str = "float64"
    device: str = "cpu"
    compiled: bool = False
    matmul_precision: MatmulPrecision = "highest"
    versions: dict[str, str] = {}

    @property
    def id(self) -> str:
        """A hash of the canonical settings: the same on every machine and in any order."""
        shared = {**self.__dict__, "seed": None, "versions": None}
        before, after = _around_seed(tuple(shared.items()), tuple(self.versions.items()))
        return hashlib.sha256(b"%b%d%b" % (before, self.seed, after)).hexdigest()[:20]


@lru_cache(maxsize=2**12)
def _around_seed(shared: tuple[tuple[str, Any], ...], versions: tuple[tuple[str, str], ...]) -> tuple[bytes, bytes]:
    """The canonical settings before and after the seed, which is all that differs among most cells of a large run."""
    text = canonical_json({**dict(shared), "versions": dict(versions)})
    key = '"seed":'  # within a string, the second of these quotation marks has a backslash before it
    before, _, after = text.partition(key + "null")
    return (before + key).encode(), after.encode()


class BlockResult(_Plain):
    """What was measured of one block of the gradient (``theta``, ``phi``), or of the objective's value (nats).

    Norms are Euclidean over the block's coordinates. ``variance`` is summed over coordinates, of one gradient estimate.
    Intervals are 95 % and ``None`` where they do not exist. All of it is in the units of the objective (nats) per unit of
    the parameters, averaged over data points.
    """

    block: Block
    target: str | None
    target_num_samples: Whole | None = None
    unbiased: bool | None
    dimensions: Whole
    replicates: Whole
    nonfinite: Whole = 0
    mean_norm: float | None = None
    reference_norm: float | None = None
    reference_standard_error: float | None = None
    reference_method: str | None = None
    bias_norm: float | None = None
    bias_interval: tuple[float, float] | None = None
    bias_z: float | None = None
    verdict: Verdict
    verdict_reason: str = ""
    worst_direction: str | None = None
    detectable_bias: float | None = None
    variance: float | None = None
    variance_interval: tuple[float, float] | None = None
    variance_exists: bool = True
    exact_variance: float | None = None
    snr: float | None = None
    snr_interval: tuple[float, float] | None = None
    snr_floor: float | None = None
    snr_slope_theory: float | None = None
    mse: float | None = None
    skewness: float | None = None
    kurtosis: float | None = None
    tail_index: float | None = None
    tail_index_interval: tuple[float, float] | None = None
    quantiles: dict[str, float] | None = None
    median_of_means: float | None = None
    cosine: float | None = None


class Cost(_Plain):
    """What one gradient estimate costs. Seconds are medians over timed chunks, warm-up excluded."""

    evaluations_per_gradient: float | None = None
    flops_per_gradient: float | None = None
    bytes_moved_per_gradient: float | None = None
    seconds_per_gradient: float | None = None
    seconds_interval: tuple[float, float] | None = None
    gradients_per_second: float | None = None
    compile_seconds: float | None = None
    peak_bytes: Whole | None = None
    chunk: Whole | None = None
    allocated_bytes: Whole | None = None
    """The most that a device's allocator held for one chunk; not of a CPU."""
    joules_per_gradient: float | None = None
    """Of the whole board; where NVML answers."""


class Record(_Plain):
    """All that is known of one cell once it has ended, in whichever way it ended."""

    schema_version: int = SCHEMA_VERSION
    id: str
    cell: Cell
    status: Status
    reason: str = ""
    traceback: str = ""
    library: str = "gradest"
    counterpart: str | None = None
    family: str = ""
    summary: str = ""
    citations: list[str] = []
    tail_ratio: float | None = None
    """rho: smallest eigenvalue of Sigma_q^(1/2) P Sigma_q^(1/2), P the posterior precision; 1/2 and 3/4 are thresholds."""
    blocks: list[BlockResult] = []
    cost: Cost = Cost()
    seconds: float = Field(default=0.0, ge=0, le=LONGEST)


class TrainingPoint(_Plain):
    """One evaluation on a training curve. Bounds are in nats per image."""

    step: Whole
    epoch: float
    seconds: float
    train_elbo: float | None = None
    heldout_elbo: float | None = None
    heldout_elbo_standard_error: float | None = None
    heldout_iwae: float | None = None
    heldout_iwae_standard_error: float | None = None
    iwae_num_samples: Whole | None = None
    checkpoint: str | None = None


class TrainingRecord(_Plain):
    """How a VAE that the suite trained came to be."""

    schema_version: int = SCHEMA_VERSION
    id: str
    problem: str
    settings: dict[str, Any]
    parameters: Whole
    points: list[TrainingPoint]


class StudyRecord(_Plain):
    """What a study found: paired trainings (``kind`` iwae), or gradients at frozen points of a training (gradients).

    ``data`` is what :mod:`benchmarks.trainer.findings` or :mod:`benchmarks.trainer.gradients` gives, plain numbers and text.
    """

    schema_version: int = SCHEMA_VERSION
    kind: Literal["iwae", "gradients"]
    data: dict[str, Any]
    citations: list[str] = []


class Manifest(_Plain):
    """What a run was asked to do. ``bibliography`` maps citation keys to BibTeX entries."""

    schema_version: int = SCHEMA_VERSION
    name: str
    command: str
    started: str
    commit: str | None = None
    dirty: bool | None = None
    cells: list[str] = []
    settings: dict[str, Any] = {}
    bibliography: dict[str, str] = {}


def canonical_json(data: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN or infinity."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


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
