"""``gradest list``: what there is to measure, and on what."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .common import Json, Plugins, fail


def list_(
    what: Annotated[str, typer.Argument(help="estimators or problems")] = "estimators",
    as_json: Json = False,
    plugin: Plugins = None,
) -> None:
    """Names, targets, needs and a line on each."""
    from ..catalogue import catalogue
    from ..registry import Registry
    from ..specs import nearest

    if what not in ("estimators", "problems"):
        fail(f"cannot list {what!r}; {nearest(what, ('estimators', 'problems'))}")
    rows = catalogue(Registry(plugin or ()), what)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        typer.echo(f"{row['name']:<{width}}  {row['line']}")
