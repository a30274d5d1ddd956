"""Run folders as one flat table: a row for each cell and block, and its export."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from benchmarks.records import LARGEST, RecordError, each_cell, plain, read, read_bytes, write_bytes, write_text
from benchmarks.schema import Manifest, Record, TrainingRecord

from .statistics import ARITHMETIC
from .wording import parts, titles

IDENTITY = ["run", "id", "problem", "estimator", "num_samples", "seed", *ARITHMETIC]
"""Columns that say which cell a row belongs to."""

COLUMNS = [
    *["problem", "estimator", "num_samples", "seed", "block", "target", "target_num_samples", "unbiased", "replicates"],
    *["nonfinite", "dimensions", "mean_norm", "reference_norm", "reference_standard_error", "reference_method"],
    *["bias_norm", "bias_low", "bias_high", "bias_z", "verdict", "verdict_reason", "worst_direction"],
    *["detectable_bias", "variance", "variance_low", "variance_high", "variance_exists", "exact_variance"],
    *["snr", "snr_low", "snr_high", "snr_floor", "snr_slope_theory", "mse", "skewness", "kurtosis", "tail_index"],
    *["tail_index_low", "tail_index_high", "median_of_means"],
    *["quantiles", "cosine", "seconds_per_gradient", "seconds_low", "seconds_high", "gradients_per_second"],
    *["evaluations_per_gradient", "flops_per_gradient", "bytes_moved_per_gradient", "peak_bytes", "chunk"],
    *["allocated_bytes", "joules_per_gradient"],
    "work_normalised_variance",
    *ARITHMETIC,
    *["status", "reason", "library", "counterpart", "family", "summary", "citations"],
    *["tail_ratio", "seconds", "id", "run"],
]
"""Every column of the table, in the order of the export. Intervals are 95 %."""

_TEXT = {
    *["problem", "estimator", "block", "target", "reference_method", "verdict", "verdict_reason", "worst_direction"],
    *["quantiles", "device", "dtype", "matmul_precision", "status", "reason", "library", "counterpart", "family"],
    *["summary", "citations"],
    *["id", "run"],
}
_FLAGS = {"unbiased", "variance_exists", "compiled"}
_INTERVALS = {
    **{"bias_interval": "bias", "variance_interval": "variance", "snr_interval": "snr"},
    **{"tail_index_interval": "tail_index"},
}
_STORED = [column for column in COLUMNS if column not in ("run", "work_normalised_variance")]
PIECE = 10_000
"""Rows that are held as Python objects at a time; a hundred thousand cells would take gigabytes."""
TRACEBACKS = 200
"""Failures whose traceback is kept."""


@dataclass(frozen=True)
class Run:
    """One run folder as it was found.

    ``rows`` is :func:`frame`'s table but for the column ``run``, ``tracebacks`` those of the first two hundred failures by cell
    id. What could not be read is named in ``unreadable``, file name to reason.
    """

    name: str
    path: Path
    manifest: Manifest | None
    environment: dict[str, Any]
    rows: pd.DataFrame
    tracebacks: dict[str, str] = field(default_factory=dict)
    trainings: list[TrainingRecord] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def cells(self) -> pd.DataFrame:
        """The first row of each cell: what holds for all its blocks."""
        return self.rows.drop_duplicates("id")


def load(path: Path) -> Run:
    """Read a run folder, keeping what can be believed and naming what cannot.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such run folder")
    unreadable: dict[str, str] = {}
    tracebacks: dict[str, str] = {}
    rows = _rows(each_cell(path, unreadable), tracebacks)
    manifest, environment = None, {}
    if (path / "manifest.json").exists():
        try:
            manifest = read(path / "manifest.json", Manifest)
        except RecordError as problem:
            unreadable["manifest.json"] = str(problem)
    if (path / "environment.json").exists():
        try:
            environment = json.loads(read_bytes(path / "environment.json", LARGEST))
            if not isinstance(environment, dict):
                raise ValueError("not an object")
        except (OSError, ValueError, RecursionError) as problem:
            environment, unreadable["environment.json"] = {}, f"environment.json: unreadable ({type(problem).__name__})"
    trainings = []
    for file in sorted((path / "training").glob("*.json")):
        try:
            trainings.append(read(file, TrainingRecord))
        except RecordError as problem:
            unreadable[f"training/{file.name}"] = str(problem)
    return Run(plain(path.resolve().name), path, manifest, environment, rows, tracebacks, trainings, unreadable)


