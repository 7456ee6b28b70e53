"""Files that once did harm, made again from the good ones: each a name, its target, and what writes it."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_files import FileFuzz, sign

from SPDSegmentLib.errors import MUST_LOOK, OutOfMemory

Prepare = Callable[[FileFuzz], None]


def _nifti(*changes: tuple[str, int, Any], compress: bool = False, keep: int | None = None) -> Prepare:
    """The image with header fields (kind, place, value) changed, its first ``keep`` bytes only."""

    def prepare(fuzz: FileFuzz) -> None:
        content = bytearray(fuzz.image.read_bytes())
        for kind, at, value in changes:
            struct.pack_into(kind, content, at, value)
        data = bytes(content[:keep])
        path = fuzz.tried / ("image.nii.gz" if compress else "image.nii")
        path.write_bytes(gzip.compress(data) if compress else data)
        fuzz.use(image=path)

    return prepare


def _points(change: Callable[[dict[str, Any]], None], text: Callable[[str], str] = str) -> Prepare:
    def prepare(fuzz: FileFuzz) -> None:
        values = json.loads(fuzz.points.read_text(encoding="utf-8"))
        change(values["markups"][0])
        path = fuzz.tried / "clicks.mrk.json"
        path.write_text(text(json.dumps(values)))
        fuzz.use(points=path)

    return prepare


def _bundle(change: Callable[[dict[str, Any]], None], text: Callable[[str], str] = str) -> Prepare:
    """The bundle with a changed description, signed again where it can be."""

    def prepare(fuzz: FileFuzz) -> None:
        folder = fuzz.copy_bundle()
        values = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        change(values)
        path = folder / "model.json"
        path.write_text(json.dumps(values))
        sign(folder)
        path.write_text(text(path.read_text(encoding="utf-8")))
        fuzz.use(model=folder)

    return prepare


def _adapter(change: Callable[[bytes], bytes]) -> Prepare:
    def prepare(fuzz: FileFuzz) -> None:
        folder = fuzz.copy_bundle()
        path = folder / "adapter.safetensors"
        path.write_bytes(change(path.read_bytes()))
        sign(folder)
        fuzz.use(model=folder)

    return prepare


def _tensors(value: float, every: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        start = 8 + int.from_bytes(data[:8], "little")
        values = np.frombuffer(data[start:], "<f4").copy()
        values[::every] = value
        return data[:start] + values.tobytes()

    return change


def _header(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        header = change(data[8 : 8 + length])
        return len(header).to_bytes(8, "little") + header + data[8 + length :]

    return apply


def _without(data: bytes, part: str) -> bytes:
    """Tensors whose names begin with ``part`` left out, the others moved together."""
    length = int.from_bytes(data[:8], "little")
    header, body, kept, at = json.loads(data[8 : 8 + length]), data[8 + length :], b"", 0
    for name in [name for name in header if name.startswith(part)]:
        del header[name]
    for entry in header.values():
        if "data_offsets" in entry:
            begin, end = entry["data_offsets"]
            kept += body[begin:end]
            entry["data_offsets"] = [at, at := at + end - begin]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + kept


def _image(value: float) -> Prepare:
    def prepare(fuzz: FileFuzz) -> None:
        import SimpleITK as sitk

        image = sitk.Cast(sitk.ReadImage(str(fuzz.image)), sitk.sitkFloat64)
        image[3, 3, 3] = value
        path = fuzz.tried / "image.nrrd"
        sitk.WriteImage(image, str(path))
        fuzz.use(image=path)

    return prepare


def _line(name: str, old: bytes, new: bytes) -> Prepare:
    """An image with a text header of which one line is another."""

    def prepare(fuzz: FileFuzz) -> None:
        content = (fuzz.good / name).read_bytes()
        assert old in content
        path = fuzz.tried / name
        path.write_bytes(content.replace(old, new, 1))
        fuzz.use(image=path)

    return prepare


def _dicom(change: Callable[[Path], None]) -> Prepare:
    def prepare(fuzz: FileFuzz) -> None:
        change(fuzz.copy_series())
        fuzz.use(image=fuzz.tried / "series", points=fuzz.dicom_points)

    return prepare


def _cut_pixels(folder: Path) -> None:
    file = sorted(folder.iterdir())[1]
    file.write_bytes(file.read_bytes()[:-100])


def _set(part: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda info: info[part].update(values)


CORPUS: dict[str, tuple[str, Prepare]] = {
    "NIfTI with a NaN offset": ("nifti", _nifti(("<f", 108, float("nan")))),
    "NIfTI with a huge offset": ("nifti", _nifti(("<f", 108, 1e30))),
    "NIfTI with a spacing of 1e30": ("nifti", _nifti(("<f", 80, 1e30))),
    "NIfTI with a spacing of NaN": ("nifti", _nifti(("<f", 84, float("nan")))),
    "NIfTI of negative size": ("nifti", _nifti(("<h", 42, -5))),
    "NIfTI of 32,767 voxels a side": ("nifti", _nifti(*(("<h", at, 32767) for at in (42, 44, 46)))),
    "NIfTI, cut": ("nifti", _nifti(keep=400)),
    "NIfTI, cut within its header": ("nifti", _nifti(keep=100)),
    "NIfTI, empty": ("nifti", _nifti(keep=0)),
    "NIfTI, packed and cut": ("nifti.gz", _nifti(keep=1000, compress=True)),
    "image beyond single precision": ("nrrd", _image(1e300)),
    "image with NaN": ("nrrd", _image(float("nan"))),
    "NRRD with a long dimension": ("nrrd", _line("image.nrrd", b"dimension: 3", b"dimension: " + b"x" * 3000)),
    "NRRD of 4,000,000 rows": ("nrrd", _line("image.nrrd", b"sizes: 20 24 9", b"sizes: 20 4000000 9")),
    "NRRD with too few sizes": ("nrrd", _line("image.nrrd", b"sizes: 20 24 9", b"sizes: 20 24")),
    "MetaImage of -1e308 axes": ("metaimage", _line("image.mha", b"NDims = 3", b"NDims = -1e308")),
    "MetaImage with an axis of 1e308": (
        "metaimage",
        _line("image.mha", b"TransformMatrix = 1 0 0 0", b"TransformMatrix = 1 0 0 1e308"),
    ),
    "DICOM with short pixel data": ("dicom", _dicom(_cut_pixels)),
    "points at 1e300": ("markups", _points(lambda m: m["controlPoints"][0].update(position=[1e300] * 3))),
    "points without a position": ("markups", _points(lambda m: m["controlPoints"][0].pop("position"))),
    "points nested deeply": ("markups", _points(lambda m: None, lambda text: "[" * 100_000 + text)),
    "points of a number without end": (
        "markups",
        _points(lambda m: m["controlPoints"][0].update(position=[10**400, 0, 0])),
    ),
    "bundle with 1e9 neighbors": ("bundle", _bundle(_set("prompts", n_neighbors=10**9))),
    "bundle of 4096 pixels": ("bundle", _bundle(lambda info: info.update(image_size=4096))),
    "bundle with a number without end": ("bundle", _bundle(lambda info: info.update(fov_mm=10**400))),
    "bundle nested deeply": ("bundle", _bundle(lambda info: None, lambda text: "[" * 100_000)),
    "bundle with a name twice": (
        "bundle",
        _bundle(lambda info: None, lambda text: text.replace('"name":', '"fov_mm": 3, "name":', 1)),
    ),
    "bundle of another base": ("bundle", _bundle(lambda info: info.update(backbone=[]))),
    "adapter with NaN": ("bundle", _adapter(_tensors(float("nan"), 5000))),
    "adapter with infinity": ("bundle", _adapter(_tensors(float("inf"), 5000))),
    "adapter that overflows": ("bundle", _adapter(_tensors(3e38, 1))),
    "adapter without its decoder": ("bundle", _adapter(lambda data: _without(data, "mask_decoder."))),
    "adapter without its head": ("bundle", _adapter(lambda data: _without(data, "saliency_head."))),
    "adapter with a deep header": ("bundle", _adapter(_header(lambda header: b"[" * 100_000))),
    "adapter of another type": ("bundle", _adapter(_header(lambda header: header.replace(b'"F32"', b'"I32"')))),
    "adapter of changes": ("bundle", _adapter(_header(lambda header: header.replace(b'"F32"', b'"I8"')))),
    "adapter with an odd name": (
        "bundle",
        _adapter(_header(lambda header: header.replace(b"saliency_head.", b"[red]\\u001b[2J", 1))),
    ),
}
"""Target and preparation by name."""

EXITS = {
    **dict.fromkeys(("points at 1e300", "points without a position"), MUST_LOOK),
    "NIfTI of 32,767 voxels a side": OutOfMemory.exit_code,
}
"""Exit codes of those that are not refused as bad input."""
