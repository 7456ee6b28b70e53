"""DICOM folders and files: what is read is what the headers say, or it is refused with the file's name."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_helpers import (
    CT,
    LPS,
    NATIVE,
    PIXELS,
    POSITIONS,
    Change,
    dataset,
    refused,
    series,
)
from geometry_helpers import write_dicom_series
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames

from SPDSegmentLib.cli.segment_command import SegmentRequest
from SPDSegmentLib.errors import BadInput, GeometryUnsupported
from SPDSegmentLib.geometry.volume import read_volume


def test_a_series_is_read_in_the_order_of_space_with_whole_numbers(tmp_path: Path) -> None:
    def reverse(t: int, made: Dataset) -> None:
        made.InstanceNumber = 6 - t

    volume = read_volume(series(tmp_path / "ct", reverse))
    np.testing.assert_array_equal(volume.array, PIXELS)
    np.testing.assert_allclose(volume.ijk_to_ras, LPS, atol=1e-6)
    assert volume.array.dtype == np.int16


@pytest.mark.parametrize(
    ("slopes", "intercepts", "kind"),
    [
        ((1, 60, 60, 60, 60, 60), (0,) * 6, np.int32),
        ((60, 1, 2, 3, 4, 5), (-1024, 0, 10, 20, 30, 40), np.int32),
        ((1,) * 6, (0, 10, 20, 30, 40, 50), np.int16),
        ((1, 0.5, 0.25, 2, 1, 1.125), (0, 0.5, -3, 0, 0, 7), np.float32),
        ((-1, 1, -1, 1, -1, 1), (0,) * 6, np.int16),
        ((1e20,) * 6, (0,) * 6, np.float32),
    ],
)
def test_every_slice_is_scaled_by_its_own_slope_and_intercept(
    tmp_path: Path, slopes: tuple[float, ...], intercepts: tuple[float, ...], kind: type
) -> None:
    def scale(t: int, made: Dataset) -> None:
        made.RescaleSlope, made.RescaleIntercept = slopes[t], intercepts[t]

    array = read_volume(series(tmp_path / "ct", scale)).array
    expected = PIXELS * np.array(slopes)[:, None, None] + np.array(intercepts)[:, None, None]
    np.testing.assert_allclose(array, expected, rtol=1e-6)
    assert array.dtype == kind


def test_slices_of_several_signs_depths_and_bits_are_read_together(tmp_path: Path) -> None:
    # given unsigned, signed, 32-bit and 12-bit slices, the last with an overlay in their upper bits
    def store(t: int, made: Dataset) -> None:
        values = np.abs(PIXELS[t])
        if t == 1:
            made.PixelRepresentation, made.PixelData = 0, (values.astype(np.uint16) + 60_000).tobytes()
        elif t == 2:
            made.BitsAllocated, made.BitsStored, made.HighBit = 32, 32, 31
            made.PixelData = PIXELS[t].astype(np.int32).tobytes()
        elif t == 3:
            made.PixelRepresentation, made.BitsStored, made.HighBit = 0, 12, 11
            made.PixelData = (values.astype(np.uint16) | 0xA000).tobytes()
        elif t == 4:
            made.BitsStored, made.HighBit = 12, 11
            made.PixelData = (PIXELS[t].astype(np.uint16) & 0x0FFF | 0x5000).tobytes()

    array = read_volume(series(tmp_path / "ct", store)).array
    expected = PIXELS.astype(np.int32)
    expected[1], expected[3] = np.abs(expected[1]) + 60_000, np.abs(expected[3])
    np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("t", [0, 3, 5])
@pytest.mark.parametrize("left", [0, 10, 158])
def test_short_pixels_are_refused_with_the_file(tmp_path: Path, t: int, left: int) -> None:
    def cut(k: int, made: Dataset) -> None:
        if k == t:
            made.PixelData = made.PixelData[:left]

    with pytest.raises(BadInput, match=rf"pixels of the DICOM file .*IM{t + 1}\.dcm are cut short"):
        read_volume(series(tmp_path / "ct", cut))


@pytest.mark.parametrize("left", [5, 140, 200, 300, 0.8, 0.99])
def test_a_file_that_ends_early_is_never_passed_over(tmp_path: Path, left: float) -> None:
    folder = series(tmp_path / "ct")
    path = folder / "IM1.dcm"  # at the end of the series no gap shows
    content = path.read_bytes()
    path.write_bytes(content[: int(left if left > 1 else left * len(content))])
    with pytest.raises(BadInput, match=r"IM1\.dcm"):
        read_volume(folder)


@pytest.mark.parametrize("compressor", ["JPEG2000", "JPEG", "JPEGLS"])
def test_compressed_slices_are_read_and_refused_where_they_are_cut(tmp_path: Path, compressor: str) -> None:
    # given a compressed series of which two slices have slopes of their own
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    smooth = np.tile(np.arange(64, dtype=np.uint8), (6, 64, 1))
    for t in range(6):
        image = sitk.GetImageFromArray(smooth[t : t + 1])
        for key, value in {
            "0008|0060": "CT",
            "0008|0016": CT,
            "0008|0018": f"1.2.3.4.{t}",
            "0020|000e": "1.2.3.4",
        }.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(tmp_path / f"IM{t}.dcm"))
        writer.Execute(image)
        made = pydicom.dcmread(tmp_path / f"IM{t}.dcm")
        assert made.file_meta.TransferSyntaxUID not in (NATIVE, "1.2.840.10008.1.2"), "it is compressed"
        made.PixelSpacing, made.ImageOrientationPatient = [2, 1.5], [1, 0, 0, 0, 1, 0]
        made.ImagePositionPatient = POSITIONS[t].tolist()
        made.RescaleSlope, made.RescaleIntercept = 1 + t % 3, 5 * t
        made.save_as(tmp_path / f"IM{t}.dcm")
    expected = smooth * (1 + np.arange(6) % 3)[:, None, None] + 5 * np.arange(6)[:, None, None]
    tolerance = 12 if compressor == "JPEG" else 0
    np.testing.assert_allclose(read_volume(tmp_path).array, expected, atol=tolerance)
    if sys.platform.startswith("linux"):  # names that are no UTF-8
        odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/dossi\xe9r"))
        odd.mkdir()
        for t in range(6):
            shutil.copy(tmp_path / f"IM{t}.dcm", Path(os.fsdecode(os.fsencode(odd) + b"/im\xe9g%d.dcm" % t)))
        np.testing.assert_allclose(read_volume(odd).array, expected, atol=tolerance)
    # when the stream of one of them is cut
    made = pydicom.dcmread(tmp_path / "IM2.dcm")
    (stream,) = generate_frames(made.PixelData, number_of_frames=1)
    made.PixelData = encapsulate([stream[: len(stream) * 7 // 10]])
    made.save_as(tmp_path / "IM2.dcm")
    # then it is named
    with pytest.raises(BadInput, match=r"IM2\.dcm (are cut short|cannot be decoded)"):
        read_volume(tmp_path)


def test_run_length_encoded_slices_are_read_and_refused_where_they_are_cut(tmp_path: Path) -> None:
    folder = series(tmp_path / "ct", lambda t, made: made.compress("1.2.840.10008.1.2.5", generate_instance_uid=False))
    np.testing.assert_array_equal(read_volume(folder).array, PIXELS)
    made = pydicom.dcmread(folder / "IM4.dcm")
    (stream,) = generate_frames(made.PixelData, number_of_frames=1)
    made.PixelData = encapsulate([stream[: len(stream) // 2]])
    made.save_as(folder / "IM4.dcm")
    with pytest.raises(BadInput, match=r"IM4\.dcm"):
        read_volume(folder)


def broken(**fields: Any) -> Change:
    """A change of the fourth slice alone; None takes a field away."""

    def change(t: int, made: Dataset) -> None:
        if t == 3:
            for name, value in fields.items():
                if value is None:
                    delattr(made, name)
                else:
                    setattr(made, name, value)

    return change


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ImagePositionPatient": None}, r"IM4\.dcm has no ImagePositionPatient"),
        ({"ImageOrientationPatient": None}, r"IM4\.dcm has no ImageOrientationPatient"),
        ({"PixelSpacing": None}, r"IM4\.dcm has no PixelSpacing"),
        ({"PixelSpacing": [0, 1.5]}, r"IM4\.dcm has a PixelSpacing of 0"),
        ({"PixelSpacing": [2.5, 1.5]}, r"one pixel spacing: IM4\.dcm"),
        ({"RescaleSlope": 0}, r"IM4\.dcm has a RescaleSlope of 0"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, r"one orientation: IM4\.dcm"),
        ({"ImageOrientationPatient": [1, 0, 0, 0.6, 0.8, 0]}, r"IM4\.dcm has rows and columns that are not"),
        ({"Rows": 4, "Columns": 20}, r"one size: IM4\.dcm has 4 x 20 pixels, most have 8 x 10"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, r"IM4\.dcm is stored inverted"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, r"IM4\.dcm is in color"),
        ({"Modality": "MR"}, "2 kinds by modality: CT, MR"),
        ({"EchoTime": 90}, "not|by echo time"),
        ({"ImagePositionPatient": [-10, -20, 43]}, "not equally spaced"),
        ({"ImagePositionPatient": [-10, -20, 38]}, r"at one position, first IM3\.dcm and IM4\.dcm.*instance \(3, 4\)"),
        ({"PixelData": None}, r"IM4\.dcm has no pixels"),
    ],
)
def test_a_slice_that_differs_from_the_others_is_named(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    def change(t: int, made: Dataset) -> None:
        if "EchoTime" in fields:
            made.EchoTime = 30
        broken(**fields)(t, made)

    with pytest.raises((BadInput, GeometryUnsupported), match=words):
        read_volume(series(tmp_path / "ct", change))


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("EchoTime", (10, 20), "echo time: 10, 20"),
        ("TemporalPositionIdentifier", (1, 2), "phase: 1, 2"),
        ("DiffusionBValue", (0, 800), "b-value: 0, 800"),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]), "image type: M, P"),
        ("Units", ("BQML", "CNTS"), "unit: BQML, CNTS"),
    ],
)
def test_two_images_in_turn_are_no_volume_even_on_an_even_grid(
    tmp_path: Path, name: str, values: tuple[Any, Any], words: str
) -> None:
    folder = series(tmp_path / "mr", lambda t, made: setattr(made, name, values[t % 2]))
    refused(folder, words, BadInput)


def test_a_localizer_in_the_series_is_called_so(tmp_path: Path) -> None:
    scout = {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1], "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    refused(series(tmp_path / "ct", broken(**scout)), r"IM4\.dcm \(a localizer\)", GeometryUnsupported)


def test_a_tilt_that_adds_up_over_the_series_is_noticed(tmp_path: Path) -> None:
    def tilt(t: int, made: Dataset) -> None:
        made.ImagePositionPatient = [-10, -20 + 0.19 * t, 30 + 4 * t]

    series(tmp_path / "two", tilt)
    many = np.repeat(PIXELS, 10, axis=0)
    global_positions = np.array([[-10.0, -20.0 + 0.19 * t, 30.0 + 4 * t] for t in range(60)])
    write_dicom_series(tmp_path / "many", "1.2.3.9", global_positions, many)
    refused(tmp_path / "many", "gantry tilt", GeometryUnsupported)


def test_a_spacing_that_changes_little_by_little_is_noticed(tmp_path: Path) -> None:
    heights = np.cumsum(np.r_[0, np.full(40, 3.0), np.full(40, 3.12)])
    positions = np.stack((np.zeros(81), np.zeros(81), heights), axis=1)
    write_dicom_series(tmp_path / "ct", "1.2.3.9", positions, np.repeat(PIXELS, 14, axis=0)[:81])
    refused(tmp_path / "ct", "not equally spaced", GeometryUnsupported)


def test_every_second_slice_missing_is_noticed_by_header_and_numbers(tmp_path: Path) -> None:
    folder = series(tmp_path / "ct", lambda t, made: setattr(made, "SpacingBetweenSlices", 4))
    for t in (2, 4, 6):
        (folder / f"IM{t}.dcm").unlink()
    refused(folder, "8 mm apart, by their header 4 mm: some are missing", GeometryUnsupported)


def test_a_copy_of_a_slice_is_named(tmp_path: Path) -> None:
    folder = series(tmp_path / "ct")
    (folder / "copy of IM3.dcm").write_bytes((folder / "IM3.dcm").read_bytes())
    refused(folder, r"(IM3\.dcm and copy of IM3\.dcm|copy of IM3\.dcm and IM3\.dcm) of .* are one image", BadInput)


@pytest.mark.parametrize("name", ["IM7.dcm", "IM0007.dcm", "other.DCM", "scan.ima"])
def test_an_empty_file_among_the_slices_is_no_slice_less(tmp_path: Path, name: str) -> None:
    folder = series(tmp_path / "ct")
    (folder / name).touch()
    refused(folder, f"{name} is empty, damaged or no DICOM file", BadInput)


def test_files_that_are_no_slices_do_no_harm(tmp_path: Path) -> None:
    folder = series(tmp_path / "ct")
    (folder / "readme.txt").write_text("scanned on Monday")
    (folder / "._IM1.dcm").write_bytes(b"\x00\x05\x16\x07")
    (folder / "Thumbs.db").touch()
    (folder / "more").mkdir()
    np.testing.assert_array_equal(read_volume(folder).array, PIXELS)


def test_slices_without_a_preamble_are_read(tmp_path: Path) -> None:
    folder = series(tmp_path / "ct", lambda t, made: setattr(made.file_meta, "TransferSyntaxUID", "1.2.840.10008.1.2"))
    for path in folder.iterdir():
        made = pydicom.dcmread(path)
        del made.file_meta
        made.preamble = None
        made.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
        assert path.read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(read_volume(folder).array, PIXELS)


def test_a_folder_with_two_series_tells_how_to_choose_and_that_works(tmp_path: Path) -> None:
    # given a folder with two series
    series(tmp_path / "ct")
    for t in range(6):
        made = pydicom.dcmread(tmp_path / "ct" / f"IM{t + 1}.dcm")
        made.SeriesInstanceUID, made.SeriesDescription = "1.2.3.77", "late"
        made.SOPInstanceUID = f"1.2.3.77.{t}"
        made.PixelData = (PIXELS[t] + 1).tobytes()
        made.save_as(tmp_path / "ct" / f"late{t}.dcm")
    # when it is read, both are listed with the option
    refused(tmp_path / "ct", r"1\.2\.3\.4 \(6 files\) CT; 1\.2\.3\.77 \(6 files\) CT late.*--series", BadInput)
    # then the option chooses
    np.testing.assert_array_equal(read_volume(tmp_path / "ct", ".77").array, PIXELS + 1)
    assert SegmentRequest(image=Path("a"), points=Path("b"), model="m", output=Path("c"), series=".77").series == ".77"
    with pytest.raises(BadInput, match=r"ends in 5\. Choose one of these: 1\.2\.3\.4"):
        read_volume(tmp_path / "ct", "5")


def test_a_series_is_chosen_by_uid_number_or_description_and_doubt_is_said(tmp_path: Path) -> None:
    # given three series in one folder; 12 is the number of one and the end of another one's UID
    uids = {"1.2.3.12": (7, "T1 pre"), "1.2.3.13": (12, "T1 post"), "1.2.3.14": (9, "scout")}
    for uid, (number, words) in uids.items():

        def change(t: int, made: Dataset, uid: str = uid, number: int = number, words: str = words) -> None:
            made.SeriesInstanceUID, made.SeriesNumber, made.SeriesDescription = uid, number, words
            made.RescaleIntercept = number

        series(tmp_path / "all" / uid, change)
    # when, then
    for text, number in (("1.2.3.12", 7), ("7", 7), ("t1 POST", 12), ("post", 12), ("3.13", 12), ("scout", 9)):
        np.testing.assert_array_equal(read_volume(tmp_path / "all", text).array, PIXELS + number)
    for text in ("12", "T1"):
        with pytest.raises(BadInput, match=rf"2 DICOM image series that fit {text}: 1\.2\.3\.12 .*1\.2\.3\.13"):
            read_volume(tmp_path / "all", text)
    for text in ("2", "1", "14"):  # the end of a UID, a part of a description, the end of one with a number of its own
        with pytest.raises(BadInput, match=rf"ends in {text}\. Choose one of these"):
            read_volume(tmp_path / "all", text)
    with pytest.raises(BadInput, match="that fit 12") as doubt:
        read_volume(tmp_path / "all", "12")
    assert doubt.value.remedy.startswith("Choose one with --series and its whole UID")
    with pytest.raises(BadInput, match=r"ends in 99\. Choose one of these: .*CT T1 post \(number 12\)"):
        read_volume(tmp_path / "all", "99")


def test_below_a_folder_a_series_is_found_wherever_its_files_lie(tmp_path: Path) -> None:
    # given one series that is spread over folders of a disk, beside notes and a hidden folder
    series(tmp_path / "study")
    for t in range(6):
        place = tmp_path / "study" / f"S{t % 2}" / "IMAGES"
        place.mkdir(parents=True, exist_ok=True)
        (tmp_path / "study" / f"IM{t + 1}.dcm").rename(place / f"IM{t + 1}")
    (tmp_path / "study" / "S0" / "notes.txt").write_text("none", encoding="utf-8")
    (tmp_path / "study" / "S1" / "other").mkdir()
    (tmp_path / "study" / "S1" / "other" / "cut.dcm").write_bytes(b"\0" * 128 + b"DICM")
    series(tmp_path / "study" / ".hidden", lambda t, made: setattr(made, "SeriesInstanceUID", "1.2.3.5"))
    # when, then
    np.testing.assert_array_equal(read_volume(tmp_path).array, PIXELS)
    # a file of the series that cannot be read is no slice less
    (tmp_path / "study" / "S1" / "IMAGES" / "IM9").write_bytes(b"\0" * 128 + b"DICM")
    refused(tmp_path, r"IM9 is empty, damaged or no DICOM file", BadInput)
    # a folder's own series comes before those below it
    series(tmp_path / "study", lambda t, made: setattr(made, "RescaleIntercept", 5))
    np.testing.assert_array_equal(read_volume(tmp_path / "study").array, PIXELS + 5)


def test_a_series_in_a_folder_that_a_link_leads_to_is_found_and_links_in_circles_end(tmp_path: Path) -> None:
    series(tmp_path / "archive" / "ct")
    (tmp_path / "case").mkdir()
    for name, target in (("CT", "archive/ct"), ("again", "archive/ct"), ("up", "."), ("self", "case")):
        (tmp_path / "case" / name).symlink_to(tmp_path / target, target_is_directory=True)
    np.testing.assert_array_equal(read_volume(tmp_path / "case").array, PIXELS)


def test_one_file_of_a_series_is_said_to_be_one_slice_and_the_remedy_works(tmp_path: Path) -> None:
    folder = series(tmp_path / "ct")
    with pytest.raises(BadInput, match=r"IM2\.dcm is one slice of a DICOM series") as caught:
        read_volume(folder / "IM2.dcm")
    assert str(folder) in caught.value.remedy and "--series 1.2.3.4" in caught.value.remedy
    np.testing.assert_array_equal(read_volume(folder, "1.2.3.4").array, PIXELS)


def test_a_folder_without_a_series_in_it_or_below_says_so(tmp_path: Path) -> None:
    (tmp_path / "study" / "empty").mkdir(parents=True)
    (tmp_path / "study" / "notes.txt").write_text("none", encoding="utf-8")
    refused(tmp_path, "holds no DICOM image series, nor do its subfolders", BadInput)


def test_the_table_of_contents_of_a_disk_is_no_image(tmp_path: Path) -> None:
    folder = series(tmp_path / "disk" / "IMAGES")
    listing = dataset(PIXELS[0], "1.2.3.4.99")
    listing.file_meta.MediaStorageSOPClassUID = listing.SOPClassUID = "1.2.840.10008.1.3.10"  # type: ignore[assignment]
    del listing.PixelData, listing.SeriesInstanceUID
    listing.save_as(tmp_path / "disk" / "DICOMDIR", enforce_file_format=True)
    with pytest.raises(BadInput, match="table of contents") as caught:
        read_volume(tmp_path / "disk" / "DICOMDIR")
    assert str(folder.parent) in caught.value.remedy
    np.testing.assert_array_equal(read_volume(tmp_path / "disk").array, PIXELS)


def test_a_segmentation_is_no_image(tmp_path: Path) -> None:
    made = dataset(PIXELS, "1.2.3.6", "1.2.840.10008.5.1.4.1.1.66.4", Modality="SEG", NumberOfFrames=6)
    made.save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    refused(tmp_path / "seg.dcm", r"is no image \(SEG\)", BadInput)
