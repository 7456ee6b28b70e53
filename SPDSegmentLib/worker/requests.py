"""What a caller chooses and asks: command, model, volumes, each request under way, and which slices it has.

A worker sends the slices that changed since its last answer. That is not all that the caller lacks: slices that came
too late for a cancelled request were dropped here, and a new session (another worker or model, a volume that was sent
again) does not know what the caller holds.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from SPDSegmentLib.errors import BadInput, SPDError
from SPDSegmentLib.files import user_path
from SPDSegmentLib.models.bundle import INFO_NAME
from SPDSegmentLib.models.storage import HOME_VARIABLE

from .messages import (
    Answer,
    Learn,
    OpenVolume,
    Progress,
    Segment,
    Segmented,
    SliceReady,
    Status,
    Suggest,
    VolumeChunk,
    VolumeRequest,
)
from .payloads import flatten_markups, pack_masks
from .protocol import Buffer, encode_message

if TYPE_CHECKING:
    from SPDSegmentLib.geometry.markups import Markup

CHUNK_BYTES = 1 << 20
RequestMessage = VolumeRequest | Status


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
        model: that was chosen when it was made; it is asked for again wherever the request is sent again.
        volume_id: the volume it needs, or None.
        progress: latest progress, or None.
        slices: slices that have arrived, by slice index.
        answer: the answer event once done, else None.
        error: why it failed or was cancelled, else None.
        begun: whether a worker has begun to work on it, as far as it could say so.
        model_only: whether it has begun with nothing but to load the model for it.
        repeated: whether it was sent again because a worker ended before it had begun.
        session: of a segmentation, what its answer rests on: volume and loading of the model.
    """

    def __init__(self, message: RequestMessage, callbacks: Callbacks, model: ModelChoice | None = None) -> None:
        self.message = message
        self.model = model
        self.request_id = message.request_id
        self.volume_id = None if isinstance(message, Status) else message.volume_id
        self.progress: Progress | None = None
        self.slices: dict[int, SliceReady] = {}
        self.answer: Answer | None = None
        self.error: SPDError | None = None
        self.begun = False
        self.model_only = False
        self.repeated = False
        self.session: Hashable = None
        self._callbacks = callbacks

    @property
    def finished(self) -> bool:
        """Whether it is done, failed or cancelled."""
        return self.answer is not None or self.error is not None

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

    def may_repeat(self, was_stopped: bool) -> bool:
        """Whether another worker may try it; not where one that nobody stopped has ended while it loaded its model."""
        return not self.repeated and (not self.begun or (self.model_only and was_stopped))

    def begin(self, *, model_only: bool = False) -> None:
        """Note that a worker has begun to work on it, or to load the model for it."""
        self.model_only = model_only and (self.model_only or not self.begun)
        self.begun = True

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
        self.begun = self.model_only = False

    def finish(self, answer: Answer | None = None, error: SPDError | None = None) -> None:
        """Set the outcome and tell the caller."""
        if self.finished:
            return
        self.answer, self.error = answer, error
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


def learn_message(
    volume_id: str,
    markups: Iterable[Markup],
    locked: Mapping[int, np.ndarray],
    prompts: str = "consensus",
    anchor_ras: tuple[float, float, float] | None = None,
    learned: str = "",
) -> Learn:
    """The request to learn from slices that a person edited; arguments as of ``WorkerClient.segment``."""
    return Learn(0, volume_id, *flatten_markups(markups), *pack_masks(locked), prompts, anchor_ras, learned)


def suggest_message(
    volume_id: str, markups: Iterable[Markup], dismissed_ras: Iterable[Sequence[float]] = (), learned: str = ""
) -> Suggest:
    """The request for the place where one more click would help the last result most.

    Args:
        markups: the clicks; dismissed_ras: places where a person wanted none; learned: as of the last result.
    """
    points, _, _ = flatten_markups(markups)
    away = np.array([tuple(place) for place in dismissed_ras], dtype="<f8").reshape(-1, 3)
    return Suggest(0, volume_id, np.concatenate((points, away)), 1, learned)


