"""Single precision and bfloat16 autocast against double precision, on the same noise, over the whole registry.

The same float32 noise and parameters, widened, go through float64. What is compared is the largest deviation of any of 64
estimates, in units of the root mean square of that block's estimate, so that a component that is small by chance does not
matter. Deviations come from rounding log w (eps 1.2e-7, \\|log w\\| of tens: some 1e-6 nats), amplified where an estimator takes
differences: score weights of multi-sample bounds are of order 1/K, jackknife coefficients of order K^m / m!.

bfloat16 is what autocast makes of it: matrix products in bfloat16 (eps 7.8e-3), all else in float32. Whole estimators in
bfloat16 are not offered.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.func import vmap

import benchmarks.problems
import estimators
from benchmarks.problems import CategoricalMixture, LinearGaussian, Rainforth, SigmoidBeliefNet
from benchmarks.problems.digits import TrainedOnDigits
from estimators import Refusal
from estimators.replicates import flatten, warmed_up
from estimators.trees import tree_map

HOMES = [
    LinearGaussian,
    SigmoidBeliefNet,
    CategoricalMixture,
    partial(Rainforth, dim=3, points=2),
    *(
        kind
        for name, kind in benchmarks.problems.REGISTRY.items()
        if name != "rainforth" and not issubclass(kind, TrainedOnDigits)
    ),
]
TOLERANCE = 2e-4
"""1,700 units of float32's rounding; a single intermediate in half precision (eps 1e-3) would exceed it."""
AUTOCAST_TOLERANCE = 0.25
"""32 units of bfloat16's rounding; a wrong cast of a block would make it about one."""
EPS = torch.finfo(torch.float32).eps


def cast(tree, dtype):
    def one(leaf):
        return leaf.to(dtype) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf

    return tree_map(one, tree)


def home(estimator, dtype):
    """The first problem that the estimator works on."""
    for kind in HOMES:
        problem = kind(dtype=dtype)
        if estimator.refuses(problem) is None:
            return problem
    raise AssertionError(f"{estimator.label()} has no problem that it works on")


def sizes(name):
    """The estimator with 2, 16 and 64 samples, or those of them that it takes, or else its usual number."""
    kind, found = estimators.REGISTRY[name], []
    for K in (2, 16, 64):
        try:
            found.append(kind(num_samples=K))
        except Refusal:
            continue
    return found or [kind(num_samples=kind.usual_num_samples())]


def deviations(estimator, *, autocast=False, replicates=64):
    """By block (and ``value``): the largest deviation of the narrow estimates from the wide ones, in units of their size."""
    narrow, wide = home(estimator, "float32"), home(estimator, "float64")
    parameters = cast(narrow.parameters, torch.float64)
    learnt = warmed_up(estimator, wide, parameters, torch.Generator().manual_seed(1))
    estimator = replace(learnt, state=cast(learnt.state, torch.float32)) if learnt.state is not None else learnt
    guide = narrow.guide(narrow.parameters["phi"])
    ours, theirs = [], []
    for draw in estimator.draws(guide, replicates, torch.Generator().manual_seed(2)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            rows = flatten(
                vmap(lambda noise: estimator.gradient(narrow, narrow.parameters, noise))(draw.noise), parameters
            )
        assert rows.dtype == torch.float32
        ours.append(rows.double())
        noise = cast(draw.noise, torch.float64)
        theirs.append(flatten(vmap(lambda noise: learnt.gradient(wide, parameters, noise))(noise), parameters))
    a, b = torch.cat(ours), torch.cat(theirs)
    split = 1 + sum(leaf.numel() for leaf in parameters["theta"].values())
    found = {}
    for part, columns in (("value", slice(0, 1)), ("theta", slice(1, split)), ("phi", slice(split, None))):
        size = float(b[:, columns].square().sum(1).mean().sqrt())
        if math.isnan(size) or size == 0.0:
            assert torch.equal(a[:, columns].nan_to_num(), b[:, columns].nan_to_num())
            continue
        found[part] = float((a - b)[:, columns].norm(dim=1).max()) / size
    return found


@pytest.mark.parametrize("name", estimators.names())
def test_single_precision_agrees_with_double(name):
    """K = 2, 16 and 64 where it takes them. Power: the canaries below."""
    for estimator in sizes(name):
        found = deviations(estimator)
        assert found and max(found.values()) < TOLERANCE, (estimator, found)


@pytest.mark.parametrize("name", estimators.names())
def test_bfloat16_autocast_runs_and_stays_near(name):
    """Every estimator runs under autocast. Roulette weights multiply the error by up to 1 / P(N >= n): finite is all there."""
    estimator = sizes(name)[0]
    found = deviations(estimator, autocast=True)
    assert all(math.isfinite(each) for each in found.values())
    if not estimator.random_cost:
        assert max(found.values()) < AUTOCAST_TOLERANCE, found


def test_autocast_is_on():
    """A canary: it does change matrix products, by about its rounding."""
    found = deviations(estimators.get("reparameterization", num_samples=2), autocast=True)
    assert 1e-4 < max(found.values()) < AUTOCAST_TOLERANCE


def test_an_intermediate_in_half_precision_is_seen():
    class Half(estimators.VIMCO):
        def weights(self, log_w):
            return super().weights(log_w if log_w.dtype == torch.float64 else log_w.half().float())

    found = deviations(Half(num_samples=2))
    assert found["theta"] > TOLERANCE and found["phi"] > TOLERANCE


def log_weights(K, spread, shift, seed=0):
    """float32 numbers, widened without loss."""
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(K, generator=generator, dtype=torch.float64) + shift).float()


