"""Label maps: read, and written in one piece so that no half file is ever left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from SPDSegmentLib.errors import BadInput, well_formed
from SPDSegmentLib.files import check_output, write_whole
from SPDSegmentLib.geometry.volume import Volume, farthest_corner_mm, read_volume, set_geometry

if TYPE_CHECKING:
    import SimpleITK

SUFFIXES = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".mha")
NIFTI_LIMIT = 32_767
HEADER_BYTES = 4096
USUAL_COMPRESSION = 200
"""Voxels of a mask in one byte of a compressed file; a disk with less space than that is refused before the work."""
DEFAULT_COLOR = (0.87, 0.56, 0.35)
DEFAULT_TERMINOLOGY = (
    "Segmentation category and type - 3D Slicer General Anatomy list"
    "~SCT^85756007^Tissue~SCT^85756007^Tissue~^^~Anatomic codes - DICOM master list~^^~^^"
)


def read_labelmap(path: str | Path) -> Volume:
    """Read integer labels on a grid.

    Raises:
        BadInput: as :func:`read_volume`, or values that are not whole numbers.
    """
    volume = read_volume(path)
    array = volume.array
    if array.dtype.kind == "f":
        rounded = np.rint(array)
        if not np.array_equal(rounded, array):
            raise BadInput(f"{path} holds values that are not labels.", "Give a label map with whole numbers.")
        array = rounded.astype(np.int32)
    return Volume(array, volume.ijk_to_ras, volume.name)


def read_labels_of(path: str | Path, volume: Volume) -> np.ndarray:
    """Integer labels (K, J, I) on the grid of ``volume``.

    Raises:
        BadInput: as :func:`read_labelmap`, or another size or place than the volume's.
    """
    labels = read_labelmap(path)
    if not same_grid(labels, volume):
        raise BadInput(f"{path} does not have the same grid as its image {volume.name}.", "Resample it to the image.")
    return labels.array


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


def check_mask_output(path: str | Path, volume: Volume) -> None:
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
    check_output(path, "mask", HEADER_BYTES + (voxels if suffix == ".nii" else voxels // USUAL_COMPRESSION))


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
    if not mask.any():
        return 0, -1, 0, -1, 0, -1
    limits: list[int] = []
    for axis in (2, 1, 0):
        filled = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        limits += [int(filled[0]), int(filled[-1])]
    return tuple(limits)
