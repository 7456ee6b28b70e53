"""The one place where a failure becomes a sentence on standard error and an exit code."""

from __future__ import annotations

import errno
import traceback
from typing import Any

import typer
import typer.core

from SPDSegmentLib.errors import BadInput, Cancelled, SPDError, is_out_of_memory, missing_package, out_of_memory


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
                raise
            failure = as_spd_error(error)
            report(failure, error if ctx.params.get("debug") else None)
            raise typer.Exit(failure.exit_code) from error


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
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return BadInput(f"The disk is full{_of(error)}.", "Free some space and try again.")
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
