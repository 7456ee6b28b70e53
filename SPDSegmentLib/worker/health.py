"""Finds a worker that was stopped or hangs, not one that computes or loads a library; and says how one ended.

The worker sends a sign of life every ``BEAT_SECONDS`` while it has work. Python cannot send one while native code holds
its lock (the import of torch does), so silence is no proof: the system is asked whether the process is stopped, works
or only waits. Where it cannot be asked (a worker at the far end of ssh), silence must last much longer.

Linux is asked through ``/proc``, other systems through psutil where it is installed; nothing is known without either.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from SPDSegmentLib.errors import MORE_MEMORY, WorkerDied, tells_of_memory

BEAT_SECONDS = 0.4
CHECK_SECONDS = 0.3
PROC = Path("/proc")
_STILL_RUNS = 0x102  # WAIT_TIMEOUT of WaitForSingleObject
_SYNCHRONIZE = 0x00100000
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
_NOT_FOUND = (127, 9009)
_ABSENT = re.compile("could not be started: .*(No such file|Permission denied|cannot find)")
MAX_COMMAND = 200
_SHELL_CODES = {126: "the command cannot be run", 127: "the command was not found", 255: "the connection failed"}


@dataclass(frozen=True)
class ProcessLook:
    """One look at a process.

    Attributes:
        stopped: it was suspended, as by SIGSTOP.
        working: one of its threads runs, waits for a processor or for a disk.
        cpu_seconds: processor time that it has used.
    """

    stopped: bool
    working: bool
    cpu_seconds: float


def look_at(process_id: int) -> ProcessLook | None:
    """Return what the system says of a process, or None where it says nothing."""
    if sys.platform.startswith("linux"):
        fields = _stat(PROC / str(process_id) / "stat")
        if fields is None:
            return None
        states = [found[0] for thread in _tasks(process_id) if (found := _stat(thread / "stat")) is not None]
        ticks = float(fields[11]) + float(fields[12])
        return ProcessLook(fields[0] == "T", any(s in "RD" for s in states), ticks / os.sysconf("SC_CLK_TCK"))
    psutil = _psutil()
    if psutil is None:
        return None
    try:
        process = psutil.Process(process_id)
        status, times = process.status(), process.cpu_times()
    except psutil.Error:
        return None
    working = status in (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP)
    return ProcessLook(status == psutil.STATUS_STOPPED, working, float(times.user + times.system))


def family(process_id: int) -> list[int]:
    """Return a process and what it has started, as far as the system tells; a launcher first, its worker after it."""
    found = [process_id]
    for known in found:
        found += [child for child in _children(known) if child not in found]
    return found


def _children(process_id: int) -> Iterator[int]:
    if sys.platform.startswith("linux"):
        for thread in _tasks(process_id):
            with contextlib.suppress(OSError, ValueError):
                yield from map(int, (thread / "children").read_text(encoding="utf-8").split())
        return
    psutil = _psutil()
    if psutil is not None:
        with contextlib.suppress(psutil.Error):
            yield from (child.pid for child in psutil.Process(process_id).children())


def _tasks(process_id: int) -> list[Path]:
    try:
        return list((PROC / str(process_id) / "task").iterdir())
    except OSError:
        return []


def _stat(file: Path) -> list[str] | None:
    """The fields of a stat file after the name, which may hold spaces and brackets: state, parent, ..."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def _psutil() -> Any:
    try:
        import psutil
    except ImportError:
        return None
    return psutil


@dataclass(frozen=True)
class HeartbeatLimits:
    """Settings, in seconds.

    Attributes:
        stopped: how long a process must have been suspended.
        silent: of a process that neither answers nor works.
        working: of a process that does not answer but uses a processor or a disk.
        remote: of a process that the system cannot be asked about.
        away: longest pause between two looks of ours; after a longer one the worker's silence counts from now.
    """

    stopped: float = 0.6
    silent: float = 1.4
    working: float = 60.0
    remote: float = 20.0
    away: float = 1.0


