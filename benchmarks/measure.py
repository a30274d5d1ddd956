"""One cell: problem, estimator, settings and seed in, one record out. Plain data on both sides."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from estimators import BLOCKS, Estimator, Refusal, Target, replicates, sweep

from . import cost, devices, quiet
from .arithmetic import matmul_precision
from .compiling import CompiledRows
from .files import write_bytes
from .moments import GradientMoments
from .outside import one_line, told
from .problems.problem import Problem, Reference
from .references.long_run import long_run
from .references.loop import LoopEstimator
from .references.self_normalized import QuadratureError
from .references.truth import Truth
from .registry import Registry
from .schema import SHARED, BlockResult, Cell, Cost, Record
from .specs import SpecError
from .streams import batch_rows, generator

REFERENCE_FACTOR = 4
"""A long-run reference has this many times the replicates of the cell that it judges."""
LOOP_ROWS = 16
"""Replicates per batch of an estimator that cannot be vectorised."""
Known = TypeVar("Known")


def run_cell(cell: dict[str, Any], plugins: tuple[str, ...] = (), folder: str | None = None) -> dict[str, Any]:
    """Measure one cell; whatever happens inside becomes the record's status and reason.

    Where a run folder is given, the mean and variance of every coordinate go into its ``moments/``.
    """
    return run_together([cell], plugins, folder)[0]


def run_together(
    cells: list[dict[str, Any]], plugins: tuple[str, ...] = (), folder: str | None = None
) -> list[dict[str, Any]]:
    """Measure cells that share draws, or one cell: records as of each alone, to the last bit, but for seconds."""
    kept = [Measurement(Cell.model_validate(cell), plugins) for cell in cells]
    alive = [each for each in kept if each.facts.get("status") is None]
    if alive and SHARED in alive[0].cell.versions:
        _share(alive)
    else:
        for each in alive:
            each.measure()
    for each in kept:
        each.finish(folder)
    return [each.record().model_dump(mode="json") for each in kept]


def frames(problem: Exception) -> str:
    """The last eight frames of a traceback, files by their names alone: a record tells nobody where a user's home is."""
    last = traceback.extract_tb(problem.__traceback__)[-8:]
    lines = [f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}: {frame.line}" for frame in last]
    return "\n".join([*lines, *traceback.format_exception_only(problem)])


class Measurement:
    """A cell on its way to a record. Whatever happens to it on the way becomes its status and its reason."""

    def __init__(self, cell: Cell, plugins: tuple[str, ...]) -> None:
        self.cell, self.facts, self.seconds = cell, dict[str, Any](), 0.0
        with self._kept():
            self._begin(Registry(plugins))

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Within, time counts as this cell's, and a failure is kept for the record."""
        start = time.perf_counter()
        try:
            yield
        except (Refusal, SpecError) as problem:
            self.facts = {"status": "refused", "reason": one_line(problem)}
        except Exception as problem:
            self.facts = {"status": "error", "reason": told(problem), "traceback": frames(problem)}
        finally:
            self.seconds += time.perf_counter() - start

    def _begin(self, registry: Registry) -> None:
        cell = self.cell
        self.estimator = estimator = registry.estimator(cell.estimator, cell.num_samples)
        self.problem = problem = registry.problem(cell.problem, cell.dtype, cell.device)
        self.facts |= {
            "library": getattr(estimator, "library", "gradest"),
            "counterpart": (estimator.beside(problem) or None) if isinstance(estimator, LoopEstimator) else None,
            "family": estimator.family,
            "summary": summary(estimator),
            "citations": [*estimator.citations, *problem.citations],
            "tail_ratio": problem.tail_ratio,
        }
        reason = estimator.refuses(problem)
        if reason is not None:
            self.facts |= {"status": "refused", "reason": reason}
            return
        learning = generator(problem.device, "warm-up", problem.spec, cell.estimator, cell.num_samples, cell.seed)
        self.estimator = estimator = replicates.warmed_up(estimator, problem, problem.parameters, learning)
        self.sizes = block_sizes(problem)
        self.truths = {block: truth(problem, estimator, block, cell.replicates) for block in self.sizes}
        centres = {
            block: None if t is None else t.gradient if t.centre is None else t.centre
            for block, t in self.truths.items()
        }
        self.moments = GradientMoments(self.sizes, centres)
        self.compiled = compiled_rows(estimator, problem) if cell.compiled else None

    def measure(self) -> None:
        """Take in all replicates."""
        with self._kept(), matmul_precision(self.cell.matmul_precision):
            for rows in quiet.quietly(
                batches(self.estimator, self.problem, self.cell.replicates, self.cell.seed, self.compiled)
            ):
                self.moments.add(rows)

    def take(self, shared: sweep.Shared) -> None:
        """Take in the replicates of one batch of shared draws."""
        if self.facts.get("status") is None:
            with self._kept():
                with quiet.busy(), matmul_precision(self.cell.matmul_precision):
                    rows = shared.rows(self.estimator)
                self.moments.add(rows)

    def finish(self, folder: str | None) -> None:
        """What the replicates say, and what one of them costs."""
        if self.facts.get("status") is None:
            with self._kept():
                self._finish(folder)

    def _finish(self, folder: str | None) -> None:
        from .metrics import summarize  # a second of imports, which whoever hands out cells need not wait for

        cell, estimator, problem, moments = self.cell, self.estimator, self.problem, self.moments
        resolution = 32 * torch.finfo(getattr(torch, problem.dtype)).eps
        blocks = [
            with_names(
                problem,
                summarize(
                    moments.blocks.get(block),
                    block,
                    target=target_of(estimator, block),
                    truth=self.truths[block],
                    dimensions=self.sizes[block],
                    nonfinite=moments.nonfinite,
                    declared_finite=estimator.variance_exists,
                    resolution=resolution,
                    exact_variance=vouched_for(problem.exact_variance, cell.estimator, cell.num_samples, block),
                    snr_slope=estimator.snr_slope(block, problem.tail_ratio),
                ),
            )
            for block in self.sizes
            if block != "value" or "value" in moments.blocks
        ]
        if folder is not None:
            keep(moments, Path(folder) / "moments" / f"{cell.id}.safetensors")
        beyond = [each for each in blocks if each.verdict == "NONFINITE"]
        status = "nonfinite" if beyond else "ok"
        reason = f"{moments.nonfinite} of {cell.replicates} replicates are not finite" if moments.nonfinite else ""
        reason = reason or (beyond[0].verdict_reason if beyond else "")
        reason = "; ".join(filter(None, (reason, *problem.faults(estimator)[:3])))
        if self.compiled is not None and self.compiled.problem is not None:
            reason = "; ".join(filter(None, (reason, f"not compiled: {self.compiled.problem}")))
        with matmul_precision(cell.matmul_precision):
            spent = price(estimator, problem, self.compiled)
        self.facts |= {"status": status, "reason": reason, "blocks": blocks, "cost": spent}

    def record(self) -> Record:
        """The record of a cell that is finished."""
        return Record(id=self.cell.id, cell=self.cell, seconds=self.seconds, **self.facts)


