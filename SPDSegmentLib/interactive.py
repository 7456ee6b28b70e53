"""One volume whose clicks change, from Python: :class:`InteractiveSegmenter`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from SPDSegmentLib.api import (
    LoadedModel,
    Segmentation,
    bundle_of,
    check_prompts,
    files_of,
    image_name,
    loaded,
    model_name,
    segmentation_of,
)
from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.centerline import Clicks, clicks_from_markups, clicks_from_points, resolve_curve
from SPDSegmentLib.geometry.markups import LIST, ControlPoint, Markup, are_numbers, list_of, markups_of
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import volume_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from SPDSegmentLib.geometry.markups import Points
    from SPDSegmentLib.geometry.volume import Image
    from SPDSegmentLib.inference.adaptation import Lesson
    from SPDSegmentLib.inference.session import Session


class InteractiveSegmenter:
    """One volume whose clicks change: only slices that a change reaches are computed again, all others stay.

    >>> from SPDSegmentLib import InteractiveSegmenter
    >>> case = InteractiveSegmenter("abdomen.nii.gz", "kidney-mr")
    >>> found = case.add([[-27, -30, 30], [-29, -30, 42], [-54, -5, 36]])
    >>> found.report()["clicks"]
    {'kept': 2, 'rejected_own_slice': 1}
    >>> list(case.clicks)
    ['1', '2', '3']
    >>> case.move("3", [-28, -30, 36]).report()["clicks"]
    {'kept': 3}
    >>> found = case.remove("2")
    >>> list(case.clicks)
    ['1', '3']

    A click can be the end of the structure: nothing is segmented past its slice.

    >>> bool(case.end("1").result.mask[:10].any())
    False

    Slices that you correct are yours: updates leave them as they are until you release them.

    >>> mask = case.found.mask.copy()
    >>> mask[12] = 0
    >>> found = case.correct(mask)
    >>> case.corrected
    [12]
    >>> found = case.release(case.corrected)

    Args:
        image, model, ijk_to_ras, series, frame_number, axis, prompts, device: as for :func:`segment`. An array that can
            be written into is copied.

    Attributes:
        found: the last segmentation; None before the first click.

    Raises:
        SPDError: as :func:`segment`. A call that fails leaves clicks and mask as they were.
    """

    def __init__(
        self,
        image: Image,
        model: str | Path | LoadedModel,
        *,
        ijk_to_ras: ArrayLike | None = None,
        series: str | None = None,
        frame_number: int | None = None,
        axis: str | None = None,
        prompts: str = "consensus",
        device: str = "auto",
    ) -> None:
        check_prompts(prompts)
        bundle = bundle_of(model)
        volume = volume_of(image, ijk_to_ras, series, frame_number)
        if not isinstance(image, str | Path) and volume.array.flags.writeable:
            volume = replace(volume, array=volume.array.copy())
        self.stack = SliceStack(volume, axis or bundle.info.slicing_axis)
        self.model = loaded(model, bundle, device)
        self.found: Segmentation | None = None
        self._prompts = prompts
        self._settings = {
            "image": image_name(image, volume),
            "model": model_name(model),
            "prompts": prompts,
            "axis": axis,
        }
        self._inputs = files_of(image)
        self._session = self._current = self.model.predictor.open(self.stack)
        self._points: dict[str, ControlPoint] = {}
        self._corrected: dict[int, np.ndarray] = {}
        self._next_id = 1

    @property
    def clicks(self) -> dict[str, tuple[float, float, float]]:
        """Positions in RAS mm by id."""
        return {name: point.position_ras for name, point in self._points.items()}

    @property
    def corrected(self) -> list[int]:
        """Slices of the stack that are yours."""
        return sorted(self._corrected)

    def add(self, points: Points, frame: str = "RAS", insist: bool = False, end: bool = False) -> Segmentation:
        """Add clicks, as :func:`segment` takes them; a curve becomes one click a slice.

        Args:
            insist: they prompt whatever the model believes.
            end: the structure ends at their slices: nothing is segmented past them.
        """
        volume = self.stack.volume
        markups = [list_of(points, frame, volume)] if are_numbers(points) else markups_of(points, frame)
        listed = [resolve_curve(markup, self.stack) for markup in markups if not markup.is_shape]
        used = [point for markup in listed for point in markup.points if point.is_used]
        names = [str(self._next_id + n) for n in range(len(used))]
        added = {
            n: replace(p, id=n, insisted=insist or p.insisted, ends=end or p.ends)
            for n, p in zip(names, used, strict=True)
        }
        self._inputs = tuple(dict.fromkeys((*self._inputs, *files_of(points))))
        found = self._update(self._points | added, self._corrected)
        self._next_id += len(used)
        return found

    def move(self, click: str | int, point: ArrayLike, frame: str = "RAS") -> Segmentation:
        """Move one click, by its id, to ``point`` (3,).

        Raises:
            BadInput: no such click, or not a finite point.
        """
        place: Any = [point]
        (moved,) = list_of(place, frame, self.stack.volume).points
        changed = replace(self._point(click), position_ras=moved.position_ras)
        return self._update(self._points | {changed.id: changed}, self._corrected)

    def end(self, click: str | int, ends: bool = True) -> Segmentation:
        """Say that the structure ends at the slice of a click, by its id, or take that back.

        Raises:
            BadInput: no such click.
        """
        changed = replace(self._point(click), ends=ends)
        return self._update(self._points | {changed.id: changed}, self._corrected)

    def remove(self, *clicks: str | int) -> Segmentation:
        """Remove clicks by their ids; the last one cannot be removed."""
        gone = {self._point(click).id for click in clicks}
        return self._update({n: p for n, p in self._points.items() if n not in gone}, self._corrected)

    def correct(self, mask: np.ndarray) -> Segmentation:
        """Take over a corrected mask (K, J, I): slices that differ from the last one are yours from now on.

        Raises:
            BadInput: nothing was segmented yet, the mask is of another shape, or its values are no finite numbers.
        """
        if self.found is None:
            raise BadInput("There is no mask to correct.", "Add clicks first.")
        if np.shape(mask) != self.found.mask.shape:
            raise BadInput(
                f"The corrected mask has the shape {np.shape(mask)}, the image {self.found.mask.shape}.",
                "Change a copy of found.mask.",
            )
        mask = np.asarray(mask)
        if mask.dtype.kind not in "biuf" or not np.isfinite(mask).all():
            raise BadInput("The corrected mask has values that are no finite numbers.", "Use 0 for the background.")
        given = self.stack.from_volume(mask > 0)
        differ = np.flatnonzero((given != self.found.result.mask).any(axis=(1, 2)))
        return self._update(self._points, self._corrected | {int(t): given[t].copy() for t in differ})

    def suggest(self, dismissed: ArrayLike | Sequence[ArrayLike] = ()) -> list[float] | None:
        """Where one more click would help most, in RAS mm; None where the model agrees with itself everywhere.

        Add it, moved if it lies beside the structure, with ``insist=True``.

        Args:
            dismissed: places (3,) in RAS mm where you want no click, or one place.

        Raises:
            BadInput: nothing was segmented yet, a place is no finite point, or the mask is the thresholded saliency.
        """
        from SPDSegmentLib.prompts.distillation import SALIENCY_ONLY

        if self._prompts == SALIENCY_ONLY:
            raise BadInput(
                "The mask is the thresholded saliency, for which no click is suggested.",
                "Open the image with another strategy, such as prompts='consensus'.",
            )
        if self.found is None:
            raise BadInput("There is no mask to improve.", "Add clicks first.")
        given: Any = np.array(dismissed, dtype=object)
        if given.ndim == 1 and len(given):
            given = [dismissed]  # one place
        refused = list_of(given, "RAS", self.stack.volume).points if np.size(given) else ()
        places = [*self.clicks.values(), *(point.position_ras for point in refused)]
        extent = self._clicks_of(self._points).extent(self.stack.n_slices)
        self._current.extent = extent  # a call that failed may have left it at other ends
        found = self.model.predictor.suggest(self._current, clicks_from_points(np.array(places), self.stack))
        if not found:
            return None
        place: list[float] = self.stack.to_ras(np.array([found[0].slice_index]), np.array([found[0].xy]))[0].tolist()
        return place

    def learn(self) -> Lesson:
        """Let the model learn from your corrected slices, for this volume alone; nothing changes until :meth:`apply`.

        >>> lesson = case.learn()                                                       # doctest: +SKIP
        >>> lesson.sentence                                                             # doctest: +SKIP
        'Learned from 4 corrected slices: the mean Dice of those left out rises from 0.812 to 0.851; ...'
        >>> found = case.apply(lesson)                                                  # doctest: +SKIP
        >>> found = case.forget()                                                       # doctest: +SKIP

        Raises:
            BadInput: fewer than two corrected slices, or a model or a strategy that cannot learn so.
        """
        clicks = self._clicks_of(self._points)
        return self.model.predictor.learn(self._session, clicks, self._corrected, self._prompts, in_use=self._current)

    def apply(self, lesson: Lesson) -> Segmentation:
        """Segment under what was learned, from now on.

        Raises:
            BadInput: nothing was gained by it, or it was not learned by this object.
        """
        if lesson.session is None:
            raise BadInput(lesson.sentence, "Correct more slices.")
        if lesson.session.stack is not self.stack:
            raise BadInput(
                "This was learned from another volume, or by an earlier object for the same one.",
                "Correct slices of this one and apply what its own learn() gives.",
            )
        return self._update(self._points, self._corrected, lesson.session)

    def forget(self) -> Segmentation:
        """Forget what was learned: the masks are the model's own again, corrected slices stay yours."""
        return self._update(self._points, self._corrected, self._session)

    def release(self, *slices: int | Iterable[int]) -> Segmentation:
        """Give corrected slices back to the model, by their numbers or lists of them; an empty list releases none.

        Raises:
            BadInput: nothing was named, or a slice that is not yours.
        """
        if not slices:
            raise BadInput("No slice was named.", "Name slices, or release all with case.release(case.corrected).")
        listed = [[t] if isinstance(t, str) or not isinstance(t, Iterable) else list(t) for t in slices]
        named = [t for given in listed for t in given]
        for t in named:
            if t not in self.corrected:
                known = ", ".join(map(str, self.corrected)) or "none"
                raise BadInput(f"There is no corrected slice '{t}'.", f"Give numbers as in case.corrected: {known}.")
        return self._update(self._points, {t: m for t, m in self._corrected.items() if t not in named})

    def _point(self, click: str | int) -> ControlPoint:
        if str(click) not in self._points:
            raise BadInput(f"There is no click '{click}'.", f"Known: {', '.join(self._points) or 'none'}.")
        return self._points[str(click)]

    def _clicks_of(self, points: Mapping[str, ControlPoint]) -> Clicks:
        return clicks_from_markups([Markup("the clicks", LIST, tuple(points.values()))], self.stack)

    def _update(
        self, points: dict[str, ControlPoint], corrected: dict[int, np.ndarray], session: Session | None = None
    ) -> Segmentation:
        clicks = self._clicks_of(points)
        session = session or self._current
        result = session.segment(clicks, prompts=self._prompts, locked=corrected)
        if self.found is not None:  # made by another session perhaps, or before a call that failed
            result = result.after(self.found.result)
        self._points, self._corrected, self._current = points, corrected, session
        settings = {**self._settings, "points": len(clicks), "corrected": sorted(corrected)}
        self.found = segmentation_of(result, self.stack, self.model.bundle, settings, self._inputs)
        return self.found
