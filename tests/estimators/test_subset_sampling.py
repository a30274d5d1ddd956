"""Sums over chosen states: each draw against the formula written out, and exact expectations over all that can be drawn.

What is exact here. ``unordered-set`` depends on its noise through the order of the states alone: its expectation is a finite
sum over ordered samples with their Plackett-Luce probabilities. ``rao-blackwellised`` is constant in its uniform number
between edges: a finite sum. ``without-replacement`` depends on the set and on the threshold kappa; given both, the rest of
the noise does not matter, and kappa is integrated over by a double-exponential rule on its known law, to 1e-11. That the
Gumbel sampler draws from the Plackett-Luce law at all is tested by frequencies.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats

import estimators
from benchmarks.problems import CategoricalMixture, SigmoidBeliefNet
from estimators import Target
from estimators.replicates import stacked
from estimators.subset_sampling import log_orders
from estimators.testing import exact_expectation

POINTS = [
    CategoricalMixture(dim=1, values=5, data_dim=2, seed=3),
    CategoricalMixture(dim=1, values=5, data_dim=2, seed=4, perturbation=1.5),
    SigmoidBeliefNet(dim=3, data_dim=4, seed=2),
]
NAMES = ["without-replacement", "unordered-set", "rao-blackwellised"]


def table(problem):
    """q of every state, as numbers, and log w of every state: through the model, one state after the other."""
    guide = problem.guide(problem.parameters["phi"])
    states = guide.states()
    log_q = torch.stack([guide.log_prob(z[None])[0] for z in states])
    log_p = torch.stack([problem.log_joint(problem.parameters["theta"], z[None])[0] for z in states])
    return log_q.exp().tolist(), (log_p - log_q).tolist()


def truth_of(problem):
    found = problem.exact(Target("elbo"))
    leaves = [
        found.gradient[block][name].reshape(-1) for block in ("theta", "phi") for name in problem.parameters[block]
    ]
    return np.concatenate([[found.value], *(leaf.numpy() for leaf in leaves)])


def row(gradient, problem):
    leaves = [
        getattr(gradient, block)[name].reshape(-1) for block in ("theta", "phi") for name in problem.parameters[block]
    ]
    return torch.cat([gradient.value[None], *leaves])


def linear(problem, model_weights, score_weights):
    """sum_z model_weight grad_theta log p(x, z) and sum_z score_weight grad_phi log q(z), by autograd of plain sums."""
    p = {b: {n: t.clone().requires_grad_() for n, t in leaves.items()} for b, leaves in problem.parameters.items()}
    guide = problem.guide(p["phi"])
    states = guide.states()
    theta = sum(w * problem.log_joint(p["theta"], states[s][None])[0] for s, w in model_weights.items())
    phi = sum(w * guide.log_prob(states[s][None])[0] for s, w in score_weights.items())
    parts = [*torch.autograd.grad(theta, list(p["theta"].values())), *torch.autograd.grad(phi, list(p["phi"].values()))]
    return torch.cat([part.reshape(-1) for part in parts])


def in_order(order, states):
    """Places from the largest to the smallest perturbed log-probability, unnamed ones last."""
    return [*order, *(s for s in range(states) if s not in order)]


def noise_for(q, order, values):
    """Gumbel noise ``(S, 1)`` with which the states in ``order`` have those perturbed log-probabilities."""
    noise = torch.zeros(len(q), dtype=torch.float64)
    for s, value in zip(in_order(order, len(q)), values, strict=True):
        noise[s] = value - math.log(q[s])
    return noise[:, None]


def probability(q, order):
    """Plackett-Luce: of drawing the states in this order, without replacement, among all of q's."""
    out, left = 1.0, sum(q)
    for s in order:
        out, left = out * q[s] / left, left - q[s]
    return out


def of_set(q, members):
    """Of drawing this set in any order."""
    return sum(probability(q, order) for order in itertools.permutations(members))


def without(q, *places):
    """q of the domain from which some states were taken."""
    return [0.0 if s in places else x for s, x in enumerate(q)]


def orders(problem, K):
    """Every ordered sample of K, as noise ``(N, S, 1)``, with its probability."""
    q, _ = table(problem)
    samples = list(itertools.permutations(range(len(q)), K))
    values = list(np.linspace(5.0, -5.0, len(q)))
    noise = torch.stack([noise_for(q, order, values) for order in samples])
    return noise, torch.tensor([probability(q, order) for order in samples], dtype=torch.float64)


