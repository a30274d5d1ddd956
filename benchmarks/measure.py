"""One cell: problem, estimator, settings and seed in, one record out. Plain data on both sides."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from estimators import BLOCKS, Estimator, Refusal, Target, replicates

from . import cost, quiet, records
from .compiling import CompiledRows
from .metrics import summarize
from .moments import GradientMoments
from .problems.problem import Problem, Reference
from .records import Cell, Cost, Record
from .references.long_run import long_run
from .references.loop import LoopEstimator
from .references.truth import Truth
from .registry import Registry
from .specs import SpecError
from .streams import batch_rows, generator

REFERENCE_FACTOR = 4
"""A long-run reference has this many times the replicates of the cell that it judges."""
LOOP_ROWS = 16
"""Replicates per batch of an estimator that cannot be vectorised."""


def run_cell(cell: dict[str, Any], plugins: tuple[str, ...] = (), folder: str | None = None) -> dict[str, Any]:
    """Measure one cell; whatever happens inside becomes the record's status and reason.

    Where a run folder is given, the mean and variance of every coordinate go into its ``moments/``.
    """
    identity = Cell.model_validate(cell)
    start = time.perf_counter()
    facts: dict[str, Any] = {}
    try:
        facts = _measure(identity, plugins, folder)
    except (Refusal, SpecError) as problem:
        facts = {"status": "refused", "reason": str(problem)}
    except Exception as problem:
        reason = f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}"
        facts = {"status": "error", "reason": reason, "traceback": frames(problem)}
    record = Record(id=identity.id, cell=identity, seconds=time.perf_counter() - start, **facts)
    return record.model_dump(mode="json")


def frames(problem: Exception) -> str:
    """The last eight frames of a traceback, files by their names alone: a record tells nobody where a user's home is."""
    last = traceback.extract_tb(problem.__traceback__)[-8:]
    lines = [f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}: {frame.line}" for frame in last]
    return "\n".join([*lines, *traceback.format_exception_only(problem)])


def _measure(cell: Cell, plugins: tuple[str, ...], folder: str | None) -> dict[str, Any]:
    registry = Registry(plugins)
    estimator = registry.estimator(cell.estimator, cell.num_samples)
    problem = registry.problem(cell.problem, cell.dtype, cell.device)
    facts: dict[str, Any] = {
        "library": getattr(estimator, "library", "gradest"),
        "counterpart": (estimator.beside(problem) or None) if isinstance(estimator, LoopEstimator) else None,
        "family": estimator.family,
        "summary": summary(estimator),
        "citations": [*estimator.citations, *problem.citations],
        "tail_ratio": problem.tail_ratio,
    }
    reason = estimator.refuses(problem)
    if reason is not None:
        return {**facts, "status": "refused", "reason": reason}
    learning = generator(problem.device, "warm-up", problem.spec, cell.estimator, cell.num_samples, cell.seed)
    estimator = replicates.warmed_up(estimator, problem, problem.parameters, learning)
    sizes = block_sizes(problem)
    truths = {block: truth(problem, estimator, block, cell.replicates) for block in sizes}
    centres = {
        block: None if t is None else t.gradient if t.centre is None else t.centre for block, t in truths.items()
    }
    moments = GradientMoments(sizes, centres)
    compiled = compiled_rows(estimator, problem) if cell.compiled else None
    for rows in quiet.quietly(batches(estimator, problem, cell.replicates, cell.seed, compiled)):
        moments.add(rows)
    resolution = 32 * torch.finfo(getattr(torch, problem.dtype)).eps
    blocks = [
        summarize(
            moments.blocks.get(block),
            block,
            target=target_of(estimator, block),
            truth=truths[block],
            dimensions=sizes[block],
            nonfinite=moments.nonfinite,
            declared_finite=estimator.variance_exists,
            resolution=resolution,
            exact_variance=problem.exact_variance(cell.estimator, cell.num_samples, block),
            snr_slope=estimator.snr_slope(block, problem.tail_ratio),
        )
        for block in sizes
        if block != "value" or "value" in moments.blocks
    ]
    if folder is not None:
        keep(moments, Path(folder) / "moments" / f"{cell.id}.safetensors")
    status = "nonfinite" if moments.nonfinite else "ok"
    reason = f"{moments.nonfinite} of {cell.replicates} replicates are not finite" if moments.nonfinite else ""
    if compiled is not None and compiled.problem is not None:
        reason = "; ".join(filter(None, (reason, f"not compiled: {compiled.problem}")))
    spent = price(estimator, problem, compiled)
    return {**facts, "status": status, "reason": reason, "blocks": blocks, "cost": spent}


