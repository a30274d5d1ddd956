"""How a figure of this suite looks: colours by family, markers by estimator, plain ticks, legends below."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .labels import labelled
from .wording import number

MARKERS = "osD^vP<X>phd8*"
LOOK = ["run", "problem", "title", "estimator", "label", "hue", "mark", "num_samples"]
"""Columns by which a series is told from another, and looks as it does."""
SMALL = 20
"""Entries beyond which a legend is in small print."""
PALETTE: list[str] = [to_hex(colour) for colour in sns.color_palette("colorblind")]
RC: dict[str, Any] = {
    **{"svg.hashsalt": "gradest", "svg.fonttype": "none", "figure.dpi": 100},
    **{"font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 11},
    **{"axes.labelsize": 10, "legend.fontsize": 9, "legend.frameon": False, "grid.color": "#e4e4e4"},
    **{"axes.titley": 1.02},  # where it is wanted: searching for a free place costs a fifth of the drawing
    **{"lines.markersize": 5, "lines.linewidth": 1.4, "xtick.labelsize": 9, "ytick.labelsize": 9},
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw under seaborn's white grid and this report's settings, whatever the process has set."""

    @wraps(draw)
    def drawn(*arguments: Any, **settings: Any) -> Figure:
        with matplotlib.rc_context({**sns.axes_style("whitegrid"), **RC}), unalarmed():
            return draw(*arguments, **settings)

    return drawn


def unalarmed() -> np.errstate:
    """Within, an axis may end where numbers do: room beside values near the largest number overflows, to no harm."""
    return np.errstate(over="ignore")


def prepared(table: pd.DataFrame, *, problem: str | None = None, means: bool = True) -> pd.DataFrame:
    """A table as :func:`reports.frame` gives it, made ready for a figure; one that is ready stays as it is.

    Arguments:
        problem: specification, or title, of the one to draw, where the table has several.
        means: over seeds; otherwise every finished cell by itself.

    Raises:
        ValueError: if the table has several problems and none is chosen, or not the chosen one.
    """
    if "label" not in table:
        cells, joined, _ = labelled(table)
        table = joined if means else cells[(cells["status"] == "ok") & cells["block"].notna()]
        if table["label"].nunique() <= len(PALETTE):  # few enough for a colour each; a report's colours are families
            codes = pd.Categorical(table["label"].astype(str)).codes
            table = table.assign(hue=codes, mark=codes)
        if problem is None and table["problem"].nunique() > 1:
            known = ", ".join(sorted(set(table["title"])))
            raise ValueError(f"the table has several problems; choose by problem= one of: {known}")
    if problem is not None:
        chosen = table[(table["problem"] == problem) | (table["title"] == problem)]
        if not len(chosen):
            raise ValueError(f"no problem {problem!r} in the table; it has: {', '.join(sorted(set(table['title'])))}")
        table = chosen
    return table


def safe(text: object) -> str:
    """Text that matplotlib draws as it stands: no mathematics, no hidden legend entry, no line breaks, nothing invisible.

    >>> safe("\\ufeff\\u202e_$x$\\x1b")
    '\\xa0_\\\\$x\\\\$'
    """
    plain = " ".join(str(text).encode("utf-8", "replace").decode("utf-8").split())
    plain = "".join(
        each for each in plain if unicodedata.category(each)[0] != "C"
    )  # its PDF writer fails on some of them
    return ("\N{NO-BREAK SPACE}" if plain.startswith("_") else "") + plain.replace("$", r"\$")


