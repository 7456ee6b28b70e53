"""Masks as DICOM SEG and RTSTRUCT, read back voxel by voxel by pydicom, highdicom and SimpleITK, and what they say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_helpers import film, multi_frame, series
from geometry_helpers import affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from segment_case import files_in, run

from SPDSegmentLib.errors import BadInput, DependencyMissing
from SPDSegmentLib.geometry.dicom_objects import (
    BOTH,
    LEFT,
    RIGHT,
    Structure,
    side_of,
    source_of,
    write_dicom_seg,
    write_rtstruct,
)
from SPDSegmentLib.geometry.labelmap import inside, keyholes, outlines
from SPDSegmentLib.geometry.volume import Volume, read_volume
from SPDSegmentLib.models.bundle_info import OF_EACH_SIDE, STRUCTURES, codes_of, terminology_entry

highdicom = pytest.importorskip("highdicom")

pytest_plugins = ["segment_case"]

KIDNEY = Structure(
    "Kidney",
    ("SCT", "123037004", "Anatomical Structure"),
    ("SCT", "64033007", "Kidney"),
    LEFT,
    (0.7, 0.4, 0.2),
    "kidney-mr",
)


def of_the_patient(t: int, made: Dataset) -> None:
    """What a real series says besides, in slices that are not in the order of space."""
    made.PatientName, made.PatientID, made.PatientBirthDate, made.PatientSex = "Doe^Jane", "17", "19600101", "F"
    made.StudyID, made.StudyDate, made.StudyTime, made.AccessionNumber = "5", "20260101", "120000", "A1"
    made.FrameOfReferenceUID, made.SeriesNumber, made.InstanceNumber = "1.2.3.9", 4, 6 - t
    made.SliceThickness, made.ReferringPhysicianName, made.PositionReferenceIndicator = 4, "", ""


@pytest.fixture(params=["slices", "frames"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Six slices of 8 x 10 pixels, as files and as the frames of one, in another order than that of space."""
    if request.param == "slices":
        return series(tmp_path / "series", of_the_patient)
    path = multi_frame(tmp_path / "frames.dcm", order=(3, 1, 5, 0, 4, 2))
    made = pydicom.dcmread(path)
    of_the_patient(0, made)
    made.save_as(path)
    return path


def some_mask(shape: tuple[int, ...]) -> np.ndarray:
    """Two separate parts, one with a hole, pixels that meet at a corner, and slices without any."""
    mask = np.zeros(shape, dtype=np.uint8)
    mask[1, 1:7, 2:9] = 1
    mask[1, 3:5, 4:6] = 0
    mask[2, 2, 3] = mask[2, 3, 4] = mask[2, 6, 8] = 1
    mask[4, 0, 0] = mask[4, 7, 9] = 1
    return mask


def test_a_segmentation_is_read_back_voxel_by_voxel(image: Path, tmp_path: Path) -> None:
    # given
    volume, path = read_volume(image), tmp_path / "seg.dcm"
    mask = some_mask(volume.array.shape)

    # when
    write_dicom_seg(path, mask, volume, source_of(image, None), KIDNEY)

    # then: highdicom, by the instances that it refers to
    seg = highdicom.seg.segread(path)
    geometry = seg.get_volume(segment_numbers=[1], combine_segments=True)
    lps = np.diag([-1.0, -1, 1, 1]) @ volume.ijk_to_ras
    found = np.zeros_like(mask)
    for index in np.argwhere(geometry.array):
        place = geometry.affine @ (*index, 1)
        i, j, k = np.rint(np.linalg.solve(lps, place)[:3]).astype(int)
        found[k, j, i] = 1
    assert (found == mask).all()

    # SimpleITK, by the bits of the frames; it knows no places of frames, so pydicom tells them
    read = pydicom.dcmread(path)
    frames = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    places = [item.PlanePositionSequence[0].ImagePositionPatient[2] for item in read.PerFrameFunctionalGroupsSequence]
    planes = [round((float(place) - 30) / 4) for place in places]
    assert sorted(planes) == [1, 2, 4] and ((frames.reshape(3, 8, 10) > 0) == mask[planes]).all()

    # and what it says
    assert (read.PatientName, read.PatientID, read.StudyInstanceUID) == ("Doe^Jane", "17", "1.2.3")
    assert read.FrameOfReferenceUID == "1.2.3.9" and read.SeriesInstanceUID != "1.2.3.4"
    assert read.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3.4"
    (segment,) = read.SegmentSequence
    kind = segment.SegmentedPropertyTypeCodeSequence[0]
    assert (segment.SegmentLabel, kind.CodeValue) == ("Kidney", codes.SCT.Kidney.value)
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == codes.SCT.Left.value
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == "SPDSegment" and "kidney-mr" in algorithm.AlgorithmParameters


