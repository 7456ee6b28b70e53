"""Metrics against analytic shapes, the empty-mask policy, and DeepMind's implementation where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.evaluation.metrics import (
    TOLERANCE_MM,
    MaskMetrics,
    dice,
    element_areas,
    neighbor_codes,
    slice_metrics,
    surface_distances,
    volume_metrics,
    weighted_percentile,
)

SPACING_MM = (3.0, 1.0, 0.5)


def iou(a: np.ndarray, b: np.ndarray) -> float | None:
    return volume_metrics(a, b, (1.0,) * a.ndim).iou


def hd95(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float]) -> float | None:
    return volume_metrics(a, b, spacing_mm).hd95_mm


def nsd(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float = TOLERANCE_MM) -> float | None:
    return volume_metrics(a, b, spacing_mm, tolerance_mm).nsd


def box(shape: tuple[int, ...], first: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(f, f + n) for f, n in zip(first, size, strict=True))] = True
    return mask


def ball(radius_mm: float, spacing_mm: tuple[float, ...] = SPACING_MM, extent_mm: float = 60.0) -> np.ndarray:
    axes = [np.arange(-extent_mm / 2, extent_mm / 2 + s, s) for s in spacing_mm]
    grids = np.meshgrid(*axes, indexing="ij", sparse=True)
    return np.asarray(sum(grid**2 for grid in grids) <= radius_mm**2)


def blobs(seed: int, shape: tuple[int, ...] = (12, 30, 26)) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return np.asarray(noise > np.quantile(noise, 0.85))


# Overlap


def test_shifted_cubes_have_the_overlap_that_geometry_says() -> None:
    a, b = box((20, 20, 20), (2, 5, 5), (10, 10, 10)), box((20, 20, 20), (5, 5, 5), (10, 10, 10))
    assert dice(a, b) == pytest.approx(0.7)
    assert iou(a, b) == pytest.approx(7 / 13)


def test_integer_label_maps_count_as_masks() -> None:
    a, b = np.array([[0, 2, 2]]), np.array([[0, 0, 1]])
    assert dice(a, b) == pytest.approx(2 / 3)
    assert iou(a, b) == pytest.approx(1 / 2)


# Distances


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_shifted_cubes_are_as_far_apart_as_the_shift_in_millimeters(axis: int) -> None:
    first = [5, 5, 5]
    a = box((30, 30, 30), (5, 5, 5), (12, 12, 12))
    first[axis] += 4
    b = box((30, 30, 30), (first[0], first[1], first[2]), (12, 12, 12))
    assert hd95(a, b, SPACING_MM) == pytest.approx(4 * SPACING_MM[axis])


@pytest.mark.parametrize("inner", [12.0, 18.0])
def test_concentric_balls_are_as_far_apart_as_their_radii_differ(inner: float) -> None:
    small, large = ball(inner), ball(24.0)
    gap = 24.0 - inner
    voxel = float(np.linalg.norm(SPACING_MM))  # either surface is off by up to half of its diagonal
    assert hd95(small, large, SPACING_MM) == pytest.approx(gap, abs=voxel / 2)
    assert nsd(small, large, SPACING_MM, gap + voxel) == 1.0
    assert nsd(small, large, SPACING_MM, gap - voxel) == 0.0


def test_the_surface_of_a_ball_has_its_area() -> None:
    mask = ball(24.0, (1.0, 1.0, 1.0))
    areas = surface_distances(mask, mask, (1.0, 1.0, 1.0)).a_area
    assert areas.sum() == pytest.approx(4 * np.pi * 24**2, rel=0.1)


def test_the_outline_of_a_rectangle_has_its_length_less_the_cut_corners() -> None:
    mask = box((30, 30), (5, 5), (10, 20))
    lengths = surface_distances(mask, mask, (2.0, 0.5)).a_area
    corners = 4 * (np.hypot(2.0, 0.5) / 2 - (2.0 + 0.5) / 2)
    assert lengths.sum() == pytest.approx(2 * (10 * 2.0 + 20 * 0.5) + corners)


def test_surface_dice_is_the_share_of_the_area_within_the_tolerance() -> None:
    # Two long bars, the second one without its last quarter: only the surface there is far from the other's.
    a, b = box((100, 12, 12), (10, 4, 4), (80, 4, 4)), box((100, 12, 12), (10, 4, 4), (60, 4, 4))
    whole, three_quarters = 4 * 4 * 80 + 2 * 16, 4 * 4 * 60 + 2 * 16
    near = 4 * 4 * 62 + 16 + three_quarters  # two millimeters past the end of b, and all of b but the middle of its end
    assert nsd(a, b, (1.0, 1.0, 1.0), 2.0) == pytest.approx(near / (whole + three_quarters), abs=0.01)


def test_hd95_takes_the_larger_direction_and_does_not_pool_both() -> None:
    # The prediction holds the truth and an island of 8 % of its own surface, which is 4 % of both surfaces together.
    truth = box((40, 40, 120), (10, 10, 10), (20, 20, 20))
    predicted = truth | box((40, 40, 120), (15, 15, 90), (6, 6, 6))
    distances = surface_distances(predicted, truth, (1.0, 1.0, 1.0))
    island = distances.a_area[distances.a_to_b > 50].sum()
    assert island / distances.a_area.sum() > 0.05 > island / (distances.a_area.sum() + distances.b_area.sum())
    assert 60 <= (hd95(predicted, truth, (1.0, 1.0, 1.0)) or 0) <= 66
    assert hd95(truth, predicted, (1.0, 1.0, 1.0)) == hd95(predicted, truth, (1.0, 1.0, 1.0))


def test_an_island_of_less_than_five_percent_of_the_surface_leaves_hd95_alone() -> None:
    truth = box((40, 40, 120), (10, 10, 10), (20, 20, 20))
    predicted = truth | box((40, 40, 120), (15, 15, 90), (3, 3, 3))
    assert hd95(predicted, truth, (1.0, 1.0, 1.0)) == 0.0


def test_a_mask_that_fills_the_image_has_a_surface_at_its_border() -> None:
    full = np.ones((6, 8, 10), dtype=bool)
    assert volume_metrics(full, full, SPACING_MM) == MaskMetrics(1.0, 1.0, 0.0, 1.0)
    half = full.copy()
    half[:, :, 5:] = False
    assert hd95(full, half, SPACING_MM) == pytest.approx(5 * 0.5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1001, 2000), st.floats(0.2, 5.0))
def test_metrics_are_symmetric_and_distances_scale_with_the_spacing(first: int, second: int, factor: float) -> None:
    a, b = blobs(first), blobs(second)
    ab, ba = volume_metrics(a, b, SPACING_MM), volume_metrics(b, a, SPACING_MM)
    assert astuple(ab) == pytest.approx(astuple(ba))
    larger = [factor * s for s in SPACING_MM]
    assert hd95(a, b, larger) == pytest.approx(factor * (ab.hd95_mm or 0))
    assert nsd(a, b, larger, 2.0 * factor * (1 + 1e-9)) == pytest.approx(ab.nsd)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1001, 2000))
def test_distances_agree_with_a_search_over_all_pairs(first: int, second: int) -> None:
    a, b = blobs(first, (5, 9, 8)), blobs(second, (5, 9, 8))

    def corners(mask: np.ndarray) -> np.ndarray:
        codes = neighbor_codes(np.pad(mask, 1))
        return np.argwhere((codes > 0) & (codes < 255)) * np.array(SPACING_MM)

    every = np.linalg.norm(corners(a)[:, None] - corners(b)[None], axis=2)
    distances = surface_distances(a, b, SPACING_MM)
    np.testing.assert_allclose(distances.a_to_b, every.min(axis=1))
    np.testing.assert_allclose(distances.b_to_a, every.min(axis=0))


def test_a_call_repeated_gives_the_same_bits() -> None:
    a, b = blobs(1), blobs(2)
    assert volume_metrics(a, b, SPACING_MM) == volume_metrics(a.copy(), b.copy(), SPACING_MM)


# Surface elements


def test_areas_of_elements_that_are_known_by_hand() -> None:
    areas = element_areas((2.0, 3.0, 5.0))
    corner = 0.125 * np.linalg.norm([3 * 5, 2 * 5, 2 * 3])
    voxels = list(np.ndindex(2, 2, 2))
    for voxel in range(8):
        assert areas[1 << voxel] == pytest.approx(corner)
        assert areas[255 - (1 << voxel)] == pytest.approx(corner)
    for axis, face in enumerate((3 * 5, 2 * 5, 2 * 3)):
        assert areas[sum(1 << i for i, v in enumerate(voxels) if v[axis])] == pytest.approx(face)
    assert areas[0] == areas[255] == 0
    assert (areas[1:255] > 0).all()


def test_areas_do_not_depend_on_how_the_cube_lies() -> None:
    areas = element_areas((1.0, 1.0, 1.0))
    for code in range(256):
        cube = np.array([code >> bit & 1 for bit in range(8)], dtype=bool).reshape(2, 2, 2)
        for turned in (cube[::-1], cube[:, ::-1], cube.transpose(1, 2, 0), cube.transpose(1, 0, 2)):
            assert areas[neighbor_codes(turned).item()] == pytest.approx(areas[code])


def test_the_percentile_is_weighted_by_area() -> None:
    distances, areas = np.array([9.0, 1.0, 2.0]), np.array([1.0, 10.0, 9.0])
    assert [weighted_percentile(distances, areas, p) for p in (50, 51, 95, 96)] == [1.0, 2.0, 2.0, 9.0]


# Empty masks


def test_both_masks_empty_is_left_out() -> None:
    empty = np.zeros((4, 5, 6), dtype=bool)
    assert volume_metrics(empty, empty, SPACING_MM) == MaskMetrics(None, None, None, None)
    assert dice(empty, empty) is iou(empty, empty) is hd95(empty, empty, SPACING_MM) is nsd(empty, empty, SPACING_MM)


@pytest.mark.parametrize("missed", [True, False])
def test_a_miss_and_a_false_alarm_cost_the_diagonal_of_the_image(missed: bool) -> None:
    empty, mask = np.zeros((4, 5, 6), dtype=bool), box((4, 5, 6), (1, 1, 1), (2, 2, 2))
    predicted, truth = (empty, mask) if missed else (mask, empty)
    diagonal = pytest.approx(np.linalg.norm([4 * 3.0, 5 * 1.0, 6 * 0.5]))
    metrics = volume_metrics(predicted, truth, SPACING_MM)
    assert (metrics.dsc, metrics.iou, metrics.nsd) == (0.0, 0.0, 0.0)
    assert metrics.hd95_mm == diagonal
    assert dice(predicted, truth) == iou(predicted, truth) == nsd(predicted, truth, SPACING_MM) == 0.0
    assert hd95(predicted, truth, SPACING_MM) == diagonal


def test_hd95_never_exceeds_the_diagonal() -> None:
    a, b = box((4, 5, 6), (0, 0, 0), (1, 1, 1)), box((4, 5, 6), (3, 4, 5), (1, 1, 1))
    assert (hd95(a, b, SPACING_MM) or 0) <= np.linalg.norm([4 * 3.0, 5 * 1.0, 6 * 0.5])


# Per slice


def test_slices_count_where_they_hold_the_target() -> None:
    truth = box((6, 20, 20), (1, 5, 5), (3, 10, 10))
    predicted = truth.copy()
    predicted[2] = False  # a miss
    predicted[3] = np.roll(truth[3], 2, axis=1)
    predicted[5, :3, :3] = True  # a false alarm where there is no target
    rows = {t: volume_metrics(predicted[t], truth[t], (1.0, 0.5)) for t in (1, 2, 3)}
    assert rows[1] == MaskMetrics(1.0, 1.0, 0.0, 1.0)
    assert astuple(rows[2]) == pytest.approx((0.0, 0.0, np.hypot(20.0, 10.0), 0.0))
    assert rows[3].dsc == pytest.approx(0.8) and rows[3].hd95_mm == pytest.approx(1.0)
    mean = slice_metrics(predicted, truth, (1.0, 0.5))
    assert mean.dsc == pytest.approx((1 + 0 + 0.8) / 3)
    assert mean.hd95_mm == pytest.approx((0 + np.hypot(20, 10) + 1) / 3)


def test_a_volume_without_target_has_no_slice_metrics() -> None:
    predicted, truth = box((3, 9, 9), (1, 2, 2), (1, 3, 3)), np.zeros((3, 9, 9), dtype=bool)
    assert slice_metrics(predicted, truth, (1.0, 1.0)) == MaskMetrics(None, None, None, None)


# Bad input


def test_masks_of_different_shapes_are_refused() -> None:
    with pytest.raises(BadInput, match="shape"):
        dice(np.ones((2, 3, 4)), np.ones((1, 3, 4)))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 1.0, float("nan")), (1.0, 1.0, 1.0, 1.0)])
def test_a_spacing_that_does_not_fit_is_refused(spacing: tuple[float, ...]) -> None:
    mask = np.ones((2, 3, 4), dtype=bool)
    with pytest.raises(BadInput, match="spacing"):
        hd95(mask, mask, spacing)


# DeepMind's surface-distance, where it is installed


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING_MM, (7.7, 1.25, 1.25)])
@pytest.mark.parametrize("seed", range(4))
def test_volumes_agree_with_surface_distance(spacing: tuple[float, ...], seed: int) -> None:
    reference = pytest.importorskip("surface_distance")
    a, b = blobs(seed), blobs(seed + 100) if seed % 2 else np.roll(blobs(seed), (1, 3, -2), (0, 1, 2))
    theirs = reference.compute_surface_distances(a, b, spacing)
    ours = volume_metrics(a, b, spacing)
    assert ours.hd95_mm == pytest.approx(reference.compute_robust_hausdorff(theirs, 95), rel=1e-9)
    assert ours.nsd == pytest.approx(reference.compute_surface_dice_at_tolerance(theirs, 2.0), rel=1e-9)
    assert ours.dsc == pytest.approx(reference.compute_dice_coefficient(a, b), rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_slices_agree_with_surface_distance(seed: int) -> None:
    reference = pytest.importorskip("surface_distance")
    a, b = blobs(seed, (40, 50)), blobs(seed + 100, (40, 50))
    theirs = reference.compute_surface_distances(a, b, (1.5, 0.7))
    assert hd95(a, b, (1.5, 0.7)) == pytest.approx(reference.compute_robust_hausdorff(theirs, 95), rel=1e-9)
    surface_dice = reference.compute_surface_dice_at_tolerance(theirs, 2.0)
    assert nsd(a, b, (1.5, 0.7)) == pytest.approx(surface_dice, rel=1e-9)
