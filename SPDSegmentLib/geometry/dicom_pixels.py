"""DICOM files: headers with pydicom, and the values of frames.

Pixels that are not compressed are taken as they are; GDCM, through SimpleITK, decodes those of the JPEG family.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.dicom_frames import Frame

_COPY = "Copy the series again."
_NATIVE = {
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2",
}  # fmt: skip
_RLE = "1.2.840.10008.1.2.5"


def read_header(path: Path, pixels: bool = False) -> Any:
    """A pydicom dataset, None where the file is not DICOM.

    Raises:
        BadInput: it is damaged.
    """
    import pydicom

    with path.open("rb") as file:
        start = file.read(136)
    preamble = start[128:132] == b"DICM"
    if not preamble and start[:2] not in (b"\x08\x00", b"\x02\x00"):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, force=not preamble, stop_before_pixels=not pixels)
            if not preamble and "SOPClassUID" not in dataset:
                return None
            return dataset
    except Exception as error:
        if not preamble:
            return None
        raise BadInput(f"The DICOM file {path} is cut short or damaged.", _COPY, repr(error)) from error


def read_pixels(frames: Sequence[Frame]) -> np.ndarray:
    """The values (K, J, I) of sorted frames, each scaled by its own slope and intercept.

    Whole slopes and intercepts give whole numbers, as small as holds them; others float32.

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
            slices[k] = pixels.astype(np.int64 if whole else np.float32) if pixels.dtype.kind == "f" else pixels
            slices[k] = _smallest(slices[k]) if whole else slices[k]
    return np.stack([part for part in slices if part is not None])


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
    reader.SetFileName(str(file))
    try:
        values = np.asarray(sitk.GetArrayFromImage(reader.Execute()))
        return values.reshape(count, int(dataset.Rows), int(dataset.Columns))
    except (RuntimeError, ValueError) as error:
        raise BadInput(
            f"The pixels of the DICOM file {file} cannot be decoded.", "Copy it again, or save it uncompressed.",
            repr(error),
        ) from error  # fmt: skip


def _cut(file: Path) -> BadInput:
    return BadInput(f"The pixels of the DICOM file {file} are cut short.", _COPY)


def _smallest(values: np.ndarray | None) -> np.ndarray | None:
    """Whole numbers in int16 where they fit, else in int32 or int64."""
    if values is None:
        return None
    low, high = int(values.min()), int(values.max())
    for kind in (np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return values.astype(kind)
    return values.astype(np.int64)