def test_a_structure_set_is_read_back_voxel_by_voxel(image: Path, tmp_path: Path) -> None:
    # given
    volume, path = read_volume(image), tmp_path / "rt.dcm"
    mask = some_mask(volume.array.shape)

    # when
    write_rtstruct(path, mask, volume, source_of(image, None), KIDNEY)

    # then: every voxel whose center lies within the contours of its slice is the mask's, and no other
    read = pydicom.dcmread(path)
    lps = np.diag([-1.0, -1, 1, 1]) @ volume.ijk_to_ras
    found = np.zeros(mask.shape, dtype=int)
    j, i = np.mgrid[: mask.shape[1], : mask.shape[2]]
    for contour in read.ROIContourSequence[0].ContourSequence:
        points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
        ijk = np.column_stack((points, np.ones(len(points)))) @ np.linalg.inv(lps).T
        k = round(ijk[0, 2])
        assert contour.ContourGeometricType == "CLOSED_PLANAR" and np.allclose(ijk[:, 2], k, atol=1e-4)
        assert contour.NumberOfContourPoints == len(points)
        (referenced,) = contour.ContourImageSequence
        assert referenced.ReferencedSOPInstanceUID == (f"1.2.3.4.{k + 1}" if image.is_dir() else "1.2.3.5")
        assert image.is_dir() or referenced.ReferencedFrameNumber == (3, 1, 5, 0, 4, 2).index(k) + 1
        angles = np.zeros(i.shape)
        x, y = ijk[:, 0] + 1e-7, ijk[:, 1] + 2e-7  # lines between outlines may pass through centers
        for x0, y0, x1, y1 in zip(x, y, np.roll(x, -1), np.roll(y, -1), strict=True):
            angle = np.arctan2(y1 - j, x1 - i) - np.arctan2(y0 - j, x0 - i)
            angles += (angle + np.pi) % (2 * np.pi) - np.pi
        found[k] += np.rint(abs(angles) / (2 * np.pi)).astype(int)
    assert (found == mask).all()

    # and what it says
    (region,) = read.StructureSetROISequence
    assert (region.ROIName, read.Modality, read.PatientID) == ("Kidney", "RTSTRUCT", "17")
    study = read.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    assert study.RTReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3.4"
    (observation,) = read.RTROIObservationsSequence
    assert observation.RTROIIdentificationCodeSequence[0].CodeValue == "64033007"
    assert pydicom.dcmread(path).file_meta.MediaStorageSOPClassUID == pydicom.uid.RTStructureSetStorage


