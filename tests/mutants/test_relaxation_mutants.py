"""Planted defects of relaxations and of the control variates made of them: all go through ``gradest check``'s own code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from planting import EVERY_SEED, assert_found, assert_passes, problems
from torch.func import grad

import estimators
from estimators import GumbelSoftmax, Rebar, Relax, StraightThrough, StraightThroughGumbel
from estimators.concrete import relaxation_of
from estimators.elbo import ElboEstimator

SMALL = ("sigmoid-belief-net[dim=2,data_dim=4,seed=2,coupling=2.5]",)
ONE = ("sigmoid-belief-net[dim=1,data_dim=3,seed=1]",)
LABELS = ("categorical[dim=1,values=3,data_dim=2,seed=2]",)


def log_w(model, theta, guide, z):
    return model.log_joint(theta, z) - guide.log_prob(z)


@dataclass(frozen=True)
class Replica(Rebar):
    """REBAR once more, with both numbers of noise, and a place for each thing that people get wrong."""

    coupled: bool = False
    fault: ClassVar[str] = ""

    def phi_gradient(self, model, parameters, noise, log_w_of_b, state):
        theta, fault, (u, v) = parameters["theta"], self.fault, noise

        def surrogate(phi):
            guide = model.guide(phi)
            relaxation, held = relaxation_of(guide), guide.detach()

            def control(z, eta=self.eta, temperature=self.temperature):
                return eta * log_w(model, theta, held, relaxation.soft(z, temperature))

            z = relaxation.perturbed(u)
            b = self.latents(model, phi, noise)
            again = relaxation.conditional(b, u if fault == "u for v" else v)
            if fault == "unconditional":
                again = relaxation.perturbed(v)
            meets = {
                "z meets the score": lambda: control(z.detach()),
                "b meets the score": lambda: self.eta * log_w(model, theta, held, b),
                "eta missing at the score": lambda: control(again.detach(), eta=1.0),
                "two temperatures": lambda: control(again.detach(), temperature=3 * self.temperature),
            }.get(fault, lambda: control(again.detach()))()
            path = control(z) - control(again.detach() if fault == "z~ held" else again)
            if fault == "eta missing in the paths":
                path = path / self.eta
            if fault == "paths the wrong way round":
                path = -path
            if fault == "no paths":
                path = torch.zeros_like(path)
            if fault == "path of z alone":
                path = control(z)
            scored = relaxation.soft(z, self.temperature).detach() if fault == "score of the relaxed latent" else b
            return ((log_w_of_b - meets).detach() * guide.log_prob(scored) + path).mean()

        return grad(surrogate)(parameters["phi"])


def faulty(what: str, **settings):
    return type("Faulty", (Replica,), {"fault": what})(num_samples=2, **settings)


@dataclass(frozen=True)
class SlopeForgotten(Rebar):
    """Defect 8, coupled: z~ = z, held."""

    def phi_gradient(self, model, parameters, noise, log_w_of_b, state):
        def surrogate(phi):
            guide = model.guide(phi)
            relaxation, held = relaxation_of(guide), guide.detach()
            z = relaxation.perturbed(noise)
            control = self.eta * log_w(model, parameters["theta"], held, relaxation.soft(z, self.temperature))
            score = guide.log_prob(self.latents(model, phi, noise))
            return ((log_w_of_b - control).detach() * score + control).mean()

        return grad(surrogate)(parameters["phi"])


@dataclass(frozen=True)
class LeakingIntoTheModel(Rebar):
    """Defect 8's other half: theta of what meets the score, f(b) - eta f(s(z~)), in place of f(b)."""

    both: ClassVar[bool] = False

    def gradient(self, model, parameters, noise):
        found = super().gradient(model, parameters, noise)
        guide = model.guide(parameters["phi"])
        relaxation = relaxation_of(guide)
        u, v = noise
        again = relaxation.conditional(self.latents(model, parameters["phi"], noise), v)

        def leak(theta):
            total = -log_w(model, theta, guide, relaxation.soft(again, self.temperature)).mean()
            if self.both:
                total = (
                    total
                    + log_w(model, theta, guide, relaxation.soft(relaxation.perturbed(u), self.temperature)).mean()
                )
            return self.eta * total

        more = grad(leak)(parameters["theta"])
        return found._replace(theta={name: found.theta[name] + more[name] for name in more})


