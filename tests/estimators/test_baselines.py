"""Baselines of the score function: draw by draw from their formulas, what they learn, and what it buys."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from one_sample import (
    BENT,
    EXP,
    GAUSSIAN,
    LINEAR,
    SHARED,
    close,
    learnt,
    noise_for,
    phi_variance,
    same,
)

import estimators
from benchmarks.problems import Gaussian1D, Rainforth, SigmoidBeliefNet
from benchmarks.references.summation import enumerated
from estimators import Target
from estimators.quadrature import exact_expectation, gauss_hermite, product
from estimators.replicates import stacked


@pytest.mark.parametrize("problem", [LINEAR, SHARED, BENT], ids=lambda p: p.name)
@pytest.mark.parametrize("name", ["moving-average-baseline", "network-baseline", "lax"])
def test_before_anything_is_learnt_it_is_the_score_function(name, problem):
    estimator = estimators.get(name, num_samples=4)
    if estimator.refuses(problem):
        assert name == "network-baseline" and "data" not in problem.offers
        return
    noise = noise_for(problem)
    same(estimator.gradient(problem, problem.parameters, noise),
         estimators.ScoreFunction(4).gradient(problem, problem.parameters, noise))  # fmt: skip


@pytest.mark.parametrize("problem", [GAUSSIAN, LINEAR, SHARED], ids=lambda p: p.name)
def test_the_optimal_control_variate_written_out(problem):
    """Each sample's factor by a loop over the others, from scores by autograd."""
    K, noise, phi = 5, noise_for(problem, 5), problem.parameters["phi"]
    z = problem.guide(phi).transform(noise)
    log_w = (problem.log_joint(problem.parameters["theta"], z) - problem.guide(phi).log_prob(z)).detach()
    got = estimators.get("optimal-control-variate", num_samples=K).gradient(problem, problem.parameters, noise)
    for name in phi:
        live = {n: leaf.clone().requires_grad_() for n, leaf in phi.items()}
        log_q = problem.guide(live).log_prob(z)
        f, h = (
            torch.stack(
                [torch.autograd.grad((c[k] * log_q[k]).mean(), live[name], retain_graph=True)[0] for k in range(K)]
            )
            for c in (log_w, torch.ones_like(log_w))
        )
        total = torch.zeros_like(phi[name])
        for k in range(K):
            others = [j for j in range(K) if j != k]
            a = sum(f[j] * h[j] for j in others) / sum(h[j] ** 2 for j in others)
            total = total + (f[k] - a * h[k]) / K
        torch.testing.assert_close(got.phi[name], total, rtol=1e-9, atol=1e-11)
    usual = estimators.ScoreFunction(K).gradient(problem, problem.parameters, noise)
    same(got, usual._replace(phi=got.phi))


def test_the_moving_average_is_of_what_came_before():
    problem, decay = SHARED, 0.7
    estimator, scalar = (estimators.MovingAverageBaseline(3, decay=decay, per_point=each) for each in (True, False))
    q, b, c = problem.guide(problem.parameters["phi"]), None, None
    for seed in range(4):
        noise = noise_for(problem, 3, seed)
        z = q.transform(noise)
        log_w = problem.log_joint(problem.parameters["theta"], z) - q.log_prob(z)
        if b is not None:
            got = estimator.gradient(problem, problem.parameters, noise)
            same(got, replace(estimators.ScoreFunction(3)).gradient(_shifted(problem, b), problem.parameters, noise)
                 ._replace(value=got.value))  # fmt: skip
            torch.testing.assert_close(scalar.weights(log_w).score, (log_w - c) / 3)
        estimator, scalar = (each.adapted(problem, problem.parameters, noise) for each in (estimator, scalar))
        seen = log_w.mean(0)
        b = seen if b is None else decay * b + (1 - decay) * seen
        c = seen.mean() if c is None else decay * c + (1 - decay) * seen.mean()
        torch.testing.assert_close(estimator.state["mean"], b)
    assert b.shape == (3,)


class _shifted(estimators.LatentModel):
    """A model whose log p(x, z) is lowered by a constant for each point: its score function has that for a baseline."""

    def __init__(self, model, by):
        self.model, self.by, self.offers = model, by, model.offers

    def log_joint(self, theta, z):
        return self.model.log_joint(theta, z) - self.by

    def guide(self, phi):
        return self.model.guide(phi)


