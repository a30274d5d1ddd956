"""Studies of trained models on the page: curves with seed bands, held-out tables beside the published ones, pictures.

Everything comes from ``study/*.json`` and ``pictures/*.safetensors`` of a run folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import safetensors
import seaborn as sns
from matplotlib.figure import Figure

from benchmarks.records import RecordError, read
from benchmarks.schema import StudyRecord

from . import gradients, pictures
from .looks import MARKERS, safe, styled
from .page import Cell, Table
from .plates import Plate, Plates
from .statistics import Z95
from .tables import Run, training_titles
from .wording import interval, missing, number

CLOCKS = {"step": "step", "evaluations": "evaluations of log p(x, z)", "processor_seconds": "processor seconds"}
SHOWN = {"heldout_bound": "held-out $L_{50}$", "heldout_elbo": "held-out ELBO"}
DRAWINGS = {
    "original": (pictures.reconstructed, "Held-out images, and below each what one draw of its latents looks like"),
    "sample": (pictures.sampled, "Images of latents from the prior"),
    "traversal": (pictures.traversed, "Images over the plane of two latents, at the normal law's quantiles"),
    "posterior": (
        pictures.approximated,
        "Posteriors of four held-out images (grey) and their approximations (curves that hold 50 % and 90 %)",
    ),
    "rates": (
        pictures.coded,
        "The bound as a lossy code: nats of each layer (KL), what is left to the pixels, nats of each latent",
    ),
}
"""By the array that it needs: what draws it, and its caption."""


def section(runs: Sequence[Run], plates: Plates) -> dict[str, Any]:
    """All that the page shows of studies: figures, tables and sentences; empty lists where there are none."""
    found: dict[str, Any] = {"studies": [], "pictures": [], "gradients": []}
    for run in runs:
        for record in studies(run):
            if record.kind == "iwae":
                found["studies"].append(_paired(run.name, record.data, plates))
            else:
                found["gradients"].append(gradients.section(run.name, record.data, plates))
        found["pictures"] += _pictures(run, plates)
    return found


def studies(run: Run) -> list[StudyRecord]:
    """The study records of a run folder; what cannot be believed is named among its unreadable files."""
    records = []
    for file in sorted((run.path / "study").glob("*.json")):
        try:
            records.append(read(file, StudyRecord))
        except RecordError as problem:
            run.unreadable[f"study/{file.name}"] = str(problem)
    return records


def curves(data: dict[str, Any]) -> pd.DataFrame:
    """Held-out curves of a study: arm, the clocks, ``heldout_elbo``, ``heldout_bound``, and half-widths of 95 % bands."""
    parts = []
    for arm, curve in data["curves"].items():
        part = pd.DataFrame({name: curve[name] for name in ("step", "evaluations", "seconds", "processor_seconds")})
        for name in ("heldout_elbo", "heldout_bound"):
            part[name] = curve[name]
            part[f"{name}_half"] = curve.get(f"{name}_half")
        parts.append(part.assign(arm=arm))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


@styled
def study_curves(points: pd.DataFrame) -> Figure:
    """Held-out bounds of each arm by step, by evaluation and by second: means over seeds with 95 % bands.

    ``points`` is :func:`curves`'.
    """
    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    grid = figure.subplots(2, len(CLOCKS), sharey="row", sharex="col")
    palette = sns.color_palette("colorblind")
    for row, (column, noun) in zip(grid, SHOWN.items(), strict=True):
        for axes, (clock, words) in zip(row, CLOCKS.items(), strict=True):
            for code, (arm, rows) in enumerate(points.groupby("arm", sort=False)):
                colour = palette[code % len(palette)]
                axes.plot(
                    rows[clock], rows[column], label=safe(arm), color=colour,
                    marker=MARKERS[code % len(MARKERS)], markersize=3, linewidth=1.1,
                )  # fmt: skip
                half = pd.to_numeric(rows[f"{column}_half"]).fillna(0)
                axes.fill_between(rows[clock], rows[column] - half, rows[column] + half, color=colour, alpha=0.2, lw=0)
            if axes in grid[-1]:
                axes.set_xlabel(words)
            axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 5), useMathText=True)
        late = points.loc[points["step"] > 0.15 * points["step"].max(), column]
        spread = float(late.max() - late.min()) or 1.0
        row[0].set_ylim(late.min() - 0.05 * spread, late.max() + 0.08 * spread)
        row[0].set_ylabel(f"{noun} (nats)")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _paired(run: str, data: dict[str, Any], plates: Plates) -> dict[str, Any]:
    """One study of paired trainings."""
    plan, points = data["plan"], curves(data)
    shown: dict[str, Any] = {
        "title": f"{run}: {plan['model']} on {plan['data']}, {plan['epochs']} epochs, {plan['seeds']} paired seeds",
        "headline": _headline(data),
        "tables": [_rows(data), _pairs(data), _close(data), _published(data)],
        "setting": data["setting"],
        "failed": data["failed"],
        "curves": None,
    }
    if len(points):
        shown["curves"] = plates.add(
            f"study-{run}",
            "study",
            lambda: study_curves(points),
            points,
            "Held-out bounds of each arm by step, at equal evaluations and at equal processor seconds: means over paired "
            "seeds with 95 % bands (Student's t). The first part of training lies below the panels.",
            "Two rows of panels, held-out bound of 50 samples and held-out ELBO, against three clocks; a line per arm.",
        )
    return shown


def _headline(data: dict[str, Any]) -> str:
    """What the paired trainings say of the first pair, in a sentence."""
    if not data["pairs"]:
        return ""
    pair, K = data["pairs"][0], data["plan"]["num_samples"]
    log_p, kl = pair["log_p"], pair["kl"]
    return (
        f"{pair['first']} minus {pair['second']} over {pair['seeds']} paired seeds: held-out L_{K} "
        f"{log_p['difference']:+.2f} ± {log_p['standard_error']:.2f} nat (one-sided p = {log_p['p_above']:.2g}), "
        f"KL(q || posterior) {kl['difference']:+.2f} ± {kl['standard_error']:.2f} nat (p = {kl['p_above']:.2g}); ± are "
        "standard errors."
    )


def _plus(value: Any, spread: Any, digits: int = 2, sign: str = "") -> Cell:
    if missing(value):
        return Cell("–", "", "n")
    text = f"{value:{sign}.{digits}f}" + ("" if missing(spread) else f" ± {spread:.{digits}f}")
    return Cell(text, f"{value:.6g}", "n")


def _rows(data: dict[str, Any]) -> Table:
    plan, rows = data["plan"], []
    for row in data["rows"]:
        negative = None if missing(row["log_p"]) else -row["log_p"]
        more = None if missing(row["log_p_more"]) else -row["log_p_more"]
        rows.append(
            [
                Cell(row["arm"], kind="name", note="; ".join(dict.fromkeys(row["targets"].values()))),
                _plus(negative, row["log_p_sd"]),
                _plus(more, row["log_p_more_sd"]),
                _plus(row["kl"], row["kl_sd"]),
                Cell(number(row["khat"]), row["khat"] or "", "n"),
                _plus(row["active_units"], None, 1),
                _plus(row["evaluations"] / 1e6, None),
                _plus(row["processor_seconds"], None, 1),
                *(
                    _plus(-data["equal_cost"][cost]["heldout_bound"][row["arm"]][0],
                          data["equal_cost"][cost]["heldout_bound"][row["arm"]][1])
                    for cost in ("evaluations", "processor_seconds")
                ),
            ]
        )  # fmt: skip
    levels = {cost: found["level"] for cost, found in data["equal_cost"].items()}
    head = [
        "trained by", f"NLL, L_{plan['num_samples']} (± sd over seeds)", f"NLL, L_{5 * plan['num_samples']} on a fifth",
        "KL(q || posterior), at least", "k-hat", "active units", "evaluations (10⁶)", "seconds",
        f"NLL, L_50, at {levels['evaluations'] / 1e6:.1f} · 10⁶ evaluations (± se)",
        f"NLL, L_50, at {levels['processor_seconds']:.0f} s (± se)",
    ]  # fmt: skip
    return Table(f"Held-out images ({plan['images']}), nats per image", head, rows)


def _pairs(data: dict[str, Any]) -> Table:
    rows = []
    for pair in data["pairs"]:
        log_p, kl, more = pair["log_p"], pair["kl"], pair.get("log_p_more")
        rows.append(
            [
                Cell(f"{pair['first']} − {pair['second']}", kind="name", note=pair["why"]),
                _plus(log_p["difference"], log_p["standard_error"], sign="+"),
                Cell(f"{log_p['p_above']:.2g}", f"{log_p['p_above']:.3g}", "n"),
                Cell(f"{log_p['p_below']:.2g}", f"{log_p['p_below']:.3g}", "n"),
                _plus(more["difference"], more["standard_error"], sign="+") if more else Cell("–", "", "n"),
                _plus(kl["difference"], kl["standard_error"], sign="+"),
                Cell(f"{kl['p_above']:.2g}", f"{kl['p_above']:.3g}", "n"),
            ]
        )
    K = data["plan"]["num_samples"]
    head = [
        "paired difference", f"held-out L_{K} (± se)", "p that it is above 0", "p that it is below 0",
        f"L_{5 * K} on a fifth (± se)", "KL (± se)", "p that it is above 0",
    ]  # fmt: skip
    caption = (
        f"Paired differences over {data['plan']['seeds']} seeds, one-sided t tests, not corrected for their number"
    )
    return Table(caption, head, rows, sortable=False)


def _close(data: dict[str, Any]) -> Table:
    """Gaps of the first seed's models."""

    def value(found: dict[str, Any], name: str) -> Cell:
        middle, error = found[name], found[f"{name}_standard_error"]
        half = float("nan") if missing(error) else Z95 * error
        return Cell(interval(middle, middle - half, middle + half), f"{middle:.4g}", "n")

    rows = []
    for arm, found in data["close"].items():
        for shape, gap in found["gaps"].items():
            cells = (value(gap, name) for name in ("best", "approximation", "amortisation"))
            rows.append([Cell(arm, kind="name"), Cell(f"{shape} q* of each image"), *cells])
        iw = found["corrected"]
        least, most = iw["approximation_least"], iw["approximation_most"]
        gap = Cell(f"{least:.2f} to {most:.2f}", f"{most:.4g}", "n")
        rows.append(
            [
                Cell(arm, kind="name"),
                Cell(f"q_IW of {iw['num_samples']} samples"),
                value(iw, "lower"),
                gap,
                Cell("–", "", "n"),
            ]
        )
    head = ["trained by", "density", "its ELBO", "approximation gap", "amortisation gap"]
    if not data["close"]:
        return Table("", head, [])
    first = next(iter(data["close"].values()))
    short = "; ".join(f"{arm} {found['log_p'] - found['own_bound']:.2f}" for arm, found in data["close"].items())
    caption = (
        f"Where the bound is lost: first seed, {first['images']} held-out images, nats. log p(x) is the largest bound that is "
        f"known of each image, with q* as proposals; L_{first['num_samples']} of the guide is below it by: {short}"
    )
    return Table(caption, head, rows)


