"""The embedded Segment Editor: a person's slices are recognized, kept, released; undo; masking; other segments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gui_helpers import (
    SHAPE,
    add_clicks,
    add_volume,
    digests,
    filled_slices,
    load,
    mask_of,
    move_click,
    press_segment,
    record_of,
    segment,
    segmented,
    settle,
    state_of,
    use_fake,
)

pytest_plugins = ["Testing.Host.pytest_plugin"]


@pytest.fixture
def module(host: Any) -> Any:
    """The module with a segmented structure, from clicks on slices 2 and 8, and the editor unfolded."""
    loaded = segmented(host)
    loaded.ui.correctSection.collapsed = False
    return loaded


def paint(host: Any, module: Any, k: int = 3, effect: str = "Paint") -> None:
    """Draw a stroke of the brush in a slice, away from the structure."""
    module.ui.editor.setActiveEffectByName(effect)
    host.slice_view("Red").drag_ras((8.0, 8.0, 3.0 * k), (14.0, 8.0, 3.0 * k))
    module.ui.editor.setActiveEffectByName("")
    settle(host, module)


def add_segment(node: Any, name: str, box: Any, volume: Any) -> str:
    """Add a segment with a box in it."""
    import slicer

    segment_id = node.GetSegmentation().AddEmptySegment(name, name)
    array = np.zeros(SHAPE, np.uint8)
    array[box] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(array, node, segment_id, volume)
    return segment_id


def test_a_painted_slice_is_recognized_shown_and_survives_updates(host: Any, module: Any) -> None:
    paint(host, module)
    assert record_of(module).owned == {3}
    assert module.ui.lockedLabel.text.endswith("kept: 3.")
    painted = mask_of(module)[3].copy()
    move_click(state_of(module).centerlineNodes[0], 0, (5.0, 0.0, 0.0))
    settle(host, module)
    assert np.array_equal(mask_of(module)[3], painted)
    assert mask_of(module)[2, 20, 33]
    segment(host, module)
    assert np.array_equal(mask_of(module)[3], painted)
    assert "kept" in module.ui.statusLabel.text


def test_released_slices_are_the_models_again(host: Any, module: Any) -> None:
    paint(host, module)
    host.slice_view("Red").jump_to((24.0, 20.0, 9.0))
    module.ui.releaseSliceButton.click()
    assert not record_of(module).owned
    segment(host, module)
    assert not mask_of(module)[3, 8].any() and mask_of(module)[3, 20, 24]


def test_the_slice_of_the_view_that_is_shown_and_lies_nearest_is_released(host: Any, module: Any) -> None:
    import slicer

    paint(host, module)
    host.slice_view("Red").jump_to((24.0, 20.0, 21.0))
    paint(host, module, 7)
    red, yellow = (slicer.app.layoutManager().sliceWidget(name).mrmlSliceNode() for name in ("Red", "Yellow"))
    red.SetSliceOffset(9.0)
    red.SetMappedInLayout(0)  # as in a layout that has the other view alone
    yellow.SetOrientation("Axial")
    yellow.SetSliceOffset(21.0)
    yellow.RotateToVolumePlane(state_of(module).volumeNode)
    yellow.SetOrientation("Reformat")
    module.ui.releaseSliceButton.click()
    assert record_of(module).owned == {3}
    yellow.SetOrientation("Sagittal")
    module.widget.panel.showRecord()
    assert module.ui.releaseButton.enabled and not module.ui.releaseSliceButton.enabled
    red.SetMappedInLayout(1)  # views outlive a scene


def test_undo_of_the_run_after_a_release_makes_the_slices_a_persons_again(host: Any, module: Any) -> None:
    module.ui.liveUpdateCheck.checked = False
    paint(host, module)
    drawn = mask_of(module)[3]
    module.ui.releaseButton.click()
    segment(host, module)
    assert not np.array_equal(mask_of(module)[3], drawn) and not record_of(module).owned
    module.ui.undoButton.click()
    settle(host, module)
    assert np.array_equal(mask_of(module)[3], drawn) and record_of(module).owned == {3}
    segment(host, module)
    assert np.array_equal(mask_of(module)[3], drawn)


def test_a_stroke_that_was_released_and_undone_leaves_the_slice_the_models(host: Any, module: Any) -> None:
    before = mask_of(module)
    paint(host, module)
    module.ui.releaseButton.click()
    settle(host, module)
    module.ui.undoButton.click()
    settle(host, module)
    assert np.array_equal(mask_of(module), before) and not record_of(module).owned
    move_click(state_of(module).centerlineNodes[0], 0, (5.0, 0.0, 0.0))
    settle(host, module)
    assert mask_of(module)[3, 20, 33] and "edited by you" not in module.ui.statusLabel.text


def test_another_axis_and_back_leaves_the_one_edited_slice_alone_a_persons(host: Any, module: Any) -> None:
    state = state_of(module)
    module.ui.liveUpdateCheck.checked = False
    paint(host, module)
    painted = mask_of(module)
    state.axis = "coronal"
    segment(host, module)
    assert np.array_equal(mask_of(module)[3], painted[3]) and "another axis (axial)" in module.ui.statusLabel.text
    state.axis = "axial"
    segment(host, module)
    assert np.array_equal(mask_of(module), painted) and record_of(module).owned == {3}


def test_what_is_painted_along_another_axis_is_a_persons_back_on_the_first(host: Any, module: Any) -> None:
    state = state_of(module)
    module.ui.liveUpdateCheck.checked = False
    paint(host, module)
    state.axis = "coronal"
    segment(host, module)
    paint(host, module, 10)
    for axis in ("coronal", "axial"):
        state.axis = axis
        segment(host, module)
    assert record_of(module).owned == {3, 10}


def test_a_stroke_undone_after_another_axis_was_tried_leaves_no_slice_a_persons(host: Any, module: Any) -> None:
    state, before = state_of(module), mask_of(module)
    module.ui.liveUpdateCheck.checked = False
    paint(host, module)
    state.axis = "coronal"
    segment(host, module)
    assert len(record_of(module).owned) > 1, "the slice that was edited crosses all of them"
    module.ui.undoButton.click()
    settle(host, module)
    assert np.array_equal(mask_of(module), before)
    assert (record_of(module).owned, record_of(module).axis) == (set(), "axial")
    segment(host, module)
    assert module.widget.panel.run.job.writer.changed and not record_of(module).owned


def test_undo_of_a_stroke_gives_the_slice_back(host: Any, module: Any) -> None:
    before = mask_of(module)
    paint(host, module)
    module.ui.editor.undo()
    settle(host, module)
    assert np.array_equal(mask_of(module), before)
    assert not record_of(module).owned


def test_stroke_update_undo_undo_leads_back_step_by_step(host: Any, module: Any) -> None:
    node = state_of(module).centerlineNodes[0]
    first = digests(mask_of(module))
    paint(host, module)
    second = digests(mask_of(module))
    move_click(node, 1, (0.0, 6.0, 0.0))
    settle(host, module)
    assert digests(mask_of(module)) not in (first, second)
    module.ui.undoButton.click()
    settle(host, module)
    assert digests(mask_of(module)) == second
    assert record_of(module).owned == {3}
    assert node.GetNthControlPointPositionWorld(1)[1] == pytest.approx(20.0)
    module.ui.undoButton.click()
    settle(host, module)
    assert digests(mask_of(module)) == first
    assert not record_of(module).owned


@pytest.mark.parametrize("since", ["nothing", "release", "run"])
def test_undo_of_the_last_of_two_strokes_gives_its_slice_alone_back(host: Any, module: Any, since: str) -> None:
    before, node = mask_of(module), state_of(module).centerlineNodes[0]
    for k in (3, 7):
        paint(host, module, k)
    if since == "release":
        module.ui.releaseButton.click()
    elif since == "run":
        move_click(node, 0, (5.0, 0.0, 0.0))
        settle(host, module)
        module.ui.undoButton.click()
        settle(host, module)
    module.ui.undoButton.click()
    settle(host, module)
    assert np.array_equal(mask_of(module)[7], before[7])
    assert record_of(module).owned == (set() if since == "release" else {3})
    move_click(node, 1, (6.0, 0.0, 0.0))
    settle(host, module)
    assert mask_of(module)[7, 20, 33]


def test_what_was_painted_before_the_first_run_is_undone_and_redone_with_it(host: Any) -> None:
    import slicer

    volume = add_volume(host)
    module = load(host)
    add_clicks((2, 8))
    state = state_of(module)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    state.segmentationNode, state.segmentId = node, node.GetSegmentation().AddEmptySegment("", "Kidney")
    module.widget.panel.refresh()
    module.ui.correctSection.collapsed = False
    states: list[Any] = []
    for k in (5, 6):
        paint(host, module, k)
        states.append((digests(mask_of(module)), set(), ""))
    segment(host, module)
    states.append((digests(mask_of(module)), {5, 6}, "fake"))
    steps = [(module.ui.editor.undo, n) for n in (1, 0)] + [(module.ui.editor.redo, n) for n in (1, 2)]
    for step, n in steps:
        step()
        settle(host, module)
        assert digests(mask_of(module)) == states[n][0]
    assert (record_of(module).owned, record_of(module).model) == states[2][1:]
    move_click(state.centerlineNodes[0], 1, (5.0, 0.0, 0.0))
    settle(host, module)
    assert mask_of(module)[8, 20, 33] and mask_of(module)[5, 8, 10]


def test_a_slice_erased_by_hand_stays_empty(host: Any, module: Any) -> None:
    module.ui.editor.mrmlSegmentEditorNode().SetAttribute("BrushAbsoluteDiameter", "30")
    module.ui.editor.setActiveEffectByName("Erase")
    host.slice_view("Red").drag_ras((20.0, 20.0, 9.0), (28.0, 20.0, 9.0))
    settle(host, module)
    assert not mask_of(module)[3].any()
    segment(host, module)
    assert not mask_of(module)[3].any()


def test_other_segments_even_overlapping_ones_are_not_touched(host: Any, module: Any) -> None:
    state = state_of(module)
    node = state.segmentationNode
    other = add_segment(node, "Other", (slice(0, 12), slice(10, 30), slice(20, 40)), state.volumeNode)
    third = add_segment(node, "Third", (slice(2, 4), slice(15, 22), slice(22, 30)), state.volumeNode)
    before = [digests(mask_of(module, name)) for name in (other, third)]
    move_click(state.centerlineNodes[0], 0, (6.0, 0.0, 0.0))
    settle(host, module)
    assert mask_of(module)[2, 20, 34]
    assert [digests(mask_of(module, name)) for name in (other, third)] == before


def test_masking_to_another_segment_is_honored(host: Any, module: Any) -> None:
    state = state_of(module)
    node = state.segmentationNode
    inside = add_segment(node, "Inside", (slice(0, 12), slice(0, 40), slice(0, 30)), state.volumeNode)
    editor = module.ui.editor.mrmlSegmentEditorNode()
    editor.SetMaskMode(node.EditAllowedInsideSingleSegment)
    editor.SetMaskSegmentID(inside)
    state.segmentId = ""
    segment(host, module)
    mask = mask_of(module)
    assert mask[2, 20, 27] and filled_slices(mask) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    move_click(state.centerlineNodes[0], 0, (5.0, 0.0, 0.0))
    settle(host, module)
    mask = mask_of(module)
    assert mask[2, 20, 29] and not mask[2, 20, 30:].any()
    assert not record_of(module).owned


def test_overwriting_other_segments_is_honored_and_undone_when_cancelled(host: Any, tmp_path: Path) -> None:
    add_volume(host)
    loaded = load(host, f"fake?gate={tmp_path / 'gate'}")
    add_clicks((2, 8))
    loaded.widget.panel.refresh()
    state = state_of(loaded)
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(state.volumeNode)
    other = add_segment(node, "Other", (slice(0, 12), slice(15, 25), slice(20, 30)), state.volumeNode)
    state.segmentationNode = node
    from SPDSegmentLib.gui.scene.editor_nodes import editorNode

    editorNode().SetOverwriteMode(editorNode().OverwriteAllSegments)
    before = digests(mask_of(loaded, other))
    job = press_segment(loaded)
    host.wait_until(lambda: job.progress is not None)
    host.process_events(300)
    loaded.ui.segmentButton.click()
    settle(host, loaded)
    assert job.finished and digests(mask_of(loaded, other)) == before
    (tmp_path / "gate").touch()
    segment(host, loaded)
    assert not (mask_of(loaded, other) & mask_of(loaded)).any()
    assert digests(mask_of(loaded, other)) != before


def test_the_same_clicks_fill_a_second_segment_too(host: Any, module: Any) -> None:
    first = mask_of(module)
    state_of(module).segmentId = ""
    segment(host, module)
    assert np.array_equal(mask_of(module), first)


def test_two_segments_of_one_segmentation_are_worked_on_in_turn(host: Any, module: Any) -> None:
    state = state_of(module)
    first_id, first = state.segmentId, digests(mask_of(module))
    clicks = state.centerlineNodes[0]
    state.segmentId = ""
    state.centerlineNodes = [add_clicks((5,), "Second", at=(12.0, 12.0))]
    segment(host, module)
    assert state.segmentId != first_id and filled_slices(mask_of(module)) == [3, 4, 5, 6, 7]
    assert digests(mask_of(module, first_id)) == first
    state.segmentId = first_id
    state.centerlineNodes = [clicks]
    segment(host, module)
    assert digests(mask_of(module)) == first


def test_a_stroke_is_recognized_while_another_segment_is_computed(host: Any, module: Any, tmp_path: Path) -> None:
    state, panel = state_of(module), module.widget.panel
    former, clicks = state.segmentId, state.centerlineNodes
    use_fake(module, f"fake?gate={tmp_path / 'gate'}")
    state.segmentId, state.centerlineNodes = "", [add_clicks((5,), "Second", at=(12.0, 30.0))]
    job = press_segment(module)
    host.wait_until(lambda: job.writer.changed)
    state.segmentId, state.centerlineNodes = former, clicks
    panel.refresh()
    module.ui.editor.setActiveEffectByName("Paint")
    host.slice_view("Red").drag_ras((8.0, 8.0, 9.0), (14.0, 8.0, 9.0))
    module.ui.editor.setActiveEffectByName("")
    host.wait_until(lambda: record_of(module).owned == {3} and module.ui.releaseButton.enabled, 5000)
    assert not job.finished
    (tmp_path / "gate").touch()
    settle(host, module)


def test_nothing_is_released_while_the_segment_is_computed(host: Any, module: Any, tmp_path: Path) -> None:
    paint(host, module)
    use_fake(module, f"fake?gate={tmp_path / 'gate'}")
    move_click(state_of(module).centerlineNodes[0], 1, (5.0, 0.0, 0.0))
    run = module.widget.panel.run
    host.wait_until(lambda: run.isRunning, 5000)
    assert not module.ui.releaseButton.enabled and not module.ui.releaseSliceButton.enabled
    (tmp_path / "gate").touch()
    settle(host, module)
    assert module.ui.releaseButton.enabled and record_of(module).owned == {3}


def test_clicks_brought_back_during_a_run_keep_their_fates(host: Any, tmp_path: Path) -> None:
    add_volume(host)
    module = load(host, f"fake?gate={tmp_path / 'gate'}")
    node = add_clicks((2, 8))
    job = press_segment(module)
    host.wait_until(lambda: job.writer.changed)
    module.ui.liveUpdateCheck.checked = False
    panel = module.widget.panel
    before = panel.clicks.snapshot()
    node.RemoveNthControlPoint(0)
    module.logic.segmenter.bringBack(panel.inputs.currentTask(), before)
    assert panel.clicks.snapshot() != before, "MRML gives the click another name"
    (tmp_path / "gate").touch()
    settle(host, module)
    names = {f"{node.GetID()}:{node.GetNthControlPointID(n)}" for n in range(2)}
    assert {fate.click_id for fate in record_of(module).fates} == names


@pytest.mark.parametrize("computed", [(), (2, 3)])
def test_review_draws_edited_slices_beyond_those_computed_so_far(host: Any, module: Any, computed: Any) -> None:
    record, plot = record_of(module), module.ui.qualityPlot
    record.info, record.owned = {t: record.info[t] for t in computed}, {11}
    module.ui.reviewSection.collapsed = False
    module.widget.panel.review.show(record)
    image = plot.pixmap.toImage()
    assert image.pixelColor(round(11.5 / 12 * image.width()) - 8, 40).name() == "#8a8f98"
