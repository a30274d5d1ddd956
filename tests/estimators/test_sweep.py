"""Rules that share draws: each row as alone, whatever the company; who cannot share is told so."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import estimators
from benchmarks.problems import REGISTRY as PROBLEMS
from benchmarks.problems import Rainforth
from estimators import Estimator, Refusal, Target, Weights, sweep
from estimators.replicates import stacked, warmed_up
from estimators.sweep import Shared, is_rule, stacked_together

ROWS = 6
HOMES = {
    "one point": lambda: Rainforth(dim=3, points=1),
    "several points": lambda: Rainforth(dim=3, points=4),
    "scalar": lambda: PROBLEMS["gaussian-1d"](),
    "full covariance": lambda: PROBLEMS["gaussian-full-rank"](),
    "no gaussian posterior": lambda: PROBLEMS["banana"](),
    "implicit": lambda: PROBLEMS["gamma-poisson"](),
    "mixture": lambda: PROBLEMS["gaussian-mixture-guide"](),
    "discrete": lambda: PROBLEMS["categorical"](),
    "belief net": lambda: PROBLEMS["sigmoid-belief-net"](),
}


def rules(problem, num_samples: int) -> list[Estimator]:
    """Every registered weights rule that works there, warmed up."""
    found = []
    for kind in estimators.REGISTRY.values():
        try:
            estimator = kind(num_samples=num_samples)
        except Refusal:
            continue
        if is_rule(estimator) and estimator.refuses(problem) is None:
            stream = torch.Generator().manual_seed(3)
            found.append(warmed_up(estimator, problem, problem.parameters, stream))
    return found


def stream() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def assert_as_alone(problem, chosen: list[Estimator], rtol: float = 1e-10) -> None:
    """Each estimator's rows to rounding as :func:`stacked`, and to the last bit as without the others."""
    together = stacked_together(chosen, problem, problem.parameters, ROWS, stream())
    for estimator, rows in zip(chosen, together, strict=True):
        expected = stacked(estimator, problem, problem.parameters, ROWS, stream())
        scale = float(expected.nan_to_num().abs().max())
        torch.testing.assert_close(
            rows, expected, rtol=rtol, atol=rtol * scale, equal_nan=True, msg=lambda text, e=estimator: f"{e}: {text}"
        )
        single = stacked_together([estimator], problem, problem.parameters, ROWS, stream())[0]
        assert torch.equal(single.nan_to_num(), rows.nan_to_num()), estimator


@pytest.mark.parametrize("num_samples", [1, 4])
@pytest.mark.parametrize("home", HOMES)
def test_every_registered_rule_is_as_alone(home, num_samples):
    problem = HOMES[home]()
    chosen = rules(problem, num_samples)
    assert len(chosen) >= 4
    assert_as_alone(problem, chosen)


def test_single_precision():
    problem = Rainforth(dim=20, points=1, dtype="float32")
    assert_as_alone(problem, rules(problem, 8), rtol=2e-5)


def test_all_ways_to_the_same_rows(monkeypatch):
    """Guides whose samples are not written out, maps too large to be kept, guides that share the noise alone."""
    problem = Rainforth(dim=3, points=2)
    monkeypatch.setattr(sweep, "is_plain_gaussian", lambda guide: False)
    assert_as_alone(problem, rules(problem, 3))
    monkeypatch.setattr(sweep, "LARGEST_MAP", 0)
    assert_as_alone(problem, rules(problem, 3))
    monkeypatch.setattr(sweep, "own_tensors", lambda *given: None)
    assert_as_alone(problem, rules(problem, 3))


def test_a_guide_of_nested_parts_has_no_tensors_of_its_own():
    problem = PROBLEMS["two-layer-gaussian"]()
    phi = problem.parameters["phi"]
    assert sweep.own_tensors(problem.guide(phi), phi, problem, problem.data.shape[:1]) is None
    assert_as_alone(problem, rules(problem, 3)[:3])


@pytest.mark.parametrize("name", ["sumo", "bonnet-price", "gdreg", "sobol", "ovis-mc"])
def test_who_is_no_rule_is_refused(name):
    estimator = estimators.get(name, num_samples=estimators.REGISTRY[name].usual_num_samples() if name != "sumo" else 1)
    problem = Rainforth(dim=2, points=1)
    with pytest.raises(Refusal, match=f"{name} is no weights rule"):
        stacked_together([estimators.get("iwae", num_samples=2), estimator], problem, problem.parameters, 3, stream())


def test_different_numbers_of_samples_are_refused():
    problem, chosen = Rainforth(dim=2, points=1), [estimators.get("iwae", num_samples=K) for K in (2, 3)]
    with pytest.raises(Refusal, match=r"same number of samples, not \[2, 3\]"):
        stacked_together(chosen, problem, problem.parameters, 3, stream())


@dataclass(frozen=True)
class _Mine(Estimator):
    @property
    def targets(self):
        return {"theta": Target("elbo"), "phi": Target("elbo")}


class Raising(_Mine):
    def weights(self, log_w):
        raise ArithmeticError("mine alone")


class Scribbling(_Mine):
    def weights(self, log_w):
        log_w.zero_()
        return Weights(None, log_w, log_w)


class Poisoned(_Mine):
    def weights(self, log_w):
        return Weights(log_w * torch.nan, log_w / 0, log_w * torch.nan)


def test_what_one_does_wrong_touches_no_other():
    problem, good = Rainforth(dim=2, points=1), estimators.get("dreg", num_samples=3)
    noise = problem.guide(problem.parameters["phi"]).noise((ROWS, 3), stream())
    shared = Shared(problem, problem.parameters, noise)
    expected = shared.rows(good)
    with pytest.raises(ArithmeticError, match="mine alone"):
        shared.rows(Raising(3))
    for bad in (Scribbling(3), Poisoned(3)):
        shared.rows(bad)
        assert torch.equal(shared.rows(good), expected)
