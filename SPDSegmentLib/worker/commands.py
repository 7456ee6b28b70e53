"""The command that starts a worker, and what an exit code means."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from SPDSegmentLib.errors import MORE_MEMORY, WorkerDied, tells_of_memory

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_BROKEN_STREAM = 2
EXIT_CANCELLED = 130

_WINDOWS_CODES = {
    0xC0000005: "access violation",
    0xC0000017: "out of memory",
    0xC000013A: "interrupted",
    0xC0000135: "a library was not found",
    0xC00000FD: "stack overflow",
    0xC0000409: "aborted",
}
KILLED = "killed, probably by the system for lack of memory"
FAREWELL = re.compile(r"^(Fatal Python error|\w+(\.\w+)*(Error|Exception|Interrupt)\b|Traceback )|terminate called")
"""How the log of a process ends that failed by itself."""
MEMORY_LINES = 20
KILL_CODES = (-9, 137, 247)
"""Of SIGKILL: itself, as a shell says it, and as a Python program does that returns its child's code."""
_SHELL_CODES = {126: "the command cannot be run", 127: "the command was not found", 255: "the connection failed"}


@dataclass(frozen=True)
class WorkerCommand:
    """How to start a worker.

    Attributes:
        arguments: program and arguments; ``ssh host spdsegment worker`` makes it a remote one.
        folder: working folder of the process, or None for the caller's.
        environment: variables (name, value) of the process, or None for the caller's.
    """

    arguments: tuple[str, ...]
    folder: str | None = None
    environment: tuple[tuple[str, str], ...] | None = field(default=None, repr=False)


def local_command(python: str | None = None) -> WorkerCommand:
    """Return the command for a worker on this machine.

    Args:
        python: the interpreter (PythonSlicer within Slicer); None for the running one.
    """
    return WorkerCommand((python or sys.executable, "-m", "SPDSegmentLib.worker"), str(library_root()))


def library_root() -> Path:
    """Return the folder that holds ``SPDSegmentLib``, in a source checkout and in an installed tree."""
    return Path(__file__).resolve().parents[2]


def parse_command(text: str) -> WorkerCommand | None:
    """Return the command that a person typed as a setting, or None for an empty one."""
    arguments = tuple(part.strip('"') for part in shlex.split(text, posix=os.name != "nt"))
    return WorkerCommand(arguments) if arguments else None


@dataclass(frozen=True)
class Ending:
    """How a worker ended.

    Attributes:
        code: exit code, negative for a signal; None where the process never started.
        reason: what the system or the protocol said, may be empty.
        log_lines: last lines of its log.
        launched: whether the code is that of another program, which started the worker and outlived it.
    """

    code: int | None
    reason: str
    log_lines: tuple[str, ...]
    launched: bool = False

    @property
    def by_signal(self) -> bool:
        """Whether somebody or the system ended the process, as far as the code tells."""
        code = self.code
        return code is not None and (self._killed or code < 0 or (128 < code < 160 and code != EXIT_CANCELLED))

    @property
    def for_memory(self) -> bool:
        """Whether it ended, or probably ended, for lack of memory."""
        if self.reason or self.code is None:
            return False
        said = [line for line in self.log_lines[-MEMORY_LINES:] if not line.startswith(" ")]  # no lines of source code
        return self._killed or tells_of_memory("\n".join(said))

    def describe(self) -> str:
        """Return one clause for the user, without a full stop."""
        if self.reason:
            return self.reason
        if self.code is None:
            return "it could not be started"
        if self.for_memory and not self._killed:
            return f"there was not enough memory, {describe_exit(self.code)}"
        if self._killed and self.code not in KILL_CODES:
            return f"{KILLED}; the program that started it says {describe_exit(self.code)}"
        return describe_exit(self.code)

    @property
    def _killed(self) -> bool:
        """Whether it was killed: a launcher hides that behind a code of its own, and the log has no farewell."""
        if self.code in KILL_CODES:
            return True
        hidden = self.launched and self.code == EXIT_FAILURE
        return hidden and not any(FAREWELL.search(line) for line in self.log_lines[-MEMORY_LINES:])

    def to_error(self, *, deaths: int, max_deaths: int) -> WorkerDied:
        """Return the error for requests that were waiting.

        Args:
            deaths: how many workers in a row have ended like this.
            max_deaths: after how many no other is started.
        """
        details = "\n".join((f"exit code: {self.code}", *self.log_lines))
        if deaths >= max_deaths:
            return WorkerDied(
                f"The background process ended {deaths} times in a row ({self.describe()}) and is not started again.",
                "Look at the details, change the device or the worker command, then restart it.",
                details,
            )
        way_out = f"{MORE_MEMORY} Run again; it is restarted by itself."
        return WorkerDied(
            f"The background process ended unexpectedly ({self.describe()}).",
            way_out if self.for_memory else "Run again; it is restarted by itself.",
            details,
        )


def describe_exit(code: int) -> str:
    """Return what an exit code says, as a clause for the user."""
    if code == 0:
        return "it stopped by itself"
    known = _WINDOWS_CODES.get(code & 0xFFFFFFFF)
    if known:
        return f"exit code {code & 0xFFFFFFFF:#x}, {known}"
    if code in _SHELL_CODES:
        return f"exit code {code}, {_SHELL_CODES[code]}"
    if code in KILL_CODES:
        return f"{KILLED}, exit code {code}"
    if code < 0 or 128 < code < 160:
        number = -code if code < 0 else code - 128
        return f"ended by {_signal_name(number)}"
    return f"exit code {code}"


def log_tail(lines: Sequence[str], count: int = 40) -> tuple[str, ...]:
    """Return the last lines, each of bounded length."""
    return tuple(line[:500] for line in list(lines)[-count:])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
