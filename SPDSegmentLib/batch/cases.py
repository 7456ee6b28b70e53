"""The cases of a batch, given one by one or read from a table, and what a result was made of.

Tables are read as spreadsheet programs save them anywhere. A result is known by the content of image and clicks, the
model, the version and the settings.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from SPDSegmentLib import __version__
from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.files import user_path
from SPDSegmentLib.geometry.labelmap import DEFAULT_COLOR
from SPDSegmentLib.models.bundle import Bundle
from SPDSegmentLib.models.bundle_info import BundleInfo
from SPDSegmentLib.models.storage import sha256_of
from SPDSegmentLib.settings import named_columns, table_rows

NEEDED = ("name", "image", "points")
MAX_NAME_BYTES = 100
"""Longest name of a file without its extension: room is left for extensions and for names that are written beside."""
_WITH_ZEROS = re.compile(r"([0-9]+)[.,]0+")
_UNSAFE = re.compile(r"[^\w.-]+")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
WHOLE_IN_ONE_FILE = (".nii", ".nii.gz", ".dcm")
_META_DATA = re.compile(rb"(?m)^[ \t]*ElementDataFile[ \t]*=[ \t]*([^\r\n]*?)[ \t\r]*$")
_NRRD_DATA = re.compile(rb"(?mi)^data ?file:[ \t]*([^\r\n]*?)[ \t\r]*$")
KEY_FIELDS = ("image_digest", "points_digest", "model_digest", "version", "settings")
STAMP = "stamp"
"""What stands beside the key and is no part of it, see :func:`input_stamp`."""


@dataclass(frozen=True)
class BatchCase:
    """One case.

    Attributes:
        name: in the report.
        image: file, or folder with a DICOM series.
        points: file of Slicer.
        series: the wanted one where the folder holds several (``geometry.volume.read_volume``); else empty.
        frame: the wanted frame of a 4-D image, from 1; else 0.
        line: of the table that it was read from, or 0.
        problem: why it cannot be segmented, a sentence, or empty.
    """

    name: str
    image: str
    points: str
    series: str = ""
    frame: int = 0
    line: int = 0
    problem: str = ""

    @property
    def file_name(self) -> str:
        """Its files' name without extension, short, as every file system takes it, and none that Windows reserves."""
        name = _UNSAFE.sub("_", unicodedata.normalize("NFC", self.name)).lstrip(".")
        name = f"_{name}" if _RESERVED.fullmatch(name) else name
        encoded = name.encode()
        if len(encoded) <= MAX_NAME_BYTES:
            return name
        kept = encoded[: MAX_NAME_BYTES - 9].decode(errors="ignore")
        return f"{kept}~{hashlib.sha256(encoded).hexdigest()[:8]}"


Cases = Iterable[BatchCase | Sequence[Any]] | str | Path


def checked_cases(cases: Cases) -> list[BatchCase]:
    """Cases, given or read from a table, each with files of its own.

    Raises:
        BadInput: a list or table that cannot be used at all; a case that cannot be used only says so in ``problem``.
    """
    if isinstance(cases, (str, Path)):
        given = read_cases(user_path(cases))
        if not given:
            raise BadInput(
                f"The table {cases} lists no case.",
                f"Its first line names the columns {', '.join(NEEDED)}; give each case a line below.",
            )
    else:
        given = [_as_case(case) for case in cases]
        if not given:
            raise BadInput("The batch has no case.", "Give at least one.")
    for case in given:
        if not case.file_name:
            raise BadInput(f"{_place(case)} has no name that a file can have.", "Give every case a name of its own.")
    _refuse_collisions(given)
    return given


