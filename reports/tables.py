"""Run folders as one flat table: a row for each cell and block, and its export."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pandas as pd

from benchmarks.records import BlockResult, Manifest, Record, RecordError, TrainingRecord, read, read_cells

from .wording import parts, titles

IDENTITY = ["run", "id", "problem", "estimator", "num_samples", "seed", "dtype", "device", "compiled"]
"""Columns that say which cell a row belongs to."""

COLUMNS = [
    *["problem", "estimator", "num_samples", "seed", "block", "target", "target_num_samples", "unbiased", "replicates"],
    *["nonfinite", "dimensions", "mean_norm", "reference_norm", "reference_standard_error", "reference_method"],
    *["bias_norm", "bias_low", "bias_high", "bias_z", "verdict", "verdict_reason", "worst_direction"],
    *["detectable_bias", "variance", "variance_low", "variance_high", "variance_exists", "exact_variance"],
    *["snr", "snr_low", "snr_high", "snr_floor", "snr_slope_theory", "mse", "skewness", "kurtosis", "tail_index"],
    *["tail_index_low", "tail_index_high", "median_of_means"],
    *["quantiles", "cosine", "seconds_per_gradient", "seconds_low", "seconds_high", "gradients_per_second"],
    *["evaluations_per_gradient", "flops_per_gradient", "peak_bytes", "chunk", "work_normalised_variance"],
    *["device", "dtype", "compiled", "status", "reason", "library", "counterpart", "family", "summary", "citations"],
    *["tail_ratio", "seconds", "id", "run"],
]
"""Every column of the table, in the order of the export. Intervals are 95 %."""

_TEXT = {
    *["problem", "estimator", "block", "target", "reference_method", "verdict", "verdict_reason", "worst_direction"],
    *["quantiles", "device", "dtype", "status", "reason", "library", "counterpart", "family", "summary", "citations"],
    *["id", "run"],
}
_FLAGS = {"unbiased", "variance_exists", "compiled"}
_INTERVALS = {
    **{"bias_interval": "bias", "variance_interval": "variance", "snr_interval": "snr"},
    **{"tail_index_interval": "tail_index"},
}


@dataclass(frozen=True)
class Run:
    """One run folder as it was found. What could not be read is named in ``unreadable``, file name to reason."""

    name: str
    path: Path
    manifest: Manifest | None
    environment: dict[str, Any]
    records: dict[str, Record]
    trainings: list[TrainingRecord] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)


def load(path: Path) -> Run:
    """Read a run folder, keeping what can be believed and naming what cannot.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such run folder")
    records, unreadable = read_cells(path)
    manifest, environment = None, {}
    if (path / "manifest.json").exists():
        try:
            manifest = read(path / "manifest.json", Manifest)
        except RecordError as problem:
            unreadable["manifest.json"] = str(problem)
    if (path / "environment.json").exists():
        try:
            environment = json.loads((path / "environment.json").read_text(encoding="utf-8"))
            if not isinstance(environment, dict):
                raise ValueError("not an object")
        except (OSError, ValueError) as problem:
            environment, unreadable["environment.json"] = {}, f"environment.json: unreadable ({type(problem).__name__})"
    trainings = []
    for file in sorted((path / "training").glob("*.json")):
        try:
            trainings.append(read(file, TrainingRecord))
        except RecordError as problem:
            unreadable[f"training/{file.name}"] = str(problem)
    return Run(path.resolve().name, path, manifest, environment, records, trainings, unreadable)


def frame(runs: Sequence[Path]) -> pd.DataFrame:
    """The records of some run folders as a table: one row per cell and block, failed cells as one row without numbers.

    ``work_normalised_variance`` is ``variance * seconds_per_gradient``: the variance left after one second of work.
    """
    return tabulate([load(Path(path)) for path in runs])


def tabulate(runs: Sequence[Run]) -> pd.DataFrame:
    """:func:`frame` of folders that have been read already."""
    names = _distinct([run.name for run in runs])
    rows = []
    for run, name in zip(runs, names, strict=True):
        for record in run.records.values():
            blocks: Sequence[BlockResult | None] = record.blocks if record.status == "ok" else []
            rows += [_row(name, record, block) for block in blocks or [None]]
    table = pd.DataFrame(rows, columns=COLUMNS)
    for column in COLUMNS:
        if column not in _TEXT | _FLAGS:
            table[column] = pd.to_numeric(table[column])
        else:
            table[column] = table[column].astype(object).where(table[column].notna(), None)
    order = ["problem", "estimator", "num_samples", "seed", "block", "run", "id"]
    return table.sort_values(order, kind="stable", na_position="first").reset_index(drop=True)


def _distinct(names: Sequence[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


def _row(run: str, record: Record, block: BlockResult | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        **record.cell.model_dump(exclude={"versions"}),
        **record.model_dump(exclude={"schema_version", "cell", "blocks", "cost", "citations", "traceback"}),
        "citations": " ".join(record.citations),
        "run": run,
    }
    if record.status != "ok":
        return row
    cost = record.cost.model_dump()
    low, high = cost.pop("seconds_interval") or (None, None)
    row |= {**cost, "seconds_low": low, "seconds_high": high}
    if block is None:
        return row
    body = block.model_dump()
    for name, prefix in _INTERVALS.items():
        row[f"{prefix}_low"], row[f"{prefix}_high"] = body.pop(name) or (None, None)
    quantiles = body.pop("quantiles")
    row |= {**body, "quantiles": json.dumps(quantiles) if quantiles else None}
    if block.variance is not None and cost["seconds_per_gradient"] is not None:
        row["work_normalised_variance"] = block.variance * cost["seconds_per_gradient"]
    return row


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
        table.to_parquet(target, index=False)
        return
    if format not in ("csv", "json"):
        raise ValueError(f"format {format!r} is not one of csv, json, parquet")
    text = to_csv(table) if format == "csv" else to_json(table)
    if isinstance(target, str | Path):
        Path(target).write_text(text, encoding="utf-8", newline="")
    else:
        target.write(text)


def to_csv(table: pd.DataFrame, digits: str | None = None) -> str:
    """The table as CSV, missing values empty; numbers in full precision unless ``digits`` says otherwise (``%.7g``)."""
    stream = io.StringIO()
    table.to_csv(stream, index=False, lineterminator="\n", float_format=digits)
    return stream.getvalue()


def to_json(table: pd.DataFrame) -> str:
    """The table as a JSON list of objects."""
    rows = table.astype(object).where(table.notna(), None).to_dict(orient="records")
    return json.dumps(rows, indent=1, allow_nan=False) + "\n"