def only(run: Run, problems: Sequence[str] = (), estimators: Sequence[str] = ()) -> Run:
    """The cells of a run whose problem and estimator fit one of the patterns; no patterns, all of them.

    A pattern is a specification, or a name, with ``*`` and ``?`` for what may be anything.
    """
    if not problems and not estimators:
        return run
    rows = run.rows
    for column, patterns in (("problem", problems), ("estimator", estimators)):
        if patterns:
            known = {name: any(_fits(name, each) for each in patterns) for name in rows[column].unique()}
            rows = rows[rows[column].map(known).astype(bool)]
    return replace(run, rows=rows.reset_index(drop=True))


def _fits(name: str, pattern: str) -> bool:
    """Brackets are part of specifications, not of the pattern's language."""
    literal = pattern.replace("[", "[[]")
    return fnmatchcase(name, literal) or fnmatchcase(parts(name)[0], literal)


def frame(runs: Sequence[Path]) -> pd.DataFrame:
    """The records of some run folders as a table: one row per cell and block, failed cells as one row without numbers.

    ``work_normalised_variance`` is ``variance * seconds_per_gradient``: the variance left after one second of work.
    """
    return tabulate([load(Path(path)) for path in runs])


def tabulate(runs: Sequence[Run]) -> pd.DataFrame:
    """:func:`frame` of folders that have been read already."""
    names = _distinct([run.name for run in runs])
    parts = [run.rows.assign(run=name) for run, name in zip(runs, names, strict=True) if len(run.rows)]
    table = pd.concat(parts, ignore_index=True) if parts else _typed([], _Words()).assign(run=[])
    table["run"] = table["run"].astype(object)
    order = ["problem", "estimator", "num_samples", "seed", "block", "run", "id"]
    keys = [_place(table[name]) for name in reversed(order)]
    return table.iloc[np.lexsort(keys)].reset_index(drop=True)[COLUMNS]


def _place(values: pd.Series) -> np.ndarray:
    """Numbers that sort as the values do, what is missing first; strings compared once each, not once a row."""
    if pd.api.types.is_numeric_dtype(values):
        return values.to_numpy()
    return pd.factorize(values, sort=True)[0]


