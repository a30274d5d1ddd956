"""How time grows: with the number of samples, of replicates and of dimensions, as slopes between doublings."""

from __future__ import annotations

import math

import pytest
import torch

import estimators
from benchmarks.measure import block_sizes
from benchmarks.moments import GradientMoments
from benchmarks.problems import Rainforth
from benchmarks.streams import batch_rows
from estimators import replicates


def slope(taken, small: str, large: str, factor: float) -> float:
    return math.log(taken.ratio(large, small)) / math.log(factor)


def measured(problem, num_samples: int, count: int) -> None:
    """What a cell does: estimates in batches, and their moments."""
    estimator, sizes = estimators.get("dreg", num_samples=num_samples), block_sizes(problem)
    rows, generator = batch_rows(problem, num_samples), torch.Generator().manual_seed(0)
    batches = replicates.batches(estimator, problem, problem.parameters, count, generator, rows)
    GradientMoments(sizes, dict.fromkeys(sizes)).extend(batches)


@pytest.mark.parametrize("what", ["replicates", "samples", "samples of much"])
def test_slopes(benchmark, ratios, timed, one_thread, what):
    small, points = Rainforth(dim=20, points=1), Rainforth(dim=20, points=64)
    work, factor = {
        "replicates": ((lambda: measured(small, 64, 2048), lambda: measured(small, 64, 8192)), 4),
        "samples": ((lambda: measured(small, 64, 1024), lambda: measured(small, 256, 1024)), 4),
        "samples of much": ((lambda: measured(points, 64, 64), lambda: measured(points, 256, 64)), 4),
    }[what]
    taken = timed({"small": (work[0], 1), "large": (work[1], 1)}, 7)
    found = slope(taken, "small", "large", factor)
    ratios.append(f"time grows with {what} as a power of {found:.2f}")
    benchmark.extra_info["slope"] = found
    benchmark.pedantic(work[0], rounds=1)
    assert 0.6 < found < 1.3
