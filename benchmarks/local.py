"""Worker processes on this machine, as a ``concurrent.futures.Executor``.

They are not those of a process pool. The standard pool loses all when one worker dies; others share one pipe
among workers, wait forever for one that left by ``os._exit(0)``, go by the clock on the wall, and leave alive at a deadline
what a worker has forked. Here each worker has a pipe and a process group of its own, and one thread watches over all.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import secrets
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import CancelledError, Executor, Future
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection, wait
from typing import Any

import psutil

from . import forking, worker
from .forking import METHOD, awake, startable

START_SECONDS = 300.0
"""A worker that has not reported for duty by then is given up."""
LONGEST = 2**26
"""Bytes that an answer of a worker may have."""
LONGEST_WAIT = 3600.0
"""Seconds after which deadlines are looked at again: the system waits for no more than 24 days at once."""
MARK = "GRADEST_WORKER"
"""The environment variable that tells whose processes are whose."""
TRIES = 3
"""How often a task is begun anew after its worker died before it could begin, or with the process that forks workers."""
PAUSE = 0.5
"""Seconds before the second try, twice that before the third: a process that forks workers and was killed takes a moment to be
gone, and until then it is believed to be there."""
GENERATIONS = 16
"""Of orphans that are ended: with each, its own children become orphans."""
LEAVING = 5.0
"""Seconds for a worker that has closed its pipe, or was killed, to be gone; one that had to be killed has no exit code of its own."""
ORPHANED = 255
"""What multiprocessing says of a worker whose end it could not learn, because the process that forked it is dead: it may well
have been another worker's estimator that killed that, and all workers with it."""


class WorkerDied(RuntimeError):
    """The worker process died while it was at this task, or had to be ended. ``exitcode`` is negative for a signal."""

    def __init__(self, exitcode: int | None, begun: bool = True) -> None:
        died = "its process had to be ended: what it sent is no answer" if exitcode is None else "its process died"
        code = "" if exitcode is None else f" (exit code {exitcode})"
        super().__init__(f"{died}{code}" if begun else f"no worker stays alive ({exitcode})")
        self.exitcode = exitcode


class DiskProblem(OSError):
    """The worker could not write what it found."""


class WorkFailed(RuntimeError):
    """The worker raised something else, told in one line."""


@dataclass
class _Task:
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    kin: str
    future: Future[Any] = field(default_factory=Future)
    deaths: int = 0


@dataclass
class _Slot:
    """A place for one worker process, and what it is at."""

    number: int
    process: Any = None
    pipe: Connection | None = None
    ready: bool = False
    since: float = 0.0
    task: _Task | None = None
    kin: str = ""
    mark: str = ""
    heard: bytes = b""

    def answer(self) -> dict[str, Any] | None:
        """What the worker says, or ``None`` while some of it is still to come: whatever it sends, nobody waits for more.

        Raises:
            EOFError: if it says no more.
            ValueError: if that is no answer.
        """
        assert self.pipe is not None
        piece = os.read(self.pipe.fileno(), 2**16)
        if not piece:
            raise EOFError
        self.heard += piece
        if len(self.heard) > LONGEST:
            raise ValueError("too long")
        if not self.heard.endswith(b"\n"):
            return None
        line, self.heard = self.heard, b""
        try:
            found = json.loads(line)
        except RecursionError as problem:
            raise ValueError("too deep") from problem
        if not isinstance(found, dict) or (self.ready and not found.keys() & {"value", "disk", "error"}):
            raise ValueError("no answer")
        return found


