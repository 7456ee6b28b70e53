"""DICOM files of a folder: each is looked at, one image series is chosen, and objects drawn on images are found.

Where a folder's own files hold no such series, its subfolders are searched as well. Headers are read with pydicom.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from SPDSegmentLib.errors import BadInput, SPDError, require_package

DRAWN = ("SEG", "RTSTRUCT")
"""Modalities of what is drawn on images."""
NOT_IMAGES = {*DRAWN, "RTDOSE", "RTPLAN", "RTRECORD", "REG", "SR", "PR", "KO", "FID", "DOC"}
"""Modalities that are made from images; some hold pixels, none is the image that the user means."""
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
MAX_LISTED = 8
MAX_SEARCHED = 20_000
_SHORTEST_END = 6
"""Digits that tell the end of a UID from the number of a series."""
_MODALITY_TAG = 0x00080060
_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_COPY = "Copy the series again."

Headers = dict[Path, Any]


def choose_series(folder: Path, series: str | None = None) -> Headers:
    """The files of an image series with their headers, in no order.

    Args:
        series: its number, its UID or the end of it (from a dot on, or six digits), or its description or a part of it.

    Raises:
        BadInput: there is none, several fit, or a file of it cannot be read.
    """
    require_package("pydicom")
    found: dict[str, Headers] = {}
    chosen: dict[str, Headers] = {}
    for below in (False, True):
        headers, damaged = _headers(folder, below)
        by_uid: dict[str, Headers] = defaultdict(dict)
        for path, header in headers.items():
            by_uid[uid_of(header)][path] = header
        found = {uid: files for uid, files in by_uid.items() if any(map(is_image, files.values()))}
        chosen = found if series is None else _named(found, series)
        if chosen:
            break
    if not chosen and not found:
        _check_all_read(damaged, {})
        raise BadInput(
            f"The folder {folder} holds no DICOM image series, nor do its subfolders.", "Give the folder of a series."
        )
    if not chosen:
        raise BadInput(
            f"The folder {folder} holds no DICOM image series with that number or description, or a UID that ends in"
            f" {series}.",
            f"Choose one of these: {_listed(found)}.",
        )
    if len(chosen) > 1:
        raise BadInput(
            f"The folder {folder} holds {len(chosen)} DICOM image series"
            f"{f' that fit {series}' if series else ''}: {_listed(chosen)}.",
            f"Choose one with --series and its {'whole UID' if series else 'UID, number or description'}, or give a "
            "folder with one of them.",
        )
    (files,) = chosen.values()
    _check_all_read(damaged, files)
    return files


def drawn_objects(place: Path) -> Headers:
    """SEG and RTSTRUCT files with their headers: a file itself, or those in a folder, else those below it.

    Raises:
        BadInput: the folder holds too many files.
    """
    for below in (False, True):
        paths = [place] if place.is_file() else list(files_of(place, below))
        found = {path: read_header(path) for path in paths if modality_of(path) in DRAWN}
        if found or place.is_file():
            break
    return found


def folders_of(folder: Path, most: int = 10 * MAX_SEARCHED) -> dict[str, set[str]]:
    """Folders at or below one that hold DICOM files, as paths from there, each with the modalities of its files.

    Raises:
        BadInput: there are more than ``most`` files.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for path in files_of(folder, True, most):
        if modality := modality_of(path):
            found[path.parent.relative_to(folder).as_posix()].add(modality)
    return found


def modality_of(path: Path) -> str:
    """Of a DICOM file with a preamble, read up to there; empty for others."""
    from pydicom.filereader import read_partial

    try:
        with path.open("rb") as file:
            if file.read(132)[128:] != b"DICM":
                return ""
            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                header = read_partial(file, lambda tag, *_: tag > _MODALITY_TAG)
        return str(header.get("Modality") or "").strip()
    except Exception:  # what reads the file says what is wrong with it
        return ""


def person_of(place: Path) -> str:
    """The number of the patient in the first DICOM file at or below a place; empty where there is none."""
    for path in [place] if place.is_file() else files_of(place, True):
        if modality_of(path):
            with readable(path):
                return str(read_header(path).get("PatientID") or "").strip()
    return ""


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what pydicom raises of damaged elements, which it looks at only when they are asked for, into a sentence."""
    try:
        yield
    except (SPDError, MemoryError, OSError):
        raise
    except Exception as error:
        raise BadInput(f"The DICOM data of {path} is damaged.", "Copy or export it again.", repr(error)) from error


def is_image(header: Any) -> bool:
    """Whether a header is that of an image, which no other object is."""
    size = min(int(header.get("Rows") or 0), int(header.get("Columns") or 0))
    return size > 1 and str(header.get("Modality") or "").strip() not in NOT_IMAGES


def is_directory(header: Any) -> bool:
    """Whether a header is that of a disk's table of contents."""
    return str(getattr(getattr(header, "file_meta", None), "MediaStorageSOPClassUID", "")) == DIRECTORY_CLASS


