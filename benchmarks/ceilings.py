"""What this machine can do at most: arithmetic, memory traffic, and normals drawn, each a second.

A throughput says little by itself. As a share of the ceiling that applies, measured in the same run, it says what is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import cost, devices

SIDE = 1024
"""Of the square matrices whose product is timed."""
COPIED = 2**26
"""Bytes that are copied: more than caches hold."""
DRAWN = 2**19
"""Normals that are drawn at once: as many as a batch of replicates takes, and within a cache as those are."""


@dataclass(frozen=True)
class Ceilings:
    """Of one precision, device and number of threads, a second each."""

    flops: float
    """Of a product of two square matrices."""
    copied_bytes: float
    """Read and written, by a copy of a tensor."""
    normals: float
    """From a generator of torch."""

    def share_of_normals(self, normals_per_gradient: int, gradients_per_second: float) -> float:
        """Gradients per second as a share of what drawing their noise alone would allow."""
        return gradients_per_second * normals_per_gradient / self.normals

    def share_of_flops(self, flops: float, seconds: float) -> float:
        """Floating-point operations in ``seconds`` as a share of the matrix product's."""
        return flops / seconds / self.flops


def measure(dtype: str = "float32", device: str = "cpu") -> Ceilings:
    """Measure all three; a second or so. With as many threads as torch has now.

    Example:
        >>> found = measure("float32")
        >>> min(found.flops, found.copied_bytes, found.normals) > 1e6
        True
    """
    kind = getattr(torch, dtype)
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(SIDE, SIDE, dtype=kind, device=device, generator=generator) for _ in range(2))
    out = torch.empty_like(a)
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    drawn = torch.empty(DRAWN, dtype=kind, device=device)

    def seconds(work: Callable[[], object]) -> float:
        work()
        devices.synchronize(device)
        return cost.seconds(work, device)[0]

    product = seconds(lambda: torch.mm(a, b, out=out))
    copy = seconds(lambda: target.copy_(source))
    normals = seconds(lambda: drawn.normal_(generator=generator))
    return Ceilings(2 * SIDE**3 / product, 2 * COPIED / copy, DRAWN / normals)


def facts(dtype: str, device: str) -> dict[str, float]:
    """:func:`measure` as entries of a run's environment, three digits each."""
    found = measure(dtype, device)
    named = {
        "GFLOP/s of a matrix product": found.flops / 1e9,
        "GB/s copied": found.copied_bytes / 1e9,
        "million normals/s": found.normals / 1e6,
    }
    return {f"ceiling, {dtype} on {device}: {name}": float(f"{value:.3g}") for name, value in named.items()}
