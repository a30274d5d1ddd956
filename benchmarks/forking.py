"""The process that forks workers. Importing this module imports no torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing import forkserver

METHOD = "forkserver" if sys.platform == "linux" else "spawn"
"""Forked from a process that has done nothing but import torch, a new worker costs milliseconds, not seconds. Elsewhere than on
Linux, system libraries do not survive a fork."""


def begin() -> None:
    """Start that process if there is none, and do not wait: it imports torch while this one does."""
    if METHOD == "forkserver":
        with startable():
            forkserver.ensure_running()


class startable:
    """While a worker is started: nothing of the working folder is taken for a module, and a daemon may have children.

    The folder may well have a ``benchmarks`` of its own. Workers of dask are daemons, which multiprocessing forbids
    to have children for fear of orphans; ours die with their parent.
    """

    turn = threading.Lock()

    def __enter__(self) -> None:
        self.turn.acquire()
        self.path = os.environ.get("PYTHONSAFEPATH")
        os.environ["PYTHONSAFEPATH"] = "1"
        config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
        self.daemon = config.pop("daemon", None)
        if pid := getattr(forkserver._forkserver, "_forkserver_pid", None):
            with suppress(OSError):  # an estimator may have stopped it, and then one would wait for ever
                os.kill(pid, signal.SIGCONT)
        # The second is imported when a cell ends, and torch imports the third when vmap is first used: each takes a second.
        forkserver.set_forkserver_preload(["benchmarks.worker", "benchmarks.metrics", "torch._dynamo"])

    def __exit__(self, *problem: object) -> None:
        if self.path is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = self.path
        if self.daemon is not None:
            multiprocessing.current_process()._config["daemon"] = self.daemon  # type: ignore[attr-defined]
        self.turn.release()
