"""What is chosen for the effect SPD: the model of the segment's result, and what else it came of, or it waits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gui_helpers import MODEL, add_clicks, add_volume, filled_slices, load, segment, settle, state_of
from test_gui_editor_effect import Editor

pytest_plugins = ["Testing.Host.pytest_plugin"]


@pytest.fixture
def editor(host: Any) -> Iterator[Editor]:
    """The editor beside the loaded module, with models of two structures."""
    from SPDSegmentLib.gui.run.task import ModelEntry

    volume = add_volume(host)
    module = load(host)
    models = [
        ModelEntry("fake", MODEL, "Kidney", title="Fake", axis="axial"),
        ModelEntry("fake?radius=9", "big", "Spleen", title="Big", axis="axial"),
    ]
    module.widget.panel.inputs.usableModels = lambda: models
    made = Editor(host, module, volume)
    yield made
    made.widget.setActiveEffectByName("")
    made.effect.cleanup()
    made.widget.deleteLater()


def choose_model(editor: Editor, name: str) -> None:
    """In the box, as a person does."""
    box = editor.effect.modelBox
    box.currentIndex = box.findData(name)
    box.activated.emit(box.currentIndex)
    editor.rest()


def choose_segment(editor: Editor, name: str) -> None:
    editor.widget.setCurrentSegmentID(name)
    editor.rest()


def start_behind_gate(host: Any, editor: Editor, gate: Path) -> Any:
    """Place a click and start; return the job, which waits in its middle until the file ``gate`` is there."""
    from SPDSegmentLib.gui.run.task import ModelEntry

    models = [ModelEntry(f"fake?gate={gate}", MODEL, "Kidney", title="Fake", axis="axial")]
    editor.module.widget.panel.inputs.usableModels = lambda: models
    editor.widget.setActiveEffectByName("")
    editor.choose()
    editor.click(3)
    editor.effect.segmentButton.click()
    job = editor.effect.job
    host.wait_until(lambda: job.writer.changed)
    return job


def test_a_segment_is_chosen_with_the_model_of_its_result(host: Any, editor: Editor) -> None:
    editor.click(3)
    editor.run()
    before = editor.mask()
    choose_segment(editor, "Other")
    choose_model(editor, "big")
    editor.click(9)
    editor.run()
    choose_segment(editor, "Kidney")
    assert editor.effect.model.name == editor.effect.modelBox.currentData == MODEL
    editor.click(8)
    assert np.array_equal(editor.mask()[:6], before[:6]) and editor.effect.task.target.record.model == MODEL
    choose_segment(editor, "Other")
    assert editor.effect.model.name == "big"


def test_a_model_chosen_for_a_segment_stays_when_the_effect_is_left_for_another(host: Any, editor: Editor) -> None:
    editor.click(3)
    editor.run()
    choose_model(editor, "big")
    editor.widget.setActiveEffectByName("")
    host.process_events(100)
    editor.widget.setActiveEffectByName("SPD")
    editor.rest()
    assert editor.effect.model.name == editor.effect.modelBox.currentData == "big"


@pytest.mark.parametrize("other", ["model", "volume", "axis", "voxels"])
def test_a_result_of_another_choice_waits_for_segment(host: Any, editor: Editor, other: str) -> None:
    import slicer

    editor.click(3)
    job, before = editor.run(), editor.mask()
    if other == "model":
        choose_model(editor, "big")
    elif other == "volume":
        editor.widget.setSourceVolumeNode(add_volume(host, name="T2"))
    elif other == "axis":
        editor.module.widget.panel.state.axis = "sagittal"
    else:  # as another frame of a sequence
        slicer.util.updateVolumeFromArray(editor.volume, slicer.util.arrayFromVolume(editor.volume) + 7)
    editor.click(8)
    assert editor.effect.job is job and np.array_equal(editor.mask(), before)
    assert "press Segment to compute it again" in editor.effect.statusLabel.text
    assert editor.run() is not job and not np.array_equal(editor.mask(), before)
    assert "slices updated" in editor.effect.statusLabel.text
    job = editor.effect.job
    editor.click(10)
    assert editor.effect.job is not job, "the result is now of what is chosen"


def test_an_axis_that_gives_the_same_slices_by_another_name_is_followed(editor: Editor) -> None:
    editor.click(3)
    job = editor.run()
    state_of(editor.module).axis = "k"
    editor.click(8)
    assert editor.effect.job is not job and editor.effect.task.target.record.axis == "k"


def test_a_run_under_way_is_not_replaced_by_one_on_another_volume(host: Any, editor: Editor, tmp_path: Path) -> None:
    job = start_behind_gate(host, editor, tmp_path / "gate")
    editor.widget.setSourceVolumeNode(add_volume(host, name="T2"))
    editor.effect.clickNodes[0].AddControlPointWorld(24.0, 20.0, 24.0)
    host.process_events(400)
    assert editor.effect.job is job and not job.finished
    (tmp_path / "gate").touch()
    editor.rest()
    assert filled_slices(editor.mask()) == [1, 2, 3, 4, 5]


def test_a_renamed_segment_keeps_the_model_of_its_result(host: Any, editor: Editor) -> None:
    editor.effect.scriptedEffect.setParameter("Model", "")
    editor.rest()
    assert editor.effect.model.name == MODEL, "by the name of the segment"
    editor.click(3)
    editor.run()
    editor.segmentation.GetSegmentation().GetSegment("Kidney").SetName("right side")
    editor.click(8)
    assert filled_slices(editor.mask())[-1] == 10
    editor.widget.undo()
    editor.rest()
    assert editor.clicked() == [3] and filled_slices(editor.mask())[-1] == 5


def test_in_the_editor_of_the_panel_the_panel_alone_follows_clicks(host: Any, editor: Editor) -> None:
    editor.widget.setActiveEffectByName("")
    module, state, panel = editor.module, state_of(editor.module), editor.module.widget.panel
    node = add_clicks((3,))
    state.segmentationNode, state.segmentId, state.centerlineNodes = editor.segmentation, "Kidney", [node]
    panel.refresh()
    panel.enter()
    segment(host, module)
    module.ui.correctSection.collapsed = False
    module.ui.editor.updateEffectList()
    module.ui.editor.setActiveEffectByName("SPD")
    effect = module.ui.editor.effectByName("SPD").self()
    host.process_events(400)
    jobs: set[Any] = set()
    module.logic.segmenter.onJob.connect(jobs.add)
    node.AddControlPointWorld(24.0, 20.0, 24.0)
    host.process_events(600)
    settle(host, module)
    assert len(jobs) == 1 and "slices updated" in module.ui.statusLabel.text
    assert not effect.segmentButton.enabled and not effect.placeButton.enabled
    assert "choose another effect" in effect.statusLabel.text
    module.ui.editor.setActiveEffectByName("")


def test_a_volume_that_is_gone_is_said_and_nothing_can_be_started(host: Any, editor: Editor) -> None:
    import slicer

    editor.click(3)
    editor.run()
    slicer.mrmlScene.RemoveNode(editor.volume)
    editor.rest()
    assert not editor.effect.segmentButton.enabled
    assert editor.effect.statusLabel.text == "Choose a source volume."


def test_the_end_of_a_removed_segments_run_is_not_said_of_the_next_one(
    host: Any, editor: Editor, tmp_path: Path
) -> None:
    start_behind_gate(host, editor, tmp_path / "gate")
    choose = editor.widget.setCurrentSegmentID
    choose("Other")
    host.process_events(300)
    segmentation = editor.segmentation.GetSegmentation()
    segmentation.RemoveSegment("Kidney")
    (tmp_path / "gate").touch()
    editor.rest()
    assert editor.effect.statusLabel.text == "The segment was removed while it was written."
    segmentation.AddEmptySegment("Kidney", "Fresh")
    choose("Kidney")
    editor.rest()
    assert editor.effect.statusLabel.text.startswith("Press Place clicks")


def test_an_editor_whose_node_is_taken_away_in_a_run_raises_nothing(
    host: Any, editor: Editor, tmp_path: Path, slot_errors: Any
) -> None:
    job = start_behind_gate(host, editor, tmp_path / "gate")
    editor.widget.setMRMLSegmentEditorNode(None)
    (tmp_path / "gate").touch()
    host.wait_until(lambda: job.finished)
    host.process_events(500)
    assert not slot_errors.take()
    editor.widget.setMRMLSegmentEditorNode(editor.node)


def test_a_volume_that_is_moved_alone_waits_for_segment_and_a_warped_segment_breaks_nothing(
    host: Any, editor: Editor
) -> None:
    from test_gui_geometry import warped

    editor.click(3)
    editor.run()
    target, differences = editor.effect.task.target, editor.module.logic.segmenter.differences
    target.node.SetAndObserveTransformNodeID(warped().GetID())
    assert not differences(editor.effect.task)
    target.node.SetAndObserveTransformNodeID(None)
    before = target.record.written
    editor.effect.task.volumeNode.SetOrigin(0.0, 0.0, 6.0)
    editor.click(9)
    assert target.record.written == before and "press Segment" in editor.effect.statusLabel.text


def test_live_update_replaces_nothing_where_what_was_learned_is_lost(editor: Editor) -> None:
    editor.click(3, 5)
    editor.run()
    taught, target = editor.mask(), editor.effect.task.target
    record = target.record
    record.learned = "lesson"  # by the panel, which shares worker and memory
    target.saveRecord(record)
    editor.module.logic.workerHost.restart()
    editor.effect.clickNodes[0].SetNthControlPointPositionWorld(0, 30.0, 20.0, 9.0)
    editor.rest()
    assert np.array_equal(editor.mask(), taught) and "taught is no longer" in editor.effect.statusLabel.text
    editor.run()
    assert not np.array_equal(editor.mask(), taught) and not target.record.learned
