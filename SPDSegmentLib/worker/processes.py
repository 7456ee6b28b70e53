"""What the system tells of other processes: stopped, working or gone; and how this one ends with its parent.

Linux is asked through ``/proc``, other systems through psutil where it is installed; nothing is known without either.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROC = Path("/proc")
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_STILL_RUNS = 0x102  # WAIT_TIMEOUT of WaitForSingleObject
_SYNCHRONIZE = 0x00100000


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


def end_with_parent() -> None:
    """Let the system end this process together with the one that started it; does something on Linux only.

    Needed where another process holds the pipe that would otherwise tell of the end. The system means the parent's
    thread: who starts a worker does it from a thread that lives as long as the worker.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


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


def _children(process_id: int) -> Iterator[int]:
    if sys.platform.startswith("linux"):
        for thread in _tasks(process_id):
            with contextlib.suppress(OSError, ValueError):
                yield from map(int, (thread / "children").read_text().split())
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
        return file.read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def _psutil() -> Any:
    try:
        import psutil
    except ImportError:
        return None
    return psutil
