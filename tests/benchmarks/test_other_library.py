"""The example of another library: measured, checked, and wrong where it says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks import state, worker
from benchmarks.cli import app
from benchmarks.measure import run_cell
from benchmarks.registry import Registry
from benchmarks.schema import Cell, Record
from estimators import Target
from estimators.replicates import flatten

FILE = str(Path(__file__).parents[2] / "examples" / "other_library.py")
REGISTRY = Registry([FILE])


@pytest.mark.parametrize(("name", "factor"), [("Theirs", 1.0), ("Theirs[include_itself=true]", 0.5)])
def test_the_right_one_has_the_exact_mean_and_the_other_a_part_of_it(name, factor):
    """|z| < 4.5 for 12 coordinates: 8e-5. Half the guide's gradient is 9 errors long: the right one cannot pass for wrong."""
    problem = REGISTRY.problem("sigmoid-belief-net[dim=2,data_dim=3,points=2,perturbation=1.5]")
    theirs = REGISTRY.estimator(name, 2).gradients(problem, problem.parameters, 4000, 3)
    exact = problem.exact(Target("elbo"))
    rows = flatten(theirs, problem.parameters)
    theta = torch.cat([leaf.reshape(-1) for leaf in exact.gradient["theta"].values()])
    phi = exact.gradient["phi"]["logits"].reshape(-1)
    truth = torch.cat([torch.tensor([exact.value]), theta, factor * phi])
    error = rows.std(0) / len(rows) ** 0.5
    assert float(((rows.mean(0) - truth) / error).abs().max()) < 4.5
    assert float((0.5 * phi).norm()) > 7 * float(error[-4:].max())


def test_it_is_a_cell_like_any_other():
    assert "Theirs" in REGISTRY.estimators
    assert "needs bernoulli" in (REGISTRY.estimator("Theirs", 2).refuses(REGISTRY.problem("gaussian-1d")) or "")
    cell = Cell(problem="sigmoid-belief-net", estimator="Theirs", num_samples=4, replicates=100, seed=0)
    record = Record.model_validate(run_cell(cell.model_dump(), (FILE,)))
    assert (record.status, record.library, record.counterpart) == ("ok", "other", "leave-one-out")
    assert {block.verdict for block in record.blocks} <= {
        "PASS",
        "INCONCLUSIVE",
    } and record.cost.seconds_per_gradient > 0


def test_what_the_import_of_a_library_draws_is_not_held_against_its_estimators(monkeypatch):
    """JAX's draws from numpy's global generator; workers load a library before they watch."""
    drawn = []
    monkeypatch.setattr(type(REGISTRY.estimator("Theirs", 2)), "load", lambda self: drawn.append(np.random.rand()))
    before = state.global_state()
    worker._inputs(Cell(problem="sigmoid-belief-net", estimator="Theirs", num_samples=2, replicates=2, seed=0), (FILE,))
    assert drawn and state.global_state() == before


@pytest.mark.long
@pytest.mark.parametrize(("name", "code"), [("Theirs", 0), ("Theirs[include_itself=true]", 1)])
def test_gradest_check(name, code):
    problem = "sigmoid-belief-net[dim=2,data_dim=3,perturbation=1.5]"
    arguments = ["check", f"{FILE}:{name}", "-K", "16", "-p", problem, "--max-draws", "10000000"]
    assert CliRunner().invoke(app, arguments).exit_code == code
