"""One call of the predictor and what it returns: masks, quality, the state of every slice, the fate of every point."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from SPDSegmentLib.errors import Cancelled
from SPDSegmentLib.geometry.centerline import SAME_PATIENT, Clicks
from SPDSegmentLib.geometry.window import InputWindow
from SPDSegmentLib.models.fit import QualityEstimate, estimate, slice_estimate
from SPDSegmentLib.prompts.distillation import Distillation
from SPDSegmentLib.prompts.fates import Fate, PointFate, SliceStatus
from SPDSegmentLib.prompts.strategies import NEAREST_REASON, rests_on_distillation

UNREMARKABLE_SLICES, UNREMARKABLE_SHARE = 3, 0.25
"""A mask may go on past the outermost click by so many slices, or this share of the clicks' extent, without a note."""
BEYOND_VOLUME, BEYOND_VIEW = "Outside the volume.", "Outside the model's field of view."
PAST_END = "Past the end that you marked."
NAMED = 5
"""So many clicks are named in a note."""
LEAST_UNSEEN, LEAST_UNSEEN_SHARE = 3, 0.25
"""So many clicks, and this share of those in the volume, beyond the field of view are no slips of the hand."""


@dataclass(frozen=True)
class SegmentationProgress:
    """Where a segmentation is.

    Attributes:
        stage: ``encoding`` or ``decoding``.
        done, total: slices.
        seconds_left: estimate, ``None`` while there is none.
    """

    stage: str
    done: int
    total: int
    seconds_left: float | None = None


@dataclass(frozen=True, eq=False)
class SliceResult:
    """One slice.

    Attributes:
        slice_index: position in the stack.
        mask: (H, W) bool; nobody may write into it, because what did not change is handed out again.
        quality: predicted IoU in [0, 1]; 0 where nothing was segmented, None where nothing predicts it.
    """

    slice_index: int
    mask: np.ndarray
    quality: float | None
    status: SliceStatus

    def __post_init__(self) -> None:
        self.mask.setflags(write=False)

    @functools.cached_property
    def pixels(self) -> int:
        """Pixels of the mask."""
        return int(np.count_nonzero(self.mask))

    def same_as(self, other: SliceResult) -> bool:
        """Whether nothing differs."""
        if self is other:
            return True
        return (self.quality, self.status) == (other.quality, other.status) and np.array_equal(self.mask, other.mask)


@dataclass(frozen=True, eq=False)
class SegmentationResult:
    """A whole volume.

    Attributes:
        recomputed: slices that this call decoded or changed, sorted; all others are bit-identical to the last call's.
        encoded: number of slices that this call had to encode.
        notes: sentences that the user should read (clicks outside, field of view moved, ...).
        doubts: those of the notes for which the result must be looked at before it is used.
        center_xy: middle of the field of view, (column, row) in slice pixels.
        calibration: of the model for what was asked, see :func:`SPDSegmentLib.models.fit.calibration_for`.
    """

    slices: list[SliceResult]
    fates: list[PointFate]
    recomputed: list[int]
    encoded: int
    seconds: float
    device: str
    model: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    center_xy: tuple[float, float] | None = None
    doubts: list[str] = field(default_factory=list)
    calibration: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def mask(self) -> np.ndarray:
        """The slices' masks as one, (T, H, W) bool."""
        return np.stack([s.mask for s in self.slices])

    @functools.cached_property
    def quality(self) -> QualityEstimate | None:
        """Predicted Dice of what the model segmented, with its lower bound; None where that is nothing or saliency."""
        own = [s for s in self.slices if s.pixels and s.status is not SliceStatus.LOCKED]
        return estimate(self.calibration, [s.quality for s in own], [s.pixels for s in own])

    def after(self, last: SegmentationResult) -> SegmentationResult:
        """The same, with all slices that differ from those of ``last`` among the recomputed."""
        differ = {new.slice_index for old, new in zip(last.slices, self.slices, strict=True) if not new.same_as(old)}
        return replace(self, recomputed=sorted(differ.union(self.recomputed)))

    def click_fates(self) -> dict[int, PointFate]:
        """For every click the decision about its own slice."""
        return {fate.click: fate for fate in self.fates if fate.is_own}

    def _dice_of(self, part: SliceResult) -> dict[str, float | None]:
        if not part.pixels or part.quality is None or part.status is SliceStatus.LOCKED:
            return {}
        predicted, at_least = slice_estimate(self.calibration, part.quality)
        return {"dice": round(predicted, 4), "dice_at_least": None if at_least is None else round(at_least, 4)}

    def report(self) -> dict[str, Any]:
        """JSON-ready summary: model, counts, every slice that is not empty, every decision about a point."""
        return {
            "model": self.model,
            "device": self.device,
            "seconds": round(self.seconds, 3),
            "slices_encoded": self.encoded,
            "slices_recomputed": self.recomputed,
            "notes": self.notes,
            "doubts": self.doubts,
            "quality": None if self.quality is None else self.quality.report(),
            "clicks": dict(Counter(str(fate.fate) for fate in self.click_fates().values())),
            "slice_status": dict(Counter(str(s.status) for s in self.slices)),
            "slices": [
                {
                    "slice": s.slice_index,
                    "status": str(s.status),
                    "quality": None if s.quality is None else round(s.quality, 4),
                    **self._dice_of(s),
                    "pixels": s.pixels,
                }
                for s in self.slices
                if s.pixels or s.status not in (SliceStatus.EMPTY, SliceStatus.ABSTAINED)
            ],
            "points": [
                {
                    "click": f.click,
                    "id": f.click_id,
                    "slice": f.slice_index,
                    "fate": str(f.fate),
                    "column_row": [round(f.xy[0], 2), round(f.xy[1], 2)],
                    "from_slice": f.from_slice,
                    "reason": f.reason,
                }
                for f in self.fates
                if f.fate is not Fate.REJECTED_NEIGHBOR
            ],
        }


