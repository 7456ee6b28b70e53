"""Image files before ITK reads them: what they are by their content, and whether name, header and data fit.

Read are NIfTI, NRRD and MetaImage, whole or with their voxels in a file beside; ITK's other formats say too little
about where their voxels lie.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.nifti import BLOCK_BYTES, HEADER_BYTES, CutShort, NiftiHeader, cut_short, parse_nifti
from SPDSegmentLib.settings import shorten

NRRD, META = "NRRD", "MetaImage"
_MAX_HEADER_BYTES = 1 << 24
_META_BYTES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG_LONG": 8, "ULONG_LONG": 8,
               "FLOAT": 4, "DOUBLE": 8}  # fmt: skip
_NRRD_SPACES = {"right-anterior-superior", "ras", "left-anterior-superior", "las", "left-posterior-superior", "lps"}
_LPS_IN_TIME = {"left-posterior-superior-time", "lpst"}
"""ITK turns no space with a time axis; these need not be turned, as those without a name that ITK itself writes."""
_NRRD_BYTES = {
    2: {"short", "short int", "signed short", "signed short int", "int16", "int16_t", "ushort", "unsigned short",
        "unsigned short int", "uint16", "uint16_t"},
    4: {"int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"},
    8: {"longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t",
        "ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t", "double"},
}  # fmt: skip
_NRRD_SHRINKING = {"hex": 0.5, **dict.fromkeys(("txt", "text", "ascii"), 8), **dict.fromkeys(("gz", "gzip"), 1100),
                   **dict.fromkeys(("bz2", "bzip2"), 50_000)}  # fmt: skip
"""Bytes of voxels that a stored byte can stand for at most; raw ones stand for themselves."""
_NUMBER_FIELDS = {
    NRRD: ("spacings", "space directions", "space origin", "sizes"),
    META: ("ElementSpacing", "ElementSize", "TransformMatrix", "Rotation", "Orientation", "Offset", "Position",
           "Origin", "DimSize", "HeaderSize", "ElementNumberOfChannels"),
}  # fmt: skip
_DIMENSION = {NRRD: ("dimension", 16), META: ("NDims", 10)}
_COUNTS = {
    NRRD: {"sizes": 1, "spacings": 1, "thicknesses": 1, "axis mins": 1, "axis maxs": 1, "kinds": 1, "centers": 1},
    META: {"DimSize": 1, "ElementSpacing": 1, "ElementSize": 1, "Offset": 1, "Position": 1, "Origin": 1,
           "CenterOfRotation": 1, "TransformMatrix": 2, "Rotation": 2, "Orientation": 2},
}  # fmt: skip
"""Fields with one word for each axis, or for each pair of axes; the readers take them from there without counting."""
_COSINES = ("TransformMatrix", "Rotation", "Orientation")
_LARGEST_COSINE, _LARGEST_LENGTH = 2.0, 1e10
"""With larger ones ITK's check of the axes may never end."""
_LONGEST_VALUE = 500
"""Of a field that is not free text; ITK's readers copy such values into buffers of fixed size."""
_DAMAGED = "Write it again with the program that made it."


@dataclass(frozen=True, eq=False)
class NiftiFiles:
    """A NIfTI image: its header, and the files with header and voxels, the same one unless it is a pair."""

    header: NiftiHeader
    header_file: Path
    voxels: Path


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def check_file(path: Path) -> NiftiFiles | None:
    """Look at an image file before it is read.

    Returns:
        The parts of a NIfTI image; None for the other formats, which ITK reads as they are.

    Raises:
        BadInput: another format, a name that belongs to another format (ITK would look for another file), a header
            whose fields have no meaning or another unit than mm, missing or foreign data.
    """
    try:
        if path.suffix.lower() == ".img":
            return _check_nifti_file(path, _beside(path, ".hdr", "header file"))
        return _check_by_content(path)
    except OSError as error:
        raise BadInput(f"The image {path} cannot be read.", "Check its permissions.", str(error)) from error


def _check_by_content(path: Path) -> NiftiFiles | None:
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    if not head:
        raise CutShort(f"The image {path} is empty.", "Copy or download it again.")
    if head[:2] == b"\x1f\x8b":
        _check_compressed_name(path)
        return _check_nifti_file(path, path)
    if head[:4] == b"NRRD":
        _check_name(path, NRRD, (".nrrd", ".nhdr"))
        _check_text_header(path, NRRD)
        return None
    if re.search(rb"(?m)^\s*(ObjectType|NDims)\s*=", head):
        _check_name(path, META, (".mha", ".mhd"))
        _check_text_header(path, META)
        return None
    return _check_nifti_file(path, path)


