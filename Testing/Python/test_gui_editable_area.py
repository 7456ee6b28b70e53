"""Writes that the editor's settings hold back are said as what they are, and only its history tells of an undo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gui_helpers import (
    SHAPE,
    add_clicks,
    add_volume,
    filled_slices,
    load,
    mask_of,
    move_click,
    press_segment,
    record_of,
    segment,
    segmented,
    segmented_behind_gate,
    settle,
    state_of,
)

pytest_plugins = ["Testing.Host.pytest_plugin"]

NOWHERE = (5000.0, 6000.0)


@pytest.fixture
def module(host: Any) -> Any:
    """The module with a segmented structure, from clicks on slices 2 and 8."""
    return segmented(host)


def settings() -> Any:
    from SPDSegmentLib.gui.scene.editor_nodes import editorNode

    return editorNode()


def allow_intensities(low: float, high: float) -> None:
    settings().SourceVolumeIntensityMaskOn()
    settings().SetSourceVolumeIntensityMaskRange(low, high)


def allow_inside_all_segments() -> None:
    settings().SetMaskMode(settings().GetSegmentationNode().EditAllowedInsideAllSegments)


def allow_everywhere() -> None:
    settings().SourceVolumeIntensityMaskOff()
    settings().SetMaskMode(settings().GetSegmentationNode().EditAllowedEverywhere)


def clicks_of(module: Any) -> Any:
    return state_of(module).centerlineNodes[0]


def first_x(module: Any) -> float:
    return float(clicks_of(module).GetNthControlPointPositionWorld(0)[0])


def move_first(host: Any, module: Any, by: float = 5.0) -> None:
    move_click(clicks_of(module), 0, (by, 0.0, 0.0))
    settle(host, module)


def said(module: Any) -> str:
    return str(module.ui.statusLabel.text)


@pytest.mark.parametrize("what", ["intensities", "segments"])
def test_a_change_outside_the_editable_area_is_said_and_the_click_stays(host: Any, module: Any, what: str) -> None:
    before = mask_of(module)
    (allow_intensities(*NOWHERE) if what == "intensities" else allow_inside_all_segments())
    move_first(host, module, 9.0)
    assert module.widget.panel.run.job.error is None
    assert first_x(module) == pytest.approx(33.0)
    assert ("excludes all 5 slices" if what == "intensities" else "cuts 5 slices") in said(module)
    assert ("5000 to 6000" if what == "intensities" else "inside all segments") in said(module)
    assert (mask_of(module) <= before).all() and not record_of(module).owned


def test_the_first_run_into_an_area_that_excludes_it_says_so(host: Any) -> None:
    add_volume(host)
    loaded = load(host)
    add_clicks((4, 6))
    allow_intensities(*NOWHERE)
    job = segment(host, loaded)
    assert (job.error, job.writer.changed) == (None, set())
    assert said(loaded).startswith("The editable area (intensities from 5000 to 6000) excludes all 7 slices: ")


def test_write_anyway_writes_once_and_show_opens_the_settings(host: Any, module: Any) -> None:
    allow_intensities(*NOWHERE)
    move_first(host, module)
    assert not module.ui.showAreaButton.isHidden()
    module.ui.showAreaButton.click()
    assert not module.ui.correctSection.collapsed
    module.ui.writeAnywayButton.click()
    settle(host, module)
    assert mask_of(module)[2, 20, 33] and "editable area" not in said(module)
    assert module.ui.writeAnywayButton.isHidden() and module.ui.showAreaButton.isHidden()
    move_first(host, module, -9.0)
    assert mask_of(module)[2, 20, 33] and "excludes all 5 slices" in said(module)
    assert settings().GetSourceVolumeIntensityMask()


def test_what_was_held_back_is_written_by_the_next_run_once_it_is_allowed(host: Any, module: Any) -> None:
    allow_intensities(*NOWHERE)
    move_first(host, module)
    allow_everywhere()
    segment(host, module)
    assert mask_of(module)[2, 20, 33] and not mask_of(module)[2, 20, 19]


def test_a_slice_that_is_cut_is_counted_as_updated_and_cut(host: Any) -> None:
    array = np.zeros(SHAPE, np.int16)
    array[:, :, :24] = 100
    array[:4] = 100
    host.add_volume(array, (1.0, 1.0, 3.0))
    loaded = load(host)
    add_clicks((4,))
    allow_intensities(50, 150)
    segment(host, loaded)
    assert said(loaded).startswith("5 slices updated")
    assert "cuts 3 slices" in said(loaded)
    mask = mask_of(loaded)
    assert mask[2, 20, 27] and mask[4, 20, 21] and not mask[4, :, 24:].any()


@pytest.mark.parametrize("what", ["intensities", "segments", "nothing"])
def test_masking_holds_on_a_segmentation_of_another_geometry(host: Any, what: str) -> None:
    import slicer

    volume = add_volume(host)
    values = slicer.util.arrayFromVolume(volume)
    coarse = add_volume(host, (6, 20, 24), spacing_mm=(2.0, 2.0, 6.0), name="coarse")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Coarse")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(coarse)
    box = np.zeros((6, 20, 24), np.uint8)
    box[:, :, :12] = 1
    old = node.GetSegmentation().AddEmptySegment("old", "old")
    slicer.util.updateSegmentBinaryLabelmapFromArray(box, node, old, coarse)
    loaded = load(host)
    add_clicks((4, 6))
    state_of(loaded).volumeNode, state_of(loaded).segmentationNode = volume, node
    loaded.widget.panel.refresh()
    if what == "intensities":
        allow_intensities(0, 99)
    elif what == "segments":
        settings().SetMaskMode(node.EditAllowedInsideSingleSegment)
        settings().SetMaskSegmentID(old)
    job = segment(host, loaded)
    assert job.error is None, job.error
    mask, inside = mask_of(loaded), mask_of(loaded, old, volume)
    assert filled_slices(mask) == [2, 3, 4, 5, 6, 7, 8]
    assert (values[mask] <= 99).all() == (what == "intensities")
    assert bool((mask & ~inside).any()) == (what != "segments")
    assert ("editable area" in said(loaded)) == (what != "nothing")


def test_undo_after_a_change_that_was_held_back_brings_back_its_click(host: Any, module: Any) -> None:
    allow_intensities(*NOWHERE)
    move_first(host, module)
    module.ui.undoButton.click()
    settle(host, module)
    assert first_x(module) == pytest.approx(24.0)
    module.ui.editor.redo()
    settle(host, module)
    assert first_x(module) == pytest.approx(29.0)


def test_a_mask_drawn_back_by_hand_to_what_it_was_moves_no_click(host: Any, module: Any) -> None:
    import slicer

    state = state_of(module)
    first = mask_of(module).astype(np.uint8)
    move_first(host, module)
    slicer.util.updateSegmentBinaryLabelmapFromArray(first, state.segmentationNode, state.segmentId, state.volumeNode)
    host.process_events(300)
    settle(host, module)
    assert first_x(module) == pytest.approx(29.0)
    assert record_of(module).owned == {0, 1, 2, 3, 4}


def test_what_is_erased_by_hand_in_the_middle_of_a_run_is_no_undo(host: Any, tmp_path: Path) -> None:
    import slicer

    add_volume(host)
    loaded = load(host, f"fake?gate={tmp_path / 'gate'}")
    node = add_clicks((2, 8))
    job = press_segment(loaded)
    host.wait_until(lambda: job.writer.changed)
    state = state_of(loaded)
    slicer.util.updateSegmentBinaryLabelmapFromArray(
        np.zeros(SHAPE, np.uint8), state.segmentationNode, state.segmentId, state.volumeNode
    )
    erased = set(job.writer.changed)
    (tmp_path / "gate").touch()
    host.wait_until(lambda: job.finished)
    settle(host, loaded)
    assert job.error is None and node.GetNumberOfControlPoints() == 2
    assert erased.isdisjoint(filled_slices(mask_of(loaded)))
    assert filled_slices(mask_of(loaded))


def test_undo_and_segment_in_one_breath_segment_the_clicks_of_before(host: Any, module: Any) -> None:
    first = mask_of(module)
    move_first(host, module)
    module.ui.editor.undo()
    module.ui.segmentButton.click()
    settle(host, module)
    assert first_x(module) == pytest.approx(24.0)
    assert np.array_equal(mask_of(module), first)


def test_a_run_that_is_cancelled_puts_back_what_the_area_would_not_allow(host: Any, tmp_path: Path) -> None:
    loaded, node = segmented_behind_gate(host, tmp_path / "gate")
    first = mask_of(loaded)
    allow_inside_all_segments()
    move_click(node, 0, (5.0, 0.0, 0.0))
    run = loaded.widget.panel.run
    host.wait_until(lambda: run.isRunning and run.job.writer.changed)
    loaded.ui.segmentButton.click()
    settle(host, loaded)
    assert np.array_equal(mask_of(loaded), first)


@pytest.mark.parametrize("agree", [True, False])
def test_a_segmentation_stored_as_a_surface_is_converted_if_one_agrees(host: Any, module: Any, agree: bool) -> None:
    node = state_of(module).segmentationNode
    segmentation = node.GetSegmentation()
    segmentation.CreateRepresentation("Closed surface")
    segmentation.SetSourceRepresentationName("Closed surface")
    state_of(module).segmentId = ""
    module.widget.panel.refresh()
    host.dialogs.answer(agree)
    module.ui.segmentButton.click()
    settle(host, module)
    assert "closed surface" in host.dialogs.texts("confirm")[0]
    assert segmentation.GetNumberOfSegments() == (2 if agree else 1)
    assert ("slices updated" if agree else "Nothing was changed") in said(module)
    assert segmentation.GetSourceRepresentationName() == ("Binary labelmap" if agree else "Closed surface")
    assert not agree or filled_slices(mask_of(module)) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]


def test_the_console_refuses_a_surface_and_leaves_no_empty_segment(host: Any, module: Any) -> None:
    from SPDSegmentLib.errors import BadInput

    state = state_of(module)
    segmentation = state.segmentationNode.GetSegmentation()
    segmentation.CreateRepresentation("Closed surface")
    segmentation.SetSourceRepresentationName("Closed surface")
    with pytest.raises(BadInput, match="stored as closed surface"):
        module.logic.start(state.volumeNode, state.centerlineNodes, "fake", segmentation=state.segmentationNode)
    assert segmentation.GetNumberOfSegments() == 1 and not host.dialogs.messages


def test_a_surface_that_a_clicks_change_meets_asks_nobody(host: Any, module: Any) -> None:
    segmentation = state_of(module).segmentationNode.GetSegmentation()
    segmentation.CreateRepresentation("Closed surface")
    segmentation.SetSourceRepresentationName("Closed surface")
    move_first(host, module)
    assert not host.dialogs.messages
    assert "stored as closed surface" in said(module) and first_x(module) == pytest.approx(29.0)


def test_a_representation_that_cannot_be_converted_is_named(host: Any, module: Any) -> None:
    segmentation = state_of(module).segmentationNode.GetSegmentation()
    segmentation.SetSourceRepresentationName("Planar contour")
    host.dialogs.answer(True)
    module.ui.segmentButton.click()
    settle(host, module)
    assert "Cancelled" not in said(module) and "planar contour" in host.dialogs.texts("confirm")[0]


def test_a_segmentation_that_is_stored_as_a_surface_while_a_run_goes_on_keeps_its_surface(
    host: Any, tmp_path: Path
) -> None:
    module, node = segmented_behind_gate(host, tmp_path / "gate")
    state, run = state_of(module), module.widget.panel.run
    state.segmentationNode.CreateClosedSurfaceRepresentation()
    settle(host, module)
    segmentation = state.segmentationNode.GetSegmentation()
    surface = segmentation.GetSegment(state.segmentId).GetRepresentation("Closed surface")
    move_click(node, 0, (5.0, 0.0, 0.0))
    host.wait_until(lambda: run.isRunning and run.job.writer.changed, 5000)
    segmentation.SetSourceRepresentationName("Closed surface")
    time = surface.GetMTime()
    (tmp_path / "gate").touch()
    settle(host, module)
    host.wait_until(lambda: module.logic.segmenter.surfaces.isQuiet)
    assert "no longer stored as a binary labelmap" in said(module)
    assert segmentation.GetSegment(state.segmentId).GetRepresentation("Closed surface").GetMTime() == time
