"""What code from outside could change for all that come after it in the same process: looked at, and put back."""

from __future__ import annotations

import os
import random
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGCHLD, signal.SIGPIPE)
TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
LIMITS = tuple(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))


def _go(folder: str) -> None:
    try:
        os.chdir(folder or "/")
    except OSError:  # it has been removed since
        os.chdir("/")


def _handle(handlers: tuple[Any, ...]) -> None:
    for each, handler in zip(SIGNALS, handlers, strict=True):
        if handler is not None and threading.current_thread() is threading.main_thread():  # no other may, nor did
            signal.signal(each, handler)


PUT_BACK: dict[str, Callable[[Any], Any]] = {
    "the default dtype": torch.set_default_dtype,
    "the default device": lambda device: torch.set_default_device(None if device == "cpu" else device),
    "torch's number of threads": torch.set_num_threads,
    "torch's gradient mode": lambda modes: torch.set_grad_enabled(modes[0]),
    "torch's deterministic mode": torch.use_deterministic_algorithms,
    "torch's anomaly mode": torch.autograd.set_detect_anomaly,
    "torch's matrix precision": torch.set_float32_matmul_precision,
    "how denormal numbers are treated": lambda least: torch.set_flush_denormal(least == "0.0"),
    "numpy's error handling": lambda errors: np.seterr(**errors),
    "the working folder": _go,
    "the mode of new files": os.umask,
    "timers": lambda running: [signal.setitimer(timer, 0.0) for timer in TIMERS if timer not in running],
    "blocked signals": lambda blocked: signal.pthread_sigmask(signal.SIG_SETMASK, blocked),
    "signal handlers": _handle,
}
"""How to put back what a number may depend on, and what this command goes by, by the names that :func:`global_state` gives; random
states apart. Variables of the environment stay: many a library is told by one, before it is imported, what to do."""


def global_state() -> dict[str, Any]:
    """What an estimator could change for all that come after it, by a name fit to be shown."""
    name, keys, place, *rest = np.random.get_state(legacy=True)
    return {
        "the default dtype": torch.get_default_dtype(),
        "the default device": str(torch.get_default_device()),
        "torch's global random state": torch.get_rng_state().numpy().tobytes(),
        "numpy's global random state": (name, keys.tobytes(), place, *rest),
        "Python's global random state": random.getstate(),
        "torch's number of threads": torch.get_num_threads(),
        "torch's gradient mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "torch's anomaly mode": torch.is_anomaly_enabled(),
        "torch's matrix precision": torch.get_float32_matmul_precision(),
        # As text: where such numbers are taken for zero, they are equal to it.
        "how denormal numbers are treated": repr(
            float(torch.full((64,), 1e-310, dtype=torch.float64, device="cpu").mul(1.0)[0])
        ),
        "numpy's error handling": np.geterr(),
        "the working folder": _here(),
        # torch names its own cache folders there when it first compiles something
        "environment variables": {
            k: v for k, v in os.environ.items() if not k.startswith(("TORCH", "_TORCH", "TRITON"))
        },
        "what this process may take": tuple(resource.getrlimit(each) for each in LIMITS),
        "the mode of new files": _umask(),
        "timers": [timer for timer in TIMERS if signal.getitimer(timer) != (0.0, 0.0)],
        "blocked signals": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "signal handlers": tuple(signal.getsignal(each) for each in SIGNALS),
    }


def _umask() -> int:
    # Elsewhere it is known only by being changed: two threads that do so at once may leave it changed.
    with suppress(OSError, IndexError):
        return int(Path("/proc/self/status").read_text().partition("\nUmask:")[2].split()[0], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _here() -> str:
    try:
        return os.getcwd()
    except OSError:  # it has been removed
        return ""


@contextmanager
def kept() -> Iterator[None]:
    """Within, other people's code is imported; afterwards numbers are computed as before.

    Many a script begins with a seed, or with a default of its own. Where it stands in a file of estimators, it would be in
    force for their cells, and for whatever else this process computes, unseen.
    """
    before, states = global_state(), (torch.get_rng_state(), np.random.get_state(), random.getstate())
    try:
        yield
    finally:
        after = global_state()
        for what, put_back in PUT_BACK.items():
            if after[what] != before[what]:
                put_back(before[what])
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