def _published(data: dict[str, Any]) -> Table:
    rows = []
    for row in data["published"]:
        units = row.get("active") or [None] * len(row["k"])
        for k, nll, active in zip(row["k"], row["nll"], units, strict=True):
            cells = [Cell(row["source"], kind="name"), Cell(row["method"]), Cell(str(k), k, "n")]
            rows.append([*cells, Cell(f"{nll:.2f}", nll, "n"), Cell(str(active or "–"), active or "", "n")])
    head = ["published", "trained by", "k", "test NLL (nats)", "active units"]
    return Table("Published: MNIST, 60,000 images, 784-200-200-50, 3,280 epochs, L_5000", head, rows)


def _pictures(run: Run, plates: Plates) -> list[tuple[str, list[Plate]]]:
    """The pictures of each model that has some."""
    found, titles = [], training_titles([run])
    for file in sorted((run.path / "pictures").glob("*.safetensors")):
        try:
            arrays = pictures.read(file)
        except (OSError, ValueError, safetensors.SafetensorError) as problem:
            run.unreadable[f"pictures/{file.name}"] = f"{file.name}: unreadable ({type(problem).__name__})"
            continue
        title = titles.get(file.stem, file.stem)
        drawn = [
            plates.add(
                f"{file.stem}-{name}", "pictures", lambda draw=draw, arrays=arrays: draw(arrays), None,
                f"{title}: {words[0].lower() + words[1:]}.", f"{words}; model {title}.", spare=3,
            )
            for name, (draw, words) in DRAWINGS.items()
            if name in arrays
        ]  # fmt: skip
        found.append((title, drawn))
    return found
