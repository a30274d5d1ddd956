"""Runs cells in worker processes, each of which writes its own record at once; finished cells are skipped."""

from __future__ import annotations

import ctypes
import datetime
import os
import platform
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, TimeoutError, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from pebble import ProcessExpired, ProcessPool

from . import environment, quiet, records
from .measure import run_cell
from .records import Cell, Manifest, Record
from .registry import Registry

LEAST_FREE_BYTES = 50 * 2**20
TRIES = 3
"""How often a cell is begun whose time ran out while it waited for others, before that counts as its own fault."""


class StoreError(OSError):
    """The run folder cannot be written to."""


@contextmanager
def writing() -> Iterator[None]:
    """What the operating system says against writing becomes a :class:`StoreError`."""
    try:
        yield
    except OSError as problem:
        raise StoreError(str(problem)) from problem


@dataclass(frozen=True)
class Progress:
    """Told to the caller after each cell."""

    done: int
    total: int
    record: Record


def open_run(
    folder: Path,
    cells: list[Cell],
    *,
    command: str,
    settings: dict[str, Any],
    bibliography: dict[str, str],
    workers: int,
) -> None:
    """Create the run folder, or join one that is there, and write down what is asked for and where it runs.

    Raises:
        StoreError: if the folder cannot be written to, or the disk is nearly full.
    """
    with writing():
        (folder / "cells").mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < LEAST_FREE_BYTES:
            raise StoreError(f"{folder}: less than {LEAST_FREE_BYTES // 2**20} MiB of disk are free")
        commit, dirty = environment.commit()
        old: list[str] = []
        if (folder / "manifest.json").exists():
            try:
                old = records.read(folder / "manifest.json", Manifest).cells
            except records.RecordError:
                old = []  # the records themselves say what they are; the manifest is written anew
        manifest = Manifest(
            name=folder.name,
            command=command,
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            commit=commit,
            dirty=dirty,
            cells=list(dict.fromkeys([*old, *(cell.id for cell in cells)])),
            settings=settings,
            bibliography=bibliography,
        )
        records.write(folder / "manifest.json", manifest)
        records.write_text(folder / "environment.json", records.pretty(environment.describe(workers)))


def pending(folder: Path, cells: Iterable[Cell]) -> tuple[list[Cell], int, list[str]]:
    """Cells still to be run, the number already there, and a line for each record that was set aside as unreadable.

    Only ``ok`` and ``refused`` records count as done: a failure is never kept as a result.
    """
    stored, unreadable = records.read_cells(folder)
    for name in unreadable:
        # Not there: another run on this folder was quicker.
        with writing(), suppress(FileNotFoundError):
            os.replace(folder / "cells" / name, folder / "cells" / f"{name}.set-aside")
    left = [cell for cell in cells if cell.id not in stored or stored[cell.id].status not in ("ok", "refused")]
    done = sum(1 for cell in cells if cell.id in stored) - sum(1 for cell in left if cell.id in stored)
    return left, done, list(unreadable.values())


def run(
    folder: Path,
    cells: list[Cell],
    *,
    plugins: tuple[str, ...] = (),
    workers: int = 1,
    timeout: float | None = None,
    told: Callable[[Progress], None] = lambda progress: None,
    preparing: Callable[[str], None] = lambda what: None,
) -> list[Record]:
    """Run cells in ``workers`` processes and return their records, in order of completion.

    A cell that outlasts ``timeout`` seconds, or whose process dies, costs itself alone. A worker writes the record of
    a finished cell; this process writes those of the cells whose worker could not.
    """
    finished: list[Record] = []
    locks = tempfile.mkdtemp(prefix="gradest-")
    pool = ProcessPool(max_workers=workers, context=get_context("spawn"), initializer=_start, initargs=(locks,))
    try:
        for cell in {(cell.problem, cell.dtype, cell.device): cell for cell in cells}.values():
            preparing(cell.problem)
            # A failure here is not lost: the cells of this problem will meet it again, and say so.
            wait([pool.schedule(prepare, args=(str(folder), cell.model_dump(), plugins), timeout=timeout)])
        for cell, outcome in _as_completed(pool, folder, cells, plugins, workers, timeout, locks):
            record = outcome if isinstance(outcome, Record) else _failed(cell, outcome, timeout)
            if not isinstance(outcome, Record):
                with writing():
                    records.write(folder / "cells" / f"{cell.id}.json", record)
            finished.append(record)
            told(Progress(len(finished), len(cells), record))
        pool.close()
    except BaseException:
        pool.stop()
        raise
    finally:
        pool.join(timeout=20)
        shutil.rmtree(locks, ignore_errors=True)
    return finished


