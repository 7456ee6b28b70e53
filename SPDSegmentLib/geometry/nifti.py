"""NIfTI files read as they are.

ITK's reader fills missing or invalid data and fields with 0 or 1, takes the voxels of ``a.nii.gz`` from an ``a.nii``
beside it, and knows no NIfTI-2. Here it is only asked how it places the voxels, since 3D Slicer places clicks by it.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from SPDSegmentLib.errors import BadInput

BLOCK_BYTES = 1 << 24
HEADER_BYTES = 544
_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
          32: "2f4", 1792: "2f8", 128: "3u1", 2304: "4u1"}  # fmt: skip
_UNITS = {0: "", 1: "meters", 2: "millimeters", 3: "micrometers"}
_UNIT_MM = {"meters": 1000.0, "micrometers": 0.001}
_COMPLEX = (32, 1792)
_LAYOUTS: dict[int, tuple[int, int, dict[str, tuple[int, str]]]] = {
    348: (1, 344, {"dim": (40, "8h"), "datatype": (70, "h"), "pixdim": (76, "8f"), "start": (108, "f"),
                   "scaling": (112, "2f"), "unit": (123, "B"), "codes": (252, "2h"), "quaternion": (256, "6f"),
                   "rows": (280, "12f")}),
    540: (2, 4, {"datatype": (12, "h"), "dim": (16, "8q"), "pixdim": (104, "8d"), "start": (168, "q"),
                 "scaling": (176, "2d"), "codes": (344, "2i"), "quaternion": (352, "6d"), "rows": (400, "12d"),
                 "unit": (500, "i")}),
}  # fmt: skip
"""By the size of a header in bytes: its version, the place of its magic word, and place and kind of its fields."""
MAX_RATIO = 1100
"""No gzip file holds more bytes than this for each of its own."""


@dataclass(frozen=True, eq=False)
class NiftiHeader:
    """The fields of a NIfTI-1 or NIfTI-2 header that decide what is read.

    Attributes:
        pair: the voxels are in a file of their own, ``.img``.
        start: offset of the voxels in bytes, as the header has it.
        version: of the format, 1 or 2.
        pixdim: (8,) spacing by axis, in the file's unit; the first is the handedness of the quaternion.
        unit: of length, "" where the file has none, None for a code without a meaning.
    """

    version: int
    pair: bool
    order: str
    minimum_start: int
    start: float
    extent: tuple[int, ...]
    datatype: int
    scaling: tuple[float, float]
    pixdim: tuple[float, ...]
    codes: tuple[int, int]
    quaternion: tuple[float, ...]
    rows: tuple[float, ...]
    unit: str | None

    @property
    def dtype(self) -> np.dtype | None:
        """Type of a voxel in the file's byte order, None for one that is not known."""
        kind = _TYPES.get(self.datatype)
        return None if kind is None else np.dtype(f"{kind[:-2]}{self.order}{kind[-2:]}")

    @property
    def scaled_dtype(self) -> np.dtype | None:
        """Type of a voxel once it is scaled as the header says, None where nothing is scaled."""
        slope, inter = self.scaling
        if self.dtype is None or slope == 0 or (slope, inter) == (1, 0):
            return None
        wide = self.dtype.itemsize > (2 if self.dtype.kind in "iu" else 4)
        return np.dtype(np.float64 if wide else np.float32)