def note_unsupported(distillation: Distillation, strategy: str) -> list[str]:
    """What the user should know where the consensus rests on no click."""
    if not rests_on_distillation(strategy) or any(p.status is SliceStatus.SUPPORTED for p in distillation.slices):
        return []
    if any(fate.reason == NEAREST_REASON for fate in distillation.fates):
        return ["The model supports no click; what lies nearest to all of them was segmented. Check that it is right."]
    return ["The model supports no click and found nothing near them to segment. Check the model, or click closer."]


def note_beyond(clicked: np.ndarray, results: Iterable[SliceResult]) -> list[str]:
    """What the user should know where the mask was followed far past the first or the last click."""
    first, last = int(clicked.min()), int(clicked.max())
    allowed = max(UNREMARKABLE_SLICES, UNREMARKABLE_SHARE * (last - first))
    past = (
        (max(first - r.slice_index, r.slice_index - last), r) for r in results if r.status is not SliceStatus.LOCKED
    )
    beyond = max((slices for slices, r in past if slices > allowed and r.pixels), default=0)
    if not beyond:
        return []
    return [
        f"The mask goes on for up to {beyond} slices past the outermost clicks. Check its ends; a click can mark one."
    ]


def note_gain(gain: float) -> list[str]:
    """What the user should know of a field of view that was scaled to the brightness usual in training."""
    if gain == 1:
        return []
    return [
        "The field of view is darker than those the model was trained on, which something bright elsewhere in the "
        f"volume may cause; the model is shown it {gain:.1f} times brighter."
    ]


def note_outside(fates: Iterable[PointFate]) -> list[str]:
    """What the user should know of clicks that could not be used."""
    notes = []
    left_out = [fate for fate in fates if fate.fate is Fate.OUTSIDE]
    for reason, where in ((BEYOND_VOLUME, "the volume"), (BEYOND_VIEW, "the model's field of view")):
        names = list(dict.fromkeys(f.click_id or str(f.click) for f in left_out if f.reason == reason))
        if names:
            said = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
            notes.append(f"Clicks outside {where} ({len(names)}) were left out: {said}.")
    return notes


def doubts_of_places(clicks: Clicks, seen: np.ndarray, window: InputWindow, pixel_mm: float) -> list[str]:
    """Why a result must be looked at because of where the clicks lie; none where only few lie elsewhere.

    Args:
        seen: indexes of the clicks that lie in the volume and in the field of view.
        pixel_mm: width of a slice's pixels.
    """
    lists = dict(zip(clicks.ids, clicks.lists or ("",) * len(clicks), strict=True))  # of a curve each point counts once
    several = len({*lists.values()}) > 1
    within = {clicks.ids[n] for n in np.flatnonzero(~clicks.outside)}
    beyond, unseen = lists.keys() - within, within - {clicks.ids[n] for n in seen}
    view = f"{window.size * window.scale_xy[0] * pixel_mm:.0f} mm view"
    alone = "each list by itself" if several else "the clicks of each structure by themselves"
    doubts = []
    if len(beyond) >= len(within) or _has_whole_list(lists, beyond):
        doubts.append(f"{_some_of(lists, beyond)} outside the volume. {SAME_PATIENT}")
    many = len(unseen) >= LEAST_UNSEEN and len(unseen) >= LEAST_UNSEEN_SHARE * len(within)
    if many or _has_whole_list({name: lists[name] for name in within}, unseen):
        doubts.append(
            f"{_some_of(lists, unseen)} outside the model's {view} of the others, so nothing was segmented there. "
            f"Segment {alone}."
        )
    return doubts


