"""Statistical proof that an estimator is unbiased for what it declares: for this suite's tests and for anyone's own.

A capped sequential probability-ratio test in up to three independent rounds (Wald, 1945; Ville's inequality for the
false-alarm rate). An unbiased estimator is called BIASED with probability at most 1e-9 a check, whatever the correlation
between the directions that are tested; a bias of the stated effect in any direction passes with probability at most 0.01.
An estimator whose variance does not exist is neither passed nor failed, but refused.

Before that, where there is so little noise that it can be summed over, the expectation is computed and compared with the
truth, which finds any bias above a stated tolerance. The sampler is tested all the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from .contract import BLOCKS, Block, Estimator, LatentModel, Parameters
from .quadrature import exact_expectation, gauss_hermite
from .replicates import coordinates, stacked, warmed_up
from .testing_dependence import dependence
from .testing_exact import TOLERANCE, deviation, settled_expectation
from .testing_tails import heavy_tail
from .testing_variance import VarianceFinding, assert_variance_ratio, check_variance_ratio

Outcome = Literal["PASS", "BIASED", "INCONCLUSIVE", "HEAVY_TAIL", "NONFINITE", "NOT_IID"]
Truth = Mapping[str, "float | Block"]
"""Exact ``value`` (nats) and gradients of ``theta`` and ``phi``; what is left out is not tested."""

ALARM = 1e-3
"""False-alarm rate of one round."""
MISS = 0.01 / 3
"""Evidence ratio at which a round passes."""
ROUNDS = 3
BATCH = 4096
"""Replicates computed at once."""
EFFECT = 0.05
"""The bias to be seen: this part of the block's gradient, this many nats of the value, or this part of one estimate's
standard deviation, whichever is least."""
PARTS = (1.0, 0.5, 0.25)
"""Of the effect, for which evidence is gathered: along a direction that is less noisy than the others, a smaller bias is seen,
too. Below an eighth of it nothing is called a bias."""
CLEAR = 4.0
"""Standard errors by which the mean must stay below the effect, when the draws are used up, to be clear of it."""
MAX_COORDINATES = 256
"""A block with more coordinates than this is tested along random directions instead."""
_STILL = 1e-9
"""Relative deviation below which a column counts as free of noise."""
RANDOM_DIRECTIONS = 64


@dataclass(frozen=True)
class Finding:
    """The outcome of a check, and what it rests on.

    ``bias`` and ``standard_error`` are those of the direction with the strongest evidence, in the last round;
    ``effect`` is the largest part of a block's gradient norm that any direction was tested for; ``exact`` the largest such
    part, or nats of the value, by which the exact expectation is off, where it was computed.
    """

    outcome: Outcome
    reason: str
    draws: int = 0
    evidence: list[float] = field(default_factory=list)
    direction: str = ""
    bias: float = math.nan
    standard_error: float = math.nan
    effect: float = math.nan
    exact: float = math.nan

    def __str__(self) -> str:
        text = f"{self.outcome}: {self.reason}"
        if self.direction:
            text += f" [{self.direction}: bias {self.bias:+.3g} +- {self.standard_error:.2g}, {self.draws} draws]"
        if self.outcome == "PASS" and self.exact - self.exact == 0:
            text += f"; summed over all noise it is off by {self.exact:.0e} at most"
        return text


@dataclass(frozen=True)
class _Directions:
    """Unit vectors ``(J, columns)`` with names, and for each the effect beyond which its bias matters."""

    vectors: Tensor
    names: list[str]
    effects: Tensor
    scales: Tensor

    def only(self, kept: Tensor) -> _Directions:
        """Those directions that the mask ``(J,)`` keeps."""
        names = [name for name, keep in zip(self.names, kept.tolist(), strict=True) if keep]
        return _Directions(self.vectors[kept], names, self.effects[kept], self.scales[kept])


def assert_unbiased(
    estimator: Estimator, model: LatentModel, parameters: Parameters, truth: Truth, *, seed: int = 0
) -> Finding:
    """Fail unless the estimator is shown to be unbiased for the given truth; return the finding.

    Raises:
        AssertionError: for every outcome but PASS; the message says which and why.
    """
    finding = check_unbiased(estimator, model, parameters, truth, seed=seed)
    if finding.outcome != "PASS":
        raise AssertionError(f"{estimator.label()}: {finding}")
    return finding


def check_unbiased(
    estimator: Estimator,
    model: LatentModel,
    parameters: Parameters,
    truth: Truth,
    *,
    seed: int = 0,
    pilot: int = 80_000,
    max_draws: int = 2_000_000,
    batch: int | None = None,
    tolerance: float = TOLERANCE,
) -> Finding:
    """Whether the mean of the estimator is ``truth``.

    Arguments:
        truth: exact value and gradients in the shapes of ``parameters``.
        seed: of all draws; equal seeds give equal findings.
        pilot: draws, of their own stream, that look for heavy tails, dependence and skewness.
        max_draws: of one round; beyond, the outcome is INCONCLUSIVE.
        batch: replicates computed at once; without it :data:`BATCH`, and four times as many of an estimator that draws a random
            number of samples.
        tolerance: the bias to be seen where the expectation can be summed over all noise, as a part of the block's gradient.

    Returns:
        A finding; nothing is raised for a biased estimator.
    """
    if not estimator.variance_exists:
        return Finding("HEAVY_TAIL", "the estimator declares that its variance does not exist")
    # Of random length, a batch falls into a dozen groups of one length each, and small groups cost as much as larger ones.
    batch = batch or (4 * BATCH if estimator.random_cost else BATCH)
    seeds = random.Random(seed)
    learning = torch.Generator(_device(parameters)).manual_seed(random.Random(f"warm-up {seed}").getrandbits(62))
    estimator = warmed_up(estimator, model, parameters, learning)

    def stream() -> Iterator[Tensor]:
        generator = torch.Generator(_device(parameters)).manual_seed(seeds.getrandbits(62))
        while True:
            yield stacked(estimator, model, parameters, batch, generator).double()

    exact = settled_expectation(estimator, model, parameters)
    return check_stream(stream, parameters, truth, pilot=pilot, max_draws=max_draws, exact=exact, tolerance=tolerance)


def check_stream(
    stream: Callable[[], Iterator[Tensor]],
    parameters: Parameters,
    truth: Truth,
    *,
    pilot: int = 80_000,
    max_draws: int = 2_000_000,
    exact: tuple[Tensor, Tensor] | None = None,
    tolerance: float = TOLERANCE,
) -> Finding:
    """The test behind :func:`check_unbiased`, on any source of independent rows ``(R, 1 + P)`` in float64.

    Each call of ``stream`` gives a fresh, independent, endless iterator of batches; columns are those of
    :func:`estimators.replicates.flatten`. ``exact`` is their mean as it was computed, and how far that may be off.
    """
    rows = _take(stream(), pilot)
    expected, tested = _expected(truth, parameters, rows)
    if not bool(rows[:, tested].isfinite().all()):
        bad = int((~rows[:, tested].isfinite().all(1)).sum())
        return Finding("NONFINITE", f"{bad} of {len(rows)} estimates are not finite", len(rows))
    if not bool(tested.any()):
        return Finding("INCONCLUSIVE", "nothing to test: no block has both a target and a known gradient")
    directions = _directions(expected, tested, parameters)
    centred = (torch.where(tested, rows, 0.0) - expected) @ directions.vectors.T
    heavy = heavy_tail(rows, stream(), expected, tested)
    if heavy is not None:
        return Finding("HEAVY_TAIL", *heavy)
    dependent = dependence(centred - centred.mean(0))
    if dependent is not None:
        return Finding("NOT_IID", dependent, len(rows))
    wrong = _wrong_without_noise(rows, expected, tested, parameters)
    if wrong is not None:
        return wrong
    off = math.nan
    if exact is not None:
        worst, bias, off = deviation(
            exact, expected, tested, (directions.vectors, directions.scales), centred, tolerance
        )
        if worst is not None:
            reason = f"summed over all noise it is off by {off:.2%} of the gradient (or of 1 nat)"
            return Finding("BIASED", reason, len(rows), [], directions.names[worst], bias, 0.0, tolerance, off)
    noisy = centred.std(0) > _STILL * _scale(expected, tested)
    if not bool(noisy.any()):
        return Finding("PASS", "equal to the truth in every draw", len(rows), effect=0.0, exact=off)
    skew = _skewness(centred[:, noisy]).abs()
    return replace(_rounds(stream, expected, tested, directions.only(noisy), skew, max_draws), exact=off)


def _rounds(
    stream: Callable[[], Iterator[Tensor]],
    expected: Tensor,
    tested: Tensor,
    directions: _Directions,
    skew: Tensor,
    max_draws: int,
) -> Finding:
    """Up to three rounds; only three suspicions in a row are called a bias."""
    evidence: list[float] = []
    guard = torch.minimum(torch.full_like(skew, EFFECT), 0.2 / skew.clamp_min(1e-12))
    least = max(2000, int(20 * float(skew.max()) ** 2))
    for _ in range(ROUNDS):
        n = 0
        total = torch.zeros(len(directions.names), dtype=torch.float64, device=expected.device)
        squares = torch.zeros_like(total)
        looked = 0
        for rows in stream():
            if not bool(rows[:, tested].isfinite().all()):
                return Finding("NONFINITE", "an estimate is not finite", n, evidence)
            x = (torch.where(tested, rows, 0.0) - expected) @ directions.vectors.T
            n, total, squares = n + len(x), total + x.sum(0), squares + x.square().sum(0)
            # Looks are an eighth apart: the bound holds at any time, and fewer looks cost fewer draws of overshoot.
            if n < max(least, looked + looked // 8):
                continue
            looked = n
            variance = (squares / n - (total / n).square()).clamp_min(1e-300)
            effect = torch.minimum(directions.effects, guard * variance.sqrt())
            sizes = effect * torch.tensor(PARTS, dtype=effect.dtype, device=effect.device)[:, None]
            log_ratios = _log_cosh(sizes * total / variance) - n * sizes.square() / (2 * variance)
            e_value = float((log_ratios.flatten().logsumexp(0) - math.log(log_ratios.numel())).exp().clamp_max(1e300))
            log_ratio, worst = log_ratios[0], int(log_ratios.amax(0).argmax())
            excluded = log_ratio <= math.log(MISS)
            if n >= max_draws:
                # Where skewness, and not noise, keeps the effect small, the mean itself is clear of any bias that matters.
                clear = total.abs() / n + CLEAR * (variance / n).sqrt() <= directions.effects
                effect = torch.where(~excluded & clear & directions.effects.isfinite(), directions.effects, effect)
                excluded |= clear & directions.effects.isfinite()
            facts = {
                "draws": n,
                "direction": directions.names[worst],
                "bias": float(total[worst] / n),
                "standard_error": float((variance[worst] / n).sqrt()),
                "effect": float((effect / directions.scales).max()),
            }
            if e_value >= 1 / ALARM:
                evidence.append(e_value)
                break
            if bool(excluded.all()):
                seen = f"a bias above {facts['effect']:.1%} of the gradient (or of 1 nat) is excluded"
                return Finding("PASS", f"{seen} at 99 %", evidence=[*evidence, e_value], **facts)  # type: ignore[arg-type]
            if n >= max_draws:
                reason = f"undecided after {n} draws: too noisy for the bias that matters"
                return Finding("INCONCLUSIVE", reason, evidence=[*evidence, e_value], **facts)  # type: ignore[arg-type]
    size = f"{facts['bias']:+.3g} +- {facts['standard_error']:.2g}"
    return Finding("BIASED", f"bias {size} in three rounds", evidence=evidence, **facts)  # type: ignore[arg-type]


def _take(batches: Iterator[Tensor], count: int) -> Tensor:
    rows: list[Tensor] = []
    while sum(map(len, rows)) < count:
        rows.append(next(batches))
    return torch.cat(rows)[:count]


def _device(parameters: Parameters) -> torch.device:
    return next(leaf.device for block in parameters.values() for leaf in block.values())


def _expected(truth: Truth, parameters: Parameters, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Truth as a row ``(1 + P,)``, zero where unknown, and which columns are tested."""
    pieces, tested = [], []
    value = truth.get("value")
    has_value = isinstance(value, (int, float)) and not bool(rows[:, 0].isnan().all())
    pieces.append(rows.new_tensor([float(value) if has_value else 0.0]))  # type: ignore[arg-type]
    tested.append(torch.tensor([has_value], device=rows.device))
    for block in BLOCKS:
        known = truth.get(block)
        for name, leaf in parameters[block].items():
            pieces.append(
                known[name].reshape(-1).to(rows) if isinstance(known, Mapping) else rows.new_zeros(leaf.numel())
            )
            tested.append(torch.full((leaf.numel(),), known is not None, device=rows.device))
    return torch.cat(pieces), torch.cat(tested)


