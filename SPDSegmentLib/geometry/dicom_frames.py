"""Frames of DICOM images: where each lies, how its values are scaled, and whether together they are one volume."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from SPDSegmentLib.errors import BadInput, GeometryUnsupported
from SPDSegmentLib.geometry.nifti import frame_index

POSITION_TOLERANCE = 0.05
"""Deviation of a slice from its place on a regular grid that is accepted, in slice distances."""
GRID_TOLERANCE = 0.25
"""The same for all slices together, from the first to the last one."""
_COPY = "Copy the series again."
_KINDS = (
    ("modality", "Modality"), ("image type", "ImageType"), ("unit", "Units"),
    ("color scheme", "PhotometricInterpretation"), ("frame of reference", "FrameOfReferenceUID"),
    ("echo time", "EchoTime"), ("echo", "EchoNumbers"),
    ("inversion time", "InversionTime"), ("flip angle", "FlipAngle"), ("b-value", "DiffusionBValue"),
    ("phase", "TemporalPositionIdentifier"),
)  # fmt: skip
"""What is one within a volume."""
_FRAME_KINDS = (
    ("frame type", "MRImageFrameTypeSequence", "FrameType"), ("frame type", "CTImageFrameTypeSequence", "FrameType"),
    ("frame type", "PETFrameTypeSequence", "FrameType"), ("echo time", "MREchoSequence", "EffectiveEchoTime"),
    ("b-value", "MRDiffusionSequence", "DiffusionBValue"), ("phase", "FrameContentSequence", "TemporalPositionIndex"),
    ("heart phase", "CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
)  # fmt: skip
_TELLING = (("acquisition", "AcquisitionNumber"), ("trigger time", "TriggerTime"), ("time", "ContentTime"),
            ("instance", "InstanceNumber"))  # fmt: skip
"""What may differ within a volume, and tells images at one position apart."""
_MEASURED = ("EchoTime", "EffectiveEchoTime", "InversionTime", "FlipAngle", "DiffusionBValue")
"""What is one in spite of its last digits; times and numbers are not."""
_TEMPORAL = ("phase", "heart phase", "trigger time", "acquisition")
"""What may tell the volumes of a series apart that were taken one after the other."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice.

    Attributes:
        file, index: the file and the number of the frame in it.
        header: of that file, a pydicom dataset without pixels.
        position: (3,) LPS mm of the first pixel.
        directions: (6,) unit vectors of a row and of a column.
        spacing: (2,) mm from row to row and from column to column.
        size: rows and columns.
        scaling: slope and intercept of the stored values.
        kinds: what has to be one within a volume; telling: what may differ.
        slice_mm: thickness and distance of slices as the header has them, 0 for unknown.
    """

    file: Path
    header: Any
    index: int
    instance: str
    position: np.ndarray
    directions: np.ndarray
    spacing: np.ndarray
    size: tuple[int, int]
    scaling: tuple[float, float]
    kinds: dict[str, str]
    telling: dict[str, str]
    slice_mm: tuple[float, float]

    @property
    def name(self) -> str:
        """For messages."""
        return f"frame {self.index + 1} of {self.file.name}" if self.index else self.file.name


def frames_of(dataset: Any, path: Path) -> list[Frame]:
    """The frames of an image.

    Raises:
        BadInput: fields that are missing or no numbers, color, a size of nothing.
        GeometryUnsupported: several frames without a place for each.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _frames_of(dataset, path)
    except (BadInput, GeometryUnsupported):
        raise
    except Exception as error:
        raise BadInput(f"The header of the DICOM file {path} is damaged.", _COPY, repr(error)) from error


