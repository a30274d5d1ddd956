"""The opening paragraphs of a report, in plain words, each number with its interval."""

from __future__ import annotations

import json

import pandas as pd

from .statistics import RANK
from .wording import BLOCKS, interval, listing, number, plural


def findings(
    table: pd.DataFrame,
    every: pd.DataFrame,
    means: pd.DataFrame,
    slopes: pd.DataFrame,
    beside: pd.DataFrame,
    names: dict[str, str],
) -> list[tuple[str, list[str]]]:
    """Sentences that the numbers carry, most important first, each with the points under it.

    ``table`` is :func:`reports.tables.frame`'s and ``every`` :func:`reports.statistics.over_seeds`' of it; ``means`` has those
    of them that the page shows, with a column ``rank_group``; ``names`` is the short title of each problem and estimator.
    """
    points = [(_counts(table), [])]
    if len(means):
        points += [(_bias(every, names), []), _best(means, names), (_tails(means, names), []), _slopes(slopes, names)]
        points += [(_beside(beside), [])]
    return [point for point in points if point[0]]


def _counts(table: pd.DataFrame) -> str:
    cells = table.drop_duplicates(["run", "id"])
    status = cells["status"].value_counts()
    if not len(cells):
        return "No finished cell was found, so there is nothing to say about any estimator."
    done = cells[cells["status"] == "ok"]
    text = f"{plural(len(cells), 'cell')} (problem, estimator, K and seed) ended: {status.get('ok', 0)} measured"
    others = [
        f"{status[name]} {name}" for name in ("refused", "error", "timeout", "killed", "nonfinite") if name in status
    ]
    text += f", {listing(others)}" if others else ""
    pairs = f"{plural(done['estimator'].nunique(), 'estimator')} on {plural(done['problem'].nunique(), 'problem')}"
    if not len(done):
        return f"{text}."
    return f"{text}. The measured cells cover {pairs}."


def _bias(means: pd.DataFrame, names: dict[str, str]) -> str:
    claimed = means[means["unbiased"].eq(True)]
    tally = claimed["verdict"].value_counts()
    if not len(claimed):
        return ""
    passed = tally.get("PASS", 0)
    text = (
        f"Of {plural(len(claimed), 'block')} (value, gradient in θ, gradient in φ) declared unbiased, {passed} passed"
    )
    rest = [f"{tally[name]} {name.lower().replace('_', ' ')}" for name in tally.index if name != "PASS"]
    text += (
        f" ({listing(rest)})." if rest else "."
    ) + " “Passed” means that no bias larger than the stated detectable one was found."
    wrong = claimed[claimed["verdict"] == "BIASED"]
    if len(wrong):
        worst = wrong.sort_values("bias_z", key=abs, ascending=False)
        text += (
            " Declared unbiased, yet found biased: "
            + listing([_bias_phrase(row, names) for _, row in worst.head(4).iterrows()], 4)
            + (f", and {len(worst) - 4} more." if len(worst) > 4 else ".")
        )
    declared = means[means["unbiased"].eq(False)]
    if len(declared):
        seen = int((declared["verdict"] == "BIASED").sum())
        text += f" Of {plural(len(declared), 'block')} declared biased, the bias was seen in {seen}."
    return text


def _bias_phrase(row: pd.Series, names: dict[str, str]) -> str:
    size = interval(row["bias_norm"], row["bias_low"], row["bias_high"])
    relative = (
        f", {number(row['bias_norm'] / row['reference_norm'] * 100, 2)} % of the gradient"
        if row["reference_norm"] > 0
        else ""
    )
    return f"{_where(row, names)} (bias norm {size}{relative})"


def _where(row: pd.Series, names: dict[str, str]) -> str:
    estimator, problem = (names.get(row[one], row[one]) for one in ("estimator", "problem"))
    return f"{estimator} at K = {row['num_samples']} on {problem}, {BLOCKS[row['block']]}"


