"""The ten lines of a notebook, the fixtures of the pytest plug-in, and what `gradest new` writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import notebook
from benchmarks.cli import app
from benchmarks.registry import Registry, load
from estimators import BLOCKS, Refusal
from reports import frame

MINE = Path(__file__).with_name("mine.py")
ONE = "gaussian-1d[loc=1.6,scale=0.8,x=1.5,prior_loc=0.5]"


def test_run_keeps_its_cells_and_does_what_is_left(tmp_path):
    first = notebook.run(tmp_path, ["gaussian-1d"], ["iwae"], num_samples=[1, 2], replicates=200)
    again = notebook.run(tmp_path, ["gaussian-1d"], ["iwae"], num_samples=[1, 2, 4], replicates=200)
    assert [record.cell.num_samples for record in first + again] == [1, 2, 4]
    table = frame([tmp_path])
    assert set(table["status"]) == {"ok"} and sorted(set(table["num_samples"])) == [1, 2, 4]


def test_a_verdict_is_true_where_it_passed():
    right, wrong = (notebook.check(f"{MINE}:{name}", [ONE]) for name in ("IWAE", "ForgottenFactor"))
    assert right and right.exit == 0 and repr(right).startswith("unbiased\n")
    assert not wrong and wrong.exit == 1 and repr(wrong).startswith("BIASED\n")
    assert notebook.check(f"{MINE}:Unsuited", [ONE]).exit == 3


def test_moments_are_those_of_the_estimates():
    """Against the exact gradient (|z| < 4.5 in three coordinates) and the exact variance (within 15 %, 7 sigma)."""
    problem = Registry().problem(ONE)
    found = notebook.moments("reparameterization", problem, replicates=20_000)
    truth = problem.exact(Registry().estimator("reparameterization", 2).targets["phi"]).gradient
    for block in BLOCKS:
        for name, leaf in truth[block].items():
            z = (found.mean[block][name] - leaf) / found.standard_error(block, name)
            assert found.mean[block][name].shape == leaf.shape and float(z.abs().max()) < 4.5
    exact = problem.exact_variance("reparameterization", 2, "phi")
    assert found.total_variance("phi") == pytest.approx(exact, rel=0.15)
    again = notebook.moments("reparameterization", ONE, replicates=20_000)
    assert torch.equal(found.mean["phi"]["loc"], again.mean["phi"]["loc"])
    with pytest.raises(Refusal, match="bernoulli"):
        notebook.moments(load(str(MINE)).Unsuited(num_samples=2), problem)


def test_the_fixtures_of_the_plug_in(assert_unbiased, gradient_moments):
    assert assert_unbiased("dreg", [ONE]).exit == 0
    with pytest.raises(AssertionError, match="BIASED"):
        assert_unbiased(f"{MINE}:DividedByK", [ONE])
    with pytest.raises(AssertionError, match="no verdict"):
        assert_unbiased("sumo", [ONE])
    with pytest.raises(AssertionError, match="no problem knows"):
        assert_unbiased("iwae", ["gaussian-cost"], num_samples=3)
    assert gradient_moments("dreg", ONE, replicates=100).replicates == 100


def test_the_plug_in_imports_no_torch():
    code = "import sys, benchmarks.pytest_plugin; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("kind", ["estimator", "problem"])
def test_what_new_writes_passes_its_own_tests_and_checks(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    name = f"my-{kind}"
    done = CliRunner().invoke(app, ["new", kind, name])
    folder = tmp_path / f"gradest-{name}"
    assert done.exit_code == 0 and len(list(folder.iterdir())) == 4
    assert all("{{" not in path.read_text(encoding="utf-8") for path in folder.iterdir())
    code = (folder / f"my_{kind}.py").read_text(encoding="utf-8")
    assert len([line for line in code.splitlines() if line.strip()]) <= (30 if kind == "estimator" else 50)
    monkeypatch.chdir(folder)
    told = done.output.splitlines()[-1].partition("gradest ")[2].split()  # what it says to do next
    again = CliRunner().invoke(app, [*told, *(["-p", ONE] if kind == "estimator" else []), "--junit", "j.xml"])
    assert again.exit_code == 0 and again.output.endswith("unbiased\n")
    assert ElementTree.parse("j.xml").getroot().get("failures") == "0"
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_new_refuses_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("")
    clone = Path(notebook.__file__).parents[1]
    for words, part in (
        (["estimater", "x"], "did you mean 'estimator'?"),
        (["estimator", "My Estimator"], "not 'My Estimator'"),
        (["estimator", "class"], "class is a word of Python's own"),
        (["estimator", "x", "--out", "full"], "full is there already"),
        (["estimator", "x", "--out", str(clone / "x")], "inside the clone"),
    ):
        done = CliRunner().invoke(app, ["new", *words])
        assert done.exit_code == 2 and part in done.output and done.output.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "kept"]


def test_junit_of_a_bias_and_of_no_verdict(tmp_path):
    out = tmp_path / "deep" / "j.xml"
    for name, code, kind in (("DividedByK", 1, "failure"), ("Unsuited", 3, "skipped")):
        assert (
            CliRunner().invoke(app, ["check", f"{MINE}:{name}", "-K", "2", "-p", ONE, "--junit", str(out)]).exit_code
            == code
        )
        suite = ElementTree.parse(out).getroot()
        assert suite.get("tests") == "1" and suite.find(f".//testcase/{kind}").get("message")
        assert suite.find(".//testcase").get("name").startswith("gaussian-1d[")
