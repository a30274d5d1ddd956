"""How estimators learn: steps of Adam on a state that is passed in and returned."""

from __future__ import annotations

import math

import torch

from .contract import Block

MEMORY = "adam."
"""Names in a state that start so belong to the optimiser."""
PSI = "psi."
"""Names in a state that start so are what it adapts."""
FIRST, SECOND, SMALL = 0.9, 0.999, 1e-8


def parts(state: Block) -> tuple[Block, Block]:
    """What a state holds for an optimiser: the adapted leaves, and its memory of them."""
    return tuple({k: v for k, v in state.items() if k.startswith(start)} for start in (PSI, MEMORY))  # type: ignore[return-value]


def adam(psi: Block, memory: Block, slopes: Block, rate: float, settling: float = math.inf) -> tuple[Block, Block]:
    """One step downhill (Kingma & Ba, 2015), and the memory to take the next one with; an empty memory starts anew.

    After ``settling`` steps the rate begins to fall, as one over the square root of their number.

    Example:
        >>> psi, memory = adam({"psi.a": torch.tensor(1.0)}, {}, {"psi.a": torch.tensor(30.0)}, rate=0.1)
        >>> psi["psi.a"], memory["adam.steps"]
        (tensor(0.9000), tensor(1.))
    """
    steps = memory.get(MEMORY + "steps", torch.zeros(())) + 1
    moved, kept = {}, {MEMORY + "steps": steps}
    for name, slope in slopes.items():
        mean, square = f"{MEMORY}mean.{name}", f"{MEMORY}square.{name}"
        kept[mean] = FIRST * memory.get(mean, torch.zeros_like(slope)) + (1 - FIRST) * slope
        kept[square] = SECOND * memory.get(square, torch.zeros_like(slope)) + (1 - SECOND) * slope.square()
        # the steps' own device and type must not spread to the leaves
        first, second = (1 - decay ** steps.to(slope) for decay in (FIRST, SECOND))
        now = rate / (1 + (steps - 1).to(slope) / settling).sqrt()
        moved[name] = psi[name] - now * (kept[mean] / first) / ((kept[square] / second).sqrt() + SMALL)
    return moved, kept