@dataclass(frozen=True)
class WorkerCommand:
    """How to start a worker.

    Attributes:
        arguments: program and arguments; ``ssh host spdsegment worker`` makes it a remote one.
        folder: working folder of the process, or None for the caller's.
        environment: variables (name, value) of the process, or None for the caller's.
    """

    arguments: tuple[str, ...]
    folder: str | None = None
    environment: tuple[tuple[str, str], ...] | None = field(default=None, repr=False)


def local_command(python: str | None = None) -> WorkerCommand:
    """Return the command for a worker on this machine.

    Args:
        python: the interpreter (PythonSlicer within Slicer); None for the running one.
    """
    return WorkerCommand((python or sys.executable, "-m", "SPDSegmentLib.worker"), str(library_root()))


def from_here(command: WorkerCommand) -> WorkerCommand:
    """Return a command in whose own working folder ``SPDSEGMENT_HOME`` means the same folder as in the caller's."""
    variables = dict(os.environ if command.environment is None else command.environment)
    home = variables.get(HOME_VARIABLE, "").strip()
    if command.folder is None or not home or os.path.isabs(home):
        return command
    variables[HOME_VARIABLE] = os.path.abspath(user_path(home))
    return replace(command, environment=tuple(sorted(variables.items())))


def bundle_from_here(bundle: str) -> str:
    """Return a bundle's folder as an absolute path, and what is no such folder as it is: a name."""
    folder = os.path.abspath(user_path(bundle))
    return folder if os.path.isfile(os.path.join(folder, INFO_NAME)) else bundle


def library_root() -> Path:
    """Return the folder that holds ``SPDSegmentLib``, in a source checkout and in an installed tree."""
    return Path(__file__).resolve().parents[2]


def parse_command(text: str) -> WorkerCommand | None:
    """Return the command that a person typed as a setting, or None for an empty one."""
    arguments = tuple(part.strip('"') for part in shlex.split(text, posix=os.name != "nt"))
    return WorkerCommand(arguments) if arguments else None


@dataclass(frozen=True, eq=False)
class VolumeSource:
    """A volume of the caller's, referenced and not copied: who changes its values must give it another ``volume_id``.

    Attributes:
        volume_id: the caller's name for this state of the volume.
        array: (K, J, I) numeric.
        ijk_to_ras: (4, 4), millimeters.
        axis: slicing axis, as in ``geometry.slices.SliceStack``.
    """

    volume_id: str
    array: np.ndarray
    ijk_to_ras: np.ndarray
    axis: str = "auto"

    def __post_init__(self) -> None:
        if self.array.ndim != 3:
            raise BadInput(f"The volume has {self.array.ndim} dimensions instead of three.", "Choose a scalar volume.")
        if self.array.dtype.kind not in "biuf" or self.array.dtype.itemsize > 8:
            raise BadInput(f"Volumes of type {self.array.dtype} cannot be used.", "Convert the volume to numbers.")
        if np.shape(self.ijk_to_ras) != (4, 4) or not np.isfinite(self.ijk_to_ras).all():
            raise BadInput("The volume's geometry is not a 4x4 matrix of finite numbers.")

    def announcement(self, request_id: int) -> OpenVolume:
        """Return the message that precedes the chunks."""
        shape = (int(self.array.shape[0]), int(self.array.shape[1]), int(self.array.shape[2]))
        affine = np.asarray(self.ijk_to_ras, dtype="<f8")
        dtype = self.array.dtype.newbyteorder("<").str
        return OpenVolume(request_id, self.volume_id, dtype, shape, affine, self.axis)

    def frames(self, request_id: int) -> Iterator[list[Buffer]]:
        """Yield the frames of announcement and chunks, each cut only when it is asked for."""
        yield encode_message(self.announcement(request_id))
        offset = 0
        for piece in _pieces(self.array):
            chunk = VolumeChunk(self.volume_id, offset, piece)
            yield encode_message(chunk, check_payload=False)
            offset += piece.nbytes


def _pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    if not array.size:
        return
    per_slice = array[0].nbytes
    step = max(1, CHUNK_BYTES // per_slice)
    for start in range(0, array.shape[0], step):
        slab = array[start : start + step]
        flat = np.ascontiguousarray(slab, dtype=slab.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
        for offset in range(0, flat.size, CHUNK_BYTES):
            yield flat[offset : offset + CHUNK_BYTES]
