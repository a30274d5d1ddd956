"""The tables of the page: what stands in each cell, how it sorts, what it means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from .findings import quantiles
from .labels import family
from .statistics import Z95
from .tables import Run
from .wording import BLOCKS, interval, missing, number

WORDS = {
    "PASS": "pass",
    "BIASED": "biased",
    "INCONCLUSIVE": "unclear",
    "HEAVY_TAIL": "heavy",
    "NONFINITE": "not finite",
    "NO_REFERENCE": "no ref.",
}


@dataclass(frozen=True)
class Cell:
    """One cell: its text, what it sorts by, its class, a longer text for the pointer, and a line in small print."""

    text: str
    sort: Any = None
    kind: str = ""
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table with its caption; ``sortable`` ones sort by a click on a header."""

    caption: str
    head: list[str]
    rows: list[list[Cell]]
    sortable: bool = True
    groups: list[tuple[str, int]] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    """A class for each row, by which the page's filters know it: f3 k8 vpass."""


def _measure(row: pd.Series, column: str, prefix: str) -> Cell:
    return Cell(interval(row[column], row[f"{prefix}_low"], row[f"{prefix}_high"]), _order(row[column]), "n")


def _plain(value: Any) -> Cell:
    text = number(value)
    return Cell(text, None if text.replace(".", "").isdigit() else _order(value), "n")


def _order(value: Any) -> str:
    """What a cell sorts by: four digits will do, and what is missing comes last."""
    return "" if missing(value) else f"{value:.4g}"


def verdict(name: str, unbiased: Any, title: str = "") -> Cell:
    """A verdict as a coloured word; a bias that was declared is no alarm."""
    if name == "BIASED" and unbiased is not True:
        return Cell("declared", None, "chip declared", title)
    return Cell(WORDS.get(name, name), None, f"chip {name.lower()}", title)


def target(row: pd.Series) -> str:
    """The target in words, with its K where that is part of it."""
    name = row["target"] if isinstance(row["target"], str) else "none"
    return f"{name}-{row['target_key']}" if row.get("target_key") else name


def glance(table: pd.DataFrame, means: pd.DataFrame) -> Table:
    """One problem at a glance: estimators down, blocks and K across, a verdict in each cell."""
    ks = sorted(set(table["num_samples"]))
    blocks = [block for block in ("phi", "theta", "value") if (means["block"] == block).any()] or ["phi"]
    rows, kinds = [], []
    known = {(row["label"], row["block"], row["num_samples"]): row for row in means.to_dict(orient="records")}
    failed = table[table["status"] != "ok"].drop_duplicates(["label", "num_samples"])
    lost = {(row["label"], row["num_samples"]): row for row in failed.to_dict(orient="records")}
    targets = {label: _targets(own) for label, own in means.groupby("label", observed=True)}
    for label, cells in table.groupby("label", observed=True, sort=True):
        row = [Cell(str(label), kind="name", title=str(cells["estimator"].iloc[0]), note=targets.get(label, "–"))]
        for block in blocks:
            for k in ks:
                row.append(_glance_cell(known.get((label, block, k)), lost.get((label, k))))
        rows.append(row)
        kinds.append(f"f{cells['hue'].iloc[0]}")
    head = ["estimator and target", *(str(k) for _ in blocks for k in ks)]
    groups = [("", 1), *((f"{BLOCKS[block]}, K =", len(ks)) for block in blocks)]
    return Table("Verdicts at a glance", head, rows, sortable=False, groups=groups, kinds=kinds)


def _targets(own: pd.DataFrame) -> str:
    """One name where the gradient blocks share a target, else one for each."""
    known = own[own["block"] != "value"].drop_duplicates("block").sort_values("block")
    names = dict(zip(known["block"], known["target"].fillna("none"), strict=True))
    if len(set(names.values())) < 2:
        return next(iter(names.values()), "–")
    return ", ".join(f"{BLOCKS[block]}: {name}" for block, name in names.items())