def _check_nifti_file(path: Path, header_file: Path) -> NiftiFiles:
    header_bytes = _first_bytes(header_file)
    header = parse_nifti(header_bytes)
    if header is None:
        if header_bytes[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
            raise BadInput(
                f"The image {path} is of Analyze 7.5, which does not say how it lies in space.", "Convert it to NIfTI."
            )
        raise BadInput(
            f"The image {path} cannot be read: it is no NIfTI, NRRD or MetaImage file.",
            "Convert it, for example with 3D Slicer, or give the folder of a DICOM series.",
        )
    voxels = path
    if header.pair:
        _check_name(header_file, "the header of a NIfTI pair (.hdr and .img)", (".hdr",))
        voxels = _beside(header_file, ".img", "file of voxels")
    else:
        _check_name(path, "a NIfTI file", (".nii", ".nii.gz"))
    return NiftiFiles(header, header_file, voxels)


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as raw:
        if raw.read(2) != b"\x1f\x8b":
            raw.seek(0)
            return raw.read(HEADER_BYTES)
    try:
        with gzip.open(path) as stream:
            return stream.read(HEADER_BYTES)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise cut_short(path) from error


def _check_compressed_name(path: Path) -> None:
    """Refuse a gzip file that is not named as a compressed NIfTI; ITK would look for something else."""
    if path.name.lower().endswith(".nii.gz"):
        return
    header = parse_nifti(_first_bytes(path))
    if header is None or header.pair:
        raise BadInput(f"The image {path} is compressed with gzip.", "Decompress it first.")
    stem = path.name.removesuffix(".gz").removesuffix(path.suffix)
    raise BadInput(f"The image {path} is a NIfTI file compressed with gzip.", f"Name it {stem}.nii.gz.")


def _check_name(path: Path, what: str, suffixes: tuple[str, ...]) -> None:
    """Refuse a name that ITK would not read as this format."""
    for suffix in suffixes:
        if path.name.endswith((suffix, suffix.upper())):
            return
    article = what if " " in what else f"a {what} file" if what == META else f"an {what} file"
    meant = next((suffix for suffix in suffixes if path.name.lower().endswith(suffix)), "")  # as in scan.Nii.gz
    name = path.name[: -len(meant)] + meant if meant else path.stem + suffixes[0]
    raise BadInput(f"The image {path} is {article} with another name.", f"Name it {name}.")


def _beside(path: Path, suffix: str, what: str) -> Path:
    """The other file of a pair."""
    other = path.with_suffix(suffix.upper() if path.suffix.isupper() else suffix)
    if not other.is_file():
        raise BadInput(f"The {what} {other.name} of the image {path} is missing.", "Put both files into one folder.")
    return other


def _check_text_header(path: Path, kind: str) -> None:
    fields, size = _text_header(path, kind)
    _check_counts(path, kind, fields)
    for name in _NUMBER_FIELDS[kind]:
        for number in re.findall(r"[^\s,()]+", fields.get(name, "")):
            highest = _LARGEST_COSINE if name in _COSINES else _LARGEST_LENGTH
            if number.lower() != "none" and not (_is_number(number) and abs(float(number)) <= highest):
                raise _bad_field(path, name, fields)
    for name in ("spacings", "ElementSpacing", "ElementSize"):
        if any(float(number) <= 0 for number in fields.get(name, "").split()):
            raise _bad_field(path, name, fields)
    if kind == NRRD:
        _check_nrrd(path, fields, size)
    else:
        _check_meta(path, fields, size)


def _check_counts(path: Path, kind: str, fields: dict[str, str]) -> None:
    """Refuse what lets the readers of ITK write past their buffers: an impossible dimension, too many or few words."""
    name, highest = _DIMENSION[kind]
    dimension = fields.get(name, "")
    if not re.fullmatch(r"[0-9]{1,2}", dimension) or not 1 <= int(dimension) <= highest:
        raise _bad_field(path, name, fields)
    for name, power in _COUNTS[kind].items():
        if name in fields and len(fields[name].split()) != int(dimension) ** power:
            raise _bad_field(path, name, fields)
    for name in ("sizes", "DimSize"):
        if name in fields and not re.fullmatch(r"([1-9][0-9]{0,9}\s*)+", fields[name]):
            raise _bad_field(path, name, fields)


def _bad_field(path: Path, name: str, fields: dict[str, str]) -> BadInput:
    found = f"{name} is {shorten(fields[name])}" if fields.get(name) else f"{name} is missing"
    return BadInput(f"The image {path} has a damaged header: {found}.", _DAMAGED)


def _voxels_cut_short(path: Path, voxels: Path) -> CutShort:
    """The sentence for an image whose voxels, in the same file or another, are not all there."""
    return cut_short(path, "" if voxels == path else f": its voxels in {voxels.name} are not all there")


def _check_nrrd(path: Path, fields: dict[str, str], header_size: int) -> None:
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", fields.get("units", "")))) - {"", "???"}
    if units - {"mm", "millimeter", "millimeters"}:
        raise _wrong_unit(path, ", ".join(sorted(units)))
    space = fields.get("space", "").lower()
    in_time = space in _LPS_IN_TIME or (not space and fields.get("space dimension") == "4")
    known = space in _NRRD_SPACES or (in_time and fields["dimension"] == "4")
    if "space directions" in fields and int(fields["dimension"]) > 2 and not known:
        named = f"'{fields['space']}'" if space else "not named"
        raise BadInput(
            f"The space of the image {path} is {named}: left and right are open.",
            "Save it with the space left-posterior-superior.",
        )
    data = fields.get("data file", fields.get("datafile"))
    voxels = path if data is None else _check_data_file(path, data)
    stored = voxels.stat().st_size - (header_size if data is None else 0)
    element = next((size for size, names in _NRRD_BYTES.items() if fields.get("type", "").lower() in names), 1)
    needed = element * math.prod(int(number) for number in fields.get("sizes", "").split())
    if needed > stored * _NRRD_SHRINKING.get(fields.get("encoding", "raw").lower(), 1):
        raise _voxels_cut_short(path, voxels)


def _check_meta(path: Path, fields: dict[str, str], header_size: int) -> None:
    if fields.get("ObjectType", "Image").lower() != "image":
        raise BadInput(f"The file {path} holds a {fields['ObjectType']}, not an image.", "Give an image.")
    unit = fields.get("DistanceUnits", "mm")
    if unit not in ("mm", "?", ""):
        raise _wrong_unit(path, unit)
    slope, inter = (fields.get(f"ElementToIntensityFunction{name}") for name in ("Slope", "Offset"))
    if (_number(slope or "1"), _number(inter or "0")) != (1, 0):
        raise BadInput(f"The image {path} has values to be scaled by {slope} and {inter}.", "Save the scaled values.")
    data = fields.get("ElementDataFile", "LOCAL")
    local = data.upper() == "LOCAL"
    voxels = path if local else _check_data_file(path, data)
    element = _META_BYTES.get(fields.get("ElementType", "").upper().removeprefix("MET_").removesuffix("_ARRAY"))
    if element is not None and fields.get("BinaryData", "True").lower() in ("true", "1"):
        numbers = [*fields.get("DimSize", "").split(), fields.get("ElementNumberOfChannels", "1")]
        needed = element * math.prod(int(float(number)) for number in numbers)
        start = header_size if local else max(0, int(fields.get("HeaderSize", "0")))
        compressed = fields.get("CompressedData", "False").lower() in ("true", "1")
        stored = voxels.stat().st_size - start
        if compressed:
            complete = fields.get("CompressedDataSize") == str(stored) and _inflated_size(voxels, start) == needed
        else:
            complete = stored >= needed
        if not complete:
            raise _voxels_cut_short(path, voxels)


def _text_header(path: Path, kind: str) -> tuple[dict[str, str], int]:
    """The fields of an NRRD or MetaImage header, and its size in bytes."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        for line in file:
            text = line.decode("utf-8", "replace").strip()
            name, mark, value = text.partition(":" if kind == NRRD else "=")
            free = text.startswith("#") or (
                kind == NRRD and value.startswith("=")
            )  # a comment, a pair of key and value
            name = name.strip().lower() if kind == NRRD else name.strip()
            if not free and (len(text) > _LONGEST_VALUE or not text.isprintable() or name in fields):
                why = "twice" if name in fields else "too long or no text"
                raise BadInput(f"The image {path} has a damaged header: {shorten(name)} is {why}.", _DAMAGED)
            if mark and not free:
                fields[name] = value.strip()
            ended = not text if kind == NRRD else name == "ElementDataFile"
            if ended or file.tell() > _MAX_HEADER_BYTES:
                break
        return fields, file.tell()


def _check_data_file(path: Path, name: str) -> Path:
    """The file that a header names for its voxels: one, there, and in the header's own folder or below.

    A header that was moved or edited would otherwise show the voxels of another image.
    """
    if "%" in name or name.upper().startswith("LIST"):
        raise BadInput(f"The voxels of the image {path} are spread over several files.", "Save it in one file.")
    data = Path(name)
    if data.is_absolute() or ".." in data.parts:
        raise BadInput(
            f"The header {path} takes its voxels from another folder, {name}.",
            "Put both files into one folder and name the file alone in the header, or save the image in one file.",
        )
    if not (path.parent / data).is_file():
        raise BadInput(f"The file {name} with the voxels of the image {path} is missing.", "Put both into one folder.")
    return path.parent / data


def _wrong_unit(path: Path, unit: str) -> BadInput:
    return BadInput(
        f"The image {path} gives its lengths in {unit}, not in mm.",
        "Save it in millimeters, and place the points on that image.",
    )


def _number(text: str) -> float:
    """What a text says; NaN where it is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _is_number(text: str) -> bool:
    return math.isfinite(_number(text))


def _inflated_size(path: Path, start: int) -> int:
    """Bytes that a zlib stream holds, -1 if it is damaged."""
    stream, size = zlib.decompressobj(47), 0  # zlib or gzip, as MetaIO takes both
    with path.open("rb") as file:
        file.seek(start)
        try:
            while block := file.read(BLOCK_BYTES):
                while block:
                    size += len(stream.decompress(block, BLOCK_BYTES))
                    block = stream.unconsumed_tail
            size += len(stream.flush())
        except zlib.error:
            return -1
    return size if stream.eof else -1