def _frames_of(dataset: Any, path: Path) -> list[Frame]:
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or "PALETTE" in str(dataset.get("PhotometricInterpretation")):
        raise BadInput(f"The DICOM file {path} is in color.", "Give a gray-scale series.")
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        raise BadInput(
            f"The DICOM file {path} is stored inverted (MONOCHROME1), with high values for dark.",
            "Save the series as MONOCHROME2.",
        )
    if "ModalityLUTSequence" in dataset:
        raise BadInput(f"The values of the DICOM file {path} need a look-up table.", "Save the series rescaled.")
    count = int(dataset.get("NumberOfFrames") or 1)
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if count > 1 and len(groups) != count:
        raise GeometryUnsupported(
            f"The DICOM file {path} holds {count} frames and a place for {len(groups)} of them.",
            "Load it in 3D Slicer, check that it lies right, and save it as NRRD.",
        )
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    return [_frame(dataset, groups[i] if groups else None, shared, path, i) for i in range(count)]


def _frame(dataset: Any, own: Any, shared: Any, path: Path, index: int) -> Frame:
    def find(group: str, keyword: str) -> Any:
        for place in (own, shared):
            items = place.get(group) if place is not None else None
            if items and items[0].get(keyword) not in (None, ""):
                return items[0].get(keyword)
        return dataset.get(keyword)

    def numbers(group: str, keyword: str, count: int) -> np.ndarray:
        value = find(group, keyword)
        try:
            found = np.array([float(v) for v in value], dtype=float)
        except (TypeError, ValueError):
            found = np.empty(0)
        if len(found) != count or not np.isfinite(found).all():
            said = "no" if value in (None, "") else "an unreadable"
            raise BadInput(
                f"The DICOM file {path} has {said} {keyword}{f' in frame {index + 1}' if index else ''}.",
                "Give original images of the scanner, which say where their slices lie.",
            )
        return found

    def number(group: str, keyword: str, default: float) -> float:
        value = find(group, keyword)
        if value in (None, ""):
            return default
        if not math.isfinite(float(value)):
            raise BadInput(f"The DICOM file {path} has an unreadable {keyword}.", _COPY)
        return float(value)

    position = numbers("PlanePositionSequence", "ImagePositionPatient", 3)
    directions = numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = numbers("PixelMeasuresSequence", "PixelSpacing", 2)
    row, column = directions[:3], directions[3:]
    if abs(np.linalg.norm(row) - 1) > 0.01 or abs(np.linalg.norm(column) - 1) > 0.01 or abs(row @ column) > 1e-3:
        raise GeometryUnsupported(f"The DICOM file {path} has rows and columns that are not at right angles.", _COPY)
    slope = number("PixelValueTransformationSequence", "RescaleSlope", 1.0)
    intercept = number("PixelValueTransformationSequence", "RescaleIntercept", 0.0)
    if spacing.min() <= 0 or slope == 0:
        field = "PixelSpacing" if spacing.min() <= 0 else "RescaleSlope"
        raise BadInput(f"The DICOM file {path} has a {field} of 0 or less.", _COPY)
    kinds = {name: _text(keyword, dataset.get(keyword)) for name, keyword in _KINDS}
    for name, group, keyword in _FRAME_KINDS:
        value = find(group, keyword) if own is not None or shared is not None else None
        kinds[name] = _text(keyword, value) or kinds.get(name, "")
    telling = {name: _text(keyword, dataset.get(keyword)) for name, keyword in _TELLING}
    thickness, between = (
        number("PixelMeasuresSequence", keyword, 0.0) for keyword in ("SliceThickness", "SpacingBetweenSlices")
    )
    return Frame(
        path,
        dataset,
        index,
        str(dataset.get("SOPInstanceUID") or ""),
        position,
        directions / np.repeat([np.linalg.norm(row), np.linalg.norm(column)], 3),
        spacing,
        (int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)),
        (slope, intercept),
        kinds,
        telling,
        (thickness, between),
    )


def _text(keyword: str, value: Any) -> str:
    if value is None or value == "":
        return ""
    if keyword in ("ImageType", "FrameType"):
        return "\\".join(str(v) for v in list(value)[2:])  # the first two do not tell images of one series apart
    try:
        return f"{float(value):{'.4g' if keyword in _MEASURED else '.10g'}}"
    except (TypeError, ValueError):
        return str(value)


