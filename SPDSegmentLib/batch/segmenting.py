"""One case from files to a file, through a background worker."""

from __future__ import annotations

import functools
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from SPDSegmentLib.batch.cases import BatchCase, BatchModel
from SPDSegmentLib.errors import (
    BadInput,
    Cancelled,
    DependencyMissing,
    DeviceUnavailable,
    ModelCorrupt,
    ModelMissing,
    SPDError,
)
from SPDSegmentLib.files import check_output
from SPDSegmentLib.geometry.centerline import clicks_from_markups, resolve_curve
from SPDSegmentLib.geometry.labelmap import SUFFIXES, check_mask_output, measure, write_labelmap
from SPDSegmentLib.geometry.markups import mark_clicks, read_markups
from SPDSegmentLib.geometry.slices import AXES, SliceStack
from SPDSegmentLib.geometry.volume import Volume, check_image, read_volume
from SPDSegmentLib.models.fit import fit_of_image
from SPDSegmentLib.prompts.distillation import SALIENCY_ONLY, STRATEGIES
from SPDSegmentLib.prompts.fates import Fate, SliceStatus, best_fates, review
from SPDSegmentLib.settings import check_choice, check_device
from SPDSegmentLib.worker.client import ModelChoice, WorkerClient
from SPDSegmentLib.worker.health import NotInstalled
from SPDSegmentLib.worker.messages import Segmented, SliceReady, StatusReply
from SPDSegmentLib.worker.payloads import unpack_mask

if TYPE_CHECKING:
    from SPDSegmentLib.geometry.dicom_frames import Frame
    from SPDSegmentLib.worker.client import Request

_COUNTED = {
    Fate.KEPT: "clicks_kept", Fate.INSISTED: "clicks_insisted", Fate.BORROWED: "clicks_borrowed",
    Fate.REJECTED_OWN_SLICE: "clicks_rejected", Fate.PAST_END: "clicks_past_end", Fate.OUTSIDE: "clicks_outside",
    Fate.SYNTHESIZED: "points_synthesized",
}  # fmt: skip
DICOM_SUFFIXES = {"dicom_seg": ".seg.dcm", "rtstruct": ".rtstruct.dcm"}
_numbers = itertools.count(1)


class WorkerLacks(DependencyMissing):
    """A Python package that the worker needs for every case."""


FOR_NO_CASE = (DeviceUnavailable, ModelMissing, ModelCorrupt, WorkerLacks, NotInstalled)
"""Errors of a worker that can segment no case at all: the batch ends with the first one."""


@dataclass(frozen=True)
class BatchSettings:
    """How the cases of a batch are segmented.

    Attributes:
        axis: slicing axis as in ``geometry.slices.SliceStack``; empty for the model's own plane.
        prompts: strategy of the predictor.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:n``; results do not depend on it.
        suffix: of the masks.
        saliency_only: take the thresholded saliency as the mask.
        insist: ids of clicks of every case that prompt whatever the model believes.
        ends: ids of clicks of every case at whose slices the structure ends.
        series, frame: wanted series of DICOM folders and frame of 4-D images, for cases that name none.
        dicom: what is written beside the masks, of ``dicom_seg`` and ``rtstruct``.
        full_paths: name files in the report with their folders.
    """

    axis: str = ""
    prompts: str = "consensus"
    device: str = "auto"
    suffix: str = ".seg.nrrd"
    saliency_only: bool = False
    insist: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    series: str = ""
    frame: int = 0
    dicom: tuple[str, ...] = ()
    full_paths: bool = False

    def key(self, model: BatchModel) -> dict[str, str]:
        """The settings that a result depends on; series and frame are those of the case."""
        said = {"axis": self.axis or model.axis, "prompts": self.prompts, "suffix": self.suffix}
        if self.saliency_only:
            said["prompts"] = SALIENCY_ONLY
        said |= {"insist": ",".join(sorted(self.insist))} if self.insist else {}
        said |= {"ends": ",".join(sorted(self.ends))} if self.ends else {}
        return said | ({"dicom": ",".join(sorted(self.dicom))} if self.dicom else {})

    def beside(self, case: BatchCase) -> dict[str, str]:
        """Names of the DICOM files of a case, by what they are."""
        return {kind: f"{case.file_name}{DICOM_SUFFIXES[kind]}" for kind in self.dicom}


@dataclass(frozen=True, eq=False)
class CaseResult:
    """What was segmented.

    Attributes:
        figures: columns of the report.
        fates: what became of every click, JSON-ready.
        details: the predictor's own report.
        write: writes the mask to a path.
        beside: by the names of further files, what writes each.
    """

    figures: dict[str, Any]
    fates: list[dict[str, Any]]
    details: dict[str, Any]
    write: Callable[[Path], None]
    beside: dict[str, Callable[[Path], None]] = field(default_factory=dict)


