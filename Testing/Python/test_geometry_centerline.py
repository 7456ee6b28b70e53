"""Clicks in patient space to clicks on slices: nearest slices, curves, what is left out, what lies outside."""

from __future__ import annotations

import time

import numpy as np
import pytest
import scipy.interpolate  # noqa: F401, so that no example is timed with its import
from geometry_helpers import affine, volumes
from hypothesis import given, settings
from hypothesis import strategies as st

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.centerline import clicks_from_markups, clicks_from_points, sample_curve
from SPDSegmentLib.geometry.markups import ControlPoint, Markup
from SPDSegmentLib.geometry.slices import AXES, SliceStack
from SPDSegmentLib.geometry.volume import Volume

axes = st.sampled_from(AXES)


@pytest.fixture
def stack() -> SliceStack:
    """20 axial slices of 10 x 8 pixels, 3 mm apart; slice t lies at S = 3 t."""
    array = np.arange(20 * 10 * 8, dtype=np.int16).reshape(20, 10, 8)
    return SliceStack(Volume(array, affine(np.diag([-1.0, -1.0, 1.0]), (1, 1, 3)), "body"), "axial")


def node(*positions: tuple[float, float, float], kind: str = "Fiducial", name: str = "F", **changes: bool) -> Markup:
    return Markup(name, kind, tuple(ControlPoint(str(i + 1), "", p, **changes) for i, p in enumerate(positions)))


@settings(max_examples=60)
@given(volumes(), axes, st.integers(0, 2**32 - 1))
def test_a_point_lands_on_the_voxel_that_it_lies_in(volume: Volume, axis: str, seed: int) -> None:
    """Oblique, anisotropic and flipped volumes, any axis: the value under the click is that of the nearest voxel."""
    stack = SliceStack(volume, axis)
    rng = np.random.default_rng(seed)
    ijk = rng.integers(0, volume.shape_ijk, (5, 3)) + rng.uniform(-0.45, 0.45, (5, 3))
    clicks = clicks_from_points(ijk @ volume.ijk_to_ras[:3, :3].T + volume.ijk_to_ras[:3, 3], stack)
    assert not clicks.outside.any()
    column, row = np.rint(clicks.xy).astype(int).T
    i, j, k = np.rint(ijk).astype(int).T
    assert np.array_equal(stack.array[clicks.slice_index, row, column], volume.array[k, j, i])


@settings(max_examples=60)
@given(volumes(), axes, st.integers(0, 2**32 - 1))
def test_exactly_the_points_beyond_half_a_voxel_are_outside(volume: Volume, axis: str, seed: int) -> None:
    ijk = np.random.default_rng(seed).uniform(-3, np.array(volume.shape_ijk) + 2, (20, 3))
    expected = ((ijk < -0.5) | (ijk > np.array(volume.shape_ijk) - 0.5)).any(axis=1)
    points = ijk @ volume.ijk_to_ras[:3, :3].T + volume.ijk_to_ras[:3, 3]
    assert np.array_equal(clicks_from_points(points, SliceStack(volume, axis)).outside, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e300, 1e300])
def test_impossible_positions_are_outside_and_never_a_slice_of_the_volume(stack: SliceStack, bad: float) -> None:
    clicks = clicks_from_points(np.array([[0.0, 0.0, bad], [bad, 0.0, 0.0], [-3.0, -3.0, 30.0]]), stack)
    assert clicks.outside.tolist() == [True, True, False]
    assert clicks.inside().slice_index.tolist() == [10]


@settings(max_examples=60)
@given(volumes(), axes, st.integers(2, 6), st.booleans(), st.integers(0, 2**32 - 1))
def test_a_curve_puts_a_click_on_every_slice_that_it_crosses(
    volume: Volume, axis: str, n_points: int, closed: bool, seed: int
) -> None:
    stack = SliceStack(volume, axis)
    position = np.random.default_rng(seed).uniform(-0.4, np.array(stack.shape) - 0.6, (n_points, 3))
    points = stack.to_ras(position[:, 0], position[:, [2, 1]])
    samples, nearest = sample_curve(points, stack, closed)
    slices = clicks_from_points(samples, stack).slice_index
    assert set(range(int(slices.min()), int(slices.max()) + 1)) <= set(slices.tolist())
    control = [tuple(p) for p in points]
    assert all(tuple(p) in {tuple(s) for s in samples} for p in control), "control points stay as they are"
    assert nearest.min() >= 0 and nearest.max() < n_points


def test_a_straight_curve_is_followed_exactly(stack: SliceStack) -> None:
    clicks = clicks_from_markups([node((-1, -1, 0), (-7, -7, 18), kind="Curve")], stack)
    assert clicks.slice_index.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert np.allclose(clicks.xy[:, 0], np.linspace(1, 7, 7), atol=1e-6)
    assert clicks.ids == ("1", "1", "1", "1", "2", "2", "2") or clicks.ids == ("1", "1", "1", "2", "2", "2", "2")


def test_a_line_is_a_curve_and_a_point_list_is_used_as_it_is(stack: SliceStack) -> None:
    ends = ((-1.0, -1.0, 0.0), (-7.0, -7.0, 18.0))
    assert len(clicks_from_markups([node(*ends, kind="Line")], stack)) == 7
    assert clicks_from_markups([node(*ends)], stack).slice_index.tolist() == [0, 6]


