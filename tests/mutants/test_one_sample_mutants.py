"""Planted defects in baselines, control variates and measure-valued derivatives, each looked for on two small problems.

Where an estimator is one formula, the mutant is a replica of it with the defect for a switch; the replica with no switch
thrown must pass, or nothing that is said of the others counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from planting import EVERY_SEED, assert_found, assert_passes, mutant

import estimators
from estimators.baselines import log_weights
from estimators.control_variates import _parabola, _times
from estimators.gaussian import chain, evaluated, expansion, one_by_one

CURVED = "gaussian-cost[cost=exp,k=0.8,loc=0.7,scale=0.9]"
PAIR = "linear-gaussian[dim=2,data_dim=3,points=2,seed=1]"
WIDE = "gaussian-1d[loc=-1.4,scale=1.1,x=-1.3,prior_loc=-0.3]"
NAMED = {}


def planted(name, specs=(CURVED,), **settings):
    """Registers a mutant, the problems it is looked for on, and its settings."""

    def register(kind):
        NAMED[name] = (kind(**settings), specs)
        return kind

    return register


# Baselines


@planted("moving average that already contains the current sample (defect 5)", (PAIR,))
@dataclass(frozen=True)
class Current(estimators.MovingAverageBaseline):
    def gradient(self, model, parameters, noise):
        return super(Current, self.adapted(model, parameters, noise)).gradient(model, parameters, noise)


NAMED["minibatch mean that contains the point's own sample: (B - 1) / B"] = (
    mutant("score-function", lambda self, log_w, w: w._replace(score=(log_w - log_w.mean()) / self.num_samples))(),
    (PAIR,),
)


@planted("signal of the baseline in theta too", (PAIR,), num_samples=2)
@dataclass(frozen=True)
class SignalInTheta(estimators.MovingAverageBaseline):
    def weights(self, log_w):
        weights = super().weights(log_w)
        return weights._replace(model=weights.score)


@planted("network baseline that has learnt from the sample it meets", (PAIR,), decay=0.8)
@dataclass(frozen=True)
class CurrentNetwork(estimators.NetworkBaseline):
    def gradient(self, model, parameters, noise):
        return super(CurrentNetwork, self.adapted(model, parameters, noise)).gradient(model, parameters, noise)


@planted("signal divided by its running standard deviation, as in NVIL, and called unbiased", (WIDE,), num_samples=2)
@dataclass(frozen=True)
class Normalised(estimators.NetworkBaseline):
    def gradient(self, model, parameters, noise):
        found = super().gradient(model, parameters, noise)
        factor = 1.0 if self.state is None else 1 / self.state["deviation"].clamp_min(1.0)
        return found._replace(phi={name: factor * leaf for name, leaf in found.phi.items()})


@planted("network baseline that sees the latents in place of the data", (PAIR,), num_samples=2)
@dataclass(frozen=True)
class SeesLatents(estimators.NetworkBaseline):
    def gradient(self, model, parameters, noise):
        seen = 0.5 * log_weights(model, parameters, noise)  # what a regression on z can know of log w
        known = replace(self, state={"baseline": seen})
        return estimators.Estimator.gradient(known, model, parameters, noise)


@dataclass(frozen=True)
class Factor(estimators.OptimalControlVariate):
    """The replica; ``defect`` says what is wrong with it."""

    defect: str = ""

    def gradient(self, model, parameters, noise):
        found = super().gradient(model, parameters, noise)
        phi, K = parameters["phi"], self.num_samples
        guide = model.guide(phi)
        z = guide.transform(noise)
        log_w = log_weights(model, parameters, noise)

        def of_one(z, log_w):
            def score(weight):
                return torch.func.grad(lambda phi: (weight * model.guide(phi).log_prob(z)).mean())(phi)

            return score(log_w), score(torch.ones_like(log_w))

        f, h = torch.func.vmap(of_one)(z, log_w)
        out = {}
        for name in phi:
            product, square = f[name] * h[name], h[name].square()
            a = (product.sum(0) - product) / (square.sum(0) - square)
            if self.defect == "same samples":
                a = product.sum(0) / square.sum(0)
            if self.defect == "sign":
                a = -a
            total = (f[name] - a * h[name]).sum(0)
            out[name] = total / (K - 1 if self.defect == "degrees of freedom" else K)
        return found._replace(phi=out)


planted("optimal factor from the same samples, as printed", num_samples=4, defect="same samples")(Factor)
planted("optimal factor, summed over K - 1", (PAIR,), num_samples=4, defect="degrees of freedom")(Factor)


# Control variates of second order


@dataclass(frozen=True)
class Taylor(estimators.DeltaMethod):
    """The replica; ``defect`` says what is wrong with it."""

    defect: str = ""

    def gradient(self, model, parameters, noise):
        at = evaluated(model, parameters, noise)
        centre = at.z.mean(0) if self.defect == "about the samples' mean" else at.loc
        there, slope, matrix = expansion(model, parameters["theta"], centre)
        moved = at.z - centre
        half = 1.0 if self.defect == "no half" else 0.5
        taylor = there + (moved * slope).sum(-1) + half * (moved * _times(matrix, moved)).sum(-1)
        log_q = model.guide(parameters["phi"]).log_prob(at.z)
        signal = (at.log_w - (taylor - log_q))[..., None]
        back = 0.5 if self.defect == "half put back" else 1.0
        diagonal = 0.0 if self.defect == "no curvature put back" else matrix.diagonal(dim1=-2, dim2=-1)
        of_loc = (signal * noise / at.scale).mean(0) + back * slope
        of_scale = (signal * (noise.square() - 1) / at.scale).mean(0) + back * (diagonal * at.scale + 1 / at.scale)
        return estimators.Gradient(at.log_w.mean(), at.theta, chain(model, parameters["phi"], of_loc, of_scale))


for defect in ("about the samples' mean", "no half", "half put back", "no curvature put back"):
    planted(f"delta method: {defect}", num_samples=2, defect=defect)(Taylor)


@dataclass(frozen=True)
class Linearised(estimators.HessianControlVariate):
    """The replica; ``defect`` says what is wrong with it."""

    defect: str = ""

    def gradient(self, model, parameters, noise):
        at = evaluated(model, parameters, noise)
        centre = at.z if self.defect == "about the sample" else at.loc
        _, slope, matrix = expansion(model, parameters["theta"], centre)
        moved = at.scale * noise
        along = _times(matrix, moved)
        diagonal = matrix.diagonal(dim1=-2, dim2=-1)
        across = along
        if self.defect == "diagonal from all samples":
            diagonal = (noise * along).mean(0) / at.scale
            across = diagonal * moved
        back = 0.0 if self.defect == "nothing put back" else diagonal * at.scale
        linear = noise * at.slope - noise * (slope + across)
        if self.defect == "slope's share left in":
            linear = noise * (at.slope - across) - slope
        of_scale = (linear + back).mean(0) + 1 / at.scale
        return estimators.Gradient(
            at.log_w.mean(), at.theta, chain(model, parameters["phi"], (at.slope - along).mean(0), of_scale)
        )


for defect in ("about the sample", "diagonal from all samples", "nothing put back", "slope's share left in"):
    planted(f"linearised slope: {defect}", num_samples=2, defect=defect)(Linearised)


# Learnt mixtures


@planted("coefficient of the score from the same draw")
@dataclass(frozen=True)
class SameDraw(estimators.ScoreCoefficient):
    warm_up = 0

    def gradient(self, model, parameters, noise):
        own = replace(self, state=None).adapted(model, parameters, noise)
        return estimators.Estimator.gradient(own, model, parameters, noise)


NAMED["coefficient taken off the path as well"] = (
    mutant("score-coefficient", lambda self, log_w, w: w._replace(path=w.path + w.score))(num_samples=2),
    (PAIR,),
)


@dataclass(frozen=True)
class Surrogate(estimators.LAX):
    """``back`` times the surrogate's total derivative is put back, in place of once."""

    back: float = 1.0
    warm_up = 50

    def gradient(self, model, parameters, noise):
        found, log_w = super().gradient(model, parameters, noise), log_weights(model, parameters, noise)

        def put_back(phi):
            return _parabola(self.state, model.guide(phi).transform(noise), log_w).mean()

        along = torch.func.grad(put_back)(parameters["phi"])
        return found._replace(phi={n: leaf + (self.back - 1) * along[n] for n, leaf in found.phi.items()})


