"""Small DICOM series and multi-frame files whose fields a test changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from geometry_helpers import affine
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

from SPDSegmentLib.errors import BadInput, GeometryUnsupported
from SPDSegmentLib.geometry.volume import read_volume

PIXELS = np.random.default_rng(5).integers(-900, 1000, (6, 8, 10)).astype(np.int16)
POSITIONS = np.array([[-10.0, -20.0, 30.0 + 4 * t] for t in range(6)])
LPS = affine(np.diag([-1.0, -1, 1]), (1.5, 2, 4), (10, 20, 30))
CT, ENHANCED_MR, NATIVE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.1.2.1"

Change = Callable[[int, Dataset], None]


def dataset(pixels: np.ndarray, uid: str, sop_class: str = CT, **fields: Any) -> Dataset:
    """An image of one or more frames, native little endian."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = NATIVE  # type: ignore[assignment]
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = sop_class  # type: ignore[assignment]
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = uid  # type: ignore[assignment]
    made.Modality, made.StudyInstanceUID, made.SeriesInstanceUID = "CT", "1.2.3", "1.2.3.4"
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows, made.Columns = pixels.shape[-2:]
    bits = pixels.dtype.itemsize * 8
    made.BitsAllocated, made.BitsStored, made.HighBit = bits, bits, bits - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in fields.items():
        setattr(made, name, value)
    made.add_new("PixelData", "OW", pixels.tobytes())
    return made


def series(folder: Path, change: Change = lambda t, made: None, pixels: np.ndarray = PIXELS) -> Path:
    """Six CT slices as files ``IM#.dcm``, each changed before it is written."""
    folder.mkdir(parents=True, exist_ok=True)
    for t, values in enumerate(pixels):
        made = dataset(
            values, f"1.2.3.4.{t + 1}", InstanceNumber=t + 1,
            ImagePositionPatient=POSITIONS[t % len(POSITIONS)].tolist(),
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[2, 1.5], RescaleSlope=1, RescaleIntercept=0,
        )  # fmt: skip
        change(t, made)
        made.save_as(folder / f"IM{t + 1}.dcm", enforce_file_format=True)
    return folder


def item(**fields: Any) -> Sequence:
    """A sequence of one item."""
    made = Dataset()
    for name, value in fields.items():
        setattr(made, name, value)
    return Sequence([made])


def multi_frame(path: Path, change: Change = lambda t, made: None, order: tuple[int, ...] = (0, 1, 2, 3, 4, 5)) -> Path:
    """An enhanced file with its slices in some order, each frame's groups changed before it is written."""
    made = dataset(PIXELS[list(order)], "1.2.3.5", ENHANCED_MR, NumberOfFrames=len(order), Modality="MR")
    made.SharedFunctionalGroupsSequence = item(
        PlaneOrientationSequence=item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        PixelMeasuresSequence=item(PixelSpacing=[2, 1.5], SliceThickness=4),
    )
    frames = []
    for t in order:
        frame = Dataset()
        frame.PlanePositionSequence = item(ImagePositionPatient=POSITIONS[t].tolist())
        frame.PixelValueTransformationSequence = item(RescaleSlope=1, RescaleIntercept=0)
        frame.FrameContentSequence = item(TemporalPositionIndex=1)
        change(t, frame)
        frames.append(frame)
    made.PerFrameFunctionalGroupsSequence = Sequence(frames)
    made.save_as(path, enforce_file_format=True)
    return path


def film(folder: Path, change: Change, volumes: int = 3) -> Path:
    """A series of several volumes, one after the other, the first with PIXELS and each next 100 brighter."""

    def place(k: int, made: Dataset) -> None:
        made.ImagePositionPatient = POSITIONS[k % len(PIXELS)].tolist()
        change(k, made)

    return series(folder, place, np.concatenate([PIXELS + 100 * n for n in range(volumes)]))


def refused(path: Path, words: str, kind: type[Exception] | tuple[type[Exception], ...] = ()) -> None:
    with pytest.raises(kind or (BadInput, GeometryUnsupported), match=words) as caught:
        read_volume(path)
    assert path.name in str(caught.value) and getattr(caught.value, "remedy", None)
