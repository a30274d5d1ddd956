"""The exact tier of the unbiasedness test: small biases that no affordable sample shows, and who is not accused."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from planting import judged, mutant, problems, scaled

import estimators
from benchmarks.check import PANEL
from benchmarks.problems import Gaussian1D
from estimators import DiagonalGaussian, Draw, Target
from estimators.quadrature import exact_expectation, gauss_legendre
from estimators.testing import check_unbiased
from estimators.testing_exact import settled_expectation

ONE = PANEL[:1]
NET, CATEGORIES = PANEL[5:6], PANEL[6:7]


@pytest.mark.parametrize(
    ("base", "panel"), [("dreg", ONE), ("vimco", ONE), ("vimco", NET), ("leave-one-out", CATEGORIES)]
)
@pytest.mark.parametrize("block", ["theta", "phi"])
def test_a_factor_of_1_001_is_found(base, panel, block):
    """A fiftieth of what the sequential test looks for."""
    code, found = judged(mutant(base, scaled(block, 1.001))(num_samples=2), 0, panel)
    assert code == 1 and "summed over all noise" in found[0].finding.reason
    assert found[0].finding.exact == pytest.approx(0.001, rel=0.2)
    code, found = judged(estimators.get(base, num_samples=2), 0, panel)
    assert code == 0 and found[0].finding.exact < 1e-4


def test_the_slope_of_an_antithetic_pair_in_its_uniform_number_is_integrated():
    class Longer(estimators.DisARM):
        def slopes(self, log_w, z, noise, logits):
            return 1.002 * super().slopes(log_w, z, noise, logits)

    assert judged(Longer(num_samples=2), 0, NET)[0] == 1


def test_noise_that_is_tied_together_is_not_summed_over():
    """The mean over two mirrored copies, as a user writes it; summed as if independent it would be another estimate."""

    class Mirrored(estimators.IWAE):
        def draws(self, guide, replicates, generator):
            noise = guide.noise((replicates, 1), generator)
            return [Draw(torch.arange(replicates), torch.cat([noise, -noise], 1))]

    problem = Gaussian1D()
    assert settled_expectation(Mirrored(num_samples=2), problem, problem.parameters) is None
    assert settled_expectation(estimators.IWAE(4), problem, problem.parameters) is None  # too much of it
    assert settled_expectation(estimators.SUMO(), problem, problem.parameters) is None


def test_a_guide_that_draws_another_law_than_it_says_does_not_accuse_its_estimator():
    """Uniform noise of variance one said to be normal: sums over a normal law are not what is drawn."""

    @dataclass(frozen=True)
    class Box(DiagonalGaussian):
        def noise(self, shape, generator):
            u = torch.rand((*shape, *self.loc.shape), generator=generator, dtype=self.loc.dtype)
            return 12**0.5 * (u - 0.5)

    class Boxed(Gaussian1D):
        def guide(self, phi):
            return Box(phi["loc"].expand_as(self.data), phi["log_scale"].expand_as(self.data))

    problem = Boxed(loc=1.5, scale=0.6, x=1.3, prior_loc=0.2)
    estimator = estimators.get("score-function")
    u, weight = gauss_legendre([], 40)
    box = (12**0.5 * (u - 0.5))[:, None, None, None]
    mean, _ = exact_expectation(estimator, problem, problem.parameters, grid=(box, weight))
    said, _ = settled_expectation(estimator, problem, problem.parameters)
    assert float((said - mean)[3].abs()) > 0.1 * float(
        mean[2:].norm()
    )  # the fourth power of the noise tells them apart
    truth = {"phi": {"loc": mean[2:3], "log_scale": mean[3:4]}}
    found = check_unbiased(estimator, problem, problem.parameters, truth)
    assert found.outcome == "PASS" and found.exact != found.exact


@pytest.mark.parametrize("at", [-0.4, 0.0, 0.1, 0.35, 0.8])
def test_a_jump_in_the_noise_is_no_bias(at):
    """The second sample is a coin whether the first one counts: unbiased, and beyond what rules for smooth functions can do."""

    class Coin(estimators.Reparameterization):
        def gradient(self, model, parameters, noise):
            found = estimators.Reparameterization(1).gradient(model, parameters, noise[:1])
            heads = (noise[1, 0, 0] > at) / torch.special.ndtr(torch.tensor(-at, dtype=torch.float64))
            value, theta, phi = found
            return type(found)(value, theta, {name: heads * leaf for name, leaf in phi.items()})

    problem = problems(ONE)[0]
    _, error = settled_expectation(Coin(num_samples=2), problem, problem.parameters)
    assert float(error[2:].max()) > 1e-3  # and so they say that they cannot
    code, found = judged(Coin(num_samples=2), 0, ONE)
    assert code == 0, [str(each.finding) for each in found]


def test_a_truth_from_a_long_run_may_be_off_by_the_tolerance():
    problem = problems(ONE)[0]
    exact = problem.exact(Target("elbo"))

    def outcome(factor):
        truth = {"phi": {name: factor * leaf for name, leaf in exact.gradient["phi"].items()}}
        return check_unbiased(estimators.get("reparameterization"), problem, problem.parameters, truth).outcome

    assert outcome(1.004) == "PASS" and outcome(1.01) == "BIASED"
