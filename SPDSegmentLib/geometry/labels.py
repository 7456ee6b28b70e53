"""Labels on the voxels of an image: label maps, and what was drawn on a DICOM series, SEG (highdicom) and RTSTRUCT.

Nothing is resampled: what does not lie on the image's own voxels or slices is refused.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from SPDSegmentLib.errors import BadInput, GeometryUnsupported, import_package, require_package
from SPDSegmentLib.geometry.dicom_series import drawn_objects, readable
from SPDSegmentLib.geometry.formats import is_dicom
from SPDSegmentLib.geometry.labelmap import inside, read_labelmap, same_grid
from SPDSegmentLib.geometry.nifti import SeveralFrames
from SPDSegmentLib.geometry.volume import LPS_TO_RAS, Volume, check_image, read_volume

OFF_GRID = 0.25
"""Distance from the image's voxels or slices that is taken for rounding, in voxels or slices."""
FOUND_FROM = 0.5
"""Share of a fractional segment from which a voxel belongs to it."""
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR")
_OTHER_IMAGE = "Give the image that it was drawn on; with several series in its folder, choose that one."


class LabeledFiles(Protocol):
    """How images and labels of a data set are named: with ``{case}``, and what is chosen of DICOM folders and files."""

    @property
    def image(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def series(self) -> str: ...
    @property
    def segments(self) -> tuple[str, ...]: ...


def read_labeled(folder: Path, files: LabeledFiles, case: str) -> tuple[Volume, np.ndarray]:
    """The image of a case and its labels (K, J, I), checked.

    Raises:
        BadInput: as :func:`read_labels_of`, or for the image as :mod:`SPDSegmentLib.geometry.volume`.
        GeometryUnsupported: as these.
    """
    image = folder / files.image.format(case=case)
    try:
        volume = read_volume(image, (files.series or None) if image.is_dir() else None)
        check_image(volume)
        return volume, read_labels_of(folder / files.label.format(case=case), volume, files.segments)
    except SeveralFrames as error:  # a data set has no way to choose one
        raise BadInput(error.message, "Save the wanted frame of each as a file of its own.") from error


def case_expression(pattern: str, case: str = "[^/]+") -> re.Pattern[str]:
    """What names of files match that are named as a pattern with ``{case}`` says; the group ``case`` is that name.

    Args:
        pattern: the case may occur in it several times, always with one name.
        case: what that name may be.
    """
    first, *rest = (re.escape(part) for part in pattern.split("{case}"))
    return re.compile(rf"{first}(?P<case>{case})" + r"(?P=case)".join(rest))


def read_labels_of(path: str | Path, volume: Volume, segments: Sequence[str] = ()) -> np.ndarray:
    """Integer labels (K, J, I) on the grid of ``volume``.

    Args:
        path: label map, or DICOM SEG or RTSTRUCT file or folder of them.
        segments: which of a DICOM file, see :func:`read_dicom_labels`.

    Raises:
        BadInput: as :func:`SPDSegmentLib.geometry.labelmap.read_labelmap` or, for DICOM, that function, or another size
            or place than the volume's.
    """
    path = Path(path)
    if path.is_dir() or (path.is_file() and is_dicom(path)):
        with readable(path):
            drawn = read_dicom_labels(path, volume, segments)
        if drawn is not None:
            return drawn
    labels = read_labelmap(path)
    if not same_grid(labels, volume):
        raise BadInput(f"{path} does not have the same grid as its image {volume.name}.", "Resample it to the image.")
    return labels.array


@dataclass(frozen=True)
class Drawn:
    """One segment or region of interest."""

    path: Path
    header: Any
    number: int
    name: str


def read_dicom_labels(path: Path, volume: Volume, segments: Sequence[str] = ()) -> np.ndarray | None:
    """Labels (K, J, I) on the grid of ``volume`` from a SEG or RTSTRUCT file, or a folder with such files.

    Args:
        segments: names, patterns with ``*``, or numbers; the v-th of them gets the label value v. Where none is given
            every segment keeps its own number.

    Returns:
        uint16, or None where nothing of the kind is there.

    Raises:
        BadInput: a segment is not there, not one, overlaps another one, or was drawn on another image.
        GeometryUnsupported: it does not lie on the voxels or slices of the image.
        DependencyMissing: highdicom or pydicom is not installed.
    """
    require_package("pydicom")
    found = drawn_objects(path)
    if not found:
        return None
    if len(found) > 1:
        found = {file: header for file, header in found.items() if _is_of(header, volume)} or found
    listed = [drawn for file, header in found.items() for drawn in _drawn_in(file, header)]
    for file, header in found.items():
        _check_reference(file, header, volume)
    if not segments and len(found) > 1:
        raise BadInput(
            f"The folder {path} holds {len(found)} DICOM objects with {_names(listed)}.",
            "Give one of the files, or name what is wanted: segments in [data], --segment of init.",
        )
    wanted = {drawn.number: drawn for drawn in listed}
    if segments:
        wanted = dict(enumerate((_named(path, listed, name) for name in segments), start=1))
    labels = np.zeros(volume.array.shape, np.uint16)
    names: dict[int, str] = {}
    for value, drawn in wanted.items():
        if not 0 < value < 1 << 16:
            raise BadInput(f"{drawn.path} has a segment of the number {value}.", "Choose its segments by name.")
        mask = _seg_mask(drawn, volume) if drawn.header.Modality == "SEG" else _rtstruct_mask(drawn, volume)
        if labels[mask].any():
            other = names[int(labels[mask].max())]
            raise BadInput(
                f"'{drawn.name}' and '{other}' of {path} overlap, and a voxel has one label.",
                f"Name those that are wanted, segments in [data] or --segment of init: {_names(listed)}.",
            )
        labels[mask], names[value] = value, drawn.name
    return labels


def _drawn_in(path: Path, header: Any) -> list[Drawn]:
    items, number, name = ("StructureSetROISequence", "ROINumber", "ROIName")
    if header.Modality == "SEG":
        items, number, name = ("SegmentSequence", "SegmentNumber", "SegmentLabel")
    try:
        found = [Drawn(path, header, int(i[number].value), str(i.get(name) or "").strip()) for i in header[items].value]
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"The DICOM file {path} names no segments.", "Export it again.", repr(error)) from error
    if len({drawn.number for drawn in found}) < len(found):
        raise BadInput(f"The DICOM file {path} has two segments of one number.", "Export it again.")
    return found


