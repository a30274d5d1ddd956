"""Two runs beside each other, cell by cell: what changed, by how much, and whether that can be told from noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from .statistics import ARITHMETIC, Z95, holm, log_error
from .tables import Run

CELL = ["problem", "estimator", "num_samples", "seed", *ARITHMETIC]
"""What makes two cells of two runs a pair; their versions may differ, or there would be nothing to compare."""

SETTING = [name for name in CELL if name != "seed"]
METRICS = {"variance": 1.0, "seconds": 1.1, "verdict": None, "status": None}
"""What can get worse, and the ratio above which it counts: timings of one machine drift by some percent between runs."""

BAD = ("BIASED", "NONFINITE", "HEAVY_TAIL")
LEVEL = 0.05


def same_machine(before: Run, after: Run) -> str:
    """Why the seconds of two runs cannot be compared, or nothing."""
    for key in ("processor", "accelerator", "torch threads per worker"):
        one, other = before.environment.get(key), after.environment.get(key)
        if one is None or other is None:
            return f"not recorded for both runs: {key}"
        if one != other:
            return f"{key}: {one} before, {other} after"
    return ""


def deltas(
    before: pd.DataFrame, after: pd.DataFrame, limits: Mapping[str, float] | None = None, seconds: bool = True
) -> pd.DataFrame:
    """Ratios after / before of variance and seconds per gradient: a row per setting, block and metric.

    Seeds are paired, and their logarithms averaged. ``low`` and ``high`` are 95 % intervals by the delta method, which takes the
    two runs as independent: where both used the same draws it errs on the wide side. ``p`` is Holm's over all rows of one
    metric, for the ratio being 1; ``p_worse``, one-sided, for it being at most ``limits[metric]``. ``change`` is worse or
    better where ``p`` (and, for worse, ``p_worse``) is below 5 %, and otherwise "not told apart".
    """
    limits = {**{name: limit for name, limit in METRICS.items() if limit}, **(limits or {})}
    found = [_ratios(before, after, "variance", "variance", "variance", [*SETTING, "block"])]
    if seconds:
        found.append(_ratios(before, after, "seconds", "seconds_per_gradient", "seconds", SETTING))
    rows = pd.concat(found, ignore_index=True)
    rows["limit"] = rows["metric"].map(limits).astype(float)
    error = rows["error"].where(rows["error"] > 0)
    z = np.log(rows["ratio"]) / error
    above = (np.log(rows["ratio"]) - np.log(rows["limit"])) / error
    same = rows["ratio"].eq(1)  # the same draws, the same numbers: no noise stands between them
    rows["p"] = pd.Series(2 * stats.norm.sf(z.abs()), rows.index).mask(same, 1.0)
    rows["p_worse"] = pd.Series(stats.norm.sf(above), rows.index).mask(same & (rows["limit"] >= 1), 1.0)
    for name in ("p", "p_worse"):
        for _, group in rows[rows[name].notna()].groupby("metric"):
            rows.loc[group.index, name] = holm(group[name].to_numpy())
    rows["low"] = rows["ratio"] * np.exp(-Z95 * error)
    rows["high"] = rows["ratio"] * np.exp(Z95 * error)
    rows["change"] = "not told apart"
    rows.loc[(rows["p"] < LEVEL) & (rows["ratio"] < 1), "change"] = "better"
    rows.loc[(rows["p"] < LEVEL) & (rows["ratio"] > 1), "change"] = "worse, within the limit"
    rows.loc[rows["p_worse"] < LEVEL, "change"] = "worse"
    return rows.drop(columns="error").sort_values(["metric", *SETTING, "block"], ignore_index=True, na_position="first")


def _ratios(
    before: pd.DataFrame, after: pd.DataFrame, metric: str, column: str, prefix: str, place: list[str]
) -> pd.DataFrame:
    names = [column, f"{prefix}_low", f"{prefix}_high"]
    key = [*place, "seed"]
    sides = []
    for table in (before, after):
        done = table[(table["status"] == "ok") & (table[column] > 0)]
        sides.append(done.drop_duplicates(key)[[*key, *names]])
    pairs = sides[0].merge(sides[1], on=key, suffixes=("_before", "_after"))
    pairs["log"] = np.log(pairs[f"{column}_after"] / pairs[f"{column}_before"])
    spread = [log_error(pairs[f"{prefix}_low_{side}"], pairs[f"{prefix}_high_{side}"]) for side in ("before", "after")]
    pairs["square"] = spread[0] ** 2 + spread[1] ** 2
    grouped = pairs.groupby(place, dropna=False, sort=True)
    size = grouped.size()
    joined = pd.DataFrame(
        {
            "seeds": size,
            "before": grouped[f"{column}_before"].mean(),
            "after": grouped[f"{column}_after"].mean(),
            "ratio": np.exp(grouped["log"].mean()),
            "error": np.sqrt(grouped["square"].sum(min_count=1)) / size,
        }
    ).reset_index()
    joined.insert(0, "metric", metric)
    if "block" not in joined:
        joined["block"] = None
    return joined


def turned(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Verdicts and statuses that differ: a row each, ``change`` worse, better or other.

    Worse: a cell that was measured and now is not, or a block that is now biased although declared unbiased, or not finite, or
    without a variance, and was none of these.
    """
    rows = []
    one = before.drop_duplicates(CELL).set_index(CELL)["status"]
    two = after.drop_duplicates(CELL).set_index(CELL)["status"]
    for key in one.index.intersection(two.index, sort=False):
        if one[key] != two[key]:
            change = "worse" if one[key] == "ok" else "better" if two[key] == "ok" else "other"
            rows.append([*key, None, "status", one[key], two[key], change])
    key_ = [*CELL, "block"]
    wanted = [*key_, "verdict", "unbiased"]
    done = [table.loc[(table["status"] == "ok") & table["block"].notna(), wanted] for table in (before, after)]
    pairs = done[0].merge(done[1], on=key_, suffixes=("_before", "_after"))
    for row in pairs[pairs["verdict_before"] != pairs["verdict_after"]].to_dict(orient="records"):
        was, now = (_alarm(row[f"verdict_{side}"], row[f"unbiased_{side}"]) for side in ("before", "after"))
        change = "worse" if now and not was else "better" if was and not now else "other"
        rows.append([*(row[name] for name in key_), "verdict", row["verdict_before"], row["verdict_after"], change])
    return pd.DataFrame(rows, columns=[*key_, "metric", "before", "after", "change"])


