"""The worker's answers: one loaded model, the open volumes, what each request gets."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from SPDSegmentLib.errors import BadInput, Cancelled, ModelMissing, SPDError
from SPDSegmentLib.files import json_ready
from SPDSegmentLib.geometry.limits import (
    check_room_for_torch,
    free_memory_bytes,
    give_back_freed_memory,
    total_memory_bytes,
)
from SPDSegmentLib.prompts.fates import PointFate

from . import messages as m
from .payloads import pack_fates, pack_mask, restore_markups, unpack_masks
from .pipes import to_error

if TYPE_CHECKING:
    from SPDSegmentLib.geometry.slices import SliceStack
    from SPDSegmentLib.inference.predictor import Predictor
    from SPDSegmentLib.inference.session import Session

Emit = Callable[[m.Event], None]
Stop = Callable[[], bool]
Work = m.LoadModel | m.Segment | m.Saliency | m.Status
LoadPredictor = Callable[[str, str, str], Any]
"""Bundle, device and precision to an ``inference.predictor.Predictor``, or to what can take its place."""
PROGRESS_SECONDS = 0.1
MAX_DEFAULT_BYTES = 2 << 30
SHARE_OF_MEMORY = 0.25


@contextmanager
def stop_between_layers(stop: Callable[[], bool]) -> Iterator[None]:
    """Within this context every module of torch raises Cancelled, before it runs, once ``stop`` is true.

    Only for code that stores results after the network has returned them, as the predictor's session does. Does nothing
    where torch is not loaded.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return

    def check(module: Any, inputs: Any) -> None:
        if stop():
            raise Cancelled()

    hook = torch.nn.modules.module.register_module_forward_pre_hook(check)
    try:
        yield
    finally:
        hook.remove()


def load_predictor(bundle: str, device: str, precision: str, cache_bytes: int | None = None) -> Predictor:
    """Load a bundle, by folder or name; imports torch.

    Args:
        cache_bytes: embeddings of a volume that are kept between calls, ``None`` for the usual bound.

    Raises:
        SPDError: the bundle, its base weights, the device or torch is not there.
    """
    check_room_for_torch()
    from SPDSegmentLib.inference.engine import CACHE_BYTES
    from SPDSegmentLib.inference.predictor import Predictor
    from SPDSegmentLib.models.bundle import find_bundle

    kept = CACHE_BYTES if cache_bytes is None else cache_bytes
    return Predictor.load(find_bundle(bundle), device=device, precision=precision, cache_bytes=kept)


def default_limit_bytes() -> int:
    """Return a quarter of the machine's memory, at most 2 GB."""
    total = total_memory_bytes()
    return MAX_DEFAULT_BYTES if total is None else min(MAX_DEFAULT_BYTES, int(total * SHARE_OF_MEMORY))


@dataclass
class OpenedVolume:
    """A volume the worker holds, its slices, and its session with the loaded model once one was needed."""

    stack: SliceStack
    session: Any = None

    @property
    def nbytes(self) -> int:
        """Bytes of the voxels and of what was computed from them."""
        return int(self.stack.array.nbytes) + int(getattr(self.session, "nbytes", 0))