class LeakingBoth(LeakingIntoTheModel):
    """The whole surrogate differentiated in theta: what leaks has mean zero."""

    both = True


@dataclass(frozen=True)
class Misplaced(Rebar):
    """b = 1 where the *noise* is above its middle: the threshold does not move with the logits."""

    def latents(self, model, phi, noise):
        return (noise < 0.5).to(noise)


@dataclass(frozen=True)
class ParabolaOutOfThePaths(Relax):
    """What was learnt meets the score, and is never put back."""

    def phi_gradient(self, model, parameters, noise, log_w_of_b, state):
        rebar = {**state, "psi.constant": 0 * state["psi.constant"], "psi.linear": 0 * state["psi.linear"],
                 "psi.square": 0 * state["psi.square"]}  # fmt: skip
        full = super().phi_gradient(model, parameters, noise, log_w_of_b, rebar)
        guide = model.guide(parameters["phi"])
        relaxation = relaxation_of(guide)
        z, zero = relaxation.perturbed(noise), torch.zeros_like
        bend = self.control(relaxation, lambda s: zero(s[..., 0]), z, state)
        b = relaxation.hard(z)
        lost = grad(lambda phi: -(bend * model.guide(phi).log_prob(b)).mean())(parameters["phi"])
        return {name: full[name] + lost[name] for name in full}


@dataclass(frozen=True)
class DiscreteClaim(GumbelSoftmax):
    """It says of the ELBO what is true of the relaxed one."""

    targets = ElboEstimator.targets


@dataclass(frozen=True)
class DensityHeld(GumbelSoftmax):
    """log q held in phi: E grad log q is zero over b, not over what is relaxed."""

    def gradient(self, model, parameters, noise):
        found = super().gradient(model, parameters, noise)
        phi = parameters["phi"]
        relaxation = relaxation_of(model.guide(phi))
        s = relaxation.soft(relaxation.perturbed(noise), self.temperature)
        direct = grad(lambda phi: model.guide(phi).log_prob(s).mean())(phi)
        return found._replace(phi={name: found.phi[name] + direct[name] for name in direct})


@dataclass(frozen=True)
class OtherTemperature(GumbelSoftmax):
    """The target names one temperature, the sample has another."""

    def gradient(self, model, parameters, noise):
        return GumbelSoftmax(self.num_samples, temperature=2 * self.temperature).gradient(model, parameters, noise)


@dataclass(frozen=True)
class NormalNoise(GumbelSoftmax):
    """Normal noise of the logistic's own variance in place of logistic noise."""

    def gradient(self, model, parameters, noise):
        normal = torch.special.ndtri(noise) * torch.pi / 3**0.5
        return super().gradient(model, parameters, (-normal).sigmoid())


@dataclass(frozen=True)
class SlopeClaim(StraightThrough):
    """It calls itself unbiased."""

    targets = ElboEstimator.targets


@dataclass(frozen=True)
class GumbelSlopeClaim(StraightThroughGumbel):
    """It calls itself unbiased."""

    targets = ElboEstimator.targets


@dataclass(frozen=True)
class SoftModel(StraightThroughGumbel):
    """Theta sees the relaxed latent; phi is not looked at."""

    @property
    def targets(self):
        return {"theta": super().targets["theta"], "phi": None}

    def gradient(self, model, parameters, noise):
        return GumbelSoftmax(self.num_samples, temperature=self.temperature).gradient(model, parameters, noise)


def wild(problem):
    """A state of RELAX that nobody would learn."""
    logits = problem.parameters["phi"]["logits"]
    flat, one = torch.ones_like(logits), torch.ones((), dtype=logits.dtype)
    return {"psi.eta": 1.7 * one, "psi.log_temperature": 0.4 * one, "psi.constant": flat[..., 0], "psi.linear": -flat,
            "psi.square": 2 * flat, "mean": 0 * one, "deviation": one}  # fmt: skip


