"""Control variates of the ELBO's gradient: draw by draw from their formulas, what they learn, and what it buys."""

from __future__ import annotations

import pytest
import torch
from one_sample import (
    BENT,
    COS,
    EXP,
    GAUSSIAN,
    LINEAR,
    SHARED,
    by_hand,
    close,
    derivatives,
    learnt,
    noise_for,
    phi_variance,
    same,
)
from torch.func import vmap

import estimators
from estimators import Target
from estimators.quadrature import exact_expectation, gauss_hermite
from estimators.replicates import stacked, warmed_up

GAUSSIAN_NAMES = ["price-first-order", "delta-method", "hessian-control-variate"]


@pytest.mark.parametrize("coefficient", [1.0, 0.6])
@pytest.mark.parametrize("problem", [LINEAR, SHARED, BENT, COS], ids=lambda p: p.name)
def test_the_delta_method_written_out(problem, coefficient):
    noise = noise_for(problem)
    guide = problem.guide(problem.parameters["phi"])
    loc, scale = guide.loc, guide.scale
    there, g, H = derivatives(problem, loc)
    of_loc, of_scale = torch.zeros_like(loc), torch.zeros_like(loc)
    for eps in noise:
        z = loc + scale * eps
        log_p = problem.log_joint(problem.parameters["theta"], z)
        log_q = torch.distributions.Normal(loc, scale).log_prob(z).sum(-1)
        taylor = there + torch.einsum("nd,nd->n", g, z - loc) + 0.5 * torch.einsum("nd,nde,ne->n", z - loc, H, z - loc)
        signal = (log_p - log_q - coefficient * (taylor - log_q))[:, None] / 4
        of_loc, of_scale = of_loc + signal * eps / scale, of_scale + signal * (eps**2 - 1) / scale
    diagonal = torch.diagonal(H, dim1=1, dim2=2)
    of_loc, of_scale = of_loc + coefficient * g, of_scale + coefficient * (diagonal * scale + 1 / scale)
    got = estimators.get("delta-method", num_samples=4, coefficient=coefficient).gradient(
        problem, problem.parameters, noise
    )
    same(got, by_hand(problem, noise, of_loc, of_scale))


@pytest.mark.parametrize("form", ["full", "diagonal", "product"])
@pytest.mark.parametrize("problem", [LINEAR, SHARED, BENT, COS], ids=lambda p: p.name)
def test_the_hessian_control_variate_written_out(problem, form):
    """Reparameterised, minus the gradient of the (live) linearised objective, plus its mean, sample by sample."""
    noise = noise_for(problem)
    guide = problem.guide(problem.parameters["phi"])
    loc, scale = guide.loc, guide.scale
    _, g, H = derivatives(problem, loc)
    diagonal = torch.diag_embed(torch.diagonal(H, dim1=1, dim2=2))
    of_loc, of_scale = torch.zeros_like(loc), torch.zeros_like(loc)
    for k, eps in enumerate(noise):
        _, slope, _ = derivatives(problem, loc + scale * eps)
        A = diagonal if form == "diagonal" else H
        B = A
        if form == "product":
            found = [noise[j] * torch.einsum("nde,ne->nd", H, scale * noise[j]) / scale for j in range(4) if j != k]
            B = torch.diag_embed(torch.stack(found).mean(0))
        of_loc = of_loc + slope - (g + torch.einsum("nde,ne->nd", A, scale * eps)) + g
        linear = eps * (g + torch.einsum("nde,ne->nd", B, scale * eps))
        of_scale = of_scale + eps * slope + 1 / scale - linear + torch.diagonal(B, dim1=1, dim2=2) * scale
    got = estimators.get("hessian-control-variate", num_samples=4, hessian=form).gradient(
        problem, problem.parameters, noise
    )
    same(got, by_hand(problem, noise, of_loc / 4, of_scale / 4))


