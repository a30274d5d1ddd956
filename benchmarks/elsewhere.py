"""Cells measured by executors other than our own: dask, MPI, the standard library's, whatever ``module:factory`` makes.

Each of their workers keeps a worker process of ours beside it (:func:`remote`), so that a cell has the same time and memory
limits, and the same ways to fail, everywhere.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from . import __version__
from .executors import Engine, ExecutorLost, Job, Minder, StoreError, failed, usable_cores, usual_memory
from .local import DiskProblem, WorkerDied
from .outside import told
from .schema import Cell, Record
from .specs import SpecError, nearest

SAME = ("torch", "numpy")
"""Packages of which all workers need the version of the process that asked."""


class OtherVersions(RuntimeError):
    """A worker elsewhere has other versions than the process that asked. One line, fit to be shown."""


class Elsewhere(Engine):
    """Any executor: each of its workers minds a process of its own, in which cells are measured."""

    def __init__(self, executor: Executor, capacity: Callable[[], int], job: Job) -> None:
        self.executor, self.job = executor, job
        self._capacity = capacity

    def capacity(self) -> int:
        return self._capacity()

    def prepare(self, cell: Cell) -> Future[Any]:
        return self._begin(cell, preparing=True)

    def submit(self, cell: Cell) -> Future[Any]:
        return self._begin(cell, preparing=False)

    def _begin(self, cell: Cell, preparing: bool) -> Future[Any]:
        try:
            return self.executor.submit(remote, asdict(self.job), cell.model_dump(), versions(), preparing)
        except RuntimeError as problem:
            raise ExecutorLost(f"{type(problem).__name__}: {problem}") from problem

    def outcome(self, cell: Cell, ended: Future[Any]) -> Record | None:
        try:
            return Record.model_validate(ended.result())
        except DiskProblem as problem:
            raise StoreError(str(problem)) from problem
        except OtherVersions as problem:
            raise SpecError(str(problem)) from problem
        except (CancelledError, BrokenExecutor, OSError) as problem:
            raise ExecutorLost(f"{type(problem).__name__} {problem}".strip()) from problem
        except Exception as problem:
            if type(problem).__name__ == "KilledWorker":  # of dask: worker after worker died with this cell
                problem = WorkerDied(None, begun=False)
            return failed(self.job, cell, problem)


def versions() -> dict[str, str]:
    """What a number may depend on, and all workers must have alike."""
    found = {"gradest": __version__, "python": ".".join(platform.python_version_tuple()[:2])}
    return found | {package: metadata.version(package).partition("+")[0] for package in SAME}


_OWN = threading.local()


def remote(
    job: dict[str, Any], cell: dict[str, Any], expected: dict[str, str], preparing: bool
) -> dict[str, Any] | None:
    """On a worker of another executor: measure a cell in a process beside this one, see to its record, and return it.

    Raises:
        OtherVersions: if this worker has others than the process that asked.
        DiskProblem: if the record cannot be written.
    """
    wrong = [
        f"{name} {mine}, not {expected.get(name)}" for name, mine in versions().items() if mine != expected.get(name)
    ]
    if wrong:
        raise OtherVersions(f"a worker has {'; '.join(wrong)}: install the same versions everywhere")
    minder = _minder(Job(**{**job, "plugins": tuple(job["plugins"])}))
    identity = Cell.model_validate(cell)
    if preparing:
        wait([minder.prepare(identity)])
        return None
    while True:
        ended = minder.submit(identity)
        wait([ended])
        try:
            record = minder.outcome(identity, ended)
        except StoreError as problem:
            raise DiskProblem(str(problem)) from problem
        if record is not None:
            return record.model_dump(mode="json")


def _minder(job: Job) -> Minder:
    """The minder of this thread, made anew for another job."""
    old = getattr(_OWN, "minder", None)
    if old is not None and old.job == job:
        return old
    if old is not None:
        old.local.shutdown(cancel_futures=True)
    limits = job if job.memory is not None else replace(job, memory=usual_memory(usable_cores()))
    _OWN.minder = Minder(limits, 1, str(_shared_locks(job)))
    _OWN.minder.job = job
    return _OWN.minder


def _shared_locks(job: Job) -> Path:
    folder = Path(tempfile.gettempdir()) / f"gradest-{job.token}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def made(name: str, options: dict[str, Any], workers: int) -> tuple[Executor, Callable[[], int]]:
    """The executor that ``module:factory`` makes, and how many cells it may have in flight.

    Raises:
        SpecError: if it cannot be made, or is none.
    """
    try:
        executor = factory(name, options)(**options)
    except Exception as problem:
        raise SpecError(f"--executor {name}: {told(problem)}") from problem
    if not isinstance(executor, Executor):
        raise SpecError(f"--executor {name} gives a {type(executor).__name__}, which is no concurrent.futures.Executor")
    return executor, lambda: getattr(executor, "_max_workers", None) or workers


def check_dask(options: dict[str, Any]) -> None:
    """Refuse dask where it is not installed, or has no such argument.

    Raises:
        SpecError: with what is allowed.
    """
    if importlib.util.find_spec("distributed") is None:
        raise SpecError("--executor dask needs distributed: python -m pip install 'gradest[dask]'")
    unknown = [key for key in options if key not in ("address", "timeout")]
    if unknown:
        raise SpecError(
            f"--executor dask has no argument {unknown[0]!r}; {nearest(unknown[0], ('address', 'timeout'))}"
        )


@contextmanager
def dask(options: dict[str, Any], workers: int) -> Iterator[tuple[Executor, Callable[[], int]]]:
    """The executor of a dask client, and twice its threads; a cluster on this machine where no address is given."""
    import distributed

    with ExitStack() as stack:
        where = options.get("address")
        if where is None:
            where = stack.enter_context(
                distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
            )
        try:
            client = stack.enter_context(distributed.Client(where, timeout=options.get("timeout", 20)))
        except (OSError, ValueError, TypeError) as problem:
            raise SpecError(f"no dask scheduler at {where}: {type(problem).__name__}: {problem}") from problem
        threads = [0.0, 0]

        def capacity() -> int:
            """Asked for every cell, so remembered for a second."""
            now = time.monotonic()
            if now - threads[0] > 1:
                threads[:] = now, sum(client.nthreads().values())
            return max(1, 2 * int(threads[1]))

        yield client.get_executor(pure=False), capacity


def factory(name: str, options: dict[str, Any]) -> Callable[..., Any]:
    """What ``module:factory`` stands for, if it takes these arguments; it is not called.

    Raises:
        SpecError: if there is none, or it takes others.
    """
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise SpecError(f"no executor {name!r}; {nearest(name, ('local', 'dask', 'module:factory'))}")
    try:
        found = getattr(importlib.import_module(module), attribute)
        with suppress(ValueError):  # it does not say what it takes
            inspect.signature(found).bind(**options)
    except Exception as problem:
        raise SpecError(f"--executor {name}: {told(problem)}") from problem
    if inspect.isclass(found) and not issubclass(found, Executor):
        raise SpecError(f"--executor {name} is no concurrent.futures.Executor")
    return found
