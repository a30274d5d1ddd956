"""What Stirling's formula leaves over, against the same quantities in fifty digits."""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import pytest
import torch
from torch import Tensor

from benchmarks.references import stirling

SIZES = [1e-100, 1e-6, 0.3, 1.0, 9.999, 10.0, 30.0, 1e5, 1e10, 1e15]


def both(function: Callable[..., Tensor], *at: float) -> tuple[float, list[float]]:
    """A value and its slopes along the logarithms of what it depends on."""
    leaves = [torch.tensor(each, dtype=torch.float64, requires_grad=True) for each in at]
    value = function(*leaves)
    value.backward()
    return value.item(), [leaf.item() * leaf.grad.item() for leaf in leaves]


@pytest.mark.parametrize("a", SIZES)
def test_rest_and_mean_log(a):
    with mpmath.workdps(50):
        exact = mpmath.mpf(a)
        rest = mpmath.loggamma(exact) - (exact - 0.5) * mpmath.log(exact) + exact - mpmath.log(2 * mpmath.pi) / 2
        slope = exact * (mpmath.digamma(exact) - mpmath.log(exact)) + mpmath.mpf(1) / 2
        mean_log = mpmath.digamma(exact) - mpmath.log(exact)
        value, slopes = both(stirling.rest, a)
        assert value == pytest.approx(float(rest), rel=1e-12, abs=1e-14)
        assert slopes[0] == pytest.approx(float(slope), rel=1e-12, abs=1e-15)
        assert both(stirling.mean_log, a)[0] == pytest.approx(float(mean_log), rel=1e-14)


@pytest.mark.parametrize("mean", [1e-5, 2.5, 1e10])
@pytest.mark.parametrize("x", [0.0, 1.0, 7.0, 1e10 + 12345])
def test_counts(x, mean):
    with mpmath.workdps(50):
        exact = x * mpmath.log(mean) - mean - mpmath.loggamma(mpmath.mpf(x) + 1)
        value, slopes = both(lambda m: stirling.poisson(torch.tensor(x, dtype=torch.float64), m), mean)
        assert value == pytest.approx(float(exact), rel=1e-13, abs=1e-10)
        assert slopes == pytest.approx([float(mpmath.mpf(x) - mean)], rel=1e-10)


LAWS = [(0.3, 2.0, 1.5, 0.4), (1e10, 2e10, 1.0001e10, 1.9999e10), (3e10, 2.0, 1e10, 1.5), (1e-3, 1.0, 30.0, 1e4)]


@pytest.mark.parametrize("laws", LAWS)
def test_divergences(laws):
    """By the formulas that textbooks give, and digamma's derivatives by differences of them."""
    c, r, a, b = (mpmath.mpf(each) for each in laws)
    steps = (-mpmath.mpf("1e-20"), mpmath.mpf("1e-20"))

    def gamma(c, r, a, b):
        normalizers = a * mpmath.log(r / b) + mpmath.loggamma(a) - mpmath.loggamma(c)
        return (c - a) * mpmath.digamma(c) + normalizers + c * (b - r) / r

    def beta(c, d, a, b):
        normalizers = [mpmath.loggamma(p) + mpmath.loggamma(q) - mpmath.loggamma(p + q) for p, q in ((a, b), (c, d))]
        means = (c - a) * mpmath.digamma(c) + (d - b) * mpmath.digamma(d) + (a - c + b - d) * mpmath.digamma(c + d)
        return normalizers[0] - normalizers[1] + means

    for ours, theirs in ((stirling.gamma_kl, gamma), (stirling.beta_kl, beta)):
        with mpmath.workdps(60):
            value, slopes = both(ours, *laws)
            assert value == pytest.approx(float(theirs(c, r, a, b)), rel=1e-11)
            for place, slope in enumerate(slopes):
                ends = [theirs(*(v * (1 + h * (i == place)) for i, v in enumerate((c, r, a, b)))) for h in steps]
                assert slope == pytest.approx(float((ends[1] - ends[0]) / mpmath.mpf("2e-20")), rel=1e-8, abs=1e-8)