def _best(means: pd.DataFrame, names: dict[str, str]) -> tuple[str, list[str]]:
    """For each problem, the first rank group for the ELBO's gradient in phi (any K), where there is a second."""
    ranked = means[means["rank_group"].notna() & (means["block"] == "phi") & (means["target"] == "elbo")]
    points = []
    for _, rows in ranked.groupby(RANK, dropna=False):
        first, rest = rows[rows["rank_group"] == 1], rows[rows["rank_group"] > 1]
        if not len(rest):
            continue
        best = first.sort_values("work_normalised_variance").iloc[0]
        size = interval(best["work_normalised_variance"], best["work_low"], best["work_high"], "s")
        who = [f"{names[one]} (K = {_ks(own)})" for one, own in first.groupby("estimator", sort=True)]
        together = ", which cannot be told apart; the lowest is" if len(first) > 1 else ","
        points.append(f"{names[best['problem']]}: {listing(who)}{together} {size}.")
    text = (
        "Least variance × seconds for the ELBO's gradient in φ (first rank groups, told apart from all outside them):"
    )
    return (text, points) if points else ("", [])


def _ks(rows: pd.DataFrame) -> str:
    return listing([str(k) for k in sorted(set(rows["num_samples"]))], 8)


def _tails(means: pd.DataFrame, names: dict[str, str]) -> str:
    heavy = means[~means["variance_exists"].astype(bool)]
    if not len(heavy):
        return ""
    who = []
    for one, rows in heavy.groupby("estimator", sort=True):
        places = rows["problem"].unique()
        who.append(f"{names[one]} (on {names[places[0]] if len(places) == 1 else plural(len(places), 'problem')})")
    end = "quantiles are shown, and no standard error."
    return f"No variance exists, or none could be established, for {listing(who)}: {end}"


def _slopes(slopes: pd.DataFrame, names: dict[str, str]) -> tuple[str, list[str]]:
    known = slopes[slopes["slope_exact"].notna()]
    if not len(known):
        return "", []
    inside = known["slope_exact"].between(known["slope_low"], known["slope_high"])
    text = (
        "The interval of the slope of log SNR in log K covers the exact slope over the same K in "
        f"{int(inside.sum())} of {plural(len(known), 'fit')}"
        + ("." if inside.all() else " (95 % intervals, so about one in twenty may miss). It does not in:")
    )
    out = [
        f"{names[row['estimator']]} on {names[row['problem']]}, {BLOCKS[row['block']]}: "
        f"{interval(row['slope'], row['slope_low'], row['slope_high'])} over K = {row['k_low']} to {row['k_high']}, "
        f"where the exact slope is {number(row['slope_exact'])}."
        for _, row in known[~inside].iterrows()
    ]
    return text, out if len(out) <= 6 else [*out[:6], f"{len(out) - 6} more, in section 5."]


def _beside(beside: pd.DataFrame) -> str:
    if not len(beside):
        return ""
    tally = beside["expectation"].value_counts()
    counted = listing([f"{count} {name}" for name, count in tally.items()])
    text = f"Beside their counterparts in Pyro ({plural(len(beside), 'comparison')} of expectations): {counted}."
    for quantity, noun in (("variance", "variance"), ("seconds", "time per gradient")):
        known = beside[beside[f"{quantity}_ratio_low"].notna()]
        if not len(known):
            continue
        ordered = known.sort_values(f"{quantity}_ratio")
        ends = [
            interval(row[f"{quantity}_ratio"], row[f"{quantity}_ratio_low"], row[f"{quantity}_ratio_high"])
            for _, row in ordered.iloc[[0, -1]].iterrows()
        ]
        same = int((known[f"{quantity}_p"] > 0.05).sum())
        span = f"was {ends[0]}" if len(known) == 1 else f"ran from {ends[0]} to {ends[1]}"
        text += f" Pyro's {noun} over ours {span}; in {same} of {len(known)} it cannot be told from 1."
    return text


def quantiles(text: object) -> str:
    """Stored quantiles as a phrase, smallest level first.

    >>> quantiles('{"0.5": 1.0, "0.05": 0.25}')
    '5 %: 0.25, 50 %: 1'
    """
    if not isinstance(text, str):
        return "–"
    known = sorted(json.loads(text).items(), key=lambda item: _level(item[0]))
    return ", ".join(f"{_percent(key)}: {number(value)}" for key, value in known)


def _level(key: str) -> float:
    try:
        return float(key)
    except ValueError:
        return float("inf")


def _percent(key: str) -> str:
    level = _level(key)
    return f"{level * 100:g} %" if 0 <= level <= 1 else key
