"""Label maps: same grid after writing and reading, segmentation headers, nothing half-written."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from geometry_helpers import SIGNED_PERMUTATIONS, affine, volumes, write_raw_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.labelmap import SUFFIXES, check_mask_output, read_labelmap, write_labelmap
from SPDSegmentLib.geometry.volume import Volume, read_volume

IMAGE = Volume(np.zeros((4, 5, 6), np.int16), affine(SIGNED_PERMUTATIONS[5], (0.5, 2, 3), (10, -20, 30)), "image")
LABELS = np.zeros((4, 5, 6), np.uint8)
LABELS[1:3, 2:5, 1] = 1
LABELS[3, 0, 4:6] = 2


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(volume=volumes(), suffix=st.sampled_from(SUFFIXES), seed=st.integers(0, 999))
def test_written_labels_come_back_on_the_same_grid(tmp_path: Path, volume: Volume, suffix: str, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, volume.array.shape).astype(np.uint8)
    path = tmp_path / f"mask{suffix}"
    write_labelmap(path, labels, volume, ("one", "two"))
    read = read_labelmap(path)
    np.testing.assert_array_equal(read.array, labels)
    corner = np.array([*np.array(volume.shape_ijk) - 1, 1.0])
    for ijk in (np.array([0, 0, 0, 1.0]), corner):
        np.testing.assert_allclose(read.ijk_to_ras @ ijk, volume.ijk_to_ras @ ijk, atol=2e-3)
    assert os.listdir(tmp_path) == [path.name]
    path.unlink()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_mask_of_a_file_has_exactly_the_header_of_that_file(tmp_path: Path, suffix: str) -> None:
    extension = ".nrrd" if suffix == ".seg.nrrd" else suffix
    source = write_raw_image(tmp_path / f"image{extension}", IMAGE.array, IMAGE.ijk_to_ras)
    volume = read_volume(source)
    write_labelmap(tmp_path / f"mask{suffix}", LABELS > 0, volume)
    image, mask = sitk.ReadImage(str(source)), sitk.ReadImage(str(tmp_path / f"mask{suffix}"))
    assert mask.GetSize() == image.GetSize()
    for get in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(mask, get)(), getattr(image, get)(), atol=1e-6)
    assert mask.GetPixelID() == sitk.sitkUInt8


def test_a_segmentation_names_its_segments(tmp_path: Path) -> None:
    path = tmp_path / "mask.seg.nrrd"
    entry = "Category~SCT^123037004^Anatomical Structure~SCT^64033007^Kidney~^^~Anatomic codes~^^~^^"
    write_labelmap(path, LABELS, IMAGE, ("left kidney", "two\nlines"), [(1, 0, 0.25), (0, 1, 0)], (entry, entry))
    header = sitk.ReadImage(str(path))
    expected = {
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
        "Segment0_ID": "Segment_1",
        "Segment0_Name": "left kidney",
        "Segment0_LabelValue": "1",
        "Segment0_Layer": "0",
        "Segment0_Color": "1 0 0.25",
        "Segment0_Extent": "1 1 2 4 1 2",
        "Segment0_Tags": f"TerminologyEntry:{entry}|",
        "Segment1_ID": "Segment_2",
        "Segment1_Name": "two lines",
        "Segment1_LabelValue": "2",
        "Segment1_Extent": "4 5 0 0 3 3",
    }
    assert {key: header.GetMetaData(key) for key in expected} == expected
    space = re.search(rb"^space: (.*)$", path.read_bytes(), re.MULTILINE)
    assert space is not None
    assert space[1].strip() == b"left-posterior-superior"


def test_an_empty_segment_has_an_empty_extent(tmp_path: Path) -> None:
    write_labelmap(tmp_path / "mask.seg.nrrd", np.zeros_like(LABELS), IMAGE)
    header = sitk.ReadImage(str(tmp_path / "mask.seg.nrrd"))
    assert header.GetMetaData("Segment0_Extent") == "0 -1 0 -1 0 -1"
    assert header.GetMetaData("Segment0_Name") == "SPD"
    assert header.GetMetaData("Segment0_Tags").startswith("TerminologyEntry:")


def test_an_older_mask_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "mask.nii.gz"
    path.write_text("older")
    write_labelmap(path, LABELS, IMAGE)
    np.testing.assert_array_equal(read_labelmap(path).array, LABELS)


def test_a_failure_leaves_the_older_mask_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mask.nii.gz"
    path.write_text("older")

    def full_disk(image: sitk.Image, name: str, *args: object, **options: object) -> None:
        Path(name).write_text("half", encoding="utf-8")
        raise RuntimeError("no space left")

    monkeypatch.setattr(sitk, "WriteImage", full_disk)
    with pytest.raises(BadInput, match="cannot be written") as caught:
        write_labelmap(path, LABELS, IMAGE)
    assert "no space left" in caught.value.details
    assert path.read_text(encoding="utf-8") == "older"
    assert os.listdir(tmp_path) == ["mask.nii.gz"]


def test_a_missing_folder_is_named_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="results does not exist"):
        write_labelmap(tmp_path / "results" / "mask.nii.gz", LABELS, IMAGE)
    assert os.listdir(tmp_path) == []


def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):
        folder = Path("/proc")  # where not even root creates files
        if not folder.is_dir():
            pytest.skip("this user may write everywhere")
    with pytest.raises(BadInput, match=f"{folder.name}.* cannot be written"):
        write_labelmap(folder / "mask.nii.gz", LABELS, IMAGE)


def test_a_folder_is_no_output_file(tmp_path: Path) -> None:
    (tmp_path / "mask.nii.gz").mkdir()
    with pytest.raises(BadInput, match="is a folder"):
        write_labelmap(tmp_path / "mask.nii.gz", LABELS, IMAGE)


@pytest.mark.parametrize("name", ["mask", "mask.png", "mask.dcm", "mask.gz"])
def test_an_unknown_extension_is_refused_with_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match=r"\.seg\.nrrd, \.nii\.gz"):
        write_labelmap(tmp_path / name, LABELS, IMAGE)
    assert os.listdir(tmp_path) == []


def test_labels_on_another_grid_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not on the grid"):
        write_labelmap(tmp_path / "mask.nii.gz", LABELS.transpose(2, 1, 0), IMAGE)


def test_labels_that_a_segmentation_would_hide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="outside 0 to 1"):
        write_labelmap(tmp_path / "mask.seg.nrrd", LABELS, IMAGE, ("only one",))
    with pytest.raises(BadInput, match="outside 0 to 255"):
        write_labelmap(tmp_path / "mask.nii.gz", LABELS.astype(int) * 200, IMAGE)


@pytest.mark.parametrize("kind", ["float32", "int16", "uint8"])
def test_labels_of_any_number_type_are_read(tmp_path: Path, kind: str) -> None:
    path = write_raw_image(tmp_path / "mask.nrrd", LABELS.astype(kind))
    read = read_labelmap(path)
    assert read.array.dtype.kind in "iu"
    np.testing.assert_array_equal(read.array, LABELS)


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, -np.inf, 2.0**31])
def test_values_between_or_beyond_labels_are_refused(tmp_path: Path, value: float) -> None:
    array = LABELS.astype(np.float32)
    array[0, 0, 0] = value
    with pytest.raises(BadInput, match="not labels"):
        read_labelmap(write_raw_image(tmp_path / "mask.nrrd", array))


@pytest.mark.parametrize("name", ["x.hdr.nii", "x.img.nii.gz", "x.nia.nii", "x.mhd.mha", "x.nhdr.NRRD"])
def test_a_mask_gets_exactly_the_name_that_was_given(tmp_path: Path, name: str) -> None:
    volume = Volume(np.eye(4, dtype=np.uint8)[None].repeat(2, 0), np.eye(4), "v")
    write_labelmap(tmp_path / name, volume.array, volume)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert np.array_equal(read_labelmap(tmp_path / name).array, volume.array)


@pytest.mark.parametrize("name", ["x.Nii.Gz", ".nii", ".seg.nrrd", "x.Mha", "x.hdr"])
def test_a_name_that_could_not_be_read_again_is_refused_before_the_work(tmp_path: Path, name: str) -> None:
    volume = Volume(np.ones((2, 3, 4), np.uint8), np.eye(4), "v")
    for attempt in (check_mask_output, lambda path, volume: write_labelmap(path, volume.array, volume)):
        with pytest.raises(BadInput, match="no known extension") as caught:
            attempt(tmp_path / name, volume)
        assert "small letters" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []
