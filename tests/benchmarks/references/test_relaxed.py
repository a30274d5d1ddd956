"""The relaxed ELBO's exact values, against adaptive quadrature in NumPy and against its limit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import dblquad, quad
from scipy.special import expit

from benchmarks.problems import CategoricalMixture, SigmoidBeliefNet
from estimators import Target

ONE = [SigmoidBeliefNet(dim=1, data_dim=3, seed=1), SigmoidBeliefNet(dim=1, data_dim=4, seed=5, coupling=2.0)]
TWO = SigmoidBeliefNet(dim=2, data_dim=3, seed=4)
MIXTURE = CategoricalMixture(dim=1, values=3, data_dim=2, seed=2, points=2)


def relaxed_by_scipy(problem, temperature, *, logits=None):
    """The relaxed ELBO of one data point, written in NumPy and integrated by adaptive quadrature over uniform numbers."""
    theta = {name: leaf.numpy() for name, leaf in problem.parameters["theta"].items()}
    logits = problem.parameters["phi"]["logits"][0].numpy() if logits is None else logits
    x = problem.data[0].numpy()

    def softplus(a):
        return max(a, 0.0) + math.log1p(math.exp(-abs(a)))

    def f(*noise):
        z = [float(expit((a + each) / temperature)) for a, each in zip(logits, noise, strict=True)]
        total = sum(s * a - softplus(a) for s, a in zip(z, theta["prior_logits"], strict=True))
        total -= sum(s * a - softplus(a) for s, a in zip(z, logits, strict=True))
        for i, bit in enumerate(x):
            a = theta["bias"][i] + sum(w * s for w, s in zip(theta["weight"][i], z, strict=True))
            total += bit * a - softplus(a)
        density = math.prod(float(expit(each) * expit(-each)) for each in noise)
        return total * density

    if len(logits) == 1:
        return quad(f, -40, 40, epsabs=1e-13, epsrel=1e-12, limit=500, points=[float(-logits[0])])[0]
    return dblquad(f, -25, 25, -25, 25, epsabs=1e-8, epsrel=1e-8)[0]


@pytest.mark.parametrize("temperature", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("problem", ONE, ids=str)
def test_the_relaxed_objective_by_adaptive_quadrature(problem, temperature):
    """Its value, and by differences of it its slope along the logit."""
    reference = problem.exact(Target("relaxed_elbo", setting=temperature))
    assert reference.value == pytest.approx(relaxed_by_scipy(problem, temperature), abs=1e-10)
    logit, h = float(problem.parameters["phi"]["logits"]), 1e-3
    at = [relaxed_by_scipy(problem, temperature, logits=[logit + k * h]) for k in (-2, -1, 1, 2)]
    slope = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * h)
    assert float(reference.gradient["phi"]["logits"]) == pytest.approx(slope, abs=1e-8)


def test_the_relaxed_objective_of_two_latents_by_nested_quadrature():
    reference = TWO.exact(Target("relaxed_elbo", setting=0.8))
    assert reference.value == pytest.approx(relaxed_by_scipy(TWO, 0.8), abs=1e-6)


@pytest.mark.parametrize("problem", [*ONE, TWO, MIXTURE], ids=lambda p: p.spec)
def test_the_relaxed_objective_tends_to_the_elbo(problem):
    """Linearly in T, since the noise has a density where b jumps."""
    exact = problem.exact(Target("elbo")).value
    gaps = [problem.exact(Target("relaxed_elbo", setting=T)).value - exact for T in (0.2, 0.1)]
    assert abs(gaps[1]) < abs(gaps[0]) and gaps[0] / gaps[1] == pytest.approx(2, abs=0.35)


STEEP = [
    SigmoidBeliefNet(dim=1, data_dim=3, seed=seed, coupling=coupling) for seed, coupling in ((1, 100.0), (2, 1000.0))
]


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("problem", STEEP, ids=str)
def test_steep_likelihoods(problem, temperature):
    """Weights of a hundred and more bend log p(x|z) within a hundredth of z: panels of Gauss-Legendre nodes around each bend."""
    theta = {name: leaf.numpy() for name, leaf in problem.parameters["theta"].items()}
    x, weight = problem.data[0].numpy(), theta["weight"][:, 0]
    node, mass = np.polynomial.legendre.leggauss(40)

    def value(logit):
        bends = [-b / w for b, w in zip(theta["bias"], weight, strict=True) if 0 < -b / w < 1]
        near = [z + k / abs(w) for z in bends for w in weight for k in range(-40, 41, 4)]
        ends = [temperature * math.log(z / (1 - z)) - logit for z in near if 0 < z < 1]
        ends = np.array(sorted([*ends, *np.linspace(-40, 40, 81), -logit]))
        half = np.diff(ends)[:, None] / 2
        noise = (ends[:-1, None] + half * (node + 1)).ravel()
        z = expit((logit + noise) / temperature)
        a = theta["bias"][:, None] + np.outer(weight, z)
        f = (
            (x[:, None] * a - np.logaddexp(0, a)).sum(0)
            + z * theta["prior_logits"][0]
            - np.logaddexp(0, theta["prior_logits"][0])
        )
        f -= z * logit - np.logaddexp(0, logit)
        return float((half * mass).ravel() @ (expit(noise) * expit(-noise) * f))

    found = problem.exact(Target("relaxed_elbo", setting=temperature))
    logit = float(problem.parameters["phi"]["logits"])
    assert found.value == pytest.approx(value(logit), abs=1e-9)
    at = [value(logit + k * 1e-3) for k in (-2, -1, 1, 2)]
    slope = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / 12e-3
    assert float(found.gradient["phi"]["logits"]) == pytest.approx(slope, rel=1e-7)


def test_what_no_rule_settles_is_not_claimed():
    assert SigmoidBeliefNet(coupling=30.0).exact(Target("relaxed_elbo", setting=0.3)) is None


def test_where_the_relaxed_objective_is_not_known():
    for problem in (SigmoidBeliefNet(dim=5), CategoricalMixture(dim=2), CategoricalMixture(dim=1, values=4)):
        assert problem.exact(Target("relaxed_elbo", setting=0.5)) is None
