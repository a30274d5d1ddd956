"""What tests of estimators with one sample's bound share: problems, what was learnt, and formulas written out plainly."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch.func import hessian, jacrev

import estimators
from benchmarks.problems import Banana, ExpectedCost, Gaussian1D, LinearGaussian, Rainforth
from estimators import Target
from estimators.quadrature import exact_expectation
from estimators.replicates import warmed_up

EXP = ExpectedCost("exp", 0.8, 0.7, 0.9)
COS = ExpectedCost("cos", 1.2, 0.5, 0.8)
GAUSSIAN = Gaussian1D(loc=1.5, scale=0.6, x=1.3, prior_loc=0.2)
LINEAR = LinearGaussian(dim=3, data_dim=4, points=2, seed=3)
SHARED = Rainforth(dim=2, points=3, perturbation=0.4)
BENT = Banana()


def learnt(name, problem, seed=0, **settings):
    """An estimator that has learnt what it does before it is measured."""
    estimator = estimators.get(name, **settings)
    return warmed_up(estimator, problem, problem.parameters, torch.Generator().manual_seed(seed))


def noise_for(problem, num_samples=4, seed=5):
    return problem.guide(problem.parameters["phi"]).noise((num_samples,), torch.Generator().manual_seed(seed))


def truth_of(problem):
    """Value and gradient of the ELBO as one row."""
    found = problem.exact(Target("elbo"))
    leaves = [
        found.gradient[block][name].reshape(-1) for block in ("theta", "phi") for name in problem.parameters[block]
    ]
    return torch.cat([torch.tensor([found.value], dtype=torch.float64), *leaves])


def close(mean, problem, tolerance=1e-8):
    truth = truth_of(problem)
    np.testing.assert_allclose(mean.numpy(), truth.numpy(), atol=tolerance * float(truth.norm()))


def phi_variance(estimator, problem, nodes=200):
    """Summed over phi, exactly."""
    _, variance = exact_expectation(estimator, problem, problem.parameters, nodes=nodes)
    return float(variance[-sum(leaf.numel() for leaf in problem.parameters["phi"].values()) :].sum())


def same(got, expected, tolerance=1e-10):
    for block in ("theta", "phi"):
        for name, leaf in getattr(expected, block).items():
            torch.testing.assert_close(getattr(got, block)[name], leaf, rtol=tolerance, atol=1e-11)
    torch.testing.assert_close(got.value, expected.value, rtol=tolerance, atol=1e-11)


def by_hand(problem, noise, loc, scale):
    """A gradient from what is found for loc and scale, ``(points, D)``, through plain autograd; theta and value as usual."""
    usual = estimators.Reparameterization(noise.shape[0]).gradient(problem, problem.parameters, noise)
    phi = {name: leaf.clone().requires_grad_() for name, leaf in problem.parameters["phi"].items()}
    guide = problem.guide(phi)
    total = (guide.loc * loc + guide.scale * scale).sum() / len(problem.data)
    gradient = torch.autograd.grad(total, list(phi.values()), allow_unused=True)
    zeros = {name: torch.zeros_like(leaf) for name, leaf in phi.items()}
    return usual._replace(phi=zeros | {n: g for n, g in zip(phi, gradient, strict=True) if g is not None})


def derivatives(problem, z):
    """Value, slope and Hessian of log p(x, z) at each row of ``z (points, D)``, one point at a time."""
    points = range(len(z))
    theta = problem.parameters["theta"]

    def log_p(own, point):
        return problem.log_joint(theta, z.clone().index_copy(0, torch.tensor([point]), own[None]))[point]

    return tuple(
        torch.stack([op(partial(log_p, point=n))(z[n]) for n in points])
        for op in (lambda function: function, jacrev, lambda function: hessian(function))
    )
