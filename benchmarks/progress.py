"""A progress bar on a terminal; silence elsewhere, but for a line a minute."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .runner import Progress as Step


class Bar:
    """``with Bar(total) as bar: ... bar.tell(step)``."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task("measuring", total=total)
        self.spoke = time.monotonic()

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def preparing(self, what: str) -> None:
        """Show what is being made ready."""
        self.progress.update(self.task, description=f"{'preparing ' + what.partition('[')[0]:<44}")

    def tell(self, step: Step) -> None:
        """Show that a cell has ended."""
        name = f"{step.record.cell.estimator.partition('[')[0]} on {step.record.cell.problem.partition('[')[0]}"
        self.progress.update(self.task, completed=step.done, description=f"{name:<44}")
        if not self.console.is_terminal and time.monotonic() - self.spoke > 60:
            self.spoke = time.monotonic()
            print(f"{step.done} of {step.total} cells", file=sys.stderr, flush=True)
