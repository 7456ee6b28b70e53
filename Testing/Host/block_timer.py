"""Measures for how long the main thread does not serve the event loop."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from .runtime import qt


class BlockTimer:
    """Ticks every millisecond and keeps the longest gap between ticks, in wall time and in the thread's own time.

    The thread's own time leaves out what a busy machine takes for other processes, and waiting inside a call.
    ``longest_was`` says what the longest of it was: the system's work, pages of memory, garbage, or else the program's.
    """

    def __init__(self) -> None:
        self.longest_ms = 0.0
        self.longest_cpu_ms = 0.0
        self.longest_was = ""
        self._last = (0.0, 0.0)
        self._system = (0.0, 0, 0)
        self._garbage_ms = self._collects_since = 0.0
        self._timer = qt.QTimer()
        self._timer.setInterval(1)
        self._timer.connect("timeout()", self._tick)

    def start(self) -> None:
        """Begin to measure."""
        gc.callbacks.append(self._on_garbage)
        self._last, self._system = (time.perf_counter(), time.thread_time()), _system_work()
        self._timer.start()

    def stop(self) -> None:
        """End measuring, counting a gap that is still open."""
        self._tick()
        self._timer.stop()
        gc.callbacks.remove(self._on_garbage)

    def _tick(self) -> None:
        now, system = (time.perf_counter(), time.thread_time()), _system_work()
        self.longest_ms = max(self.longest_ms, 1000 * (now[0] - self._last[0]))
        own_ms = 1000 * (now[1] - self._last[1])
        if own_ms > self.longest_cpu_ms:
            seconds, pages, read = (after - before for after, before in zip(system, self._system, strict=True))
            self.longest_cpu_ms = own_ms
            self.longest_was = (
                f"{own_ms:.0f} ms, of them {1000 * seconds:.0f} in the system and {self._garbage_ms:.0f} for garbage; "
                f"{pages} new pages of memory and {read} read"
            )
        self._last, self._system, self._garbage_ms = now, system, 0.0

    def _on_garbage(self, phase: str, _info: Mapping[str, int]) -> None:
        now = 1000 * time.thread_time()
        if phase == "stop":
            self._garbage_ms += now - self._collects_since
        self._collects_since = now


def _system_work() -> tuple[float, int, int]:
    """Seconds that the system has worked for this thread, and the pages of memory that it made and read for it."""
    used = resource.getrusage(resource.RUSAGE_THREAD)
    return used.ru_stime, used.ru_minflt, used.ru_majflt


@contextmanager
def only_new_garbage() -> Iterator[None]:
    """Let the garbage collector go through what is made meanwhile, not through all that earlier tests have left."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
