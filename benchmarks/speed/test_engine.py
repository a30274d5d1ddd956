"""How fast the engine is: beside Python loops and Pyro on one problem, and estimator by estimator.

``pytest benchmarks/speed --benchmark-enable``. The machine is shared and its clock drifts, so that what is compared is
timed in turns, within one process, and ratios are medians of ratios of neighbours.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

import estimators
from benchmarks.problems import Rainforth
from benchmarks.references.pyro_losses import PyroRenyiELBO
from estimators import replicates

K, DIM = 64, 20
CHUNKS = (128, 256, 512)
REPETITIONS = 9
LEAST = {"loop": 1.5, "loop over distributions": 3.0, "pyro": 10.0}
"""Ratios that even a busy machine shows. What is aimed at, on two cores and in single precision, is 12 and 50."""


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"])
def threads(request) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(params=["float32", "float64"])
def problem(request) -> Rainforth:
    return Rainforth(dim=DIM, points=1, dtype=request.param)


def leaves(problem: Rainforth) -> dict[str, Tensor]:
    blocks = problem.parameters
    return {name: leaf.clone().requires_grad_() for block in blocks.values() for name, leaf in block.items()}


def loop_by_hand(problem: Rainforth, count: int, generator: torch.Generator) -> None:
    """One estimate after the other by ``autograd.grad``, with densities written out and constants left out."""
    x, scale, p = problem.data, math.sqrt(2 / 3), leaves(problem)
    for _ in range(count):
        loc = x @ p["weight"].T + p["bias"]
        eps = torch.randn(K, *loc.shape, generator=generator, dtype=loc.dtype)
        z = loc + scale * eps
        log_p = -0.5 * ((z - p["prior_loc"]).square() + (x - z).square()).sum(-1)
        log_w = log_p + 0.5 * ((z - loc) / scale).square().sum(-1)
        torch.autograd.grad((log_w.logsumexp(0) - math.log(K)).mean(), list(p.values()))


def loop_over_distributions(problem: Rainforth, count: int) -> None:
    """The same as it is usually written, with ``torch.distributions``."""
    x, scale, p = problem.data, math.sqrt(2 / 3), leaves(problem)
    for _ in range(count):
        q = Independent(Normal(x @ p["weight"].T + p["bias"], scale), 1)
        z = q.rsample((K,))
        log_p = Independent(Normal(p["prior_loc"], 1.0), 1).log_prob(z) + Independent(Normal(z, 1.0), 1).log_prob(x)
        log_w = log_p - q.log_prob(z)
        torch.autograd.grad((log_w.logsumexp(0) - math.log(K)).mean(), list(p.values()))


def in_turns(work: dict[str, tuple[Callable[[], object], int]]) -> dict[str, list[float]]:
    """Seconds per gradient of each piece of work, ``REPETITIONS`` times in turns, the first round not counted."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for repetition in range(REPETITIONS + 1):
        for name, (run, count) in work.items():
            start = time.perf_counter()
            run()
            if repetition:
                taken[name].append((time.perf_counter() - start) / count)
    return taken


def test_engine_beside_loops_and_pyro(benchmark, ratios, problem, threads):
    estimator, generator = estimators.get("iwae", num_samples=K), torch.Generator().manual_seed(0)
    pyro = PyroRenyiELBO(num_samples=K)

    def engine(chunk: int) -> Callable[[], object]:
        return lambda: replicates.stacked(estimator, problem, problem.parameters, chunk, generator)

    work: dict[str, tuple[Callable[[], object], int]] = {
        **{f"engine {chunk}": (engine(chunk), chunk) for chunk in CHUNKS},
        "loop": (lambda: loop_by_hand(problem, 100, generator), 100),
        "loop over distributions": (lambda: loop_over_distributions(problem, 50), 50),
        "pyro": (lambda: pyro.gradients(problem, problem.parameters, 20, 0), 20),
    }
    taken = in_turns(work)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    best = min(CHUNKS, key=lambda chunk: medians[f"engine {chunk}"])
    for chunk in CHUNKS:
        found = {
            other: statistics.median(b / a for a, b in zip(taken[f"engine {chunk}"], taken[other], strict=True))
            for other in LEAST
        }
        benchmark.extra_info[f"chunk {chunk}"] = {other: round(ratio, 2) for other, ratio in found.items()}
        shown = ", ".join(f"{ratio:5.1f} x {other}" for other, ratio in found.items())
        rate = 1 / medians[f"engine {chunk}"]
        ratios.append(f"{problem.dtype}, {threads} threads, chunk {chunk}: {rate:8.0f} gradients/s, {shown}")
    benchmark.extra_info["microseconds"] = {name: round(1e6 * seconds, 1) for name, seconds in medians.items()}
    benchmark.pedantic(engine(best), rounds=REPETITIONS)
    # Two threads wait for one another where a third process wants a core, so that nothing can be asked of them here.
    if threads == 1:
        found = benchmark.extra_info[f"chunk {best}"]
        assert all(found[other] > least for other, least in LEAST.items()), found


def test_the_loops_estimate_what_the_engine_does():
    """One draw, three ways: what is compared above does the same work."""
    problem, p = Rainforth(dim=DIM, points=1), leaves(Rainforth(dim=DIM, points=1))
    x, scale = problem.data, math.sqrt(2 / 3)
    noise = torch.randn(K, 1, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = x @ p["weight"].T + p["bias"] + scale * noise
    q = Independent(Normal(x @ p["weight"].T + p["bias"], scale), 1)
    log_p = Independent(Normal(p["prior_loc"], 1.0), 1).log_prob(z) + Independent(Normal(z, 1.0), 1).log_prob(x)
    bound = ((log_p - q.log_prob(z)).logsumexp(0) - math.log(K)).mean()
    expected = torch.autograd.grad(bound, list(p.values()))
    found = estimators.get("iwae", num_samples=K).gradient(problem, problem.parameters, noise)
    for ours, theirs in zip({**found.theta, **found.phi}.values(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # forward mode, in torch
@pytest.mark.parametrize("name", estimators.names())
def test_each_estimator(benchmark, name):
    """256 replicates at once, single precision, one thread."""
    problem, generator = Rainforth(dim=DIM, points=1, dtype="float32"), torch.Generator().manual_seed(0)
    estimator = estimators.get(name, num_samples=1 if name == "sumo" else 8)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        work = (estimator, problem, problem.parameters, 256, generator)
        rows = benchmark.pedantic(replicates.stacked, args=work, rounds=REPETITIONS, warmup_rounds=1)
    finally:
        torch.set_num_threads(before)
    assert rows.shape == (256, 1 + DIM + DIM * DIM + DIM) and rows[:, 1:].isfinite().all()
