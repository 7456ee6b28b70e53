"""Downloads and checks of models in a process of their own, so that the window stays alive."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from slicer.i18n import tr as _

from SPDSegmentLib.errors import BadInput, Cancelled, SPDError, error_from_wire
from SPDSegmentLib.worker.commands import Ending, WorkerCommand

from .signal import Signal
from .worker_host import pythonExecutable, withEnvironment

MODULE = "SPDSegmentLib.models"
MAX_LINE_BYTES = 1 << 20
KILL_AFTER_SECONDS = 3.0


@dataclass
class ToolResult:
    """What a run found: names that are good, and problems by name."""

    good: list[str] = field(default_factory=list)
    problems: list[tuple[str, SPDError]] = field(default_factory=list)


class ModelTool:
    """Runs ``python -m SPDSegmentLib.models``, one command at a time.

    Args:
        makeTransport: returns a new way to a process, see ``worker.transports.Transport``.
        python: the interpreter; None for PythonSlicer.

    Attributes:
        onProgress: signal of name, bytes done, bytes in all (None where unknown).
        onFinished: signal of a ``ToolResult``.
    """

    def __init__(self, makeTransport: Callable[[], Any], python: str | None = None) -> None:
        self.onProgress = Signal()
        self.onFinished = Signal()
        self.command: tuple[str, ...] = (python or pythonExecutable(), "-m", MODULE)
        self._makeTransport = makeTransport
        self._transport: Any = None
        self._result = ToolResult()
        self._buffer = b""
        self._log = b""
        self._cancelled = False

    @property
    def isRunning(self) -> bool:
        """Whether a command is under way."""
        return self._transport is not None

    def start(self, *arguments: str) -> None:
        """Start a command: ``fetch`` and names, or ``check``; raises BadInput while another one runs."""
        from SPDSegmentLib.worker.commands import library_root

        if self.isRunning:
            raise BadInput(_("Another download or check is still under way."), _("Wait for it, or cancel it."))
        self._result = ToolResult()
        self._buffer = self._log = b""
        self._cancelled = False
        self._transport = self._makeTransport()
        self._transport.start(withEnvironment(WorkerCommand((*self.command, *arguments), str(library_root()))), self)

    def cancel(self) -> None:
        """Ask the command to stop and to clean up; one that does not is ended."""
        transport = self._transport
        if transport is None:
            return
        self._cancelled = True
        transport.close_input()
        transport.call_later(KILL_AFTER_SECONDS, lambda: transport.kill() if transport is self._transport else None)

    def on_output(self, data: bytes) -> None:
        """Take bytes of the process's stdout."""
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            self._take(line)
        self._buffer = self._buffer[-MAX_LINE_BYTES:]

    def on_log(self, data: bytes) -> None:
        """Take bytes of the process's stderr."""
        self._log = (self._log + data)[-MAX_LINE_BYTES:]

    def on_ended(self, code: int | None, reason: str) -> None:
        """The process has ended."""
        self._transport = None
        result = self._result
        if self._cancelled:
            result.problems = [("", Cancelled())]
        elif code != 0 and not result.problems:
            lines = tuple(self._log.decode("utf-8", "replace").splitlines()[-40:])
            text = Ending(code, reason, lines).describe()
            result.problems.append(
                ("", SPDError(_("The download or check ended early ({why}).").format(why=text), "", "\n".join(lines)))
            )
        self.onFinished.emit(result)

    def _take(self, line: bytes) -> None:
        try:
            values = json.loads(line)
            name = str(values.get("name", ""))
            if "progress" in values:
                done, total = values["progress"]
                self.onProgress.emit(name, int(done), None if total is None else int(total))
            elif "problem" in values:
                self._result.problems.append((name, error_from_wire(values["problem"])))
            elif "good" in values:
                self._result.good.append(str(values["good"]))
        except (ValueError, TypeError, AttributeError):
            return  # a library printed something
