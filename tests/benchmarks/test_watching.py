"""``gradest status --watch``: a bar on a terminal, silence elsewhere, and an end when no cell is left."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import fabricated
import pytest

from benchmarks.records import write
from benchmarks.schema import Manifest, Record


@pytest.fixture
def going_on(tmp_path: Path) -> tuple[Path, Record]:
    """A run of two cells, one of which has ended, and the record of the other."""
    folder = tmp_path / "run"
    first = fabricated.cell(folder, fabricated.GAUSSIAN, "iwae", 2)
    second = fabricated.cell(tmp_path / "elsewhere", fabricated.GAUSSIAN, "dreg", 2)
    write(folder / "manifest.json", Manifest(name="run", command="", started="now", cells=[first.id, second.id]))
    return folder, second


def watch(folder: Path, **how: object) -> subprocess.Popen:
    program = "import sys; from benchmarks.cli import main; main()"
    command = [sys.executable, "-c", program, "status", str(folder), "--watch", "--every", "0.1"]
    return subprocess.Popen(command, **how)


def end(folder: Path, record: Record) -> None:
    write(folder / "cells" / f"{record.id}.json", record)


def test_a_terminal_has_a_bar_that_ends_with_the_run(going_on):
    folder, second = going_on
    ours, theirs = pty.openpty()
    process = watch(folder, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "xterm", "COLUMNS": "120"})
    os.close(theirs)
    seen = b""
    while b"1/2" not in seen or b"1 ok" not in seen:
        seen += os.read(ours, 4096)
    assert process.poll() is None
    end(folder, second)
    assert process.wait(timeout=60) == 0
    with open(ours, "rb", buffering=0) as rest:
        try:
            while piece := rest.read(4096):
                seen += piece
        except OSError:  # the terminal's other end has gone
            pass
    assert b"2/2" in seen and b"ok 2 " in seen and b"left 0" in seen


def test_elsewhere_it_is_quiet_until_the_end(going_on):
    folder, second = going_on
    process = watch(folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(1.0)
    end(folder, second)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.splitlines() == ["ok 2  refused 0  error 0  timeout 0  killed 0  nonfinite 0  left 0  unreadable 0"]


def test_the_rate_is_of_cells_and_not_of_those_that_were_there():
    from rich.progress import Progress

    from benchmarks.progress import Rate

    clock = iter(range(1000))
    with Progress(Rate(), get_time=lambda: float(next(clock)), disable=True) as progress:
        task = progress.add_task("", total=100, completed=40)
        for done in (42, 44, 46):
            progress.update(task, completed=done)
        speed = progress.tasks[0].speed
        assert speed is not None and Rate().render(progress.tasks[0]).plain.endswith(("cells/s", "s/cell"))
        assert 0.5 < speed <= 2.0  # two cells a tick or two, not forty at once
