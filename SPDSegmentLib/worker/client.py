"""The client of the background worker: no torch, no Qt, no thread of its own.

It starts a worker when a request first needs one, sends model and volume once to each, restarts a dead one at the next
request, and drops what answers an old request. Everything is called, and calls back, on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from SPDSegmentLib.errors import BadInput, WorkerDied

from . import messages as m
from .broker import RequestBroker
from .commands import WorkerCommand, local_command
from .connection import Callbacks, ClientConfig, ModelChoice, Request, RequestState
from .payloads import flatten_markups, pack_masks
from .transports import SubprocessTransport, Transport
from .volumes import VolumeSource

if TYPE_CHECKING:
    from SPDSegmentLib.geometry.markups import Markup

__all__ = ["Callbacks", "ClientConfig", "ModelChoice", "Request", "RequestState", "WorkerClient"]

NO_CALLBACKS = Callbacks()
WAIT_STEP_SECONDS = 1.0


class WorkerClient:
    """Requests to a background worker.

    Args:
        make_transport: returns a new transport for each worker.
        command: how to start a worker; by default one on this machine with the running interpreter.
        config: settings.
        on_log_line: told each line of the worker's log and each of its notes to the user.
        on_died: told when a worker ended unexpectedly, also when nothing waited for it.
        clock: monotonic seconds.
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
        self._clock = clock
        self._broker = RequestBroker(
            make_transport,
            command or local_command(),
            config or ClientConfig(),
            on_log_line=on_log_line,
            on_died=on_died,
            clock=clock,
        )

    def __enter__(self) -> WorkerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether a worker process runs or starts."""
        return self._broker.connection is not None

    @property
    def busy(self) -> bool:
        """Whether a request is under way, or one that was cancelled has not stopped yet."""
        return self._broker.busy

    @property
    def gave_up(self) -> bool:
        """Whether too many workers died in a row; :meth:`reset` allows another."""
        return self._broker.gave_up

    @property
    def deaths(self) -> int:
        """How many workers have ended unexpectedly since the last success."""
        return self._broker.deaths

    @property
    def dropped_events(self) -> int:
        """How many late answers were dropped."""
        return self._broker.dropped_events

    @property
    def process_id(self) -> int | None:
        """The number of the worker process, or None."""
        connection = self._broker.connection
        return connection.transport.process_id if connection is not None else None

    @property
    def hello(self) -> m.HelloReply | None:
        """What the running worker said about itself, or None."""
        connection = self._broker.connection
        return connection.hello if connection is not None else None

    @property
    def log_lines(self) -> tuple[str, ...]:
        """Last lines of the log of the running or latest worker."""
        connection = self._broker.connection or self._broker.retired
        return tuple(connection.log_lines) if connection is not None else ()

    @property
    def model(self) -> ModelChoice | None:
        """The model that was chosen."""
        return self._broker.model

    @property
    def command(self) -> WorkerCommand:
        """How the next worker is started."""
        return self._broker.command

    def set_command(self, command: WorkerCommand) -> None:
        """Use another command from the next worker on; the running one is closed, its requests are cancelled."""
        if command != self._broker.command:
            self._broker.close(wait=False)
            self._broker.command = command
            self.reset()

    def set_model(self, model: ModelChoice) -> None:
        """Choose the model; it is loaded with the next request that needs it."""
        if model != self._broker.model:
            self._broker.model = model
            self.reset()

    def open_volume(self, volume_id: str, array: np.ndarray, ijk_to_ras: np.ndarray, axis: str = "auto") -> None:
        """Make a volume known; it is sent with the next request that needs it, once to each worker.

        Args:
            volume_id: the caller's name for this state of the volume; another state needs another name.
            array: (K, J, I) numeric; referenced, not copied.
            ijk_to_ras: (4, 4), millimeters.
            axis: slicing axis, as in ``geometry.slices.SliceStack``.

        Raises:
            BadInput: not a volume that can be sent, or the name is taken.
        """
        if volume_id in self._broker.volumes:
            raise BadInput(f"The volume {volume_id!r} is open already.", "Close it first.")
        self._broker.volumes[volume_id] = VolumeSource(volume_id, array, np.asarray(ijk_to_ras, dtype=float), axis)

    def close_volume(self, volume_id: str) -> None:
        """Forget a volume; requests on it are cancelled and their late answers dropped."""
        self._broker.drop_volume(volume_id)

    def reset(self) -> None:
        """Forget the deaths so far, so that the next request starts a worker again."""
        self._broker.reset()

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
        callbacks: Callbacks = NO_CALLBACKS,
    ) -> Request:
        """Segment an open volume from clicks; the answer is ``messages.Segmented``.

        Args:
            volume_id: see :meth:`open_volume`.
            markups: point lists and curves in RAS; unplaced and unselected points are left out.
            prompts: prompting strategy of the predictor.
            first_slice: slice index to begin with.
            send_all: send every slice, not only the recomputed ones.
            locked: masks (H, W) of slices that a person edited, by slice index.
            anchor_ras: that of the answer from which this result goes on, so that a new worker does as the last one.
            callbacks: whom to tell; they may be called before this returns.

        Raises:
            BadInput: the volume is not open.
            ModelMissing: no model was chosen.
        """
        points, ids, groups = flatten_markups(markups)
        table, bits = pack_masks(locked or {})
        message = m.Segment(
            m.NO_REQUEST,
            volume_id,
            points,
            ids,
            groups,
            table,
            bits,
            prompts=prompts,
            first_slice=first_slice,
            send_all=send_all,
            anchor_ras=anchor_ras,
        )
        return self._broker.submit(message, callbacks)

    def saliency(
        self,
        volume_id: str,
        slice_index: int,
        center_ras: tuple[float, float, float] | None = None,
        callbacks: Callbacks = NO_CALLBACKS,
    ) -> Request:
        """Ask for the saliency of one slice; the answer is ``messages.SaliencyReady``.

        Args:
            volume_id: an open volume.
            slice_index: of the slice.
            center_ras: where to look while no segmentation has fixed the field of view, in world mm.
            callbacks: whom to tell.
        """
        return self._broker.submit(m.Saliency(m.NO_REQUEST, volume_id, slice_index, center_ras), callbacks)

    def status(self, *, probe: bool = False, callbacks: Callbacks = NO_CALLBACKS) -> Request:
        """Ask what the worker holds; the answer is ``messages.StatusReply``.

        Args:
            probe: also list the devices, which makes the worker import torch.
            callbacks: whom to tell.
        """
        return self._broker.submit(m.Status(m.NO_REQUEST, probe), callbacks)

    def warm_up(self, callbacks: Callbacks = NO_CALLBACKS) -> Request:
        """Start the worker and load the chosen model, so that the first segmentation need not wait for either."""
        return self._broker.submit(m.Status(m.NO_REQUEST), callbacks, with_model=True)

    def cancel(self, request: Request, *, urgent: bool = True) -> None:
        """Cancel a request: it is finished at once, and what still arrives for it is dropped.

        With ``urgent`` the worker is idle or gone within ``ClientConfig.cancel_seconds``; without, it stops when it can
        and stays warm (for a live update that a newer one replaces).
        """
        self._broker.cancel(request, urgent=urgent)

    def poll(self, timeout: float = 0.0) -> None:
        """Take in what has arrived; wait up to ``timeout`` seconds for something. Not needed under an event loop."""
        self._broker.poll(timeout)

    def wait(self, request: Request, timeout: float | None = None) -> m.Answer:
        """Block until a request has finished and return its answer.

        Raises:
            SPDError: what it failed with; Cancelled too where ``timeout`` seconds passed or Ctrl-C was pressed.
        """
        until = None if timeout is None else self._clock() + timeout
        try:
            while not request.finished:
                left = WAIT_STEP_SECONDS if until is None else until - self._clock()
                if left <= 0:
                    self.cancel(request)
                    break
                self.poll(min(left, WAIT_STEP_SECONDS))
        except KeyboardInterrupt:
            self.cancel(request)
        return request.result()

    def close(self, *, wait: bool = True) -> None:
        """End the worker: its stdin is closed, and it is killed if that does not end it.

        Requests under way are cancelled. With ``wait``, block until the process is gone (at most about two seconds).
        """
        self._broker.close(wait=wait)
