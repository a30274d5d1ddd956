"""Targets by definition, where floating point would lose them: against long arithmetic."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch

from benchmarks.references.bounds import DIVERGENCES, STEEPEST, bound
from estimators import Target

LOG_W = [[-3.1, 0.4, 30.0, -700.0], [2.2, 0.4, 29.0, -701.5]]


@pytest.mark.parametrize("alpha", [1 + 1e-14, 1 + 1e-9, 1 - 1e-5, 0.5, 3.0, -40.0, 1e6])
def test_power_means(alpha):
    _, function = bound(Target("renyi", 2, setting=alpha))
    log_w = torch.tensor(LOG_W, dtype=torch.float64, requires_grad=True)
    found = function(log_w)
    found.sum().backward()
    found = found.detach()
    with mpmath.workdps(60):
        power = 1 - mpmath.mpf(alpha)
        for place, (first, second) in enumerate(zip(*LOG_W, strict=True)):
            a, b = mpmath.exp(power * first), mpmath.exp(power * second)
            assert float(found[place]) == pytest.approx(float(mpmath.log((a + b) / 2) / power), rel=1e-12)
            assert float(log_w.grad[0, place]) == pytest.approx(float(a / (a + b)), rel=1e-7, abs=1e-15)
    assert bound(Target("renyi", 2, setting=10 * STEEPEST)) is None


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences(name):
    """Each F from its divergence's f: F(t) = -f(e^t), less a multiple of e^t - 1."""
    t = torch.tensor([-600.0, -30.0, -1.0, 0.0, 1e-9, 2.0, 30.0, 45.0], dtype=torch.float64)
    found = DIVERGENCES[name](t)
    with mpmath.workdps(400):
        for given, value in zip(t.tolist(), found.tolist(), strict=True):
            x = mpmath.mpf(given)
            w = mpmath.exp(x)
            expected = {
                "kl": x,
                "hellinger": 2 * (mpmath.sqrt(w) - 1),
                "chi-square": 1 - 1 / w,
                "jensen-shannon": ((1 + w) * mpmath.log(1 + w) - w * x) / 2 - mpmath.log(2),
                "skew-kl": mpmath.log((1 + w) / 2),
            }[name]
            assert value == pytest.approx(float(expected), rel=1e-12, abs=3e-16)
    assert math.isfinite(float(DIVERGENCES["skew-kl"](torch.tensor(1e4))))
