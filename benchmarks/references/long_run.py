"""Long-run references where nothing is known exactly: many replicates of an independent estimator, with standard errors.

The reference of a cell comes from another estimator than the one under test and from draws of its own, so that an error
in one does not hide in the other.
"""

from __future__ import annotations

from functools import lru_cache

import torch

import estimators
from estimators import BLOCKS, Estimator, Target, replicates

from .. import quiet
from ..problems.problem import Problem
from ..streams import batch_rows, generator
from .truth import Truth

SOURCES: dict[str, tuple[str, ...]] = {
    "elbo": ("sticking-the-landing", "reparameterization-analytic-kl", "leave-one-out", "score-function"),
    "iwae": ("dreg", "iwae", "vimco", "multi-sample-score"),
}
"""By target: estimators that give the reference, of which the first serves that is not itself under test."""
PARTS = 16


def long_run(problem: Problem, target: Target, under_test: Estimator, count: int) -> dict[str, Truth]:
    """Truth for ``value``, ``theta`` and ``phi`` from ``count`` replicates; empty where no estimator is known to serve."""
    sources = SOURCES.get(target.name, ())
    # Where the model's derivatives in z are not those of its values, what rests on them is no reference for itself.
    for name in reversed(sources) if problem.faults(under_test) else sources:
        kind = estimators.REGISTRY[name]
        if name == under_test.label() or (target.num_samples or kind.min_num_samples) < kind.min_num_samples:
            continue
        source = kind(num_samples=target.num_samples or kind.min_num_samples)
        if source.refuses(problem) is None:
            return _run(problem, source, count)
    return {}


@lru_cache(maxsize=8)
def _run(problem: Problem, source: Estimator, count: int) -> dict[str, Truth]:
    parameters, K = problem.parameters, source.num_samples
    sizes = [1, *(sum(leaf.numel() for leaf in parameters[block].values()) for block in BLOCKS)]

    def mean(part: int) -> torch.Tensor:
        """The mean of one independent part of the run, ``(1 + P,)``."""
        stream = generator(problem.device, "reference", problem.spec, source.label(), K, part)
        rows = max(2, count // PARTS)
        total = torch.zeros(sum(sizes), dtype=torch.float64, device=problem.device)
        source_rows = replicates.batches(source, problem, parameters, rows, stream, batch_rows(problem, K))
        for batch in quiet.quietly(source_rows):
            total += batch.double().sum(0)
        return total / rows

    parts = torch.stack([mean(part) for part in range(PARTS)])
    pilot = mean(PARTS)
    method = f"mean of {PARTS * max(2, count // PARTS)} replicates of {source.label()}, K = {K}"
    names = ("value", *BLOCKS)
    return {
        name: Truth(means.mean(0), method, means, centre)
        for name, means, centre in zip(names, parts.split(sizes, 1), pilot.split(sizes), strict=True)
    }
