"""What verbs share: how they say no, their common options, and reading a run's manifest."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from ..outside import one_line, plain

Json = Annotated[bool, typer.Option("--json", help="Print data as JSON.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="folder with the data set's own files")]
Plugins = Annotated[list[str] | None, typer.Option("--plugin", help="A Python file with estimators or problems.")]

PyroProgram = Annotated[
    str | None,
    typer.Option("--pyro", help="MODEL,GUIDE: each module:name or file.py:name; the guide may be an autoguide's name"),
]
PyroArguments = Annotated[str | None, typer.Option("--args", help="file.py:function that gives the arguments of both")]
PyroPlate = Annotated[
    str | None, typer.Option("--plate", help="weights for each element of this plate; one joint weight without it")
]
PyroReference = Annotated[
    str | None, typer.Option("--reference", help="file.py:function that gives the exact value and gradient of a target")
]
PyroSteps = Annotated[
    int | None, typer.Option("--steps-before", help="of training by Pyro's own SVI before anything is measured")
]


def fail(message: object, code: int = 2) -> NoReturn:
    """One line on standard error, and out."""
    raise typer.Exit(say(message, code))


def say(message: object, code: int) -> int:
    """One line on standard error; gives the exit code back."""
    echo(f"gradest: {one_line(message)}", err=True)
    return code


def echo(line: object, err: bool = False) -> None:
    """Print a line of what may come from outside: names, reasons, files."""
    typer.echo(plain(line).replace("\n", " "), err=err)


def pyro_problem(
    program: str | None,
    arguments: str | None,
    plate: str | None = None,
    reference: str | None = None,
    steps: int | None = None,
) -> list[str]:
    """The problem that ``--pyro`` and the options that go with it stand for, or none."""
    given = {"args": arguments, "plate": plate, "truth": reference, "steps": steps}
    settings = {name: value for name, value in given.items() if value is not None}
    if program is None:
        options = {"args": "--args", "plate": "--plate", "truth": "--reference", "steps": "--steps-before"}
        for name, value in settings.items():
            fail(f"{options[name]} {value} belongs to --pyro MODEL,GUIDE")
        return []
    model, comma, guide = (part.strip() for part in program.partition(","))
    if not (model and comma and guide):
        fail(f"--pyro takes MODEL,GUIDE, such as model.py:model,AutoNormal, not {program!r}")
    place = model.rpartition(":")[0]
    if ":" not in guide and not guide.startswith("Auto"):
        guide = f"{place}:{guide}"  # of the model's own file or module
    for name in ("args", "truth"):
        if name in settings and ":" not in str(settings[name]):
            settings[name] = f"{place}:{settings[name]}"
    stated = {"model": model, "q": guide} | settings
    return [f"pyro[{','.join(f'{name}={value}' for name, value in stated.items())}]"]


def manifest(folder: Path) -> Any:
    """The manifest of a run folder, or out."""
    from .. import records
    from ..schema import Manifest

    if not (folder / "manifest.json").is_file():
        fail(f"{folder} is no run folder (no manifest.json)")
    try:
        return records.read(folder / "manifest.json", Manifest)
    except records.RecordError as wrong:
        fail(wrong)


def require_writable(*files: Path | None) -> None:
    """Out, before anything is computed, if no file can be written where one is asked for; ``None`` asks for nothing."""
    for path in files:
        if path is None:
            continue
        try:
            if path.is_dir():
                fail(f"{path} is a folder; a file is to be written there, so name one")
            folder = next(each for each in path.absolute().parents if each.exists())
            if not folder.is_dir():
                fail(f"cannot write {path}: {folder} is no folder")
            if not os.access(folder, os.W_OK | os.X_OK):
                fail(f"cannot write {path}: nothing may be written in {folder}; name another place")
        except OSError as problem:  # a name that is too long
            fail(f"cannot write {path}: {problem.strerror}")


def require_run_folder(folder: Path) -> None:
    """Out, before anything is computed, if there is no run folder and none can be made, or it can only be read."""
    require_writable(folder / "manifest.json", folder / "cells" / "any.json")


def choose(given: str, allowed: tuple[str, ...], what: str) -> str:
    """One of the allowed words, or out with the nearest."""
    from ..specs import nearest

    if given not in allowed:
        fail(f"no {what} {given!r}; {nearest(given, allowed)}")
    return given


def print_json(data: Any) -> None:
    """Strict JSON on standard output; what is no number is null."""
    typer.echo(json.dumps(_finite(data), indent=1, allow_nan=False))


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if hasattr(data, "item"):
        data = data.item()  # numpy's numbers
    return None if isinstance(data, float) and data - data != 0 else data
