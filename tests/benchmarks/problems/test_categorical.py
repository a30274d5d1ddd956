"""The categorical problem against plain loops in numpy, and what is measured on it against its sums."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import estimators
from benchmarks.problems import CategoricalMixture, SigmoidBeliefNet
from benchmarks.references.bounds import DIVERGENCES
from benchmarks.registry import Registry
from benchmarks.specs import SpecError
from estimators import Categorical, Target
from estimators.testing import exact_expectation

PROBLEMS = [
    CategoricalMixture(dim=2, values=3, data_dim=2, seed=2, points=2),
    CategoricalMixture(dim=1, values=4, seed=1),
]


def numbers(problem):
    p = problem.parameters
    return {name: leaf.numpy().copy() for block in p for name, leaf in p[block].items()}


def log_weights(problem, at):
    """log p(x, z) and log q(z | x) of every state and data point, from the definitions, one number at a time."""
    x = problem.data.numpy()
    log_p, log_q = [], []
    for values in itertools.product(range(problem.values), repeat=problem.dim):
        row_p, row_q = [], []
        for point in range(problem.points):
            p = q = 0.0
            for d, c in enumerate(values):
                prior, logits = at["prior_logits"][d], at["logits"][point, d]
                p += math.log(math.exp(prior[c]) / sum(math.exp(y) for y in prior))
                q += math.log(math.exp(logits[c]) / sum(math.exp(y) for y in logits))
            for i in range(problem.data_dim):
                mean = sum(at["weight"][i, d, c] for d, c in enumerate(values))
                scale = math.exp(at["log_noise_scale"][i])
                p += -0.5 * ((x[point, i] - mean) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)
            row_p.append(p)
            row_q.append(q)
        log_p.append(row_p)
        log_q.append(row_q)
    return np.array(log_p), np.array(log_q)


def value(problem, target, at):
    """The target by its definition, as a loop over states or tuples of them."""
    log_p, log_q = log_weights(problem, at)
    log_w, q = log_p - log_q, np.exp(log_q)
    evidence = np.log(np.exp(log_p).sum(0))
    if target.name == "elbo":
        return (q * log_w).sum(0).mean()
    if target.name == "log_marginal":
        return evidence.mean()
    if target.name == "forward_kl":
        posterior = np.exp(log_p - evidence)
        return (posterior * (log_q - np.log(posterior))).sum(0).mean()
    total = np.zeros(problem.points)
    for states in itertools.product(range(len(log_w)), repeat=target.num_samples):
        mean = np.mean([np.exp(log_w[s]) for s in states], axis=0)
        total += np.prod([q[s] for s in states], axis=0) * np.log(mean)
    return total.mean()


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.spec)
@pytest.mark.parametrize(
    "target", [Target("elbo"), Target("iwae", 2), Target("log_marginal"), Target("forward_kl")], ids=str
)
def test_exact_values_and_gradients(target, problem):
    """Values to rounding, gradients against central differences of the loop (error of order 1e-9)."""
    found = problem.exact(target)
    at = numbers(problem)
    assert found.value == pytest.approx(value(problem, target, at), rel=1e-12)
    assert ("theta" in found.gradient) == (target.name != "forward_kl")
    for leaves in found.gradient.values():
        for name, leaf in leaves.items():
            slope = np.zeros(leaf.numel())
            for place in range(leaf.numel()):
                ends = []
                for step in (1e-5, -1e-5):
                    moved = {key: array.copy() for key, array in at.items()}
                    moved[name].reshape(-1)[place] += step
                    ends.append(value(problem, target, moved))
                slope[place] = (ends[0] - ends[1]) / 2e-5
            np.testing.assert_allclose(leaf.numpy().reshape(-1), slope, atol=2e-9)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.spec)
def test_bounds_are_ordered(problem):
    values = [problem.exact(target).value for target in (Target("elbo"), Target("iwae", 2), Target("log_marginal"))]
    assert values[0] < values[1] - 1e-3 < values[2] - 2e-3


def test_the_mixture_is_the_textbook_one():
    """dim=1: log p(x) of torch's own MixtureSameFamily."""
    problem = PROBLEMS[1]
    theta = problem.parameters["theta"]
    normal = torch.distributions.Normal(theta["weight"][:, 0].T, theta["log_noise_scale"].exp())
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=theta["prior_logits"][0]), torch.distributions.Independent(normal, 1)
    )
    assert problem.exact(Target("log_marginal")).value == pytest.approx(float(mixture.log_prob(problem.data).mean()))


