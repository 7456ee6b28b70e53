"""Several frames in one DICOM file: read where each lies and as it is scaled, or refused with the file's name."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_helpers import (
    LPS,
    PIXELS,
    Change,
    item,
    multi_frame,
    refused,
)
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from SPDSegmentLib.geometry.volume import read_volume


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0), (0, 2, 4, 1, 3, 5)])
def test_frames_lie_where_each_says_in_whatever_order(tmp_path: Path, order: tuple[int, ...]) -> None:
    path = multi_frame(tmp_path / "mr.dcm", order=order)
    for given in (path, tmp_path):
        volume = read_volume(given)
        np.testing.assert_array_equal(volume.array, PIXELS)
        np.testing.assert_allclose(volume.ijk_to_ras, LPS, atol=1e-6)


def test_every_frame_is_scaled_by_its_own_slope(tmp_path: Path) -> None:
    def scale(t: int, frame: Dataset) -> None:
        frame.PixelValueTransformationSequence = item(RescaleSlope=0.5 * (t + 1), RescaleIntercept=-t)

    array = read_volume(multi_frame(tmp_path / "mr.dcm", scale)).array
    steps = np.arange(6)[:, None, None]
    np.testing.assert_allclose(array, PIXELS * 0.5 * (steps + 1) - steps)


@pytest.mark.parametrize(
    ("change", "order", "words"),
    [
        (None, (0, 1, 3, 4, 5), "not equally spaced, first after slice 2 of 5"),
        (None, (0, 1, 2, 2, 3, 4), "several slices at one position"),
        (
            lambda t, f: setattr(f, "FrameContentSequence", item(TemporalPositionIndex=1 + t % 2)),
            range(6),
            "phase: 1, 2",
        ),
        (lambda t, f: setattr(f, "MREchoSequence", item(EffectiveEchoTime=10 + t % 2)), range(6), "echo time: 10, 11"),
        (lambda t, f: setattr(f, "MRDiffusionSequence", item(DiffusionBValue=t % 2)), range(6), "b-value: 0, 1"),
        (
            lambda t, f: setattr(f, "PlanePositionSequence", item(ImagePositionPatient=[-10, -20 + t, 30 + 4 * t])),
            range(6),
            "gantry tilt",
        ),
        (
            lambda t, f: setattr(
                f,
                "PlaneOrientationSequence",
                item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0] if t else [0, 1, 0, 0, 0, -1]),
            ),
            range(6),
            "one orientation: mr.dcm",
        ),
        (
            lambda t, f: setattr(f, "PixelMeasuresSequence", item(PixelSpacing=[2, 1.5 + (t == 4)])),
            range(6),
            "one pixel spacing: frame 5 of mr.dcm",
        ),
        (lambda t, f: delattr(f, "PlanePositionSequence"), range(6), "no ImagePositionPatient"),
    ],
)
def test_frames_that_are_no_volume_are_refused(
    tmp_path: Path, change: Change | None, order: tuple[int, ...], words: str
) -> None:
    refused(multi_frame(tmp_path / "mr.dcm", change or (lambda t, frame: None), tuple(order)), words)


@pytest.mark.parametrize("lost", ["pixels", "places", "all places"])
def test_fewer_pixels_or_places_than_frames_are_refused(tmp_path: Path, lost: str) -> None:
    made = pydicom.dcmread(multi_frame(tmp_path / "mr.dcm"))
    if lost == "pixels":
        made.PixelData = made.PixelData[:-160]
    elif lost == "places":
        made.PerFrameFunctionalGroupsSequence = Sequence(
            list(copy.deepcopy(made.PerFrameFunctionalGroupsSequence))[:-1]
        )
    else:
        del made.PerFrameFunctionalGroupsSequence
    made.save_as(tmp_path / "mr.dcm")
    refused(tmp_path / "mr.dcm", "mr.dcm are cut short|holds 6 frames and a place for [05] of them")
