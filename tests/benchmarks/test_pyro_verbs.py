"""``--pyro MODEL,GUIDE --args FILE.py:NAME`` is a short form of the problem ``pyro[...]``."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.cli import app
from benchmarks.verbs.common import pyro_problem

SCHOOLS = str(Path(__file__).parents[2] / "examples" / "eight_schools.py")


def test_the_short_form():
    assert pyro_problem(None, None) == []
    assert pyro_problem("m.py:model,guide", "d.py:data") == ["pyro[model=m.py:model,q=m.py:guide,args=d.py:data]"]
    assert pyro_problem("a.b:model,c.d:guide", None) == ["pyro[model=a.b:model,q=c.d:guide]"]
    assert pyro_problem("m.py:model,AutoNormal", None) == ["pyro[model=m.py:model,q=AutoNormal]"]


@pytest.mark.parametrize(("program", "arguments"), [("m.py:model", None), ("", None), (None, "d.py:data")])
def test_half_of_it_is_refused(program, arguments):
    with pytest.raises(typer.Exit) as out:
        pyro_problem(program, arguments)
    assert out.value.exit_code == 2


def test_run_takes_it():
    found = CliRunner().invoke(
        app,
        [
            "run",
            "--pyro",
            f"{SCHOOLS}:model,AutoNormal",
            "--args",
            f"{SCHOOLS}:data",
            "-e",
            "iwae",
            "-K",
            "4",
            "--dry-run",
        ],
    )
    assert found.exit_code == 0, found.output
    assert "q=AutoNormal" in found.output and "1 cells; nothing was run" in found.output


def test_a_star_never_means_a_program_that_nobody_named():
    found = CliRunner().invoke(app, ["run", "-p", "gaussian-1d", "-e", "iwae", "-K", "2", "--dry-run"])
    assert found.exit_code == 0
    found = CliRunner().invoke(app, ["run", "-p", "pyro", "-e", "iwae", "-K", "2", "--dry-run"])
    assert found.exit_code == 2 and "say which: model=" in found.output
