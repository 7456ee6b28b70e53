"""The worker's answers: one loaded model, the open volumes within a bound, what each request gets."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from SPDSegmentLib.errors import BadInput, Cancelled, ModelMissing, SPDError
from SPDSegmentLib.files import json_ready
from SPDSegmentLib.geometry import limits
from SPDSegmentLib.models.bundle import bundle_state

from . import messages as m
from .payloads import center_ras, pack_fates, pack_mask, pack_masks, restore_markups, slice_xy, unpack_masks
from .pipes import to_error

if TYPE_CHECKING:
    from SPDSegmentLib.geometry.centerline import Clicks
    from SPDSegmentLib.geometry.slices import SliceStack

Emit = Callable[[m.Event], None]
Stop = Callable[[], bool]
Work = m.LoadModel | m.VolumeRequest | m.Status
LoadPredictor = Callable[[str, str, str], Any]
"""Bundle, device and precision to an ``inference.predictor.Predictor``, or to what can take its place."""
PROGRESS_SECONDS = 0.1
MAX_DEFAULT_BYTES = 2 << 30
SHARE_OF_MEMORY = 0.25
LESSON_GONE = "What was learned from your corrections is no longer in the background process"
LOST_LESSON = f"{LESSON_GONE}; learn again to have it back."
UNCOMPARED = f"{LESSON_GONE}, so all this is against the masks of the model before it learned anything."


def default_limit_bytes() -> int:
    """Return a quarter of the machine's memory, at most 2 GB."""
    total = limits.total_memory_bytes()
    return MAX_DEFAULT_BYTES if total is None else min(MAX_DEFAULT_BYTES, int(total * SHARE_OF_MEMORY))


