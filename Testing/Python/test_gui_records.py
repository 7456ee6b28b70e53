"""What the module knows of a segment stays with that segment, its volume and its clicks, whatever they are called."""

from __future__ import annotations

import zipfile
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
    use_fake,
)

pytest_plugins = ["Testing.Host.pytest_plugin"]

ODD_IDS = ("tumor <2 cm", 'the "old" one', "CTV1; boost: 60", "a|b=c", "Größe 5%", "Segment_1")


def fates_of(host: Any, module: Any) -> list[str]:
    """What the table of clicks says."""
    module.ui.clicksSection.collapsed = False
    settle(host, module)
    table = module.ui.clicksTable
    return [table.item(row, 1).text() for row in range(table.rowCount)]


def choose(host: Any, module: Any, volume: Any) -> None:
    """Choose a volume as a person does."""
    module.ui.volumeSelector.setCurrentNode(volume)
    settle(host, module)
    module.widget.panel.correct.takeIn()
    settle(host, module)


def other_volume(host: Any, slice_mm: float, count: int, name: str) -> Any:
    """A volume of the same place with other slices."""
    values = np.random.default_rng(2).integers(0, 200, (count, 40, 48)).astype(np.int16)
    return host.add_volume(values, spacing_mm=(1.0, 1.0, slice_mm), name=name)


@pytest.mark.parametrize("segment_id", ODD_IDS)
def test_a_scene_opens_again_whatever_a_segment_is_called(host: Any, tmp_path: Path, segment_id: str) -> None:
    import slicer

    # given: a segment with an ID as scripts and servers set it
    volume = add_volume(host)
    module = load(host)
    add_clicks((4, 6))
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Odd")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    node.GetSegmentation().AddEmptySegment(segment_id, "Name")
    state_of(module).segmentationNode, state_of(module).segmentId = node, segment_id
    module.widget.panel.refresh()
    segment(host, module)

    # when
    host.save_scene(tmp_path / "case.mrb")
    host.new_scene()
    host.open_scene(tmp_path / "case.mrb")
    use_fake(module)

    # then
    assert state_of(module).segmentId == segment_id
    assert not segment(host, module).writer.record.owned
    assert record_of(module).model == "fake"


def test_fates_stay_with_their_clicks_when_a_scene_is_added_to_another(host: Any, tmp_path: Path) -> None:
    import slicer

    # given: a saved case, and another case with clicks of the same IDs
    add_volume(host, name="A")
    module = load(host)
    add_clicks((3, 5), name="ClicksA")
    segment(host, module)
    host.save_scene(tmp_path / "a.mrb")
    host.new_scene()
    volume = add_volume(host, name="B")
    clicks = add_clicks((8, 9, 10), name="ClicksB", at=(10.0, 10.0))
    use_fake(module)
    state_of(module).volumeNode, state_of(module).centerlineNodes = volume, [clicks]
    segment(host, module)
    mine = state_of(module).segmentationNode

    # when: the first one is added
    with zipfile.ZipFile(tmp_path / "a.mrb") as archive:
        archive.extractall(tmp_path / "a")
    slicer.mrmlScene.SetURL(str(next((tmp_path / "a").rglob("*.mrml"))))
    slicer.mrmlScene.Import()
    host.process_events(300)
    added = next(n for n in slicer.util.getNodesByClass("vtkMRMLSegmentationNode") if n is not mine)
    state = state_of(module)
    state.volumeNode, state.centerlineNodes = slicer.util.getNode("A"), [slicer.util.getNode("ClicksA")]
    state.segmentationNode, state.segmentId = added, added.GetSegmentation().GetNthSegmentID(0)
    module.widget.panel.refresh()

    # then
    assert fates_of(host, module) == ["○ used", "○ used"]
    assert not segment(host, module).writer.record.owned


def test_a_new_segment_with_the_id_of_a_deleted_one_starts_anew(host: Any) -> None:
    module = segmented(host, (4, 6))
    state = state_of(module)
    segmentation, segment_id = state.segmentationNode.GetSegmentation(), state.segmentId
    segmentation.RemoveSegment(segment_id)
    settle(host, module)
    segmentation.AddEmptySegment(segment_id, "Another")
    state.segmentId = segment_id
    module.widget.panel.refresh()
    move_click(state.centerlineNodes[0], 0, (4.0, 0.0, 0.0))
    job = segment(host, module)
    assert not job.writer.record.owned
    assert filled_slices(mask_of(module)) == [2, 3, 4, 5, 6, 7, 8]
    module.ui.undoButton.click()  # before its first run the clicks were those, not the ones of the deleted segment
    settle(host, module)
    assert not mask_of(module).any()
    assert state.centerlineNodes[0].GetNthControlPointPositionWorld(0)[0] == 28.0


