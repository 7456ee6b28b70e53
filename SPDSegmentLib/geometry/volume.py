"""Volumes in patient space: a scalar array and its affine, read from image files or DICOM folders."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from SPDSegmentLib.errors import BadInput, GeometryUnsupported
from SPDSegmentLib.files import plain_path
from SPDSegmentLib.geometry.formats import NiftiFiles, check_file, is_dicom
from SPDSegmentLib.geometry.limits import check_memory
from SPDSegmentLib.geometry.nifti import cut_short, frame_index, invalid_values, nifti_position, read_voxels

if TYPE_CHECKING:
    import SimpleITK
    from numpy.typing import ArrayLike

    Image: TypeAlias = "str | Path | np.ndarray | Volume | SimpleITK.Image"

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHEAR_TOLERANCE = 1e-3
LARGEST_INTENSITY = 1e30
"""Far within float32, in which the network computes."""
SPACING_LIMITS_MM = (0.01, 100.0)
MAX_EXTENT_MM = 3000.0
MAX_OFFSET_MM = 1e5
"""Voxels, volumes and places beyond these are no patient's: the file's unit or spacing is wrong."""
_PIXEL_KIND = "NRRD_kinds[pixel]"
"""Of the axis of an NRRD file that is none of space: ``list`` for the frames of a sequence of 3D Slicer."""
_CUT_SHORT = ("got only", "but received", "couldn't parse element", "data read error")
"""Words of ITK's messages about data that end early."""
_BAD_AXES = ("orthonormal", "Bad direction", "determinant", "Zero-valued spacing")
"""Words of ITK's messages about directions that it cannot use."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3-D scalar image.

    Attributes:
        array: (K, J, I), as SimpleITK and ``slicer.util.arrayFromVolume`` give it.
        ijk_to_ras: (4, 4), voxel indexes to patient millimeters, right-anterior-superior.
        name: for messages.
        series_uid, frame_of_reference: of the DICOM series that it was read from, else empty.

    Raises:
        BadInput: ``ijk_to_ras`` is no matrix (4, 4), or its last row is not 0, 0, 0, 1.
        GeometryUnsupported: no valid position, degenerate or sheared axes.
    """

    array: np.ndarray
    ijk_to_ras: np.ndarray
    name: str = ""
    series_uid: str = ""
    frame_of_reference: str = ""

    def __post_init__(self) -> None:
        name = f"volume {self.name}".strip()
        wanted = "Give the matrix (4, 4) from voxel indexes to patient mm, its last row 0, 0, 0, 1."
        try:
            matrix = np.array(self.ijk_to_ras, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise BadInput("ijk_to_ras is no matrix of numbers.", wanted, repr(error)) from error
        if matrix.shape != (4, 4):
            raise BadInput(f"ijk_to_ras has the shape {matrix.shape}.", wanted)
        if not np.isfinite(matrix).all():
            raise GeometryUnsupported(
                f"The {name} has no valid position in space.", "Correct its header, or ijk_to_ras if that was given."
            )
        if not np.allclose(matrix[3], (0, 0, 0, 1), rtol=0, atol=1e-6):
            row = ", ".join(f"{value:.4g}" for value in matrix[3])
            turned = ": it may be transposed" if np.array_equal(matrix[:, 3], (0, 0, 0, 1)) else ""
            raise BadInput(f"The last row of ijk_to_ras is {row}{turned}.", wanted)
        object.__setattr__(self, "ijk_to_ras", matrix)
        lengths = np.linalg.norm(matrix[:3, :3], axis=0)
        if (lengths < 1e-9).any() or abs(np.linalg.det(matrix[:3, :3])) < 1e-9 * lengths.prod():
            raise GeometryUnsupported(f"The axes of the {name} do not span space.", "Resample it first.")
        if not has_right_angles(matrix):
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
        lengths: np.ndarray = np.linalg.norm(self.ijk_to_ras[:3, :3], axis=0)
        return lengths

    @property
    def ras_to_ijk(self) -> np.ndarray:
        """(4, 4) inverse of :attr:`ijk_to_ras`."""
        return np.linalg.inv(self.ijk_to_ras)

    @property
    def voxel_mm3(self) -> float:
        """Size of a voxel in cubic millimeters."""
        return abs(float(np.linalg.det(self.ijk_to_ras[:3, :3])))

    def to_ras(self, ijk: np.ndarray) -> np.ndarray:
        """Voxel indexes (N, 3) to patient millimeters (N, 3)."""
        return transformed(ijk, self.ijk_to_ras)

    def to_ijk(self, ras: np.ndarray) -> np.ndarray:
        """Patient millimeters (N, 3) to voxel indexes (N, 3), with fractions."""
        return transformed(ras, self.ras_to_ijk)


def transformed(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points (N, 3) through a (4, 4) matrix, each bit for bit as if it were alone.

    The last bits of a matrix product depend on N.
    """
    of, (x, y, z, origin) = np.asarray(points, dtype=np.float64), matrix[:3].T
    return np.asarray(of[..., :1] * x + of[..., 1:2] * y + of[..., 2:] * z + origin)


def has_right_angles(matrix: np.ndarray) -> bool:
    """Whether the axes of a (4, 4) matrix, whose columns have a length, are at right angles to each other."""
    axes = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() <= SHEAR_TOLERANCE)


def read_volume(path: str | Path, series: str | None = None, frame: int | None = None) -> Volume:
    """Read an image file, or a DICOM folder or multi-frame file.

    Args:
        series: for a DICOM folder with several image series, the wanted one's number, UID or the end of it, or
            description.
        frame: for a 4-D NIfTI, NRRD or MetaImage file, a sequence of 3D Slicer, and a DICOM series of several volumes
            in time the wanted frame, from 1.

    Raises:
        BadInput: missing, unreadable, cut short, of another format or name, not 3-D and no frame chosen, color, not
            numbers, NIfTI with NaN or infinite values (ITK would read 0), of a size that no patient has, or several
            DICOM series.
        GeometryUnsupported: degenerate or sheared axes, two positions in one file, DICOM slices that are not equally
            spaced.
    """
    path = Path(path)
    if not path.exists():
        raise BadInput(f"There is no image {path}.", "Check the path.")
    if series is not None and not path.is_dir():
        raise BadInput(f"The image {path} is a file; a series is chosen in a DICOM folder.", "Leave out --series.")
    if path.is_dir() or is_dicom(path):
        from SPDSegmentLib.geometry.dicom import read_dicom
        from SPDSegmentLib.geometry.dicom_series import readable

        with readable(path):
            array, ijk_to_lps, header = read_dicom(path, series, frame)
            uids = [str(header.get(name) or "") for name in ("SeriesInstanceUID", "FrameOfReferenceUID")]
        volume = Volume(array, LPS_TO_RAS @ ijk_to_lps, path.name, *uids)
        check_size(volume)
        return volume
    nifti = check_file(path)
    if nifti is not None:
        return _read_nifti(path, nifti, frame)
    volume = volume_from_image(_read_file(path), path.name, frame)
    check_size(volume)
    return volume


def _read_nifti(path: Path, files: NiftiFiles, frame: int | None) -> Volume:
    """The image where ITK, and with it 3D Slicer, places it; a NIfTI-2 image where its standard says."""
    shape, stored, scaled = files.header.extent[:3], files.header.dtype, files.header.scaled_dtype
    if stored is not None and all(n > 0 for n in shape):
        kept = (scaled or stored).itemsize
        check_memory(f"The image {path}", shape, kept, stored.itemsize + kept if scaled else kept)
    array = read_voxels(path, files.header, files.voxels, frame)
    said = nifti_position(files.header)
    if files.header.version == 1:
        placed = _itk_position(path, files.header_file)
    elif said is not None:
        placed = said
    else:
        raise GeometryUnsupported(f"The image {path} does not say how it lies in space.", "Give it an sform.")
    volume = Volume(array, placed, path.name)
    check_size(volume, files.header.unit or "")
    off = 0.0 if said is None else farthest_corner_mm(volume.shape_ijk, said, placed)
    if off > 0.1 * volume.spacing_mm.min():
        raise GeometryUnsupported(
            f"The header of the image {path} gives its voxels two places or sizes, {off:.3g} mm apart"
            " (pixdim, qform, sform).",
            "Load it in 3D Slicer, check that it lies right, and save it as a new file.",
        )
    return volume


def _itk_position(path: Path, header_file: Path) -> np.ndarray:
    """(4, 4) ijk_to_ras as ITK understands a header."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO("NiftiImageIO")
    try:
        with plain_path(header_file) as plain:
            reader.SetFileName(str(plain))
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise _not_read(path, str(error)) from error
    return ijk_to_ras_of(reader)


def _read_file(path: Path) -> SimpleITK.Image:
    import SimpleITK as sitk

    try:
        with plain_path(path) as plain:
            reader = sitk.ImageFileReader()
            reader.SetFileName(str(plain))
            reader.ReadImageInformation()
            bits = re.search(r"(\d+)-bit", sitk.GetPixelIDValueAsString(reader.GetPixelID()))
            voxel_bytes, shape = int(bits[1]) // 8 if bits else 1, reader.GetSize()
            frames = reader.GetNumberOfComponents() * math.prod(shape[3:])
            copies = 1 if frames == 1 else 2  # ITK's of the frame, and the array
            check_memory(f"The image {path}", shape[:3], voxel_bytes, (frames + copies) * voxel_bytes)
            image: SimpleITK.Image = reader.Execute()
            return image
    except RuntimeError as error:
        raise _not_read(path, str(error)) from error


def _not_read(path: Path, details: str) -> BadInput | GeometryUnsupported:
    """The error of a file that ITK refuses."""
    if any(words in details for words in _BAD_AXES):
        return GeometryUnsupported(
            f"The axes of the image {path} are not at right angles or do not span space.",
            "Resample it to a regular grid first.",
            details,
        )
    if any(words in details for words in _CUT_SHORT):
        return cut_short(path, details=details)
    return BadInput(f"The image {path} cannot be read.", "Give a NIfTI, NRRD or MetaImage file.", details)


def volume_from_image(image: SimpleITK.Image, name: str, frame: int | None = None) -> Volume:
    """Convert a SimpleITK image, or a frame of one, LPS to RAS.

    Raises:
        BadInput: not 3-D and no frame chosen, or more than one value per voxel.
    """
    import SimpleITK as sitk

    said = f"The image {name}".strip()
    is_list = image.HasMetaDataKey(_PIXEL_KIND) and image.GetMetaData(_PIXEL_KIND) == "list"
    if image.GetDimension() == 4:
        image = image[:, :, :, frame_index(name, image.GetSize()[3], frame)]
    elif image.GetDimension() == 3 and is_list and not name.lower().endswith(".seg.nrrd"):
        index = frame_index(name, image.GetNumberOfComponentsPerPixel(), frame)
        image = sitk.VectorIndexSelectionCast(image, index)
    elif frame is not None:
        frame_index(name, 1, frame)
    if image.GetDimension() != 3:
        raise BadInput(f"{said} has {image.GetDimension()} dimensions.", "Give one 3-D volume, such as a single frame.")
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise BadInput(
            f"{said} has {image.GetNumberOfComponentsPerPixel()} values per voxel.",
            "Give a gray-scale volume, or a segmentation without overlapping segments.",
        )
    array = sitk.GetArrayFromImage(image)
    if array.dtype.kind not in "biuf":
        raise BadInput(f"{said} holds complex numbers.", "Save their magnitude as an image of its own.")
    return Volume(array, ijk_to_ras_of(image), name)


def farthest_corner_mm(shape_ijk: tuple[int, int, int], first: np.ndarray, second: np.ndarray) -> float:
    """How far apart two matrices (4, 4) put the same corner of a grid, at most."""
    far = np.array(shape_ijk) - 1.0
    corners = np.array([[*corner, 1.0] for corner in itertools.product(*((0.0, f) for f in far))])
    return float(np.linalg.norm((corners @ (first - second).T)[:, :3], axis=1).max())


def ijk_to_ras_of(image: Any) -> np.ndarray:
    """(4, 4) matrix of the first three axes of a SimpleITK image, or of a reader that knows its header."""
    n, matrix = image.GetDimension(), np.eye(4)
    matrix[:3, :3] = np.array(image.GetDirection()).reshape(n, n)[:3, :3] * np.array(image.GetSpacing())[:3]
    matrix[:3, 3] = image.GetOrigin()[:3]
    return LPS_TO_RAS @ matrix


def set_geometry(image: SimpleITK.Image, ijk_to_ras: np.ndarray) -> SimpleITK.Image:
    """Give a SimpleITK image the position of ``ijk_to_ras``; returns it."""
    lps = LPS_TO_RAS @ ijk_to_ras
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def volume_of(image: Image, ijk_to_ras: ArrayLike | None, series: str | None, frame: int | None = None) -> Volume:
    """The volume of whatever a caller calls an image, checked."""
    placed = isinstance(image, str | Path | Volume) or hasattr(image, "GetPixelID")
    if placed and ijk_to_ras is not None:
        raise BadInput("ijk_to_ras was given for an image that says itself where its voxels lie.", "Leave it out.")
    if isinstance(image, str | Path):
        volume = read_volume(image, series, frame)
    elif isinstance(image, Volume):
        volume = image
    elif hasattr(image, "GetPixelID"):
        volume = volume_from_image(cast("SimpleITK.Image", image), "", frame)
    else:
        array = np.asarray(image)
        if ijk_to_ras is None:
            raise BadInput(
                "An image given as an array needs ijk_to_ras, the matrix (4, 4) from its voxel indexes to patient mm.",
                "Give it, or give the image's file.",
            )
        if array.ndim != 3:
            raise BadInput(f"The image is an array of shape {array.shape}.", "Give one of shape (K, J, I).")
        volume = Volume(array, cast("np.ndarray", ijk_to_ras))
    check_image(volume)
    return volume


def check_size(volume: Volume, unit: str = "") -> None:
    """Refuse voxels, volumes and places that no patient has.

    Args:
        unit: of lengths in the file, for the message.

    Raises:
        BadInput: the unit or the spacing of the file is wrong.
    """
    spacing, low, high = volume.spacing_mm, *SPACING_LIMITS_MM
    extent = float((spacing * volume.shape_ijk).max())
    name = f"image {volume.name}" if volume.name else "volume"
    voxels = " x ".join(f"{v:.4g}" for v in spacing) + " mm" + (f" (the file's unit is {unit})" if unit else "")
    remedy = "Correct the unit or the spacing in the file, and place the points on that image."
    if spacing.min() < low or spacing.max() > high:
        raise BadInput(f"The voxels of the {name} are {voxels}; {low:g} to {high:g} mm are possible.", remedy)
    if extent > MAX_EXTENT_MM:
        raise BadInput(f"The {name} is {extent:.4g} mm long with voxels of {voxels}, larger than a patient.", remedy)
    if np.abs(volume.ijk_to_ras[:3, 3]).max() > MAX_OFFSET_MM:
        raise BadInput(f"The {name} lies more than {MAX_OFFSET_MM / 1000:g} m from the origin.", remedy)


def check_image(volume: Volume) -> None:
    """Refuse images that hold nothing to segment.

    Raises:
        BadInput: empty, not numeric, NaN or infinite values, one value everywhere, or a size that no patient has.
    """
    array: Any = volume.array
    name = f"image {volume.name}" if volume.name else "volume"
    if array.ndim != 3 or array.size == 0:
        raise BadInput(f"The {name} is not a 3-D volume with voxels.")
    if array.dtype.kind not in "iuf":
        held = "holds only true and false, as a mask does" if array.dtype.kind == "b" else "does not hold numbers"
        raise BadInput(f"The {name} {held}.", "Give a gray-scale volume.")
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
    check_size(volume)