def cards_of(client: WorkerClient) -> list[str]:
    """The graphics cards that a worker can use, by the names of devices; none where it cannot say.

    One with less than half as much free memory as another, as a small one for the screen has, is left out.
    """
    try:
        answer = client.wait(client.status(probe=True))
    except SPDError:
        return []
    devices = answer.devices if isinstance(answer, StatusReply) else None
    free = {device.name: device.free_bytes or 0 for device in devices or () if device.name.startswith("cuda")}
    return [name for name, count in free.items() if 2 * count >= max(free.values())]


class Cards:
    """Gives each worker of a batch a graphics card in turn, where several can be used and none was named.

    Args:
        device: of the batch; one with a number, and the CPU, is what every worker gets.
        find: lists the cards; asked once, of the first worker that segments a case.
    """

    def __init__(self, device: str, find: Callable[[WorkerClient], Sequence[str]] = cards_of) -> None:
        self._device = device
        self._find = find
        self._turns: Iterator[str] | None = None
        self._lock = threading.Lock()

    def next(self, client: WorkerClient) -> str:
        """The device of one more worker."""
        if self._device not in ("auto", "cuda"):
            return self._device
        with self._lock:
            if self._turns is None:
                found = list(self._find(client))
                self._turns = itertools.cycle([self._device] if found in ([], ["cuda:0"]) else found)
            return next(self._turns)


class CaseSegmenter:
    """Segments cases, one after the other, with one worker that stays warm between them.

    Args:
        client: of the worker; all calls come from the thread that uses this object.
        stopped: polled; true cancels the case under way.
        on_note: told, before a case is segmented, why its image may not be of the model's kind.
        cards: shares the graphics cards among the workers; without them the worker takes the device of the settings.
    """

    def __init__(
        self,
        client: WorkerClient,
        model: BatchModel,
        settings: BatchSettings,
        stopped: Callable[[], bool] = lambda: False,
        on_note: Callable[[str], object] = lambda note: None,
        cards: Cards | None = None,
    ) -> None:
        self._client = client
        self._model = model
        self._settings = settings
        self._stopped = stopped
        self._on_note = on_note
        self._cards = cards
        self._device = "" if cards else settings.device
        self._replaced = False

    def __call__(self, case: BatchCase, output: Path) -> CaseResult:
        """Segment a case; nothing is written yet, but that ``output`` can be is found out first.

        Raises:
            SPDError: what cannot be used, or what went wrong; those of ``FOR_NO_CASE`` concern every case.
            Cancelled: somebody stopped it.
        """
        if self._replaced:
            raise self._other_model()
        volume = read_volume(case.image, case.series or None, case.frame or None)
        check_image(volume)
        axis = self._settings.axis or self._model.axis
        stack = SliceStack(volume, axis)
        markups = mark_clicks(read_markups(case.points), self._settings.insist, self._settings.ends)
        clicks = clicks_from_markups(markups, stack)
        check_mask_output(output, volume)
        source = self._source(case, output)
        doubts = fit_of_image(self._model.info, stack, clicks) if self._model.info is not None else []
        if doubts:
            self._on_note(f"{case.name}: {' '.join(doubts)}")
        self._client.reset()  # workers that died on other cases do not count
        if self._cards is not None and not self._device:
            self._device = self._cards.next(self._client)
        self._client.set_model(ModelChoice(self._model.key, self._device))
        name = f"batch {next(_numbers)}"
        self._client.open_volume(name, volume.array, volume.ijk_to_ras, axis)
        try:
            prompts = SALIENCY_ONLY if self._settings.saliency_only else self._settings.prompts
            on_slices = [resolve_curve(markup, stack) for markup in markups]
            request = self._client.segment(name, on_slices, prompts=prompts, send_all=True)
            self._wait(request)
        finally:
            self._client.close_volume(name)
        try:
            answer = request.result()
        except DependencyMissing as error:
            raise WorkerLacks(error.message, error.remedy, error.details) from error
        if not isinstance(answer, Segmented) or len(request.slices) != stack.n_slices:
            raise SPDError(f"The worker returned {len(request.slices)} of {stack.n_slices} slices.", "Run again.")
        used, known = (answer.report.get("model") or {}).get("digest", ""), self._model.digest
        if used and used != known and len(used) == len(known):  # a remote model is known by its name alone
            self._replaced = True
            raise self._other_model()
        return self._result(volume, stack, request.slices, answer, case, source)

    def _other_model(self) -> BadInput:
        return BadInput(
            f"The model {self._model.name} was replaced while the batch ran.",
            "Run the same command again; what was made with the former one is done again.",
        )

    def _source(self, case: BatchCase, output: Path) -> list[Frame]:
        """The frames that DICOM files of a case refer to; none where none are wanted."""
        for name in self._settings.beside(case).values():
            check_output(output.with_name(name), "DICOM file")
        if not self._settings.dicom:
            return []
        from SPDSegmentLib.geometry.dicom_objects import source_of

        with_highdicom = "dicom_seg" in self._settings.dicom
        return source_of(Path(case.image), case.series or None, with_highdicom, case.frame or None)

    def close(self) -> None:
        """End the worker."""
        self._client.close()

    def _wait(self, request: Request) -> None:
        try:
            while not request.finished:
                self._client.poll(0.2)
                if self._stopped():
                    self._client.cancel(request)
        except KeyboardInterrupt:
            self._client.cancel(request)
            raise Cancelled() from None

    def _result(
        self,
        volume: Volume,
        stack: SliceStack,
        slices: dict[int, SliceReady],
        answer: Segmented,
        case: BatchCase,
        source: Sequence[Frame],
    ) -> CaseResult:
        mask = np.zeros(stack.shape, dtype=bool)
        for t, ready in slices.items():
            mask[t] = unpack_mask(ready.packed)
        labels = stack.to_volume(mask.astype(np.uint8))
        fates = best_fates(answer.fates)
        notes = [str(note) for note in answer.report.get("notes", ())]
        beside = self._beside(case, labels, volume, source) if mask.any() else {}
        if source and not beside:
            notes.append("Nothing was segmented, so that there is no DICOM object.")
        figures = {
            "notes": " ".join(notes),
            **{kind: name for kind, name in self._settings.beside(case).items() if name in beside},
            **_figures(mask, stack, slices),
            "doubtful_slices": len(
                review(
                    {t: (ready.status, ready.quality) for t, ready in slices.items()},
                    [(fate.slice_index, fate.fate) for fate in fates if fate.click_id],
                ).doubtful
            ),
            **_promised(answer.report.get("quality")),
            **dict.fromkeys(_COUNTED.values(), 0),
            **{_COUNTED[fate]: count for fate, count in Counter(fate.fate for fate in fates).items()},
            "device": answer.device,
        }
        model = self._model
        terminology = (model.terminology,) if model.terminology else None

        def write(path: Path) -> None:
            write_labelmap(path, labels, volume, (model.structure,), (model.color,), terminology)

        listed = [
            {
                "id": fate.click_id,
                "fate": fate.fate,
                "slice_number": stack.slice_number(fate.slice_index)
                if 0 <= fate.slice_index < stack.n_slices
                else None,
                "position_ras": [round(float(value), 3) if np.isfinite(value) else None for value in fate.position_ras],
                "reason": fate.reason,
            }
            for fate in fates
        ]
        return CaseResult(figures, listed, answer.report, write, beside)

    def _beside(
        self, case: BatchCase, labels: np.ndarray, volume: Volume, source: Sequence[Frame]
    ) -> dict[str, Callable[[Path], None]]:
        """What writes the DICOM files of a case, by their names."""
        if not source:
            return {}
        from SPDSegmentLib.geometry.dicom_objects import write_dicom_seg, write_rtstruct
        from SPDSegmentLib.models.bundle_info import drawn_structure

        model, prompts = self._model, self._settings.key(self._model)["prompts"]
        structure = drawn_structure(
            model.structure, model.terminology, model.color, model.name, labels, volume, prompts
        )
        writers = {"dicom_seg": write_dicom_seg, "rtstruct": write_rtstruct}
        return {
            name: functools.partial(writers[kind], mask_kji=labels, volume=volume, source=source, structure=structure)
            for kind, name in self._settings.beside(case).items()
        }


