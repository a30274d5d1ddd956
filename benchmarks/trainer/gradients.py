"""What the gradient of a training step is made of where a training stands: signal and two kinds of noise, layer by layer.

A step's gradient varies because a minibatch is not the data, and because samples are not the expectation. Of each of G
minibatches several estimates are made, so that the variance splits (one-way analysis of variance):

    Monte Carlo noise   mean over minibatches of the variance among their own estimates
    minibatch noise     variance of the minibatches' mean estimates, less what Monte Carlo noise leaves in it

Both are summed over the coordinates of a layer. Minibatches are what is independent, so intervals are of their spread.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from estimators import BLOCKS, Estimator, LatentModel, Parameters
from estimators.trees import tree_map

from .. import cost, devices, sizes
from ..data import binarize
from ..problems.family import Family
from ..registry import Registry
from ..streams import generator

LOW_NOISE = {"elbo": "sticking-the-landing", "iwae": "dreg"}
"""Of a target, the estimator whose long run is the reference; of other targets it is the estimator's own."""
ELBO_SAMPLES = 16
"""Of the long run of an ELBO, whose gradient is the same for every K."""
REFERENCE_FACTOR = 4
"""A long run has this many times the minibatches of what is held against it."""
MOST_SAMPLES, FEWEST = 400_000, 8
"""Samples through the network that a cell may take, and minibatches that it has nevertheless."""


@dataclass(frozen=True)
class Design:
    """``minibatches`` of ``batch`` images each, ``repeats`` estimates of each; fewer minibatches where K is large."""

    batch: int = 20
    minibatches: int = 24
    repeats: int = 2
    seed: int = 0

    def count(self, num_samples: int) -> int:
        """Minibatches at K, by sizes alone.

        Example:
            >>> Design().count(64), Design().count(512)
            (24, 19)
        """
        most = MOST_SAMPLES // (self.batch * self.repeats * num_samples)
        return max(min(FEWEST, self.minibatches), min(self.minibatches, most))


def layers(parameters: Parameters) -> dict[str, slice]:
    """Columns of the flattened gradient by layer, ``theta/first`` for weights and biases of one name, and by block."""
    found: dict[str, slice] = {}
    place = 0
    for block in BLOCKS:
        begin = place
        for name, leaf in parameters[block].items():
            layer = f"{block}/{name.rpartition('.')[0] or name}"
            first = found[layer].start if layer in found else place
            place += leaf.numel()
            found[layer] = slice(first, place)
        found[block] = slice(begin, place)
    return found


@dataclass(frozen=True)
class Estimates:
    """``means (G, P)`` of each minibatch's estimates, their summed squares ``within (G, layers)`` about it over repeats - 1,
    ``cosines (G, layers)`` with a reference, and seconds of each estimate."""

    means: Tensor
    within: Tensor
    cosines: Tensor | None
    seconds: list[float]


def estimates(
    family: Family,
    parameters: Parameters,
    images: Tensor,
    estimator: Estimator,
    design: Design,
    count: int,
    purpose: str,
    reference: Tensor | None = None,
) -> Estimates:
    """Estimates of ``count`` minibatches drawn and binarised as in training; one stream for all estimators of one K.

    Arguments:
        images: grey or binary, ``(n, pixels)``.
        purpose: names the streams: a long run has its own.
        reference: a long-run gradient ``(P,)``.
    """
    device = str(images.device)
    rows, pixels, noise = (
        generator(device if name != "rows" else "cpu", "gradients", design.seed, purpose, name, estimator.num_samples)
        for name in ("rows", "pixels", "noise")
    )
    places = layers(parameters)
    means, within, cosines, seconds = [], [], [], []
    for _ in range(count):
        x = binarize(images[torch.randperm(len(images), generator=rows)[: design.batch].to(device)], pixels)
        model = seen(family, parameters, x, estimator)
        several = []
        for _ in range(design.repeats):
            began = time.perf_counter()
            with torch.no_grad():
                (draw,) = estimator.draws(model.guide(parameters["phi"]), 1, noise)
            one = tree_map(lambda leaf: leaf[0], draw.noise)
            gradient = estimator.gradient(model, parameters, one)
            devices.synchronize(device)
            seconds.append(time.perf_counter() - began)
            blocks = {"theta": gradient.theta, "phi": gradient.phi}
            several.append(torch.cat([blocks[b][name].reshape(-1).double() for b in BLOCKS for name in parameters[b]]))
        stack = torch.stack(several)
        mean = stack.mean(0)
        off = (stack - mean).square().sum(0)
        divisor = max(design.repeats - 1, 1)
        within.append(torch.stack([off[place].sum() / divisor for place in places.values()]))
        if reference is not None:
            cosines.append(torch.stack([_cosine(stack[:, p], reference[p]).mean() for p in places.values()]))
        means.append(mean)
    return Estimates(torch.stack(means), torch.stack(within), torch.stack(cosines) if cosines else None, seconds)


