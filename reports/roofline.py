"""Throughput as a share of what the machine can do at most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from . import looks
from .looks import styled

FLOPS, COPIED = "GFLOP/s of a matrix product", "GB/s copied"


def ceilings(environment: Mapping[str, Any], dtype: str, device: str) -> tuple[float, float] | None:
    """FLOPs and bytes a second that a run's machine reached, if that was measured.

    Example:
        >>> facts = {f"ceiling, float32 on cpu: {FLOPS}": 50, f"ceiling, float32 on cpu: {COPIED}": 4}
        >>> ceilings(facts, "float32", "cpu"), ceilings(facts, "float64", "cpu")
        ((50000000000.0, 4000000000.0), None)
    """
    found = [environment.get(f"ceiling, {dtype} on {device}: {name}") for name in (FLOPS, COPIED)]
    if not all(isinstance(each, int | float) and each > 0 for each in found):
        return None
    return 1e9 * float(found[0]), 1e9 * float(found[1])  # type: ignore[arg-type]


def shares(means: pd.DataFrame, environments: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Each estimator's FLOPs a second beside the roof above it: the matrix product, or memory at its intensity.

    Arguments:
        environments: by run, what it ran on.

    Returns:
        a row for each run, problem, estimator and K, with ``intensity`` (FLOPs per byte moved), ``flops_per_second``,
        ``flop_roof`` and ``byte_roof`` (a second), ``roof`` (the lower of the two, in FLOPs a second) and ``share`` of it.
    """
    rows = means.drop_duplicates([*looks.LOOK, "dtype", "device"])
    roofs = [
        ceilings(environments.get(run, {}), dtype, device) or (np.nan, np.nan)
        for run, dtype, device in zip(rows["run"], rows["dtype"], rows["device"], strict=True)
    ]
    rows = rows.assign(flop_roof=[roof[0] for roof in roofs], byte_roof=[roof[1] for roof in roofs])
    rows["intensity"] = rows["flops_per_gradient"] / rows["bytes_moved_per_gradient"]
    rows["flops_per_second"] = rows["flops_per_gradient"] / rows["seconds_per_gradient"]
    rows["roof"] = np.minimum(rows["flop_roof"], rows["intensity"] * rows["byte_roof"])
    rows["share"] = rows["flops_per_second"] / rows["roof"]
    return rows[(rows["flops_per_second"] > 0) & (rows["intensity"] > 0) & rows["roof"].notna()]


@styled
def roofline(shared: pd.DataFrame) -> Figure:
    """FLOPs a second against FLOPs per byte moved, log-log, a panel per precision and device, under the machine's roofs.

    ``shared`` is :func:`shares`'. The slope is memory, the flat part the matrix product.
    """
    groups = list(shared.groupby(["run", "dtype", "device"], sort=True))
    if not groups:
        return Figure()
    figure, grid = looks.panels(1, len(groups), shared, size=(4.6, 3.4))
    for axes, ((_, dtype, device), rows) in zip(grid[0], groups, strict=True):
        for _, style, own in looks.series(rows):
            axes.plot(own["intensity"], own["flops_per_second"], linestyle="", alpha=0.85, **style)
        most, copied = rows["flop_roof"].iloc[0], rows["byte_roof"].iloc[0]
        ends = np.array([rows["intensity"].min() / 2, max(rows["intensity"].max(), most / copied) * 2])
        corner = np.sort(np.append(ends, most / copied))
        axes.plot(corner, np.minimum(most, copied * corner), color="#555555", linewidth=1.2)
        axes.set(xscale="log", yscale="log", title=looks.safe(f"{dtype} on {device}"))
        axes.set(xlabel="FLOPs per byte moved", ylabel="FLOPs per second")
    looks.legend(figure, shared)
    return figure
