"""NumPyro's losses as estimators of this suite: ``nox -s numpyro``. What is found is pinned to numpyro 0.22.0."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from benchmarks.check import check
from benchmarks.problems import Gaussian1D, LinearGaussian, Problem, SigmoidBeliefNet, TwoLayerGaussian
from benchmarks.references.numpyro_losses import (
    LOSSES,
    NAMES,
    NumPyroRenyiELBO,
    NumPyroTraceELBO,
    NumPyroTraceGraphELBO,
    installed,
)
from benchmarks.registry import Registry
from estimators import Gradient, Target
from estimators.replicates import flatten, stacked

PINNED = ("numpyro", "0.22.0")
GAUSSIAN = [
    Gaussian1D(loc=0.3, scale=1.2, x=0.7, prior_loc=-0.4),
    LinearGaussian(dim=2, data_dim=3, points=3),
    TwoLayerGaussian(dim=2, points=2),
]
needs_numpyro = pytest.mark.numpyro


# Without it


def test_they_are_registered_where_numpyro_is_and_importing_them_imports_nothing():
    assert ({kind.name for kind in LOSSES} <= set(Registry().estimators)) == installed()
    code = "import sys, benchmarks.references.numpyro_losses; print({'jax', 'numpyro'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_what_has_no_twin_is_refused():
    assert "rainforth has none" in (NumPyroRenyiELBO().refuses(Registry().problem("rainforth")) or "")
    assert "reparameterizable" in (NumPyroTraceELBO().refuses(SigmoidBeliefNet()) or "")


# With it


def scores(theirs: Gradient, problem: Problem, mean: Tensor, error: Tensor) -> Tensor:
    rows = flatten(theirs, problem.parameters)
    spread = (rows.var(0) / len(rows) + error.square()).sqrt()
    return (rows.mean(0) - mean) / torch.where(spread > 1e-12, spread, 1e-9)


@needs_numpyro
@pytest.mark.parametrize("problem", GAUSSIAN, ids=lambda problem: problem.name)
@pytest.mark.parametrize(
    "theirs",
    [*(kind(num_samples=3) for kind in LOSSES), NumPyroRenyiELBO(num_samples=3, alpha=0.5)],
    ids=str,
)
def test_on_gaussian_guides_the_means_are_those_of_ours(problem, theirs):
    """|z| < 5 for some 200 coordinates: 1e-4; seeds are fixed."""
    ours = Registry().estimator(theirs.beside(problem), 3)
    rows = stacked(ours, problem, problem.parameters, 40_000, torch.Generator().manual_seed(1))
    z = scores(
        theirs.gradients(problem, problem.parameters, 20_000, 2), problem, rows.mean(0), rows.std(0) / len(rows) ** 0.5
    )
    assert float(z.abs().max()) < 5


@needs_numpyro
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("spec", "problem", "K"),
    [
        ("numpyro-trace-graph-elbo", SigmoidBeliefNet(dim=1, data_dim=2, seed=4), 64),
        ("numpyro-renyi-elbo", Gaussian1D(), 4),
    ],
    ids=["trace-graph", "renyi"],
)
def test_what_is_right_passes(spec, problem, K, seed):
    """False alarms at 1e-9 a check; a bias of 5 % of a block's gradient passes with probability 0.01."""
    (found,) = check(Registry().estimator(spec, K), [problem], override=None, seed=seed, max_draws=20_000_000)
    assert found.finding.outcome == "PASS", str(found.finding)


@needs_numpyro
@pytest.mark.parametrize("seed", range(3))
def test_renyi_is_biased_on_a_bernoulli_guide(finding, seed):
    """Defect 2, by ``gradest check``: which parameter, and by how much."""
    (found,) = check(
        NumPyroRenyiELBO(num_samples=4), [SigmoidBeliefNet(dim=2, data_dim=3)],
        override=None, seed=seed, max_draws=2_000_000,
    )  # fmt: skip
    said = found.finding.outcome == "BIASED" and found.finding.direction.startswith("phi")
    finding(*PINNED, said, f"RenyiELBO on a Bernoulli guide: {found.finding}")


