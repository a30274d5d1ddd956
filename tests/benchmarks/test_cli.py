from __future__ import annotations

import csv
import importlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import records
from benchmarks.registry import Registry
from benchmarks.runner import bibliography, open_run
from benchmarks.schema import Record
from benchmarks.specs import parse

COLUMNS = """
problem estimator num_samples seed block target unbiased replicates mean_norm reference_norm bias_norm bias_z verdict
detectable_bias variance snr mse skewness kurtosis tail_index variance_exists cosine seconds_per_gradient
gradients_per_second evaluations_per_gradient flops_per_gradient peak_bytes work_normalised_variance device dtype compiled matmul_precision
status
"""
"""Of an export, at least."""


@pytest.fixture(scope="session")
def mine():
    return Path(__file__).with_name("mine.py")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A small run: one cell measured in this process, one that failed, one still to be done."""
    from benchmarks import plan
    from benchmarks.measure import run_cell

    folder = tmp_path_factory.mktemp("cli") / "run"
    changes = {"problems": ["gaussian-1d"], "estimators": ["iwae"], "num_samples": [1, 2, 4], "replicates": 1000}
    cells, _ = plan.cells(plan.configure(None, changes), Registry())
    books = bibliography(cells, Registry())
    open_run(folder, cells, command="gradest run", settings={}, bibliography=books, workers=1)
    kept = Record.model_validate(run_cell(cells[2].model_dump()))
    failed = Record(id=cells[0].id, cell=cells[0], status="timeout", reason="<b>too long</b>")
    for record in (kept, failed):
        records.write(folder / "cells" / f"{record.id}.json", record)
    return folder


def shell(*arguments, code="from benchmarks.cli import main; main()"):
    done = subprocess.run([sys.executable, "-c", f"import sys; {code}", *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_help_and_version_need_no_torch():
    code = """
import contextlib, io
from benchmarks import cli
verbs = ("list run status report export compare history advise check reference new cite").split()
for words in (["--help"], *([verb, "--help"] for verb in verbs), ["--version"], []):
    sys.argv = ["gradest", *words]
    with contextlib.suppress(SystemExit):
        cli.main()