@pytest.mark.parametrize("K", [16, 64, 1024])
@pytest.mark.parametrize("name", ["multi-sample-score", "vimco", "ovis"])
def test_score_weights_at_many_samples(name, K):
    """log w about -30, so eps 30 = 4e-6 nats; score weights of order 1/K, whose differences are of order 1/K^2 in OVIS.

    As a difference of two log-mean-exps they would lose 30 eps K of their size: 4e-3 at K = 1024, as the last line shows.
    """
    estimator = estimators.get(name, num_samples=K)
    log_w = log_weights(K, 1.0, -30.0)
    narrow, wide = estimator.weights(log_w).score.double(), estimator.weights(log_w.double()).score
    assert float((narrow - wide).abs().max() / wide.abs().max()) < TOLERANCE
    if name == "vimco" and K == 1024:
        subtracted = estimator.value(log_w) - (log_w.logsumexp(0).expand(K) - math.log(K - 1))
        exact = estimator.value(log_w.double()) - (log_w.double().logsumexp(0).expand(K) - math.log(K - 1))
        assert float((subtracted.double() - exact).abs().max() / wide.abs().max()) > 2 * TOLERANCE


@pytest.mark.parametrize("top", [20.0, 60.0])
@pytest.mark.parametrize("name", ["vimco", "ovis"])
def test_score_weights_where_one_weight_dominates(name, top):
    """-log(1 - w~) is infinite there in single precision; nothing is subtracted here."""
    estimator = estimators.get(name, num_samples=64)
    log_w = log_weights(64, 1.0, -30.0)
    log_w[3] += top
    assert not math.isfinite(float(-torch.log1p(-log_w.softmax(0).max()))) or top < 60
    narrow, wide = estimator.weights(log_w).score.double(), estimator.weights(log_w.double()).score
    assert float((narrow - wide).abs().max() / wide.abs().max()) < 1e-5


@pytest.mark.parametrize(("K", "order"), [(16, 1), (16, 2), (16, 3), (32, 2), (32, 3), (64, 2)])
def test_the_jackknife_loses_what_its_coefficients_say(K, order):
    """It does lose digits, and its documentation says so: of the value, eps \\|log w\\| sum_j \\|a_j\\|, within a factor of ten.

    At order 1 that is nothing to speak of; at order 3 and K = 32 it is a tenth of a nat.
    """
    estimator = estimators.Jackknife(num_samples=K, order=order)
    predicted = EPS * 30 * sum(map(abs, estimator.coefficients()))
    lost = []
    for seed in range(20):
        log_w = log_weights(K, 2.0, -30.0, seed)
        lost.append(abs(float(estimator.value(log_w).double() - estimator.value(log_w.double()))))
    assert predicted / 10 < max(lost) < predicted, (predicted, max(lost))
    assert (predicted < 1e-3) == (order == 1)
