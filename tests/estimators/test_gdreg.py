"""The generalised doubly reparameterised gradient: its identity by scipy, per draw, and over all noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.func import vmap

import estimators
from benchmarks.problems import (
    Banana,
    Gaussian1D,
    GaussianFullRank,
    GaussianMeanField,
    LinearGaussian,
    TwoLayerGaussian,
)
from benchmarks.references.summation import trapezoid
from estimators import Target
from estimators.quadrature import product
from estimators.replicates import stacked
from estimators.testing import exact_expectation

POINTS = [
    Gaussian1D(loc=1.5, scale=0.6, x=1.3, prior_loc=0.2),
    Gaussian1D(loc=-1.4, scale=1.1, x=-1.3, prior_loc=-0.3),
    Gaussian1D(loc=1.6, scale=0.8, x=1.5, prior_loc=0.5),
]
ALL = [*POINTS, GaussianFullRank(), GaussianMeanField(dim=2), Banana(), TwoLayerGaussian(dim=2, upper_dim=3, points=2),
       TwoLayerGaussian(seed=1)]  # fmt: skip
NODES = {1: 80, 2: 140, 3: 60}
PRIOR = {"two-layer-gaussian": ("prior_loc", "upper_weight", "upper_bias", "upper_log_scale")}
"""Which of theta belongs to the prior; ``prior_loc`` alone elsewhere."""


@pytest.mark.parametrize(("q", "p"), [((0.3, 0.7), (-0.5, 1.2)), ((-1.0, 1.4), (0.4, 0.8)), ((0.0, 0.3), (2.0, 0.5))])
@pytest.mark.parametrize("g", [(np.tanh, lambda z: 1 - np.tanh(z) ** 2), (lambda z: z**3 - z, lambda z: 3 * z**2 - 1),
                               (lambda z: 1 / (1 + np.exp(2 * z)), lambda z: -2 * np.exp(2 * z) / (1 + np.exp(2 * z)) ** 2)],
                         ids=["tanh", "cubic", "sigmoid"])  # fmt: skip
def test_the_identity_that_it_rests_on(g, q, p):
    """E_q[g grad log p] = E_q[(g' + g (log q/p)') grad T_p], by adaptive quadrature of both, p's mean and log scale."""
    function, slope = g
    law = stats.norm(*q)
    (a, s), (b, t) = q, p

    def mean(integrand):
        return integrate.quad(lambda z: law.pdf(z) * integrand(z), a - 12 * s, a + 12 * s, epsabs=1e-12, limit=200)[0]

    def bracket(z):
        return slope(z) + function(z) * (-(z - a) / s**2 + (z - b) / t**2)

    # T_p(eps) = b + t eps: derivatives 1 in b, t eps = z - b in log t
    assert mean(lambda z: function(z) * (z - b) / t**2) == pytest.approx(mean(bracket), abs=1e-8)
    of_scale = mean(lambda z: function(z) * ((z - b) ** 2 / t**2 - 1))
    assert of_scale == pytest.approx(mean(lambda z: bracket(z) * (z - b)), abs=1e-8)


def written_out(problem, noise):
    """theta's gradient as the paper has it, sample by sample, by plain autograd."""
    theta = {name: leaf.clone().requires_grad_() for name, leaf in problem.parameters["theta"].items()}
    held = problem.parameters["theta"]
    q = problem.guide(problem.parameters["phi"])
    one_by_one = q.transform(noise)
    tree = isinstance(one_by_one, tuple)
    z = tuple(leaf.requires_grad_() for leaf in one_by_one) if tree else one_by_one.requires_grad_()
    leaves = z if tree else (z,)
    log_w = problem.log_joint(held, z) - q.log_prob(z)
    w = log_w.detach().softmax(0)
    of_w = torch.autograd.grad(log_w.sum(), leaves, retain_graph=True)
    ratio = q.log_prob(z) - problem.prior(held).log_prob(z)
    of_ratio = torch.autograd.grad(ratio.sum(), leaves)
    fixed = tuple(leaf.detach() for leaf in z) if tree else z.detach()
    moved = problem.prior(theta).transform(problem.prior(held).inverse(fixed))
    objective = (w * problem.log_likelihood(theta, fixed)).sum(0).mean()
    for layer, along_w, along_ratio in zip(moved if tree else (moved,), of_w, of_ratio, strict=True):
        bracket = (w * (1 - w))[..., None] * along_w + w[..., None] * along_ratio
        objective = objective + (bracket * layer).sum((0, -1)).mean()
    found = torch.autograd.grad(objective, list(theta.values()), allow_unused=True)
    return {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(theta.items(), found, strict=True)}


