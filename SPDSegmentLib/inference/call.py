"""One call of the predictor: what the caller wants to hear, how far it is, whether it was cancelled."""

from __future__ import annotations

import time
from collections.abc import Callable

from SPDSegmentLib.errors import Cancelled
from SPDSegmentLib.inference.results import SegmentationProgress, SliceResult

OnSlice = Callable[[SliceResult], None]
OnProgress = Callable[[SegmentationProgress], None]


def ignore(_: object) -> None:
    """A callback that does nothing."""


def never() -> bool:
    """A poll that is never true."""
    return False


class Call:
    """Progress and cancellation of one call."""

    def __init__(
        self,
        on_slice: OnSlice | None = None,
        on_progress: OnProgress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self.on_slice = on_slice or ignore
        self.on_progress = on_progress or ignore
        self.cancelled = cancelled or never
        self.started = time.monotonic()
        self._done = {"encoding": 0, "decoding": 0}
        self._total = {"encoding": 0, "decoding": 0}
        self._begun: dict[str, float] = {}

    def check(self) -> None:
        """Raise when the user cancelled."""
        if self.cancelled():
            raise Cancelled()

    def expect(self, stage: str, slices: int) -> None:
        """Announce more slices of a stage."""
        self._total[stage] += slices
        self._begun.setdefault(stage, time.monotonic())

    @property
    def seconds(self) -> float:
        """Time since the call began."""
        return time.monotonic() - self.started

    def encoded(self, slices: int) -> None:
        """Report encoded slices."""
        self._advance("encoding", slices)

    def decoded(self, slices: int) -> None:
        """Report decoded slices."""
        self._advance("decoding", slices)

    def _advance(self, stage: str, slices: int) -> None:
        self._done[stage] += slices
        done, total = self._done[stage], max(self._total[stage], self._done[stage])
        seconds = time.monotonic() - self._begun.get(stage, self.started)
        self.on_progress(SegmentationProgress(stage, done, total, seconds / done * (total - done)))
