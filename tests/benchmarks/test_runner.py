from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest

from benchmarks import cli, executors, plan, records, runner
from benchmarks.executors import Job
from benchmarks.local import DiskProblem
from benchmarks.registry import Registry
from benchmarks.runner import StoreError
from benchmarks.schema import Manifest, Record

FAULTY = """
import os, time
import torch
from estimators import Estimator, Target, Weights

class Right(Estimator):
    needs = frozenset({"reparameterizable"})

    @property
    def targets(self):
        return {"theta": Target("elbo"), "phi": Target("elbo")}

    def weights(self, log_w):
        print("an estimator that talks")
        return Weights(1 / self.num_samples, None, 1 / self.num_samples)

class Raises(Right):
    def weights(self, log_w):
        raise RuntimeError("<b>first line</b>\\nsecond line")

class Misshapen(Right):
    def weights(self, log_w):
        return Weights(torch.ones(7, dtype=log_w.dtype), None, 1.0)

class NotANumber(Right):
    def weights(self, log_w):
        return Weights(log_w.masked_fill(log_w > log_w.mean(0), torch.nan), None, 1.0)

class Hangs(Right):
    def weights(self, log_w):
        time.sleep(600)

class Dies(Right):
    def weights(self, log_w):
        os._exit(7)

class Exits(Right):
    def weights(self, log_w):
        raise SystemExit(0)

class Refuses(Right):
    needs = frozenset({"bernoulli"})
"""
# First one that hangs: those beside it wait for it before they take their times, and must not pay for that.
EXPECTED = {
    "Hangs": "timeout",
    "Right": "ok",
    "Raises": "error",
    "Misshapen": "error",
    "NotANumber": "nonfinite",
    "Dies": "killed",
    "Exits": "error",
    "Refuses": "refused",
}


def open_run(folder, cells, **asked):
    runner.open_run(folder, cells, **{"command": "", "settings": {}, "bibliography": {}, "workers": 2, **asked})


def raising(problem):
    """A function that does nothing but raise."""

    def function(*arguments, **options):
        raise problem

    return function


def plain(record):
    """What must not depend on where, when and beside what a cell was measured."""
    assert record.cost.seconds_per_gradient > 0
    return record.model_copy(update={"seconds": 0.0, "cost": record.cost.evaluations_per_gradient})


@pytest.fixture(scope="module")
def cells():
    changes = {"problems": ["gaussian-1d"], "estimators": ["dreg", "sumo"], "num_samples": [1, 4], "replicates": 600}
    found, left_out = plan.cells(plan.configure(None, changes), Registry())
    assert len(found) == 4 and not left_out
    return found


@pytest.fixture(scope="module")
def measured(cells, tmp_path_factory):
    """A run of four cells by two workers: its folder, its records, and what was told meanwhile."""
    folder, told = tmp_path_factory.mktemp("measured"), []
    open_run(folder, cells, settings={"x": 1}, bibliography=runner.bibliography(cells, Registry()))
    tally = runner.run(folder, cells, workers=2, told=told.append)
    return folder, tally, told


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """All that can be wrong with an estimator, in one run from the command line."""
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "faulty.py").write_text(FAULTY)
    return folder, *shell(folder, *EXPECTED, timeout=10)


def shell(folder, *names, timeout=60, options=()):
    """Run estimators of the faulty file in a process of its own."""
    chosen = [word for name in names for word in ("-e", name)]
    command = [
        *["gradest", "run", "-p", "gaussian-1d", *chosen, "-K", "2", "-R", "400", "-j", "2", "--timeout", str(timeout)],
        *["--plugin", str(folder / "faulty.py"), "--out", str(folder / "run"), *options],
    ]
    code = "import sys; from benchmarks.cli import main; sys.argv = sys.argv[1:]; main()"
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    stored, unreadable = records.read_cells(folder / "run")
    assert not unreadable
    return done, {record.cell.estimator: record for record in stored.values()}


def test_every_cell_leaves_a_record(measured, cells):
    folder, tally, told = measured
    stored, unreadable = records.read_cells(folder)
    assert not unreadable and stored.keys() == {cell.id for cell in cells}
    assert {record.status for record in stored.values()} == {"ok"}
    assert tally.counts == {"ok": 4} and not tally.failed
    assert {step.record.id: step.record for step in told} == stored
    assert [(step.done, step.total) for step in told] == [(i, 4) for i in (1, 2, 3, 4)]
    for record in stored.values():
        assert [block.block for block in record.blocks] == ["value", "theta", "phi"]
        assert {block.replicates for block in record.blocks} == {600}
        assert record.cost.gradients_per_second > 0 and record.cost.evaluations_per_gradient >= 1


def test_the_run_folder_says_what_was_asked_for_and_where(measured, cells):
    folder, _, _ = measured
    manifest = records.read(folder / "manifest.json", Manifest)
    assert manifest.cells == [cell.id for cell in cells] and manifest.settings == {"x": 1}
    assert set(manifest.bibliography) >= {"tucker2019", "luo2020"}
    facts = json.loads((folder / "environment.json").read_text())
    assert facts["torch"] and os.uname().nodename not in facts.values()
    assert {each.name for each in folder.iterdir()} == {
        "manifest.json",
        "environment.json",
        "cells",
        "moments",
        ".index",
    }


