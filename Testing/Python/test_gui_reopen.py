"""A saved scene opened again: clicks, fates, links, model and settings are back, and work goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from gui_helpers import (
    add_clicks,
    add_volume,
    digests,
    filled_slices,
    load,
    mask_of,
    move_click,
    record_of,
    segment,
    segmented,
    segmented_behind_gate,
    settle,
    state_of,
    use_fake,
)

from SPDSegmentLib.prompts.fates import Fate, PointFate, SliceStatus

pytest_plugins = ["Testing.Host.pytest_plugin"]


def test_a_reopened_scene_goes_on_where_it_was(host: Any, tmp_path: Path) -> None:
    add_volume(host)
    module = load(host)
    add_clicks((2, 40))
    branch = add_clicks((8,), "Branch", at=(12.0, 12.0))
    module.widget.panel.refresh()
    state = state_of(module)
    state.centerlineNodes = [*state.centerlineNodes, branch]
    state.device, state.axis = "cpu", "axial"
    segment(host, module)
    state.liveUpdate = False
    module.ui.correctSection.collapsed = False
    module.ui.editor.setActiveEffectByName("Paint")
    host.slice_view("Red").drag_ras((8.0, 30.0, 12.0), (14.0, 30.0, 12.0))
    settle(host, module)
    before, record = digests(mask_of(module)), record_of(module)
    assert record.owned == {4}

    host.save_scene(tmp_path / "case.mrb")
    host.open_scene(tmp_path / "case.mrb")

    use_fake(module)
    state = state_of(module)
    assert [node.GetName() for node in state.centerlineNodes] == ["Centerline", "Branch"]
    assert (state.device, state.axis, state.liveUpdate, state.model) == ("cpu", "axial", False, "fake")
    assert digests(mask_of(module)) == before
    again = record_of(module)
    assert (again.owned, again.fates, again.info) == (record.owned, record.fates, record.info)
    assert module.ui.deviceBox.currentData == "cpu" and not module.ui.liveUpdateCheck.checked
    module.ui.clicksSection.collapsed = False
    table = module.ui.clicksTable
    assert [table.item(row, 1).text() for row in range(table.rowCount)] == [
        "○ used",
        "✕ outside the volume",
        "○ used",
    ]

    module.ui.liveUpdateCheck.checked = True
    move_click(state.centerlineNodes[1], 0, (4.0, 0.0, 0.0))
    settle(host, module)
    after = digests(mask_of(module))
    assert [k for k in range(12) if after[k] != before[k]] == [6, 7, 8, 9, 10]
    assert record_of(module).owned == {4}

    state.device = "cuda:3"  # as of a scene of another computer: what is shown is what a run asks for
    module.widget.panel.refresh()
    assert module.ui.deviceBox.currentData == "cuda:3"


def test_settings_that_the_first_version_saved_are_taken_over(host: Any, tmp_path: Path) -> None:
    import slicer

    # given: a scene as 0.1.0 has saved it
    volume = add_volume(host)
    nodes = [add_clicks((2, 8)), add_clicks((5,), "Branch", at=(12.0, 12.0))]
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Result")
    segmentation.CreateDefaultDisplayNodes()
    segment_id = segmentation.GetSegmentation().AddEmptySegment("", "vessel")
    module = load(host)
    old = module.logic.getParameterNode()
    for name in old.GetParameterNamesAsCommaSeparatedList().split(","):
        old.UnsetParameter(name)
    for role in [old.GetNthNodeReferenceRole(n) for n in range(old.GetNumberOfNodeReferenceRoles())]:
        old.RemoveNodeReferenceIDs(role)
    texts = {"SegmentID": segment_id, "Model": "fake", "Axis": "axial", "Device": "cpu", "LiveUpdate": "false"}
    for name, text in texts.items():
        old.SetParameter(name, text)
    old.SetNodeReferenceID("Volume", volume.GetID())
    old.SetNodeReferenceID("Segmentation", segmentation.GetID())
    for node in nodes:
        old.AddNodeReferenceID("Centerline", node.GetID())

    # when
    host.save_scene(tmp_path / "old.mrb")
    host.open_scene(tmp_path / "old.mrb")

    # then
    state = state_of(module)
    assert (state.segmentId, state.model, state.axis, state.device) == (segment_id, "fake", "axial", "cpu")
    assert not state.liveUpdate
    assert [node.GetName() for node in state.centerlineNodes] == ["Centerline", "Branch"]
    assert state.volumeNode.GetName() == "Volume" and state.segmentationNode.GetName() == "Result"
    names = module.logic.getParameterNode().GetParameterNamesAsCommaSeparatedList().split(",")
    assert not set(names) & set(texts), "they are stored once"


def test_another_worker_looks_where_the_first_one_looked(host: Any, tmp_path: Path) -> None:
    # given: one of three clicks moved far, so that the middle of the clicks is elsewhere now
    limited = "fake?fov=5"
    add_volume(host)
    module = load(host, limited)
    node = add_clicks((1, 5, 10))
    segment(host, module)
    anchor = record_of(module).anchorRas
    assert anchor[:2] == pytest.approx((24.0, 20.0))
    move_click(node, 0, (-7.0, -7.0, 0.0))
    move_click(node, 1, (-7.0, -7.0, 0.0))
    settle(host, module)
    before = digests(mask_of(module))

    # when: the worker is killed and one click moves
    psutil.Process(module.logic.workerHost.client.process_id).kill()
    host.wait_until(lambda: not module.logic.workerHost.client.running)
    move_click(node, 1, (0.0, 2.0, 0.0))
    settle(host, module)

    # then: nothing outside the reach of that click differs
    after = digests(mask_of(module))
    assert {k for k in range(12) if after[k] != before[k]} == {3, 4, 5, 6, 7}

    # when: the scene is saved and opened again, and the click moves back
    host.save_scene(tmp_path / "case.mrb")
    host.open_scene(tmp_path / "case.mrb")
    use_fake(module, limited)
    assert record_of(module).anchorRas == anchor
    move_click(state_of(module).centerlineNodes[0], 1, (0.0, -2.0, 0.0))
    settle(host, module)

    # then
    assert digests(mask_of(module)) == before
    assert record_of(module).anchorRas == anchor


def test_a_record_of_an_earlier_version_has_no_anchor() -> None:
    from SPDSegmentLib.gui.scene.write_record import WriteRecord

    content = json.loads(WriteRecord({3: "abc"}, {4}, model="kidney").toJson())
    del content["anchor"]
    record = WriteRecord.fromJson(json.dumps(content))
    assert (record.written, record.owned, record.anchorRas) == ({3: "abc"}, {4}, None)


def test_records_read_from_one_text_are_independent() -> None:
    from SPDSegmentLib.gui.scene.write_record import SliceInfo, WriteRecord

    info = {3: SliceInfo(0.9, SliceStatus.SUPPORTED)}
    text = WriteRecord({3: "abc"}, {4}, dict(info), model="kidney").toJson()
    record = WriteRecord.fromJson(text)
    record.owned.add(7)
    record.written[5] = "def"
    record.info.clear()
    record.fates += (PointFate(0, 3, Fate.KEPT, click_id="1", position_ras=(0.0, 0.0, 0.0)),)
    assert WriteRecord.fromJson(text) == WriteRecord({3: "abc"}, {4}, info, model="kidney")


def test_a_scene_with_a_deleted_branch_still_opens(host: Any, tmp_path: Path) -> None:
    import slicer

    add_volume(host)
    module = load(host)
    add_clicks((2,))
    module.widget.panel.refresh()
    state = state_of(module)
    branch = add_clicks((8,), "Branch")
    state.centerlineNodes = [*state.centerlineNodes, branch]
    segment(host, module)
    slicer.mrmlScene.RemoveNode(branch)
    host.save_scene(tmp_path / "case.mrb")
    host.open_scene(tmp_path / "case.mrb")
    use_fake(module)
    assert len(state_of(module).centerlineNodes) == 1
    segment(host, module)
    assert filled_slices(mask_of(module)) == [0, 1, 2, 3, 4]


def test_helpers_of_the_module_are_not_saved(host: Any, tmp_path: Path) -> None:
    module = segmented(host)
    module.ui.saliencyCheck.checked = True
    host.wait_until(lambda: module.widget.panel.saliency.overlay.node is not None)
    host.save_scene(tmp_path / "case.mrml")
    text = (tmp_path / "case.mrml").read_text(encoding="utf-8")
    assert "SPD saliency" not in text and "SPD kept" not in text
    assert "SPDSegment.Record" in text


def test_a_scene_that_was_saved_during_a_run_says_so_until_the_result_is_whole(host: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    module, node = segmented_behind_gate(host, gate)
    move_click(node, 0, (6.0, 0.0, 0.0))
    host.wait_until(lambda: module.widget.panel.run.isRunning and module.widget.panel.run.job.writer.changed)
    host.save_scene(tmp_path / "saved.mrb")
    gate.touch()
    settle(host, module)
    whole = mask_of(module)
    host.open_scene(tmp_path / "saved.mrb")
    settle(host, module)
    assert "press Segment to complete" in module.ui.statusLabel.text
    segment(host, module)
    assert "press Segment" not in module.ui.statusLabel.text
    assert np.array_equal(mask_of(module), whole) and not record_of(module).owned


def test_a_scene_saved_with_the_saliency_shown_keeps_the_foreground(host: Any, tmp_path: Path) -> None:
    import slicer

    module = segmented(host)
    fused = add_volume(host, name="Fused", show=False)
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        composite.SetForegroundVolumeID(fused.GetID())
    module.ui.saliencyCheck.checked = True
    overlay = module.widget.panel.saliency.overlay
    host.wait_until(lambda: overlay.node is not None)
    slicer.mrmlScene.StartState(slicer.mrmlScene.SaveState)  # as Slicer's Save window does
    host.save_scene(tmp_path / "saved.mrb")
    slicer.mrmlScene.EndState(slicer.mrmlScene.SaveState)
    host.wait_until(lambda: overlay.node is not None, 5000)
    module.ui.saliencyCheck.checked = False
    host.open_scene(tmp_path / "saved.mrb")
    shown = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")[0].GetForegroundVolumeID()
    assert shown and slicer.mrmlScene.GetNodeByID(shown).GetName() == "Fused"


@pytest.mark.parametrize("undone", ["run", "stroke"])
def test_an_undo_that_reached_another_segment_is_whole_in_the_saved_scene(
    host: Any, tmp_path: Path, undone: str
) -> None:
    import slicer

    add_volume(host)
    module = load(host)
    state, panel = state_of(module), module.widget.panel
    lists = [add_clicks((4, 6), "First"), add_clicks((5,), "Second", at=(12.0, 30.0))]
    made: list[str] = []
    for clicks in lists:
        state.segmentId, state.centerlineNodes = "", [clicks]
        segment(host, module)
        made.append(state.segmentId)
    before = mask_of(module)
    if undone == "run":
        move_click(lists[1], 0, (6.0, 0.0, 0.0))
    else:
        module.ui.editor.saveStateForUndo()
        painted = before.astype(np.uint8)
        painted[5, 2:6, 2:6] = 1
        slicer.util.updateSegmentBinaryLabelmapFromArray(painted, state.segmentationNode, made[1], state.volumeNode)
    host.process_events(300)
    settle(host, module)
    state.segmentId, state.centerlineNodes = made[0], lists[:1]
    panel.refresh()
    settle(host, module)
    module.ui.undoButton.click()
    settle(host, module)
    slicer.mrmlScene.StartState(slicer.mrmlScene.SaveState)  # as Slicer's Save window does
    host.save_scene(tmp_path / "case.mrb")
    slicer.mrmlScene.EndState(slicer.mrmlScene.SaveState)
    host.open_scene(tmp_path / "case.mrb")
    use_fake(module)
    state, second = state_of(module), slicer.util.getNode("Second")
    state.segmentId, state.centerlineNodes = made[1], [second]
    panel.refresh()
    segment(host, module)
    assert np.array_equal(mask_of(module), before) and not record_of(module).owned
    assert second.GetNthControlPointPositionWorld(0)[0] == pytest.approx(12.0)


def test_a_segment_whose_volume_cannot_be_segmented_hides_no_edit_of_another_from_a_save(host: Any) -> None:
    import slicer
    from test_gui_geometry import warped

    from SPDSegmentLib.gui.scene.write_record import loadRecord

    # given: a segment without a result, chosen before one that somebody has edited since
    volume = add_volume(host)
    module, state = load(host), None
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Result")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    state, drawn = state_of(module), node.GetSegmentation().AddEmptySegment("Drawn", "Drawn")
    add_clicks((4, 6))
    state.segmentationNode, state.segmentId = node, drawn
    module.widget.panel.refresh()
    settle(host, module)
    module.widget.panel.correct.takeIn()
    state.segmentId = ""
    segment(host, module)
    made, edited = state.segmentId, mask_of(module).astype(np.uint8)
    edited[5, 2:6, 2:6] = 1

    # when
    volume.SetAndObserveTransformNodeID(warped().GetID())
    slicer.util.updateSegmentBinaryLabelmapFromArray(edited, node, made, volume)
    module.logic.segmenter.noteChanges()

    # then
    assert loadRecord(node, made).owned