def sorted_frames(frames: Sequence[Frame], where: str) -> tuple[list[Frame], np.ndarray]:
    """The frames in the order of space, and the matrix (4, 4) of indexes (column, row, slice) to LPS mm.

    Args:
        where: the series, for messages.

    Raises:
        BadInput: frames of several sizes or kinds (echoes, phases, b-values), or one image twice.
        GeometryUnsupported: they do not all face one way, are not equally spaced, or shifted against each other.
    """
    _check_alike(frames, where)
    first = frames[0]
    normal = np.cross(first.directions[:3], first.directions[3:])
    frames = sorted(frames, key=lambda frame: float(frame.position @ normal))
    origins = np.array([frame.position for frame in frames])
    depth = origins @ normal
    matrix = np.eye(4)
    matrix[:3, 0] = first.directions[:3] * first.spacing[1]
    matrix[:3, 1] = first.directions[3:] * first.spacing[0]
    matrix[:3, 3] = origins[0]
    if len(frames) == 1:
        step = first.slice_mm[1] or first.slice_mm[0]
        if step <= 0:
            raise GeometryUnsupported(f"{where} is a single slice of unknown thickness.", "Give the whole series.")
    else:
        step = _even_step(frames, depth, where)
        aside = origins - origins[0] - np.outer(depth - depth[0], normal)
        if np.linalg.norm(aside, axis=1).max() > max(POSITION_TOLERANCE * step, 0.5 * first.spacing.min()):
            raise GeometryUnsupported(
                f"The slices of {where} are shifted against each other (gantry tilt).",
                "Resample it to a regular grid first.",
            )
    matrix[:3, 2] = normal * step
    return frames, matrix


def at_one_time(frames: Sequence[Frame], path: Path, number: int | None) -> Sequence[Frame]:
    """The frames of one of the volumes that a series holds, one after the other in time; all, where it is one volume.

    Args:
        path: for messages; number: of the wanted volume in the order of time, from 1.

    Raises:
        BadInput: there are several and none was chosen, or not the one that was.
    """
    volumes = _volumes_in_time(frames)
    at = frame_index(path, max(1, len(volumes)), number)
    return volumes[at] if volumes else frames


def _volumes_in_time(frames: Sequence[Frame]) -> list[list[Frame]]:
    """The volumes of a series, each with one frame at each position; none where it is not made of several so."""

    def places(some: Sequence[Frame]) -> list[tuple[float, ...]]:
        return sorted(tuple((frame.position.round(2) + 0.0).tolist()) for frame in some)

    every = sorted(set(places(frames)))
    for what in _TEMPORAL if len(every) < len(frames) else ():
        by_time: dict[str, list[Frame]] = defaultdict(list)
        for frame in frames:
            by_time[frame.kinds.get(what) or frame.telling.get(what) or "0"].append(frame)
        if len(by_time) > 1 and all(places(volume) == every for volume in by_time.values()):
            with contextlib.suppress(ValueError):  # a time that is no number gives no order
                return [by_time[time] for time in sorted(by_time, key=float)]
    return []


