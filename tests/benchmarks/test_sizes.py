"""The interval of a size, held against the exact law of what is seen: for equal noise in D coordinates, non-central chi-squared."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from benchmarks.sizes import cube_trace, interval, large_variance, square_trace, variance_along


def seen_first(size, D, end):
    """The least (``end`` 1: the greatest) squared norm whose interval holds a size: intervals move up with what was seen."""

    def beyond(squared):
        return interval(squared, D, D, 1.0)[1 - end] - size

    top = size**2 + D + 40 * math.sqrt(2 * D + 4 * size**2)
    if end == 0 and beyond(1e-9) >= 0:
        return 0.0
    return optimize.brentq(beyond, 1e-9, top, xtol=1e-6 * top)


@pytest.mark.parametrize("D", [1, 3, 20])
@pytest.mark.parametrize("size", [0.0, 0.7, 2.0, 12.0])
def test_it_covers_at_its_stated_rate(D, size):
    least = seen_first(size, D, 0)
    # At zero, the greatest is where the lower end leaves zero.
    most = seen_first(max(size, 1e-3), D, 1)
    law = stats.ncx2(D, size**2) if size else stats.chi2(D)
    assert 0.945 <= law.cdf(most) - law.cdf(least) <= 0.955


def test_it_holds_what_is_most_likely_and_has_the_units_of_its_noise():
    for squared in (1e-6, 0.5, 1.0, 1.5, 3.0, 1e3, 1e12):
        low, high = interval(squared, 1.0, 0.2, 0.1)
        assert 0 <= low <= math.sqrt(max(squared - 1, 0.0)) < high
        assert interval(squared * 1e-40, 1e-40, 0.2e-80, 0.1e-40) == pytest.approx((low * 1e-20, high * 1e-20))
    # Far off, it is that of a normal law along b; with wider errors it is wider.
    low, high = interval(1e6, 1.0, 0.2, 0.1)
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(0.1), rel=1e-3)
    wide = interval(1e6, 1.0, 0.2, 0.1, wider=2.0)
    assert wide[1] - wide[0] == pytest.approx(2 * (high - low), rel=1e-3)


@pytest.mark.parametrize("along", [0.0, 1e-30, 1e-9, 1.0])
@pytest.mark.parametrize("square_trace", [0.0, 1e-9, 1.0])
@pytest.mark.parametrize("squared", [0.0, 1e-9, 1.0, 1e4, 1e15, 1e30])
def test_it_ends_whatever_is_known_of_the_noise(squared, square_trace, along):
    low, high = interval(squared, 1.0, square_trace, along)
    middle = math.sqrt(max(squared - 1, 0.0))
    assert low <= middle * (1 + 1e-9) and middle * (1 - 1e-9) <= high < 2 * middle + 10


@pytest.mark.parametrize("vectors", [4, 6, 128])
@pytest.mark.parametrize("root", [np.ones((1, 4)) / 2, np.eye(4) / 2, np.diag([0.1, 0.5, 1.0, 2.0])])
def test_traces_of_powers_of_the_covariance_are_unbiased(root, vectors):
    """Normal noise of one direction, of four alike and of four that differ: the mean of 4,000 lies within 4.5 standard errors."""
    noise = np.random.default_rng(3).standard_normal((4000, vectors, len(root))) @ root
    centred = torch.as_tensor(noise - noise.mean(1, keepdims=True))
    S = root.T @ root
    for trace, exact in ((square_trace, np.trace(S @ S)), (cube_trace, np.trace(S @ S @ S))):
        found = [trace(each @ each.T, vectors - 1) for each in centred]
        assert abs(np.mean(found) - exact) < 4.5 * np.std(found) / math.sqrt(len(found)), (np.mean(found), exact)


def test_where_there_is_much_noise():
    """Between the variance along noise itself and the largest, whatever few vectors say."""
    rng = np.random.default_rng(0)
    variances = np.array([10.0, 1.0, 1.0, 0.1])
    vectors = torch.as_tensor(rng.standard_normal((20_000, 4)) * np.sqrt(variances))
    centred = vectors - vectors.mean(0)
    squares = float((variances**2).sum())
    found = large_variance(centred.T @ centred, 19_999, squares)  # the same traces as of the products of vectors
    assert found == pytest.approx((variances**3).sum() / squares, rel=0.05)
    for few in centred[:3000].split(3):
        least, most = squares / float(few.square().sum() / 2), math.sqrt(squares)
        assert large_variance(few @ few.T, 2, squares) == pytest.approx(
            least
        )  # of two degrees of freedom no more is known
    for few in centred[:4000].split(4):
        few = few - few.mean(0)
        least = squares / float(few.square().sum() / 3)
        found = large_variance(few @ few.T, 3, squares)
        assert min(least, most) * (1 - 1e-9) <= found <= max(least, most) * (1 + 1e-9)
    assert large_variance(torch.zeros(5, 5), 4, 0.0) == 0.0


@pytest.mark.parametrize("size", [3.0, 12.0])
def test_variance_along_a_vector_is_that_and_not_the_noises_own(size):
    """Along the quietest of four axes, on which noise of the others would be seen: what they add is taken away."""
    variances, rng = np.array([0.04, 1.0, 1.0, 1.0]), np.random.default_rng(1)
    seen = np.array([size, 0, 0, 0]) + rng.standard_normal((4000, 4)) * np.sqrt(variances)
    squared = (seen**2).sum(1)
    along = (seen**2 @ variances) / squared
    trace, squares = variances.sum(), (variances**2).sum()
    found = [variance_along(a, trace, squares, b, 0.04) for a, b in zip(squared, along, strict=True)]
    assert abs(np.mean(found) - 0.04) < 0.3 * (np.mean(along) - 0.04)


def test_where_nothing_but_noise_is_seen_it_counts_as_large():
    assert variance_along(0.9, 1.0, 0.25, 0.25, 0.7) == pytest.approx(0.7)