def _as_completed(
    pool: ProcessPool,
    folder: Path,
    cells: list[Cell],
    plugins: tuple[str, ...],
    workers: int,
    timeout: float | None,
    locks: str,
) -> Iterator[tuple[Cell, Record | BaseException]]:
    """Cells with their records or the exception that ended them; few are in flight at any time."""
    waiting = list(reversed(cells))
    running: dict[Future[Any], Cell] = {}
    begun: Counter[str] = Counter()
    while waiting or running:
        while waiting and len(running) < workers + 1:
            cell = waiting.pop()
            task = pool.schedule(work, args=(str(folder), cell.model_dump(), plugins), timeout=timeout)
            running[task] = cell
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for task in done:
            cell = running.pop(task)
            problem = task.exception()
            # A cell that hangs keeps those beside it from taking their times: they are not to pay for it.
            begun[cell.id] += 1
            if isinstance(problem, TimeoutError) and quiet.has_waited(locks, cell.id) and begun[cell.id] < TRIES:
                waiting.append(cell)
                continue
            yield cell, problem if problem is not None else Record.model_validate(task.result())


def prepare(folder: str, cell: dict[str, Any], plugins: tuple[str, ...]) -> None:
    """In the worker: train what has to be trained, once, and write its curve into the run."""
    problem = Registry(plugins).problem(cell["problem"], cell["dtype"], cell["device"])
    torch.set_num_threads(usable_cores())  # nothing else runs yet
    try:
        problem.prepare()
    finally:
        torch.set_num_threads(1)
    training = problem.training_record()
    if training is not None:
        records.write(Path(folder) / "training" / f"{training.id}.json", training)


def work(folder: str, cell: dict[str, Any], plugins: tuple[str, ...]) -> dict[str, Any]:
    """In the worker: measure a cell, write its record, and return it."""
    quiet.known_as(Cell.model_validate(cell).id)
    record = run_cell(cell, plugins, folder)
    records.write(Path(folder) / "cells" / f"{record['id']}.json", Record.model_validate(record))
    return record


def _start(locks: str) -> None:
    """In the worker: its own session, so that a signal meant for the parent's terminal group ends with the parent.

    One thread each: the tensors of a batch are small, and threads that wait for one another cost more than they give
    (measured: ten times slower softmax on two threads of a busy machine). What an estimator prints goes to standard error:
    standard output belongs to the command.
    """
    os.setsid()
    os.dup2(2, 1)
    torch.set_num_threads(1)
    quiet.between(locks)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Where the C library is glibc, let this process keep large blocks of memory that it frees.

    By default they go back to the system at once, and each batch of replicates pays for fresh pages again (measured: a
    third fewer gradients per second on one thread).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        libc.mallopt(m_mmap_threshold, 32 * 2**20)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def _failed(cell: Cell, problem: BaseException, timeout: float | None) -> Record:
    if isinstance(problem, TimeoutError):
        return Record(id=cell.id, cell=cell, status="timeout", reason=f"did not end within {timeout:g} seconds")
    if isinstance(problem, ProcessExpired):
        return Record(id=cell.id, cell=cell, status="killed", reason=f"its process died (exit code {problem.exitcode})")
    if isinstance(problem, OSError):
        raise StoreError(str(problem)) from problem
    reason = f"{type(problem).__name__}: {problem}"
    return Record(id=cell.id, cell=cell, status="error", reason=reason)


def usable_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bibliography(cells: Iterable[Cell], registry: Registry) -> dict[str, str]:
    """BibTeX entries, by key, of everything that the estimators and problems of these cells cite."""
    entries = bibtex()
    keys: dict[str, None] = {}
    for cell in cells:
        estimator = registry.estimator(cell.estimator, cell.num_samples)
        problem = registry.problem(cell.problem, cell.dtype, cell.device)
        keys |= dict.fromkeys([*estimator.citations, *problem.citations])
    return {key: entries[key] for key in sorted(keys) if key in entries}


def bibtex() -> dict[str, str]:
    """All entries of ``estimators/references.bib`` by key."""
    text = resources.files("estimators").joinpath("references.bib").read_text(encoding="utf-8")
    pieces = re.split(r"(?m)^(?=@)", text)
    return {m[1]: piece.strip() for piece in pieces if (m := re.match(r"@\w+\{([^,\s]+),", piece))}
