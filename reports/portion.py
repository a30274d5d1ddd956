"""What of a large run stands on its page: all of it up to some two thousand settings, and beyond, a choice that the page states.

A browser, a reader and five megabytes hold no hundred thousand rows. What is left out is counted here, and is in
``gradest export``, or in a report of its own by ``gradest report --problem`` and ``--estimator``.
"""

from __future__ import annotations

import pandas as pd

from .opening import USUAL
from .statistics import ARITHMETIC
from .wording import parts, plural

SETTINGS = 2_200
"""Settings (problem, estimator, K, precision, device) that a page shows, their seeds together."""
PROBLEMS, ESTIMATORS, SAMPLES = 24, 100, 16
"""Most problems on a page, and most estimators and K of a problem."""
MOST_OFTEN = 12, 8
"""Problems, and K of each, where there are too many settings."""
SETTING = ["run", "problem", "estimator", "num_samples", *ARITHMETIC]


def portion(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows that are shown, and the sentence that says which; the table itself and nothing where that is all.

    Problems with the most settings come first, then those first by name. Of each, K are spread evenly over those that were
    measured, the smallest and the largest among them. Estimators come in this order: found biased although declared unbiased;
    the usual ones, which others are held against; then by the least variance x seconds in phi at any K.
    """
    whole = table[SETTING].drop_duplicates()
    if not len(whole):
        return table, ""
    counts = whole.groupby("problem", sort=True)
    sizes = counts.size().sort_values(ascending=False, kind="stable")
    widest, longest = (int(counts[name].nunique().max()) for name in ("estimator", "num_samples"))
    many = len(whole) > SETTINGS
    if not many and len(sizes) <= PROBLEMS and widest <= ESTIMATORS and longest <= SAMPLES:
        return table, ""
    most_problems, most_ks = MOST_OFTEN if many else (PROBLEMS, SAMPLES)
    pieces = []
    for problem in sizes.index[:most_problems]:
        rows = table[table["problem"] == problem]
        ks = _spread(sorted(set(rows["num_samples"])), most_ks)
        room = max(8, SETTINGS // (min(most_problems, len(sizes)) * len(ks)) // max(1, rows["run"].nunique()))
        chosen = _ordered(rows)[: min(room, ESTIMATORS)]
        pieces.append(rows[rows["estimator"].isin(chosen) & rows["num_samples"].isin(ks)])
    shown = pd.concat(pieces).sort_index()
    kept = shown[SETTING].drop_duplicates()
    sentence = (
        f"This run is too large for one page: it shows {len(kept):,} of {len(whole):,} settings, {kept['problem'].nunique()} of "
        f"{plural(len(sizes), 'problem')} (most settings first, then by name), at most {most_ks} K of each, spread evenly, and of its "
        "estimators first those found biased although declared unbiased, then the usual ones, then those with the least variance × "
        "seconds in φ. Counts of cells and verdicts are of the whole run; all comparisons, fits, tables and figures are of what is shown."
    )
    return shown.reset_index(drop=True), sentence


def _spread(ks: list[int], most: int) -> list[int]:
    """At most so many of a sorted list, its ends among them."""
    if len(ks) <= most:
        return ks
    return [ks[round(place * (len(ks) - 1) / (most - 1))] for place in range(most)]


def _ordered(rows: pd.DataFrame) -> list[str]:
    """The estimators of one problem, those that a page wants most first."""
    names = pd.Series(sorted(set(rows["estimator"])))
    wrong = set(rows.loc[rows["verdict"].eq("BIASED") & rows["unbiased"].eq(True), "estimator"])
    work = rows[rows["block"] == "phi"].groupby("estimator")["work_normalised_variance"].min()
    order = pd.DataFrame(
        {
            "wrong": [name not in wrong for name in names],
            "usual": [parts(name)[0] not in USUAL for name in names],
            "work": names.map(work).to_numpy(dtype=float),
            "name": names,
        }
    )
    return list(order.sort_values(["wrong", "usual", "work", "name"], na_position="last")["name"])
