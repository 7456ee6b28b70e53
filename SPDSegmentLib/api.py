"""Segmentation from Python: :func:`segment` for one case; while clicks change see :mod:`SPDSegmentLib.interactive`.

Everything cheap is checked first; torch is loaded with the model, not with this module. ``spdsegment segment`` is a
command line around :func:`segment`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from SPDSegmentLib import __version__
from SPDSegmentLib.errors import BadInput, well_formed
from SPDSegmentLib.files import check_output, write_json
from SPDSegmentLib.geometry.centerline import clicks_from_markups
from SPDSegmentLib.geometry.intensity import check_values
from SPDSegmentLib.geometry.labelmap import check_mask_output, write_labelmap
from SPDSegmentLib.geometry.markups import are_numbers, list_of, mark_clicks, markups_of
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import Volume, volume_of
from SPDSegmentLib.models.bundle import Bundle, base_weights_for, find_bundle
from SPDSegmentLib.models.fit import fit_of_image
from SPDSegmentLib.settings import check_choice, shorten

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
        inputs: absolute paths of the files that it was made of.
    """

    mask: np.ndarray
    volume_ml: float
    result: SegmentationResult
    stack: SliceStack
    bundle: Bundle
    settings: Mapping[str, Any] = field(default_factory=dict)
    said_before: tuple[str, ...] = ()
    inputs: tuple[Path, ...] = ()

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
        the stack (``slice``) and as 3D Slicer numbers them (``slice_number``).
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
            BadInput: a path that cannot be written, or is one of the ``inputs``; neither is then written.
        """
        check_mask_output(mask, self.stack.volume, self.inputs)
        if report is not None:
            check_output(report, "report", taken=[*self.inputs, Path(mask)])
        info = self.bundle.info
        entry = (info.entry,) if info.entry else None
        write_labelmap(mask, self.mask, self.stack.volume, (info.structure,), (info.color,), entry)
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
    return loaded(model, bundle_of(model), device)


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
    insist: str | int | Sequence[str | int] = (),
    ends: str | int | Sequence[str | int] = (),
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
        points: markups file (``.mrk.json``, ``.fcsv``, ``.csv``), its markups, or an array (N, 3) in ``frame``, also as
            points (3,) by their ids.
        model: name, folder, or what :func:`load_model` gave.
        output: where to write the mask; a path that cannot be written, or is that of an input, is refused before
            the work.
        ijk_to_ras: (4, 4), voxel indexes of an array to patient mm.
        frame: of points in an array: ``RAS`` or ``LPS`` in mm, or ``IJK``, voxel indexes.
        series: of a DICOM folder, the wanted series' number, its UID or the end of it, or its description.
        frame_number: of a 4-D image, the wanted frame, from 1.
        axis: ``auto``, ``i``, ``j``, ``k``, ``axial``, ``coronal`` or ``sagittal``; None for the model's own plane.
        prompts: ``consensus``, ``local``, ``raw``, ``interpolated`` or ``sampled``.
        saliency_only: the thresholded saliency as the mask.
        insist: id or ids of clicks that prompt whatever the model believes.
        ends: id or ids of clicks at whose slices the structure ends: nothing is segmented past them.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:n``; of a loaded model its own is used.
        on_progress: called after each batch.
        on_note: told, before anything is computed, why the image may not be of the model's kind.

    Raises:
        SPDError: each kind, see :mod:`SPDSegmentLib.errors`.
    """
    insist, ends = _ids(insist, "to insist on"), _ids(ends, "at the ends")
    check_prompts(prompts)
    if not are_numbers(points):
        markups = mark_clicks(markups_of(points, frame), insist, ends)
    bundle = bundle_of(model)
    intensity = bundle.intensity()  # refused before the image is read
    volume = volume_of(image, ijk_to_ras, series, frame_number)
    if are_numbers(points):
        markups = mark_clicks([list_of(points, frame, volume)], insist, ends)
    inputs = files_of(image, points)
    if output is not None:
        check_mask_output(output, volume, inputs)
    stack = SliceStack(volume, axis or bundle.info.slicing_axis)
    clicks = clicks_from_markups(markups, stack)
    check_values(volume.array, intensity, volume.name)
    doubts = tuple(fit_of_image(bundle.info, stack, clicks))
    for doubt in doubts:
        on_note(doubt)
    session = loaded(model, bundle, device).predictor.open(stack)
    result = session.segment(clicks, prompts=prompts, saliency_only=saliency_only, on_progress=on_progress)
    settings = {
        "image": image_name(image, volume), "points": Path(points) if isinstance(points, str | Path) else len(clicks),
        "model": model_name(model), "output": None if output is None else Path(output), "prompts": prompts,
        "saliency_only": saliency_only, "insist": list(insist), "ends": list(ends), "axis": axis, "series": series,
        "device": device, "frame_number": frame_number,
    }  # fmt: skip
    found = segmentation_of(result, stack, bundle, settings, inputs, doubts)
    if output is not None:
        found.save(output)
    return found


def _ids(given: str | int | Sequence[str | int], which: str) -> tuple[str, ...]:
    """Ids of clicks, as texts."""
    if not isinstance(given, str | int | np.integer | Iterable):
        raise BadInput(f"The clicks {which} are no ids.", "Give one id, a list of ids, or () for none.")
    return tuple(map(str, (given,) if isinstance(given, str | int | np.integer) else given))


def check_prompts(prompts: str) -> None:
    """Raise :class:`BadInput` for an unknown prompt strategy."""
    from SPDSegmentLib.prompts.distillation import SALIENCY_ONLY, STRATEGIES

    check_choice(prompts, (*STRATEGIES, SALIENCY_ONLY), "prompt strategy")


def segmentation_of(
    result: SegmentationResult,
    stack: SliceStack,
    bundle: Bundle,
    settings: Mapping[str, Any],
    inputs: tuple[Path, ...],
    said_before: tuple[str, ...] = (),
) -> Segmentation:
    """A result of the session as what callers get."""
    mask = stack.to_volume(result.mask.astype(np.uint8))
    volume_ml = float(mask.sum()) * (stack.volume.voxel_mm3 / 1000)
    return Segmentation(mask, volume_ml, result, stack, bundle, settings, said_before, inputs)


def bundle_of(model: str | Path | LoadedModel) -> Bundle:
    """The bundle of a model, whose base weights are here."""
    if isinstance(model, LoadedModel):
        return model.bundle
    if not isinstance(model, str | Path):
        raise BadInput(f"{shorten(repr(model))} is no model.", "Give its name, its folder, or what load_model gave.")
    bundle = find_bundle(model)
    base_weights_for(bundle)
    return bundle


def loaded(model: str | Path | LoadedModel, bundle: Bundle, device: str) -> LoadedModel:
    """The model, loaded unless it was."""
    if isinstance(model, LoadedModel):
        return model
    from SPDSegmentLib.inference.predictor import Predictor

    return LoadedModel(bundle, Predictor.load(bundle, device))


def model_name(model: str | Path | LoadedModel) -> Path:
    """What a report calls the model."""
    return Path(model.bundle.info.name if isinstance(model, LoadedModel) else model)


def image_name(image: Image, volume: Volume) -> Path | str:
    """What a report calls the image."""
    return Path(image) if isinstance(image, str | Path) else volume.name


def files_of(*inputs: object) -> tuple[Path, ...]:
    """Those of the inputs that are files or folders, by paths that mean the same whatever folder becomes current."""
    return tuple(Path(given).absolute() for given in inputs if isinstance(given, str | Path) and str(given))


def _shown(path: Path, full: bool) -> str:
    return well_formed(str(path) if full else path.name)
