"""Short names and looks: what tells one estimator from another on a page, in every figure and table alike."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from .statistics import ARITHMETIC, beside, over_seeds, rank_groups
from .wording import BLOCKS, titles

SERIES_KEY = ["run", "problem", "estimator", *ARITHMETIC]

_PRODUCTS = {"highest": "", "high": "high matmul precision", "medium": "medium matmul precision"}


def labelled(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """The table and its means over seeds, ready to be drawn, and the titles of all problems and estimators.

    To the columns of :func:`reports.tables.frame` come ``label``, a categorical short title of the estimator, in the
    order of the families; ``title``, that of the problem; and ``hue`` and ``mark``, the number of the estimator's family
    and its place within that, which decide its colour and its marker. The means also have a ``rank_group``.
    """
    names = {**titles(table["problem"].unique()), **titles(table["estimator"].unique())}
    keys = table.drop_duplicates(SERIES_KEY)
    # A label says what tells two series of one problem apart, and no more.
    varying = [c for c in (*ARITHMETIC, "run") if (keys.groupby("problem")[c].nunique() > 1).any()]
    labels = {}
    for row in keys[SERIES_KEY].to_dict(orient="records"):
        row_says = {
            **row,
            "compiled": "compiled" if row["compiled"] else "",
            "matmul_precision": _PRODUCTS[row["matmul_precision"]],
        }
        extra = [str(row_says[name]) for name in varying if row_says[name]]
        labels[tuple(row.values())] = " · ".join([names[row["estimator"]], *extra])
    place = _places(table, labels)
    table, means = table.copy(), over_seeds(table)
    for one in (table, means):
        chosen = [labels[key] for key in one[SERIES_KEY].itertuples(index=False, name=None)]
        one["label"] = pd.Categorical(chosen, categories=list(place))
        one["title"] = one["problem"].map(names).astype(object)
        one["hue"], one["mark"] = ([place[name][which] for name in chosen] for which in (0, 1))
    means["rank_group"] = rank_groups(means)
    return table, means, names


def compared(means: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """:func:`reports.statistics.beside` with titles: ``pair`` names each row."""
    pairs = beside(means)
    pairs["title"] = [names[one] for one in pairs["problem"]]
    pairs["theirs"] = [names[one] for one in pairs["estimator"]]
    pairs["ours"] = [names[one] for one in pairs["counterpart"]]
    pairs["pair"] = [
        f"{row['theirs']}, {BLOCKS[row['block']]}, K = {row['num_samples']} · {row['title']}"
        for _, row in pairs.iterrows()
    ]
    return pairs


def family(name: object, library: object = "gradest") -> str:
    """The family as a reader sees it: another library is a family of its own."""
    if isinstance(library, str) and library != "gradest":
        return library
    return name if isinstance(name, str) and name else "other"


def _places(table: pd.DataFrame, labels: dict[tuple[object, ...], str]) -> dict[str, tuple[int, int]]:
    """For each label, in the order of families, the number of its family and its place among that."""
    known: dict[str, str] = {}
    columns = table[[*SERIES_KEY, "family", "library"]].itertuples(index=False, name=None)
    for *key, kin, library in columns:
        name = labels[tuple(key)]
        if known.get(name, "other") == "other":  # records of failures know no family
            known[name] = family(kin, library)
    order = sorted(known, key=lambda name: (known[name] == "other", _foreign(known[name]), known[name], name))
    kins = list(dict.fromkeys(known[name] for name in order))
    number = {kin: code for code, kin in enumerate(kins)}
    members: Counter[str] = Counter()
    place: dict[str, tuple[int, int]] = {}
    for name in order:
        kin = known[name]
        place[name] = (number[kin], members[kin])
        members[kin] += 1
    return place


def _foreign(kin: str) -> bool:
    return kin in ("pyro", "numpyro")
