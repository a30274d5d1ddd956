"""Planted defects of noise schemes: those that bias are found by ``gradest check``, those of the variance in
``tests/estimators/test_testing_variance.py`` and here by `check_variance_ratio`."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from planting import EVERY_SEED, assert_found, assert_passes
from torch.quasirandom import SobolEngine

import estimators
from benchmarks.problems import Gaussian1D
from estimators import Antithetic, Sobol, Stratified
from estimators.contract import Draw
from estimators.testing import assert_variance_ratio, check_variance_ratio

GAUSSIANS = ("gaussian-1d[loc=-1.4,scale=1.1,x=-1.3,prior_loc=-0.3]", "linear-gaussian[dim=3,data_dim=4,seed=1]")
BELIEF = ("sigmoid-belief-net[dim=3,data_dim=4,seed=2]",)


@dataclass(frozen=True)
class WithoutRandomisation(Sobol):
    """The bare net, moved off its corner."""

    def uniforms(self, rows, dimension, generator):
        net = SobolEngine(dimension).draw(self.copies, dtype=torch.float64)
        return (net + 0.5 / self.copies).expand(rows, -1, -1)


@dataclass(frozen=True)
class OneShiftForAllDimensions(Sobol):
    """Each point is uniform in each of its numbers, and these are tied to each other."""

    def uniforms(self, rows, dimension, generator):
        net = SobolEngine(dimension).draw(1, dtype=torch.float64)
        shift = torch.rand((rows, self.copies, 1), generator=generator, dtype=torch.float64)
        return (net + shift).remainder(1.0).clamp(1e-12, 1 - 1e-12)


@dataclass(frozen=True)
class NotShuffled(Stratified):
    """Copy c takes stratum c in every dimension: all copies lie on the diagonal."""

    def uniforms(self, rows, dimension, generator):
        within = torch.rand((rows, self.copies, dimension), generator=generator, dtype=torch.float64)
        return (torch.arange(self.copies)[:, None] + within) / self.copies


@dataclass(frozen=True)
class MidStrata(Stratified):
    """The middle of each stratum in place of a place drawn in it."""

    def uniforms(self, rows, dimension, generator):
        return ((super().uniforms(rows, dimension, generator) * self.copies).floor() + 0.5) / self.copies


@dataclass(frozen=True)
class NormalMirror(Antithetic):
    """The mirror of normal noise on uniform noise."""

    def couple(self, noise, uniform, generator):
        return torch.stack([noise, -noise], 1)


@dataclass(frozen=True)
class AddedUp(Antithetic):
    """The sum of the pair in place of its mean, in phi."""

    def gradient(self, model, parameters, noise):
        found = super().gradient(model, parameters, noise)
        return found._replace(phi={name: 2 * leaf for name, leaf in found.phi.items()})


@dataclass(frozen=True)
class InsideTheBound(estimators.IWAE):
    """The two samples of one bound are mirror images: the target is no longer L_2."""

    def draws(self, guide, replicates, generator):
        half = guide.noise((replicates, self.num_samples // 2), generator)
        return [Draw(torch.arange(replicates), torch.cat([half, -half], 1))]


MUTANTS = {
    "Sobol without a randomisation": (WithoutRandomisation(of="reparameterization", copies=8), GAUSSIANS),
    "Sobol with one shift for all dimensions": (OneShiftForAllDimensions(copies=4), GAUSSIANS[1:]),
    "strata not shuffled across dimensions": (NotShuffled(copies=4), GAUSSIANS[1:]),
    "the middle of each stratum": (MidStrata(copies=4), GAUSSIANS),
    "uniform noise mirrored at zero": (NormalMirror(num_samples=2, of="leave-one-out"), BELIEF),
    "the pair added up": (AddedUp(), GAUSSIANS),
    "mirror images inside one bound": (InsideTheBound(num_samples=2), GAUSSIANS[:1]),
}


@dataclass(frozen=True)
class Rotation(Sobol):
    """Cranley and Patterson's: a shift modulo one in place of a digital one."""

    def uniforms(self, rows, dimension, generator):
        net = SobolEngine(dimension).draw(self.copies, dtype=torch.float64)
        shift = torch.rand((rows, 1, dimension), generator=generator, dtype=torch.float64)
        return (net + shift).remainder(1.0).clamp(1e-12, 1 - 1e-12)


@dataclass(frozen=True)
class OtherOrder(Antithetic):
    """The mirror image first."""

    def couple(self, noise, uniform, generator):
        return super().couple(noise, uniform, generator).flip(1)


HARMLESS = {
    "a rotation in place of a digital shift": (Rotation(copies=4), GAUSSIANS),
    "the mirror image first": (OtherOrder(of="sticking-the-landing"), GAUSSIANS),
    "the pair of an importance-weighted gradient": (Antithetic(num_samples=2, of="iwae"), GAUSSIANS[:1]),
    "uniform noise, strata": (Stratified(num_samples=2, of="leave-one-out", copies=3), BELIEF),
}

for mutant in (*MUTANTS.values(), *HARMLESS.values()):
    type(mutant[0]).name = type(mutant[0]).__dict__.get("name", "")


@pytest.mark.parametrize("seed", EVERY_SEED)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_defect_is_found(name, seed):
    estimator, specs = MUTANTS[name]
    assert_found(estimator, seed, specs)


@pytest.mark.parametrize("seed", EVERY_SEED)
@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_edit_passes(name, seed):
    """False alarms: 1e-9 a check."""
    estimator, specs = HARMLESS[name]
    assert_passes(estimator, seed, specs)


@dataclass(frozen=True)
class OwnStratumLost(Stratified):
    """Every copy draws its own stratum: independent copies, at the price of stratified ones."""

    def uniforms(self, rows, dimension, generator):
        return torch.rand((rows, self.copies, dimension), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("seed", EVERY_SEED)
def test_strata_that_are_not_there_are_seen_in_the_variance(seed):
    """phi.loc: g is linear in eps, and the variance of the mean over C = 2 halves of a normal law is (1 - 2/pi)/2 of one."""
    problem = Gaussian1D(loc=-1.4, scale=1.1, x=-1.3, prior_loc=-0.3)
    exact = (2 * problem.scale) ** 2 * (1 - 2 / torch.pi) / 2
    ask = {"block": "phi.loc", "seed": seed}
    assert_variance_ratio(Stratified(copies=2), problem, problem.parameters, exact, **ask)
    lost = OwnStratumLost(copies=2)
    assert check_variance_ratio(lost, problem, problem.parameters, exact, **ask).outcome == "WRONG"
