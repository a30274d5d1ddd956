"""Refined samples against the linear VAE, whose posterior is Gaussian and known, and against quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.evaluation import annealing, corrected, hamiltonian, langevin, refinement
from benchmarks.evaluation.annealing import transition
from benchmarks.problems import Gaussian1D, LinearGaussian, SigmoidBeliefNet, TwoLayerGaussian

PROBLEM = LinearGaussian(dim=3, data_dim=4, points=4, seed=2, perturbation=0.5)
CHAINS = 2000


def posterior(problem=PROBLEM):
    """Means ``(points, D)`` and the precision ``(D, D)`` of z given x, by the algebra of normal laws in numpy."""
    theta = {name: leaf.numpy() for name, leaf in problem.parameters["theta"].items()}
    A, s2 = theta["weight"], float(np.exp(2 * theta["log_noise_scale"]))
    precision = np.eye(A.shape[1]) + A.T @ A / s2
    return np.linalg.solve(precision, A.T @ (problem.data.numpy() - theta["bias"]).T / s2).T, precision


def z_scores(z, mean, covariance):
    """Of sample means and of sample second moments about the true mean, all pairs of coordinates; chains independent."""
    n, off = len(z), z - torch.as_tensor(mean)
    root = np.sqrt(np.diag(covariance))
    means = off.mean(0).numpy() / root * math.sqrt(n)
    products = torch.einsum("npi,npj->pij", off, off).numpy() / n
    spread = np.sqrt((np.outer(root**2, root**2) + covariance**2) / n)
    return np.concatenate([means.ravel(), ((products - covariance) / spread).ravel()])


def test_hamiltonian_moves_bring_the_guide_to_the_posterior():
    """48 z-scores within 4.5 (false alarm 3e-4); those of the guide itself are beyond 20."""
    mean, precision = posterior()
    covariance = np.linalg.inv(precision)
    g = torch.Generator().manual_seed(0)
    found = hamiltonian(PROBLEM, PROBLEM.parameters, CHAINS, g, moves=15)
    assert np.abs(z_scores(found.z, mean, covariance)).max() < 4.5
    assert float((found.acceptance - 0.65).abs().max()) < 0.25  # of a Gaussian it is not monotone in the step
    guide = PROBLEM.guide(PROBLEM.parameters["phi"])
    assert np.abs(z_scores(guide.transform(guide.noise((CHAINS,), g)), mean, covariance)).max() > 20


def test_a_coarse_move_leaves_the_posterior_as_it_is(monkeypatch):
    """From exact posterior samples, with a step at which a third of the moves is refused; without refusals it fails."""
    mean, precision = posterior()
    covariance = np.linalg.inv(precision)
    g = torch.Generator().manual_seed(1)
    root = torch.linalg.cholesky(torch.tensor(covariance))
    z = torch.tensor(mean) + torch.randn(CHAINS, 4, 3, generator=g, dtype=torch.float64) @ root.T
    theta = PROBLEM.parameters["theta"]
    size = torch.full((4,), 1.5 / float(np.sqrt(np.linalg.eigvalsh(precision).max())), dtype=torch.float64)
    moved, accepted = transition(lambda z: PROBLEM.log_joint(theta, z), z, size, 3, g)
    assert 0.4 < float(accepted.double().mean()) < 0.97
    assert np.abs(z_scores(moved, mean, covariance)).max() < 4.5
    with monkeypatch.context() as patch:
        patch.setattr(annealing.torch, "rand", lambda shape, **_: torch.zeros(shape, dtype=torch.float64))
        moved, accepted = transition(lambda z: PROBLEM.log_joint(theta, z), z, size, 3, g)
    assert bool(accepted.all()) and np.abs(z_scores(moved, mean, covariance)).max() > 6


def test_langevin_settles_where_its_own_covariance_is():
    """P^-1 (I - h P / 4)^-1, which 48 z-scores tell from the posterior's P^-1."""
    mean, precision = posterior()
    h = 1.2 / np.linalg.eigvalsh(precision).max()
    settled = np.linalg.inv(precision) @ np.linalg.inv(np.eye(3) - h * precision / 4)
    g = torch.Generator().manual_seed(2)
    z = langevin(PROBLEM, PROBLEM.parameters, CHAINS, g, moves=60, step=math.sqrt(h))
    assert np.abs(z_scores(z, mean, settled)).max() < 4.5
    assert np.abs(z_scores(z, mean, np.linalg.inv(precision))).max() > 6


def moments_of_corrected(problem, K, order):
    """E z^order under q_IW: that of the self-normalised estimate, by Gauss-Hermite quadrature over K <= 2 numbers."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    z = problem.loc + problem.scale * nodes
    log_w = -0.5 * (z - problem.prior_loc) ** 2 - 0.5 * (problem.x - z) ** 2 + 0.5 * nodes**2
    if K == 1:
        return float(weights @ z**order)
    share = 1 / (1 + np.exp(log_w[None] - log_w[:, None]))
    return float(weights @ (share * z[:, None] ** order + (1 - share) * z[None] ** order) @ weights)


@pytest.mark.parametrize("K", [1, 2])
def test_corrected_samples_have_the_moments_of_q_iw(K):
    """Mean and second moment from 100,000 draws within 4.5 standard errors; a guide's own miss K = 2 by more than 20."""
    problem = Gaussian1D(loc=2.0, scale=0.9, x=0.5)
    z = corrected(problem, problem.parameters, K, 100_000, torch.Generator().manual_seed(3))[:, 0, 0]
    other = moments_of_corrected(problem, 3 - K, 1)
    for order in (1, 2):
        error = float((z**order).std()) / math.sqrt(len(z))
        assert abs(float((z**order).mean()) - moments_of_corrected(problem, K, order)) < 4.5 * error
    assert abs(float(z.mean()) - other) > 20 * float(z.std()) / math.sqrt(len(z))


def test_corrected_samples_become_the_posterior():
    """A guide 1.8 times too wide, so that weights are bounded: 20 z-scores, beyond 10 with two samples to choose from."""
    problem = LinearGaussian(dim=2, data_dim=3, points=4, seed=5, perturbation=0.0)
    mean, precision = posterior(problem)
    phi = problem.parameters["phi"]
    wide = {**problem.parameters, "phi": phi | {"log_scale": phi["log_scale"] + 0.6}}
    g = torch.Generator().manual_seed(4)
    many, few = (corrected(problem, wide, K, 2000, g) for K in (300, 2))
    covariance = np.linalg.inv(precision)
    assert np.abs(z_scores(many, mean, covariance)).max() < 4.5 < 10 < np.abs(z_scores(few, mean, covariance)).max()


def test_several_layers_keep_their_shapes():
    problem = TwoLayerGaussian(dim=2, upper_dim=3, points=2)
    g = torch.Generator().manual_seed(5)
    for z in (
        hamiltonian(problem, problem.parameters, 6, g, moves=1, adaptation=1).z,
        langevin(problem, problem.parameters, 6, g, moves=1),
        corrected(problem, problem.parameters, 4, 6, g),
    ):
        assert [leaf.shape for leaf in z] == [(6, 2, 2), (6, 2, 3)]


def test_discrete_latents_are_refused_by_chains_and_not_by_resampling():
    problem = SigmoidBeliefNet()
    with pytest.raises(TypeError, match="Bernoulli"):
        refinement.langevin(problem, problem.parameters, 2, torch.Generator())
    z = corrected(problem, problem.parameters, 4, 5, torch.Generator().manual_seed(0))
    assert z.shape == (5, 1, 3) and set(z.unique().tolist()) <= {0.0, 1.0}
