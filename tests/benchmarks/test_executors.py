from __future__ import annotations

import json
import os
import shutil
import sys
import types
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import pytest

from benchmarks import cli, elsewhere, executors, plan, records, runner, verify
from benchmarks.registry import Registry
from benchmarks.schema import Cell, Manifest, Record
from benchmarks.specs import SpecError, assignments, fraction

CHANGES = {"problems": ["gaussian-1d"], "estimators": ["iwae", "dreg"], "num_samples": [2, 3], "replicates": 100}


@pytest.fixture(scope="module")
def cells():
    return plan.cells(plan.configure(None, CHANGES), Registry())[0]


@pytest.fixture(scope="module")
def local(cells, tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    assert runner.run(folder, cells, workers=2).counts == {"ok": 4}
    return folder


def asked(monkeypatch, capsys, *words):
    """Exit code, standard output and error of ``gradest run`` in this process."""
    chosen = ["-p", "gaussian-1d", "-e", "iwae", "-e", "dreg", "-K", "2,3", "-R", "100", "-j", "2"]
    monkeypatch.setattr(sys, "argv", ["gradest", "run", *chosen, *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code, *capsys.readouterr()


def test_any_executor_gives_the_same_numbers(cells, local, tmp_path):
    tally = runner.run(
        tmp_path, cells, executor="concurrent.futures:ThreadPoolExecutor", options={"max_workers": 2}, timeout=60
    )
    assert tally.counts == {"ok": 4}
    first, second = (records.read_cells(folder)[0] for folder in (local, tmp_path))
    assert first.keys() == second.keys()
    assert all(verify.differences(record, second[id]) == [] for id, record in first.items())


class Inline(Executor):
    """Runs what it is given at once, and remembers how many were in flight; ``outcome`` may put an end to it."""

    def __init__(self, outcome):
        self.outcome, self.flights, self.open = outcome, [], 0
        self._max_workers = 3

    def submit(self, function, /, job, cell, expected, preparing):
        future = Future()
        if not preparing:
            self.flights.append(cell)
        try:
            future.set_result(self.outcome(job, Cell.model_validate(cell), expected, preparing))
        except BaseException as problem:
            future.set_exception(problem)
        return future


@pytest.fixture
def inline(monkeypatch):
    """An executor whose tasks do what a function says."""

    def make(outcome):
        module = types.ModuleType("an_executor")
        module.make = lambda: Inline(outcome)
        monkeypatch.setitem(sys.modules, "an_executor", module)
        return "an_executor:make"

    return make


def raising(problem):
    def outcome(*arguments):
        raise problem

    return outcome


class KilledWorker(Exception):
    """As dask names it."""


@pytest.mark.parametrize(
    ("problem", "error", "words"),
    [
        (elsewhere.OtherVersions("a worker has torch 1.0, not 2.0"), SpecError, "torch 1.0"),
        (executors.DiskProblem("No space left"), runner.StoreError, "No space left"),
        (elsewhere.CancelledError(), runner.ExecutorLost, "CancelledError"),
        (ConnectionResetError("gone"), runner.ExecutorLost, "gone"),
        (elsewhere.BrokenExecutor("broken"), runner.ExecutorLost, "broken"),
    ],
)
def test_what_ends_an_executor_ends_the_run(cells, inline, tmp_path, problem, error, words):
    with pytest.raises(error, match=words):
        runner.run(tmp_path, cells, executor=inline(raising(problem)))
    assert records.read_cells(tmp_path) == ({}, {})


def test_what_ends_a_task_ends_its_cell(cells, inline, tmp_path):
    assert runner.run(tmp_path, cells, executor=inline(raising(KilledWorker()))).counts == {"killed": 4}
    assert runner.run(tmp_path, cells, executor=inline(raising(ValueError("no")))).counts == {"error": 4}
    assert {record.reason for record in records.read_cells(tmp_path)[0].values()} == {"no"}


def test_few_cells_are_in_flight(cells):
    """However many there are to do: the rest waits here, so that a scheduler is not buried and an interrupt is quick."""
    many = [cells[0].model_copy(update={"seed": seed}) for seed in range(100)]
    flight, most = [], []

    class Counting(executors.Engine):
        def capacity(self):
            return 5

        def prepare(self, cell):
            raise NotImplementedError

        def submit(self, cell):
            flight.append(pool.submit(lambda: None))
            most.append(sum(not each.done() for each in flight))
            return flight[-1]

        def outcome(self, cell, ended):
            return Record(id=cell.id, cell=cell, status="ok")

    with ThreadPoolExecutor(2) as pool:
        done = [record.id for record in Counting().as_completed(many)]
    assert sorted(done) == sorted(cell.id for cell in many) and max(most) <= 5


def test_workers_elsewhere_need_the_same_versions():
    mine = elsewhere.versions()
    assert mine.keys() == {"gradest", "python", "torch", "numpy"} and "+" not in mine["torch"]
    with pytest.raises(elsewhere.OtherVersions, match=rf"a worker has torch {mine['torch']}, not 1\.0: install"):
        elsewhere.remote({}, {}, mine | {"torch": "1.0"}, False)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("dusk", {}, "no executor 'dusk'; did you mean 'dask'"),
        ("local", {"x": 1}, "takes no --executor-arg, not 'x'"),
        ("no_such_module:make", {}, "ModuleNotFoundError"),
        ("concurrent.futures:NoSuchPool", {}, "AttributeError"),
        ("concurrent.futures:ThreadPoolExecutor", {"max_workers": -1}, "max_workers must be greater than 0"),
        ("collections:OrderedDict", {}, "collections:OrderedDict is no concurrent.futures.Executor"),
        ("os:getcwd", {}, "gives a str, which is no concurrent.futures.Executor"),
        ("concurrent.futures:ThreadPoolExecutor", {"workers": 1}, "got an unexpected keyword argument 'workers'"),
    ],
)
def test_what_is_no_executor_is_refused(cells, tmp_path, name, options, words):
    with pytest.raises(SpecError, match=words.replace(".", r"\.")):
        runner.run(tmp_path, cells, executor=name, options=options)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3", "", "1.0/2"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(SpecError, match="takes i/n with i from 1 to n"):
        fraction(text, "--shard")


@pytest.mark.parametrize("pairs", [["x"], ["=1"], ["a b=1"], ["x=1", "x=2"]])
def test_what_is_no_assignment_is_refused(pairs):
    with pytest.raises(SpecError, match="--executor-arg"):
        assignments(pairs, "--executor-arg")


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_share_all_cells_whatever_the_order(cells, count):
    many = [cells[0].model_copy(update={"seed": seed}) for seed in range(300)]
    parts = [runner.shard(many, number, count) for number in range(1, count + 1)]
    assert sorted(cell.id for part in parts for cell in part) == sorted(cell.id for cell in many)
    assert all(len(part) > 150 / count for part in parts)
    assert [{c.id for c in part} for part in parts] == [
        {c.id for c in runner.shard(many[::-1], number, count)} for number in range(1, count + 1)
    ]


def test_shards_are_merged_by_copying(local, monkeypatch, capsys, tmp_path):
    for number in (1, 2):
        code, out, _ = asked(monkeypatch, capsys, "--shard", f"{number}/2", "-o", tmp_path / str(number))
        assert code == 0
    sizes = [len(records.read_cells(tmp_path / each)[0]) for each in "12"]
    assert sum(sizes) == 4
    merged = tmp_path / "merged"
    for number in (1, 2):
        shutil.copytree(tmp_path / str(number), merged, dirs_exist_ok=True)
    assert records.read_cells(merged)[0].keys() == records.read_cells(local)[0].keys()
    assert len(records.read(merged / "manifest.json", Manifest).cells) == 4
    code, out, err = asked(monkeypatch, capsys, "-o", merged)
    assert code == 0 and "4 of 4 cells are done already" in err
    code, out, _ = asked(monkeypatch, capsys, "-o", merged, "--verify", "--verify-cells", "2")
    assert code == 0 and out.startswith("2 stored cells measured again, 0 differ")


def test_verify_finds_what_differs_and_changes_nothing(local, cells, monkeypatch, capsys, tmp_path):
    folder = shutil.copytree(local, tmp_path / "run")
    runner.open_run(folder, cells, command="", settings={}, bibliography={}, workers=2)
    path = sorted((folder / "cells").glob("*.json"))[0]
    record = records.read(path, Record)
    block = record.blocks[1].model_copy(update={"variance": record.blocks[1].variance * (1 + 2**-52)})
    records.write(path, record.model_copy(update={"blocks": [record.blocks[0], block, *record.blocks[2:]]}))
    moments = sorted((folder / "moments").glob("*.safetensors"))[1]
    moments.write_bytes(moments.read_bytes()[:-1] + b"\x00")
    facts = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps({**facts, "torch": "1.0"}))
    records.summary(folder)  # the index of a copied folder is made anew when it is first read
    before = {each: each.read_bytes() for each in folder.rglob("*") if each.is_file()}
    code, out, err = asked(monkeypatch, capsys, "-o", folder, "--verify")
    assert code == 1 and out.startswith("4 stored cells measured again, 2 differ")
    assert f"differs: {path.stem}" in err and "blocks.1.variance is stored as" in err
    assert "the moments of its coordinates differ" in err and "stored with another torch: 1.0, here" in err
    assert {each: each.read_bytes() for each in folder.rglob("*") if each.is_file()} == before


def test_nothing_to_verify(monkeypatch, capsys, tmp_path):
    code, _, err = asked(monkeypatch, capsys, "-o", tmp_path / "none", "--verify")
    assert code == 2 and "no run folder" in err
    assert not (tmp_path / "none").exists()


def test_usual_memory_is_a_share_but_not_too_small(monkeypatch):
    whole = executors.usual_memory(1)
    assert executors.usual_memory(2) == pytest.approx(whole / 2, rel=1e-6)
    assert executors.usual_memory(1000) == pytest.approx(whole / 3.6, rel=1e-6)
    assert runner.usable_cores() <= (os.cpu_count() or 1)
