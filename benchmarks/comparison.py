"""Is an estimator unbiased where nothing is known exactly? Held against an independent estimator of another family.

If both are unbiased for one quantity, the difference of independent estimates has mean zero. It is added to a mean of the
second estimator, so that the sequential test sees rows whose mean must be that vector, and effects on its scale.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

import estimators
from estimators import BLOCKS, Estimator, Target, replicates
from estimators.testing import Finding, check_stream

from .measure import batches
from .problems import Problem
from .references.loop import LoopEstimator
from .streams import batch_rows

SCORE = {"elbo": ("leave-one-out", "score-function"), "iwae": ("vimco", "multi-sample-score")}
PATH = {"elbo": ("sticking-the-landing",), "iwae": ("dreg", "iwae")}
"""By target: estimators that ask nothing of derivatives in z, and those that rest on them."""
LEAST_SAMPLES = 16
"""Samples of a one-sample bound's counterpart, whose noise falls with them."""
PILOT_NUMBERS = 20_000_000
"""Numbers that the pilot may keep."""


def counterpart(estimator: Estimator, problem: Problem, target: Target) -> Estimator | None:
    """An estimator of the same target and of the other family, where there is one; else another of the same."""
    score, path = SCORE.get(target.name, ()), PATH.get(target.name, ())
    rests_on_path = "reparameterizable" in estimator.needs
    for name in (*score, *path) if rests_on_path else (*path, *score):
        kind = estimators.REGISTRY[name]
        K = target.num_samples or max(LEAST_SAMPLES, estimator.num_samples)
        if name == estimator.label() or kind.min_num_samples > K:
            continue
        made = kind(num_samples=K)
        if made.refuses(problem) is None:
            return made
    return None


def compare(
    estimator: Estimator, problem: Problem, *, seed: int, max_draws: int
) -> tuple[dict[str, str], Finding] | None:
    """Targets by block and the finding; ``None`` where no second estimator is known."""
    claims = {block: target for block, target in estimator.targets.items() if target is not None}
    target = claims.get("phi")
    if target is None:
        return None
    other = counterpart(estimator, problem, target)
    if other is None:
        return None
    blocks = [block for block, claim in claims.items() if str(claim) == str(target) and problem.parameters[block]]
    parameters = problem.parameters
    columns = 1 + sum(leaf.numel() for block in BLOCKS for leaf in parameters[block].values())
    pilot = min(80_000, max(4_000, PILOT_NUMBERS // columns))
    if isinstance(estimator, LoopEstimator):
        pilot, max_draws = min(pilot, 4_000), max_draws // 100
    seeds = random.Random(f"comparison {seed}")

    def rows_of(each: Estimator) -> Iterator[Tensor]:
        if isinstance(each, LoopEstimator):
            yield from batches(each, problem, 10**9, seeds.getrandbits(30))
        stream = torch.Generator(problem.device).manual_seed(seeds.getrandbits(62))
        each = replicates.warmed_up(each, problem, parameters, stream)
        size = min(batch_rows(problem, each.num_samples), pilot)
        yield from replicates.batches(each, problem, parameters, 10**9, stream, size)

    kept, zero = _mean(rows_of(other), pilot), _silent(rows_of(estimator), min(pilot, 2_000))

    def differences() -> Iterator[Tensor]:
        ours, theirs = rows_of(estimator), rows_of(other)
        left = next(theirs).double()
        for rows in ours:
            rows = rows.double()
            while len(left) < len(rows):
                left = torch.cat([left, next(theirs).double()])
            yield rows - left[: len(rows)] + kept
            left = left[len(rows) :]

    truth: dict[str, object] = {}
    place = 1
    for block in BLOCKS:
        sizes = {name: leaf.numel() for name, leaf in parameters[block].items()}
        if block in blocks:
            parts = kept[place : place + sum(sizes.values())].split(list(sizes.values())) if sizes else ()
            truth[block] = {n: p.reshape(parameters[block][n].shape) for n, p in zip(sizes, parts, strict=True)}
        place += sum(sizes.values())
    if "theta" in claims and str(claims["theta"]) == str(target):
        truth["value"] = float(kept[0])
    finding = check_stream(differences, parameters, truth, pilot=pilot, max_draws=max_draws)  # type: ignore[arg-type]
    reason = f"against {other.label()}, K = {other.num_samples}: {finding.reason}"
    if finding.outcome == "BIASED" and zero is not None:
        names = [f"{block}.{name}" for block, name, _ in replicates.coordinates(parameters)]
        silent = {names[i] for i in zero.nonzero()[:, 0].tolist() if float(kept[1 + i].abs()) > 0}
        if silent:
            reason += f"; exactly zero in every draw: {', '.join(sorted(silent)[:3])}"
    return {block: str(target) for block in blocks}, replace(finding, reason=reason)


def _mean(stream: Iterator[Tensor], count: int) -> Tensor:
    total, seen = torch.zeros(()), 0
    while seen < count:
        rows = next(stream)
        total, seen = total + rows.double().sum(0), seen + len(rows)
    return total / seen


def _silent(stream: Iterator[Tensor], count: int) -> Tensor | None:
    """Which coordinates of the gradient are zero in all of some draws."""
    zero, seen = None, 0
    while seen < count:
        rows = next(stream)[:, 1:]
        here = (rows == 0).all(0)
        zero, seen = here if zero is None else zero & here, seen + len(rows)
    return zero
