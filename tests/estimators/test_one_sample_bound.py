"""What baselines, control variates and measure-valued derivatives of the ELBO have in common: no bias, precision, cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from one_sample import (
    COS,
    EXP,
    GAUSSIAN,
    LINEAR,
    SHARED,
    close,
    learnt,
)
from torch.func import vmap

import estimators
from benchmarks.cost import count
from estimators import Refusal
from estimators.quadrature import exact_expectation
from estimators.replicates import flatten


@pytest.mark.parametrize("problem", [EXP, COS, GAUSSIAN], ids=lambda p: p.spec)
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("price-first-order", {}), ("delta-method", {}), ("delta-method", {"coefficient": 0.4}),
        ("hessian-control-variate", {}), ("hessian-control-variate", {"hessian": "diagonal"}),
        ("hessian-control-variate", {"hessian": "product", "num_samples": 2}), ("moving-average-baseline", {}),
        ("moving-average-baseline", {"num_samples": 2, "per_point": False}), ("score-coefficient", {}), ("lax", {}),
        ("lax", {"num_samples": 2}), ("price-first-order", {"num_samples": 2}),
    ],
)  # fmt: skip
def test_one_latent(name, settings, problem):
    """Whatever was learnt: at frozen states from two seeds."""
    for seed in (0,) if name == "lax" else (0, 1):
        estimator = learnt(name, problem, seed, **settings)
        mean, _ = exact_expectation(estimator, problem, problem.parameters, nodes=90)
        close(mean, problem)


@pytest.mark.parametrize("problem", [replace(p, dtype="float32") for p in (LINEAR, SHARED)], ids=lambda p: p.name)
@pytest.mark.parametrize(
    "name",
    ["moving-average-baseline", "network-baseline", "optimal-control-variate", "delta-method", "score-coefficient",
     "hessian-control-variate", "lax", "price-first-order", "measure-valued"],
)  # fmt: skip
def test_single_precision(name, problem):
    """The same state and noise in both precisions: to 2e-4 of the largest component."""
    wide = replace(problem, dtype="float64")
    estimator = learnt(name, problem, num_samples=4)
    noise = estimator.draws(problem.guide(problem.parameters["phi"]), 3, torch.Generator().manual_seed(1))[0].noise
    state = None if estimator.state is None else {key: leaf.double() for key, leaf in estimator.state.items()}
    twin = replace(estimator, state=state)
    one = flatten(vmap(lambda n: estimator.gradient(problem, problem.parameters, n))(noise), problem.parameters)
    parameters = {b: {n: t.double() for n, t in leaves.items()} for b, leaves in problem.parameters.items()}
    other = flatten(vmap(lambda n: twin.gradient(wide, parameters, n))(noise.double()), parameters)
    assert one.dtype == torch.float32
    assert float((one - other).abs().max()) < 2e-4 * float(other.abs().max())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("moving-average-baseline", {"decay": 1.0}), ("network-baseline", {"hidden": 0}),
        ("network-baseline", {"decay": -0.1}), ("hessian-control-variate", {"hessian": "some"}),
        ("hessian-control-variate", {"hessian": "product"}), ("optimal-control-variate", {"num_samples": 3}),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(name, settings):
    with pytest.raises(Refusal):
        estimators.get(name, **settings)


@pytest.mark.parametrize(
    ("name", "settings", "per_sample", "fixed"),
    [
        ("price-first-order", {}, 1, 0), ("measure-valued", {}, 1 + 3 * 3, 0), ("delta-method", {}, 1, 3),
        ("hessian-control-variate", {}, 1, 3), ("hessian-control-variate", {"hessian": "product"}, 2, 0),
        ("moving-average-baseline", {}, 1, 0), ("network-baseline", {}, 1, 0), ("optimal-control-variate", {}, 1, 0),
        ("score-coefficient", {}, 1, 0), ("lax", {}, 1, 0),
    ],
)  # fmt: skip
def test_evaluations_of_log_p(name, settings, per_sample, fixed):
    """D = 3 latents, two points, K = 5."""
    estimator = learnt(name, LINEAR, num_samples=5, **settings)
    cost = count(estimator, LINEAR, LINEAR.parameters, torch.Generator().manual_seed(0))
    assert cost.evaluations_per_gradient == 2 * (5 * per_sample + fixed)
