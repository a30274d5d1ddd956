"""Which engine measures the cells of a run: our own workers, dask's, or those of whatever the user names."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import elsewhere, quiet
from .executors import Engine, Here, Job, Minder, usual_memory
from .local import Local
from .specs import SpecError


def check(name: str, options: dict[str, Any]) -> None:
    """Refuse an executor that is not there, or arguments that it does not take; nothing is made.

    Raises:
        SpecError: with what is allowed.
    """
    if name == "local" and options:
        raise SpecError(f"the local executor takes no --executor-arg, not {next(iter(options))!r}; see --jobs")
    if name == "dask":
        elsewhere.check_dask(options)
    elif name != "local":
        elsewhere.factory(name, options)


@contextmanager
def engine(name: str, options: dict[str, Any], workers: int, job: Job, devices: Sequence[str] = ()) -> Iterator[Engine]:
    """The engine of a name, dismissed at the end; when an exception passes, cells in flight are cancelled.

    Raises:
        SpecError: if there is none of that name, or it cannot be made.
    """
    check(name, options)
    with ExitStack() as stack:
        if name == "local":
            locks = stack.enter_context(quiet.folder())
            limits = job if job.memory is not None or devices else replace(job, memory=usual_memory(workers))
            minder = Minder(limits, workers, locks, devices)
            executor: Executor = minder.local
            made: Engine = Here(minder, workers)
        else:
            job = replace(job, token=secrets.token_hex(8))
            stack.callback(shutil.rmtree, Path(tempfile.gettempdir()) / f"gradest-{job.token}", ignore_errors=True)
            executor, capacity = (
                stack.enter_context(elsewhere.dask(options, workers))
                if name == "dask"
                else elsewhere.made(name, options, workers)
            )
            made = elsewhere.Elsewhere(executor, capacity, job)
        try:
            yield made
        except BaseException:
            _cancel(executor)
            raise
        executor.shutdown(wait=True)


def _cancel(executor: Executor) -> None:
    """Cancel what is in flight. Our own workers are gone when this returns; those of others are not waited for."""
    try:
        executor.shutdown(wait=isinstance(executor, Local), cancel_futures=True)
    except TypeError:  # dask's knows no such argument, and cancels where it does not wait
        executor.shutdown(wait=False)
