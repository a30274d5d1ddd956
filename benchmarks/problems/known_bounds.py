"""Exact values of bounds that several problems share: by quadrature over little noise, or as sums of other bounds."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import torch

from estimators import Parameters, Target

from ..references.on_a_line import Found, change, finer, refined
from ..references.summation import numbers_of_noise, quadrature, trapezoid
from .problem import Problem, Reference

SUMS = ("ciwae", "jackknife")
"""Linear combinations of the ELBO and of L_K."""
SMALL = ("renyi", "f_divergence")
"""Bounds that quadrature alone knows: where K samples take at most four numbers of noise, all layers counted."""
ROUNDING, AMPLIFIED = 1e-13, 3e-6
"""The relative error of each of the bounds that are summed, and the most nats that their coefficients may make of it."""
COUNTS = {
    1: finer(2**14, first=2**9),
    2: finer(2**10, first=2**7),
    3: finer(101, first=40, ratio=1.25),
    4: [20, 24, 28, 32, 40, 48, 56, 64, 72],
}
"""Of nodes of the rule for each number of noise, by how many of these there are: each in turn until one changes nothing. As many
as quickly give 1e-9 nats of most bounds."""
FAR, NEAR = 8.5, 7.0
"""In standard deviations, of the rule and of a shorter one: what has no mean, or not within reach, tells them apart."""
KNOWN = 1e-4
"""The most, in nats and as a tenth of that part of the gradient, that the shorter reach or the last rule may change: the error that
is left is below, since it falls exponentially in the number of nodes."""
NOTHING = 1e-9
"""Nats: a smaller change goes without saying."""


@lru_cache(maxsize=64)
def small_bound(problem: Problem, target: Target) -> Reference | None:
    """The reference of a bound by quadrature over all noise, where that has at most four dimensions and has settled."""
    if target.name == "renyi" and target.num_samples == 1:
        return problem.exact(Target("elbo"))
    double = replace(problem, dtype="float64")
    counts = COUNTS.get(numbers_of_noise(double, double.parameters, target) or 0)
    if counts is None:
        return None

    most = 0  # of the nodes that there is room for

    def on(nodes: int) -> Found | None:
        nonlocal most
        found = by(nodes, FAR)
        most = most if found is None else nodes
        return found

    def by(nodes: int, reach: float) -> Found | None:
        return quadrature(double, double.parameters, target, trapezoid(nodes, reach), most=max(COUNTS))

    settled = refined(on, counts)
    shorter = by(round(most * NEAR / FAR), NEAR) if settled is not None else None
    if settled is None or shorter is None:
        return None
    found, moved = settled
    if max(moved, change(found, shorter)) > KNOWN:
        return None
    how = "" if moved <= NOTHING else f", settled to {moved:.0e} nats and {10 * moved:.0e} of the gradient"
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
