"""sigmoid-belief-net: every target by its definition in numpy, state by state, and differences of that."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from benchmarks.problems import SigmoidBeliefNet
from benchmarks.specs import SpecError
from estimators import Target

PROBLEMS = [
    SigmoidBeliefNet(dim=2, data_dim=3, points=2, seed=4),
    SigmoidBeliefNet(dim=3, data_dim=2, seed=1, coupling=2.5, perturbation=1.5),
]
TARGETS = [Target("elbo"), Target("iwae", 2), Target("log_marginal"), Target("forward_kl")]


def numbers(problem):
    return {name: leaf.numpy().copy() for leaves in problem.parameters.values() for name, leaf in leaves.items()}


def bernoulli(bit, logit):
    """log P(bit), from the probability itself."""
    p = 1 / (1 + math.exp(-logit))
    return math.log(p if bit else 1 - p)


def log_densities(problem, at):
    """log p(x, z) and log q(z | x), ``(states, points)``, one number at a time."""
    log_p, log_q = [], []
    for z in itertools.product((0, 1), repeat=problem.dim):
        prior = sum(bernoulli(bit, logit) for bit, logit in zip(z, at["prior_logits"], strict=True))
        row_p, row_q = [], []
        for x, logits in zip(problem.data.numpy(), at["logits"], strict=True):
            likelihood = 0.0
            for i, bit in enumerate(x):
                likelihood += bernoulli(bit, at["bias"][i] + sum(at["weight"][i, d] for d, on in enumerate(z) if on))
            row_p.append(prior + likelihood)
            row_q.append(sum(bernoulli(bit, logit) for bit, logit in zip(z, logits, strict=True)))
        log_p.append(row_p)
        log_q.append(row_q)
    return np.array(log_p), np.array(log_q)


def value(problem, target, at):
    log_p, log_q = log_densities(problem, at)
    p, q = np.exp(log_p), np.exp(log_q)
    if target.name == "elbo":
        return (q * (log_p - log_q)).sum(0).mean()
    if target.name == "log_marginal":
        return np.log(p.sum(0)).mean()
    if target.name == "forward_kl":
        posterior = p / p.sum(0)
        return -(posterior * np.log(posterior / q)).sum(0).mean()
    total = np.zeros(problem.points)
    for one, other in itertools.product(range(len(p)), repeat=2):
        total += q[one] * q[other] * np.log((p[one] / q[one] + p[other] / q[other]) / 2)
    return total.mean()


def slope(problem, target, at, name, place, step=1e-3):
    """A central difference of fourth order: its error is about 1e-12 here."""
    total = 0.0
    for times, weight in ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12)):
        moved = {key: array.copy() for key, array in at.items()}
        moved[name].reshape(-1)[place] += times * step
        total += weight * value(problem, target, moved) / step
    return total


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.spec)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_exact_values_and_gradients(target, problem):
    found, at = problem.exact(target), numbers(problem)
    assert found.value == pytest.approx(value(problem, target, at), rel=1e-12)
    assert set(found.gradient) == ({"phi"} if target.name == "forward_kl" else {"theta", "phi"})
    assert str(2**problem.dim) in found.method
    for leaves in found.gradient.values():
        for name, leaf in leaves.items():
            expected = [slope(problem, target, at, name, place) for place in range(leaf.numel())]
            np.testing.assert_allclose(leaf.numpy().reshape(-1), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.spec)
def test_bounds_are_ordered_and_the_gap_is_a_divergence(problem):
    values = [problem.exact(target).value for target in (Target("elbo"), Target("iwae", 2), Target("log_marginal"))]
    assert values[0] < values[1] - 1e-3 < values[2] - 2e-3
    log_p, log_q = log_densities(problem, numbers(problem))
    divergence = (np.exp(log_q) * (log_q - log_p + np.log(np.exp(log_p).sum(0)))).sum(0).mean()
    assert values[2] - values[0] == pytest.approx(divergence, rel=1e-10)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.spec)
def test_densities_with_leading_dimensions(problem):
    guide = problem.guide(problem.parameters["phi"])
    log_p, log_q = log_densities(problem, numbers(problem))
    z = guide.states()[:, None].expand(-1, problem.points, -1)
    # itertools counts the last variable fastest, and so do the guide's states
    for lead in ((), (1,), (2, 3)):
        many = z.expand(*lead, *z.shape)
        got = problem.log_joint(problem.parameters["theta"], many)
        np.testing.assert_allclose(got.numpy(), np.broadcast_to(log_p, got.shape), rtol=1e-12)
        np.testing.assert_allclose(guide.log_prob(many).numpy(), np.broadcast_to(log_q, got.shape), rtol=1e-12)


def test_between_the_corners_it_is_smooth():
    """Relaxations and Taylor expansions need it: the slope by z is that of its own differences."""
    problem = PROBLEMS[0]
    theta = problem.parameters["theta"]
    z = torch.tensor([[[0.3, 0.9], [0.5, 0.1]]], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(problem.log_joint(theta, z).sum(), z)
    for place in range(z.numel()):
        step = torch.zeros_like(z).reshape(-1).index_fill(0, torch.tensor([place]), 1e-5).reshape(z.shape)
        ends = (problem.log_joint(theta, z.detach() + sign * step).sum() for sign in (1, -1))
        difference = float(next(ends) - next(ends)) / 2e-5
        assert float(found.reshape(-1)[place]) == pytest.approx(difference, abs=1e-8)


def test_data_and_parameters_are_the_seeds():
    one, same, other = SigmoidBeliefNet(seed=3), SigmoidBeliefNet(seed=3), SigmoidBeliefNet(seed=4)
    assert torch.equal(one.data, same.data)
    assert set(one.data.unique().tolist()) <= {0.0, 1.0}
    for block, leaves in one.parameters.items():
        for name, leaf in leaves.items():
            assert torch.equal(leaf, same.parameters[block][name])
            assert not torch.equal(leaf, other.parameters[block][name])


def test_at_no_distance_q_has_the_posteriors_marginals():
    problem = SigmoidBeliefNet(dim=3, data_dim=3, points=4, perturbation=0.0, coupling=0.6)
    log_p, _ = log_densities(problem, numbers(problem))
    posterior = np.exp(log_p) / np.exp(log_p).sum(0)
    states = np.array(list(itertools.product((0, 1), repeat=3)))
    marginals = posterior.T @ states
    got = problem.guide(problem.parameters["phi"]).probs.numpy()
    np.testing.assert_allclose(got, marginals.clip(0.02, 0.98), rtol=1e-10)


@pytest.mark.parametrize("settings", [{"dim": 0}, {"dim": 13}, {"data_dim": 0}, {"points": 0}, {"seed": -1}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(SpecError, match=f"sigmoid-belief-net: {next(iter(settings))} must"):
        SigmoidBeliefNet(**settings)


def test_too_many_tuples_are_not_summed():
    problem = SigmoidBeliefNet(dim=8)
    assert problem.exact(Target("elbo")) is not None
    assert problem.exact(Target("iwae", 3)) is None
