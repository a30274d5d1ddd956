"""The compiled engine: beside the eager one, loops and Pyro, and as a share of what drawing its noise alone would allow."""

from __future__ import annotations

import pytest
import torch

import estimators
from benchmarks import ceilings
from benchmarks.measure import compiled_rows
from benchmarks.problems import Rainforth
from benchmarks.references.pyro_losses import PyroRenyiELBO
from benchmarks.streams import batch_rows
from estimators import replicates

K, DIM = 64, 20
BATCHES = 20
"""In a row, as a cell makes them: the first finds in the caches what was timed before it."""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["iwae", "dreg", "vimco"])
def test_compiled_engine(benchmark, ratios, asked, timed, by_hand, one_thread, name, dtype):
    problem, generator = Rainforth(dim=DIM, points=1, dtype=dtype), torch.Generator().manual_seed(0)
    estimator, pyro = estimators.get(name, num_samples=K), PyroRenyiELBO(num_samples=K)
    rows, compiled = batch_rows(problem, K), compiled_rows(estimator, problem)

    def engine(rows_of=None) -> None:
        for _ in range(BATCHES):
            replicates.stacked(estimator, problem, problem.parameters, rows, generator, rows_of)

    def normals() -> None:
        for _ in range(BATCHES):
            problem.guide(problem.parameters["phi"]).noise((rows, K), generator)

    engine(compiled)
    assert compiled.problem is None, compiled.problem
    taken = timed(
        {
            "compiled": (lambda: engine(compiled), BATCHES * rows),
            "eager": (engine, BATCHES * rows),
            "normals": (normals, BATCHES * rows),
            "loop": (lambda: by_hand(problem, K, 50, generator), 50),
            "pyro": (lambda: pyro.gradients(problem, problem.parameters, 10, 0), 10),
        },
    )
    shown = {other: round(taken.ratio(other, "compiled"), 2) for other in ("eager", "loop", "pyro", "normals")}
    rate = 1 / taken.median("compiled")
    wanted = {"loop": 45.0, "pyro": 180.0, "normals": 0.6} if (name, dtype) == ("iwae", "float32") else {}
    told = {other: asked(shown[other], wanted.get(other)) for other in ("loop", "pyro", "normals")}
    ratios.append(
        f"{name} compiled, {dtype}: {rate:8.0f} gradients/s, {shown['eager']} x eager, {told['loop']} x loop, "
        f"{told['pyro']} x Pyro; {told['normals']} of the floor of its normals; compiled in {compiled.seconds:.1f} s"
    )
    benchmark.extra_info.update(shown, compile_seconds=compiled.seconds)
    benchmark.pedantic(engine, args=(compiled,), rounds=9)
    assert shown["eager"] > 1.1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ceilings(benchmark, ratios, one_thread, dtype):
    found = ceilings.measure(dtype)
    ratios.append(
        f"ceilings, {dtype}, 1 thread: {found.flops / 1e9:.0f} GFLOP/s, {found.copied_bytes / 1e9:.1f} GB/s copied, "
        f"{found.normals / 1e6:.0f} million normals/s"
    )
    benchmark.extra_info.update(flops=found.flops, copied_bytes=found.copied_bytes, normals=found.normals)
    benchmark.pedantic(ceilings.measure, args=(dtype,), rounds=1)
