"""Subsets of the samples, which leave-out rules are made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def logsumexp_of_others(log_w: Tensor) -> Tensor:
    """log sum_{j != k} w_j for every k, ``(K, *batch)`` as given; minus infinity where K is 1.

    From sums of what stands before and behind each sample, so that nothing is subtracted and the work grows with K. Relative
    to the largest weight; and what is left without the largest itself, relative to the second.

    Example:
        >>> logsumexp_of_others(torch.tensor([1.0, 2.0]))
        tensor([2., 1.])
        >>> logsumexp_of_others(torch.tensor([-300.0, 0.0, -300.0]))[1]
        tensor(-299.3069)
    """
    largest, place = log_w.max(0, keepdim=True)
    every = torch.arange(log_w.shape[0], device=log_w.device).reshape(-1, *(1,) * (log_w.ndim - 1))
    is_largest = every == place
    largest = largest.masked_fill(largest.isinf(), 0.0)
    w = (log_w - largest).exp()
    nothing = torch.zeros_like(w[:1])
    before = torch.cat([nothing, w[:-1]]).cumsum(0)
    behind = torch.cat([nothing, w.flip(0)[:-1]]).cumsum(0).flip(0)
    most = (before + behind).masked_fill(is_largest, 1.0).log() + largest
    return torch.where(is_largest, log_w.masked_fill(is_largest, -math.inf).logsumexp(0), most)


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