@needs_numpyro
def test_it_is_minus_the_wake_phi_gradient(finding):
    """Exactly, over all pairs of states; and our own wake-phi estimator has the same mean with the other sign."""
    problem, K = SigmoidBeliefNet(dim=2, data_dim=3), 2
    guide = problem.guide(problem.parameters["phi"])
    states = guide.states()[:, None]
    log_q = guide.log_prob(states)[:, 0]
    log_w = problem.log_joint(problem.parameters["theta"], states)[:, 0] - log_q
    score = states[:, 0] - problem.parameters["phi"]["logits"].sigmoid()
    wake = torch.zeros(2, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            w = log_w[[i, j]].softmax(0)
            wake = wake + (log_q[i] + log_q[j]).exp() * (w[:, None] * score[[i, j]]).sum(0)
    theirs = NumPyroRenyiELBO(num_samples=K).gradients(problem, problem.parameters, 20_000, 3).phi["logits"][:, 0]
    error = theirs.std(0) / len(theirs) ** 0.5
    exact = problem.exact(Target("iwae", K)).gradient["phi"]["logits"][0]
    assert float((wake + exact).abs().max()) > 20 * float(error.max())
    same = bool(((theirs.mean(0) + wake).abs() < 4.5 * error).all())
    finding(*PINNED, same, "RenyiELBO: minus the wake-phi gradient")


@needs_numpyro
def test_the_graph_takes_the_score_function(finding):
    problem = SigmoidBeliefNet(dim=3, data_dim=4, points=2)
    exact = problem.exact(Target("elbo"))
    mean = torch.cat([torch.tensor([exact.value]).double(), *(x.reshape(-1) for b in exact.gradient.values() for x in b.values())])  # fmt: skip
    theirs = NumPyroTraceGraphELBO(num_samples=8).gradients(problem, problem.parameters, 20_000, 5)
    assert float(scores(theirs, problem, mean, torch.zeros_like(mean)).abs().max()) < 4.5


@needs_numpyro
@pytest.mark.parametrize("kind", LOSSES, ids=lambda kind: kind.name)
def test_the_seed_decides_and_costs_are_counted(kind):
    problem, theirs = GAUSSIAN[1], kind(num_samples=4)
    one, again, other = (
        flatten(theirs.gradients(problem, problem.parameters, 5, s), problem.parameters) for s in (1, 1, 2)
    )
    assert torch.equal(one, again) and not torch.equal(one, other) and one.dtype == torch.float64
    assert len(one.unique(dim=0)) == 5
    counted = theirs.count(problem, problem.parameters)
    assert counted.evaluations_per_gradient == 4 * 3 and counted.flops_per_gradient > 0 and counted.peak_bytes > 0
    single = next(theirs.estimates(problem, problem.parameters))
    assert single.value.ndim == 0 and set(single.phi) == set(problem.parameters["phi"])
    half = LinearGaussian(dim=2, data_dim=3, points=3, dtype="float32")
    assert theirs.gradients(half, half.parameters, 2, 0).value.dtype == torch.float32


@needs_numpyro
def test_a_run_measures_them(tmp_path):
    """In fresh workers, where their libraries are imported for the first time."""
    command = [
        "gradest",
        "run",
        "-p",
        "linear-gaussian",
        "-p",
        "sigmoid-belief-net",
        "-e",
        "numpyro-*",
        "-K",
        "2",
        "-R",
        "200",
    ]
    code = (
        f"import sys; sys.argv = {[*command, '-o', str(tmp_path / 'run')]!r}; from benchmarks.cli import main; main()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    cells = [json.loads(path.read_text()) for path in (tmp_path / "run" / "cells").glob("*.json")]
    found = {
        (each["cell"]["estimator"].partition("[")[0], each["cell"]["problem"].partition("[")[0]): each["status"]
        for each in cells
    }
    assert found.pop(("numpyro-trace-elbo", "sigmoid-belief-net")) == "refused"
    assert len(found) == 5 and set(found.values()) == {"ok"}, [each["reason"] for each in cells]


@needs_numpyro
def test_every_twin_is_named():
    from benchmarks.references.numpyro_models import TWINS

    assert tuple(TWINS) == NAMES
