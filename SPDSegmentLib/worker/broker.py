"""The client's bookkeeping: which requests wait, what the worker holds, what happens when it dies or is cancelled."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import replace

from SPDSegmentLib import __version__
from SPDSegmentLib.errors import BadInput, Cancelled, ModelMissing, SPDError, WorkerDied, error_from_wire

from . import messages as m
from .commands import EXIT_CANCELLED, Ending, WorkerCommand
from .connection import Callbacks, ClientConfig, Connection, ModelChoice, Request
from .deliveries import Deliveries
from .health import CHECK_SECONDS
from .transports import Transport
from .volumes import VolumeSource

PROOFS_OF_HEALTH = ("segment", "saliency")

RequestMessage = m.Segment | m.Saliency | m.Status


class RequestBroker:
    """Sends requests to one worker at a time and hands each its events.

    Args:
        make_transport: returns a new transport for each worker.
        command: how to start a worker.
        config: settings.
        on_log_line: told each line of the worker's log and each of its notes to the user.
        on_died: told when a worker ended unexpectedly, also when nothing waited for it.
        clock: monotonic seconds.

    Attributes:
        connection: the worker that runs or starts, or None.
        model: the model that requests need.
        volumes: the volumes that requests may need.
        deaths: how many workers have ended unexpectedly since the last success.
        dropped_events: how many late answers were dropped.
    """

    def __init__(
        self,
        make_transport: Callable[[], Transport],
        command: WorkerCommand,
        config: ClientConfig,
        *,
        on_log_line: Callable[[str], None] | None,
        on_died: Callable[[WorkerDied], None] | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.command = command
        self.config = config
        self.connection: Connection | None = None
        self.retired: Connection | None = None
        self.model: ModelChoice | None = None
        self.volumes: dict[str, VolumeSource] = {}
        self.deaths = 0
        self.dropped_events = 0
        self._make_transport = make_transport
        self._tell_log_line = on_log_line
        self._tell_died = on_died
        self._clock = clock
        self._last_death: WorkerDied | None = None
        self._pending: dict[int, tuple[Request, RequestMessage]] = {}
        self._implicit: dict[int, m.LoadModel | m.OpenVolume] = {}
        self._owners: dict[int, Request] = {}
        self._stopping: dict[int, float | None] = {}
        self._deliveries = Deliveries()
        self._sessions: dict[int, Hashable] = {}
        self._leaving: list[Connection] = []
        self._killed_for_cancel = False
        self._last_id = m.NO_REQUEST

    @property
    def busy(self) -> bool:
        """Whether a request is under way, or one that was cancelled has not stopped yet."""
        return bool(self._pending or self._stopping)

    @property
    def gave_up(self) -> bool:
        """Whether too many workers died in a row."""
        return self.deaths >= self.config.max_deaths

    def reset(self) -> None:
        """Forget the deaths so far, so that the next request starts a worker again."""
        self.deaths = 0
        self._last_death = None

    def submit(self, message: RequestMessage, callbacks: Callbacks, with_model: bool = False) -> Request:
        """Send a request, after what it needs; where no worker can be started it has failed on return.

        With ``with_model`` the chosen model is loaded before it although it needs none.

        Raises:
            BadInput: its volume is not open.
            ModelMissing: no model was chosen.
            ProtocolError: it is larger than the protocol allows.
        """
        volume_id = getattr(message, "volume_id", None)
        if volume_id is not None and volume_id not in self.volumes:
            raise BadInput(f"The volume {volume_id!r} is not open.", "Open it first.")
        if volume_id is not None and self.model is None:
            raise ModelMissing("No model was chosen.", "Choose a model.")
        message = replace(message, request_id=self._new_id())
        request = Request(message.request_id, message.kind, volume_id, callbacks)
        if self.gave_up and self._last_death is not None:
            request.finish(error=self._last_death)
            return request
        self._pending[request.request_id] = (request, message)
        try:
            self._send(message, with_model)
        except BaseException:
            self._pending.pop(request.request_id, None)
            raise
        return request

    def cancel(self, request: Request, *, urgent: bool) -> None:
        """Finish a request as cancelled and stop the worker's part of it; see ``WorkerClient.cancel``."""
        if self._pending.pop(request.request_id, None) is None:
            return
        self._withdraw(request.request_id, urgent)
        if urgent:
            self._hurry()
        request.finish(error=Cancelled())

    def drop_volume(self, volume_id: str) -> None:
        """Forget a volume, here and in the worker; requests on it are cancelled."""
        if self.volumes.pop(volume_id, None) is None:
            return
        self._deliveries.forget(volume_id)
        waiting = [request for request, _ in self._pending.values() if request.volume_id == volume_id]
        connection = self.connection
        if connection is not None and volume_id in connection.volumes_sent:
            connection.volumes_sent.discard(volume_id)
            connection.transport.outbox.discard(("volume", volume_id))
            connection.send(m.CloseVolume(volume_id))
        for request in waiting:
            self.cancel(request, urgent=False)

    def poll(self, timeout: float) -> None:
        """Take in what has arrived; wait up to ``timeout`` seconds for something."""
        self._check_deadlines()
        for leaving in [connection for connection in self._leaving if not connection.ended]:
            leaving.transport.poll(0.0)
        self._leaving = [connection for connection in self._leaving if not connection.ended]
        connection = self.connection
        if connection is None:
            return
        now = self._clock()
        limits = [timeout, *(due - now for due in self._stopping.values() if due is not None)]
        if (left := connection.start_seconds_left()) is not None:
            limits.append(left)
        if self._waits():
            limits.append(CHECK_SECONDS)
        connection.transport.poll(max(0.0, min(limits)))
        connection.check_start()
        connection.check_alive()
        self._check_deadlines()

    def close(self, *, wait: bool) -> None:
        """End the worker; see ``WorkerClient.close``."""
        waiting = [request for request, _ in self._pending.values()]
        self._pending.clear()
        connection = self.connection
        if connection is not None:
            self._leave(connection)
            connection.close_input()
            connection.transport.call_later(
                self.config.close_seconds, lambda: None if connection.ended else connection.transport.kill()
            )
        for request in waiting:
            request.finish(error=Cancelled())
        if connection is not None and wait:
            connection.wait_gone(self.config.close_seconds)

    def on_event(self, connection: Connection, event: m.Event) -> None:
        """Hand an event to its request, or drop it."""
        if connection is not self.connection:
            self.dropped_events += 1
        elif isinstance(event, m.Alive):
            self._on_alive(event)
        elif isinstance(event, (m.Progress, m.SliceReady)):
            self._on_partial(event)
        elif event.request_id == m.NO_REQUEST and isinstance(event, m.Failed):
            self.on_log_line(connection, event.message)
        else:
            self._on_answer(connection, event)

    def on_log_line(self, connection: Connection, line: str) -> None:
        """Pass a line of the log on."""
        if self._tell_log_line is not None:
            self._tell_log_line(line)

    def on_ended(self, connection: Connection, ending: Ending) -> None:
        """Fail what waits, or send it to another worker.

        It is sent again where this worker ended because of a cancelled request, and once where it ended, perhaps
        unnoticed and long ago, before it had begun with it; not where the start itself failed.
        """
        if connection is not self.connection:
            return
        urgent = any(due is not None for due in self._stopping.values())
        ours = urgent and (self._killed_for_cancel or ending.code == EXIT_CANCELLED)
        self._leave(connection)
        if ours:
            self._resubmit([request for request, _ in self._pending.values()])
            return
        self.deaths += 1
        error = ending.to_error(deaths=self.deaths, max_deaths=self.config.max_deaths)
        self._last_death = error
        waiting = [request for request, _ in self._pending.values()]
        ran = connection.hello is not None or connection.was_stopped or ending.by_signal
        worked = ran and ending.code is not None  # not where the application has ended the process
        again = [r for r in waiting if worked and not self.gave_up and not r.begun and not r.repeated]
        failed = [request for request in waiting if request not in again]
        for request in failed:
            del self._pending[request.request_id]
        for request in again:
            request.repeated = True
        if again:
            self.on_log_line(connection, f"{error.message} What had not begun is sent to a new one.")
            self._resubmit(again)
        if self._tell_died is not None and (failed or not again):
            self._tell_died(error)
        self._finish_all(failed, error)

    def _new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _send(self, message: RequestMessage, with_model: bool = False) -> None:
        connection = self.connection or self._connect()
        if connection is not self.connection:
            return
        if with_model or not isinstance(message, m.Status):
            self._send_model(connection, message.request_id)
        if not isinstance(message, m.Status):
            self._send_volume(connection, message.volume_id)
        if isinstance(message, m.Segment):
            session = self._sessions[message.request_id] = (connection.serial, connection.model_sent)
            message = self._deliveries.complete(message, session)
        connection.send(message, tag=message.request_id)

    def _connect(self) -> Connection:
        self._killed_for_cancel = False
        connection = Connection(
            self._make_transport(),
            self,
            start_seconds=self.config.start_seconds,
            clock=self._clock,
        )
        connection.serial = self._new_id()
        connection.waits = self._waits
        self.connection = connection
        connection.start(self.command, self._new_id())
        return connection

    def _send_model(self, connection: Connection, request_id: int) -> None:
        model = self.model
        if model is None or connection.model_sent == model:
            return
        message = m.LoadModel(self._new_id(), model.bundle, model.device, model.precision)
        self._implicit[message.request_id] = message
        self._owners[message.request_id] = self._pending[request_id][0]
        connection.model_sent = model
        connection.send(message, tag=message.request_id)

    def _send_volume(self, connection: Connection, volume_id: str) -> None:
        if volume_id in connection.volumes_sent:
            return
        source = self.volumes[volume_id]
        request_id = self._new_id()
        self._implicit[request_id] = source.announcement(request_id)
        connection.volumes_sent.add(volume_id)
        connection.send_frames(source.frames(request_id), tag=("volume", volume_id))

    def _withdraw(self, request_id: int, urgent: bool) -> None:
        connection = self.connection
        if connection is None or not connection.send_cancel(request_id, urgent=urgent):
            return
        self._stopping[request_id] = self._clock() + self.config.cancel_seconds if urgent else None
        if urgent:
            connection.transport.call_later(self.config.cancel_seconds + 0.01, self._check_deadlines)

    def _hurry(self) -> None:
        for request_id in [request_id for request_id, due in self._stopping.items() if due is None]:
            self._withdraw(request_id, urgent=True)
        if self._pending or self.connection is None:
            return
        for request_id, message in list(self._implicit.items()):
            if isinstance(message, m.LoadModel):
                del self._implicit[request_id]
                self.connection.model_sent = None
                self._withdraw(request_id, urgent=True)

    def _check_deadlines(self) -> None:
        now = self._clock()
        overdue = any(due is not None and due <= now for due in self._stopping.values())
        if overdue and self.connection is not None and not self._killed_for_cancel:
            self._killed_for_cancel = True
            self.connection.abort("it did not stop in time after a cancel")

    def _waits(self) -> bool:
        """Whether anything is awaited from the worker."""
        return bool(self._pending or self._stopping or self._implicit)

    def _on_alive(self, event: m.Alive) -> None:
        if event.running is None:
            return
        if event.running in self._pending:
            self._pending[event.running][0].begun = True
        elif event.running in self._owners:
            self._owners[event.running].begun = True

    def _on_partial(self, event: m.Progress | m.SliceReady) -> None:
        if isinstance(event, m.SliceReady) and event.volume_id in self.volumes:
            deliver = self._deliveries.take if event.request_id in self._pending else self._deliveries.miss
            deliver(event, self._sessions.get(event.request_id))
        if event.request_id in self._pending:
            request, _ = self._pending[event.request_id]
            request.begun = True
            if isinstance(event, m.Progress):
                request.take_progress(event)
            else:
                request.take_slice(event)
        elif event.request_id in self._implicit and isinstance(event, m.Progress):
            for request, _ in list(self._pending.values()):
                request.take_progress(replace(event, request_id=request.request_id))
        else:
            self.dropped_events += 1

    def _on_answer(self, connection: Connection, event: m.Answer) -> None:
        session = self._sessions.pop(event.request_id, None)
        if event.request_id in self._stopping:
            del self._stopping[event.request_id]
            self.dropped_events += 1
        elif event.request_id in self._implicit:
            message = self._implicit.pop(event.request_id)
            self._owners.pop(event.request_id, None)
            if isinstance(event, m.Failed):
                self._forget_sent(connection, message)
        elif event.request_id in self._pending:
            request, sent = self._pending.pop(event.request_id)
            if isinstance(event, m.VolumeNeeded):
                self._pending[request.request_id] = (request, sent)
                connection.volumes_sent.discard(event.volume_id)
                self._deliveries.lose_session(event.volume_id)
                self._send(sent)
                return
            if isinstance(event, m.Segmented):
                event = self._deliveries.finish(request, event, session)
            if isinstance(event, m.Failed):
                request.finish(error=error_from_wire(vars(event)))
                return
            if request.kind in PROOFS_OF_HEALTH:
                self.reset()
            request.finish(answer=event)
        elif not isinstance(event, m.HelloReply):
            self.dropped_events += 1
        elif event.library_version != __version__:
            told = f"The worker is of version {event.library_version}, this program of {__version__}."
            self.on_log_line(connection, f"{told} Install the same version on both sides.")

    def _forget_sent(self, connection: Connection, message: m.LoadModel | m.OpenVolume) -> None:
        if isinstance(message, m.LoadModel):
            connection.model_sent = None
        else:
            connection.volumes_sent.discard(message.volume_id)
            connection.transport.outbox.discard(("volume", message.volume_id))

    def _resubmit(self, requests: list[Request]) -> None:
        for request in requests:
            if request.request_id in self._pending:
                request.restart()
                self._send(self._pending[request.request_id][1])

    def _leave(self, connection: Connection) -> None:
        self.connection = None
        self.retired = connection
        self._leaving = [*(left for left in self._leaving if not left.ended), connection]
        self._stopping.clear()
        self._implicit.clear()
        self._owners.clear()
        self._sessions.clear()

    @staticmethod
    def _finish_all(requests: list[Request], error: SPDError) -> None:
        failed_callback: Exception | None = None
        for request in requests:
            try:
                request.finish(error=error)
            except Exception as raised:
                failed_callback = failed_callback or raised
        if failed_callback is not None:
            raise failed_callback
