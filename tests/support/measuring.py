"""What the metrics say of replicates that a test makes up."""

from __future__ import annotations

import math

import numpy as np
import torch

from benchmarks.metrics import summarize
from benchmarks.moments import GradientMoments
from benchmarks.references.truth import Truth
from benchmarks.schema import BlockResult
from estimators import Target

EXACT = Target("elbo")


def measured(rows: np.ndarray, reference: np.ndarray | Truth | None, dtype: str = "float64", **changes) -> BlockResult:
    """What is said of replicates ``(R, D)`` of a phi-gradient, held against its exact or long-run reference."""
    rows = torch.as_tensor(rows, dtype=getattr(torch, dtype))
    truth = Truth(torch.as_tensor(reference).double(), "made up") if isinstance(reference, np.ndarray) else reference
    centre = None if truth is None else truth.gradient if truth.centre is None else truth.centre
    found = GradientMoments({"value": 1, "phi": rows.shape[1]}, {"value": None, "phi": centre})
    no_value = torch.full((len(rows), 1), math.nan, dtype=rows.dtype)
    found.extend(torch.cat([no_value, rows], 1).split(2048))
    settings = {
        "target": EXACT,
        "truth": truth,
        "dimensions": rows.shape[1],
        "nonfinite": found.nonfinite,
        "declared_finite": True,
        "resolution": 32 * torch.finfo(rows.dtype).eps,
    }
    return summarize(found.blocks.get("phi"), "phi", **{**settings, **changes})