planted("surrogate that is never put back", (PAIR,), num_samples=2, back=0.0)(Surrogate)
planted("surrogate put back with the other sign", (PAIR,), num_samples=2, back=-1.0)(Surrogate)


@planted("surrogate that has learnt from the sample it meets", (PAIR,), rate=0.5)
@dataclass(frozen=True)
class CurrentSurrogate(estimators.LAX):
    warm_up = 50

    def gradient(self, model, parameters, noise):
        return super(CurrentSurrogate, self.adapted(model, parameters, noise)).gradient(model, parameters, noise)


# First order, and no order at all


@dataclass(frozen=True)
class Stein(estimators.PriceFirstOrder):
    """The replica; ``defect`` says what is wrong with it."""

    defect: str = ""

    def gradient(self, model, parameters, noise):
        at = evaluated(model, parameters, noise)
        of_covariance = 0.5 * (at.z - at.loc) / at.scale.square() * at.slope
        jacobian = at.scale if self.defect == "d Sigma = sigma d sigma" else 2 * at.scale
        entropy = 0.0 if self.defect == "no entropy" else 1 / at.scale
        if self.defect == "entropy of log sigma":
            entropy = torch.ones_like(at.scale)
        of_scale = (jacobian * of_covariance).mean(0) + entropy
        return estimators.Gradient(
            at.log_w.mean(), at.theta, chain(model, parameters["phi"], at.slope.mean(0), of_scale)
        )