def keep(moments: GradientMoments, path: Path) -> None:
    """Write mean and variance of every coordinate, float64, columns as the flattened parameters; large blocks are left out."""
    tensors = {}
    for name, block in moments.blocks.items():
        if block.coordinates is not None and block.order == 4:
            tensors[f"{name}.mean"] = block.coordinates.mean.cpu().contiguous()
            tensors[f"{name}.variance"] = block.coordinates.variance.cpu().contiguous()
    if tensors:
        records.write_bytes(path, safetensors.torch.save(tensors))


def summary(component: Any) -> str:
    """The first sentence of a class's documentation."""
    return (type(component).__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")


def block_sizes(problem: Problem) -> dict[str, int]:
    """Columns of value, theta and phi; a block without parameters is not there."""
    sizes = {block: sum(leaf.numel() for leaf in problem.parameters[block].values()) for block in BLOCKS}
    return {"value": 1} | {block: size for block, size in sizes.items() if size}


def target_of(estimator: Estimator, block: str) -> Target | None:
    """What a block estimates; the value belongs to theta's target."""
    return estimator.targets["theta" if block == "value" else block]


def truth(problem: Problem, estimator: Estimator, block: str, count: int) -> Truth | None:
    """The reference that a block is judged by: exact where known, a long run where not."""
    target = target_of(estimator, block)
    if target is None:
        return None
    reference = problem.exact(target)
    if reference is not None:
        return exact_truth(reference, block, problem)
    return long_run(problem, target, estimator, REFERENCE_FACTOR * count).get(block)


def exact_truth(reference: Reference, block: str, problem: Problem) -> Truth | None:
    """One block of an exact reference, flattened in float64; ``None`` where it has no such block."""
    if block == "value":
        return Truth(torch.tensor([reference.value], dtype=torch.float64, device=problem.device), reference.method)
    if block not in reference.gradient:
        return None
    leaves = [reference.gradient[block][name].reshape(-1).double() for name in problem.parameters[block]]
    return Truth(torch.cat(leaves), reference.method)


def compiled_rows(estimator: Estimator, problem: Problem) -> CompiledRows:
    """What makes a cell's estimates in place of the eager function."""
    eager = replicates.vectorised(estimator, problem, problem.parameters)
    return CompiledRows(eager, batch_rows(problem, estimator.num_samples))


def batches(
    estimator: Estimator, problem: Problem, count: int, seed: int, compiled: CompiledRows | None = None
) -> Iterator[Tensor]:
    """Replicates of a cell in batches ``(rows, 1 + P)``, from the stream of its problem, K and seed."""
    parameters = problem.parameters
    identity = (problem.spec, estimator.num_samples, seed)
    if isinstance(estimator, LoopEstimator):
        for start in range(0, count, LOOP_ROWS):
            number = generator("cpu", "loop", *identity, start).initial_seed()
            rows = min(LOOP_ROWS, count - start)
            yield replicates.flatten(estimator.gradients(problem, parameters, rows, number), parameters)
        return
    stream = generator(problem.device, "gradient", *identity)
    size = batch_rows(problem, estimator.num_samples)
    yield from replicates.batches(estimator, problem, parameters, count, stream, size, compiled)


def price(estimator: Estimator, problem: Problem, compiled: CompiledRows | None = None) -> Cost:
    """Counted and timed cost of one estimate, noise included; what is counted is what the eager function does."""
    stream = generator(problem.device, "cost", problem.spec, estimator.num_samples)
    parameters = problem.parameters
    if isinstance(estimator, LoopEstimator):
        counted = estimator.count(problem, parameters)
        chunk = LOOP_ROWS

        def work() -> object:
            return estimator.gradients(problem, parameters, chunk, 0)
    else:
        counted, chunk = cost.count(estimator, problem, parameters, stream), batch_rows(problem, estimator.num_samples)

        def work() -> object:
            return replicates.stacked(estimator, problem, parameters, chunk, stream, compiled)

    with quiet.alone():
        median, (low, high) = cost.seconds(work, problem.device)
    return counted.model_copy(
        update={
            "seconds_per_gradient": median / chunk,
            "seconds_interval": (low / chunk, high / chunk),
            "gradients_per_second": chunk / median,
            "chunk": chunk,
            "compile_seconds": compiled.seconds if compiled is not None and compiled.problem is None else None,
        }
    )
