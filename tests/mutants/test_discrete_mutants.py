"""Planted defects of estimators for discrete latents: signs, halves, thresholds, and what is held or replaced."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from planting import EVERY_SEED, assert_found, assert_passes, mutant, scaled

from estimators import ARM, DisARM, Enumeration, LocalDisARM, LocalExpectation, MuProp
from estimators.discrete import _dot, _log1p_exp, pair_difference
from estimators.enumeration import _beside, mean_of, neighbours, surrogate_gradient
from estimators.subsets import without_any
from estimators.surrogate import append_dims

SPECS = ("sigmoid-belief-net[dim=2,data_dim=2,seed=2]",)
ONE_HOT = ("categorical[dim=2,values=3,data_dim=2,seed=2]",)


def with_slopes(kind, change):
    """A pair estimator whose coefficients of the logits are made otherwise."""

    @dataclass(frozen=True)
    class Changed(kind):
        def slopes(self, log_w, z, noise, logits):
            return change(self, log_w, z, noise, logits)

    return Changed


def arm(factor):
    return lambda self, log_w, z, u, a: factor * ARM.slopes(self, log_w, z, u, a)


def disarm(weight):
    """0.5 (f - f') (z - z') times ``weight`` of the logits."""
    return lambda self, log_w, z, u, a: (
        0.5 * (z[0] - z[1]) * weight(a) * (log_w[0] - log_w[1])[..., None]
    ).mean(0)  # fmt: skip


def not_merged(self, log_w, z, u, a):
    """f (1/2 - u) of one half, where it takes f (1 - 2 u)."""
    return (log_w[0][..., None] * (0.5 - u)).mean(0)


def of_its_neighbour(self, log_w, z, u, a):
    """The uniform number of the next latent."""
    return ((log_w[1] - log_w[0])[..., None] * (u.roll(1, -1) - 0.5)).mean(0)


def with_itself(self, log_w, z, u, a):
    """The others' weights with the sample's own among them."""
    others = torch.stack([half.logsumexp(0).expand_as(half) for half in log_w])
    gain = _log1p_exp(log_w[0] - others) - _log1p_exp(log_w[1] - others)
    return (pair_difference(z, a) * gain.mean(0)[..., None]).sum(0)


def replaced_by_the_mean_of_all(self, log_w, weights):
    """Each weight gives way to the geometric mean of all, itself included."""
    others = without_any(log_w, 1).logsumexp(1)
    baseline = torch.logaddexp(others, log_w.mean(0).expand_as(others))
    return weights._replace(score=log_w.logsumexp(0) - baseline - log_w.softmax(0))


def halves_summed(self, log_w, z, u, a):
    return 2 * LocalDisARM.slopes(self, log_w, z, u, a)


def log_weights_alone(self, log_w, z, u, a):
    """The log-weight's difference where the bound's belongs."""
    return (pair_difference(z, a) * (log_w[0] - log_w[1])[..., None]).mean(0)


@dataclass(frozen=True)
class Complement(DisARM):
    """z' = 1[u > p], everything turned: no sample of q."""

    def halves(self, guide, noise):
        z = guide.transform(noise)
        return torch.stack([z, 1 - z])


@dataclass(frozen=True)
class ComplementArm(ARM):
    """The same threshold, sigma(a), for both halves of ARM."""

    halves = Complement.halves


@dataclass(frozen=True)
class NotMirrored(ARM):
    """Both halves from the same uniform number."""

    def halves(self, guide, noise):
        z = guide.transform(noise)
        return torch.stack([z, z])


@dataclass(frozen=True)
class ThetaTwice(DisARM):
    """Both halves summed for theta, where they are averaged."""

    def density(self, log_w):
        return 2 * super().density(log_w)


@dataclass(frozen=True)
class DensityForgotten(LocalDisARM):
    """The bound's own dependence on log q left out: as for the ELBO, where its mean is zero."""

    def gradient(self, model, parameters, noise):
        log_q_part = super().gradient(model, parameters, noise)

        def surrogate(theta, guide):
            z = self.halves(guide, noise)
            log_q = guide.log_prob(z)
            density = self.density((model.log_joint(theta, z) - log_q).detach())
            total = (density * log_q).sum((0, 1))
            return total, total

        missing = surrogate_gradient(surrogate, model, parameters).phi
        return log_q_part._replace(phi={name: log_q_part.phi[name] + missing[name] for name in missing})