@pytest.mark.parametrize(("slice_mm", "count"), [(3.0, 12), (1.5, 24), (6.0, 6), (3.0, 7)])
def test_another_volume_and_back_locks_nothing_and_loses_nothing(host: Any, slice_mm: float, count: int) -> None:
    # given
    volume = add_volume(host, name="First")
    module = load(host)
    clicks = add_clicks((4, 6))
    segment(host, module)
    before, record = mask_of(module, volume=volume), record_of(module)
    other = other_volume(host, slice_mm, count, "Second")

    # when: another volume is chosen, and the first one again
    choose(host, module, other)
    on_other = record_of(module)
    choose(host, module, volume)

    # then
    assert not on_other.owned
    assert record_of(module) == record
    assert fates_of(host, module) == ["○ used", "○ used"]

    # when: the other one is segmented, and then the first one again
    choose(host, module, other)
    assert not segment(host, module).writer.record.owned
    assert "edited by you" not in module.ui.statusLabel.text
    choose(host, module, volume)
    assert not segment(host, module).writer.record.owned

    # then: every slice is as a run on the first volume makes it, and clicks still work
    assert (mask_of(module, volume=volume) == before).all()
    move_click(clicks, 0, (3.0, 0.0, 0.0))
    settle(host, module)
    assert not record_of(module).owned
    assert filled_slices(mask_of(module, volume=volume)) == [2, 3, 4, 5, 6, 7, 8]


def test_an_edited_slice_stays_edited_on_another_volume_and_back(host: Any) -> None:
    import slicer

    # given: a person has painted into slice 5
    volume = add_volume(host, name="First")
    module = load(host)
    add_clicks((4, 6))
    segment(host, module)
    state = state_of(module)
    edited = mask_of(module).astype(np.uint8)
    edited[5, 2:6, 2:6] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(edited, state.segmentationNode, state.segmentId, volume)
    settle(host, module)
    assert record_of(module).owned == {5}

    # when: a volume with slices half as thick is segmented, and the first one again
    other = other_volume(host, SPACING_MM[2] / 2, 24, "Second")
    choose(host, module, other)
    segment(host, module)
    choose(host, module, volume)
    segment(host, module)

    # then
    assert mask_of(module, volume=volume)[5, 2:6, 2:6].all()
    assert 5 in record_of(module).owned and record_of(module).owned <= {4, 5, 6}


@pytest.mark.parametrize(("slice_mm", "count"), [(2.0, 18), (3.0, 12)])
def test_a_cancelled_run_on_another_volume_leaves_the_record_as_it_was(
    host: Any, tmp_path: Path, slice_mm: float, count: int
) -> None:
    volume = add_volume(host, name="First")
    module = load(host)
    add_clicks((4, 6))
    segment(host, module)
    before, record = mask_of(module), record_of(module)
    choose(host, module, other_volume(host, slice_mm, count, "Second"))
    use_fake(module, f"fake?gate={tmp_path / 'gate'}")
    job = press_segment(module)
    host.wait_until(lambda: job.progress is not None)
    host.process_events(300)
    module.ui.segmentButton.click()
    settle(host, module)
    choose(host, module, volume)
    assert (mask_of(module) == before).all()
    assert record_of(module) == record


@pytest.mark.parametrize("other", ["axis", "volume", "place"])
def test_undo_past_a_run_on_other_slices_brings_mask_clicks_and_record_back(host: Any, other: str) -> None:
    import vtk

    volume = add_volume(host, name="First")
    module = load(host)
    module.widget.panel.run.confirm = lambda question: True
    clicks = add_clicks((4, 6))
    segment(host, module)
    states = [(mask_of(module), 24.0)]
    move_click(clicks, 0, (5.0, 0.0, 0.0))
    settle(host, module)
    states.append((mask_of(module), 29.0))
    if other == "axis":
        state_of(module).axis = "coronal"
    elif other == "volume":
        choose(host, module, other_volume(host, 1.5, 24, "Second"))
    else:
        matrix = vtk.vtkMatrix4x4()
        volume.GetIJKToRASMatrix(matrix)
        matrix.SetElement(0, 3, 1.5)
        volume.SetIJKToRASMatrix(matrix)
    segment(host, module)
    if other == "place":
        matrix.SetElement(0, 3, 0.0)
        volume.SetIJKToRASMatrix(matrix)
    for mask, x in reversed(states):
        module.ui.undoButton.click()
        settle(host, module)
        record = record_of(module)
        assert np.array_equal(mask_of(module, volume=volume), mask)
        assert clicks.GetNthControlPointPositionWorld(0)[0] == pytest.approx(x)
        assert (record.owned, record.axis, record.volumeId) == (set(), "axial", volume.GetID())