def test_the_guide_against_torch_distributions():
    problem = PROBLEMS[0]
    guide = problem.guide(problem.parameters["phi"])
    z = guide.transform(guide.noise((7,), torch.Generator().manual_seed(0)))
    assert z.shape == (7, 2, 2, 3)
    torch.testing.assert_close(z.sum(-1), torch.ones(7, 2, 2, dtype=torch.float64))
    expected = torch.distributions.OneHotCategorical(logits=guide.logits).log_prob(z).sum(-1)
    torch.testing.assert_close(guide.log_prob(z), expected)


def test_the_guide_draws_each_value_as_often_as_it_says():
    """Inversion, exactly: the share of a fine grid of uniform numbers that gives each value."""
    q = Categorical(torch.tensor([[0.3, -1.0, 2.0, 0.0]], dtype=torch.float64))
    u = (torch.arange(200_000, dtype=torch.float64)[:, None] + 0.5) / 200_000
    torch.testing.assert_close(q.transform(u).mean(0), q.log_probs.exp(), rtol=0, atol=1e-5)


def test_between_the_corners_it_is_smooth():
    """relaxable: finite gradients in z at a point of the simplex, equal to central differences."""
    problem = PROBLEMS[0]
    z = torch.full((1, 2, 2, 3), 1 / 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda z: problem.log_joint(problem.parameters["theta"], z), z)


@pytest.mark.parametrize("problem", [PROBLEMS[1], SigmoidBeliefNet(dim=2, data_dim=3, seed=1)], ids=lambda p: p.spec)
@pytest.mark.parametrize("K", [1, 2, 3])
@pytest.mark.parametrize(
    "name", ["score-function", "leave-one-out", "multi-sample-score", "vimco", "ovis", "reweighted-wake-sleep"]
)
def test_score_estimators_expect_the_sum(name, K, problem):
    """Tier 0 on discrete latents: over every value of the noise, against the derivative of the summed target."""
    if estimators.REGISTRY[name].min_num_samples > K:
        return
    estimator = estimators.get(name, num_samples=K)
    mean, _ = exact_expectation(estimator, problem, problem.parameters, nodes=1)
    start = 1
    for block in ("theta", "phi"):
        target = estimator.targets[block]
        truth = problem.exact(target).gradient[block]
        for leaf in truth.values():
            got = mean[start : start + leaf.numel()]
            start += leaf.numel()
            if target.unbiased:
                torch.testing.assert_close(got, leaf.reshape(-1), rtol=0, atol=1e-10)
            else:
                assert float((got - leaf.reshape(-1)).norm()) > 0.02 * float(leaf.norm())
        if block == "theta":
            assert float(mean[0]) == pytest.approx(problem.exact(target).value, abs=1e-12)


@pytest.mark.parametrize("target", [Target("tvo", setting=4), Target("renyi", 2, setting=0.5), Target("ciwae", 2, setting=0.3),
                                    *(Target("f_divergence", setting=name) for name in DIVERGENCES)], ids=str)  # fmt: skip
def test_it_gives_the_targets_that_it_says(target):
    found = PROBLEMS[1].exact(target)
    assert found is not None and math.isfinite(found.value)
    assert set(found.gradient) == {"theta", "phi"}


def test_too_many_states_are_not_summed():
    assert CategoricalMixture(dim=4, values=6).exact(Target("iwae", 3)) is None
    for settings, words in (({"dim": 7, "values": 6}, "at most 4096"), ({"values": 1}, "at least 2")):
        with pytest.raises(SpecError, match=words):
            CategoricalMixture(**settings)


def test_it_is_registered():
    assert Registry().problem("categorical[dim=1]") == CategoricalMixture(dim=1)
