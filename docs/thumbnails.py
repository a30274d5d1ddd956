"""For each estimator of the gallery, variance against cost on up to three problems, measured for the site.

Grey: every other estimator there. Kept under ``results/`` by the versions of what was measured, so a second build takes no time.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from benchmarks import cost
from benchmarks.problems import Problem
from estimators import REGISTRY, Estimator, Refusal
from estimators.replicates import stacked, warmed_up
from reports.looks import powers, styled
from reports.vector import settle, svg
from reports.wording import listing

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import File

KEPT = Path(__file__).resolve().parents[1] / "results" / "thumbnails.json"
PROBLEMS = (
    *(
        "gaussian-1d[loc=1.6,scale=0.8,x=1.5,prior_loc=0.5]",
        "linear-gaussian[dim=5,data_dim=10]",
        "rainforth[points=4]",
    ),
    *("two-layer-gaussian", "sigmoid-belief-net", "sigmoid-belief-net[dim=2]", "sigmoid-belief-net[dim=5]"),
)
TITLES = {spec: spec if "dim=" in spec and spec[0] == "s" else spec.partition("[")[0] for spec in PROBLEMS}
SAMPLES = (1, 4, 16)
REPLICATES = 400
MOST = 3


class Point(NamedTuple):
    """Variance of the gradient in phi of one estimate, its 95 % interval (NaN where it has no variance), and its evaluations."""

    num_samples: int
    variance: float
    low: float
    high: float
    evaluations: float


def pictures(config: MkDocsConfig, found: dict[str, dict[str, list[Point]]]) -> list[File]:
    """A file of the site for each estimator."""
    from mkdocs.structure.files import File  # late: the gallery is read without mkdocs, too

    return [
        File.generated(config, f"thumbnails/{name}.svg", content=svg(thumbnail(name, found), "t")) for name in found
    ]


def measured() -> dict[str, dict[str, list[Point]]]:
    """By estimator and problem, the points of its line; what was measured before is taken from :data:`KEPT`."""
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    made = {spec: _problem(spec) for spec in PROBLEMS}
    found: dict[str, dict[str, list[Point]]] = {}
    for name, kind in REGISTRY.items():
        for spec, problem in made.items():
            if len(found.get(name, ())) == MOST:
                break
            key = f"{name} {kind.version} {problem.spec} {type(problem).version} {SAMPLES} {REPLICATES}"
            if key not in kept:
                kept[key] = [point for K in SAMPLES if (point := _point(kind, K, problem)) is not None]
            if kept[key]:
                found.setdefault(name, {})[spec] = [Point(*each) for each in kept[key]]
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps(kept, indent=0), encoding="utf-8")
    return found


def _problem(spec: str) -> Problem:
    from benchmarks.registry import Registry

    return Registry().problem(spec)


def _point(kind: type[Estimator], K: int, problem: Problem) -> Point | None:
    """One point, or nothing where the estimator cannot work there or its variance is zero."""
    try:
        estimator = kind(num_samples=K)
    except Refusal:
        return None
    if estimator.refuses(problem) is not None:
        return None
    generator = torch.Generator().manual_seed(K)
    estimator = warmed_up(estimator, problem, problem.parameters, generator)
    rows = stacked(estimator, problem, problem.parameters, REPLICATES, generator).double()
    phi = rows[:, -sum(leaf.numel() for leaf in problem.parameters["phi"].values()) :]
    squares = (phi - phi.mean(0)).square().sum(1)
    variance = float(squares.sum()) / (REPLICATES - 1)
    if not variance > 1e-12:
        return None
    error = float(squares.std()) / math.sqrt(REPLICATES) / variance if estimator.variance_exists else math.nan
    spent = cost.count(estimator, problem, problem.parameters, generator).evaluations_per_gradient
    assert spent is not None
    points = max(1, len(problem.data))
    return Point(K, variance, variance * math.exp(-1.96 * error), variance * math.exp(1.96 * error), spent / points)


@styled
def thumbnail(name: str, found: dict[str, dict[str, list[Point]]]) -> Figure:
    """Its lines before everybody's, one small panel a problem."""
    own = found[name]
    figure = Figure(figsize=(2.5 * len(own) + 0.3, 2.1))
    for axes, (spec, line) in zip(figure.subplots(1, len(own), squeeze=False)[0], own.items(), strict=True):
        others = [
            [(p.evaluations, p.variance) for p in lines[spec]]
            for one, lines in found.items()
            if one != name and spec in lines
        ]
        axes.add_collection(LineCollection(others, colors="#bdbdbd", linewidths=0.7))
        every = [point for each in others for point in each]
        axes.plot([at for at, _ in every], [value for _, value in every], ".", color="#bdbdbd", markersize=2.5)
        at, value = [p.evaluations for p in line], [p.variance for p in line]
        exists = not math.isnan(line[0].low)
        axes.plot(
            at, value, "-o" if exists else "--o", color="#0173b2", mfc="#0173b2" if exists else "white", markersize=4
        )
        if exists:
            axes.vlines(at, [p.low for p in line], [p.high for p in line], color="#0173b2", linewidth=1.2)
        axes.set(xscale="log", yscale="log")
        axes.set_title(TITLES[spec], fontsize=9)
        axes.tick_params(labelsize=7)
        powers(axes)
    figure.supxlabel("evaluations of log p(x, z) per data point", fontsize=8)
    figure.supylabel("variance in φ", fontsize=8)
    figure.subplots_adjust(left=0.62 / figure.get_figwidth(), right=0.98, top=0.88, bottom=0.24, wspace=0.3)
    settle(figure)
    return figure


def caption(name: str, found: dict[str, dict[str, list[Point]]]) -> str:
    """The picture of an estimator as Markdown, or why there is none."""
    if name not in found:
        return "*No picture: on the problems of these pictures its variance is zero, or it cannot work.*"
    own = found[name]
    where = listing([TITLES[spec] for spec in own])
    ks = sorted({point.num_samples for line in own.values() for point in line})
    bars = (
        "bars are 95 % intervals"
        if not math.isnan(next(iter(own.values()))[0].low)
        else "hollow, without interval: its variance does not exist, and this is what these draws happened to give"
    )
    return (
        f"![Variance of the gradient in φ against evaluations on {where}](thumbnails/{name}.svg)\n\n"
        f"*Variance of one estimate of the gradient in φ against its cost on {where}, K = {', '.join(map(str, ks))} ({REPLICATES} "
        f"replicates; {bars}). Grey: all other estimators measured there, whatever their target.*"
    )
