"""What a person has chosen stays chosen, and lists show the scene as it is now."""

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
    segment,
    segmented,
    segmented_behind_gate,
    settle,
    state_of,
    use_fake,
)

pytest_plugins = ["Testing.Host.pytest_plugin"]


@pytest.fixture
def module(host: Any) -> Any:
    """The module with a segmented structure, and Tumor, an empty segment, selected in the unfolded editor."""
    loaded = segmented(host)
    loaded.ui.correctSection.collapsed = False
    loaded.ui.editor.setCurrentSegmentID(add_tumor(loaded))
    settle(host, loaded)
    return loaded


def add_tumor(module: Any) -> str:
    return str(state_of(module).segmentationNode.GetSegmentation().AddEmptySegment("tumor", "Tumor"))


def paint(host: Any, module: Any) -> None:
    module.ui.editor.setActiveEffectByName("Paint")
    host.slice_view("Red").drag_ras((8.0, 8.0, 9.0), (14.0, 8.0, 9.0))
    module.ui.editor.setActiveEffectByName("")
    settle(host, module)


def names_in(box: Any) -> list[str]:
    return [box.itemText(n) for n in range(box.count)]


def test_strokes_go_into_the_selected_segment_one_after_the_other(host: Any, module: Any) -> None:
    kidney = mask_of(module)
    paint(host, module)
    first = mask_of(module, "tumor").sum()
    host.slice_view("Red").scroll(1)
    paint(host, module)
    assert module.ui.editor.currentSegmentID() == "tumor"
    assert first and mask_of(module, "tumor").sum() >= first
    assert np.array_equal(mask_of(module), kidney)


@pytest.mark.parametrize("how", ["a new run", "a live update", "a refresh", "another module and back"])
def test_the_selected_segment_stays_selected(host: Any, module: Any, how: str) -> None:
    if how == "a new run":
        segment(host, module)
    elif how == "a live update":
        move_click(state_of(module).centerlineNodes[0], 0, (5.0, 0.0, 0.0))
    elif how == "a refresh":
        module.widget.panel.refresh()
    else:
        module.widget.exit()
        module.widget.enter()
    settle(host, module)
    assert module.ui.editor.currentSegmentID() == "tumor"
    assert module.ui.segmentBox.currentText == "Kidney"


def test_the_worker_is_warm_when_the_module_is_entered_with_a_model(host: Any, module: Any) -> None:
    client = module.logic.workerHost.client
    module.logic.workerHost.restart()
    assert not client.running
    module.widget.exit()
    module.widget.enter()
    assert not client.running, "a command of one's own may ask for a password; the tests' worker is such a one"
    module.logic.workerHost.isRemote = False
    module.widget.enter()
    assert client.running
    settle(host, module)
    module.logic.workerHost.restart()


def test_a_run_in_the_middle_of_a_stroke_leaves_the_selection_alone(host: Any, tmp_path: Path) -> None:
    loaded, node = segmented_behind_gate(host, tmp_path / "gate")
    loaded.ui.editor.setCurrentSegmentID(add_tumor(loaded))
    move_click(node, 0, (5.0, 0.0, 0.0))
    run = loaded.widget.panel.run
    host.wait_until(lambda: run.isRunning and run.job.writer.changed)
    assert loaded.ui.editor.currentSegmentID() == "tumor"
    loaded.ui.editor.setActiveEffectByName("Paint")
    host.slice_view("Red").drag_ras((8.0, 8.0, 9.0), (14.0, 8.0, 9.0))
    loaded.ui.editor.setActiveEffectByName("")
    assert run.isRunning
    (tmp_path / "gate").touch()
    settle(host, loaded)
    assert mask_of(loaded, "tumor").any() and mask_of(loaded)[2, 20, 33]


