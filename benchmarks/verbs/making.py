"""``gradest new`` and ``gradest cite``: a plug-in that works from the start, and who is to be cited for what."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from typing import Annotated

import typer

from .common import Json, Plugins, choose, echo, fail, print_json, require_writable

TEMPLATES = Path(__file__).parent / "templates"


def new(
    kind: Annotated[str, typer.Argument(help="estimator or problem")],
    name: Annotated[str, typer.Argument(help="small letters, digits and dashes, such as my-estimator")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="folder to make; gradest-NAME without it")] = None,
) -> None:
    """Write a plug-in of one's own: a package with one estimator or problem, and its tests."""
    choose(kind, ("estimator", "problem"), "kind of plug-in")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        fail(f"a name has small letters, digits and single dashes, such as my-estimator, not {name!r}")
    if keyword.iskeyword(name):
        fail(f"{name} is a word of Python's own, and no file of that name can be imported")
    folder = out if out is not None else Path(f"gradest-{name}")
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists() and folder.resolve().is_relative_to(root):
        fail(f"{folder} is inside the clone: a plug-in lives beside it, say where by --out")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        fail(f"{folder} is there already, and not empty")
    require_writable(folder / "README.md")
    from ..records import write_text

    module = name.replace("-", "_")
    words = {
        "NAME": name,
        "MODULE": module,
        "CLASS": "".join(part.capitalize() for part in name.split("-")),
        "KIND": kind,
    }
    files = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{module}.py": f"{kind}.py",
        f"test_{module}.py": f"test_{kind}.py",
    }
    for target, template in files.items():
        text = (TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")
        write_text(folder / target, re.sub(r"\{\{(\w+)\}\}", lambda word: words[word[1]], text))
    typer.echo(f"{folder}: {', '.join(files)}")
    check = (
        f"{module}.py:{words['CLASS']}" if kind == "estimator" else f"reparameterization --plugin {module}.py -p {name}"
    )
    typer.echo(f"cd {folder} && gradest check {check}")


def cite(
    names: Annotated[list[str], typer.Argument(help="estimators or problems")],
    as_json: Json = False,
    plugin: Plugins = None,
) -> None:
    """BibTeX of exactly these estimators and problems; --json gives the keys of each."""
    from ..registry import Registry
    from ..runner import bibtex
    from ..specs import convert, nearest, parse

    registry = Registry(plugin or ())
    known = {**registry.problems, **registry.estimators}
    keys: dict[str, list[str]] = {}
    for each in names:
        plain, settings = parse(each)
        if plain not in known:
            fail(f"no estimator or problem {plain!r}; {nearest(plain, known)}")
        convert(known[plain], settings)
        keys[plain] = list(known[plain].citations)
    entries = bibtex()
    cited = sorted({key for each in keys.values() for key in each})
    if as_json:
        print_json({"citations": keys, "bibtex": {key: entries[key] for key in cited if key in entries}})
        return
    typer.echo("\n\n".join(entries[key] for key in cited if key in entries), nl=bool(cited))
    for plain, own in keys.items():
        lost = [key for key in own if key not in entries]
        if lost or not own:
            echo(f"{plain}: no entry for {', '.join(lost)}" if lost else f"{plain} names no source", err=True)