def _names(listed: Sequence[Drawn]) -> str:
    return ", ".join(f"{drawn.number} '{drawn.name}'" for drawn in listed[:40]) + (", ..." if listed[40:] else "")


def _named(path: Path, listed: Sequence[Drawn], name: str) -> Drawn:
    """The one segment that a name, a number or a pattern means; the first of these that there is."""
    wanted = name.strip().casefold()
    found = (
        [drawn for drawn in listed if drawn.name.casefold() == wanted]
        or [drawn for drawn in listed if str(drawn.number) == wanted]
        or [drawn for drawn in listed if fnmatch.fnmatchcase(drawn.name.casefold(), wanted)]
    )
    if len(found) == 1:
        return found[0]
    count = "several segments" if found else "no segment"
    raise BadInput(f"{path} holds {count} '{name}'.", f"Choose one of these: {_names(found or listed)}.")


def _references(header: Any) -> tuple[set[str], set[str]]:
    """UIDs of the frames of reference and of the series that an object says it was drawn on."""
    frames = {str(header.get("FrameOfReferenceUID") or "")}
    series = {str(item.get("SeriesInstanceUID") or "") for item in header.get("ReferencedSeriesSequence") or ()}
    for region in header.get("StructureSetROISequence") or ():
        frames.add(str(region.get("ReferencedFrameOfReferenceUID") or ""))
    for frame in header.get("ReferencedFrameOfReferenceSequence") or ():
        for study in frame.get("RTReferencedStudySequence") or ():
            series |= {str(s.get("SeriesInstanceUID") or "") for s in study.get("RTReferencedSeriesSequence") or ()}
    return frames - {""}, series - {""}


def _is_of(header: Any, volume: Volume) -> bool:
    frames, series = _references(header)
    return volume.series_uid in series if series and volume.series_uid else volume.frame_of_reference in frames


def _check_reference(path: Path, header: Any, volume: Volume) -> None:
    """Refuse an object of another image; an image that is not of DICOM has no UIDs to compare."""
    frames, series = _references(header)
    for what, said, own in (
        ("frame of reference", frames, volume.frame_of_reference), ("series", series, volume.series_uid)
    ):  # fmt: skip
        if own and said and own not in said:
            raise BadInput(
                f"{path} was drawn on the {what} {', '.join(sorted(said))}, and the image {volume.name} is of {own}.",
                _OTHER_IMAGE,
            )


def _off(drawn: Drawn, volume: Volume, why: str) -> GeometryUnsupported:
    return GeometryUnsupported(
        f"'{drawn.name}' of {drawn.path} does not lie on the voxels of the image {volume.name}: {why}.", _OTHER_IMAGE
    )


