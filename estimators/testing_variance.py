"""Statistical proof that an estimator is as noisy as it should be: what a test of the mean cannot see.

A control variate that is switched off, an antithetic pair that repeats its draw, a score term that should have been left
out: none of them moves the expectation. They are seen in the variance, where its exact value is known.

The variance V of a block is E |g - E g|^2, summed over coordinates. The test takes as many draws as its two error rates ask
for at the spread and skewness of |g - E g|^2 that it finds, and asks whether the ratio to the exact V stays below the factor
by what its standard error allows. That error rests on fourth moments; where these do not exist nothing is said.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .contract import BLOCKS, Estimator, LatentModel, Parameters
from .replicates import coordinates, stacked, warmed_up

VarianceOutcome = Literal["PASS", "WRONG", "INCONCLUSIVE", "HEAVY_TAIL", "NONFINITE"]

Z_ALARM = 5.2
"""Standard errors that a right variance may be off: false alarms 2e-7, two-sided."""
Z_MISS = 2.33
"""Standard errors short of the factor at which a variance is called wrong: misses 0.01."""
PILOT = 20_000
HEAVY = 0.8
"""Tail index of |g - E g|^2 from which it is refused at once."""
SHARE = 0.1
"""Part of the sum of its squares that a single draw may carry; more draws are taken until it does not."""
_STILL = 0.1
"""Times the root of the precision: the deviation, relative to the gradient, up to which a block counts as free of noise."""


@dataclass(frozen=True)
class VarianceFinding:
    """What was found: the ratio of the measured variance to the exact one, with its relative standard error."""

    outcome: VarianceOutcome
    reason: str
    draws: int = 0
    ratio: float = math.nan
    standard_error: float = math.nan

    def __str__(self) -> str:
        text = f"{self.outcome}: {self.reason}"
        if not math.isnan(self.ratio):
            text += f" [ratio {self.ratio:.4g} +- {self.standard_error:.2g}, {self.draws} draws]"
        return text


def assert_variance_ratio(
    estimator: Estimator,
    model: LatentModel,
    parameters: Parameters,
    exact_variance: float,
    *,
    block: str = "phi",
    factor: float = 1.1,
    seed: int = 0,
) -> VarianceFinding:
    """Fail unless the variance of a block is shown to be the exact one, within a factor; return the finding.

    Raises:
        AssertionError: for every outcome but PASS; the message says which and why.
    """
    finding = check_variance_ratio(estimator, model, parameters, exact_variance, block=block, factor=factor, seed=seed)
    if finding.outcome != "PASS":
        raise AssertionError(f"{estimator.label()}: {finding}")
    return finding


def check_variance_ratio(
    estimator: Estimator,
    model: LatentModel,
    parameters: Parameters,
    exact_variance: float,
    *,
    block: str = "phi",
    factor: float = 1.1,
    seed: int = 0,
    max_draws: int = 4_000_000,
    batch: int = 4096,
) -> VarianceFinding:
    """Whether the variance of a block, summed over its coordinates, is ``exact_variance``.

    A right estimator is called WRONG with probability at most 1e-6; one whose variance is off by ``factor`` or more, up or
    down, passes with probability at most 0.01.

    Arguments:
        exact_variance: of one estimate; 0 asks that no draw deviates from the others.
        block: ``theta`` or ``phi``, or one parameter of either as ``phi.loc``.
        factor: above 1; draws grow as 1 / log(factor)^2.
        seed: of all draws; equal seeds give equal findings.
        max_draws: beyond, the outcome is INCONCLUSIVE. batch: replicates computed at once.

    Raises:
        ValueError: for a factor of at most 1, a negative variance, or a block that is not there.
    """
    columns = _columns(block, parameters)
    if factor <= 1 or exact_variance < 0 or not columns:
        raise ValueError(
            f"factor > 1, exact_variance >= 0 and a block are needed: {factor}, {exact_variance}, {block!r}"
        )
    if not estimator.variance_exists:
        return VarianceFinding("HEAVY_TAIL", "the estimator declares that its variance does not exist")
    seeds = random.Random(f"variance {seed}")
    device = next(leaf.device for leaves in parameters.values() for leaf in leaves.values())
    learning, generator = (torch.Generator(device).manual_seed(seeds.getrandbits(62)) for _ in range(2))
    estimator = warmed_up(estimator, model, parameters, learning)
    parts: list[Tensor] = []
    needed, n = PILOT, 0
    while True:
        rows = stacked(estimator, model, parameters, batch, generator)[:, columns]
        parts.append(rows.double())
        n += len(rows)
        if n < min(needed, max_draws):
            continue
        judged = _judged(torch.cat(parts), exact_variance, factor, _STILL * torch.finfo(rows.dtype).eps ** 0.5)
        if isinstance(judged, VarianceFinding):
            return judged
        needed, why = judged
        if n >= max_draws:
            return VarianceFinding(why, f"more than {n} draws are needed for a factor of {factor:g}", n)


def _judged(
    rows: Tensor, exact: float, factor: float, precision: float
) -> VarianceFinding | tuple[int, VarianceOutcome]:
    """The finding; or how many draws it takes, and what to say if there are not so many."""
    n = len(rows)
    if not bool(rows.isfinite().all()):
        bad = int((~rows.isfinite().all(1)).sum())
        return VarianceFinding("NONFINITE", f"{bad} of {n} estimates are not finite", n)
    mean = rows.mean(0)
    squares = (rows - mean).square().sum(1)
    still = precision * (float(mean.abs().max()) + 1e-3)
    if exact <= still**2:
        worst = float(squares.max().sqrt())
        if worst <= still:
            return VarianceFinding("PASS", "no draw deviates, as it should be", n)
        return VarianceFinding("WRONG", f"there should be no noise; one draw deviates by {worst:.2g}", n)
    variance = float(squares.sum() / (n - 1))
    if variance <= still**2:
        return VarianceFinding("WRONG", f"no draw deviates; the variance should be {exact:.4g}", n, 0.0, 0.0)
    fourth = squares.square()
    top = squares.topk(max(20, n // 1000)).values
    # Hill's estimator: the tail index of the squares, which stays below 1/2 where their variance exists. Polynomials of
    # normal variables, whose moments all exist, come near it; so one draw's share is asked to vanish, too.
    hill = float((top / top[-1]).log().mean())
    if hill > HEAVY:
        return VarianceFinding("HEAVY_TAIL", f"fourth moments are not to be trusted: tail index {hill:.2f}", n)
    if float(fourth.max() / fourth.sum()) > SHARE:
        return 2 * n, "HEAVY_TAIL"
    deviation = squares / squares.mean() - 1
    spread = float(deviation.square().mean().sqrt())
    skewness = float(deviation.pow(3).mean()) / max(spread, 1e-12) ** 3
    # sqrt(n) log(factor) / spread >= Z_ALARM + Z_MISS + the quantile's shift by the skewness of a mean of n, which falls as
    # 1 / sqrt(n) (Cornish and Fisher's first term): a quadratic equation in sqrt(n).
    slope, offset = math.log(factor) / spread, Z_ALARM + Z_MISS
    shift = max(skewness, 0.0) * (Z_ALARM**2 - 1) / 6
    least = ((offset + math.sqrt(offset**2 + 4 * slope * shift)) / (2 * slope)) ** 2
    if n < least:
        return math.ceil(1.05 * least), "INCONCLUSIVE"
    error, ratio = spread / math.sqrt(n), variance / exact
    if abs(math.log(ratio)) > math.log(factor) - Z_MISS * error:
        return VarianceFinding("WRONG", "the variance is not the exact one", n, ratio, error)
    return VarianceFinding("PASS", f"a variance off by a factor of {factor:g} is excluded at 99 %", n, ratio, error)


def _columns(block: str, parameters: Parameters) -> list[int]:
    wanted, _, parameter = block.partition(".")
    return [
        place
        for place, (name, leaf, _) in enumerate(coordinates(parameters), start=1)
        if name in BLOCKS and name == wanted and parameter in ("", leaf)
    ]
