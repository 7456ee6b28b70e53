"""Units, sizes and intensities of images: converted where that is plain, else refused before anything is computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from geometry_helpers import AFFINE, VALUES, affine, meta, nifti, nrrd, refused

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.intensity import IntensityConfig, check_values
from SPDSegmentLib.geometry.volume import Volume, check_image, read_volume

# --- units and sizes


@pytest.mark.parametrize(("code", "factor", "unit"), [(1, 1000.0, "meters"), (3, 0.001, "micrometers")])
def test_a_unit_that_makes_voxels_of_no_patient_is_named(tmp_path: Path, code: int, factor: float, unit: str) -> None:
    refused(nifti(tmp_path, (123, "B", (code,))), f"the file's unit is {unit}")


@pytest.mark.parametrize(("code", "factor"), [(1, 1000.0), (3, 0.001)])
def test_another_unit_of_a_plausible_image_is_converted(tmp_path: Path, code: int, factor: float) -> None:
    small = AFFINE[:3] / factor
    spacing = tuple(np.array((0.8, 1.1, 5.0)) / factor)
    path = nifti(
        tmp_path, (123, "B", (code,)), (80, "3f", spacing), (280, "12f", tuple(small.ravel())),
        (268, "3f", tuple(small[:, 3])),
    )  # fmt: skip
    np.testing.assert_allclose(read_volume(path).ijk_to_ras, AFFINE, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("unit", ["cm", "m", "um", "inch"])
def test_a_unit_that_itk_passes_over_is_refused(tmp_path: Path, unit: str) -> None:
    refused(nrrd(tmp_path / "a.nrrd", VALUES.tobytes(), space_units=f'"{unit}" "{unit}" "{unit}"'), f"in {unit}, not")
    refused(meta(tmp_path / "b.mha", VALUES.tobytes(), DistanceUnits=unit), f"in {unit}, not")


def test_millimeters_and_no_unit_are_read(tmp_path: Path) -> None:
    for unit in ("mm", "", "???"):
        path = nrrd(tmp_path / "a.nrrd", VALUES.tobytes(), space_units=f'"{unit}" "{unit}" "{unit}"')
        np.testing.assert_array_equal(read_volume(path).array, VALUES)


@pytest.mark.parametrize(
    ("spacing", "origin", "words"),
    [
        ((0.00125, 0.00125, 0.0077), 0.0, "0.00125 x 0.00125 x 0.0077 mm"),
        ((1250.0, 1250.0, 7700.0), 0.0, "0.01 to 100 mm are possible"),
        ((1.0, 1.0, 90.0), 0.0, "3600 mm long"),
        ((1.0, 1.0, 1.0), 1e6, "100 m from the origin"),
    ],
)
def test_a_volume_from_elsewhere_is_held_to_the_same_sizes(
    spacing: tuple[float, ...], origin: float, words: str
) -> None:
    array = np.arange(40 * 4 * 4, dtype=np.int16).reshape(40, 4, 4)
    with pytest.raises(BadInput, match=words):
        check_image(Volume(array, affine(np.eye(3), spacing, (origin, 0, 0)), "scan"))


# --- intensities

CT = IntensityConfig("window", -160, 240)
HOUNSFIELD = np.linspace(-1000, 1500, 120).reshape(VALUES.shape)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (HOUNSFIELD + 1300, "1500|above|below 0"),
        (HOUNSFIELD + 1024, "do not go below 0"),
        ((HOUNSFIELD + 1000) / 2500, "next to nothing"),
        ((HOUNSFIELD + 1000) / 2500 * 255, "do not go below 0"),
        ((HOUNSFIELD - 250) / 700, "next to nothing"),
        (HOUNSFIELD - 5000, "all below"),
        (HOUNSFIELD + 2000, "all above"),
    ],
)
def test_a_ct_that_is_shifted_or_rescaled_is_said_to_be_no_hounsfield_units(values: np.ndarray, words: str) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        check_values(values, CT, "chest.nrrd")
    assert "chest.nrrd" in caught.value.message and "no Hounsfield units" in caught.value.message


@pytest.mark.parametrize("values", [HOUNSFIELD, HOUNSFIELD.clip(-150, 300), np.where(HOUNSFIELD < -500, 0, HOUNSFIELD)])
def test_a_ct_in_hounsfield_units_is_taken_cropped_or_with_a_background_of_zero(values: np.ndarray) -> None:
    check_values(values, CT)
    check_values(VALUES, IntensityConfig())


def test_a_predictor_refuses_such_a_volume_before_anything_is_computed() -> None:
    from tiny_predictor import tiny_predictor, tube_volume

    from SPDSegmentLib.geometry.slices import SliceStack

    volume = tube_volume()
    shifted = Volume(volume.array + 1000, volume.ijk_to_ras, "tube")
    with pytest.raises(BadInput, match=r"image tube, 1010 to 1095, lie all above the model's window \(0 to 100\)"):
        tiny_predictor().open(SliceStack(shifted, "axial"))


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(VALUES.astype(np.complex64)), str(tmp_path / "wave.nii"))
    refused(tmp_path / "wave.nii", "complex numbers")
