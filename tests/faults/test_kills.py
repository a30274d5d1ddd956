"""SIGKILL of a run's processes at random moments: no finished cell is lost, and what is resumed comes out the same."""

from __future__ import annotations

import random
import signal
import time

import psutil
import pytest

from benchmarks import records
from benchmarks.schema import Record

# `--fresh` where they are disturbed: results that are there already are in danger as well.
ASKED = ["run", "-p", "gaussian-1d", "-e", "iwae", "-e", "dreg", "-R", "400", "-j", "2"]
ASKED += ["-K", ",".join(map(str, range(2, 14)))]
CELLS = 24


@pytest.fixture(scope="module")
def uninterrupted(gradest, tmp_path_factory):
    """Cells that nobody disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert gradest(*ASKED, "-o", folder).returncode == 0
    return folder


def ended(folder):
    """What must not get lost: results by file name, byte for byte."""
    kept: dict[str, bytes] = {}
    for path in (folder / "cells").glob("*.json"):
        if records.read(path, Record).status == "ok":
            kept[path.name] = path.read_bytes()
    return kept


def kill(process, target, workers_of):
    """Kill one worker, the parent, or all; how many processes were alive and are hit."""
    victims = workers_of(process)[:1] if target == "worker" else [psutil.Process(process.pid)]
    if target == "all":
        victims += psutil.Process(process.pid).children(recursive=True)
    hit = 0
    for victim in victims:
        try:
            victim.send_signal(signal.SIGKILL)
            hit += 1
        except psutil.NoSuchProcess:
            pass
    return hit


def disturb(gradest, workers_of, until, folder, targets, rng, longest):
    """Run, and kill what ``targets`` say one after the other, beginning anew where the run itself was hit.

    Gives how many processes were hit, by target.
    """
    hits = dict.fromkeys(targets, 0)
    process = None
    for target in targets:
        hit = 0
        while not hit:
            if process is None or process.poll() is not None:
                process = gradest.start(*ASKED, "--fresh", "-o", folder)
            until(lambda run=process: run.poll() is not None or workers_of(run))
            time.sleep(rng.uniform(0, longest))
            before = ended(folder)
            below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            if process.poll() is None:
                hit = kill(process, target, workers_of)
        hits[target] += hit
        if target == "worker":
            time.sleep(0.05)
        else:
            process.communicate()
            assert process.returncode == -signal.SIGKILL
            assert psutil.wait_procs(below, timeout=30)[1] == []  # nothing is left running
        # A cell that is measured anew is replaced by a whole record of the same cell, or not at all.
        assert before.keys() <= ended(folder).keys()
    if process is not None and process.poll() is None:
        kill(process, "all", workers_of)
        process.communicate()
    return hits


def finish(gradest, folder):
    done = gradest(*ASKED, "-o", folder)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("seed", [0])
def test_kills_at_random_moments(gradest, uninterrupted, same, stored, workers_of, until, tmp_path, seed):
    targets = ["worker", "worker", "parent", "worker", "worker", "all"]
    hits = disturb(gradest, workers_of, until, tmp_path, targets, random.Random(seed), longest=0.5)
    assert hits["worker"] == 4 and hits["parent"] == 1 and hits["all"] >= 3, hits
    before = ended(tmp_path)
    assert len(before) < CELLS  # it was in the middle
    done = finish(gradest, tmp_path)
    if before:
        assert f"{len(before)} of {CELLS} cells are done already" in done.stderr
    assert before.items() <= ended(tmp_path).items()  # none of them was touched
    assert same(uninterrupted, tmp_path) == len(stored(tmp_path)) == CELLS


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 26))
def test_two_hundred_kills(gradest, uninterrupted, same, stored, workers_of, until, tmp_path, seed):
    """Eight kills each: of a worker, of the run, or of all of its processes."""
    rng = random.Random(seed)
    targets = rng.choices(["worker", "parent", "all"], weights=[6, 2, 2], k=8)
    hits = disturb(gradest, workers_of, until, tmp_path, targets, rng, longest=0.7)
    assert all(hits.values()) and sum(hits.values()) >= 8, hits
    before = ended(tmp_path)
    finish(gradest, tmp_path)
    assert before.items() <= ended(tmp_path).items()
    assert same(uninterrupted, tmp_path) == len(stored(tmp_path)) == CELLS
