"""One gradient by plain autograd, and the same one within function transforms."""

from __future__ import annotations

import pytest
import torch

import estimators
from benchmarks.problems import REGISTRY, DigitsVAE
from estimators import BLOCKS, replicates
from estimators.pullback import pulled_back
from estimators.trees import tree_map

PROBLEMS = {
    "linear-gaussian": lambda: REGISTRY["linear-gaussian"](dim=3, data_dim=4, points=2),
    "two-layer-gaussian": lambda: REGISTRY["two-layer-gaussian"](),
    "sigmoid-belief-net": lambda: REGISTRY["sigmoid-belief-net"](),
    "digits-vae": lambda: DigitsVAE(hidden=8, latent=3, points=4, checkpoint="start", dtype="float64"),
}
RULES = (
    "score-function", "leave-one-out", "reparameterization", "sticking-the-landing", "iwae", "dreg", "vimco", "ovis",
    "reweighted-wake-sleep", "jackknife", "gdreg", "miwae",
)  # fmt: skip


@pytest.mark.parametrize("home", PROBLEMS)
@pytest.mark.parametrize("name", RULES)
def test_one_estimate_alone_is_the_one_under_vmap(name, home):
    problem, estimator = PROBLEMS[home](), estimators.get(name, num_samples=4)
    if reason := estimator.refuses(problem):
        assert reason
        return
    stream = torch.Generator().manual_seed(0)
    (draw,) = estimator.draws(problem.guide(problem.parameters["phi"]), 3, stream)
    together = replicates.vectorised(estimator, problem, problem.parameters)(draw.noise)
    for row in range(3):
        alone = estimator.gradient(problem, problem.parameters, tree_map(lambda leaf, row=row: leaf[row], draw.noise))
        assert not alone.value.requires_grad
        flat = torch.cat(
            [alone.value.reshape(1), *(getattr(alone, b)[k].reshape(-1) for b in BLOCKS for k in problem.parameters[b])]
        )
        torch.testing.assert_close(flat, together[row], rtol=1e-10, atol=1e-12, equal_nan=True)


def test_within_no_grad_too():
    with torch.no_grad():
        (out,), back, extra = pulled_back(
            lambda x, y: ((x["a"].sin() * y,), {"y": y}), {"a": torch.tensor(0.5)}, torch.tensor(2.0)
        )
        (of_x, of_y) = back((torch.tensor(3.0),))
    torch.testing.assert_close(of_x["a"], 6 * torch.tensor(0.5).cos())
    torch.testing.assert_close(of_y, 3 * torch.tensor(0.5).sin())
    assert (
        float(extra["y"].detach()) == 2
        and not of_y.requires_grad
        and float(out.detach()) == pytest.approx(2 * 0.479425539)
    )


def test_what_does_not_move_has_a_gradient_of_zero():
    x, y = torch.ones(2), torch.ones(3)
    _, back, _ = pulled_back(lambda x, y: ((x.sum(), torch.ones(())), ()), x, y)
    assert [each.tolist() for each in back((torch.tensor(1.0), torch.tensor(1.0)))] == [[1, 1], [0, 0, 0]]
    _, back, _ = pulled_back(lambda x: ((torch.ones(()),), ()), x)
    assert back((torch.tensor(1.0),))[0].tolist() == [0, 0]


def test_parameters_that_require_a_gradient_are_left_alone():
    problem, estimator = PROBLEMS["linear-gaussian"](), estimators.get("iwae", num_samples=3)
    (draw,) = estimator.draws(problem.guide(problem.parameters["phi"]), 1, torch.Generator().manual_seed(0))
    live = {b: {k: leaf.clone().requires_grad_() for k, leaf in d.items()} for b, d in problem.parameters.items()}
    found = estimator.gradient(problem, live, draw.noise[0])
    expected = estimator.gradient(problem, problem.parameters, draw.noise[0])
    for block in BLOCKS:
        for name, leaf in live[block].items():
            torch.testing.assert_close(getattr(found, block)[name], getattr(expected, block)[name], rtol=0, atol=0)
            assert leaf.grad is None and not getattr(found, block)[name].requires_grad


@pytest.mark.parametrize("name", sorted(estimators.REGISTRY))
def test_noise_depends_neither_on_phi_nor_on_the_data(name):
    """What lets a training draw with one and the same guide throughout."""
    estimator = estimators.REGISTRY[name](num_samples=estimators.REGISTRY[name].usual_num_samples())
    for kind in (
        lambda seed: REGISTRY["linear-gaussian"](dim=3, points=2, seed=seed),
        lambda seed: REGISTRY["sigmoid-belief-net"](seed=seed),
    ):
        found = []
        for seed in (1, 2):
            problem = kind(seed)
            if estimator.refuses(problem):
                continue
            draws = estimator.draws(problem.guide(problem.parameters["phi"]), 2, torch.Generator().manual_seed(0))
            found.append([leaf for draw in draws for leaf in torch.utils._pytree.tree_leaves((draw.rows, draw.noise))])
        if found:
            torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
