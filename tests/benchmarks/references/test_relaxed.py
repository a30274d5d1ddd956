"""The relaxed ELBO's exact values, against adaptive quadrature in NumPy and against its limit."""

from __future__ import annotations

import math

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


def test_where_the_relaxed_objective_is_not_known():
    for problem in (SigmoidBeliefNet(dim=5), CategoricalMixture(dim=2), CategoricalMixture(dim=1, values=4)):
        assert problem.exact(Target("relaxed_elbo", setting=0.5)) is None
