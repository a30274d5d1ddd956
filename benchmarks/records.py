"""The record: what one cell leaves behind, its schema, its reader and its writer.

This is the one module that the report shares with the measuring code, so it imports no torch. Everything here is plain
data: JSON on disk, validated on the way in, checksummed on the way out.

Layout of a run folder::

    manifest.json            what was asked for, and the bibliography of what was used
    environment.json         versions, processor, threads; no host name, no user name
    cells/<id>.json          one record per finished cell
    moments/<id>.safetensors mean and variance of every coordinate, of blocks of at most 10,000 coordinates
    training/<id>.json       curves of a VAE that the suite trained
    report.html
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

SCHEMA_VERSION = 1

Status = Literal["ok", "refused", "error", "timeout", "killed", "nonfinite"]
Verdict = Literal["PASS", "BIASED", "INCONCLUSIVE", "HEAVY_TAIL", "NONFINITE", "NO_REFERENCE"]
Block = Literal["value", "theta", "phi"]

R = TypeVar("R", bound=BaseModel)


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
    num_samples: int = Field(ge=1)
    replicates: int = Field(ge=2)
    seed: int = Field(ge=0)
    dtype: str = "float64"
    device: str = "cpu"
    compiled: bool = False
    versions: dict[str, str] = {}

    @property
    def id(self) -> str:
        """A hash of the canonical settings: the same on every machine and in any order."""
        return hashlib.sha256(canonical_json(self.model_dump()).encode()).hexdigest()[:20]


class BlockResult(_Plain):
    """What was measured of one block of the gradient (``theta``, ``phi``), or of the objective's value (nats).

    Norms are Euclidean over the block's coordinates. ``variance`` is summed over coordinates, of one gradient estimate.
    Intervals are 95 % and ``None`` where they do not exist. All of it is in the units of the objective (nats) per unit of
    the parameters, averaged over data points.
    """

    block: Block
    target: str | None
    target_num_samples: int | None = None
    unbiased: bool | None
    dimensions: int
    replicates: int
    nonfinite: int = 0
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
    quantiles: dict[str, float] | None = None
    cosine: float | None = None


class Cost(_Plain):
    """What one gradient estimate costs. Seconds are medians over timed chunks, warm-up excluded."""

    evaluations_per_gradient: float | None = None
    flops_per_gradient: float | None = None
    seconds_per_gradient: float | None = None
    seconds_interval: tuple[float, float] | None = None
    gradients_per_second: float | None = None
    peak_bytes: int | None = None
    chunk: int | None = None


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
    seconds: float = 0.0


class TrainingPoint(_Plain):
    """One evaluation on a training curve. Bounds are in nats per image."""

    step: int
    epoch: float
    seconds: float
    train_elbo: float | None = None
    heldout_elbo: float | None = None
    heldout_elbo_standard_error: float | None = None
    heldout_iwae: float | None = None
    heldout_iwae_standard_error: float | None = None
    iwae_num_samples: int | None = None
    checkpoint: str | None = None


class TrainingRecord(_Plain):
    """How a VAE that the suite trained came to be."""

    schema_version: int = SCHEMA_VERSION
    id: str
    problem: str
    settings: dict[str, Any]
    parameters: int
    points: list[TrainingPoint]


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


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write all of ``text`` or nothing (:func:`write_bytes`)."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write all of ``content`` or nothing: temporary file beside the goal, fsync, atomic replace."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not of tempfile, whose files nobody but their owner may read.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write(path: Path, record: BaseModel) -> None:
    """Write a record with the checksum of its content."""
    body = record.model_dump(mode="json")
    write_text(path, pretty({**body, "checksum": _checksum(body)}))


def read(path: Path, kind: type[R]) -> R:
    """Read a record of a known kind.

    Raises:
        RecordError: if the file is not JSON, its checksum does not match its content, its schema version is unknown, or a
            field is missing, unknown or of the wrong type.
    """
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as problem:
        raise RecordError(f"{path.name}: unreadable ({type(problem).__name__})") from problem
    if not isinstance(body, dict):
        raise RecordError(f"{path.name}: not a record")
    stated = body.pop("checksum", None)
    version = body.get("schema_version")
    if version != SCHEMA_VERSION:
        raise RecordError(f"{path.name}: schema version {version!r}, this gradest reads {SCHEMA_VERSION}")
    try:
        if stated != _checksum(body):
            raise RecordError(f"{path.name}: the checksum does not match the content")
        return kind.model_validate(body)
    except ValidationError as problem:
        raise RecordError(f"{path.name}: {problem.error_count()} fields do not fit the schema") from problem
    except ValueError as problem:
        raise problem if isinstance(problem, RecordError) else RecordError(f"{path.name}: {problem}") from problem


def read_cells(run: Path) -> tuple[dict[str, Record], dict[str, str]]:
    """All records of a run folder by cell id, and by file name the reason why each of the others was not believed."""
    records: dict[str, Record] = {}
    unreadable: dict[str, str] = {}
    for path in sorted((run / "cells").glob("*.json")):
        try:
            record = read(path, Record)
            if record.id != path.stem or record.cell.id != record.id:
                raise RecordError(f"{path.name}: holds the record of another cell")
            records[record.id] = record
        except RecordError as problem:
            unreadable[path.name] = str(problem)
    return records, unreadable