@pytest.mark.parametrize("write", [write_dicom_seg, write_rtstruct])
def test_what_a_series_does_oddly_puts_no_name_of_a_patient_on_a_terminal(
    write: Any, tmp_path: Path, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    def odd(t: int, made: Dataset) -> None:
        of_the_patient(t, made)
        made.PatientName, made.StudyID = "SMITH", "longer than 16 characters"

    image = series(tmp_path / "series", odd)
    volume, source = read_volume(image), source_of(image, None)
    recwarn.clear()
    caplog.clear()
    write(tmp_path / "made.dcm", some_mask(volume.array.shape), volume, source, KIDNEY)
    assert (recwarn.list, caplog.records) == ([], [])


def test_what_those_who_take_names_away_leave_spoils_no_segmentation(tmp_path: Path) -> None:
    def odd(t: int, made: Dataset) -> None:
        of_the_patient(t, made)
        made.PatientBirthDate, made.StudyDate, made.StudyTime = "19600000", "removed", "25:99"
        made.PatientSex, made.SeriesNumber = "U", -3
        del made.StudyID, made.PatientName

    image = series(tmp_path / "series", odd)
    volume, source = read_volume(image), source_of(image, None)
    write_dicom_seg(tmp_path / "s.dcm", some_mask(volume.array.shape), volume, source, KIDNEY)
    made = pydicom.dcmread(tmp_path / "s.dcm")
    assert (made.PatientID, made.PatientBirthDate, made.StudyDate, made.PatientSex) == ("17", "", "", "")
    assert source[0].header.PatientBirthDate == "19600000", "what was read stays"


@pytest.mark.parametrize("name", ["StudyInstanceUID", "FrameOfReferenceUID"])
def test_a_series_that_nothing_can_refer_to_is_refused_before_the_work(tmp_path: Path, name: str) -> None:
    def nameless(t: int, made: Dataset) -> None:
        of_the_patient(t, made)
        delattr(made, name)

    with pytest.raises(BadInput, match=f"has no {name}, so that nothing can refer to it"):
        source_of(series(tmp_path / "series", nameless), None)


def test_a_value_that_a_segmentation_cannot_take_is_named_without_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = series(tmp_path / "series", of_the_patient)
    volume = read_volume(image)
    monkeypatch.setattr(highdicom.seg, "Segmentation", Mock(side_effect=ValueError("'Doe^Jane' is no value")))
    with pytest.raises(BadInput, match=r"needs: a value of its header is not valid\. Export") as refused:
        write_dicom_seg(tmp_path / "s.dcm", some_mask(volume.array.shape), volume, source_of(image, None), KIDNEY)
    assert "Doe" not in refused.value.sentence


def test_objects_of_one_time_of_a_series_refer_to_the_slices_of_that_time(tmp_path: Path) -> None:
    # given: three volumes in time; the second one's slices are files 13 to 18
    def change(k: int, made: Dataset) -> None:
        of_the_patient(k % 6, made)
        made.TemporalPositionIdentifier = (2, 10, 9)[k // 6]

    folder = film(tmp_path / "film", change)
    volume, source = read_volume(folder, frame=2), source_of(folder, None, number=2)
    mask, instances = some_mask(volume.array.shape), [f"1.2.3.4.{k}" for k in range(13, 19)]

    # when
    write_dicom_seg(tmp_path / "seg.dcm", mask, volume, source, KIDNEY)
    write_rtstruct(tmp_path / "rt.dcm", mask, volume, source, KIDNEY)

    # then
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert {instance for *_, instance in seg.get_source_image_uids()} <= set(instances)
    pixels = seg.get_pixels_by_source_instance(instances, segment_numbers=[1], assert_missing_frames_are_empty=True)
    assert (pixels[..., 0] == mask).all()
    contours = pydicom.dcmread(tmp_path / "rt.dcm").ROIContourSequence[0].ContourSequence
    referred = {contour.ContourImageSequence[0].ReferencedSOPInstanceUID for contour in contours}
    assert referred == {instances[k] for k in np.flatnonzero(mask.any(axis=(1, 2)))}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.9))
