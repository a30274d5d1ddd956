"""Compiled gradients: the same numbers, one compilation for all batches, and an eager way out that is told of."""

from __future__ import annotations

import pytest
import torch

import estimators
from benchmarks import compiling, measure, plan
from benchmarks.compiling import CompiledRows, compilable
from benchmarks.problems import Rainforth
from benchmarks.registry import Registry
from benchmarks.schema import Cell
from estimators import replicates

CELL = {"problem": "rainforth[dim=2,points=1]", "estimator": "dreg", "num_samples": 3, "replicates": 30, "seed": 0}


def traced(backend: str = "aot_eager"):
    """Everything of the compiler but the code that a C++ toolchain is needed for; and how often it was asked."""
    asked = []

    def counting(graph, inputs):
        asked.append(1)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    return counting, asked


@pytest.mark.parametrize("name", ["iwae", "vimco", "bonnet-price", "score-function"])
def test_compiled_rows_are_the_eager_ones_for_every_number_of_them(name):
    problem, backend = Rainforth(dim=2, points=2), traced()
    estimator = estimators.get(name, num_samples=4)
    eager = replicates.vectorised(estimator, problem, problem.parameters)
    compiled = CompiledRows(eager, 8, backend=backend[0])
    for count in (8, 3, 8, 1):
        stream = [torch.Generator().manual_seed(count) for _ in range(2)]
        found = replicates.stacked(estimator, problem, problem.parameters, count, stream[0], compiled)
        expected = replicates.stacked(estimator, problem, problem.parameters, count, stream[1])
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    assert compiled.problem is None and compiled.seconds > 0
    assert len(backend[1]) == 1


def test_what_cannot_be_compiled_is_done_eagerly_and_says_so():
    def eager(noise):
        return noise + 1 if float(noise[0, 0]) > -1 else noise  # a branch on a number: the compiler must give up

    compiled = CompiledRows(eager, 4, backend=traced()[0])
    noise = torch.arange(6.0).reshape(3, 2)
    for _ in range(2):
        assert torch.equal(compiled(noise), eager(noise))
    assert compiled.problem and "\n" not in compiled.problem and len(compiled.problem) <= compiling.LENGTH


def test_an_error_of_the_estimator_itself_is_not_hidden():
    def eager(noise):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        CompiledRows(eager, 4, backend=traced()[0])(torch.ones(2, 2))


def test_more_rows_than_were_compiled_for_are_eager():
    compiled = CompiledRows(lambda noise: noise + 1, 2, backend=traced()[0])
    assert torch.equal(compiled(torch.ones(5, 1)), torch.full((5, 1), 2.0))
    assert compiled.seconds is None


def test_cells_that_cannot_gain_keep_their_eager_identity():
    suite = {"problems": ["rainforth[dim=2,points=1]"], "estimators": ["iwae", "sumo", "pyro-renyi-elbo"]}
    registry = Registry()
    cells, _ = plan.cells(plan.configure(None, suite | {"num_samples": [1], "compile": True}), registry)
    eager, _ = plan.cells(plan.configure(None, suite | {"num_samples": [1]}), registry)
    by_name = {cell.estimator.split("[")[0]: cell.compiled for cell in cells}
    assert by_name == {"iwae": True, "sumo": False, "pyro-renyi-elbo": False}
    assert len({cell.id for cell in cells} & {cell.id for cell in eager}) == 2
    assert not compilable(estimators.get("sumo"))


def test_where_nothing_compiles_the_plan_says_so_and_is_eager(monkeypatch):
    config = plan.configure(None, {"problems": ["gaussian-1d"], "compile": True})
    monkeypatch.setattr(compiling, "obstacle", lambda device: "no compiler")
    changed, lines = plan.as_compilable(config)
    assert not changed.suite[0].compile
    assert lines == ["not compiled, measured eagerly on cpu: no compiler"]
    monkeypatch.setattr(compiling, "obstacle", lambda device: None)
    assert plan.as_compilable(config) == (config, [])
    monkeypatch.setattr(compiling, "obstacle", lambda device: pytest.fail("nobody asked for it"))
    assert plan.as_compilable(plan.configure(None, {"problems": ["gaussian-1d"]}))[1] == []


def test_a_missing_compiler_is_found_out(monkeypatch):
    def broken(eager, size):
        return CompiledRows(eager, size, backend=lambda graph, inputs: 1 / 0)

    monkeypatch.setattr(compiling, "CompiledRows", broken)
    assert "division by zero" in compiling.obstacle("cpu")


def test_a_compiled_cell_says_what_became_of_it(monkeypatch):
    def how(backend):
        monkeypatch.setattr(measure, "CompiledRows", lambda eager, size: CompiledRows(eager, size, backend=backend))
        cell = Cell.model_validate(CELL | {"compiled": True})
        return measure.run_cell(cell.model_dump())

    eager, good = measure.run_cell(CELL), how(traced()[0])
    bad = how(lambda graph, inputs: 1 / 0)
    assert eager["status"] == good["status"] == bad["status"] == "ok"
    assert eager["cost"]["compile_seconds"] is bad["cost"]["compile_seconds"] is None
    assert good["cost"]["compile_seconds"] > 0 and good["reason"] == ""
    assert "not compiled" in bad["reason"] and "division by zero" in bad["reason"]
    assert len({eager["id"], good["id"]}) == 2 and good["id"] == bad["id"]
    for block, theirs in zip(good["blocks"], eager["blocks"], strict=True):
        assert block["variance"] == pytest.approx(theirs["variance"], rel=1e-9)


@pytest.mark.long
def test_the_real_compiler_gives_the_eager_numbers_or_says_why_not():
    problem, estimator = Rainforth(dim=20, points=1), estimators.get("dreg", num_samples=64)
    compiled = measure.compiled_rows(estimator, problem)
    streams = [torch.Generator().manual_seed(0) for _ in range(2)]
    found = replicates.stacked(estimator, problem, problem.parameters, 50, streams[0], compiled)
    expected = replicates.stacked(estimator, problem, problem.parameters, 50, streams[1])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert (compiled.problem is None) == (compiling.obstacle("cpu") is None)


def test_two_compiled_at_once_keep_to_their_own():
    """Nothing is guarded, so that each must have a program of its own, whichever was made or called last."""
    problem = Rainforth(dim=2, points=1)
    noise = torch.randn(4, 3, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eager = {
        name: replicates.vectorised(estimators.get(name, num_samples=3), problem, problem.parameters)
        for name in ("iwae", "dreg")
    }
    compiled = {name: CompiledRows(rows, 4, backend=traced()[0]) for name, rows in eager.items()}
    for name in ("iwae", "dreg", "iwae", "dreg"):
        torch.testing.assert_close(compiled[name](noise), eager[name](noise), rtol=1e-12, atol=1e-13)
        assert compiled[name].problem is None
    assert not torch.allclose(eager["iwae"](noise), eager["dreg"](noise))
