"""Defects planted in the unbiased wake-phi update, in its levels, and in the sleep updates.

Power: every bias is at least the test's effect on one of the problems, so a miss has probability below 1 %. False alarms of
the harmless edits: 1e-9 a check.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from planting import EVERY_SEED, assert_found, assert_passes, judged, mutant
from torch.func import grad

import estimators
from estimators import Target
from estimators.surrogate import weighted_gradient
from estimators.trees import tree_map

DISCRETE = ("sigmoid-belief-net[dim=3,data_dim=4,seed=2]",)
DREAMS = ("rainforth[dim=2,points=2,perturbation=0.5,seed=1]",)
BASE = "unbiased-reweighted-wake-sleep"
MULTILEVEL = {
    "the increments left out: one sample's bias": mutant(
        BASE, lambda self, log_w, w: w._replace(score=torch.full_like(log_w, 1 / log_w.shape[0]))
    ),
    "the longest block alone, self-normalised": mutant(BASE, lambda self, log_w, w: w._replace(score=log_w.softmax(0))),
    "the wake-phi direction turned (defect 2)": mutant(BASE, lambda self, log_w, w: w._replace(score=-w.score)),
    "theta by the longest block alone": mutant(BASE, lambda self, log_w, w: w._replace(model=log_w.softmax(0))),
}
Unbiased = estimators.UnbiasedReweightedWakeSleep


@dataclass(frozen=True)
class FromOne(Unbiased):
    """Levels counted from 1 where 0 is meant, so the first increment is weighted as the second (defect 10)."""

    def increments(self, level):
        return [(1 - self.r) ** -(k + 1) for k in range(level + 1)]


@dataclass(frozen=True)
class Multiplied(Unbiased):
    """Multiplied by P(N >= k) in place of divided (defect 9)."""

    def increments(self, level):
        return [(1 - self.r) ** k for k in range(level + 1)]


@dataclass(frozen=True)
class Sorted(Unbiased):
    """Defect 10: weights in order of size, so that the two halves are no longer alike."""

    def weights(self, log_w):
        order = log_w.sort(0)
        w = super().weights(order.values)
        back = order.indices.argsort(0)
        return w._replace(score=w.score.gather(0, back), model=w.model.gather(0, back))


@dataclass(frozen=True)
class BothHalves(Unbiased):
    """Each level less the sum of its halves in place of their mean."""

    def coefficients(self, log_w):
        weights = self.increments(log_w.shape[0].bit_length() - 2)
        return [found - weight for found, weight in zip(super().coefficients(log_w), [*weights, 0.0], strict=True)]


@dataclass(frozen=True)
class SingleAsRoulette(estimators.UnbiasedReweightedWakeSleep):
    """The drawn level alone, weighted by its survival probability in place of its probability."""

    def increments(self, level):
        return [0.0] * level + [(1 - self.r) ** -level]


@dataclass(frozen=True)
class Presented(estimators.ReweightedWakeSleep):
    """Two samples' wake-phi presented as unbiased."""

    @property
    def targets(self):
        return {"theta": Target("iwae", self.num_samples), "phi": Target("forward_kl")}


for kind in (FromOne, Multiplied, SingleAsRoulette):
    MULTILEVEL[(kind.__doc__ or "").rstrip(".")] = kind


def dreaming(change):
    """SleepPhi whose sleep gradient is that of ``change(model, parameters, noise)``, a function of phi."""

    @dataclass(frozen=True)
    class Dreaming(estimators.SleepPhi):
        def gradient(self, model, parameters, noise):
            awake = weighted_gradient(self, model, parameters, noise["wake"])
            return awake._replace(phi=grad(change(model, parameters, noise))(parameters["phi"]))

    return Dreaming


def with_the_data(model, parameters, noise):
    z, _ = model.simulate(parameters["theta"], noise["sleep"])
    return lambda phi: model.guide(phi).log_prob(z).mean()


def with_the_guides_latents(model, parameters, noise):
    """Latents of the guide for the drawn data: the score has mean zero."""
    _, drawn = model.simulate(parameters["theta"], noise["sleep"])
    z = drawn.guide(parameters["phi"]).transform(noise["wake"])
    return lambda phi: drawn.guide(phi).log_prob(z).mean()


