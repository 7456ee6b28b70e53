"""Image files whose name, header, data or unit do not fit: read right, or refused with the file's name."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from geometry_helpers import AFFINE, VALUES, affine, meta, nifti, nrrd, refused, write_raw_image

from SPDSegmentLib.errors import BadInput, GeometryUnsupported
from SPDSegmentLib.geometry.volume import read_volume

# --- pairs


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    write_raw_image(tmp_path / "pair.hdr", VALUES, AFFINE)
    return tmp_path / "pair.hdr"


@pytest.mark.parametrize("name", ["pair.hdr", "pair.img"])
def test_a_pair_is_read_by_either_name(pair: Path, name: str) -> None:
    volume = read_volume(pair.with_name(name))
    np.testing.assert_array_equal(volume.array, VALUES)
    np.testing.assert_allclose(volume.ijk_to_ras, AFFINE, atol=1e-5)


@pytest.mark.parametrize("name", ["pair.hdr", "pair.img"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_pair_with_missing_voxels_is_refused(pair: Path, name: str, share: float) -> None:
    voxels = pair.with_suffix(".img")
    voxels.write_bytes(voxels.read_bytes()[: int(share * voxels.stat().st_size)])
    refused(pair.with_name(name), "cut short")


def test_invalid_values_in_a_pair_are_refused(tmp_path: Path) -> None:
    values = VALUES.astype(np.float32)
    values[1, 2, 3] = np.nan
    write_raw_image(tmp_path / "pair.hdr", values)
    refused(tmp_path / "pair.img", "invalid values")


@pytest.mark.parametrize("beside", [".nii", ".nii.gz", ".img.gz"])
@pytest.mark.parametrize("lost", [".hdr", ".img"])
def test_half_a_pair_takes_nothing_from_another_image_beside(pair: Path, lost: str, beside: str) -> None:
    other = write_raw_image(pair.with_suffix(".nii"), VALUES + 1)
    if beside != ".nii":
        pair.with_suffix(beside).write_bytes(gzip.compress(other.read_bytes()))
        other.unlink()
    pair.with_suffix(lost).unlink()
    refused(pair.with_suffix({".hdr": ".img", ".img": ".hdr"}[lost]), f"pair{lost} .* is missing")


def test_an_analyze_image_is_refused_by_name(pair: Path) -> None:
    content = bytearray(pair.read_bytes())
    content[344:348] = bytes(4)
    pair.write_bytes(content)
    refused(pair.with_suffix(".img"), "Analyze 7.5, which does not say how it lies")


# --- names


@pytest.mark.parametrize(
    ("made", "named", "words", "remedy"),
    [
        ("a.nii.gz", "scan.nii", "compressed with gzip", "scan.nii.gz"),
        ("a.nii.gz", "scan.gz", "compressed with gzip", "scan.nii.gz"),
        ("a.nii.gz", "scan", "compressed with gzip", "scan.nii.gz"),
        ("a.nii", "scan", "a NIfTI file with another name", "scan.nii"),
        ("a.nii", "scan.hdr", "a NIfTI file with another name", "scan.nii"),
        ("a.nii", "scan.Nii", "a NIfTI file with another name", "scan.nii"),
        ("a.nii", "scan.mha", "a NIfTI file with another name", "scan.nii"),
        ("a.nii.gz", "scan.Nii.gz", "a NIfTI file with another name", "scan.nii.gz"),
        ("a.hdr", "scan.nii", "the header of a NIfTI pair", "scan.hdr"),
        ("a.nrrd", "scan.nii", "an NRRD file with another name", "scan.nrrd"),
        ("a.nrrd", "scan.dat", "an NRRD file with another name", "scan.nrrd"),
        ("a.mha", "scan.nrrd", "a MetaImage file with another name", "scan.mha"),
    ],
)
def test_a_file_with_the_name_of_another_format_is_named_and_the_new_name_works(
    tmp_path: Path, made: str, named: str, words: str, remedy: str
) -> None:
    # given a sound image under a name by which ITK would look for another file
    write_raw_image(tmp_path / made, VALUES)
    shutil.move(tmp_path / made, tmp_path / named)
    if made == "a.hdr":
        shutil.move(tmp_path / "a.img", tmp_path / "scan.img")
    # when it is read, it is refused
    refused(tmp_path / named, f"{words}.*[.] Name it {remedy}[.]$")
    # then the remedy works
    shutil.move(tmp_path / named, tmp_path / remedy)
    np.testing.assert_array_equal(read_volume(tmp_path / remedy).array, VALUES)


@pytest.mark.parametrize(
    "name", ["scan.nii", "scan.nii.gz", "scan.hdr", "scan.nrrd", "scan.mha", "scan.nhdr", "scan.mhd"]
)
def test_the_very_file_is_read_whatever_lies_beside_it(tmp_path: Path, name: str) -> None:
    # given images of other values with the same stem
    others = [f"scan{suffix}" for suffix in (".nii", ".nii.gz", ".hdr", ".nrrd", ".mha")]
    for n, other in enumerate(others):
        write_raw_image(tmp_path / other, VALUES + n + 1, AFFINE)
    # when one of them is written again and read
    write_raw_image(tmp_path / name, VALUES, AFFINE)
    # then its own voxels come
    np.testing.assert_array_equal(read_volume(tmp_path / name).array, VALUES)


@pytest.mark.parametrize("name", ["A.NII", "A.NII.GZ", "A.HDR"])
def test_names_in_capitals_are_read(tmp_path: Path, name: str) -> None:
    write_raw_image(tmp_path / name.lower(), VALUES)
    for path in list(tmp_path.iterdir()):
        shutil.move(path, path.with_name(path.name.upper()))
    np.testing.assert_array_equal(read_volume(tmp_path / name).array, VALUES)


def test_an_uncompressed_file_named_nii_gz_is_read(tmp_path: Path) -> None:
    shutil.copy(nifti(tmp_path), tmp_path / "plain.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "plain.nii.gz").array, VALUES)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".vtk", ".gipl", ".mnc", ".hdf5"])
def test_formats_that_say_too_little_of_their_place_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scan{suffix}"
    try:
        write_raw_image(path, VALUES.astype(np.uint8))
    except RuntimeError:
        write_raw_image(path, VALUES[0].astype(np.uint8))
    refused(path, "no NIfTI, NRRD or MetaImage file")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").touch()
    refused(tmp_path / "scan.nii.gz", "is empty")


# --- header fields

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("offset", "form", "fields", "words"),
    [
        *[(108, "f", (v,), "vox_offset") for v in (NAN, INF, 1e30, -1.0, 0.0, 100.0, 351.0, 352.5)],
        (108, "f", (400.0,), "cut short"),
        *[(80, "f", (v,), "pixdim") for v in (NAN, INF, -1.0, 0.0)],
        (80, "f", (1e30,), "two places|are 1e.30"),
        (88, "f", (1e-30,), "do not span space|1e-30"),
        *[(112, "2f", (v, 0.0), "scl_slope") for v in (NAN, INF, -INF)],
        (112, "2f", (1.0, NAN), "scl_inter"),
        *[(280, "f", (v,), "srow") for v in (NAN, INF)],
        (292, "f", (1e30,), "two places"),
        (112, "2f", (0.0, 7.0), "scl_slope"),
        (40, "8h", (3, 6, 5, 0, 1, 1, 1, 1), r"a size of 6x5x0 \(dim"),
        (40, "8h", (3, 6, -5, 4, 1, 1, 1, 1), "dim"),
        (40, "h", (0,), "dim"),
        (40, "h", (9,), "dim"),
        (40, "8h", (3, 600, 500, 400, 1, 1, 1, 1), "cut short"),
        *[(70, "h", (code,), "datatype") for code in (0, 1, 1536, 255)],
        (70, "2h", (32, 64), "cut short|complex"),
        (123, "B", (5,), "unit of length"),
        (344, "4s", (b"n+9\0",), "Analyze"),
        (0, "i", (340,), "no NIfTI"),
    ],
)
def test_a_header_field_without_a_meaning_is_named(
    tmp_path: Path, offset: int, form: str, fields: tuple[object, ...], words: str
) -> None:
    refused(nifti(tmp_path, (offset, form, fields)), words)


def test_a_slope_of_zero_scales_nothing_as_the_standard_says(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_volume(nifti(tmp_path, (112, "2f", (0.0, 0.0)))).array, VALUES)


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    volume = read_volume(nifti(tmp_path, (112, "2f", (0.5, -3.0))))
    np.testing.assert_allclose(volume.array, VALUES * 0.5 - 3)


def test_only_the_quaternion_counts_where_there_is_no_sform(tmp_path: Path) -> None:
    np.testing.assert_allclose(read_volume(nifti(tmp_path, (254, "h", (0,)))).ijk_to_ras, AFFINE, atol=1e-5)
    refused(nifti(tmp_path, (254, "h", (0,)), (268, "f", (NAN,))), "qoffset")
    refused(nifti(tmp_path, (254, "h", (0,)), (256, "3f", (2.0, 2.0, 2.0))), "quaternion")


def test_the_sform_counts_where_it_disagrees_with_the_quaternion(tmp_path: Path) -> None:
    np.testing.assert_allclose(read_volume(nifti(tmp_path, (268, "3f", (0.0, 0.0, 0.0)))).ijk_to_ras, AFFINE, atol=1e-5)


def test_an_sform_that_itk_does_not_take_is_refused(tmp_path: Path) -> None:
    scaled = tuple((AFFINE[:3] * (2, 2, 2, 1)).ravel())
    sheared = tuple((AFFINE @ [[1, 0.4, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])[:3].ravel())
    for rows in (scaled, sheared):
        with pytest.raises(GeometryUnsupported, match=r"image\.nii gives its voxels two places"):
            read_volume(nifti(tmp_path, (280, "12f", rows)))


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i4", "u4", "i8", "u8", "f8"])
def test_every_kind_of_number_is_read(tmp_path: Path, kind: str) -> None:
    values = (VALUES % 100).astype(kind)
    np.testing.assert_array_equal(read_volume(nifti(tmp_path, values=values)).array, values)


def test_nifti_2_is_read_and_its_fields_are_looked_at(tmp_path: Path) -> None:
    # given a NIfTI-2 header written by hand
    header = bytearray(544)
    struct.pack_into("<i8s2h", header, 0, 540, b"n+2\0\r\n\x1a\n", 4, 16)
    struct.pack_into("<8q", header, 16, 3, 6, 5, 4, 1, 1, 1, 1)
    struct.pack_into("<8d", header, 104, 1, 1, 2, 3, 0, 0, 0, 0)
    struct.pack_into("<q", header, 168, 544)
    struct.pack_into("<2i", header, 344, 0, 1)
    struct.pack_into("<12d", header, 400, 1, 0, 0, 10, 0, 2, 0, 20, 0, 0, 3, 30)
    struct.pack_into("<i", header, 500, 2)
    path = tmp_path / "image.nii"
    path.write_bytes(bytes(header) + VALUES.tobytes())
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, VALUES)
    np.testing.assert_allclose(volume.ijk_to_ras, affine(np.eye(3), (1, 2, 3), (10, 20, 30)))
    # when its voxels begin within the header
    struct.pack_into("<q", header, 168, 540)
    path.write_bytes(bytes(header) + VALUES.tobytes())
    # then it is refused
    refused(path, "vox_offset")


@pytest.mark.parametrize("field", ["space_directions", "space_origin", "spacings"])
@pytest.mark.parametrize("number", ["nan", "inf", "1e", "x"])
def test_nrrd_fields_that_are_no_numbers_are_refused(tmp_path: Path, field: str, number: str) -> None:
    bare: dict[str, str | None] = {"space": None, "space_directions": None, "space_origin": None}
    changes: dict[str, dict[str, str | None]] = {
        "space_directions": {field: f"({number},0,0) (0,2,0) (0,0,3)"},
        "space_origin": {field: f"({number},0,0)"},
        "spacings": {**bare, field: f"{number} 2 3"},
    }
    refused(nrrd(tmp_path / "scan.nrrd", VALUES.tobytes(), **changes[field]), "damaged header")


@pytest.mark.parametrize("space", ["scanner-xyz", "3D-right-handed", "3D-left-handed"])
def test_an_nrrd_space_without_left_and_right_is_refused(tmp_path: Path, space: str) -> None:
    refused(nrrd(tmp_path / "scan.nrrd", VALUES.tobytes(), space=space), "left and right are open")


def in_time(path: Path, space: str | None, **changes: str) -> Path:
    """A 4-D NRRD file whose space has four axes, with twice the same voxels."""
    directions = "(1,0,0,0) (0,2,0,0) (0,0,3,0) (0,0,0,1)"
    told = {"dimension": "4", "sizes": "6 5 4 2", "space_directions": directions, "space_origin": "(10,20,30,0)"}
    return nrrd(path, 2 * VALUES.tobytes(), space=space, **(told | changes))


@pytest.mark.parametrize("space", ["right-anterior-superior-time", "RAST", "LAST", "scanner-xyz-time"])
def test_a_4d_nrrd_space_that_would_be_read_mirrored_is_refused(tmp_path: Path, space: str) -> None:
    refused(in_time(tmp_path / "scan.nrrd", space), "left and right are open")
    listed = {"space_directions": "(1,0,0) (0,2,0) (0,0,3) none", "space_origin": "(10,20,30)"}
    refused(in_time(tmp_path / "scan.nrrd", None, space_dimension="3", **listed), "not named: left and right are open")


@pytest.mark.parametrize("space", ["left-posterior-superior-time", "LPST"])
def test_a_4d_nrrd_space_of_lps_and_time_is_read(tmp_path: Path, space: str) -> None:
    volume = read_volume(in_time(tmp_path / "scan.nrrd", space), frame=2)
    np.testing.assert_array_equal(volume.array, VALUES)
    np.testing.assert_allclose(volume.ijk_to_ras, affine(np.diag([-1.0, -1, 1]), (1, 2, 3), (-10, -20, 30)))


@pytest.mark.parametrize("space", ["left-posterior-superior", "LPS", "RAS", "right-anterior-superior", "LAS"])
def test_the_anatomical_spaces_of_nrrd_are_read(tmp_path: Path, space: str) -> None:
    signs = {"l": {"p": (-1, -1), "a": (-1, 1)}, "r": {"a": (1, 1)}}
    letters = [word[0] for word in space.lower().split("-")] if "-" in space else list(space.lower())
    r, a = signs[letters[0]][letters[1]]
    volume = read_volume(nrrd(tmp_path / "scan.nrrd", VALUES.tobytes(), space=space))
    np.testing.assert_allclose(volume.ijk_to_ras, affine(np.diag([r, a, 1.0]), (1, 2, 3), (10 * r, 20 * a, 30)))


@pytest.mark.parametrize("field", ["ElementSpacing", "Offset", "TransformMatrix", "DimSize"])
@pytest.mark.parametrize("number", ["nan", "inf", "x"])
def test_meta_fields_that_are_no_numbers_are_refused(tmp_path: Path, field: str, number: str) -> None:
    rest = " 0 0 0 1 0 0 0 1" if field == "TransformMatrix" else " 2 3"
    refused(meta(tmp_path / "scan.mha", VALUES.tobytes(), **{field: number + rest}), "damaged header")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ElementSpacing": "0 2 3"}, "ElementSpacing"),
        ({"ElementSpacing": "-1 2 3"}, "ElementSpacing"),
        ({"ObjectType": "Tube"}, "holds a Tube"),
        ({"ElementToIntensityFunctionSlope": "2", "ElementToIntensityFunctionOffset": "0"}, "to be scaled by 2"),
        ({"ElementSpacing": "1e30 2 3"}, "ElementSpacing is 1e30"),
        ({"Offset": "1e30 2 3"}, "Offset is 1e30"),
    ],
)
def test_meta_fields_that_itk_passes_over_are_refused(tmp_path: Path, changes: dict[str, str], words: str) -> None:
    refused(meta(tmp_path / "scan.mha", VALUES.tobytes(), **changes), words)


def test_a_meta_slope_of_one_scales_nothing_however_it_is_written(tmp_path: Path) -> None:
    told = {"ElementToIntensityFunctionSlope": "1.0", "ElementToIntensityFunctionOffset": "0.0"}
    path = meta(tmp_path / "scan.mha", VALUES.tobytes(), **told)
    np.testing.assert_array_equal(read_volume(path).array, VALUES)


@pytest.mark.parametrize("left", [0.5, 0.9])
@pytest.mark.parametrize("inflated", [True, False])
def test_compressed_meta_data_that_end_early_are_refused(tmp_path: Path, left: float, inflated: bool) -> None:
    raw = VALUES.tobytes()
    data = zlib.compress(raw[: int(left * len(raw))]) if inflated else zlib.compress(raw)
    data = data if inflated else data[: int(left * len(data))]
    said = {"CompressedData": "True", "CompressedDataSize": str(len(data))}
    refused(meta(tmp_path / "scan.mha", data, **said), "cut short")
    sound = zlib.compress(raw)
    said["CompressedDataSize"] = str(len(sound))
    np.testing.assert_array_equal(read_volume(meta(tmp_path / "scan.mha", sound, **said)).array, VALUES)


# --- detached data


def test_voxels_in_a_file_beside_or_below_are_read(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    for name in ("voxels.raw", "./voxels.raw", "raw/voxels.raw"):
        (tmp_path / name).write_bytes(VALUES.tobytes())
        for path in (
            nrrd(tmp_path / "scan.nhdr", data_file=name),
            meta(tmp_path / "scan.mhd", ElementDataFile=name),
            meta(tmp_path / "scan.mha", ElementDataFile=name),
        ):
            np.testing.assert_array_equal(read_volume(path).array, VALUES)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone.raw", "gone.raw .* is missing"),
        ("", "missing"),
        ("../other.raw", "from another folder"),
        ("/{folder}/other.raw", "from another folder"),
        ("LIST", "spread over several files"),
        ("slice%d.raw 1 4 1", "spread over several files"),
        ("short.raw", "cut short or damaged: its voxels in short.raw"),
    ],
)
def test_a_header_that_points_elsewhere_or_nowhere_is_refused(tmp_path: Path, name: str, words: str) -> None:
    folder = tmp_path / "case"
    folder.mkdir()
    (tmp_path / "other.raw").write_bytes(VALUES.tobytes())
    (folder / "short.raw").write_bytes(VALUES.tobytes()[:-2])
    name = name.format(folder=str(tmp_path).lstrip(os.sep))
    refused(nrrd(folder / "scan.nhdr", data_file=name), words)
    with pytest.raises(BadInput, match=words):
        read_volume(meta(folder / "scan.mhd", ElementDataFile=name))
