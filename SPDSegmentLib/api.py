"""Segmentation from Python: :func:`segment` for one case, :class:`InteractiveSegmenter` while clicks change.

Everything cheap is checked first; torch is loaded with the model, not with this module. ``spdsegment segment`` is a
command line around :func:`segment`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from SPDSegmentLib import __version__
from SPDSegmentLib.errors import BadInput, well_formed
from SPDSegmentLib.files import check_output, write_json
from SPDSegmentLib.geometry.centerline import clicks_from_markups, resolve_curve
from SPDSegmentLib.geometry.intensity import check_values
from SPDSegmentLib.geometry.labelmap import check_mask_output, write_labelmap
from SPDSegmentLib.geometry.markups import LIST, ControlPoint, Markup, are_numbers, insist_on, list_of, markups_of
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import Volume, volume_of
from SPDSegmentLib.models.bundle import Bundle, base_weights_for, find_bundle
from SPDSegmentLib.models.fit import fit_of_image

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from SPDSegmentLib.geometry.markups import Points
    from SPDSegmentLib.geometry.straighten import Straightened
    from SPDSegmentLib.geometry.volume import Image
    from SPDSegmentLib.inference.predictor import Predictor
    from SPDSegmentLib.inference.results import SegmentationProgress, SegmentationResult


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in memory, for many cases; made by :func:`load_model`."""

    bundle: Bundle
    predictor: Predictor


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What was segmented.

    Attributes:
        mask: (K, J, I) uint8, 0 or 1, on the voxels of the image.
        volume_ml: size of the mask.
        result: masks, quality and state of every slice, and the fate of every click.
        stack: the slices that ``result`` counts.
        settings: what was asked for.
        said_before: notes that ``on_note`` was told before the work.
    """

    mask: np.ndarray
    volume_ml: float
    result: SegmentationResult
    stack: SliceStack
    bundle: Bundle
    settings: Mapping[str, Any] = field(default_factory=dict)
    said_before: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """Sentences to read; those of ``doubts`` say that the mask must be looked at before it is used."""
        return self.result.notes

    @property
    def doubts(self) -> list[str]:
        """Why the mask must be looked at before it is used; empty where nothing speaks against it."""
        return self.result.doubts

    @functools.cached_property
    def straightened(self) -> Straightened:
        """The structure along its centerline, with areas, diameters and length (:mod:`geometry.straighten`).

        Raises:
            BadInput: the mask is empty.
        """
        from SPDSegmentLib.geometry.straighten import straighten

        return straighten(self.result.mask, self.stack)

    def report(self, full_paths: bool = False, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """JSON-ready: what was asked, the measured volume, every slice that is not empty, the fate of every click.

        Files are named without their folders, which may name a patient, unless ``full_paths``. Slices are counted in
        the stack (``slice``) and as the image numbers them (``slice_number``).
        """
        report = self.result.report()
        for entry in [*report.get("slices", []), *report.get("points", [])]:
            if 0 <= entry["slice"] < self.stack.n_slices:
                entry["slice_number"] = self.stack.slice_number(entry["slice"])
        asked = dict(self.settings if settings is None else settings)
        asked["model"] = Path(asked["model"])
        return {
            "spdsegment": __version__,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "request": {k: _shown(v, full_paths) if isinstance(v, Path) else v for k, v in asked.items()},
            "slicing": {"axis": "IJK"[self.stack.axis], "plane": self.stack.plane, "slices": self.stack.n_slices},
            "volume_ml": round(self.volume_ml, 3),
            **report,
        }

    def save(self, mask: str | Path, report: str | Path | None = None) -> None:
        """Write the mask (``.nii.gz``, ``.nii``, ``.nrrd``, ``.mha``, ``.seg.nrrd``) and the report (JSON).

        Raises:
            BadInput: a path that cannot be written; neither is then written.
        """
        check_mask_output(mask, self.stack.volume)
        if report is not None:
            check_output(Path(report), "report")
        info = self.bundle.info
        terminology = (info.terminology,) if info.terminology else None
        write_labelmap(mask, self.mask, self.stack.volume, (info.structure,), (info.color,), terminology)
        if report is not None:
            write_json(report, self.report(), "report")


def load_model(model: str | Path, device: str = "auto") -> LoadedModel:
    """Load a model once for many cases.

    Args:
        model: its name (``spdsegment models list``) or its folder.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:n``.

    Raises:
        ModelMissing, ModelCorrupt, DependencyMissing, DeviceUnavailable.
    """
    return _loaded(model, _bundle(model), device)


def segment(
    image: Image,
    points: Points,
    model: str | Path | LoadedModel,
    output: str | Path | None = None,
    *,
    ijk_to_ras: ArrayLike | None = None,
    frame: str = "RAS",
    series: str | None = None,
    frame_number: int | None = None,
    axis: str | None = None,
    prompts: str = "consensus",
    saliency_only: bool = False,
    insist: Sequence[str] = (),
    device: str = "auto",
    on_progress: Callable[[SegmentationProgress], None] | None = None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Segmentation:
    """Segment a structure from rough clicks along its centerline.

    >>> from SPDSegmentLib import segment
    >>> found = segment("abdomen.nii.gz", "clicks.mrk.json", "kidney-mr", output="kidney.seg.nrrd")
    >>> found.mask.shape
    (24, 64, 64)
    >>> found.report()["clicks"]
    {'kept': 4, 'rejected_own_slice': 1}

    From arrays, with clicks as voxels:

    >>> found = segment(array, [[27, 30, 10], [29, 30, 14]], "kidney-mr", ijk_to_ras=affine, frame="IJK")
    >>> int(found.mask[10, 30, 27])
    1

    Args:
        image: file, DICOM folder, SimpleITK image, :class:`Volume`, or an array (K, J, I) with ``ijk_to_ras``.
        points: markups file (``.mrk.json``, ``.fcsv``), its markups, or an array (N, 3) in ``frame``.
        model: name, folder, or what :func:`load_model` gave.
        output: where to write the mask; a path that cannot be written is refused before the work.
        ijk_to_ras: (4, 4), voxel indexes of an array to patient mm.
        frame: of points in an array: ``RAS`` or ``LPS`` in mm, or ``IJK``, voxel indexes.
        series: of a DICOM folder, the wanted series' UID or the end of it, its number or its description.
        frame_number: of a 4-D image, the wanted frame, from 1.
        axis: ``auto``, ``i``, ``j``, ``k``, ``axial``, ``coronal`` or ``sagittal``; None for the model's own plane.
        prompts: ``consensus``, ``local``, ``raw``, ``interpolated`` or ``sampled``.
        saliency_only: the thresholded saliency as the mask.
        insist: ids of clicks that prompt whatever the model believes.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:n``; of a loaded model its own is used.
        on_progress: called after each batch.
        on_note: told, before anything is computed, why the image may not be of the model's kind.

    Raises:
        SPDError: each kind, see :mod:`SPDSegmentLib.errors`.
    """
    if not are_numbers(points):
        markups = insist_on(markups_of(points), insist)
    bundle = _bundle(model)
    intensity = bundle.intensity()  # refused before the image is read
    volume = volume_of(image, ijk_to_ras, series, frame_number)
    if are_numbers(points):
        markups = insist_on([list_of(points, frame, volume)], insist)
    if output is not None:
        check_mask_output(output, volume)
    stack = SliceStack(volume, axis or bundle.info.slicing_axis)
    clicks = clicks_from_markups(markups, stack)
    check_values(volume.array, intensity, volume.name)
    doubts = tuple(fit_of_image(bundle.info, stack, clicks))
    for doubt in doubts:
        on_note(doubt)
    session = _loaded(model, bundle, device).predictor.open(stack)
    result = session.segment(clicks, prompts=prompts, saliency_only=saliency_only, on_progress=on_progress)
    settings = {
        "image": _named(image, volume), "points": Path(points) if isinstance(points, str | Path) else len(clicks),
        "model": _model_name(model), "output": None if output is None else Path(output), "prompts": prompts,
        "saliency_only": saliency_only, "insist": list(insist), "axis": axis, "series": series, "device": device,
        "frame_number": frame_number,
    }  # fmt: skip
    found = _segmentation(result, stack, bundle, settings, doubts)
    if output is not None:
        found.save(output)
    return found


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

    Slices that you correct are yours: updates leave them as they are until you release them.

    >>> mask = case.found.mask.copy()
    >>> mask[12] = 0
    >>> found = case.correct(mask)
    >>> case.corrected
    [12]
    >>> found = case.release()

    Args:
        image, model, ijk_to_ras, series, frame_number, axis, prompts, device: as for :func:`segment`.

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
        bundle = _bundle(model)
        volume = volume_of(image, ijk_to_ras, series, frame_number)
        self.stack = SliceStack(volume, axis or bundle.info.slicing_axis)
        self.model = _loaded(model, bundle, device)
        self.found: Segmentation | None = None
        self._prompts = prompts
        self._settings = {"image": _named(image, volume), "model": _model_name(model), "prompts": prompts, "axis": axis}
        self._session = self.model.predictor.open(self.stack)
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

    def add(self, points: Points, frame: str = "RAS", insist: bool = False) -> Segmentation:
        """Add clicks, as :func:`segment` takes them; a curve becomes one click a slice.

        Args:
            insist: they prompt whatever the model believes.
        """
        volume = self.stack.volume
        markups = [list_of(points, frame, volume)] if are_numbers(points) else markups_of(points)
        listed = [resolve_curve(markup, self.stack) for markup in markups if not markup.is_shape]
        used = [point for markup in listed for point in markup.points if point.placed and point.selected]
        names = [str(self._next_id + n) for n in range(len(used))]
        added = {n: replace(p, id=n, insisted=insist or p.insisted) for n, p in zip(names, used, strict=True)}
        found = self._update(self._points | added, self._corrected)
        self._next_id += len(used)
        return found

    def move(self, click: str, point: ArrayLike, frame: str = "RAS") -> Segmentation:
        """Move one click, by its id, to ``point`` (3,)."""
        (moved,) = list_of(np.reshape(np.asarray(point, dtype=float), (1, 3)), frame, self.stack.volume).points
        changed = replace(self._point(click), position_ras=moved.position_ras)
        return self._update(self._points | {click: changed}, self._corrected)

    def remove(self, *clicks: str) -> Segmentation:
        """Remove clicks by their ids; the last one cannot be removed."""
        gone = {self._point(click).id for click in clicks}
        return self._update({n: p for n, p in self._points.items() if n not in gone}, self._corrected)

    def correct(self, mask: np.ndarray) -> Segmentation:
        """Take over a corrected mask (K, J, I): slices that differ from the last one are yours from now on.

        Raises:
            BadInput: nothing was segmented yet, or the mask is of another shape.
        """
        if self.found is None:
            raise BadInput("There is no mask to correct.", "Add clicks first.")
        if np.shape(mask) != self.found.mask.shape:
            raise BadInput(
                f"The corrected mask has the shape {np.shape(mask)}, the image {self.found.mask.shape}.",
                "Change a copy of found.mask.",
            )
        given = self.stack.from_volume(np.asarray(mask) > 0)
        differ = np.flatnonzero((given != self.found.result.mask).any(axis=(1, 2)))
        return self._update(self._points, self._corrected | {int(t): given[t].copy() for t in differ})

    def release(self, *slices: int) -> Segmentation:
        """Give corrected slices back to the model; all where none is named."""
        left = {t: m for t, m in self._corrected.items() if slices and t not in slices}
        return self._update(self._points, left)

    def _point(self, click: str) -> ControlPoint:
        if click not in self._points:
            raise BadInput(f"There is no click '{click}'.", f"Known: {', '.join(self._points) or 'none'}.")
        return self._points[click]

    def _update(self, points: dict[str, ControlPoint], corrected: dict[int, np.ndarray]) -> Segmentation:
        clicks = clicks_from_markups([Markup("the clicks", LIST, tuple(points.values()))], self.stack)
        result = self._session.segment(clicks, prompts=self._prompts, locked=corrected)
        self._points, self._corrected = points, corrected
        settings = {**self._settings, "points": len(clicks), "corrected": sorted(corrected)}
        self.found = _segmentation(result, self.stack, self.model.bundle, settings)
        return self.found


def _segmentation(
    result: SegmentationResult,
    stack: SliceStack,
    bundle: Bundle,
    settings: Mapping[str, Any],
    said_before: tuple[str, ...] = (),
) -> Segmentation:
    mask = stack.to_volume(result.mask.astype(np.uint8))
    volume_ml = float(mask.sum()) * (stack.volume.voxel_mm3 / 1000)
    return Segmentation(mask, volume_ml, result, stack, bundle, settings, said_before)


def _bundle(model: str | Path | LoadedModel) -> Bundle:
    """The bundle of a model, whose base weights are here."""
    if isinstance(model, LoadedModel):
        return model.bundle
    bundle = find_bundle(model)
    base_weights_for(bundle)
    return bundle


def _loaded(model: str | Path | LoadedModel, bundle: Bundle, device: str) -> LoadedModel:
    if isinstance(model, LoadedModel):
        return model
    from SPDSegmentLib.inference.predictor import Predictor

    return LoadedModel(bundle, Predictor.load(bundle, device))


def _model_name(model: str | Path | LoadedModel) -> Path:
    return Path(model.bundle.info.name if isinstance(model, LoadedModel) else model)


def _named(image: Image, volume: Volume) -> Path | str:
    return Path(image) if isinstance(image, str | Path) else volume.name


def _shown(path: Path, full: bool) -> str:
    return well_formed(str(path) if full else path.name)