def _directions(expected: Tensor, tested: Tensor, parameters: Parameters) -> _Directions:
    """The value, each coordinate (or random directions where there are too many), each block's gradient, the whole."""
    names = ["value", *(f"{block}.{name}[{place}]" for block, name, place in coordinates(parameters))]
    blocks = torch.tensor(
        [-1, *(BLOCKS.index(block) for block, _, _ in coordinates(parameters))], device=expected.device
    )
    vectors, labels, scales = [], [], []

    def add(vector: Tensor, label: str, scale: float) -> None:
        if bool(vector.any()):
            vectors.append(vector / vector.norm())
            labels.append(label)
            scales.append(scale)

    def axis(place: int) -> Tensor:
        vector = torch.zeros_like(expected)
        vector[place] = 1.0
        return vector

    if bool(tested[0]):
        add(axis(0), "value", 1.0)
    whole = torch.where(blocks >= 0, expected, 0.0)
    for index, block in enumerate(BLOCKS):
        here = (blocks == index) & tested
        part = torch.where(here, expected, 0.0)
        scale = float(part.norm()) or math.inf
        places = here.nonzero()[:, 0].tolist()
        if len(places) <= MAX_COORDINATES:
            for place in places:
                add(axis(place), names[place], scale)
        else:
            generator = torch.Generator().manual_seed(index)
            for i in range(RANDOM_DIRECTIONS):
                noise = torch.randn(len(expected), generator=generator, dtype=torch.float64).to(expected)
                add(torch.where(here, noise, 0.0), f"{block}: random direction {i}", scale)
        if len(places) > 1:
            add(part, f"{block}: along its gradient", scale)
    if bool((tested & (blocks == 0)).any()) and bool((tested & (blocks == 1)).any()):
        add(whole, "along the whole gradient", float(whole.norm()) or math.inf)
    scale_row = expected.new_tensor(scales)
    return _Directions(torch.stack(vectors), labels, EFFECT * scale_row, scale_row)


