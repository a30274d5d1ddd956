"""``gradest report``, ``export``, ``compare`` and ``history``: what stored records say."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import Json, choose, echo, fail, manifest, print_json, require_writable


def report(
    folders: Annotated[list[Path], typer.Argument(help="run folders; several are overlaid")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="the HTML file; report.html in the first folder")
    ] = None,
    problem: Annotated[list[str] | None, typer.Option("--problem", "-p", help="only these: name or pattern")] = None,
    estimator: Annotated[
        list[str] | None, typer.Option("--estimator", "-e", help="only these: name or pattern")
    ] = None,
) -> None:
    """Write one self-contained HTML file."""
    for folder in folders:
        manifest(folder)
    file = out or folders[0] / "report.html"
    require_writable(file)
    from reports.render import render

    try:
        page = render(folders, file, problems=problem or (), estimators=estimator or ())
    except ValueError as wrong:
        fail(wrong)
    except (ArithmeticError, AttributeError, LookupError, TypeError) as wrong:
        # What is stored may fit its schema, and its checksum, and still be nothing that anybody measured.
        where = traceback.extract_tb(wrong.__traceback__)[-1]
        fail(
            f"what is stored cannot be shown: {type(wrong).__name__} {wrong} ({Path(where.filename).name}, line {where.lineno})"
        )
    echo(page)


def export(
    folder: Path,
    format: Annotated[str, typer.Option(help="csv, json or parquet")] = "csv",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="a file; standard output without it")] = None,
) -> None:
    """One row per cell and block."""
    choose(format, ("csv", "json", "parquet"), "format")
    manifest(folder)
    require_writable(out)
    from reports import tables

    try:
        tables.export(tables.frame([folder]), out if out is not None else sys.stdout, format)
    except ValueError as wrong:
        fail(wrong)


def compare(
    before: Annotated[Path, typer.Argument(help="run folder")],
    after: Annotated[Path, typer.Argument(help="run folder, held against the first")],
    fail_on: Annotated[
        list[str] | None,
        typer.Option(help="exit 1 if worse: variance, seconds, verdict, status; seconds=1.2: only above that ratio"),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="an HTML page of it")] = None,
    junit: Annotated[Path | None, typer.Option(help="a JUnit XML file of it, a test per pair")] = None,
    as_json: Json = False,
) -> None:
    """What changed from one run to another, cell by cell, and can be told from noise (Holm, 5 %)."""
    wanted = _limits(fail_on or [])
    for folder in (before, after):
        manifest(folder)
    require_writable(out, junit)
    from reports import compare as comparing
    from reports.tables import load, tabulate

    runs = [load(before), load(after)]
    one, two = (tabulate([run]) for run in runs)
    why = comparing.same_machine(*runs)
    limits = {metric: limit for metric, limit in wanted.items() if limit}
    rows, changes = comparing.deltas(one, two, limits, seconds=not why), comparing.turned(one, two)
    gone, new = comparing.alone(one, two)
    bad = comparing.worse(rows, changes, list(wanted))
    better = int((rows["change"] == "better").sum())
    notes = [
        f"{len(rows)} ratios compared: {int(rows['change'].eq('worse').sum())} worse, {better} better, "
        f"{int(rows['change'].eq('not told apart').sum())} not told apart, "
        f"{int(rows['change'].eq('worse, within the limit').sum())} worse within the limit",
        f"{len(changes)} verdicts or statuses differ; {gone} cells only before, {new} only after",
    ]
    notes += [f"seconds are not compared: {why}"] if why else []
    if not len(rows) and not len(changes):
        fail("the two runs have no cell in common", 3)
    if "seconds" in wanted and why:
        fail(f"no verdict on seconds: {why}", 3)
    if out is not None:
        from reports.trends import compare_page, save

        save(out, compare_page(*runs, rows, changes, notes))
    if junit is not None:
        _junit(junit, f"{before.name} -> {after.name}", rows, changes, wanted)
    code = 1 if bad else 0
    if as_json:
        data = {"exit": code, "notes": notes, "failed": bad, "rows": rows.to_dict(orient="records"),
                "changes": changes.to_dict(orient="records")}  # fmt: skip
        print_json(data)
        raise typer.Exit(code)
    told = rows[rows["change"].isin(["worse", "better"])].to_dict(orient="records")
    for row in [*told, *changes.to_dict(orient="records")]:
        echo(f"{row['change']}: {comparing.line(row)}")
    for note in notes:
        echo(note)
    if out is not None:
        echo(out)
    raise typer.Exit(code)


def _limits(given: list[str]) -> dict[str, float | None]:
    """``--fail-on`` as metric to limit, ``None`` where the usual one holds."""
    wanted: dict[str, float | None] = {}
    for piece in (part.strip() for text in given for part in text.split(",")):
        name, equals, text = piece.partition("=")
        choose(name, ("variance", "seconds", "verdict", "status"), "metric")
        try:
            limit = float(text) if equals else None
        except ValueError:
            limit = -1.0
        if limit is not None and (name in ("verdict", "status") or not 0 < limit < float("inf")):
            fail(f"--fail-on takes variance or seconds with a ratio above 0, such as seconds=1.2, not {piece!r}")
        wanted[name] = limit
    return wanted


def _junit(path: Path, name: str, rows: Any, changes: Any, wanted: dict[str, float | None]) -> None:
    from reports.compare import line

    from ..junit import Case, write

    cases = []
    for row in [*rows.to_dict(orient="records"), *changes.to_dict(orient="records")]:
        failure = line(row) if row["change"] == "worse" and row["metric"] in wanted else ""
        where = f"{row['estimator']} K={row['num_samples']} {row['problem']} {row['block'] or ''}".strip()
        cases.append(Case(row["metric"], where, failure, text=line(row)))
    write(path, name, cases)


def history(
    folders: Annotated[list[Path], typer.Argument(help="run folders, in any order")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="an HTML page of it")] = None,
    as_json: Json = False,
) -> None:
    """Variance and seconds over many runs, oldest first, and where they changed (Holm, 5 %)."""
    if len(folders) < 2:
        fail(f"a history needs at least two run folders, not {len(folders)}")
    for folder in folders:
        manifest(folder)
    require_writable(out)
    from reports import trends
    from reports.tables import load
    from reports.wording import BLOCKS, interval

    runs = [load(folder) for folder in folders]
    rows, notes = trends.history(runs)
    if not len(rows):
        fail("these runs have no finished cell", 3)
    if out is not None:
        trends.save(out, trends.history_page(runs, rows, notes))
    if as_json:
        print_json({"notes": notes, "rows": rows.to_dict(orient="records")})
        return
    changed = 0
    for row in rows.to_dict(orient="records"):
        for metric, column, prefix in (("variance",) * 3, ("seconds", "seconds_per_gradient", "seconds")):
            if row[f"{metric}_change"] in ("worse", "better"):
                changed += 1
                size = interval(row[column], row[f"{prefix}_low"], row[f"{prefix}_high"])
                where = f"{row['estimator']} at K = {row['num_samples']} on {row['problem']}, {BLOCKS[row['block']]}"
                echo(f"{row['run']}: {metric} {row[f'{metric}_change']}, now {size}: {where}")
    for note in notes:
        echo(note)
    typer.echo(f"{rows['run'].nunique()} runs, {len(rows)} rows, {changed} changes")
    if out is not None:
        echo(out)
