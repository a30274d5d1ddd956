"""Sleep-phi and its mixture: the exact target, the gradient draw by draw, and its mean over all of the model's draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import estimators
from benchmarks.problems import LinearGaussian, Rainforth
from benchmarks.references import Rainforth as Exact
from estimators import Refusal, Target
from estimators.quadrature import gauss_hermite, product

PROBLEMS = [
    Rainforth(dim=1, points=1, perturbation=0.6, seed=1),
    Rainforth(dim=1, points=1, perturbation=0.9, seed=4),
]
WIDER = Rainforth(dim=2, points=3, perturbation=0.5, seed=2)


def plain(problem, phi, theta, e, f):
    """log q(z | x) at z = theta + e, x = z + f, by torch.distributions."""
    z = theta + e
    x = z + f
    loc = x @ phi["weight"].T + phi["bias"]
    return torch.distributions.Normal(loc, math.sqrt(2 / 3)).log_prob(z).sum(-1)


@pytest.mark.parametrize(
    "problem", [*PROBLEMS, Rainforth(dim=2, points=1, perturbation=0.5, seed=2)], ids=lambda p: p.spec
)
def test_the_exact_target_against_quadrature_of_its_definition(problem):
    """E log q over the 2 dim standard normals that z and x are made of, and autograd of it; five nodes are exact."""
    phi = {name: leaf.clone().requires_grad_() for name, leaf in problem.parameters["phi"].items()}
    grid, weight = product([gauss_hermite(5)] * (2 * problem.dim))
    e, f = grid.split(problem.dim, 1)
    value = (weight * plain(problem, phi, problem.parameters["theta"]["prior_loc"], e, f)).sum()
    exact = problem.exact(Target("sleep"))
    assert exact.value == pytest.approx(value.item(), abs=1e-12)
    assert set(exact.gradient) == {"phi"}
    for ours, theirs in zip(
        exact.gradient["phi"].values(), torch.autograd.grad(value, list(phi.values())), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_the_optimum_of_the_sleep_target_is_the_posterior_mean():
    """A = I/2 and b = theta/2: there the gradient vanishes, for any data."""
    theta = np.array([0.7, -1.1])
    found = Exact(np.ones((3, 2)), theta, np.eye(2) / 2, theta / 2).gradient("sleep")
    assert np.abs(found["weight"]).max() < 1e-15 and np.abs(found["bias"]).max() < 1e-15


def noise_of(problem, K, seed=0):
    g = torch.Generator().manual_seed(seed)
    (draw,) = estimators.SleepPhi(num_samples=K).draws(problem.guide(problem.parameters["phi"]), 1, g)
    return {"wake": draw.noise["wake"][0], "sleep": tuple(leaf[0] for leaf in draw.noise["sleep"])}


def test_each_draw_against_autograd():
    """phi from the model's draws alone, theta from the guide's alone, and the mixture of both."""
    problem, K = WIDER, 4
    noise = noise_of(problem, K)
    p = problem.parameters
    phi = {name: leaf.clone().requires_grad_() for name, leaf in p["phi"].items()}
    fit = plain(problem, phi, p["theta"]["prior_loc"], *noise["sleep"])
    assert fit.shape == (K, 3)
    sleep = torch.autograd.grad(fit.mean(), list(phi.values()))
    wake = estimators.ReweightedWakeSleep(num_samples=K).gradient(problem, p, noise["wake"])
    asleep = estimators.SleepPhi(num_samples=K).gradient(problem, p, noise)
    mixed = estimators.Insomnia(num_samples=K, insomnia=0.3).gradient(problem, p, noise)
    for ours, both, one, other in zip(asleep.phi.values(), mixed.phi.values(), sleep, wake.phi.values(), strict=True):
        torch.testing.assert_close(ours, one)
        torch.testing.assert_close(both, 0.3 * other + 0.7 * one)
    for found in (asleep, mixed):
        torch.testing.assert_close(found.theta["prior_loc"], wake.theta["prior_loc"])
        torch.testing.assert_close(found.value, wake.value)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.spec)
@pytest.mark.parametrize("num_samples", [1, 2])
def test_the_mean_over_all_noise_is_the_sleep_gradient(num_samples, problem):
    """Quadrature over the model's normals: the gradient is quadratic in them, so five nodes each are exact."""
    grid, weight = product([gauss_hermite(5)] * (2 * num_samples))
    e, f = (part.reshape(-1, num_samples, 1, 1) for part in grid.split(num_samples, 1))
    wake = torch.zeros_like(e)
    for estimator in (estimators.SleepPhi(num_samples), estimators.Insomnia(num_samples, insomnia=0.0)):
        assert estimator.targets["phi"] == Target("sleep")
        rows = torch.func.vmap(
            lambda wake, e, f, estimator=estimator: estimator.gradient(
                problem, problem.parameters, {"wake": wake, "sleep": (e, f)}
            )
        )(wake, e, f)
        for name, truth in problem.exact(Target("sleep")).gradient["phi"].items():
            mean = torch.tensordot(weight, rows.phi[name], 1)
            torch.testing.assert_close(mean, truth, rtol=0, atol=1e-11)


def test_what_is_drawn_for_the_wake_and_the_sleep_is_independent():
    """Equal noise in two places would pass every test of means: no two of the three tensors share a number."""
    noise = noise_of(WIDER, 5)
    every = torch.cat([leaf.reshape(-1) for leaf in (noise["wake"], *noise["sleep"])])
    assert len(every.unique()) == len(every)


def test_the_data_drawn_are_the_models():
    """Mean and variance of z, x - z and their product over 40,000 draws, |z| < 4.5 each; false alarm below 1e-4."""
    problem = WIDER
    guide = problem.guide(problem.parameters["phi"])
    noise = guide.simulation_noise((40_000,), torch.Generator().manual_seed(1))
    z, drawn = problem.simulate(problem.parameters["theta"], noise)
    one, other = z - problem.parameters["theta"]["prior_loc"], drawn.x - z
    for sample, mean in ((one, 0.0), (other, 0.0), (one.square(), 1.0), (other.square(), 1.0), (one * other, 0.0)):
        error = (sample.mean(0) - mean) / (sample.std(0) / math.sqrt(len(sample)))
        assert float(error.abs().max()) < 4.5
    again = problem.guide(problem.parameters["phi"]).log_prob(z)
    assert not torch.allclose(again, drawn.guide(problem.parameters["phi"]).log_prob(z))  # of other data
    assert drawn.log_joint(problem.parameters["theta"], z).shape == (40_000, 3)


def test_a_model_that_draws_no_data_is_refused():
    reason = estimators.SleepPhi().refuses(LinearGaussian())
    assert reason is not None and "simulable" in reason
    with pytest.raises(Refusal, match="insomnia between"):
        estimators.Insomnia(insomnia=1.5)