def _share(kept: list[Measurement]) -> None:
    """Measure cells of one problem, K, seed and number of replicates on the same batches of draws.

    The draws are those of each alone, and so is the arithmetic: one forward pass and one set of per-sample gradients a
    batch, of which each rule makes its estimates.
    """
    first = kept[0]
    cell, problem = first.cell, first.problem
    stream = generator(problem.device, "gradient", problem.spec, cell.num_samples, cell.seed)
    size = batch_rows(problem, cell.num_samples)
    with torch.no_grad():
        guide = problem.guide(problem.parameters["phi"])
    for start in range(0, cell.replicates, size):
        began = time.perf_counter()
        with quiet.busy(), torch.no_grad(), matmul_precision(cell.matmul_precision):
            noise = guide.noise((min(size, cell.replicates - start), cell.num_samples), stream)
            shared = sweep.Shared(problem, problem.parameters, noise)
        part = (time.perf_counter() - began) / len(kept)
        for each in kept:
            each.seconds += part
            each.take(shared)


def with_names(problem: Problem, result: BlockResult) -> BlockResult:
    """The result with its worst direction, where that is a single coordinate, called by the name of its parameter."""
    direction = result.worst_direction or ""
    if not direction or (" coordinate " not in direction and result.dimensions > 1):
        return result
    names = [
        f"{of}.{name}[{place}]" for of, name, place in replicates.coordinates(problem.parameters) if of == result.block
    ]
    place = int(direction.rpartition(" ")[2]) if result.dimensions > 1 else 0
    name = names[place] if names else "value"
    reason = result.verdict_reason.replace(direction, name)
    return result.model_copy(update={"worst_direction": name, "verdict_reason": reason})


def keep(moments: GradientMoments, path: Path) -> None:
    """Write mean and variance of every coordinate, float64, columns as the flattened parameters; large blocks are left out."""
    tensors = {}
    for name, block in moments.blocks.items():
        if block.coordinates is not None and block.order == 4:
            tensors[f"{name}.mean"] = block.coordinates.mean.cpu().contiguous()
            tensors[f"{name}.variance"] = block.coordinates.variance.cpu().contiguous()
    if tensors:
        write_bytes(path, safetensors.torch.save(tensors))


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
    reference = vouched_for(problem.exact, target)
    if reference is not None:
        return exact_truth(reference, block, problem)
    return long_run(problem, target, estimator, REFERENCE_FACTOR * count).get(block)


def vouched_for(known: Callable[..., Known | None], *asked: object) -> Known | None:
    """What is known exactly; ``None`` also where its integrals cannot be vouched for, on which a cell need not fail."""
    try:
        return known(*asked)
    except QuadratureError:
        return None


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

    with quiet.busy():  # for the first time, as others may do meanwhile
        work()
        devices.synchronize(problem.device)
    with quiet.alone():
        median, (low, high) = cost.seconds(work, problem.device)
        held, drawn = devices.peak_bytes(work, problem.device), devices.joules(work, problem.device)
    return counted.model_copy(
        update={
            "seconds_per_gradient": median / chunk,
            "seconds_interval": (low / chunk, high / chunk),
            "gradients_per_second": chunk / median,
            "chunk": chunk,
            "allocated_bytes": held,
            "joules_per_gradient": None if drawn is None else drawn / chunk,
            "compile_seconds": compiled.seconds if compiled is not None and compiled.problem is None else None,
        }
    )
