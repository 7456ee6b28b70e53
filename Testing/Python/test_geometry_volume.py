"""Volumes from image files and DICOM folders, and what is refused."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from geometry_helpers import SIGNED_PERMUTATIONS, affine, phantom_on, volumes, write_dicom_series, write_raw_image
from hypothesis import given, settings

from SPDSegmentLib.errors import BadInput, GeometryUnsupported
from SPDSegmentLib.geometry.volume import Volume, check_image, read_volume

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
NOISE = np.random.default_rng(3).normal(100, 20, (4, 5, 6)).astype(np.float32)
AFFINE = affine(SIGNED_PERMUTATIONS[13], (0.8, 1.1, 5.0), (-20, 33, 7))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_keep_voxels_and_position(tmp_path: Path, suffix: str) -> None:
    path = write_raw_image(tmp_path / f"image{suffix}", NOISE, AFFINE)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, NOISE)
    np.testing.assert_allclose(volume.ijk_to_ras, AFFINE, atol=1e-5)
    assert volume.name == path.name
    check_image(volume)


def test_nifti_axes_are_right_anterior_superior_as_its_standard_says(tmp_path: Path) -> None:
    # given a NIfTI file whose header was written by hand: sform of identity plus an offset
    path = write_raw_image(tmp_path / "image.nii", NOISE)
    content = bytearray(path.read_bytes())
    struct.pack_into("<hh", content, 252, 0, 1)
    struct.pack_into("<12f", content, 280, 2, 0, 0, 10, 0, 3, 0, 20, 0, 0, 4, 30)
    struct.pack_into("<3f", content, 80, 2, 3, 4)
    path.write_bytes(content)
    # then its matrix is taken over as it is
    expected = affine(np.eye(3), (2, 3, 4), (10, 20, 30))
    np.testing.assert_allclose(read_volume(path).ijk_to_ras, expected, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(volumes())
def test_spacing_and_inverse_follow_from_the_matrix(volume: Volume) -> None:
    np.testing.assert_allclose(volume.ras_to_ijk @ volume.ijk_to_ras, np.eye(4), atol=1e-8)
    corner = np.array(volume.shape_ijk) - 1
    assert volume.array.shape == volume.shape_ijk[::-1]
    diagonal = volume.ijk_to_ras[:3, :3] @ corner
    assert np.linalg.norm(diagonal) == pytest.approx(np.linalg.norm(corner * volume.spacing_mm))


def test_a_single_frame_with_a_fourth_axis_is_a_volume(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(NOISE)]), str(tmp_path / "one.nrrd"))
    np.testing.assert_array_equal(read_volume(tmp_path / "one.nrrd").array, NOISE)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"There is no image .*gone\.nii\.gz"):
        read_volume(tmp_path / "gone.nii.gz")


@pytest.mark.parametrize("name", ["text.nii.gz", "text.nrrd", "text.mha", "text.unknown"])
def test_a_file_that_is_no_image_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("no image")
    with pytest.raises(BadInput, match="cannot be read"):
        read_volume(tmp_path / name)


@pytest.mark.parametrize("kind", ["int16", "float32"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_file_that_ends_early_is_refused(tmp_path: Path, suffix: str, kind: str) -> None:
    values = np.random.default_rng(0).integers(0, 1000, (20, 30, 40)).astype(kind)
    path = write_raw_image(tmp_path / f"cut{suffix}", values)
    read_volume(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadInput, match="cut short|cannot be read"):
        read_volume(path)


def test_a_gzip_file_of_two_parts_is_complete(tmp_path: Path) -> None:
    content = write_raw_image(tmp_path / "whole.nii", NOISE.astype(np.int16)).read_bytes()
    (tmp_path / "parts.nii.gz").write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]))
    np.testing.assert_array_equal(read_volume(tmp_path / "parts.nii.gz").array, NOISE.astype(np.int16))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_invalid_values_are_refused_in_every_format(tmp_path: Path, suffix: str, kind: str, value: float) -> None:
    array = NOISE.astype(kind)
    array[2, 3, 4] = value
    path = write_raw_image(tmp_path / f"bad{suffix}", array)
    with pytest.raises(BadInput, match=r"bad\.\S+ has invalid values"):
        check_image(read_volume(path))


def test_invalid_values_show_in_big_endian_nifti(tmp_path: Path) -> None:
    # given the header and voxels of a float NIfTI-1 in the other byte order, NaN last
    header = bytearray(352)
    struct.pack_into(">i", header, 0, 348)
    struct.pack_into(">8h", header, 40, 3, 6, 5, 4, 1, 1, 1, 1)
    struct.pack_into(">2h", header, 70, 16, 32)
    struct.pack_into(">8f", header, 76, 1, 1, 1, 1, 0, 0, 0, 0)
    struct.pack_into(">f", header, 108, 352)
    header[344:348] = b"n+1\0"
    path = tmp_path / "big.nii"
    path.write_bytes(bytes(header) + NOISE.astype(">f4").tobytes())
    np.testing.assert_array_equal(read_volume(path).array, NOISE)
    path.write_bytes(path.read_bytes()[:-4] + struct.pack(">f", np.nan))
    with pytest.raises(BadInput, match="invalid values"):
        read_volume(path)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_several_frames_are_refused(tmp_path: Path, suffix: str) -> None:
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(NOISE)] * 2), str(tmp_path / f"film{suffix}"))
    with pytest.raises(BadInput, match="4 dimensions"):
        read_volume(tmp_path / f"film{suffix}")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_color_is_refused(tmp_path: Path, suffix: str) -> None:
    image = sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True)
    sitk.WriteImage(image, str(tmp_path / f"color{suffix}"))
    with pytest.raises(BadInput, match="3 values per voxel"):
        read_volume(tmp_path / f"color{suffix}")


def test_a_flat_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="2 dimensions"):
        read_volume(write_raw_image(tmp_path / "flat.nii", np.zeros((5, 6), np.uint8)))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((4, 5, 6), 7, np.int16), "same value everywhere"),
        (np.full((4, 5, 6), 7.0), "same value everywhere"),
        (np.zeros((2, 4, 5, 6)), "not a 3-D volume"),
        (np.zeros((4, 5, 6, 3), np.uint8), "not a 3-D volume"),
        (np.zeros((0, 5, 6)), "not a 3-D volume"),
        (np.zeros((4, 5, 6), complex), "does not hold numbers"),
        (NOISE > 100, "holds only true and false"),
        (np.where(NOISE > 100, np.nan, 1), "invalid values"),
        (np.where(NOISE > 100, -np.inf, 1), "invalid values"),
    ],
)
def test_arrays_with_nothing_to_segment_are_refused(array: np.ndarray, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        check_image(Volume(array, np.eye(4), "image"))


SHEARED = [[1, 0.3, 0], [0, 1, 0], [0, 0, 1]]
FLAT = [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("axes", [SHEARED, FLAT, np.zeros((3, 3)), np.full((3, 3), np.nan)])
def test_axes_that_are_no_right_angled_grid_are_refused(axes: np.ndarray) -> None:
    matrix = np.eye(4)
    matrix[:3, :3] = axes
    with pytest.raises(GeometryUnsupported):
        Volume(NOISE, matrix)


def test_a_transposed_matrix_is_refused() -> None:
    matrix = affine(np.eye(3), (1, 1, 3), (10, -20, 30.5))
    with pytest.raises(BadInput, match=r"^The last row of ijk_to_ras is 10, -20, 30\.5, 1: it may be transposed"):
        Volume(NOISE, matrix.T)
    matrix[3, 3] = 0
    with pytest.raises(BadInput, match=r"^The last row of ijk_to_ras is 0, 0, 0, 0\. Give"):
        Volume(NOISE, matrix)


@pytest.mark.parametrize("axes", [SHEARED, FLAT])
@pytest.mark.parametrize("suffix", ["nii", "nrrd", "mha"])
def test_files_with_such_axes_are_refused(tmp_path: Path, suffix: str, axes: list[list[float]]) -> None:
    path = tmp_path / f"bent.{suffix}"
    columns = np.array(axes, dtype=float).T
    if suffix == "nii":
        content = bytearray(write_raw_image(path, NOISE).read_bytes())
        struct.pack_into("<hh", content, 252, 0, 1)
        struct.pack_into("<12f", content, 280, *np.hstack((columns.T, np.zeros((3, 1)))).ravel())
        path.write_bytes(content)
    elif suffix == "nrrd":
        directions = " ".join("({},{},{})".format(*c) for c in columns)
        header = (
            "NRRD0004\ntype: float\ndimension: 3\nspace: left-posterior-superior\nsizes: 6 5 4\n"
            f"space directions: {directions}\nendian: little\nencoding: raw\nspace origin: (0,0,0)\n\n"
        )
        path.write_bytes(header.encode() + NOISE.tobytes())
    else:
        header = (
            "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
            f"TransformMatrix = {' '.join(str(v) for v in columns.ravel())}\nOffset = 0 0 0\n"
            "ElementSpacing = 1 1 1\nDimSize = 6 5 4\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
        )
        path.write_bytes(header.encode() + NOISE.tobytes())
    with pytest.raises(GeometryUnsupported):
        read_volume(path)


def test_a_slight_shear_of_rounded_headers_is_accepted() -> None:
    matrix = np.eye(4)
    matrix[0, 1] = 1e-5
    assert Volume(NOISE, matrix).spacing_mm == pytest.approx([1, 1, 1])


# --- DICOM folders

PIXELS = np.random.default_rng(5).integers(0, 1000, (6, 8, 10)).astype(np.int16)
POSITIONS = np.array([[-10.0, -20.0, 30.0 + 4 * t] for t in range(6)])


def test_a_dicom_series_is_read_in_the_order_of_space(tmp_path: Path) -> None:
    # given slices whose file names and instance numbers run against space
    write_dicom_series(tmp_path, "1.2.3.4", POSITIONS[::-1], PIXELS[::-1])
    # when the folder is read
    volume = read_volume(tmp_path)
    # then voxels and positions agree
    np.testing.assert_array_equal(volume.array, PIXELS)
    np.testing.assert_allclose(volume.ijk_to_ras, affine(np.diag([-1.0, -1, 1]), (1.5, 2, 4), (10, 20, 30)), atol=1e-5)


def test_series_that_are_no_images_are_passed_over(tmp_path: Path) -> None:
    write_dicom_series(tmp_path, "1.2.3.4", POSITIONS, PIXELS)
    write_dicom_series(tmp_path, "1.2.3.5", POSITIONS, PIXELS > 500, modality="SEG")
    np.testing.assert_array_equal(read_volume(tmp_path).array, PIXELS)


def test_several_series_are_listed_and_one_is_chosen_by_the_end_of_its_uid(tmp_path: Path) -> None:
    write_dicom_series(tmp_path, "1.2.3.41", POSITIONS, PIXELS)
    write_dicom_series(tmp_path, "1.2.3.42", POSITIONS[:4], PIXELS[:4] + 1)
    with pytest.raises(BadInput, match=r"1\.2\.3\.41 \(6 files\).*1\.2\.3\.42 \(4 files\)"):
        read_volume(tmp_path)
    np.testing.assert_array_equal(read_volume(tmp_path, series="42").array, PIXELS[:4] + 1)
    with pytest.raises(BadInput, match="ends in 43"):
        read_volume(tmp_path, series="43")
    with pytest.raises(BadInput, match="2 DICOM image series"):
        read_volume(tmp_path, series="")


def test_a_folder_without_images_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(BadInput, match="no DICOM image series"):
        read_volume(tmp_path)
    assert capfd.readouterr().err == ""


def test_a_missing_slice_is_noticed(tmp_path: Path) -> None:
    kept = [0, 1, 2, 4, 5]
    write_dicom_series(tmp_path, "1.2.3.4", POSITIONS[kept], PIXELS[kept])
    with pytest.raises(GeometryUnsupported, match="after slice 3 of 5 .8 mm instead of 4 mm"):
        read_volume(tmp_path)


def test_two_images_at_one_position_are_noticed(tmp_path: Path) -> None:
    twice = [0, 1, 1, 2, 3]
    write_dicom_series(tmp_path, "1.2.3.4", POSITIONS[twice], PIXELS[twice])
    with pytest.raises(GeometryUnsupported, match="several slices at one position"):
        read_volume(tmp_path)


def test_a_tilted_gantry_is_noticed(tmp_path: Path) -> None:
    shifted = POSITIONS + np.outer(np.arange(6), [0, 1.0, 0])
    write_dicom_series(tmp_path, "1.2.3.4", shifted, PIXELS)
    with pytest.raises(GeometryUnsupported, match="gantry"):
        read_volume(tmp_path)


def test_oblique_series_are_no_tilted_gantry(tmp_path: Path) -> None:
    c, s = np.cos(0.4), np.sin(0.4)
    normal = np.cross((c, s, 0), (0, 0, -1))
    write_dicom_series(
        tmp_path, "1.2.3.4", np.outer(np.arange(6) * 3.0, normal), PIXELS, directions=(c, s, 0, 0, 0, -1)
    )
    volume = read_volume(tmp_path)
    np.testing.assert_allclose(volume.spacing_mm, (1.5, 2, 3), atol=1e-4)
    np.testing.assert_allclose(volume.ijk_to_ras[:3, 2] / 3, normal * (-1, -1, 1), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape_ijk", "spacing"),
    [
        ("STS_025/PET/image", (37, 34, 47), (3.906, 3.906, 3.27)),
        ("pgbm003/11-T1post-18670", (280, 320, 22), (0.6875, 0.6875, 6.5)),
        ("ibsi1_lungct_rtstruct/image", (204, 201, 60), (0.977, 0.977, 3.0)),
    ],
)
def test_real_dicom_folders_are_read(
    shared_data: Path, name: str, shape_ijk: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    volume = read_volume(shared_data / "dicom" / name)
    check_image(volume)
    assert volume.shape_ijk == shape_ijk
    np.testing.assert_allclose(volume.spacing_mm, spacing, atol=2e-3)


def test_an_rtstruct_folder_is_no_image(shared_data: Path) -> None:
    with pytest.raises(BadInput, match="no DICOM image series"):
        read_volume(shared_data / "dicom/STS_025/CT/mask")


def test_the_phantom_of_these_tests_shows_its_orientation() -> None:
    volume = phantom_on(affine(np.eye(3)), (3, 3, 3))
    assert volume.array[0, 0, 1] - volume.array[0, 0, 0] == 10000
