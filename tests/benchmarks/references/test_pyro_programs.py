"""Pyro's losses on programs of users: the same weights as ours, or a refusal that says which."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.problems import PyroProblem
from benchmarks.references.pyro_losses import LOSSES
from benchmarks.registry import Registry
from estimators.replicates import flatten, stacked, warmed_up

FILE = str(Path(__file__).parents[2] / "support" / "pyro_examples.py")
REGISTRY = Registry()


def program(model, q, args, **settings):
    guide = q if q.startswith("Auto") else f"{FILE}:{q}"
    return PyroProblem(model=f"{FILE}:{model}", q=guide, args=f"{FILE}:{args}", **settings)


def whole():
    return program("whole", "normal_guide", "outcomes")


def vae(**settings):
    return program("vae", "vae_guide", "vae_data", **settings)


def switch():
    return program("switch", "switch_guide", "outcomes")


def mixture():
    return program("mixture", "mixture_guide", "clustered")


AGREEING = [
    (whole, "pyro-trace-graph-elbo", 2), (whole, "pyro-trace-mean-field-elbo", 2),
    (whole, "pyro-trace-enum-elbo", 2), (whole, "pyro-renyi-elbo[alpha=0.5]", 3),
    (whole, "pyro-reweighted-wake-sleep", 3), (whole, "pyro-trace-tmc-elbo", 3),
    (lambda: vae(plate="data"), "pyro-renyi-elbo", 3), (vae, "pyro-trace-elbo", 2),
]  # fmt: skip
DISCRETE = [(switch, "pyro-trace-graph-elbo[baseline=average]", 4), (mixture, "pyro-trace-enum-elbo", 4)]


@pytest.mark.parametrize(("make", "spec", "K"), AGREEING, ids=lambda each: each if isinstance(each, str) else "")
def test_the_means_are_those_of_the_estimator_of_ours_beside_it(make, spec, K):
    """|z| < 5 for some 400 coordinates: 2e-4; seeds are fixed. The gradient is many errors long, so zero would be seen."""
    problem, theirs = make(), REGISTRY.estimator(spec, K)
    assert theirs.refuses(problem) is None
    name = theirs.beside(problem)
    one, other = means(problem, name, theirs, 250)
    error = (one[1] + other[1]).sqrt()
    assert bool(((one[0] - other[0]).abs() <= 5 * error + 1e-6 * one[0].abs()).all())
    assert float(other[0][1:].norm()) > 5 * float(error[1:].median())


@pytest.mark.parametrize(("make", "spec", "K"), DISCRETE, ids=lambda each: each if isinstance(each, str) else "")
def test_the_means_are_those_of_leave_one_out(make, spec, K):
    """|z| < 5, as above; with a score function's noise, which is why the power is not asked for."""
    problem, theirs = make(), REGISTRY.estimator(spec, K)
    assert theirs.refuses(problem) is None
    theirs = warmed_up(theirs, problem, problem.parameters, torch.Generator().manual_seed(0))
    one, other = means(problem, "leave-one-out", theirs, 60)
    assert bool(((one[0] - other[0]).abs() <= 5 * (one[1] + other[1]).sqrt() + 1e-4).all())


def means(problem, name, theirs, count):
    """Means and their variances: of an estimator of ours, and of one of theirs."""
    ours = REGISTRY.estimator(name, theirs.num_samples)
    rows = stacked(ours, problem, problem.parameters, 4000, torch.Generator().manual_seed(1)).double()
    loop = flatten(theirs.gradients(problem, problem.parameters, count, 2), problem.parameters).double()
    return [(each.mean(0), each.var(0) / len(each)) for each in (rows, loop)]


@pytest.mark.parametrize(
    ("make", "spec", "words"),
    [
        (vae, "pyro-renyi-elbo", "weighs each element of plate 'data' by itself here, since it holds every site: say plate="),
        (vae, "pyro-trace-tmc-elbo", "weighs each element of plate 'data'"),
        (lambda: vae(plate="data"), "pyro-reweighted-wake-sleep", "weighs all 8 data points by one number"),
        (switch, "pyro-trace-mean-field-elbo", "guide site 'on' (Bernoulli) is not"),
        (mixture, "pyro-trace-tmc-elbo", "sites weights, precision, which are combined"),
        (switch, "pyro-jit-trace-elbo", "JIT takes data as arguments alone"),
        *(
            (lambda: program("subsampled", "normal_guide", "outcomes"), spec, "another subset of plate 'data' for each")
            for spec in ("pyro-renyi-elbo", "pyro-reweighted-wake-sleep")
        ),
    ],
)  # fmt: skip
def test_another_bound_is_refused(make, spec, words):
    reason = REGISTRY.estimator(spec, 2).refuses(make())
    assert reason is not None and words in reason and "\n" not in reason


@pytest.mark.long
def test_defect_1_in_a_users_program_is_found_by_check():
    """A Bernoulli site in the user's own guide: held against an estimator of ours, and told that it is zero in every draw."""
    from benchmarks.check import check

    (found,) = check(REGISTRY.estimator("pyro-renyi-elbo", 4), [switch()], override=None, seed=0, max_draws=400_000)
    assert found.finding.outcome == "BIASED"
    assert "exactly zero in every draw: phi.logit" in found.finding.reason


def test_the_programs_own_parameters_are_left_as_they_were():
    problem = vae()
    before = {name: leaf.detach().clone() for of in problem.program.leaves.values() for name, leaf in of.items()}
    for kind in LOSSES:
        if kind(num_samples=2).refuses(problem) is None:
            kind(num_samples=2).gradients(problem, problem.parameters, 1, 0)
    after = {name: leaf for of in problem.program.leaves.values() for name, leaf in of.items()}
    assert all(torch.equal(leaf, after[name]) for name, leaf in before.items())