for defect in ("d Sigma = sigma d sigma", "no entropy", "entropy of log sigma"):
    planted(f"Stein's form: {defect}", (PAIR,), num_samples=2, defect=defect)(Stein)


@dataclass(frozen=True)
class Measured(estimators.MeasureValued):
    """The replica; ``defect`` says what is wrong with it."""

    defect: str = ""

    def gradient(self, model, parameters, noise):
        held = model.guide(parameters["phi"]).detach()
        normal, a, b, c, d = noise.unbind(1)
        weibull, length = torch.hypot(c, d), (normal**2 + a**2 + b**2).sqrt()
        start, constant = normal, math.sqrt(2 * math.pi)
        if self.defect == "Weibull of scale one":
            weibull = weibull / math.sqrt(2)
        if self.defect == "Maxwell in two dimensions":
            length = torch.hypot(normal, a)
        maxwell = length if self.defect == "Maxwell of one side" else normal.sign() * length
        if self.defect == "two pi without its root":
            constant = 2 * math.pi
        if self.defect == "uncoupled":
            maxwell = a.sign() * (a**2 + b**2 + (0.6 * c + 0.8 * d) ** 2).sqrt()
        moves = [one_by_one(normal, to) for to in (weibull, -weibull, maxwell)]
        if self.defect == "all coordinates at once":
            moves = [to.expand_as(move) for to, move in zip((weibull, -weibull, maxwell), moves, strict=True)]

        def f(noise):
            z = held.transform(noise)
            return model.log_joint(parameters["theta"], z) - held.log_prob(z)

        up, down, wide = f(torch.stack(moves)).movedim(1, -1)
        of_loc, of_scale = (up - down) / (held.scale * constant), (wide - f(start)[..., None]) / held.scale
        found = super().gradient(model, parameters, noise)
        return found._replace(phi=chain(model, parameters["phi"], of_loc.mean(0), of_scale.mean(0)))


for defect in ("Weibull of scale one", "Maxwell in two dimensions", "Maxwell of one side", "two pi without its root"):
    planted(f"measure-valued: {defect}", defect=defect)(Measured)
planted("measure-valued: all coordinates at once", (PAIR,), defect="all coordinates at once")(Measured)

HARMLESS = {
    "replica of the optimal factor": Factor(4),
    "optimal factor with the other sign: any that is independent will do": Factor(4, defect="sign"),
    "replica of the delta method": Taylor(2),
    "replica of the linearised slope": Linearised(2),
    "replica of Stein's form": Stein(2),
    "replica of measure-valued derivatives": Measured(2),
    "M and N drawn apart: noisier, no more": Measured(2, defect="uncoupled"),
    "delta method with half of its expansion": estimators.DeltaMethod(2, coefficient=0.5),
    "moving average of the last draw alone": estimators.MovingAverageBaseline(2, decay=0.0),
    "mixture far from the best": estimators.ScoreCoefficient(2, coefficient=3.0, learnt=False),
    "replica of the surrogate, hardly learnt": Surrogate(2),
}


@pytest.mark.parametrize("seed", EVERY_SEED)
@pytest.mark.parametrize("name", NAMED)
def test_a_planted_defect_is_found(name, seed):
    """Power: each bias is at least the test's effect, so a miss has probability < 1 %."""
    estimator, specs = NAMED[name]
    assert_found(estimator, seed, specs)


@pytest.mark.parametrize("seed", EVERY_SEED)
@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_edit_passes(name, seed):
    """False alarms: 1e-9 a check."""
    assert_passes(HARMLESS[name], seed, (CURVED, PAIR) if seed else (CURVED,))
