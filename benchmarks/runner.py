"""Opens run folders, says what is left to do in them, and has it done (:mod:`benchmarks.executors`)."""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from . import engines, environment, executors, records
from .executors import ExecutorLost, Job, StoreError, usable_cores, writing
from .privacy import private
from .registry import Registry
from .schema import Cell, Cost, Manifest, Record
from .worker import keep_freed_memory

LEAST_FREE_BYTES = 50 * 2**20


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
            name=folder.name.encode("utf-8", "replace").decode(),
            command=private(command.encode("utf-8", "replace").decode()),
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            commit=commit,
            dirty=dirty,
            cells=list(dict.fromkeys([*old, *(cell.id for cell in cells)])),
            settings=settings,
            bibliography=bibliography,
        )
        records.write(folder / "manifest.json", manifest)
        records.write_text(folder / "environment.json", records.pretty(environment.describe(workers)))


def pending(folder: Path, cells: Sequence[Cell]) -> tuple[list[Cell], int, list[str]]:
    """Cells still to be run, the number already there, and a line for each record that was set aside as unreadable.

    Only ``ok`` and ``refused`` records count as done: a failure is never kept as a result.
    """
    stored, unreadable = records.summary(folder)
    for name in unreadable:
        # Not there: another run on this folder was quicker.
        with writing(), suppress(FileNotFoundError):
            os.replace(folder / "cells" / name, folder / "cells" / f"{name}.set-aside")
    finished = {id for id, (status, _) in stored.items() if status in ("ok", "refused")}
    left = [cell for cell in cells if cell.id not in finished]
    return left, len(cells) - len(left), list(unreadable.values())


@dataclass
class Tally:
    """How the cells of a run ended: numbers by status, and what is to be told of those that failed."""

    counts: Counter[str] = field(default_factory=Counter)
    failed: list[Record] = field(default_factory=list)

    def add(self, record: Record) -> None:
        """Count a cell; results stay on disk, for a run may have more of them than memory holds."""
        self.counts[record.status] += 1
        if record.status not in ("ok", "refused"):
            self.failed.append(record.model_copy(update={"blocks": [], "cost": Cost(), "traceback": ""}))


def shard(cells: Iterable[Cell], number: int, of: int) -> list[Cell]:
    """The cells of the ``number``-th of ``of`` shards, counted from 1: a matter of each cell's own identity."""
    return [cell for cell in cells if int(cell.id, 16) % of == number - 1]


def run(
    folder: Path,
    cells: list[Cell],
    *,
    plugins: tuple[str, ...] = (),
    workers: int = 1,
    timeout: float | None = None,
    memory: float | None = None,
    executor: str = "local",
    options: dict[str, Any] | None = None,
    opened: Callable[[], None] = lambda: None,
    told: Callable[[Progress], None] = lambda progress: None,
    preparing: Callable[[str], None] = lambda what: None,
) -> Tally:
    """Run cells by an executor and count how they ended.

    A cell that outlasts ``timeout`` seconds, takes more than ``memory`` GiB, or whose process dies, costs itself alone.
    Workers write the records of finished cells; of those whose worker could not, whoever minds the worker does.

    Arguments:
        workers: processes; of other executors than ``local`` and dask without an address, cells in flight at most.
        executor: ``local``, ``dask``, or ``module:factory`` of a ``concurrent.futures.Executor``.
        options: keyword arguments of the factory, or the ``address`` of dask's scheduler.
        opened: called once there is an executor, before anything is written.

    Raises:
        StoreError: if a record cannot be written.
        SpecError: if there is no such executor, or its workers have other versions than this process.
    """
    tally = Tally()
    limits = Job(str(folder.resolve()), plugins, timeout, None if memory is None else int(memory * 2**30))
    with engines.engine(executor, options or {}, workers, limits, graphics(cells)) as engine, writing():
        opened()
        for cell in {(cell.problem, cell.dtype, cell.device): cell for cell in cells}.values():
            preparing(cell.problem)
            # A failure here is not lost: the cells of this problem will meet it again, and say so.
            wait([engine.prepare(cell)])
        _note_ceilings(folder, cells, engine)
        for record in engine.as_completed(cells):
            tally.add(record)
            told(Progress(tally.counts.total(), len(cells), record))
    return tally


def _note_ceilings(folder: Path, cells: Iterable[Cell], engine: executors.Engine) -> None:
    """Add to the run's environment what its machine can do at most, so that a throughput can be judged as a share of it."""
    path = folder / "environment.json"
    if not path.exists():
        return
    known = json.loads(path.read_text(encoding="utf-8"))
    for dtype, device in dict.fromkeys((cell.dtype, cell.device) for cell in cells):
        begun = engine.ceilings(dtype, device)
        if begun is not None and not wait([begun]).not_done and begun.exception() is None:
            known |= begun.result()
    records.write_text(path, records.pretty(known))


@contextmanager
def interruptible() -> Iterator[None]:
    """Within, SIGTERM does what Ctrl-C does, and the second of either ends this process at once, workers included.

    The first raises ``KeyboardInterrupt``: cells in flight are cancelled. Neither can harm a record.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def again(number: int, frame: object) -> None:
        os.write(2, b"gradest: stopped at once; finished cells are kept, run the same command again to go on\n")
        os._exit(130)

    def first(number: int, frame: object) -> None:
        for each in old:
            signal.signal(each, again)
        raise KeyboardInterrupt

    old = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        for each in old:
            signal.signal(each, first)
        yield
    finally:
        for each, handler in old.items():
            signal.signal(each, handler)


def graphics(cells: Iterable[Cell]) -> Sequence[str]:
    """Identifiers of the graphics processors of this machine, where cells ask for just any of them."""
    if not any(cell.device == "cuda" for cell in cells):
        return ()
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def bibliography(cells: Sequence[Cell], registry: Registry) -> dict[str, str]:
    """BibTeX entries, by key, of everything that the estimators and problems of these cells cite."""
    entries = bibtex()
    keys: dict[str, None] = {}
    # Of each component once: seeds make many cells of the same.
    for spec, num_samples in {(cell.estimator, cell.num_samples): None for cell in cells}:
        keys |= dict.fromkeys(registry.estimator(spec, num_samples).citations)
    for place in {(cell.problem, cell.dtype, cell.device): None for cell in cells}:
        keys |= dict.fromkeys(registry.problem(*place).citations)
    return {key: entries[key] for key in sorted(keys) if key in entries}


def bibtex() -> dict[str, str]:
    """All entries of ``estimators/references.bib`` by key."""
    text = resources.files("estimators").joinpath("references.bib").read_text(encoding="utf-8")
    pieces = re.split(r"(?m)^(?=@)", text)
    return {m[1]: piece.strip() for piece in pieces if (m := re.match(r"@\w+\{([^,\s]+),", piece))}


__all__ = [
    "LEAST_FREE_BYTES",
    "ExecutorLost",
    "Progress",
    "StoreError",
    "Tally",
    "bibliography",
    "bibtex",
    "graphics",
    "interruptible",
    "keep_freed_memory",
    "open_run",
    "pending",
    "run",
    "shard",
    "usable_cores",
]