def _check_alike(frames: Sequence[Frame], where: str) -> None:
    """Refuse frames of which some are of another kind than most, naming the first of these."""
    usual: dict[str, Callable[[Frame], str]] = {
        "size": lambda f: f"{f.size[0]} x {f.size[1]} pixels",
        "pixel spacing": lambda f: " x ".join(f"{v:.4g}" for v in f.spacing) + " mm",
        "orientation": lambda f: "\\".join(f"{v + 0.0:.2f}" for v in f.directions),
    }
    for what, text in usual.items():
        counts = Counter(map(text, frames))
        if len(counts) == 1 or (what != "size" and _nearly_alike(frames, what)):
            continue
        most = counts.most_common(1)[0][0]
        odd = next(frame for frame in frames if text(frame) != most)
        scout = " (a localizer)" if "LOCALIZER" in odd.kinds["image type"].upper() else ""
        fault = (
            f"The slices of {where} do not all have one {what}: {odd.name}{scout} has {text(odd)}, most have {most}."
        )
        remedy = "Give a folder without the files that do not belong to the volume."
        raise GeometryUnsupported(fault, remedy) if what == "orientation" else BadInput(fault, remedy)
    for what in frames[0].kinds:
        values = sorted({frame.kinds[what] for frame in frames} - {""})
        if len(values) > 1:
            raise BadInput(
                f"{where[0].upper()}{where[1:]} holds images of {len(values)} kinds by {what}:"
                f" {', '.join(values[:6])}.",
                "Give a folder with the images of one of them.",
            )


def _nearly_alike(frames: Sequence[Frame], what: str) -> bool:
    values = np.array([frame.spacing if what == "pixel spacing" else frame.directions for frame in frames])
    allowed = 1e-3 * (values[0].min() if what == "pixel spacing" else 1.0)
    return bool(np.abs(values - values[0]).max() <= allowed)


def _even_step(frames: Sequence[Frame], depth: np.ndarray, where: str) -> float:
    """The distance of slices, which is the same everywhere."""
    gaps = np.diff(depth)
    step = float(np.median(gaps))
    doubled = np.flatnonzero(gaps < max(1e-3, POSITION_TOLERANCE * step))
    if doubled.size:
        one, two = frames[int(doubled[0])], frames[int(doubled[0]) + 1]
        if one.instance and one.instance == two.instance and one.index == two.index:
            raise BadInput(f"The files {one.name} and {two.name} of {where} are one image.", "Remove one of them.")
        differs = [f"{what} ({one.telling[what]}, {two.telling[what]})" for what in one.telling
                   if one.telling[what] != two.telling[what]]  # fmt: skip
        raise GeometryUnsupported(
            f"{where[0].upper()}{where[1:]} has several slices at one position, first {one.name} and {two.name}"
            + (f", which differ in {', '.join(differs)}." if differs else "."),
            "Give a series with one image per position (one phase, one echo).",
        )
    uneven = np.flatnonzero(np.abs(gaps / step - 1) > POSITION_TOLERANCE)
    if uneven.size:
        at = int(uneven[0])
        raise GeometryUnsupported(
            f"The slices of {where} are not equally spaced, first after slice {at + 1} of {len(frames)}"
            f" ({gaps[at]:.3g} mm instead of {step:.3g} mm; {frames[at].name}).",
            "Add the missing slices or resample the series.",
        )
    mean = float(depth[-1] - depth[0]) / (len(depth) - 1)
    if np.abs(depth - depth[0] - mean * np.arange(len(depth))).max() > GRID_TOLERANCE * mean:
        raise GeometryUnsupported(f"The slices of {where} are not equally spaced.", "Resample the series.")
    _check_every_second(frames, mean, where)
    return mean


def _check_every_second(frames: Sequence[Frame], step: float, where: str) -> None:
    """Refuse a series of which every second slice (or more) is missing by its header and its numbers alike."""
    said = {frame.slice_mm[1] for frame in frames}
    numbers = [frame.telling["instance"] for frame in frames]
    if len(said) != 1 or min(said) <= 0 or not all(number.isdigit() for number in numbers):
        return
    times = round(step / min(said))
    jumps = set(np.abs(np.diff([int(number) for number in numbers])).tolist())
    if times > 1 and abs(step / min(said) / times - 1) < POSITION_TOLERANCE and jumps == {times}:
        raise GeometryUnsupported(
            f"The slices of {where} are {step:.3g} mm apart, by their header {min(said):.3g} mm: some are missing.",
            "Add the missing slices.",
        )
