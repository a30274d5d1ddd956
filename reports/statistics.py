"""What is computed from the table of records: means over seeds, slopes, rank groups, fronts, ratios.

All intervals are 95 %. Comparisons of positive quantities (variances, seconds) are made on logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

Z95 = float(stats.norm.ppf(0.975))
ARITHMETIC = ["dtype", "device", "compiled", "matmul_precision"]
"""What numbers are computed with, and where: rows that differ in it are other cells, and are never compared as one."""

SERIES = ["run", "problem", "library", "estimator", "block", *ARITHMETIC]
"""One line of a figure: everything but K and the seed."""

RANK = ["run", "problem", "block", "target", "target_key", *ARITHMETIC]
"""Rows that may be ranked against each other: one machine, one problem, one block, one target."""

COSTS = {
    "evaluations_per_gradient": "log p(x, z) evaluations per gradient",
    "seconds_per_gradient": "seconds per gradient",
    "flops_per_gradient": "FLOPs per gradient",
    "peak_bytes": "peak memory (bytes)",
}
SEVERITY = ["PASS", "NO_REFERENCE", "INCONCLUSIVE", "HEAVY_TAIL", "BIASED", "NONFINITE"]
_MEASURED = ["bias_norm", "variance", "snr", "seconds_per_gradient"]
_BOUNDS = {
    **{"bias_norm": "bias", "variance": "variance", "snr": "snr", "seconds_per_gradient": "seconds"},
    **{"tail_index": "tail_index"},
}
_MEANS = [
    *["mean_norm", "reference_norm", "reference_standard_error", "detectable_bias", "exact_variance", "snr_floor"],
    *["snr_slope_theory", "mse", "skewness", "kurtosis", "median_of_means", "cosine"],
    *["gradients_per_second"],
    *["evaluations_per_gradient", "flops_per_gradient", "bytes_moved_per_gradient", "peak_bytes"],
    *["tail_ratio", "target_num_samples"],
]


def log_error(low: pd.Series, high: pd.Series) -> pd.Series:
    """Standard error of the logarithm of a positive quantity, from its 95 % interval; NaN where that does not exist."""
    positive = (low > 0) & (high > 0)
    return (np.log(high.where(positive)) - np.log(low.where(positive))) / (2 * Z95)


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """One row per series and K: the finished cells, averaged over their seeds.

    Intervals of a mean join the seeds' own half-widths in quadrature (Zou and Donner's MOVER), so one seed keeps its
    interval. ``verdict`` is the most severe of the seeds' verdicts, ``verdicts`` counts them, ``bias_z`` is the largest
    in size. A quantity that one seed lacks has no mean.
    """
    done = table[(table["status"] == "ok") & table["block"].notna()].reset_index(drop=True)
    groups = done.groupby([*SERIES, "num_samples"], dropna=False, sort=True)
    place = groups.ngroup()
    joined = done.loc[~place.duplicated()].assign(_place=place).sort_values("_place").reset_index(drop=True)
    joined = joined.drop(columns="_place")
    joined["seeds"] = groups.size().to_numpy()
    joined["replicates"] = done["replicates"].groupby(place).sum()
    joined = joined.assign(**_verdicts(done, place))
    joined["variance_exists"] = done["variance_exists"].ne(False).groupby(place).all()
    largest = done["bias_z"].astype(float).abs().groupby(place).transform("max")
    known = done[done["bias_z"].abs() == largest]
    for column in ("bias_z", "worst_direction"):
        joined[column] = known[column].groupby(place[known.index]).first().reindex(joined.index)
    for column in _MEANS:
        joined[column] = _mean(done[column], place)
    for column, prefix in _BOUNDS.items():
        value, low, high = (done[name].astype(float) for name in (column, f"{prefix}_low", f"{prefix}_high"))
        joined[column] = _mean(value, place)
        for name, half in ((f"{prefix}_low", low - value), (f"{prefix}_high", high - value)):
            sign = -1.0 if name.endswith("low") else 1.0
            joined[name] = joined[column] + sign * np.sqrt(_mean(half**2, place) / joined["seeds"])
    own = joined["target_num_samples"].where(~joined["target"].isin(["elbo", "log_marginal", "forward_kl"]))
    joined["target_key"] = [f"{k:g}" if k == k else "" for k in own.astype(float)]
    for column in [*_MEASURED, *_MEANS, "bias_z", "work_normalised_variance", "work_low", "work_high"]:
        joined[column] = pd.to_numeric(joined[column]) if column in joined else np.nan
    joined["num_samples"] = joined["num_samples"].astype("int64")
    joined["work_normalised_variance"] = joined["variance"] * joined["seconds_per_gradient"]
    error = np.hypot(
        log_error(joined["variance_low"], joined["variance_high"]),
        log_error(joined["seconds_low"], joined["seconds_high"]),
    )
    joined["work_low"] = joined["work_normalised_variance"] * np.exp(-Z95 * error)
    joined["work_high"] = joined["work_normalised_variance"] * np.exp(Z95 * error)
    return joined


def _mean(values: pd.Series, place: pd.Series) -> pd.Series:
    """Means by group; none where one is missing."""
    grouped = values.astype(float).groupby(place)
    return grouped.mean().where(grouped.count() == grouped.size())


def _verdicts(done: pd.DataFrame, place: pd.Series) -> dict[str, pd.Series]:
    """By group: the most severe verdict, its first reason, and a count of all."""
    severity = done["verdict"].map({name: code for code, name in enumerate(SEVERITY)})
    worst = done[severity == severity.groupby(place).transform("max")]
    first = worst.groupby(place[worst.index])[["verdict", "verdict_reason"]].first()
    counts = pd.crosstab(place, done["verdict"]).reindex(columns=SEVERITY, fill_value=0)
    texts = [
        ", ".join(f"{count}× {name}" for name, count in zip(SEVERITY, row, strict=True) if count)
        for row in counts.itertuples(index=False, name=None)
    ]
    return {
        "verdict": first["verdict"],
        "verdict_reason": first["verdict_reason"],
        "verdicts": pd.Series(texts, index=counts.index, dtype=object),
    }


def slopes(means: pd.DataFrame, smallest_p: float = 0.01) -> pd.DataFrame:
    """Slope of log SNR on log K for each series, with interval, beside theory's.

    Weighted least squares with the errors that the SNR's own intervals state, over the K whose SNR is above three times
    its own floor. Theory's slopes hold for large K: while a straight line is contradicted (chi-square,
    ``p < smallest_p``) and more than three K are left, the smallest K is dropped; a misfit that remains beyond what noise
    explains (10 %) widens the interval (Birge ratio, Student's t). ``k_low`` to ``k_high`` is the range that was used. ``slope_exact`` is that of
    the exact SNR over the same K with the same weights, where the exact gradient and variance are known.
    """
    kept = [
        *SERIES,
        "snr_slope_theory",
        "target",
        "tail_ratio",
        *(name for name in ("label", "title") if name in means),
    ]
    found = []
    for _, series in means[means["block"] != "value"].groupby(SERIES, dropna=False, sort=True):
        error = log_error(series["snr_low"], series["snr_high"])
        clear = (
            (series["snr"] > 3 * series["snr_floor"].fillna(0)) & (error > 0) & series["variance_exists"].astype(bool)
        )
        used = series[clear].sort_values("num_samples")
        if len(used) < 3:
            continue
        k, y, e = np.log(used["num_samples"]), np.log(used["snr"]), error[used.index]
        fit = weighted_line(k, y, e)
        while fit["p"] < smallest_p and len(k) > 3:
            k, y, e = k[1:], y[1:], e[1:]
            fit = weighted_line(k, y, e)
        fit["slope_exact"] = math.nan
        exact = _exact_snr(used.loc[k.index])
        if exact.notna().all():
            fit["slope_exact"] = weighted_line(k, np.log(exact), e)["slope"]
        ks = np.exp(k).round().astype(int)
        span = {"k_low": ks.iloc[0], "k_high": ks.iloc[-1], "points": len(k), "left_out": len(series) - len(k)}
        found.append({name: used[name].iloc[-1] for name in kept} | fit | span)
    numbers = [
        "slope",
        "slope_low",
        "slope_high",
        "slope_exact",
        "intercept",
        "p",
        "k_low",
        "k_high",
        "points",
        "left_out",
    ]
    return pd.DataFrame(found, columns=[*kept, *numbers])


def _exact_snr(rows: pd.DataFrame) -> pd.Series:
    """|E g| / sqrt(V) where both are known exactly: an unbiased estimator of an exact target with an exact variance."""
    known = (rows["unbiased"] == True) & (rows["reference_standard_error"] == 0)  # noqa: E712
    return (rows["reference_norm"] / np.sqrt(rows["exact_variance"].astype(float))).where(known)


def weighted_line(x: pd.Series, y: pd.Series, error: pd.Series) -> dict[str, float]:
    """Line through points with known standard errors: slope with 95 % interval, intercept, chi-square p-value.

    The interval is that of the known errors, unless these do not explain the misfit (p < 10 %); were it widened for any misfit,
    it would cover too often.
    """
    x, y, weight = (np.asarray(part, dtype=float) for part in (x, y, 1 / np.asarray(error, dtype=float) ** 2))
    centre = np.average(x, weights=weight)
    spread = float(np.sum(weight * (x - centre) ** 2))
    slope = float(np.sum(weight * (x - centre) * y) / spread)
    intercept = float(np.average(y, weights=weight) - slope * centre)
    freedom = len(x) - 2
    misfit = float(np.sum(weight * (y - intercept - slope * x) ** 2))
    p = float(stats.chi2.sf(misfit, freedom)) if freedom > 0 else 1.0
    half = Z95 / math.sqrt(spread)
    if p < 0.1:
        half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(misfit / freedom / spread)
    return {"slope": slope, "slope_low": slope - half, "slope_high": slope + half, "intercept": intercept, "p": p}


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p-values, in the given order."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def rank_groups(means: pd.DataFrame, column: str = "work_normalised_variance", level: float = 0.05) -> pd.Series:
    """Rank group (1 is smallest) of each row among the rows of the same :data:`RANK`; NaN where a row cannot be ranked.

    All pairs are compared on logarithms, with Holm's correction over them. Two rows that cannot be told apart are in
    one group, and so is whatever hangs together by such pairs: between groups *every* pair can be told apart. Rows that
    are biased, not finite, heavy-tailed, alone, or without interval are not ranked.
    """
    prefix = {"work_normalised_variance": "work"}.get(column, _BOUNDS.get(column, column))
    error = log_error(means[f"{prefix}_low"], means[f"{prefix}_high"])
    fit = sound(means) & (means[column] > 0) & error.notna()
    groups = pd.Series(np.nan, index=means.index)
    for _, rows in means[fit].groupby(RANK, dropna=False):
        if len(rows) < 2:
            continue
        rows = rows.sort_values(column)
        value, spread = np.log(rows[column].to_numpy()), error[rows.index].to_numpy()
        first, second = np.triu_indices(len(rows), k=1)
        gap = value[second] - value[first]
        width = np.hypot(spread[first], spread[second])
        z = np.divide(gap, width, out=np.where(gap > 0, np.inf, 0.0), where=width > 0)
        alike = holm(2 * stats.norm.sf(z)) > level
        reach = np.arange(len(rows))  # furthest row that cannot be told apart from this one or one before it
        np.maximum.at(reach, first[alike], second[alike])
        reach = np.maximum.accumulate(reach)
        starts = np.concatenate([[True], reach[:-1] < np.arange(1, len(rows))])
        groups[rows.index] = np.cumsum(starts)
    return groups


def sound(means: pd.DataFrame) -> pd.Series:
    """Rows whose variance can be compared: it exists, there is a target, no bias and no non-finite value was found."""
    bad = means["verdict"].isin(["BIASED", "NONFINITE", "HEAVY_TAIL"])
    return means["variance_exists"].astype(bool) & ~bad & means["target"].notna()


def pareto(means: pd.DataFrame, cost: str, value: str = "variance") -> pd.Series:
    """Whether no other sound row of the same :data:`RANK` has both less ``cost`` and less ``value``.

    Where one estimator stands alone for its target, it is on no front.
    """
    front = pd.Series(False, index=means.index)
    usable = means[sound(means) & (means[cost] > 0) & (means[value] > 0)]
    for _, rows in usable.groupby(RANK, dropna=False):
        if rows["estimator"].nunique() < 2:
            continue
        rows = rows.sort_values([cost, value], kind="stable")
        best = rows[value].cummin().shift(fill_value=np.inf)
        front[rows.index] = rows[value] < best
    return front


def beside(means: pd.DataFrame) -> pd.DataFrame:
    """Pyro's estimators beside their counterparts of ours: one row per problem, K and block.

    ``variance_ratio`` and ``seconds_ratio`` are Pyro's over ours, with intervals by the delta method on logarithms and
    Holm-adjusted p-values (over the table) of the ratio being 1. ``expectation`` says whether the means agree, as far
    as the verdicts carry it: ``agree`` if neither was found biased and both passed, ``differ`` if exactly one was found
    biased, ``both biased``, else ``not decided``. ``worst_direction`` is that of Pyro's mean, with its z-score and the size
    of the bias. ``memory_ratio`` is of counted bytes, and so without an interval.
    """
    place = ["run", "problem", "block", "num_samples", "dtype", "device", "matmul_precision"]
    theirs = means[(means["library"] != "gradest") & means["counterpart"].notna()]
    ours: dict[tuple[object, ...], list[pd.Series]] = {}
    for _, our in means[means["library"] == "gradest"].iterrows():
        ours.setdefault(tuple(our[place]), []).append(our)
    rows = []
    for _, their in theirs.iterrows():
        same = ours.get(tuple(their[place]), [])
        exact = [our for our in same if our["estimator"] == their["counterpart"]]
        name = str(their["counterpart"]).partition("[")[0]
        named = [our for our in same if str(our["estimator"]).partition("[")[0] == name]
        rows += [_ratio_row(their, our, place) for our in exact or named]
    names = [*place, "library", "estimator", "counterpart", "compiled", "expectation", "their_verdict", "our_verdict"]
    names += ["worst_direction", "bias_z", "bias_norm", "bias_low", "bias_high", "reference_norm", "memory_ratio"]
    for quantity in ("variance", "seconds"):
        names += [f"{quantity}_ratio", f"{quantity}_ratio_low", f"{quantity}_ratio_high", f"{quantity}_p"]
    table = pd.DataFrame(rows, columns=names)
    for quantity in ("variance", "seconds"):
        known = table[f"{quantity}_p"].notna()
        table.loc[known, f"{quantity}_p"] = holm(table.loc[known, f"{quantity}_p"].to_numpy(dtype=float))
    return table


def _ratio_row(their: pd.Series, our: pd.Series, place: list[str]) -> dict[str, object]:
    verdicts = {their["verdict"], our["verdict"]}
    same_target = their["target"] == our["target"] and their["target_key"] == our["target_key"]
    expectation = "not decided"
    if not same_target:
        expectation = "different targets"
    elif verdicts == {"PASS"}:
        expectation = "agree"
    elif verdicts == {"BIASED"}:
        expectation = "both biased"
    elif "BIASED" in verdicts:
        expectation = "differ"
    row: dict[str, object] = {name: their[name] for name in [*place, "library", "estimator"]}
    row |= {"counterpart": our["estimator"], "compiled": our["compiled"], "expectation": expectation}
    row |= {"their_verdict": their["verdict"], "our_verdict": our["verdict"]}
    row |= {name: their[name] for name in (*_BIAS, "reference_norm")}
    row["memory_ratio"] = their["peak_bytes"] / our["peak_bytes"] if our["peak_bytes"] > 0 else float("nan")
    for quantity, column in (("variance", "variance"), ("seconds", "seconds_per_gradient")):
        if quantity == "variance" and not (their["variance_exists"] and our["variance_exists"]):
            continue
        bounds = [(one[column], one[f"{quantity}_low"], one[f"{quantity}_high"]) for one in (their, our)]
        row |= _named(quantity, ratio(*bounds))
    return row


_BIAS = ("worst_direction", "bias_z", "bias_norm", "bias_low", "bias_high")


def _named(quantity: str, result: tuple[float, float, float, float]) -> dict[str, float]:
    value, low, high, p = result
    return {
        f"{quantity}_ratio": value,
        f"{quantity}_ratio_low": low,
        f"{quantity}_ratio_high": high,
        f"{quantity}_p": p,
    }


def ratio(top: tuple[float, float, float], bottom: tuple[float, float, float]) -> tuple[float, float, float, float]:
    """Ratio of two positive quantities, each ``(value, low, high)``: value, low, high, and p-value of it being 1.

    Delta method on logarithms: the standard error of log(a/b) is the root of the sum of squares of those of a and b.
    """
    nan = float("nan")
    if not (top[0] > 0 and bottom[0] > 0):
        return nan, nan, nan, nan
    value = top[0] / bottom[0]
    if not (min(top[1], bottom[1]) > 0 and min(top[2], bottom[2]) > 0):
        return value, nan, nan, nan
    error = math.hypot(*(math.log(high / low) / (2 * Z95) for _, low, high in (top, bottom)))
    z = abs(math.log(value)) / error if error > 0 else (0.0 if value == 1 else math.inf)
    return value, value * math.exp(-Z95 * error), value * math.exp(Z95 * error), float(2 * stats.norm.sf(z))
