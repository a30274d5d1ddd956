"""The first paragraph of a report: what a reader should take away, in plain words, made from the numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from .statistics import RANK, holm, log_error, sound
from .wording import BLOCKS, interval, listing

USUAL = ("iwae", "reparameterization", "leave-one-out", "score-function", "jackknife")
"""What others are held against, first that is there: what a reader knows."""
WANTED_K = 8
MOST = 4


@dataclass(frozen=True)
class Claim:
    """One estimator held against the usual one for the same target: time for the same variance, as a ratio.

    The intervals of all claims of a report hold together with 95 % (Bonferroni); ``p`` is Holm's over all of them.
    """

    problem: str
    target: str
    num_samples: int
    estimator: str
    usual: str
    ratio: float
    low: float
    high: float
    p: float


def claims(means: pd.DataFrame) -> list[Claim]:
    """Every sound estimator against the usual one, by problem and target, for the gradient in phi at one K.

    K is the largest up to 8 at which at least two can be compared, or else the smallest.
    """
    error = log_error(means["work_low"], means["work_high"])
    usable = means[sound(means) & (means["block"] == "phi") & (means["work_normalised_variance"] > 0) & (error > 0)]
    usable = usable.assign(error=error[usable.index], stem=[str(e).partition("[")[0] for e in usable["estimator"]])
    pairs: list[tuple[pd.Series, pd.Series]] = []
    for _, group in usable.groupby([name for name in RANK if name != "target_key"], dropna=False, sort=True):
        known: dict[int, tuple[pd.DataFrame, pd.Series]] = {}
        for (k, _goal), rows in group.groupby(["num_samples", "target_key"]):
            usual = next((rows[rows["stem"] == name].iloc[0] for name in USUAL if (rows["stem"] == name).any()), None)
            if usual is not None and len(rows) > 1:
                known[int(k)] = rows, usual
        if known:
            rows, usual = known[max((k for k in known if k <= WANTED_K), default=min(known))]
            pairs += [(row, usual) for index, row in rows.iterrows() if index != usual.name]
    return _claims(pairs)


def _claims(pairs: list[tuple[pd.Series, pd.Series]]) -> list[Claim]:
    if not pairs:
        return []
    gap = np.array([np.log(a["work_normalised_variance"] / b["work_normalised_variance"]) for a, b in pairs])
    width = np.array([np.hypot(a["error"], b["error"]) for a, b in pairs])
    reach = float(stats.norm.isf(0.025 / len(pairs)))
    adjusted = holm(2 * stats.norm.sf(np.abs(gap) / width))
    return [
        Claim(
            problem=str(ours["problem"]), target=str(ours["target"]), num_samples=int(ours["num_samples"]),
            estimator=str(ours["label"]), usual=str(usual["label"]), ratio=float(np.exp(g)),
            low=float(np.exp(g - reach * w)), high=float(np.exp(g + reach * w)), p=float(p),
        )
        for (ours, usual), g, w, p in zip(pairs, gap, width, adjusted, strict=True)
    ]  # fmt: skip


def opening(means: pd.DataFrame, names: dict[str, str]) -> list[str]:
    """One sentence or two for each of the first few problems; nothing where the numbers carry nothing."""
    if not len(means):
        return []
    found = claims(means)
    texts = []
    for problem, rows in means.groupby("problem", sort=True):
        parts = _against([claim for claim in found if claim.problem == problem])
        parts += _biased(rows)
        heavy = sorted({str(label) for label in rows.loc[~rows["variance_exists"].astype(bool), "label"]})
        if heavy:
            parts.append(
                f"{listing(heavy)} {'have' if len(heavy) > 1 else 'has'} no variance that could be established"
            )
        if parts:
            texts.append(f"On {names[problem]}, {'; '.join(parts)}.")
    if len(texts) > MOST:
        texts = [*texts[:MOST], f"{len(texts) - MOST} more problems are summed up below."]
    if found:
        holds = f"these {len(found)} intervals hold together" if len(found) > 1 else "the interval holds"
        texts.append(f"Times are for the same variance of the gradient in φ; {holds} at 95 %.")
    return texts


def _against(found: list[Claim]) -> list[str]:
    """By target, the least time that can be told from the usual estimator's, or that none can."""
    parts = []
    for target in dict.fromkeys(claim.target for claim in found):
        own = [claim for claim in found if claim.target == target]
        k, usual = own[0].num_samples, own[0].usual
        goal = f"{target}-{k}" if target == "iwae" else target
        better = [claim for claim in own if claim.p < 0.05 and claim.ratio < 1]
        if better:
            best = min(better, key=lambda claim: claim.ratio)
            size = interval(best.ratio, best.low, best.high)
            parts.append(f"{best.estimator} needs {size} times the time of {usual} at K = {k} ({goal})")
        else:
            parts.append(
                f"at K = {k} no estimator of {goal} was found to need less time than {usual} ({len(own)} compared)"
            )
    return parts


def _biased(rows: pd.DataFrame) -> list[str]:
    """Whose bias was seen: the declared ones, and, first, those that declare none."""
    seen = rows[(rows["verdict"] == "BIASED") & (rows["block"] != "value")]
    parts = []
    for mask, words in (
        (seen["unbiased"].eq(True), "although declared unbiased"),
        (~seen["unbiased"].eq(True), "as declared"),
    ):
        who = []
        for label, own in seen[mask].groupby("label", observed=True, sort=True):
            where = " and ".join(BLOCKS[block] for block in ("theta", "phi") if (own["block"] == block).any())
            who.append(f"{label} in {where}")
        if who:
            parts.append(f"{listing(who, 5)} {'are' if len(who) > 1 else 'is'} biased here, {words}")
    return parts