def thresholds(problem, K, nodes=110, least=None):
    """Every set of K, every (K+1)-th state, and nodes for its threshold kappa = -log t: ``(N, S, 1)``, and weights.

    Race of exponential arrivals with rates q: the (K+1)-th is state r at time t with density q_r exp(-t (1 - q(B)))
    prod_B (1 - exp(-q t)). Trapezoidal rule in y, t (1 - q(B)) = exp(y - exp(-y)). With ``least``, earlier times are left out.
    """
    q, _ = table(problem)
    y, step = np.linspace(-4.0, 4.5, nodes, retstep=True)
    noise, weight = [], []
    for members in itertools.combinations(range(len(q)), K):
        outside = sum(x for s, x in enumerate(q) if s not in members)
        time = np.exp(y - np.exp(-y)) / outside
        measure = step * time * (1 + np.exp(-y))
        density = np.exp(-time * outside) * np.prod([-np.expm1(-q[s] * time) for s in members], axis=0)
        for r in set(range(len(q))) - set(members):
            for t, mass in zip(time, q[r] * density * measure, strict=True):
                if mass > 1e-30 and (least is None or t > least):
                    kappa = -math.log(t)
                    values = [kappa + 1 + K - i for i in range(K)] + [kappa] + [kappa - 1.0] * (len(q) - K - 1)
                    noise.append(noise_for(q, [*members, r], values))
                    weight.append(mass)
    return torch.stack(noise), torch.tensor(weight, dtype=torch.float64)


def cells(problem, estimator):
    """The middle of each cell of each uniform number, and its probability."""
    q = sorted(table(problem)[0], reverse=True)[estimator.num_samples - estimator.sampled :]
    edges = np.concatenate([[0.0], np.cumsum(q) / sum(q)])
    middles, widths = torch.tensor((edges[1:] + edges[:-1]) / 2), torch.tensor(np.diff(edges))
    m = estimator.sampled
    noise = torch.cartesian_prod(*[middles] * m).reshape(-1, m, 1)
    return noise, torch.cartesian_prod(*[widths] * m).reshape(-1, m).prod(1)


def grid(estimator, problem):
    if estimator.name == "unordered-set":
        return orders(problem, estimator.num_samples)
    if estimator.name == "without-replacement":
        return thresholds(problem, estimator.num_samples)
    return cells(problem, estimator)


def moments(estimator, problem):
    noise, weight = grid(estimator, problem)
    assert float(weight.sum()) == pytest.approx(1.0, abs=1e-11)
    mean, variance = exact_expectation(estimator, problem, problem.parameters, grid=(noise, weight))
    return mean.numpy(), variance.numpy()


