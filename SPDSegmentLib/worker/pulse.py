"""The worker's pulse: signs of life while there is work, deadlines, and the end of those who started it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from .heartbeat import BEAT_SECONDS
from .processes import ProcessWatch, is_ancestor

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