MUTANTS = {
    "z~ held: no derivative by the logits (defect 8)": (faulty("z~ held"), SMALL),
    "z~ = z held, coupled (defect 8)": (SlopeForgotten(num_samples=2), SMALL),
    "z~ held, labels (defect 8)": (faulty("z~ held"), LABELS),
    "leaking into the model (defect 8)": (LeakingIntoTheModel(num_samples=2, coupled=False), SMALL),
    "u used again as v": (faulty("u for v"), SMALL),
    "eta missing where it meets the score": (faulty("eta missing at the score", eta=0.5), SMALL),
    "eta missing in the paths": (faulty("eta missing in the paths", eta=0.5), SMALL),
    "the paths' sign": (faulty("paths the wrong way round"), SMALL),
    "the paths left out": (faulty("no paths"), SMALL),
    "the path of z alone": (faulty("path of z alone"), SMALL),
    "another temperature at the score than in the paths": (faulty("two temperatures"), SMALL),
    "c of b meets the score": (faulty("b meets the score"), SMALL),
    "the score of the relaxed latent": (faulty("score of the relaxed latent"), SMALL),
    "the threshold does not move with the logits": (Misplaced(num_samples=2), SMALL),
    "RELAX: what was learnt is never put back": (
        ParabolaOutOfThePaths(num_samples=2, state=wild(problems(SMALL)[0])), SMALL,
    ),
    "Gumbel-softmax presented as unbiased for the ELBO": (DiscreteClaim(num_samples=2), SMALL),
    "Gumbel-softmax with log q held": (DensityHeld(num_samples=2), SMALL),
    "Gumbel-softmax at another temperature than it says": (OtherTemperature(num_samples=2), SMALL),
    "Gumbel-softmax with normal noise": (NormalNoise(num_samples=2), SMALL),
    "straight-through presented as unbiased": (SlopeClaim(num_samples=2), SMALL),
    "straight-through Gumbel presented as unbiased": (GumbelSlopeClaim(num_samples=2), SMALL),
    "straight-through Gumbel that shows the model the relaxed latent": (SoftModel(num_samples=2), SMALL),
}  # fmt: skip

HARMLESS = {
    "the replica without a fault": (faulty(""), SMALL),
    "the replica without a fault, labels": (faulty(""), LABELS),
    "c of z meets the score: it has one law with c of z~ beside b": (faulty("z meets the score"), SMALL),
    "the whole surrogate differentiated in theta": (LeakingBoth(num_samples=2, coupled=False), SMALL),
    "no control variate": (Rebar(num_samples=2, eta=0.0), ONE),
    "another temperature": (Rebar(num_samples=2, temperature=1.7), SMALL),
    "z~ drawn without regard to b: useless, and harmless": (faulty("unconditional"), SMALL),
    "labels drawn anew without regard to the winner": (faulty("unconditional"), LABELS),
    "an eta that does harm to the variance alone": (Rebar(num_samples=2, eta=-0.5), ONE),
    "any state": (Relax(num_samples=2, state=wild(problems(SMALL)[0])), SMALL),
    "Gumbel-softmax at another temperature": (GumbelSoftmax(num_samples=2, temperature=1.2), SMALL),
}

for each, _ in (*MUTANTS.values(), *HARMLESS.values()):
    if type(each).__module__ == __name__:
        type(each).name = ""


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


def test_the_replica_is_rebar_draw_by_draw():
    """So that each mutant differs from it by its fault alone."""
    (problem,) = problems(SMALL)
    rebar = estimators.get("rebar", num_samples=2, coupled=False, eta=0.7)
    (draw,) = rebar.draws(problem.guide(problem.parameters["phi"]), 1, torch.Generator().manual_seed(0))
    noise = tuple(leaf[0] for leaf in draw.noise)
    ours = faulty("", eta=0.7).gradient(problem, problem.parameters, noise)
    torch.testing.assert_close(ours.phi, rebar.gradient(problem, problem.parameters, noise).phi)
