"""Sums over chosen states: data points, costs and refusals; their mathematics is tested in test_subset_sampling.py."""

from __future__ import annotations

import pytest
import torch

import estimators
from benchmarks.cost import count
from benchmarks.problems import CategoricalMixture
from estimators import Refusal

NAMES = ["without-replacement", "unordered-set", "rao-blackwellised"]


@pytest.mark.parametrize("name", NAMES)
def test_data_points_are_drawn_and_weighted_one_by_one(name):
    """The estimate on two data points is the mean of those on each."""
    both = CategoricalMixture(dim=2, values=2, data_dim=3, points=2, seed=5)
    estimator = estimators.get(name, num_samples=3)
    guide = both.guide(both.parameters["phi"])
    noise = estimator.draws(guide, 1, torch.Generator().manual_seed(2))[0].noise[0]
    together = estimator.gradient(both, both.parameters, noise)
    for block in ("theta", "phi"):
        for leaf in getattr(together, block):
            parts = []
            for point in range(2):
                one = _OnePoint(both, point)
                at = {"theta": both.parameters["theta"], "phi": {"logits": both.parameters["phi"]["logits"][[point]]}}
                parts.append(getattr(estimator.gradient(one, at, noise[:, [point]]), block)[leaf])
            expected = torch.cat(parts) / 2 if block == "phi" else (parts[0] + parts[1]) / 2
            torch.testing.assert_close(getattr(together, block)[leaf], expected, rtol=1e-10, atol=1e-12)


class _OnePoint(CategoricalMixture):
    def __init__(self, problem, point):
        object.__setattr__(self, "points_data", problem.data[[point]])

    data = property(lambda self: self.points_data)


@pytest.mark.parametrize("name", NAMES)
def test_it_costs_one_evaluation_for_each_different_state(name):
    problem = CategoricalMixture(dim=2, values=3, points=2)
    for K, expected in ((2, 4), (5, 10), (12, 18)):
        estimator = estimators.get(name, num_samples=K)
        cost = count(estimator, problem, problem.parameters, torch.Generator().manual_seed(0))
        assert cost.evaluations_per_gradient == expected


def test_refusals():
    for settings, words in (
        ({"num_samples": 3, "baseline": True}, "num_samples >= 4"),
        ({"num_samples": 1}, "num_samples >= 2"),
    ):
        with pytest.raises(Refusal, match=words):
            estimators.get("without-replacement", **settings)
    with pytest.raises(Refusal, match="num_samples <= 12"):
        estimators.get("unordered-set", num_samples=13)
    for sampled in (0, 2):
        with pytest.raises(Refusal, match="between 1 and K - 1"):
            estimators.get("rao-blackwellised", num_samples=2, sampled=sampled)
