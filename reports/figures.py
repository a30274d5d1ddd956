"""The figures of a report: functions from a table to a matplotlib figure.

Each takes what :func:`reports.frame` gives, in a notebook as well as in a report; where that holds several problems, name one
by ``problem=``. Up to ten estimators have a colour each; beyond, and in reports, colours are families and markers estimators. A report
hands over tables that :func:`reports.labels.labelled` has made ready, so that one estimator looks the same in all its figures.

Example:
    >>> from reports import figures, frame
    >>> table = frame([])  # of run folders
    >>> figures.throughput(table).axes
    []
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from scipy import stats

from . import looks
from .labels import compared, labelled
from .looks import MARKERS, prepared, safe, styled
from .statistics import COSTS, RANK, Z95, pareto, sound
from .statistics import slopes as fitted_slopes
from .wording import BLOCKS

MARKS = 5_000
"""Points beyond which a strip of them is drawn as pixels: 70,000 shapes take 5 MB of a page, and a browser seconds."""
DASHES = {"elbo": "-", "iwae": "--", "log_marginal": ":"}
VERDICTS = {
    "PASS": ("#029e73", "o"),
    "BIASED": ("#d55e00", "X"),
    "INCONCLUSIVE": ("#949494", "s"),
    "HEAVY_TAIL": ("#cc78bc", "^"),
    "NONFINITE": ("#000000", "P"),
    "NO_REFERENCE": ("#0173b2", "D"),
}


@styled
def variance_against_cost(
    means: pd.DataFrame, costs: Sequence[str] = tuple(COSTS), *, problem: str | None = None
) -> Figure:
    """One problem's variance against cost, log-log: a row of panels per block, a column per cost meter.

    One line per estimator through its K; hollow where the verdict forbids a comparison; ringed on the Pareto front of
    its target; grey diagonals join equal variance x cost.
    """
    means = prepared(means, problem=problem)
    blocks = looks.blocks(means)
    wanted = {*RANK, *looks.LOOK, *costs, "verdict", "variance", "variance_low", "variance_high", "variance_exists"}
    means = means.loc[means["block"].isin(blocks), [name for name in means if name in wanted]]
    if not blocks:
        return Figure()
    figure, grid = looks.panels(len(blocks), len(costs), means, size=(3.7, 3.0), extra=2, sharey=True)
    figure.suptitle(looks.title(means))
    for row, block in zip(grid, blocks, strict=True):
        for axes, cost in zip(row, costs, strict=True):
            here = means[(means["block"] == block) & (means[cost] > 0) & (means["variance"] > 0)]
            here = here[here["variance_exists"].astype(bool)]
            axes.set(xscale="log", yscale="log", xlabel=COSTS[cost], ylabel="variance" if axes is row[0] else "")
            axes.set_title(f"gradient in {BLOCKS[block]}")
            if not len(here):
                looks.nothing(axes)
                continue
            here = here.assign(front=pareto(here, cost), good=sound(here))
            drawn = []
            for _, style, rows in looks.series(here):
                dash = DASHES.get(str(rows["target"].iloc[0]), "-.")
                at, value = rows[cost].to_numpy(dtype=float), rows["variance"].to_numpy(dtype=float)
                good = rows["good"].to_numpy(dtype=bool)
                solid = {"markevery": np.flatnonzero(good).tolist(), **style}
                axes.plot(at, value, dash, alpha=0.85, **solid)
                if not good.all():
                    axes.plot(at[~good], value[~good], linestyle="", markerfacecolor="white", **style)
                drawn.append((style, rows))
            looks.error_bars(axes, cost, "variance", "variance", drawn)
            ring = here[here["front"]]
            axes.plot(ring[cost], ring["variance"], "o", ms=10, mfc="none", mec="#333333", mew=0.9, zorder=1.5)
        measured = [axes for axes in row if axes.lines]  # they share their limits, so these come last
        for axes in measured:
            looks.powers(axes)
        for axes in measured:
            _equal_efficiency(axes)
    ring = Line2D(
        [], [], linestyle="", marker="o", ms=10, mfc="none", mec="#333333", label="Pareto front of its target"
    )
    diagonal = Line2D([], [], color="#bbbbbb", linewidth=0.8, label="equal variance × cost")
    looks.legend(figure, means, [ring, diagonal])
    return figure


def _equal_efficiency(axes: Axes) -> None:
    """Diagonals of constant variance x cost, at whole powers of ten, at most six."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    powers = np.arange(np.ceil(np.log10([left, bottom]).sum()), np.floor(np.log10([right, top]).sum()) + 1)
    powers = powers[:: max(1, -(-len(powers) // 6))]
    if len(powers):
        axes.plot(
            [left, right], [10.0**powers / left, 10.0**powers / right], color="#bbbbbb", linewidth=0.8, zorder=0.5
        )
    axes.set(xlim=(left, right), ylim=(bottom, top))


@styled
def bias(blocks: pd.DataFrame, *, problem: str | None = None) -> Figure:
    """One problem's biases, a point per cell and block: z-scores in the expected bands, and the smallest bias visible.

    ``blocks`` is one row per cell and block (seeds apart). Dark band: 95 % of unbiased z-scores fall here; light band:
    all of the shown do, in 95 % of reports (Bonferroni). Beyond :data:`MARKS` points are pixels, every one of them drawn.
    """
    blocks = prepared(blocks, problem=problem, means=False)
    names = [name for name in blocks["label"].cat.categories if (blocks["label"] == name).any()]
    figure, left, right = looks.strips(names, looks.title(blocks))
    scored, dense = blocks[blocks["bias_z"].notna()], len(blocks) > MARKS
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
            rasterized=dense,
        )
    reach = max(6.0, 1.3 * float(scored["bias_z"].abs().max())) if len(scored) else 6.0
    left.set_xscale("symlog", linthresh=6.0, linscale=1.5)
    left.xaxis.set_minor_locator(NullLocator())
    signed = bool((scored["bias_z"] < 0).any())
    left.set(xlim=(-reach if signed else -0.3, reach), xlabel="z-score of the bias")
    outer = [10.0**power for power in range(1, 12) if 10.0**power < reach][-5:]
    ticks = [*(-tick for tick in reversed(outer)), -4, -2, 0, 2, 4, *outer]
    ticks = [tick for tick in ticks if signed or tick >= 0]
    left.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    seen = blocks[(blocks["detectable_bias"] > 0) & (blocks["reference_norm"] > 0)]
    for block, marker in (("value", "s"), ("theta", "^"), ("phi", "o")):
        rows = seen[seen["block"] == block]
        y = [place[one] + offset[block] for one in rows["label"]]
        percent = 100 * rows["detectable_bias"] / rows["reference_norm"]
        right.plot(percent, y, marker, color="#333333", mfc="none", alpha=0.8, label=BLOCKS[block], rasterized=dense)
    right.set(xscale="log", xlabel="detectable bias, % of reference")
    if len(seen):
        looks.powers(right, "x")
    else:
        looks.nothing(right)
    verdicts, _ = left.get_legend_handles_labels()
    marks, _ = right.get_legend_handles_labels()
    figure.legend(handles=[*verdicts, *marks], loc="lower center", ncols=6)
    return figure


@styled
def snr_against_k(means: pd.DataFrame, slopes: pd.DataFrame | None = None, *, problem: str | None = None) -> Figure:
    """One problem's signal-to-noise ratio against K, log-log: fitted lines dashed, theory's slopes dotted.

    ``slopes`` are those of :func:`reports.statistics.slopes`, fitted here where they are not given.
    """
    means = prepared(means, problem=problem)
    slopes = fitted_slopes(means) if slopes is None else slopes
    blocks = looks.blocks(means)
    wanted = {*looks.LOOK, "block", "snr", "snr_low", "snr_high", "snr_floor", "variance_exists"}
    means = means.loc[means["block"].isin(blocks), [name for name in means if name in wanted]]
    if not blocks:
        return Figure()
    figure, (grid, *_) = looks.panels(1, len(blocks), means, size=(3.7, 3.6), extra=3)
    figure.suptitle(looks.title(means))
    for axes, block in zip(grid, blocks, strict=True):
        here = means[(means["block"] == block) & (means["snr"] > 0) & means["variance_exists"].astype(bool)]
        axes.set(xscale="log", yscale="log", xlabel="K (samples per estimate)", ylabel="SNR" if axes is grid[0] else "")
        axes.set_title(f"gradient in {BLOCKS[block]}")
        drawn = []
        for _, style, rows in looks.series(here):
            axes.plot(rows["num_samples"], rows["snr"], linewidth=0.6, alpha=0.5, **style)
            drawn.append((style, rows))
        looks.error_bars(axes, "num_samples", "snr", "snr", drawn)
        floor = here.groupby("num_samples")["snr_floor"].max().dropna()
        axes.plot(floor.index, floor, color="#888888", linestyle=(0, (1, 2)))
        hues = dict(zip(here["label"], here["hue"], strict=True))
        for fit in slopes[slopes["block"] == block].to_dict(orient="records"):
            colour = looks.look(hues.get(fit["label"], 0), 0)["color"]
            k = np.array([fit["k_low"], fit["k_high"]], dtype=float)
            line = np.exp(fit["intercept"]) * k ** fit["slope"]
            axes.plot(k, line, "--", color=colour, linewidth=1.8)
            if pd.notna(fit["snr_slope_theory"]):
                pivot, middle = np.sqrt(line[0] * line[1]), np.sqrt(k[0] * k[1])
                axes.plot(k, pivot * (k / middle) ** fit["snr_slope_theory"], ":", color=colour, linewidth=1.8)
        looks.whole_k(axes, here)
        if len(floor) and floor.min() > 0:
            axes.set_ylim(bottom=floor.min() / 3)  # what lies below says nothing but that it is below
    lines = (
        ("--", "#333333", "fitted slope"),
        (":", "#333333", "theory's slope"),
        ((0, (1, 2)), "#888888", "SNR floor"),
    )
    extra = [Line2D([], [], linestyle=dash, color=colour, label=text) for dash, colour, text in lines]
    looks.legend(figure, means, extra)
    return figure


@styled
def throughput(means: pd.DataFrame) -> Figure:
    """Gradients per second (first column) and peak memory (second) against K, log-log, a row of panels per problem."""
    means = prepared(means) if means["problem"].nunique() < 2 else _several(means)
    cells = means.drop_duplicates(["run", "title", "label", "num_samples"])
    cells = cells.assign(
        gradients_per_second_low=1 / cells["seconds_high"], gradients_per_second_high=1 / cells["seconds_low"]
    )
    problems = sorted(set(cells["title"]))
    if not problems:
        return Figure()
    figure, grid = looks.panels(len(problems), 2, cells, size=(3.7, 2.3))
    for row, problem in zip(grid, problems, strict=True):
        names = {"gradients_per_second": "gradients per second", "peak_bytes": COSTS["peak_bytes"]}
        for axes, (column, name) in zip(row, names.items(), strict=True):
            here = cells[(cells["title"] == problem) & (cells[column] > 0)]
            axes.set(xscale="log", yscale="log", ylabel=name, title=safe(problem))
            if not len(here):
                looks.nothing(axes)
                continue
            drawn = []
            for _, style, rows in looks.series(here):
                axes.plot(rows["num_samples"], rows[column], alpha=0.85, **style)
                drawn.append((style, rows))
            if f"{column}_low" in here:
                looks.error_bars(axes, "num_samples", column, column, drawn)
            looks.whole_k(axes, here)
    for axes in grid[-1]:
        axes.set_xlabel("K (samples per estimate)")
    looks.legend(figure, cells)
    return figure


def _several(means: pd.DataFrame) -> pd.DataFrame:
    """Ready to be drawn, with as many problems as there are."""
    return means if "label" in means else labelled(means)[1]


@styled
def training(points: pd.DataFrame) -> Figure:
    """Held-out bounds of the trained VAEs (nats per image) by step and by second, with bands of 1.96 standard errors.

    ``points`` is :func:`reports.tables.curves`': the fields of ``TrainingPoint`` and a column ``training``, the model's title.
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

    ``pairs`` is :func:`reports.labels.compared`'s, or any table of :func:`reports.frame`.
    """
    if "pair" not in pairs:
        _, means, names = labelled(pairs)
        pairs = compared(means, names)
        pairs = pairs[pairs["block"] != "value"]
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
        finite = finite[np.isfinite(finite) & (finite > 0)]
        low_limit, high_limit = float(finite.min()), float(finite.max())
        pad = max(1.05, (high_limit / low_limit) ** 0.08)
        axes.set_xlim(low_limit / pad, high_limit * pad)
        ticks = ratio_ticks(low_limit / pad, high_limit * pad)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    grid[0].set(yticks=y, ylim=(len(pairs) - 0.4, -0.6))
    grid[0].set_yticklabels([safe(name) for name in pairs["pair"]])
    return figure


def ratio_ticks(low: float, high: float) -> list[float]:
    """A handful of round ratios between two limits, 1 among them."""
    for steps in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 7.0, 8.0, 9.0)):
        powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) >= 3:
            return ticks
    step = (high - low) / 4
    near = np.array([1 - 2 * step, 1 - step, 1, 1 + step, 1 + 2 * step]).round(2)
    return sorted({float(tick) for tick in near if low <= tick <= high})
