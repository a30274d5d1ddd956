"""``gradest check`` and ``gradest reference``: an estimator, or one's own code, held against exact truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import (
    Json,
    Plugins,
    PyroArguments,
    PyroPlate,
    PyroProgram,
    PyroReference,
    PyroSteps,
    fail,
    print_json,
    pyro_problem,
    require_writable,
)


def check(
    source: Annotated[str, typer.Argument(help="NAME, or FILE.py:NAME of an Estimator class or a weights function")],
    problem: Annotated[list[str] | None, typer.Option("--problem", "-p", help="in place of the default panel")] = None,
    num_samples: Annotated[
        int | None, typer.Option("--num-samples", "-K", help="default 2, or the least allowed")
    ] = None,
    target: Annotated[str | None, typer.Option(help="hold it against this target, whatever it declares")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    max_draws: Annotated[int, typer.Option(min=4096, help="of one round of the test")] = 2_000_000,
    junit: Annotated[Path | None, typer.Option(help="write a JUnit XML file too, a test per problem")] = None,
    pyro: PyroProgram = None,
    args: PyroArguments = None,
    plate: PyroPlate = None,
    reference: PyroReference = None,
    steps_before: PyroSteps = None,
    as_json: Json = False,
    plugin: Plugins = None,
) -> None:
    """Is this estimator unbiased for what it declares? Exit 0 yes, 1 no, 3 no verdict, 2 wrong usage."""
    require_writable(junit)
    from ..check import PANEL, exit_code
    from ..check import check as check_estimator
    from ..registry import Refusal, Registry, named
    from ..registry import target as target_named
    from ..specs import SpecError

    try:
        if num_samples is not None and num_samples < 1:
            fail(f"--num-samples must be at least 1, not {num_samples}")
        estimator, path = named(source, num_samples, target)
        override = target_named(target, estimator.num_samples) if target else None
        registry = Registry([*(plugin or ()), *([path] if path else ())])
        stated = [*(problem or ()), *pyro_problem(pyro, args, plate, reference, steps_before)]
        problems = [registry.problem(each) for each in stated or PANEL]
        found = check_estimator(estimator, problems, override=override, seed=seed, max_draws=max_draws)
    except (SpecError, Refusal) as wrong:
        fail(wrong)
    code = exit_code(found)
    if junit is not None:
        from ..junit import of_findings, write

        write(junit, f"gradest check {source}", of_findings(source, found))
    if as_json:
        from ..catalogue import finding_row

        print_json({"exit": code, "findings": [finding_row(each) for each in found]})
        raise typer.Exit(code)
    for each in found:
        held = ", ".join(f"{block} for {name}" for block, name in each.targets.items()) or "not applicable"
        typer.echo(f"{each.problem}\n  {held}\n  {each.finding}")
    if not found:
        typer.echo("no problem here knows the exact gradient of what this estimator declares")
    verdict = {0: "unbiased", 1: "BIASED", 3: "no verdict"}[code]
    typer.echo(f"{source}: {verdict}")
    raise typer.Exit(code)


def reference(
    problem: str,
    target: Annotated[str, typer.Option(help="elbo, iwae, log_marginal or forward_kl")] = "elbo",
    num_samples: Annotated[int, typer.Option("--num-samples", "-K", help="K of iwae")] = 1,
    as_json: Json = False,
    plugin: Plugins = None,
) -> None:
    """The exact value and gradient of a target, with the parameters and data that they belong to."""
    from ..catalogue import reference_row
    from ..registry import Registry
    from ..registry import target as target_named
    from ..specs import SpecError

    if num_samples < 1:
        fail(f"--num-samples must be at least 1, not {num_samples}")
    try:
        row = reference_row(Registry(plugin or ()).problem(problem), target_named(target, num_samples))
    except SpecError as wrong:
        fail(wrong)
    if as_json:
        print_json(row)
        return
    for key in ("value", "gradient", "standard_error", "method"):
        typer.echo(f"{key}: {row[key]}")
