"""Defects planted in the Renyi bounds, the mixtures, OVIS-MC and the jackknife; ``gradest check`` must find them.

Power: every bias is at least the test's effect on one of the problems, so a miss has probability below 1 %. False alarms of
the harmless edits: 1e-9 a check.
"""

from __future__ import annotations

import math

import pytest
import torch
from planting import EVERY_SEED, assert_found, assert_passes, mutant

import estimators
from estimators import Target, Weights
from estimators.subsets import without_any

GAUSSIAN = (
    "gaussian-1d[loc=1.5,scale=0.6,x=1.3,prior_loc=0.2]",
    "gaussian-1d[loc=1.6,scale=0.8,x=1.5,prior_loc=0.5]",
)
DISCRETE = ("sigmoid-belief-net[dim=3,data_dim=4,seed=2]",)
SPECS = {"renyi-score": DISCRETE, "ovis-mc": DISCRETE}
BOUND = property(lambda self: dict.fromkeys(("theta", "phi"), Target("iwae", self.num_samples)))


def total(weight):
    """Weights of a total derivative."""
    return Weights(weight, -weight, weight)


def softmax_of(power):
    return lambda self, log_w, w: total((power(self) * log_w).softmax(0))


def jackknifed_by(coefficients):
    """Jackknife-DReG with coefficients of its own in phi."""

    def change(self, log_w, w):
        K = self.num_samples
        first, second = coefficients(K)
        left = without_any(log_w, 1).softmax(1) ** 2
        return w._replace(path=first * log_w.softmax(0) ** 2 + second * left.mean(0))

    return change


def pooled(self, log_w, w):
    """OVIS-MC whose fresh draw joins the pool in place of replacing a sample: the control variate then knows z_k."""
    K = self.num_samples
    control = (log_w.logsumexp(0) - math.log(K + self.extra)) - log_w.softmax(0)
    kept = log_w[:K]
    score = (kept.logsumexp(0) - math.log(K)) - kept.softmax(0) - control[:K]
    return w._replace(score=torch.cat([score, torch.zeros_like(log_w[K:])]))


def over_all(self, log_w, w):
    """OVIS-MC with every sample's weight normalised over the fresh draws as well."""
    K = self.num_samples
    missing = torch.cat([log_w[:K].softmax(0) - log_w.softmax(0)[:K], torch.zeros_like(log_w[K:])])
    return w._replace(score=w.score + missing)


def without_its_own_term(self, log_w, w):
    """OVIS-MC, two samples and one fresh draw: subtracts log Z alone, which knows the other sample and the fresh draw."""
    replaced = torch.stack([torch.logaddexp(log_w[1], log_w[2]), torch.logaddexp(log_w[0], log_w[2])])
    score = log_w[:2].logsumexp(0) - log_w[:2].softmax(0) - replaced
    return w._replace(score=torch.cat([score, torch.zeros_like(log_w[2:])]))