def look(hue: int, mark: int) -> dict[str, Any]:
    """Colour of a family (ten, then again) and marker of its member (fourteen, then again)."""
    return {"color": PALETTE[hue % len(PALETTE)], "marker": MARKERS[(mark + hue // len(PALETTE)) % len(MARKERS)]}


def series(table: pd.DataFrame, cost: str = "num_samples") -> Iterator[tuple[str, dict[str, Any], pd.DataFrame]]:
    """Each estimator's rows in order of K, with its look; ``cost`` breaks ties."""
    ordered = table.sort_values(["num_samples", cost], kind="stable")
    for (label, _run), rows in ordered.groupby(["label", "run"], observed=True, sort=True):
        yield safe(label), look(int(rows["hue"].iloc[0]), int(rows["mark"].iloc[0])), rows


def panels(
    rows: int, columns: int, table: pd.DataFrame, *, size: tuple[float, float], extra: int = 0, sharey: bool = False
) -> tuple[Figure, np.ndarray]:
    """A figure with a grid of panels of ``size`` inches, and room for :func:`legend` with ``extra`` entries below.

    The margins are set, not searched for: matplotlib's own search costs as much as the drawing.
    """
    entries = table["label"].nunique() + extra
    width, height = columns * (size[0] + 0.85) + 0.15, rows * (size[1] + 0.85) + 0.35
    below = (0.15 if entries > SMALL else 0.18) * -(-entries // _columns(width, entries)) + 0.15
    figure = Figure(figsize=(width, height + below))
    total = height + below
    grid = figure.subplots(rows, columns, squeeze=False, sharey="row" if sharey else False)
    for axes in grid.flat:  # where labels go, rather than measured from every tick each time a file is written
        axes.xaxis.set_label_coords(0.5, -0.3 / size[1])
        axes.yaxis.set_label_coords(-0.6 / size[0], 0.5)
    figure.subplots_adjust(
        left=0.8 / width,
        right=1 - 0.15 / width,
        top=1 - 0.65 / total,
        bottom=(below + 0.5) / total,
        wspace=0.85 / size[0] if columns > 1 else 0,
        hspace=0.85 / size[1] if rows > 1 else 0,
    )
    return figure, grid


def _columns(width: float, entries: int) -> int:
    """Columns of a legend that fit into so many inches."""
    each, most = (2.2, 4) if entries > SMALL else (3.0, 3)
    return max(1, min(most, int(width // each)))


def legend(figure: Figure, table: pd.DataFrame, extra: Sequence[Line2D] = ()) -> None:
    """Every estimator of a table, and what else is drawn, below the panels; many entries in small print."""
    known = table.drop_duplicates("label").sort_values("label")
    handles = [
        Line2D([], [], label=safe(label), **look(hue, mark))
        for label, hue, mark in zip(known["label"], known["hue"], known["mark"], strict=True)
    ]
    entries = len(handles) + len(extra)
    figure.legend(
        handles=[*handles, *extra],
        loc="lower center",
        ncols=_columns(figure.get_figwidth(), entries),
        fontsize=7.5 if entries > SMALL else 9,
        labelspacing=0.3,
        borderaxespad=0.2,
    )


def error_bars(axes: Axes, x: str, y: str, prefix: str, drawn: Sequence[tuple[dict[str, Any], pd.DataFrame]]) -> None:
    """95 % intervals of several series at once."""
    if not drawn:
        return
    names = (x, y, f"{prefix}_low", f"{prefix}_high")
    at, value, low, high = (np.concatenate([rows[name].to_numpy(dtype=float) for _, rows in drawn]) for name in names)
    colours = np.array([style["color"] for style, each in drawn for _ in range(len(each))])
    # A lower end at or below zero has no place on a log axis; no interval, no bar.
    low = np.maximum(np.minimum(np.nan_to_num(low, nan=np.inf), value), 0.001 * np.abs(value))
    high = np.maximum(np.nan_to_num(high, nan=-np.inf), value)
    axes.vlines(at, low, high, colors=colours, linewidth=0.9)


def title(table: pd.DataFrame) -> str:
    """The problems of a table, to stand above a figure."""
    return ", ".join(safe(each) for each in table["title"].drop_duplicates())


def blocks(table: pd.DataFrame) -> list[str]:
    """The gradient blocks that a table has."""
    return [block for block in ("phi", "theta") if (table["block"] == block).any()]


def powers(axes: Axes, which: str = "xy", least: float = 20.0) -> None:
    """Plain ticks at round numbers on logarithmic axes, which span at least this factor."""
    _make_room(axes)
    for name in which:
        limits = getattr(axes, f"get_{name}lim")()
        room = max(1.0, (least / (limits[1] / limits[0])) ** 0.5)
        low, high = getattr(axes, f"set_{name}lim")(limits[0] / room, limits[1] * room)
        exponents = np.arange(np.ceil(np.log10(low)), np.floor(np.log10(high)) + 1)
        steps = [1.0] if len(exponents) > 2 else [1.0, 3.0]
        ticks = [step * 10.0**power for power in [exponents[0] - 1, *exponents] for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        ticks = ticks[:: max(1, -(-len(ticks) // 7))]
        getattr(axes, f"{name}axis").set_ticks(ticks, [number(tick, 1) for tick in ticks])
    axes.minorticks_off()


def _make_room(axes: Axes) -> None:
    """Room about values that agree but for rounding: matplotlib's own margins would round to nothing, with a warning."""
    for name in "xy":
        low, high = getattr(axes.dataLim, f"interval{name}")
        if 0 < low < high < low * (1 + 1e-9):
            axes.update_datalim([(low / 2, low / 2), (high * 2, high * 2)], updatex=name == "x", updatey=name == "y")


def strips(names: Sequence[str], title: str, below: float = 0.9) -> tuple[Figure, Axes, Axes]:
    """Two panels side by side with a row for each name, the first above, and room for a legend below."""
    height = 0.3 * len(names) + 0.7 + 0.5 + below
    figure = Figure(figsize=(9.2, height))
    figure.suptitle(title)
    left, right = figure.subplots(1, 2, sharey=True)
    longest = min(0.45, (0.25 + 0.075 * max((len(name) for name in names), default=0)) / 9.2)
    figure.subplots_adjust(left=longest, right=0.985, top=1 - 0.5 / height, bottom=(below + 0.1) / height, wspace=0.04)
    left.set_yticks(range(len(names)), [safe(name) for name in names])
    left.set_ylim(len(names) - 0.4, -0.6)
    for axes in (left, right):
        axes.xaxis.set_label_coords(0.5, -0.35 / (height - 0.5 - below))
    return figure, left, right


def whole_k(axes: Axes, rows: pd.DataFrame) -> None:
    """Ticks at the K that were measured, as plain numbers, thinned to at most eight."""
    powers(axes)
    ks = sorted(set(rows["num_samples"]))
    ticks = ks[:: max(1, -(-len(ks) // 8))]
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.minorticks_off()


def nothing(axes: Axes) -> None:
    """Say that a panel has no data."""
    axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color="#666666")