@pytest.mark.parametrize("problem", [*ALL, LinearGaussian(points=2)], ids=lambda p: p.spec)
@pytest.mark.parametrize("K", [1, 4])
def test_per_draw_against_plain_autograd(problem, K):
    noise = problem.guide(problem.parameters["phi"]).noise((K,), torch.Generator().manual_seed(3))
    got = estimators.get("gdreg", num_samples=K).gradient(problem, problem.parameters, noise)
    for name, truth in written_out(problem, noise).items():
        torch.testing.assert_close(got.theta[name], truth, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("problem", [*ALL, LinearGaussian(points=2)], ids=lambda p: p.spec)
def test_phi_is_dreg_draw_by_draw_and_so_is_the_likelihood(problem):
    """With several layers too, where the guide keeps a deeper layer's dependence on a shallower z live."""
    noise = problem.guide(problem.parameters["phi"]).noise((6, 3), torch.Generator().manual_seed(0))

    def gradients(name):
        estimator = estimators.get(name, num_samples=3)
        return vmap(lambda noise: estimator.gradient(problem, problem.parameters, noise))(noise)

    ours, dreg = gradients("gdreg"), gradients("dreg")
    torch.testing.assert_close(ours.value, dreg.value)
    for name, leaf in dreg.phi.items():
        torch.testing.assert_close(ours.phi[name], leaf, rtol=0, atol=0)
    for name, leaf in dreg.theta.items():
        same = torch.allclose(ours.theta[name], leaf, rtol=1e-9, atol=1e-11)
        assert same == (name not in PRIOR.get(problem.name, ("prior_loc",)))


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
@pytest.mark.parametrize("K", [1, 2, 3])
def test_over_all_noise_in_one_dimension(problem, K):
    """Against the integrals of the references, which know no estimator."""
    mean, _ = exact_expectation(estimators.get("gdreg", num_samples=K), problem, problem.parameters, nodes=NODES[K])
    exact = problem.exact(Target("iwae", K))
    truth = np.array([exact.value, *(float(exact.gradient[b][n]) for b, n in (("theta", "prior_loc"), ("phi", "loc"),
                                                                             ("phi", "log_scale")))])  # fmt: skip
    np.testing.assert_allclose(mean.numpy(), truth, atol=1e-6 * np.linalg.norm(truth))


@pytest.mark.parametrize("K", [1, 2])
def test_over_all_noise_on_a_bent_posterior(K):
    problem = Banana(curvature=0.4, scale1=0.7)
    points, weight = product([trapezoid(60 if K == 1 else 27, 6.5)] * (2 * K))
    kept = weight > 1e-13
    estimator = estimators.get("gdreg", num_samples=K)
    grid = points[kept].reshape(-1, K, 1, 2), weight[kept]
    mean, _ = exact_expectation(estimator, problem, problem.parameters, grid=grid)
    exact = problem.exact(Target("iwae", K) if K > 1 else Target("elbo"))
    leaves = [exact.gradient[b][n].reshape(-1) for b in ("theta", "phi") for n in problem.parameters[b]]
    truth = np.concatenate([[exact.value], *leaves])
    np.testing.assert_allclose(mean.numpy(), truth, atol=(1e-8 if K == 1 else 1e-4) * np.linalg.norm(truth))


def prior_variance(name, problem, K):
    """Exact variance of the gradient in the prior's mean."""
    _, variance = exact_expectation(estimators.get(name, num_samples=K), problem, problem.parameters, nodes=NODES[K])
    return float(variance[1])


def test_it_is_quieter_in_the_prior_or_not():
    """By quadrature. At K = 1, q = posterior it is x - z where the usual rule has z - prior_loc: equal here, both 1/2.

    With q narrower than the posterior the bracket grows with 1/scale^2, the score does not.
    """
    posterior = Gaussian1D(loc=0.8, scale=0.5**0.5, x=1.5, prior_loc=0.1)
    assert prior_variance("gdreg", posterior, 1) == pytest.approx(0.5)
    assert prior_variance("dreg", posterior, 1) == pytest.approx(0.5)
    narrow = Gaussian1D(loc=0.8, scale=0.3, x=1.5, prior_loc=0.1)
    assert prior_variance("gdreg", narrow, 1) > 10 * prior_variance("dreg", narrow, 1)
    wide = Gaussian1D(loc=0.8, scale=0.95, x=1.5, prior_loc=0.1)
    for K in (1, 2, 3):
        assert prior_variance("gdreg", wide, K) < 0.6 * prior_variance("dreg", wide, K)


def test_one_dominant_weight_in_single_precision():
    """1 - w~ rounds to zero there, and so does what it multiplies."""
    problem, double = (Gaussian1D(loc=0.0, scale=0.3, x=0.0, prior_loc=0.0, dtype=d) for d in ("float32", "float64"))
    noise = torch.tensor([0.1, -0.2, 0.3, 9.0], dtype=torch.float64).reshape(4, 1, 1)
    estimator = estimators.get("gdreg", num_samples=4)
    ours = estimator.gradient(problem, problem.parameters, noise.float())
    truth = estimator.gradient(double, double.parameters, noise)
    torch.testing.assert_close(ours.theta["prior_loc"].double(), truth.theta["prior_loc"], rtol=1e-4, atol=1e-6)
    for name, leaf in truth.phi.items():
        torch.testing.assert_close(ours.phi[name].double(), leaf, rtol=1e-4, atol=1e-6)


def test_without_a_prior_apart_it_is_refused():
    class Joint(Gaussian1D):
        offers = frozenset({"reparameterizable"})

    assert "invertible_prior" in estimators.get("gdreg").refuses(Joint())
    with pytest.raises(NotImplementedError, match="does not give the noise"):
        estimators.Bernoulli(torch.zeros(1)).inverse(torch.zeros(1))


def test_replicates_vectorise_on_tuples():
    problem = TwoLayerGaussian(dim=2, upper_dim=2, points=3)
    rows = stacked(
        estimators.get("gdreg", num_samples=3), problem, problem.parameters, 7, torch.Generator().manual_seed(0)
    )
    assert rows.shape[0] == 7 and bool(rows.isfinite().all())
