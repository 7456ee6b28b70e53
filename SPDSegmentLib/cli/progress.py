"""Progress bars on standard error that fit 80 columns; silent where that is no terminal."""

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
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column

from SPDSegmentLib.models.checksum import ByteProgress

if TYPE_CHECKING:
    from SPDSegmentLib.inference.results import SegmentationProgress


WIDEST = 100
WHAT_WIDTH = 24
SHOWN_VALUES = ("total", "dsc")
"""The other terms are in the curves."""


def stderr_console() -> Console:
    """Where everything goes that is not a result; brackets in texts are no markup."""
    return Console(stderr=True, highlight=False, markup=False)


def make_bar(console: Console, *columns: ProgressColumn, shown: bool = True, transient: bool = False) -> Progress:
    """A progress display: what is being done, a bar that takes the room that is left, and ``columns``.

    Texts are never read as markup, and those that are too long are cut, so that a line is never broken.
    """
    what = TextColumn(
        "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", max_width=WHAT_WIDTH)
    )
    bar = BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4))
    console.width = min(console.width, WIDEST)
    return Progress(
        what,
        bar,
        *columns,
        console=console,
        transient=transient,
        disable=not (shown and console.is_terminal),
        expand=True,
    )


@contextlib.contextmanager
def show_bytes(description: str) -> Iterator[ByteProgress]:
    """A bar for a download or a checksum; yields the function to call with bytes done and in all."""
    with make_bar(stderr_console(), DownloadColumn(), TransferSpeedColumn(), transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def show_slices() -> Iterator[Callable[[SegmentationProgress], None]]:
    """A bar for a segmentation; yields the function to call with the predictor's progress."""
    columns = (MofNCompleteColumn(), TextColumn("slices"), TimeRemainingColumn())
    with make_bar(stderr_console(), *columns, transient=True) as bar:
        task = bar.add_task("loading the model", total=None)

        def advance(progress: SegmentationProgress) -> None:
            bar.update(task, description=progress.stage, completed=progress.done, total=progress.total)

        yield advance


class TrainingBar:
    """One bar per kind of work, with the total loss and the Dice; where there is no terminal, a line now and then."""

    def __init__(self, bar: Progress, console: Console, visible: bool) -> None:
        self._bar = bar
        self._console = console
        self._visible = visible
        self._tasks: dict[str, TaskID] = {}

    def advance(self, what: str, done: int, total: int, seconds_left: float | None, values: dict[str, float]) -> None:
        """Show how far ``what`` is."""
        if not self._visible:
            return
        text = "  ".join(f"{name} {values[name]:.3f}" for name in SHOWN_VALUES if name in values)
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total, text=text)
        self._bar.update(self._tasks[what], completed=done, total=total, text=text)
        if not self._console.is_terminal and (done == total or done % max(1, total // 20) == 0):
            left = "" if seconds_left is None else f", {seconds_left:.0f} s left"
            self._console.print(f"{what} {done}/{total}{left}  {text}".rstrip(), markup=False)

    def say(self, text: str) -> None:
        """Show a line above the bars."""
        if self._visible:
            self._console.print(text, markup=False, soft_wrap=True)


@contextlib.contextmanager
def show_training(visible: bool) -> Iterator[TrainingBar]:
    """Bars for training and evaluation; only the main process of several shows them."""
    console = stderr_console()
    text = TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
    with make_bar(console, MofNCompleteColumn(), TimeRemainingColumn(), text, shown=visible) as bar:
        yield TrainingBar(bar, console, visible)
