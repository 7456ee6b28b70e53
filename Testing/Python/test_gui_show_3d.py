"""*Show 3D*: a surface after the run, none while it goes, and a button that says what the scene shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gui_helpers import (
    SHAPE,
    add_clicks,
    add_volume,
    load,
    mask_of,
    move_click,
    press_segment,
    record_of,
    segment,
    segmented,
    settle,
    state_of,
)

pytest_plugins = ["Testing.Host.pytest_plugin"]

SURFACE = "Closed surface"


@pytest.fixture
def module(host: Any) -> Any:
    """The module with a segmented structure, from clicks on slices 2 and 8."""
    return segmented(host)


def press(host: Any, module: Any) -> None:
    """Press the button and let the surfaces be made."""
    assert module.ui.show3DButton.enabled
    module.ui.show3DButton.click()
    rest(host, module)


def rest(host: Any, module: Any) -> None:
    """Let the run end, and the surfaces be made."""
    settle(host, module)
    host.wait_until(lambda: module.logic.segmenter.surfaces.isQuiet, 60_000, "the surfaces")
    host.process_events(30)


def points(module: Any, segment_id: str = "") -> int | None:
    """Number of points of a segment's surface, None without one."""
    state = state_of(module)
    found = state.segmentationNode.GetSegmentation().GetSegment(segment_id or state.segmentId)
    surface = found.GetRepresentation(SURFACE)
    return None if surface is None else int(surface.GetNumberOfPoints())


def surface_of(module: Any) -> tuple[int, tuple[float, ...]]:
    """Number of points and bounds of the chosen segment's surface."""
    state = state_of(module)
    return told(state.segmentationNode.GetSegmentation().GetSegment(state.segmentId))


def surface_of_slicer(module: Any) -> tuple[int, tuple[float, ...]]:
    """The same of what Slicer itself makes."""
    import slicer

    state = state_of(module)
    copy = slicer.vtkSegmentation()
    copy.DeepCopy(state.segmentationNode.GetSegmentation())
    copy.CreateRepresentation(SURFACE, True)
    return told(copy.GetSegment(state.segmentId))


def told(found: Any) -> tuple[int, tuple[float, ...]]:
    """Number of points and bounds of a segment's surface."""
    surface = found.GetRepresentation(SURFACE)
    return int(surface.GetNumberOfPoints()), tuple(np.round(surface.GetBounds(), 3))


def add_box(module: Any, segment_id: str) -> None:
    """Add a segment with a box to the segmentation."""
    import slicer

    state = state_of(module)
    state.segmentationNode.GetSegmentation().AddEmptySegment(segment_id, segment_id)
    box = np.zeros(SHAPE, np.uint8)
    box[1:4, 2:9, 3:9] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(box, state.segmentationNode, segment_id, state.volumeNode)


def test_there_is_nothing_to_show_before_the_first_run(host: Any) -> None:
    add_volume(host)
    loaded = load(host)
    add_clicks()
    settle(host, loaded)
    assert not loaded.ui.show3DButton.enabled and not loaded.ui.show3DButton.checked


def test_the_button_shows_slicers_surface_and_takes_it_away(host: Any, module: Any) -> None:
    assert points(module) is None and not module.ui.show3DButton.checked
    press(host, module)
    assert points(module) and surface_of(module) == surface_of_slicer(module) and module.ui.show3DButton.checked
    press(host, module)
    assert points(module) is None and not module.ui.show3DButton.checked


def test_the_view_draws_it(host: Any, module: Any) -> None:
    view = host.threed_view()
    view.widget.resetCamera()
    before = view.pixels().astype(int)
    press(host, module)
    host.wait_until(lambda: np.abs(view.pixels().astype(int) - before).sum() > 10_000, 10_000)
    press(host, module)
    host.wait_until(lambda: np.abs(view.pixels().astype(int) - before).sum() < 10_000, 10_000)


