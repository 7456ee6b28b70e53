"""Slices of volumes: canonical orientation, round trips, views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from geometry_helpers import SIGNED_PERMUTATIONS, affine, phantom_on, volumes
from hypothesis import given, settings
from hypothesis import strategies as st

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.slices import AXES, SliceStack
from SPDSegmentLib.geometry.volume import Volume, read_volume

PLANES = ("axial", "coronal", "sagittal")
TOWARD = {  # RAS directions of ascending slices, rows, columns
    "axial": ((0, 0, 1), (0, -1, 0), (-1, 0, 0)),
    "coronal": ((0, 1, 0), (0, 0, -1), (-1, 0, 0)),
    "sagittal": ((-1, 0, 0), (0, 0, -1), (0, -1, 0)),
}


def steps(stack: SliceStack) -> np.ndarray:
    """(3, 3) RAS step of one slice, one row, one column."""
    corners = stack.to_ras(np.array([0, 1, 0, 0]), np.array([[0, 0], [0, 0], [0, 1], [1, 0]]))
    return corners[1:] - corners[0]


def ijk_held_right_handed(volume: Volume, ijk: np.ndarray) -> np.ndarray:
    """Indexes of a voxel where K of a left-handed volume is reversed, as 3D Slicer reads it."""
    i, j, k = ijk
    return np.array([i, j, volume.shape_ijk[2] - 1 - k if np.linalg.det(volume.ijk_to_ras[:3, :3]) < 0 else k])


@settings(max_examples=80, deadline=None)
@given(volumes(), st.sampled_from(AXES), st.integers(0, 2**32 - 1))
def test_points_return_from_slices_to_where_they_were(volume: Volume, axis: str, seed: int) -> None:
    stack = SliceStack(volume, axis)
    points = np.random.default_rng(seed).uniform(-500, 500, (20, 3))
    np.testing.assert_allclose(stack.to_ras(*stack.to_slices(points)), points, atol=1e-6)


@settings(max_examples=80, deadline=None)
@given(volumes(), st.sampled_from(AXES), st.integers(0, 2**32 - 1), st.integers(1, 70))
def test_a_point_has_the_same_place_bit_for_bit_whatever_the_others_are(
    volume: Volume, axis: str, seed: int, count: int
) -> None:
    stack = SliceStack(volume, axis)
    points = np.random.default_rng(seed).uniform(-500, 500, (count, 3))
    ways = (volume.to_ras, volume.to_ijk, lambda p: np.column_stack(stack.to_slices(p)))
    for way in (*ways, lambda p: stack.to_ras(p[:, 0], p[:, 1:])):
        among = way(points)
        assert all(np.array_equal(way(points[i : i + 1])[0], among[i]) for i in range(count))


@settings(max_examples=80, deadline=None)
@given(volumes(), st.sampled_from(AXES), st.data())
def test_a_voxel_keeps_its_value_and_its_place_on_the_slices(volume: Volume, axis: str, data: st.DataObject) -> None:
    stack = SliceStack(volume, axis)
    ijk = np.array([data.draw(st.integers(0, n - 1)) for n in volume.shape_ijk])
    ras = volume.ijk_to_ras[:3, :3] @ ijk + volume.ijk_to_ras[:3, 3]
    position, xy = stack.to_slices(ras)
    np.testing.assert_allclose((position[0], *xy[0]), np.rint((position[0], *xy[0])), atol=1e-6)
    t, column, row = np.rint((position[0], *xy[0])).astype(int)
    assert stack.array[t, row, column] == volume.array[tuple(ijk[::-1])]
    assert stack.slice_number(int(t)) == ijk_held_right_handed(volume, ijk)[stack.axis]


@settings(max_examples=80, deadline=None)
@given(volumes(), st.sampled_from(AXES))
def test_a_mask_on_slices_returns_to_the_grid_of_the_volume(volume: Volume, axis: str) -> None:
    stack = SliceStack(volume, axis)
    back = stack.to_volume(stack.array.copy())
    np.testing.assert_array_equal(back, volume.array)
    assert back.flags.c_contiguous
    np.testing.assert_array_equal(stack.from_volume(back), stack.array)


@settings(max_examples=80, deadline=None)
@given(volumes(), st.sampled_from(AXES))
def test_distances_on_slices_are_millimeters(volume: Volume, axis: str) -> None:
    stack = SliceStack(volume, axis)
    lengths = np.linalg.norm(steps(stack), axis=1)
    np.testing.assert_allclose(lengths, (stack.slice_mm, *stack.pixel_mm), rtol=1e-9)


@settings(max_examples=100, deadline=None)
@given(volumes(), st.sampled_from(AXES))
def test_pictures_are_never_mirrored(volume: Volume, axis: str) -> None:
    stack = SliceStack(volume, axis)
    wanted = np.array(TOWARD[stack.plane], dtype=float)
    assert np.linalg.det(steps(stack)) * np.linalg.det(wanted) > 0
    assert steps(stack)[0] @ wanted[0] >= -1e-9, "slices ascend as their plane does"


@settings(max_examples=100, deadline=None)
@given(volumes(max_tilt=40.0), st.sampled_from(PLANES))
def test_tilted_volumes_take_the_nearest_orientation(volume: Volume, plane: str) -> None:
    stack = SliceStack(volume, plane)
    unit = steps(stack) / np.linalg.norm(steps(stack), axis=1, keepdims=True)
    assert (np.sum(unit * np.array(TOWARD[plane]), axis=1) > np.cos(np.radians(41))).all()


@pytest.mark.parametrize("plane", PLANES)
def test_all_layouts_of_one_anatomy_give_the_same_picture(plane: str) -> None:
    # given one block of space, 9 x 7 x 5 mm, stored in the 48 possible ways
    extent = np.array([9, 7, 5])
    pictures = []
    for directions in SIGNED_PERMUTATIONS:
        size_ijk = np.abs(directions).T @ extent
        origin = np.where(directions.sum(axis=1) < 0, extent - 1, 0)
        k, j, i = size_ijk[::-1].astype(int)
        volume = phantom_on(affine(directions, origin=tuple(origin)), (k, j, i))
        # when each is sliced
        pictures.append(SliceStack(volume, plane).array)
    # then all look alike, and run where the plane's name says
    for picture in pictures[1:]:
        np.testing.assert_array_equal(picture, pictures[0])
    first = pictures[0]
    weights = np.array([10000.0, 100.0, 1.0])
    for step, toward in zip(
        (first[1, 0, 0] - first[0, 0, 0], first[0, 1, 0] - first[0, 0, 0], first[0, 0, 1] - first[0, 0, 0]),
        TOWARD[plane],
        strict=True,
    ):
        assert step == np.array(toward) @ weights


def test_slices_are_a_view_of_the_volume() -> None:
    volume = phantom_on(affine(SIGNED_PERMUTATIONS[-1]), (4, 5, 6))
    stack = SliceStack(volume, "sagittal")
    assert np.shares_memory(stack.array, volume.array)
    volume.array[...] = 7
    assert (stack.array == 7).all()


def test_auto_cuts_across_the_largest_spacing() -> None:
    volume = phantom_on(affine(np.eye(3), (1, 4, 2)), (4, 5, 6))
    stack = SliceStack(volume)
    assert (stack.axis, stack.plane, stack.slice_mm, stack.pixel_mm) == (1, "coronal", 4.0, (2.0, 1.0))
    assert stack.shape == (5, 4, 6)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (3, 1, 3), (1, 1.0000001, 1)])
def test_auto_prefers_the_axis_nearest_superior_among_equals(spacing: tuple[float, float, float]) -> None:
    directions = np.array([[0, 0, 1.0], [1, 0, 0], [0, 1, 0]])  # K runs to Right, I to Anterior, J to Superior
    stack = SliceStack(phantom_on(affine(directions, spacing), (4, 5, 6)))
    expected = "axial" if spacing[0] < 3 else "coronal"
    assert stack.plane == expected


@pytest.mark.parametrize(("axis", "cut"), [("i", 0), ("j", 1), ("k", 2)])
def test_index_axes_are_cut_whatever_they_mean(axis: str, cut: int) -> None:
    assert SliceStack(phantom_on(affine(SIGNED_PERMUTATIONS[7]), (4, 5, 6)), axis).axis == cut


def test_an_unknown_axis_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match="oblique.*axial, coronal, sagittal"):
        SliceStack(phantom_on(affine(np.eye(3)), (4, 5, 6)), "oblique")


@pytest.mark.parametrize(
    ("name", "axis", "plane", "shape"),
    [
        ("chaos_t2spir/chaos_01_image.nii.gz", "auto", "axial", (37, 256, 256)),
        ("msd_hippocampus/subj001_hippocampus_001_image.nii.gz", "coronal", "coronal", (51, 35, 35)),
        ("dicom/pgbm003/11-T1post-18670", "auto", "axial", (22, 320, 280)),
    ],
)
def test_real_volumes_are_cut_in_canonical_orientation(
    shared_data: Path, name: str, axis: str, plane: str, shape: tuple[int, int, int]
) -> None:
    stack = SliceStack(read_volume(shared_data / name), axis)
    assert (stack.plane, stack.shape) == (plane, shape)
    unit = steps(stack) / np.linalg.norm(steps(stack), axis=1, keepdims=True)
    assert (np.sum(unit * np.array(TOWARD[plane]), axis=1) > 0.8).all()


def test_a_real_abdomen_lies_as_radiologists_see_it(shared_data: Path) -> None:
    # given the organs of one patient
    label = read_volume(shared_data / "chaos_t2spir/chaos_01_label.nii.gz")
    liver, right_kidney, left_kidney, spleen = 1, 2, 3, 4
    # when they are cut
    array = SliceStack(label, "axial").array
    center = {v: np.argwhere(array == v).mean(axis=0) for v in (liver, right_kidney, left_kidney, spleen)}
    # then (slice, row, column) put liver and right kidney on the left of the picture, kidneys low and behind
    assert center[liver][2] < center[spleen][2]
    assert center[right_kidney][2] < center[left_kidney][2]
    assert min(center[right_kidney][1], center[left_kidney][1]) > center[liver][1]
    assert max(center[right_kidney][0], center[left_kidney][0]) < min(center[liver][0], center[spleen][0])


def test_a_slice_has_one_number_in_the_file_and_in_3d_slicer() -> None:
    # given the left-handed sample as its file has it, and with K reversed, as 3D Slicer holds it
    sample = Path(__file__).parents[2] / "Resources" / "SampleData" / "kidney-mr" / "image.nii.gz"
    stored = read_volume(sample)
    assert np.linalg.det(stored.ijk_to_ras[:3, :3]) < 0
    reverse_k = np.diag([1.0, 1.0, -1.0, 1.0])
    reverse_k[2, 3] = stored.shape_ijk[2] - 1
    held = Volume(stored.array[::-1], stored.ijk_to_ras @ reverse_k, "held")
    for axis in ("i", "j", "k"):
        # when either is cut
        in_file, in_viewer = SliceStack(stored, axis), SliceStack(held, axis)
        # then the same slice has the same number
        numbers = [in_file.slice_number(t) for t in range(in_file.n_slices)]
        assert numbers == [in_viewer.slice_number(t) for t in range(in_viewer.n_slices)]