def _distinct(names: Sequence[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


def _rows(records: Iterable[Record], tracebacks: dict[str, str]) -> pd.DataFrame:
    """A row for each cell and block, made piece by piece; records of the same words share them."""
    pieces: list[pd.DataFrame] = []
    rows: list[tuple[Any, ...]] = []
    words = _Words()
    for record in records:
        rows += _rows_of(record)
        if record.traceback and len(tracebacks) < TRACEBACKS:
            tracebacks[record.id] = record.traceback
        if len(rows) >= PIECE:
            pieces.append(_typed(rows, words))
            rows = []
    pieces.append(_typed(rows, words))
    filled = [piece for piece in pieces if len(piece)]
    return pd.concat(filled, ignore_index=True) if filled else pieces[0]


class _Words(dict[str | None, str | None]):
    """One object for equal texts; no terminal and no page is to obey any of them."""

    def __missing__(self, text: str | None) -> str | None:
        word = None if text is None else plain(text)
        self[text] = word
        return word


def _typed(rows: list[tuple[Any, ...]], words: _Words) -> pd.DataFrame:
    """Rows of :data:`_STORED` as a table: numbers as such, the rest as objects, ``None`` where there is nothing."""
    columns = dict(zip(_STORED, zip(*rows, strict=True), strict=True)) if rows else {name: () for name in _STORED}
    typed = {}
    for name, values in columns.items():
        if name in _TEXT:
            typed[name] = pd.Series([words[one] for one in values], dtype=object)
        elif name in _FLAGS:
            typed[name] = pd.Series(values, dtype=object)
        else:
            typed[name] = pd.to_numeric(pd.Series(values, dtype=object))
    table = pd.DataFrame(typed)
    return table.assign(work_normalised_variance=table["variance"] * table["seconds_per_gradient"])


_NOTHING: dict[str, Any] = dict.fromkeys(_STORED)
_in_order = itemgetter(*_STORED)


def _rows_of(record: Record) -> list[tuple[Any, ...]]:
    """The rows of one cell, in the order of :data:`_STORED`: one for each block, one without numbers where it failed."""
    whole = {**_NOTHING, **record.cell.__dict__, **record.__dict__, "citations": " ".join(record.citations)}
    if record.status != "ok":
        return [_in_order(whole)]
    whole |= record.cost.__dict__
    whole["seconds_low"], whole["seconds_high"] = record.cost.seconds_interval or (None, None)
    rows = []
    for block in record.blocks:
        row = whole | block.__dict__
        for name, prefix in _INTERVALS.items():
            row[f"{prefix}_low"], row[f"{prefix}_high"] = row[name] or (None, None)
        row["quantiles"] = json.dumps(block.quantiles) if block.quantiles else None
        rows.append(_in_order(row))
    return rows or [_in_order(whole)]


def training_titles(runs: Sequence[Run]) -> dict[str, str]:
    """A short title of each trained model, by its id: what tells them apart."""
    records = [record for run in runs for record in run.trainings]
    short = titles([record.problem for record in records])
    wanted = {}
    for record in records:
        estimator = record.settings.get("estimator")
        wanted[record.id] = short[record.problem] + (f", {parts(str(estimator))[0]}" if estimator else "")
    twice = [title for title in wanted.values() if list(wanted.values()).count(title) > 1]
    return {one: f"{title} {one[:6]}" if title in twice else title for one, title in wanted.items()}


def curves(runs: Sequence[Run]) -> pd.DataFrame:
    """Training curves: a row per point, the fields of ``TrainingPoint`` and ``training``, the model's title."""
    names = training_titles(runs)
    points = pd.DataFrame(
        [
            {"training": names[record.id], **point.model_dump()}
            for run in runs
            for record in run.trainings
            for point in record.points
        ]
    )
    numeric = points.columns.difference(["training", "checkpoint"])
    points[numeric] = points[numeric].apply(pd.to_numeric)
    return points


def export(table: pd.DataFrame, target: Path | str | IO[str], format: str = "csv") -> None:
    """Write the table as ``csv``, ``json`` (a list of objects, missing values null) or ``parquet``.

    Raises:
        ValueError: if the format is unknown, or is parquet and pyarrow is not installed or the target is a text stream.
    """
    if format == "parquet":
        if importlib.util.find_spec("pyarrow") is None:
            raise ValueError("format 'parquet' needs pyarrow, which is not installed; csv and json are always there")
        if not isinstance(target, str | Path):
            raise ValueError("format 'parquet' is not text: name a file to write it to")
        stream = io.BytesIO()
        table.to_parquet(stream, index=False)
        write_bytes(Path(target), stream.getvalue())
        return
    if format not in ("csv", "json"):
        raise ValueError(f"format {format!r} is not one of csv, json, parquet")
    text = to_csv(table) if format == "csv" else to_json(table)
    if isinstance(target, str | Path):
        write_text(Path(target), text)
    else:
        target.write(text)


def to_csv(table: pd.DataFrame, digits: str | None = None) -> str:
    """The table as CSV, missing values empty; numbers in full precision unless ``digits`` says otherwise (``%.7g``)."""
    stream = io.StringIO()
    table.to_csv(stream, index=False, lineterminator="\n", float_format=digits)
    return stream.getvalue()


def to_json(table: pd.DataFrame) -> str:
    """The table as a JSON list of objects."""
    pieces = []
    for start in range(0, len(table), PIECE):
        piece = table.iloc[start : start + PIECE]
        rows = piece.astype(object).where(piece.notna(), None).to_dict(orient="records")
        pieces.append(json.dumps(rows, indent=1, allow_nan=False)[1:-2])
    return "[" + ",".join(pieces) + "\n]\n" if pieces else "[]\n"