def _glance_cell(measured: dict[str, Any] | None, failed: dict[str, Any] | None) -> Cell:
    if measured is not None:
        z = "" if missing(measured["bias_z"]) else f", z = {number(measured['bias_z'], 2)}"
        text = f"{measured['verdicts']}{z}. {measured['verdict_reason'] or ''}".strip()
        return verdict(measured["verdict"], measured["unbiased"], text)
    if failed is not None:
        return Cell(failed["status"], kind="chip failed", title=failed["reason"])
    return Cell("·")


def filters(means: pd.DataFrame, problems: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """The choices that hide rows and sections, by the classes of those: plain form controls and style rules, no script."""
    kins = {f"f{row.hue}": family(row.family, row.library) for row in means.sort_values("hue").itertuples()}
    ks = {f"k{k}": str(k) for k in sorted(set(means["num_samples"]))}
    verdicts = {f"v{name.lower()}": WORDS[name] for name in WORDS if (means["verdict"] == name).any()}
    return offered([
        ("problem", "Problem", dict(problems), ".problem"),
        ("family", "Family", kins, ".rows tbody tr"),
        ("k", "K", ks, ".num tbody tr"),
        ("verdict", "Verdict", verdicts, ".num tbody tr"),
    ])  # fmt: skip


def offered(filters: Sequence[tuple[str, str, dict[str, str], str]]) -> list[dict[str, Any]]:
    """Filters as the template takes them, each with a name, a label, its choices by class, and the pattern of what it hides."""
    return [
        {"name": name, "label": label, "choices": list(choices.items()), "hides": hides}
        for name, label, choices, hides in filters
        if len(choices) > 1
    ]


def thin(problems: list[dict[str, Any]]) -> int:
    """Keep the smallest, the middle and the largest K in the tables of gradients, and no table of values.

    Returns the number of rows that are gone.
    """
    gone = 0
    for problem in problems:
        kept: list[Table] = []
        for table in problem["numbers"]:
            ks = sorted({int(row[1].text) for row in table.rows})
            few = (
                {str(k) for k in (ks[0], ks[len(ks) // 2], ks[-1])} if not table.caption.startswith("value") else set()
            )
            pairs = [pair for pair in zip(table.rows, table.kinds, strict=True) if pair[0][1].text in few]
            gone += len(table.rows) - len(pairs)
            if pairs:
                rows, kinds = (list(part) for part in zip(*pairs, strict=True))
                kept.append(replace(table, rows=rows, kinds=kinds))
        problem["numbers"] = kept
    return gone


def numbers(means: pd.DataFrame, block: str) -> Table:
    """All numbers of one problem and block, a row per estimator and K."""
    rows, kinds = [], []
    for row in means[means["block"] == block].to_dict(orient="records"):
        kinds.append(f"f{row['hue']} k{row['num_samples']} v{row['verdict'].lower()}")
        exact = "" if missing(row["exact_variance"]) else f"; exact {number(row['exact_variance'], 5)}"
        variance = _measure(row, "variance", "variance")
        if not row["variance_exists"]:
            variance = Cell(
                f"none; quantiles of the distance from the centre: {quantiles(row['quantiles'])}", "", "small"
            )
        elif exact:
            variance = Cell(variance.text + exact, variance.sort, "n")
        exists = bool(row["variance_exists"])
        rank = row["rank_group"]
        rows.append(
            [
                Cell(str(row["label"]), kind="name"),
                Cell(str(row["num_samples"]), kind="n"),
                Cell(target(row), kind="small"),
                _bias_cell(row, exists),
                _plain(row["bias_z"]),
                verdict(row["verdict"], row["unbiased"], row["verdicts"] if row["seeds"] > 1 else ""),
                _plain(row["detectable_bias"]),
                _plain(row["reference_norm"]),
                variance,
                _measure(row, "snr", "snr") if exists else Cell("–", "", "n"),
                _plain(row["cosine"]),
                _measure(row, "seconds_per_gradient", "seconds"),
                _plain(row["evaluations_per_gradient"]),
                _plain(row["flops_per_gradient"]),
                _plain(row["peak_bytes"]),
                _measure(row, "work_normalised_variance", "work") if exists else Cell("–", "", "n"),
                Cell("–" if missing(rank) else f"{rank:g}", "" if missing(rank) else rank, "n"),
            ]
        )
    head = [
        "estimator",
        "K",
        "target",
        "bias (norm)",
        "bias z",
        "verdict",
        "smallest detectable bias",
        "reference norm",
    ]
    head += ["variance", "SNR", "cosine", "seconds / gradient", "evaluations / gradient", "FLOPs / gradient"]
    head += ["peak bytes", "variance × seconds", "rank group"]
    return Table(f"{'value (nats)' if block == 'value' else 'gradient in ' + BLOCKS[block]}", head, rows, kinds=kinds)


def _bias_cell(row: pd.Series, exists: bool) -> Cell:
    if not exists:
        return Cell("–", "", "n", "no standard error where no variance exists")
    return _measure(row, "bias_norm", "bias")


def slope_rows(slopes: pd.DataFrame) -> Table:
    """Fitted slopes of one problem beside theory's."""
    rows = []
    for _, row in slopes.iterrows():
        theory = row["snr_slope_theory"]
        exact = row["slope_exact"]
        covers = "–" if missing(exact) else "yes" if row["slope_low"] <= exact <= row["slope_high"] else "no"
        rows.append(
            [
                Cell(str(row["label"]), kind="name", title=row["estimator"]),
                Cell(BLOCKS[row["block"]]),
                Cell(interval(row["slope"], row["slope_low"], row["slope_high"]), row["slope"], "n"),
                _plain(exact),
                Cell(covers),
                _plain(theory),
                Cell(f"{row['k_low']} to {row['k_high']}", row["k_low"], "n"),
                Cell(str(row["left_out"]), row["left_out"], "n"),
                Cell("yes" if row["p"] >= 0.01 else f"no (p = {number(row['p'], 2)})", row["p"]),
                _plain(row["tail_ratio"]),
            ]
        )
    head = ["estimator", "block", "slope of log SNR in log K", "exact, same K", "interval covers it", "theory, large K"]
    return Table("Slopes", [*head, "K used", "K left out", "straight line fits", "ρ"], rows)


def tail_rows(means: pd.DataFrame) -> Table:
    """Who has no variance, with quantiles in its place."""
    heavy = means[~means["variance_exists"].astype(bool) | (means["verdict"] == "HEAVY_TAIL")]
    rows = [
        [
            Cell(row["title"], title=row["problem"]),
            Cell(str(row["label"]), kind="name", title=row["estimator"]),
            Cell(str(row["num_samples"]), kind="n"),
            Cell(BLOCKS[row["block"]]),
            verdict(row["verdict"], row["unbiased"]),
            _measure(row, "tail_index", "tail_index"),
            _plain(row["median_of_means"]),
            Cell(quantiles(row["quantiles"]), kind="small"),
            Cell(row["verdict_reason"] or "–", kind="small"),
        ]
        for _, row in heavy.iterrows()
    ]
    head = [
        "problem",
        "estimator",
        "K",
        "block",
        "verdict",
        "tail index",
        "distance from the centre: median of means",
        "its quantiles",
        "why",
    ]
    return Table("Estimators without a variance", head, rows)


def pyro_rows(pairs: pd.DataFrame) -> Table:
    """Pyro beside ours, a row per problem, K and block."""
    rows = []
    for _, row in pairs.iterrows():
        ratios = []
        for quantity in ("variance", "seconds"):
            value = row[f"{quantity}_ratio"]
            text = interval(value, row[f"{quantity}_ratio_low"], row[f"{quantity}_ratio_high"])
            p = row[f"{quantity}_p"]
            same = "" if missing(p) else " (may be 1)" if p > 0.05 else ""
            ratios.append(Cell(text + same, "" if missing(value) else value, "n"))
        both = f"{row['their_verdict']} / {row['our_verdict']}"
        rows.append(
            [
                Cell(row["title"], title=row["problem"]),
                Cell(str(row["num_samples"]), kind="n"),
                Cell(BLOCKS[row["block"]]),
                Cell(row["theirs"], kind="name", title=row["estimator"]),
                Cell(row["ours"], kind="name", title=row["counterpart"]),
                Cell(row["expectation"], kind="alarm" if row["expectation"] == "differ" else "", title=both),
                *ratios,
                Cell(number(row["memory_ratio"]), "" if missing(row["memory_ratio"]) else row["memory_ratio"], "n"),
                Cell(_worst(row), "" if missing(row["bias_z"]) else abs(row["bias_z"]), "small"),
            ]
        )
    head = [
        "problem",
        "K",
        "block",
        "Pyro's",
        "ours",
        "expectation",
        "variance: Pyro / ours",
        "seconds: Pyro / ours",
        "bytes: Pyro / ours",
        "Pyro's worst direction",
    ]
    return Table("Pyro beside ours", head, rows)


def _worst(row: pd.Series) -> str:
    """The direction in which Pyro's mean is furthest from the reference, and by how much where it is biased."""
    if missing(row["worst_direction"]) or missing(row["bias_z"]):
        return "–"
    text = f"{row['worst_direction']}, z = {row['bias_z']:.1f}"
    if row["their_verdict"] != "BIASED":
        return text
    text += f", |bias| {interval(row['bias_norm'], row['bias_low'], row['bias_high'])}"
    part = row["bias_norm"] / row["reference_norm"] if row["reference_norm"] > 0 else float("nan")
    return text if missing(part) else f"{text}, {number(100 * part, 2)} % of the gradient"


FAILURES = 200
"""Failures that are listed one by one."""


def failures(runs: Sequence[Run], names: dict[str, str]) -> list[dict[str, Any]]:
    """Cells that did not finish, as the page lists them: refusals last, two hundred at most."""
    listed = []
    for run in runs:
        lost = run.cells
        lost = lost[lost["status"] != "ok"]
        lost = lost.assign(refused=lost["status"] == "refused").sort_values(["refused", "problem", "id"])
        listed += [(run, row) for row in lost.head(FAILURES).to_dict(orient="records")]
    listed.sort(key=lambda pair: pair[1]["refused"])
    return [
        {
            "problem": names.get(row["problem"], row["problem"]),
            "estimator": names.get(row["estimator"], row["estimator"]),
            "specification": f"{row['estimator']} on {row['problem']}",
            "cell": f"K = {row['num_samples']}, seed {row['seed']}",
            "id": row["id"],
            "status": row["status"],
            "reason": row["reason"],
            "traceback": run.tracebacks.get(row["id"], ""),
        }
        for run, row in listed[:FAILURES]
    ]


def training_rows(runs: Sequence[Run], titles: dict[str, str]) -> Table:
    """The trained VAEs at their checkpoints and at the end."""
    rows = []
    for record in (record for run in runs for record in run.trainings):
        kept = [point for point in record.points if point.checkpoint]
        for point in kept if record.points[-1:] == kept[-1:] else [*kept, *record.points[-1:]]:
            bounds = []
            for name in ("heldout_elbo", "heldout_iwae"):
                value, error = getattr(point, name), getattr(point, f"{name}_standard_error")
                half = float("nan") if error is None else Z95 * error
                low, high = (None, None) if value is None else (value - half, value + half)
                bounds.append(Cell(interval(value, low, high), "" if value is None else value, "n"))
            rows.append(
                [
                    Cell(titles[record.id], kind="name", title=record.problem),
                    Cell(point.checkpoint or "last"),
                    Cell(str(point.step), point.step, "n"),
                    _plain(point.epoch),
                    _plain(point.seconds),
                    *bounds,
                    Cell(str(point.iwae_num_samples or "–"), point.iwae_num_samples or "", "n"),
                    Cell(f"{record.parameters:,}", record.parameters, "n"),
                ]
            )
    head = ["model", "checkpoint", "step", "epoch", "seconds", "held-out ELBO (nats per image)"]
    return Table("Trained VAEs", [*head, "held-out IWAE (nats per image)", "K of IWAE", "parameters"], rows)
