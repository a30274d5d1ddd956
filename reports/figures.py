"""The figures of a report: functions from a table to a matplotlib figure.

Every table comes with two columns beside those of :func:`reports.statistics.over_seeds`: ``label``, a categorical short
title of the estimator, whose categories are those of the whole report (so that one estimator looks the same in all
figures), and ``title``, that of the problem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import stats

from .statistics import COSTS, Z95, pareto, sound
from .wording import BLOCKS, number

MARKERS = "osD^vP<X>phd8*"
DASHES = {"elbo": "-", "iwae": "--", "log_marginal": ":"}
VERDICTS = {
    "PASS": ("#029e73", "o"),
    "BIASED": ("#d55e00", "X"),
    "INCONCLUSIVE": ("#949494", "s"),
    "HEAVY_TAIL": ("#cc78bc", "^"),
    "NONFINITE": ("#000000", "P"),
    "NO_REFERENCE": ("#0173b2", "D"),
}
RC: dict[str, Any] = {
    **{"svg.hashsalt": "gradest", "svg.fonttype": "none", "figure.dpi": 100},
    **{"font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 11},
    **{"axes.labelsize": 10, "legend.fontsize": 9, "legend.frameon": False, "grid.color": "#e4e4e4"},
    **{"lines.markersize": 5, "lines.linewidth": 1.4, "xtick.labelsize": 9, "ytick.labelsize": 9},
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw under seaborn's white grid and this report's settings, whatever the process has set."""

    @wraps(draw)
    def drawn(*arguments: Any, **settings: Any) -> Figure:
        with matplotlib.rc_context({**sns.axes_style("whitegrid"), **RC}):
            return draw(*arguments, **settings)

    return drawn


def safe(text: object) -> str:
    """Text that matplotlib draws as it stands: no mathematics, no hidden legend entry, no line breaks."""
    plain = " ".join(str(text).encode("utf-8", "replace").decode("utf-8").split())
    return ("\N{NO-BREAK SPACE}" if plain.startswith("_") else "") + plain.replace("$", r"\$")


