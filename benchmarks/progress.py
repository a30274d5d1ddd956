"""A progress bar on a terminal, with rate and time left; silence elsewhere, but for a line a minute."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from .runner import Progress as Step


class Rate(ProgressColumn):
    """Cells in a second, or the seconds that one takes, all workers together."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f} cells/s" if speed >= 1 else f"{1 / speed:.1f} s/cell", style="progress.data.speed")


class Bar:
    """``with Bar(total) as bar: ... bar.tell(step)``. ``done`` of them had ended before, and are no part of the rate."""

    def __init__(self, total: int, done: int = 0) -> None:
        self.total = total
        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            speed_estimate_period=300,
        )
        self.task = self.progress.add_task("measuring", total=total, completed=done)
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

    def show(self, done: int, left: int, what: str) -> None:
        """Show how far a run is that goes on elsewhere."""
        self.progress.update(self.task, completed=done, total=done + left, description=what)