def parse_nifti(content: bytes) -> NiftiHeader | None:
    """The header at the begin of a file, of any byte order; None where there is none."""
    for order in "<>":
        size = struct.unpack_from(f"{order}i", content)[0] if len(content) >= 348 else 0
        version, at, layout = _LAYOUTS.get(size, (0, 0, {}))
        magic = content[at : at + 4]
        if not version or len(content) < size or magic not in (b"n+%d\0" % version, b"ni%d\0" % version):
            continue
        found = {name: struct.unpack_from(order + kind, content, place) for name, (place, kind) in layout.items()}
        n_axes, *dim = found["dim"]
        pair = magic[1:2] == b"i"
        return NiftiHeader(
            version=version,
            pair=pair,
            order=order,
            minimum_start=0 if pair else size + 4,
            start=float(found["start"][0]),
            extent=tuple(dim[:n_axes]) if 0 < n_axes < 8 else (),
            datatype=found["datatype"][0],
            scaling=(found["scaling"][0], found["scaling"][1]),
            pixdim=found["pixdim"],
            codes=(found["codes"][0], found["codes"][1]),
            quaternion=found["quaternion"],
            rows=found["rows"],
            unit=_UNITS.get(found["unit"][0] & 7),
        )
    return None


class SeveralFrames(BadInput):
    """An image of several frames, of which none was chosen."""


def frame_index(name: str | Path, count: int, frame: int | None) -> int:
    """The index of a frame that was chosen by its number, from 1; of an image of one frame none need be.

    Raises:
        SeveralFrames: none was chosen.
        BadInput: there is not the one that was.
    """
    said = f"The image {name}".strip()
    if frame is None and count > 1:
        raise SeveralFrames(
            f"{said} has 4 dimensions: it holds {count} frames.",
            f"Choose one, 1 to {count}: --frame N, in a batch also the column frame; or save it as its own image.",
        )
    if frame is not None and not 1 <= frame <= count:
        held = f"{count} frames" if count > 1 else "a single frame"
        alone = "Leave the frame out; in a batch name it in the column frame of those cases that have several."
        remedy = f"Choose one from 1 to {count}." if count > 1 else alone
        raise BadInput(f"{said} has no frame {frame}: it holds {held}.", remedy)
    return (frame or 1) - 1


def read_voxels(path: Path, header: NiftiHeader, voxels: Path, frame: int | None = None) -> np.ndarray:
    """The voxels (K, J, I) of a 3-D image, or of a frame of a 4-D one, scaled as the header says.

    Args:
        path: for messages.
        voxels: the file with the voxels; that very file is read.
        frame: number of the wanted frame of a 4-D image, from 1.

    Raises:
        BadInput: header fields without a meaning, not 3-D and no frame chosen, color, complex numbers, missing data,
            NaN or infinite voxels.
    """
    wrong = _wrong_field(header)
    if wrong:
        raise BadInput(
            f"The image {path} has a damaged header: {wrong}.", "Write it again with the program that made it."
        )
    dtype = header.dtype
    assert dtype is not None
    if header.datatype in _COMPLEX:
        raise BadInput(f"The image {path} holds complex numbers.", "Save their magnitude as an image of its own.")
    sizes = (*header.extent, 1, 1, 1, 1, 1)
    colors = dtype.shape[0] if dtype.shape else sizes[4]
    if colors > 1:
        raise BadInput(f"The image {path} has {colors} values per voxel.", "Give a gray-scale volume.")
    axes = max(min(3, len(header.extent)), *(n for n, size in enumerate(sizes, 1) if size > 1 or n == 1))
    if axes not in (3, 4):
        raise BadInput(f"The image {path} has {axes} dimensions.", "Give one 3-D volume, such as a single frame.")
    index = frame_index(path, sizes[3], frame)
    array = _read_array(voxels, int(header.start), header.extent[2::-1], dtype, index, sizes[3])
    if dtype.kind == "f" and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise invalid_values(f"image {path.name}")
    kind = header.scaled_dtype
    if kind is None:
        return array
    slope, inter = (kind.type(value) for value in header.scaling)
    scaled: np.ndarray = np.multiply(array, slope, dtype=kind)
    scaled += inter
    return scaled


