"""What every registered estimator owes: one suite over all of them, that counts itself."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from expected import EXIT, SAMPLED
from torch.func import vmap

import estimators
from benchmarks.check import PANEL, check, exit_code
from benchmarks.problems import CategoricalMixture, Gaussian1D, LinearGaussian, Rainforth, SigmoidBeliefNet
from benchmarks.registry import Registry
from benchmarks.specs import settings_of
from estimators import BLOCKS, NEEDS, Estimator, Refusal, Target
from estimators.contract import MULTI_SAMPLE
from estimators.replicates import stacked, warmed_up
from estimators.trees import tree_map

NAMES = estimators.names()
ISSUE = [
    "score-function",
    "leave-one-out",
    "reparameterization",
    "reparameterization-analytic-kl",
    "sticking-the-landing",
    "bonnet-price",
    "iwae",
    "iwae-stl",
    "dreg",
    "jackknife",
    "sumo",
    "reweighted-wake-sleep",
]


def get(name: str) -> Estimator:
    kind = estimators.REGISTRY[name]
    return kind(num_samples=1 if kind.usual_num_samples() == 1 else 4)


def at_home(estimator: Estimator, **settings):
    """A small problem that the estimator can work on."""
    for kind in (LinearGaussian, SigmoidBeliefNet, CategoricalMixture, partial(Rainforth, dim=3, points=2)):
        problem = kind(**settings)
        if estimator.refuses(problem) is None:
            return problem
    raise AssertionError(f"{estimator.label()} has no problem here that it works on")


@pytest.fixture(params=NAMES)
def estimator(request) -> Estimator:
    return get(request.param)


def test_this_suite_covers_all_of_them():
    assert set(ISSUE) <= set(NAMES)
    assert len(NAMES) == len(set(NAMES)) == len(estimators.REGISTRY)
    concrete = {kind for kind in _subclasses(Estimator) if kind.__module__.startswith("estimators.") and kind.name}
    assert concrete == set(estimators.REGISTRY.values())


def _subclasses(kind):
    return {kind} | {each for child in kind.__subclasses__() for each in _subclasses(child)}


def test_documentation(estimator):
    text = type(estimator).__doc__ or ""
    for part in ("math::", "References:", "Example:"):
        assert part in text, f"{estimator.label()} has no {part}"
    assert estimator.citations and estimator.family
    assert estimator.name == estimator.name.lower() and " " not in estimator.name
    assert estimator.needs <= set(NEEDS)
    assert set(estimator.snr_slopes) <= set(BLOCKS)


def test_targets(estimator):
    assert set(estimator.targets) == set(BLOCKS)
    assert all(target is None or isinstance(target, Target) for target in estimator.targets.values())
    assert any(target is not None for target in estimator.targets.values())
    for target in estimator.targets.values():
        assert target is None or (target.num_samples is None) == (target.name not in MULTI_SAMPLE)


def test_too_few_samples_are_refused(estimator):
    with pytest.raises(Refusal, match=f"num_samples >= {estimator.min_num_samples}"):
        type(estimator)(num_samples=estimator.min_num_samples - 1)


def test_settings_are_frozen(estimator):
    with pytest.raises(AttributeError):
        estimator.num_samples = 7


def is_rule(estimator: Estimator) -> bool:
    return type(estimator).weights is not Estimator.weights


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_weights_broadcast_over_data_points(estimator, batch):
    """Weights of a batch are the weights of its points, one by one."""
    if not is_rule(estimator):
        with pytest.raises(NotImplementedError, match="overrides gradient"):
            estimator.weights(torch.zeros(4))
        return
    log_w = torch.randn(8 if estimator.random_cost else 4, *batch, dtype=torch.float64)
    together = estimator.weights(log_w)
    flat = log_w.reshape(log_w.shape[0], -1)
    for point in range(flat.shape[1]):
        alone = estimator.weights(flat[:, point])
        for ours, theirs in zip(together, alone, strict=True):
            if isinstance(ours, torch.Tensor):
                torch.testing.assert_close(ours.reshape(log_w.shape[0], -1)[:, point], theirs)
            else:
                assert ours == theirs


@pytest.mark.parametrize("shift", [-2000.0, 0.0, 2000.0])
def test_weights_stay_finite_far_from_zero(estimator, shift):
    if is_rule(estimator):
        log_w = torch.tensor([0.0, -900.0, 3.0, 900.0], dtype=torch.float64) + shift
        for weight in estimator.weights(log_w):
            assert weight is None or math.isfinite(float(torch.as_tensor(weight).abs().max()))


def test_model_weights_sum_to_one(estimator):
    """The theta-gradient of any of these values rises by one if log p(x, z) does: each is equivariant under scaling of w."""
    if is_rule(estimator) and estimator.targets["theta"].name != "f_divergence":  # F is linear in log w for KL alone
        log_w = torch.randn(4, dtype=torch.float64)
        model = torch.as_tensor(estimator.weights(log_w).model, dtype=torch.float64).expand(4)
        assert float(model.sum()) == pytest.approx(1.0, abs=1e-12)
        value = estimator.value(log_w)
        assert value is not None
        assert float(estimator.value(log_w + 1.5) - value) == pytest.approx(1.5, abs=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_is_kept(estimator, dtype):
    problem = at_home(estimator, dtype=dtype)
    estimator = warmed_up(estimator, problem, problem.parameters, torch.Generator().manual_seed(1))
    rows = stacked(estimator, problem, problem.parameters, 3, torch.Generator().manual_seed(0))
    assert rows.dtype == getattr(torch, dtype)
    assert bool(rows.isfinite().all())


def test_randomness_is_an_argument(estimator):
    """Same generator seed, same numbers; the global generator is neither read nor moved."""
    problem = at_home(estimator, points=3)
    before = torch.get_rng_state()
    first = stacked(estimator, problem, problem.parameters, 4, torch.Generator().manual_seed(9))
    torch.rand(3)
    second = stacked(estimator, problem, problem.parameters, 4, torch.Generator().manual_seed(9))
    assert torch.equal(first, second)
    torch.set_rng_state(before)
    if estimator.name == "enumeration":  # nothing is sampled
        return
    third = stacked(estimator, problem, problem.parameters, 4, torch.Generator().manual_seed(10))
    assert not torch.equal(first, third)
    assert torch.equal(torch.get_rng_state(), before)


def test_vectorised_replicates_are_the_single_ones(estimator):
    problem = at_home(estimator, points=2)
    estimator = warmed_up(estimator, problem, problem.parameters, torch.Generator().manual_seed(1))
    guide = problem.guide(problem.parameters["phi"])
    for draw in estimator.draws(guide, 4, torch.Generator().manual_seed(3)):
        together = vmap(lambda noise: estimator.gradient(problem, problem.parameters, noise))(draw.noise)
        for row in range(len(draw.rows)):
            noise = tree_map(lambda leaf, row=row: leaf[row], draw.noise)
            alone = estimator.gradient(problem, problem.parameters, noise)
            torch.testing.assert_close(together.value[row], alone.value)
            for block in BLOCKS:
                for name, leaf in getattr(alone, block).items():
                    torch.testing.assert_close(getattr(together, block)[name][row], leaf, rtol=1e-9, atol=1e-11)


def test_inputs_are_not_written_to(estimator):
    problem = at_home(estimator)
    before = {b: {n: t.clone() for n, t in leaves.items()} for b, leaves in problem.parameters.items()}
    stacked(estimator, problem, problem.parameters, 3, torch.Generator().manual_seed(0))
    for block, leaves in problem.parameters.items():
        for name, leaf in leaves.items():
            assert torch.equal(leaf, before[block][name])
            assert not leaf.requires_grad


def test_a_model_that_lacks_what_it_needs_is_refused_with_the_reason(estimator):
    class Bare(Gaussian1D):
        offers = frozenset()

    reason = estimator.refuses(Bare())
    if not estimator.needs:
        assert reason is None
        return
    assert reason is not None
    for need in estimator.needs:
        assert need in reason


@pytest.mark.parametrize("name", ["multilevel-russian-roulette", "multilevel-single-sample"])
def test_multilevel_is_unbiased_for_log_p_where_its_variance_exists(name):
    """rho = 2.42 and 1.28, where weights are bounded; false alarms 1e-9 a check."""
    registry = Registry()
    problems = [registry.problem(each) for each in PANEL[1:3]]
    found = check(registry.estimator(name, 1), problems, override=None, seed=1, max_draws=2_000_000)
    assert exit_code(found) == 0, [str(each.finding) for each in found]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_unbiased_for_what_it_declares_or_comes_out_as_it_says(name):
    """`gradest check`. False alarms: 1e-9 a check, seven problems, so below 1e-6 for all of these tests.

    On the whole panel where draws alone speak for it. Of all others the bias matrix has the exact expectation, and three
    problems are enough here; the long tier has the rest (``test_fresh_seeds``).
    """
    registry, kind = Registry(), estimators.REGISTRY[name]
    problems = [registry.problem(each) for each in (PANEL if name in SAMPLED else (PANEL[0], PANEL[3], PANEL[5]))]
    fewer = {"copies": 4} if "copies" in settings_of(kind) else {}
    estimator = kind(num_samples=kind.usual_num_samples(), **fewer)
    found = check(estimator, problems, override=None, seed=1, max_draws=2_000_000)
    assert exit_code(found) == EXIT.get(name, 0), [str(each.finding) for each in found]


@pytest.mark.parametrize(
    "spec", ["sumo[cap=3]", "multilevel-russian-roulette[cap=2]", "multilevel-single-sample[cap=2]"]
)
def test_capped_truncation_is_unbiased_for_the_longest_bound(spec):
    registry = Registry()
    problems = [registry.problem(each) for each in PANEL[:3]]
    found = check(registry.estimator(spec, 1), problems, override=None, seed=1, max_draws=2_000_000)
    assert exit_code(found) == 0, [str(each.finding) for each in found]