@dataclass(frozen=True)
class AsIfTwice(LocalDisARM):
    """Weights normalised over both halves: 2 K samples, though the target has K."""

    def density(self, log_w):
        return log_w.flatten(0, 1).softmax(0).reshape(log_w.shape)


def local(at=None, per_variable=1.0, drop=False):
    """Local expectation with another state in the place of the sample, or other weights."""

    @dataclass(frozen=True)
    class Changed(LocalExpectation):
        def gradient(self, model, parameters, noise):
            right = super().gradient(model, parameters, noise)

            def surrogate(theta, guide):
                z = guide.transform(noise)
                changed, q = neighbours(guide, z if at is None else at(guide, z))
                if drop:
                    changed = z.expand_as(changed)
                log_w = (model.log_joint(theta, changed) - guide.log_prob(changed)).detach().movedim(1, -1)
                total = per_variable * (q[:, None] * (log_w - log_w.mean(0))).sum((0, -1)).mean(0)
                return total, total

            return right._replace(phi=surrogate_gradient(surrogate, model, parameters).phi)

    return Changed


def all_states(weigh):
    """The sum over all states, with other weights."""

    @dataclass(frozen=True)
    class Changed(Enumeration):
        def gradient(self, model, parameters, noise):
            def surrogate(theta, guide):
                z = _beside(guide.states(), guide.transform(noise))
                log_q = guide.log_prob(z)
                elbo = (weigh(guide, z, log_q) * (model.log_joint(theta, z) - log_q)).sum(0)
                return elbo, elbo

            return surrogate_gradient(surrogate, model, parameters)

    return Changed


def without_the_last(guide, z, log_q):
    return log_q.exp() * append_dims(torch.arange(len(log_q)) < len(log_q) - 1, log_q)


def muprop(correct=1.0, live=False, at_sample=False):
    """MuProp with another correction, with the mean-field value live, or expanded about the sample itself."""

    @dataclass(frozen=True)
    class Changed(MuProp):
        def gradient(self, model, parameters, noise):
            def surrogate(theta, guide):
                z, mean = guide.transform(noise), mean_of(guide)
                there, slope = self.expansion(model, theta, guide, z[0] if at_sample else mean.detach())
                log_p, log_q = model.log_joint(theta, z), guide.log_prob(z)
                log_w = (log_p - log_q).detach()
                moved = z - (mean if live else mean.detach())
                signal = log_w - there - _dot(slope, moved, log_w.ndim)
                total = log_p.mean(0) + (signal * log_q).mean(0) + correct * _dot(slope, mean, log_w.ndim - 1)
                return total, log_w.mean(0)

            return surrogate_gradient(surrogate, model, parameters)

    return Changed


