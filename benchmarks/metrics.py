"""From moments and a reference to numbers with intervals: bias, variance, signal-to-noise ratio, tails, verdict.

Notation: m the mean of R replicates of a block, g its reference, V the variance summed over coordinates. Intervals are
95 %. What each number means to a reader is said in docs/statistics.md.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from arviz_stats.base import array_stats
from scipy import stats
from torch import Tensor

from estimators import Target

from . import sizes
from .moments import BlockMoments
from .references.truth import Truth
from .schema import BlockResult, Verdict
from .sizes import Z95

LEVEL = 1e-5
"""False-alarm rate of one block's verdict on an unbiased estimator, all directions together (Bonferroni)."""
CLEARLY_HEAVY = 0.5
"""A k-hat from which the fourth moment surely fails. The limit is 1/4, but a cubic in a normal already shows 0.3 to 0.4."""
POWER_Z = float(stats.norm.isf(0.01))
SEEABLE = 0.25
"""A block passes only if a bias of this part of the reference gradient would have been seen with probability 0.99."""
FEW = 10_000
"""Blocks with more coordinates than this are tested along their directions alone."""
CARRIED = 0.22
"""Part of the sum of squares that a thousandth of the draws may carry where the tail index may be above 1/2: of thirty laws, 0.3 %
without a variance are then said to have one, and 3.6 % of the others denied theirs."""
GROUPS = 16
"""Means of which a median is taken where there is no variance."""


def summarize(
    moments: BlockMoments | None,
    block: str,
    *,
    target: Target | None,
    truth: Truth | None,
    dimensions: int,
    nonfinite: int,
    declared_finite: bool,
    resolution: float,
    exact_variance: float | None = None,
    snr_slope: float | None = None,
) -> BlockResult:
    """All numbers of one block.

    Arguments:
        moments: what was accumulated, or ``None`` where no replicate was finite.
        declared_finite: whether the estimator says that its variance exists.
        resolution: relative rounding error of the arithmetic that made the replicates.
    """
    common = {
        "block": block,
        "target": target.name if target else None,
        "target_num_samples": target.num_samples if target else None,
        "unbiased": target.unbiased if target else None,
        "dimensions": dimensions,
        "nonfinite": nonfinite,
        "snr_slope_theory": snr_slope,
    }
    if moments is None or moments.coordinates is None or moments.coordinates.count < 2:
        return BlockResult(**common, replicates=0, verdict="NONFINITE", verdict_reason="no finite replicates")
    R = moments.coordinates.count
    if not _sums_are_finite(moments):
        why = "powers of the replicates are too large for a number"
        return BlockResult(**common, replicates=R, verdict="NONFINITE", verdict_reason=why)
    mean = moments.coordinates.mean
    mean_norm = float(mean.norm())
    V = float(moments.coordinates.variance.sum())
    # An objective in nats and parameters of a natural scale: sums of terms of order one, or of the order of the result.
    rounding = resolution * max(1.0, mean_norm, float(truth.gradient.norm()) if truth else 0.0)
    still = math.sqrt(V) <= rounding  # every estimate is the same number: no tail, no shape, no signal-to-noise ratio
    khat, limits = (None, None) if still else tail_index(moments)
    doubt = _doubt(moments, khat, limits, declared_finite, still)
    heavy = bool(doubt)
    numbers: dict[str, object] = {
        "mean_norm": mean_norm,
        "tail_index": khat,
        "tail_index_interval": limits,
        "variance_exists": not heavy,
    }
    skewness, kurtosis = _shape(moments, rounding)
    if heavy:
        numbers |= {"quantiles": _quantiles(moments), "median_of_means": _median_of_means(moments)}
    elif still:
        V = 0.0
        numbers |= {"variance": V, "variance_interval": (0.0, rounding**2), "exact_variance": exact_variance}
    else:
        V_error = _variance_error(moments)
        numbers |= {
            "variance": V,
            "variance_interval": _log_interval(V, V_error, R) if khat is None or khat < CLEARLY_HEAVY else None,
            "exact_variance": exact_variance,
            "skewness": skewness,
            "kurtosis": kurtosis,
            **_signal_to_noise(moments, mean_norm, V, V_error),
        }
    if truth is None:
        verdict: tuple[Verdict, str] = ("NO_REFERENCE", "no target with a known gradient")
    else:
        bias, verdict = _bias(moments, truth, V, doubt, rounding, skewness)
        numbers |= bias
        if not heavy:
            numbers["mse"] = V + float(bias["bias_norm"]) ** 2  # type: ignore[arg-type]
    if nonfinite:
        verdict = ("NONFINITE", f"{nonfinite} of {nonfinite + R} replicates are not finite")
    return BlockResult(**common, replicates=R, verdict=verdict[0], verdict_reason=verdict[1], **numbers)  # type: ignore[arg-type]