sys.exit(bool({'torch', 'numpy', 'pandas', 'reports'} & set(sys.modules)))
"""
    done, out, err = shell(code=code)
    assert (done, err) == (0, "")
    assert "gradest 0." in out and out.count("Usage: gradest") == 14
    for verb in ("list", "run", "status", "report", "export", "compare", "advise", "check", "reference", "new", "cite"):
        assert f"  {verb} " in out


def test_list_as_data_and_as_lines(gradest, mine):
    code, out, err = gradest("list", "--json", "--plugin", mine)
    rows = {row["name"]: row for row in json.loads(out)} if not (code or err) else {}
    assert set(rows) >= set(Registry().estimators) and "DReG" in rows
    for row in rows.values():
        assert row.keys() >= {"name", "targets", "unbiased", "needs", "summary"}
        assert row["targets"].keys() == row["unbiased"].keys() == {"theta", "phi"}
    assert rows["iwae-stl"]["unbiased"] == {"theta": True, "phi": False}
    assert rows["reweighted-wake-sleep"]["targets"] == {"theta": "iwae", "phi": "forward_kl"}
    assert "twice_differentiable" in rows["bonnet-price"]["needs"]
    lines = gradest("list")[1].splitlines()
    assert [line.split()[0] for line in lines] == [name for name in rows if name in Registry().estimators]


def test_list_problems(gradest):
    code, out, _ = gradest("list", "problems", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0 and set(rows) == set(Registry().problems)
    assert rows["gaussian-1d"]["exact_targets"][:4] == ["elbo", "iwae", "log_marginal", "forward_kl"]
    assert gradest("list", "problems")[1].startswith("gaussian-1d ")


NARROW = "gaussian-1d[loc=1.6,scale=0.3,x=1.5,prior_loc=0.5]"
ONE = ("-p", "gaussian-1d[loc=1.6,scale=0.8,x=1.5,prior_loc=0.5]")
VERDICTS = [
    ("IWAE", (*ONE, "-K", 4), 0, "unbiased"),
    ("DReG", (*ONE, "-K", 5), 0, "unbiased"),
    ("Elbo", ONE, 0, "unbiased"),
    ("LeaveOneOut", (*ONE, "-K", 3), 0, "unbiased"),
    ("ThetaAlone", ONE, 0, "unbiased"),
    ("rule", (*ONE, "--target", "iwae"), 0, "unbiased"),
    ("DRegWithoutTheSquare", ONE, 1, "summed over all noise it is off by"),
    ("ThetaSquared", ONE, 1, "theta.prior_loc[0]"),
    ("ForgottenFactor", ONE, 1, "BIASED"),
    ("TenthTooMuch", ONE, 1, "bias +0.0"),
    ("DescendsPhi", ONE, 1, "off by 200.00% of the gradient"),
    ("ElboInName", ONE, 1, "BIASED"),
    ("ElboInName", (*ONE, "-K", 1), 0, "unbiased"),
    ("WrongValue", ONE, 1, "value: bias +0.5"),
    ("DividedByK", ONE, 1, "off by 50.00% of the gradient"),
    ("Elbo", (*ONE, "--target", "iwae"), 1, "BIASED"),
    ("rule", (*ONE, "--target", "elbo"), 1, "BIASED"),
    ("NotANumber", ONE, 1, "NONFINITE"),
    ("RawWeights", ("-p", NARROW), 3, "HEAVY_TAIL"),
    ("Undecided", (*ONE, "--max-draws", 8192), 3, "INCONCLUSIVE"),
    ("Unsuited", ONE, 3, "Unsuited needs bernoulli"),
    ("IWAE", ("-p", "gaussian-cost", "-K", 3), 3, "no problem here knows the exact gradient"),
    ("Fails", ONE, 2, "Fails failed on gaussian-1d[loc=1.6,scale=0.8,x=1.5,prior_loc=0.5]: RuntimeError: first"),
    ("Misshapen", ONE, 2, "Misshapen failed on"),
    ("short", (*ONE, "--target", "iwae"), 2, "short failed on"),
    ("rule", ONE, 2, "say by --target"),
    ("Nothing", ONE, 2, "has no 'Nothing'"),
]


@pytest.mark.parametrize(("name", "options", "expected", "part"), VERDICTS)
def test_check_finds_out(gradest, mine, name, options, expected, part):
    code, out, err = gradest("check", f"{mine}:{name}", *options)
    assert code == expected, out + err
    assert part in (err if expected == 2 else out)
    if expected == 2:
        assert out == "" and err.startswith("gradest: ") and err.count("\n") == 1
    else:
        word = {0: "unbiased", 1: "BIASED", 3: "no verdict"}[code]
        assert err == "" and out.endswith(f"{name}: {word}\n")


def test_check_says_what_a_class_has_forgotten(gradest, tmp_path):
    path = tmp_path / "forgetful.py"
    path.write_text("from estimators import Estimator\n\nclass Mine(Estimator):\n    def weights(self, log_w): ...\n")
    line = "gradest: Mine does not define targets: what does each block estimate the gradient of?\n"
    assert gradest("check", f"{path}:Mine") == (2, "", line)
    for words in (("list",), ("run", "-p", "gaussian-1d", "-e", "Mine")):
        code, out, err = gradest(*words, "--plugin", path)
        assert (code, out, err.count("\n")) == (2, "", 1) and "Can't instantiate abstract class Mine" in err


def test_check_as_data(gradest, mine):
    code, out, _ = gradest("check", f"{mine}:DividedByK", *ONE, "-K", 2, "--json")
    answer = json.loads(out)
    (finding,) = answer["findings"]
    assert code == answer["exit"] == 1 and finding["outcome"] == "BIASED" and finding["direction"].startswith("phi")
    assert finding["exact"] == pytest.approx(0.5) and finding["bias"] and finding["standard_error"] == 0
    assert gradest("check", f"{mine}:DividedByK", *ONE, "-K", 2, "--json")[1] == out  # the same draws, the same finding
    code, out, _ = gradest("check", f"{mine}:RawWeights", "-p", NARROW, "--json")
    assert code == 3 and json.loads(out)["findings"][0]["bias"] is None


def test_check_of_the_suites_own(gradest):
    code, out, err = gradest("check", "sticking-the-landing")
    assert (code, err) == (0, "") and out.count("PASS") == 6 and out.endswith("sticking-the-landing: unbiased\n")
    assert [out.count(f", K = {K}\n") for K in (2, 3)] == [7, 3]
    assert gradest("check", "sumo", *ONE)[0] == 3


def test_status(gradest, run_folder):
    code, out, err = gradest("status", run_folder, "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "") and facts["seconds_spent"] > 0 and facts["seconds_left"] > 0
    del facts["seconds_spent"], facts["seconds_left"]
    assert facts == {
        "ok": 1, "refused": 0, "error": 0, "timeout": 1, "killed": 0, "nonfinite": 0, "left": 1, "unreadable": 0
    }  # fmt: skip
    code, out, _ = gradest("status", run_folder)
    assert code == 0 and out.startswith("ok 1 ") and "s of work left" in out


def test_export(gradest, run_folder, tmp_path):
    code, out, err = gradest("export", run_folder)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (code, err) == (0, "") and set(COLUMNS.split()) <= set(rows[0])
    assert [row["block"] for row in rows if row["status"] == "ok"] == ["phi", "theta", "value"]
    assert [row["status"] for row in rows if not row["block"]] == ["timeout"]
    phi = next(row for row in rows if row["block"] == "phi")
    assert float(phi["variance"]) > 0 and phi["target"] == "iwae" and phi["verdict"] in ("PASS", "INCONCLUSIVE")
    code, out, _ = gradest("export", run_folder, "--format", "json", "--out", tmp_path / "new" / "x.json")
    assert (code, out) == (0, "") and len(json.loads((tmp_path / "new" / "x.json").read_text())) == len(rows)


def test_report(gradest, run_folder, tmp_path):
    code, out, err = gradest("report", run_folder, "--out", tmp_path / "deep" / "x.html")
    assert (code, out.strip(), err) == (0, str(tmp_path / "deep" / "x.html"), "")
    html = (tmp_path / "deep" / "x.html").read_text()
    assert "iwae" in html and "<b>too long</b>" not in html and "&lt;b&gt;too long" in html


def test_dry_run_writes_nothing(gradest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = gradest("run", "-p", "gaussian-1d", "-e", "leave-one-out", "-e", "iwae", "-K", "1,2", "--dry-run")
    assert (code, err) == (0, "") and out.endswith("3 cells; nothing was run\n")
    assert list(tmp_path.iterdir()) == []


def test_bad_input_in_a_process_of_its_own(tmp_path):
    code, out, err = shell("run", "-p", "nonsense", "--out", str(tmp_path / "x"))
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("gradest: no problem 'nonsense'")
    assert not (tmp_path / "x").exists()


NEW = ("new", "estimator", "my-own")
OUT = [
    ("run", "-p", "gaussian-1d", "-e", "iwae"),
    ("export", "RUN"),
    ("report", "RUN"),
    ("history", "RUN", "RUN"),
    ("train",),
    ("study",),
    NEW,
]


@pytest.mark.parametrize("words", [*OUT, ("gradients",)], ids=lambda words: words[0])
def test_what_cannot_be_written_to_is_told(gradest, run_folder, tmp_path, words):
    (tmp_path / "file").write_text("kept")
    given = [run_folder if word == "RUN" else word for word in words]
    code, out, err = gradest(*given, "--out", tmp_path / "file" / "x")
    assert (code, out, err.count("\n")) == (2, "", 1) and "file is no folder" in err
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("words", "option"),
    [
        *((("report", "RUN"), "--out"), (("export", "RUN"), "--out"), (("history", "RUN", "RUN"), "--out")),
        *((("compare", "RUN", "RUN"), "--out"), (("compare", "RUN", "RUN"), "--junit"), (("check", "iwae"), "--junit")),
    ],
)
def test_a_place_that_takes_no_file_is_told_before_anything_is_computed(
    gradest, run_folder, tmp_path, monkeypatch, words, option
):
    """A folder; a file in the place of a folder; a folder that may only be read; a name that no file system has."""

    def computed(*arguments, **options):
        raise AssertionError("it began")

    for what in ("reports.tables:load", "reports.tables:frame", "reports.render:render", "benchmarks.check:check"):
        module, name = what.split(":")
        monkeypatch.setattr(importlib.import_module(module), name, computed)
    (tmp_path / "file").touch()
    (tmp_path / "shut").mkdir()
    access = os.access  # the superuser may write anywhere, so the answer of the system is made up
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "shut" and access(path, mode))
    given = [run_folder if word == "RUN" else word for word in words]
    for place, why in (
        *(
            ("", "is a folder"),
            ("file/x/y", "is no folder"),
            ("shut/x/y", "nothing may be written"),
            ("x" * 300, "long"),
        ),
    ):
        code, out, err = gradest(*given, option, tmp_path / place)
        assert (code, out, err.count("\n")) == (2, "", 1) and why in err and str(tmp_path) in err, err
    with pytest.raises(AssertionError, match="it began"):
        gradest(*given, option, tmp_path / "new" / "x")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "shut"]


def test_every_choice_of_the_default_suite_is_listed_by_the_dry_run(gradest, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = gradest("run", "-p", "gaussian-1d", "--dry-run", "-R", "50", "--seeds", "2")
    assert (code, err) == (0, "")
    named = {parse(line.split("  ")[2])[0] for line in out.splitlines()[:-1]}
    assert named == set(Registry().estimators)