@pytest.mark.parametrize("problem", [LINEAR, SHARED, BENT], ids=lambda p: p.name)
def test_score_coefficient_runs_from_the_total_derivative_to_sticking_the_landing(problem):
    noise = noise_for(problem)
    for c, name in ((0.0, "reparameterization"), (1.0, "sticking-the-landing")):
        fixed = estimators.get("score-coefficient", num_samples=4, coefficient=c, learnt=False)
        assert warmed_up(fixed, problem, problem.parameters, torch.Generator()) is fixed
        same(fixed.gradient(problem, problem.parameters, noise),
             estimators.get(name, num_samples=4).gradient(problem, problem.parameters, noise))  # fmt: skip


@pytest.mark.parametrize("problem", [LINEAR, SHARED, BENT], ids=lambda p: p.name)
def test_lax_written_out(problem):
    """Sample by sample: the score with the surrogate taken away, and the surrogate's total derivative with psi held."""
    estimator = learnt("lax", problem, num_samples=4)
    s, noise = estimator.state, noise_for(problem)
    phi = {name: leaf.clone().requires_grad_() for name, leaf in problem.parameters["phi"].items()}

    def c(z):
        u = z - s["centre.0"]
        bent = s["psi.constant"] + (s["psi.linear.0"] * u + s["psi.square.0"] * u**2).sum(-1)
        return s["mean"] + s["deviation"] * bent

    total = torch.zeros((), dtype=torch.float64)
    for eps in noise:
        guide = problem.guide(phi)
        z = guide.loc + guide.scale * eps
        held = z.detach()
        log_q = torch.distributions.Normal(guide.loc, guide.scale).log_prob(held).sum(-1)
        log_w = (problem.log_joint(problem.parameters["theta"], held) - log_q).detach()
        total = total + ((log_w - c(held)) * log_q + c(z)).mean() / 4
    expected = torch.autograd.grad(total, list(phi.values()))
    got = estimator.gradient(problem, problem.parameters, noise)
    for name, leaf in zip(phi, expected, strict=True):
        torch.testing.assert_close(got.phi[name], leaf, rtol=1e-9, atol=1e-11)
    assert all(float(s[f"psi.{part}.0"].abs().max()) > 1e-3 for part in ("linear", "square"))


def test_lax_with_log_w_itself_for_surrogate_is_sticking_the_landing():
    """On a Gaussian in one dimension log w is a parabola, so it can be had: the score's term is gone."""
    problem, p = GAUSSIAN, GAUSSIAN.parameters
    z = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)[:, None, None]
    log_w = problem.log_joint(p["theta"], z) - problem.guide(p["phi"]).log_prob(z)
    y = log_w[:, 0]
    square = (y[2] - 2 * y[1] + y[0]) / 2
    linear, constant = y[1] - y[0] - square, y[0]
    state = {"deviation": torch.ones(()).double(), "psi.constant": constant, "psi.linear.0": linear.reshape(1, 1),
             "psi.square.0": square.reshape(1, 1), "centre.0": torch.zeros(1, 1).double(),
             "mean": torch.zeros(()).double()}  # fmt: skip
    noise = noise_for(problem)
    same(estimators.LAX(4, state=state).gradient(problem, p, noise),
         estimators.StickingTheLanding(4).gradient(problem, p, noise))  # fmt: skip


@pytest.mark.parametrize("problem", [GAUSSIAN, EXP, COS], ids=lambda p: p.spec)
def test_the_score_coefficient_that_is_learnt_is_nearly_the_best(problem):
    """The exact variance is a parabola in c: its lowest point from three of its values, and the learnt one within 10 % of it."""
    exact = {
        c: phi_variance(estimators.ScoreCoefficient(1, coefficient=c, learnt=False), problem) for c in (-1.0, 0.0, 1.0)
    }
    curve, slope = (exact[1.0] + exact[-1.0]) / 2 - exact[0.0], (exact[1.0] - exact[-1.0]) / 2
    best = exact[0.0] - slope**2 / (4 * curve)
    found = phi_variance(learnt("score-coefficient", problem), problem)
    assert best - 1e-9 <= found < best + 0.1 * (max(exact[0.0], exact[1.0]) - best)
    assert best < 0.95 * min(exact.values())


