"""Relaxations: draw by draw from their formulas, their expectations over all noise, and the objective that they relax."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

import estimators
from benchmarks.problems import CategoricalMixture, Gaussian1D, SigmoidBeliefNet
from estimators import Refusal, Target
from estimators.concrete import relaxation_of
from estimators.quadrature import exact_expectation, product
from estimators.replicates import warmed_up
from estimators.testing import assert_unbiased

ONE = [SigmoidBeliefNet(dim=1, data_dim=3, seed=1), SigmoidBeliefNet(dim=1, data_dim=4, seed=5, coupling=2.0)]
TWO = [SigmoidBeliefNet(dim=2, data_dim=3, seed=4), SigmoidBeliefNet(dim=2, data_dim=2, seed=7, points=2)]
SEVERAL = SigmoidBeliefNet(dim=3, data_dim=4, seed=3, points=2)
MIXTURE = CategoricalMixture(dim=1, values=3, data_dim=2, seed=2, points=2)
ELBO = Target("elbo")
SETTINGS = [{"temperature": 0.5, "eta": 1.0}, {"temperature": 1.3, "eta": 0.4}]


def cells(edges, step=0.11):
    """Nodes and weights for a uniform number, doubly exponential towards the ends of each cell."""
    t = torch.arange(-3.0, 3.0 + step / 2, step, dtype=torch.float64)
    inner, weight = (math.pi * t.sinh()).sigmoid(), math.pi * t.cosh() * step
    weight = weight * inner * (1 - inner)
    bounds = [0.0, *edges, 1.0]
    pieces = [(low + (high - low) * inner, (high - low) * weight) for low, high in itertools.pairwise(bounds)]
    return torch.cat([x for x, _ in pieces]), torch.cat([w for _, w in pieces])


def grid(problem, *, conditional=False, step=0.11):
    """All noise of one sample of one point's binary latents, and of what is drawn given them."""
    (probs,) = problem.guide(problem.parameters["phi"]).probs.tolist()
    points, weight = product([cells([p], step) for p in probs] + [cells([], step)] * conditional * len(probs))
    u, v = points[:, None, None, : len(probs)], points[:, None, None, len(probs) :]
    return ((u, v) if conditional else u), weight


def flat(problem, reference):
    """A reference as the columns of `flatten`."""
    blocks = [reference.gradient[b][n].reshape(-1) for b in ("theta", "phi") for n in problem.parameters[b]]
    return torch.cat([torch.tensor([reference.value], dtype=torch.float64), *blocks])


def phi_of(problem, row):
    return row[-sum(leaf.numel() for leaf in problem.parameters["phi"].values()) :]


def some_state(problem, seed=0):
    """Any state of RELAX: it must be unbiased at every one."""
    generator = torch.Generator().manual_seed(seed)
    logits = problem.parameters["phi"]["logits"]

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "psi.eta": 1 + 0.3 * normal(),
        "psi.log_temperature": -0.3 * normal().abs(),
        "psi.constant": normal(*logits.shape[:-1]),
        "psi.linear": normal(*logits.shape),
        "psi.square": normal(*logits.shape),
        "mean": normal(),
        "deviation": normal().exp(),
    }


# --- the relaxation itself ------------------------------------------------------------------------------------------------


def test_a_binary_variable_given_its_value_has_the_truncated_logistic_law():
    """The distribution function of z given b, at z~(v): it is v, or 1 - v, for every v."""
    logits = torch.linspace(-3, 3, 7, dtype=torch.float64)
    p = logits.sigmoid()
    v = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)[:, None]
    relaxation = relaxation_of(estimators.Bernoulli(logits))
    for b in (0.0, 1.0):
        z = relaxation.conditional(torch.full_like(v * logits, b), v)
        assert bool((relaxation.hard(z) == b).all())
        below = (z - logits).sigmoid()  # P(Z <= z)
        risen = (below - (1 - p)) / p if b else 1 - below / (1 - p)
        torch.testing.assert_close(risen, v.expand_as(risen), rtol=0, atol=1e-12)


