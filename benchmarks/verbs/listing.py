"""``gradest list``: what there is to measure, and on what."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .common import Json, Plugins, echo, fail


def list_(
    what: Annotated[str, typer.Argument(help="estimators or problems")] = "estimators",
    as_json: Json = False,
    plugin: Plugins = None,
) -> None:
    """Names, targets, needs and a line on each."""
    from ..catalogue import catalogue
    from ..registry import Refusal, Registry
    from ..specs import nearest

    if what not in ("estimators", "problems"):
        fail(f"cannot list {what!r}; {nearest(what, ('estimators', 'problems'))}")
    try:
        rows = catalogue(Registry(plugin or ()), what)
    except Refusal as wrong:
        fail(wrong)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        echo(f"{row['name']:<{width}}  {row['line']}")