MUTANTS = {
    "weights not raised to 1 - alpha": ("renyi", {}, softmax_of(lambda self: 1.0)),
    "weights raised to alpha": ("renyi", {"alpha": 0.3}, softmax_of(lambda self: self.alpha)),
    "1 - alpha not divided out of the gradient": ("renyi", {}, lambda self, log_w, w: total(0.5 * w.path)),
    "every weight squared, as at alpha = 0 (defect 3)": (
        "renyi-dreg",
        {},
        lambda self, log_w, w: w._replace(path=w.model.square()),
    ),
    "alpha and 1 - alpha exchanged": (
        "renyi-dreg",
        {"alpha": 0.2},
        lambda self, log_w, w: w._replace(path=0.8 * w.model + 0.2 * w.model.square()),
    ),
    "phi's weights in theta too (defect 3)": ("renyi-dreg", {}, lambda self, log_w, w: w._replace(model=w.path)),
    "self-normalised gradient of the limit of many samples (defect 1)": (
        "renyi-score",
        {},
        lambda self, log_w, w: w._replace(score=self.alpha / (1 - self.alpha) * w.model),
    ),
    "the same at alpha = 0: no gradient at all (defect 1)": (
        "renyi-score",
        {"alpha": 0.0},
        lambda self, log_w, w: w._replace(score=torch.zeros_like(log_w)),
    ),
    "minus the wake-phi direction (defect 2)": (
        "renyi-score",
        {"alpha": 0.0},
        lambda self, log_w, w: w._replace(score=-w.model),
    ),
    "the weight's own term left out": ("renyi-score", {}, lambda self, log_w, w: w._replace(score=w.score + w.model)),
    "shares exchanged": (
        "ciwae",
        {"beta": 0.2},
        lambda self, log_w, w: total(0.8 / self.num_samples + 0.2 * log_w.softmax(0)),
    ),
    "the ELBO's samples not averaged": (
        "ciwae",
        {},
        lambda self, log_w, w: total(self.beta + (1 - self.beta) * log_w.softmax(0)),
    ),
    "the ELBO in the value alone": ("ciwae", {}, softmax_of(lambda self: 1.0)),
    "order n - 1 in the gradient": ("chi-upper-bound", {"order": 3.0}, softmax_of(lambda self: self.order - 1)),
    "minimised already": ("chi-upper-bound", {}, lambda self, log_w, w: total(-w.path)),
    "n not divided out of the gradient": ("chi-upper-bound", {}, lambda self, log_w, w: total(2 * w.path)),
    "squares of the combined weights": (
        "jackknife-dreg",
        {},
        lambda self, log_w, w: w._replace(path=w.model.square()),
    ),
    "K forgotten: twice the one minus the other": ("jackknife-dreg", {}, jackknifed_by(lambda K: (2, -1))),
    "K - 1 in both places": ("jackknife-dreg", {}, jackknifed_by(lambda K: (K - 1, -(K - 1)))),
    "squares in theta too (defect 3)": ("jackknife-dreg", {}, lambda self, log_w, w: w._replace(model=w.path)),
    "a control variate that knows its sample": ("ovis-mc", {}, pooled),
    "weights normalised over the fresh draws too": ("ovis-mc", {}, over_all),
    "the fresh draws in theta too": (
        "ovis-mc",
        {},
        lambda self, log_w, w: w._replace(model=torch.cat([w.model[:-1], torch.ones_like(log_w[-1:])])),
    ),
}
HARMLESS = {
    "the baseline left out": (
        "renyi-score",
        {},
        lambda self, log_w, w: w._replace(score=self.value(log_w) - w.model),
    ),
    "the ELBO's share by the path alone": (
        "ciwae",
        {},
        lambda self, log_w, w: w._replace(score=-(1 - self.beta) * log_w.softmax(0)),
    ),
    "doubly reparameterised": (
        "chi-upper-bound",
        {},
        lambda self, log_w, w: Weights(self.order * w.model.square() + (1 - self.order) * w.model, None, w.model),
    ),
    "a control variate without the weight's own term": ("ovis-mc", {}, without_its_own_term),
    "a constant added to every score": ("renyi-dreg", {}, lambda self, log_w, w: w._replace(score=0.2)),
}


def build(base, settings, change, num_samples=3):
    return mutant(base, change)(num_samples=num_samples, **settings)


@pytest.mark.parametrize("seed", EVERY_SEED)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_defect_is_found(name, seed):
    base, settings, change = MUTANTS[name]
    assert_found(build(base, settings, change), seed, SPECS.get(base, GAUSSIAN))


@pytest.mark.parametrize("seed", EVERY_SEED)
def test_a_mixture_that_says_it_is_unbiased_is_found(seed):
    """Defects 11 and 12: part of the wake-phi direction in what is presented as a gradient of L_K."""
    kind = type("Presented", (estimators.DReGAlpha,), {"targets": BOUND})
    assert_found(kind(num_samples=3, alpha=0.2), seed, GAUSSIAN)


@pytest.mark.parametrize("seed", EVERY_SEED)
@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_edit_passes(name, seed):
    base, settings, change = HARMLESS[name]
    assert_passes(build(base, settings, change, num_samples=2), seed, SPECS.get(base, GAUSSIAN))