def _alarm(verdict: str, unbiased: object) -> bool:
    return verdict in BAD and not (verdict == "BIASED" and unbiased is not True)


def alone(before: pd.DataFrame, after: pd.DataFrame) -> tuple[int, int]:
    """How many cells only the first, and only the second run has."""
    one, two = (set(table.drop_duplicates(CELL)[CELL].itertuples(index=False, name=None)) for table in (before, after))
    return len(one - two), len(two - one)


def worse(rows: pd.DataFrame, changes: pd.DataFrame, metrics: Sequence[str]) -> list[str]:
    """One line for each thing that got worse among the named metrics, largest ratio first."""
    bad = rows[(rows["change"] == "worse") & rows["metric"].isin(metrics)].sort_values("ratio", ascending=False)
    lines = [line(row) for row in bad.to_dict(orient="records")]
    lost = changes[(changes["change"] == "worse") & changes["metric"].isin(metrics)]
    return lines + [line(row) for row in lost.to_dict(orient="records")]


def line(row: Mapping[str, object]) -> str:
    """A change in words."""
    from .wording import BLOCKS, interval

    block = f", {BLOCKS[str(row['block'])]}" if isinstance(row["block"], str) else ""
    where = f"{row['estimator']} at K = {row['num_samples']} on {row['problem']}{block}"
    if "ratio" not in row:
        return f"{row['metric']}: {row['before']} -> {row['after']}: {where}"
    return f"{row['metric']} x {interval(row['ratio'], row['low'], row['high'])}: {where}"