def test_a_curve_of_one_point_is_a_click(stack: SliceStack) -> None:
    assert clicks_from_markups([node((-3, -3, 9), kind="Curve")], stack).slice_index.tolist() == [3]


def test_a_curve_in_the_plane_of_a_slice_puts_all_its_points_there(stack: SliceStack) -> None:
    clicks = clicks_from_markups([node((-1, -1, 9), (-4, -2, 9), (-6, -6, 9), kind="Curve")], stack)
    assert clicks.slice_index.tolist() == [3, 3, 3]


def test_a_curve_that_leaves_the_volume_costs_no_more_than_the_volume(stack: SliceStack) -> None:
    clicks = clicks_from_markups([node((-3, -3, -9e4), (-3, -3, 30), (-3, -3, 9e4), kind="Curve")], stack)
    assert len(clicks) <= stack.n_slices + 2
    assert set(clicks.inside().slice_index.tolist()) == set(range(20))


def test_points_of_several_nodes_are_used_together_with_ids_of_their_own(stack: SliceStack) -> None:
    clicks = clicks_from_markups([node((-3, -3, 9)), node((-3, -3, 12), (-3, -3, 30))], stack)
    assert clicks.slice_index.tolist() == [3, 4, 10]
    assert clicks.ids == ("list 1:1", "list 2:1", "2")


def test_unplaced_and_unselected_points_and_boxes_are_left_out(stack: SliceStack) -> None:
    used = node((-3, -3, 9))
    others = [node((-3, -3, 12), placed=False), node((-3, -3, 15), selected=False)]
    shapes = [node((-3, -3, 18), kind=kind) for kind in ("ROI", "Plane", "Angle")]
    assert clicks_from_markups([*others, used, *shapes], stack).slice_index.tolist() == [3]
    with pytest.raises(BadInput, match="No placed point in F, F, F"):
        clicks_from_markups([*others, shapes[0]], stack)


def test_points_that_are_all_outside_are_refused_and_some_outside_are_marked(stack: SliceStack) -> None:
    assert clicks_from_markups([node((-3, -3, 9), (-3, -3, 900))], stack).outside.tolist() == [False, True]
    with pytest.raises(BadInput, match="No click lies inside the volume: all 2 of F are outside"):
        clicks_from_markups([node((-3, -3, 900), (-300, -3, 9))], stack)


@pytest.mark.parametrize("kind", ["Fiducial", "Curve", "ClosedCurve"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e300, 2e5])
def test_a_point_beyond_any_volume_is_named_and_bends_no_curve(stack: SliceStack, kind: str, bad: float) -> None:
    good = ((-1.0, -1.0, 0.0), (-7.0, -1.0, 18.0), (-1.0, -7.0, 36.0))
    clicks = clicks_from_markups([node(good[0], good[1], (-3, bad, 20), good[2], kind=kind)], stack)
    assert [clicks.ids[i] for i in np.flatnonzero(clicks.outside)] == ["3"]
    assert np.isfinite(clicks.xy).all()
    without = clicks_from_markups([node(*good, kind=kind)], stack)
    assert np.array_equal(clicks.inside().xy, without.xy)
    assert np.array_equal(clicks.inside().slice_index, without.slice_index)


def test_it_is_said_that_all_points_are_deselected_or_that_there_is_only_a_box(stack: SliceStack) -> None:
    with pytest.raises(BadInput, match="No placed point in F is selected: 2 deselected"):
        clicks_from_markups([node((-3, -3, 9), (-3, -3, 12), selected=False)], stack)
    with pytest.raises(BadInput, match="There are no clicks in F, F, only Plane, ROI"):
        clicks_from_markups([node((-3, -3, 9), kind="ROI"), node((-3, -3, 9), kind="Plane")], stack)


@pytest.mark.parametrize("kind", ["Fiducial", "Curve"])
def test_a_hundred_thousand_points_take_seconds(stack: SliceStack, kind: str) -> None:
    places = np.stack((np.full(100_000, -3.0), np.full(100_000, -4.0), np.linspace(0, 57, 100_000)), axis=1)
    started = time.process_time()
    clicks = clicks_from_markups([node(*map(tuple, places.tolist()), kind=kind)], stack)
    assert time.process_time() - started < 10
    assert len(clicks) == 100_000 and set(clicks.slice_index.tolist()) == set(range(20))


def test_samples_of_a_known_curve_lie_on_it_and_nowhere_else() -> None:
    # given: a curve that passes by its middle point, and a preview that follows the pointer at its end
    stack = SliceStack(Volume(np.zeros((20, 60, 60)), np.diag([1.0, 1.0, 2.0, 1.0])), "k")
    points = np.array([[10.0, 10, 2], [40, 20, 20], [10, 40, 36]])
    path = np.array([[10.0, 10, 2], [25, 20, 19], [10, 40, 36], [55, 55, 1]])

    # when
    samples, nearest = sample_curve(points, stack, path_ras=path)

    # then
    legs = [(path[n], path[n + 1] - path[n]) for n in range(2)]
    away = [min(np.linalg.norm(np.cross(p - a, d)) / np.linalg.norm(d) for a, d in legs) for p in samples]
    assert max(away) < 1e-6
    assert sorted({round(z / 2) for z in samples[:, 2]}) == list(range(1, 19))
    assert list(nearest) == sorted(nearest) and set(nearest) == {0, 1, 2}
