"""What a page of many cells holds: every point of its strips as pixels, means over seeds in place of a row per cell."""

from __future__ import annotations

import base64
import gzip
import io
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from fabricated import GAUSSIAN
from matplotlib.figure import Figure

from reports import enclosed, figures, frame, plates, render
from reports.enclosed import MEANS, numbers
from reports.labels import labelled
from reports.plates import Plates
from reports.tables import COLUMNS
from reports.vector import svg


@pytest.fixture(scope="module")
def whole(run_folder: Path) -> pd.DataFrame:
    return frame([run_folder])


def enclosed_in(address: str) -> pd.DataFrame:
    """The table that an address holds."""
    return pd.read_csv(io.BytesIO(gzip.decompress(base64.b64decode(address.partition(",")[2]))))


def test_a_page_of_few_rows_holds_them_all(whole: pd.DataFrame) -> None:
    table, means, _ = labelled(whole)
    found = numbers(table, means)
    rows = enclosed_in(found.address)
    assert list(rows) == COLUMNS and list(rows["id"]) == list(whole["id"])
    assert found.rows == "a row per cell and block"


def test_a_page_of_many_rows_holds_their_means(whole: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enclosed, "ROWS", len(whole) - 1)
    table, means, _ = labelled(whole)
    found = numbers(table, means)
    rows = enclosed_in(found.address)
    assert list(rows) == MEANS and len(rows) == len(means) < len(whole)
    done = whole[whole["status"] == "ok"]
    assert rows["seeds"].sum() == len(done)
    expected = done.groupby(["problem", "estimator", "block", "num_samples"])["mse"].mean()
    assert rows.groupby(["problem", "estimator", "block", "num_samples"])["mse"].mean().to_numpy() == pytest.approx(
        expected.to_numpy(), rel=1e-6, nan_ok=True
    )
    assert f"means over the seeds of finished cells, because {len(whole)} rows" in found.rows


def test_no_column_of_the_means_is_of_one_seed_alone(whole: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other way round, another seed comes first."""
    monkeypatch.setattr(enclosed, "ROWS", 0)
    one, other = (
        enclosed_in(numbers(*labelled(rows)[:2]).address) for rows in (whole, whole[::-1].reset_index(drop=True))
    )
    pd.testing.assert_frame_equal(one, other, rtol=1e-6)


def test_where_nothing_finished_there_are_no_means(
    tmp_path: Path, fabricate: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enclosed, "ROWS", 1)
    for seed in range(2):
        fabricate.cell(tmp_path, GAUSSIAN, "iwae", 1, seed=seed, status="timeout", blocks=[], reason="60 s")
    rows = enclosed_in(numbers(*labelled(frame([tmp_path]))[:2]).address)
    assert list(rows) == MEANS and not len(rows)


def test_the_page_says_that_it_holds_means(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enclosed, "ROWS", 10)
    page = render([run_folder], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "as means over the seeds of finished cells, because" in page and "a row per cell and block:" not in page


def test_strips_of_many_points_are_pixels_and_lose_none(whole: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    for most in (figures.MARKS, 3):
        monkeypatch.setattr(figures, "MARKS", most)
        drawn[most] = figures.bias(whole, problem=GAUSSIAN)
    few, many = drawn.values()
    assert points(many) == points(few)
    assert "<image" not in svg(few, "f0") and svg(many, "f0").count("data:image/png;base64,") == 2
    assert "inconclusive" not in svg(many, "f0") and ">pass</text>" in svg(many, "f0")  # words stay words


def points(figure: Figure) -> list[list[float]]:
    """The data of all lines of a figure."""
    return [list(line.get_xdata()) for axes in figure.axes for line in axes.lines]


def test_a_long_table_beside_a_figure_keeps_no_other_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plates, "ROWS", 3)
    all_ = Plates(["run"])
    long, short = (
        all_.add(f"of-{rows}", "cost", Figure, pd.DataFrame({"block": range(rows)}), "", "") for rows in (4, 3)
    )
    all_.draw_what_must_be()
    all_.fill(10**6)
    assert not long.csv and short.csv.startswith("data:text/csv") and all_.dropped == 1
