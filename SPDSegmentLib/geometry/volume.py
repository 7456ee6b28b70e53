"""Volumes in patient space: a scalar array and its affine, read from image files or DICOM folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from SPDSegmentLib.errors import BadInput, GeometryUnsupported
from SPDSegmentLib.geometry.nifti import Defect, nifti_defect
from SPDSegmentLib.names import plain_path

if TYPE_CHECKING:
    import SimpleITK

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHEAR_TOLERANCE = 1e-3
LARGEST_INTENSITY = 1e30
"""Far within float32, in which the network computes."""
_BAD_AXES = ("orthonormal", "Bad direction", "determinant", "Zero-valued spacing")
"""Words of ITK's messages about directions that it cannot use."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3-D scalar image.

    Attributes:
        array: (K, J, I), as SimpleITK and ``slicer.util.arrayFromVolume`` give it.
        ijk_to_ras: (4, 4), voxel indexes to patient millimetres, right-anterior-superior.
        name: for messages.

    Raises:
        GeometryUnsupported: degenerate or sheared axes.
    """

    array: np.ndarray
    ijk_to_ras: np.ndarray
    name: str = ""

    def __post_init__(self) -> None:
        name = f"volume {self.name}".strip()
        matrix = np.array(self.ijk_to_ras, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise GeometryUnsupported(f"The {name} has no valid position in space.")
        object.__setattr__(self, "ijk_to_ras", matrix)
        lengths = np.linalg.norm(matrix[:3, :3], axis=0)
        if (lengths < 1e-9).any() or abs(np.linalg.det(matrix[:3, :3])) < 1e-9 * lengths.prod():
            raise GeometryUnsupported(f"The axes of the {name} do not span space.", "Resample it first.")
        axes = matrix[:3, :3] / lengths
        if np.abs(axes.T @ axes - np.eye(3)).max() > SHEAR_TOLERANCE:
            raise GeometryUnsupported(
                f"The axes of the {name} are not at right angles.", "Resample it to a regular grid first."
            )

    @property
    def shape_ijk(self) -> tuple[int, int, int]:
        """Number of voxels along I, J, K."""
        k, j, i = self.array.shape
        return i, j, k

    @property
    def spacing_mm(self) -> np.ndarray:
        """(3,) distance of voxels along I, J, K."""
        return np.linalg.norm(self.ijk_to_ras[:3, :3], axis=0)

    @property
    def ras_to_ijk(self) -> np.ndarray:
        """(4, 4) inverse of :attr:`ijk_to_ras`."""
        return np.linalg.inv(self.ijk_to_ras)


def read_volume(path: str | Path, series: str | None = None) -> Volume:
    """Read an image file or a DICOM folder.

    Args:
        series: for a DICOM folder with several image series, the end of the wanted series' UID.

    Raises:
        BadInput: missing, unreadable, cut short, not 3-D, colour, NIfTI with NaN or infinite values (ITK would read 0),
            or several DICOM series to choose from.
        GeometryUnsupported: degenerate or sheared axes, DICOM slices that are not equally spaced.
    """
    path = Path(path)
    if not path.exists():
        raise BadInput(f"There is no image {path}.", "Check the path.")
    if path.is_dir():
        from SPDSegmentLib.geometry.dicom import read_dicom_folder

        with plain_path(path, contents=True) as folder:
            image = read_dicom_folder(folder, series)
    else:
        image = _read_file(path)
        if path.name.lower().endswith((".nii", ".nii.gz")):
            defect = nifti_defect(path)
            if defect is Defect.TRUNCATED:
                raise BadInput(f"The image {path} is cut short or damaged.", "Copy or download it again.")
            if defect is Defect.INVALID_VALUES:
                raise invalid_values(f"image {path.name}")
    return volume_from_image(image, path.name)


def _read_file(path: Path) -> SimpleITK.Image:
    import SimpleITK as sitk

    try:
        with plain_path(path) as plain:
            return sitk.ReadImage(str(plain))
    except RuntimeError as error:
        details = str(error)
    if any(words in details for words in _BAD_AXES):
        raise GeometryUnsupported(
            f"The axes of the image {path} are not at right angles or do not span space.",
            "Resample it to a regular grid first.",
            details,
        )
    raise BadInput(f"The image {path} cannot be read.", "Give a NIfTI, NRRD or MetaImage file.", details)


def volume_from_image(image: SimpleITK.Image, name: str) -> Volume:
    """Convert a SimpleITK image, LPS to RAS.

    Raises:
        BadInput: not 3-D or more than one value per voxel.
    """
    import SimpleITK as sitk

    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() != 3:
        raise BadInput(
            f"The image {name} has {image.GetDimension()} dimensions.", "Give one 3-D volume, such as a single frame."
        )
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise BadInput(
            f"The image {name} has {image.GetNumberOfComponentsPerPixel()} values per voxel.",
            "Give a gray-scale volume, or a segmentation without overlapping segments.",
        )
    return Volume(sitk.GetArrayFromImage(image), ijk_to_ras_of(image), name)


def ijk_to_ras_of(image: SimpleITK.Image) -> np.ndarray:
    """(4, 4) matrix of a 3-D SimpleITK image."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    matrix[:3, 3] = image.GetOrigin()
    return LPS_TO_RAS @ matrix


def set_geometry(image: SimpleITK.Image, ijk_to_ras: np.ndarray) -> SimpleITK.Image:
    """Give a SimpleITK image the position of ``ijk_to_ras``; returns it."""
    lps = LPS_TO_RAS @ ijk_to_ras
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def check_image(volume: Volume) -> None:
    """Refuse images that hold nothing to segment.

    Raises:
        BadInput: empty, not numeric, NaN or infinite values, or one value everywhere.
    """
    array: Any = volume.array
    name = f"image {volume.name}" if volume.name else "volume"
    if array.ndim != 3 or array.size == 0:
        raise BadInput(f"The {name} is not a 3-D volume with voxels.")
    if array.dtype.kind not in "biuf":
        raise BadInput(f"The {name} does not hold numbers.", "Give a gray-scale volume.")
    low, high = array.min(), array.max()  # NaN goes through both, without a temporary array
    if not (np.isfinite(low) and np.isfinite(high)):
        raise invalid_values(name)
    if max(abs(float(low)), abs(float(high))) > LARGEST_INTENSITY:
        raise BadInput(
            f"The {name} has intensities from {low:.3g} to {high:.3g}, beyond what any scanner gives.",
            "Check how it was made, and save it again with its true intensities.",
        )
    if low == high:
        raise BadInput(f"The {name} has the same value everywhere.", "Choose another image.")


def invalid_values(name: str) -> BadInput:
    """The error of an image with NaN or infinite voxels."""
    return BadInput(
        f"The {name} has invalid values (NaN or infinite).", "Replace them, for example by the background value."
    )
