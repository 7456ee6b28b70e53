"""The life of one worker process as the client sees it, from start to end, and of each request."""

from __future__ import annotations

import contextlib
import enum
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Protocol

from SPDSegmentLib.errors import Cancelled, SPDError

from . import messages as m
from .codec import decode_message, encode_message
from .commands import Ending, WorkerCommand, log_tail
from .health import CHECK_SECONDS, Heartbeat, family
from .messages import EVENTS, Alive, Answer, Cancel, Event, Hello, HelloReply, Progress, SliceReady
from .pipes import Buffers
from .protocol import ContentError, FrameParser, decode_frame
from .transports import Transport


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


PREAMBLE_BYTES = 1 << 16
LOG_LINES = 200


class ConnectionOwner(Protocol):
    """Who hears from a connection."""

    def on_event(self, connection: Connection, event: Event) -> None:
        """An event arrived."""

    def on_log_line(self, connection: Connection, line: str) -> None:
        """The worker wrote a line to its log."""

    def on_ended(self, connection: Connection, ending: Ending) -> None:
        """The process is gone; called once, the last call."""


class Connection:
    """One worker process from start to end; a broken stream, a missing hello or a missing sign of life ends it.

    Attributes:
        hello: the worker's answer to the greeting, or None so far.
        model_sent: the model it was told to load, in the owner's own terms.
        volumes_sent: identifiers of the volumes it was sent.
        log_lines: last lines of its log.
        was_stopped: whether it was ended because it gave no sign of life.
        serial: tells it from the owner's other connections.
        waits: whether something is awaited from the worker, so that its signs of life are looked for.
    """

    def __init__(
        self,
        transport: Transport,
        owner: ConnectionOwner,
        *,
        start_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.transport = transport
        self.hello: HelloReply | None = None
        self.model_sent: Hashable = None
        self.volumes_sent: set[str] = set()
        self.log_lines: deque[str] = deque(maxlen=LOG_LINES)
        self.ended = False
        self.waits: Callable[[], bool] = lambda: False
        self.serial = 0
        self.was_stopped = False
        self._owner = owner
        self._clock = clock
        self._parser = FrameParser(preamble_bytes=PREAMBLE_BYTES)
        self._events: deque[Event] = deque()
        self._half_line = ""
        self._reason = ""
        self._start_seconds = start_seconds
        self._answer_due = clock() + start_seconds
        self._heartbeat = Heartbeat(clock=clock)
        self._process_ids: list[int] = []
        self._waited = False
        self._check_due = 0.0

    def start(self, command: WorkerCommand, hello_id: int) -> None:
        """Start the process and greet it."""
        self.send(Hello(hello_id, os.getpid()))
        self.transport.start(command, self)
        if not self.ended:
            self.transport.call_later(self._start_seconds, self.check_start)
            self.transport.call_later(CHECK_SECONDS, self._check_again)

    def send(self, message: m.Request, tag: Hashable = None) -> None:
        """Queue one message.

        Raises:
            ProtocolError: it is larger than the protocol allows.
        """
        self.send_frames([encode_message(message)], tag)

    def send_frames(self, frames: Iterable[Buffers], tag: Hashable = None) -> None:
        """Queue frames that are made when their turn comes."""
        self.transport.outbox.put(frames, tag)
        self.transport.wake()

    def send_cancel(self, request_id: int, *, urgent: bool) -> bool:
        """Withdraw a request; return whether the worker has heard of it and will answer."""
        if self.transport.outbox.discard(request_id):
            return False
        self.transport.outbox.put_urgent(encode_message(Cancel(request_id, urgent)))
        self.transport.wake()
        return True

    def check_start(self) -> None:
        """End a process that has not said hello in time."""
        if not self.ended and self.hello is None and self._clock() >= self._answer_due:
            self.abort(f"it did not answer within {self._start_seconds:g} s")

    def start_seconds_left(self) -> float | None:
        """Return how long the hello may still take, or None once it came."""
        return None if self.hello is not None else max(0.0, self._answer_due - self._clock())

    def check_alive(self) -> None:
        """End a process from which something is awaited and that was stopped or hangs."""
        if self.ended or self._reason:
            return
        waited, self._waited = self._waited, self.waits()
        now = self._clock()
        if not self._waited or (waited and now < self._check_due):
            return
        if not waited:
            self._heartbeat.expect()
        self._check_due = now + CHECK_SECONDS * 0.8
        launcher = self.transport.process_id
        if launcher is not None and self.hello is None:
            self._process_ids = family(launcher)
        reason = self._heartbeat.check(self._process_ids, answers=self.hello is not None, here=self._is_here)
        if reason:
            self.was_stopped = True
            self.abort(f"{reason} and was ended")

    def abort(self, reason: str) -> None:
        """Kill the process; ``reason`` is told to whoever waits."""
        self._reason = self._reason or reason
        self.transport.close_input()
        self.transport.kill()
        if self.hello is not None and self._is_here and self.hello.process_id != self.transport.process_id:
            with contextlib.suppress(OSError):
                os.kill(self.hello.process_id, getattr(signal, "SIGKILL", signal.SIGTERM))

    def close_input(self) -> None:
        """Let the process end by itself."""
        self.transport.close_input()

    def wait_gone(self, seconds: float) -> None:
        """Wait until the process has ended, and kill it when it has not in time."""
        for patience in (seconds, 1.0):
            until = self._clock() + patience
            while not self.ended and self._clock() < until:
                self.transport.poll(0.05)
            if self.ended:
                return
            self.transport.kill()

    def on_output(self, data: bytes) -> None:
        """Take bytes of the event stream.

        Events are told in order, also when a callback polls again; what a callback raises is raised after the last one.
        """
        if self.ended or self._reason:
            return
        self._heartbeat.hear()
        for raw in self._parser.feed(data):
            try:
                self._events.append(decode_message(decode_frame(raw), EVENTS))
            except ContentError as error:
                self.abort(f"it sent something that cannot be read: {error}")
                return
        if self._parser.preamble:
            self.on_log(bytes(self._parser.preamble))
            self._parser.preamble.clear()
        failed_callback: Exception | None = None
        while self._events and not self.ended and not self._reason:
            try:
                self._tell(self._events.popleft())
            except Exception as error:
                failed_callback = failed_callback or error
        if self._parser.failure is not None:
            self.abort(str(self._parser.failure).rstrip("."))
        if failed_callback is not None:
            raise failed_callback

    def on_log(self, data: bytes) -> None:
        """Take bytes of the log."""
        *lines, self._half_line = (self._half_line + data.decode(errors="replace")).split("\n")
        self._half_line = self._half_line[-4096:]
        for line in lines:
            self.log_lines.append(line.rstrip("\r"))
            self._owner.on_log_line(self, line.rstrip("\r"))

    def on_ended(self, code: int | None, reason: str) -> None:
        """Note that the process is gone."""
        if self.ended:
            return
        self.ended = True
        if self._half_line:
            self.log_lines.append(self._half_line)
        launched = self.hello is not None and self._process_ids[:1] != [self.hello.process_id]
        self._owner.on_ended(self, Ending(code, self._reason or reason, log_tail(self.log_lines), launched))

    @property
    def _is_here(self) -> bool:
        """Whether the worker itself, and not only its launcher, is a process of this machine."""
        return self.hello is not None and self.hello.process_id in self._process_ids

    def _check_again(self) -> None:
        """Look at the worker's health from the event loop for as long as it lives."""
        if not self.ended:
            self.check_alive()
            self.transport.call_later(CHECK_SECONDS, self._check_again)

    def _tell(self, event: Event) -> None:
        if isinstance(event, HelloReply) and self.hello is None:
            self.hello = event
            launcher = self.transport.process_id
            self._process_ids = family(launcher) if launcher is not None else []
        if isinstance(event, Alive):
            self._heartbeat.be_patient(event.silent_seconds)
        self._owner.on_event(self, event)
