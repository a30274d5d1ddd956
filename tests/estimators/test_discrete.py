"""Discrete latents without relaxations: each draw against its formula in plain loops, expectations and variances exactly.

All of these estimates are polynomials in their uniform numbers between the guide's edges, so that sums over cells are exact:
one node a cell for what depends on z alone, and for the mean of ARM, which is linear there; two for its variance.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import estimators
from benchmarks.cost import count
from benchmarks.problems import CategoricalMixture, Gaussian1D, SigmoidBeliefNet
from benchmarks.references.summation import enumerated
from estimators import Bernoulli, LatentModel, Refusal, Target
from estimators.enumeration import mean_of
from estimators.quadrature import exact_expectation
from estimators.replicates import stacked, warmed_up

BINARY = [
    SigmoidBeliefNet(dim=2, data_dim=3, seed=4),
    SigmoidBeliefNet(dim=2, data_dim=4, seed=1, perturbation=1.5),
    SigmoidBeliefNet(dim=1, data_dim=2, points=2, seed=5),
]
CATEGORICAL = [
    CategoricalMixture(dim=2, values=3, data_dim=2, seed=2),
    CategoricalMixture(dim=1, values=4, data_dim=2, seed=3, points=2, perturbation=1.5),
]
FOR_ANY = ["enumeration", "local-expectation", "muprop"]
PAIRS = ["arm", "disarm", "local-disarm"]


def at(names, problems, num_samples=(1, 2)):
    return [
        pytest.param(estimators.get(name, num_samples=K), problem, id=f"{name}-{K}-{problem.name}-{problem.seed}")
        for name in names
        for problem in problems
        for K in num_samples
        if estimators.REGISTRY[name].min_num_samples <= K and (name, K) != ("enumeration", 2)
    ]


def as_row(value, gradient, parameters):
    leaves = [gradient[block][name].reshape(-1) for block in ("theta", "phi") for name in parameters[block]]
    return np.concatenate([[float(value)], *(leaf.detach().numpy() for leaf in leaves)])


@pytest.mark.parametrize(("estimator", "problem"), at(FOR_ANY, BINARY + CATEGORICAL) + at(PAIRS, BINARY, (1, 2, 3)))
def test_the_expectation_is_the_derivative_of_the_sum_over_states(estimator, problem):
    mean, _ = exact_expectation(estimator, problem, problem.parameters, nodes=1)
    found = enumerated(problem, problem.parameters, estimator.targets["phi"])
    truth = as_row(*found, problem.parameters)
    np.testing.assert_allclose(mean.numpy(), truth, atol=1e-9 * np.linalg.norm(truth))


@pytest.mark.parametrize("problem", BINARY, ids=lambda p: p.spec)
@pytest.mark.parametrize("K", [2, 3])
@pytest.mark.parametrize("name", ["score-function", "leave-one-out", "moving-average-baseline", "network-baseline",
                                  "multi-sample-score", "vimco", "ovis"])  # fmt: skip
def test_score_functions_are_unbiased_for_discrete_latents_too(name, K, problem):
    stream = torch.Generator().manual_seed(6)
    estimator = warmed_up(estimators.get(name, num_samples=K), problem, problem.parameters, stream)
    mean, _ = exact_expectation(estimator, problem, problem.parameters, nodes=1)
    truth = as_row(*enumerated(problem, problem.parameters, estimator.targets["phi"]), problem.parameters)
    np.testing.assert_allclose(mean.numpy(), truth, atol=1e-9 * np.linalg.norm(truth))


def test_local_disarm_is_not_the_gradient_of_another_bound():
    """The positive control: of K samples, not of the 2 K that are drawn, nor the ELBO."""
    problem = BINARY[0]
    mean, _ = exact_expectation(estimators.get("local-disarm"), problem, problem.parameters, nodes=1)
    for other in (Target("elbo"), Target("iwae", 4)):
        truth = as_row(*enumerated(problem, problem.parameters, other), problem.parameters)
        assert np.linalg.norm(mean.numpy() - truth) > 1e-2 * np.linalg.norm(truth)


# Per draw: formulas in loops over single latents, derivatives by plain autograd


class Draw:
    """Leaves that autograd follows, a draw of K latents for each data point, and log w of any latents."""

    def __init__(self, problem, K, seed=3):
        self.problem, self.K = problem, K
        self.leaves = {
            b: {n: t.clone().requires_grad_() for n, t in leaves.items()} for b, leaves in problem.parameters.items()
        }
        self.guide = problem.guide(self.leaves["phi"])
        self.noise = self.guide.noise((K,), torch.Generator().manual_seed(seed))
        self.z, self.mirrored = self.guide.transform(self.noise), self.guide.transform(1 - self.noise)
        self.points = len(problem.data)

    def log_p(self, z):
        """Of latents ``(points, *event)``."""
        return self.problem.log_joint(self.leaves["theta"], z[None])[0]

    def log_q(self, z):
        return self.guide.log_prob(z[None])[0]

    def log_w(self, z):
        return (self.log_p(z) - self.log_q(z)).detach()

    def expect(self, got, theta, phi, value):
        """``theta`` and ``phi`` are to be differentiated; mean over data points."""
        for block, total in (("theta", theta), ("phi", phi)):
            leaves = self.leaves[block]
            found = torch.autograd.grad(total.sum() / self.points, list(leaves.values()), retain_graph=True)
            for name, expected in zip(leaves, found, strict=True):
                torch.testing.assert_close(getattr(got, block)[name], expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(got.value, value.detach().mean(), rtol=1e-10, atol=1e-12)

    def estimate(self, name):
        estimator = estimators.get(name, num_samples=self.K)
        return estimator.gradient(self.problem, self.problem.parameters, self.noise)


SEVERAL = [SigmoidBeliefNet(dim=3, data_dim=4, points=2, seed=7), CATEGORICAL[0], CATEGORICAL[1]]


@pytest.mark.parametrize("problem", SEVERAL, ids=lambda p: p.spec)
def test_local_expectation_per_draw(problem):
    draw = Draw(problem, K=2)
    binary = problem.name == "sigmoid-belief-net"
    values = torch.tensor([0.0, 1.0]).double() if binary else torch.eye(problem.values).double()
    theta, phi, value = 0.0, 0.0, 0.0
    for z in draw.z:
        for d in range(problem.dim):
            for c, entry in enumerate(values):
                changed = z.clone()
                changed[:, d] = entry
                p = draw.guide.probs[:, d] if binary else None
                q = (p if c else 1 - p) if binary else draw.guide.log_probs.exp()[:, d, c]
                theta = theta + q.detach() * draw.log_p(changed) / (2 * problem.dim)
                phi = phi + q * draw.log_w(changed) / 2
                value = value + q * draw.log_w(changed) / (2 * problem.dim)
    draw.expect(draw.estimate("local-expectation"), theta, phi, value)


@pytest.mark.parametrize("problem", SEVERAL[:1] + BINARY, ids=lambda p: p.spec)
def test_arm_and_disarm_per_draw(problem):
    draw = Draw(problem, K=8)
    logits = draw.guide.logits
    probs = draw.guide.probs.detach()
    arm, disarm, theta, value, differing = 0.0, 0.0, 0.0, 0.0, 0
    for u, z, other in zip(draw.noise, draw.z, draw.mirrored, strict=True):
        f, g = draw.log_w(z), draw.log_w(other)
        theta = theta + (draw.log_p(z) + draw.log_p(other)) / 16
        value = value + (f + g) / 16
        for point in range(draw.points):
            for d in range(problem.dim):
                a = logits[point, d]
                arm = arm + (g - f)[point] * (u[point, d] - 0.5) * a / 8
                if z[point, d] != other[point, d]:
                    sign = -1.0 if other[point, d] == 1 else 1.0
                    weight = max(float(probs[point, d]), 1 - float(probs[point, d]))
                    differing += 1
                    disarm = disarm + 0.5 * (f - g)[point] * sign * weight * a / 8
    draw.expect(draw.estimate("arm"), theta, arm, value)
    assert differing
    draw.expect(draw.estimate("disarm"), theta, disarm, value)


@pytest.mark.parametrize("K", [2, 3])
def test_local_disarm_per_draw(K):
    draw = Draw(SEVERAL[0], K)
    total, theta, value = 0.0, 0.0, 0.0
    w = {half: [draw.log_w(z).exp() for z in zs] for half, zs in (("z", draw.z), ("other", draw.mirrored))}
    for half, zs in (("z", draw.z), ("other", draw.mirrored)):
        everything = torch.stack(w[half]).sum(0)
        value = value + (everything / K).log() / 2
        for k in range(K):
            rest = sum(w[half][c] for c in range(K) if c != k)
            gain = ((rest + w["z"][k]) / K).log() - ((rest + w["other"][k]) / K).log()
            differs = draw.z[k] - draw.mirrored[k]
            weight = torch.maximum(draw.guide.probs, 1 - draw.guide.probs).detach()
            total = total + 0.5 * (0.5 * gain[:, None] * differs * weight * draw.guide.logits).sum(-1)
            total = total - 0.5 * w[half][k] / everything * draw.log_q(zs[k])
            theta = theta + 0.5 * w[half][k] / everything * draw.log_p(zs[k])
    draw.expect(draw.estimate("local-disarm"), theta, total, value)


@pytest.mark.parametrize("problem", SEVERAL, ids=lambda p: p.spec)
def test_muprop_per_draw(problem):
    draw = Draw(problem, K=2)
    mean = draw.guide.probs if problem.name == "sigmoid-belief-net" else draw.guide.log_probs.exp()
    center = mean.detach().clone().requires_grad_()
    there = draw.log_p(center) - draw.log_q(center)
    (slope,) = torch.autograd.grad(there.sum(), center, retain_graph=True)
    theta, phi, value = 0.0, 0.0, 0.0
    for z in draw.z:
        linear = there.detach() + (slope * (z - center.detach())).flatten(1).sum(1)
        phi = phi + (draw.log_w(z) - linear) * draw.log_q(z) / 2
        theta, value = theta + draw.log_p(z) / 2, value + draw.log_w(z) / 2
    phi = phi + (slope * mean).flatten(1).sum(1)
    draw.expect(draw.estimate("muprop"), theta, phi, value)


@pytest.mark.parametrize("problem", BINARY + CATEGORICAL, ids=lambda p: p.spec)
def test_enumeration_is_the_truth_in_every_draw(problem):
    rows = stacked(estimators.get("enumeration"), problem, problem.parameters, 3, torch.Generator().manual_seed(1))
    truth = as_row(*enumerated(problem, problem.parameters, Target("elbo")), problem.parameters)
    for row in rows:
        np.testing.assert_allclose(row.numpy(), truth, rtol=1e-10, atol=1e-12)


# Variances


class Toy(LatentModel):
    """D Bernoulli variables, log w = shift + sum_d slope (z_d - target)^2 + coupling prod_d z_d where phi is ``logits``."""

    offers = frozenset({"bernoulli", "enumerable", "factorised", "relaxable"})

    def __init__(self, logits, target=0.45, bend=1.0, line=0.0):
        self.held = Bernoulli(torch.tensor(logits, dtype=torch.float64))
        self.target, self.bend, self.line = target, bend, line
        self.parameters = {"theta": {"shift": torch.tensor(0.3).double()}, "phi": {"logits": self.held.logits.clone()}}

    def log_joint(self, theta, z: Tensor) -> Tensor:
        f = self.bend * (z - self.target).square() + self.line * z
        return f.sum(-1) + theta["shift"] + self.held.log_prob(z)

    def guide(self, phi):
        return Bernoulli(phi["logits"])

    def moments(self, name, num_samples, nodes=2):
        estimator = estimators.get(name, num_samples=num_samples)
        mean, variance = exact_expectation(estimator, self, self.parameters, nodes=nodes)
        size = self.held.logits.shape[-1]
        return mean[-size:], variance[-size:]


@pytest.mark.parametrize("logit", [-2.0, -0.3, 0.0, 0.8, 3.0])
def test_exact_variances_of_one_bernoulli(logit):
    """Dong et al.'s toy f = (b - 0.45)^2, in closed form: of RLOO from two samples, and of one pair for DisARM and ARM."""
    toy = Toy([logit])
    p = 1 / (1 + math.exp(-logit))
    delta, most = (1 - 0.45) ** 2 - 0.45**2, max(p, 1 - p)
    truth = p * (1 - p) * delta
    second = {
        "leave-one-out": p * (1 - p) * delta**2 / 2,
        "disarm": p * (1 - p) * most * delta**2 / 2,
        "arm": 2 / 3 * delta**2 * (1 / 8 - (most - 0.5) ** 3),
    }
    for name, square in second.items():
        mean, variance = toy.moments(name, 2 if name == "leave-one-out" else 1)
        assert float(mean[0]) == pytest.approx(truth, rel=1e-12)
        assert float(variance[0]) == pytest.approx(square - truth**2, rel=1e-8, abs=1e-16)