def test_outlines_with_their_keyholes_enclose_the_very_pixels(seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((9, 7)) < share
    loops = outlines(mask)
    assert (inside(loops, (9, 7)) == mask).all()
    assert (inside(keyholes(loops), (9, 7)) == mask).all()
    assert (np.sum([inside([loop], (9, 7)) for loop in keyholes(loops)], axis=0) == mask).all(), "one at a time"


def test_a_hole_is_joined_to_the_outline_around_it_and_not_to_a_nearer_island() -> None:
    mask = np.zeros((20, 60), dtype=bool)
    mask[10:15, 5:45] = True
    mask[12, 25] = False
    mask[8, 24:27] = True
    bar, island = sorted(keyholes(outlines(mask)), key=len, reverse=True)
    assert len(island) == 4
    assert (inside([bar], mask.shape) == (mask & (np.arange(20) > 9)[:, None])).all()


def test_the_side_is_that_of_the_body_and_not_of_a_crop() -> None:
    def side(first: int, last: int, width: float = 5.0) -> object:
        mask = np.zeros((3, 8, 60), dtype=bool)
        mask[1, 2:5, first:last] = True
        return side_of(mask, Volume(mask.astype(np.uint8), affine(np.diag([-1.0, -1, 1]), (width, 2, 4), (150, 0, 0))))

    assert [side(10, 15), side(45, 50), side(10, 50)] == [RIGHT, LEFT, BOTH]
    assert [side(29, 31), side(10, 15, width=1.5), side(5, 5)] == [None, None, None]


def test_every_known_structure_has_the_code_of_the_standards_dictionary() -> None:
    said = {code.value: code.meaning.lower() for code in (getattr(codes.SCT, name) for name in codes.SCT.dir())}
    for value, meaning in STRUCTURES.values():
        assert said[value].startswith(meaning[:4].lower()), (value, meaning)
    assert {value for value, _ in STRUCTURES.values()} >= OF_EACH_SIDE


def test_a_structure_of_ones_own_has_the_code_that_the_configuration_gives() -> None:
    assert codes_of(terminology_entry("Femur", "SCT 71341001 Bone of thigh"))[1] == ("SCT", "71341001", "Bone of thigh")
    assert codes_of(terminology_entry("Femur")) == []
    with pytest.raises(BadInput, match="has not the three parts SCHEME VALUE MEANING"):
        terminology_entry("Femur", "71341001")


def test_the_command_writes_both_beside_the_mask(case: SimpleNamespace, tmp_path: Path) -> None:
    folder = series(tmp_path / "series", of_the_patient)
    case.image = folder
    words = ["--dicom-seg", case.out / "seg.dcm", "--rtstruct", case.out / "rt.dcm", "--point", "6,14,38"]
    result = run_with_points(case, *words)
    assert result.exit_code == 0, result.output
    assert files_in(case.out) == ["mask.nii.gz", "rt.dcm", "seg.dcm"]
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(case.output)))
    assert mask.any() and pydicom.dcmread(case.out / "seg.dcm").pixel_array.sum() == mask.sum()


def run_with_points(case: SimpleNamespace, *words: Any) -> Any:
    """Run the command without a points file."""
    from segment_case import CliRunner, app_module

    given = ["segment", "--image", case.image, "--model", case.model, "--output", case.output, *words]
    return CliRunner().invoke(app_module.build_app(), list(map(str, given)))


def test_what_cannot_be_is_refused_before_the_work(
    case: SimpleNamespace, predictor: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor.failure = AssertionError("the work began")
    for option in ("--dicom-seg", "--rtstruct"):
        result = run(case, option, case.out / "a.dcm")
        assert result.exit_code == 2 and "is not of a DICOM series" in result.stderr, result.output
    case.image = series(tmp_path / "series", of_the_patient)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DependencyMissing, match="highdicom is needed") as missing:
        source_of(case.image, None, True)
    assert "pip install 'highdicom" in missing.value.remedy
    assert files_in(case.out) == []


def test_an_empty_mask_makes_no_object(image: Path, tmp_path: Path) -> None:
    volume = read_volume(image)
    for write in (write_dicom_seg, write_rtstruct):
        with pytest.raises(BadInput, match="Nothing was segmented, so .*a.dcm is not written"):
            write(tmp_path / "a.dcm", np.zeros(volume.array.shape, bool), volume, source_of(image, None), KIDNEY)
    assert not (tmp_path / "a.dcm").exists()


@pytest.mark.parametrize("name", ["ibsi1_lungct_rtstruct", "STS_025", "ts_ct_jpeg2000"])
def test_real_series_take_both(shared_data: Path, tmp_path: Path, name: str) -> None:
    folders = {path.parent for path in sorted((shared_data / "dicom" / name).rglob("*")) if path.is_file()}
    tried = 0
    for folder in sorted(folders):
        try:
            volume = read_volume(folder)
        except BadInput:
            continue
        tried += 1
        mask = np.zeros(volume.array.shape, dtype=np.uint8)
        k, j, i = np.array(mask.shape) // 2
        mask[k - 2 : k + 3, j - 9 : j + 12, i - 14 : i + 5] = 1
        mask[k, j - 2 : j + 2, i - 6 : i - 3] = 0
        write_dicom_seg(tmp_path / "seg.dcm", mask, volume, source_of(folder, None), KIDNEY)
        write_rtstruct(tmp_path / "rt.dcm", mask, volume, source_of(folder, None), KIDNEY)
        assert pydicom.dcmread(tmp_path / "seg.dcm").pixel_array.sum() == mask.sum()
    assert tried
