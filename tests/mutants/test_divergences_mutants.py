"""Defects planted in the f-divergences, the tail-adaptive weights and the thermodynamic objective.

Power: every bias is at least the test's effect on one of the problems, so a miss has probability below 1 %. False alarms of
the harmless edits: 1e-9 a check. ``tail-adaptive``'s phi has no target and cannot be judged by a mean: its weights and its
path derivative are tested draw by draw in ``tests/estimators/test_divergences.py``, and here in theta alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from planting import EVERY_SEED, assert_found, assert_passes, mutant

import estimators
from estimators import Target, Weights
from estimators.divergences import DIVERGENCES, Divergence
from estimators.multilevel import blocks
from estimators.thermodynamic import thermodynamic

GAUSSIAN = (
    "gaussian-1d[loc=1.5,scale=0.6,x=1.3,prior_loc=0.2]",
    "gaussian-1d[loc=-1.4,scale=1.1,x=-1.3,prior_loc=-0.3]",
)
DISCRETE = ("sigmoid-belief-net[dim=3,data_dim=4,seed=2]",)
SPECS = {name: DISCRETE for name in ("f-divergence-score", "tvo", "multilevel-tvo")}
HELLINGER = {"divergence": "hellinger"}


def with_function(change):
    """A change of the weights by (F, log_w, K, weights)."""
    return lambda self, log_w, w: change(self.function, log_w, self.num_samples, w)


def one_interval(change):
    """TVO of one interval, where it is unbiased, with its score changed."""
    return ("tvo", {"intervals": 1}, change)


def combined(score_of=None, model_of=None):
    """Multilevel TVO put together again, block by block, from changed coefficients."""

    def change(self, log_w, w):
        score, model = torch.zeros_like(log_w), torch.zeros_like(log_w)
        for power, coefficient in enumerate(self.coefficients(log_w)):
            grouped = blocks(log_w, 2**power)
            inner = grouped.movedim(1, 0)
            found = thermodynamic(inner, self.intervals)
            share = coefficient / grouped.shape[0]
            score = score + share * (score_of or (lambda x, f, T: f.score))(inner, found, self.intervals).movedim(
                0, 1
            ).reshape(log_w.shape)
            model = model + share * (model_of or (lambda x, f, T: f.model))(inner, found, self.intervals).movedim(
                0, 1
            ).reshape(log_w.shape)
        return Weights(None, score, model)

    return change


def averages(log_w, intervals):
    """The mean over beta of the self-normalised weights."""
    return sum((step / intervals * log_w).softmax(0) for step in range(intervals)) / intervals


def sample_by_sample(signal):
    """Each signal less the mean of the others'."""
    K = signal.shape[0]
    return torch.stack([signal[k] - torch.cat([signal[:k], signal[k + 1 :]]).mean(0) for k in range(K)])


MUTANTS = {
    "the path derivative with F', sticking the landing's recipe (defect 3)": (
        "f-divergence",
        HELLINGER,
        with_function(lambda F, log_w, K, w: w._replace(path=F.slope(log_w) / K)),
    ),
    "F' + F'' in place of F' - F''": (
        "f-divergence",
        HELLINGER,
        with_function(lambda F, log_w, K, w: w._replace(path=(2 * F.slope(log_w) - F.doubly(log_w)) / K)),
    ),
    "KL's factor for every F (defect 3)": (
        "f-divergence",
        {"divergence": "skew-kl"},
        with_function(lambda F, log_w, K, w: w._replace(path=1 / K)),
    ),
    "the doubly reparameterised factor in theta too (defect 3)": (
        "f-divergence",
        HELLINGER,
        with_function(lambda F, log_w, K, w: w._replace(model=w.path)),
    ),
    "the total derivative with the doubly reparameterised factor": (
        "f-divergence",
        {},
        with_function(lambda F, log_w, K, w: w._replace(score=-w.path)),
    ),
    "log q inside w taken for a constant": (
        "f-divergence-score",
        HELLINGER,
        with_function(lambda F, log_w, K, w: w._replace(score=(F.value(log_w) - F.value(log_w).mean(0)) / (K - 1))),
    ),
    "the baseline divided by K (defect 4)": (
        "f-divergence-score",
        {},
        with_function(lambda F, log_w, K, w: w._replace(score=w.score * (K - 1) / K)),
    ),
    "F with its sign turned": (
        "f-divergence-score",
        {},
        with_function(lambda F, log_w, K, w: w._replace(score=-w.score)),
    ),
    "theta weighted by its rank too": ("tail-adaptive", {}, lambda self, log_w, w: w._replace(model=w.path)),
    "theta weighted evenly": ("tail-adaptive", {}, lambda self, log_w, w: w._replace(model=1 / self.num_samples)),
    "theta's weights squared (defect 3)": (
        "tail-adaptive",
        {},
        lambda self, log_w, w: w._replace(model=w.model.square()),
    ),
    "covariances over K (defect 15)": one_interval(lambda self, log_w, w: w._replace(score=2 / 3 * w.score)),
    "a factor 1.05": one_interval(lambda self, log_w, w: w._replace(score=w.score * 1.05)),
    "the covariance's sign turned": one_interval(lambda self, log_w, w: w._replace(score=-w.score)),
    "the term E h left out at every beta": (
        "multilevel-tvo",
        {"intervals": 2},
        combined(lambda x, f, T: f.score + averages(x, T) - x.new_ones(()) / T / x.shape[0]),
    ),
    "1 - beta left out of the covariance": (
        "multilevel-tvo",
        {"intervals": 2},
        combined(lambda x, f, T: f.score + f.model - averages(x, T)),
    ),
    "theta without its covariance": (
        "multilevel-tvo",
        {"intervals": 2},
        combined(model_of=lambda x, f, T: averages(x, T)),
    ),
}


