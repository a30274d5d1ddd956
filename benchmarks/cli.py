"""The command line. Importing this module imports no torch; every verb imports what it needs.

Exit codes: 0 done; 1 a cell failed, or a bias was found; 2 wrong usage, or nowhere to write to; 3 no verdict, or writing failed.
"""

from __future__ import annotations

import shlex
import sys
from functools import cache
from typing import Annotated, Any, NoReturn

import typer

from . import __version__
from .specs import SpecError
from .verbs import advising, checking, listing, making, running, showing, studying, training, watching
from .verbs.common import say

app = typer.Typer(
    name="gradest",
    help="Measure Monte Carlo gradient estimators: how biased, how noisy, how costly.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


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


app.command("list")(listing.list_)
app.command()(running.run)
app.command()(watching.status)
app.command()(showing.report)
app.command()(showing.export)
app.command()(showing.compare)
app.command()(showing.history)
app.command()(advising.advise)
app.command()(checking.check)
app.command()(checking.reference)
app.command()(making.new)
app.command()(making.cite)
app.command()(training.train)
app.command()(training.evaluate)
app.command()(studying.study)
app.command()(studying.gradients)


@cache
def _command() -> Any:
    """All verbs as one command; made once, which takes longer than a small verb."""
    return typer.main.get_command(app)


def main() -> NoReturn:
    """Entry point: one line and exit 2 for wrong usage, never a traceback for the user's own slips."""
    given = sys.argv[1:]
    # UsageError: of click, or of the copy of click that newer versions of typer carry.
    usage_error = typer.BadParameter.__mro__[1]
    try:
        code = _command()(given or ["--help"], prog_name="gradest", standalone_mode=False)
    except (SpecError, MemoryError) as wrong:
        code = say(wrong, 2)
    except usage_error as wrong:
        code = say(f"{wrong.format_message()} (given: {shlex.join(given)})", 2)
    except OSError as wrong:
        code = say(wrong, 3)
    except typer.Abort:
        code = say("stopped", 130)
    sys.exit(code or 0)
