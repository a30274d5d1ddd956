"""Ratios of times, shown once all is done."""

from __future__ import annotations

import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from benchmarks.problems import Rainforth
from benchmarks.worker import keep_freed_memory

LINES: list[str] = []
REPETITIONS = 9

collect_ignore = [] if importlib.util.find_spec("jax") else ["test_beside_jax.py"]
"""JAX is no requirement: ``nox -s speed_jax`` installs it."""


class Times(dict[str, list[float]]):
    """Seconds of each piece of work, per unit of it, one list in the order of the rounds."""

    def median(self, name: str) -> float:
        return statistics.median(self[name])

    def ratio(self, over: str, under: str) -> float:
        """The median of the ratios of neighbours in time."""
        return statistics.median(a / b for a, b in zip(self[over], self[under], strict=True))


def in_turns(work: dict[str, tuple[Callable[[], object], int]], repetitions: int = REPETITIONS) -> Times:
    """Seconds per unit of each piece of work, in turns, the first round not counted.

    Of one thread, seconds of this process on a processor: others on the machine then cost nothing but cache. Of several
    threads, seconds on the wall.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    taken = Times({name: [] for name in work})
    for repetition in range(repetitions + 1):
        for name, (run, count) in work.items():
            start = clock()
            run()
            if repetition:
                taken[name].append((clock() - start) / count)
    return taken


def leaves(problem: Rainforth) -> dict[str, Tensor]:
    """All parameters by name, as plain autograd takes them."""
    blocks = problem.parameters
    return {name: leaf.clone().requires_grad_() for block in blocks.values() for name, leaf in block.items()}


def loop_by_hand(problem: Rainforth, num_samples: int, count: int, generator: torch.Generator) -> None:
    """One estimate after the other by ``autograd.grad``, with densities written out and constants left out."""
    x, scale, p = problem.data, math.sqrt(2 / 3), leaves(problem)
    for _ in range(count):
        loc = x @ p["weight"].T + p["bias"]
        eps = torch.randn(num_samples, *loc.shape, generator=generator, dtype=loc.dtype)
        z = loc + scale * eps
        log_p = -0.5 * ((z - p["prior_loc"]).square() + (x - z).square()).sum(-1)
        log_w = log_p + 0.5 * ((z - loc) / scale).square().sum(-1)
        torch.autograd.grad((log_w.logsumexp(0) - math.log(num_samples)).mean(), list(p.values()))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch with one thread, as in the workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def ratios() -> list[str]:
    """Lines to be shown at the end."""
    return LINES


@pytest.fixture(scope="session")
def timed() -> Callable[..., Times]:
    """:func:`in_turns`, which a test cannot import from here."""
    return in_turns


def beside(found: float, asked: float | None, *, at_most: bool = False) -> str:
    """A figure and what is asked of it, and whether it falls short."""
    if asked is None:
        return f"{found:.2f}"
    met = found <= asked if at_most else found >= asked
    return f"{found:.2f} ({'at most' if at_most else 'at least'} {asked:g} asked{'' if met else ', MISSED'})"


@pytest.fixture(scope="session")
def asked() -> Callable[..., str]:
    """:func:`beside`."""
    return beside


@pytest.fixture(scope="session")
def by_hand() -> Callable[..., None]:
    """:func:`loop_by_hand`."""
    return loop_by_hand


def pytest_configure() -> None:
    """As in the workers: what a batch frees is kept for the next."""
    keep_freed_memory()


def pytest_terminal_summary(terminalreporter) -> None:
    if LINES:
        terminalreporter.section("gradients per second, as ratios")
        for line in LINES:
            terminalreporter.write_line(line)