def _figures(mask: np.ndarray, stack: SliceStack, slices: dict[int, SliceReady]) -> dict[str, Any]:
    found = measure(mask, (0, 0, 0), stack)
    looked_at = [ready for ready in slices.values() if ready.status is not SliceStatus.EMPTY]
    qualities = [ready.quality for ready in looked_at if ready.quality is not None]
    return {
        "volume_ml": round(found.volume_ml, 3),
        "length_mm": round(found.length_mm, 1),
        "mean_diameter_mm": round(found.mean_diameter_mm, 1),
        "largest_diameter_mm": round(found.largest_diameter_mm, 1),
        "voxels": int(mask.sum()),
        "quality": round(sum(qualities) / len(qualities), 3) if qualities else "",
    }


def _promised(quality: Any) -> dict[str, Any]:
    """Predicted Dice and its lower bound, or why there is none, of what the worker reports."""
    if not isinstance(quality, dict):
        return {"dice": "", "dice_at_least": ""}
    bound = quality["at_least"]
    missing = "too few patients" if quality["patients"] else "not calibrated"
    return {"dice": round(quality["predicted_dice"], 3), "dice_at_least": missing if bound is None else round(bound, 3)}


def check_settings(settings: BatchSettings) -> None:
    """Raise BadInput for settings that no case could be segmented with."""
    if settings.suffix not in SUFFIXES:
        raise BadInput(f"'{settings.suffix}' is no file format for masks.", f"Use one of {', '.join(SUFFIXES)}.")
    check_choice(settings.axis or AXES[0], AXES, "slicing axis")
    check_choice(settings.prompts, (*STRATEGIES, SALIENCY_ONLY), "prompt strategy")
    check_device(settings.device)
    for kind in settings.dicom:
        check_choice(kind, DICOM_SUFFIXES, "kind of DICOM file")
