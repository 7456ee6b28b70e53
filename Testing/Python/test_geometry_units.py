"""Units, sizes and intensities of images: converted where that is plain, else refused before anything is computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from geometry_helpers import AFFINE, VALUES, affine, meta, nifti, nrrd, refused

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.intensity import (
    LARGEST_GAIN,
    IntensityConfig,
    brightness,
    check_values,
    gain_in_view,
    intensity_range,
)
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


# --- brightness of a field of view

USUAL = IntensityConfig(usual_low=0.2, usual_high=0.45)
WHOLE = (0.0, 1000.0)


def tissue(value: float) -> np.ndarray:
    """A field of view of one tissue with some spread, half of it air."""
    array = np.full((6, 8, 8), value) + np.linspace(-20, 20, 8)
    array[:3] = 0
    return array


def test_percentiles_of_a_large_volume_come_from_all_its_columns() -> None:
    large = np.ascontiguousarray(np.broadcast_to(np.arange(1, 9, dtype=np.uint8), (1000, 1000, 8)))
    assert intensity_range(large, IntensityConfig()) == (1, 8)


@pytest.mark.parametrize(("shape", "step"), [((9, 500, 400), 1), ((26, 400, 500), 2), ((62, 512, 512), 8)])
def test_percentiles_are_those_that_models_were_calibrated_with(shape: tuple[int, int, int], step: int) -> None:
    volume = np.random.default_rng(0).integers(-40, 120, shape, dtype=np.int8)
    every = volume.ravel()[::step]
    assert intensity_range(volume, IntensityConfig()) == tuple(np.percentile(every[every > 0], (0.5, 99.5)))


def test_brightness_is_that_of_what_is_not_air() -> None:
    assert brightness(tissue(300), WHOLE) == pytest.approx(0.3, abs=0.01)
    assert brightness(np.zeros((2, 3, 4)), WHOLE) == 0


@pytest.mark.parametrize(("value", "gain"), [(100, 3.0), (150, 2.0), (210, 1.0), (440, 1.0), (800, 1.0)])
def test_a_field_of_view_that_is_darker_than_usual_is_brought_to_the_middle_of_the_range(
    value: float, gain: float
) -> None:
    assert gain_in_view(tissue(value), WHOLE, USUAL) == pytest.approx(gain, rel=0.05)


def test_nothing_is_scaled_without_a_known_range_in_a_window_of_hounsfield_units_or_beyond_measure() -> None:
    dark = tissue(30)
    assert gain_in_view(dark, WHOLE, IntensityConfig()) == 1
    assert gain_in_view(dark, WHOLE, IntensityConfig("window", 0, 1000, usual_low=0.2, usual_high=0.45)) == 1
    assert gain_in_view(dark, WHOLE, USUAL) == LARGEST_GAIN
    assert gain_in_view(np.zeros((2, 3, 4)), WHOLE, USUAL) == 1


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.2), (-0.1, 0.2), (0.2, 1.5), (0.0, 0.3)])
def test_a_usual_brightness_that_is_no_range_is_refused(low: float, high: float) -> None:
    with pytest.raises(BadInput, match="usual brightness"):
        IntensityConfig(usual_low=low, usual_high=high)
