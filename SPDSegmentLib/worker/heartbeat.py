"""Finds a worker that was stopped or hangs, without taking one for it that computes or loads a library.

The worker sends a sign of life every ``BEAT_SECONDS`` while it has work. Python cannot send one while native code holds
its lock (the import of torch does), so silence is no proof: the system is asked whether the process is stopped, works
or only waits. Where it cannot be asked (a worker at the far end of ssh), silence must last much longer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from .processes import ProcessLook, look_at

BEAT_SECONDS = 0.4
CHECK_SECONDS = 0.3


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
