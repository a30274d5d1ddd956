"""``--pyro MODEL,GUIDE --args FILE.py:NAME`` is a short form of the problem ``pyro[...]``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.cli import app
from benchmarks.registry import Registry
from benchmarks.verbs.advising import _suited
from benchmarks.verbs.common import pyro_problem

SCHOOLS = str(Path(__file__).parents[2] / "examples" / "eight_schools.py")
ZOO = str(Path(__file__).parents[1] / "support" / "pyro_zoo.py")
PLAIN = ("--pyro", f"{ZOO}:plain,normal_guide", "--args", "points")
MINIBATCHES = ("--pyro", f"{ZOO}:minibatch_vae,minibatch_vae_guide", "--args", "pixels")
OPTIONS = (("--args", "a"), ("--plate", "data"), ("--reference", "exact"), ("--steps-before", "5"))


def told(*arguments):
    """Exit code, and what was said."""
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def test_the_short_form():
    assert pyro_problem(None, None) == []
    assert pyro_problem("m.py:model,guide", "d.py:data") == ["pyro[model=m.py:model,q=m.py:guide,args=d.py:data]"]
    assert pyro_problem("a.b:model,c.d:guide", None) == ["pyro[model=a.b:model,q=c.d:guide]"]
    assert pyro_problem("m.py:model,AutoNormal", None) == ["pyro[model=m.py:model,q=AutoNormal]"]
    assert pyro_problem("m.py:model,guide", "data", "rows", "exact", 5) == [
        "pyro[model=m.py:model,q=m.py:guide,args=m.py:data,plate=rows,truth=m.py:exact,steps=5]"
    ]
    (other,) = pyro_problem("m.py:model,guide", None, reference="truth.py:exact")
    assert other == "pyro[model=m.py:model,q=m.py:guide,truth=truth.py:exact]"


@pytest.mark.parametrize(("program", "arguments"), [("m.py:model", None), ("", None), (None, "d.py:data")])
def test_half_of_it_is_refused(program, arguments):
    with pytest.raises(typer.Exit) as out:
        pyro_problem(program, arguments)
    assert out.value.exit_code == 2


@pytest.mark.parametrize("verb", [("run",), ("check", "iwae"), ("advise",)], ids=lambda verb: verb[0])
@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option[0])
def test_what_goes_with_a_program_is_refused_without_one(verb, option):
    code, said = told(*verb, *option)
    assert code == 2 and said == f"gradest: {option[0]} {option[1]} belongs to --pyro MODEL,GUIDE\n"


def test_run_takes_it():
    code, said = told(
        "run", "--pyro", f"{SCHOOLS}:model,AutoNormal", "--args", "data", "-e", "iwae", "-K", 4, "--dry-run"
    )
    assert code == 0, said
    assert "q=AutoNormal" in said and "1 cells; nothing was run" in said


@pytest.mark.parametrize(("function", "code", "words"), [
    ("plain_exact", 0, "reparameterization: unbiased"), ("plain_off", 1, "reparameterization: BIASED"),
    ("rate_wrong_name", 2, "rate_wrong_name gives no phi.loc; it gives a, c"),
    ("own_fault", 2, "own_fault fails for elbo: ValueError: my own fault of two lines"),
    ("plain_exakt", 2, "did you mean 'plain_exact'"),
])  # fmt: skip
def test_a_stated_reference_is_what_check_holds_against(function, code, words):
    """Not the comparison with another family, which the right estimator passes whatever is stated."""
    found, said = told("check", "reparameterization", "-K", 16, *PLAIN, "--reference", function)
    assert (found, words in said) == (code, True), said
    assert "against" not in said
    if code == 2:
        assert said.count("\n") == 1


def test_weights_by_plate_are_asked_for_by_name():
    code, said = told("run", *MINIBATCHES, "--plate", "data", "-e", "iwae", "-K", 2, "--dry-run")
    assert code == 0 and ",plate=data," in said
    code, said = told("run", *MINIBATCHES, "--plate", "dta", "-e", "iwae", "-K", 2, "--dry-run")
    assert code == 2 and "guide site 'z' stands outside plate 'dta'" in said and "'data'" in said
    assert said.count("\n") == 1


def test_steps_before_measure_a_trained_program():
    registry = Registry()
    start, later = (registry.problem(pyro_problem(PLAIN[1], PLAIN[3], steps=steps)[0]) for steps in (0, 20))
    moved = [later.parameters["phi"][name] - leaf for name, leaf in start.parameters["phi"].items()]
    # Adam moves a parameter by its learning rate, 0.01, at each of the first steps that agree about the direction.
    assert 0.02 < max(float(each.abs()) for each in moved) < 0.21
    code, said = told("run", *PLAIN, "--steps-before", 20, "-e", "iwae", "-K", 2, "--dry-run")
    assert code == 0 and ",steps=20," in said
    code, said = told("run", *PLAIN, "--steps-before", -1, "-e", "iwae", "--dry-run")
    assert code == 2 and "steps must not be negative, not -1" in said and said.count("\n") == 1


def test_advice_is_about_this_suites_estimators_unless_others_are_named():
    found = _suited(Registry(), "elbo", "phi")
    assert {"reparameterization", "leave-one-out"} <= set(found)
    assert not [name for name in found if name.startswith(("pyro-", "numpyro-"))]


def test_a_module_where_the_command_is_run_and_one_beside_a_file_are_found(tmp_path):
    """As Python itself finds them for ``python -m`` and for a script; a console script looks in neither place."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, name in ((here, "mine"), (there, "yours")):
        folder.mkdir()
        (folder / f"beside_{name}.py").write_text("import torch\nX = torch.tensor([0.5, 1.5])\n")
        source = Path(ZOO).read_text().replace("import pyro\n", f"import pyro\nfrom beside_{name} import X as own\n", 1)
        (folder / f"{name}.py").write_text(source.replace("return X", "return own"))
    # In a process of its own, since it lengthens the path that modules are looked for on.
    run = "import sys; from benchmarks.cli import main; sys.path.pop(0); sys.argv[0] = 'gradest'; main()"
    words = ["--pyro", "mine:plain,normal_guide", "--args", "points", "-e", "iwae", "-K", "2", "--dry-run"]
    other = f"pyro[model={there}/yours.py:plain,q={there}/yours.py:normal_guide,args={there}/yours.py:points]"
    done = subprocess.run(
        [sys.executable, "-c", run, "run", *words, "-p", other], cwd=here, capture_output=True, text=True
    )
    assert done.returncode == 0 and "2 cells" in done.stdout, done.stderr


def test_a_star_never_means_a_program_that_nobody_named():
    found = CliRunner().invoke(app, ["run", "-p", "gaussian-1d", "-e", "iwae", "-K", "2", "--dry-run"])
    assert found.exit_code == 0
    found = CliRunner().invoke(app, ["run", "-p", "pyro", "-e", "iwae", "-K", "2", "--dry-run"])
    assert found.exit_code == 2 and "say which: model=" in found.output
