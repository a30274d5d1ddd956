"""Pyro's losses as estimators of this suite: the same densities, the same gradient per draw, the same expectation."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro_cases import GAUSSIAN, PROBLEMS, leaves, recorded
from torch import Tensor
from torch.func import grad, vmap

import estimators
from benchmarks import cost
from benchmarks.problems import Gaussian1D, LinearGaussian, Rainforth, SigmoidBeliefNet
from benchmarks.references import pyro_models
from benchmarks.references.pyro_losses import (
    LOSSES,
    PyroLoss,
    PyroRenyiELBO,
    PyroTraceELBO,
    PyroTraceEnumELBO,
    PyroTraceMeanFieldELBO,
)
from benchmarks.references.pyro_models import Twin, latent_sites, twin
from benchmarks.registry import Registry
from estimators import BLOCKS, Gradient, Parameters, Refusal
from estimators.trees import tree_map

Z_LIMIT = 4.5


each_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
each_loss = pytest.mark.parametrize("kind", LOSSES, ids=lambda kind: kind.name)


@each_problem
def test_twin_has_the_densities_of_the_problem(problem):
    parameters = problem.parameters
    with pyro.get_param_store().scope():
        torch.manual_seed(3)
        model, guide = twin(problem, parameters)
        guide_trace = poutine.trace(guide).get_trace()
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace()
        guide_trace.compute_log_prob()
        model_trace.compute_log_prob()
        z = tree_map(torch.Tensor.detach, guide_trace.nodes["_RETURN"]["value"])
        sites = latent_sites(problem)
        assert sites == [
            name for name, node in guide_trace.nodes.items() if node["type"] == "sample" and name != "data"
        ]
        log_p = sum(model_trace.nodes[name]["log_prob"] for name in (*sites, "x"))
        # Each data point's, not only their sum: Renyi weights are made of them.
        torch.testing.assert_close(log_p, problem.log_joint(parameters["theta"], z), rtol=1e-13, atol=1e-12)
        log_q = problem.guide(parameters["phi"]).log_prob(z)
        found = sum(guide_trace.nodes[name]["log_prob"] for name in sites)
        torch.testing.assert_close(found, log_q, rtol=1e-13, atol=1e-12)
        torch.testing.assert_close(model_trace.log_prob_sum(), problem.log_joint(parameters["theta"], z).sum())


def exact_linear_gaussian_elbo(problem: LinearGaussian, parameters: Parameters) -> Tensor:
    """E_q log p(x|z) - KL(q || p(z)) in closed form, mean over data points."""
    theta, phi = parameters["theta"], parameters["phi"]
    variance = (2 * phi["log_scale"]).exp()
    noise_variance = (2 * theta["log_noise_scale"]).exp()
    residual = problem.data - phi["loc"] @ theta["weight"].T - theta["bias"]
    squares = residual.square().sum(-1) + variance @ theta["weight"].square().sum(0)
    likelihood = -0.5 * problem.data_dim * (2 * math.pi * noise_variance).log() - squares / (2 * noise_variance)
    kl = 0.5 * (variance + phi["loc"].square() - 1 - variance.log()).sum(-1)
    return (likelihood - kl).mean()


def z_scores(gradient: Gradient, exact: dict[str, Tensor], other: dict[str, Tensor] | None = None) -> float:
    """The largest |mean - exact| in standard errors; `other`: variances of the mean of ``exact`` where it is one."""
    largest = 0.0
    for name, leaf in leaves(gradient).items():
        error = leaf.mean(0) - exact[name]
        variance = leaf.var(0) / len(leaf) + (0.0 if other is None else other[name])
        # Noise-free coordinates are compared to rounding.
        score = error.abs() / torch.where(variance > 1e-24, variance.sqrt(), 1e-12)
        largest = max(largest, float(score.max()))
    return largest


@pytest.mark.parametrize(("kind", "num_samples"), [(PyroTraceELBO, 1), (PyroTraceELBO, 4), (PyroTraceMeanFieldELBO, 2)])
def test_expectation_is_the_exact_elbo_gradient(kind, num_samples):
    problem = LinearGaussian(dim=2, data_dim=3, points=2, noise_scale=0.8)
    exact = grad(lambda parameters: exact_linear_gaussian_elbo(problem, parameters))(problem.parameters)
    value = exact_linear_gaussian_elbo(problem, problem.parameters)
    gradient = kind(num_samples=num_samples).gradients(problem, problem.parameters, replicates=1000, seed=21)
    assert z_scores(gradient, leaves(Gradient(value, exact["theta"], exact["phi"]))) < Z_LIMIT


def test_renyi_has_the_expectation_of_iwae_and_not_of_another_number_of_samples():
    problem = Gaussian1D(loc=-0.5, scale=1.5, x=1.0)
    theirs = PyroRenyiELBO(num_samples=3).gradients(problem, problem.parameters, replicates=2500, seed=22)

    def score(num_samples: int, replicates: int = 50_000) -> float:
        ours = estimators.get("iwae", num_samples=num_samples)
        generator = torch.Generator().manual_seed(23)
        (draw,) = ours.draws(problem.guide(problem.parameters["phi"]), replicates, generator)
        sample = leaves(vmap(lambda noise: ours.gradient(problem, problem.parameters, noise))(draw.noise))
        mean = {name: leaf.mean(0) for name, leaf in sample.items()}
        return z_scores(theirs, mean, {name: leaf.var(0) / replicates for name, leaf in sample.items()})

    assert score(3) < Z_LIMIT
    # The comparison has the power to see K forgotten, or miscounted by one.
    assert score(1) > 2 * Z_LIMIT
    assert score(2) > 2 * Z_LIMIT


def test_weights_are_joint_where_plates_are_not_shared(monkeypatch):
    """What the twins avoid: with z and x in plates of their own, Pyro weighs all data points by one number."""
    problem = Rainforth(dim=2, points=3, perturbation=0.3)
    shared = pyro_models.TWINS["rainforth"]

    def apart(problem: Rainforth, parameters: Parameters) -> Twin:
        def model() -> Tensor:
            theta = pyro_models.declare("theta", parameters)
            with pyro.plate("data", 3):
                z = pyro.sample("z", dist.Normal(theta["prior_loc"], 1.0).to_event(1))
            with pyro.plate("observations", 3):
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=problem.data)
            return z

        return Twin(model, shared(problem, parameters).guide)

    monkeypatch.setitem(pyro_models.TWINS, "rainforth", apart)
    drawn = recorded(monkeypatch, problem)
    theirs = PyroRenyiELBO(num_samples=4).gradients(problem, problem.parameters, replicates=1, seed=5)
    theta, phi = (problem.parameters[block] for block in BLOCKS)
    (z,) = drawn
    log_w = problem.log_joint(theta, z) - problem.guide(phi).log_prob(z)
    joint = (log_w.sum(1).logsumexp(0) - math.log(4)) / 3
    per_point = (log_w.logsumexp(0) - math.log(4)).mean()
    torch.testing.assert_close(theirs.value[0], joint)
    assert abs(joint - per_point) > 0.01


@each_loss
def test_the_seed_decides_and_nothing_global_changes(kind):
    problem = LinearGaussian(points=1)
    torch.manual_seed(99)
    pyro.get_param_store().clear()
    mine = pyro.param("theta.weight", torch.ones(2))  # of a name that the twin uses as well
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    try:
        first = kind(num_samples=2).gradients(problem, problem.parameters, replicates=3, seed=7)
        again = kind(num_samples=2).gradients(problem, problem.parameters, replicates=3, seed=7)
        fewer = kind(num_samples=2).gradients(problem, problem.parameters, replicates=2, seed=7)
        other = kind(num_samples=2).gradients(problem, problem.parameters, replicates=3, seed=8)
        assert list(pyro.get_param_store().keys()) == ["theta.weight"]
        assert pyro.param("theta.weight").unconstrained() is mine.unconstrained()
    finally:
        pyro.get_param_store().clear()
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])
    for name, leaf in leaves(first).items():
        assert torch.equal(leaf.nan_to_num(7.0), leaves(again)[name].nan_to_num(7.0))
        assert torch.equal(leaf[:2].nan_to_num(7.0), leaves(fewer)[name].nan_to_num(7.0))
        assert not leaf.requires_grad
    assert not torch.equal(first.phi["loc"], other.phi["loc"])
    assert not torch.equal(first.phi["loc"][0], first.phi["loc"][1])
    assert first.value.shape == (3,)
    assert first.theta["weight"].shape == (3, *problem.parameters["theta"]["weight"].shape)
    assert not any(leaf.requires_grad for block in problem.parameters.values() for leaf in block.values())


@each_loss
def test_parameters_are_those_handed_in_and_dtype_is_kept(kind):
    problem = LinearGaussian(dim=2, data_dim=3, dtype="float32")
    moved = {block: {name: leaf + 1 for name, leaf in problem.parameters[block].items()} for block in BLOCKS}
    gradient = kind(num_samples=2).gradients(problem, moved, replicates=2, seed=1)
    here = kind(num_samples=2).gradients(problem, problem.parameters, replicates=2, seed=1)
    assert all(leaf.dtype == torch.float32 for leaf in leaves(gradient).values())
    assert not torch.allclose(gradient.theta["bias"], here.theta["bias"])


def test_the_callers_state_survives_an_error(monkeypatch):
    problem = Gaussian1D()

    def broken(problem: Gaussian1D, parameters: Parameters) -> Twin:
        def guide() -> Tensor:
            raise RuntimeError("in the guide")

        return Twin(guide, guide)

    monkeypatch.setitem(pyro_models.TWINS, "gaussian-1d", broken)
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="in the guide"):
        PyroTraceELBO().gradients(problem, problem.parameters, replicates=1, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert not list(pyro.get_param_store().keys())


@pytest.mark.parametrize(
    ("kind", "problem"),
    [(kind, problem) for kind in LOSSES for problem in GAUSSIAN if not kind(num_samples=3).refuses(problem)],
    ids=lambda each: each.name,
)
def test_cost_is_counted(kind, problem):
    estimator = kind(num_samples=3)
    counted = estimator.count(problem, problem.parameters)
    assert counted.evaluations_per_gradient == 3 * len(problem.data)
    assert counted.flops_per_gradient is not None
    ours = Registry().estimator(estimator.beside(problem), 3)
    same = cost.count(ours, problem, problem.parameters, torch.Generator().manual_seed(0))
    assert counted.evaluations_per_gradient == same.evaluations_per_gradient
    # Pyro takes the KL once per particle, and log p(z) and log q(z) whether or not the loss uses them.
    assert 0.8 < counted.flops_per_gradient / same.flops_per_gradient < 8
    assert counted.peak_bytes > 0
    # Counting leaves nothing behind and does not count what is made once.
    assert estimator.count(problem, problem.parameters) == counted


def test_what_is_summed_over_is_counted():
    problem = SigmoidBeliefNet(dim=3, points=2)
    assert PyroTraceEnumELBO().count(problem, problem.parameters).evaluations_per_gradient == 2**3 * 2


@each_loss
def test_a_problem_without_a_twin_is_refused_with_the_reason(kind):
    @dataclass(frozen=True)
    class Other(Gaussian1D):
        name = "other"

    reason = kind(num_samples=2).refuses(Other())
    assert reason is not None
    assert "other has none" in reason


def test_only_what_pyro_itself_refuses_is_needed():
    refused = {kind.name for kind in LOSSES if kind.needs}
    assert refused == {
        "pyro-trace-mean-field-elbo",
        "pyro-jit-trace-mean-field-elbo",
        "pyro-trace-tail-adaptive-elbo",
    }
    for kind in LOSSES:
        if not kind.needs:
            continue
        loss = kind(num_samples=2)
        object.__setattr__(loss, "refuses", lambda problem: None)
        with pytest.raises(NotImplementedError, match="must be fully reparameterized"):
            loss.gradients(SigmoidBeliefNet(dim=1), SigmoidBeliefNet(dim=1).parameters, 1, 0)


@pytest.mark.parametrize(
    ("spec", "problem", "words"),
    [
        ("pyro-trace-mean-field-elbo", "two-layer-gaussian", "the guide draws z1, z2 and the model z2, z1"),
        ("pyro-trace-tmc-elbo", "sigmoid-belief-net", "sites z_0, z_1, z_2 are combined"),
        ("pyro-reweighted-wake-sleep", "linear-gaussian[points=2]", "weighs all 2 data points by one number"),
        ("pyro-trace-tail-adaptive-elbo", "rainforth[points=3]", "weighs all 3 data points by one number"),
        ("pyro-trace-tail-adaptive-elbo", "categorical", "needs reparameterizable"),
    ],
)
def test_what_means_something_else_is_refused_with_the_reason(spec, problem, words):
    registry = Registry()
    reason = registry.estimator(spec, 2).refuses(registry.problem(problem))
    assert reason is not None and words in reason and reason.startswith(spec)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("pyro-renyi-elbo[alpha=1]", "any alpha but 1"),
        ("pyro-trace-graph-elbo[baseline=mean]", "none|average"),
        ("pyro-trace-graph-elbo[decay=1]", "from 0 to below 1"),
        ("pyro-trace-enum-elbo[enumeration=all]", "parallel|sequential|none"),
        ("pyro-trace-tail-adaptive-elbo[beta=0]", "from -1 to below 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(spec, words):
    with pytest.raises(Refusal) as caught:
        Registry().estimator(spec, 2)
    assert words in str(caught.value)


@each_loss
def test_names_and_family_are_the_counterparts(kind: type[PyroLoss]):
    estimator = kind(num_samples=2)
    name = estimator.beside(PROBLEMS[0]).partition("[")[0]
    assert kind.library == "pyro"
    assert kind.name.startswith("pyro-")
    assert (kind.family, kind.min_num_samples <= 2) == (estimators.REGISTRY[name].family, True)
    with pytest.raises(NotImplementedError, match="gradients"):
        kind(num_samples=2).gradient(PROBLEMS[0], PROBLEMS[0].parameters, None)


def test_listing_the_losses_does_not_import_pyro():
    code = "import sys, benchmarks.references, benchmarks.references.pyro_losses; print('pyro' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
