"""What README shows, run as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.cli import app

ROOT = Path(__file__).resolve().parent.parent
CHECKS = re.findall(r"(?m)^gradest (check examples/\S+.*)$", (ROOT / "README.md").read_text(encoding="utf-8"))


def gradest(arguments: str) -> int:
    return CliRunner().invoke(app, shlex.split(arguments)).exit_code


@pytest.fixture(autouse=True)
def _in_the_clone(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_three_checks_of_the_readme():
    assert [gradest(each) for each in CHECKS] == [0, 0, 1]


def test_my_estimator_in_a_report(tmp_path):
    """The README's last two commands, at fewer replicates, into another folder."""
    out = tmp_path / "mine"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    run = re.search(r"(?m)^gradest (run --plugin .*) --out results/mine$", text)
    assert run is not None and "gradest report results/mine" in text
    assert gradest(f"{run[1]} --replicates 200 --out {out}") == 0
    assert gradest(f"report {out}") == 0
    assert "Mine" in (out / "report.html").read_text(encoding="utf-8")
