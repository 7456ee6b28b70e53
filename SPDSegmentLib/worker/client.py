"""The client of the background worker: no torch, no Qt, no thread of its own.

It starts a worker when a request first needs one, sends model and volume once to each, restarts a dead one at the next
request, and drops what answers an old request. Everything is called, and calls back, on one thread.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from SPDSegmentLib.errors import BadInput, Cancelled, ModelMissing, WorkerDied, error_from_wire

from . import messages as m
from .connection import Connection
from .health import EXIT_CANCELLED, Ending
from .payloads import flatten_markups, pack_masks
from .requests import (
    Callbacks,
    ClientConfig,
    Deliveries,
    ModelChoice,
    Request,
    RequestMessage,
    VolumeSource,
    WorkerCommand,
    finish_all,
    local_command,
)
from .transports import SubprocessTransport, Transport

if TYPE_CHECKING:
    from SPDSegmentLib.geometry.markups import Markup

__all__ = ["Callbacks", "ClientConfig", "ModelChoice", "Request", "WorkerClient"]

NO_CALLBACKS = Callbacks()
WAIT_STEP_SECONDS = 1.0


class WorkerClient:
    """Requests to a background worker, one worker at a time.

    Args:
        make_transport: returns a new transport for each worker.
        command: how to start a worker; by default one on this machine with the running interpreter.
        config: settings.
        on_log_line: told each line of the worker's log and each of its notes to the user.
        on_died: told when a worker ended unexpectedly, also when nothing waited for it.
        clock: monotonic seconds.

    Attributes:
        command: how the next worker is started.
        connection: the worker that runs or starts, or None.
        model: the model that was chosen, or None.
        volumes: the volumes that requests may need, by name.
        deaths: how many workers have ended unexpectedly since the last success.
    """

    def __init__(
        self,
        make_transport: Callable[[], Transport] = SubprocessTransport,
        command: WorkerCommand | None = None,
        config: ClientConfig | None = None,
        *,
        on_log_line: Callable[[str], None] | None = None,
        on_died: Callable[[WorkerDied], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.command = command or local_command()
        self.config = config or ClientConfig()
        self.connection: Connection | None = None
        self.model: ModelChoice | None = None
        self.volumes: dict[str, VolumeSource] = {}
        self.deaths = 0
        self._make_transport = make_transport
        self.on_log_line = on_log_line or (lambda line: None)
        self._tell_died = on_died or (lambda error: None)
        self._clock = clock
        self._last_death: WorkerDied | None = None
        self._pending: dict[int, Request] = {}
        self._deliveries = Deliveries()
        self._left: list[Connection] = []  # the latest one last, those before it only until they have ended
        self._ids = itertools.count(m.NO_REQUEST + 1)

    def __enter__(self) -> WorkerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether a worker process runs or starts."""
        return self.connection is not None

    @property
    def busy(self) -> bool:
        """Whether a request is under way, or one that was cancelled has not stopped yet."""
        return bool(self._pending or (self.connection is not None and self.connection.stopping))

    @property
    def gave_up(self) -> bool:
        """Whether too many workers died in a row; :meth:`reset` allows another."""
        return self.deaths >= self.config.max_deaths

    @property
    def process_id(self) -> int | None:
        """The number of the worker process, or None."""
        return self.connection.transport.process_id if self.connection is not None else None

    @property
    def hello(self) -> m.HelloReply | None:
        """What the running worker said about itself, or None."""
        return self.connection.hello if self.connection is not None else None

    @property
    def log_lines(self) -> tuple[str, ...]:
        """Last lines of the log of the running or latest worker."""
        latest = self.connection or next(reversed(self._left), None)
        return tuple(latest.log_lines) if latest is not None else ()

    def set_command(self, command: WorkerCommand) -> None:
        """Use another command from the next worker on; the running one is closed, its requests are cancelled."""
        if command != self.command:
            self.close(wait=False)
            self.command = command
            self.reset()

    def set_model(self, model: ModelChoice) -> None:
        """Choose the model; it is loaded with the next request that needs it."""
        if model != self.model:
            self.model = model
            self.reset()

    def open_volume(self, volume_id: str, array: np.ndarray, ijk_to_ras: np.ndarray, axis: str = "auto") -> None:
        """Make a volume known; it is sent with the next request that needs it, once to each worker.

        Args:
            volume_id: of this state of the volume; array, ijk_to_ras, axis: see ``VolumeSource``; not copied.

        Raises:
            BadInput: not a volume that can be sent, or the name is taken.
        """
        if volume_id in self.volumes:
            raise BadInput(f"The volume {volume_id!r} is open already.", "Close it first.")
        self.volumes[volume_id] = VolumeSource(volume_id, array, np.asarray(ijk_to_ras, dtype=float), axis)

    def needs_volume(self, volume_id: str) -> bool:
        """Whether a request on a volume is under way."""
        return any(request.volume_id == volume_id for request in self._pending.values())

    def close_volume(self, volume_id: str) -> None:
        """Forget a volume, here and in the worker; requests on it are cancelled and their late answers dropped."""
        if self.volumes.pop(volume_id, None) is None:
            return
        self._deliveries.forget(volume_id)
        if self.connection is not None:
            self.connection.close_volume(volume_id)
        for request in [request for request in self._pending.values() if request.volume_id == volume_id]:
            self.cancel(request, urgent=False)

    def reset(self) -> None:
        """Forget the deaths so far, so that the next request starts a worker again."""
        self.deaths, self._last_death = 0, None

    def segment(
        self,
        volume_id: str,
        markups: Iterable[Markup],
        *,
        prompts: str = "consensus",
        first_slice: int | None = None,
        send_all: bool = False,
        locked: Mapping[int, np.ndarray] | None = None,
        anchor_ras: tuple[float, float, float] | None = None,
        learned: str = "",
        callbacks: Callbacks = NO_CALLBACKS,
    ) -> Request:
        """Segment an open volume from clicks; the answer is ``messages.Segmented``.

        Args:
            volume_id: see :meth:`open_volume`.
            markups: point lists and curves in RAS; unplaced and unselected points are left out.
            prompts: prompting strategy of the predictor; first_slice: slice index to begin with.
            send_all: send every slice, not only the recomputed ones.
            locked: masks (H, W) of slices that a person edited, by slice index.
            anchor_ras: that of the answer from which this result goes on, where a new worker looks, too.
            learned: ``messages.Learned.name``, to segment under what corrections taught.
            callbacks: whom to tell; they may be called before this returns.

        Raises:
            BadInput, ModelMissing: the volume is not open, or no model was chosen.
        """
        points, edited = flatten_markups(markups), pack_masks(locked or {})
        message = m.Segment(0, volume_id, *points, *edited, prompts, first_slice, send_all, anchor_ras, learned)
        return self._submit(message, callbacks)

    def saliency(
        self,
        volume_id: str,
        slice_index: int,
        center_ras: tuple[float, float, float] | None = None,
        callbacks: Callbacks = NO_CALLBACKS,
    ) -> Request:
        """Ask for the saliency of one slice of an open volume: ``messages.Saliency``, ``messages.SaliencyReady``."""
        return self._submit(m.Saliency(0, volume_id, slice_index, center_ras), callbacks)

    def ask(self, message: m.Learn | m.Suggest, callbacks: Callbacks = NO_CALLBACKS) -> Request:
        """Send a request of ``requests.learn_message`` or ``requests.suggest_message``, which is numbered here."""
        return self._submit(message, callbacks)

    def status(self, *, probe: bool = False, callbacks: Callbacks = NO_CALLBACKS) -> Request:
        """Ask the worker for ``messages.StatusReply``; with ``probe`` it has the devices, and torch is imported."""
        return self._submit(m.Status(0, probe), callbacks)

    def warm_up(self, callbacks: Callbacks = NO_CALLBACKS) -> Request:
        """Start the worker and load the chosen model, so that the first segmentation need not wait for either."""
        return self._submit(m.Status(0), callbacks, with_model=True)

    def cancel(self, request: Request, *, urgent: bool = True) -> None:
        """Cancel a request: it is finished at once, and what still arrives for it is dropped.

        With ``urgent`` the worker is idle or gone within ``ClientConfig.cancel_seconds``; without, it stops when it can
        and stays warm (for a live update that a newer one replaces).
        """
        if self._pending.pop(request.request_id, None) is None:
            return
        if self.connection is not None:
            self.connection.withdraw(request.request_id, urgent=urgent)
            if urgent:
                self.connection.hurry()
        request.finish(error=Cancelled())

    def poll(self, timeout: float = 0.0) -> None:
        """Take in what has arrived; wait up to ``timeout`` seconds for something. Not needed under an event loop."""
        self._left = [left for left in self._left[:-1] if not left.ended] + self._left[-1:]
        for left in self._left:
            if not left.ended:
                left.transport.poll(0.0)
        if self.connection is not None:
            self.connection.poll(timeout)

    def wait(self, request: Request, timeout: float | None = None) -> m.Answer:
        """Block until a request has finished and return its answer.

        Raises:
            SPDError: what it failed with; Cancelled too where ``timeout`` seconds passed or Ctrl-C was pressed.
        """
        until = math.inf if timeout is None else self._clock() + timeout
        with contextlib.suppress(KeyboardInterrupt):
            while not request.finished and (left := until - self._clock()) > 0:
                self.poll(min(left, WAIT_STEP_SECONDS))
        self.cancel(request)  # nothing happens where it has finished
        return request.result()

    def close(self, *, wait: bool = True) -> None:
        """End the worker: its stdin is closed, and it is killed if that does not end it.

        Requests under way are cancelled. With ``wait``, block until the process is gone (at most about two seconds).
        """
        waiting, self._pending = self._pending.values(), {}
        connection = self.connection
        if connection is not None:
            self._leave()
            connection.close_input()
        finish_all(waiting, Cancelled())
        if connection is not None and wait:
            connection.wait_gone()

    def _submit(self, message: RequestMessage, callbacks: Callbacks, with_model: bool = False) -> Request:
        """Send a request after what it needs (and the model); it has failed on return where no worker can start."""
        request = Request(replace(message, request_id=next(self._ids)), callbacks, self.model)
        if request.volume_id is not None and request.volume_id not in self.volumes:
            raise BadInput(f"The volume {request.volume_id!r} is not open.", "Open it first.")
        if request.volume_id is not None and self.model is None:
            raise ModelMissing("No model was chosen.", "Choose a model.")
        if self.gave_up and self._last_death is not None:
            request.finish(error=self._last_death)
            return request
        self._pending[request.request_id] = request
        try:
            self._send(request, with_model)
        except BaseException:
            self._pending.pop(request.request_id, None)
            raise
        return request

    def on_event(self, connection: Connection, event: m.Event) -> None:
        """Hand an event to its request, or drop it."""
        if connection is not self.connection:
            return
        if isinstance(event, m.Alive):
            running = event.running or m.NO_REQUEST
            if (request := self._pending.get(running)) is not None:
                request.begin()
            elif (request := connection.owners.get(running)) is not None:
                request.begin(model_only=True)
        elif isinstance(event, (m.Progress, m.SliceReady)):
            self._on_partial(connection, event)
        elif event.request_id == m.NO_REQUEST and isinstance(event, m.Failed):
            self.on_log_line(event.message)
        else:
            self._on_answer(connection, event)

    def on_ended(self, connection: Connection, ending: Ending) -> None:
        """Fail what waits, or send it to another worker.

        It is sent again where this worker ended because of a cancelled request, and once where it ended, perhaps
        unnoticed and long ago, before it had begun with it; not where the start itself failed.
        """
        if connection is not self.connection:
            return
        ours = connection.must_stop and (connection.killed_for_cancel or ending.code == EXIT_CANCELLED)
        self._leave()
        if ours:
            self._resubmit()
            return
        self.deaths += 1
        error = ending.to_error(deaths=self.deaths, max_deaths=self.config.max_deaths)
        self._last_death = error
        ran = connection.hello is not None or connection.was_stopped or ending.by_signal
        worked = ran and ending.code is not None and not self.gave_up  # without a code the application has ended it
        again = [r for r in self._pending.values() if worked and r.may_repeat(connection.was_stopped)]
        failed = [request for request in self._pending.values() if request not in again]
        self._pending = {request.request_id: request for request in again}
        for request in again:
            request.repeated = True
        if again:
            self.on_log_line(f"{error.message} What had not begun is sent to a new one.")
            self._resubmit()
        if failed or not again:
            self._tell_died(error)
        finish_all(failed, error)

    def _send(self, request: Request, with_model: bool = False) -> None:
        connection, message = self.connection or self._connect(), request.message
        if connection is not self.connection:
            return
        if request.model is not None and (with_model or request.volume_id is not None):
            connection.send_model(request.model, request)
        if request.volume_id is not None:
            connection.send_volume(self.volumes[request.volume_id])
        if isinstance(message, m.Segment):
            message = self._deliveries.complete(message, connection.begin_session(request))
        connection.send(message, tag=message.request_id)

    def _connect(self) -> Connection:
        settings = (self.config, self._ids, self._clock, lambda: bool(self._pending))
        self.connection = connection = Connection(self._make_transport(), self, *settings)
        connection.start(self.command)
        return connection

    def _leave(self) -> None:
        self._left += [self.connection] if self.connection is not None else []
        self.connection = None

    def _on_partial(self, connection: Connection, event: m.Progress | m.SliceReady) -> None:
        request = self._pending.get(event.request_id)
        if isinstance(event, m.SliceReady) and (session := connection.sessions.get(event.request_id)) is not None:
            (self._deliveries.miss if request is None else self._deliveries.take)(event, session)
        if request is not None:
            request.begin()
            request.take(event)
        elif event.request_id in connection.implicit and isinstance(event, m.Progress):
            for request in list(self._pending.values()):
                request.take(replace(event, request_id=request.request_id))

    def _on_answer(self, connection: Connection, event: m.Answer) -> None:
        session = connection.sessions.pop(event.request_id, None)
        if connection.settle(event) or (request := self._pending.pop(event.request_id, None)) is None:
            return
        if isinstance(event, m.VolumeNeeded):
            self._pending[request.request_id] = request
            connection.note_missing(event.volume_id)
            self._deliveries.lose_session(event.volume_id)
            self._send(request)
        elif isinstance(event, m.Failed):
            request.finish(error=error_from_wire(vars(event)))
        else:
            if isinstance(event, m.Segmented):
                event = self._deliveries.finish(request, event, session)
            if request.volume_id is not None:  # a segmentation or a saliency proves its health
                self.reset()
            request.finish(answer=event)

    def _resubmit(self) -> None:
        for request in list(self._pending.values()):
            if request.request_id in self._pending:
                request.restart()
                self._send(request)
