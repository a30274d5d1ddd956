"""The verb that measures: cells are planned, measured, and kept."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from .. import forking
from ..specs import SpecError
from .common import (
    Plugins,
    PyroArguments,
    PyroPlate,
    PyroProgram,
    PyroReference,
    PyroSteps,
    echo,
    fail,
    manifest,
    pyro_problem,
    require_run_folder,
)


def run(
    config: Annotated[Path | None, typer.Argument(help="A TOML file of suites; the default suite without one.")] = None,
    problem: Annotated[
        list[str] | None, typer.Option("--problem", "-p", help="name, glob, or name[param=v,...]")
    ] = None,
    estimator: Annotated[
        list[str] | None, typer.Option("--estimator", "-e", help="name, glob, or name[param=v,...]")
    ] = None,
    num_samples: Annotated[str | None, typer.Option("--num-samples", "-K", help="such as 1,8,64")] = None,
    replicates: Annotated[int | None, typer.Option("--replicates", "-R", min=2, help="estimates per cell")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="repetitions with seeds 0, 1, ...")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:0, xpu, mps")] = "cpu",
    dtype: Annotated[str | None, typer.Option(help="float32 or float64; each problem has its own default")] = None,
    compile_: Annotated[
        bool, typer.Option("--compile", help="compile gradients; eager where nothing compiles")
    ] = False,
    matmul_precision: Annotated[
        str | None, typer.Option(help="of float32: highest, high (TF32), medium (bfloat16), where the device has them")
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="rules on the same draws are measured in one go; part of a cell's identity")
    ] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="run folder; resumed where it exists")] = Path("results/run"),
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=0, help="worker processes; 0: one per core")] = 0,
    timeout: Annotated[float | None, typer.Option(min=0.1, max=1e9, help="seconds that one cell may take")] = None,
    memory: Annotated[
        float | None,
        typer.Option(min=0.5, max=2.0**30, help="GiB that one worker may take; a fair share"),
    ] = None,
    executor: Annotated[str, typer.Option(help="local, dask, or module:factory of an Executor")] = "local",
    executor_arg: Annotated[list[str] | None, typer.Option(help="key=value, such as address=tcp://...")] = None,
    shard: Annotated[str | None, typer.Option(help="i/n: the i-th of n parts, i from 1 to n, for job arrays")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="measure some stored cells again and compare")] = False,
    verify_cells: Annotated[int, typer.Option(min=1, help="how many cells --verify takes")] = 10,
    pyro: PyroProgram = None,
    args: PyroArguments = None,
    plate: PyroPlate = None,
    reference: PyroReference = None,
    steps_before: PyroSteps = None,
    plugin: Plugins = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would run, and stop")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="measure finished cells again")] = False,
    allow_failures: Annotated[bool, typer.Option("--allow-failures", help="exit 0 even if cells failed")] = False,
) -> None:
    """Measure problems x estimators x numbers of samples x seeds. Finished cells are kept."""
    if not dry_run and not verify:
        require_run_folder(out)
    if executor == "local" and not dry_run:
        forking.begin()
    from .. import engines, plan, runner
    from ..progress import Bar
    from ..registry import Refusal, Registry
    from ..specs import assignments, fraction, whole_numbers

    plugins = tuple(str(Path(each).resolve()) for each in plugin or ())
    changes: dict[str, Any] = {"device": device}
    named = [*(problem or ()), *pyro_problem(pyro, args, plate, reference, steps_before)]
    if named:
        changes["problems"] = named
    if estimator:
        changes["estimators"] = estimator
    if num_samples is not None:
        changes["num_samples"] = whole_numbers(num_samples, "--num-samples")
    if compile_:
        changes["compile"] = True
    if share:
        changes["share"] = True
    plain = {"replicates": replicates, "seeds": seeds, "dtype": dtype, "matmul_precision": matmul_precision}
    changes |= {name: value for name, value in plain.items() if value is not None}
    try:
        registry = Registry(plugins)
        whole, uncompiled = plan.as_compilable(plan.configure(config, changes))
        for line in uncompiled:
            echo(line, err=True)
        cells, left_out = plan.cells(whole, registry)
        mine = cells if shard is None else runner.shard(cells, *fraction(shard, "--shard"))
        options = assignments(executor_arg or (), "--executor-arg")
        engines.check(executor, options)
    except (SpecError, Refusal) as wrong:
        fail(wrong)
    if dry_run:
        for cell in mine:
            echo(f"{cell.id}  {cell.problem}  {cell.estimator}  K={cell.num_samples}  seed={cell.seed}")
        typer.echo(f"{len(mine)} cells; nothing was run")
        return
    workers = jobs or len(runner.graphics(cells)) or runner.usable_cores()
    how: dict[str, Any] = {"plugins": plugins, "workers": workers, "timeout": timeout, "memory": memory}
    how |= {"executor": executor, "options": options}
    if verify:
        _verify(out, mine, verify_cells, how)
    try:
        with runner.interruptible():
            books = runner.bibliography(cells, registry)
            left, done, set_aside = (mine, 0, []) if fresh else runner.pending(out, mine)
            for line in (*left_out, *set_aside):
                echo(f"left out: {line}" if line in left_out else f"set aside, measured again: {line}", err=True)
            if done:
                typer.echo(f"{done} of {len(mine)} cells are done already", err=True)

            def opened() -> None:
                command, settings = shlex.join(["gradest", *sys.argv[1:]]), whole.model_dump(mode="json")
                runner.open_run(out, cells, command=command, settings=settings, bibliography=books, workers=workers)

            with Bar(len(left)) as bar:
                tally = runner.run(out, left, opened=opened, told=bar.tell, preparing=bar.preparing, **how)
    except SpecError as wrong:
        fail(wrong)
    except (runner.StoreError, runner.ExecutorLost) as wrong:
        fail(f"{wrong}; finished cells are kept, run the same command again to go on in {out}", 3)
    except KeyboardInterrupt:
        fail(f"stopped; finished cells are kept, run the same command again to go on in {out}", 130)
    failed = tally.failed
    for record in failed:
        echo(f"{record.status}: {record.cell.estimator} on {record.cell.problem}: {record.reason}", err=True)
    echo(f"{tally.counts.total() - len(failed)} cells measured, {len(failed)} failed: {out}")
    if failed and not allow_failures:
        raise typer.Exit(1)


def _verify(folder: Path, cells: list[Any], count: int, how: dict[str, Any]) -> NoReturn:
    """Exit 0 where a sample of the stored cells comes out as stored, 1 where not."""
    from .. import runner, verify

    manifest(folder)
    chosen = verify.sample(folder, cells, count)
    if not chosen:
        fail(f"{folder} holds no result of these cells")
    try:
        with runner.interruptible():
            wrong = verify.verify(folder, chosen, **how)
    except SpecError as problem:
        fail(problem)
    except (runner.StoreError, runner.ExecutorLost) as problem:
        fail(problem, 3)
    except KeyboardInterrupt:
        fail("stopped; nothing was changed", 130)
    for line in wrong:
        echo(f"differs: {line}", err=True)
    for line in verify.other_machine(folder) if wrong else ():
        echo(f"stored with another {line}", err=True)
    echo(f"{len(chosen)} stored cells measured again, {len(wrong)} differ: {folder}")
    raise typer.Exit(1 if wrong else 0)
