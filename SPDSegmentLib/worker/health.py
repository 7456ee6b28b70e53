"""Finds a worker that was stopped or hangs, without taking one for it that computes or loads a library.

The worker sends a sign of life every ``BEAT_SECONDS`` while it has work. Python cannot send one while native code holds
its lock (the import of torch does), so silence is no proof: the system is asked whether the process is stopped, works
or only waits. Where it cannot be asked (a worker at the far end of ssh), silence must last much longer.

Linux is asked through ``/proc``, other systems through psutil where it is installed; nothing is known without either.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BEAT_SECONDS = 0.4
CHECK_SECONDS = 0.3
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
        self._heard = self._checked = clock()
        self._patient_until = -math.inf
        self._stopped_since: float | None = None
        self._cpu_seconds = math.inf

    def hear(self) -> None:
        """The worker gave a sign of life."""
        self._heard = self._clock()
        self._cpu_seconds = math.inf

    def be_patient(self, seconds: float) -> None:
        """The worker said how long it may be silent because it loads libraries; 0 for no longer than usual."""
        self._patient_until = self._clock() + seconds

    def expect(self) -> None:
        """From now on the worker has something to do."""
        self._heard = self._checked = self._clock()
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
        silent = now - self._heard
        if not answers or now < self._patient_until or silent < self._limit(looks if here else []):
            return ""
        return f"it gave no sign of life for {silent:.0f} s"

    def _limit(self, looks: list[ProcessLook]) -> float:
        if not looks:
            return self.limits.remote
        before, self._cpu_seconds = self._cpu_seconds, sum(look.cpu_seconds for look in looks)
        works = any(look.working for look in looks) or self._cpu_seconds > before
        return self.limits.working if works else self.limits.silent


TICK_SECONDS = 0.1
QUIET_AFTER_SECONDS = 10.0
"""How long after the last request signs of life go on without work."""


class Pulse:
    """One thread, started at once: when memory is short, a timer for each deadline could not be.

    Args:
        beat: sends a sign of life; called while there is work, and a while after a request arrived.
        has_work: whether something runs or waits.
        on_orphaned: told once when the process that started this one, or the client, is gone.
    """

    def __init__(
        self, beat: Callable[[], object], has_work: Callable[[], bool], on_orphaned: Callable[[], object]
    ) -> None:
        self._beat = beat
        self._has_work = has_work
        self._on_orphaned = on_orphaned
        self._watches = [ProcessWatch(os.getppid())]
        self._lock = threading.Lock()
        self._deadlines: list[tuple[float, Callable[[], object]]] = []
        self._beat_due = 0.0
        self._quiet_at = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """Beat no more."""
        self._ended.set()

    def note_request(self) -> None:
        """Something arrived from the client and was taken; before the first request nothing is sent."""
        self._quiet_at = time.monotonic() + QUIET_AFTER_SECONDS

    def watch(self, process_id: int) -> None:
        """End with this process too, if it is one that started this one through others."""
        if is_ancestor(process_id):
            self._watches = [*self._watches[:1], ProcessWatch(process_id)]

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call back, on this thread."""
        with self._lock:
            self._deadlines.append((time.monotonic() + seconds, callback))

    def _run(self) -> None:
        while not self._ended.wait(TICK_SECONDS):
            now = time.monotonic()
            with self._lock:
                due = [callback for when, callback in self._deadlines if when <= now]
                self._deadlines = [entry for entry in self._deadlines if entry[0] > now]
            for callback in due:
                callback()
            if now < self._beat_due:
                continue
            self._beat_due = now + BEAT_SECONDS
            if self._has_work() or now < self._quiet_at:
                self._beat()
            if any(watch.gone() for watch in self._watches):
                self._on_orphaned()
                return
