"""Progress bars on standard error; silent where that is no terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from SPDSegmentLib.models.checksum import Progress as ByteProgress

if TYPE_CHECKING:
    from SPDSegmentLib.inference.results import Progress as SegmentationProgress


def stderr_console() -> Console:
    """Where everything goes that is not a result."""
    return Console(stderr=True, highlight=False)


@contextlib.contextmanager
def show_bytes(description: str) -> Iterator[ByteProgress]:
    """A bar for a download or a checksum; yields the function to call with bytes done and in all."""
    console = stderr_console()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def show_slices() -> Iterator[Callable[[SegmentationProgress], None]]:
    """A bar for a segmentation; yields the function to call with the predictor's progress."""
    console = stderr_console()
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("slices"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("loading the model", total=None)

        def advance(progress: SegmentationProgress) -> None:
            bar.update(task, description=progress.stage, completed=progress.done, total=progress.total)

        yield advance


class TrainingBar:
    """One bar per kind of work, with the latest losses; where there is no terminal, a line now and then."""

    def __init__(self, bar: Progress, console: Console, visible: bool) -> None:
        self._bar = bar
        self._console = console
        self._visible = visible
        self._tasks: dict[str, TaskID] = {}

    def advance(self, what: str, done: int, total: int, seconds_left: float | None, values: dict[str, float]) -> None:
        """Show how far ``what`` is."""
        if not self._visible:
            return
        text = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total, text=text)
        self._bar.update(self._tasks[what], completed=done, total=total, text=text)
        if not self._console.is_terminal and (done == total or done % max(1, total // 20) == 0):
            left = "" if seconds_left is None else f", {seconds_left:.0f} s left"
            self._console.print(f"{what} {done}/{total}{left}  {text}")

    def say(self, text: str) -> None:
        """Show a line above the bars."""
        if self._visible:
            self._console.print(text)


@contextlib.contextmanager
def show_training(visible: bool) -> Iterator[TrainingBar]:
    """Bars for training and evaluation; only the main process of several shows them."""
    console = stderr_console()
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not (visible and console.is_terminal)) as bar:
        yield TrainingBar(bar, console, visible)