@pytest.mark.parametrize("problem", [GAUSSIAN, EXP, COS], ids=lambda p: p.spec)
def test_lax_finds_most_of_what_a_parabola_can_do(problem):
    """Exact variances of single samples at the learnt state; the least one is a least-squares problem on the nodes."""
    x, w = gauss_hermite(200)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones((), dtype=torch.float64)

    def rows(state):
        found = vmap(lambda noise: estimators.LAX(1, state=state).gradient(problem, problem.parameters, noise))(
            x[:, None, None, None]
        )
        return w[:, None].sqrt() * torch.cat([leaf.reshape(200, -1) for leaf in found.phi.values()], 1)

    names = ["psi.constant", "psi.linear.0", "psi.square.0"]
    level = {"mean": one - 1, "deviation": one, "centre.0": zero[None], **dict.fromkeys(names[1:], zero[None])}
    level["psi.constant"] = zero
    start = rows(level)
    effects = torch.stack([(rows(level | {name: level[name] + 1}) - start).reshape(-1) for name in names], -1)
    left = start.reshape(-1) - effects @ torch.linalg.lstsq(effects, start.reshape(-1)[:, None]).solution[:, 0]
    mean = sum(float(leaf) ** 2 for leaf in problem.exact(Target("elbo")).gradient["phi"].values())
    least, score = float(left.square().sum()) - mean, phi_variance(estimators.ScoreFunction(1), problem)
    for seed in (0, 1):
        state = learnt("lax", problem, seed, num_samples=8).state
        found = phi_variance(estimators.LAX(1, state=state), problem)
        assert least - 1e-9 <= found < least + 0.2 * (score - least)


@pytest.mark.parametrize("name", GAUSSIAN_NAMES)
def test_two_latents_that_are_not_gaussian(name):
    mean, _ = exact_expectation(estimators.get(name), BENT, BENT.parameters, nodes=60)
    close(mean, BENT)


@pytest.mark.parametrize("problem", [GAUSSIAN, LINEAR, SHARED], ids=lambda p: p.name)
@pytest.mark.parametrize("name", ["delta-method", "hessian-control-variate"])
def test_no_variance_on_a_gaussian_target(name, problem):
    rows = stacked(estimators.get(name), problem, problem.parameters, 50, torch.Generator().manual_seed(0))
    phi = rows[:, -sum(leaf.numel() for leaf in problem.parameters["phi"].values()) :]
    assert float(phi.std(0).max()) < 1e-10 * float(phi.abs().max())


def test_a_diagonal_hessian_leaves_what_is_off_the_diagonal():
    """LINEAR's posterior is correlated: no noise with all of H, some with its diagonal, and less than without any."""
    one, other = (
        stacked(estimators.get(name, **more), LINEAR, LINEAR.parameters, 4000, torch.Generator().manual_seed(0))
        for name, more in (("hessian-control-variate", {"hessian": "diagonal"}), ("reparameterization", {}))
    )
    spread = [float(rows[:, -12:].var(0).sum()) for rows in (one, other)]
    assert 1e-3 < spread[0] < 0.5 * spread[1]


@pytest.mark.parametrize("problem", [EXP, COS], ids=lambda p: p.spec)
def test_the_control_variates_pay(problem):
    """Exactly: the delta method less noisy than the best constant baseline, Miller's than the total derivative."""
    best = sum(problem._reference.variance("optimal-baseline", name) for name in ("loc", "scale"))
    assert phi_variance(estimators.get("delta-method", coefficient=0.0), problem) == pytest.approx(
        problem.exact_variance("score-function", 1, "phi"), rel=1e-8
    )
    assert phi_variance(estimators.get("hessian-control-variate"), problem) < problem.exact_variance(
        "reparameterization", 1, "phi"
    )
    assert best < problem.exact_variance("score-function", 1, "phi")
