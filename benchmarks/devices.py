"""What a device says of itself: how long work took by its own clock, how much memory it held, what energy it drew.

On a CPU the clock is the process's, and nothing is said of memory (:class:`benchmarks.cost.Meter` counts it) and energy.
CUDA and XPU have events and an allocator that keeps its peak; energy is had where NVIDIA's management library answers
(extra ``nvml``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

TELLING = ("cuda", "xpu")
"""Kinds of device with a clock and an allocator that can be asked."""
DRAWN_FOR = 0.5
"""Seconds of work between two looks at the energy drawn, which the library brings up to date some ten times a second."""


def synchronize(device: str) -> None:
    """Wait for the device; nothing to wait for on a CPU."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(torch.device(device))


def seconds(work: Callable[[], Any], device: str) -> float:
    """Seconds of ``work`` until the device has done it: between two events in its stream, or by the process's clock.

    Example:
        >>> 0.01 < seconds(lambda: time.sleep(0.01), "cpu") < 1.0
        True
    """
    if torch.device(device).type not in TELLING:
        start = time.perf_counter()
        work()
        synchronize(device)
        return time.perf_counter() - start
    begin, end = (torch.Event(torch.device(device), enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3  # torch gives milliseconds


def peak_bytes(work: Callable[[], Any], device: str) -> int | None:
    """Bytes that the device's allocator held at most during ``work``, beyond those before it; ``None`` on a CPU."""
    where = torch.device(device)
    if where.type not in TELLING:
        return None
    allocator = torch.get_device_module(where)
    synchronize(device)
    allocator.reset_peak_memory_stats(where)
    before = allocator.memory_allocated(where)
    work()
    synchronize(device)
    return int(allocator.max_memory_allocated(where)) - before


def joules(work: Callable[[], Any], device: str) -> float | None:
    """Energy that the whole board draws for one run of ``work``, what it draws idle included; ``None`` where nobody says.

    The mean over as many runs as fill half a second.
    """
    read = _energy(device)
    if read is None:
        return None
    runs, start, before = 0, time.perf_counter(), read()
    while time.perf_counter() - start < DRAWN_FOR:
        work()
        synchronize(device)
        runs += 1
    return (read() - before) / runs


def _energy(device: str) -> Callable[[], float] | None:
    """What reads the joules that a board has drawn since its driver was loaded; ``None`` where there is none to ask."""
    if torch.device(device).type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    # By its name, since the library numbers boards that are hidden from this process, too.
    name = f"GPU-{torch.cuda.get_device_properties(torch.device(device)).uuid}"
    with suppress(pynvml.NVMLError):  # no library, no right to ask, or a board that keeps no count
        pynvml.nvmlInit()
        board = pynvml.nvmlDeviceGetHandleByUUID(name)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(board)
        return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(board) / 1e3  # millijoules
    return None
