"""DICOM folders and files: every file is looked at, one series is chosen, and it is read whole or not at all.

Headers are read with pydicom. Pixels that are not compressed are taken as they are; GDCM, through SimpleITK, decodes
those of the JPEG family.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from SPDSegmentLib.errors import BadInput, missing_package
from SPDSegmentLib.geometry.dicom_frames import Frame, frames_of, sorted_frames
from SPDSegmentLib.geometry.limits import BYTES_BESIDE_VOXEL, check_memory

NOT_IMAGES = {"SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "RTRECORD", "REG", "SR", "PR", "KO", "FID", "DOC"}
"""Modalities that are made from images; some hold pixels, none is the image that the user means."""
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
MAX_LISTED = 8
MAX_SEARCHED = 2000
_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_COPY = "Copy the series again."
_NATIVE = {
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2",
}  # fmt: skip
_RLE = "1.2.840.10008.1.2.5"


def read_dicom_folder(folder: Path, series: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read the image series of a folder; its subfolders are not searched.

    Args:
        series: the end of the wanted series' UID when the folder holds several.

    Returns:
        Values (K, J, I) and the matrix (4, 4) of (I, J, K) to LPS mm.

    Raises:
        BadInput: no image series, several without a choice, files that cannot be read.
        GeometryUnsupported: slices are missing, doubled, or shifted against each other (gantry tilt).
        OutOfMemory: it does not fit into free memory.
    """
    frames, voxel_bytes = _series_frames(folder, series)
    return _read(frames, voxel_bytes, f"the DICOM series in {folder}")


def source_frames(path: Path, series: str | None = None) -> list[Frame]:
    """The frames of a series' folder or of a multi-frame file in the order in which the volume has them along K.

    Raises:
        BadInput, GeometryUnsupported: as :func:`read_dicom_folder` and :func:`read_dicom_file`.
    """
    if path.is_dir():
        return sorted_frames(_series_frames(path, series)[0], f"the DICOM series in {path}")[0]
    return sorted_frames(frames_of(_whole_volume(path), path), f"the DICOM file {path}")[0]


def _series_frames(folder: Path, series: str | None) -> tuple[list[Frame], int]:
    """The frames of the chosen series of a folder, in no order, and the bytes of a stored value."""
    _require_pydicom()
    found, damaged = _image_series(folder)
    chosen = found if series is None else {uid: files for uid, files in found.items() if uid.endswith(series)}
    if not chosen:
        wanted = f" with a UID that ends in {series}" if series else ""
        if found:
            remedy = f"Choose one of these: {_listed(found)}."
        else:
            _check_all_read(damaged, {})
            remedy = _where_else(folder)
        raise BadInput(f"The folder {folder} holds no DICOM image series{wanted}.", remedy)
    if len(chosen) > 1:
        raise BadInput(
            f"The folder {folder} holds {len(chosen)} DICOM image series: {_listed(chosen)}.",
            "Give a folder with one of them; 'segment' also takes --series and the end of its UID.",
        )
    (files,) = chosen.values()
    _check_all_read(damaged, files)
    frames = [frame for file, header in files.items() for frame in frames_of(header, file)]
    return frames, max(map(_voxel_bytes, files.values()))


