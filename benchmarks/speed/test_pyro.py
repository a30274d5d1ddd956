"""Gradients per second on a user's Pyro model: our engine beside Pyro's own loop, on one and the same program.

``pytest benchmarks/speed --benchmark-enable``. Timed in turns, as in ``test_engine``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pyro
import pytest
import torch

import estimators
from benchmarks.problems import PyroProblem
from benchmarks.references.pyro_loss import entered
from benchmarks.references.pyro_losses import PyroTraceELBO
from estimators import replicates

FILE = str(Path(__file__).with_name("regression.py"))
K, REPETITIONS, LEAST = 16, 7, 5.0
"""``LEAST``: the ratio that is promised of one thread."""


@pytest.fixture
def problem() -> PyroProblem:
    """D = 20: eighteen weights in a plate, a LogNormal scale, and an intercept; the guide's scales are constrained."""
    return PyroProblem(model=f"{FILE}:model", q=f"{FILE}:guide", args=f"{FILE}:data")


def pyros_loop(problem: PyroProblem, vectorized: bool, count: int) -> Callable[[], None]:
    """Pyro alone: ``loss_and_grads`` of one loss object again and again, validation off, nothing copied."""
    how = {"num_particles": K, "vectorize_particles": vectorized} | ({"max_plate_nesting": 1} if vectorized else {})
    loss = pyro.infer.Trace_ELBO(**how)

    def run() -> None:
        with entered(problem, problem.parameters) as (model, guide, leaves, _):
            for _ in range(count):
                loss.loss_and_grads(model, guide)
                for block in leaves.values():
                    for leaf in block.values():
                        leaf.grad = None

    return run


def test_engine_beside_pyros_loop(benchmark, ratios, problem):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        estimator, generator = estimators.get("reparameterization", num_samples=K), torch.Generator().manual_seed(0)
        chunk = 256
        work: dict[str, tuple[Callable[[], object], int]] = {
            "engine": (lambda: replicates.stacked(estimator, problem, problem.parameters, chunk, generator), chunk),
            "vectorised particles": (pyros_loop(problem, True, 40), 40),
            "one by one": (pyros_loop(problem, False, 8), 8),
        }
        taken: dict[str, list[float]] = {name: [] for name in work}
        for repetition in range(REPETITIONS + 1):
            for name, (run, count) in work.items():
                start = time.perf_counter()
                run()
                if repetition:
                    taken[name].append((time.perf_counter() - start) / count)
        benchmark.pedantic(work["engine"][0], rounds=REPETITIONS)
    finally:
        torch.set_num_threads(before)
    rates = {name: 1 / statistics.median(times) for name, times in taken.items()}
    found = {
        name: statistics.median(b / a for a, b in zip(taken["engine"], taken[name], strict=True))
        for name in ("vectorised particles", "one by one")
    }
    benchmark.extra_info.update({"gradients per second": rates, "ratios": found})
    shown = ", ".join(f"{found[name]:.1f} x {name} ({rates[name]:.0f}/s)" for name in found)
    ratios.append(f"a user's Pyro model, D = 20, K = {K}, 1 thread: {rates['engine']:.0f} gradients/s, {shown}")
    assert found["vectorised particles"] > LEAST, found


def test_both_estimate_the_same(problem):
    """|z| < 5 in 300 of Pyro's draws, for 41 coordinates: 2e-5."""
    ours = replicates.stacked(
        estimators.get("reparameterization", num_samples=K),
        problem, problem.parameters, 2000, torch.Generator().manual_seed(1),
    ).double()  # fmt: skip
    gradients = PyroTraceELBO(num_samples=K).gradients(problem, problem.parameters, 60, 2)
    theirs = replicates.flatten(gradients, problem.parameters).double()
    assert ours.shape[1] == theirs.shape[1] == 1 + 40
    error = (ours.var(0) / len(ours) + theirs.var(0) / len(theirs)).sqrt()
    assert bool(((ours.mean(0) - theirs.mean(0)).abs() < 5 * error).all())
