"""Exact values of bounds that several problems share: by quadrature over little noise, or as sums of other bounds."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import torch

from estimators import Parameters, Target
from estimators.trees import tree_leaves

from ..references.on_a_line import Found
from ..references.summation import quadrature, trapezoid
from .problem import Problem, Reference

SUMS = ("ciwae", "jackknife")
"""Linear combinations of the ELBO and of L_K."""
ROUNDING, AMPLIFIED = 1e-13, 3e-6
"""The relative error of each of the bounds that are summed, and the most nats that their coefficients may make of it."""
NODES = {1: 801, 2: 281, 3: 81, 4: 56}
"""Of each rule, by how many numbers of noise there are."""
REACH = (8.5, 7.0)
"""In standard deviations, of the rule and of the coarser one: what has no mean, or not within reach, tells them apart."""
SETTLED = 1e-4
"""The most that :data:`FEWER` of the nodes, on the shorter reach, may differ by, in nats and as a part of the gradient; all of
them are closer to the truth, since the error falls exponentially in their number."""
FEWER = 0.85
FINEST = {1: 2**14, 2: 2**10}
"""Nodes of the rule whose digits are given, where there is so little noise."""
NOTHING = 1e-9
"""Nats: a smaller change goes without saying."""


@lru_cache(maxsize=64)
def small_bound(problem: Problem, target: Target) -> Reference | None:
    """The reference of a bound by quadrature over all noise, where that has at most four dimensions and has settled."""
    double = replace(problem, dtype="float64")
    far, near = REACH
    for numbers, nodes in NODES.items():
        rules = trapezoid(nodes, far), trapezoid(round(FEWER * nodes * near / far), near)
        fine, coarse = (quadrature(double, double.parameters, target, rule, most=numbers) for rule in rules)
        if fine is not None and coarse is not None:
            found, other = (torch.cat([leaf.reshape(-1) for leaf in tree_leaves(each[1])]) for each in (fine, coarse))
            # Not to be turned round: what is not a number has not settled.
            near_enough = abs(fine[0] - coarse[0]) <= SETTLED and (found - other).norm() <= SETTLED * (1 + found.norm())
            return _finest(problem, target, numbers, fine) if near_enough else None
    return None


def _finest(problem: Problem, target: Target, numbers: int, found: Found) -> Reference:
    """With more nodes, where there are few enough to have more; and how much the last halving of the step has changed."""
    double, change = replace(problem, dtype="float64"), SETTLED
    if numbers in FINEST:
        rules = (trapezoid(nodes, REACH[0]) for nodes in (FINEST[numbers] // 2, FINEST[numbers]))
        half, whole = (quadrature(double, double.parameters, target, rule, most=numbers) for rule in rules)
        if half is not None and whole is not None:
            found, change = whole, abs(whole[0] - half[0])
    how = "" if change <= NOTHING else f", settled to {change:.0e} nats"
    return in_blocks(problem, target, found, f"trapezoid rule over all noise{how}")


def sum_of_bounds(problem: Problem, target: Target) -> Reference | None:
    """The reference of one of :data:`SUMS`, from those of its parts."""
    K, setting = target.num_samples or 1, target.setting
    if target.name == "ciwae":
        beta = float(setting or 0)
        parts = [(beta, Target("elbo")), (1 - beta, Target("iwae", K))]
    else:
        m = int(setting or 1)
        # Nowozin (2018), in the mean over subsets: all subsets of one size have one expectation
        parts = [
            ((-1) ** j * (K - j) ** m / (math.factorial(m - j) * math.factorial(j)), Target("iwae", K - j))
            for j in range(m + 1)
        ]
    double = replace(problem, dtype="float64")
    known = [(coefficient, reference) for coefficient, part in parts if (reference := double.exact(part)) is not None]
    if len(known) < len(parts):
        return None
    amplified = sum(abs(coefficient) * (1 + abs(reference.value)) for coefficient, reference in known)
    if amplified * ROUNDING > AMPLIFIED:
        return None
    value = math.fsum(coefficient * reference.value for coefficient, reference in known)
    gradient = {
        block: {
            name: torch.stack([coefficient * reference.gradient[block][name] for coefficient, reference in known]).sum(
                0
            )
            for name in leaves
        }
        for block, leaves in known[0][1].gradient.items()
    }
    return in_blocks(problem, target, (value, gradient), f"sum of bounds by {known[-1][1].method}")


def in_blocks(problem: Problem, target: Target, found: tuple[float, Parameters], method: str) -> Reference:
    """A reference from a value and its gradient, in the problem's own precision."""
    value, gradient = found
    blocks = {
        block: {name: problem.tensor(leaf) for name, leaf in leaves.items()}
        for block, leaves in gradient.items()
        if block == "phi" or target.name != "forward_kl"
    }
    return Reference(value, blocks, method)
