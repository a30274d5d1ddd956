"""Long-run references where nothing is known exactly: many replicates of an independent estimator, with standard errors.

The reference of a cell comes from another family than the estimator under test and from draws of its own, so that an
error in one does not hide in the other.
"""

from __future__ import annotations

from functools import lru_cache

from torch import Tensor

import estimators
from estimators import Estimator, Target, replicates

from ..moments import GradientMoments
from ..problems.problem import Problem, Reference
from ..streams import batch_rows, generator

SOURCES: dict[str, tuple[str, ...]] = {
    "elbo": ("sticking-the-landing", "reparameterization-analytic-kl"),
    "iwae": ("dreg", "iwae"),
}
"""By target: the estimator that gives the reference, and the one that does when the first is itself under test."""


def long_run(problem: Problem, target: Target, under_test: Estimator, count: int) -> Reference | None:
    """The mean of ``count`` replicates, or ``None`` where no estimator is known to be unbiased for the target."""
    sources = [name for name in SOURCES.get(target.name, ()) if name != under_test.label()]
    for name in sources:
        source = estimators.get(name, num_samples=target.num_samples or 1)
        if source.refuses(problem) is None:
            return _run(problem, source, count)
    return None


@lru_cache(maxsize=32)
def _run(problem: Problem, source: Estimator, count: int) -> Reference:
    parameters = problem.parameters
    sizes = {"value": 1, **{block: sum(t.numel() for t in parameters[block].values()) for block in estimators.BLOCKS}}
    moments = GradientMoments(sizes, dict.fromkeys(sizes))
    K = source.num_samples
    stream = generator(problem.device, "reference", problem.spec, source.label(), K)
    size = batch_rows(problem, K)
    moments.extend(replicates.batches(source, problem, parameters, count, stream, size))
    blocks = {name: block.coordinates for name, block in moments.blocks.items()}
    value = blocks["value"]
    assert value is not None
    return Reference(
        value=float(value.mean[0]),
        gradient={b: _unflatten(blocks[b].mean, parameters[b]) for b in estimators.BLOCKS},  # type: ignore[union-attr]
        standard_error={
            b: _unflatten((blocks[b].variance / count).sqrt(), parameters[b])  # type: ignore[union-attr]
            for b in estimators.BLOCKS
        },
        value_standard_error=float((value.variance[0] / count).sqrt()),
        method=f"mean of {count} replicates of {source.label()}, K = {K}",
    )


def _unflatten(flat: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    pieces = flat.split([leaf.numel() for leaf in leaves.values()])
    return {name: piece.reshape(leaf.shape) for (name, leaf), piece in zip(leaves.items(), pieces, strict=True)}

