"""Images from DICOM folders and files, read whole or not at all.

Pixels that are not compressed are taken as they are; GDCM, through SimpleITK, decodes those of the JPEG family.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from SPDSegmentLib.errors import BadInput, require_package
from SPDSegmentLib.files import plain_path
from SPDSegmentLib.geometry.dicom_frames import Frame, at_one_time, frames_of, sorted_frames
from SPDSegmentLib.geometry.dicom_series import (
    choose_series,
    damaged_file,
    is_directory,
    is_image,
    read_header,
    uid_of,
)
from SPDSegmentLib.geometry.limits import BYTES_BESIDE_VOXEL, check_memory

_COPY = "Copy the series again."
_NATIVE = {
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2",
}  # fmt: skip
_RLE = "1.2.840.10008.1.2.5"


def read_dicom(path: Path, series: str | None = None, number: int | None = None) -> tuple[np.ndarray, np.ndarray, Any]:
    """Read the image series of a folder, or a file that holds a whole volume (enhanced multi-frame).

    Args:
        series: which one, see :func:`SPDSegmentLib.geometry.dicom_series.choose_series`.
        number: of a series of several volumes in time the wanted one, from 1.

    Returns:
        Values (K, J, I), the matrix (4, 4) of (I, J, K) to LPS mm, and the header of the first slice.

    Raises:
        BadInput: no image series, several (or several volumes in one) without a choice, files that cannot be read, one
            slice of a series.
        GeometryUnsupported: slices are missing, doubled, or shifted against each other (gantry tilt).
        OutOfMemory: it does not fit into free memory.
    """
    frames, where = _frames(path, series, number)
    frames, matrix = sorted_frames(frames, where)
    rows, columns = frames[0].size
    slices_and_volume = 2 * max(_voxel_bytes(frame.header) for frame in frames)  # both are there meanwhile
    check_memory(f"T{where[1:]}", (columns, rows, len(frames)), slices_and_volume - BYTES_BESIDE_VOXEL)
    return read_pixels(frames), matrix, frames[0].header


def source_frames(path: Path, series: str | None = None, number: int | None = None) -> list[Frame]:
    """The frames of an image in the order in which its volume has them along K.

    Raises:
        BadInput, GeometryUnsupported: as :func:`read_dicom`.
    """
    return sorted_frames(*_frames(path, series, number))[0]


def _frames(path: Path, series: str | None, number: int | None) -> tuple[Sequence[Frame], str]:
    """The frames of an image, in no order, and its name for messages."""
    folder = path.is_dir()
    files = choose_series(path, series) if folder else {path: _whole_volume(path)}
    frames = [frame for file, header in files.items() for frame in frames_of(header, file)]
    return at_one_time(frames, path, number), f"the DICOM {'series in' if folder else 'file'} {path}"


def _whole_volume(path: Path) -> Any:
    """The header of a file that holds a whole volume."""
    require_package("pydicom")
    header = read_header(path)
    if header is None:
        raise damaged_file(path)
    if is_directory(header):
        raise BadInput(f"The file {path} is the table of contents of a DICOM disk.", f"Give its folder {path.parent}.")
    if not is_image(header):
        raise BadInput(f"The DICOM file {path} is no image ({header.get('Modality') or 'unknown'}).", "Give an image.")
    if int(header.get("NumberOfFrames") or 1) == 1:
        raise BadInput(
            f"The file {path} is one slice of a DICOM series.",
            f"Give its folder {path.parent}; where that holds several series, with --series {uid_of(header)}.",
        )
    return header


def _voxel_bytes(header: Any) -> int:
    """Of one stored value, as the header says; without it as many as one may have."""
    try:
        return max(1, math.ceil(int(header.get("BitsAllocated")) / 8) * int(header.get("SamplesPerPixel") or 1))
    except (TypeError, ValueError):
        return 2 if "BitsStored" in header else 8  # of numbers with fractions no bits are said to be stored


def read_pixels(frames: Sequence[Frame]) -> np.ndarray:
    """The values (K, J, I) of sorted frames, each scaled by its own slope and intercept.

    Whole slopes and intercepts give whole numbers, as small as holds them, where the stored values are whole too;
    all else is float32, in which the network computes, also what is stored with more digits.

    Raises:
        BadInput: a file whose pixels are missing, cut short or cannot be decoded.
    """
    whole = all(float(number).is_integer() for frame in frames for number in frame.scaling)
    slices: list[np.ndarray | None] = [None] * len(frames)
    wanted: dict[Path, list[int]] = {}
    for k, frame in enumerate(frames):
        wanted.setdefault(frame.file, []).append(k)
    for file, places in wanted.items():
        for k, pixels in _scaled(file, [(k, frames[k]) for k in places]):
            slices[k] = _smallest(pixels) if whole else _single(pixels)
    return _single(np.stack([part for part in slices if part is not None]))


def _scaled(file: Path, wanted: Sequence[tuple[int, Frame]]) -> Iterator[tuple[int, np.ndarray]]:
    dataset = read_header(file, pixels=True)
    stored = _stored_values(dataset, file)
    scaled = None if stored is not None else _decoded_by_gdcm(dataset, file, [frame for _, frame in wanted])
    for k, frame in wanted:
        if scaled is not None:
            yield k, scaled[frame.index]
        elif stored is not None:
            slope, intercept = frame.scaling
            yield k, stored[frame.index] if frame.scaling == (1, 0) else stored[frame.index] * slope + intercept


def _stored_values(dataset: Any, file: Path) -> np.ndarray | None:
    """Stored values (N, rows, columns) of an image that is not compressed, or by run lengths; None for others."""
    syntax = str(getattr(dataset.file_meta, "TransferSyntaxUID", "") or "1.2.840.10008.1.2")
    floats = next((name for name in ("FloatPixelData", "DoubleFloatPixelData") if name in dataset), None)
    if floats is None and "PixelData" not in dataset:
        raise BadInput(f"The DICOM file {file} has no pixels: it is cut short or damaged.", _COPY)
    count = int(dataset.get("NumberOfFrames") or 1)
    shape = (count, int(dataset.Rows), int(dataset.Columns))
    if syntax not in _NATIVE:
        if syntax != _RLE:
            return None
        try:
            values = np.asarray(dataset.pixel_array).reshape(shape)
        except Exception as error:
            raise _cut(file) from error
    else:
        bits = int(dataset.get("BitsAllocated") or 16)
        order = ">" if syntax == "1.2.840.10008.1.2.2" else "<"
        if floats is not None:
            kind = np.dtype(f"{order}f{4 if floats == 'FloatPixelData' else 8}")
        elif bits in (8, 16, 32):
            kind = np.dtype(f"{order}{'i' if dataset.get('PixelRepresentation') else 'u'}{bits // 8}")
        else:
            raise BadInput(f"The DICOM file {file} has {bits} bits per pixel.", "Give an image of 8, 16 or 32 bits.")
        content = dataset[floats or "PixelData"].value or b""
        if len(content) < math.prod(shape) * kind.itemsize:
            raise _cut(file)
        values = np.frombuffer(content, kind, math.prod(shape)).reshape(shape).astype(kind.newbyteorder("="))
    return values if values.dtype.kind == "f" else _stored_bits(dataset, values)


def _stored_bits(dataset: Any, values: np.ndarray) -> np.ndarray:
    """Without what else the bits beyond the stored ones hold, such as overlays, and with the sign of these."""
    allocated = values.dtype.itemsize * 8
    stored = int(dataset.get("BitsStored") or allocated)
    high = int(dataset.get("HighBit") if dataset.get("HighBit") is not None else stored - 1)
    if stored == allocated or not 0 < stored <= high + 1 <= allocated:
        return values
    return (values << (allocated - 1 - high)) >> (allocated - stored)


def _decoded_by_gdcm(dataset: Any, file: Path, frames: Sequence[Frame]) -> np.ndarray:
    """Scaled values (N, rows, columns) of a compressed image; GDCM scales all frames by one slope."""
    import SimpleITK as sitk
    from pydicom.encaps import generate_frames

    count = int(dataset.get("NumberOfFrames") or 1)
    if len({frame.scaling for frame in frames}) > 1:
        raise BadInput(
            f"The frames of the compressed DICOM file {file} are scaled differently.", "Save it uncompressed."
        )
    try:
        streams = list(generate_frames(dataset.PixelData, number_of_frames=count))
    except Exception as error:
        raise _cut(file) from error
    if len(streams) != count or not all(stream.rstrip(b"\0").endswith(b"\xff\xd9") for stream in streams):
        raise _cut(file)  # each stream of the JPEG family has an end marker
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    try:
        with plain_path(file) as plain:
            reader.SetFileName(str(plain))
            values = np.asarray(sitk.GetArrayFromImage(reader.Execute()))
        return values.reshape(count, int(dataset.Rows), int(dataset.Columns))
    except (RuntimeError, ValueError) as error:
        raise BadInput(
            f"The pixels of the DICOM file {file} cannot be decoded.", "Copy it again, or save it uncompressed.",
            repr(error),
        ) from error  # fmt: skip


def _cut(file: Path) -> BadInput:
    return BadInput(f"The pixels of the DICOM file {file} are cut short.", _COPY)


def _smallest(values: np.ndarray) -> np.ndarray:
    """Whole numbers in int16 where they fit, else in int32 or int64; others, and larger ones, in float32."""
    if values.dtype.kind != "f" or np.array_equal(np.rint(values), values):
        low, high = values.min(), values.max()
        for kind in (np.int16, np.int32, np.int64):
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return values.astype(kind)
    return _single(values)


def _single(values: np.ndarray) -> np.ndarray:
    """Numbers with fractions in float32; what it does not reach becomes infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False) if values.dtype.kind == "f" else values
