"""The table of records, and its export."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.records import read_cells
from reports import export, frame
from reports.tables import COLUMNS, load

PROMISED = (
    *("problem", "estimator", "num_samples", "seed", "block", "target", "unbiased", "replicates", "mean_norm"),
    *("reference_norm", "bias_norm", "bias_z", "verdict", "detectable_bias", "variance", "snr", "mse", "skewness"),
    *("kurtosis", "tail_index", "variance_exists", "cosine", "seconds_per_gradient", "gradients_per_second"),
    *("evaluations_per_gradient", "flops_per_gradient", "peak_bytes", "work_normalised_variance", "device", "dtype"),
    *("compiled", "status"),
)


@pytest.fixture(scope="module")
def table(run_folder: Path) -> pd.DataFrame:
    return frame([run_folder])


def test_one_row_per_cell_and_block(table: pd.DataFrame) -> None:
    assert set(PROMISED) <= set(table.columns)
    done = table[table["status"] == "ok"]
    assert len(done) == 3 * (2 * 5 * 3 * 2 + 1)
    assert not done.duplicated(["id", "block"]).any()


def test_failed_cells_give_one_row_without_numbers(table: pd.DataFrame) -> None:
    failed = table[table["status"] != "ok"]
    assert sorted(failed["status"]) == ["error", "refused"]
    numbers = ["variance", "bias_norm", "snr", "seconds_per_gradient", "work_normalised_variance", "cosine"]
    assert failed[numbers].isna().all(axis=None)
    assert failed["block"].isna().all()


def test_work_normalised_variance_is_variance_times_seconds(run_folder: Path, table: pd.DataFrame) -> None:
    stored = read_cells(run_folder)[0].values()
    record = next(one for one in stored if one.status == "ok" and one.cell.estimator == "iwae")
    block = next(one for one in record.blocks if one.block == "phi")
    row = table[(table["id"] == record.id) & (table["block"] == "phi")].iloc[0]
    work = block.variance * record.cost.seconds_per_gradient
    assert row["work_normalised_variance"] == pytest.approx(work, rel=1e-15, abs=0)
    assert (row["variance_low"], row["variance_high"]) == block.variance_interval
    assert (row["seconds_low"], row["seconds_high"]) == record.cost.seconds_interval


def test_csv_and_json_bring_every_number_back(table: pd.DataFrame, tmp_path: Path) -> None:
    export(table, tmp_path / "t.csv", "csv")
    stream = io.StringIO()
    export(table, stream, "json")
    back = pd.read_csv(tmp_path / "t.csv")
    rows = json.loads(stream.getvalue())
    assert list(back.columns) == COLUMNS == list(rows[0])
    assert len(back) == len(rows) == len(table)
    for column in ("variance", "snr", "bias_z", "work_normalised_variance"):
        pd.testing.assert_series_equal(back[column], table[column], rtol=1e-14)
        assert [row[column] for row in rows] == [None if pd.isna(value) else value for value in table[column]]
    assert back["estimator"].tolist() == table["estimator"].tolist()


def test_unknown_formats_are_refused_in_one_line(table: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="'yaml' is not one of csv, json, parquet"):
        export(table, io.StringIO(), "yaml")


def test_parquet_needs_pyarrow_and_a_file(table: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="parquet"):
        export(table, io.StringIO(), "parquet")


def test_unreadable_records_are_named(run_folder: Path) -> None:
    assert load(run_folder).unreadable == {"deadbeef.json": "deadbeef.json: unreadable (no JSON)"}


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such run folder"):
        frame([tmp_path / "nowhere"])


def test_no_runs_and_empty_runs_give_an_empty_table(tmp_path: Path) -> None:
    assert list(frame([]).columns) == list(frame([tmp_path]).columns) == COLUMNS


def test_importing_reports_does_not_import_torch() -> None:
    code = "import sys, reports; sys.exit(bool({'torch', 'estimators', 'pyro'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0
