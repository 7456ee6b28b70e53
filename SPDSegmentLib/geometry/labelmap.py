"""Masks: read, written in one piece so that no half file is ever left, measured, and outlined."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from SPDSegmentLib.errors import BadInput, well_formed
from SPDSegmentLib.files import check_output, write_whole
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import Volume, farthest_corner_mm, read_volume, set_geometry

if TYPE_CHECKING:
    import SimpleITK

SUFFIXES = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".mha")
NIFTI_LIMIT = 32_767
HIGHEST_LABEL = 2**31 - 1
"""Of labels that a file holds as numbers with fractions."""
HEADER_BYTES = 4096
USUAL_COMPRESSION = 200
"""Voxels of a mask in one byte of a compressed file; a disk with less space than that is refused before the work."""
DEFAULT_COLOR = (0.87, 0.56, 0.35)
DEFAULT_TERMINOLOGY = (
    "Segmentation category and type - 3D Slicer General Anatomy list"
    "~SCT^85756007^Tissue~SCT^85756007^Tissue~^^~Anatomic codes - DICOM master list~^^~^^"
)
SMOOTHING_MM = 4.0


def read_labelmap(path: str | Path) -> Volume:
    """Read integer labels on a grid.

    Raises:
        BadInput: as :func:`read_volume`, or values that are not whole numbers, or larger than ``HIGHEST_LABEL``.
    """
    volume = read_volume(path)
    array = volume.array
    if array.dtype.kind == "f":
        highest = float(np.abs(array).max(initial=0))
        if not (highest <= HIGHEST_LABEL and np.array_equal(np.rint(array), array)):
            raise BadInput(
                f"{path} holds values that are not labels.",
                f"Give a label map with whole numbers up to {HIGHEST_LABEL:,}.",
            )
        array = array.astype(np.int32)
    return Volume(array, volume.ijk_to_ras, volume.name)


def same_grid(first: Volume, second: Volume) -> bool:
    """Whether two volumes have the same voxels: no corner is farther off than half of the smallest spacing."""
    if first.array.shape != second.array.shape:
        return False
    off = farthest_corner_mm(first.shape_ijk, first.ijk_to_ras, second.ijk_to_ras)
    return off <= 0.5 * float(second.spacing_mm.min())


def write_labelmap(
    path: str | Path,
    labels: np.ndarray,
    volume: Volume,
    segment_names: Sequence[str] = ("SPD",),
    colors: Sequence[Sequence[float]] | None = None,
    terminology: Sequence[str] | None = None,
) -> None:
    """Write labels on the grid of ``volume``; label value v is the v-th segment.

    Args:
        labels: (K, J, I), whole numbers up to 255.
        segment_names, colors (red, green, blue in [0, 1]), terminology (Slicer's terminology entries): per segment, for
            ``.seg.nrrd``.

    Raises:
        BadInput: another grid, an unknown extension, labels without a segment, or as
            :func:`SPDSegmentLib.files.write_whole`.
    """
    import SimpleITK as sitk

    path = Path(path)
    suffix = _mask_suffix(path)
    if labels.shape != volume.array.shape:
        raise BadInput(f"The mask for {path} is not on the grid of its volume.")
    highest = 255 if suffix != ".seg.nrrd" else len(segment_names)
    if labels.size and not 0 <= labels.min() <= labels.max() <= highest:
        raise BadInput(f"The mask for {path} has labels outside 0 to {highest}.")
    image = set_geometry(sitk.GetImageFromArray(np.ascontiguousarray(labels, dtype=np.uint8)), volume.ijk_to_ras)
    if suffix == ".seg.nrrd":
        for key, value in segmentation_metadata(labels, segment_names, colors, terminology).items():
            image.SetMetaData(key, value)
    write_whole(
        path,
        lambda part: sitk.WriteImage(image, str(part), useCompression=True),
        lambda part: _holds(part, image),
        "mask",
    )


def check_mask_output(path: str | Path, volume: Volume, taken: Iterable[Path] = ()) -> None:
    """Find out before the work whether a mask on the grid of ``volume`` can be written to ``path``.

    Raises:
        BadInput: an unknown extension, the format has no place for so many voxels along an axis, or as
            :func:`SPDSegmentLib.files.check_output`.
    """
    path = Path(path)
    suffix = _mask_suffix(path)
    if suffix in (".nii", ".nii.gz") and max(volume.shape_ijk) > NIFTI_LIMIT:
        raise BadInput(
            f"The mask {path} would have {max(volume.shape_ijk):,} voxels along one axis, and NIfTI files end at "
            f"{NIFTI_LIMIT:,}.",
            "Choose .nrrd or .mha.",
        )
    voxels = int(np.prod(volume.shape_ijk, dtype=np.int64))
    check_output(path, "mask", HEADER_BYTES + (voxels if suffix == ".nii" else voxels // USUAL_COMPRESSION), taken)


def _mask_suffix(path: Path) -> str:
    """One of SUFFIXES by which a mask is written; raises BadInput for names that ITK would not read again."""
    suffix = next((s for s in SUFFIXES if path.name.lower().endswith(s)), "")
    ending = suffix.removeprefix(".seg")
    if suffix and len(path.name) > len(suffix) and path.name.endswith((ending, ending.upper())):
        return suffix
    raise BadInput(
        f"{path} has no known extension for a mask.",
        f"Give a name that ends with one of {', '.join(SUFFIXES)}, in small letters.",
    )


def _holds(path: Path, image: SimpleITK.Image) -> bool:
    """Whether a file, read back, has the voxels of an image, and its place up to the precision of the format."""
    import SimpleITK as sitk

    found = sitk.ReadImage(str(path))
    if found.GetSize() != image.GetSize() or found.GetPixelID() != image.GetPixelID():
        return False
    near = np.allclose(found.GetOrigin(), image.GetOrigin(), rtol=1e-4, atol=1e-3) and np.allclose(
        found.GetSpacing(), image.GetSpacing(), rtol=1e-4
    )
    return near and np.array_equal(sitk.GetArrayViewFromImage(found), sitk.GetArrayViewFromImage(image))


def segmentation_metadata(
    labels: np.ndarray,
    names: Sequence[str],
    colors: Sequence[Sequence[float]] | None,
    terminology: Sequence[str] | None,
) -> dict[str, str]:
    """Header fields by which 3D Slicer reads an NRRD file as a segmentation with named segments."""
    fields: dict[str, str] = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_SourceRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
        "Segmentation_ConversionParameters": "",
    }
    for n, name in enumerate(names):
        color = DEFAULT_COLOR if colors is None else colors[n]
        segment = {
            "ID": f"Segment_{n + 1}",
            "Name": " ".join(well_formed(name).split()),
            "NameAutoGenerated": "0",
            "Color": " ".join(f"{c:.6g}" for c in color),
            "ColorAutoGenerated": "0",
            "LabelValue": str(n + 1),
            "Layer": "0",
            "Extent": " ".join(str(v) for v in _extent(labels == n + 1)),
            "Tags": well_formed(f"TerminologyEntry:{DEFAULT_TERMINOLOGY if terminology is None else terminology[n]}|"),
        }
        fields |= {f"Segment{n}_{key}": value for key, value in segment.items()}
    return fields


def _extent(mask: np.ndarray) -> tuple[int, ...]:
    """(I min, I max, J min, J max, K min, K max); Slicer's empty extent where the mask is empty."""
    box = filled_part(mask) or (slice(0, 0),) * 3
    return tuple(int(end) for part in reversed(box) for end in (part.start, part.stop - 1))


@dataclass(frozen=True)
class Measurements:
    """What :func:`measure` finds; lengths and diameters are 0 for an empty mask.

    Attributes:
        volume_ml: all voxels.
        length_mm: along the smoothed path through the centroids of its slices, from the first slice to the last, both
            with their whole thickness.
        mean_diameter_mm: mean along that path of the diameter of the circle that has the area of the cross-section
            perpendicular to the path.
        largest_diameter_mm: the largest of these diameters.
    """

    volume_ml: float
    length_mm: float
    mean_diameter_mm: float
    largest_diameter_mm: float


def filled_part(voxels: np.ndarray) -> tuple[slice, slice, slice] | None:
    """Return the box around everything that is not 0 in an array of three axes; None where there is nothing.

    Makes no copy, and reads all of a large array once only.
    """
    flat = voxels.max(axis=0, initial=0)
    middle, last = (np.flatnonzero(flat.any(axis=axis)) for axis in (1, 0))
    if not middle.size:
        return None
    rows, columns = (slice(int(filled[0]), int(filled[-1]) + 1) for filled in (middle, last))
    first = np.flatnonzero(voxels[:, rows, columns].any(axis=(1, 2)))
    return slice(int(first[0]), int(first[-1]) + 1), rows, columns


def measure(box: np.ndarray, start: tuple[int, int, int], stack: SliceStack) -> Measurements:
    """Measure a mask.

    Args:
        box: (t, h, w) bool, a part of the canonical slices.
        start: first slice, row and column of the box.
        stack: the slices that it is a part of.
    """
    counts = box.sum(axis=(1, 2), dtype=np.int64)
    filled = np.flatnonzero(counts)
    if not filled.size:
        return Measurements(0.0, 0.0, 0.0, 0.0)
    box, counts = box[filled[0] : filled[-1] + 1], counts[filled[0] : filled[-1] + 1]
    voxel_mm3 = stack.volume.voxel_mm3
    slice_mm = float(np.linalg.norm(np.diff(stack.to_ras(np.array([0, 1]), np.zeros((2, 2))), axis=0)))
    path = _centroids(box, counts, (start[0] + int(filled[0]), start[1], start[2]), stack)
    steps_mm = _steps(_smooth(path, SMOOTHING_MM / slice_mm), slice_mm)
    here = counts > 0
    diameters = 2 * np.sqrt(counts[here] * voxel_mm3 / steps_mm[here] / np.pi)
    return Measurements(
        float(counts.sum() * voxel_mm3 / 1000),
        float(steps_mm.sum()),
        float(np.average(diameters, weights=steps_mm[here])),
        float(diameters.max()),
    )


def _centroids(box: np.ndarray, counts: np.ndarray, start: tuple[int, int, int], stack: SliceStack) -> np.ndarray:
    """(t, 3) centroids in RAS; where a slice is empty, between those of its neighbors."""
    filled = np.flatnonzero(counts)
    rows = box.sum(axis=2) @ np.arange(box.shape[1]) + start[1] * counts
    columns = box.sum(axis=1) @ np.arange(box.shape[2]) + start[2] * counts
    every = np.arange(len(counts))
    xy = np.column_stack([np.interp(every, filled, values[filled] / counts[filled]) for values in (columns, rows)])
    return stack.to_ras(every + start[0], xy)


def _smooth(path: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian smoothing; beyond its ends the path goes on as its point reflection, so that it does not shrink."""
    reach = min(int(np.ceil(3 * sigma)), len(path) - 1)
    if reach < 1:
        return path
    before, after = 2 * path[0] - path[reach:0:-1], 2 * path[-1] - path[-2 : -reach - 2 : -1]
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    extended = np.concatenate([before, path, after])
    return np.column_stack([np.convolve(values, weights, mode="valid") for values in extended.T])


def _steps(path: np.ndarray, slice_mm: float) -> np.ndarray:
    """(t,) length of the path within each slice, in mm, never less than a slice is thick."""
    if len(path) == 1:
        return np.array([slice_mm])
    distances = np.linalg.norm(np.diff(path, axis=0), axis=1)
    distances = np.concatenate([distances[:1], distances, distances[-1:]])
    lengths: np.ndarray = np.maximum((distances[:-1] + distances[1:]) / 2, slice_mm)
    return lengths


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """The closed outlines of the pixels of a mask (H, W): each (N, 2), corners (column, row) in pixels.

    Pixels lie at whole numbers, corners at halves. Outer outlines have a positive area, those of holes a negative one;
    pixels that meet at a corner alone are apart.
    """
    padded = np.pad(mask.astype(bool), 1)
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # Edges have the mask on their right hand (rows point down); corner (c, r) is the upper left one of pixel (c, r).
    for (dr, dc), start, end in (
        ((-1, 0), (0, 0), (1, 0)), ((0, 1), (1, 0), (1, 1)), ((1, 0), (1, 1), (0, 1)), ((0, -1), (0, 1), (0, 0))
    ):  # fmt: skip
        rows, columns = np.nonzero(padded & ~np.roll(padded, (-dr, -dc), axis=(0, 1)))
        for row, column in zip((rows - 1).tolist(), (columns - 1).tolist(), strict=True):
            steps.setdefault((column + start[0], row + start[1]), []).append((column + end[0], row + end[1]))
    loops = []
    while steps:
        first = next(iter(steps))
        corners, at, before = [first], first, (0, 0)
        while True:
            following = steps[at]
            # Where two pixels meet at a corner the turn to the right stays with the same pixel.
            turn = next(
                (n for n, to in enumerate(following) if (to[0] - at[0], to[1] - at[1]) == (-before[1], before[0])), 0
            )
            to = following.pop(turn)
            if not following:
                del steps[at]
            step = (to[0] - at[0], to[1] - at[1])
            if step == before:
                corners.pop()
            corners.append(to)
            at, before = to, step
            if at == first:
                break
        loops.append(np.array(corners[:-1], dtype=float) - 0.5)
    return loops


def keyholes(loops: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Outer outlines of :func:`outlines`, each with those of its holes joined in at the nearest corners."""
    outer = [loop for loop in loops if _area(loop) > 0]
    joined = list(outer)
    for hole in (loop for loop in loops if _area(loop) <= 0):
        beside = _pixel_beside(hole)  # of what the hole is in; all else around that is larger
        n = min((n for n, loop in enumerate(outer) if _lies_in(beside, loop)), key=lambda n: _area(outer[n]))
        apart = np.linalg.norm(joined[n][:, None] - hole, axis=2)
        i, j = np.unravel_index(int(np.argmin(apart)), apart.shape)
        joined[n] = np.concatenate((joined[n][: i + 1], np.roll(hole, -j, axis=0), hole[j : j + 1], joined[n][i:]))
    return joined


def _pixel_beside(loop: np.ndarray) -> np.ndarray:
    """The (column, row) of a pixel of the mask at an outline, which has it on its right hand."""
    along = np.sign(loop[1] - loop[0])
    pixel: np.ndarray = loop[0] + 0.5 * (along + (-along[1], along[0]))
    return pixel


def _lies_in(pixel: np.ndarray, loop: np.ndarray) -> bool:
    (x, y), (ends, rows) = pixel, loop.T
    crossed = (rows > y) != (np.roll(rows, -1) > y)  # edges lie along columns, or along rows
    return bool((ends[crossed] > x).sum() % 2)


def inside(loops: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """The pixels (H, W) whose centers lie within an odd number of closed outlines (N, 2) of (column, row)."""
    crossings = np.zeros(shape, dtype=int)
    columns = np.arange(shape[1])
    for loop in loops:
        for ends in zip(loop.tolist(), np.roll(loop, -1, axis=0).tolist(), strict=True):
            (y0, x0), (y1, x1) = sorted((y, x) for x, y in ends)
            rows = np.arange(max(0, int(np.ceil(y0))), min(shape[0], int(np.ceil(y1))))
            if len(rows):
                at = x0 + (rows - y0) / (y1 - y0) * (x1 - x0)
                crossings[rows] += columns[None] < at[:, None]
    odd: np.ndarray = crossings % 2 == 1
    return odd


def _area(loop: np.ndarray) -> float:
    x, y = loop.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)
