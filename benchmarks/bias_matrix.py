"""Which estimator is unbiased for what: every estimator held against every target, in each block, exactly.

The declarations say what an estimator claims; here its expectation over all noise is computed by quadrature or enumeration
and compared with the exact gradient of every target. A zero that nobody claims is news, and so is a claim that is no zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

import estimators
from estimators import BLOCKS, Estimator, Target
from estimators.quadrature import exact_expectation
from estimators.replicates import warmed_up

from .problems import Gaussian1D, Problem, SigmoidBeliefNet

NUM_SAMPLES = 2
UNBIASED = 1e-5
"""Relative distance below which a bias is quadrature's own."""
PROBLEMS: tuple[Problem, ...] = (
    Gaussian1D(loc=1.5, scale=0.6, x=1.3, prior_loc=0.2),
    SigmoidBeliefNet(dim=2, data_dim=3, seed=4),
)
"""A continuous one, and a discrete one for those that need it: small enough for all noise of two samples."""
PIECEWISE = {"discrete": 2}
"""Families whose estimates are polynomials in uniform noise between the guide's edges, and the nodes for a cell."""
COLUMNS = (
    Target("elbo"),
    Target("iwae", NUM_SAMPLES),
    Target("log_marginal"),
    Target("forward_kl"),
)


class Entry(NamedTuple):
    """One block of one estimator against one target: what is declared, and the exact relative bias."""

    declared: str
    bias: float | None


@dataclass(frozen=True)
class Row:
    """An estimator at K = 2, or the least that it takes."""

    name: str
    num_samples: int
    problem: str
    entries: dict[tuple[str, str], Entry]
    own: dict[str, Entry]


def at_two(name: str) -> Estimator:
    """The estimator with two samples, or as few as it allows."""
    kind = estimators.REGISTRY[name]
    return kind(num_samples=1 if kind.usual_num_samples() == 1 else max(NUM_SAMPLES, kind.min_num_samples))


def row(name: str) -> Row | None:
    """The matrix's row of an estimator; ``None`` where it has noise of its own, or more than is summed over here."""
    estimator = at_two(name)
    if estimator.random_cost:
        return None
    for problem in PROBLEMS:
        if estimator.refuses(problem) is not None:
            continue
        estimator = warmed_up(estimator, problem, problem.parameters, torch.Generator().manual_seed(0))
        nodes = 60 if problem.offers >= {"gaussian"} else PIECEWISE.get(estimator.family, 24)
        try:
            mean, _ = exact_expectation(estimator, problem, problem.parameters, nodes=nodes)
        except ValueError:
            return None
        entries = {
            (block, column.name): _entry(estimator, problem, mean, block, column)
            for block in BLOCKS
            for column in COLUMNS
        }
        own = {
            block: _entry(estimator, problem, mean, block, target)
            for block, target in estimator.targets.items()
            if target is not None
        }
        return Row(name, estimator.num_samples, problem.name, entries, own)
    return None


def _entry(estimator: Estimator, problem: Problem, mean: torch.Tensor, block: str, target: Target) -> Entry:
    claimed = estimator.targets[block]
    same = claimed is not None and (claimed.name, claimed.num_samples) == (target.name, target.num_samples)
    declared = "" if not same or claimed is None else "unbiased" if claimed.unbiased else "biased"
    if target.name == "iwae" and target.num_samples != estimator.num_samples and not same:
        target = Target("iwae", estimator.num_samples)
    reference = problem.exact(target)
    if reference is None or block not in reference.gradient:
        return Entry(declared, None)
    sizes = [sum(leaf.numel() for leaf in problem.parameters[each].values()) for each in BLOCKS]
    found = dict(zip(BLOCKS, mean[1:].split(sizes), strict=True))[block]
    exact = torch.cat([reference.gradient[block][name].reshape(-1) for name in problem.parameters[block]])
    size = float(exact.norm())
    return Entry(declared, float((found - exact).norm()) / size if size > 1e-9 else None)
