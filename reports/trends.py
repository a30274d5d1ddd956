"""Runs over time, and two runs beside each other, as tables, figures and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.records import write_text

from . import looks, page, paper
from .compare import SETTING, deltas, same_machine
from .figures import ratio_ticks
from .looks import safe, styled
from .page import Cell, Table
from .plates import Plates
from .statistics import over_seeds
from .tables import Run, tabulate
from .wording import BLOCKS, interval, number, titles

COLOURS = {"worse": "#d55e00", "better": "#029e73", "worse, within the limit": "#de8f05", "not told apart": "#949494"}
MARKS = {"worse": "^", "better": "v", "worse, within the limit": "D", "not told apart": "o"}
MOST = 60
ROOM = 4_000_000
"""Bytes that the figures of a page may take."""


@styled
def ratios(rows: pd.DataFrame) -> Figure:
    """After over before, with 95 % intervals: the largest changes, at most sixty.

    ``rows`` is :func:`reports.compare.deltas`'.
    """
    known = rows[rows["ratio"].notna()]
    far = np.log(known["ratio"]).abs().sort_values(ascending=False, kind="stable").index[:MOST]
    drawn = known.loc[far].sort_values(["metric", "ratio"], kind="stable")
    figure = Figure(figsize=(9.2, 0.22 * max(4, len(drawn)) + 1.3), layout="constrained")
    axes = figure.subplots()
    axes.axvline(1.0, color="#333333", linewidth=1)
    for change, some in drawn.assign(y=range(len(drawn))).groupby("change"):
        axes.hlines(
            some["y"], some["low"].fillna(some["ratio"]), some["high"].fillna(some["ratio"]), color=COLOURS[change]
        )
        axes.plot(some["ratio"], some["y"], MARKS[change], color=COLOURS[change], label=change)
    axes.set(xscale="log", xlabel="after / before", ylim=(len(drawn) - 0.4, -0.6))
    axes.set_yticks(range(len(drawn)), [safe(_name(row)) for row in drawn.to_dict(orient="records")])
    low, high = (float(limit) for limit in axes.get_xlim())
    low, high = min(low, 0.8), max(high, 1.25)
    axes.set_xlim(low, high)
    ticks = ratio_ticks(low, high)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    if len(drawn):
        figure.legend(loc="outside lower center", ncols=4)
    return figure


def _name(row: dict[str, object]) -> str:
    block = f", {BLOCKS[str(row['block'])]}" if isinstance(row["block"], str) else ""
    name = str(row["estimator"]).partition("[")[0]
    return f"{row['metric']}: {name}, K = {row['num_samples']}{block} · {str(row['problem']).partition('[')[0]}"


def compare_page(before: Run, after: Run, rows: pd.DataFrame, changes: pd.DataFrame, notes: list[str]) -> str:
    """The page of :mod:`reports.compare`: what got worse first, then everything."""
    plates = Plates([before.name, after.name])
    caption = "After over before, with 95 % intervals; the largest changes, at most sixty."
    plate = plates.add("compare", "compare", lambda: ratios(rows), rows, caption, "Ratios with intervals, a row each.")
    plates.fill(ROOM - plates.draw_what_must_be())
    short = {**titles(rows["problem"].unique()), **titles(rows["estimator"].unique())}
    body = [
        [
            Cell(row["metric"]),
            Cell(short[row["problem"]], title=row["problem"]),
            Cell(short[row["estimator"]], kind="name", title=row["estimator"]),
            Cell(str(row["num_samples"]), kind="n"),
            Cell(BLOCKS[row["block"]] if isinstance(row["block"], str) else "–"),
            Cell(interval(row["ratio"], row["low"], row["high"]), f"{row['ratio']:.6g}", "n"),
            Cell(number(row["p"], 2), f"{row['p']:.4g}", "n"),
            Cell(row["change"], kind="alarm" if row["change"] == "worse" else ""),
        ]
        for row in rows.to_dict(orient="records")
    ]
    head = ["metric", "problem", "estimator", "K", "block", "after / before", "p (Holm)", "change"]
    kinds = [f"c{list(COLOURS).index(row)} m{row_}" for row, row_ in zip(rows["change"], rows["metric"], strict=True)]
    changed = {f"c{place}": name for place, name in enumerate(COLOURS) if (rows["change"] == name).any()}
    lost = [[Cell(str(value if value is not None else "–")) for value in row] for row in changes.to_numpy().tolist()]
    context = {
        "title": f"gradest: {before.name} → {after.name}",
        "notes": notes,
        "figure": plate,
        "table": Table("Every pair", head, body, kinds=kinds),
        "changes": Table("Verdicts and statuses that differ", list(changes.columns), lost),
        "filters": page.offered([("change", "Change", changed, ".rows tbody tr")]),
    }
    return paper.write("compare.html", context)


def history(runs: Sequence[Run]) -> tuple[pd.DataFrame, list[str]]:
    """Variance and seconds of every setting over several runs, oldest first, with the changes between neighbours.

    A row per run, setting and block; ``variance_change`` and ``seconds_change`` say how it stands to the run before that
    measured the same (Holm over all rows of a pair of runs). Seconds are compared on one machine alone; notes say where not.
    """
    ordered = sorted(runs, key=lambda run: (run.manifest.started if run.manifest else "", run.name))
    tables, notes = [tabulate([run]) for run in ordered], []
    found = []
    for place, (run, table) in enumerate(zip(ordered, tables, strict=True)):
        means = over_seeds(table)
        means = means.assign(
            run=run.name, place=place,
            started=run.manifest.started if run.manifest else "", commit=(run.manifest.commit or "") if run.manifest else "",
        )  # fmt: skip
        means["variance_change"] = means["seconds_change"] = "first"
        if place:
            why = same_machine(ordered[place - 1], run)
            if why:
                notes.append(f"seconds of {ordered[place - 1].name} and {run.name} are not compared: {why}")
            rows = deltas(tables[place - 1], table, seconds=not why)
            for metric in ("variance", "seconds"):
                own = rows[rows["metric"] == metric]
                key = [*SETTING, "block"] if metric == "variance" else SETTING
                change = dict(zip(own[key].itertuples(index=False, name=None), own["change"], strict=True))
                means[f"{metric}_change"] = [
                    change.get(row, "not compared") for row in means[key].itertuples(index=False, name=None)
                ]
        found.append(means)
    names = ["run", "started", "commit", "place", *SETTING, "block", "variance", "variance_low", "variance_high"]
    names += ["variance_change", "seconds_per_gradient", "seconds_low", "seconds_high", "seconds_change", "verdict"]
    return pd.concat(found, ignore_index=True)[names], notes


@styled
def over_time(rows: pd.DataFrame, block: str = "phi") -> Figure:
    """One panel per problem and metric: a line per estimator and K through the runs, changes marked.

    ``rows`` is :func:`history`'s.
    """
    own = rows[rows["block"] == block]
    problems = sorted(set(own["problem"]))
    figure = Figure(figsize=(9.2, 2.8 * max(1, len(problems)) + 0.5), layout="constrained")
    grid = figure.subplots(max(1, len(problems)), 2, squeeze=False)
    short = titles(problems)
    for panels, problem in zip(grid, problems, strict=False):
        for axes, (metric, column, prefix) in zip(
            panels, (("variance", "variance", "variance"), ("seconds", "seconds_per_gradient", "seconds")), strict=True
        ):
            here = own[(own["problem"] == problem) & (own[column] > 0)]
            series = here.groupby(["estimator", "num_samples"], sort=True)
            for place, (_, line) in enumerate(series):
                colour = looks.PALETTE[place % len(looks.PALETTE)]
                axes.plot(line["place"], line[column], "-", color=colour, alpha=0.8)
                axes.vlines(line["place"], line[f"{prefix}_low"], line[f"{prefix}_high"], color=colour, linewidth=0.9)
                for change in ("worse", "better"):
                    some = line[line[f"{metric}_change"] == change]
                    axes.plot(some["place"], some[column], MARKS[change], color=COLOURS[change])
            axes.set(yscale="log", title=safe(short[problem]), ylabel=f"{metric} ({BLOCKS[block]})")
            runs = here.drop_duplicates("place").sort_values("place")
            axes.set_xticks(runs["place"], [safe(name) for name in runs["run"]], rotation=20, ha="right")
            axes.yaxis.set_major_formatter(lambda value, _: number(value, 2))
            axes.yaxis.set_minor_formatter("")
    return figure


def history_page(runs: Sequence[Run], rows: pd.DataFrame, notes: list[str]) -> str:
    """The page of :func:`history`."""
    plates = Plates([run.name for run in runs])
    block = "phi" if (rows["block"] == "phi").any() else "theta"
    caption = "Lines run through the same estimator and K; triangles: changed against the run before (up: worse, down: better)."
    plate = plates.add("history", "history", lambda: over_time(rows, block), rows, caption, "Lines through runs.")
    plates.fill(ROOM - plates.draw_what_must_be())
    short = {**titles(rows["problem"].unique()), **titles(rows["estimator"].unique())}
    body = [
        [
            Cell(short[row["problem"]], title=row["problem"]),
            Cell(short[row["estimator"]], kind="name", title=row["estimator"]),
            Cell(str(row["num_samples"]), kind="n"), Cell(BLOCKS[row["block"]]), Cell(row["run"]), Cell(row["started"]),
            Cell(interval(row["variance"], row["variance_low"], row["variance_high"]), f"{row['variance']:.6g}", "n"),
            Cell(row["variance_change"], kind="alarm" if row["variance_change"] == "worse" else ""),
            Cell(interval(row["seconds_per_gradient"], row["seconds_low"], row["seconds_high"], "s"),
                 f"{row['seconds_per_gradient']:.6g}", "n"),
            Cell(row["seconds_change"], kind="alarm" if row["seconds_change"] == "worse" else ""),
        ]
        for row in rows.sort_values(["problem", "estimator", "num_samples", "block", "place"]).to_dict(orient="records")
    ]  # fmt: skip
    head = [
        "problem",
        "estimator",
        "K",
        "block",
        "run",
        "started",
        "variance",
        "change",
        "seconds / gradient",
        "change",
    ]
    context = {
        "title": "gradest: history", "notes": notes, "figure": plate, "table": Table("Every run", head, body),
        "changes": Table("", [], []), "filters": [],
    }  # fmt: skip
    return paper.write("compare.html", context)


def save(path: Path, html: str) -> Path:
    """Write a page, whole or not at all."""
    write_text(Path(path), html)
    return Path(path)
