"""``gradest advise``: which estimator, and how many samples, for a budget."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import (
    Json,
    Plugins,
    PyroArguments,
    PyroPlate,
    PyroProgram,
    PyroReference,
    PyroSteps,
    choose,
    echo,
    fail,
    manifest,
    print_json,
    pyro_problem,
)
from .running import run

METERS = ("evaluations", "seconds", "flops", "bytes")


def advise(
    problem: Annotated[str | None, typer.Argument(help="name, or name[param=v,...]; or --pyro")] = None,
    budget: Annotated[
        str, typer.Option(help="per gradient: evaluations=64, seconds=1e-4, flops=1e6 or bytes=1e6; see --steps")
    ] = "evaluations=64",
    steps: Annotated[int, typer.Option(min=1, help="the budget is for so many gradients together")] = 1,
    target: Annotated[str, typer.Option(help="elbo, iwae-8, log_marginal, ...")] = "elbo",
    block: Annotated[str, typer.Option(help="phi or theta")] = "phi",
    estimator: Annotated[
        list[str] | None, typer.Option("--estimator", "-e", help="glob; without it all of this suite")
    ] = None,
    num_samples: Annotated[str, typer.Option("--num-samples", "-K", help="K to try")] = "1,2,4,8,16,32,64",
    replicates: Annotated[int, typer.Option("--replicates", "-R", min=100)] = 2000,
    run: Annotated[list[Path] | None, typer.Option(help="use these run folders, and measure nothing")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="where to measure; resumed")] = Path("results/advice"),
    pyro: PyroProgram = None,
    args: PyroArguments = None,
    plate: PyroPlate = None,
    reference: PyroReference = None,
    steps_before: PyroSteps = None,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """The best estimator and K for a budget, what is as good, the runner-up, and when the advice flips."""
    meter, amount = _budget(budget)
    amount = amount / steps if meter != "bytes" else amount
    choose(block, ("phi", "theta"), "block")
    named = [*([problem] if problem else []), *pyro_problem(pyro, args, plate, reference, steps_before)]
    if len(named) != 1:
        fail("advise takes one problem, or --pyro MODEL,GUIDE")
    (problem,) = named
    from ..registry import Registry
    from ..specs import SpecError
    from ..targets import TARGETS

    choose(_stem(target), tuple(TARGETS), "target")
    registry = Registry(plugin or ())
    try:
        spec = registry.problem(problem).spec
    except SpecError as wrong:
        fail(wrong)
    folders = list(run or ())
    if not folders:
        patterns = estimator or [f"{name}*" for name in _suited(registry, target, block)]
        if not patterns:
            fail(f"no estimator has the target {target} in {block}")
        _measure(problem, sorted(set(patterns)), num_samples, replicates, out, plugin)
        folders = [out]
    for folder in folders:
        manifest(folder)
    from reports import advice as advising
    from reports.statistics import ARITHMETIC
    from reports.tables import frame
    from reports.wording import titles

    table = frame(folders)
    own = table[(table["problem"] == spec) & (table["status"] == "ok")]
    if not len(own):
        reasons = table["reason"][table["problem"] == spec].drop_duplicates()
        why = f": {'; '.join(reasons.head(3))}" if len(reasons) else ""
        fail(f"these runs have no finished cell of {spec}{why}", 3)
    if own.groupby(ARITHMETIC).ngroups > 1 or (meter == "seconds" and own["run"].nunique() > 1):
        fail("these cells were measured in more than one way (device, precision, run): name one run", 3)
    try:
        found = advising.advise(own, meter=meter, budget=amount, target=target, block=block)
    except advising.NoAdvice as wrong:
        fail(wrong, 3)
    if as_json:
        print_json(_plain(spec, found))
        return
    for line in advising.words(found, titles(own["estimator"].unique())):
        echo(line)


def _budget(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    choose(name.strip(), METERS, "budget")
    try:
        amount = float(number)
    except ValueError:
        amount = -1.0
    if not 0 < amount < float("inf"):
        fail(f"--budget takes a number above 0, such as {name.strip()}=64, not {text!r}")
    return name.strip(), amount


def _stem(target: str) -> str:
    """The target's name without its K: ``iwae`` of ``iwae-8``."""
    stem, _, K_ = target.rpartition("-")
    return stem if K_.isdigit() else target


def _suited(registry: Any, target: str, block: str) -> list[str]:
    """Names of the estimators that declare this target at some K; others would be measured for nothing.

    Losses of other libraries, a thousand times slower to measure, take part where ``--estimator`` names them.
    """
    from ..references.loop import LoopEstimator
    from ..registry import Refusal

    wanted = _stem(target)
    found = []
    for name, kind in registry.estimators.items():
        if issubclass(kind, LoopEstimator):
            continue
        for K in dict.fromkeys((kind.usual_num_samples(), 1, 2, 4, 8)):
            try:
                claim = registry.estimator(name, K).targets[block]
            except Refusal:
                continue
            if claim is not None and claim.name == wanted:
                found.append(name)
                break
    return found


def _measure(problem: str, estimators: list[str], num_samples: str, replicates: int, out: Path, plugin: Any) -> None:
    """``gradest run``, with what it says on standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        run(
            problem=[problem], estimator=estimators, num_samples=num_samples, replicates=replicates, out=out,
            plugin=plugin, allow_failures=True,
        )  # fmt: skip


def _plain(spec: str, found: Any) -> dict[str, Any]:
    second = found.runner_up
    return {
        "problem": spec,
        "target": found.target,
        "block": found.block,
        "budget": {found.meter: found.budget},
        "best": found.best.to_dict(),
        "not_told_apart": found.level.to_dict(orient="records"),
        "runner_up": None if second is None else second.to_dict(),
        "flips": [vars(flip) for flip in found.flips],
        "left_out": found.left_out,
        "table": found.table.to_dict(orient="records"),
    }
