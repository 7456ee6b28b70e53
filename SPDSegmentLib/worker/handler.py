"""The worker's answers: one loaded model, the open volumes, what each request gets."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from SPDSegmentLib.errors import BadInput, Cancelled, ModelMissing, SPDError
from SPDSegmentLib.files import json_ready
from SPDSegmentLib.geometry.limits import (
    check_room_for_torch,
    free_memory_bytes,
)
from SPDSegmentLib.prompts.fates import PointFate

from . import messages as m
from .payloads import pack_fates, pack_mask, pack_masks, restore_markups, unpack_masks
from .pipes import to_error
from .volumes import OpenedVolume, VolumeCache

if TYPE_CHECKING:
    from SPDSegmentLib.geometry.centerline import Clicks
    from SPDSegmentLib.geometry.slices import SliceStack
    from SPDSegmentLib.inference.predictor import Predictor

Emit = Callable[[m.Event], None]
Stop = Callable[[], bool]
Work = m.LoadModel | m.VolumeRequest | m.Status
LoadPredictor = Callable[[str, str, str], Any]
"""Bundle, device and precision to an ``inference.predictor.Predictor``, or to what can take its place."""
PROGRESS_SECONDS = 0.1
LOST_LESSON = "What was learned from your corrections went with the background process; learn again to have it back."


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
        if isinstance(request, m.VolumeRequest):
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

    def _infer(self, request: m.VolumeRequest, stop: Stop) -> m.Answer:
        if request.volume_id in self.volumes.forgotten:
            return m.VolumeNeeded(request.request_id, request.volume_id)
        if isinstance(request, m.Segment):
            return self._answer_segment(request, stop)
        if isinstance(request, m.Learn):
            return self._answer_learn(request, stop)
        if isinstance(request, m.Suggest):
            return self._answer_suggest(request, stop)
        return self._answer_saliency(request)

    def _answer_segment(self, request: m.Segment, stop: Stop) -> m.Segmented:
        opened = self._opened(request.volume_id)
        stack, session = opened.stack, opened.learned.get(request.learned, opened.session)
        clicks, locked = _clicks_and_locked(request, stack)
        slices = stack.shape[0]
        if request.first_slice is not None and not 0 <= request.first_slice < slices:
            raise BadInput(f"The slice {request.first_slice} to begin with lies outside the volume.")
        name = request.learned if request.learned in opened.learned else ""
        sent: set[int] = set()

        def send(result: Any) -> None:
            sent.add(int(result.slice_index))
            self._emit(_slice_ready(request, result, stack))

        switched = opened.served != name
        if switched:
            opened.served = None
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
        wanted = set(range(slices)) if request.send_all or switched else set(recomputed)
        for slice_result in result.slices:
            if int(slice_result.slice_index) in wanted - sent:
                send(slice_result)
        opened.served = name
        report = json_ready(result.report())
        if request.learned != name:
            report["notes"] = [*report.get("notes", []), LOST_LESSON]
        return m.Segmented(
            request.request_id,
            request.volume_id,
            tuple(range(slices)) if switched else recomputed,
            *pack_fates(_placed(result.fates, stack)),
            seconds=float(result.seconds),
            device=str(result.device),
            report=report,
            anchor_ras=_anchor_ras(result, stack),
        )

    def _answer_learn(self, request: m.Learn, stop: Stop) -> m.Learned:
        from SPDSegmentLib.inference.results import Call

        opened = self._opened(request.volume_id)
        clicks, corrected = _clicks_and_locked(request, opened.stack)
        call = Call(on_progress=_Throttle(request.request_id, self._emit), cancelled=stop)
        opened.served = None  # the session may decide slices that the caller is not told of
        options = {"call": call, "anchor_xy": _slice_xy(request.anchor_ras, opened.stack)}
        lesson = self._predictor.learn(opened.session, clicks, corrected, request.prompts, **options)
        if lesson.session is not None:
            opened.keep_learned(lesson.name, lesson.session)
        return m.Learned(
            request.request_id,
            request.volume_id,
            lesson.name,
            tuple(int(t) for t in lesson.slices),
            float(lesson.before),
            float(lesson.after),
            int(lesson.voxels),
            *pack_masks(lesson.changed),
            lesson.sentence,
        )

    def _answer_suggest(self, request: m.Suggest, stop: Stop) -> m.Suggested:
        from SPDSegmentLib.geometry.centerline import clicks_from_points
        from SPDSegmentLib.inference.results import Call

        opened = self._opened(request.volume_id)
        session = opened.learned.get(request.learned, opened.session)
        call = Call(on_progress=_Throttle(request.request_id, self._emit), cancelled=stop)
        clicks = clicks_from_points(request.points_ras, opened.stack)
        found = self._predictor.suggest(session, clicks, request.count, call)
        index = np.array([s.slice_index for s in found], dtype=float)
        places = opened.stack.to_ras(index, np.array([s.xy for s in found], dtype=float))
        measures = [(s.disagreement, min(s.distance_mm, 1e6), s.score) for s in found]
        return m.Suggested(
            request.request_id,
            request.volume_id,
            tuple(int(s.slice_index) for s in found),
            np.asarray(places, dtype="<f8").reshape(-1, 3),
            np.array(measures, dtype="<f8").reshape(-1, 3),
        )

    def _answer_saliency(self, request: m.Saliency) -> m.SaliencyReady:
        opened = self._opened(request.volume_id)
        stack, session = opened.stack, opened.session
        if not 0 <= request.slice_index < stack.shape[0]:
            raise BadInput(f"The volume has no slice {request.slice_index}.")
        center = _slice_xy(request.center_ras, stack)
        saliency = np.asarray(session.saliency(request.slice_index, center), dtype="<f4")
        return m.SaliencyReady(request.request_id, request.volume_id, request.slice_index, saliency)

    def _opened(self, volume_id: str) -> OpenedVolume:
        if volume_id in self.volumes.refused:
            raise self.volumes.refused[volume_id]
        opened = self.volumes.use(volume_id)
        if opened is None:
            raise BadInput(f"The volume {volume_id!r} is not open in the background process.", "Open it again.")
        if self._predictor is None:
            raise self._load_error or ModelMissing("No model is loaded.", "Choose a model.")
        if opened.session is None:
            opened.session = self._predictor.open(opened.stack)
            opened.served = ""
        return opened


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


def _clicks_and_locked(request: m.Segment | m.Learn, stack: SliceStack) -> tuple[Clicks, dict[int, np.ndarray]]:
    """The clicks of a request, and the masks (H, W) of the slices that were edited by hand."""
    from SPDSegmentLib.geometry.centerline import clicks_from_markups

    clicks = clicks_from_markups(restore_markups(request.points_ras, request.point_ids, request.groups), stack)
    slices, height, width = stack.shape
    locked = unpack_masks(request.locked_table, request.locked_bits, (height, width))
    if any(not 0 <= t < slices for t in locked):
        raise BadInput("A slice edited by hand lies outside the volume.")
    return clicks, locked


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
