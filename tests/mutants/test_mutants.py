"""The test of the test: planted defects must be found, harmless edits must pass.

Each mutant is a small replica of a defect that was seen in public code (numbers: the list of known-bad implementations in
docs/statistics.md). All go through ``gradest check``'s own code at its default budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from planting import SEEDS, assert_found, assert_passes, judged, mutant, problems, scaled

import estimators
from benchmarks.check import check, exit_code
from estimators import DiagonalGaussian, Target, Weights


def half_level(self, log_w, weights):
    return weights._replace(score=weights.score * (self.num_samples - 1) / self.num_samples)


MUTANTS = {
    "a factor 1.05 in phi of the reparameterisation": mutant("reparameterization", scaled("phi", 1.05)),
    "a factor 1.05 in theta of the reparameterisation": mutant("reparameterization", scaled("theta", 1.05)),
    "a factor 1.05 in phi of DReG": mutant("dreg", scaled("phi", 1.05)),
    "a factor 0.95 in phi of the score function": mutant("score-function", scaled("phi", 0.95)),
    "leave-one-out divided by K (defect 4)": mutant("leave-one-out", half_level),
    "log-variance loss without the half: twice the gradient (defect 4)": mutant("leave-one-out", scaled("phi", 2.0)),
    "batch-mean baseline that includes the sample itself (defect 13)": mutant(
        "score-function",
        lambda self, log_w, w: w._replace(score=(log_w - log_w.mean(0)) / self.num_samples),
    ),
    "moving baseline that includes the current sample (defect 5)": mutant(
        "score-function", lambda self, log_w, w: w._replace(score=0.9 * log_w / self.num_samples)
    ),
    "sticking the landing taken for an importance-weighted gradient (defect 12)": mutant(
        "iwae", lambda self, log_w, w: Weights(w.path, None, w.model)
    ),
    "DReG with w in place of its square": mutant("dreg", lambda self, log_w, w: w._replace(path=log_w.softmax(0))),
    "DReG with its square in theta too (defect 3)": mutant(
        "dreg", lambda self, log_w, w: w._replace(model=log_w.softmax(0).square())
    ),
    "weights not held in sum w log w (defect 7)": mutant(
        "iwae",
        lambda self, log_w, w: Weights(
            *(sign * (v := log_w.softmax(0)) * (1 + log_w - (v * log_w).sum(0)) for sign in (1, -1, 1))
        ),
    ),
    "wake-phi direction with gamma = 1 taken for an IWAE gradient (defect 11)": mutant(
        "iwae", lambda self, log_w, w: Weights(None, log_w.softmax(0), w.model)
    ),
    "K forgotten in the log of the mean (defect 15)": type(
        "NoLogK", (estimators.IWAE,), {"value": lambda self, log_w: log_w.logsumexp(0)}
    ),
    "IWAE with K - 1 samples' worth of weights": mutant(
        "iwae",
        lambda self, log_w, w: Weights(*(torch.cat([s * log_w[1:].softmax(0), 0 * log_w[:1]]) for s in (1, -1, 1))),
    ),
    "q-bar rebuilt without its scale (defect 6)": None,
    "gradient with respect to sigma where log sigma is declared (defect 15)": None,
    "OVIS with gamma = 1 presented as unbiased (defect 11)": None,
    "VIMCO without its own weight's term": mutant(
        "vimco", lambda self, log_w, w: w._replace(score=w.score + log_w.softmax(0))
    ),
    "VIMCO that replaces the weight by the mean of all, its own included": mutant(
        "vimco",
        lambda self, log_w, w: w._replace(
            score=torch.stack(
                [
                    self.value(log_w) - self.value(torch.cat([log_w[:k], log_w.mean(0, keepdim=True), log_w[k + 1 :]]))
                    for k in range(self.num_samples)
                ]
            )
            - log_w.softmax(0)
        ),
    ),
    "naive multi-sample score with the sum for the mean: a constant, harmless in phi, not in the value": type(
        "Sum", (estimators.MultiSampleScore,), {"value": lambda self, log_w: log_w.logsumexp(0)}
    ),
    "MIWAE that forgets to divide by the groups": mutant(
        "miwae", lambda self, log_w, w: Weights(*(2 * part for part in w))
    ),
    "PIWAE with the groups' weights in theta too": mutant("piwae", lambda self, log_w, w: w._replace(model=w.path)),
    "SUMO with weights shifted by one (defect 9)": None,
    "SUMO multiplied by the survival in place of divided (defect 9)": None,
}


@dataclass(frozen=True)
class UnitScaleHeld(DiagonalGaussian):
    """A guide whose held density forgets the scale, as when it is built again from its mean alone."""

    def detach(self):
        return DiagonalGaussian(self.loc.detach(), torch.zeros_like(self.log_scale))


@dataclass(frozen=True)
class WrongHeldScale(estimators.StickingTheLanding):
    """Defect 6."""

    def gradient(self, model, parameters, noise):
        return super().gradient(_Reguided(model, UnitScaleHeld), parameters, noise)


@dataclass(frozen=True)
class WithRespectToSigma(estimators.Reparameterization):
    """Defect 15: the chain rule through exp is left out."""

    def gradient(self, model, parameters, noise):
        found = super().gradient(model, parameters, noise)
        phi = dict(found.phi)
        if "log_scale" in phi:
            phi["log_scale"] = phi["log_scale"] / parameters["phi"]["log_scale"].exp()
        return found._replace(phi=phi)


@dataclass(frozen=True)
class GammaOne(estimators.OVIS):
    """Defect 11: it says of itself what is true of gamma = 0 alone."""

    gamma: float = 1.0
    targets = estimators.IWAE.targets


@dataclass(frozen=True)
class _SumoMutant(estimators.SUMO):
    """Abstract: lengths by the right law, weights by a wrong one."""

    def lengths(self, count, generator):
        return estimators.SUMO(self.num_samples, self.cap).lengths(count, generator)


@dataclass(frozen=True)
class ShiftedSumo(_SumoMutant):
    """Defect 9: increment j is weighted by 1 / P(N >= j + 1)."""

    def survival(self, k):
        return estimators.SUMO(self.num_samples).survival(k + 1)


@dataclass(frozen=True)
class MultipliedSumo(_SumoMutant):
    """Defect 9: increment j is weighted by P(N >= j)."""

    def survival(self, k):
        return 1 / estimators.SUMO(self.num_samples).survival(k)


class _Reguided(estimators.LatentModel):
    def __init__(self, model, kind):
        self.model, self.kind, self.offers = model, kind, model.offers

    def log_joint(self, theta, z):
        return self.model.log_joint(theta, z)

    def guide(self, phi):
        guide = self.model.guide(phi)
        return self.kind(guide.loc, guide.log_scale)


MUTANTS["q-bar rebuilt without its scale (defect 6)"] = WrongHeldScale
MUTANTS["OVIS with gamma = 1 presented as unbiased (defect 11)"] = GammaOne
MUTANTS["SUMO with weights shifted by one (defect 9)"] = ShiftedSumo
MUTANTS["SUMO multiplied by the survival in place of divided (defect 9)"] = MultipliedSumo
MUTANTS["gradient with respect to sigma where log sigma is declared (defect 15)"] = WithRespectToSigma

HARMLESS = {
    "a constant baseline": mutant(
        "score-function", lambda self, log_w, w: w._replace(score=(log_w + 2.0) / self.num_samples)
    ),
    "the score term's sign: its expectation is zero": mutant(
        "reparameterization", lambda self, log_w, w: w._replace(score=1 / self.num_samples)
    ),
    "total derivative as path alone": mutant(
        "reparameterization", lambda self, log_w, w: Weights(w.path, None, w.model)
    ),
    "leave-one-out written with each sample's own baseline": mutant(
        "leave-one-out",
        lambda self, log_w, w: w._replace(
            score=torch.stack([log_w[k] - torch.cat([log_w[:k], log_w[k + 1 :]]).mean(0)
                               for k in range(self.num_samples)]) / self.num_samples
        ),
    ),
    "softmax written by exp and log-sum-exp": mutant(
        "dreg", lambda self, log_w, w: w._replace(path=((log_w - log_w.logsumexp(0)) * 2).exp())
    ),
    "a score of mean zero added with equal weights": mutant(
        "dreg", lambda self, log_w, w: w._replace(score=torch.full_like(log_w, 0.3 / math.sqrt(self.num_samples)))
    ),
}  # fmt: skip


def build(kind):
    return kind(num_samples=1, cap=4) if issubclass(kind, estimators.SUMO) else kind(num_samples=2)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_defect_is_found(name, seed):
    """Power: every mutant's bias is at least the test's effect somewhere on the panel, so a miss has probability < 1 %."""
    assert_found(build(MUTANTS[name]), seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_edit_passes(name, seed):
    """False alarms: 1e-9 a check."""
    assert_passes(build(HARMLESS[name]), seed)


def test_the_canary_dies():
    """A mutant so plain that, should it live, nothing above means anything."""

    class Canary(estimators.Reparameterization):
        def weights(self, log_w):
            return Weights(*(-v for v in super().weights(log_w)))

    assert judged(Canary(), 0)[0] == 1


def test_biased_by_design_is_found_and_its_target_override_passes():
    """The same draws are judged by what they are said to be: IWAE's are wrong for the ELBO, right for L_K."""
    for target, max_draws, code in ((Target("elbo"), 200_000, 1), (Target("iwae", 2), 2_000_000, 0)):
        found = check(estimators.IWAE(num_samples=2), problems(), override=target, seed=0, max_draws=max_draws)
        assert exit_code(found) == code