def test_going_on_runs_nothing_again(measured, cells):
    folder, _, _ = measured
    before = {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
    left, done, set_aside = runner.pending(folder, cells)
    assert (left, done, set_aside) == ([], 4, [])
    assert runner.run(folder, left).counts.total() == 0
    assert {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()} == before


def test_joining_a_run_keeps_its_cells_in_the_manifest(measured, cells, tmp_path):
    folder = shutil.copytree(measured[0], tmp_path / "run")
    other = cells[0].model_copy(update={"seed": 5})
    open_run(folder, [cells[2], other])
    manifest = records.read(folder / "manifest.json", Manifest)
    assert manifest.cells == [*(cell.id for cell in cells), other.id]
    (folder / "manifest.json").write_text("{")  # damaged: the records themselves say what they are
    open_run(folder, cells[:1])
    assert records.read(folder / "manifest.json", Manifest).cells == [cells[0].id]


def test_damaged_records_are_set_aside_and_measured_again_to_the_same_numbers(measured, cells, tmp_path):
    folder = shutil.copytree(measured[0], tmp_path / "run")
    damaged = [folder / "cells" / f"{cell.id}.json" for cell in cells[1:]]
    damaged[0].write_bytes(damaged[0].read_bytes()[:-20])
    damaged[1].write_text(damaged[1].read_text().replace('"seed": 0', '"seed": 1'))
    damaged[2].unlink()
    left, done, set_aside = runner.pending(folder, cells)
    assert left == cells[1:] and done == 1
    assert len(set_aside) == 2 and damaged[0].name in "".join(set_aside) and "checksum" in "".join(set_aside)
    names = {path.name for path in (folder / "cells").iterdir()}
    assert names == {f"{cells[0].id}.json", f"{damaged[0].name}.set-aside", f"{damaged[1].name}.set-aside"}
    # One worker in place of two, and the other way round.
    assert runner.run(folder, left[::-1], workers=1).counts == {"ok": 3}
    first, again = (records.read_cells(each)[0] for each in (measured[0], folder))
    assert {id: plain(record) for id, record in again.items()} == {id: plain(first[id]) for id in again}


def test_every_fault_ends_in_its_status_and_costs_itself_alone(faulty):
    _, done, stored = faulty
    assert {name: record.status for name, record in stored.items()} == EXPECTED
    assert set(EXPECTED.values()) == set(Record.model_fields["status"].annotation.__args__)
    assert done.returncode == 1 and "Traceback" not in done.stderr


def test_every_fault_comes_with_its_reason(faulty):
    _, done, stored = faulty
    assert stored["Raises"].reason == "RuntimeError: <b>first line</b>"
    assert "second line" in stored["Raises"].traceback and "in weights" in stored["Raises"].traceback
    assert stored["Misshapen"].reason.startswith("ValueError: weights: path has shape (7,); it must be (2, 1), ")
    assert stored["NotANumber"].reason == "400 of 400 replicates are not finite"
    assert {block.nonfinite for block in stored["NotANumber"].blocks} == {400}
    assert stored["Hangs"].reason == "did not end within 10 seconds"
    assert stored["Dies"].reason == "its process died (exit code 7)"
    assert stored["Exits"].reason.startswith("SystemExit")
    assert "Refuses needs bernoulli" in stored["Refuses"].reason
    for name, status in EXPECTED.items():
        told = [line for line in done.stderr.splitlines() if line.startswith(f"{status}: {name} on gaussian-1d[")]
        assert len(told) == (status not in ("ok", "refused"))


def test_standard_output_belongs_to_the_command(faulty):
    folder, done, _ = faulty
    assert done.stdout == f"2 cells measured, 6 failed: {folder / 'run'}\n"


def test_a_failure_is_no_result_and_may_be_allowed(faulty, tmp_path):
    folder, _, _ = faulty
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    refused = {path: path.stat().st_mtime_ns for path in (other / "run" / "cells").iterdir()}
    done, stored = shell(other, "Raises", "Refuses", "Right", options=["--allow-failures"])
    assert done.returncode == 0 and "2 of 3 cells are done already" in done.stderr
    assert stored["Raises"].status == "error"
    changed = [path.stem for path, time in refused.items() if path.stat().st_mtime_ns != time]
    assert changed == [stored["Raises"].id]


def test_a_folder_that_cannot_be_written_to(cells, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StoreError):
        open_run(file, cells)
    with pytest.raises(StoreError):
        open_run(file / "below", cells)
    monkeypatch.setattr(runner, "LEAST_FREE_BYTES", 2**80)
    with pytest.raises(StoreError, match="disk are free"):
        open_run(tmp_path / "run", cells)


def test_a_full_disk_stops_the_run(cells, tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StoreError, match="No space left"):  # what a worker met when it wrote its record
        executors.failed(Job(str(tmp_path)), cells[0], DiskProblem(str(full)))
    with pytest.raises(StoreError, match="No space left"), runner.writing():
        raise full
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "bad.json").write_text("{")
    monkeypatch.setattr(runner.os, "replace", raising(full))
    with pytest.raises(StoreError, match="No space left"):
        runner.pending(tmp_path, cells)
    # Another run on this folder has set it aside already.
    monkeypatch.setattr(runner.os, "replace", raising(FileNotFoundError()))
    assert runner.pending(tmp_path, cells)[0] == cells


def test_an_interrupted_run_says_how_to_go_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(runner, "run", raising(KeyboardInterrupt()))
    monkeypatch.setattr(sys, "argv", ["gradest", "run", "-p", "gaussian-1d", "-e", "iwae", "-o", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 130
    assert "run the same command again" in capsys.readouterr().err


def test_the_bibliography_is_of_exactly_what_is_used(cells):
    assert set(runner.bibliography([cells[0]], Registry())) == {"tucker2019"}
    assert all(entry.startswith("@") for entry in runner.bibtex().values())
