"""What a caller asks of a worker: each request under way, and what the caller has of each volume's slices.

A worker sends the slices that changed since its last answer. That is not all that the caller lacks: slices that came
too late for a cancelled request were dropped here, and a new session (another worker or model, a volume that was sent
again) does not know what the caller holds.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace

from SPDSegmentLib.errors import Cancelled, SPDError

from .messages import Answer, Progress, Saliency, Segment, Segmented, SliceReady, Status

RequestMessage = Segment | Saliency | Status


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
        message: what is sent; its number ascends over the life of the client.
        volume_id: the volume it needs, or None.
        state: see ``RequestState``.
        progress: latest progress, or None.
        slices: slices that have arrived, by slice index.
        answer: the answer event once done, else None.
        error: why it failed or was cancelled, else None.
        begun: whether a worker has begun to work on it, as far as it could say so.
        repeated: whether it was sent again because a worker ended before it had begun.
    """

    def __init__(self, message: RequestMessage, callbacks: Callbacks) -> None:
        self.message = message
        self.request_id = message.request_id
        self.volume_id = None if isinstance(message, Status) else message.volume_id
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
            raise SPDError(f"The request {self.message.kind!r} has not finished.")
        return self.answer

    def take(self, event: Progress | SliceReady) -> None:
        """Note progress or a slice and tell the caller."""
        if isinstance(event, Progress):
            self.progress = event
            if self._callbacks.on_progress is not None:
                self._callbacks.on_progress(event)
        else:
            self.slices[event.slice_index] = event
            if self._callbacks.on_slice is not None:
                self._callbacks.on_slice(event)

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


def finish_all(requests: Iterable[Request], error: SPDError) -> None:
    """Let all fail; what a callback raises is raised after the last one."""
    failed_callback: Exception | None = None
    for request in requests:
        try:
            request.finish(error=error)
        except Exception as raised:
            failed_callback = failed_callback or raised
    if failed_callback is not None:
        raise failed_callback


@dataclass
class VolumeDelivery:
    """Attributes:
    session: the session from which a slice came last, or None while there was none.
    behind: whether the caller holds slices of an earlier session, and no whole answer of this one.
    anchor_ras: of the last answer.
    missed: latest state of slices that were sent and not handed over.
    """

    session: Hashable = None
    behind: bool = False
    anchor_ras: tuple[float, float, float] | None = None
    missed: dict[int, SliceReady] = field(default_factory=dict)


class Deliveries:
    """One :class:`VolumeDelivery` for each volume of which something has arrived."""

    def __init__(self) -> None:
        self._volumes: dict[str, VolumeDelivery] = {}

    def complete(self, message: Segment, session: Hashable) -> Segment:
        """Return the request as it must be asked of ``session`` so that the caller gets all that it lacks."""
        known = self._volumes.get(message.volume_id)
        if known is None or (known.session == session and not known.behind):
            return message
        return replace(message, send_all=True, anchor_ras=message.anchor_ras or known.anchor_ras)

    def lose_session(self, volume_id: str) -> None:
        """The worker has forgotten the volume."""
        if volume_id in self._volumes:
            self._volumes[volume_id].behind = True

    def take(self, ready: SliceReady, session: Hashable) -> None:
        """A slice is handed over."""
        self._at(ready.volume_id, session).missed.pop(ready.slice_index, None)

    def miss(self, ready: SliceReady, session: Hashable) -> None:
        """A slice comes too late for its request."""
        self._at(ready.volume_id, session).missed[ready.slice_index] = ready

    def finish(self, request: Request, answer: Segmented, session: Hashable) -> Segmented:
        """Hand over what the caller still lacks, and return the answer with those slices among the recomputed."""
        known = self._at(answer.volume_id, session)
        known.anchor_ras, known.behind = answer.anchor_ras, False
        missed, known.missed = known.missed, {}
        for _, ready in sorted(missed.items()):
            request.take(replace(ready, request_id=request.request_id))
        return replace(answer, recomputed=tuple(sorted({*answer.recomputed, *missed})))

    def forget(self, volume_id: str) -> None:
        """The volume is closed."""
        self._volumes.pop(volume_id, None)

    def _at(self, volume_id: str, session: Hashable) -> VolumeDelivery:
        known = self._volumes.setdefault(volume_id, VolumeDelivery())
        if known.session != session:
            known.behind = known.session is not None
            known.session, known.missed = session, {}
        return known
