"""Volume, length and diameter against shapes whose measures are known."""

from __future__ import annotations

import numpy as np
import pytest

from SPDSegmentLib.geometry.labelmap import Measurements, measure
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import Volume

SHAPE = (60, 100, 110)
SPACING = (0.8, 0.8, 2.0)


def measured(inside: np.ndarray, matrix: np.ndarray | None = None, axis: str = "axial") -> Measurements:
    """Measure a mask (K, J, I) through its slices."""
    stack = SliceStack(Volume(inside, np.diag([*SPACING, 1.0]) if matrix is None else matrix), axis)
    return measure(stack.from_volume(inside), (0, 0, 0), stack)


def places() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y, z in mm of every voxel."""
    k, j, i = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    return i * SPACING[0], j * SPACING[1], k * SPACING[2]


def test_an_upright_cylinder_has_its_own_measures() -> None:
    x, y, z = places()
    found = measured((np.hypot(x - 40, y - 40) <= 10) & (z >= 20) & (z < 80))
    assert found.length_mm == pytest.approx(60, abs=0.01)
    assert found.mean_diameter_mm == pytest.approx(20, rel=0.01)
    assert found.largest_diameter_mm == pytest.approx(20, rel=0.01)
    assert found.volume_ml == pytest.approx(np.pi * 100 * 60 / 1000, rel=0.01)


@pytest.mark.parametrize("tilt_degrees", [15, 30, 45])
def test_a_tilted_cylinder_is_measured_across_its_own_axis(tilt_degrees: float) -> None:
    x, y, z = places()
    slope = np.tan(np.radians(tilt_degrees))
    along = np.cos(np.radians(tilt_degrees))
    across = np.hypot((x - 40 - slope * (z - 60)) * along, y - 40)
    found = measured((across <= 8) & (z >= 40) & (z < 80))
    assert found.length_mm == pytest.approx(40 / along, rel=0.02)
    assert found.mean_diameter_mm == pytest.approx(16, rel=0.02)
    assert found.largest_diameter_mm == pytest.approx(16, rel=0.03)


def test_a_wavy_tube_is_as_long_as_its_curve() -> None:
    x, y, z = places()
    center = 40 + 12 * np.sin(z / 15)
    found = measured((np.hypot(x - center, y - 40) <= 6) & (z >= 10) & (z < 110))
    curve_z = np.linspace(10, 110, 2000)
    length = np.hypot(np.diff(curve_z), np.diff(12 * np.sin(curve_z / 15))).sum()
    assert found.length_mm == pytest.approx(length, rel=0.03)


def test_a_rough_surface_does_not_lengthen_the_structure() -> None:
    x, y, z = places()
    jitter = np.random.default_rng(0).normal(0, 1.0, (SHAPE[0], 1, 1))
    found = measured((np.hypot(x - 40 - jitter, y - 40) <= 10) & (z >= 20) & (z < 80))
    assert found.length_mm == pytest.approx(60, rel=0.02)


def test_the_largest_diameter_is_that_of_the_widest_place() -> None:
    x, y, z = places()
    radius = 5 + 7 * np.exp(-(((z - 60) / 12) ** 2))
    found = measured((np.hypot(x - 40, y - 40) <= radius) & (z >= 20) & (z < 100))
    assert found.largest_diameter_mm == pytest.approx(24, rel=0.02)
    assert 10 < found.mean_diameter_mm < 16


def test_an_oblique_left_handed_grid_measures_the_same() -> None:
    x, y, z = places()
    inside = (np.hypot(x - 40, y - 40) <= 10) & (z >= 20) & (z < 80)
    turn = np.radians(20)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = rotation @ np.diag([-SPACING[0], SPACING[1], SPACING[2]])
    matrix[:3, 3] = (7, -30, 12)
    found, expected = measured(inside, matrix, "k"), measured(inside)
    for name in ("volume_ml", "length_mm", "mean_diameter_mm", "largest_diameter_mm"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name))


def test_a_gap_belongs_to_the_length_and_not_to_the_diameter() -> None:
    x, y, z = places()
    inside = (np.hypot(x - 40, y - 40) <= 10) & (z >= 20) & (z < 80) & ~((z >= 40) & (z < 50))
    found = measured(inside)
    assert found.length_mm == pytest.approx(60, abs=0.01)
    assert found.mean_diameter_mm == pytest.approx(20, rel=0.01)


def test_a_part_of_the_slices_measures_like_the_whole() -> None:
    x, y, z = places()
    inside = (np.hypot(x - 40 - z / 4, y - 40) <= 10) & (z >= 20) & (z < 80)
    stack = SliceStack(Volume(inside, np.diag([*SPACING, 1.0])), "axial")
    whole = stack.from_volume(inside)
    assert measure(whole[8:45, 20:90, 10:100], (8, 20, 10), stack) == measure(whole, (0, 0, 0), stack)


def test_a_single_slice_is_as_long_as_it_is_thick_and_nothing_measures_nothing() -> None:
    inside = np.zeros(SHAPE, dtype=bool)
    assert measured(inside) == Measurements(0.0, 0.0, 0.0, 0.0)
    inside[30, 20:40, 20:40] = True
    assert measured(inside).length_mm == pytest.approx(2.0)
