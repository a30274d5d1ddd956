"""Pictures of trained models, drawn from the arrays that :mod:`benchmarks.evaluation.pictures` keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.records import LARGEST, read_bytes

from .looks import styled

Arrays = Mapping[str, np.ndarray]


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of one file, by name.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no regular file, too large, or holds what nobody could draw.
        safetensors.SafetensorError: if it is damaged.
    """
    arrays = safetensors.numpy.load(read_bytes(path, LARGEST))
    shapes = {name: each.shape for name, each in arrays.items()}
    if not all(each.dtype.kind == "f" and each.size and bool(np.isfinite(each).all()) for each in arrays.values()):
        raise ValueError("there are empty arrays, or some of no numbers")
    for name in ("original", "reconstruction", "sample", "traversal"):
        if name in shapes and (len(shapes[name]) != 2 or math.isqrt(shapes[name][1]) ** 2 != shapes[name][1]):
            raise ValueError(f"{name!r} holds no square images")
    together = {
        "original": shapes.get("reconstruction"),
        "posterior": shapes.get("guide"),
        "rates": shapes.get("rates", ())[:1] if "distortion" in shapes else None,
    }
    for name, wanted in together.items():
        if name in shapes and shapes[name] != wanted:
            raise ValueError(f"what belongs to {name!r} is not there, or of another shape")
    if "posterior" in shapes:
        count, *grid = shapes["posterior"]
        if [shapes.get("vertical"), shapes.get("horizontal")] != [(count, side) for side in grid]:
            raise ValueError("'posterior' is not on its grid")
    return arrays


@styled
def reconstructed(arrays: Arrays, columns: int = 10) -> Figure:
    """Held-out images, and below each what one draw of its latents looks like."""
    rows = []
    for begin in range(0, len(arrays["original"]), columns):
        rows += [arrays[name][begin : begin + columns] for name in ("original", "reconstruction")]
    figure = Figure(figsize=(0.55 * columns, 0.55 * len(rows) + 0.4), layout="constrained")
    axes = figure.subplots()
    _mosaic(axes, rows, columns)
    axes.set_title("data (odd rows) and reconstructions (even rows)")
    return figure


@styled
def sampled(arrays: Arrays, columns: int = 10) -> Figure:
    """Images of latents from the prior."""
    return _grid(arrays["sample"], columns, "samples")


@styled
def traversed(arrays: Arrays) -> Figure:
    """Images over the plane of two latents, at the normal law's quantiles."""
    images = arrays["traversal"]
    figure = _grid(images, math.isqrt(len(images)), "images over the plane of two latents")
    figure.axes[0].set(xlabel="$z_1$", ylabel="$z_2$")
    return figure


@styled
def approximated(arrays: Arrays, points: int = 4) -> Figure:
    """Posterior of each data point, shaded, and the guide in lines: the curves that hold half and nine tenths of it."""
    count = min(points, len(arrays["posterior"]))
    figure = Figure(figsize=(2.6 * count, 2.8), layout="constrained")
    for place, axes in enumerate(np.ravel(figure.subplots(1, count))):
        across, up = arrays["horizontal"][place], arrays["vertical"][place]
        axes.pcolormesh(across, up, arrays["posterior"][place], cmap="Greys", shading="nearest", rasterized=True)
        guide = arrays["guide"][place]
        levels = held(guide, (0.9, 0.5))
        if levels[0] < levels[1]:
            axes.contour(across, up, guide, levels=levels, colors="#d55e00", linewidths=1)
        axes.set(xlabel="$z_1$", ylabel="$z_2$" if place == 0 else "", aspect="equal")
        axes.grid(False)
    figure.suptitle("posterior (grey) and guide (50 % and 90 % curves)")
    return figure


@styled
def coded(arrays: Arrays) -> Figure:
    """The bound as a code: nats of each layer and what is left to the pixels, and of each latent, largest first."""
    units = np.sort(arrays["unit_rates"])[::-1] if "unit_rates" in arrays else None
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    grid = np.atleast_1d(figure.subplots(1, 1 if units is None else 2))
    rates, distortion = arrays["rates"], float(arrays["distortion"][0])
    names = [*(f"$z_{{{place + 1}}}$" for place in range(len(rates))), "x given z"]
    bars = grid[0].barh(names, [*rates, distortion], color=["#0173b2"] * len(rates) + ["#949494"])
    grid[0].bar_label(bars, fmt="%.1f", padding=3)
    grid[0].invert_yaxis()
    grid[0].set(xlabel="nats per image", xlim=(0, 1.3 * max(distortion, *rates)))
    if units is not None:
        grid[1].bar(range(1, len(units) + 1), units, width=0.9, color="#0173b2")
        grid[1].set(xlabel="latents, largest first", ylabel="nats per image")
    return figure


def held(density: np.ndarray, shares: tuple[float, ...]) -> list[float]:
    """The heights above which a density on a grid holds these shares of its mass.

    Example:
        >>> held(np.array([[4.0, 3.0], [2.0, 1.0]]), (0.9, 0.5))
        [2.0, 3.0]
    """
    heights = np.sort(density.ravel())[::-1]
    mass = np.cumsum(heights) / heights.sum()
    return [float(heights[np.searchsorted(mass, share)]) for share in shares]


def _grid(images: np.ndarray, columns: int, title: str) -> Figure:
    rows = [images[begin : begin + columns] for begin in range(0, len(images), columns)]
    figure = Figure(figsize=(0.45 * columns + 0.4, 0.45 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots()
    _mosaic(axes, rows, columns)
    axes.set_title(title)
    return figure


def _mosaic(axes: Axes, rows: list[np.ndarray], columns: int) -> None:
    """Square images side by side in one picture, dark on light; a row that is too short is filled up with white."""
    side = math.isqrt(rows[0].shape[1])
    whole = np.zeros((len(rows), side, columns, side), dtype=np.float32)
    for place, row in enumerate(rows):
        whole[place, :, : len(row)] = row.reshape(-1, side, side).transpose(1, 0, 2)
    axes.imshow(whole.reshape(len(rows) * side, columns * side), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
