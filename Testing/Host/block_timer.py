"""Measures for how long the main thread does not serve the event loop."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .runtime import qt


class BlockTimer:
    """Ticks every millisecond and keeps the longest gap between ticks, in wall time and in the thread's own time.

    The thread's own time leaves out what a busy machine takes for other processes, and waiting inside a call.
    """

    def __init__(self) -> None:
        self.longest_ms = 0.0
        self.longest_cpu_ms = 0.0
        self._last = (0.0, 0.0)
        self._timer = qt.QTimer()
        self._timer.setInterval(1)
        self._timer.connect("timeout()", self._tick)

    def start(self) -> None:
        """Begin to measure."""
        self._last = (time.perf_counter(), time.thread_time())
        self._timer.start()

    def stop(self) -> None:
        """End measuring, counting a gap that is still open."""
        self._tick()
        self._timer.stop()

    def _tick(self) -> None:
        now = (time.perf_counter(), time.thread_time())
        self.longest_ms = max(self.longest_ms, 1000 * (now[0] - self._last[0]))
        self.longest_cpu_ms = max(self.longest_cpu_ms, 1000 * (now[1] - self._last[1]))
        self._last = now


@contextmanager
def only_new_garbage() -> Iterator[None]:
    """Let the garbage collector go through what is made meanwhile, not through all that earlier tests have left."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