class Local(Executor):
    """Worker processes on this machine; each does one task at a time and is replaced when it is no longer fit for another.

    Arguments:
        workers: how many processes.
        locks: a folder for the locks of :mod:`benchmarks.quiet`.
        timeout: seconds of the monotonic clock that a task may take; then its whole process group is killed.
        memory: bytes that one worker may take.
        devices: identifiers of graphics processors; each worker sees one of them alone.

    Tasks are functions of modules with plain arguments; they return what JSON can hold. ``kin`` names other people's code
    that a task runs: its worker is not used afterwards for tasks of another kin. A future fails with ``TimeoutError``,
    :class:`WorkerDied`, :class:`DiskProblem` or :class:`WorkFailed`.
    """

    def __init__(
        self,
        workers: int,
        locks: str,
        *,
        timeout: float | None = None,
        memory: int | None = None,
        devices: Sequence[str] = (),
    ) -> None:
        self.locks, self.timeout, self.memory, self.devices = locks, timeout, memory, tuple(devices)
        self._context: Any = multiprocessing.get_context(METHOD)
        self._slots = [_Slot(number) for number in range(workers)]
        self._queue: deque[_Task] = deque()
        self._closing = self._killing = False
        self._lock = threading.Lock()
        self._before = {each.pid for each in _children()}
        self._wake, self._waker = self._context.Pipe(duplex=False)
        self._thread = threading.Thread(target=self._watch, name="gradest-workers", daemon=True)
        self._thread.start()
        # Run before multiprocessing waits for its children, in the main process and in those of a pool alike.
        self._finalizer = util.Finalize(None, self.shutdown, kwargs={"cancel_futures": True}, exitpriority=100)

    def submit(self, function: Callable[..., Any], /, *arguments: Any, kin: str = "") -> Future[Any]:  # type: ignore[override]
        """Queue a task."""
        with self._lock:
            if self._closing:
                raise RuntimeError("these workers have been dismissed")
            task = _Task(function, arguments, kin)
            self._queue.append(task)
            self._waker.send_bytes(b".")
        return task.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Dismiss the workers: after what is queued, or, with ``cancel_futures``, now."""
        with self._lock:
            self._killing = self._killing or cancel_futures
            if not self._closing or cancel_futures:
                self._closing = True
                with suppress(OSError):  # the thread has ended
                    self._waker.send_bytes(b".")
        if wait:
            self._thread.join()
            self._finalizer.cancel()

    def _watch(self) -> None:
        try:
            while not self._killing:
                self._assign()
                if self._closing and not self._queue and all(slot.task is None for slot in self._slots):
                    return
                by_handle: dict[Any, _Slot | None] = {self._wake: None}
                for slot in self._slots:
                    if slot.process is not None:
                        by_handle |= {slot.pipe: slot, slot.process.sentinel: slot}
                for handle in wait(list(by_handle), self._patience()):
                    slot_or_none = by_handle[handle]
                    if slot_or_none is None:
                        self._wake.recv_bytes()
                    elif slot_or_none.process is not None:
                        self._attend(slot_or_none)
                self._check_deadlines()
        finally:
            with self._lock:
                self._closing = True
            for slot in self._slots:
                self._end(slot, CancelledError())
            for task in self._queue:
                if not task.future.cancel():  # it was begun once
                    task.future.set_exception(CancelledError())
            self._wake.close()
            self._waker.close()

    def _patience(self) -> float | None:
        ends = [end for slot in self._slots if (end := self._deadline(slot)) is not None]
        return min(max(0.0, min(ends) - time.monotonic()), LONGEST_WAIT) if ends else None

    def _deadline(self, slot: _Slot) -> float | None:
        if slot.process is None or slot.task is None:
            return None
        limit = self.timeout if slot.ready else START_SECONDS
        return None if limit is None else slot.since + limit

    def _check_deadlines(self) -> None:
        for slot in self._slots:
            end = self._deadline(slot)
            if end is not None and time.monotonic() >= end:
                self._end(slot, TimeoutError() if slot.ready else WorkerDied(None, begun=False))

    def _assign(self) -> None:
        while self._queue and (idle := [slot for slot in self._slots if slot.task is None]):
            busy = [slot.task for slot in self._slots if slot.task is not None]
            # What took the process that forks workers with it may do so again, and nobody knows which of them it was.
            if any(task.deaths for task in [*busy, self._queue[0]]) and busy:
                return
            task = self._queue.popleft()
            if not task.future.running() and not task.future.set_running_or_notify_cancel():
                continue
            slot = min(idle, key=lambda each: (each.kin != task.kin, each.kin != "", each.process is None))
            if slot.process is not None and slot.kin not in ("", task.kin):
                self._end(slot)
            slot.task, slot.kin = task, task.kin or slot.kin
            self._begin(slot)

    def _begin(self, slot: _Slot) -> None:
        """Have a worker for the slot's task, and hand it the task once the worker is there."""
        assert slot.task is not None
        slot.since = time.monotonic()
        if slot.process is None:
            slot.ready = False
            try:
                self._start(slot)
            except (OSError, EOFError, RuntimeError) as problem:
                self._died(slot, str(problem))
        elif slot.ready:
            with suppress(OSError):  # it has died: its sentinel says so
                slot.pipe.send((slot.task.function, slot.task.arguments))  # type: ignore[union-attr]

    def _start(self, slot: _Slot) -> None:
        mine, theirs = self._context.Pipe()
        slot.mark, slot.heard = secrets.token_hex(8), b""
        environment = {**os.environ, MARK: slot.mark}
        if self.devices:
            device = self.devices[slot.number % len(self.devices)]
            environment["CUDA_VISIBLE_DEVICES"] = device
        settings = {"locks": self.locks, "memory": self.memory, "environment": environment, "parent": os.getpid()}
        with startable():
            slot.process = self._context.Process(target=worker.serve, args=(theirs, settings), daemon=False)
            try:
                slot.process.start()
            except BaseException:
                slot.process = None
                mine.close()
                raise
            finally:
                theirs.close()
        slot.pipe = mine
        slot.kin = slot.task.kin if slot.task else ""

    def _attend(self, slot: _Slot) -> None:
        """A worker has sent something, or is dead."""
        assert slot.pipe is not None
        try:
            if slot.pipe.poll():
                if (answer := slot.answer()) is None:
                    return
            elif slot.process.is_alive():
                return
            else:
                raise EOFError
        except ValueError:
            self._died(slot, None)
            return
        except (OSError, EOFError):
            with awake():  # who forked it tells with which code it left
                slot.process.join(LEAVING)
            self._died(slot, slot.process.exitcode)
            return
        if not slot.ready:
            slot.ready = True
            self._begin(slot)
            return
        task, slot.task = slot.task, None
        if answer.get("spent"):
            self._end(slot)
        if task is None:
            return
        if "value" in answer:
            task.future.set_result(answer["value"])
        elif "disk" in answer:
            task.future.set_exception(DiskProblem(answer["disk"]))
        else:
            task.future.set_exception(WorkFailed(str(answer.get("error"))))

    def _died(self, slot: _Slot, exitcode: Any) -> None:
        task, begun = slot.task, slot.ready
        if task is None or (begun and exitcode != ORPHANED):
            self._end(slot, WorkerDied(exitcode))
            return
        task.deaths += 1
        slot.task = None
        self._end(slot)
        if task.deaths >= TRIES:
            task.future.set_exception(WorkerDied(exitcode, begun))
        else:
            time.sleep(PAUSE * task.deaths)
            self._queue.appendleft(task)

    def _end(self, slot: _Slot, why: BaseException | None = None) -> None:
        """Kill a worker with all of its process group, and let its task fail; with what that has started elsewhere, too."""
        process, slot.process = slot.process, None
        task, slot.task = slot.task, None
        if process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # no group yet, where it is still starting
            process.kill()
            with awake():
                process.join(LEAVING)
            slot.pipe.close()  # type: ignore[union-attr]
            slot.pipe, slot.ready, slot.kin = None, False, ""
            if task is not None and why is not None:
                _end_marked(slot.mark)
                _end_orphans(self._before)
        if task is not None:
            task.future.set_exception(why or WorkerDied(None))


def _end_marked(mark: str) -> None:
    """Kill the programs that a worker has started and that have left its process group, which nobody else knows of now."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                process.kill()


def _children() -> list[psutil.Process]:
    """The children of this process, but for the two that multiprocessing keeps."""
    kept = (
        getattr(forkserver._forkserver, "_forkserver_pid", None),
        getattr(resource_tracker._resource_tracker, "_pid", None),
    )
    return [each for each in psutil.Process().children() if each.pid not in kept]


def _end_orphans(spared: Collection[int]) -> None:
    """Kill what dead workers have left to this process, in whatever session and with whatever environment it was started.

    What living workers have started stays theirs. ``spared`` are children that this process had before it had workers.
    """
    for _ in range(GENERATIONS if forking.ADOPTS else 0):
        orphans = [each for each in _children() if each.pid not in spared]
        for each in orphans:
            with suppress(psutil.Error):
                each.kill()
        if not orphans:
            return
        psutil.wait_procs(orphans, timeout=1)
