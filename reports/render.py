"""Run folders in, one self-contained HTML file out: no server, no network, nothing beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.records import write_text

from . import figures, page, paper
from . import training as trained
from .enclosed import numbers
from .findings import findings
from .interactive import cost_chart
from .labels import compared, labelled
from .opening import opening
from .plates import Plate, Plates
from .portion import portion
from .roofline import roofline, shares
from .statistics import COSTS, over_seeds, slopes
from .tables import Run, curves, load, only, tabulate, training_titles
from .wording import BLOCKS, parts, plural

LIMIT = 4_800_000
"""Bytes that the file may have; beyond, figures have no PDFs, and lose drawings that others repeat, their CSVs, and tables rows."""


def render(runs: Sequence[Path], output: Path, *, problems: Sequence[str] = (), estimators: Sequence[str] = ()) -> Path:
    """Write the report of some run folders, laid over each other, and return where it is.

    The same records give the same file. Records that cannot be read are named in it. With ``problems`` or ``estimators``,
    patterns of their specifications, it is of these alone.

    Raises:
        FileNotFoundError: if a folder is not there; nothing is written.
        ValueError: if no record fits a pattern.
    """
    found = [only(run, problems, estimators) for run in map(load, map(Path, runs))]
    asked = [*problems, *estimators]
    if asked and not any(len(run.rows) for run in found):
        raise ValueError(f"no record fits {' and '.join(repr(pattern) for pattern in asked)}")
    html = document(found)
    write_text(Path(output), html)
    return Path(output)


def document(runs: Sequence[Run]) -> str:
    """The report as HTML text."""
    whole = tabulate(runs)
    shown, rest = portion(whole)
    table, means, names = labelled(shown)
    fits = slopes(means)
    pairs = compared(means, names)
    plates = Plates([run.name for run in runs])
    order = {problem: f"p{place}" for place, problem in enumerate(sorted(set(table["problem"])))}
    problems = [
        _problem(one, rows, means, fits, names, plates) | {"kind": order[one]}
        for one, rows in table.groupby("problem", sort=True)
    ]
    chart = cost_chart(means) if len(means) else None
    training = training_titles(runs)
    context: dict[str, Any] = {
        "title": "gradest: "
        + ", ".join(dict.fromkeys(run.manifest.name if run.manifest else run.name for run in runs)),
        "runs": [_run(run) for run in runs],
        "opening": opening(means, names),
        "findings": findings(whole, over_seeds(whole) if rest else means, means, fits, pairs, names),
        "rest": rest,
        "filters": page.filters(means, [(order[one["specification"]], one["title"]) for one in problems]),
        "problems": problems,
        "tails": page.tail_rows(means),
        "throughput": _throughput(means, plates) if len(means) else None,
        "roofline": _roofline(means, runs, plates) if len(means) else None,
        "training": _training(runs, plates),
        "trained": trained.section(runs, plates),
        "training_table": page.training_rows(runs, training),
        "pyro": _pyro(pairs, plates),
        "pyro_table": page.pyro_rows(pairs),
        "failures": page.failures(runs, names),
        "failed": int((whole["status"] != "ok").sum()),
        "unreadable": [(run.name, file, why) for run in runs for file, why in sorted(run.unreadable.items())],
        "environment": _environment(runs),
        "bibliography": _bibliography(runs),
        "numbers": numbers(table, means),
        "plates": plates,
        "thinned": 0,
    }
    said = [f"{each['title']}. {each['headline']}" for each in context["trained"]["studies"] if each["headline"]]
    context["opening"] += said
    if said and not len(whole):
        context["findings"] = [("No cell was measured here: what was trained is in part 8.", [])]
    charts = {"cost-chart": chart} if chart else {}
    size = len(paper.write("report.html", context, charts=charts).encode()) + plates.draw_what_must_be()
    if size > LIMIT:
        context["thinned"] = page.thin(problems)
        size = len(paper.write("report.html", context, charts=charts).encode())
    plates.fill(LIMIT - size)
    return paper.write("report.html", context, charts=charts)


_SPEED = (
    "Gradients per second (medians over timed chunks, warm-up excluded, with 95 % intervals) and peak memory of one "
    "gradient, against K.",
    "Two columns of panels, a row per problem: gradients per second and peak bytes against the number of samples.",
)


def _throughput(means: pd.DataFrame, plates: Plates) -> Plate:
    return plates.add(
        "throughput", "speed", lambda: figures.throughput(means), means, *_SPEED, call="throughput(table)", spare=3
    )


def _roofline(means: pd.DataFrame, runs: Sequence[Run], plates: Plates) -> Plate | None:
    """Nothing where no run has measured what its machine can do."""
    known = shares(means, {run.name: run.environment for run in runs})
    if not len(known):
        return None
    middle = known["share"].median()
    caption = (
        f"FLOPs per second against FLOPs per byte moved, under what this machine reached in the same run: a matrix product (flat) "
        f"and a copy of memory (slope). Half of the {len(known)} cells are above {middle:.0%} of the roof over them. Bytes are "
        "counted as if no operation were fused and nothing stayed in a cache, so small problems may stand above the slope; drawing "
        "noise counts as time and as no FLOP."
    )
    alt = "Points, a panel for each precision, below two lines that rise and then are flat: the limits of memory and arithmetic."
    return plates.add("roofline", "roofline", lambda: roofline(known), known, caption, alt, spare=1)


def _problem(
    problem: str, table: pd.DataFrame, means: pd.DataFrame, fits: pd.DataFrame, names: dict[str, str], plates: Plates
) -> dict[str, Any]:
    """All that the page shows of one problem."""
    own, title = means[means["problem"] == problem], names[problem]
    gradients = own[own["block"] != "value"]
    fits = fits[fits["problem"] == problem]
    cells = table[(table["status"] == "ok") & table["block"].notna()]
    slug = f"{parts(problem)[0]}-{hashlib.sha256(problem.encode()).hexdigest()[:6]}"
    shown: dict[str, Any] = {
        "title": title,
        "specification": problem,
        "anchor": "problem-" + hashlib.sha256(problem.encode()).hexdigest()[:8],
        "references": ", ".join(sorted(set(cells["reference_method"].dropna()))) or "none",
        "glance": page.glance(table, own),
        "numbers": [page.numbers(own, block) for block in ("phi", "theta", "value") if (own["block"] == block).any()],
        "slopes": page.slope_rows(fits),
        "costs": [],
        "bias": None,
        "snr": None,
    }
    if (gradients["variance"] > 0).any():
        for meters in (("evaluations_per_gradient", "seconds_per_gradient"), ("flops_per_gradient", "peak_bytes")):
            if not (gradients[list(meters)] > 0).any(axis=None):
                continue
            nouns = " and ".join(COSTS[meter] for meter in meters)
            plate = plates.add(
                f"{slug}-variance-{meters[0].partition('_')[0]}",
                "cost",
                lambda meters=meters: figures.variance_against_cost(gradients, meters),
                gradients,
                f"{title}: variance against {nouns}. A line runs through the K of one estimator (solid: targets "
                "the ELBO, dashed: IWAE-K, dotted: log marginal, else dash-dotted). Hollow: bias found, tails too "
                "heavy, or no target, so not compared. Bars: 95 % intervals. Fronts and comparisons hold within one "
                "target (and, for IWAE, one K).",
                f"Log-log panels for {title}, one per parameter block and cost meter; the data are in the CSV beside.",
                call=f"variance_against_cost(table, {list(meters)}, problem={problem!r})",
                spare=1 if shown["costs"] else 2,
            )
            shown["costs"].append(plate)
    if cells["bias_z"].notna().any() or (cells["detectable_bias"] > 0).any():
        shown["bias"] = plates.add(
            f"{slug}-bias",
            "bias",
            lambda: figures.bias(cells),
            cells,
            f"{title}: left, the bias of each of {plural(len(cells), 'block')} ({_block_names(cells)}; all K and "
            "seeds) as a z-score: that of the worst direction, corrected for the number of directions. At least 95 % "
            "of unbiased ones lie in the dark band, and in 95 % of reports all do in the light one; beyond 6 the axis "
            "is logarithmic. Right, the smallest bias that this run could have seen.",
            f"Strip of bias z-scores for {title}, one row per estimator, and the smallest detectable bias in percent.",
            call=f"bias(table, problem={problem!r})",
            spare=3,
        )
    if (gradients["snr"] > 0).any() and gradients["num_samples"].nunique() > 1:
        shown["snr"] = plates.add(
            f"{slug}-snr",
            "snr",
            lambda: figures.snr_against_k(gradients, fits),
            gradients,
            f"{title}: signal-to-noise ratio (norm of the mean over root of the summed variance) against K, with 95 % "
            "intervals.",
            f"Log-log panels of signal-to-noise ratio against K for {title}; slopes are in the table below.",
            call=f"snr_against_k(table, problem={problem!r})",
            spare=3,
        )
    return shown


def _block_names(cells: pd.DataFrame) -> str:
    return ", ".join(BLOCKS[block] for block in ("value", "theta", "phi") if (cells["block"] == block).any())


def _pyro(pairs: pd.DataFrame, plates: Plates) -> Plate | None:
    drawn = pairs[(pairs["block"] != "value") & (pairs["variance_ratio"].notna() | pairs["seconds_ratio"].notna())]
    if not len(drawn):
        return None
    caption = "Variance and seconds of one gradient, Pyro's over ours, with 95 % intervals; 1 means no difference."
    if len(drawn) > 40:
        last = drawn.groupby(["run", "problem", "estimator", "block"])["num_samples"].transform("max")
        drawn, caption = drawn[drawn["num_samples"] == last], caption + " The largest K of each; the table has all."
    alt = "Two columns of ratios with intervals, a row per Pyro estimator, K, block and problem."
    return plates.add(
        "pyro-beside-ours", "pyro", lambda: figures.pyro_beside_ours(drawn), drawn, caption, alt,
        call="pyro_beside_ours(table)",
    )  # fmt: skip


def _training(runs: Sequence[Run], plates: Plates) -> Plate | None:
    points = curves(runs)
    if not len(points):
        return None
    caption = (
        "Trained VAEs: bounds in nats per image, by training step and by second. Bands: ±1.96 standard errors over "
        "held-out images. The untrained start lies outside the panel where it would flatten the rest."
    )
    return plates.add(
        "vae-training", "training", lambda: figures.training(points), points, caption, "Training curves of the VAEs."
    )


def _run(run: Run) -> dict[str, Any]:
    cells = run.cells
    status = cells["status"].value_counts()
    planned = len(run.manifest.cells) if run.manifest else 0
    return {
        "name": run.name,
        "manifest": run.manifest,
        "status": ", ".join(f"{count} {name}" for name, count in sorted(status.items())) or "none",
        "planned": planned,
        "left": len(set(run.manifest.cells) - set(cells["id"])) if run.manifest else 0,
        "seconds": float(cells["seconds"].sum()),
        "settings": sorted((run.manifest.settings if run.manifest else {}).items()),
    }


def _environment(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    keys = sorted({key for run in runs for key in run.environment})
    return [(key, [str(run.environment.get(key, "–")) for run in runs]) for key in keys]


def _bibliography(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Citation keys of exactly the records shown, with their BibTeX entries (empty where the manifest has none)."""
    entries = {key: text for run in runs if run.manifest for key, text in run.manifest.bibliography.items()}
    cited = {key for run in runs for text in run.rows["citations"].unique() for key in text.split()}
    cited |= {key for run in runs for study in trained.studies(run) for key in study.citations}
    return [(key, entries.get(key, "").strip()) for key in sorted(cited)]