@dataclass
class OpenedVolume:
    """A volume the worker holds.

    Attributes:
        stack: its slices; session: with the loaded model, once one was needed.
        learned: sessions under what corrections taught, by name: the latest, and the one in use or else that before it.
        served: name of the session of which the caller has every slice, None for none.
        in_use: name of the session that gave the last whole answer.
    """

    stack: SliceStack
    session: Any = None
    learned: dict[str, Any] = field(default_factory=dict)
    served: str | None = ""
    in_use: str = ""

    def serve(self, name: str) -> None:
        """Note that the caller has every slice of a session."""
        self.served = self.in_use = name

    def keep_learned(self, name: str, session: Any) -> None:
        """Keep a session under what was learned; of those before it the one in use stays, or else the latest."""
        self.learned.pop(name, None)
        before = self.in_use if self.in_use in self.learned else next(reversed(self.learned), None)
        self.learned = {n: s for n, s in self.learned.items() if n == before} | {name: session}

    def forget_sessions(self) -> None:
        """Forget what was computed, and what was learned; slices that the caller holds are of no session any more."""
        self.session = self.served = None
        self.in_use = ""
        self.learned.clear()

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
            opened.forget_sessions()
        limits.give_back_freed_memory()

    def spare_bytes(self) -> int:
        """Return what all volumes but the latest take; safe from any thread."""
        return sum(opened.nbytes for opened in tuple(self._volumes.values())[:-1])

    def shrink(self, keep: Collection[str], more_bytes: int = 0, *, keep_latest: bool = False) -> None:
        """Forget old volumes until what is left, and ``more_bytes``, are within the bound; who needs one resends it.

        Never ``keep``, nor with ``keep_latest`` the one that was used last.
        """
        keep = {*keep, *list(self._volumes)[-1:]} if keep_latest else keep
        sizes = {name: opened.nbytes for name, opened in self._volumes.items()}
        left, gone = sum(sizes.values()) + more_bytes, list[str]()
        for name, size in sizes.items():
            if left > self._limit and name not in keep:
                gone.append(name)
                left -= size
        self._let_go(gone)
        self.forgotten.update(gone)

    def _let_go(self, names: Collection[str]) -> None:
        gone = [self._volumes.pop(name) for name in names if name in self._volumes]
        if gone:
            gone.clear()
            limits.give_back_freed_memory()


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
        self._asked: tuple[tuple[str, str, str], object] | None = None
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
        return m.StatusReply(request.request_id, _devices() if request.probe else None)

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
        state = bundle_state(request.bundle)
        if self._predictor is None or (asked, state) != self._asked:
            self._emit(m.Progress(request.request_id, "load_model", 0, 1, None))
            self._predictor = self._asked = self._load_error = None
            self.volumes.close_sessions()
            try:
                self._predictor = self._load(*asked)
            except Exception as raised:
                self._load_error = to_error(raised)
                raise
            self._asked = asked, state
        return m.ModelLoaded(request.request_id)

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
            try:
                self._emit(_slice_ready(request, result))
            except Cancelled:
                opened.served = None  # the session has this slice now and will not report it again
                raise

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
            anchor_xy=slice_xy(request.anchor_ras, stack),
        )
        recomputed = tuple(sorted(int(t) for t in result.recomputed))
        wanted = set(range(slices)) if request.send_all or switched else set(recomputed)
        for slice_result in result.slices:
            if int(slice_result.slice_index) in wanted - sent:
                send(slice_result)
        opened.serve(name)
        report = json_ready(result.report())
        if request.learned != name:
            report["notes"] = [*report.get("notes", []), LOST_LESSON]
        told = tuple(range(slices)) if switched else recomputed
        numbers, places, texts = pack_fates(result.fates, stack)
        seconds, anchor = float(result.seconds), center_ras(getattr(result, "center_xy", None), stack)
        asked = (request.request_id, request.volume_id)
        return m.Segmented(*asked, told, numbers, places, texts, seconds, str(result.device), report, anchor)

    def _answer_learn(self, request: m.Learn, stop: Stop) -> m.Learned:
        from SPDSegmentLib.inference.results import Call

        opened = self._opened(request.volume_id)
        clicks, corrected = _clicks_and_locked(request, opened.stack)
        call = Call(on_progress=_Throttle(request.request_id, self._emit), cancelled=stop)
        opened.served = None  # the session may decide slices that the caller is not told of
        in_use = opened.learned.get(request.learned)
        options = {"call": call, "anchor_xy": slice_xy(request.anchor_ras, opened.stack), "in_use": in_use}
        lesson = self._predictor.learn(opened.session, clicks, corrected, request.prompts, **options)
        if lesson.session is not None:
            opened.keep_learned(lesson.name, lesson.session)
        asked, slices = (request.request_id, request.volume_id), tuple(int(t) for t in lesson.slices)
        before, after, voxels = float(lesson.before), float(lesson.after), int(lesson.voxels)
        sentence = lesson.sentence + (f" {UNCOMPARED}" if request.learned and in_use is None else "")
        return m.Learned(*asked, lesson.name, slices, before, after, voxels, *pack_masks(lesson.changed), sentence)

    def _answer_suggest(self, request: m.Suggest, stop: Stop) -> m.Suggested:
        from SPDSegmentLib.geometry.centerline import clicks_from_points
        from SPDSegmentLib.inference.results import Call

        opened = self._opened(request.volume_id)
        if request.learned and request.learned not in opened.learned:
            raise BadInput(f"{LESSON_GONE}.", "Learn again, or segment without it.")
        session = opened.learned.get(request.learned, opened.session)
        call = Call(on_progress=_Throttle(request.request_id, self._emit), cancelled=stop)
        clicks = clicks_from_points(request.points_ras, opened.stack)
        found = self._predictor.suggest(session, clicks, request.count, call)
        index = np.array([s.slice_index for s in found], dtype=float)
        places = opened.stack.to_ras(index, np.array([s.xy for s in found], dtype=float))
        measures = [(s.disagreement, min(s.distance_mm, 1e6), s.score) for s in found]
        asked, slices = (request.request_id, request.volume_id), tuple(int(s.slice_index) for s in found)
        return m.Suggested(*asked, slices, *(np.array(of, dtype="<f8").reshape(-1, 3) for of in (places, measures)))

    def _answer_saliency(self, request: m.Saliency) -> m.SaliencyReady:
        opened = self._opened(request.volume_id)
        stack, session = opened.stack, opened.session
        if not 0 <= request.slice_index < stack.shape[0]:
            raise BadInput(f"The volume has no slice {request.slice_index}.")
        center = slice_xy(request.center_ras, stack)
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
        return opened


def _devices() -> tuple[m.Device, ...]:
    """The devices that the predictor can use; imports torch, for which there must be room."""
    limits.check_room_for_torch()
    from SPDSegmentLib.inference.engine import list_devices

    return tuple(m.Device(*device) for device in list_devices())


def _clicks_and_locked(request: m.Prompted, stack: SliceStack) -> tuple[Clicks, dict[int, np.ndarray]]:
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
        left, counts = json_ready(progress.seconds_left), (int(progress.done), int(progress.total))
        self._emit(m.Progress(self._request_id, str(progress.stage), *counts, None if left is None else float(left)))


def _slice_ready(request: m.Segment, result: Any) -> m.SliceReady:
    packed = pack_mask(np.asarray(result.mask, dtype=bool))
    quality = json_ready(None if result.quality is None else float(result.quality))
    place = (request.request_id, request.volume_id, int(result.slice_index))
    return m.SliceReady(*place, packed.shape, packed.box, packed.bits, quality, result.status)
