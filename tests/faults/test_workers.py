"""Local workers that die, hang, or talk nonsense: their task says so, and the next one finds a worker that is fit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import CancelledError

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

def say(text, seconds):
    os.write(worker._PIPE.fileno(), text.encode("latin-1"))
    time.sleep(seconds)

def fork_and_hang(file):
    child = os.fork()
    if child:
        Path(file).write_text(str(child))
    time.sleep(600)

def kill_the_nursery():
    os.kill(os.getppid(), 9)
    time.sleep(60)

def never_serve(*arguments):
    os.kill(os.getpid(), 9)

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


def alive(pid):
    """Whether there is such a process, and more of it than a number that nobody has asked for yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_worker_killed_while_idle_is_replaced(workers):
    pool = workers()
    first = pool.submit(workers.tasks.pid).result()
    process = psutil.Process(first)
    process.kill()
    psutil.wait_procs([process], timeout=10)
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


def test_a_deadline_may_lie_months_ahead(workers):
    """A system call waits for 24 days at most."""
    assert workers(timeout=1e9).submit(workers.tasks.add, 1, 2).result() == 3


def test_a_deadline_ends_the_whole_group(workers, tmp_path):
    pool = workers(timeout=1.0)
    assert pool.submit(workers.tasks.add, 1, 2).result() == 3
    with pytest.raises(TimeoutError):
        pool.submit(workers.tasks.fork_and_hang, str(tmp_path / "child")).result()
    child = int((tmp_path / "child").read_text())
    gone = time.monotonic() + 10
    while alive(child):
        assert time.monotonic() < gone
        time.sleep(0.02)
    assert pool.submit(workers.tasks.add, 1, 2).result() == 3


def test_a_worker_that_cannot_start_is_given_up_after_some_tries(workers, monkeypatch):
    started = []
    start = Local._start

    def counted(self, slot):
        start(self, slot)
        started.append(slot.process.pid)

    monkeypatch.setattr(Local, "_start", counted)
    monkeypatch.setattr(local.worker, "serve", workers.tasks.never_serve)
    pool = workers()
    with pytest.raises(WorkerDied, match="no worker stays alive"):
        pool.submit(workers.tasks.pid).result()
    assert len(started) == local.TRIES == len(set(started))
    monkeypatch.undo()


@pytest.mark.long  # in short, by TakesAWhile of hostile.py
def test_whoever_dies_with_the_process_that_forks_workers_is_begun_alone(workers, tmp_path):
    """One of two kills it again and again: it is given up, and the other, which died with it, comes to its end."""
    pool = workers(2)
    innocent = pool.submit(workers.tasks.sleep, 1.0)
    guilty = pool.submit(workers.tasks.kill_the_nursery)
    with pytest.raises(WorkerDied):
        guilty.result()
    assert innocent.result() > 0
    assert pool.submit(workers.tasks.add, 1, 2).result() == 3


def test_dismissed_while_it_waits_to_be_begun_anew(workers):
    pool = workers()
    running, again = pool.submit(workers.tasks.sleep, 60), local._Task(workers.tasks.pid, (), "", deaths=1)
    assert again.future.set_running_or_notify_cancel()  # as it was when it began
    pool._queue.append(again)
    pool.shutdown(cancel_futures=True)
    for future in (running, again.future):
        with pytest.raises(CancelledError):
            future.result(timeout=10)


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


@pytest.mark.parametrize("text", ["\xc8\xff\n", "5\n", "{}\n", "[" * 50_000 + "\n", "\xff\xff\xff\xff" + "\x7f" * 8])
def test_nonsense_ends_the_worker(workers, text):
    """No JSON, no object, one that says nothing, a depth that no parser bears, and what multiprocessing takes for the length of a message."""
    pool = workers()
    with pytest.raises(WorkerDied, match="what it sent is no answer"):
        pool.submit(workers.tasks.say, text, 0.2).result()
    assert pool.submit(workers.tasks.add, 1, 2).result() == 3


def test_nobody_waits_for_the_rest_of_an_answer(workers):
    """While one worker has begun to say something, the other is heard; and what never ends is ended at the deadline."""
    pool = workers(2, timeout=1.5)
    stuck, beside = pool.submit(workers.tasks.say, "{", 60), pool.submit(workers.tasks.add, 1, 2)
    assert beside.result(timeout=30) == 3 and not stuck.done()
    with pytest.raises(TimeoutError):
        stuck.result(timeout=30)
    assert pool.submit(workers.tasks.add, 1, 2).result() == 3


def test_what_is_no_json_ends_the_task(workers):
    pool = workers()
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
