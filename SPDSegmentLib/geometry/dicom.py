"""DICOM folders and files: every file is looked at, one series is chosen, and it is read whole or not at all."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from SPDSegmentLib.errors import BadInput, missing_package
from SPDSegmentLib.geometry.dicom_frames import Frame, frames_of, sorted_frames
from SPDSegmentLib.geometry.dicom_pixels import read_header, read_pixels
from SPDSegmentLib.geometry.limits import BYTES_BESIDE_VOXEL, check_memory

NOT_IMAGES = {"SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "RTRECORD", "REG", "SR", "PR", "KO", "FID", "DOC"}
"""Modalities that are made from images; some hold pixels, none is the image that the user means."""
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
MAX_LISTED = 8
MAX_SEARCHED = 2000
_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


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