def test_another_source_volume_in_the_editor_stays(host: Any, module: Any) -> None:
    other = add_volume(host, name="Other")
    module.ui.editor.setSourceVolumeNode(other)
    move_click(state_of(module).centerlineNodes[0], 0, (5.0, 0.0, 0.0))
    settle(host, module)
    assert module.ui.editor.sourceVolumeNode() is other


def test_the_editor_follows_the_panel_to_another_segment(host: Any, module: Any) -> None:
    box = module.ui.segmentBox
    box.currentIndex = box.findData("tumor")
    box.activated.emit(box.currentIndex)
    module.ui.editor.setCurrentSegmentID(state_of(module).segmentationNode.GetSegmentation().GetNthSegmentID(0))
    box.currentIndex = 1
    box.activated.emit(1)
    box.currentIndex = box.findData("tumor")
    box.activated.emit(box.currentIndex)
    assert module.ui.editor.currentSegmentID() == "tumor"


def test_the_list_of_segments_follows_names_additions_and_removals(host: Any, module: Any) -> None:
    segmentation = state_of(module).segmentationNode.GetSegmentation()
    assert names_in(module.ui.segmentBox) == ["New segment", "Kidney", "Tumor"]
    segmentation.GetNthSegment(0).SetName("Right kidney")
    segmentation.AddEmptySegment("cyst", "Cyst")
    segmentation.RemoveSegment("tumor")
    settle(host, module)
    assert names_in(module.ui.segmentBox) == ["New segment", "Right kidney", "Cyst"]
    assert module.ui.segmentBox.currentText == "Right kidney"


def test_the_panel_turns_to_a_new_segment_when_the_chosen_one_is_removed(host: Any, module: Any) -> None:
    state = state_of(module)
    state.segmentationNode.GetSegmentation().RemoveSegment(state.segmentId)
    settle(host, module)
    assert (state.segmentId, module.ui.segmentBox.currentText) == ("", "New segment")
    assert module.ui.undoButton.enabled, "the editor's history may bring it back"
    assert not module.ui.exportButton.enabled


def test_the_list_of_branches_follows_names_additions_and_removals(host: Any, module: Any) -> None:
    import slicer

    branch, other = add_clicks((5,), "Branch"), add_clicks((6,), "Other")
    settle(host, module)
    branch.SetName("Left branch")
    slicer.mrmlScene.RemoveNode(other)
    settle(host, module)
    listed = module.ui.branchesList
    assert [listed.item(n).text() for n in range(listed.count)] == ["Left branch"]


def test_nothing_else_is_chosen_for_a_result_whose_clicks_or_volume_are_removed(host: Any, module: Any) -> None:
    import slicer

    state, before = state_of(module), mask_of(module)
    other, volume = add_clicks((5,), "Of another structure", at=(10.0, 10.0)), add_volume(host, show=False)
    slicer.mrmlScene.RemoveNode(state.centerlineNodes[0])
    settle(host, module)
    other.SetNthControlPointPositionWorld(0, 12.0, 10.0, 15.0)
    settle(host, module)
    assert not state.centerlineNodes and np.array_equal(mask_of(module), before)
    state.centerlineNodes = [other]
    removed = state.volumeNode
    slicer.mrmlScene.RemoveNode(removed)
    settle(host, module)
    other.SetNthControlPointPositionWorld(0, 14.0, 10.0, 15.0)
    settle(host, module)
    assert state.volumeNode is None and np.array_equal(mask_of(module, volume=volume), before)
    assert module.widget.panel.inputs.whyNot() == "Choose a volume." and not module.ui.segmentButton.enabled


def test_a_job_of_the_console_leaves_the_panels_editor_alone(host: Any, module: Any) -> None:
    import slicer

    state, editor = state_of(module), module.ui.editor
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Console")
    job = module.logic.start(state.volumeNode, state.centerlineNodes, "fake", segmentation=node)
    host.wait_until(lambda: job.finished, 240_000)
    settle(host, module)
    assert job.error is None, job.error
    assert (editor.segmentationNode(), editor.currentSegmentID()) == (state.segmentationNode, "tumor")


