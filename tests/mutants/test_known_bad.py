"""The rest of the list of known-bad implementations in docs/statistics.md, and that none of its items lacks a mutant.

Multilevel estimators with wrong levels, Hessians of kinked functions, bookkeeping, and arithmetic that is too narrow. Most
of the list is in :mod:`test_mutants` and beside the mutants of each family; every name says which item it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch
from planting import EVERY_SEED, assert_found, mutant

import estimators
from benchmarks.problems import Reference
from benchmarks.problems.costs import ExpectedCost
from estimators import BLOCKS, Target, Weights
from estimators.testing import check_unbiased

ROOT = Path(__file__).resolve().parents[2]
WIDE = ("gaussian-1d[loc=-1.4,scale=1.1,x=-1.3,prior_loc=-0.3]", "gaussian-1d[loc=1.6,scale=0.8,x=1.5,prior_loc=0.5]")
LINEAR = ("linear-gaussian[dim=3,data_dim=4,seed=1]",)


def sorted_first(kind):
    """Log-weights in order of size before they are split into halves, so that these are no longer alike."""

    def rule(self, log_w):
        order = log_w.sort(0)
        back = order.indices.argsort(0)
        return Weights(*(w if w is None else w.gather(0, back) for w in kind.weights(self, order.values)))

    return type(
        kind.__name__, (kind,), {"weights": rule, "value": lambda s, log_w: kind.value(s, log_w.sort(0).values)}
    )


def from_one(kind):
    """Weights of level n + 1 for level n, as of geometric draws that start at one."""
    return type(kind.__name__, (kind,), {"increments": lambda self, n: kind.increments(self, n + 1)[1:]})


@dataclass(frozen=True)
class PriorTwice(estimators.Reparameterization):
    def gradient(self, model, parameters, noise):
        return super().gradient(_Twice(model), parameters, noise)


class _Twice(estimators.LatentModel):
    def __init__(self, model):
        self.model, self.offers = model, model.offers

    def guide(self, phi):
        return self.model.guide(phi)

    def log_joint(self, theta, z):
        return self.model.log_joint(theta, z) + self.model.prior(theta).log_prob(z)


@dataclass(frozen=True)
class TurnedLogScale(estimators.ReparameterizationAnalyticKL):
    """-KL has log sigma; with its sign turned its slope is -1 where it is 1, in each latent."""

    def gradient(self, model, parameters, noise):
        found = super().gradient(model, parameters, noise)
        of_points = model.guide(parameters["phi"]).log_scale.shape[0] if "log_scale" in parameters["phi"] else 1
        phi = {n: leaf - 2 / of_points if n == "log_scale" else leaf for n, leaf in found.phi.items()}
        return found._replace(phi=phi)


@dataclass(frozen=True)
class BiasedVariance(estimators.LeaveOneOut):
    """-1/2 the variance of log w divided by S, with z held, through autograd."""

    def weights(self, log_w):
        return super().weights(log_w)._replace(score=(log_w - log_w.mean(0)) / self.num_samples)


@dataclass(frozen=True)
class ByOneMinus(estimators.OVIS):
    """-log(1 - w~) in single precision: infinite once one weight has it all."""

    def weights(self, log_w):
        w = log_w.float().softmax(0)
        score = (-(1 - w).log() - w).to(log_w.dtype)
        return super().weights(log_w)._replace(score=score)


@dataclass(frozen=True)
class HalfJackknife(estimators.Jackknife):
    """Of second order, from log-weights in half precision: of a data point 3000 nats away its eps is two nats."""

    num_samples: int = 3
    order: int = 2

    @property
    def targets(self):
        return {"theta": self.bound, "phi": self.bound}

    def subset_weights(self, log_w, power=1):
        return super().subset_weights((log_w - 3000).half().to(log_w.dtype), power)


MUTANTS = {
    "Russian roulette over sorted levels (defect 10)": (
        sorted_first(estimators.MultilevelRussianRoulette)(cap=3),
        WIDE,
    ),
    "single levels, sorted (defect 10)": (sorted_first(estimators.MultilevelSingleSample)(cap=3), WIDE),
    "Russian roulette from level one (defect 10)": (from_one(estimators.MultilevelRussianRoulette)(cap=3), WIDE),
    "single levels from one (defect 10)": (from_one(estimators.MultilevelSingleSample)(cap=3), WIDE),
    "the prior counted twice (defect 15)": (PriorTwice(), WIDE),
    "the closed-form KL with log sigma turned (defect 15)": (TurnedLogScale(), LINEAR),
    "a variance divided by S (defect 15)": (BiasedVariance(num_samples=4), LINEAR),
    "log-weights in half precision, 3000 nats from zero (defect 16)": (
        mutant("dreg", lambda self, log_w, w: w._replace(path=(log_w - 3000).half().to(log_w.dtype).softmax(0) ** 2))(
            3
        ),
        WIDE,
    ),
    "the jackknife of second order, 3000 nats from zero (defect 16)": (HalfJackknife(), WIDE),
}


@pytest.mark.parametrize("seed", EVERY_SEED)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_defect_is_found(name, seed):
    assert_found(MUTANTS[name][0], seed, MUTANTS[name][1])


@dataclass(frozen=True)
class Kinked(ExpectedCost):
    """max(z - k, 0), which is no C^1 function and here says that it is: E f = s phi(a) + s a Phi(a), a = (mu - k) / s."""

    k: float = 0.4
    loc: float = 1.0
    scale: float = 0.9

    name = "kinked-cost"
    truthful = False

    def exact(self, target):
        if target.name != "elbo":
            return None
        a = torch.tensor((self.loc - self.k) / self.scale, dtype=torch.float64)
        density, below = (-0.5 * a.square()).exp() / (2 * torch.pi) ** 0.5, torch.special.ndtr(a)
        found = {"value": self.scale * (density + a * below), "k": -below, "loc": below, "scale": density}
        return Reference(
            float(found["value"]),
            {b: {n: found[n].reshape(leaf.shape) for n, leaf in self.parameters[b].items()} for b in BLOCKS},
            "closed form",
        )

    @cached_property
    def parameters(self):
        phi = {"loc": self.tensor([self.loc]), "scale": self.tensor([self.scale])}
        return {"theta": {"k": self.tensor(self.k)}, "phi": phi}

    def log_joint(self, theta, z):
        return (z[..., 0] - theta["k"]).relu() + self.guide(self.parameters["phi"]).log_prob(z)


@pytest.mark.parametrize("seed", EVERY_SEED)
def test_hessians_of_a_kinked_function_are_found_and_first_order_forms_are_not_accused(seed):
    """Defect 14. Where the model says that it has kinks the estimator is refused; here it says otherwise."""
    problem = Kinked()
    exact = problem.exact(Target("elbo"))
    truth = {"value": exact.value, **exact.gradient}
    for name, outcome in (("bonnet-price", "BIASED"), ("price-first-order", "PASS"), ("measure-valued", "PASS")):
        found = check_unbiased(estimators.get(name), problem, problem.parameters, truth, seed=seed)
        assert found.outcome == outcome, (name, str(found))


def test_one_minus_a_weight_in_single_precision_is_not_finite():
    """Defect 16 of OVIS and VIMCO: on weights one of which has it all, where ours is finite."""
    log_w = torch.tensor([30.0, 0.0, 0.0], dtype=torch.float64)
    assert not bool(ByOneMinus(num_samples=3).weights(log_w).score.isfinite().all())
    assert bool(estimators.OVIS(num_samples=3).weights(log_w).score.isfinite().all())


def test_every_item_of_the_list_has_a_mutant_that_says_so():
    text = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8").partition("## Known-bad implementations")[2]
    items = {int(number) for number in re.findall(r"^(\d+)\. ", text, re.MULTILINE)}
    assert items == set(range(1, 17))
    sources = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    named = {int(n) for group in re.findall(r"[Dd]efects? (\d+)(?: and (\d+))?", sources) for n in group if n}
    assert items <= named, sorted(items - named)
