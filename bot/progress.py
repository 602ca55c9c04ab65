"""What people see while work goes on: progress bars with an ETA on stderr, plain lines where there is no terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bot.logs import masked
from bot.queue.worker import JobEvent
from core.contract import ProgressEvent

err = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """A line for people, on stderr, without secrets."""
    err.print(escape(masked(text)))


class Bars:
    """Shows a bar for each running job. Use as a context manager; call :meth:`job` or :meth:`update`."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=err,
            transient=True,
        )
        #: By title: its bar, and when it began.
        self._tasks: dict[str, tuple[TaskID, float]] = {}

    def __enter__(self) -> Self:
        if err.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if err.is_terminal:
            self._progress.stop()

    def update(self, title: str, event: ProgressEvent | None) -> None:
        """Show how far the work called ``title`` is."""
        if title not in self._tasks:
            self._tasks[title] = (self._progress.add_task(escape(title), total=None), time.monotonic())
        if event is not None:
            self._progress.update(self._tasks[title][0], completed=event.done, total=event.total)

    def job(self, event: JobEvent) -> None:
        """Show a worker's event; endings become a line that stays."""
        title = f"{event.job.kind:<8} {event.variant.label} of {event.variant.repo_id}"
        if event.state == "running":
            self.update(title, event.progress)
            return
        task, started = self._tasks.pop(title, (None, time.monotonic()))
        if task is not None:
            self._progress.remove_task(task)
        tail = f": {event.error}" if event.error else f" ({time.monotonic() - started:.1f} s)"
        again = " It is tried again." if event.state == "todo" else ""
        said = " was cancelled." if event.state == "cancelled" else escape(masked(tail))
        err.print(f"{_MARKS[event.state]} {escape(title)}{said}{again}")


_MARKS = {
    "done": "[green]✓[/]",
    "todo": "[yellow]↻[/]",
    "failed": "[red]✗[/]",
    "dead": "[red]✗[/]",
    "cancelled": "[yellow]–[/]",
}
