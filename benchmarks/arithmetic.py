"""How torch multiplies matrices of single precision, as an axis of what is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .schema import MatmulPrecision


@contextmanager
def matmul_precision(level: MatmulPrecision) -> Iterator[None]:
    """Within, float32 matrices are multiplied at this precision.

    Example:
        >>> with matmul_precision("medium"):
        ...     torch.get_float32_matmul_precision()
        'medium'
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(level)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
