"""Run folders in, one self-contained HTML file out: no server, no network, nothing beside it."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from benchmarks.records import write_text

from . import figures, page
from .findings import findings
from .statistics import COSTS, beside, over_seeds, rank_groups, slopes
from .tables import Run, load, tabulate, to_csv
from .vector import pdf, settle, svg
from .wording import BLOCKS, parts, plural, titles

HERE = Path(__file__).parent
LIMIT = 4_800_000
"""Bytes that the file may have; beyond, figures lose first their PDF and then their CSV, largest first."""

PLOTTED = {
    "cost": ["label", "block", "num_samples", "target", "verdict", "variance", "variance_low", "variance_high", *COSTS],
    "bias": ["label", "block", "num_samples", "seed", "verdict", "bias_z", "detectable_bias", "reference_norm"],
    "snr": ["label", "block", "num_samples", "snr", "snr_low", "snr_high", "snr_floor", "snr_slope_theory"],
    "speed": ["title", "label", "num_samples", "gradients_per_second", "peak_bytes"],
}


@dataclass
class Plate:
    """A figure on the page: drawing, caption, what a listener hears, and its data."""

    name: str
    drawing: str
    caption: str
    alt: str
    pdf: str = ""
    csv: str = ""


def render(runs: Sequence[Path], output: Path) -> Path:
    """Write the report of some run folders, laid over each other, and return where it is.

    The same records give the same file. Records that cannot be read are named in it; a folder that is not there raises
    ``FileNotFoundError`` before anything is written.
    """
    found = [load(Path(run)) for run in runs]
    html = document(found)
    write_text(Path(output), html)
    return Path(output)


def document(runs: Sequence[Run]) -> str:
    """The report as HTML text."""
    table, means, names = _labelled(runs)
    means["rank_group"] = rank_groups(means)
    fits = slopes(means)
    pairs = _pairs(means, names)
    plates = _Plates()
    problems = [_problem(one, rows, means, fits, names, plates) for one, rows in table.groupby("problem", sort=True)]
    training_titles = _training_titles(runs)
    script = (HERE / "static" / "sortable.auto.min.js").read_text(encoding="utf-8")
    context = {
        "title": "gradest: "
        + ", ".join(dict.fromkeys(run.manifest.name if run.manifest else run.name for run in runs)),
        "runs": [_run(run) for run in runs],
        "findings": findings(table, means, fits, pairs, names),
        "problems": problems,
        "tails": page.tail_rows(means),
        "throughput": plates.add("throughput", "speed", lambda: figures.throughput(means), means, *_SPEED)
        if len(means)
        else None,
        "training": _training(runs, training_titles, plates),
        "training_table": page.training_rows(runs, training_titles),
        "pyro": _pyro(pairs, plates),
        "pyro_table": page.pyro_rows(pairs),
        "failures": page.failures(runs, names, names),
        "unreadable": [(run.name, file, why) for run in runs for file, why in sorted(run.unreadable.items())],
        "environment": _environment(runs),
        "bibliography": _bibliography(runs),
        "table_csv": _data_uri(
            gzip.compress(to_csv(table.drop(columns=["label", "title"])).encode(), mtime=0), "application/gzip"
        ),
        "plates": plates,
        "style": Markup((HERE / "static" / "report.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "script_hash": "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    template = _templates().get_template("report.html")
    html = template.render(context)
    excess = len(html.encode("utf-8", "replace")) - LIMIT
    for plate, part in plates.heaviest() if excess > 0 else ():
        if excess <= 0:
            break
        excess -= len(getattr(plate, part))
        plates.drop(plate, part)
    if plates.dropped:
        html = template.render(context)
    return html.encode("utf-8", "replace").decode("utf-8")


SERIES_KEY = ["run", "problem", "estimator", "dtype", "device", "compiled"]
_SPEED = (
    "Gradients per second (medians over timed chunks, warm-up excluded, with 95 % intervals) and peak memory of one "
    "gradient, against K.",
    "Two columns of panels, a row per problem: gradients per second and peak bytes against the number of samples.",
)


def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _labelled(runs: Sequence[Run]) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """The table and its means over seeds, with short titles, and the titles of all problems and estimators."""
    table = tabulate(runs)
    names = {**titles(table["problem"].unique()), **titles(table["estimator"].unique())}
    # A label says what tells two series of one problem apart, and no more.
    series = table.drop_duplicates(SERIES_KEY).groupby("problem")
    varying = [c for c in ("dtype", "device", "compiled", "run") if (series[c].nunique() > 1).any()]

    def label(row: pd.Series) -> str:
        extra = [
            "compiled" if column == "compiled" else str(row[column]) for column in varying if row[column] is not False
        ]
        return " · ".join([names[row["estimator"]], *extra])

    keys = table.drop_duplicates(SERIES_KEY)
    labels = {tuple(row[SERIES_KEY]): label(row) for _, row in keys.iterrows()}
    order = sorted(set(labels.values()), key=lambda one: (one.startswith("pyro"), one))
    means = over_seeds(table)
    for one in (table, means):
        chosen = [labels[key] for key in one[SERIES_KEY].itertuples(index=False, name=None)]
        one["label"] = pd.Categorical(chosen, categories=order)
        one["title"] = one["problem"].map(names).astype(object)
    return table, means, names


class _Plates:
    """Draws figures and keeps them, so that the heaviest parts can be left out of a file that grew too large."""

    def __init__(self) -> None:
        self.all: list[Plate] = []
        self.dropped = 0

    def add(self, name: str, kind: str, draw: Any, data: pd.DataFrame, caption: str, alt: str) -> Plate:
        figure: Figure = draw()
        settle(figure)
        columns = [column for column in PLOTTED.get(kind, list(data.columns)) if column in data]
        plate = Plate(
            name=name,
            drawing=Markup(svg(figure, f"f{len(self.all)}")),
            caption=caption,
            alt=alt,
            pdf=_data_uri(pdf(figure), "application/pdf"),
            csv=_data_uri(to_csv(data[columns].drop_duplicates()).encode("utf-8", "replace"), "text/csv"),
        )
        self.all.append(plate)
        return plate

    def drop(self, plate: Plate, part: str) -> None:
        setattr(plate, part, "")
        self.dropped += 1

    def heaviest(self) -> list[tuple[Plate, str]]:
        parts_ = [(plate, part) for part in ("pdf", "csv") for plate in self.all if getattr(plate, part)]
        return sorted(parts_, key=lambda item: (item[1] == "csv", -len(getattr(*item))))


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _problem(
    problem: str, table: pd.DataFrame, means: pd.DataFrame, fits: pd.DataFrame, names: dict[str, str], plates: _Plates
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
        )
    return shown


def _block_names(cells: pd.DataFrame) -> str:
    return ", ".join(BLOCKS[block] for block in ("value", "theta", "phi") if (cells["block"] == block).any())


def _pairs(means: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    pairs = beside(means)
    pairs["title"] = [names[one] for one in pairs["problem"]]
    pairs["theirs"] = [names[one] for one in pairs["estimator"]]
    pairs["ours"] = [names[one] for one in pairs["counterpart"]]
    pairs["pair"] = [
        f"{row['theirs']}, {BLOCKS[row['block']]}, K = {row['num_samples']} · {row['title']}"
        for _, row in pairs.iterrows()
    ]
    return pairs


def _pyro(pairs: pd.DataFrame, plates: _Plates) -> Plate | None:
    drawn = pairs[(pairs["block"] != "value") & (pairs["variance_ratio"].notna() | pairs["seconds_ratio"].notna())]
    if not len(drawn):
        return None
    caption = "Variance and seconds of one gradient, Pyro's over ours, with 95 % intervals; 1 means no difference."
    if len(drawn) > 40:
        last = drawn.groupby(["run", "problem", "estimator", "block"])["num_samples"].transform("max")
        drawn, caption = drawn[drawn["num_samples"] == last], caption + " The largest K of each; the table has all."
    alt = "Two columns of ratios with intervals, a row per Pyro estimator, K, block and problem."
    return plates.add("pyro-beside-ours", "pyro", lambda: figures.pyro_beside_ours(drawn), drawn, caption, alt)


def _training_titles(runs: Sequence[Run]) -> dict[str, str]:
    records = [record for run in runs for record in run.trainings]
    short = titles([record.problem for record in records])
    wanted = {}
    for record in records:
        estimator = record.settings.get("estimator")
        wanted[record.id] = short[record.problem] + (f", {parts(str(estimator))[0]}" if estimator else "")
    twice = [title for title in wanted.values() if list(wanted.values()).count(title) > 1]
    return {one: f"{title} {one[:6]}" if title in twice else title for one, title in wanted.items()}


def _training(runs: Sequence[Run], names: dict[str, str], plates: _Plates) -> Plate | None:
    rows = [
        {"training": names[record.id], **point.model_dump()}
        for run in runs
        for record in run.trainings
        for point in record.points
    ]
    if not rows:
        return None
    points = pd.DataFrame(rows)
    numeric = points.columns.difference(["training", "checkpoint"])
    points[numeric] = points[numeric].apply(pd.to_numeric)
    caption = (
        "Trained VAEs: bounds in nats per image, by training step and by second. Bands: ±1.96 standard errors over "
        "held-out images. The untrained start lies outside the panel where it would flatten the rest."
    )
    return plates.add(
        "vae-training", "training", lambda: figures.training(points), points, caption, "Training curves of the VAEs."
    )


def _run(run: Run) -> dict[str, Any]:
    status = pd.Series([record.status for record in run.records.values()], dtype=object).value_counts()
    planned = len(run.manifest.cells) if run.manifest else 0
    return {
        "name": run.name,
        "manifest": run.manifest,
        "status": ", ".join(f"{count} {name}" for name, count in sorted(status.items())) or "none",
        "planned": planned,
        "left": len(set(run.manifest.cells) - set(run.records)) if run.manifest else 0,
        "seconds": sum(record.seconds for record in run.records.values()),
        "settings": sorted((run.manifest.settings if run.manifest else {}).items()),
    }


def _environment(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    keys = sorted({key for run in runs for key in run.environment})
    return [(key, [str(run.environment.get(key, "–")) for run in runs]) for key in keys]


def _bibliography(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Citation keys of exactly the records shown, with their BibTeX entries (empty where the manifest has none)."""
    entries = {key: text for run in runs if run.manifest for key, text in run.manifest.bibliography.items()}
    cited = {key for run in runs for record in run.records.values() for key in record.citations}
    return [(key, entries.get(key, "").strip()) for key in sorted(cited)]
