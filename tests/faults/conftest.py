"""What the tests of faults share: runs in processes of their own, and what must be equal in two of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import records, verify

CODE = "import sys; from benchmarks.cli import main; main()"


class Gradest:
    """The command, run to its end or left to run; what is left running is killed after the test."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *words: object, **options: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CODE, *map(str, words)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, **{**pipes, **options})  # type: ignore[call-overload]
        self.started.append(process)
        return process

    def __call__(self, *words: object, **options: object) -> subprocess.CompletedProcess[str]:
        process = self.start(*words, **options)
        out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def clean(self) -> None:
        for process in self.started:
            if process.poll() is None:
                below = psutil.Process(process.pid).children(recursive=True)
                for each in [process, *below]:
                    each.kill()
            process.communicate()


@pytest.fixture(scope="module")
def gradest():
    command = Gradest()
    yield command
    command.clean()


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The worker processes below a run: those that lead a session."""
    found = []
    for each in psutil.Process(process.pid).children(recursive=True):
        try:
            if os.getsid(each.pid) == each.pid:
                found.append(each)
        except ProcessLookupError:
            pass
    return found


@pytest.fixture(scope="session")
def workers_of():
    return workers


@pytest.fixture(scope="session")
def until():
    """Wait until something holds, and give it; fail after five minutes."""

    def wait(condition):
        end = time.monotonic() + 300
        while not (found := condition()):
            assert time.monotonic() < end, "waited for five minutes"
            time.sleep(0.05)
        return found

    return wait


@pytest.fixture(scope="session")
def stored():
    """The records of a folder by id, all of them readable."""

    def read(folder: Path):
        found, unreadable = records.read_cells(folder)
        assert not unreadable
        return found

    return read


@pytest.fixture(scope="session")
def same(stored):
    """Every cell of one folder is in another, bit for bit, moments included and timings aside."""

    def compare(expected: Path, folder: Path) -> int:
        first, second = stored(expected), stored(folder)
        for id, record in first.items():
            assert verify.differences(record, second[id]) == []
            moments = [each / "moments" / f"{id}.safetensors" for each in (expected, folder)]
            assert moments[0].exists() == moments[1].exists()
            if moments[0].exists():
                assert moments[0].read_bytes() == moments[1].read_bytes()
        return len(first)

    return compare
