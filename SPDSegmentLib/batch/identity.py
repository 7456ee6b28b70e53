"""What a result was made of: the content of image and clicks, the model, the version and the settings."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from SPDSegmentLib import __version__
from SPDSegmentLib.batch.cases import BatchCase
from SPDSegmentLib.errors import BadInput, SPDError
from SPDSegmentLib.models.bundle import Bundle, find_bundle
from SPDSegmentLib.models.checksum import sha256_of
from SPDSegmentLib.models.terminology import terminology_entry

WHOLE_IN_ONE_FILE = (".nii", ".nii.gz", ".mha", ".dcm")
KEY_FIELDS = ("image_digest", "points_digest", "model_digest", "version", "settings")


@dataclass(frozen=True)
class BatchModel:
    """A model as the batch needs it.

    Attributes:
        key: what the worker is told: a folder, or a name that a remote worker knows.
        name: for the report.
        structure: name of the segment; color: red, green, blue in [0, 1]; terminology: Slicer's entry, or empty.
        axis: slicing plane that it was trained on.
        digest: stands for everything in it that changes a mask.
    """

    key: str
    name: str
    structure: str
    color: tuple[float, float, float]
    terminology: str = ""
    axis: str = "auto"
    digest: str = ""


def batch_model(bundle: Bundle) -> BatchModel:
    """A bundle of this machine."""
    info = bundle.info
    red, green, blue = info.color
    color = (float(red), float(green), float(blue))
    terminology = info.terminology or terminology_entry(info.structure)
    return BatchModel(
        str(bundle.folder), info.name, info.structure, color, terminology, info.slicing_axis, _digest_of(bundle)
    )


def model_digest(name: str) -> str:
    """Digest of a bundle by name or folder; of one that only a remote worker has, the name stands for it."""
    try:
        return _digest_of(find_bundle(name))
    except SPDError:
        return f"name:{name}"


def _digest_of(bundle: Bundle) -> str:
    info = bundle.info
    parts = (info.adapter_sha256, info.backbone_sha256, info.settings_digest())
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def case_key(case: BatchCase, model: BatchModel, settings: dict[str, str]) -> dict[str, str]:
    """What the result of a case depends on, by the names of ``KEY_FIELDS``.

    Raises:
        BadInput: image or points are not there or cannot be read.
    """
    for what, path in (("points file", Path(case.points)), ("image", Path(case.image))):
        if not path.exists():
            raise BadInput(f"The {what} {path} is not there.", "Check the list of cases.")
        if not path.is_file() and not (what == "image" and path.is_dir()):
            raise BadInput(f"The {what} {path} is not a file.", "Check the list of cases.")
    text = json.dumps(settings | ({"series": case.series} if case.series else {}), sort_keys=True)
    try:
        return {
            "image_digest": image_digest(Path(case.image), case.series),
            "points_digest": sha256_of(Path(case.points)),
            "model_digest": model.digest,
            "version": __version__,
            "settings": text,
        }
    except OSError as error:
        raise BadInput(
            f"{error.filename or case.image} cannot be read: {error.strerror or error}.", "Check it.", repr(error)
        ) from error


def image_digest(path: Path, series: str = "") -> str:
    """Digest of an image: of its files where it is one or a folder, of its voxels where a header leads to others.

    Raises:
        OSError: a file cannot be read.
        BadInput: an image of several files cannot be read.
    """
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(path.iterdir()):
            if file.is_file() and not file.name.startswith("."):
                digest.update(f"{file.name}\0{sha256_of(file)}\0".encode(errors="surrogateescape"))
        return digest.hexdigest()
    if path.name.lower().endswith(WHOLE_IN_ONE_FILE) or _is_whole_nrrd(path):
        return sha256_of(path)
    from SPDSegmentLib.geometry.volume import read_volume

    volume = read_volume(path, series or None)
    digest = hashlib.sha256(f"{volume.array.dtype.str} {volume.array.shape}".encode())
    digest.update(volume.ijk_to_ras.tobytes())
    digest.update(np.ascontiguousarray(volume.array).data)
    return digest.hexdigest()


def _is_whole_nrrd(path: Path) -> bool:
    """Whether a file is an NRRD whose header does not lead to another file."""
    with path.open("rb") as file:
        start = file.read(1 << 16)
    header = start.partition(b"\n\n")[0].partition(b"\r\n\r\n")[0].lower()
    return start.startswith(b"NRRD") and b"data file:" not in header and b"datafile:" not in header