def read_cases(path: Path) -> list[BatchCase]:
    """The cases of a table with the columns name, image and points, and series and frame if need be.

    Values are separated by commas, semicolons, tabs or bars; the text is UTF-8, UTF-16 or Windows-1252. Empty lines and
    further columns do not matter, nor does the case of the columns' names. Paths are relative to the table.

    Raises:
        BadInput: the table cannot be read, lacks a column, or has a quotation mark that is not closed.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(
            f"The table {path} cannot be read: {error.strerror or error}.", "Check its path.", repr(error)
        ) from error
    rows = table_rows(path, content, NEEDED)
    if not rows:
        return []
    (_, titles), *lines = rows
    columns = named_columns(path, titles, (*NEEDED, "series", "frame"))
    for column in NEEDED:
        if column not in columns:
            raise BadInput(
                f"The table {path} has no column {column}; its first line is: {', '.join(filter(None, titles))[:80]}.",
                f"Its first line must name the columns {', '.join(NEEDED)}.",
            )
    return [_case_of(path, line, values, columns, len(titles)) for line, values in lines]


def _case_of(path: Path, line: int, values: list[str], columns: dict[str, int], width: int) -> BatchCase:
    found = {name: values[columns[name]].strip() if columns[name] < len(values) else "" for name in columns}
    problem = ""
    if any(value.strip() for value in values[width:]):
        problem = f"Line {line} of {path.name} has more values than columns; put values with separators in quotes."
    image, points = (_beside(path, found[column]) for column in NEEDED[1:])
    for column, place in zip(NEEDED[1:], (image, points), strict=True):
        if not found[column]:
            problem = problem or f"Line {line} of {path.name} has no value in the column {column}."
        elif os.sep == "/" and "\\" in found[column] and not os.path.exists(place):
            problem = problem or (
                f"Line {line} of {path.name} has backslashes in {found[column][:60]}; here / separates folders."
            )
    frame, series = (_whole(found.get(name, "")) for name in ("frame", "series"))
    if frame and not (frame.isascii() and frame.isdigit() and int(frame[:9]) > 0):
        problem = problem or f"Line {line} of {path.name} has '{frame[:20]}' for a frame; give its number, from 1."
    number = 0 if problem else int(frame[:9] or 0)
    name = found["name"]
    if not BatchCase(name, image, points).file_name:
        name, problem = f"line {line}", problem or f"Line {line} of {path.name} has no name that a file can have."
    return BatchCase(name, image, points, series, number, line, problem)


def _whole(text: str) -> str:
    """A value as it was before a program made fractions of numbers and words of gaps: 2.0 is 2, NaN and NA are none."""
    if text.casefold() in ("nan", "na", "<na>"):
        return ""
    number = _WITH_ZEROS.fullmatch(text)
    return number[1] if number else text


def _beside(table: Path, text: str) -> str:
    if not text:
        return ""
    path = user_path(text)
    return str(path if path.is_absolute() else table.parent / path)


def _as_case(case: Any) -> BatchCase:
    if not isinstance(case, BatchCase):
        if isinstance(case, (str, Path)) or not isinstance(case, Sequence) or len(case) != 3:
            raise BadInput("A case of the batch is not (name, image, points).", "Give three values for each case.")
        case = BatchCase(*case)
    name, problem, places = str(case.name), case.problem, dict[str, str]()
    for column in NEEDED[1:]:
        given = getattr(case, column)
        gap = given is None or given != given or not str(given).strip()  # a gap of a table may be NaN
        places[column] = "" if gap else str(user_path(given))
        if gap:
            problem = problem or f"The case '{name[:60]}' has no value for {column}."
    return replace(case, name=name, problem=problem, **places)


def _refuse_collisions(cases: list[BatchCase]) -> None:
    """Two cases must not write one file, on file systems that take a and A for one letter either."""
    known: dict[str, BatchCase] = {}
    for case in cases:
        name = unicodedata.normalize("NFC", case.file_name.casefold())
        if name in known:
            raise BadInput(
                f"{_place(case)} and {_place(known[name], small=True)} would write the same file.",
                "Give every case a name of its own; capital letters, signs and spaces do not count.",
            )
        known[name] = case


def _place(case: BatchCase, small: bool = False) -> str:
    where = f"line {case.line} ('{case.name[:60]}')" if case.line else f"the case '{case.name[:60]}'"
    return where if small else where[0].upper() + where[1:]


@dataclass(frozen=True)
class BatchModel:
    """A model as the batch needs it.

    Attributes:
        key: what the worker is told: a folder, or a name that a remote worker knows.
        name: for the report.
        structure: name of the segment; color: red, green, blue in [0, 1]; terminology: Slicer's entry, or empty.
        axis: slicing plane that it was trained on.
        digest: ``BundleInfo.digest``, or something else that stands for a model that is not on this machine.
        info: its description, where this machine has it.
    """

    key: str
    name: str
    structure: str
    color: tuple[float, float, float] = DEFAULT_COLOR
    terminology: str = ""
    axis: str = "auto"
    digest: str = ""
    info: BundleInfo | None = field(default=None, compare=False, repr=False)


def batch_model(bundle: Bundle) -> BatchModel:
    """A bundle of this machine."""
    info = bundle.info
    drawn = info.structure, info.color, info.entry, info.slicing_axis
    return BatchModel(str(bundle.folder), info.name, *drawn, info.digest(), info)


def settings_key(case: BatchCase, model: BatchModel, settings: Mapping[str, str]) -> dict[str, str]:
    """The part of a case's key that is known without its files."""
    chosen = {"series": case.series} if case.series else {}
    chosen |= {"frame": str(case.frame)} if case.frame else {}
    text = json.dumps({**settings, **chosen}, sort_keys=True)
    return {"model_digest": model.digest, "version": __version__, "settings": text}