def read_dicom_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a file that holds a whole volume (enhanced multi-frame); returns as :func:`read_dicom_folder`.

    Raises:
        BadInput: it is one slice of a series, or no image; says what to give instead.
        GeometryUnsupported: as :func:`read_dicom_folder`.
    """
    header = _whole_volume(path)
    return _read(frames_of(header, path), _voxel_bytes(header), f"the DICOM file {path}")


def _whole_volume(path: Path) -> Any:
    """The header of a file that holds a whole volume."""
    _require_pydicom()
    header = read_header(path)
    if header is None:
        raise _damaged(path)
    if _is_directory(header):
        raise BadInput(f"The file {path} is the table of contents of a DICOM disk.", _where_else(path.parent))
    if not _is_image(header):
        raise BadInput(f"The DICOM file {path} is no image ({header.get('Modality') or 'unknown'}).", "Give an image.")
    if int(header.get("NumberOfFrames") or 1) == 1:
        raise BadInput(
            f"The file {path} is one slice of a DICOM series.",
            f"Give its folder {path.parent}; where that holds several series, with --series {_uid(header)}.",
        )
    return header


def _read(frames: Sequence[Frame], voxel_bytes: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    frames, matrix = sorted_frames(frames, where)
    rows, columns = frames[0].size
    slices_and_volume = 2 * voxel_bytes  # both are there while the slices are put together
    check_memory(f"T{where[1:]}", (columns, rows, len(frames)), slices_and_volume - BYTES_BESIDE_VOXEL)
    return read_pixels(frames), matrix


def _voxel_bytes(header: Any) -> int:
    """Of one stored value, as the header says."""
    try:
        return max(1, math.ceil(int(header.get("BitsAllocated")) / 8) * int(header.get("SamplesPerPixel") or 1))
    except (TypeError, ValueError):
        return 2


def _require_pydicom() -> None:
    if importlib.util.find_spec("pydicom") is None:
        raise missing_package("pydicom", "No module named 'pydicom'")


def _image_series(folder: Path) -> tuple[dict[str, dict[Path, Any]], list[Path]]:
    """Headers by series UID and file, without series that are no images; and files that cannot be read."""
    found: dict[str, dict[Path, Any]] = defaultdict(dict)
    damaged: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        try:
            header = read_header(path)
        except OSError as error:
            raise BadInput(f"The file {path} cannot be read.", "Check its permissions.", repr(error)) from error
        except BadInput:
            header = None
        if header is None or ("SeriesInstanceUID" not in header and not _is_directory(header)):
            damaged.append(path)
        elif not _is_directory(header):
            found[_uid(header)][path] = header
    return {uid: files for uid, files in found.items() if any(map(_is_image, files.values()))}, damaged


def _is_image(header: Any) -> bool:
    size = min(int(header.get("Rows") or 0), int(header.get("Columns") or 0))
    return size > 1 and str(header.get("Modality") or "").strip() not in NOT_IMAGES


def _is_directory(header: Any) -> bool:
    return str(getattr(getattr(header, "file_meta", None), "MediaStorageSOPClassUID", "")) == DIRECTORY_CLASS


def _uid(header: Any) -> str:
    return str(header.get("SeriesInstanceUID") or "").strip()


def _check_all_read(damaged: Sequence[Path], files: dict[Path, Any]) -> None:
    """Refuse a series of which a file would be passed over: it is damaged, or named as the others and no DICOM."""
    for file, header in files.items():
        if not _is_image(header):
            raise BadInput(f"The DICOM file {file} of the series is cut short or no image.", "Copy the series again.")
    patterns = {_pattern(file) for file in files}
    for path in damaged:
        if path.suffix.lower() in _DICOM_SUFFIXES or _pattern(path) in patterns:
            raise _damaged(path)


def _damaged(path: Path) -> BadInput:
    return BadInput(
        f"The file {path} is empty, damaged or no DICOM file.",
        "Copy it again, or put it elsewhere if it does not belong to the series.",
    )


def _pattern(path: Path) -> str:
    """A name in which any digits stand for all: slices are numbered."""
    return re.sub(r"\d+", "#", path.name.lower())


def _listed(found: dict[str, dict[Path, Any]]) -> str:
    texts = []
    for uid, files in list(found.items())[:MAX_LISTED]:
        header = next(iter(files.values()))
        told = [str(header.get(name) or "").strip() for name in ("Modality", "SeriesDescription")]
        texts.append(" ".join([f"{uid or 'without a UID'} ({len(files)} files)", *filter(None, told)]))
    return "; ".join([*texts, *(["..."] if len(found) > MAX_LISTED else [])])


def _where_else(folder: Path) -> str:
    """What to give instead of a folder without images: the first subfolder that holds DICOM files."""
    searched = 0
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names) if Path(place) != folder else ():
            searched += 1
            try:
                with (Path(place) / name).open("rb") as file:
                    if file.read(132)[128:] == b"DICM":
                        return f"Give the folder with the files themselves, such as {place}."
            except OSError:
                continue
        if searched > MAX_SEARCHED:
            break
    return "Give the folder with the files themselves; its subfolders are not searched."


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
