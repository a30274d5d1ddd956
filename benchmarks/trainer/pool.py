"""Trainings and measurements in processes of their own, one thread each."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any


def each(work: Callable[..., str], arguments: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[str]:
    """What ``work`` gives for each of ``arguments``, in the order of ending; in this process where ``jobs`` is 1.

    Stopped by any exception, it ends its processes.
    """
    if jobs == 1:
        for one in arguments:
            yield work(*one)
        return
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # of the children: more threads than cores make all of them wait
    try:
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            futures = [pool.submit(work, *one) for one in arguments]
            try:
                for future in as_completed(futures):
                    yield future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for child in multiprocessing.active_children():
                    child.terminate()
                raise
    finally:
        os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.__setitem__("OMP_NUM_THREADS", before)