def _scale(expected: Tensor, tested: Tensor) -> Tensor:
    return torch.where(tested, expected, 0.0).abs().max() + 1e-12


def _wrong_without_noise(rows: Tensor, expected: Tensor, tested: Tensor, parameters: Parameters) -> Finding | None:
    """BIASED where a column does not vary and is not the truth."""
    scale = _scale(expected, tested)
    error = (rows.mean(0) - expected).abs()
    wrong = tested & (rows.std(0) <= _STILL * scale) & (error > 1e-6 * scale)
    if not bool(wrong.any()):
        return None
    place = int(torch.where(wrong, error, 0.0).argmax())
    names = ["value", *(f"{b}.{n}[{i}]" for b, n, i in coordinates(parameters))]
    bias = float(rows[:, place].mean() - expected[place])
    return Finding("BIASED", "does not vary, and is not the truth", len(rows), [], names[place], bias, 0.0)


def _skewness(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    spread = centred.square().mean(0)
    return torch.where(spread > 1e-24, centred.pow(3).mean(0) / spread.clamp_min(1e-24) ** 1.5, 0.0)


def _log_cosh(x: Tensor) -> Tensor:
    """log cosh x without overflow."""
    return x.abs() + torch.nn.functional.softplus(-2 * x.abs()) - math.log(2)


__all__ = [
    "Finding",
    "Outcome",
    "Truth",
    "VarianceFinding",
    "assert_unbiased",
    "assert_variance_ratio",
    "check_stream",
    "check_unbiased",
    "check_variance_ratio",
    "exact_expectation",
    "gauss_hermite",
]