def test_no_surface_is_made_while_a_run_goes(host: Any, tmp_path: Path) -> None:
    add_volume(host)
    loaded = load(host, f"fake?gate={tmp_path / 'gate'}")
    add_clicks((2, 8))
    job = press_segment(loaded)
    host.wait_until(lambda: bool(job.writer.changed) and loaded.ui.show3DButton.enabled)
    loaded.ui.show3DButton.click()
    host.process_events(150)
    assert not job.finished and not points(loaded) and loaded.ui.show3DButton.checked
    (tmp_path / "gate").touch()
    rest(host, loaded)
    assert points(loaded) and surface_of(loaded) == surface_of_slicer(loaded) and loaded.ui.show3DButton.checked


def test_a_cancelled_first_run_leaves_no_surface_and_no_error(host: Any, tmp_path: Path) -> None:
    add_volume(host)
    loaded = load(host, f"fake?gate={tmp_path / 'gate'}")
    add_clicks((2, 8))
    job = press_segment(loaded)
    host.wait_until(lambda: bool(job.writer.changed) and loaded.ui.show3DButton.enabled)
    loaded.ui.show3DButton.click()
    loaded.ui.segmentButton.click()
    rest(host, loaded)
    assert job.finished and state_of(loaded).segmentationNode is None and not loaded.ui.show3DButton.enabled


def test_a_shown_surface_follows_a_live_update(host: Any, module: Any) -> None:
    press(host, module)
    before = surface_of(module)
    move_click(state_of(module).centerlineNodes[0], 0, (9.0, 0.0, 0.0))
    rest(host, module)
    assert surface_of(module) == surface_of_slicer(module) != before


def test_one_that_was_hidden_while_it_was_made_stays_hidden(host: Any, module: Any) -> None:
    module.ui.show3DButton.click()
    module.ui.show3DButton.click()
    rest(host, module)
    assert points(module) is None and not module.ui.show3DButton.checked


@pytest.mark.parametrize("part", ["representation", "segmentation", "segmentation in 3-D", "segment", "segment in 3-D"])
def test_the_button_stays_in_step_with_what_is_changed_elsewhere(host: Any, module: Any, part: str) -> None:
    node, segment_id = state_of(module).segmentationNode, state_of(module).segmentId
    display = node.GetDisplayNode()
    hide = {
        "representation": node.RemoveClosedSurfaceRepresentation,
        "segmentation": lambda: display.SetVisibility(False),
        "segmentation in 3-D": lambda: display.SetVisibility3D(False),
        "segment": lambda: display.SetSegmentVisibility(segment_id, False),
        "segment in 3-D": lambda: display.SetSegmentVisibility3D(segment_id, False),
    }
    node.CreateClosedSurfaceRepresentation()
    host.wait_until(lambda: module.ui.show3DButton.checked)
    hide[part]()
    host.wait_until(lambda: not module.ui.show3DButton.checked)
    press(host, module)
    assert surface_of(module) == surface_of_slicer(module) and module.ui.show3DButton.checked
    assert display.GetVisibility() and display.GetVisibility3D() and display.GetSegmentVisibility(segment_id)


def test_all_segments_are_shown_and_one_that_comes_later_too(host: Any, module: Any) -> None:
    add_box(module, "box")
    press(host, module)
    assert points(module) and points(module, "box")
    state_of(module).segmentId = ""
    segment(host, module)
    rest(host, module)
    assert state_of(module).segmentationNode.GetSegmentation().GetNumberOfSegments() == 3
    assert points(module) and surface_of(module) == surface_of_slicer(module) and module.ui.show3DButton.checked


def test_it_turns_to_the_segmentation_that_is_chosen(host: Any, module: Any) -> None:
    import slicer

    press(host, module)
    shown = state_of(module).segmentationNode
    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Other")
    other.GetSegmentation().AddEmptySegment("a", "A")
    module.ui.segmentationSelector.setCurrentNode(other)
    host.wait_until(lambda: not module.ui.show3DButton.checked)
    module.ui.segmentationSelector.setCurrentNode(shown)
    host.wait_until(lambda: module.ui.show3DButton.checked)


