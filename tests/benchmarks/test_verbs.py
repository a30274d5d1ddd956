"""The verbs that read stored runs: compare, history, advise; and cite. Numbers are worked out here from the records."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import records
from benchmarks.schema import BlockResult, Cell, Cost, Manifest, Record

PROBLEM = "gaussian-1d[loc=1.2,scale=0.8,x=1.0,prior_loc=0.0]"
Z = 1.959963984540054


def block(name: str, variance: float, reach: float, **how: object) -> BlockResult:
    body = {
        "block": name, "target": "elbo", "unbiased": True, "dimensions": 1, "replicates": 1000, "verdict": "PASS",
        "mean_norm": 1.0, "reference_norm": 1.0, "bias_norm": 0.0, "bias_interval": (0.0, 0.01), "bias_z": 0.1,
        "variance": variance, "variance_interval": (variance / reach, variance * reach), "snr": 1.0, "snr_floor": 0.01,
    }  # fmt: skip
    return BlockResult(**{**body, **how})


def write_run(
    folder: Path, cells: dict[tuple[str, int], dict], started: str = "2026-01-01", processor: str = "one"
) -> Path:
    """A run folder with a record for each estimator and K; ``cells`` gives variance, seconds and the like."""
    ids = []
    for (estimator, k), how in cells.items():
        cell = Cell(problem=PROBLEM, estimator=estimator, num_samples=k, replicates=1000, seed=0)
        seconds, reach = how.get("seconds", 1e-5 * k), how.get("reach", 1.05)
        cost = Cost(evaluations_per_gradient=k, seconds_per_gradient=seconds, peak_bytes=100 * k,
                    seconds_interval=(seconds / 1.01, seconds * 1.01))  # fmt: skip
        block_how = how.get("block", {})
        blocks = [block(name, how["variance"], reach, **block_how) for name in ("theta", "phi")]
        status = how.get("status", "ok")
        record = Record(id=cell.id, cell=cell, status=status, blocks=blocks if status == "ok" else [], cost=cost)
        records.write(folder / "cells" / f"{cell.id}.json", record)
        ids.append(cell.id)
    records.write(
        folder / "manifest.json", Manifest(name=folder.name, command="gradest run", started=started, cells=ids)
    )
    facts = {"processor": processor, "accelerator": "none", "torch threads per worker": 1}
    records.write_text(folder / "environment.json", records.pretty(facts))
    return folder


BEFORE = {
    ("score-function", 1): {"variance": 8.0},
    ("reparameterization", 1): {"variance": 2.0},
    ("sticking-the-landing", 1): {"variance": 0.5},
}


def test_compare_finds_what_got_worse_and_nothing_else(gradest, tmp_path):
    one = write_run(tmp_path / "one", BEFORE)
    after = {**BEFORE, ("reparameterization", 1): {"variance": 2.4}, ("sticking-the-landing", 1): {"variance": 0.51}}
    two = write_run(tmp_path / "two", after)
    code, out, err = gradest("compare", one, two, "--fail-on", "variance", "--json")
    data = json.loads(out)
    assert (code, err) == (1, "") and data["exit"] == 1
    rows = {(row["metric"], row["estimator"], row["block"]): row for row in data["rows"]}
    row = rows["variance", "reparameterization", "phi"]
    error = math.hypot(math.log(1.05), math.log(1.05)) / Z
    assert row["ratio"] == pytest.approx(1.2)
    assert (row["low"], row["high"]) == pytest.approx((1.2 * math.exp(-Z * error), 1.2 * math.exp(Z * error)))
    z = math.log(1.2) / error
    assert row["p"] == pytest.approx(6 * math.erfc(z / math.sqrt(2)), rel=1e-6)  # Holm: the smallest of six
    assert row["p_worse"] == pytest.approx(3 * math.erfc(z / math.sqrt(2)), rel=1e-6)
    assert row["change"] == "worse" and len(data["failed"]) == 2  # theta and phi
    assert rows["variance", "sticking-the-landing", "phi"]["change"] == "not told apart"
    assert rows["variance", "score-function", "phi"]["p"] == 1
    assert rows["seconds", "score-function", None]["ratio"] == 1
    assert gradest("compare", one, two)[0] == 0  # nothing asked to fail on
    assert gradest("compare", one, two, "--fail-on", "variance=1.3,seconds")[0] == 0  # worse, within the limit
    assert gradest("compare", two, one, "--fail-on", "variance")[0] == 0  # better
    code, out, _ = gradest("compare", two, one)
    assert "better: variance x 0.83" in out and "2 better" in out


def test_compare_sees_verdicts_statuses_and_missing_cells(gradest, tmp_path):
    one = write_run(tmp_path / "one", {**BEFORE, ("iwae", 2): {"variance": 1.0}})
    after = {
        ("score-function", 1): {"variance": 8.0, "status": "timeout"},
        ("reparameterization", 1): {"variance": 2.0, "block": {"verdict": "BIASED"}},
        ("sticking-the-landing", 1): {"variance": 0.5, "block": {"verdict": "BIASED", "unbiased": False}},
    }
    two = write_run(tmp_path / "two", after)
    code, out, _ = gradest("compare", one, two, "--fail-on", "verdict,status", "--json")
    data = json.loads(out)
    found = {(row["metric"], row["estimator"], row["block"]): row["change"] for row in data["changes"]}
    assert code == 1 and found["status", "score-function", None] == "worse"
    assert found["verdict", "reparameterization", "phi"] == "worse"
    assert found["verdict", "sticking-the-landing", "phi"] == "other"  # a declared bias is no alarm
    assert "1 cells only before, 0 only after" in " ".join(data["notes"])
    assert gradest("compare", one, two, "--fail-on", "seconds")[0] == 0


def test_seconds_of_two_machines_are_not_compared(gradest, tmp_path):
    one, two = (write_run(tmp_path / name, BEFORE, processor=name) for name in ("one", "two"))
    code, out, _ = gradest("compare", one, two)
    assert code == 0 and "seconds are not compared: processor: one before, two after" in out
    code, out, err = gradest("compare", one, two, "--fail-on", "seconds")
    assert (code, out) == (3, "") and "no verdict on seconds" in err


def test_compare_writes_a_page_and_junit(gradest, tmp_path):
    one = write_run(tmp_path / "one", BEFORE)
    two = write_run(tmp_path / "two", {**BEFORE, ("score-function", 1): {"variance": 12.0}})
    words = ("--fail-on", "variance", "--out", tmp_path / "c.html", "--junit", tmp_path / "c.xml")
    assert gradest("compare", one, two, *words)[0] == 1
    html = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert "script-src &#39;sha256-" in html and "1.50 [1.40, 1.61]" in html and "<svg" in html
    suite = ElementTree.parse(tmp_path / "c.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("9", "2")
    assert "variance x 1.50" in suite.find(".//failure").get("message")


def test_false_alarms_of_compare(tmp_path):
    """Two runs of the same code alarm in at most 5 % of 150 simulated pairs (binomial, 4 sigma), and do see a factor 1.5."""
    import numpy as np
    import pandas as pd

    from reports.compare import deltas

    generator = np.random.default_rng(7)
    size, error = 20, 0.05

    def table(factor: float = 1.0) -> pd.DataFrame:
        value = np.exp(generator.normal(size=size) * error)
        value[0] *= factor
        spread = math.exp(Z * error)
        return pd.DataFrame(
            {
                "problem": "p", "estimator": [f"e{i}" for i in range(size)], "num_samples": 1, "seed": 0, "dtype": "float64",
                "device": "cpu", "compiled": False, "matmul_precision": "highest", "block": "phi", "status": "ok", "variance": value,
                "variance_low": value / spread, "variance_high": value * spread,
            }
        )  # fmt: skip

    alarms = sum((deltas(table(), table(), seconds=False)["change"] != "not told apart").any() for _ in range(150))
    assert alarms <= 150 * 0.05 + 4 * math.sqrt(150 * 0.05 * 0.95)
    seen = sum(deltas(table(), table(1.5), seconds=False).iloc[0]["change"] == "worse" for _ in range(25))
    assert seen >= 22


def test_history_puts_runs_in_order_and_marks_changes(gradest, tmp_path):
    third = write_run(tmp_path / "c", {**BEFORE, ("reparameterization", 1): {"variance": 3.0}}, "2026-03-01", "other")
    first, second = (write_run(tmp_path / name, BEFORE, f"2026-0{i}-01") for i, name in enumerate("ab", 1))
    code, out, err = gradest("history", third, first, second, "--json", "--out", tmp_path / "h.html")
    data = json.loads(out)
    own = [row for row in data["rows"] if row["estimator"] == "reparameterization" and row["block"] == "phi"]
    assert (code, err) == (0, "") and [row["run"] for row in own] == ["a", "b", "c"]
    assert [row["variance_change"] for row in own] == ["first", "not told apart", "worse"]
    assert [row["seconds_change"] for row in own] == ["first", "not told apart", "not compared"]
    assert data["notes"] == ["seconds of b and c are not compared: processor: one before, other after"]
    assert "<svg" in (tmp_path / "h.html").read_text(encoding="utf-8")
    code, out, _ = gradest("history", first, second, third)
    assert "c: variance worse, now 3.00 [2.86, 3.15]: reparameterization at K = 1" in out and "2 changes" in out


ADVICE = {
    ("score-function", 1): {"variance": 8.0},
    ("score-function", 8): {"variance": 1.0},
    ("reparameterization", 1): {"variance": 2.0},
    ("reparameterization", 8): {"variance": 0.24},
    ("sticking-the-landing", 1): {"variance": 0.5},
    ("sticking-the-landing", 8): {"variance": 0.0625},
    ("cheap", 1): {
        "variance": 0.125,
        "block": {"unbiased": False, "verdict": "BIASED", "bias_norm": 0.1, "bias_interval": (0.099, 0.101)},
    },
    ("lost", 1): {"variance": 1e-9, "block": {"verdict": "BIASED"}},
}


@pytest.fixture(scope="module")
def advised(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("advice") / "run", ADVICE)


def test_advise_gives_the_least_error_and_where_it_flips(gradest, advised):
    code, out, err = gradest("advise", "gaussian-1d", "--run", advised, "--budget", "evaluations=16", "--json")
    data = json.loads(out)
    assert (code, err) == (0, "")
    best = data["best"]
    assert (best["estimator"], best["num_samples"], best["averaged"], best["batch"]) == ("cheap", 1, 16, 16)
    assert best["mse"] == pytest.approx(0.1**2 + 0.125 / 16)
    table = {(row["estimator"], row["num_samples"]): row for row in data["table"]}
    assert ("lost", 1) not in table and data["left_out"] == {"biased although declared unbiased": 1}
    assert table["reparameterization", 8]["mse"] == pytest.approx(0.24 * 8 / 16)
    for (name, k), row in table.items():
        if name != "cheap":
            assert row["mse"] == pytest.approx(ADVICE[name, k]["variance"] * k / 16)
            assert row["mse_high"] / row["mse"] == pytest.approx(1.05, rel=1e-6)
    # squared bias does not average out: 0.01 + 0.125 / n = 0.5 / n at n = 37.5
    (flip,) = data["flips"]
    assert flip["budget"] == pytest.approx(37.5, rel=1e-5) and flip["told_apart"] and not flip["below"]
    assert flip["estimator"] == "sticking-the-landing"


def test_advise_names_what_cannot_be_told_apart(gradest, advised):
    code, out, _ = gradest("advise", "gaussian-1d", "--run", advised, "--budget", "evaluations=64000", "--steps", 1000,
                           "--json")  # fmt: skip
    data = json.loads(out)
    assert code == 0 and data["budget"] == {"evaluations": 64}
    assert (
        {(data["best"]["estimator"])}
        == {"sticking-the-landing"}
        == {row["estimator"] for row in data["not_told_apart"]}
    )
    second = data["runner_up"]
    assert second["estimator"] == "cheap" and second["p"] < 0.05 and second["ratio_low"] > 1
    assert {flip["below"] for flip in data["flips"]} == {True}
    code, out, _ = gradest("advise", "gaussian-1d", "--run", advised, "--budget", "evaluations=64")
    assert "not told apart from it: sticking-the-landing" in out and "flips below 37.5 evaluations: cheap" in out


def test_bytes_are_a_limit_and_not_spent(gradest, advised):
    code, out, _ = gradest("advise", "gaussian-1d", "--run", advised, "--budget", "bytes=500", "--json")
    data = json.loads(out)
    assert code == 0 and {row["num_samples"] for row in data["table"]} == {1}
    assert data["best"]["mse"] == pytest.approx(0.135) and data["left_out"]["above 500 bytes"] == 3
    (flip,) = [flip for flip in data["flips"] if not flip["below"]]
    assert flip["budget"] == pytest.approx(800, rel=1e-5) and flip["num_samples"] == 8


def test_advise_refuses_in_one_line(gradest, advised, tmp_path):
    for words, code, part in (
        (("gaussian-1d", "--budget", "evals=3"), 2, "no budget 'evals'; did you mean 'evaluations'?"),
        (("gaussian-1d", "--budget", "seconds=-1"), 2, "--budget takes a number above 0"),
        (("gausian-1d", "--budget", "seconds=1"), 2, "did you mean 'gaussian-1d'?"),
        (("gaussian-1d", "--budget", "seconds=1", "--block", "psi"), 2, "no block 'psi'"),
        (("gaussian-1d", "--budget", "seconds=1", "--run", tmp_path), 2, "is no run folder"),
        (("gaussian-1d", "--budget", "evaluations=0.5", "--run", advised), 3, "the cheapest takes 1"),
        (("gaussian-1d", "--budget", "seconds=1", "--target", "iwae-8", "--run", advised), 3, "there is: elbo"),
        (("rainforth", "--budget", "seconds=1", "--run", advised), 3, "no finished cell of rainforth"),
    ):
        found, out, err = gradest("advise", *words)
        assert (found, out, err.count("\n")) == (code, "", 1) and part in err, words


def test_compare_and_history_refuse_in_one_line(gradest, advised, tmp_path):
    other = write_run(tmp_path / "other", {("iwae", 64): {"variance": 1.0}})
    for words, code, part in (
        (("compare", advised, tmp_path), 2, "is no run folder"),
        (("compare", advised, advised, "--fail-on", "varience"), 2, "did you mean 'variance'?"),
        (("compare", advised, advised, "--fail-on", "seconds=fast"), 2, "'seconds=fast'"),
        (("compare", advised, advised, "--fail-on", "verdict=2"), 2, "'verdict=2'"),
        (("compare", advised, other), 3, "no cell in common"),
        (("history", advised), 2, "at least two run folders, not 1"),
        (("cite", "iwea"), 2, "no estimator or problem 'iwea'; did you mean 'iwae'?"),
    ):
        found, out, err = gradest(*words)
        assert (found, out, err.count("\n")) == (code, "", 1) and part in err, words


def test_cite_prints_exactly_these(gradest):
    from benchmarks.registry import Registry
    from benchmarks.runner import bibtex

    kinds = Registry().estimators
    code, out, err = gradest("cite", "iwae", "dreg")
    wanted = sorted({key for name in ("iwae", "dreg") for key in kinds[name].citations})
    assert (code, err) == (0, "") and wanted
    assert out == "\n\n".join(bibtex()[key] for key in wanted) + "\n"
    data = json.loads(gradest("cite", "iwae", "dreg", "--json")[1])
    assert sorted(data["bibtex"]) == wanted and data["citations"]["dreg"] == list(kinds["dreg"].citations)


def test_advise_knows_the_names_of_targets(gradest, advised):
    code, out, err = gradest("advise", "gaussian-1d", "--run", advised, "--target", "ebo")
    assert (code, out) == (2, "") and err == "gradest: no target 'ebo'; did you mean 'elbo'?\n"
