"""The host draws real slice and 3-D views, and the mouse works in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest_plugins = ["Testing.Host.pytest_plugin"]

POINTS = ((20.0, 20.0, 5.0), (30.0, 40.0, 10.0), (40.0, 35.0, 15.0))


@pytest.fixture
def volume(host: Any) -> Any:
    """A dark volume of 64 x 64 x 20 mm with a bright box."""
    array = np.zeros((20, 64, 64), np.int16)
    array[8:12, 24:40, 24:40] = 100
    host.window.show()
    return host.add_volume(array)


@pytest.fixture
def place(host: Any) -> Any:
    """The place widget of an empty point list, placing."""
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "C")
    node.CreateDefaultDisplayNodes()
    place = slicer.qSlicerMarkupsPlaceWidget()
    place.setMRMLScene(host.scene)
    place.setCurrentNode(node)
    place.placeModePersistency = True
    place.placeModeEnabled = True
    return place


def positions(place: Any) -> np.ndarray:
    import slicer

    return slicer.util.arrayFromMarkupsControlPoints(place.currentNode())


def test_a_slice_view_shows_the_volume(host: Any, volume: Any) -> None:
    red = host.slice_view("Red")
    red.jump_to((32, 32, 10))
    pixels = red.pixels()
    inside, outside = (red.pixel_of(point) for point in ((32, 32, 10), (5, 5, 10)))
    assert pixels[inside[1], inside[0]].mean() > 200
    assert pixels[outside[1], outside[0]].mean() < 50


def test_clicks_place_points_where_the_mouse_is(host: Any, volume: Any, place: Any) -> None:
    for point in POINTS:
        host.slice_view("Red").click_ras(point)
    assert positions(place) == pytest.approx(np.array(POINTS), abs=0.2)


@pytest.mark.parametrize("name", ["Red", "Yellow", "Green"])
def test_every_slice_view_takes_clicks(host: Any, volume: Any, place: Any, name: str) -> None:
    host.slice_view(name).click_ras((30, 40, 10))
    assert positions(place) == pytest.approx(np.array([[30, 40, 10]]), abs=0.2)


def test_leaving_place_mode_ends_placing(host: Any, volume: Any, place: Any) -> None:
    place.placeModeEnabled = False
    host.slice_view("Red").click_ras(POINTS[0])
    assert place.currentNode().GetNumberOfControlPoints() == 0


def test_leaving_place_mode_does_not_ask_who_placed(host: Any, volume: Any, place: Any) -> None:
    import slicer

    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "Other")
    assert place.selectionNode().GetActivePlaceNodeID() == other.GetID()
    assert not place.placeModeEnabled
    place.placeModeEnabled = False
    assert place.interactionNode().GetCurrentInteractionMode() == place.interactionNode().ViewTransform


def test_choosing_another_node_does_not_end_placing(host: Any, volume: Any, place: Any) -> None:
    import slicer

    first = place.currentNode()
    scene = slicer.mrmlScene
    scene.StartState(scene.BatchProcessState)
    other = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "Other")
    scene.EndState(scene.BatchProcessState)
    place.setCurrentNode(other)
    assert not place.placeModeEnabled
    host.slice_view("Red").click_ras((30, 40, 10))
    assert (first.GetNumberOfControlPoints(), other.GetNumberOfControlPoints()) == (1, 0)


def test_a_markups_node_that_is_added_becomes_the_placed_one(host: Any, volume: Any, place: Any) -> None:
    import slicer

    seen: list[bool] = []
    place.connect("activeMarkupsPlaceModeChanged(bool)", seen.append)
    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "Other")
    assert seen == [False]
    host.slice_view("Red").click_ras((30, 40, 10))
    assert (place.currentNode().GetNumberOfControlPoints(), other.GetNumberOfControlPoints()) == (0, 1)


def test_without_persistence_one_click_places_one_point(host: Any, volume: Any, place: Any) -> None:
    place.placeModePersistency = False
    for point in POINTS[:2]:
        host.slice_view("Red").click_ras(point)
    assert place.currentNode().GetNumberOfControlPoints() == 1
    assert not place.placeModeEnabled


def test_a_point_is_dragged(host: Any, volume: Any, place: Any) -> None:
    red = host.slice_view("Red")
    red.click_ras(POINTS[1])
    place.placeModeEnabled = False
    red.drag_ras(POINTS[1], (36, 46, 10))
    assert positions(place) == pytest.approx(np.array([[36, 46, 10]]), abs=0.4)


def test_the_wheel_turns_slices(host: Any, volume: Any) -> None:
    red = host.slice_view("Red")
    red.jump_to((32, 32, 10))
    red.scroll(3)
    assert red.node.GetSliceOffset() == pytest.approx(13)


def test_a_segment_is_drawn_over_the_volume(host: Any, volume: Any) -> None:
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    segment = node.GetSegmentation().AddEmptySegment("", "Red segment", (1, 0, 0))
    mask = (slicer.util.arrayFromVolume(volume) > 50).astype(np.uint8)
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, segment, volume)
    red = host.slice_view("Red")
    red.jump_to((32, 32, 10))
    x, y = red.pixel_of((32, 32, 10))
    color = red.pixels()[y, x].astype(int)
    assert color[0] - color[1] > 50


def test_the_3d_view_draws_a_point(host: Any, volume: Any, place: Any) -> None:
    empty = host.threed_view().pixels().astype(int)
    host.slice_view("Red").click_ras(POINTS[1])
    drawn = host.threed_view().pixels().astype(int)
    assert np.abs(drawn - empty).sum(axis=-1).max() > 100


def test_a_picture_of_window_and_views_is_written(host: Any, volume: Any, tmp_path: Path) -> None:
    import qt

    picture = qt.QImage(str(host.screenshot(tmp_path / "window.png")))
    assert (picture.width(), picture.height()) == (1280, 900)
    assert len({picture.pixel(x, 300) for x in range(470, 1270, 8)}) > 2


def test_drawing_waits_while_rendering_is_paused(host: Any, volume: Any) -> None:
    import slicer

    red = host.slice_view("Red")
    host.process_events(50)
    with slicer.util.RenderBlocker():
        before = red.frames
        red.node.SetSliceOffset(3)
        host.process_events(50)
        assert red.frames == before
    host.wait_until(lambda: red.frames > before)