def reparameterised(model, parameters, noise):
    """The drawn latents moved with phi, as if they came from the guide."""
    z, drawn = model.simulate(parameters["theta"], noise["sleep"])
    held = drawn.guide(parameters["phi"])
    e = (z - held.loc) / held.scale
    return lambda phi: drawn.guide(phi).log_prob(drawn.guide(phi).transform(e)).mean()


def summed(model, parameters, noise):
    z, drawn = model.simulate(parameters["theta"], noise["sleep"])
    return lambda phi: drawn.guide(phi).log_prob(z).mean(-1).sum()


def one_noise(model, parameters, noise):
    """The same numbers for latents and data."""
    z, drawn = model.simulate(parameters["theta"], (noise["sleep"][0], noise["sleep"][0]))
    return lambda phi: drawn.guide(phi).log_prob(z).mean()


SLEEP = {
    "latents of the model, guide of the real data": dreaming(with_the_data),
    "latents of the guide for the drawn data": dreaming(with_the_guides_latents),
    "drawn latents moved with phi": dreaming(reparameterised),
    "summed over the samples": dreaming(summed),
    "one noise for latents and data": dreaming(one_noise),
    "theta of the ELBO": mutant("sleep-phi", lambda self, log_w, w: w._replace(model=torch.full_like(log_w, 0.5))),
    "phi awake as well": mutant("sleep-phi", lambda self, log_w, w: w._replace(score=w.model)),
}


@dataclass(frozen=True)
class Exchanged(estimators.Insomnia):
    """Insomnia's share given to the sleep in place of the wake update."""

    insomnia: float = 0.0

    @property
    def asleep(self):
        return self.insomnia


@dataclass(frozen=True)
class Declared(estimators.Insomnia):
    """A mixture that says it is the sleep gradient."""

    @property
    def targets(self):
        return {"theta": Target("iwae", self.num_samples), "phi": Target("sleep")}


SLEEP["the shares exchanged"] = Exchanged
SLEEP["a mixture presented as the sleep gradient"] = Declared


@pytest.mark.parametrize("seed", EVERY_SEED)
@pytest.mark.parametrize("name", MULTILEVEL)
def test_a_defect_of_the_levels_is_found(name, seed):
    assert_found(MULTILEVEL[name](), seed, DISCRETE)


@pytest.mark.parametrize("seed", EVERY_SEED)
@pytest.mark.parametrize("kind", [Sorted, BothHalves])
def test_levels_that_no_longer_fall_fast_enough_are_refused(kind, seed):
    """Without the antithetic mean no variance exists: neither passed nor called biased."""
    code, found = judged(kind(), seed, DISCRETE)
    assert code == 3 and found[0].finding.outcome == "HEAVY_TAIL"


@pytest.mark.parametrize("seed", EVERY_SEED)
def test_self_normalised_wake_phi_presented_as_unbiased_is_found(seed):
    assert_found(Presented(num_samples=2), seed, DISCRETE)


@pytest.mark.parametrize("seed", EVERY_SEED)
@pytest.mark.parametrize("name", SLEEP)
def test_a_defect_of_the_sleep_is_found(name, seed):
    assert_found(SLEEP[name](num_samples=2), seed, DREAMS)


@dataclass(frozen=True)
class Averaged(estimators.SleepPhi):
    """The sleep gradient of each draw in each of its places: the same mean, drawn differently."""

    def gradient(self, model, parameters, noise):
        noise = {"wake": noise["wake"], "sleep": tree_map(lambda leaf: leaf.flip(0), noise["sleep"])}
        return super().gradient(model, parameters, noise)


@dataclass(frozen=True)
class Reversed(Unbiased):
    """Blocks taken from the end."""

    def weights(self, log_w):
        w = super().weights(log_w.flip(0))
        return w._replace(score=w.score.flip(0), model=w.model.flip(0))


HARMLESS = {
    "samples in another order": (Reversed(), DISCRETE),
    "a score of mean zero added": (
        mutant(BASE, lambda self, log_w, w: w._replace(score=w.score + 0.3 / log_w.shape[0]))(scheme="single-sample"),
        DISCRETE,
    ),
    "dreams in another order": (Averaged(num_samples=2), DREAMS),
    "no share awake": (estimators.Insomnia(num_samples=2, insomnia=0.0), DREAMS),
}


@pytest.mark.parametrize("seed", EVERY_SEED)
@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_edit_passes(name, seed):
    estimator, specs = HARMLESS[name]
    assert_passes(estimator, seed, specs)