def test_disarm_has_no_variance_at_a_half():
    _, variance = Toy([0.0]).moments("disarm", 1)
    assert float(variance[0]) < 1e-30
    assert float(Toy([0.0]).moments("arm", 1)[1][0]) > 1e-4


@pytest.mark.parametrize("logits", [[-1.0, 0.4], [2.0, -0.5]])
def test_two_pairs_have_half_the_variance_of_one(logits):
    toy = Toy(logits)
    for name in ("arm", "disarm", "local-expectation", "muprop"):
        one, two = toy.moments(name, 1)[1], toy.moments(name, 2)[1]
        torch.testing.assert_close(two, one / 2, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("problem", BINARY, ids=lambda p: p.spec)
def test_disarm_is_arm_at_the_middle_of_its_cell(problem):
    """Given the pair, ARM is linear in u: integrating u out is putting it at the middle, which leaves less variance."""
    guide = problem.guide(problem.parameters["phi"])
    p, u = guide.probs, guide.noise((200,), torch.Generator().manual_seed(2))
    near = torch.minimum(p, 1 - p)
    middle = torch.where(u < near, near / 2, torch.where(u > 1 - near, 1 - near / 2, 0.5))
    for pair in range(5):
        arm = estimators.get("arm").gradient(problem, problem.parameters, middle[pair : pair + 1])
        disarm = estimators.get("disarm").gradient(problem, problem.parameters, u[pair : pair + 1])
        torch.testing.assert_close(arm, disarm, rtol=1e-10, atol=1e-13)
    before, after = (
        exact_expectation(estimators.get(n), problem, problem.parameters, nodes=2)[1] for n in ("arm", "disarm")
    )
    size = problem.parameters["phi"]["logits"].numel()
    assert bool((after <= before + 1e-15).all())
    assert float(after[-size:].sum()) < 0.95 * float(before[-size:].sum())


def test_with_one_variable_nothing_is_left_to_chance():
    problem = CATEGORICAL[1]
    _, variance = exact_expectation(estimators.get("local-expectation"), problem, problem.parameters, nodes=1)
    assert float(variance.sum()) < 1e-28


def test_where_the_model_is_linear_muprop_has_no_variance():
    linear = Toy([-1.0, 0.7], bend=0.0, line=1.3)
    mean, variance = linear.moments("muprop", 1)
    p = linear.held.probs
    torch.testing.assert_close(mean, 1.3 * p * (1 - p))
    assert float(variance.sum()) < 1e-28
    assert float(Toy([-1.0, 0.7], line=1.3).moments("muprop", 1)[1].sum()) > 1e-3  # and some where it is not


def test_local_disarm_has_less_variance_than_the_plain_score():
    for problem in BINARY:
        size = problem.parameters["phi"]["logits"].numel()
        ours, plain = (
            exact_expectation(estimators.get(n, num_samples=2), problem, problem.parameters, nodes=1)[1][-size:].sum()
            for n in ("local-disarm", "multi-sample-score")
        )
        assert float(ours) < float(plain) / 2  # at twice the evaluations


# What they cost, refuse, and survive


def test_evaluations():
    problem = SigmoidBeliefNet(dim=3, data_dim=2)
    for name, K, expected in [
        ("enumeration", 1, 8), ("local-expectation", 2, 12), ("arm", 2, 4), ("disarm", 2, 4), ("local-disarm", 2, 4),
        ("muprop", 2, 3),
    ]:  # fmt: skip
        cost = count(estimators.get(name, num_samples=K), problem, problem.parameters, torch.Generator())
        assert cost.evaluations_per_gradient == expected, name


def test_refusals():
    with pytest.raises(Refusal, match="samples nothing"):
        estimators.get("enumeration", num_samples=2)
    for name in PAIRS:
        assert "bernoulli" in estimators.get(name, num_samples=2).refuses(CATEGORICAL[0])
    for name in FOR_ANY:
        assert estimators.get(name).refuses(Gaussian1D()) is not None
    with pytest.raises(TypeError, match="DiagonalGaussian"):
        mean_of(Gaussian1D().guide(Gaussian1D().parameters["phi"]))
    problem = CATEGORICAL[0]
    with pytest.raises(TypeError, match="Bernoulli variables is needed here, not Categorical"):
        stacked(estimators.get("disarm"), problem, problem.parameters, 1, torch.Generator())


def test_single_precision_where_one_weight_dominates():
    """Signals of weights far below the others to float32's own relative precision, at any offset that cancels exactly."""
    spread = torch.tensor([[0.0, -30.0, -12.5, -1.0], [-8.0, -20.0, -0.25, -30.0]])[:, :, None]
    z = torch.stack([torch.ones(4, 1, 1), torch.zeros(4, 1, 1)])
    noise, logits = torch.full((4, 1, 1), 0.3), torch.tensor([[0.4]])
    estimator = estimators.get("local-disarm", num_samples=4)
    for k in range(4):
        alone = torch.zeros_like(z)
        alone[:, k] = z[:, k]
        single = estimator.slopes(spread, alone, noise, logits)
        double = estimator.slopes(spread.double(), alone.double(), noise.double(), logits.double())
        torch.testing.assert_close(single.double(), double, rtol=2e-6, atol=0.0)


@pytest.mark.parametrize("name", FOR_ANY + PAIRS)
def test_saturated_logits_stay_finite(name):
    toy = Toy([60.0, -60.0])
    single = {b: {n: t.float() for n, t in leaves.items()} for b, leaves in toy.parameters.items()}
    toy.held = Bernoulli(toy.held.logits.float())
    estimator = estimators.get(name, num_samples=estimators.REGISTRY[name].usual_num_samples())
    rows = stacked(estimator, toy, single, 50, torch.Generator().manual_seed(0))
    assert rows.dtype == torch.float32 and bool(rows.isfinite().all())