def test_a_categorical_variable_given_its_value_is_a_race_with_a_known_winner():
    """exp(-z) are arrival times of rates p; the first is of rate one, and what the others still wait has their own rates."""
    logits = torch.tensor([[0.3, -1.0, 1.2]], dtype=torch.float64)
    relaxation = relaxation_of(estimators.Categorical(logits))
    v = torch.rand(200, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for k in range(3):
        b = torch.eye(3, dtype=torch.float64)[k].expand_as(v)
        z = relaxation.conditional(b, v)
        assert torch.equal(relaxation.hard(z), b)
        arrival = (-z).exp()
        first = arrival[..., k : k + 1]
        torch.testing.assert_close(first, -v[..., k : k + 1].log())
        waited = (arrival - first) * logits.softmax(-1)
        others = [i for i in range(3) if i != k]
        torch.testing.assert_close(waited[..., others], -v[..., others].log(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_the_conditional_slope_is_that_of_the_conditional(kind):
    """At the v for which z~ = z, found by solving for it; its derivative then by autograd."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    guide = estimators.Bernoulli(logits) if kind == "bernoulli" else estimators.Categorical(logits)
    relaxation = relaxation_of(guide)
    z = relaxation.perturbed(relaxation.noise((40,), generator))
    b = relaxation.hard(z)
    if kind == "bernoulli":
        p, below = logits.sigmoid(), (z - logits).sigmoid()
        v = torch.where(b > 0, (below - 1 + p) / p, 1 - below / (1 - p))
    else:
        arrival = (-z).exp()
        first = arrival.amin(-1, keepdim=True)
        v = (-torch.where(b > 0, first, (arrival - first) * relaxation.logits.exp())).exp()
    live = relaxation.logits.expand_as(z).clone().requires_grad_()
    again = replace(relaxation, logits=live).conditional(b, v)
    torch.testing.assert_close(again.detach(), z, rtol=1e-8, atol=1e-8)
    (slope,) = torch.autograd.grad(again.sum(), live)
    torch.testing.assert_close(relaxation.conditional_slope(z), slope, rtol=1e-7, atol=1e-8)


# --- draw by draw ---------------------------------------------------------------------------------------------------------


def log_w(problem, logits, z):
    log_q = (z * logits - torch.nn.functional.softplus(logits)).sum(-1)
    return problem.log_joint(problem.parameters["theta"], z) - log_q


def written_out(problem, u, v, control):
    """REBAR's phi-gradient by plain autograd, z~ as Tucker et al. write it; ``v=None``: the one for which z~ = z."""
    logits = problem.parameters["phi"]["logits"].clone().requires_grad_()
    p = logits.sigmoid()
    b = (u < p).double()
    if v is None:
        v = torch.where(b > 0, 1 - u / p, (u - p) / (1 - p)).detach()
    z = logits + torch.log((1 - u) / u)
    above, below = torch.log(v / ((1 - v) * (1 - p)) + 1), -torch.log(v / ((1 - v) * p) + 1)
    again = torch.where(b > 0, above, below)
    signal = (log_w(problem, logits, b) - control(again)).detach()
    score = (b * torch.log(p) + (1 - b) * torch.log(1 - p)).sum(-1)
    total = (signal * score + control(z) - control(again)).mean()
    return torch.autograd.grad(total, logits)[0]


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_rebar_written_out(coupled, settings):
    estimator = estimators.get("rebar", num_samples=4, coupled=coupled, **settings)
    problem, held = SEVERAL, SEVERAL.parameters["phi"]["logits"]
    (draw,) = estimator.draws(problem.guide(problem.parameters["phi"]), 3, torch.Generator().manual_seed(0))

    def control(z):
        return settings["eta"] * log_w(problem, held, torch.sigmoid(z / settings["temperature"]))

    for row in range(3):
        u, v = (draw.noise[row], None) if coupled else (draw.noise[0][row], draw.noise[1][row])
        got = estimator.gradient(problem, problem.parameters, u if coupled else (u, v))
        torch.testing.assert_close(got.phi["logits"], written_out(problem, u, v, control), rtol=1e-8, atol=1e-10)
        plain = estimators.get("score-function", num_samples=4).gradient(problem, problem.parameters, u)
        torch.testing.assert_close(got.value, plain.value)  # theta and the value are those at b
        for name, leaf in plain.theta.items():
            torch.testing.assert_close(got.theta[name], leaf, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("coupled", [True, False])
def test_relax_written_out(coupled):
    state = some_state(SEVERAL)
    estimator = estimators.get("relax", num_samples=4, coupled=coupled, state=state)
    problem, held = SEVERAL, SEVERAL.parameters["phi"]["logits"]
    (draw,) = estimator.draws(problem.guide(problem.parameters["phi"]), 1, torch.Generator().manual_seed(0))
    u, v = (draw.noise[0], None) if coupled else (draw.noise[0][0], draw.noise[1][0])

    def control(z):
        relaxed = log_w(problem, held, torch.sigmoid(z / state["psi.log_temperature"].exp()))
        s = torch.sigmoid(z)
        bends = (state["psi.linear"] * s + state["psi.square"] * s**2).sum(-1)
        return state["psi.eta"] * relaxed + state["deviation"] * (state["psi.constant"] + bends)

    got = estimator.gradient(problem, problem.parameters, u if coupled else (u, v)).phi["logits"]
    torch.testing.assert_close(got, written_out(problem, u, v, control), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["gumbel-softmax", "straight-through", "straight-through-gumbel"])
def test_the_others_written_out(name):
    settings = {} if name == "straight-through" else {"temperature": 0.7}
    problem, theta = SEVERAL, SEVERAL.parameters["theta"]
    u = torch.rand(4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    live = {n: leaf.clone().requires_grad_() for n, leaf in theta.items()}
    logits = problem.parameters["phi"]["logits"].clone().requires_grad_()
    soft = torch.sigmoid((logits + torch.log((1 - u) / u)) / 0.7)
    if name == "gumbel-softmax":
        log_q = (soft * logits - torch.nn.functional.softplus(logits)).sum(-1)
        total = (problem.log_joint(live, soft) - log_q).mean()
        of_phi, *of_theta = torch.autograd.grad(total, [logits, *live.values()])
    else:
        b = (u < logits.sigmoid()).double().requires_grad_()
        at_b = problem.log_joint(live, b) - (b * logits.detach()).sum(-1)
        slope, *of_theta = torch.autograd.grad(at_b.mean(), [b, *live.values()])
        passed = torch.sigmoid(logits).expand_as(u) if name == "straight-through" else soft
        (of_phi,) = torch.autograd.grad((slope * passed).sum(), logits)
    got = estimators.get(name, num_samples=4, **settings).gradient(problem, problem.parameters, u)
    torch.testing.assert_close(got.phi["logits"], of_phi, rtol=1e-9, atol=1e-12)
    for leaf, expected in zip(got.theta.values(), of_theta, strict=True):
        torch.testing.assert_close(leaf, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("problem", [SEVERAL, MIXTURE], ids=lambda p: p.name)
@pytest.mark.parametrize("coupled", [True, False])
def test_without_its_control_variate_rebar_is_the_score_function(problem, coupled):
    estimator = estimators.get("rebar", num_samples=3, eta=0.0, coupled=coupled)
    (draw,) = estimator.draws(problem.guide(problem.parameters["phi"]), 1, torch.Generator().manual_seed(0))
    noise = draw.noise[0] if coupled else (draw.noise[0][0], draw.noise[1][0])
    phi = problem.parameters["phi"]
    b = estimator.latents(problem, phi, noise)
    signal = problem.log_joint(problem.parameters["theta"], b) - problem.guide(phi).log_prob(b)
    score = torch.func.grad(lambda phi: (signal * problem.guide(phi).log_prob(b)).mean())(phi)
    got = estimator.gradient(problem, problem.parameters, noise)
    torch.testing.assert_close(got.phi, score)


# --- expectations over all noise ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", ["rebar", "relax"])
@pytest.mark.parametrize(
    ("problem", "coupled"),
    [(ONE[0], True), (ONE[1], True), (ONE[0], False), (ONE[1], False), (TWO[0], True)],
    ids=str,
)
def test_control_variates_leave_the_expectation_alone(name, problem, coupled, settings):
    """In value, theta and phi, against the derivative of the sum over the states; at an arbitrary state where there is one."""
    exact = flat(problem, problem.exact(ELBO))
    states = [None] if name == "rebar" else [None, some_state(problem)]
    for state in states:
        estimator = estimators.get(name, coupled=coupled, state=state, **settings)
        noise = grid(problem, conditional=not coupled)
        mean, _ = exact_expectation(estimator, problem, problem.parameters, grid=noise)
        torch.testing.assert_close(mean, exact, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["rebar", "relax"])
def test_categorical_latents_given_what_was_drawn(name):
    """The noise that is drawn anew; what is coupled is on `gradest check`'s panel. False alarms: 1e-9."""
    estimator = estimators.get(name, num_samples=2, coupled=False)
    reference = MIXTURE.exact(ELBO)
    truth = {"value": reference.value, **reference.gradient}
    assert_unbiased(estimator, MIXTURE, MIXTURE.parameters, truth, seed=3)


@pytest.mark.parametrize("temperature", [0.3, 0.5, 1.5])
@pytest.mark.parametrize("problem", [*ONE, TWO[0]], ids=str)
def test_gumbel_softmax_is_unbiased_for_the_relaxed_objective(problem, temperature):
    estimator = estimators.get("gumbel-softmax", temperature=temperature)
    reference = problem.exact(estimator.targets["phi"])
    mean, _ = exact_expectation(estimator, problem, problem.parameters, grid=grid(problem, step=0.06))
    torch.testing.assert_close(mean, flat(problem, reference), rtol=1e-7, atol=1e-8)


def test_gumbel_softmax_is_biased_for_the_elbo():
    """The positive control, in both blocks and in the value."""
    for problem in (*ONE, TWO[0]):
        estimator = estimators.get("gumbel-softmax")
        mean, _ = exact_expectation(estimator, problem, problem.parameters, grid=grid(problem))
        exact = flat(problem, problem.exact(ELBO))
        size = len(phi_of(problem, exact))
        for part in (slice(0, 1), slice(1, -size), slice(-size, None)):
            assert float((mean - exact)[part].norm()) > 0.01 * float(exact[part].norm())


@pytest.mark.parametrize("problem", [MIXTURE, CategoricalMixture(dim=1, values=2, data_dim=2, seed=5), TWO[1]], ids=str)
def test_gumbel_softmax_on_labels_and_on_several_points(problem):
    """Gumbel numbers that are drawn, against the density of their differences. False alarms: 1e-9."""
    estimator = estimators.get("gumbel-softmax", num_samples=2, temperature=0.6)
    reference = problem.exact(estimator.targets["phi"])
    truth = {"value": reference.value, **reference.gradient}
    assert_unbiased(estimator, problem, problem.parameters, truth, seed=2)


@pytest.mark.parametrize("name", ["straight-through", "straight-through-gumbel"])
@pytest.mark.parametrize("problem", [*ONE, TWO[0]], ids=str)
def test_straight_through_is_right_in_theta_and_wrong_in_phi(problem, name):
    mean, _ = exact_expectation(estimators.get(name), problem, problem.parameters, grid=grid(problem))
    exact = flat(problem, problem.exact(ELBO))
    size = len(phi_of(problem, exact))
    torch.testing.assert_close(mean[:-size], exact[:-size], rtol=1e-8, atol=1e-9)
    assert float((mean - exact)[-size:].norm()) > 0.02 * float(exact[-size:].norm())


def test_straight_through_is_exact_where_f_is_linear_and_its_gumbel_form_is_not():
    problem = SigmoidBeliefNet(dim=2, data_dim=3, seed=4, coupling=0.0)
    exact = flat(problem, problem.exact(ELBO))
    for name, right in (("straight-through", True), ("straight-through-gumbel", False)):
        mean, _ = exact_expectation(estimators.get(name), problem, problem.parameters, grid=grid(problem))
        distance = float((phi_of(problem, mean) - phi_of(problem, exact)).norm())
        assert (distance < 1e-9) == right
        assert right or distance > 0.05 * float(phi_of(problem, exact).norm())


# --- what it buys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coupled", [True, False])
def test_what_is_learnt_lowers_the_variance(coupled):
    """Exact variances: the score function's, REBAR's, and RELAX's after it has learnt."""
    problem = ONE[1] if not coupled else TWO[0]
    noise = grid(problem, conditional=not coupled)
    parts = {}
    for name in ("score-function", "rebar", "relax"):
        estimator = estimators.get(name, **({} if name == "score-function" else {"coupled": coupled}))
        estimator = warmed_up(estimator, problem, problem.parameters, torch.Generator().manual_seed(0))
        own = (noise[0][0] if name == "score-function" and not coupled else noise[0], noise[1])
        _, variance = exact_expectation(estimator, problem, problem.parameters, grid=own)
        parts[name] = float(phi_of(problem, variance).sum())
    assert parts["relax"] < 0.8 * parts["rebar"] < 0.8 * 0.8 * parts["score-function"], parts


def test_before_it_learns_relax_is_rebar_and_learning_changes_no_estimator():
    start = estimators.get("relax", num_samples=2, temperature=0.8, eta=0.6)
    rebar = estimators.get("rebar", num_samples=2, temperature=0.8, eta=0.6)
    (draw,) = start.draws(SEVERAL.guide(SEVERAL.parameters["phi"]), 1, torch.Generator().manual_seed(0))
    noise = draw.noise[0]
    plain = rebar.gradient(SEVERAL, SEVERAL.parameters, noise).phi
    torch.testing.assert_close(start.gradient(SEVERAL, SEVERAL.parameters, noise).phi, plain)
    learnt = start.adapted(SEVERAL, SEVERAL.parameters, noise)
    assert start.state is None
    assert learnt.state["psi.eta"] != 0.6 and bool(learnt.state["psi.linear"].ne(0).all())
    fresh = replace(start, state=start._start(noise[0], torch.zeros(2, 2, dtype=torch.float64)))
    fresh = replace(fresh, state={**fresh.state, "deviation": torch.tensor(1.0, dtype=torch.float64)})
    torch.testing.assert_close(fresh.gradient(SEVERAL, SEVERAL.parameters, noise).phi, plain)


# --- edges ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["rebar", "relax", "gumbel-softmax", "straight-through", "straight-through-gumbel"])
def test_noise_at_the_ends_of_its_range(name, dtype):
    """Generators give 0, and numbers that round to 1 from below."""
    for problem in (SigmoidBeliefNet(dim=2, dtype=dtype), CategoricalMixture(dim=1, values=2, dtype=dtype)):
        for coupled in (True, False) if name in ("rebar", "relax") else (True,):
            settings = {"coupled": coupled} if name in ("rebar", "relax") else {}
            estimator = estimators.get(name, num_samples=2, **settings)
            kind = getattr(torch, dtype)
            u = torch.tensor([0.0, 1 - torch.finfo(kind).eps / 2], dtype=kind)
            (draw,) = estimator.draws(problem.guide(problem.parameters["phi"]), 1, torch.Generator())
            shape = (draw.noise if coupled else draw.noise[0])[0].shape
            ends = u.reshape(2, *[1] * (len(shape) - 1)).expand(shape).contiguous()
            got = estimator.gradient(problem, problem.parameters, ends if coupled else (ends, ends.flip(0)))
            assert all(bool(leaf.isfinite().all()) for leaf in (*got.theta.values(), *got.phi.values()))


def test_refusals():
    for name in ("rebar", "relax", "gumbel-softmax", "straight-through-gumbel"):
        with pytest.raises(Refusal, match="temperature above 0, not 0"):
            estimators.get(name, temperature=0.0)
    with pytest.raises(Refusal, match="finite eta"):
        estimators.get("rebar", eta=math.inf)
    assert "relaxable" in estimators.get("straight-through").refuses(Gaussian1D())
    with pytest.raises(TypeError, match="Bernoulli or categorical variables"):
        relaxation_of(Gaussian1D().guide(Gaussian1D().parameters["phi"]))
