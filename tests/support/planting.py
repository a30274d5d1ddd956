"""Planting defects: small changes to registered estimators, and whether ``gradest check`` finds them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import kill_matrix
import pytest

import estimators
from benchmarks.check import PANEL, Checked, check, exit_code
from benchmarks.problems import Problem
from benchmarks.registry import Registry
from estimators import Estimator

SEEDS = (0, 1, 2)
EVERY_SEED = [SEEDS[0], *(pytest.param(seed, marks=pytest.mark.long) for seed in SEEDS[1:])]
"""The first seed on every commit, all three in the long tier."""
MAX_DRAWS = 2_000_000


@cache
def problems(specs: tuple[str, ...] = PANEL) -> list[Problem]:
    """Problems by specification, ``gradest check``'s own panel by default."""
    return [Registry().problem(each) for each in specs]


def mutant(base: str, change, **attributes):
    """A subclass of a registered estimator whose weights are changed by a function of (self, log_w, weights)."""
    kind = estimators.REGISTRY[base]

    @dataclass(frozen=True)
    class Mutant(kind):
        def weights(self, log_w):
            return change(self, log_w, super().weights(log_w))

    for name, value in attributes.items():
        setattr(Mutant, name, value)
    return Mutant


def scaled(block: str, factor: float):
    def change(self, log_w, weights):
        return weights._replace(**{name: getattr(weights, name) * factor for name in ("path", "score", "model")
                                   if getattr(weights, name) is not None and (name == "model") == (block == "theta")})  # fmt: skip

    return change


def judged(estimator: Estimator, seed: int, specs: tuple[str, ...] = PANEL) -> tuple[int, list[Checked]]:
    """Exit code and findings of ``gradest check`` at its default budget."""
    found = check(estimator, problems(specs), override=None, seed=seed, max_draws=MAX_DRAWS)
    return exit_code(found), found


def assert_found(estimator: Estimator, seed: int, specs: tuple[str, ...] = PANEL) -> None:
    """Fail if the planted defect survives: each problem is checked as among all, and one that finds it is enough."""
    found: list[Checked] = []
    for problem in problems(specs):
        found += check(estimator, [problem], override=None, seed=seed, max_draws=MAX_DRAWS)
        if exit_code(found) == 1:
            break
    kill_matrix.note(estimator, seed, problems(specs), exit_code(found) == 1)
    assert exit_code(found) == 1, [str(each.finding) for each in found]


def assert_passes(estimator: Estimator, seed: int, specs: tuple[str, ...] = PANEL) -> None:
    """Fail if a harmless edit is accused, or nothing could be said."""
    code, found = judged(estimator, seed, specs)
    assert code == 0, [str(each.finding) for each in found]
