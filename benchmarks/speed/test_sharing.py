"""What sharing saves: rules on one set of draws, and moments of a network's gradients beside plain training steps."""

from __future__ import annotations

import math

import pytest
import torch

import estimators
from benchmarks.measure import block_sizes
from benchmarks.moments import GradientMoments
from benchmarks.problems import DigitsVAE, Rainforth
from benchmarks.streams import batch_rows
from estimators import replicates
from estimators.sweep import stacked_together

DOZEN = (
    "score-function", "leave-one-out", "reparameterization", "sticking-the-landing", "iwae", "iwae-stl", "dreg", "miwae",
    "renyi", "vimco", "ovis", "reweighted-wake-sleep",
)  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("num_samples", [8, 64])
def test_a_dozen_rules_together(benchmark, ratios, asked, timed, one_thread, num_samples, dtype):
    problem, generator = Rainforth(dim=20, points=1, dtype=dtype), torch.Generator().manual_seed(0)
    chosen = [estimators.get(name, num_samples=num_samples) for name in DOZEN]
    work = (problem, problem.parameters, batch_rows(problem, num_samples), generator)
    taken = timed(
        {
            "together": (lambda: stacked_together(chosen, *work), 1),
            "alone": (lambda: [replicates.stacked(each, *work) for each in chosen], 1),
        }
    )
    ratio = taken.ratio("alone", "together")
    ratios.append(f"12 rules that share draws, {dtype}, K = {num_samples}: {asked(ratio, 4.0)} x their separate runs")
    benchmark.extra_info["ratio"] = ratio
    benchmark.pedantic(stacked_together, args=(chosen, *work), rounds=9)
    assert ratio > 1.3


def test_moments_of_a_network_beside_training_steps(benchmark, ratios, asked, timed, one_thread):
    """All 425,284 parameters, K = 5, 400 replicates, against as many steps of Adam on the same data."""
    problem, generator = DigitsVAE(checkpoint="start"), torch.Generator().manual_seed(0)
    estimator, sizes, count = estimators.get("iwae", num_samples=5), block_sizes(problem), 400
    rows = batch_rows(problem, 5)
    moving = {b: {k: v.clone().requires_grad_() for k, v in d.items()} for b, d in problem.parameters.items()}
    adam = torch.optim.Adam([leaf for block in moving.values() for leaf in block.values()], lr=1e-4, foreach=True)

    def steps() -> None:
        for _ in range(count):
            guide = problem.guide(moving["phi"])
            noise = guide.noise((5,), generator)
            z = guide.transform(noise)
            log_w = problem.log_joint(moving["theta"], z) - guide.log_prob_transformed(noise)
            adam.zero_grad()
            (math.log(5) - log_w.logsumexp(0)).mean().backward()
            adam.step()

    def made() -> None:
        for _ in replicates.batches(estimator, problem, problem.parameters, count, generator, rows):
            pass

    def measured() -> GradientMoments:
        batches = replicates.batches(estimator, problem, problem.parameters, count, generator, rows)
        return GradientMoments(sizes, dict.fromkeys(sizes)).extend(batches)

    taken = timed({"steps": (steps, count), "gradients": (made, count), "moments": (measured, count)}, 7)
    found = {name: round(taken.ratio(name, "steps"), 3) for name in ("gradients", "moments")}
    ratios.append(
        f"digits-vae, K = 5, {count} replicates: {1e3 * taken.median('steps'):.2f} ms a training step, gradients alone "
        f"{found['gradients']} of it, with the moments of all parameters {asked(found['moments'], 1.15, at_most=True)}"
    )
    benchmark.extra_info.update(found)
    benchmark.pedantic(measured, rounds=1)
    assert found["moments"] < 2
