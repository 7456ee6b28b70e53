"""Timers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt


def idleTimer(action: Callable[[], None], milliseconds: int = 0) -> Any:
    """Return a timer that calls ``action`` once, as soon as the event loop is free.

    Args:
        action: without arguments.
        milliseconds: to wait since the timer was started last.
    """
    timer = qt.QTimer()
    timer.setSingleShot(True)
    timer.setInterval(milliseconds)
    timer.connect("timeout()", action)
    return timer
