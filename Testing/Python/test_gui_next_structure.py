"""The next structure, the next volume: no result is replaced unasked, and messages speak of what is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gui_helpers import (
    SPACING_MM,
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


class Result:
    """A result that stays as it is, whatever is chosen."""

    def __init__(self, module: Any) -> None:
        self.module, state = module, state_of(module)
        self.node, self.segment_id, self.volume = state.segmentationNode, state.segmentId, state.volumeNode
        self.mask = self.now

    @property
    def now(self) -> np.ndarray:
        import slicer

        return slicer.util.arrayFromSegmentBinaryLabelmap(self.node, self.segment_id, self.volume) != 0

    @property
    def is_kept(self) -> bool:
        return np.array_equal(self.now, self.mask)


@pytest.fixture
def module(host: Any) -> Any:
    """The module with a segmented structure, from clicks on slices 2 and 8."""
    return segmented(host)


def choose(box: Any, data: str) -> None:
    """Choose in a box as a person does."""
    box.currentIndex = box.findData(data)
    box.activated.emit(box.currentIndex)


def add_model(module: Any, name: str, structure: str) -> None:
    from SPDSegmentLib.gui.run.task import ModelEntry

    module.widget.panel.inputs.extraModels.append(
        ModelEntry("fake?radius=8", name, structure, title=name, axis="axial")
    )
    module.widget.panel.refresh()


def test_the_first_click_of_a_new_list_makes_the_next_segment(host: Any, module: Any) -> None:
    kidney = Result(module)
    module.ui.centerlineSelector.addNode()
    settle(host, module)
    assert module.ui.segmentBox.currentText == "New segment"
    state_of(module).centerlineNodes[0].AddControlPointWorld(12.0, 30.0, 24.0)
    settle(host, module)
    assert kidney.is_kept and state_of(module).segmentationNode is kidney.node
    assert state_of(module).segmentId != kidney.segment_id and mask_of(module)[8, 30, 12]


@pytest.mark.parametrize("with_live_update", [True, False])
def test_another_volume_and_its_clicks_leave_the_result_alone(host: Any, module: Any, with_live_update: bool) -> None:
    first, second = Result(module), add_volume(host, name="Second patient")
    module.ui.volumeSelector.setCurrentNode(second)
    if with_live_update:
        module.ui.centerlineSelector.addNode()
        state_of(module).centerlineNodes[0].AddControlPointWorld(12.0, 30.0, 24.0)
    else:
        module.ui.centerlineSelector.setCurrentNode(add_clicks((8,), "Clicks 2", at=(12.0, 30.0)))
        settle(host, module)
        assert "another volume" in module.ui.statusLabel.text
        segment(host, module)
    settle(host, module)
    assert first.is_kept and state_of(module).segmentationNode is not first.node
    assert mask_of(module)[8, 30, 12]


def test_a_segment_is_chosen_with_its_clicks_and_model(host: Any, module: Any) -> None:
    kidney, clicks = Result(module), state_of(module).centerlineNodes
    choose(module.ui.segmentBox, "")
    other = add_clicks((5, 7), "Clicks 2", at=(12.0, 30.0))
    module.ui.centerlineSelector.setCurrentNode(other)
    add_model(module, "wide", "Kidney")
    choose(module.ui.modelBox, "wide")
    segment(host, module)
    choose(module.ui.segmentBox, kidney.segment_id)
    settle(host, module)
    assert (state_of(module).centerlineNodes, state_of(module).model) == (clicks, "fake")
    move_click(other, 0, (2.0, 0.0, 0.0))
    settle(host, module)
    assert kidney.is_kept
    move_click(clicks[0], 0, (2.0, 0.0, 0.0))
    settle(host, module)
    assert not kidney.is_kept


def test_a_list_that_was_used_again_for_another_segment_waits_for_segment(host: Any, module: Any) -> None:
    kidney, clicks = Result(module), state_of(module).centerlineNodes[0]
    choose(module.ui.segmentBox, "")
    module.ui.clearButton.click()
    clicks.AddControlPointWorld(12.0, 30.0, 15.0)
    segment(host, module)
    choose(module.ui.segmentBox, kidney.segment_id)
    settle(host, module)
    clicks.AddControlPointWorld(12.0, 30.0, 24.0)
    settle(host, module)
    assert kidney.is_kept and "not those of Kidney" in module.ui.statusLabel.text
    host.dialogs.answer(False)
    segment(host, module)
    assert kidney.is_kept and module.ui.segmentBox.currentText == "Kidney 3"
    choose(module.ui.segmentBox, kidney.segment_id)
    host.dialogs.answer(True)
    segment(host, module)
    assert not kidney.is_kept


def test_a_list_that_was_cleared_stays_that_of_its_segment(host: Any, module: Any) -> None:
    kidney, clicks = Result(module), state_of(module).centerlineNodes[0]
    module.ui.clearButton.click()
    settle(host, module)
    assert module.ui.statusLabel.text == "Click along the structure in the slice views."
    clicks.AddControlPointWorld(24.0, 20.0, 15.0)
    settle(host, module)
    assert not kidney.is_kept and filled_slices(mask_of(module)) == [3, 4, 5, 6, 7]


def test_another_model_waits_for_segment(host: Any, module: Any) -> None:
    kidney = Result(module)
    add_model(module, "wide", "Kidney")
    choose(module.ui.modelBox, "wide")
    move_click(state_of(module).centerlineNodes[0], 0, (2.0, 0.0, 0.0))
    settle(host, module)
    assert kidney.is_kept and "press Segment" in module.ui.statusLabel.text
    segment(host, module)
    assert not kidney.is_kept and record_of(module).model == "wide"


@pytest.mark.parametrize("other", ["axis", "voxels", "place"])
def test_another_axis_or_frame_waits_for_segment(host: Any, module: Any, other: str) -> None:
    import slicer

    kidney, volume = Result(module), state_of(module).volumeNode
    if other == "axis":
        choose(module.ui.axisBox, "coronal")
    elif other == "place":
        kidney.volume = add_volume(host, name="Former place")
        volume.SetOrigin(0.0, 0.0, 6.0)
    else:
        slicer.util.updateVolumeFromArray(volume, slicer.util.arrayFromVolume(volume) + 7)
    move_click(state_of(module).centerlineNodes[0], 0, (2.0, 0.0, 0.0))
    settle(host, module)
    assert kidney.is_kept and "press Segment" in module.ui.statusLabel.text
    segment(host, module)
    assert not kidney.is_kept and "slices updated" in module.ui.statusLabel.text
    changed = kidney.now
    move_click(state_of(module).centerlineNodes[0], 0, (2.0, 0.0, 0.0))
    settle(host, module)
    assert not np.array_equal(kidney.now, changed), "the result is now of what is chosen"


def test_a_model_of_another_structure_gets_a_segment_of_its_own(host: Any, module: Any) -> None:
    kidney = Result(module)
    add_model(module, "spleen", "Spleen")
    choose(module.ui.modelBox, "spleen")
    assert "new segment" in module.ui.statusLabel.text
    segment(host, module)
    assert kidney.is_kept and module.ui.segmentBox.currentText == "Spleen"
    assert "Kidney stays as it is" in module.ui.statusLabel.text


def test_branches_are_named_and_stay_with_their_structure(host: Any, module: Any) -> None:
    state = state_of(module)
    state.centerlineNodes = [*state.centerlineNodes, add_clicks((9,), "Left branch", at=(30.0, 10.0))]
    module.widget.panel.refresh()
    assert "Left branch" in module.ui.optionsSection.text
    module.ui.centerlineSelector.addNode()
    assert len(state.centerlineNodes) == 1 and "branch" not in module.ui.optionsSection.text


def test_a_branch_is_followed_when_it_is_ticked_or_unticked_and_undo_takes_both_back(host: Any, module: Any) -> None:
    import qt

    # given
    def tick(state: Any) -> None:
        listed = module.ui.branchesList
        (item,) = (listed.item(n) for n in range(listed.count) if listed.item(n).text() == "Branch")
        item.setCheckState(state)
        settle(host, module)

    clicks = state_of(module).centerlineNodes[0]
    add_clicks((5,), "Branch", at=(30.0, 25.0))
    move_click(clicks, 0, (2.0, 0.0, 0.0))
    settle(host, module)

    # when, then
    tick(qt.Qt.Checked)
    assert mask_of(module)[5, 25, 30]
    tick(qt.Qt.Unchecked)
    assert not mask_of(module)[5, 25, 30]
    counts = []
    for _ in range(3):
        module.ui.undoButton.click()
        settle(host, module)
        counts.append((bool(mask_of(module)[5, 25, 30]), len(state_of(module).centerlineNodes)))
    assert counts == [(True, 2), (False, 1), (False, 1)]
    assert tuple(clicks.GetNthControlPointPositionWorld(0)) == (24.0, 20.0, 6.0)


def test_a_run_that_fails_after_another_was_started_is_said_with_its_segment(host: Any, tmp_path: Path) -> None:
    import slicer

    module, node = segmented_behind_gate(host, tmp_path / "gate")
    panel, volume = module.widget.panel, state_of(module).volumeNode
    other = add_clicks((5,), "Other clicks", at=(12.0, 30.0))
    module.ui.liveUpdateCheck.checked = False
    node.AddControlPointWorld(30.0, 14.0, 15.0)  # without another click the run would not wait
    panel.run.start()
    failing = panel.run.job
    host.wait_until(lambda: failing.request is not None)
    second, state = add_volume(host, name="Second"), state_of(module)
    state.segmentId, state.volumeNode, state.centerlineNodes = "", second, [other]
    panel.run.start()
    assert panel.run.job is not failing
    slicer.mrmlScene.RemoveNode(volume)
    assert "Kidney: The volume was removed" in module.ui.statusLabel.text
    (tmp_path / "gate").touch()
    settle(host, module)
    lines = module.ui.statusLabel.text.splitlines()
    assert "Kidney: The volume was removed" in lines[0] and "slices updated" in lines[1]
    segment(host, module)
    assert "removed" not in module.ui.statusLabel.text


def test_a_problem_is_said_only_while_it_is_there(host: Any) -> None:
    import slicer
    import vtk

    add_volume(host)
    module, volume = load(host), None
    add_clicks((4, 6))
    settle(host, module)
    volume = state_of(module).volumeNode
    transform = vtk.vtkThinPlateSplineTransform()
    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    for x in ((0, 0, 0), (40, 0, 0), (0, 40, 0), (0, 0, 30), (20, 20, 20)):
        source.InsertNextPoint(x)
        target.InsertNextPoint(x[0] + (3 if x[0] == 20 else 0), x[1], x[2])
    transform.SetSourceLandmarks(source)
    transform.SetTargetLandmarks(target)
    transform.SetBasisToR()
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "Warp")
    node.SetAndObserveTransformToParent(transform)
    volume.SetAndObserveTransformNodeID(node.GetID())
    host.process_events(400)
    assert not module.ui.segmentButton.enabled and "not linear" in module.ui.statusLabel.text
    volume.SetAndObserveTransformNodeID(None)
    host.process_events(400)
    assert module.ui.segmentButton.enabled and "not linear" not in module.ui.statusLabel.text


def test_write_anyway_is_offered_for_what_was_withheld_only(host: Any, module: Any) -> None:
    from SPDSegmentLib.gui.scene.editor_nodes import editorNode

    editorNode().SetSourceVolumeIntensityMask(True)
    editorNode().SetSourceVolumeIntensityMaskRange(1000, 2000)
    move_click(state_of(module).centerlineNodes[0], 0, (5.0, 0.0, 0.0))
    settle(host, module)
    assert not module.ui.writeAnywayButton.isHidden()
    choose(module.ui.segmentBox, "")
    assert module.ui.writeAnywayButton.isHidden() and "excludes" not in module.ui.statusLabel.text


def test_a_list_of_something_else_gets_no_clicks(host: Any) -> None:
    add_volume(host)
    landmarks = add_clicks((1, 9), "Registration landmarks")
    module = load(host)
    assert not module.ui.clearButton.enabled
    module.ui.placeButton.click()
    host.slice_view("Red").click_ras((24.0, 20.0, SPACING_MM[2] * 3))
    settle(host, module)
    assert landmarks.GetNumberOfDefinedControlPoints() == 2
    assert state_of(module).centerlineNodes[0].GetNumberOfDefinedControlPoints() == 1


def test_a_segment_that_undo_brings_back_is_chosen_again(host: Any, module: Any) -> None:
    state = state_of(module)
    segment_id = state.segmentId
    module.ui.editor.saveStateForUndo()
    state.segmentationNode.GetSegmentation().RemoveSegment(segment_id)
    settle(host, module)
    assert not state.segmentId and module.ui.undoButton.enabled
    module.ui.undoButton.click()
    settle(host, module)
    assert state.segmentId == segment_id


def test_keys_that_start_something_do_not_repeat(host: Any, module: Any) -> None:
    shortcuts = module.widget.panel.shortcuts
    shortcuts.install()
    repeats = {keys: s.autoRepeat for keys, s in zip(shortcuts._actions, shortcuts._installed, strict=True)}
    assert repeats == {"Shift+C": False, "Shift+S": False, "Shift+N": True}


def test_clicks_beyond_the_table_are_counted(host: Any, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from SPDSegmentLib.gui.panel import clicks_section

    monkeypatch.setattr(clicks_section, "MAX_ROWS", 1)
    module.ui.clicksSection.collapsed = False
    settle(host, module)
    assert module.ui.clicksTable.rowCount == 1 and "1 more" in module.ui.clicksLabel.text


def test_unticking_takes_back_that_one_insists(host: Any, module: Any) -> None:
    import qt

    node = state_of(module).centerlineNodes[0]
    node.SetNthControlPointDescription(0, "insisted")
    module.ui.clicksSection.collapsed = False
    settle(host, module)
    for state in (qt.Qt.Unchecked, qt.Qt.Checked):
        module.ui.clicksTable.item(0, 0).setCheckState(state)
        settle(host, module)
    assert node.GetNthControlPointSelected(0) and node.GetNthControlPointDescription(0) == ""


def test_a_description_comes_back_when_one_insists_no_more(host: Any) -> None:
    from SPDSegmentLib.gui.scene.centerlines import setIncluded

    node = add_clicks((3,))
    node.SetNthControlPointDescription(0, "hilum, see report")
    setIncluded(node, node.GetNthControlPointID(0), True, insisted=True)
    assert node.GetNthControlPointDescription(0) == "insisted"
    setIncluded(node, node.GetNthControlPointID(0), False)
    assert node.GetNthControlPointDescription(0) == "hilum, see report" and not list(node.GetAttributeNames())


def test_signs_go_with_the_clicks_that_are_hidden(host: Any, module: Any) -> None:
    marks = module.widget.panel.clicks.marks
    assert marks.fates
    state_of(module).centerlineNodes[0].SetDisplayVisibility(False)
    settle(host, module)
    assert not marks.fates
    state_of(module).centerlineNodes[0].SetDisplayVisibility(True)
    settle(host, module)
    assert marks.fates


def test_undo_takes_back_what_was_done_last(host: Any) -> None:
    module = segmented(host, (2, 5, 8))
    node = state_of(module).centerlineNodes[0]
    node.SetNthControlPointSelected(2, False)
    settle(host, module)
    result = mask_of(module)
    module.ui.deleteLastButton.click()
    settle(host, module)
    module.ui.correctSection.collapsed = False
    module.ui.editor.setActiveEffectByName("Paint")
    host.slice_view("Red").drag_ras((8.0, 8.0, 9.0), (14.0, 8.0, 9.0))
    module.ui.editor.setActiveEffectByName("")
    settle(host, module)
    assert not np.array_equal(mask_of(module), result)
    module.ui.undoButton.click()
    settle(host, module)
    assert node.GetNumberOfControlPoints() == 2 and np.array_equal(mask_of(module), result)
    module.ui.undoButton.click()
    settle(host, module)
    assert node.GetNumberOfControlPoints() == 3 and np.array_equal(mask_of(module), result)


def test_the_run_of_one_segment_is_not_replaced_by_clicks_of_another_list(host: Any, tmp_path: Path) -> None:
    module, node = segmented_behind_gate(host, tmp_path / "gate")
    move_click(node, 0, (5.0, 0.0, 0.0))
    job = press_segment(module)
    module.ui.centerlineSelector.setCurrentNode(add_clicks((5,), "Other clicks", at=(12.0, 30.0)))
    move_click(state_of(module).centerlineNodes[0], 0, (1.0, 0.0, 0.0))
    host.process_events(400)
    assert module.widget.panel.run.job is job
    (tmp_path / "gate").touch()
    settle(host, module)
    assert not mask_of(module)[5, 30, 12]