def case_key(case: BatchCase, model: BatchModel, settings: Mapping[str, str]) -> dict[str, str]:
    """What the result of a case depends on, by the names of ``KEY_FIELDS``, and the stamp of its inputs.

    Raises:
        BadInput: image or points are not there or cannot be read.
    """
    try:
        for what, path in (("points file", Path(case.points)), ("image", Path(case.image))):
            if not path.exists():
                raise BadInput(f"The {what} {path} is not there.", "Check the list of cases.")
            if not path.is_file() and not (what == "image" and path.is_dir()):
                raise BadInput(f"The {what} {path} is not a file.", "Check the list of cases.")
        return {
            STAMP: input_stamp(case),
            "image_digest": image_digest(Path(case.image), case.series, case.frame),
            "points_digest": sha256_of(Path(case.points)),
            **settings_key(case, model, settings),
        }
    except OSError as error:
        raise BadInput(
            f"{error.filename or case.image} cannot be read: {error.strerror or error}.", "Check it.", repr(error)
        ) from error


def input_stamp(case: BatchCase) -> str:
    """Digest of the sizes and times of a case's files, by which unchanged ones are known without being read.

    Empty where they cannot be looked at, or where it cannot be told which they are.
    """
    image, told = Path(case.image), []
    try:
        if image.is_dir():
            from SPDSegmentLib.geometry.dicom_series import files_of

            files = [(path.relative_to(image).as_posix(), path) for path in files_of(image, True)]
        elif not (files := [("voxels" if n else "", path) for n, path in enumerate(_files_of(image))]):
            return ""
        for name, path in [*files, ("points", Path(case.points))]:
            state = path.stat()
            told.append(f"{name}\0{state.st_size}\0{state.st_mtime_ns}\0")
    except (OSError, ValueError, BadInput):
        return ""
    return hashlib.sha256("".join(told).encode(errors="surrogateescape")).hexdigest()


def image_digest(path: Path, series: str = "", frame: int = 0) -> str:
    """Digest of an image: of its file, of those of its DICOM series, or of its voxels where a header leads to others.

    Raises:
        OSError: a file cannot be read.
        BadInput: an image of several files cannot be read, or its series is not one.
    """
    if path.is_dir():
        from SPDSegmentLib.geometry.dicom_series import choose_series

        digest = hashlib.sha256()
        for file in sorted(choose_series(path, series or None)):
            digest.update(f"{file.name}\0{sha256_of(file)}\0".encode(errors="surrogateescape"))
        return digest.hexdigest()
    if _is_whole(path):
        return sha256_of(path)
    from SPDSegmentLib.geometry.volume import read_volume

    volume = read_volume(path, series or None, frame or None)
    digest = hashlib.sha256(f"{volume.array.dtype.str} {volume.array.shape}".encode())
    digest.update(volume.ijk_to_ras.tobytes())
    digest.update(np.ascontiguousarray(volume.array).data)
    return digest.hexdigest()


def _is_whole(path: Path) -> bool:
    """Whether an image is one file: NIfTI, DICOM, or NRRD or MetaImage whose header does not lead to another file."""
    return _files_of(path) == [path]


def _files_of(path: Path) -> list[Path]:
    """The files of an image: itself, or header and voxels; none where that cannot be told. Raises OSError."""
    name = path.name.lower()
    if name.endswith(WHOLE_IN_ONE_FILE):
        return [path]
    if name.endswith(".hdr"):
        return [path, path.with_suffix(".img")]
    with path.open("rb") as file:
        start = file.read(1 << 16)
    if (leads_to := _META_DATA.search(start)) is None:
        if not start.startswith(b"NRRD"):
            return []
        leads_to = _NRRD_DATA.search(start.partition(b"\n\n")[0].partition(b"\r\n\r\n")[0])
    elif leads_to[1].upper() == b"LOCAL":
        leads_to = None
    return [path] if leads_to is None else [path, path.parent / os.fsdecode(leads_to[1])]
