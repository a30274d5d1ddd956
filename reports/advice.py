"""Which estimator, and how many samples, for a budget: the least error that the budget buys, and what stands beside it.

The error is the mean squared one of the gradient of a block, for one target: squared bias, plus variance over the number of
independent estimates that the budget pays for. Evaluations and seconds are spent, so a cheaper estimate is averaged more
often; bytes are only a limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from .statistics import Z95, holm, log_error, over_seeds

METERS = {
    "evaluations": "evaluations_per_gradient",
    "seconds": "seconds_per_gradient",
    "flops": "flops_per_gradient",
    "bytes": "peak_bytes",
}
SPENT = ("evaluations", "seconds", "flops")
"""Meters that averaging uses up; bytes are free again after each estimate."""
LEVEL = 0.05


class NoAdvice(ValueError):
    """Nothing can be advised; one line says why."""


@dataclass(frozen=True)
class Flip:
    """From this budget on (or, for ``below``, below it) another choice has the least error.

    ``ratio`` is its error over the present choice's in the middle of its range, with interval; ``told_apart`` whether that is
    less than 1 beyond noise (5 %).
    """

    budget: float
    below: bool
    estimator: str
    num_samples: int
    ratio: float
    low: float
    high: float
    told_apart: bool


@dataclass(frozen=True)
class Advice:
    """``table`` has every candidate within the budget, least error first.

    Its columns: ``estimator``, ``num_samples``, ``averaged`` (estimates that the budget pays for, whose error is ``mse``), ``batch``
    (that in whole estimates, to be averaged in one gradient; a limit of bytes says nothing against taking them one by one), ``mse_low`` and
    ``mse_high``, ``ratio`` (to the best's) with ``ratio_low``, ``ratio_high`` and Holm's ``p`` over the table, ``told_apart``.
    """

    target: str
    block: str
    meter: str
    budget: float
    table: pd.DataFrame
    flips: list[Flip]
    left_out: dict[str, int]

    @property
    def best(self) -> pd.Series:
        """The least error."""
        return self.table.iloc[0]

    @property
    def level(self) -> pd.DataFrame:
        """What cannot be told apart from the best."""
        return self.table.iloc[1:][~self.table["told_apart"].iloc[1:].astype(bool)]

    @property
    def runner_up(self) -> pd.Series | None:
        """The least error among what can be told apart from the best."""
        rest = self.table.iloc[1:][self.table["told_apart"].iloc[1:].astype(bool)]
        return rest.iloc[0] if len(rest) else None


def advise(table: pd.DataFrame, *, meter: str, budget: float, target: str = "elbo", block: str = "phi") -> Advice:
    """The least error for a budget per gradient.

    Arguments:
        table: of :func:`reports.frame`, of one problem on one machine.
        meter: a key of :data:`METERS`.
        target: as reports write it: ``elbo``, ``iwae-8``, ``log_marginal``.

    Raises:
        NoAdvice: if no measured estimator has this target, or none fits into the budget.
    """
    means = over_seeds(table)
    means = means[means["block"] == block]
    aims = [f"{one}-{key}" if key else str(one) for one, key in zip(means["target"], means["target_key"], strict=True)]
    own = means[[aim == target for aim in aims]]
    if not len(own):
        known = ", ".join(
            sorted({aim for aim, name in zip(aims, means["target"], strict=True) if isinstance(name, str)})
        )
        raise NoAdvice(
            f"nothing measured estimates the gradient of {target} in {block}; there is: {known or 'nothing'}"
        )
    bad = own["verdict"].isin(["NONFINITE", "HEAVY_TAIL"]) | ~own["variance_exists"].astype(bool)
    undeclared = own["verdict"].eq("BIASED") & own["unbiased"].eq(True)
    unknown = ~(own[METERS[meter]] > 0) | ~(own["variance"] >= 0)
    left_out = {
        "no variance, or not finite": int(bad.sum()),
        "biased although declared unbiased": int((undeclared & ~bad).sum()),
        f"no measured {meter} or variance": int((unknown & ~bad & ~undeclared).sum()),
    }
    usable = own[~bad & ~undeclared & ~unknown]
    parts = _parts(usable, meter)
    found = _ranked(parts, meter, budget)
    if not len(found):
        least = parts["cost"].min() if len(parts) else float("nan")
        raise NoAdvice(f"no sound estimator of {target} fits into {budget:g} {meter}; the cheapest takes {least:.3g}")
    left_out[f"above {budget:g} {meter}"] = len(parts) - len(found)
    flips = _flips(parts, meter, budget, found)
    left_out = {why: count for why, count in left_out.items() if count}
    return Advice(target, block, meter, budget, found, flips, left_out)


def _parts(usable: pd.DataFrame, meter: str) -> pd.DataFrame:
    """Squared bias, variance and cost of each candidate, with standard errors.

    An estimator that declares no bias, and was not found biased, has none here: what its interval leaves open is not held
    against it. One that declares a bias brings the measured one.
    """
    biased = usable["unbiased"].ne(True)
    bias = usable["bias_norm"].where(biased, 0.0).fillna(0.0)
    spread = ((usable["bias_high"] - usable["bias_low"]) / (2 * Z95)).where(biased, 0.0).fillna(0.0)
    error = log_error(usable["variance_low"], usable["variance_high"]).fillna(0.0)
    timed = log_error(usable["seconds_low"], usable["seconds_high"]).fillna(0.0) if meter == "seconds" else 0.0
    return pd.DataFrame(
        {
            "estimator": usable["estimator"], "num_samples": usable["num_samples"], "verdict": usable["verdict"],
            "bias2": bias**2, "bias2_error": 2 * bias * spread, "variance": usable["variance"],
            "log_error": np.hypot(error, timed), "cost": usable[METERS[meter]].astype(float), "biased": biased,
        }
    ).reset_index(drop=True)  # fmt: skip


def _errors(parts: pd.DataFrame, meter: str, budget: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimates that the budget pays for, mean squared error, and the standard error of its logarithm."""
    count = budget / parts["cost"].to_numpy() if meter in SPENT else np.ones(len(parts))
    noise = parts["variance"].to_numpy() / count
    mse = parts["bias2"].to_numpy() + noise
    error = np.hypot(parts["bias2_error"].to_numpy(), noise * parts["log_error"].to_numpy())
    mse = np.where(parts["cost"].to_numpy() <= budget, mse, np.inf)
    spread = np.divide(error, mse, out=np.zeros_like(mse), where=np.isfinite(mse) & (mse > 0))
    return count, mse, spread


def _ranked(parts: pd.DataFrame, meter: str, budget: float) -> pd.DataFrame:
    count, mse, spread = _errors(parts, meter, budget)
    batch = np.floor(count * (1 + 1e-9))  # a budget of 64 at cost 8 is 8, whatever the last bit of 64 / 8 says
    found = parts.assign(averaged=count, batch=batch, mse=mse, spread=spread)[np.isfinite(mse)].astype({"batch": int})
    found = found.sort_values(["mse", "estimator", "num_samples"], kind="stable", ignore_index=True)
    if not len(found):
        return found
    reach = np.exp(Z95 * found["spread"])
    found["mse_low"], found["mse_high"] = found["mse"] / reach, found["mse"] * reach
    best = found.iloc[0]
    width = np.hypot(found["spread"], best["spread"]).to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        found["ratio"] = np.where(found["mse"] == best["mse"], 1.0, found["mse"] / best["mse"])
        z = np.where(found["ratio"] == 1, 0.0, np.log(found["ratio"]) / width)
    found["ratio_low"], found["ratio_high"] = (
        found["ratio"] * np.exp(-Z95 * width),
        found["ratio"] * np.exp(Z95 * width),
    )
    p = np.ones(len(found))
    p[1:] = holm(2 * stats.norm.sf(np.abs(z[1:]))) if len(found) > 1 else p[1:]
    found["p"] = p
    found["told_apart"] = p < LEVEL
    return found


def _flips(parts: pd.DataFrame, meter: str, budget: float, found: pd.DataFrame) -> list[Flip]:
    """The nearest budgets, below and above (a thousandfold), at which another choice has the least error."""
    here = _place(parts, found.iloc[0])
    lowest, highest = float(parts["cost"].min()), budget * 1000
    flips = []
    for below, end in ((True, lowest), (False, highest)):
        grid = np.geomspace(budget, end, 600) if (end < budget) == below and end != budget else np.array([budget])
        winners = [int(np.argmin(_errors(parts, meter, step)[1])) for step in grid]
        first = next((place for place, winner in enumerate(winners) if winner != here), None)
        if first is None:
            continue
        other = winners[first]
        stay = next((place for place in range(first, len(grid)) if winners[place] != other), len(grid)) - 1
        edge = _edge(parts, meter, grid[first - 1], grid[first], here)
        middle = float(np.sqrt(grid[first] * grid[stay]))
        _, mse, spread = _errors(parts, meter, middle)
        width = float(np.hypot(spread[other], spread[here]))
        ratio = float(mse[other] / mse[here]) if np.isfinite(mse[here]) else 0.0
        known = ratio > 0
        told = not known or (width > 0 and np.log(ratio) / width < -Z95) or (width == 0 and ratio < 1)
        flips.append(
            Flip(edge, below, str(parts.loc[other, "estimator"]), int(parts.loc[other, "num_samples"]), ratio,
                 ratio * np.exp(-Z95 * width), ratio * np.exp(Z95 * width), bool(told))
        )  # fmt: skip
    return flips


def _place(parts: pd.DataFrame, row: pd.Series) -> int:
    same = (parts["estimator"] == row["estimator"]) & (parts["num_samples"] == row["num_samples"])
    return int(parts.index[same][0])


def _edge(parts: pd.DataFrame, meter: str, inside: float, outside: float, here: int) -> float:
    """Where, between two budgets, the choice stops being the best; by bisection, to a millionth."""
    for _ in range(40):
        middle = float(np.sqrt(inside * outside))
        if int(np.argmin(_errors(parts, meter, middle)[1])) == here:
            inside = middle
        else:
            outside = middle
    return outside


def _held(row: pd.Series, best: pd.Series) -> str:
    """A choice's error beside the best one's, as a ratio unless that one is zero."""
    from .wording import interval

    if best["mse"] > 0:
        return f"{interval(row['ratio'], row['ratio_low'], row['ratio_high'])} times the error"
    return "no error either" if row["mse"] == 0 else f"error {interval(row['mse'], row['mse_low'], row['mse_high'])}"


def words(advice: Advice, names: dict[str, str]) -> list[str]:
    """The advice as lines for a terminal."""
    from .wording import BLOCKS, interval, number

    def named(row: pd.Series) -> str:
        return f"{names.get(row['estimator'], row['estimator'])} with K = {row['num_samples']}"

    best, meter = advice.best, advice.meter
    exact = abs(best["averaged"] - best["batch"]) < 1e-6 * best["averaged"]
    paid = "" if exact else f" (the budget pays for {number(best['averaged'])}, and that is the error given)"
    how = f", batch {best['batch']}{paid}" if meter in SPENT else ""
    size = interval(best["mse"], best["mse_low"], best["mse_high"])
    lines = [
        f"{named(best)}{how}: mean squared error {size} of the gradient of {advice.target} in {BLOCKS[advice.block]}, "
        f"for {advice.budget:g} {meter} per gradient"
    ]
    if best["biased"]:
        lines.append(f"it declares a bias; squared, that is {number(best['bias2'])} of it")
    level = advice.level
    if len(level):
        shown = [f"{named(row)} ({_held(row, best)})" for _, row in level.head(6).iterrows()]
        more = f" and {len(level) - 6} more" if len(level) > 6 else ""
        lines.append(f"not told apart from it: {', '.join(shown)}{more}")
    second = advice.runner_up
    if second is not None:
        lines.append(f"runner-up that can be told apart: {named(second)}, {_held(second, best)}")
    for flip in advice.flips:
        where = f"below {number(flip.budget)}" if flip.below else f"from {number(flip.budget)}"
        what = f"{names.get(flip.estimator, flip.estimator)} with K = {flip.num_samples}"
        if not flip.ratio:
            lines.append(f"flips {where} {meter}: {what}, because {named(best)} costs more than that")
        else:
            surely = "" if flip.told_apart else ", not told apart"
            lines.append(
                f"flips {where} {meter}: {what} ({interval(flip.ratio, flip.low, flip.high)} times the error{surely})"
            )
    if not advice.flips:
        lines.append(f"no flip between the cheapest measured and {number(advice.budget * 1000)} {meter}")
    lines += [f"left out: {count} ({why})" for why, count in advice.left_out.items()]
    return lines