def test_the_network_learns_how_log_w_depends_on_the_data():
    """Its baseline of each point, against that point's ELBO: nine tenths of the spread between the points are explained."""
    problem = Rainforth(dim=4, points=12, perturbation=0.5, seed=1)
    estimator = learnt("network-baseline", problem, num_samples=8)
    q = problem.guide(problem.parameters["phi"])
    z = q.transform(noise_for(problem, 20_000))
    elbo = (problem.log_joint(problem.parameters["theta"], z) - q.log_prob(z)).mean(0)
    score = []

    class Spy(estimators.NetworkBaseline):
        def weights(self, log_w):
            score.append(self.state["baseline"])
            return super().weights(log_w)

    Spy(8, state=estimator.state).gradient(problem, problem.parameters, noise_for(problem, 8))
    left = (score[0] - elbo).square().mean()
    assert float(left / (elbo - elbo.mean()).square().mean()) < 0.1


def test_the_moving_average_takes_most_of_what_a_baseline_can():
    """Exact variances at the learnt state: with the exact mean for a baseline, without one, and in between."""
    score = phi_variance(estimators.ScoreFunction(1), GAUSSIAN)
    elbo = GAUSSIAN.exact(Target("elbo")).value
    state = {"mean": torch.tensor([elbo], dtype=torch.float64)}
    constant = phi_variance(estimators.MovingAverageBaseline(1, state=state), GAUSSIAN)
    for seed in range(3):
        assert phi_variance(learnt("moving-average-baseline", GAUSSIAN, seed), GAUSSIAN) < constant + 0.3 * (
            score - constant
        )


@pytest.mark.parametrize(
    "problem", [Gaussian1D(-1.4, 1.1, -1.3, -0.3), SigmoidBeliefNet(2, 3, seed=4)], ids=lambda p: p.name
)
@pytest.mark.parametrize("num_samples", [1, 2])
def test_network_baseline(problem, num_samples):
    for seed in (0, 1):
        estimator = learnt("network-baseline", problem, seed, num_samples=num_samples)
        mean, _ = exact_expectation(estimator, problem, problem.parameters, nodes=60 if problem.name[0] == "g" else 1)
        close(mean, problem)


@pytest.mark.parametrize("problem", [EXP, GAUSSIAN], ids=lambda p: p.name)
def test_optimal_control_variate(problem):
    """Four samples of one latent: a rule of 24 nodes each, exact for log w times a score."""
    estimator = estimators.get("optimal-control-variate")
    grid, weight = product([gauss_hermite(24)] * 4)
    mean, _ = exact_expectation(estimator, problem, problem.parameters, grid=(grid.reshape(-1, 4, 1, 1), weight))
    x, w = gauss_hermite(24)
    single, _ = exact_expectation(
        estimators.ScoreFunction(1), problem, problem.parameters, grid=(x.reshape(-1, 1, 1, 1), w)
    )
    torch.testing.assert_close(mean, single, rtol=1e-9, atol=1e-10)  # the same rule's error in both
    close(mean, problem, 1e-8 if problem is GAUSSIAN else 1e-4)


def test_optimal_control_variate_of_discrete_latents():
    problem = SigmoidBeliefNet(dim=1, data_dim=3, seed=4)
    estimator = estimators.get("optimal-control-variate")
    mean, _ = exact_expectation(estimator, problem, problem.parameters, nodes=1)
    value, gradient = enumerated(problem, problem.parameters, Target("elbo"))
    rows = [
        torch.tensor([value], dtype=torch.float64),
        *(leaf.reshape(-1) for b in ("theta", "phi") for leaf in gradient[b].values()),
    ]
    torch.testing.assert_close(mean, torch.cat(rows), rtol=1e-9, atol=1e-9)


def test_the_optimal_control_variate_approaches_the_best_constants():
    """Constants C0 + 3 C2 and C0 + 5 C2 leave (2 C1^2 + 6 C2^2) / sigma^2 for mu and 10 C1^2 + 24 C2^2 for the log scale, each
    over K. At K = 256 the exact variance is that to O(1 / K), some 5 %; 6000 draws know it to 4.5 sqrt(2 / R) = 8 %. Twice
    the best constant would add all that the baseline removes, a multiple of it."""
    problem, K = GAUSSIAN, 256
    m, s2 = (problem.prior_loc + problem.x) / 2, 0.5
    delta, sigma = problem.loc - m, problem.scale
    C1, C2 = -sigma * delta / s2, (1 - sigma**2 / s2) / 2
    best = np.array([(2 * C1**2 + 6 * C2**2) / sigma**2, 10 * C1**2 + 24 * C2**2])
    estimator = estimators.get("optimal-control-variate", num_samples=K)
    rows = stacked(estimator, problem, problem.parameters, 6000, torch.Generator().manual_seed(2))
    np.testing.assert_allclose(K * rows[:, 2:].var(0).numpy(), best, rtol=0.15)
