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


class StepClock:
    """Time that the steps of a training still take; a training has several runs of steps, one after the other.

    Args:
        limit: seconds after which the training ends anyway; 0 where nothing limits it.
    """

    def __init__(self, limit: float = 0.0) -> None:
        self._limit = limit if limit > 0 else float("inf")
        self._limited_since: float | None = None
        self._begun: tuple[int, int, float] = (0, 0, 0.0)
        self._last = 0

    def seconds_left(self, step: int, steps: int, *, limited: bool = True) -> float | None:
        """Seconds to ``steps`` at the pace since the first call with these steps; ``None`` at that call.

        Args:
            step: how many are done.
            steps: in all.
            limited: the limit counts for them; its time begins with the first such call.
        """
        first, of, begun = self._begun
        now = time.monotonic()
        another, self._last = steps != of or step < self._last, step
        if limited and self._limited_since is None:
            self._limited_since = now
        if another:
            self._begun = (step, steps, now)
            return None
        if step == first:
            return None
        left = (steps - step) * (now - begun) / (step - first)
        if limited and self._limited_since is not None:
            left = min(left, self._limited_since + self._limit - now)
        return max(0.0, left)


def time_text(seconds: float | None) -> str:
    """`, 3 h 20 min left`; empty where it is not known."""
    if seconds is None:
        return ""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f", {seconds:.0f} s left"
    return f", {minutes} min left" if minutes < 60 else f", {minutes // 60} h {minutes % 60} min left"
