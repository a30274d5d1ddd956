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
    echo,
    fail,
    print_json,
    pyro_problem,
    require_writable,
)

ASKED_FOR = (
    *("elbo", "log_marginal", "forward_kl", "sleep", "iwae", "renyi[setting=0.5]", "ciwae[setting=0.5]"),
    *("jackknife[setting=1]", "f_divergence[setting=kl]", "tvo[setting=4]", "tvo_upper[setting=4]"),
    "relaxed_elbo[setting=0.5]",
)
"""Targets as they are written, each with a setting if it takes one: `--help` does not wait for torch to say so."""


def check(
    source: Annotated[str, typer.Argument(help="NAME, or FILE.py:NAME of an Estimator class or a weights function")],
    problem: Annotated[list[str] | None, typer.Option("--problem", "-p", help="in place of the default panel")] = None,
    num_samples: Annotated[
        int | None, typer.Option("--num-samples", "-K", help="default 2 and then 3, or the least allowed and one more")
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
    from ..check import check_named, exit_code
    from ..registry import Refusal, Registry, named
    from ..specs import SpecError, check_samples

    try:
        if num_samples is not None:
            check_samples(num_samples)
        estimators, path = named(source, num_samples, target)
        registry = Registry([*(plugin or ()), *([path] if path else ())])
        stated = [*(problem or ()), *pyro_problem(pyro, args, plate, reference, steps_before)]
        found = check_named(estimators, registry, stated, target=target, seed=seed, max_draws=max_draws)
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
        for line in (f"{each.problem}, K = {each.num_samples}", f"  {held}", f"  {each.finding}"):
            echo(line)
    if not found:
        typer.echo("no problem here knows the exact gradient of what this estimator declares")
    verdict = {0: "unbiased", 1: "BIASED", 3: "no verdict"}[code]
    echo(f"{source}: {verdict}")
    raise typer.Exit(code)


def reference(
    problem: str,
    target: Annotated[str, typer.Option(help=f"one of {', '.join(ASKED_FOR)}")] = "elbo",
    num_samples: Annotated[int | None, typer.Option("--num-samples", "-K", help="K of a bound that has one")] = None,
    as_json: Json = False,
    plugin: Plugins = None,
) -> None:
    """The exact value and gradient of a target, with the parameters and data that they belong to."""
    from ..catalogue import reference_row
    from ..registry import Registry
    from ..specs import SpecError, check_samples
    from ..targets import takes_samples
    from ..targets import target as target_named

    try:
        if num_samples is not None:
            check_samples(num_samples)
        wanted = target_named(target, num_samples or 1)
        if num_samples is not None and not takes_samples(target):
            fail(f"{target} is the same for every number of samples: leave --num-samples {num_samples} away")
        row = reference_row(Registry(plugin or ()).problem(problem), wanted)
    except SpecError as wrong:
        fail(wrong)
    if as_json:
        print_json(row)
        return
    for key in ("value", "gradient", "standard_error", "method"):
        echo(f"{key}: {row[key]}")