MUTANTS = {
    "ARM: sign": with_slopes(ARM, arm(-1.0)),
    "ARM: 2 u - 1": with_slopes(ARM, arm(2.0)),
    "ARM: augmented, not merged": with_slopes(ARM, not_merged),
    "ARM: another latent's number": with_slopes(ARM, of_its_neighbour),
    "ARM: one threshold": ComplementArm,
    "ARM: not mirrored": NotMirrored,
    "DisARM: without 1/2": with_slopes(DisARM, disarm(lambda a: 2 * a.abs().sigmoid())),
    "DisARM: sigma(a)": with_slopes(DisARM, disarm(lambda a: a.sigmoid())),
    "DisARM: sigma(-|a|)": with_slopes(DisARM, disarm(lambda a: (-a.abs()).sigmoid())),
    "DisARM: no probability": with_slopes(DisARM, disarm(torch.ones_like)),
    "DisARM: one threshold": Complement,
    "DisARM: theta twice": ThetaTwice,
    "local DisARM: density forgotten": DensityForgotten,
    "local DisARM: 2 K samples": AsIfTwice,
    "local DisARM: itself among the others": with_slopes(LocalDisARM, with_itself),
    "local DisARM: halves summed": with_slopes(LocalDisARM, halves_summed),
    "local DisARM: log-weights": with_slopes(LocalDisARM, log_weights_alone),
    "LEG: joint state not replaced": local(drop=True),
    "LEG: the others at their means": local(at=lambda guide, z: mean_of(guide).expand_as(z)),
    "LEG: averaged over variables": local(per_variable=1 / 2),
    "enumeration: not normalised": all_states(lambda guide, z, log_q: (z * guide.logits).sum(-1).exp()),
    "enumeration: probabilities held": all_states(lambda guide, z, log_q: log_q.exp().detach()),
    "enumeration: all states alike": all_states(lambda guide, z, log_q: torch.full_like(log_q, 1 / len(log_q))),
    "enumeration: a state forgotten": all_states(without_the_last),
    "MuProp: no correction": muprop(correct=0.0),
    "MuProp: correction's sign": muprop(correct=-1.0),
    "MuProp: mean-field value live": muprop(live=True),
    "MuProp: expanded about the sample": muprop(at_sample=True),
    "leave-one-out: baseline with itself": mutant("leave-one-out", scaled("phi", 0.5)),
    "VIMCO: baseline with itself": mutant("vimco", replaced_by_the_mean_of_all),
    **{f"{kind.name}: 5 % too much": with_slopes(kind, lambda self, *given, kind=kind: 1.05 * kind.slopes(self, *given))
       for kind in (ARM, DisARM, LocalDisARM)},
    "muprop: correction 5 % short": muprop(correct=0.95),
    "enumeration: 5 % too much": all_states(lambda guide, z, log_q: 1.05 * log_q.exp()),
}  # fmt: skip
OF_ONE_HOT = {
    "LEG: joint state not replaced": local(drop=True),
    "LEG: averaged over variables": local(per_variable=0.5),
    "LEG: 5 % too much": local(per_variable=1.05),
    "MuProp: no correction": muprop(correct=0.0),
}


def no_indicator(self, log_w, z, u, a):
    """1 - 2 z' also where the halves agree: turning a pair over turns f - f' and nothing else, so its mean is zero."""
    return (0.5 * (1 - 2 * z[1]) * a.abs().sigmoid() * (log_w[0] - log_w[1])[..., None]).mean(0)


def whole_bound(self, log_w, z, u, a):
    """DisARM of the bound as one function of all samples: unbiased, and noisier."""
    bound = log_w.logsumexp(1)
    return (pair_difference(z, a) * (bound[0] - bound[1])[..., None]).sum(0)


def others_crosswise(self, log_w, z, u, a):
    """The others from the other halves alone: they are samples of q too."""
    others = log_w[1].flip(0)  # K = 2: the other pair's
    gain = _log1p_exp(log_w[0] - others) - _log1p_exp(log_w[1] - others)
    return (pair_difference(z, a) * gain[..., None]).sum(0)


@dataclass(frozen=True)
class NoConstant(MuProp):
    """Without f(zbar): a constant, that costs variance alone."""

    def expansion(self, model, theta, guide, at):
        there, slope = super().expansion(model, theta, guide, at)
        return torch.zeros_like(there), slope


HARMLESS = {
    "DisARM: no indicator": with_slopes(DisARM, no_indicator),
    "local DisARM: others crosswise": with_slopes(LocalDisARM, others_crosswise),
    "local DisARM: of the whole bound": with_slopes(LocalDisARM, whole_bound),
    "MuProp: no constant": NoConstant,
    "LEG as it is": local(),
    "MuProp as it is": muprop(),
    "enumeration as it is": all_states(lambda guide, z, log_q: log_q.exp()),
}


@pytest.mark.parametrize("seed", EVERY_SEED)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_defect_is_found(name, seed):
    """Power: each bias is at least the test's effect there, so a miss has probability < 1 %."""
    kind = MUTANTS[name]
    assert_found(kind(num_samples=kind.usual_num_samples()), seed, SPECS)


@pytest.mark.parametrize("seed", EVERY_SEED)
@pytest.mark.parametrize("name", OF_ONE_HOT)
def test_a_planted_defect_is_found_with_categorical_variables(name, seed):
    """The same power."""
    assert_found(OF_ONE_HOT[name](num_samples=2), seed, ONE_HOT)


@pytest.mark.parametrize("seed", EVERY_SEED)
@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_edit_passes(name, seed):
    """False alarms: 1e-9 a check."""
    kind = HARMLESS[name]
    assert_passes(kind(num_samples=kind.usual_num_samples()), seed, SPECS)