SETTINGS = [
    ("without-replacement", {"num_samples": 2}),
    ("without-replacement", {"num_samples": 3}),
    ("without-replacement", {"num_samples": 4, "baseline": True}),
    ("unordered-set", {"num_samples": 2}),
    ("unordered-set", {"num_samples": 3}),
    ("unordered-set", {"num_samples": 4}),
    ("unordered-set", {"num_samples": 3, "baseline": False}),
    ("rao-blackwellised", {"num_samples": 2}),
    ("rao-blackwellised", {"num_samples": 4}),
    ("rao-blackwellised", {"num_samples": 4, "sampled": 3}),
    ("rao-blackwellised", {"num_samples": 2, "baseline": False}),
]


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
@pytest.mark.parametrize(("name", "settings"), SETTINGS, ids=str)
def test_the_expectation_is_the_derivative_of_the_summed_elbo(name, settings, problem):
    mean, _ = moments(estimators.get(name, **settings), problem)
    truth = truth_of(problem)
    np.testing.assert_allclose(mean, truth, atol=1e-9 * np.linalg.norm(truth))


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
@pytest.mark.parametrize("baseline", [False, True])
def test_the_normalised_form_is_biased_in_every_block(baseline, problem):
    """The positive control: by far more than the quadrature's error, in value, theta and phi."""
    mean, _ = moments(estimators.get("without-replacement", num_samples=2, baseline=baseline, normalised=True), problem)
    truth = truth_of(problem)
    split = 1 + sum(leaf.numel() for leaf in problem.parameters["theta"].values())
    for part in (slice(0, 1), slice(1, split), slice(split, None)):
        assert np.linalg.norm((mean - truth)[part]) > 5e-3 * np.linalg.norm(truth[part])


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
@pytest.mark.parametrize("K", [2, 4])
def test_unordered_set_per_draw(K, problem):
    """Ratios from set probabilities summed over all orders, the estimate as a plain double sum."""
    q, f = table(problem)
    order = list(range(len(q)))[::-1][:K]
    got = estimators.get("unordered-set", num_samples=K).gradient(
        problem, problem.parameters, noise_for(q, order, list(np.linspace(3.0, -3.0, len(q))))
    )
    model, score, value = {}, {}, 0.0
    for s in order:
        others = [r for r in order if r != s]
        ratio = of_set(without(q, s), others) / of_set(q, order)
        mean = q[s] * f[s]
        for r in others:
            two = of_set(without(q, s, r), [u for u in others if u != r])
            mean += q[r] * two / of_set(without(q, s), others) * f[r]
        model[s], score[s] = q[s] * ratio, q[s] * ratio * (f[s] - mean)
        value += q[s] * ratio * f[s]
    expected = torch.cat([torch.tensor([value], dtype=torch.float64), linear(problem, model, score)])
    torch.testing.assert_close(row(got, problem), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
def test_without_replacement_per_draw(baseline, normalised, problem):
    q, f = table(problem)
    order, K = [3, 0, 4, 1, 2], 4
    values = list(np.linspace(2.0, -2.0, len(q)))
    got = estimators.get("without-replacement", num_samples=K, baseline=baseline, normalised=normalised).gradient(
        problem, problem.parameters, noise_for(q, order, values)
    )
    inclusion = {s: 1 - math.exp(-math.exp(math.log(q[s]) - values[K])) for s in order[:K]}
    total = sum(q[s] / inclusion[s] for s in inclusion) if normalised else 1.0
    mean = sum(q[s] / inclusion[s] * f[s] for s in inclusion) / total
    model = {s: q[s] / inclusion[s] / total for s in inclusion}
    if not baseline:
        signal = f
    elif normalised:
        signal = [x - mean for x in f]
    else:
        signal = [x * (1 - q[s] + q[s] / inclusion.get(s, 1.0)) - mean for s, x in enumerate(f)]
    expected = linear(problem, model, {s: w * signal[s] for s, w in model.items()})
    expected = torch.cat([torch.tensor([mean], dtype=torch.float64), expected])
    torch.testing.assert_close(row(got, problem), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
def test_rao_blackwellised_per_draw(problem):
    q, f = table(problem)
    ranked = sorted(range(len(q)), key=lambda s: -q[s])
    top, rest = ranked[:2], ranked[2:]
    mass = sum(q[s] for s in rest)
    first = q[rest[0]] / mass
    noise = torch.tensor([[0.5 * first], [first + 0.5 * q[rest[1]] / mass]], dtype=torch.float64)
    got = estimators.get("rao-blackwellised", num_samples=4, sampled=2).gradient(problem, problem.parameters, noise)
    b = sum(q[s] * f[s] for s in top) / sum(q[s] for s in top)
    model = {s: q[s] for s in top} | {s: mass / 2 for s in rest[:2]}
    expected = linear(problem, model, {s: w * (f[s] - b) for s, w in model.items()})
    value = torch.tensor([sum(w * f[s] for s, w in model.items())], dtype=torch.float64)
    torch.testing.assert_close(row(got, problem), torch.cat([value, expected]), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("K", [8, 11])
def test_with_as_many_samples_as_states_every_draw_is_exact(name, K):
    problem = POINTS[2]
    rows = stacked(
        estimators.get(name, num_samples=K), problem, problem.parameters, 5, torch.Generator().manual_seed(0)
    )
    truth = truth_of(problem)
    np.testing.assert_allclose(rows.numpy(), np.tile(truth, (5, 1)), atol=1e-12 * np.linalg.norm(truth))


@pytest.mark.parametrize(("name", "K"), [("unordered-set", 3), ("rao-blackwellised", 3)])
def test_zero_in_every_draw_at_the_posterior(name, K):
    """log w is constant there, and the baseline takes it away entirely."""
    problem = POINTS[0]
    q, f = table(problem)
    posterior = torch.tensor([math.log(x) + y for x, y in zip(q, f, strict=True)], dtype=torch.float64)
    at = {"theta": problem.parameters["theta"], "phi": {"logits": posterior.reshape(1, 1, 5)}}
    rows = stacked(estimators.get(name, num_samples=K), problem, at, 200, torch.Generator().manual_seed(1))
    assert float(rows[:, -5:].abs().max()) < 1e-12
    plain = stacked(estimators.get("score-function", num_samples=K), problem, at, 200, torch.Generator().manual_seed(1))
    assert float(plain[:, -5:].abs().max()) > 0.1


def test_log_orders_against_all_permutations():
    q = [0.3, 0.05, 0.2, 0.1, 0.25, 0.1]
    members = [4, 1, 3, 2]
    levels = log_orders(torch.tensor([q[s] for s in members], dtype=torch.float64).log(), torch.tensor(math.log(0.4)))
    outside = [s for s in range(6) if s not in members]
    for size, level in enumerate(levels):
        for subset, got in zip(itertools.combinations(members, size), level, strict=True):
            domain = [x if s in subset or s in outside else 0.0 for s, x in enumerate(q)]
            assert float(got.exp()) == pytest.approx(of_set(domain, subset) if subset else 1.0, rel=1e-7)


def test_log_orders_loses_nothing_in_single_precision():
    """Twelve improbable members: P is about 1e-50, below float32's range, and inclusion-exclusion would cancel."""
    q = torch.logspace(-6, -3, 12, dtype=torch.float64)
    rest = (1 - q.sum()).log()
    wide, narrow = log_orders(q.log(), rest), log_orders(q.log().float(), rest.float())
    assert float(wide[-1]) < math.log(torch.finfo(torch.float32).tiny)
    error = (wide[-1] - wide[-2] - (narrow[-1] - narrow[-2]).double()).abs()
    assert float(error.max()) < 1e-4  # relative, of a ratio of two such: 12 additions of numbers about 100


@pytest.mark.parametrize("name", ["without-replacement", "unordered-set"])
def test_the_sampler_is_plackett_luce(name):
    """Chi-square over the 20 ordered pairs from 5 states, 40,000 draws; false alarms 1e-6, fixed seed.

    Power: were pairs drawn with replaced probabilities (q_s q_r), the statistic would be in the thousands.
    """
    problem = POINTS[0]
    q, _ = table(problem)
    estimator = estimators.get(name, num_samples=2)
    guide = problem.guide(problem.parameters["phi"])
    noise = estimator.draws(guide, 40_000, torch.Generator().manual_seed(7))[0].noise[..., 0]
    drawn = (noise + torch.tensor(q, dtype=torch.float64).log()).topk(2, dim=1).indices
    pairs = list(itertools.permutations(range(5), 2))
    seen = [int(((drawn[:, 0] == s) & (drawn[:, 1] == r)).sum()) for s, r in pairs]
    expected = [40_000 * probability(q, pair) for pair in pairs]
    assert stats.chisquare(seen, expected).pvalue > 1e-6
    flat = np.array([q[s] * q[r] for s, r in pairs])
    assert stats.chisquare(seen, 40_000 * flat / flat.sum()).pvalue < 1e-30


def test_less_variance_than_with_replacement():
    """Exact variances of phi, K = 3: the unordered set below leave-one-out, Rao-Blackwell below one plain sample."""
    for problem in POINTS[:2]:
        unordered = moments(estimators.get("unordered-set", num_samples=3), problem)[1][-5:].sum()
        _, variance = exact_expectation(
            estimators.get("leave-one-out", num_samples=3), problem, problem.parameters, nodes=1
        )
        assert unordered < 0.8 * float(variance[-5:].sum())
        summed = moments(estimators.get("rao-blackwellised", num_samples=2, baseline=False), problem)[1][-5:].sum()
        _, variance = exact_expectation(
            estimators.get("score-function", num_samples=1), problem, problem.parameters, nodes=1
        )
        assert summed < 0.8 * float(variance[-5:].sum())


@dataclass(frozen=True)
class _Unguarded(estimators.WithoutReplacement):
    """Without the refusals, to show what they refuse."""

    min_num_samples = 1

    def __post_init__(self):
        pass


@pytest.mark.parametrize(
    ("K", "baseline", "grows"),
    [(1, False, True), (2, False, False), (2, True, True), (3, True, True), (4, True, False)],
)
def test_where_the_variance_of_importance_weights_exists(K, baseline, grows):
    """E |phi-gradient|^2 without thresholds beyond kappa = -log least: does it converge as least goes to zero?

    The weights q/pi are about 1/t at an early time t, whose density is t^K dt: the second moment of their products converges
    iff K > 1, with the baseline iff K > 3 (at K = 1 and K = 3 it grows like a logarithm).
    """
    problem = POINTS[0]
    moment = []
    for least in (1e-3, 1e-5, 1e-7):
        noise, weight = thresholds(problem, K, nodes=80, least=least)
        rows = torch.func.vmap(
            lambda noise: _Unguarded(num_samples=K, baseline=baseline).gradient(problem, problem.parameters, noise)
        )(noise)
        moment.append(float(weight @ rows.phi["logits"].flatten(1).square().sum(1)))
    first, second = moment[1] - moment[0], moment[2] - moment[1]
    assert (second > 0.7 * first) == grows, moment
