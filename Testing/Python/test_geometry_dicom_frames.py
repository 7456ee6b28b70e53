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
    film,
    item,
    multi_frame,
    refused,
)
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from SPDSegmentLib.errors import BadInput, GeometryUnsupported
from SPDSegmentLib.geometry import dicom
from SPDSegmentLib.geometry.dicom import source_frames
from SPDSegmentLib.geometry.limits import BYTES_BESIDE_VOXEL
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


@pytest.mark.parametrize(("keyword", "kind"), [("FloatPixelData", "<f4"), ("DoubleFloatPixelData", "<f8")])
@pytest.mark.parametrize("slope", [None, 1, 2])
def test_values_that_are_stored_with_fractions_keep_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keyword: str, kind: str, slope: int | None
) -> None:
    # given a parametric map whose slope is absent or whole
    values = np.random.default_rng(7).random(PIXELS.shape).astype(kind) * 3
    path = multi_frame(tmp_path / "map.dcm")
    made = pydicom.dcmread(path)
    for t, frame in enumerate(made.PerFrameFunctionalGroupsSequence):
        if slope is None:
            del frame.PixelValueTransformationSequence
        else:
            frame.PixelValueTransformationSequence = item(RescaleSlope=slope, RescaleIntercept=t)
    for name in ("PixelData", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(made, name)
    setattr(made, keyword, values.tobytes())
    made.save_as(path, enforce_file_format=True)
    # when it is read
    counted = []
    monkeypatch.setattr(dicom, "check_memory", lambda what, shape, voxel_bytes: counted.append(voxel_bytes))
    array = read_volume(path).array
    # then nothing is rounded, and a value is counted as large as it may be
    expected = values if slope is None else values * slope + np.arange(6)[:, None, None]
    np.testing.assert_allclose(array, expected, rtol=1e-6)
    assert array.dtype == np.float32
    assert counted[0] + BYTES_BESIDE_VOXEL == 16


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


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("TemporalPositionIdentifier", (2, 10, 9)),
        ("TriggerTime", (0, 1033.5, 99.5)),
        ("TriggerTime", (12345.1, 12347.2, 12345.9)),
        ("AcquisitionNumber", (10001, 10003, 10002)),
        ("AcquisitionNumber", (4, 6, 5)),
    ],
)
def test_a_series_of_volumes_in_time_is_read_at_the_time_that_was_chosen(
    tmp_path: Path, keyword: str, values: tuple[float, float, float]
) -> None:
    folder = film(tmp_path / "film", lambda k, made: setattr(made, keyword, values[k // 6]))
    for number, brighter in enumerate((0, 200, 100), start=1):  # in the order of time, not of instance numbers
        volume = read_volume(folder, frame=number)
        np.testing.assert_array_equal(volume.array, PIXELS + brighter)
        np.testing.assert_allclose(volume.ijk_to_ras, LPS, atol=1e-6)
        assert [f.instance for f in source_frames(folder, None, number)][0] == f"1.2.3.4.{brighter // 100 * 6 + 1}"
    refused(folder, r"holds 3 frames\. Choose one, 1 to 3: --frame N, in a batch also the column frame", BadInput)
    with pytest.raises(BadInput, match="no frame 4: it holds 3 frames"):
        read_volume(folder, frame=4)


def test_one_file_of_two_volumes_in_time_is_read_at_the_chosen_one(tmp_path: Path) -> None:
    order = (0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5)
    times = iter([2] * 6 + [1] * 6)

    def change(t: int, frame: Dataset) -> None:
        time = next(times)
        frame.FrameContentSequence = item(TemporalPositionIndex=time)
        frame.PixelValueTransformationSequence = item(RescaleSlope=1, RescaleIntercept=time)

    path = multi_frame(tmp_path / "film.dcm", change, order)
    for number in (1, 2):
        np.testing.assert_array_equal(read_volume(path, frame=number).array, PIXELS + number)


@pytest.mark.parametrize("fault", ["a slice is missing", "no time", "no number"])
def test_volumes_in_time_that_are_not_whole_or_have_no_order_are_refused(tmp_path: Path, fault: str) -> None:
    keyword = "ContentTime" if fault == "no time" else "TemporalPositionIdentifier"
    folder = film(tmp_path / "film", lambda k, made: setattr(made, keyword, f"{1 + k // 6:06d}"), 2)
    if fault == "a slice is missing":
        (folder / "IM12.dcm").unlink()
        refused(folder, "2 kinds by phase: 1, 2", BadInput)
    elif fault == "no time":
        refused(folder, "several slices at one position", GeometryUnsupported)
    else:
        for file in folder.glob("IM*.dcm"):
            made = pydicom.dcmread(file)
            del made.TemporalPositionIdentifier
            made.EchoTime = 10 + (made.InstanceNumber > 6)
            made.save_as(file)
        refused(folder, "2 kinds by echo time: 10, 11", BadInput)
    with pytest.raises((BadInput, GeometryUnsupported)):
        read_volume(folder, frame=2)


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
