"""Subsets of the samples, which leave-one-out rules are made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def without_each(log_w: Tensor) -> Tensor:
    """``(K, K, *batch)``: row j holds the log-weights ``(K, *batch)`` with the j-th replaced by minus infinity.

    Sums over a row need no subtraction of the one left out, so nothing cancels where a single weight is nearly the whole.

    Example:
        >>> without_each(torch.tensor([1.0, 2.0])).logsumexp(1)
        tensor([2., 1.])
    """
    K = log_w.shape[0]
    diagonal = torch.eye(K, dtype=torch.bool, device=log_w.device).reshape(K, K, *(1,) * (log_w.ndim - 1))
    return log_w.expand(K, *log_w.shape).masked_fill(diagonal, -math.inf)
