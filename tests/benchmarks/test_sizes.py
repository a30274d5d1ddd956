"""The interval of a size, held against the exact law of what is seen: for equal noise in D coordinates, non-central chi-squared."""

from __future__ import annotations

import math

import pytest
from scipy import optimize, stats

from benchmarks.sizes import interval


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
