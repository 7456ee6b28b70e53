"""What the commands of ``spdsegment`` share: checks of paths, bars, a sentence for a failure.

Bars fit 80 columns, and are silent where standard error is no terminal.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import signal
import threading
import traceback
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer
import typer.core
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

from SPDSegmentLib.errors import BadInput, Cancelled, SPDError, is_out_of_memory, missing_package, out_of_memory
from SPDSegmentLib.files import check_output
from SPDSegmentLib.models.storage import ByteProgress

if TYPE_CHECKING:
    from SPDSegmentLib.inference.results import SegmentationProgress

T = TypeVar("T")
WIDEST = 100
WHAT_WIDTH = 24
SHOWN_VALUES = ("total", "dsc")
"""The other terms are in the curves."""


def require_input(path: Path, what: str) -> None:
    """Raise :class:`BadInput` where ``path`` is not there."""
    try:
        there = path.exists()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"The {what} {path} cannot be read: {reason}.", "Check the path.") from error
    if not there:
        raise BadInput(f"There is no {what} {path}.", "Check the path.")


def require_output(path: Path, what: str, suffixes: Iterable[str], inputs: Iterable[Path]) -> None:
    """Raise :class:`BadInput` where ``path`` cannot be written, has another suffix, or is one of the inputs."""
    suffixes = tuple(suffixes)
    if not path.name.lower().endswith(suffixes):
        raise BadInput(f"The {what} {path} has no known file name extension.", f"Use one of {', '.join(suffixes)}.")
    check_output(path, what, taken=inputs)


def takes(settings: type[T]) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """Make a command of a function of one dataclass: an option a field, its own before those that it inherits."""

    def decorate(run: Callable[[T], None]) -> Callable[..., None]:
        @functools.wraps(run)
        def command(**values: Any) -> None:
            run(settings(**values))

        kinds = typing.get_type_hints(settings, include_extras=True)
        fields = [p.replace(annotation=kinds[p.name]) for p in inspect.signature(settings).parameters.values()]
        fields.sort(key=lambda field: field.name not in settings.__annotations__)
        command.__signature__ = inspect.Signature(fields)  # type: ignore[attr-defined]
        command.__annotations__ = kinds
        return command

    return decorate


class FailureReportingGroup(typer.core.TyperGroup):
    """A command group whose failures end the program with one sentence.

    ``--debug`` of the group adds the details: those of the error and the traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            if _belongs_to_typer(error):
                if isinstance(getattr(error, "message", None), str):  # a reader of values puts its own word before
                    error.message = error.message.removeprefix("Value error, ")  # type: ignore[union-attr]
                raise
            failure = as_spd_error(error)
            report(failure, error if ctx.params.get("debug") else None)
            raise typer.Exit(failure.exit_code) from error


_NO_ROOM = {
    errno.ENOSPC: ("The disk is full", "Free some space and try again."),
    errno.EDQUOT: ("Your disk quota is used up", "Free some space and try again."),
    errno.EFBIG: ("A file exceeds the limit on file sizes", "Raise the limit (ulimit -f), or use another disk."),
}


def as_spd_error(error: BaseException) -> SPDError:
    """The error of our family that says what happened."""
    if is_out_of_memory(error):
        return out_of_memory(error)
    if isinstance(error, SPDError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Cancelled()
    package = (error.name or "").split(".")[0] if isinstance(error, ImportError) else ""
    if package not in ("", "SPDSegmentLib"):
        return missing_package(package, _first_line(error))
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        what, remedy = _NO_ROOM[error.errno]
        return BadInput(f"{what}{_of(error)}.", remedy)
    if isinstance(error, PermissionError):
        return BadInput(f"Permission denied{_of(error)}.", "Check the permissions of this file and its folder.")
    return SPDError(
        f"SPDSegment met an error that it does not know ({type(error).__name__}: {_first_line(error)}).",
        "Run again with 'spdsegment --debug ...' and report what it shows.",
    )


def report(failure: SPDError, cause: BaseException | None = None) -> None:
    """Show the sentence, and with ``cause`` the details and its traceback, on standard error."""
    typer.secho(printable(f"Error: {failure.sentence}"), err=True, fg=typer.colors.RED)
    if cause is not None:
        if failure.details:
            typer.echo(printable(failure.details), err=True)
        typer.echo(printable("".join(traceback.format_exception(cause)).rstrip()), err=True)


def printable(text: str) -> str:
    """``text`` without what a terminal would obey or cannot show: control characters and halves of characters."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _belongs_to_typer(error: BaseException) -> bool:
    """Usage errors, exits and closed pipes, which typer itself reports."""
    if isinstance(error, (typer.Exit, typer.Abort)):
        return True
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        return True
    return not isinstance(error, SPDError) and hasattr(error, "exit_code")


def _of(error: OSError) -> str:
    return f" ({error.filename})" if error.filename else ""


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")


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
            self._console.print(printable(text), markup=False, soft_wrap=True)


@contextlib.contextmanager
def show_training(visible: bool) -> Iterator[TrainingBar]:
    """Bars for training and evaluation; only the main process of several shows them."""
    console = stderr_console()
    text = TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
    with make_bar(console, MofNCompleteColumn(), TimeRemainingColumn(), text, shown=visible) as bar:
        yield TrainingBar(bar, console, visible)


@contextlib.contextmanager
def termination_interrupts() -> Iterator[None]:
    """Within the block a job's end, which Slurm announces half a minute before by SIGTERM, stops as Ctrl+C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