def _seg_mask(drawn: Drawn, volume: Volume) -> np.ndarray:
    highdicom = import_package("highdicom")
    try:
        read = highdicom.seg.segread(drawn.path)
        if drawn.number not in {int(n) for n in read.segment_numbers}:
            return np.zeros(volume.array.shape, bool)
        part = read.get_volume(segment_numbers=[drawn.number])
    except Exception as error:  # whatever a file of somebody else lacks
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(
            f"'{drawn.name}' of the DICOM SEG file {drawn.path} cannot be read: {why}",
            "Export it again, or save it as a label map of the image.",
            repr(error),
        ) from error
    mask = np.asarray(part.array)[..., 0] >= FOUND_FROM
    to_ijk = volume.ras_to_ijk @ LPS_TO_RAS @ np.asarray(part.affine)
    turn, start = np.rint(to_ijk[:3, :3]).astype(int), np.rint(to_ijk[:3, 3]).astype(int)
    if (np.abs(turn).sum(0) != 1).any() or (np.abs(turn).sum(1) != 1).any():
        raise _off(drawn, volume, "its voxels have another size or direction")
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in mask.shape])).reshape(3, -1)
    off = to_ijk[:3, :3] @ corners + to_ijk[:3, 3:] - (turn @ corners + start[:, None])
    if np.abs(off).max() > OFF_GRID:
        raise _off(drawn, volume, f"its voxels are up to {np.abs(off).max():.2g} of one apart")
    return _placed(drawn, volume, np.argwhere(mask) @ turn.T + start)


def _placed(drawn: Drawn, volume: Volume, ijk: np.ndarray) -> np.ndarray:
    """The mask (K, J, I) of some voxels, all of which the image must have."""
    beyond = np.any((ijk < 0) | (ijk >= volume.shape_ijk), axis=1)
    if beyond.any():
        raise _off(drawn, volume, f"{int(beyond.sum())} of its {len(ijk)} voxels lie beyond it")
    mask = np.zeros(volume.array.shape, bool)
    mask[ijk[:, 2], ijk[:, 1], ijk[:, 0]] = True
    return mask


def _rtstruct_mask(drawn: Drawn, volume: Volume) -> np.ndarray:
    """The voxels whose centers lie within an odd number of the contours of their slice."""
    loops: dict[int, list[np.ndarray]] = {}
    axis = None
    for contour in _contours(drawn):
        ijk = volume.to_ijk(contour * (-1, -1, 1))
        flat = np.ptp(ijk, axis=0) <= OFF_GRID
        if axis is None and flat.any():
            axis = int(np.argmin(np.ptp(ijk, axis=0)))
        if axis is None or not flat[axis]:
            raise _off(drawn, volume, "its contours are not parallel to slices")
        plane = float(ijk[:, axis].mean())
        if abs(plane - round(plane)) > OFF_GRID:
            raise _off(drawn, volume, f"a contour lies between slices, at {plane:.2f}")
        loops.setdefault(round(plane), []).append(np.delete(ijk, axis, axis=1))
    mask = np.zeros(volume.array.shape, bool)
    if axis is None:
        return mask
    across, down = (side for side in range(3) if side != axis)
    gaps = np.diff(sorted(loops))
    if len(gaps) > 1 and gaps.min() > 1:
        raise _off(drawn, volume, f"it is drawn on every {gaps.min()}. slice only")
    shape = volume.shape_ijk
    for plane, outlines in loops.items():
        corners = np.concatenate(outlines)
        if not (0 <= plane < shape[axis]) or (corners < -1).any() or (corners > (shape[across], shape[down])).any():
            raise _off(drawn, volume, "a contour lies beyond it")
        filled = inside(outlines, (shape[down], shape[across]))
        np.moveaxis(mask, 2 - axis, 0)[plane] = filled
    return mask


def _contours(drawn: Drawn) -> list[np.ndarray]:
    """The closed contours of a region, each (N, 3) in LPS mm."""
    found: list[np.ndarray] = []
    for region in drawn.header.get("ROIContourSequence") or ():
        if str(region.get("ReferencedROINumber")) != str(drawn.number):
            continue
        for contour in region.get("ContourSequence") or ():
            if contour.get("ContourGeometricType") not in _CLOSED:
                continue
            data = contour.get("ContourData")
            try:
                if isinstance(data, bytes):  # longer than the explicit encoding has room for, so of unknown kind
                    data = data.decode("ascii").rstrip(" \0").split("\\")
                points = np.array(data, dtype=float).reshape(-1, 3)
            except (TypeError, ValueError) as error:
                raise BadInput(
                    f"A contour of '{drawn.name}' in {drawn.path} is damaged.", "Export it again.", repr(error)
                ) from error
            if len(points) > 2 and np.isfinite(points).all():
                found.append(points)
    return found
