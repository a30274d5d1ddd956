"""What of a large run stands on its page, and that the page says so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from reports import frame, render
from reports.portion import MOST_OFTEN, SETTINGS, portion


@pytest.fixture(scope="module")
def large() -> pd.DataFrame:
    """Thirty problems of 20 estimators and 11 K, two seeds, one more problem of few; the later an estimator, the noisier."""
    rows = [
        (f"p{p:02}", f"e{e:02}" if e else "iwae[x=1]", k, seed, 10.0 + e if e else 1e3)
        for p in range(30) for e in range(20) for k in range(1, 12) for seed in range(2)
    ]  # fmt: skip
    rows += [("aa", "e01", 1, 0, 1.0)]
    table = pd.DataFrame(rows, columns=["problem", "estimator", "num_samples", "seed", "work_normalised_variance"])
    fixed = {
        "run": "r",
        "dtype": "float64",
        "device": "cpu",
        "compiled": False,
        "matmul_precision": "highest",
        "block": "phi",
        "unbiased": True,
    }
    table = table.assign(**fixed, verdict="PASS", status="ok")
    table.loc[table["estimator"].eq("e19") & table["num_samples"].eq(3), "verdict"] = "BIASED"
    return table


def test_a_small_run_is_shown_whole(run_folder: Path) -> None:
    table = frame([run_folder])
    shown, sentence = portion(table)
    assert shown is table and sentence == ""


def test_a_large_one_in_part_and_what_matters_first(large: pd.DataFrame) -> None:
    shown, sentence = portion(large)
    keys = ["problem", "estimator", "num_samples"]
    settings = shown[keys].drop_duplicates()
    assert len(settings) <= SETTINGS < len(large[keys].drop_duplicates())
    assert f"{len(settings):,} of {len(large[keys].drop_duplicates()):,} settings" in sentence
    assert sorted(set(shown["problem"])) == [f"p{p:02}" for p in range(MOST_OFTEN[0])]  # most settings, then by name
    assert sorted(set(shown["num_samples"])) == [1, 2, 4, 5, 7, 8, 10, 11]  # both ends, evenly between
    assert set(shown["seed"]) == {0, 1}
    for _, rows in shown.groupby("problem"):
        assert "e19" in set(rows["estimator"])  # biased although declared unbiased, though the noisiest but one
        assert "iwae[x=1]" in set(rows["estimator"])  # what others are held against, though the noisiest
        assert set(rows["estimator"]) >= {"e01", "e02"}


def test_many_estimators_are_cut_by_what_they_are_worth(large: pd.DataFrame) -> None:
    one = large[large["problem"] == "p00"]
    many = pd.concat([one.assign(estimator=one["estimator"] + f"-{copy}", verdict="PASS",
                                 work_normalised_variance=one["work_normalised_variance"] * 10**copy) for copy in range(20)])  # fmt: skip
    shown, _ = portion(many)
    kept = set(shown["estimator"])
    assert len(kept) == 100 and {f"e{e:02}-0" for e in range(1, 20)} <= kept and not any("-19" in one for one in kept)


def test_the_page_says_what_it_shows(tmp_path: Path, fabricate: SimpleNamespace, monkeypatch) -> None:
    monkeypatch.setattr("reports.portion.PROBLEMS", 2)
    run = fabricate.write_run(tmp_path / "run", [f"shifted[by={place}]" for place in range(3)], ["iwae", "dreg"], [1])
    text = render([run], tmp_path / "whole.html").read_text(encoding="utf-8")
    assert "it shows 6 of 9 settings, 2 of 4 problems" in text  # the first also has a failure and a refusal
    assert "9 cells (problem, estimator, K and seed) ended" in text  # counts are of the whole
    part = render([run], tmp_path / "part.html", problems=["shifted[by=[12]]", "shifted[by=2]"], estimators=["dre*"])
    text = part.read_text(encoding="utf-8")
    assert (
        "too large for one page" not in text
        and "1 cell (problem, estimator, K and seed) ended" in text
        and "shifted[by=2]" in text
    )
    with pytest.raises(ValueError, match="no record fits 'nothing'"):
        render([run], tmp_path / "none.html", problems=["nothing"])
    assert not (tmp_path / "none.html").exists()
