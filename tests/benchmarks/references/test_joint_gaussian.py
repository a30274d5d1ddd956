"""Normal laws with noise a hundred thousand times smaller than the latents, against the same algebra in sixty digits."""

from __future__ import annotations

from dataclasses import fields
from functools import partial

import mpmath
import pytest
import torch

from benchmarks.problems import GaussianFullRank, GaussianMeanField, LinearGaussian, TwoLayerGaussian
from benchmarks.references.joint_gaussian import TARGETS
from estimators import Target


def exactly(at, slope, step):
    """A law moved by a step along its slope, as matrices of mpmath: vectors are columns, and the guide's factors a list."""

    def matrix(values):
        return mpmath.matrix(values.reshape(len(values), -1).tolist())

    law = {n: matrix(at[n]) + step * matrix(slope[n]) for n in at if n != "guide_factor"}
    pairs = zip(
        *(each["guide_factor"].reshape(-1, *each["guide_factor"].shape[-2:]) for each in (at, slope)), strict=True
    )
    return law | {"guide_factor": [matrix(value) + step * matrix(along) for value, along in pairs]}


def log_normal(x, mean, covariance):
    square = ((x - mean).T * mpmath.lu_solve(covariance, x - mean))[0]
    return -(len(x) * mpmath.log(2 * mpmath.pi) + mpmath.log(mpmath.det(covariance)) + square) / 2


def kl(mean, covariance, other_mean, other_covariance):
    inverse = other_covariance**-1
    trace, shift = sum((inverse * covariance)[i, i] for i in range(len(mean))), other_mean - mean
    log_dets = mpmath.log(mpmath.det(other_covariance)) - mpmath.log(mpmath.det(covariance))
    return (trace + (shift.T * inverse * shift)[0] - len(mean) + log_dets) / 2


def expected(target, law):
    """Of a dict of a law's fields, from covariances, by Bayes' rule as it is in textbooks."""
    m, F, A, b, N = (law[name] for name in ("mean", "factor", "weight", "bias", "noise"))
    S, C = F * F.T, A * F * F.T * A.T + N * N.T
    gain, total = S * A.T * C**-1, mpmath.mpf(0)
    for i in range(law["x"].rows):
        x, a, G = law["x"][i, :].T, law["guide_mean"][i, :].T, law["guide_factor"][i % len(law["guide_factor"])]
        Q = G * G.T
        posterior = m + gain * (x - b - A * m), S - gain * A * S
        if target == "forward_kl":
            total -= kl(*posterior, a, Q)
        else:
            total += log_normal(x, A * m + b, C) - (kl(a, Q, *posterior) if target == "elbo" else 0)
    return total / law["x"].rows


SMALL = 1e-5
LAWS = [
    GaussianMeanField(dim=2, noise_scale=SMALL),
    GaussianFullRank(dim=2, noise_scale=SMALL),
    TwoLayerGaussian(points=2, noise_scale=SMALL, perturbation=SMALL),
    TwoLayerGaussian(upper_dim=2, noise_scale=SMALL, perturbation=SMALL),
    LinearGaussian(dim=2, data_dim=3, points=2, noise_scale=SMALL, perturbation=SMALL),
    LinearGaussian(dim=3, data_dim=2, noise_scale=SMALL, perturbation=SMALL),
]


def law_of(problem, parameters):
    """The fields of a law at any parameters."""
    if not isinstance(problem, LinearGaussian):
        law = problem.law(parameters)
        return {field.name: getattr(law, field.name) for field in fields(law)}
    theta, phi = parameters["theta"], parameters["phi"]
    one, n = (torch.eye(size, dtype=torch.float64) for size in (problem.dim, problem.data_dim))
    return {
        "mean": one.new_zeros(problem.dim), "factor": one, "weight": theta["weight"], "bias": theta["bias"],
        "noise": n * theta["log_noise_scale"].exp(), "x": problem.data, "guide_mean": phi["loc"],
        "guide_factor": torch.diag_embed(phi["log_scale"].exp()),
    }  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("problem", LAWS, ids=lambda p: p.spec)
def test_little_noise(problem, target):
    """Values, and slopes along each of the problem's parameters by differences in sixty digits."""
    found, here, h = problem.exact(Target(target)), problem.parameters, mpmath.mpf("1e-25")

    def law(block, name, distance):
        one = torch.ones_like(here[block][name])
        leaves = {**here[block], name: here[block][name] + distance * one}
        return law_of(problem, {**here, block: leaves})

    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    with mpmath.workdps(60):
        for block, leaves in found.gradient.items():
            for name, leaf in leaves.items():
                # How a law moves with its parameters holds no difference of large numbers.
                at, slope = torch.func.jvp(partial(law, block, name), (zero,), (one,))
                below, middle, above = (expected(target, exactly(at, slope, step)) for step in (-h, 0, h))
                assert found.value == pytest.approx(float(middle), rel=1e-9)
                assert float(leaf.sum()) == pytest.approx(float((above - below) / (2 * h)), rel=1e-7, abs=1e-7)