def first_model(
    family: Family, parameters: Parameters, images: Tensor, estimator: Estimator, design: Design
) -> LatentModel:
    """A model to count on, and to ask whether an estimator can work."""
    stream = generator(str(images.device), "gradients", "first")
    return seen(family, parameters, binarize(images[: design.batch], stream), estimator)


def seen(family: Family, parameters: Parameters, x: Tensor, estimator: Estimator) -> LatentModel:
    """The model of a minibatch as an estimator is to see it."""
    from .families import Dreaming, can_dream

    model = family.model_of(x)
    if "simulable" in estimator.needs and can_dream(family, model):
        return Dreaming(model, family, parameters, x.shape[-1])
    return model


def long_run(
    family: Family, parameters: Parameters, images: Tensor, estimator: Estimator, design: Design
) -> tuple[Tensor, dict[str, float | None]]:
    """A long-run gradient ``(P,)``, and by layer its cosine with the true one, as its two halves tell.

    Halves with cosine c are each sqrt(c) from the truth where their noise is independent, and so is their mean by
    sqrt(2 c / (1 + c)) (Spearman-Brown).
    """
    count = REFERENCE_FACTOR * design.count(estimator.num_samples)
    once = Design(design.batch, design.minibatches, 1, design.seed)
    found = estimates(family, parameters, images, estimator, once, count, "long run").means
    first, second = found[: count // 2].mean(0), found[count // 2 :].mean(0)
    quality: dict[str, float | None] = {}
    for name, place in layers(parameters).items():
        c = float(_cosine(first[None, place], second[place]))
        quality[name] = None if math.isnan(c) else math.sqrt(max(0.0, 2 * c / (1 + c))) if c > -1 else 0.0
    return found.mean(0), quality


def reference_of(estimator: Estimator, block: str, model: LatentModel, registry: Registry) -> Estimator:
    """Whose long run a block of an estimator is held against: that of its target with the least noise, or its own."""
    target = estimator.targets[block]
    if target is None or target.name not in LOW_NOISE:
        return estimator
    K = ELBO_SAMPLES if target.num_samples is None else target.num_samples
    quiet = registry.estimator(LOW_NOISE[target.name], K)
    return estimator if quiet.refuses(model) else quiet


def measured(
    family: Family,
    parameters: Parameters,
    images: Tensor,
    estimator: Estimator,
    design: Design,
    references: dict[str, tuple[Tensor, dict[str, float | None]]],
) -> dict[str, Any]:
    """All numbers of one estimator at one K: cost, and by layer (and block) what :func:`split` gives, with the cosine.

    Arguments:
        references: long runs by block.
    """
    model = first_model(family, parameters, images, estimator, design)
    places = layers(parameters)
    sizes = {block: places[block].stop - places[block].start for block in BLOCKS}
    reference = torch.cat([references[block][0][places[block]] for block in BLOCKS if sizes[block]])
    count = design.count(estimator.num_samples)
    found = estimates(family, parameters, images, estimator, design, count, "estimates", reference)
    spent = cost.count(estimator, model, parameters, generator("cpu", "gradients", "cost", estimator.num_samples))
    rows = []
    for i, (name, place) in enumerate(places.items()):
        block = name.partition("/")[0]
        target = estimator.targets[block]
        cosines = None if found.cosines is None else found.cosines[:, i]
        rows.append(
            {
                "layer": name,
                "block": block,
                "target": str(target) if target else None,
                "unbiased": bool(target and target.unbiased),
                "dimensions": place.stop - place.start,
                **split(found.means[:, place], found.within[:, i], design.repeats),
                **_mean("cosine", cosines),
                "reference_cosine": references[block][1][name],
            }
        )
    times = sorted(found.seconds[1:] or found.seconds)
    return {
        "num_samples": estimator.num_samples,
        "minibatches": count,
        "evaluations": spent.evaluations_per_gradient,
        "flops": spent.flops_per_gradient,
        "seconds": times[len(times) // 2],
        "layers": rows,
    }


def split(means: Tensor, within: Tensor, repeats: int) -> dict[str, Any]:
    """Signal and both noises of one layer, with 95 % intervals.

    Those of the noises are jackknifed over minibatches, of positive ones on the log scale. That of the signal is of a size seen
    with noise (:mod:`benchmarks.sizes`), of which minibatches are the sample: a jackknife errs near zero.

    Arguments:
        means: of each minibatch's estimates, ``(G, P)`` with G of 3 or more. within: variance among them, summed over coordinates, ``(G,)``.

    Returns:
        ``monte_carlo`` and ``minibatch`` (variances of one estimate, which may be estimated below zero), ``signal`` (norm of
        the mean gradient, from its unbiased square), ``snr`` = signal / root of the summed variance; each with ``_low`` and
        ``_high``, ``None`` where there is no such number.
    """
    G = len(means)
    gram = means @ means.T
    diagonal, row = gram.diagonal(), gram.sum(1)

    def noises(n: int, total: Tensor, squares: Tensor, inner: Tensor) -> dict[str, Tensor]:
        spread = (squares - total / n) / (n - 1)  # of minibatch means about their mean
        carlo = inner / n
        return {
            "monte_carlo": carlo, "minibatch": spread - carlo / repeats, "variance": spread - carlo / repeats + carlo
        }  # fmt: skip

    whole = noises(G, gram.sum(), diagonal.sum(), within.sum())
    left_out = noises(G - 1, gram.sum() - 2 * row + diagonal, diagonal.sum() - diagonal, within.sum() - within)
    quantile = float(stats.t.ppf(0.975, G - 1))
    found: dict[str, Any] = {}
    factor = 1.0
    for name, value in whole.items():
        others, middle = left_out[name], float(value)
        half = quantile * float(((G - 1) / G * (others - others.mean()).square().sum()).sqrt())
        if name == "minibatch":  # a difference, which may lie below zero
            found |= _between(name, middle, middle - half, middle + half)
            continue
        factor = math.exp(min(half / middle, 700.0)) if middle > 0 else 1.0
        found |= _between(name, middle, middle / factor, middle * factor)
    squared, low, high = _signal(gram, means.shape[1], quantile)
    found |= _between("signal", math.sqrt(max(squared, 0.0)), low, high)
    V = float(whole["variance"])
    if not V > 0:
        return found | _between("snr", math.nan, math.nan, math.nan)
    limits = sizes.ratio_interval(squared, (low**2, high**2), V, factor)
    return found | _between("snr", math.sqrt(max(squared, 0.0) / V), math.sqrt(limits[0]), math.sqrt(limits[1]))


def _signal(gram: Tensor, dimensions: int, quantile: float) -> tuple[float, float, float]:
    """Unbiased |E g|^2, and the 95 % interval of |E g|, from the products of G independent vectors."""
    G = len(gram)
    total, row = float(gram.sum()) / G**2, gram.sum(1) / G
    centred = gram - row[:, None] - row + total
    V = float(centred.trace()) / (G - 1)
    if not (V > 0 and total > 0 and math.isfinite(total)):
        return total - V / G, math.sqrt(max(total, 0.0)), math.sqrt(max(total, 0.0))
    square_trace = max(sizes.square_trace(centred, G - 1), V**2 / dimensions)
    seen = float((row - total).square().sum()) / (G - 1) / total
    large = sizes.large_variance(centred, G - 1, square_trace)
    along = sizes.variance_along(total, V / G, square_trace / G**2, seen / G, large / G) * (quantile / sizes.Z95) ** 2
    return total - V / G, *sizes.interval(total, V / G, square_trace / G**2, min(along, V / G))


def _between(name: str, value: float, low: float, high: float) -> dict[str, float | None]:
    return {name: _finite(value), f"{name}_low": _finite(low), f"{name}_high": _finite(high)}


def _mean(name: str, values: Tensor | None) -> dict[str, float | None]:
    """A mean over minibatches with its 95 % interval."""
    if values is None or not bool(values.isfinite().all()):
        return _between(name, math.nan, math.nan, math.nan)
    G = len(values)
    half = float(stats.t.ppf(0.975, G - 1)) * float(values.std()) / math.sqrt(G)
    middle = float(values.mean())
    return _between(name, middle, middle - half, middle + half)


def _cosine(several: Tensor, one: Tensor) -> Tensor:
    """Of each row with a vector; NaN where either is zero."""
    return (several @ one) / (several.norm(dim=1) * one.norm())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