@dataclass(frozen=True)
class RightEnds(estimators.MultilevelTVO):
    """The right Riemann sum's value presented as the left one's."""

    def value(self, log_w):
        return super().value(log_w) + (log_w.logsumexp(0) - log_w.mean(0)) / self.intervals


@dataclass(frozen=True)
class SelfNormalised(estimators.TVO):
    """Two samples' self-normalised objective presented as unbiased."""

    @property
    def targets(self):
        return dict.fromkeys(("theta", "phi"), Target("tvo", setting=self.intervals))


HARMLESS = {
    "the total derivative": ("f-divergence", {"doubly": False}, lambda self, log_w, w: w),
    "the baseline sample by sample": (
        "f-divergence-score",
        {},
        with_function(lambda F, log_w, K, w: w._replace(score=sample_by_sample(F.value(log_w) - F.slope(log_w)) / K)),
    ),
    "E h kept at beta = 0": one_interval(lambda self, log_w, w: w._replace(score=w.score - 1 / self.num_samples)),
    "another weight of the ranks": ("tail-adaptive", {"beta": -0.5}, lambda self, log_w, w: w),
}


@pytest.mark.parametrize("seed", EVERY_SEED)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_defect_is_found(name, seed):
    base, settings, change = MUTANTS[name]
    num_samples = 1 if base == "multilevel-tvo" else 3
    assert_found(mutant(base, change)(num_samples=num_samples, **settings), seed, SPECS.get(base, GAUSSIAN))


@pytest.mark.parametrize("seed", EVERY_SEED)
@pytest.mark.parametrize("estimator", [RightEnds(intervals=2), SelfNormalised()], ids=lambda e: type(e).__name__)
def test_another_objective_than_the_declared_one_is_found(estimator, seed):
    assert_found(estimator, seed, DISCRETE)


@pytest.mark.parametrize("seed", EVERY_SEED)
@pytest.mark.parametrize(
    "wrong",
    [
        Divergence(lambda t: 2 * (1 - (-t / 2).exp()), lambda t: (-t / 2).exp(), lambda t: 1.5 * (-t / 2).exp()),
        Divergence(DIVERGENCES["hellinger"].value, lambda t: t.exp(), lambda t: (t / 2).exp() / 2),
        Divergence(lambda t: (t / 2).exp() - 1, lambda t: (t / 2).exp() / 2, lambda t: (t / 2).exp() / 4),
    ],
    ids=["the other way round", "a slope without its half", "half of it"],
)
def test_another_function_under_the_name_is_found(wrong, seed):
    kind = type("Wrong", (estimators.FDivergence,), {"function": property(lambda self: wrong)})
    assert_found(kind(num_samples=2, divergence="hellinger"), seed, GAUSSIAN)


@pytest.mark.parametrize("seed", EVERY_SEED)
@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_edit_passes(name, seed):
    base, settings, change = HARMLESS[name]
    assert_passes(mutant(base, change)(num_samples=3, **settings), seed, SPECS.get(base, GAUSSIAN))
