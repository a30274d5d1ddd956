"""Counted cost against counts by hand; timed cost against the binomial law of order statistics."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from scipy import stats

import estimators
from benchmarks import devices
from benchmarks.cost import CountingModel, count, metered, seconds
from benchmarks.problems import Gaussian1D, LinearGaussian, Rainforth
from estimators import LatentModel
from estimators.trees import tree_map

PROBLEM = LinearGaussian(dim=3, data_dim=4, points=5)
RULES = [
    "score-function",
    "leave-one-out",
    "reparameterization",
    "reparameterization-analytic-kl",
    "sticking-the-landing",
    "iwae",
    "iwae-stl",
    "dreg",
    "jackknife",
    "reweighted-wake-sleep",
]


def counted(name: str, num_samples: int, problem: LatentModel = PROBLEM, seed: int = 0, **settings):
    estimator = estimators.get(name, num_samples=num_samples, **settings)
    return count(estimator, problem, problem.parameters, torch.Generator().manual_seed(seed))


# Evaluations


@pytest.mark.parametrize("num_samples", [2, 7])
@pytest.mark.parametrize("name", RULES)
def test_one_evaluation_per_sample_and_data_point(name, num_samples):
    assert counted(name, num_samples).evaluations_per_gradient == num_samples * 5


@pytest.mark.parametrize("num_samples", [1, 4])
@pytest.mark.parametrize(("problem", "dim", "points"), [(PROBLEM, 3, 5), (Rainforth(6, 2), 6, 2), (Gaussian1D(), 1, 1)])
def test_bonnet_price_pays_for_its_curvatures(problem, dim, points, num_samples):
    assert counted("bonnet-price", num_samples, problem).evaluations_per_gradient == (1 + dim) * num_samples * points


MEAN_LENGTH = sum(1 / k for k in range(1, 80)) + 10 / 80
"""E[N] = sum_k P(N >= k) of the published tail: H_79, and 1/80 times a geometric series of ratio 0.9."""
SECOND_MOMENT = sum((2 * k - 1) * (1 / k if k < 80 else 0.9 ** (k - 80) / 80) for k in range(1, 1000))


@pytest.mark.parametrize("terms", [1, 3])
def test_sumo_pays_for_the_terms_that_it_draws(terms):
    """Mean over 12 counts of 256 draws each; above 4.5 standard errors with probability 7e-6."""
    problem = Gaussian1D()
    found = [counted("sumo", terms, problem, seed).evaluations_per_gradient for seed in range(12)]
    error = np.sqrt((SECOND_MOMENT - MEAN_LENGTH**2) / (12 * 256))
    assert pytest.approx(5.0780, abs=1e-4) == MEAN_LENGTH
    assert abs(np.mean(found) - (terms + MEAN_LENGTH)) < 4.5 * error


def test_sumo_pays_for_exactly_those():
    estimator, guide = estimators.get("sumo", num_samples=2), PROBLEM.guide(PROBLEM.parameters["phi"])
    stream = torch.Generator().manual_seed(3)
    estimator.draws(guide, 1, stream)
    draws = estimator.draws(guide, 256, stream)
    terms = sum(len(draw.rows) * draw.noise.shape[1] for draw in draws) / 256
    assert len({draw.noise.shape[1] for draw in draws}) == len(draws) > 5  # grouped: none pays for another
    assert counted("sumo", 2, seed=3).evaluations_per_gradient == pytest.approx(5 * terms)


def test_a_capped_sumo_never_pays_for_more():
    assert counted("sumo", 1, Gaussian1D(), cap=3).evaluations_per_gradient <= 1 + 3
    assert counted("sumo", 1, Gaussian1D(), cap=1).evaluations_per_gradient == 2  # P(N >= 1) = 1


def test_the_counting_model_is_transparent():
    model, parameters = CountingModel(PROBLEM), PROBLEM.parameters
    z = torch.randn(7, 5, 3, dtype=torch.float64)
    assert model.offers == PROBLEM.offers
    assert torch.equal(model.log_joint(parameters["theta"], z), PROBLEM.log_joint(parameters["theta"], z))
    assert model.evaluations == 35
    likelihood = model.log_likelihood(parameters["theta"], z[:2])
    assert torch.equal(likelihood, PROBLEM.log_likelihood(parameters["theta"], z[:2]))
    assert model.evaluations == 45
    assert torch.equal(model.guide(parameters["phi"]).loc, parameters["phi"]["loc"])
    assert torch.equal(model.prior(parameters["theta"]).loc, PROBLEM.prior(parameters["theta"]).loc)
    assert model.evaluations == 45  # neither is an evaluation
    for name in estimators.names():
        estimator = estimators.get(name, num_samples=estimators.REGISTRY[name].usual_num_samples())
        if estimator.refuses(PROBLEM):
            continue
        guide = PROBLEM.guide(parameters["phi"])
        drawn = estimator.draws(guide, 1, torch.Generator().manual_seed(1))[0].noise
        noise = tree_map(lambda leaf: leaf[0], drawn)
        ours, theirs = (estimator.gradient(each, parameters, noise) for each in (CountingModel(PROBLEM), PROBLEM))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


# FLOPs and bytes


@pytest.mark.parametrize(("m", "n", "k"), [(3, 5, 7), (1, 1, 1), (64, 32, 16)])
def test_flops_of_a_matrix_product(m, n, k):
    a, b = torch.randn(m, k), torch.randn(k, n)
    assert metered(lambda: a @ b).flops == 2 * m * n * k
    batch = torch.randn(4, m, k)
    assert metered(lambda: torch.bmm(batch, b.expand(4, k, n))).flops == 4 * 2 * m * n * k


def test_flops_of_pointwise_operations():
    x, row = torch.randn(6, 8), torch.randn(8)
    assert metered(lambda: x + row).flops == 48
    assert metered(lambda: (x * 2).exp()).flops == 96
    assert metered(lambda: x.T.reshape(8, 6)[1:]).flops == 0


def test_flops_of_the_backward_pass_are_counted():
    a, b = torch.randn(3, 7, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    flops = metered(lambda: (a @ b).backward(torch.ones(3, 5))).flops
    assert flops == 3 * 2 * 3 * 5 * 7


def test_peak_bytes_of_a_known_pattern():
    def work():
        a = torch.empty(1000, dtype=torch.float64)  # 8000
        b = torch.empty(500, dtype=torch.float32)  # 10000
        del a  # 2000
        c = torch.empty(750, dtype=torch.float64)  # 8000
        d = c[:10].view(2, 5)  # no storage of its own
        return b, d

    outside = torch.empty(10**6)
    assert metered(work).peak == 10_000
    assert metered(lambda: outside.add_(1)).peak == 0  # memory that was there before
    assert metered(lambda: outside.view(1000, 1000).T[5:]).peak == 0
    assert metered(lambda: [torch.empty(100) for _ in range(10)]).peak == 4000
    assert metered(lambda: [torch.empty(100).shape for _ in range(10)]).peak == 400  # freed one by one


def test_flops_and_bytes_grow_with_the_samples_not_with_the_machine():
    first, again, more = counted("iwae", 4), counted("iwae", 4), counted("iwae", 400)
    assert (first.flops_per_gradient, first.peak_bytes) == (again.flops_per_gradient, again.peak_bytes)
    assert more.flops_per_gradient == pytest.approx(100 * first.flops_per_gradient, rel=0.2)
    assert more.peak_bytes > 20 * first.peak_bytes


def test_bytes_moved_by_hand():
    """Read and written by each operation; nothing by a view; an expanded tensor is as large as it is in memory."""
    x, row = torch.ones(6, 8), torch.ones(8)
    assert metered(lambda: x + row).moved == 4 * (48 + 8 + 48)
    assert metered(lambda: x.T.reshape(48)[1:]).moved == 4 * 2 * 48  # the reshape copies
    assert metered(lambda: x.add_(1)).moved == 4 * 2 * 48
    assert metered(lambda: row.expand(6, 8).exp()).moved == 4 * (8 + 48)
    assert counted("iwae", 8).bytes_moved_per_gradient > 0


def test_doubly_reparameterised_costs_what_importance_weighted_costs():
    # In so small a model the density of q, held constant along the path, is a fifth of the whole.
    assert counted("dreg", 32).flops_per_gradient == pytest.approx(counted("iwae", 32).flops_per_gradient, rel=0.25)


# Seconds


class Clock:
    """A clock by which the i-th timed run takes ``taken[i]``; the warm-up is not timed."""

    def __init__(self, taken):
        self.ticks = iter([tick for duration in taken for tick in (0.0, float(duration))])

    def perf_counter(self):
        return next(self.ticks)


@pytest.mark.parametrize("count", [*range(7, 60), 100, 199, 200])
def test_the_interval_of_the_median_covers_it(count, monkeypatch):
    """The r-th and s-th of n order statistics hold the median with probability P(r <= Binomial(n, 1/2) < s)."""
    ranks = list(range(1, count + 1))
    random.Random(count).shuffle(ranks)
    monkeypatch.setattr(devices, "time", Clock(ranks))
    median, (r, s) = seconds(lambda: None, "cpu", least=count, budget=0.0)
    law = stats.binom(count, 0.5)

    def coverage(r, s):
        return law.cdf(s - 1) - law.cdf(r - 1)

    assert median == (count + 1) / 2 and r + s == count + 1 and r < median < s
    assert coverage(r, s) >= 0.95
    assert coverage(r + 1, s - 1) < 0.95  # and no wider than that takes


def test_cheap_work_is_repeated_until_the_budget_is_spent(monkeypatch):
    monkeypatch.setattr(devices, "time", Clock(itertools.repeat(0.01, 1000)))
    calls = []
    median, interval = seconds(lambda: calls.append(1), "cpu", least=7, budget=0.25)
    assert len(calls) in (25, 26)  # runs of 0.01 s, one more by rounding
    assert median == 0.01 and interval == (0.01, 0.01)


def test_work_is_repeated_at_most_two_hundred_times(monkeypatch):
    monkeypatch.setattr(devices, "time", Clock(itertools.repeat(1e-9, 1000)))
    calls = []
    seconds(lambda: calls.append(1), "cpu")
    assert len(calls) == 200


def test_the_clock_of_this_machine():
    median, (low, high) = seconds(lambda: sum(range(1000)), "cpu", budget=0.01)
    assert 0 < low <= median <= high < 1