def test_without_a_shown_editor_a_run_writes_all_the_same(host: Any) -> None:
    add_volume(host)
    loaded = load(host)
    add_clicks((4, 6))
    job = press_segment(loaded)
    host.wait_until(lambda: job.finished)
    assert mask_of(loaded).shape == SHAPE and mask_of(loaded).any()


def test_a_volume_that_does_not_fit_the_model_is_said_before_the_run(host: Any) -> None:
    import slicer

    volume = add_volume(host)
    loaded = load(host)
    state, status = state_of(loaded), loaded.ui.statusLabel
    assert "kidney-mr" not in status.text
    state.model = "kidney-mr"
    loaded.widget.panel.refresh()
    assert "the model kidney-mr was trained on" in status.text and "Place clicks" in status.text
    array = np.full(SHAPE, -1000, dtype=np.int16)
    array[:, 5:15, 5:15] = 40
    slicer.util.updateVolumeFromArray(volume, array)
    loaded.widget.panel.refresh()
    assert "looks like CT" in status.text


@pytest.mark.parametrize("isUnticked", [False, True])
def test_lists_come_back_with_their_segment_in_their_order_and_with_a_branch_left_out(
    host: Any, tmp_path: Path, isUnticked: bool
) -> None:
    # given: a curve, which comes first by its name, is the branch
    add_volume(host)
    module = load(host)
    main, branch = add_clicks((4, 6), "Main"), add_clicks((3, 5), "Branch", kind="Curve", at=(14.0, 14.0))
    state_of(module).centerlineNodes = [main, branch]
    module.widget.panel.refresh()
    for index in range(2):
        branch.SetNthControlPointSelected(index, not isUnticked)
    segment(host, module)
    first = state_of(module).segmentId
    module.ui.segmentBox.activated.emit(0)
    module.ui.centerlineSelector.setCurrentNode(add_clicks((8,), "Other"))
    segment(host, module)

    # when
    host.save_scene(tmp_path / "case.mrb")
    host.open_scene(tmp_path / "case.mrb")
    use_fake(module)
    module.ui.segmentBox.activated.emit(module.ui.segmentBox.findData(first))
    settle(host, module)

    # then
    assert [node.GetName() for node in state_of(module).centerlineNodes] == ["Main", "Branch"]


@pytest.mark.parametrize("slices", [(3, 5), ()])
def test_a_ticked_branch_starts_nothing_where_a_run_waits_for_segment(host: Any, slices: tuple[int, ...]) -> None:
    import qt

    module = segmented(host)
    first, before = state_of(module).segmentId, mask_of(module)
    node = state_of(module).segmentationNode
    module.ui.centerlineSelector.setCurrentNode(add_clicks(slices, "Other clicks", at=(12.0, 30.0)))
    settle(host, module)
    module.ui.branchesList.item(0).setCheckState(qt.Qt.Checked)
    settle(host, module)
    assert len(state_of(module).centerlineNodes) == 2
    assert node.GetSegmentation().GetNumberOfSegments() == 1 and np.array_equal(mask_of(module, first), before)


def test_after_undo_of_the_first_run_of_another_segment_that_is_chosen_with_its_own_list(host: Any) -> None:
    # given
    add_volume(host)
    module, _ = load(host), add_clicks((4, 6))
    segment(host, module)
    first, box = state_of(module).segmentId, module.ui.segmentBox
    clicks = add_clicks((), name="B clicks")
    module.ui.centerlineSelector.setCurrentNode(clicks)
    settle(host, module)
    clicks.AddControlPointWorld(10.0, 30.0, 15.0)
    settle(host, module)
    second = state_of(module).segmentId
    assert second not in ("", first) and mask_of(module, second).any()

    def choose(segment_id: str) -> None:
        box.currentIndex = box.findData(segment_id)
        box.activated.emit(box.currentIndex)
        host.process_events(250)
        settle(host, module)

    # when
    choose(first)
    module.ui.undoButton.click()
    settle(host, module)
    choose(second)

    # then
    assert not mask_of(module, second).any()
    assert [node.GetName() for node in state_of(module).centerlineNodes] == ["B clicks"]