def _read_array(path: Path, start: int, shape: tuple[int, ...], dtype: np.dtype, index: int, count: int) -> np.ndarray:
    """One of ``count`` arrays that lie one after the other; all of them must be there."""
    cut = cut_short(path)
    size = math.prod(shape) * dtype.itemsize
    with path.open("rb") as raw:
        compressed = path.suffix.lower() == ".gz" and raw.read(2) == b"\x1f\x8b"
    if start + count * size > path.stat().st_size * (MAX_RATIO if compressed else 1):
        raise cut
    array = np.empty(shape, dtype)
    view = array.reshape(-1).view(np.uint8).data
    try:
        with cast(BinaryIO, gzip.open(path)) if compressed else path.open("rb") as stream:
            stream.seek(start + index * size)
            while len(view):
                filled = stream.readinto(view[:BLOCK_BYTES])  # type: ignore[attr-defined]
                if not filled:
                    raise cut
                view = view[filled:]
            if index < count - 1:
                stream.seek(start + count * size - 1)
                if not stream.read(1):
                    raise cut
            stream.read(1)  # at the end of a gzip file its checksum is compared
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise cut from error
    native = dtype.newbyteorder("=")
    return array if dtype == native else array.byteswap(inplace=True).view(native)


class CutShort(BadInput):
    """A file that is empty or damaged, or ends before its voxels do: nobody saved it like that."""


def cut_short(path: Path, where: str = "", details: str = "") -> CutShort:
    """The error of an image whose voxels are not all there; ``where`` goes on in the sentence."""
    return CutShort(f"The image {path} is cut short or damaged{where}.", "Copy or download it again.", details)


def invalid_values(name: str) -> BadInput:
    """The error of an image with NaN or infinite voxels."""
    return BadInput(
        f"The {name} has invalid values (NaN or infinite).", "Replace them, for example by the background value."
    )


def _wrong_field(header: NiftiHeader) -> str:
    """The first field that has no meaning, with its value; empty for a sound header."""
    spacing = header.pixdim[1:4]
    slope, inter = header.scaling
    if not header.extent or min(header.extent) < 1:
        return f"a size of {'x'.join(map(str, header.extent)) or 'no axes'} (dim)"
    if header.dtype is None:
        return f"voxels of an unknown kind (datatype {header.datatype})"
    if not (header.minimum_start <= header.start < 2**62 and header.start == int(header.start)):
        return f"voxels that begin at byte {header.start:g} (vox_offset)"
    if not (math.isfinite(slope) and math.isfinite(inter)) or (slope == 0 and inter != 0):
        return f"values scaled by {slope:g} and {inter:g} (scl_slope, scl_inter)"
    if not all(math.isfinite(v) and v > 0 for v in spacing[: len(header.extent)]):
        return f"a spacing of {', '.join(f'{v:g}' for v in spacing)} (pixdim)"
    if header.unit is None:
        return "an unknown unit of length (xyzt_units)"
    quaternion_code, rows_code = header.codes
    if rows_code > 0 and not np.isfinite(header.rows).all():
        return "a position that is not finite (srow)"
    if rows_code <= 0 and quaternion_code > 0:
        if not np.isfinite(header.quaternion).all():
            return "a position that is not finite (quatern, qoffset)"
        if sum(v * v for v in header.quaternion[:3]) > 1.001:
            return "a quaternion longer than 1 (quatern)"
    return ""


def nifti_position(header: NiftiHeader) -> np.ndarray | None:
    """(4, 4) ijk_to_ras in mm: sform where there is one, else qform, else None."""
    quaternion_code, rows_code = header.codes
    matrix = np.eye(4)
    if rows_code > 0:
        matrix[:3] = np.array(header.rows).reshape(3, 4)
    elif quaternion_code > 0:
        b, c, d, *offset = header.quaternion
        a = math.sqrt(max(0.0, 1 - b * b - c * c - d * d))
        rotation = np.array([
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ])  # fmt: skip
        handedness = -1.0 if header.pixdim[0] < 0 else 1.0
        matrix[:3, :3] = rotation * np.array(header.pixdim[1:4]) * (1.0, 1.0, handedness)
        matrix[:3, 3] = offset
    else:
        return None
    matrix[:3] *= _UNIT_MM.get(header.unit or "", 1.0)
    return matrix
