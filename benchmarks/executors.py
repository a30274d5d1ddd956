"""Where cells are measured: worker processes of this machine, dask, or any ``concurrent.futures.Executor``.

One loop drives all of them (:meth:`Engine.as_completed`). What is not of this machine is in :mod:`benchmarks.elsewhere`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, TimeoutError, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from . import quiet, records, worker
from .companies import Waiting, companies
from .local import DiskProblem, Local, WorkerDied, WorkFailed
from .outside import one_line
from .privacy import private
from .schema import Cell, Record

TRIES = 3
"""How often a cell is begun whose time ran out while it waited for others, before that counts as its own fault."""


class StoreError(OSError):
    """The run folder cannot be written to."""


class ExecutorLost(RuntimeError):
    """The executor has ended, or cannot be reached any more."""


@contextmanager
def writing() -> Iterator[None]:
    """What the operating system says against writing becomes a :class:`StoreError`."""
    try:
        yield
    except OSError as problem:
        raise StoreError(str(problem)) from problem


def usable_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usual_memory(workers: int) -> int:
    """Bytes that one of some workers may take: its share of nine tenths of what there is, and no less than a quarter."""
    total = psutil.virtual_memory().total
    with suppress(OSError, ValueError):  # of the container
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return int(max(0.9 * total / workers, 0.25 * total))


@dataclass(frozen=True)
class Job:
    """What all cells of a run have in common, as plain data.

    ``memory`` is in bytes; ``token`` names the folder of locks that workers of one machine share.
    """

    folder: str
    plugins: tuple[str, ...] = ()
    timeout: float | None = None
    memory: int | None = None
    token: str = ""


class Minder:
    """Hands cells to local workers, and writes the record of a cell whose worker could not."""

    def __init__(self, job: Job, workers: int, locks: str, devices: Sequence[str] = ()) -> None:
        self.job, self.locks = job, locks
        self.local = Local(workers, locks, timeout=job.timeout, memory=job.memory, devices=devices)
        self.begun: Counter[str] = Counter()
        self.before: dict[str, int | None] = {}

    def prepare(self, cell: Cell) -> Future[Any]:
        """Begin what is to be done once for the problem of a cell."""
        task = (self.job.folder, cell.model_dump(), self._plugins(cell), usable_cores())
        return self.local.submit(worker.prepare, *task, kin=kin(cell))

    def ceilings(self, dtype: str, device: str) -> Future[Any]:
        """Begin to measure what this machine can do at most."""
        return self.local.submit(worker.ceilings, dtype, device)

    def submit(self, cell: Cell) -> Future[Any]:
        """Begin a cell."""
        self.before[cell.id] = self._inode(cell)
        task = (self.job.folder, cell.model_dump(), self._plugins(cell))
        return self.local.submit(worker.work, *task, kin=kin(cell))

    def _plugins(self, cell: Cell) -> tuple[str, ...]:
        """None for a cell that takes nothing from them: what their import changes must not reach it."""
        return self.job.plugins if kin(cell) else ()

    def submit_together(self, cells: Sequence[Cell]) -> Future[Any]:
        """Begin cells that share draws."""
        return self.local.submit(worker.work_together, self.job.folder, [cell.model_dump() for cell in cells])

    def outcome(self, cell: Cell, ended: Future[Any]) -> Record | None:
        """The record of a cell that has ended, or ``None`` if it is to be begun again.

        Raises:
            StoreError: if the record cannot be written.
        """
        problem = ended.exception()
        before = self.before.pop(cell.id, None)
        if problem is None:
            return self._kept(cell, ended.result())
        if isinstance(problem, WorkerDied) and self._inode(cell) != before:
            # It died after it had written the record: that is whole, or is none.
            with suppress(records.RecordError):
                return records.read(self._path(cell), Record)
        # A cell that hangs keeps those beside it from taking their times: they are not to pay for it.
        self.begun[cell.id] += 1
        if isinstance(problem, TimeoutError) and quiet.has_waited(self.locks, cell.id) and self.begun[cell.id] < TRIES:
            return None
        return failed(self.job, cell, problem)

    def _path(self, cell: Cell) -> Path:
        return Path(self.job.folder) / "cells" / f"{cell.id}.json"

    def _inode(self, cell: Cell) -> int | None:
        """What tells a file from the one that was there before, ``None`` where there is none."""
        with suppress(OSError):
            return self._path(cell).stat().st_ino
        return None

    def _kept(self, cell: Cell, told: Any) -> Record:
        """The record that a worker tells of, on disk: an estimator may have led its process away from this file system."""
        try:
            record = Record.model_validate(told)
        except ValueError:
            return failed(self.job, cell, WorkFailed("what its process sent is no record"))
        if record.cell != cell:
            return failed(self.job, cell, WorkFailed("what its process sent is the record of another cell"))
        if not self._path(cell).exists():
            with writing():
                records.write_cell(Path(self.job.folder), record)
        return record


def failed(job: Job, cell: Cell, problem: BaseException) -> Record:
    """Write and return the record of a cell that left none.

    Raises:
        StoreError: if that cannot be written, or the cell's own could not.
    """
    if isinstance(problem, DiskProblem):
        raise StoreError(str(problem)) from problem
    if isinstance(problem, TimeoutError):
        facts = {"status": "timeout", "reason": f"did not end within {job.timeout:g} seconds"}
    elif isinstance(problem, WorkerDied):
        facts = {"status": "killed", "reason": str(problem)}
    else:
        facts = {"status": "error", "reason": one_line(private(str(problem)[: worker.REASON]))}
    record = Record(id=cell.id, cell=cell, **facts)  # type: ignore[arg-type]
    with writing():
        records.write_cell(Path(job.folder), record)
    return record


def kin(cell: Cell) -> str:
    """What of a cell comes from a plug-in file, ``""`` for nothing: such code is given a worker process of its own."""
    parts = {"problem": cell.problem, "estimator": cell.estimator}
    return "|".join(spec for part, spec in parts.items() if "+" in cell.versions.get(part, ""))


class Engine(ABC):
    """Runs cells, a bounded number of them at a time."""

    @abstractmethod
    def capacity(self) -> int:
        """Cells that may be in flight at present."""

    @abstractmethod
    def prepare(self, cell: Cell) -> Future[Any]:
        """Begin what is to be done once for the problem of a cell."""

    @abstractmethod
    def submit(self, cell: Cell) -> Future[Any]:
        """Begin a cell."""

    @abstractmethod
    def outcome(self, cell: Cell, ended: Future[Any]) -> Record | None:
        """The record of a cell that has ended, or ``None`` if it is to be begun again."""

    def ceilings(self, dtype: str, device: str) -> Future[Any] | None:
        """Begin to measure what the machine can do at most; ``None`` where cells may run on several machines."""
        return None

    def companies(self, cells: Sequence[Cell]) -> list[list[Cell]]:
        """Cells that are begun together; each alone, unless an engine knows better."""
        return [[cell] for cell in cells]

    def submit_together(self, cells: Sequence[Cell]) -> Future[Any]:
        """Begin cells of one company, for engines that have companies of more than one."""
        raise NotImplementedError

    def as_completed(self, cells: Sequence[Cell]) -> Iterator[Record]:
        """Records of the cells, in the order in which they end."""
        waiting = Waiting(self.companies(cells))
        running: dict[Future[Any], list[Cell]] = {}
        last: str | None = None
        while waiting or running:
            while waiting and len(running) < self.capacity():
                company = waiting.take(last, (each[0].problem for each in running.values()))
                future = self.submit(company[0]) if len(company) == 1 else self.submit_together(company)
                running[future], last = company, None
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                company = running.pop(future)
                last = company[0].problem
                if len(company) > 1 and (problem := future.exception()) is not None:
                    if isinstance(problem, DiskProblem):
                        raise StoreError(str(problem)) from problem
                    # Whatever one of them did: each is measured alone, and costs itself alone.
                    waiting.put_back([[cell] for cell in company])
                elif len(company) > 1:
                    yield from map(Record.model_validate, future.result())
                elif (record := self.outcome(company[0], future)) is None:
                    waiting.put_back([company])
                else:
                    yield record


class Here(Engine):
    """Worker processes on this machine."""

    def __init__(self, minder: Minder, workers: int) -> None:
        self.minder, self.workers = minder, workers

    def capacity(self) -> int:
        return self.workers

    def prepare(self, cell: Cell) -> Future[Any]:
        return self.minder.prepare(cell)

    def submit(self, cell: Cell) -> Future[Any]:
        return self.minder.submit(cell)

    def ceilings(self, dtype: str, device: str) -> Future[Any]:
        return self.minder.ceilings(dtype, device)

    def companies(self, cells: Sequence[Cell]) -> list[list[Cell]]:
        return companies(cells)

    def submit_together(self, cells: Sequence[Cell]) -> Future[Any]:
        return self.minder.submit_together(cells)

    def outcome(self, cell: Cell, ended: Future[Any]) -> Record | None:
        return self.minder.outcome(cell, ended)