def uid_of(header: Any) -> str:
    """The UID of the series, or empty."""
    return str(header.get("SeriesInstanceUID") or "").strip()


def files_of(folder: Path, below: bool, most: int = MAX_SEARCHED) -> Iterator[Path]:
    """The files of a folder, and of those below it or that links lead to, that are not hidden, in order."""
    count = 0
    root = Path(os.path.realpath(folder))
    seen = {root, *root.parents}  # a link to one of them leads in a circle, or to others' files

    def is_new(path: str) -> bool:
        real = Path(os.path.realpath(path))
        within = os.path.islink(path) and real.is_relative_to(root)
        if within and not any(part.startswith(".") for part in real.relative_to(root).parts):
            return False  # it is found by its own name
        new = real not in seen
        seen.add(real)
        return new

    for place, folders, names in os.walk(folder, followlinks=True):
        wanted = sorted(name for name in folders if below and not name.startswith("."))
        folders[:] = [name for name in wanted if is_new(os.path.join(place, name))]
        for name in sorted(names):
            path = Path(place) / name
            if not name.startswith(".") and path.is_file():
                count += 1
                if count > most:
                    raise BadInput(f"The folder {folder} holds more than {most} files.", "Give one with fewer.")
                yield path


def _headers(folder: Path, below: bool) -> tuple[Headers, list[Path]]:
    """Headers of DICOM files, and the files that cannot be read."""
    found: Headers = {}
    damaged: list[Path] = []
    for path in files_of(folder, below):
        try:
            header = read_header(path)
        except OSError as error:
            raise BadInput(f"The file {path} cannot be read.", "Check its permissions.", repr(error)) from error
        except BadInput:
            header = None
        if header is None or ("SeriesInstanceUID" not in header and not is_directory(header)):
            damaged.append(path)
        elif not is_directory(header):
            found[path] = header
    return found, damaged


def _named(found: dict[str, Headers], text: str) -> dict[str, Headers]:
    """The series that a person may mean.

    A short number is that of a series: never a part of a description, and the end of a UID only from a dot on and where
    the series has no other number of its own, or in doubt.
    """
    wanted = text.strip().casefold()
    if wanted in found:
        return {wanted: found[wanted]}

    def said(uid: str, name: str) -> str:
        return str(next(iter(found[uid].values())).get(name) or "").strip().casefold()

    short = wanted.isdigit() and len(wanted) < _SHORTEST_END
    exact = [uid for uid in found if wanted in (said(uid, "SeriesNumber"), said(uid, "SeriesDescription"))]
    exact += [
        uid for uid in found
        if uid not in exact and uid.endswith(f".{wanted}" if short else wanted)
        and (exact or not short or not said(uid, "SeriesNumber"))
    ]  # fmt: skip
    likely = exact or [uid for uid in found if not short and wanted in said(uid, "SeriesDescription")]
    return {uid: files for uid, files in found.items() if uid in likely}


def _check_all_read(damaged: Sequence[Path], files: Headers) -> None:
    """Refuse a series of which a file would be passed over: it is damaged, or named as the others and no DICOM."""
    for file, header in files.items():
        if not is_image(header):
            raise BadInput(f"The DICOM file {file} of the series is cut short or no image.", _COPY)
    patterns, folders = {_pattern(file) for file in files}, {file.parent for file in files}
    for path in damaged:
        beside = path.parent in folders or not folders
        if beside and (path.suffix.lower() in _DICOM_SUFFIXES or _pattern(path) in patterns):
            raise damaged_file(path)


def damaged_file(path: Path) -> BadInput:
    """The error of a file that is no DICOM file."""
    return BadInput(
        f"The file {path} is empty, damaged or no DICOM file.",
        "Copy it again, or put it elsewhere if it does not belong to the series.",
    )


def _pattern(path: Path) -> str:
    """A name in which any digits stand for all: slices are numbered."""
    return re.sub(r"\d+", "#", path.name.lower())


def _listed(found: dict[str, Headers]) -> str:
    texts = []
    for uid, files in list(found.items())[:MAX_LISTED]:
        header = next(iter(files.values()))
        told = [str(header.get(name) or "").strip() for name in ("Modality", "SeriesDescription")]
        number = [f"(number {header.get('SeriesNumber')})"] if header.get("SeriesNumber") not in (None, "") else []
        texts.append(" ".join([f"{uid or 'without a UID'} ({len(files)} files)", *filter(None, told), *number]))
    return "; ".join([*texts, *(["..."] if len(found) > MAX_LISTED else [])])


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