def _sums_are_finite(moments: BlockMoments) -> bool:
    kept = [part for m in (moments.coordinates, moments.along) if m is not None for part in (m.mean, m.m2, m.m3, m.m4)]
    kept += [moments.distance.mean, moments.distance.m2] if moments.distance is not None else []
    return all(bool(part.isfinite().all()) for part in kept)


def tail_index(moments: BlockMoments) -> tuple[float | None, tuple[float, float] | None]:
    """Generalised-Pareto shape k of the distance |gradient - centre|, and its interval; the variance needs k < 1/2.

    The interval has all k that lie within 1.96 (Student's t) of *their own* standard errors of the fit, (1 + k) / sqrt(M) with M
    the number of largest values that are fitted (Smith, 1987), for k > -1/2; what is below has a bounded tail and no interval.
    """
    norms = moments.tail.first.sqrt().numpy()
    if len(norms) < 500:
        return None, None
    try:
        with np.errstate(divide="ignore", invalid="ignore"):
            khat = float(array_stats.pareto_khat(norms[None], r_eff=1.0, tail="right"))
    except ValueError:  # a tail of equal values has no shape
        return None, None
    if not math.isfinite(khat):
        return None, None
    fitted = math.floor(3 * math.sqrt(len(norms)))
    likely = (khat * (fitted + 10) - 5) / fitted  # without the prior, ten observations of 1/2 (Vehtari et al., 2024)
    reach = float(stats.t.isf(0.025, fitted - 1)) / math.sqrt(fitted)
    return khat, ((likely - reach) / (1 + reach), (likely + reach) / (1 - reach)) if khat > -0.5 else None


def _doubt(
    moments: BlockMoments, khat: float | None, limits: tuple[float, float] | None, declared: bool, still: bool
) -> str:
    """Why no variance is given, ``""`` where there is no reason: the gate of docs/statistics.md.

    A thousandth of the draws must not carry the sum of squares; nor 22 % of it, unless the tail index is surely below 1/2.
    """
    if not declared:
        return "the variance does not exist, by theory"
    if still or moments.tail.count < 1000:
        return ""
    share = moments.tail.share_of_largest()
    if not (share > 0.5 or (share > CARRIED and limits is not None and limits[1] > 0.5)):
        return ""
    shape = "" if limits is None else f", tail index {khat:.2f} [{limits[0]:.2f}, {limits[1]:.2f}]"
    return f"that the variance exists is not established: a thousandth of the draws carry {share:.0%} of it{shape}"


