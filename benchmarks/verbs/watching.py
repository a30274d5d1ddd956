"""``gradest status``: how far a run is, once or for as long as it goes on."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import Json, echo, fail, manifest

STATES = ("ok", "refused", "error", "timeout", "killed", "nonfinite")


def status(
    folder: Annotated[Path, typer.Argument(help="a run folder")],
    watch: Annotated[bool, typer.Option("--watch", "-w", help="stay until no cell is left")] = False,
    every: Annotated[float, typer.Option(min=0.1, max=1e6, help="with --watch: seconds between two looks")] = 2.0,
    as_json: Json = False,
) -> None:
    """Cells of a run: done, failed, refused, left; with --watch, live.

    On a terminal, --watch shows a bar with the rate and the time left; elsewhere it waits in silence and then says how it ended.
    """
    if watch and as_json:
        fail("--json says it once: leave out --watch")
    facts, unreadable = _facts(folder)
    if watch and facts["left"]:
        facts, unreadable = _watched(folder, facts, every)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(_line(facts))
    if facts["left"] and facts["seconds_left"] is not None:
        typer.echo(f"about {facts['seconds_left']:.0f} s of work left, on one worker")
    for reason in unreadable:
        echo(f"unreadable: {reason}")


def _facts(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Counts by status, cells left, seconds spent and (at the mean of the cells that ended) left; and what cannot be read."""
    from .. import records

    asked = manifest(folder).cells
    stored, unreadable = records.summary(folder)
    counts = dict.fromkeys(STATES, 0)
    for state, _ in stored.values():
        counts[state] += 1
    left = sum(each not in stored for each in asked)
    spent = math.fsum(seconds for _, seconds in stored.values())  # the same in any order
    return {
        **counts,
        "left": left,
        "unreadable": len(unreadable),
        "seconds_spent": spent,
        "seconds_left": spent / len(stored) * left if stored else None,
    }, list(unreadable.values())


def _line(facts: dict[str, Any]) -> str:
    return "  ".join(f"{name} {number}" for name, number in facts.items() if isinstance(number, int))


def _watched(folder: Path, facts: dict[str, Any], every: float) -> tuple[dict[str, Any], list[str]]:
    """The facts once no cell is left. A folder that cannot be read for a moment is looked at again."""
    from ..progress import Bar

    unreadable: list[str] = []
    done = _done(facts)
    with Bar(done + facts["left"], done=done) as bar:
        while True:
            ended = ", ".join(f"{facts[state]} {state}" for state in STATES if facts[state])
            bar.show(_done(facts), facts["left"], ended or "waiting for the first cell")
            if not facts["left"]:
                return facts, unreadable
            time.sleep(every)
            facts, unreadable = _facts(folder)


def _done(facts: dict[str, Any]) -> int:
    return sum(facts[state] for state in STATES)
