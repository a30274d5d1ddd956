from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import quiet

WORKER = """
import sys, time
from pathlib import Path
from benchmarks import quiet

folder, kind, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
stop, rest = Path(folder, "stop"), []
quiet.between(folder)
quiet.known_as(kind)
section = quiet.alone if kind == "alone" else quiet.busy
print("ready", flush=True)
sys.stdin.readline()  # all begin together
end = time.monotonic() + seconds
for turn in range(10**6):
    if time.monotonic() > end or stop.exists():
        break
    with section():
        start = time.monotonic()
        time.sleep(0.01)
        line = f"{start} {time.monotonic()}"
    if turn < 3:
        print(line, flush=True)
    else:
        rest.append(line)  # a full pipe would hold the lock
print(*rest, sep="\\n")
"""


@pytest.fixture
def worker(tmp_path):
    """Start a process that goes in and out of a section; those that are left are killed."""
    started = []

    def start(kind, seconds):
        command = [sys.executable, "-c", WORKER, str(tmp_path), kind, str(seconds)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def begin(*processes):
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()


def test_alone_shuts_out_all_others_and_nobody_starves(worker, tmp_path):
    """All keep at it until each has got in three times, however long a busy machine takes; a starved one ends after a minute."""
    kinds = ["busy", "busy", "busy", "alone", "alone"]
    workers = [worker(kind, 60) for kind in kinds]
    begin(*workers)
    first = [[process.stdout.readline() for _ in range(3)] for process in workers]
    (tmp_path / "stop").touch()
    sections = []
    for kind, process, lines in zip(kinds, workers, first, strict=True):
        assert all(lines), f"{kind} got in {sum(map(bool, lines))} times in a minute"
        lines += process.communicate()[0].split("\n")
        sections += [(*map(float, line.split()), kind) for line in lines if line]
    sections.sort()
    latest, kind_of_latest = 0.0, "busy"
    beside = 0
    for start, end, kind in sections:
        if start < latest:
            assert (kind, kind_of_latest) == ("busy", "busy")
            beside += 1
        if end > latest:
            latest, kind_of_latest = end, kind
    assert beside > 0  # those who may work beside one another do


def test_a_killed_process_leaves_no_lock_and_one_that_waited_is_known(worker, tmp_path):
    holder, waiter = worker("alone", 60), worker("busy", 60)
    quiet_folder = str(tmp_path)
    begin(holder)
    holder.stdout.readline()
    assert not quiet.has_waited(quiet_folder, "busy")
    holder.send_signal(19)  # stop it, as likely as not within its section
    begin(waiter)
    sign = tmp_path / "waiting-busy"
    for _ in range(200):
        if sign.exists():
            break
        time.sleep(0.01)
    waiting = sign.exists()
    if waiting:
        waiter.kill()
        waiter.wait()
        assert quiet.has_waited(quiet_folder, "busy") and not quiet.has_waited(quiet_folder, "busy")
    holder.kill()
    holder.wait()
    last = worker("alone", 0.1)
    begin(last)
    assert last.communicate(timeout=10)[0]


def test_without_a_folder_nobody_waits(monkeypatch):
    monkeypatch.setattr(quiet, "_FOLDER", None)
    with quiet.alone(), quiet.busy():
        assert list(quiet.quietly(iter([1, 2]))) == [1, 2]


def test_items_are_made_behind_the_lock(monkeypatch, tmp_path):
    monkeypatch.setattr(quiet, "_FOLDER", None)
    quiet.between(str(tmp_path))
    times = []

    def source():
        for number in range(3):
            times.append(time.monotonic())
            yield number

    assert list(quiet.quietly(source())) == [0, 1, 2]
    assert all(a <= b for a, b in pairwise(times)) and (tmp_path / "room").exists()
    assert not list(tmp_path.glob("waiting-*"))


def test_folders_of_locks_go_with_their_makers_and_those_of_the_killed_with_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    maker = "import sys, time\nfrom benchmarks import quiet\nwith quiet.folder() as made: print(made, flush=True); time.sleep(600)"
    killed = subprocess.Popen(
        [sys.executable, "-c", maker], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    left = Path(killed.stdout.readline().strip())
    hour_ago = time.time() - 3600
    os.utime(left / "owner", (hour_ago, hour_ago))
    with quiet.folder() as first:
        assert left.is_dir()  # its maker lives
        killed.kill()
        killed.wait()
        killed.stdout.close()
        os.utime(Path(first) / "owner", (hour_ago, hour_ago))
        with quiet.folder() as second:
            assert {Path(first), Path(second)} == {*tmp_path.iterdir()}  # what was left is gone, what is held is not
    assert not [*tmp_path.iterdir()]
