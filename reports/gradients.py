"""Gradients of training steps on the page: signal and both kinds of noise, by state of the training, layer and cost."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .looks import MARKERS, PALETTE, safe, styled
from .page import Cell, Table
from .plates import Plate, Plates
from .wording import BLOCKS, interval, number

COSTS = {"evaluations": "evaluations of log p(x, z)", "flops": "FLOPs", "seconds": "seconds"}
FEW = 1e-12
"""Variances below this are rounding."""


def table(data: dict[str, Any]) -> pd.DataFrame:
    """The rows of a gradient study: an estimator at one K in one state, and one layer (or whole block) of its gradient."""
    rows = pd.DataFrame(data["rows"])
    if len(rows):
        order = [state["state"] for state in data["states"]]
        rows["state"] = pd.Categorical(rows["state"], order, ordered=True)
    return rows


def section(run: str, data: dict[str, Any], plates: Plates) -> dict[str, Any]:
    """All that the page shows of one gradient study."""
    rows, design = table(data), data["plan"]["design"]
    shown: dict[str, Any] = {
        "title": f"{run}: gradients of steps of {design['batch']} images",
        "states": [_state(each) for each in data["states"]],
        "refused": data["refused"],
        "figures": [],
        "table": None,
    }
    if not len(rows):
        return shown
    wide = ", ".join(str(K) for K in sorted(set(rows["num_samples"])))
    blocks = rows[rows["layer"] == rows["block"]]

    def add(name: str, draw: Any, data: pd.DataFrame, caption: str, alt: str) -> Plate:
        return plates.add(f"gradients-{run}-{name}", "gradients", lambda: draw(data), data, caption, alt, spare=2)

    shown["figures"] = [
        add(
            "snr", signal_against_k, blocks,
            "Signal-to-noise ratio of one step's gradient against K: norm of the mean gradient over the root of the summed "
            "variance, Monte Carlo and minibatch noise together. Dashed: what would be left if sampling cost nothing, the "
            "ratio of minibatch noise alone, as the estimator with the least noise at that K sees it.",
            f"A panel per block and state of the training; a line per estimator through K = {wide}.",
        ),
        add(
            "split", shares_by_layer, rows[rows["layer"] != rows["block"]],
            "Monte Carlo variance over minibatch variance, layer by layer at the largest K that an estimator was measured at "
            "(log10; red: more samples would help; blue: only more images would), and below the cosine of one step's "
            "gradient with the long run of its target.",
            "Two rows of heat maps, layers by estimators, one for each state of the training.",
        ),
        add(
            "cost", variance_against_costs, blocks,
            "Summed variance of one step's gradient, per squared norm of the mean gradient, against what the step costs; a "
            "line runs through the K of one estimator. The last state that has a gradient to speak of.",
            "Panels of both blocks against evaluations, FLOPs and seconds.",
        ),
    ]  # fmt: skip
    shown["table"] = _blocks(blocks)
    return shown


@styled
def signal_against_k(blocks: pd.DataFrame) -> Figure:
    """Signal-to-noise ratio against K, a panel for each block and state. ``blocks`` are the rows of whole blocks."""
    states, names = _present(blocks, "state"), sorted(set(blocks["estimator"]))
    figure = Figure(figsize=(2.3 * len(states) + 0.6, 6.0), layout="constrained")
    grid = figure.subplots(2, len(states), sharex=True, sharey="row", squeeze=False)
    for row, block in zip(grid, ("theta", "phi"), strict=True):
        for axes, state in zip(row, states, strict=True):
            own = blocks[(blocks["block"] == block) & (blocks["state"] == state)]
            for code, name in enumerate(names):
                _line(axes, own[own["estimator"] == name], "num_samples", "snr", code)
            best = own.sort_values("variance").drop_duplicates("num_samples").sort_values("num_samples")
            ceiling = best["signal"] / np.sqrt(best["minibatch"].clip(lower=FEW))
            axes.plot(best["num_samples"], ceiling, color="0.35", linestyle="--", linewidth=1, label="minibatch alone")
            axes.set(xscale="log", yscale="log")
            if axes in grid[0]:
                axes.set_title(safe(state))
        row[0].set_ylabel(f"SNR of {BLOCKS[block]}")
    for axes in grid[-1]:
        axes.set_xlabel("K")
    _legend(figure, grid[0, 0])
    return figure


@styled
def shares_by_layer(rows: pd.DataFrame) -> Figure:
    """Monte Carlo over minibatch variance, and the cosine with the long run, layers by estimators, at the largest K."""
    rows = rows[rows["num_samples"] == rows.groupby("estimator")["num_samples"].transform("max")]
    rows = rows.assign(ratio=np.log10(rows["monte_carlo"].clip(lower=FEW) / rows["minibatch"].clip(lower=FEW)))
    states, names = _present(rows, "state"), sorted(set(rows["estimator"]))
    order = list(dict.fromkeys(rows["layer"]))
    figure = Figure(figsize=(2.1 * len(states) + 1.6, 0.3 * len(order) * 2 + 2.6), layout="constrained")
    grid = figure.subplots(2, len(states), sharex=True, sharey=True, squeeze=False)
    looks = {"ratio": ("coolwarm", -3, 3, "log10 Monte Carlo / minibatch"), "cosine": ("viridis", 0, 1, "cosine")}
    for row, (column, (colours, low, high, words)) in zip(grid, looks.items(), strict=True):
        for axes, state in zip(row, states, strict=True):
            own = rows[rows["state"] == state].pivot_table(
                index="layer", columns="estimator", values=column, observed=True
            )
            values = own.reindex(index=order, columns=names).to_numpy(dtype=float)
            image = axes.imshow(values, cmap=mpl.colormaps[colours], vmin=low, vmax=high, aspect="auto")
            axes.set(xticks=range(len(names)), yticks=range(len(order)))
            axes.set_yticklabels([safe(each.replace("theta", "θ").replace("phi", "φ")) for each in order], fontsize=8)
            axes.set_xticklabels([safe(name) for name in names], rotation=90, fontsize=7)
            axes.grid(False)
            if axes in grid[0]:
                axes.set_title(safe(state))
        figure.colorbar(image, ax=list(row), label=words, shrink=0.9)
    return figure


@styled
def variance_against_costs(blocks: pd.DataFrame) -> Figure:
    """Relative variance of each block against each cost meter, in the last state whose gradient is clear of its noise."""
    clear = blocks[blocks["signal"] > 0]
    chosen = "converged" if "converged" in set(clear["state"]) else _present(clear, "state")[-1] if len(clear) else None
    own = clear[clear["state"] == chosen].assign(relative=lambda rows: rows["variance"] / rows["signal"] ** 2)
    figure = Figure(figsize=(9.4, 6.0), layout="constrained")
    grid = figure.subplots(2, len(COSTS), sharey="row", sharex="col", squeeze=False)
    for row, block in zip(grid, ("theta", "phi"), strict=True):
        for axes, (meter, words) in zip(row, COSTS.items(), strict=True):
            for code, name in enumerate(sorted(set(blocks["estimator"]))):
                _line(
                    axes, own[(own["estimator"] == name) & (own["block"] == block)], meter, "relative", code, band=False
                )
            axes.set(xscale="log", yscale="log")
            if axes in grid[-1]:
                axes.set_xlabel(f"{words} of a step")
        row[0].set_ylabel(f"variance / squared norm, {BLOCKS[block]}")
    figure.suptitle(safe(chosen or "no state"))
    _legend(figure, grid[0, 0])
    return figure


def _line(axes: Axes, own: pd.DataFrame, x: str, y: str, code: int, band: bool = True) -> None:
    own = own[(own[y] > 0) & (own[x] > 0)].sort_values("num_samples")
    name = own["estimator"].iloc[0] if len(own) else None
    colour = PALETTE[code % len(PALETTE)]
    axes.plot(
        own[x], own[y], color=colour, marker=MARKERS[code % len(MARKERS)], markersize=3.5, linewidth=1.1,
        label=safe(name) if name else None,
    )  # fmt: skip
    if band and len(own):
        low, high = (own[f"{y}_{end}"].clip(lower=own[y] / 50) for end in ("low", "high"))
        axes.fill_between(own[x], low, high, color=colour, alpha=0.12, linewidth=0)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)


def _present(rows: pd.DataFrame, column: str) -> list[str]:
    kinds = rows[column].cat.categories if hasattr(rows[column], "cat") else sorted(set(rows[column]))
    return [each for each in kinds if (rows[column] == each).any()]


def _state(state: dict[str, Any]) -> str:
    units = "+".join(str(each) for each in state["active_units"])
    elbo, bound = state["elbo"], state["bound"]
    return (
        f"{state['state']}: {state['model']}, {state['trained']}; held-out ELBO {number(elbo, 4)} and L_50 "
        f"{number(bound, 4)} nats, {units} active units"
    )


def _blocks(blocks: pd.DataFrame) -> Table:
    """Both blocks of every estimator at every K and state."""
    rows = []
    for row in blocks.sort_values(["state", "block", "estimator", "num_samples"]).to_dict(orient="records"):
        cells = [
            Cell(str(row["state"]), kind="name"),
            Cell(BLOCKS[row["block"]]),
            Cell(row["estimator"], note=row["target"] or "none"),
        ]
        cells.append(Cell(str(row["num_samples"]), row["num_samples"], "n"))
        for name in ("signal", "monte_carlo", "minibatch", "snr", "cosine"):
            text = interval(row[name], row[f"{name}_low"], row[f"{name}_high"])
            cells.append(Cell(text, "" if row[name] is None else f"{row[name]:.4g}", "n"))
        cells += [Cell(number(row[name]), "" if row[name] is None else f"{row[name]:.4g}", "n") for name in COSTS]
        rows.append(cells)
    head = [
        "state", "block", "estimator", "K", "norm of the mean", "Monte Carlo variance", "minibatch variance", "SNR",
        "cosine with the long run", *COSTS,
    ]  # fmt: skip
    return Table("Gradients of training steps, whole blocks, with 95 % intervals", head, rows)
