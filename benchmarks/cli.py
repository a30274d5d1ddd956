"""The command line. Importing this module imports no torch; every verb imports what it needs.

Exit codes: 0 done; 1 a cell failed, or a bias was found; 2 wrong usage, or nowhere to write to; 3 no verdict, or writing failed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Annotated, Any, NoReturn

import typer

from . import __version__
from .outside import NO_MEMORY
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
        with _interruptible():
            code = _command()(given or ["--help"], prog_name="gradest", standalone_mode=False)
    except (SpecError, MemoryError) as wrong:
        code = say(wrong, 2)
    except usage_error as wrong:
        value = _value(getattr(getattr(wrong, "param", None), "opts", ()), given)
        code = say(f"{wrong.format_message()}{'' if value is None else f' (given: {value})'}", 2)
    except OSError as wrong:
        code = say(wrong, 3)
    except typer.Abort:
        code = say("stopped", 130)
    except RuntimeError as wrong:  # torch's own where there is no memory; typer.Abort above is one, too
        if not NO_MEMORY.search(str(wrong)):
            raise
        code = say(f"no memory for this: {wrong}", 2)
    sys.exit(code or 0)


def _value(options: Iterable[str], words: list[str]) -> str | None:
    """What was given for an option, spelled in any of these ways, or ``None``."""
    for option in options:
        for place, word in enumerate(words):
            if word == option and place + 1 < len(words):
                return words[place + 1]
            if word.startswith(option + "=" if option.startswith("--") else option) and len(word) > len(option):
                return word[len(option) :].removeprefix("=")
    return None


@contextmanager
def _interruptible() -> Iterator[None]:
    """Within, Ctrl-C ends this process at once with a line, until a verb has a better way (:func:`runner.interruptible`).

    ``KeyboardInterrupt`` in the middle of an import becomes an error of another kind, or is lost with a traceback.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        os.write(2, b"gradest: stopped\n")
        os._exit(130)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
