"""What the caller sees: the client's settings, the model, one request with its state, its answer, what arrives."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from SPDSegmentLib.errors import Cancelled, SPDError

from .messages import Answer, Progress, SliceReady


@dataclass(frozen=True)
class ClientConfig:
    """Settings of a client.

    Attributes:
        start_seconds: how long a new worker may take to say hello.
        cancel_seconds: after an urgent cancel, how long the worker may take to stop before it is killed.
        close_seconds: how long a worker may take to end by itself when the client closes.
        max_deaths: after how many deaths in a row no other worker is started.
    """

    start_seconds: float = 120.0
    cancel_seconds: float = 0.9
    close_seconds: float = 1.5
    max_deaths: int = 3


@dataclass(frozen=True)
class ModelChoice:
    """The model that requests are answered with: a bundle's folder or name, device and precision."""

    bundle: str
    device: str = "auto"
    precision: str = "auto"


class RequestState(enum.Enum):
    """Where a request stands."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Callbacks:
    """What the caller wants to hear; called on the thread that polls the client, never after ``on_finished``."""

    on_slice: Callable[[SliceReady], None] | None = None
    on_progress: Callable[[Progress], None] | None = None
    on_finished: Callable[[Request], None] | None = None


class Request:
    """A request under way; finished exactly once.

    Attributes:
        request_id: number, ascending over the life of the client.
        kind: the request message's kind.
        volume_id: the volume it needs, or None.
        state: see ``RequestState``.
        progress: latest progress, or None.
        slices: slices that have arrived, by slice index.
        answer: the answer event once done, else None.
        error: why it failed or was cancelled, else None.
        begun: whether a worker has begun to work on it, as far as it could say so.
        repeated: whether it was sent again because a worker ended before it had begun.
    """

    def __init__(self, request_id: int, kind: str, volume_id: str | None, callbacks: Callbacks) -> None:
        self.request_id = request_id
        self.kind = kind
        self.volume_id = volume_id
        self.state = RequestState.RUNNING
        self.progress: Progress | None = None
        self.slices: dict[int, SliceReady] = {}
        self.answer: Answer | None = None
        self.error: SPDError | None = None
        self.begun = False
        self.repeated = False
        self._callbacks = callbacks

    @property
    def finished(self) -> bool:
        """Whether it is done, failed or cancelled."""
        return self.state is not RequestState.RUNNING

    def result(self) -> Answer:
        """Return the answer of a finished request.

        Raises:
            SPDError: the error with which it failed; Cancelled where it was cancelled.
        """
        if self.error is not None:
            raise self.error
        if self.answer is None:
            raise SPDError(f"The request {self.kind!r} has not finished.")
        return self.answer

    def take_progress(self, progress: Progress) -> None:
        """Note progress and tell the caller."""
        self.progress = progress
        if self._callbacks.on_progress is not None:
            self._callbacks.on_progress(progress)

    def take_slice(self, ready: SliceReady) -> None:
        """Note a slice and tell the caller."""
        self.slices[ready.slice_index] = ready
        if self._callbacks.on_slice is not None:
            self._callbacks.on_slice(ready)

    def restart(self) -> None:
        """Forget what arrived from a worker that is gone; the request is sent to the next one."""
        self.progress = None
        self.slices.clear()
        self.begun = False

    def finish(self, answer: Answer | None = None, error: SPDError | None = None) -> None:
        """Set the outcome and tell the caller."""
        if self.finished:
            return
        self.answer, self.error = answer, error
        if error is None:
            self.state = RequestState.DONE
        else:
            self.state = RequestState.CANCELLED if isinstance(error, Cancelled) else RequestState.FAILED
        if self._callbacks.on_finished is not None:
            self._callbacks.on_finished(self)