def test_a_cancelled_run_along_another_axis_leaves_undo_as_it_was(host: Any, tmp_path: Path) -> None:
    module, clicks = segmented_behind_gate(host, tmp_path / "gate")
    state, first = state_of(module), mask_of(module)
    (tmp_path / "gate").touch()
    move_click(clicks, 0, (5.0, 0.0, 0.0))
    settle(host, module)
    (tmp_path / "gate").unlink()
    state.axis = "coronal"
    job = press_segment(module)
    host.wait_until(lambda: job.request is not None, 5000)
    module.ui.segmentButton.click()
    (tmp_path / "gate").touch()
    settle(host, module)
    state.axis = "auto"
    module.widget.panel.refresh()
    module.ui.undoButton.click()
    settle(host, module)
    assert np.array_equal(mask_of(module), first) and not record_of(module).owned
    assert clicks.GetNthControlPointPositionWorld(0)[0] == pytest.approx(24.0)


def test_a_volume_that_is_removed_takes_no_edits_with_it(host: Any) -> None:
    import slicer

    volume = add_volume(host, name="First")
    module = load(host)
    add_clicks((4, 6))
    segment(host, module)
    other = other_volume(host, 1.5, 24, "Second")
    choose(host, module, other)
    slicer.mrmlScene.RemoveNode(volume)
    settle(host, module)
    module.widget.panel.correct.takeIn()
    assert not record_of(module).owned
    assert not segment(host, module).writer.record.owned


def test_a_volume_that_is_moved_alone_locks_nothing(host: Any) -> None:
    import slicer
    import vtk

    volume = add_volume(host)
    module = load(host)
    add_clicks((4, 6))
    segment(host, module)
    shift = vtk.vtkMatrix4x4()
    shift.SetElement(2, 3, 1.7)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "shift")
    transform.SetMatrixTransformToParent(shift)
    volume.SetAndObserveTransformNodeID(transform.GetID())
    settle(host, module)
    module.widget.panel.correct.takeIn()
    assert not record_of(module).owned
    assert not segment(host, module).writer.record.owned


def test_a_hardened_transform_of_volume_and_segment_locks_nothing(host: Any) -> None:
    import slicer
    import vtk

    volume = add_volume(host)
    module = load(host)
    clicks = add_clicks((4, 6))
    segment(host, module)
    turn = vtk.vtkTransform()
    turn.RotateZ(20)
    turn.Translate(3.3, 1.2, 0.7)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "turn")
    transform.SetMatrixTransformToParent(turn.GetMatrix())
    for node in (volume, state_of(module).segmentationNode, clicks):
        node.SetAndObserveTransformNodeID(transform.GetID())
        node.HardenTransform()
    settle(host, module)
    module.widget.panel.correct.takeIn()
    assert not record_of(module).owned
    assert not segment(host, module).writer.record.owned


def test_undo_of_a_run_of_another_segment_leaves_the_clicks_of_a_list_that_both_share(host: Any) -> None:
    # given
    add_volume(host)
    module, clicks = load(host), add_clicks((4, 6))
    made = []
    for _ in range(2):
        state_of(module).segmentId = ""
        segment(host, module)
        made.append(state_of(module).segmentId)

    def turn_to(segment_id: str) -> None:
        state_of(module).segmentId = segment_id
        module.widget.panel.refresh()
        settle(host, module)

    turn_to(made[0])
    move_click(clicks, 0, (8.0, 0.0, 0.0))
    settle(host, module)
    turn_to(made[1])
    segment(host, module)
    turn_to(made[0])
    first, second = mask_of(module), mask_of(module, made[1])

    # when
    module.ui.undoButton.click()
    settle(host, module)

    # then
    assert not np.array_equal(mask_of(module, made[1]), second)
    assert np.array_equal(mask_of(module), first) and clicks.GetNthControlPointPositionWorld(0)[0] == 32.0


def test_a_result_that_was_moved_away_from_its_volume_is_not_said_to_have_another_volume(host: Any) -> None:
    import slicer
    import vtk

    module, matrix = segmented(host), vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 6.0)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "shift")
    transform.SetMatrixTransformToParent(matrix)
    state_of(module).segmentationNode.SetAndObserveTransformNodeID(transform.GetID())
    module.widget.panel.run.forgetMessage()
    module.widget.panel.refresh()
    assert "Kidney was moved or the volume was changed since; press Segment" in module.ui.statusLabel.text
