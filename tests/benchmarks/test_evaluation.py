"""Evaluation of a trained model against the linear VAE, whose log p(x), gaps and posterior are closed forms."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats
from scipy import stats

from benchmarks.evaluation import (
    Annealing,
    active_units,
    annealed_importance_sampling,
    bidirectional,
    corrected_bounds,
    importance_sampling,
    variational_gaps,
)
from benchmarks.evaluation.annealing import upper_bound
from benchmarks.evaluation.local_guides import FAMILIES
from benchmarks.problems import Gaussian1D, GaussianFullRank, LinearGaussian, SigmoidBeliefNet
from benchmarks.problems.rich_guides import FlowGuide
from estimators import DiagonalGaussian, Target

PROBLEM = LinearGaussian(dim=3, data_dim=4, points=6, seed=2)


def log_marginals(weight, bias, noise_scale, x):
    """log N(x; b, A A' + s^2 I) by scipy, one number for each data point."""
    covariance = weight @ weight.T + noise_scale**2 * np.eye(len(bias))
    return torch.tensor(np.atleast_1d(stats.multivariate_normal(bias, covariance).logpdf(x)))


def truth(problem=PROBLEM):
    theta = {name: leaf.numpy() for name, leaf in problem.parameters["theta"].items()}
    return log_marginals(theta["weight"], theta["bias"], float(np.exp(theta["log_noise_scale"])), problem.data.numpy())


def test_importance_sampling_is_a_streamed_bound(monkeypatch):
    """Chunks give the bound, mean and k-hat of all samples at once."""
    found = []
    for chunk in (2**22, 2**12):
        monkeypatch.setattr("benchmarks.evaluation.likelihood.CHUNK", chunk)
        found.append(importance_sampling(PROBLEM, PROBLEM.parameters, 2000, torch.Generator().manual_seed(1)))
    assert not torch.equal(found[0].bound, found[1].bound)  # another order of draws
    assert float((found[0].bound - found[1].bound).abs().max()) < 0.5
    guide = PROBLEM.guide(PROBLEM.parameters["phi"])
    stream = torch.Generator().manual_seed(1)
    guide.noise((1,), stream)
    z = guide.transform(guide.noise((2000,), stream))
    log_w = PROBLEM.log_joint(PROBLEM.parameters["theta"], z) - guide.log_prob(z)
    torch.testing.assert_close(found[0].bound, log_w.logsumexp(0) - math.log(2000))
    torch.testing.assert_close(found[0].elbo, log_w.mean(0))
    for column, khat in zip(log_w.exp().T.numpy(), found[0].khat.tolist(), strict=True):
        assert khat == pytest.approx(float(array_stats.pareto_khat(column[None], r_eff=1.0, tail="right")), abs=0.02)


def test_importance_sampling_where_weights_are_bounded_finds_log_p():
    """rho > 1 for a wide guide: weights are bounded, and the mean weight has a standard error that can be used."""
    wide = LinearGaussian(dim=2, data_dim=3, points=4, seed=5, perturbation=0.0)
    phi = {"loc": wide.parameters["phi"]["loc"], "log_scale": wide.parameters["phi"]["log_scale"] + 0.6}
    found = importance_sampling(wide, {**wide.parameters, "phi": phi}, 20_000, torch.Generator().manual_seed(0))
    ratio = (found.bound - truth(wide)).exp()
    assert float((ratio - 1).abs().max()) < 4.5 * 1.5 / math.sqrt(
        20_000
    )  # the weights' relative deviation is below 1.5
    assert bool((found.kl > 0).all()) and bool((found.khat < 0.3).all())


def test_annealing_finds_log_p():
    """E exp(log weight) = p(x): 4.5 standard errors over 64 chains, six data points (4e-5)."""
    prior = PROBLEM.prior(PROBLEM.parameters["theta"])
    settings = Annealing(steps=150, chains=64)
    found = annealed_importance_sampling(PROBLEM, PROBLEM.parameters, prior, torch.Generator().manual_seed(0), settings)
    weights = (found.log_weights - truth()).exp()
    z = (weights.mean(0) - 1) / (weights.std(0) / math.sqrt(64))
    assert float(z.abs().max()) < 4.5, z
    assert float((found.acceptance - 0.65).abs().max()) < 0.15  # the step size starts small and has 150 moves to grow
    # and far better than the prior's samples alone, whose weights hardly overlap with the posterior
    assert float(weights.std(0).max()) < 1.5


@dataclass(frozen=True)
class Simulated(LinearGaussian):
    """The same model, with data of its own."""

    drawn: torch.Tensor | None = field(default=None, kw_only=True)

    @property
    def data(self):
        return self.drawn


def test_bidirectional_bounds_hold_the_truth_between_them():
    """Mean weights of 24 simulated data points are p(x), and 1/p(x) backwards: |t| < 4.5 with 23 degrees of freedom (2e-4).

    Chains of one data point run back from one exact sample, so data points are what is independent.
    """
    points = 24
    theta = PROBLEM.parameters["theta"]
    g = torch.Generator().manual_seed(7)
    z = torch.randn(points, 3, generator=g, dtype=torch.float64)
    x = z @ theta["weight"].T + theta["bias"]
    x = x + theta["log_noise_scale"].exp() * torch.randn(points, 4, generator=g, dtype=torch.float64)
    model = Simulated(dim=3, data_dim=4, points=points, seed=2, drawn=x)
    exact = log_marginals(theta["weight"].numpy(), theta["bias"].numpy(), 1.0, x.numpy())
    lower, reverse = bidirectional(model, PROBLEM.parameters, z, model.prior(theta), g, Annealing(steps=100, chains=16))
    upper = upper_bound(reverse)
    for ratio in ((lower.log_weights - exact).exp(), (exact - reverse.log_weights).exp()):
        means = ratio.mean(0)
        assert abs(float(means.mean() - 1)) < 4.5 * float(means.std()) / math.sqrt(points)
        assert 0.02 < float(means.std()) < 0.5  # noise that is there, and small enough to see a factor of one half
    for below, above in ((lower.log_marginal, exact), (exact, upper)):  # in expectation, so up to the standard error
        gap = above - below
        assert -4.5 * float(gap.std()) / math.sqrt(points) < float(gap.mean()) < 0.2


def closed_gaps(problem=PROBLEM):
    """(sum log P_dd - log det P) / 2, and KL(q || posterior) of each data point, written out in numpy."""
    weight = problem.parameters["theta"]["weight"].numpy()
    precision = np.eye(weight.shape[1]) + weight.T @ weight
    approximation = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    phi = problem.parameters["phi"]
    residual = (problem.data - problem.parameters["theta"]["bias"]).numpy()
    mean = np.linalg.solve(precision, weight.T @ residual.T).T
    variance = (2 * phi["log_scale"]).exp().numpy()
    shift = mean - phi["loc"].numpy()
    kl = 0.5 * (variance @ np.diag(precision) + np.einsum("nd,de,ne->n", shift, precision, shift) - len(precision)
                - np.linalg.slogdet(precision)[1] - np.log(variance).sum(1))  # fmt: skip
    return approximation, kl


def test_gaps_are_the_closed_forms():
    """Approximation gap (sum log P_dd - log det P) / 2 and nothing for a full-rank family; together they are the KL."""
    approximation, kl = closed_gaps()
    g = torch.Generator().manual_seed(3)
    diagonal = variational_gaps(PROBLEM, PROBLEM.parameters, truth(), g, max_steps=1000)
    full = variational_gaps(PROBLEM, PROBLEM.parameters, truth(), g, family="full-rank", max_steps=1000)
    assert float((diagonal.approximation - approximation).abs().max()) < 0.05
    assert float(full.approximation.abs().max()) < 1e-6  # the path derivative has no noise at the posterior
    assert float((full.bound - truth()).abs().max()) < 1e-6  # and the posterior's weights are all p(x)
    assert bool((diagonal.best < diagonal.bound).all()) and bool((diagonal.bound < truth() + 0.1).all())
    both = (diagonal.approximation + diagonal.amortisation).numpy()
    np.testing.assert_allclose(both, kl, atol=0.15)  # 5,000 samples of log w, whose deviation is below 2


@pytest.mark.skipif(importlib.util.find_spec("zuko") is None, reason="needs zuko")
def test_a_flow_of_its_own_for_each_data_point_closes_the_gap():
    """Affine couplings can shear, so a correlated Gaussian is within their reach, which no diagonal one has.

    Parameters are held against one flow at a time, by the guide that shares its layers between data points.
    """
    problem = LinearGaussian(dim=2, data_dim=3, points=3, seed=3, perturbation=0.3)
    approximation, kl = closed_gaps(problem)
    assert approximation > 0.1
    g = torch.Generator().manual_seed(0)
    found = variational_gaps(
        problem, problem.parameters, truth(problem), g, family="flow", num_samples=20, max_steps=400
    )
    assert float(found.approximation.abs().max()) < 0.1 * approximation
    np.testing.assert_allclose((found.approximation + found.amortisation).numpy(), kl, atol=0.15)
    start, build = FAMILIES["flow"]
    local = start(problem.guide(problem.parameters["phi"]), g)
    moved = {name: leaf + 0.2 * torch.randn(leaf.shape, generator=g).to(leaf) for name, leaf in local.items()}
    ours = build(moved)
    noise = ours.noise((5,), g)
    z = ours.transform(noise)
    torch.testing.assert_close(ours.inverse(z), noise)
    for point in range(3):
        flow = {name[5:]: leaf[point] for name, leaf in moved.items() if name.startswith("flow.")}
        base = DiagonalGaussian(moved["loc"][point], moved["log_scale"][point])
        alone = FlowGuide(base, base.loc.new_zeros(0), flow, ours.couplings)
        torch.testing.assert_close(z[:, point], alone.transform(noise[:, point]))
        torch.testing.assert_close(ours.log_prob(z)[:, point], alone.log_prob(z[:, point]))


def test_gaps_of_a_full_rank_guide_start_from_where_it_stands():
    """Its own family holds the posterior, so all that it loses is amortised; a diagonal one loses the closed form as well."""
    problem = GaussianFullRank(dim=3, seed=1)
    exact = torch.tensor([problem.exact(Target("log_marginal")).value])
    lost = float(exact) - problem.exact(Target("elbo")).value
    weight = problem.parameters["theta"]["weight"].numpy()
    precision = np.eye(3) + weight.T @ weight
    approximation = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    assert approximation > 0.05 and lost > 0.1
    g = torch.Generator().manual_seed(0)
    own, narrower = (
        variational_gaps(problem, problem.parameters, exact, g, family=name, max_steps=1000)
        for name in ("full-rank", "diagonal")
    )
    assert abs(float(own.approximation)) < 1e-6
    assert float(own.amortisation) == pytest.approx(lost, abs=0.1)
    assert float(narrower.approximation) == pytest.approx(approximation, abs=0.02)
    belief = SigmoidBeliefNet()
    with pytest.raises(TypeError, match="a gradient goes through"):
        variational_gaps(belief, belief.parameters, torch.zeros(1), g)


def corrected_elbo(problem):
    """E log p(x, z) / q_IW(z) under q_IW of two samples, by sums over a grid of both."""
    axis = np.linspace(-9, 9, 1201)
    z = problem.loc + problem.scale * axis
    log_q = stats.norm(problem.loc, problem.scale).logpdf(z)
    log_joint = stats.norm(problem.prior_loc, 1).logpdf(z) + stats.norm(z, 1).logpdf(problem.x)
    w = np.exp(log_joint - log_q)
    step = z[1] - z[0]
    inverse = (np.exp(log_q) / ((w[:, None] + w[None]) / 2)).sum(1) * step  # E of 1 / W given z
    density = np.exp(log_joint) * inverse
    assert density.sum() * step == pytest.approx(1, abs=1e-9)
    return float(-(density * np.log(inverse)).sum() * step)


def test_the_corrected_density_stands_where_its_sum_over_a_grid_is():
    """Bounds of 40,000 draws and 400 companions enclose it, up to 4.5 standard errors and a hundredth of a nat."""
    problem = Gaussian1D(loc=2.0, scale=0.9, x=0.5)
    parameters = problem.parameters
    exact = corrected_elbo(problem)
    g = torch.Generator().manual_seed(1)
    found = corrected_bounds(problem, parameters, 2, g, draws=40_000, companions=400)
    bound, lower, upper = (float(each) for each in found)
    assert bound < lower < upper < lower + 0.02
    assert abs(lower - exact) < 0.03 and abs(upper - exact) < 0.03 < exact - bound
    elbo = corrected_bounds(problem, parameters, 1, g, draws=20_000, companions=2)  # one sample: the guide itself
    assert float(elbo.lower) == pytest.approx(float(elbo.upper)) == pytest.approx(float(elbo.bound))
    assert float(elbo.bound) < bound - 0.1


def test_the_corrected_density_lies_between_the_bound_and_the_truth():
    """L_5 <= ELBO of q_IW <= log p(x) on the linear VAE, and nearer to it than the guide's own ELBO."""
    found = corrected_bounds(
        PROBLEM, PROBLEM.parameters, 5, torch.Generator().manual_seed(2), draws=2000, companions=500
    )
    exact, (_, kl) = truth(), closed_gaps()
    assert bool((found.bound < found.lower).all()) and bool((found.lower < found.upper).all())
    assert bool((found.upper < exact + 0.05).all())
    assert bool((exact - found.lower < torch.tensor(kl)).all())


def test_active_units_are_those_that_vary():
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.05, 0.5])
    assert active_units(x).tolist() == [True, False, True]