class VolumeCache:
    """Open volumes by name, from the one that was used longest ago to the latest.

    Args:
        limit_bytes: how much they may take together.

    Attributes:
        forgotten: names of volumes that were open and had to go.
        refused: why volumes cannot be used, by their names.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.forgotten: set[str] = set()
        self.refused: dict[str, SPDError] = {}
        self._limit = limit_bytes
        self._volumes: dict[str, OpenedVolume] = {}

    def put(self, name: str, opened: OpenedVolume) -> None:
        """Add a volume as the latest."""
        self.forgotten.discard(name)
        self._volumes[name] = opened

    def use(self, name: str) -> OpenedVolume | None:
        """Return a volume and make it the latest, or None."""
        opened = self._volumes.pop(name, None)
        if opened is not None:
            self._volumes[name] = opened
        return opened

    def drop(self, name: str) -> None:
        """Let go of a volume for good, and of why it could not be used."""
        self.refused.pop(name, None)
        self.forgotten.discard(name)
        self._let_go([name])

    def close_sessions(self) -> None:
        """Forget what was computed from every volume."""
        for opened in self._volumes.values():
            opened.session = None
        give_back_freed_memory()

    def spare_bytes(self) -> int:
        """Return what all volumes but the latest take; safe from any thread."""
        return sum(opened.nbytes for opened in tuple(self._volumes.values())[:-1])

    def shrink(self, keep: Collection[str], more_bytes: int = 0, *, keep_latest: bool = False) -> None:
        """Forget old volumes until what is left, and ``more_bytes``, are within the bound; who needs one resends it.

        Never ``keep``, nor with ``keep_latest`` the one that was used last.
        """
        keep = {*keep, *list(self._volumes)[-1:]} if keep_latest else keep
        sizes = {name: opened.nbytes for name, opened in self._volumes.items()}
        left = sum(sizes.values()) + more_bytes
        gone = []
        for name, size in sizes.items():
            if left <= self._limit:
                break
            if name not in keep:
                gone.append(name)
                left -= size
        self._let_go(gone)
        self.forgotten.update(gone)

    def _let_go(self, names: Collection[str]) -> None:
        gone = [self._volumes.pop(name) for name in names if name in self._volumes]
        if gone:
            gone.clear()
            give_back_freed_memory()


class RequestHandler:
    """Answers requests, one after the other, on one thread.

    Args:
        load: loads a predictor.
        emit: takes the events that precede an answer.
        volume_bytes: how much the open volumes may take.

    Attributes:
        volumes: the open volumes.
    """

    def __init__(self, load: LoadPredictor, emit: Emit, volume_bytes: int) -> None:
        self._load = load
        self._emit = emit
        self._predictor: Any = None
        self._asked: tuple[str, str, str] | None = None
        self._load_error: SPDError | None = None
        self.volumes = VolumeCache(volume_bytes)

    def answer(self, request: Work, stop: Stop) -> m.Answer:
        """Return the answer to a request.

        Raises:
            SPDError: what went wrong; Cancelled where ``stop`` became true.
        """
        if isinstance(request, m.LoadModel):
            return self._answer_load(request)
        if isinstance(request, m.Segment | m.Saliency):
            with stop_between_layers(stop):
                return self._infer(request, stop)
        return m.StatusReply(request.request_id, list_devices() if request.probe else None)

    def open_volume(self, announcement: m.OpenVolume, array: np.ndarray) -> m.VolumeOpened:
        """Take a complete volume (K, J, I).

        Raises:
            SPDError: it cannot be segmented; later requests on it fail with the same error.
        """
        from SPDSegmentLib.geometry.slices import SliceStack
        from SPDSegmentLib.geometry.volume import Volume, check_image

        volume_id = announcement.volume_id
        self.volumes.drop(volume_id)
        try:
            volume = Volume(array, np.array(announcement.ijk_to_ras, dtype=float))
            check_image(volume)
            stack = SliceStack(volume, announcement.axis)
        except Exception as raised:
            self.volumes.refused[volume_id] = to_error(raised)
            raise
        self.volumes.put(volume_id, OpenedVolume(stack))
        return m.VolumeOpened(announcement.request_id)

    def _answer_load(self, request: m.LoadModel) -> m.ModelLoaded:
        asked = (request.bundle, request.device, request.precision)
        if self._predictor is None or asked != self._asked:
            self._emit(m.Progress(request.request_id, "load_model", 0, 1, None))
            self._give_up_predictor()
            try:
                self._predictor = self._load(*asked)
            except Exception as raised:
                self._load_error = to_error(raised)
                raise
            self._asked = asked
        return m.ModelLoaded(request.request_id)

    def _give_up_predictor(self) -> None:
        self._predictor = self._asked = self._load_error = None
        self.volumes.close_sessions()

    def _infer(self, request: m.Segment | m.Saliency, stop: Stop) -> m.Answer:
        if request.volume_id in self.volumes.forgotten:
            return m.VolumeNeeded(request.request_id, request.volume_id)
        if isinstance(request, m.Segment):
            return self._answer_segment(request, stop)
        return self._answer_saliency(request)

    def _answer_segment(self, request: m.Segment, stop: Stop) -> m.Segmented:
        from SPDSegmentLib.geometry.centerline import clicks_from_markups

        stack, session = self._opened(request.volume_id)
        clicks = clicks_from_markups(restore_markups(request.points_ras, request.point_ids, request.groups), stack)
        slices, height, width = stack.shape
        locked = unpack_masks(request.locked_table, request.locked_bits, (height, width))
        if any(not 0 <= t < slices for t in locked):
            raise BadInput("A slice edited by hand lies outside the volume.")
        if request.first_slice is not None and not 0 <= request.first_slice < slices:
            raise BadInput(f"The slice {request.first_slice} to begin with lies outside the volume.")
        sent: set[int] = set()

        def send(result: Any) -> None:
            sent.add(int(result.slice_index))
            self._emit(_slice_ready(request, result, stack))

        result = session.segment(
            clicks,
            prompts=request.prompts,
            first_slice=request.first_slice,
            on_slice=send,
            on_progress=_Throttle(request.request_id, self._emit),
            cancelled=stop,
            locked=locked or None,
            anchor_xy=_slice_xy(request.anchor_ras, stack),
        )
        recomputed = tuple(sorted(int(t) for t in result.recomputed))
        wanted = set(range(slices)) if request.send_all else set(recomputed)
        for slice_result in result.slices:
            if int(slice_result.slice_index) in wanted - sent:
                send(slice_result)
        return m.Segmented(
            request.request_id,
            request.volume_id,
            recomputed,
            *pack_fates(_placed(result.fates, stack)),
            seconds=float(result.seconds),
            device=str(result.device),
            report=json_ready(result.report()),
            anchor_ras=_anchor_ras(result, stack),
        )

    def _answer_saliency(self, request: m.Saliency) -> m.SaliencyReady:
        stack, session = self._opened(request.volume_id)
        if not 0 <= request.slice_index < stack.shape[0]:
            raise BadInput(f"The volume has no slice {request.slice_index}.")
        center = _slice_xy(request.center_ras, stack)
        saliency = np.asarray(session.saliency(request.slice_index, center), dtype="<f4")
        return m.SaliencyReady(request.request_id, request.volume_id, request.slice_index, saliency)

    def _opened(self, volume_id: str) -> tuple[SliceStack, Session]:
        if volume_id in self.volumes.refused:
            raise self.volumes.refused[volume_id]
        opened = self.volumes.use(volume_id)
        if opened is None:
            raise BadInput(f"The volume {volume_id!r} is not open in the background process.", "Open it again.")
        if self._predictor is None:
            raise self._load_error or ModelMissing("No model is loaded.", "Choose a model.")
        if opened.session is None:
            opened.session = self._predictor.open(opened.stack)
        return opened.stack, opened.session


def list_devices() -> tuple[m.Device, ...]:
    """Return the devices the predictor can use, fastest first; imports torch.

    Raises:
        ImportError: torch is not installed or does not load.
        OutOfMemory: it has no room.
    """
    check_room_for_torch()
    import torch

    devices: list[m.Device] = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        try:
            free: int | None = int(torch.cuda.mem_get_info(index)[0])
        except RuntimeError:
            free = None
        devices.append(m.Device(f"cuda:{index}", str(torch.cuda.get_device_name(index)), free))
    return (*devices, m.Device("cpu", f"CPU, {os.cpu_count() or 1} cores", free_memory_bytes()))


class _Throttle:
    """Passes progress on, at most every ``PROGRESS_SECONDS`` within a stage; first and last always."""

    def __init__(self, request_id: int, emit: Emit) -> None:
        self._request_id = request_id
        self._emit = emit
        self._stage = ""
        self._due = 0.0

    def __call__(self, progress: Any) -> None:
        now = time.monotonic()
        if progress.stage == self._stage and progress.done < progress.total and now < self._due:
            return
        self._stage, self._due = progress.stage, now + PROGRESS_SECONDS
        left = json_ready(progress.seconds_left)
        seconds_left = None if left is None else float(left)
        self._emit(
            m.Progress(self._request_id, str(progress.stage), int(progress.done), int(progress.total), seconds_left)
        )


def _slice_xy(ras: tuple[float, float, float] | None, stack: SliceStack) -> tuple[float, float] | None:
    if ras is None:
        return None
    column, row = np.asarray(stack.to_slices(np.array(ras))[1]).ravel()
    return float(column), float(row)


def _anchor_ras(result: Any, stack: SliceStack) -> tuple[float, float, float] | None:
    center = getattr(result, "center_xy", None)
    if center is None:
        return None
    r, a, s = np.asarray(stack.to_ras(np.array([stack.shape[0] // 2]), np.array([center]))).ravel()
    return float(r), float(a), float(s)


def _slice_ready(request: m.Segment, result: Any, stack: SliceStack) -> m.SliceReady:
    packed = pack_mask(np.asarray(result.mask, dtype=bool))
    quality = json_ready(None if result.quality is None else float(result.quality))
    return m.SliceReady(
        request.request_id,
        request.volume_id,
        int(result.slice_index),
        packed.shape,
        packed.box,
        packed.bits,
        quality,
        result.status,
    )


def _placed(fates: Sequence[PointFate], stack: SliceStack) -> list[PointFate]:
    """The fates with their places in millimeters."""
    xy = np.array([fate.xy for fate in fates], dtype=float).reshape(-1, 2)
    ras = np.asarray(stack.to_ras(np.array([fate.slice_index for fate in fates], dtype=float), xy))
    return [replace(fate, position_ras=(r, a, s)) for fate, (r, a, s) in zip(fates, ras.tolist(), strict=True)]
