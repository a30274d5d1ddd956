"""Guides of several layers and of full rank, and the estimators on them: per draw, over all noise, and the naive mistake."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch.func import grad, vmap

import estimators
from benchmarks.problems import GaussianFullRank, TwoLayerGaussian
from benchmarks.references.summation import trapezoid
from estimators import REGISTRY, FullRankGaussian, Hierarchical, Target
from estimators.quadrature import product
from estimators.replicates import stacked, warmed_up
from estimators.testing import exact_expectation

POINTS = [TwoLayerGaussian(seed=1), TwoLayerGaussian()]
SOLE = {"score-function": 1, "leave-one-out": 2, "reparameterization": 1, "sticking-the-landing": 1, "iwae": 2, "dreg": 2,
        "gdreg": 2, "iwae-stl": 2, "multi-sample-score": 2, "vimco": 2, "ovis": 2, "jackknife": 2, "miwae": 2, "piwae": 2,
        "reweighted-wake-sleep": 2, "reweighted-wake-sleep-dreg": 2}  # fmt: skip


@dataclass(frozen=True)
class Forgetful(Hierarchical):
    """The mistake: the deeper layer's density is held as numbers, its dependence on the shallower z with it."""

    def detach(self):
        held = super().detach()
        shallow, *deeper = held.layers
        forgetting = [lambda phi, *z, layer=layer: layer(phi, *(each.detach() for each in z)) for layer in deeper]
        return replace(held, layers=(shallow, *forgetting))


class ForgetfulProblem(TwoLayerGaussian):
    """Its guide forgets; all else is the same."""

    def guide(self, phi):
        found = super().guide(phi)
        return Forgetful(found.parameters, found.layers)


def grid_of(K, nodes):
    """Every value of the noise of K samples of two layers of one latent, and their weights."""
    points, weight = product([trapezoid(nodes, 6.5)] * (2 * K))
    points, weight = points[weight > 1e-13], weight[weight > 1e-13]
    lower, upper = points[:, :K], points[:, K:]
    return (lower.reshape(-1, K, 1, 1), upper.reshape(-1, K, 1, 1)), weight


def mean_of(estimator, problem, nodes=23):
    K = estimator.num_samples
    mean, _ = exact_expectation(estimator, problem, problem.parameters, grid=grid_of(K, 60 if K == 1 else nodes))
    return mean.numpy()


def flat(reference, problem):
    leaves = [reference.gradient[b][n].reshape(-1) for b in ("theta", "phi") for n in problem.parameters[b]]
    return np.concatenate([[reference.value], *leaves])


def phi_part(problem):
    return 1 + sum(leaf.numel() for leaf in problem.parameters["theta"].values())


# Guides