def _quantiles(moments: BlockMoments) -> dict[str, float]:
    """Quantiles of |gradient - centre| over the first replicates: what can be said where there is no variance."""
    norms = moments.tail.first.sqrt().numpy()
    return {f"{q:g}": float(np.quantile(norms, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)}


def _median_of_means(moments: BlockMoments) -> float | None:
    """The mean of |gradient - centre| as the median of :data:`GROUPS` means, which a heavy tail does not carry away.

    References:
        Lugosi & Mendelson (2019), section 2.1.
    """
    norms = moments.tail.first.sqrt().numpy()
    size = len(norms) // GROUPS
    return float(np.median(norms[: size * GROUPS].reshape(GROUPS, size).mean(1))) if size else None


def _shape(moments: BlockMoments, rounding: float) -> tuple[float | None, float | None]:
    """Skewness (the largest in size over directions and coordinates) and kurtosis of the most skewed column that varies."""
    columns = [
        (m, m.variance > rounding**2) for m in (moments.along, moments.coordinates) if m is not None and m.m3.numel()
    ]
    skewness = np.concatenate([m.skewness[varies].cpu().numpy() for m, varies in columns])
    kurtosis = np.concatenate([m.kurtosis[varies].cpu().numpy() for m, varies in columns])
    if not len(skewness):
        return None, None
    worst = int(np.abs(skewness).argmax())
    return float(skewness[worst]), float(kurtosis[worst])


def _variance_error(moments: BlockMoments) -> float:
    """Standard error of V: from the fourth moment of a single coordinate, else from squared distances from the centre."""
    coordinates, distance = moments.coordinates, moments.distance
    assert coordinates is not None and distance is not None
    if len(coordinates.mean) == 1:  # exact, where a biased estimate's distances from its reference would not be
        return float(coordinates.variance[0]) * math.sqrt(
            max(float(coordinates.kurtosis[0]) - 1, 0.0) / coordinates.count
        )
    return math.sqrt(float(distance.variance[0]) / distance.count)


def _log_interval(value: float, error: float, count: int) -> tuple[float, float]:
    """95 % interval of a positive number from its standard error, on the log scale (delta method)."""
    factor = math.exp(min(float(stats.t.isf(0.025, count - 1)) * error / value, 700.0))
    return value / factor, value * factor


def _signal_to_noise(moments: BlockMoments, mean_norm: float, V: float, V_error: float) -> dict[str, object]:
    """|E g| / sqrt(V), the signal debiased by V/R, with an interval that allows for the errors of both.

    tr(Sigma^2), which sets the noise of |m|^2, is taken from the variance of squared distances (2 tr(Sigma^2) for a normal
    law, more for a heavier one: the interval errs on the wide side), and is no less than the squared variances' sum.

    The interval of the signal s = |E g|^2 is Wilson's: all s that lie within 1.96 of *their own* standard errors,
    (4 s a / R + 2 tr(Sigma^2) / R^2)^(1/2) with a the variance along E g, of the estimate of s. Standard errors at the
    estimate itself would fail where the signal is near its floor. Joined with that of V by :func:`.sizes.ratio_interval`.
    """
    assert moments.distance is not None and moments.coordinates is not None and moments.along is not None
    R, variances = moments.distance.count, moments.coordinates.variance
    trace_square = min(max(float(moments.distance.variance[0]) / 2, float(variances.square().sum())), V * V)
    # Along the reference; a biased mean lies elsewhere, and what the coordinates alone say of it is the other bound.
    along = float(moments.coordinates.mean.square() @ variances) / max(mean_norm**2, 1e-300)
    if len(moments.along.mean):
        along = max(along, float(moments.along.variance[0]))
    signal = mean_norm**2 - V / R
    centre = signal + 2 * Z95**2 * along / R
    reach = Z95 * math.sqrt(max(4 * signal * along / R + 4 * (Z95 * along / R) ** 2 + 2 * trace_square / R**2, 0.0))
    low, high = max(centre - reach, 0.0), max(centre + reach, 0.0)
    ratio = sizes.ratio_interval(signal, (low, high), V, math.exp(min(Z95 * V_error / V, 700.0)))
    return {
        "snr": math.sqrt(max(signal, 0.0) / V),
        "snr_interval": (math.sqrt(ratio[0]), math.sqrt(ratio[1])),
        "snr_floor": (2 * trace_square / V**2) ** 0.25 / math.sqrt(R),
    }


def _bias(
    moments: BlockMoments, truth: Truth, V: float, doubt: str, rounding: float, skewness: float | None
) -> tuple[dict[str, object], tuple[Verdict, str]]:
    """Bias and verdict against a reference.

    The interval of |bias| is that of :mod:`benchmarks.sizes`; of blocks whose coordinates are too many for their correlations
    to be kept, P(|noise|^2 > 3.84 V/R) <= 0.05 is used, which holds whatever these are (Szekely & Bakirov, 2003). The verdict
    tests every coordinate and every direction, Bonferroni-corrected.
    """
    assert moments.coordinates is not None and moments.along is not None
    R, mean = moments.coordinates.count, moments.coordinates.mean
    g, error = truth.gradient.to(mean), truth.standard_error.to(mean)
    g_norm, difference = float(g.norm()), mean - g
    distance = float(difference.norm())
    noise = V / R + float(error.square().sum()) + rounding**2
    names, z, freedom, deviation = _z_scores(moments, truth, difference, rounding)
    p = 2 * stats.t.sf(np.abs(z), freedom)
    worst = int(np.nanargmin(p))
    p_all = min(1.0, float(p[worst]) * len(p))
    seeable = (float(stats.t.isf(LEVEL / (2 * len(p)), freedom[0])) + POWER_Z) * deviation
    wider = float(stats.t.isf(0.025, np.min(freedom))) / Z95
    numbers: dict[str, object] = {
        "reference_norm": g_norm,
        "reference_standard_error": math.sqrt(float(error.square().sum())),
        "reference_method": truth.method,
        "cosine": float(mean @ g) / (float(mean.norm()) * g_norm) if g_norm > 0 and float(mean.norm()) > 0 else None,
    }
    if doubt:
        return numbers | {"bias_norm": distance}, ("HEAVY_TAIL", f"{doubt}; no z-score, no interval")
    numbers |= {
        "bias_norm": math.sqrt(max(distance**2 - noise, 0.0)),
        "bias_interval": _bias_interval(moments, truth, difference, noise, wider),
        "bias_z": float(stats.norm.isf(max(p_all, 1e-300) / 2)) if p_all < 1 else 0.0,
        "worst_direction": names[worst],
        "detectable_bias": seeable,
    }
    if p_all < LEVEL:
        needed = math.ceil(max(200, 20 * (skewness or 0.0) ** 2))
        if needed > R:
            why = f"{R} replicates of skewness {skewness or 0.0:.1f} are too few to trust a z-score; {needed} would do"
            return numbers, ("INCONCLUSIVE", why)
        return numbers, ("BIASED", f"{names[worst]}: z = {z[worst]:+.1f}")
    # Where the true gradient is zero, what could have been seen is held against the noise of one estimate instead.
    scale, unit = (g_norm, "the gradient") if g_norm > 10 * rounding else (math.sqrt(V), "one estimate's noise")
    if scale <= 10 * rounding:
        return numbers, ("PASS", "zero to rounding, as is the reference")
    seen = f"{seeable / scale:.1%} of {unit}"
    if seeable > SEEABLE * scale:
        return numbers, ("INCONCLUSIVE", f"this run could only have seen a bias above {seen}")
    return numbers, ("PASS", f"a bias above {seen} would have been seen")


def _bias_interval(
    moments: BlockMoments, truth: Truth, difference: Tensor, noise: float, wider: float
) -> tuple[float, float]:
    """95 % interval of |bias|; ``noise`` is the variance of ``difference``, summed over coordinates."""
    assert moments.coordinates is not None
    R, distance, groups = moments.coordinates.count, float(difference.norm()), moments.groups
    if groups is None or groups.freedom < 3 or distance == 0:
        reach = wider * Z95 * math.sqrt(noise)
        return max(distance - reach, 0.0), distance + reach
    variances = moments.coordinates.variance
    V, unit = float(variances.sum()), difference / distance
    square_trace = min(max(groups.square_trace(), float(variances.square().sum())), V * V)
    # How the errors of the reference hang together is not known: as if they all did, and with ours.
    ours = square_trace / R**2
    joined = (math.sqrt(ours) + max(noise - V / R, 0.0)) ** 2
    along = sizes.variance_along(
        distance**2, noise, ours, groups.variance_along(unit) / R, groups.large_variance(square_trace) / R
    )
    along *= (float(stats.t.isf(0.025, groups.freedom)) / Z95) ** 2
    theirs = float(truth.variance_along(unit[None].to(truth.gradient))[0])
    return sizes.interval(distance**2, noise, joined, min(along + theirs, noise), wider)


def _z_scores(
    moments: BlockMoments, truth: Truth, difference: Tensor, rounding: float
) -> tuple[list[str], np.ndarray, np.ndarray, float]:
    """Names, t-statistics and their degrees of freedom (Welch) of all directions and coordinates.

    Last, the standard error along the first direction, which is the gradient's own.
    """
    assert moments.coordinates is not None and moments.along is not None
    R = moments.coordinates.count
    directions = moments.directions.vectors.to(difference)
    ours, theirs = moments.along.variance / R, truth.variance_along(directions).to(difference)
    gap = directions @ difference
    names = list(moments.directions.names)
    if len(difference) <= FEW:  # thousands of coordinates would only blunt the test: the directions speak for them
        ours = torch.cat([ours, moments.coordinates.variance / R])
        theirs = torch.cat([theirs, truth.standard_error.to(difference).square()])
        gap = torch.cat([gap, difference])
        names += [f"{moments.block} coordinate {i}" for i in range(len(difference))]
    error = (ours + theirs + rounding**2).sqrt()
    welch = (ours + theirs).square() / (ours.square() / (R - 1) + theirs.square() / truth.degrees_of_freedom)
    freedom = torch.where(ours + theirs > 0, welch, float(R - 1)).nan_to_num(R - 1)
    z = gap / error.clamp_min(1e-300)
    return names, z.cpu().numpy(), freedom.cpu().numpy(), float(error[0])
