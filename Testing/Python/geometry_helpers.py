"""Volumes, image files and DICOM series for the tests of geometry."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from SPDSegmentLib.errors import BadInput, GeometryUnsupported
from SPDSegmentLib.geometry.volume import Volume, check_image, read_volume, set_geometry

SIGNED_PERMUTATIONS = [
    np.eye(3)[:, list(order)] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]
"""The 48 ways to lay the axes I, J, K along R, A, S; half of them are left-handed."""


def affine(
    directions: np.ndarray, spacing: tuple[float, ...] = (1, 1, 1), origin: tuple[float, ...] = (0, 0, 0)
) -> np.ndarray:
    """(4, 4) ijk_to_ras from unit columns."""
    matrix = np.eye(4)
    matrix[:3, :3] = directions * np.array(spacing)
    matrix[:3, 3] = origin
    return matrix


def phantom_on(ijk_to_ras: np.ndarray, shape_kji: tuple[int, int, int]) -> Volume:
    """A volume whose voxels hold 10000 R + 100 A + S of their rounded position: orientation shows in the values."""
    k, j, i = np.indices(shape_kji)
    ras = np.stack((i, j, k), axis=-1) @ ijk_to_ras[:3, :3].T + ijk_to_ras[:3, 3]
    return Volume(np.rint(ras) @ np.array([10000.0, 100.0, 1.0]), ijk_to_ras, "phantom")


def write_raw_image(path: Path, array: np.ndarray, ijk_to_ras: np.ndarray | None = None) -> Path:
    """Write any array as an image, without checks."""
    image = sitk.GetImageFromArray(array)
    sitk.WriteImage(image if ijk_to_ras is None else set_geometry(image, ijk_to_ras), str(path))
    return path


@st.composite
def volumes(draw: st.DrawFn, max_size: int = 6, max_tilt: float = 180.0) -> Volume:
    """Oblique, anisotropic, flipped, left- and right-handed volumes with distinct voxels."""
    shape = draw(st.tuples(*[st.integers(2, max_size)] * 3))
    spacing = draw(st.tuples(*[st.floats(0.3, 9.0)] * 3))
    origin = draw(st.tuples(*[st.floats(-400.0, 400.0)] * 3))
    axis = draw(st.tuples(*[st.floats(-1.0, 1.0)] * 3).filter(lambda v: np.linalg.norm(v) > 0.1))
    angle = draw(st.floats(-max_tilt, max_tilt))
    rotation = Rotation.from_rotvec(np.radians(angle) * np.array(axis) / np.linalg.norm(axis)).as_matrix()
    directions = rotation @ draw(st.sampled_from(SIGNED_PERMUTATIONS))
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    return Volume(array, affine(directions, spacing, origin), "drawn")


def write_dicom_series(
    folder: Path,
    uid: str,
    positions_lps: np.ndarray,
    values: np.ndarray,
    modality: str = "MR",
    directions: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
) -> None:
    """Write (T, H, W) int16 slices at (T, 3) positions, pixels of 2 mm (row) by 1.5 mm (column)."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    normal = np.cross(directions[:3], directions[3:])
    columns: Any = np.stack((directions[:3], directions[3:], normal), axis=1)
    for t, (position, pixels) in enumerate(zip(positions_lps, values, strict=True)):
        image = sitk.GetImageFromArray(pixels.astype(np.int16)[None])
        image.SetSpacing((1.5, 2.0, 1.0))
        image.SetDirection(columns.ravel().tolist())
        image.SetOrigin([float(p) for p in position])
        for key, value in {
            "0008|0060": modality,
            "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
            "0008|0018": f"{uid}.{t + 1}",
            "0020|000d": "1.2.3",
            "0020|000e": uid,
            "0020|0032": "\\".join(f"{p:.6f}" for p in position),
            "0020|0037": "\\".join(f"{d:.8f}" for d in directions),
            "0020|0013": str(t + 1),
        }.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{uid}.{t + 1}.dcm"))
        writer.Execute(image)


VALUES = np.random.default_rng(3).integers(0, 1000, (4, 5, 6)).astype(np.int16)
AFFINE = affine(SIGNED_PERMUTATIONS[13], (0.8, 1.1, 5.0), (-20, 33, 7))


def nifti(folder: Path, *changes: tuple[int, str, tuple[object, ...]], values: np.ndarray = VALUES) -> Path:
    """A sound NIfTI-1 file with some header fields overwritten: (offset, struct format, values)."""
    path = write_raw_image(folder / "image.nii", values, AFFINE)
    content = bytearray(path.read_bytes())
    for offset, form, fields in changes:
        struct.pack_into(f"<{form}", content, offset, *fields)
    path.write_bytes(content)
    return path


def nrrd(path: Path, data: bytes = b"", **changes: str | None) -> Path:
    """An NRRD file with some fields replaced, or left out with None."""
    fields: dict[str, str | None] = {
        "type": "short", "dimension": "3", "space": "left-posterior-superior", "sizes": "6 5 4",
        "space directions": "(1,0,0) (0,2,0) (0,0,3)", "endian": "little", "encoding": "raw",
        "space origin": "(10,20,30)",
    }  # fmt: skip
    fields |= {name.replace("_", " "): value for name, value in changes.items()}
    text = "".join(f"{name}: {value}\n" for name, value in fields.items() if value is not None)
    path.write_bytes(f"NRRD0005\n{text}\n".encode() + data)
    return path


def meta(path: Path, data: bytes = b"", ElementDataFile: str = "LOCAL", **changes: str) -> Path:
    """A MetaImage file with some fields replaced or added."""
    fields = {
        "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "10 20 30", "ElementSpacing": "1 2 3", "DimSize": "6 5 4",
        "ElementType": "MET_SHORT",
    }  # fmt: skip
    fields |= changes | {"ElementDataFile": ElementDataFile}
    path.write_bytes("".join(f"{name} = {value}\n" for name, value in fields.items()).encode() + data)
    return path


def refused(path: Path, words: str) -> None:
    with pytest.raises((BadInput, GeometryUnsupported), match=words) as caught:
        check_image(read_volume(path))
    assert path.stem in caught.value.message and caught.value.remedy
    assert caught.value.message.count(". ") == 0, "one sentence"
