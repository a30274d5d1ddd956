"""The command line. Importing this module imports no torch; every verb imports what it needs.

Exit codes: 0 done; 1 a cell failed, or a bias was found; 2 wrong usage; 3 no verdict, or a file cannot be written.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from . import __version__
from .specs import SpecError

app = typer.Typer(
    name="gradest",
    help="Measure Monte Carlo gradient estimators: how biased, how noisy, how costly.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print data as JSON.")]
Plugins = Annotated[list[str] | None, typer.Option("--plugin", help="A Python file with estimators or problems.")]


def fail(message: object, code: int = 2) -> NoReturn:
    """One line on standard error, and out."""
    raise typer.Exit(_say(message, code))


def _say(message: object, code: int) -> int:
    typer.echo(f"gradest: {' '.join(str(message).split())}", err=True)
    return code


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gradest {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="estimators or problems")] = "estimators",
    as_json: Json = False,
    plugin: Plugins = None,
) -> None:
    """Names, targets, needs and a line on each."""
    from .catalogue import catalogue
    from .registry import Registry
    from .specs import nearest

    if what not in ("estimators", "problems"):
        fail(f"cannot list {what!r}; {nearest(what, ('estimators', 'problems'))}")
    rows = catalogue(Registry(plugin or ()), what)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        typer.echo(f"{row['name']:<{width}}  {row['line']}")


@app.command()
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
    out: Annotated[Path, typer.Option("--out", "-o", help="run folder; resumed where it exists")] = Path("results/run"),
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=0, help="worker processes; 0: one per core")] = 0,
    timeout: Annotated[float | None, typer.Option(min=0.1, help="seconds that one cell may take")] = None,
    plugin: Plugins = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would run, and stop")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="measure finished cells again")] = False,
    allow_failures: Annotated[bool, typer.Option("--allow-failures", help="exit 0 even if cells failed")] = False,
) -> None:
    """Measure problems x estimators x numbers of samples x seeds. Finished cells are kept."""
    from . import plan, runner
    from .progress import Bar
    from .registry import Refusal, Registry

    plugins = tuple(str(Path(each).resolve()) for each in plugin or ())
    changes: dict[str, Any] = {"device": device}
    if problem:
        changes["problems"] = problem
    if estimator:
        changes["estimators"] = estimator
    if num_samples is not None:
        changes["num_samples"] = _whole_numbers(num_samples, "--num-samples")
    changes |= {k: v for k, v in (("replicates", replicates), ("seeds", seeds), ("dtype", dtype)) if v is not None}
    try:
        registry = Registry(plugins)
        whole = plan.configure(config, changes)
        cells, left_out = plan.cells(whole, registry)
    except (SpecError, Refusal) as wrong:
        fail(wrong)
    if dry_run:
        for cell in cells:
            typer.echo(f"{cell.id}  {cell.problem}  {cell.estimator}  K={cell.num_samples}  seed={cell.seed}")
        typer.echo(f"{len(cells)} cells; nothing was run")
        return
    try:
        books = runner.bibliography(cells, registry)
        command = shlex.join(["gradest", *sys.argv[1:]])
        workers = jobs or runner.usable_cores()
        settings = whole.model_dump(mode="json")
        runner.open_run(out, cells, command=command, settings=settings, bibliography=books, workers=workers)
        left, done, set_aside = (cells, 0, []) if fresh else runner.pending(out, cells)
        for line in (*left_out, *set_aside):
            typer.echo(f"left out: {line}" if line in left_out else f"set aside, measured again: {line}", err=True)
        if done:
            typer.echo(f"{done} of {len(cells)} cells are done already", err=True)
        with Bar(len(left)) as bar:
            finished = runner.run(
                out, left, plugins=plugins, workers=workers, timeout=timeout, told=bar.tell, preparing=bar.preparing
            )
    except runner.StoreError as wrong:
        fail(wrong, 3)
    except KeyboardInterrupt:
        fail(f"stopped; finished cells are kept, run the same command again to go on in {out}", 130)
    failed = [record for record in finished if record.status not in ("ok", "refused")]
    for record in failed:
        typer.echo(f"{record.status}: {record.cell.estimator} on {record.cell.problem}: {record.reason}", err=True)
    typer.echo(f"{len(finished) - len(failed)} cells measured, {len(failed)} failed: {out}")
    if failed and not allow_failures:
        raise typer.Exit(1)


def _whole_numbers(text: str, option: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        fail(f"{option} takes whole numbers such as 1,8,64, not {text!r}")
    if min(numbers) < 1:
        fail(f"{option} must be at least 1, not {min(numbers)}")
    return numbers


@app.command()
def status(folder: Path, as_json: Json = False) -> None:
    """Cells of a run: done, failed, refused, left."""
    from . import records

    manifest = _manifest(folder)
    stored, unreadable = records.read_cells(folder)
    counts = dict.fromkeys(("ok", "refused", "error", "timeout", "killed", "nonfinite"), 0)
    for record in stored.values():
        counts[record.status] += 1
    left = [each for each in manifest.cells if each not in stored]
    seconds = sum(record.seconds for record in stored.values())
    estimate = seconds / len(stored) * len(left) if stored else None
    facts = {
        **counts,
        "left": len(left),
        "unreadable": len(unreadable),
        "seconds_spent": seconds,
        "seconds_left": estimate,
    }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo("  ".join(f"{name} {number}" for name, number in facts.items() if isinstance(number, int)))
    if left and estimate is not None:
        typer.echo(f"about {estimate:.0f} s of work left")
    for reason in unreadable.values():
        typer.echo(f"unreadable: {reason}")


def _manifest(folder: Path) -> Any:
    from . import records

    if not (folder / "manifest.json").is_file():
        fail(f"{folder} is no run folder (no manifest.json)")
    try:
        return records.read(folder / "manifest.json", records.Manifest)
    except records.RecordError as wrong:
        fail(wrong)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="run folders; several are overlaid")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="the HTML file; report.html in the first folder")
    ] = None,
) -> None:
    """Write one self-contained HTML file."""
    from reports.render import render

    for folder in folders:
        _manifest(folder)
    typer.echo(render(folders, out or folders[0] / "report.html"))


@app.command()
def export(
    folder: Path,
    format: Annotated[str, typer.Option(help="csv, json or parquet")] = "csv",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="a file; standard output without it")] = None,
) -> None:
    """One row per cell and block."""
    from reports import tables

    from .specs import nearest

    allowed = ("csv", "json", "parquet")
    if format not in allowed:
        fail(f"no format {format!r}; {nearest(format, allowed)}")
    _manifest(folder)
    try:
        tables.export(tables.frame([folder]), out if out is not None else sys.stdout, format)
    except ValueError as wrong:
        fail(wrong)


@app.command()
def check(
    source: Annotated[str, typer.Argument(help="NAME, or FILE.py:NAME of an Estimator class or a weights function")],
    problem: Annotated[list[str] | None, typer.Option("--problem", "-p", help="in place of the default panel")] = None,
    num_samples: Annotated[
        int | None, typer.Option("--num-samples", "-K", help="default 2, or the least allowed")
    ] = None,
    target: Annotated[str | None, typer.Option(help="hold it against this target, whatever it declares")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    max_draws: Annotated[int, typer.Option(min=4096, help="of one round of the test")] = 2_000_000,
    as_json: Json = False,
) -> None:
    """Is this estimator unbiased for what it declares? Exit 0 yes, 1 no, 3 no verdict, 2 wrong usage."""
    from .check import PANEL, exit_code
    from .check import check as check_estimator
    from .registry import Refusal, Registry, named
    from .registry import target as target_named

    try:
        if num_samples is not None and num_samples < 1:
            fail(f"--num-samples must be at least 1, not {num_samples}")
        estimator, path = named(source, num_samples, target)
        override = target_named(target, estimator.num_samples) if target else None
        registry = Registry([path] if path else ())
        problems = [registry.problem(each) for each in problem or PANEL]
        found = check_estimator(estimator, problems, override=override, seed=seed, max_draws=max_draws)
    except (SpecError, Refusal) as wrong:
        fail(wrong)
    code = exit_code(found)
    if as_json:
        from .catalogue import finding_row

        typer.echo(json.dumps({"exit": code, "findings": [finding_row(each) for each in found]}, indent=1))
        raise typer.Exit(code)
    for each in found:
        held = ", ".join(f"{block} for {name}" for block, name in each.targets.items()) or "not applicable"
        typer.echo(f"{each.problem}\n  {held}\n  {each.finding}")
    if not found:
        typer.echo("no problem here knows the exact gradient of what this estimator declares")
    verdict = {0: "unbiased", 1: "BIASED", 3: "no verdict"}[code]
    typer.echo(f"{source}: {verdict}")
    raise typer.Exit(code)


@app.command()
def reference(
    problem: str,
    target: Annotated[str, typer.Option(help="elbo, iwae, log_marginal or forward_kl")] = "elbo",
    num_samples: Annotated[int, typer.Option("--num-samples", "-K", help="K of iwae")] = 1,
    as_json: Json = False,
    plugin: Plugins = None,
) -> None:
    """The exact value and gradient of a target, with the parameters and data that they belong to."""
    from .catalogue import reference_row
    from .registry import Registry
    from .registry import target as target_named

    if num_samples < 1:
        fail(f"--num-samples must be at least 1, not {num_samples}")
    try:
        row = reference_row(Registry(plugin or ()).problem(problem), target_named(target, num_samples))
    except SpecError as wrong:
        fail(wrong)
    if as_json:
        typer.echo(json.dumps(row, indent=1))
        return
    for key in ("value", "gradient", "standard_error", "method"):
        typer.echo(f"{key}: {row[key]}")


def main() -> NoReturn:
    """Entry point: one line and exit 2 for wrong usage, never a traceback for the user's own slips."""
    given = sys.argv[1:]
    # UsageError: of click, or of the copy of click that newer versions of typer carry.
    usage_error = typer.BadParameter.__mro__[1]
    try:
        code = typer.main.get_command(app)(given or ["--help"], prog_name="gradest", standalone_mode=False)
    except (SpecError, MemoryError) as wrong:
        code = _say(wrong, 2)
    except usage_error as wrong:
        code = _say(f"{wrong.format_message()} (given: {shlex.join(given)})", 2)
    except OSError as wrong:
        code = _say(wrong, 3)
    except typer.Abort:
        code = _say("stopped", 130)
    sys.exit(code or 0)
