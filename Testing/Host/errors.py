"""Errors of the host, and the record of exceptions that a running Slicer would print and lose."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType


class HostError(Exception):
    """A use that real Slicer would not accept."""


class UnknownWidget(HostError):
    """A widget class that Slicer does not have, or that the host's own list lacks."""


class UnknownSignal(HostError, AttributeError):
    """A signal that the object does not have; PythonQt prints this and carries on."""


class UnknownAttribute(HostError, AttributeError):
    """An attribute created on a C++ object; PythonQt refuses it."""


class UiFileError(HostError):
    """A .ui file that Slicer would load differently from what it says."""


class UnexpectedDialog(HostError):
    """A modal dialog that nobody answers: it would block a test, or a script, for ever."""


@dataclass(frozen=True)
class SlotError:
    """One exception that left a slot, an event handler or a VTK observer."""

    where: str
    exception: BaseException

    def __str__(self) -> str:
        lines = traceback.format_exception(self.exception)
        return f"{self.where}: {''.join(lines)}"


class SlotErrors:
    """Collects exceptions of slots, event handlers and VTK observers while it is installed."""

    def __init__(self) -> None:
        self._records: list[SlotError] = []
        self._previous: Callable[[type[BaseException], BaseException, TracebackType | None], object] | None = None

    def install(self) -> None:
        """Catch what PySide and VTK hand to `sys.excepthook`."""
        if self._previous is None:
            self._previous = sys.excepthook
            sys.excepthook = self._hook

    def uninstall(self) -> None:
        """Put the earlier `sys.excepthook` back."""
        if self._previous is not None:
            sys.excepthook = self._previous
            self._previous = None

    def record(self, where: str, exception: BaseException) -> None:
        """Keep an exception and print it, as Slicer does."""
        self._records.append(SlotError(where, exception))
        traceback.print_exception(exception)

    def take(self) -> list[SlotError]:
        """Return the recorded errors and forget them; a test that expects errors calls this."""
        records, self._records = self._records, []
        return records

    def __len__(self) -> int:
        return len(self._records)

    def _hook(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        self.record("event handler or observer", error.with_traceback(trace))


slot_errors = SlotErrors()
