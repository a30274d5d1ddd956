"""Cells that share draws: the same records in company as alone, and alone again where anything goes wrong."""

from __future__ import annotations

import math

import pytest

from benchmarks import companies, executors, measure, plan, records, runner, verify, worker
from benchmarks.companies import Waiting
from benchmarks.registry import Registry
from benchmarks.schema import SHARED, Cell, Record

RULES = ["iwae", "dreg", "vimco", "score-function", "sumo", "reweighted-wake-sleep"]


@pytest.fixture(autouse=True)
def _quick_clock(monkeypatch):
    real = measure.cost.seconds
    monkeypatch.setattr(measure.cost, "seconds", lambda work, device: real(work, device, budget=0.0))


def asked(**changes) -> list[Cell]:
    chosen = {"problems": ["gaussian-1d"], "estimators": RULES, "num_samples": [4], "replicates": 3000, "share": True}
    return plan.cells(plan.configure(None, chosen | changes), Registry())[0]


def test_only_rules_of_this_suite_share(tmp_path):
    cells = asked()
    shared = {cell.estimator.partition("[")[0] for cell in cells if SHARED in cell.versions}
    assert shared == set(RULES) - {"sumo"}
    assert not any(SHARED in cell.versions for cell in asked(share=False))
    assert {cell.id for cell in cells if SHARED in cell.versions}.isdisjoint(cell.id for cell in asked(share=False))
    mine = tmp_path / "mine.py"
    mine.write_text("from estimators import IWAE\n\nclass Mine(IWAE):\n    'Mine.'\n    name = 'mine'\n")
    (cell,) = plan.cells(
        plan.configure(None, {"problems": ["gaussian-1d"], "estimators": ["mine"], "num_samples": [4], "share": True}),
        Registry((str(mine),)),
    )[0]
    assert SHARED not in cell.versions


def test_companies_have_one_problem_k_seed_and_size():
    cells = asked(num_samples=[4, 8], seeds=2)
    found = companies.companies(cells)
    assert sorted(len(company) for company in found) == [1] * 4 + [5] * 4
    for company in found:
        assert len({(c.problem, c.num_samples, c.replicates, c.seed) for c in company}) == 1
    assert sorted(c.id for company in found for c in company) == sorted(c.id for c in cells)


def test_no_company_is_larger_than_allowed():
    cells = [asked()[0].model_copy(update={"estimator": f"e{i}"}) for i in range(40)]
    assert [len(company) for company in companies.companies(cells)] == [16, 16, 8]


def bits(record: Record) -> dict:
    """All that a record says but for times."""
    return record.model_dump(exclude={"seconds", "cost"})


@pytest.mark.parametrize("home", ["gaussian-1d", "rainforth[dim=3,points=2]", "sigmoid-belief-net"])
def test_in_company_as_alone_to_the_last_bit(home):
    cells = [cell for cell in asked(problems=[home]) if SHARED in cell.versions]
    assert len(cells) >= 4
    together = measure.run_together([cell.model_dump() for cell in cells])
    some = measure.run_together([cell.model_dump() for cell in reversed(cells[1:3])])
    for cell, record in zip(cells, together, strict=True):
        alone = Record.model_validate(measure.run_cell(cell.model_dump()))
        assert bits(Record.model_validate(record)) == bits(alone)
        assert record["cost"]["evaluations_per_gradient"] == alone.cost.evaluations_per_gradient
    assert {r["id"]: bits(Record.model_validate(r)) for r in some}.items() <= {
        r["id"]: bits(Record.model_validate(r)) for r in together
    }.items()


def test_sharing_changes_numbers_by_rounding_alone():
    """Mean and variance beside those of the same cell not shared: the same draws."""
    shared, plain = (
        {
            cell.estimator: Record.model_validate(measure.run_cell(cell.model_dump()))
            for cell in asked(share=share, estimators=["iwae", "dreg"])
        }
        for share in (True, False)
    )
    for name, record in shared.items():
        for mine, other in zip(record.blocks, plain[name].blocks, strict=True):
            assert math.isclose(mine.mean_norm, other.mean_norm, rel_tol=1e-10)
            assert math.isclose(mine.variance, other.variance, rel_tol=1e-10)


def test_a_run_gives_the_same_records_whoever_works(tmp_path):
    cells = asked(num_samples=[2, 4], replicates=300, estimators=["iwae", "dreg", "sumo"])
    one, two, resumed = (tmp_path / name for name in ("one", "two", "resumed"))
    assert runner.run(one, cells, workers=1).counts == {"ok": len(cells)}
    assert runner.run(two, list(reversed(cells)), workers=2).counts == {"ok": len(cells)}
    runner.run(resumed, cells[::3], workers=1)
    left, done, _ = runner.pending(resumed, cells)
    assert done == len(cells[::3]) and left
    runner.run(resumed, left, workers=2)
    first, *others = (records.read_cells(folder)[0] for folder in (one, two, resumed))
    for other in others:
        assert first.keys() == other.keys()
        assert all(verify.differences(record, other[id]) == [] for id, record in first.items())


def test_one_that_fails_in_company_costs_itself_alone(tmp_path, monkeypatch):
    """A rule that raises: the worker writes none of their records, and says why; of the others nothing is lost."""
    cells = [cell for cell in asked(replicates=300) if SHARED in cell.versions]
    real = measure.sweep.Shared.rows

    def rows(shared, estimator):
        if estimator.label() == "dreg":
            raise ArithmeticError("no")
        return real(shared, estimator)

    monkeypatch.setattr(measure.sweep.Shared, "rows", rows)
    with pytest.raises(worker.NotWell, match="ArithmeticError: no"):
        worker.work_together(str(tmp_path), [cell.model_dump() for cell in cells])
    assert records.read_cells(tmp_path) == ({}, {})
    found = measure.run_together([cell.model_dump() for cell in cells])
    assert [each["status"] for each in found].count("error") == 1 and [each["status"] for each in found].count(
        "ok"
    ) == 4


def test_the_engine_begins_them_again_one_by_one():
    """Whatever ended the company's task: a death, a deadline, an exception."""
    from concurrent.futures import Future

    cells = [cell for cell in asked() if SHARED in cell.versions]
    begun: list[int] = []

    def ended(value=None, problem=None):
        future: Future = Future()
        future.set_exception(problem) if problem else future.set_result(value)
        return future

    class Failing(executors.Engine):
        companies = staticmethod(companies.companies)

        def capacity(self):
            return 2

        def prepare(self, cell):
            raise NotImplementedError

        def submit_together(self, cells):
            begun.append(len(cells))
            return ended(problem=TimeoutError())

        def submit(self, cell):
            begun.append(1)
            return ended(cell.id)

        def outcome(self, cell, future):
            return Record(id=cell.id, cell=cell, status="ok")

    assert {record.id for record in Failing().as_completed(cells)} == {cell.id for cell in cells}
    assert begun == [5, 1, 1, 1, 1, 1]


def test_a_worker_stays_with_its_problem_and_others_take_another():
    cells = [
        Cell(problem=problem, estimator="e", num_samples=1, replicates=2, seed=seed)
        for problem in "abc"
        for seed in range(2)
    ]
    waiting = Waiting([[cell] for cell in cells])
    assert waiting.take(None, [])[0].problem == "a"
    assert waiting.take(None, ["a"])[0].problem == "b"
    assert waiting.take("a", ["b"])[0].problem == "a"
    assert waiting.take("a", ["b"])[0].problem == "c"
    waiting.put_back([[cells[0]]])
    assert len(waiting) == 3 and waiting.take("a", [])[0] is cells[0]
