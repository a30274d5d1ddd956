"""Subsets of the samples, which leave-out rules are made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def without_any(log_w: Tensor, left_out: int) -> Tensor:
    """``(K choose left_out, K, *batch)``: in each row another ``left_out`` of the log-weights are minus infinity.

    With one left out, row k is without the k-th. Sums over a row need no subtraction of what is left out, so nothing
    cancels where a single weight is nearly the whole.

    Example:
        >>> without_any(torch.tensor([1.0, 2.0]), 1).logsumexp(1)
        tensor([2., 1.])
        >>> without_any(torch.tensor([1.0, 2.0]), 0)
        tensor([[1., 2.]])
    """
    if left_out == 0:
        return log_w[None]
    K = log_w.shape[0]
    every = torch.arange(K, device=log_w.device)
    # combinations() makes a tensor whose shape depends on data, which torch.compile cannot follow.
    places = every[:, None] if left_out == 1 else torch.combinations(every, left_out)
    gone = torch.zeros(len(places), K, dtype=torch.bool, device=log_w.device).scatter(1, places, True)
    return log_w[None].masked_fill(gone.reshape(-1, K, *(1,) * (log_w.ndim - 1)), -math.inf)