def full_rank():
    values = torch.randn(3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return FullRankGaussian(values[:, :3], 0.3 * values[:, 3:6], values[:, 6:])


def test_full_rank_is_the_multivariate_normal():
    q = full_rank()
    noise = q.noise((5,), torch.Generator().manual_seed(0))
    z = q.transform(noise)
    assert z.shape == (5, 3, 3)
    for point in range(3):
        L = np.diag(np.exp(q.log_scale[point].numpy()))
        L[1, 0], L[2, 0], L[2, 1] = q.below[point].numpy()
        law = stats.multivariate_normal(q.loc[point].numpy(), L @ L.T)
        np.testing.assert_allclose(z[:, point], q.loc[point].numpy() + noise[:, point].numpy() @ L.T)
        np.testing.assert_allclose(q.log_prob(z)[:, point], law.logpdf(z[:, point].numpy()), rtol=1e-10)
    torch.testing.assert_close(q.inverse(z), noise)
    torch.testing.assert_close(q.log_prob_transformed(noise), q.log_prob(z))


def total_and_parts(q, phi, noise):
    """phi-gradients of log q at transformed noise: whole, through the density alone, through z alone."""
    whole = grad(lambda phi: q(phi).log_prob_transformed(noise).sum())(phi)
    z = q(phi).transform(noise)
    score = grad(lambda phi: q(phi).log_prob(z).sum())(phi)
    path = grad(lambda phi: q(phi).detach().log_prob(q(phi).transform(noise)).sum())(phi)
    return whole, score, path


@pytest.mark.parametrize("problem", [*POINTS, TwoLayerGaussian(dim=2, upper_dim=3, data_dim=4, points=2), GaussianFullRank()],
                         ids=lambda p: p.spec)  # fmt: skip
def test_the_total_derivative_is_score_plus_path(problem):
    """What detach() is for: phi through the density is held, z is not, so the two parts make the whole."""
    phi = problem.parameters["phi"]
    noise = problem.guide(phi).noise((6,), torch.Generator().manual_seed(2))
    whole, score, path = total_and_parts(problem.guide, phi, noise)
    for name in phi:
        torch.testing.assert_close(whole[name], score[name] + path[name])
    total = grad(lambda phi: problem.guide(phi).log_prob(problem.guide(phi).transform(noise)).sum())(phi)
    for name in phi:
        torch.testing.assert_close(whole[name], total[name])


def test_holding_the_deeper_layer_as_numbers_breaks_the_sum():
    problem = ForgetfulProblem(seed=1)
    phi = problem.parameters["phi"]
    noise = problem.guide(phi).noise((6,), torch.Generator().manual_seed(2))
    whole, score, path = total_and_parts(problem.guide, phi, noise)
    assert (whole["bias"] - score["bias"] - path["bias"]).abs().max() > 0.1
    torch.testing.assert_close(whole["upper_bias"], score["upper_bias"] + path["upper_bias"])  # the deeper layer's own


@pytest.mark.parametrize("problem", [TwoLayerGaussian(dim=2, upper_dim=3, points=2), TwoLayerGaussian()], ids=str)
def test_noise_comes_back_from_latents_in_either_order(problem):
    for law in (problem.guide(problem.parameters["phi"]), problem.prior(problem.parameters["theta"])):
        noise = law.noise((4,), torch.Generator().manual_seed(0))
        assert [leaf.shape for leaf in noise] == [
            (4, problem.points, problem.dim),
            (4, problem.points, problem.upper_dim),
        ]
        for got, expected in zip(law.inverse(law.transform(noise)), noise, strict=True):
            torch.testing.assert_close(got, expected)
        torch.testing.assert_close(law.log_prob(law.transform(noise)), law.log_prob_transformed(noise))


def test_draws_have_the_moments_of_the_law():
    """Mean and covariance of 40,000 draws against the joint law's; beyond 4.5 standard errors with probability 7e-6 each."""
    problem = TwoLayerGaussian(dim=2, upper_dim=2, data_dim=2)
    q = problem.guide(problem.parameters["phi"])
    z = torch.cat(q.transform(q.noise((40_000,), torch.Generator().manual_seed(0))), -1)[:, 0]
    law = problem.law(problem.parameters)
    covariance = law.guide_factor @ law.guide_factor.mT
    assert ((z.mean(0) - law.guide_mean[0]).abs() < 4.5 * (covariance.diagonal() / 40_000).sqrt()).all()
    error = (covariance.square() + torch.outer(covariance.diagonal(), covariance.diagonal())) / 40_000
    assert ((torch.cov(z.T) - covariance).abs() < 4.5 * error.sqrt()).all()


def test_noise_of_another_law_is_refused():
    bits = Hierarchical({"logits": torch.zeros(1, 1)}, (lambda phi: estimators.Bernoulli(phi["logits"]),))
    with pytest.raises(TypeError, match="normal noise, not Bernoulli"):
        bits.noise((2,), torch.Generator())


# Estimators on latents of two layers


CASES = [(name, 1, problem) for name, K in SOLE.items() if K == 1 for problem in POINTS]
CASES += [(name, 2, POINTS[0]) for name, K in SOLE.items() if K == 2] + [
    (name, 2, POINTS[1]) for name in ("dreg", "gdreg")
]


@pytest.mark.parametrize(("name", "K", "problem"), CASES, ids=lambda case: getattr(case, "spec", str(case)))
def test_each_is_right_over_all_noise(name, K, problem):
    """Mean over a grid of all noise against the derivative of the bound's value, which is summed elsewhere."""
    estimator = estimators.get(name, num_samples=K)
    mean, split = mean_of(estimator, problem), phi_part(problem)
    for block, columns in (("theta", slice(0, split)), ("phi", slice(split, None))):
        target = estimator.targets[block]
        if target is None or not target.unbiased:
            continue
        truth = flat(problem.exact(target), problem)
        error = 2e-5 if target.name != "elbo" else 1e-9 if K == 1 else 1e-7
        np.testing.assert_allclose(mean[columns], truth[columns], atol=error * np.linalg.norm(truth))


def test_the_reparameterised_wake_phi_update_has_the_expectation_of_the_plain_one():
    problem = POINTS[0]
    split = phi_part(problem)
    one, other, iwae, stl = (
        mean_of(estimators.get(name, num_samples=2), problem)[split:]
        for name in ("reweighted-wake-sleep", "reweighted-wake-sleep-dreg", "iwae", "iwae-stl")
    )
    np.testing.assert_allclose(one, other, atol=2e-5 * np.linalg.norm(one))
    np.testing.assert_allclose(stl, iwae + one, atol=2e-5 * np.linalg.norm(stl))
    assert np.linalg.norm(one) > 0.05


@pytest.mark.parametrize("name", ["dreg", "gdreg", "reweighted-wake-sleep-dreg"])
def test_forgetting_biases_doubly_reparameterised_gradients(name):
    right, wrong = (
        mean_of(estimators.get(name, num_samples=2), kind(seed=1)) for kind in (TwoLayerGaussian, ForgetfulProblem)
    )
    split = phi_part(POINTS[0])
    np.testing.assert_array_equal(right[:split], wrong[:split])
    assert np.linalg.norm((wrong - right)[split:]) > 0.04 * np.linalg.norm(right[split:])


def test_forgetting_does_not_bias_sticking_the_landing_but_it_no_longer_lands():
    """What is lost, the derivative of log q(z2|z1) in z1 with z2 fixed, is a score: of mean zero, and not zero."""
    stl = estimators.get("sticking-the-landing", num_samples=1)
    right, wrong = (mean_of(stl, kind(seed=1)) for kind in (TwoLayerGaussian, ForgetfulProblem))
    np.testing.assert_allclose(wrong, right, atol=1e-9)
    landed, missed = (
        stacked(stl, kind(perturbation=0.0), kind(perturbation=0.0).parameters, 50, torch.Generator().manual_seed(0))
        for kind in (TwoLayerGaussian, ForgetfulProblem)
    )
    split = phi_part(POINTS[0])
    assert landed[:, split:].abs().max() < 1e-12
    assert missed[:, split:].abs().max() > 0.1


@pytest.mark.parametrize("name", ["sticking-the-landing", "dreg", "reweighted-wake-sleep-dreg", "iwae-stl"])
def test_path_gradients_vanish_draw_by_draw_at_the_posterior_of_full_rank(name):
    problem = GaussianFullRank(dim=3, rho=1.0, spread=1.0, shift=0.0)
    rows = stacked(
        estimators.get(name, num_samples=3), problem, problem.parameters, 50, torch.Generator().manual_seed(0)
    )
    assert rows[:, phi_part(problem) :].abs().max() < 1e-12
    assert rows[:, 1 : phi_part(problem)].abs().max() > 0.1


@pytest.mark.parametrize("name", ["score-function", "reparameterization", "sticking-the-landing", "dreg"])
def test_full_rank_guides_over_all_noise(name):
    """Two dimensions; two samples where one would be the ELBO."""
    problem = GaussianFullRank(dim=2, rho=0.8, seed=2)
    estimator = estimators.get(name, num_samples=1 if REGISTRY[name].family == "elbo" else 2)
    K = estimator.num_samples
    points, weight = product([trapezoid(60 if K == 1 else 23, 6.5)] * (2 * K))
    kept = weight > 1e-13
    grid = points[kept].reshape(-1, K, 1, 2), weight[kept]
    mean, _ = exact_expectation(estimator, problem, problem.parameters, grid=grid)
    split = phi_part(problem)
    for block, columns in (("theta", slice(0, split)), ("phi", slice(split, None))):
        target = estimator.targets[block]
        if target is None or not target.unbiased or problem.exact(target) is None:
            continue
        truth = flat(problem.exact(target), problem)
        np.testing.assert_allclose(mean.numpy()[columns], truth[columns], atol=2e-5 * np.linalg.norm(truth))


def written_out(name, problem, noise):
    """theta- and phi-gradients by torch.distributions and plain autograd, layer by layer; density held, z live."""
    theta, phi = (
        {n: leaf.clone().requires_grad_() for n, leaf in problem.parameters[b].items()} for b in ("theta", "phi")
    )

    def q(phi):
        def layer(z, prefix):
            loc = (problem.data if z is None else z) @ phi[prefix + "weight"].T + phi[prefix + "bias"]
            return torch.distributions.Independent(torch.distributions.Normal(loc, phi[prefix + "log_scale"].exp()), 1)

        return layer

    def draw(layer):
        lower, upper = layer(None, ""), None
        z1 = lower.mean + lower.stddev * noise[0]
        upper = layer(z1, "upper_")
        return z1, upper.mean + upper.stddev * noise[1]

    def log_q(layer, z):
        return layer(None, "").log_prob(z[0]) + layer(z[0], "upper_").log_prob(z[1])

    def log_p(theta, z):
        normal = torch.distributions.Normal
        upper = normal(theta["prior_loc"], 1.0).log_prob(z[1]).sum(-1)
        lower_loc = z[1] @ theta["upper_weight"].T + theta["upper_bias"]
        lower = normal(lower_loc, theta["upper_log_scale"].exp()).log_prob(z[0]).sum(-1)
        loc = z[0] @ theta["weight"].T + theta["bias"]
        return upper + lower + normal(loc, theta["log_noise_scale"].exp()).log_prob(problem.data).sum(-1)

    held = q({n: leaf.detach() for n, leaf in phi.items()})
    z = draw(q(phi))
    fixed = tuple(leaf.detach() for leaf in z)
    log_w = log_p(theta, fixed) - log_q(held, fixed)
    w = log_w.detach().softmax(0)
    path, score = log_p({n: t.detach() for n, t in theta.items()}, z) - log_q(held, z), log_q(q(phi), fixed)
    K = len(w)
    of_theta = {"elbo": log_w.mean(0), "iwae": log_w.logsumexp(0) - math.log(K)}
    of_phi = {
        "score-function": ("elbo", (log_w.detach() * score).mean(0)),
        "reparameterization": ("elbo", (path - score).mean(0)),
        "sticking-the-landing": ("elbo", path.mean(0)),
        "iwae": ("iwae", (w * (path - score)).sum(0)),
        "dreg": ("iwae", (w**2 * path).sum(0)),
        "reweighted-wake-sleep": ("iwae", (w * score).sum(0)),
        "reweighted-wake-sleep-dreg": ("iwae", ((w - w**2) * path).sum(0)),
    }
    family, objective = of_phi[name]
    theta_gradient = torch.autograd.grad(of_theta[family].mean(), list(theta.values()), retain_graph=True)
    phi_gradient = torch.autograd.grad(objective.mean(), list(phi.values()))
    return dict(zip(theta, theta_gradient, strict=True)), dict(zip(phi, phi_gradient, strict=True))


@pytest.mark.parametrize("name", ["score-function", "reparameterization", "sticking-the-landing", "iwae", "dreg",
                                  "reweighted-wake-sleep", "reweighted-wake-sleep-dreg"])  # fmt: skip
def test_per_draw_against_plain_autograd(name):
    problem = TwoLayerGaussian(dim=2, upper_dim=3, data_dim=4, points=3, seed=6)
    noise = problem.guide(problem.parameters["phi"]).noise((4,), torch.Generator().manual_seed(1))
    got = estimators.get(name, num_samples=4).gradient(problem, problem.parameters, noise)
    theta, phi = written_out(name, problem, noise)
    for ours, truth in ((got.theta, theta), (got.phi, phi)):
        for leaf, expected in truth.items():
            torch.testing.assert_close(ours[leaf], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", list(REGISTRY))
def test_every_estimator_runs_on_tuples_or_says_why_not(name):
    """Finite, and of the problem's own precision; or refused before it runs."""
    problem = TwoLayerGaussian(dim=2, upper_dim=3, data_dim=2, points=2, perturbation=0.1, dtype="float32")
    estimator = REGISTRY[name](num_samples=REGISTRY[name].usual_num_samples())
    reason = estimator.refuses(problem)
    if reason is not None:
        assert any(need in reason for need in estimator.needs - problem.offers)
        return
    estimator = warmed_up(estimator, problem, problem.parameters, torch.Generator().manual_seed(1))
    rows = stacked(estimator, problem, problem.parameters, 3, torch.Generator().manual_seed(0))
    assert rows.dtype == torch.float32
    assert bool(rows[:, 1:].isfinite().all())


def test_gaussian_estimators_are_refused_on_two_layers():
    for name in ("bonnet-price", "reparameterization-analytic-kl"):
        assert "gaussian" in estimators.get(name).refuses(TwoLayerGaussian())
        assert "gaussian" in estimators.get(name).refuses(GaussianFullRank())


def test_single_precision_follows_double():
    double, single = TwoLayerGaussian(perturbation=0.1), TwoLayerGaussian(perturbation=0.1, dtype="float32")
    noise = double.guide(double.parameters["phi"]).noise((200, 8), torch.Generator().manual_seed(0))
    for name in ("dreg", "gdreg", "sticking-the-landing"):
        estimator = estimators.get(name, num_samples=8)
        ours = vmap(lambda n, e=estimator: e.gradient(single, single.parameters, n))(
            tuple(leaf.float() for leaf in noise)
        )
        truth = vmap(lambda n, e=estimator: e.gradient(double, double.parameters, n))(noise)
        for block in ("theta", "phi"):
            for leaf, expected in getattr(truth, block).items():
                torch.testing.assert_close(getattr(ours, block)[leaf].double(), expected, rtol=1e-3, atol=2e-5)


def test_the_target_of_one_sample_is_the_elbo():
    problem = POINTS[0]
    assert problem.exact(Target("iwae", 1)).value == problem.exact(Target("elbo")).value
