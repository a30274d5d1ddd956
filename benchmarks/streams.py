"""Random streams and batch sizes, both fixed by what is measured: the same cell gives the same numbers anywhere."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from estimators import Parameters
from estimators.trees import tree_leaves

from .problems.problem import Problem
from .schema import canonical_json

WORKING_SET = 2**22
"""Numbers that one batch of replicates may keep alive: small enough for a processor's cache to be of use."""


def generator(device: str, *identity: str | int) -> torch.Generator:
    """A generator seeded by a hash of ``identity``.

    Gradients of one problem, K and seed share their stream whatever the estimator, so estimators meet the same draws.
    """
    digest = hashlib.sha256(canonical_json(list(identity)).encode()).digest()
    state = np.random.SeedSequence(int.from_bytes(digest, "big")).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]) & (2**63 - 1))


def batch_rows(problem: Problem, num_samples: int) -> int:
    """Replicates per batch, from sizes alone (never from the machine), so that the numbers do not depend on it."""
    parameters: Parameters = problem.parameters
    size = sum(leaf.numel() for block in parameters.values() for leaf in block.values())
    with torch.no_grad():
        guide = problem.guide(parameters["phi"])
        noise = sum(leaf.numel() for leaf in tree_leaves(guide.noise((1,), torch.Generator(problem.device))))
    per_replicate = num_samples * (11 * noise + problem.data.numel()) + size
    return int(min(max(WORKING_SET // per_replicate, 1), 2048))
