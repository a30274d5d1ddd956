"""Sums over the other samples: against leaving each out by hand, however large or small the weights are."""

from __future__ import annotations

import math

import pytest
import torch

from estimators.subsets import logsumexp_of_others


def by_hand(log_w):
    """Each sample left out of the list, and Python's own sum of what remains, relative to its largest."""
    rows = []
    for k in range(len(log_w)):
        others = [float(each) for j, each in enumerate(log_w) if j != k]
        most = max(others, default=-math.inf)
        finite = math.isfinite(most)
        total = math.fsum(math.exp(each - most) for each in others) if finite else 0.0
        rows.append(most + math.log(total) if finite else most)
    return torch.tensor(rows, dtype=log_w.dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("spread", [0.1, 10.0, 1000.0])
@pytest.mark.parametrize("K", [1, 2, 3, 64])
def test_against_leaving_out_by_hand(K, spread, dtype):
    log_w = spread * torch.randn(K, dtype=dtype, generator=torch.Generator().manual_seed(K))
    for shifted in (log_w, log_w + 500, log_w.flip(0)):
        torch.testing.assert_close(logsumexp_of_others(shifted), by_hand(shifted), rtol=4e-7, atol=4e-6)
        if dtype is torch.float64:
            torch.testing.assert_close(logsumexp_of_others(shifted), by_hand(shifted), rtol=1e-14, atol=1e-13)


@pytest.mark.parametrize(
    "log_w",
    [[0.0, 0.0, 0.0], [-math.inf, 0.0, 2.0], [-math.inf] * 3, [-math.inf, -math.inf, 1.0], [5.0, -800.0, -900.0]],
)
def test_ties_weights_of_zero_and_one_that_is_nearly_all(log_w):
    log_w = torch.tensor(log_w, dtype=torch.float64)
    torch.testing.assert_close(logsumexp_of_others(log_w), by_hand(log_w), rtol=1e-14, atol=1e-14)


def test_batches_vmap_and_derivatives():
    log_w = torch.randn(5, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = logsumexp_of_others(log_w)
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(found[:, i, j], by_hand(log_w[:, i, j]))
    torch.testing.assert_close(torch.func.vmap(logsumexp_of_others, 1, 1)(log_w), found)
    # The derivative of log sum of the others is their softmax.
    one = log_w[:, 0, 0]
    slopes = torch.func.jacrev(logsumexp_of_others)(one)
    for k in range(5):
        others = [j for j in range(5) if j != k]
        torch.testing.assert_close(slopes[k, others], one[others].softmax(0))
        assert slopes[k, k] == 0
