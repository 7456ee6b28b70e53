"""Progress as lines of text, for logs and terminals alike."""

from __future__ import annotations

import time
from collections.abc import Callable

EVERY_SECONDS = 10.0


class ProgressLines:
    """Says now and then how far a benchmark is.

    Args:
        say: prints one line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._what = ""
        self._said = 0.0

    def __call__(self, what: str, done: int, total: int, seconds_left: float | None) -> None:
        """Say a line when another cell begins, something is remarkable, or ten seconds have passed."""
        now = time.monotonic()
        another = what.partition(", step")[0] != self._what
        if not another and now - self._said < EVERY_SECONDS and done < total:
            return
        self._what, self._said = what.partition(", step")[0], now
        self._say(f"[{done}/{total}] {what}{time_text(seconds_left)}")


def time_text(seconds: float | None) -> str:
    """`, 3 h 20 min left`; empty where it is not known."""
    if seconds is None:
        return ""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f", {seconds:.0f} s left"
    return f", {minutes} min left" if minutes < 60 else f", {minutes // 60} h {minutes % 60} min left"
