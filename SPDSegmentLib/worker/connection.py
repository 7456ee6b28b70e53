"""The life of one worker process as the client sees it, from start to end, and what it was told."""

from __future__ import annotations

import contextlib
import math
import os
import signal
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Protocol

from SPDSegmentLib import __version__
from SPDSegmentLib.errors import BadInput, command_line
from SPDSegmentLib.models.bundle import bundle_state

from . import messages as m
from .health import CHECK_SECONDS, Ending, Heartbeat, family
from .pipes import Buffers
from .protocol import ContentError, FrameParser, FrameTooLarge, decode_frame, decode_message, encode_message
from .requests import ClientConfig, ModelChoice, Request, VolumeSource, WorkerCommand, bundle_from_here, from_here
from .transports import Transport

PREAMBLE_BYTES = 1 << 16
LOG_LINES = 200
LAST_LOOK_SECONDS = 0.05
TOLD_LINES = 40


class Listener(Protocol):
    """Who hears from a connection."""

    def on_event(self, connection: Connection, event: m.Event) -> None:
        """An event arrived."""

    def on_log_line(self, line: str) -> None:
        """The worker wrote a line to its log."""

    def on_ended(self, connection: Connection, ending: Ending) -> None:
        """The process is gone; called once, the last call."""


class Connection:
    """One worker process from start to end; a broken stream, a missing hello or a missing sign of life ends it.

    Args:
        transport: the way to its process.
        listener: told of its events, of the lines of its log and, as the last call, of its end.
        config: settings.
        ids: numbers for what it is sent.
        clock: monotonic seconds.
        has_requests: whether a request waits for it.

    Attributes:
        hello: the worker's answer to the greeting, or None so far.
        model_sent: the model it was told to load, as it was on this machine then.
        volumes_sent: identifiers of the volumes it was sent.
        log_lines: last lines of its log.
        was_stopped: whether it was ended because it gave no sign of life.
        implicit: models and volumes that it was sent for the sake of requests and has not answered, by their numbers.
        owners: the requests for whose sake a model is loaded, by its number.
        sessions: what the answers of segmentations on open volumes rest on beside what was asked, by their numbers.
        stopping: requests that were withdrawn and that it has not answered, with the time by which it must.
        killed_for_cancel: whether it was ended because it did not stop in time.
    """

    def __init__(
        self,
        transport: Transport,
        listener: Listener,
        config: ClientConfig,
        ids: Iterator[int],
        clock: Callable[[], float],
        has_requests: Callable[[], bool],
    ) -> None:
        self.transport = transport
        self.hello: m.HelloReply | None = None
        self.model_sent: ModelChoice | None = None
        self.volumes_sent: set[str] = set()
        self.log_lines: deque[str] = deque(maxlen=LOG_LINES)
        self.ended = False
        self.was_stopped = False
        self.implicit: dict[int, m.LoadModel | m.OpenVolume] = {}
        self.stopping: dict[int, float | None] = {}
        self.killed_for_cancel = False
        self.owners: dict[int, Request] = {}
        self.sessions: dict[int, tuple[str, int]] = {}
        self._model_state: object = None
        self._load_number = m.NO_REQUEST
        self._has_folder = False
        self._command = ""
        self._listener = listener
        self._config = config
        self._ids = ids
        self._clock = clock
        self._has_requests = has_requests
        self._parser = FrameParser(preamble_bytes=PREAMBLE_BYTES)
        self._events: deque[m.Event] = deque()
        self._half_line = ""
        self._reason = ""
        self._answer_due = clock() + config.start_seconds
        self._heartbeat = Heartbeat(clock=clock)
        self._process_ids: list[int] = []
        self._waited = False
        self._check_due = 0.0

    @property
    def waits(self) -> bool:
        """Whether something is awaited from the worker, so that its signs of life are looked for."""
        return bool(self._has_requests() or self.stopping or self.implicit)

    @property
    def must_stop(self) -> bool:
        """Whether a request was withdrawn urgently and has not stopped yet."""
        return any(due is not None for due in self.stopping.values())

    def start(self, command: WorkerCommand) -> None:
        """Start the process and greet it."""
        self.send(m.Hello(next(self._ids), os.getpid()))
        self._has_folder = command.folder is not None
        self._command = command_line(*command.arguments)
        self.transport.start(from_here(command), self)
        if not self.ended:
            self.transport.call_later(self._config.start_seconds, self.check_start)
            self.transport.call_later(CHECK_SECONDS, self._check_again)

    def send(self, message: m.Request, tag: Hashable = None) -> None:
        """Queue one message.

        Raises:
            BadInput: it is larger than the protocol allows.
        """
        try:
            frame = encode_message(message)
        except FrameTooLarge as error:
            raise BadInput(
                "The clicks and the slices edited by hand are more than can be sent to the background process at once.",
                "Release slices that you edited, or use fewer clicks.",
                str(error),
            ) from error
        self.send_frames([frame], tag)

    def send_frames(self, frames: Iterable[Buffers], tag: Hashable = None) -> None:
        """Queue frames that are made when their turn comes."""
        self.transport.outbox.put(frames, tag)
        self.transport.wake()

    def send_model(self, model: ModelChoice, owner: Request) -> None:
        """Let it load a model, unless it was told and nobody replaced it; ``owner`` is the request that needs it."""
        state = bundle_state(model.bundle)
        if (self.model_sent, self._model_state) != (model, state):
            bundle = bundle_from_here(model.bundle) if self._has_folder else model.bundle
            message = m.LoadModel(next(self._ids), bundle, model.device, model.precision)
            self.implicit[message.request_id] = message
            self.owners[message.request_id] = owner
            self.model_sent, self._model_state, self._load_number = model, state, message.request_id
            self.send(message, tag=message.request_id)

    def send_volume(self, source: VolumeSource) -> None:
        """Let it hold a volume, unless it was sent."""
        if source.volume_id not in self.volumes_sent:
            request_id = next(self._ids)
            self.implicit[request_id] = source.announcement(request_id)
            self.volumes_sent.add(source.volume_id)
            self.send_frames(source.frames(request_id), tag=("volume", source.volume_id))

    def close_volume(self, volume_id: str) -> None:
        """Let it forget a volume, if it was sent; nothing of it is awaited any more."""
        self.sessions = {n: session for n, session in self.sessions.items() if session[0] != volume_id}
        self.implicit = {n: message for n, message in self.implicit.items() if not _opens(message, volume_id)}
        if volume_id in self.volumes_sent:
            self.forget_volume(volume_id)
            self.send(m.CloseVolume(volume_id))

    def note_missing(self, volume_id: str) -> None:
        """The worker did not hold a volume that a request needs: it is sent again, unless it is on its way already."""
        if not any(_opens(message, volume_id) for message in self.implicit.values()):
            self.volumes_sent.discard(volume_id)

    def forget_volume(self, volume_id: str) -> None:
        """The worker does not hold it any more: what of it was not sent yet is not sent."""
        self.volumes_sent.discard(volume_id)
        self.transport.outbox.discard(("volume", volume_id))

    def begin_session(self, request: Request) -> Hashable:
        """Return what the answer to a segmentation depends on beside its own content: volume and loaded model."""
        session = (request.volume_id or "", self._load_number)
        request.session = self.sessions[request.request_id] = session
        return session

    def session_of(self, volume_id: str, model: ModelChoice) -> Hashable:
        """Return the session of the next segmentation of a volume, None where a model must be loaded before."""
        known = (self.model_sent, self._model_state) == (model, bundle_state(model.bundle))
        return (volume_id, self._load_number) if known else None

    def settle(self, event: m.Answer) -> bool:
        """Take an answer that no request waits for; return whether it was one."""
        request_id = event.request_id
        if request_id in self.stopping:
            del self.stopping[request_id]
        elif request_id in self.implicit:
            message = self.implicit.pop(request_id)
            self.owners.pop(request_id, None)
            if isinstance(event, m.Failed) and isinstance(message, m.LoadModel):
                self.model_sent = None
            elif isinstance(event, m.Failed) and isinstance(message, m.OpenVolume):
                self.forget_volume(message.volume_id)
        else:
            return False
        return True

    def withdraw(self, request_id: int, *, urgent: bool) -> None:
        """Stop a request; with ``urgent``, end the worker where it does not within ``cancel_seconds``."""
        if self.transport.outbox.discard(request_id):
            return
        self.transport.outbox.put_urgent(encode_message(m.Cancel(request_id, urgent)))
        self.transport.wake()
        self.stopping[request_id] = self._clock() + self._config.cancel_seconds if urgent else None
        if urgent:
            self.transport.call_later(self._config.cancel_seconds + 0.01, self.check_deadlines)

    def hurry(self) -> None:
        """Let whatever was withdrawn stop at once, and with nothing else to do the loading of a model too."""
        for request_id in [request_id for request_id, due in self.stopping.items() if due is None]:
            self.withdraw(request_id, urgent=True)
        if self._has_requests():
            return
        for request_id in [n for n, message in self.implicit.items() if isinstance(message, m.LoadModel)]:
            del self.implicit[request_id]
            self.model_sent = None
            self.withdraw(request_id, urgent=True)

    def check_deadlines(self) -> None:
        """End a process that has not stopped in time, or not said hello."""
        now = self._clock()
        if not self.killed_for_cancel and any(due is not None and due <= now for due in self.stopping.values()):
            self.killed_for_cancel = True
            self.abort("it did not stop in time after a cancel")
        self.check_start()

    def poll(self, timeout: float) -> None:
        """Take in what has arrived, wait up to ``timeout`` seconds for something, and look at its health."""
        self.check_deadlines()
        if not self.ended:
            self.transport.poll(min(timeout, self._patience()))
            self.check_alive()
            self.check_deadlines()

    def _patience(self) -> float:
        """Seconds until something must be looked at."""
        now = self._clock()
        limits = [due - now for due in self.stopping.values() if due is not None]
        if self.hello is None:
            limits.append(self._answer_due - now)
        if self.waits:
            limits.append(CHECK_SECONDS)
        return max(0.0, min(limits, default=math.inf))

    def check_start(self) -> None:
        """End a process that has not said hello in time."""
        if not self.ended and self.hello is None and self._clock() >= self._answer_due:
            self.abort(f"it did not answer within {self._config.start_seconds:g} s")

    def check_alive(self) -> None:
        """End a process from which something is awaited and that was stopped or hangs; a cancel has a deadline."""
        if self.ended or self._reason or self.must_stop:
            return
        waited, self._waited = self._waited, self.waits
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
        if not reason:
            return
        heard = self._heartbeat.heard
        self.transport.poll(LAST_LOOK_SECONDS)  # what came while the caller was busy is a sign of life too
        if not (self.ended or self._reason or self._heartbeat.heard > heard):
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
        """Let the process end by itself; where an event loop runs, it is killed when it has not in time."""
        self.transport.close_input()
        self.transport.call_later(self._config.close_seconds, lambda: None if self.ended else self.transport.kill())

    def wait_gone(self) -> None:
        """Wait until the process has ended, and kill it when it has not in time."""
        for patience in (self._config.close_seconds, 1.0):
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
                self._events.append(decode_message(decode_frame(raw), m.EVENTS))
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
            self._listener.on_log_line(line.rstrip("\r"))

    def on_ended(self, code: int | None, reason: str) -> None:
        """Note that the process is gone."""
        if self.ended:
            return
        self.ended = True
        if self._half_line:
            self.log_lines.append(self._half_line)
        tail = tuple(line[:500] for line in [*self.log_lines][-TOLD_LINES:])
        launched = self.hello is not None and self._process_ids[:1] != [self.hello.process_id]
        command = self._command if self.hello is None else ""
        self._listener.on_ended(self, Ending(code, self._reason or reason, tail, launched, command))

    @property
    def _is_here(self) -> bool:
        """Whether the worker itself, and not only its launcher, is a process of this machine."""
        return self.hello is not None and self.hello.process_id in self._process_ids

    def _check_again(self) -> None:
        """Look at the worker's health from the event loop for as long as it lives."""
        if not self.ended:
            self.transport.call_later(CHECK_SECONDS, self._check_again)
            self.check_alive()

    def _tell(self, event: m.Event) -> None:
        if isinstance(event, m.HelloReply) and self.hello is None:
            self.hello = event
            launcher = self.transport.process_id
            self._process_ids = family(launcher) if launcher is not None else []
            if event.library_version != __version__:
                told = f"The worker is of version {event.library_version}, this program of {__version__}."
                self._listener.on_log_line(f"{told} Install the same version on both sides.")
        if isinstance(event, m.Alive):
            self._heartbeat.be_patient(event.silent_seconds)
        self._listener.on_event(self, event)


def _opens(message: m.LoadModel | m.OpenVolume, volume_id: str) -> bool:
    return isinstance(message, m.OpenVolume) and message.volume_id == volume_id