def test_undo_works_after_it_and_shows_the_surface_of_before(host: Any, module: Any) -> None:
    first = mask_of(module)
    press(host, module)
    move_click(state_of(module).centerlineNodes[0], 0, (9.0, 0.0, 0.0))
    rest(host, module)
    module.ui.undoButton.click()
    rest(host, module)
    assert np.array_equal(mask_of(module), first) and module.ui.show3DButton.checked
    assert surface_of(module) == surface_of_slicer(module)


def test_no_edit_is_taken_for_a_persons_because_of_it(host: Any, module: Any) -> None:
    press(host, module)
    press(host, module)
    assert "Slices that you edit are kept" in module.ui.lockedLabel.text


@pytest.mark.parametrize("what", ["segmentation", "scene"])
def test_what_is_removed_before_its_surface_is_made_is_forgotten(host: Any, module: Any, what: str) -> None:
    import slicer

    module.ui.show3DButton.click()
    if what == "segmentation":
        slicer.mrmlScene.RemoveNode(state_of(module).segmentationNode)
    else:
        host.new_scene()
    rest(host, module)
    assert not module.ui.show3DButton.enabled and not module.ui.show3DButton.checked


def test_a_segmentation_that_is_stored_as_surfaces_keeps_them(host: Any, module: Any) -> None:
    node = state_of(module).segmentationNode
    node.CreateClosedSurfaceRepresentation()
    node.GetSegmentation().SetSourceRepresentationName(SURFACE)
    host.wait_until(lambda: module.ui.show3DButton.checked)
    press(host, module)
    assert points(module) and not node.GetDisplayNode().GetVisibility3D() and not module.ui.show3DButton.checked
    press(host, module)
    assert points(module) and node.GetDisplayNode().GetVisibility3D() and module.ui.show3DButton.checked


def test_where_the_thread_fails_slicer_makes_the_surface(
    host: Any, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from SPDSegmentLib.gui.scene import surfaces as shown_surfaces

    def fail(*arguments: Any, **options: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(shown_surfaces, "closedSurface", fail)
    press(host, module)
    assert points(module) and surface_of(module) == surface_of_slicer(module)


def test_outline_fill_and_opacity_follow_the_scene_and_change_it(host: Any, module: Any) -> None:
    display = state_of(module).segmentationNode.GetDisplayNode()
    box, slider = module.ui.displayBox, module.ui.opacitySlider
    assert (box.enabled, box.currentText, slider.value) == (True, "Fill and outline", 100)
    box.currentIndex = box.findText("Outline")
    box.activated.emit(box.currentIndex)
    slider.value = 40
    assert (display.GetVisibility2DFill(), display.GetVisibility2DOutline()) == (False, True)
    assert display.GetOpacity() == pytest.approx(0.4)
    display.SetVisibility2DFill(True)
    display.SetVisibility2DOutline(False)
    display.SetOpacity(0.75)
    settle(host, module)
    assert (box.currentText, slider.value) == ("Fill", 75)


def test_a_renamed_result_keeps_its_link_its_record_and_its_hand_edited_slices(host: Any, module: Any) -> None:
    state = state_of(module)
    node, before = state.segmentationNode, record_of(module)
    assert module.ui.segmentationSelector.renameEnabled
    node.SetName("Kidney of Monday")
    node.GetSegmentation().GetSegment(state.segmentId).SetName("Left kidney")
    settle(host, module)
    assert state.segmentationNode is node and record_of(module) == before
    assert module.ui.segmentationSelector.currentNode() is node
    assert module.ui.segmentBox.currentText == "Left kidney"
    job = segment(host, module)
    assert job.error is None and job.result is node
