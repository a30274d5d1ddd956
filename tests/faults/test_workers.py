"""Local workers that die, hang, or talk nonsense: their task says so, and the next one finds a worker that is fit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time

import psutil
import pytest

from benchmarks import local
from benchmarks.local import DiskProblem, Local, WorkerDied, WorkFailed

TASKS = """
import os, time
from pathlib import Path
from benchmarks import worker

def pid():
    return os.getpid()

def add(a, b):
    return a + b

def sleep(seconds):
    time.sleep(seconds)
    return os.getpid()

def leave(code):
    os._exit(code)

def fail(kind):
    raise {"disk": OSError(28, "No space left on device"), "error": ValueError("first\\nsecond")}[kind]

def spend():
    worker._SPENT = True
    return os.getpid()

def no_json():
    return {1, 2}

def noise():
    worker._PIPE.send_bytes(bytes(range(200, 256)))
    time.sleep(60)

def fork_and_hang(file):
    child = os.fork()
    if child:
        Path(file).write_text(str(child))
    time.sleep(600)

def visible():
    return os.environ.get("CUDA_VISIBLE_DEVICES")
"""


@pytest.fixture
def workers(tmp_path, monkeypatch):
    """Makes local workers, which are able to find the functions of this file."""
    made = []
    (tmp_path / "worker_tasks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    import worker_tasks

    def make(number=1, **options):
        made.append(Local(number, str(tmp_path), **options))
        return made[-1]

    make.tasks = worker_tasks
    yield make
    for each in made:
        each.shutdown(cancel_futures=True)
    del sys.modules["worker_tasks"]


def test_tasks_run_in_processes_of_their_own(workers):
    pool = workers(2)
    pids = {pool.submit(workers.tasks.sleep, 0.2).result() for _ in range(3)}
    pids |= {each.result() for each in [pool.submit(workers.tasks.sleep, 0.3) for _ in range(2)]}
    assert os.getpid() not in pids and len(pids) == 2
    assert pool.submit(workers.tasks.add, "a", "b").result() == "ab"


def test_a_worker_killed_while_idle_is_replaced(workers):
    pool = workers()
    first = pool.submit(workers.tasks.pid).result()
    os.kill(first, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(first)] if psutil.pid_exists(first) else [], timeout=10)
    second = pool.submit(workers.tasks.pid).result()
    assert second != first


@pytest.mark.parametrize("code", [0, 7])
def test_a_worker_that_leaves_fails_its_task_alone(workers, code):
    pool = workers()
    with pytest.raises(WorkerDied, match=rf"its process died \(exit code {code}\)"):
        pool.submit(workers.tasks.leave, code).result()
    assert pool.submit(workers.tasks.add, 1, 2).result() == 3


def test_a_killed_worker_fails_its_task_alone(workers):
    pool = workers(2)
    first = pool.submit(workers.tasks.pid).result()
    task, beside = pool.submit(workers.tasks.sleep, 60), pool.submit(workers.tasks.add, 1, 2)
    assert beside.result() == 3
    time.sleep(0.1)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="exit code -9"):
        task.result()


def test_a_deadline_ends_the_whole_group(workers, tmp_path):
    pool = workers(timeout=1.0)
    assert pool.submit(workers.tasks.add, 1, 2).result() == 3
    with pytest.raises(TimeoutError):
        pool.submit(workers.tasks.fork_and_hang, str(tmp_path / "child")).result()
    child = int((tmp_path / "child").read_text())
    gone = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < gone
        time.sleep(0.02)
    assert pool.submit(workers.tasks.add, 1, 2).result() == 3


def test_a_worker_that_cannot_start_is_given_up_after_some_tries(workers, monkeypatch):
    started = []
    start = Local._start

    def doomed(self, slot):
        start(self, slot)
        started.append(slot.process.pid)
        os.kill(slot.process.pid, signal.SIGKILL)

    monkeypatch.setattr(Local, "_start", doomed)
    pool = workers()
    with pytest.raises(WorkerDied, match="no worker stays alive"):
        pool.submit(workers.tasks.pid).result()
    assert len(started) == local.TRIES == len(set(started))
    monkeypatch.undo()


def test_a_worker_that_starts_badly_once_is_not_noticed(workers, monkeypatch):
    start, refused = Local._start, []

    def shaky(self, slot):
        if not refused:
            refused.append(slot)
            raise OSError("no process to be had")
        start(self, slot)

    monkeypatch.setattr(Local, "_start", shaky)
    assert workers().submit(workers.tasks.add, 1, 2).result() == 3 and refused


@pytest.mark.parametrize(
    ("kind", "error", "words"), [("disk", DiskProblem, "No space left"), ("error", WorkFailed, "^ValueError: first$")]
)
def test_exceptions_come_back_as_text(workers, kind, error, words):
    with pytest.raises(error, match=words):
        workers().submit(workers.tasks.fail, kind).result()


def test_nonsense_ends_the_worker(workers):
    pool = workers()
    with pytest.raises(WorkerDied):
        pool.submit(workers.tasks.noise).result()
    with pytest.raises((WorkerDied, WorkFailed)):
        pool.submit(workers.tasks.no_json).result()
    assert pool.submit(workers.tasks.add, 1, 2).result() == 3


def test_a_spent_worker_is_replaced(workers):
    pool = workers()
    first = pool.submit(workers.tasks.spend).result()
    assert pool.submit(workers.tasks.pid).result() != first


def test_other_peoples_code_has_a_worker_of_its_own(workers):
    pool = workers()
    kinds = ["", "a", "a", "b", "", ""]
    pids = [pool.submit(workers.tasks.pid, kin=kin).result() for kin in kinds]
    assert pids[0] == pids[1] == pids[2]  # before it, ours is welcome
    assert len({pids[2], pids[3], pids[4]}) == 3 and pids[4] == pids[5]


def test_each_worker_sees_one_graphics_processor(workers):
    pool = workers(2, devices=("3", "5"))
    tasks = [pool.submit(workers.tasks.visible) for _ in range(2)]
    assert {task.result() for task in tasks} <= {"3", "5"}


def test_a_daemon_may_have_workers(workers):
    """As workers of dask are, in which multiprocessing allows no children."""
    config = multiprocessing.current_process()._config
    config["daemon"] = True
    try:
        assert workers().submit(workers.tasks.add, 1, 2).result() == 3
        assert config["daemon"] is True
    finally:
        del config["daemon"]


def test_dismissed_workers_take_nothing_more(workers):
    pool = workers()
    queued = [pool.submit(workers.tasks.sleep, 60) for _ in range(3)]
    pool.shutdown(cancel_futures=True)
    assert all(each.done() for each in queued)
    with pytest.raises(RuntimeError, match="dismissed"):
        pool.submit(workers.tasks.pid)
    done = workers()
    task = done.submit(workers.tasks.sleep, 0.2)
    done.shutdown()
    assert task.result() > 0
