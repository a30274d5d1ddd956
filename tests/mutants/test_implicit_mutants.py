"""Planted defects of implicit reparameterisation: guides whose draws are differentiated wrongly, found by ``gradest check``."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest
import torch
from planting import EVERY_SEED, MAX_DRAWS
from torch.special import ndtr

import estimators
from benchmarks.check import check, exit_code
from benchmarks.problems import BetaBernoulli, GammaPoisson, GaussianMixtureGuide
from estimators import Beta, Gamma, MixtureOfGaussians
from estimators.implicit_guides import beta_slopes, gamma_slope


@dataclass(frozen=True)
class GammaWith(Gamma):
    """Abstract: a gamma guide with another derivative in the concentration, or another scale."""

    def slope(self, held, noise):
        return gamma_slope(held, noise)

    def transform(self, noise):
        moving = self.log_concentration.exp()
        held = moving.detach()
        return (noise + self.slope(held, noise) * (moving - held)) * torch.exp(-self.log_rate)


@dataclass(frozen=True)
class WrongSign(GammaWith):
    def slope(self, held, noise):
        return -gamma_slope(held, noise)


@dataclass(frozen=True)
class NoSlope(GammaWith):
    """The draw of the sampler is taken for a constant."""

    def slope(self, held, noise):
        return torch.zeros_like(noise)


@dataclass(frozen=True)
class WithoutDensity(GammaWith):
    """dF/da in place of dF/da / q."""

    def slope(self, held, noise):
        density = torch.exp((held - 1) * noise.log() - noise - torch.lgamma(held))
        return gamma_slope(held, noise) * density


@dataclass(frozen=True)
class RateForScale(Gamma):
    """Multiplied by what it should be divided by."""

    def transform(self, noise):
        return super().transform(noise) * torch.exp(2 * self.log_rate)


@dataclass(frozen=True)
class Swapped(Beta):
    """The slopes of the two parameters have changed places."""

    def transform(self, noise):
        alpha, beta = self.log_alpha.exp(), self.log_beta.exp()
        along_alpha, along_beta = beta_slopes(alpha.detach(), beta.detach(), noise)
        return noise + along_beta * (alpha - alpha.detach()) + along_alpha * (beta - beta.detach())


@dataclass(frozen=True)
class OneSideAlone(Beta):
    """z as a gamma variable over a sum that is held."""

    def transform(self, noise):
        alpha = self.log_alpha.exp()
        along_alpha, _ = beta_slopes(alpha.detach(), self.log_beta.exp().detach(), noise)
        return noise + along_alpha * (alpha - alpha.detach())


@dataclass(frozen=True)
class MixtureWith(MixtureOfGaussians):
    """Abstract: the one-dimensional mixture, written out."""

    def transform(self, noise):
        scale, z = self.log_scale[..., 0].exp(), noise[..., 0]
        r = self.weights()
        place = (z[..., None] - self.loc[..., 0]) / scale
        below = (r * ndtr(place)).sum(-1)
        density = (r * torch.exp(-0.5 * place.square()) / scale).sum(-1) / (2 * torch.pi) ** 0.5
        return self.moved(z, below - below.detach(), density.detach())[..., None]

    def weights(self):
        return self.logits.softmax(-1)

    def moved(self, z, below, density):
        return z - below / density


@dataclass(frozen=True)
class MixtureSign(MixtureWith):
    def moved(self, z, below, density):
        return z + below / density


@dataclass(frozen=True)
class MixtureWithoutDensity(MixtureWith):
    def moved(self, z, below, density):
        return z - below


@dataclass(frozen=True)
class HeldWeights(MixtureWith):
    """The component is taken for given: the probabilities of the components get no gradient."""

    def weights(self):
        return self.logits.detach().softmax(-1)


@dataclass(frozen=True)
class ByComponent(MixtureOfGaussians):
    """Each draw moves with the components' means and scales, averaged by their probabilities, not responsibilities."""

    def transform(self, noise):
        r = self.logits.detach().softmax(-1)[..., None]
        place = (noise[..., None, :] - self.loc.detach()) * torch.exp(-self.log_scale.detach())
        drift = self.loc + self.log_scale.exp() * place
        return noise + (r * (drift - drift.detach())).sum(-2)


def guided(problem, kind):
    """The problem with its guide's derivative replaced."""

    @dataclass(frozen=True)
    class Reguided(type(problem)):
        def guide(self, phi):
            right = super().guide(phi)
            return kind(*(getattr(right, field.name) for field in fields(right)))

    return Reguided(**{field.name: getattr(problem, field.name) for field in fields(problem)})


POISSON, BERNOULLI, MIXED = (
    GammaPoisson(perturbation=0.5),
    BetaBernoulli(perturbation=0.5, seed=2),
    GaussianMixtureGuide(),
)
MUTANTS = {
    "gamma: the slope's sign": (POISSON, WrongSign),
    "gamma: no slope in the concentration": (POISSON, NoSlope),
    "gamma: no density in the denominator": (POISSON, WithoutDensity),
    "gamma: rate taken for scale": (POISSON, RateForScale),
    "beta: slopes swapped": (BERNOULLI, Swapped),
    "beta: the sum held": (BERNOULLI, OneSideAlone),
    "mixture: the slope's sign": (MIXED, MixtureSign),
    "mixture: no density in the denominator": (MIXED, MixtureWithoutDensity),
    "mixture: probabilities held": (MIXED, HeldWeights),
    "mixture: probabilities for responsibilities": (MIXED, ByComponent),
}


@dataclass(frozen=True)
class TorchsOwn(GammaWith):
    """torch's derivative, right to about a thousandth."""

    def slope(self, held, noise):
        return _Looped.apply(held.expand_as(noise), noise)


class _Looped(torch.autograd.Function):
    """`torch._standard_gamma_grad` with a rule for vmap, which it lacks."""

    @staticmethod
    def forward(held, noise):
        return torch._standard_gamma_grad(held, noise)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def vmap(info, in_dims, held, noise):
        spread = [
            leaf.movedim(place, 0) if place is not None else leaf.expand(info.batch_size, *leaf.shape)
            for leaf, place in zip((held, noise), in_dims, strict=True)
        ]
        return _Looped.apply(*(leaf.contiguous() for leaf in spread)), 0


@dataclass(frozen=True)
class ShiftedLogits(MixtureOfGaussians):
    """Logits need not be normalised."""

    def transform(self, noise):
        return MixtureOfGaussians(self.logits + 3.0, self.loc, self.log_scale).transform(noise)


HARMLESS = {
    "gamma: torch's own slope": (POISSON, TorchsOwn),
    "mixture: shifted logits": (MIXED, ShiftedLogits),
}


def judged(problem, kind, seed):
    reparameterization = estimators.Reparameterization()
    return check(reparameterization, [guided(problem, kind)], override=None, seed=seed, max_draws=MAX_DRAWS)


@pytest.mark.parametrize("seed", EVERY_SEED)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_defect_is_found(name, seed):
    found = judged(*MUTANTS[name], seed)
    assert exit_code(found) == 1, [str(each.finding) for each in found]


@pytest.mark.parametrize("seed", EVERY_SEED)
@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_edit_passes(name, seed):
    """False alarms: 1e-9 a check."""
    found = judged(*HARMLESS[name], seed)
    assert exit_code(found) == 0, [str(each.finding) for each in found]