def test_a_volume_without_values_is_said_and_another_can_be_chosen(host: Any) -> None:
    import slicer
    import vtk

    volume, module = add_volume(host), load(host)
    add_clicks((2,))
    hollow = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Hollow")
    image = vtk.vtkImageData()
    image.SetDimensions(4, 4, 4)
    hollow.SetAndObserveImageData(image)
    state_of(module).volumeNode = hollow
    module.widget.panel.refresh()
    assert "The volume has no voxels" in module.ui.statusLabel.text and not module.ui.segmentButton.enabled
    state_of(module).volumeNode = volume
    module.widget.panel.refresh()
    assert module.ui.segmentButton.enabled


def turn_away_and_move_all(host: Any, module: Any, at: str) -> None:
    """Without live update move every click of the segment, with it, no segment, or another one chosen; turn back."""
    state, choose = state_of(module), module.widget.panel.inputs._onChosen
    kidney, clicks, other = state.segmentId, state.centerlineNodes[0], add_clicks((5, 7), "Clicks 2", at=(12.0, 30.0))
    state.liveUpdate = False
    choose("segmentId", "")
    if at != "no segment":
        module.ui.centerlineSelector.setCurrentNode(other)
        segment(host, module)
    if at == "it":
        choose("segmentId", kidney)
    for index in range(2):
        move_click(clicks, index, (3.0, 0.0, 0.0))
    settle(host, module)
    choose("segmentId", "")
    choose("segmentId", kidney)
    settle(host, module)


@pytest.mark.parametrize("at", ["it", "another segment"])
def test_a_segments_own_list_is_not_asked_about_where_all_of_its_clicks_were_moved(
    host: Any, module: Any, at: str
) -> None:
    turn_away_and_move_all(host, module, at)
    assert "not those of" not in module.ui.statusLabel.text
    segment(host, module)
    assert mask_of(module)[2, 20, 30] and module.ui.segmentBox.currentText == "Kidney"
    assert not host.dialogs.messages


def test_a_list_that_changed_while_no_segment_was_chosen_is_asked_about(host: Any, module: Any) -> None:
    turn_away_and_move_all(host, module, "no segment")
    assert "not those of Kidney" in module.ui.statusLabel.text


def test_a_list_whose_clicks_were_all_moved_is_still_that_of_its_segment_in_the_scene_opened_again(
    host: Any, module: Any, tmp_path: Path
) -> None:
    state_of(module).liveUpdate = False
    for index in range(2):
        move_click(state_of(module).centerlineNodes[0], index, (3.0, 0.0, 0.0))
    settle(host, module)
    host.save_scene(tmp_path / "case.mrb")
    host.open_scene(tmp_path / "case.mrb")
    use_fake(module)
    settle(host, module)
    assert "not those of" not in module.ui.statusLabel.text and module.ui.segmentButton.enabled


def test_undo_brings_cleared_clicks_back_after_another_list_was_chosen_meanwhile(host: Any, module: Any) -> None:
    clicks, before = state_of(module).centerlineNodes[0], mask_of(module)
    module.ui.clearButton.click()
    for node in (add_clicks((5, 7), "Clicks 2", at=(12.0, 30.0)), clicks):
        module.ui.centerlineSelector.setCurrentNode(node)
        settle(host, module)
    module.widget.panel.inputs._onChosen("segmentId", module.ui.segmentBox.itemData(1))
    module.ui.undoButton.click()
    settle(host, module)
    assert clicks.GetNumberOfDefinedControlPoints() == 2 and np.array_equal(mask_of(module), before)