def _has_whole_list(lists: Mapping[str, str], clicks: Collection[str]) -> bool:
    """Whether one of several lists has all its clicks among these; ``lists`` are the names of lists by click."""
    left = {name for click, name in lists.items() if click not in clicks}
    return not left.issuperset(lists.values())


def _some_of(lists: Mapping[str, str], clicks: Collection[str]) -> str:
    """So many of all clicks, of which lists where there are several."""
    counts = Counter(name for click, name in lists.items() if click in clicks)
    named = ", ".join(f"{count} in list '{name}'" for name, count in counts.items())
    of_lists = f" ({named})" if len({*lists.values()}) > 1 else ""
    return f"{len(clicks)} of {len(lists)} clicks{of_lists} {'lies' if len(clicks) == 1 else 'lie'}"


def fates_of_points(
    clicks: Clicks, seen: np.ndarray, distillation: Distillation, window: InputWindow
) -> list[PointFate]:
    """The fates of a distillation's points in slice pixels, by the given clicks, and those of clicks it did not see.

    Args:
        seen: index of each of the distillation's clicks among ``clicks``.
    """
    places = window.to_slice(np.array([fate.xy for fate in distillation.fates]).reshape(-1, 2))
    results = []
    for fate, (column, row) in zip(distillation.fates, places.tolist(), strict=True):
        click = int(seen[fate.click]) if fate.click >= 0 else -1
        name = clicks.ids[click] if click >= 0 else ""
        results.append(replace(fate, click=click, xy=(column, row), click_id=name))
    for click in np.setdiff1d(np.arange(len(clicks.slice_index)), seen).tolist():
        results.append(_left_out(clicks, click, Fate.OUTSIDE, BEYOND_VOLUME if clicks.outside[click] else BEYOND_VIEW))
    return results


def fates_of_given(fates: Iterable[PointFate], given: Clicks, extent: range) -> list[PointFate]:
    """Fates by all clicks ``given``: what became of those within ``extent``, and of those past it."""
    past = given.past(extent)
    kept = np.flatnonzero(~past).tolist()
    results = [replace(fate, click=kept[fate.click]) if fate.click >= 0 else fate for fate in fates]
    return results + [_left_out(given, click, Fate.PAST_END, PAST_END) for click in np.flatnonzero(past).tolist()]


def _left_out(clicks: Clicks, click: int, fate: Fate, reason: str) -> PointFate:
    """The fate of a click that no slice is asked about."""
    t, (column, row) = int(clicks.slice_index[click]), clicks.xy[click].tolist()
    return PointFate(click, t, fate, (column, row), t, reason, clicks.ids[click])


def note_ends(clicks: Clicks, extent: range, n_slices: int) -> list[str]:
    """What the user should know where clicks are marked as ends, and none of them bounds anything."""
    marked = set(clicks.slice_index[clicks.ends & ~clicks.outside].tolist())
    if not marked or marked & {0, n_slices - 1} or extent != range(n_slices):
        return []
    return ["The marked end bounds nothing: as many other clicks lie on either side of it. Mark the outermost click."]


def note_learned(learned: Mapping[str, Any] | None) -> list[str]:
    """What the user should know of a result under what a person's corrections taught; ``learned`` of the identity."""
    if not learned:
        return []
    return [
        f"The model was adapted to {learned['slices']} slices of this volume that were corrected by hand; "
        "how good its estimates of quality are then has not been measured."
    ]


OnSlice = Callable[[SliceResult], None]
OnProgress = Callable[[SegmentationProgress], None]


class Call:
    """Progress and cancellation of one call."""

    def __init__(
        self,
        on_slice: OnSlice | None = None,
        on_progress: OnProgress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self.on_slice = on_slice or (lambda result: None)
        self.on_progress = on_progress or (lambda progress: None)
        self.cancelled = cancelled or (lambda: False)
        self.started = time.monotonic()
        self._done = {"encoding": 0, "decoding": 0}
        self._total = {"encoding": 0, "decoding": 0}
        self._begun: dict[str, float] = {}

    def check(self) -> None:
        """Raise when the user cancelled."""
        if self.cancelled():
            raise Cancelled()

    def expect(self, stage: str, slices: int) -> None:
        """Announce more slices of a stage."""
        self._total[stage] += slices
        self._begun.setdefault(stage, time.monotonic())

    @property
    def seconds(self) -> float:
        """Time since the call began."""
        return time.monotonic() - self.started

    def advance(self, stage: str, slices: int) -> None:
        """Report that so many more slices of a stage, encoding or decoding, are done."""
        self._done[stage] += slices
        done, total = self._done[stage], max(self._total[stage], self._done[stage])
        seconds = time.monotonic() - self._begun.get(stage, self.started)
        self.on_progress(SegmentationProgress(stage, done, total, seconds / done * (total - done)))
