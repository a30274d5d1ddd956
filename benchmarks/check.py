"""``gradest check``: one estimator held against exact truth on a panel of problems."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from estimators import BLOCKS, Estimator, Refusal, Target
from estimators.testing import TOLERANCE, Finding, check_stream, check_unbiased

from .comparison import compare
from .measure import batches
from .outside import told
from .problems import Problem, Reference
from .references.loop import LoopEstimator
from .registry import Registry
from .specs import SpecError
from .targets import target as target_named

PANEL = (
    "gaussian-1d[loc=1.5,scale=0.6,x=1.3,prior_loc=0.2]",
    "gaussian-1d[loc=-1.4,scale=1.1,x=-1.3,prior_loc=-0.3]",
    "gaussian-1d[loc=1.6,scale=0.8,x=1.5,prior_loc=0.5]",
    "linear-gaussian[dim=3,data_dim=4,seed=1]",
    "rainforth[dim=3,points=2,perturbation=0.5,seed=1]",
    "sigmoid-belief-net[dim=3,data_dim=4,seed=2]",
    "categorical[dim=2,values=3,data_dim=2,seed=2]",
)
"""Where estimators are checked unless problems are named: q narrower and wider than the posterior (rho 0.72, 2.42, 1.28 and
4/3), no gradient component near zero, several dimensions, several data points, and discrete latents."""
FURTHER = (PANEL[0], *PANEL[5:])
"""Where they are checked again with another number of samples: a rule that holds for one K alone shows anywhere."""

EXACTLY = 1e-4
"""The bias that an exact expectation is to show here, where the truth is exact, too."""


@dataclass(frozen=True)
class Checked:
    """What was found of one estimator, of so many samples, on one problem."""

    problem: str
    num_samples: int
    targets: dict[str, str]
    finding: Finding


def check_named(
    estimators: Sequence[Estimator],
    registry: Registry,
    problems: Sequence[str | Problem] | None,
    *,
    target: str | None,
    seed: int,
    max_draws: int,
) -> list[Checked]:
    """As :func:`check`, of an estimator with one number of samples or more, on problems by name.

    Arguments:
        problems: without any, the first of ``estimators`` is checked on :data:`PANEL`, and others on :data:`FURTHER`.
        target: by name, to hold both blocks against.

    Raises:
        SpecError: for what is no problem or no target, or an estimator that fails.
    """
    found: list[Checked] = []
    for place, estimator in enumerate(estimators):
        asked = problems or (FURTHER if place else PANEL)
        made = [registry.problem(each) if isinstance(each, str) else each for each in asked]
        override = target_named(target, estimator.num_samples) if target is not None else None
        found += check(estimator, made, override=override, seed=seed, max_draws=max_draws)
    return found


def check(
    estimator: Estimator, problems: list[Problem], *, override: Target | None, seed: int, max_draws: int
) -> list[Checked]:
    """Findings on each problem that knows the exact gradient of something that the estimator claims.

    A problem of which nothing is known exactly, and that says so, has the estimator compared with an independent one.

    Arguments:
        override: a target to hold both blocks against, in place of what the estimator declares.
        seed: of all draws.
        max_draws: of one round of the sequential test.
    """
    found: list[Checked] = []
    for problem in problems:
        with _failing(estimator, problem):
            found += _checked(estimator, problem, override, seed, max_draws)
    return found


@contextmanager
def _failing(estimator: Estimator, problem: Problem) -> Iterator[None]:
    """Whatever goes wrong in other people's code, as one line that says with whom and on what."""
    try:
        yield
    except (Refusal, SpecError, KeyboardInterrupt):
        raise
    except BaseException as wrong:
        raise SpecError(f"{estimator.label()} failed on {problem.spec}: {told(wrong)}") from wrong


def _checked(
    estimator: Estimator, problem: Problem, override: Target | None, seed: int, max_draws: int
) -> list[Checked]:
    """What is found on one problem, if anything is known of what the estimator claims."""
    K = estimator.num_samples
    faults = problem.faults(estimator)
    reason = estimator.refuses(problem)
    if reason is not None and faults:
        # It is refused since it would be wrong: that is what was asked.
        return [Checked(problem.spec, K, _claims(estimator), Finding("BIASED", faults[0]))]
    if reason is not None:
        return [Checked(problem.spec, K, {}, Finding("INCONCLUSIVE", reason))]
    truth, targets = _truth(estimator, problem, override)
    if truth:
        return [Checked(problem.spec, K, targets, _finding(estimator, problem, truth, seed, max_draws))]
    compared = None
    if problem.compared and override is None:
        compared = compare(estimator, problem, seed=seed, max_draws=max_draws)
    if compared is None:
        return []
    targets, finding = compared
    reasons = "; ".join([finding.reason, *faults[:3]])
    return [Checked(problem.spec, K, targets, replace(finding, reason=reasons))]


def _claims(estimator: Estimator) -> dict[str, str]:
    return {block: str(target) for block, target in estimator.targets.items() if target is not None}


def _finding(estimator: Estimator, problem: Problem, truth: dict[str, Any], seed: int, max_draws: int) -> Finding:
    parameters = problem.parameters
    if isinstance(estimator, LoopEstimator):
        streams = iter(range(seed * 1000, seed * 1000 + 1000))
        return check_stream(
            lambda: (rows.double() for rows in batches(estimator, problem, 10**9, next(streams))),
            parameters, truth, pilot=4000, max_draws=max_draws // 100,
        )  # fmt: skip
    tolerance = EXACTLY if problem.dtype == "float64" else TOLERANCE
    return check_unbiased(estimator, problem, parameters, truth, seed=seed, max_draws=max_draws, tolerance=tolerance)


def _truth(estimator: Estimator, problem: Problem, override: Target | None) -> tuple[dict[str, Any], dict[str, str]]:
    """The exact value and gradients that apply, and the names of their targets."""
    truth: dict[str, Any] = {}
    targets: dict[str, str] = {}
    for block in BLOCKS:
        target = override or estimator.targets[block]
        reference = None if target is None else exact(problem, target)
        if reference is None or target is None or block not in reference.gradient:
            continue
        truth[block] = reference.gradient[block]
        targets[block] = str(target) if target.unbiased else f"{target} (declared biased)"
        if block == "theta":
            truth["value"] = reference.value
    return truth, targets


def exact(problem: Problem, target: Target) -> Reference | None:
    """The exact reference of a target, where the problem knows it; one sample makes L_1 the ELBO."""
    if target.name == "iwae" and target.num_samples == 1 and "iwae" not in problem.exact_targets:
        target = Target("elbo")
    with torch.no_grad():
        return problem.exact(target)


def exit_code(found: list[Checked]) -> int:
    """0 unbiased, 1 bias or a non-finite estimate found, 3 no verdict."""
    outcomes = {each.finding.outcome for each in found}
    if outcomes & {"BIASED", "NONFINITE"}:
        return 1
    # A problem that the estimator cannot work on leaves no doubt about those on which it can.
    judged = {each.finding.outcome for each in found if each.targets}
    return 0 if judged == {"PASS"} else 3