class Heartbeat:
    """What one client knows of its worker's health.

    Args:
        limits: settings.
        clock: monotonic seconds.
        look: asks the system about a process.

    Attributes:
        heard: when the worker last gave a sign of life, or something was first awaited from it.
    """

    def __init__(
        self,
        limits: HeartbeatLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        look: Callable[[int], ProcessLook | None] = look_at,
    ) -> None:
        self.limits = limits or HeartbeatLimits()
        self._clock = clock
        self._look = look
        self.heard = self._checked = clock()
        self._patient_until = -math.inf
        self._stopped_since: float | None = None
        self._cpu_seconds = math.inf

    def hear(self) -> None:
        """The worker gave a sign of life."""
        self.heard = self._clock()
        self._cpu_seconds = math.inf

    def be_patient(self, seconds: float) -> None:
        """The worker said how long it may be silent because it loads libraries; 0 for no longer than usual."""
        self._patient_until = self._clock() + seconds

    def expect(self) -> None:
        """From now on the worker has something to do."""
        self.heard = self._checked = self._clock()
        self._stopped_since = None

    def check(self, process_ids: list[int], *, answers: bool, here: bool) -> str:
        """Return why the worker must be given up, or an empty text; called every ``CHECK_SECONDS`` while it has work.

        Args:
            process_ids: of the worker and its launcher, as far as they run on this machine.
            answers: whether it has said hello: before that only a stopped one is given up.
            here: whether the worker itself is among ``process_ids``.
        """
        now = self._clock()
        if now - self._checked > self.limits.away:
            self.expect()
        self._checked = now
        looks = [look for process_id in process_ids if (look := self._look(process_id)) is not None]
        if any(look.stopped for look in looks):
            if self._stopped_since is None:
                self._stopped_since = now
            return "it was stopped" if now - self._stopped_since >= self.limits.stopped else ""
        self._stopped_since = None
        silent = now - self.heard
        if not answers or now < self._patient_until or silent < self._limit(looks if here else []):
            return ""
        return f"it gave no sign of life for {silent:.0f} s"

    def _limit(self, looks: list[ProcessLook]) -> float:
        if not looks:
            return self.limits.remote
        before, self._cpu_seconds = self._cpu_seconds, sum(look.cpu_seconds for look in looks)
        works = any(look.working for look in looks) or self._cpu_seconds > before
        return self.limits.working if works else self.limits.silent


class NotInstalled(WorkerDied):
    """What the command of a worker needs is not installed where it leads."""


@dataclass(frozen=True)
class Ending:
    """How a worker ended.

    Attributes:
        code: exit code, negative for a signal; None where the process never started.
        reason: what the system or the protocol said, may be empty.
        log_lines: last lines of its log.
        launched: whether the code is that of another program, which started the worker and outlived it.
        command: that started it, where it never said hello; else empty.
    """

    code: int | None
    reason: str
    log_lines: tuple[str, ...]
    launched: bool = False
    command: str = ""

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

    @property
    def _not_found(self) -> str:
        """What was said of something that is not installed where the command leads; else empty."""
        if not self.command or self.reason:
            return self.reason if self.command and _ABSENT.search(self.reason) else ""
        lines = [line.strip().rstrip(".") for line in self.log_lines if line.strip()]
        if self.code in _NOT_FOUND:
            return lines[-1] if lines else describe_exit(self.code)
        modules = [line for line in lines if "No module named" in line]
        return modules[-1] if modules and self.code == EXIT_FAILURE else ""

    def to_error(self, *, deaths: int, max_deaths: int) -> WorkerDied:
        """Return the error for requests that were waiting.

        Args:
            deaths: how many workers in a row have ended like this.
            max_deaths: after how many no other is started.
        """
        details = "\n".join((f"exit code: {self.code}", *self.log_lines))
        if self._not_found:
            return NotInstalled(
                f"The worker command '{self.command[:MAX_COMMAND]}' does not start SPDSegment: {self._not_found}.",
                "Install SPDSegment and torch on the machine that it leads to (pip install .), or give programs in it "
                f"with their whole paths; then {'restart it' if deaths >= max_deaths else 'run again'}.",
                details,
            )
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


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class ProcessWatch:
    """Tells when a process that runs now is gone, also when its number is used again."""

    def __init__(self, process_id: int) -> None:
        self._process_id = process_id
        self._was_parent = os.getppid() == process_id
        self._begun = self._begin()
        self._handle = self._open() if sys.platform == "win32" else None

    def gone(self) -> bool:
        """Whether it has ended."""
        if sys.platform == "win32":
            return self._handle is not None and not self._runs_on_windows()
        if self._was_parent and os.getppid() != self._process_id:
            return True
        if self._begun is not None:
            return self._begin() != self._begun
        try:
            os.kill(self._process_id, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False

    def _begin(self) -> str | None:
        """When it was started, in the system's own terms; None on other systems than Linux, and of one that ended."""
        fields = _stat(PROC / str(self._process_id) / "stat")
        return None if fields is None or fields[0] in "ZX" else fields[19]

    def _open(self) -> int | None:
        if sys.platform != "win32":
            return None
        import ctypes

        return int(ctypes.windll.kernel32.OpenProcess(_SYNCHRONIZE, False, self._process_id)) or None

    def _runs_on_windows(self) -> bool:
        if sys.platform != "win32":
            return True
        import ctypes

        return int(ctypes.windll.kernel32.WaitForSingleObject(self._handle, 0)) == _STILL_RUNS


def is_ancestor(process_id: int) -> bool:
    """Whether a process has started this one, directly or through others; False where the system does not tell."""
    current = os.getppid()
    for _ in range(64):
        if current == process_id:
            return True
        fields = _stat(PROC / str(current) / "stat")
        if fields is None or current <= 1:
            return False
        current = int(fields[1])
    return False