def look(code: int) -> dict[str, Any]:
    """Colour and marker of the estimator with this category code; ten colours, fourteen markers, no pair twice."""
    palette = sns.color_palette("colorblind")
    return {"color": palette[code % len(palette)], "marker": MARKERS[(code + code // 70) % len(MARKERS)]}


def _series(table: pd.DataFrame) -> Iterator[tuple[str, dict[str, Any], pd.DataFrame]]:
    for (label, _run), rows in table.groupby(["label", "run"], observed=True, sort=True):
        code = table["label"].cat.categories.get_loc(label)
        yield safe(label), look(code), rows.sort_values("num_samples")


def _legend(figure: Figure, table: pd.DataFrame, extra: Sequence[Line2D] = (), columns: int = 3) -> None:
    codes = sorted(set(table["label"].cat.codes))
    handles = [Line2D([], [], label=safe(table["label"].cat.categories[code]), **look(code)) for code in codes]
    figure.legend(handles=[*handles, *extra], loc="outside lower center", ncols=columns)


def _error_bars(axes: Axes, rows: pd.DataFrame, x: str, y: str, prefix: str, style: dict[str, Any]) -> None:
    low, high = rows[y] - rows[f"{prefix}_low"], rows[f"{prefix}_high"] - rows[y]
    reach = np.nan_to_num(np.stack([low, high]).astype(float), nan=0.0).clip(min=0)
    reach[0] = np.minimum(reach[0], 0.999 * rows[y].abs())  # a lower end at or below zero has no place on a log axis
    axes.errorbar(rows[x], rows[y], yerr=reach, fmt="none", ecolor=style["color"], elinewidth=0.9)


def _title(table: pd.DataFrame) -> str:
    return ", ".join(safe(title) for title in table["title"].drop_duplicates())


def _blocks(table: pd.DataFrame) -> list[str]:
    return [block for block in ("phi", "theta") if (table["block"] == block).any()]


@styled
def variance_against_cost(means: pd.DataFrame, costs: Sequence[str] = tuple(COSTS)) -> Figure:
    """One problem's variance against cost, log-log: a row of panels per block, a column per cost meter.

    One line per estimator through its K; hollow where the verdict forbids a comparison; ringed on the Pareto front of
    its target; grey diagonals join equal variance x cost.
    """
    blocks = _blocks(means)
    figure = Figure(figsize=(4.6 * len(costs), 3.7 * len(blocks) + 1.4), layout="constrained")
    figure.suptitle(_title(means))
    grid = figure.subplots(len(blocks), len(costs), squeeze=False)
    for row, block in zip(grid, blocks, strict=True):
        for axes, cost in zip(row, costs, strict=True):
            here = means[(means["block"] == block) & (means[cost] > 0) & (means["variance"] > 0)]
            here = here[here["variance_exists"].astype(bool)]
            axes.set(xscale="log", yscale="log", xlabel=COSTS[cost], ylabel="variance" if axes is row[0] else "")
            axes.set_title(f"gradient in {BLOCKS[block]}")
            if not len(here):
                _nothing(axes)
                continue
            front, good = pareto(here, cost), sound(here)
            for _, style, rows in _series(here):
                dash = DASHES.get(str(rows["target"].iloc[0]), "-.")
                axes.plot(rows[cost], rows["variance"], dash, color=style["color"], alpha=0.85)
                _error_bars(axes, rows, cost, "variance", "variance", style)
                for subset, face in ((rows[good[rows.index]], style["color"]), (rows[~good[rows.index]], "white")):
                    axes.plot(subset[cost], subset["variance"], linestyle="", markerfacecolor=face, **style)
                ring = rows[front[rows.index]]
                axes.plot(ring[cost], ring["variance"], "o", ms=10, mfc="none", mec="#333333", mew=0.9, zorder=1.5)
            _powers(axes)
            _equal_efficiency(axes)
    ring = Line2D(
        [], [], linestyle="", marker="o", ms=10, mfc="none", mec="#333333", label="Pareto front of its target"
    )
    diagonal = Line2D([], [], color="#bbbbbb", linewidth=0.8, label="equal variance × cost")
    _legend(figure, means[means["block"].isin(blocks)], [ring, diagonal])
    return figure


def _equal_efficiency(axes: Axes) -> None:
    """Diagonals of constant variance x cost, at whole powers of ten, at most six."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    powers = np.arange(np.ceil(np.log10(left * bottom)), np.floor(np.log10(right * top)) + 1)
    x = np.array([left, right])
    for power in powers[:: max(1, -(-len(powers) // 6))]:
        axes.plot(x, 10.0**power / x, color="#bbbbbb", linewidth=0.8, zorder=0.5)
    axes.set(xlim=(left, right), ylim=(bottom, top))


def _powers(axes: Axes, least: float = 20.0) -> None:
    """Plain ticks at round numbers on both logarithmic axes, which span at least this factor."""
    for axis, limits, put in (
        (axes.xaxis, axes.get_xlim(), axes.set_xlim),
        (axes.yaxis, axes.get_ylim(), axes.set_ylim),
    ):
        room = max(1.0, (least / (limits[1] / limits[0])) ** 0.5)
        low, high = put(limits[0] / room, limits[1] * room)
        powers = np.arange(np.ceil(np.log10(low)), np.floor(np.log10(high)) + 1)
        steps = [1.0] if len(powers) > 2 else [1.0, 3.0]
        ticks = [step * 10.0**power for power in [powers[0] - 1, *powers] for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        ticks = ticks[:: max(1, -(-len(ticks) // 7))]
        axis.set_ticks(ticks, [number(tick, 1) for tick in ticks])
    axes.minorticks_off()


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color="#666666")


@styled
def bias(blocks: pd.DataFrame) -> Figure:
    """One problem's biases, a point per cell and block: z-scores in the expected bands, and the smallest bias visible.

    ``blocks`` is one row per cell and block (seeds apart). Dark band: 95 % of unbiased z-scores fall here; light band:
    all of the shown do, in 95 % of reports (Bonferroni).
    """
    names = [name for name in blocks["label"].cat.categories if (blocks["label"] == name).any()]
    figure = Figure(figsize=(9.2, 0.3 * len(names) + 2.2), layout="constrained")
    figure.suptitle(_title(blocks))
    left, right = figure.subplots(1, 2, sharey=True)
    scored = blocks[blocks["bias_z"].notna()]
    wide = float(stats.norm.ppf(1 - 0.025 / max(1, len(scored))))
    left.axvspan(-wide, wide, color="#0173b2", alpha=0.10, linewidth=0)
    left.axvspan(-Z95, Z95, color="#0173b2", alpha=0.18, linewidth=0)
    place = {name: index for index, name in enumerate(names)}
    offset = {"value": -0.22, "theta": 0.0, "phi": 0.22}
    for verdict, rows in scored.groupby("verdict"):
        colour, marker = VERDICTS[verdict]
        y = [place[one] + offset[block] for one, block in zip(rows["label"], rows["block"], strict=True)]
        left.plot(
            rows["bias_z"],
            y,
            linestyle="",
            marker=marker,
            color=colour,
            alpha=0.8,
            label=verdict.lower().replace("_", " "),
        )
    reach = max(6.0, 1.3 * float(scored["bias_z"].abs().max())) if len(scored) else 6.0
    left.set_xscale("symlog", linthresh=6.0, linscale=1.5)
    signed = bool((scored["bias_z"] < 0).any())
    left.set(xlim=(-reach if signed else -0.3, reach), xlabel="z-score of the bias", yticks=range(len(names)))
    outer = [10.0**power for power in range(1, 12) if 10.0**power < reach][-5:]
    ticks = [*(-tick for tick in reversed(outer)), -4, -2, 0, 2, 4, *outer]
    ticks = [tick for tick in ticks if signed or tick >= 0]
    left.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    left.set_yticklabels([safe(name) for name in names])
    left.invert_yaxis()
    seen = blocks[(blocks["detectable_bias"] > 0) & (blocks["reference_norm"] > 0)]
    for block, marker in (("value", "s"), ("theta", "^"), ("phi", "o")):
        rows = seen[seen["block"] == block]
        y = [place[one] + offset[block] for one in rows["label"]]
        percent = 100 * rows["detectable_bias"] / rows["reference_norm"]
        right.plot(percent, y, marker, color="#333333", mfc="none", alpha=0.8, label=BLOCKS[block])
    right.set(xscale="log", xlabel="detectable bias, % of reference")
    if not len(seen):
        _nothing(right)
    verdicts, _ = left.get_legend_handles_labels()
    marks, _ = right.get_legend_handles_labels()
    figure.legend(handles=[*verdicts, *marks], loc="outside lower center", ncols=6)
    return figure


@styled
def snr_against_k(means: pd.DataFrame, slopes: pd.DataFrame) -> Figure:
    """One problem's signal-to-noise ratio against K, log-log: fitted lines dashed, theory's slopes dotted."""
    blocks = _blocks(means)
    figure = Figure(figsize=(4.6 * len(blocks), 5.5), layout="constrained")
    figure.suptitle(_title(means))
    grid = figure.subplots(1, len(blocks), squeeze=False)[0]
    for axes, block in zip(grid, blocks, strict=True):
        here = means[(means["block"] == block) & (means["snr"] > 0) & means["variance_exists"].astype(bool)]
        axes.set(xscale="log", yscale="log", xlabel="K (samples per estimate)", ylabel="SNR" if axes is grid[0] else "")
        axes.set_title(f"gradient in {BLOCKS[block]}")
        for _, style, rows in _series(here):
            axes.plot(rows["num_samples"], rows["snr"], linewidth=0.6, alpha=0.5, **style)
            _error_bars(axes, rows, "num_samples", "snr", "snr", style)
        floor = here.groupby("num_samples")["snr_floor"].max().dropna()
        axes.plot(floor.index, floor, color="#888888", linestyle=(0, (1, 2)))
        for _, fit in slopes[slopes["block"] == block].iterrows():
            colour = look(means["label"].cat.categories.get_loc(fit["label"]))["color"]
            k = np.array([fit["k_low"], fit["k_high"]], dtype=float)
            line = np.exp(fit["intercept"]) * k ** fit["slope"]
            axes.plot(k, line, "--", color=colour, linewidth=1.8)
            if pd.notna(fit["snr_slope_theory"]):
                pivot, middle = np.sqrt(line[0] * line[1]), np.sqrt(k[0] * k[1])
                axes.plot(k, pivot * (k / middle) ** fit["snr_slope_theory"], ":", color=colour, linewidth=1.8)
        _whole_k(axes, here)
        if len(floor) and floor.min() > 0:
            axes.set_ylim(bottom=floor.min() / 3)  # what lies below says nothing but that it is below
    lines = (
        ("--", "#333333", "fitted slope"),
        (":", "#333333", "theory's slope"),
        ((0, (1, 2)), "#888888", "SNR floor"),
    )
    extra = [Line2D([], [], linestyle=dash, color=colour, label=text) for dash, colour, text in lines]
    _legend(figure, means[means["block"].isin(blocks)], extra)
    return figure


def _whole_k(axes: Axes, rows: pd.DataFrame) -> None:
    """Ticks at the K that were measured, as plain numbers, thinned to at most eight."""
    _powers(axes)
    ks = sorted(set(rows["num_samples"]))
    ticks = ks[:: max(1, -(-len(ks) // 8))]
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.minorticks_off()


@styled
def throughput(means: pd.DataFrame) -> Figure:
    """Gradients per second (first column) and peak memory (second) against K, log-log, a row of panels per problem."""
    cells = means.drop_duplicates(["run", "title", "label", "num_samples"])
    cells = cells.assign(
        gradients_per_second_low=1 / cells["seconds_high"], gradients_per_second_high=1 / cells["seconds_low"]
    )
    problems = sorted(set(cells["title"]))
    figure = Figure(figsize=(9.2, 2.9 * len(problems) + 1.1), layout="constrained")
    grid = figure.subplots(len(problems), 2, squeeze=False)
    for row, problem in zip(grid, problems, strict=True):
        names = {"gradients_per_second": "gradients per second", "peak_bytes": COSTS["peak_bytes"]}
        for axes, (column, name) in zip(row, names.items(), strict=True):
            here = cells[(cells["title"] == problem) & (cells[column] > 0)]
            axes.set(xscale="log", yscale="log", ylabel=name, title=safe(problem))
            if not len(here):
                _nothing(axes)
                continue
            for _, style, rows in _series(here):
                axes.plot(rows["num_samples"], rows[column], alpha=0.85, **style)
                if f"{column}_low" in rows:
                    _error_bars(axes, rows, "num_samples", column, column, style)
            _whole_k(axes, here)
    for axes in grid[-1]:
        axes.set_xlabel("K (samples per estimate)")
    _legend(figure, cells)
    return figure


@styled
def training(points: pd.DataFrame) -> Figure:
    """Held-out bounds of the trained VAEs (nats per image) by step and by second, with bands of 1.96 standard errors.

    ``points`` holds the fields of ``TrainingPoint`` and a column ``training``, the model's title.
    """
    figure = Figure(figsize=(9.2, 4.4), layout="constrained")
    grid = figure.subplots(1, 2, sharey=True)
    palette = sns.color_palette("colorblind")
    kinds = {
        "train_elbo": (":", "training ELBO"),
        "heldout_elbo": ("-", "held-out ELBO"),
        "heldout_iwae": ("--", "held-out IWAE"),
    }
    for axes, clock in zip(grid, ("step", "seconds"), strict=True):
        for code, (name, rows) in enumerate(points.groupby("training", sort=True)):
            rows = rows.sort_values("step")
            style = {"color": palette[code % len(palette)], "marker": MARKERS[code % len(MARKERS)], "markersize": 3.5}
            for column, (dash, noun) in kinds.items():
                known = rows[rows[column].notna()]
                if not len(known):
                    continue
                axes.plot(known[clock], known[column], linestyle=dash, label=f"{safe(name)}: {noun}", **style)
                if f"{column}_standard_error" in known:
                    half = Z95 * known[f"{column}_standard_error"].fillna(0)
                    band = (known[column] - half, known[column] + half)
                    axes.fill_between(known[clock], *band, color=style["color"], alpha=0.2, linewidth=0)
        axes.set_xlabel({"step": "training step", "seconds": "seconds of training"}[clock])
    grid[0].set_ylabel("bound (nats per image)")
    _focus(grid[0], points)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=1 if max(map(len, labels), default=0) > 40 else 2)
    return figure


def _focus(axes: Axes, points: pd.DataFrame) -> None:
    """Leave the untrained start outside if it would flatten all the rest; the caption says so."""
    bounds = points.loc[points["step"] > 0, ["train_elbo", "heldout_elbo", "heldout_iwae"]].to_numpy(dtype=float)
    if np.isfinite(bounds).sum() > 2:
        low, high = np.nanmin(bounds), np.nanmax(bounds)
        axes.set_ylim(low - 0.06 * (high - low + 1e-9), high + 0.06 * (high - low + 1e-9))


@styled
def pyro_beside_ours(pairs: pd.DataFrame) -> Figure:
    """Pyro's variance and seconds per gradient over ours, with 95 % intervals; 1 means no difference.

    ``pairs`` is :func:`reports.statistics.beside`'s with a column ``pair``, the row's name.
    """
    figure = Figure(figsize=(9.2, 0.24 * len(pairs) + 1.5), layout="constrained")
    grid = figure.subplots(1, 2, sharey=True)
    y = np.arange(len(pairs))
    for axes, quantity in zip(grid, ("variance", "seconds"), strict=True):
        value = pairs[f"{quantity}_ratio"].to_numpy(dtype=float)
        low, high = (pairs[f"{quantity}_ratio_{end}"].to_numpy(dtype=float) for end in ("low", "high"))
        reach = np.nan_to_num(np.stack([value - low, high - value]), nan=0.0).clip(min=0)
        axes.axvline(1.0, color="#d55e00", linewidth=1.2)
        axes.errorbar(value, y, xerr=reach, fmt="o", color="#0173b2", elinewidth=1.6, markersize=4)
        axes.set(xscale="log", xlabel=f"{quantity}: Pyro / ours")
        finite = np.concatenate([value, low, high, [1.0]])
        finite = finite[np.isfinite(finite)]
        low_limit, high_limit = float(finite.min()), float(finite.max())
        pad = max(1.05, (high_limit / low_limit) ** 0.08)
        axes.set_xlim(low_limit / pad, high_limit * pad)
        ticks = _ratio_ticks(low_limit / pad, high_limit * pad)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    grid[0].set(yticks=y, ylim=(len(pairs) - 0.4, -0.6))
    grid[0].set_yticklabels([safe(name) for name in pairs["pair"]])
    return figure


def _ratio_ticks(low: float, high: float) -> list[float]:
    """A handful of round ratios between two limits, 1 among them."""
    for steps in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 7.0, 8.0, 9.0)):
        powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) >= 3:
            return ticks
    step = (high - low) / 4
    near = np.array([1 - 2 * step, 1 - step, 1, 1 + step, 1 + 2 * step]).round(2)
    return sorted({float(tick) for tick in near if low <= tick <= high})
