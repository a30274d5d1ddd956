"""The process that forks workers. Importing this module imports no torch."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker

METHOD = "forkserver" if sys.platform == "linux" else "spawn"
"""Forked from a process that has done nothing but import torch, a new worker costs milliseconds, not seconds. Elsewhere than on
Linux, system libraries do not survive a fork."""

ADOPTS = False
"""Whether orphans below this process become its children."""


def begin() -> None:
    """Start that process if there is none, and do not wait: it imports torch while this one does.

    This process is the command's own, so what dead workers leave behind is left to it (:data:`ADOPTS`), and it ends that.
    """
    global ADOPTS
    if METHOD == "forkserver":
        pr_set_child_subreaper = 36  # sys/prctl.h
        ADOPTS = ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0) == 0
        with startable():
            forkserver.ensure_running()


@contextmanager
def awake() -> Iterator[None]:
    """While one waits for that process, it goes on: estimators may stop it whenever they like.

    Stopped, it starts no worker, tells of none that it has ended, and whoever waits for it waits for ever.
    """
    over = threading.Event()

    def go_on() -> None:
        while True:
            if pid := getattr(forkserver._forkserver, "_forkserver_pid", None):
                with suppress(OSError):
                    os.kill(pid, signal.SIGCONT)
            if over.wait(0.1):
                return

    helper = threading.Thread(target=go_on, name="gradest-nursery", daemon=True)
    helper.start()
    try:
        yield
    finally:
        over.set()
        helper.join()


@contextmanager
def startable() -> Iterator[None]:
    """While a worker is started: nothing of the working folder is taken for a module, and a daemon may have children.

    The folder may well have a ``benchmarks`` of its own. Workers of dask are daemons, which multiprocessing forbids
    to have children for fear of orphans; ours die with their parent.
    """
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    with _TURN, awake():
        path, daemon = os.environ.get("PYTHONSAFEPATH"), config.pop("daemon", None)
        os.environ["PYTHONSAFEPATH"] = "1"
        # Ctrl-C is for whoever has workers started: the process that forks them would die of it with a traceback while it
        # imports. It inherits what is blocked here, and so do workers, which lift that (benchmarks.worker.start).
        resource_tracker.ensure_running()  # which, where it has to start, lifts that as well
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        # The second is imported when a cell ends, and torch imports the third when vmap is first used: each takes a second.
        forkserver.set_forkserver_preload(["benchmarks.worker", "benchmarks.metrics", "torch._dynamo"])
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            if path is None:
                del os.environ["PYTHONSAFEPATH"]
            else:
                os.environ["PYTHONSAFEPATH"] = path
            if daemon is not None:
                config["daemon"] = daemon


_TURN = threading.Lock()
