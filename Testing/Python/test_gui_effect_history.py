"""The Segment Editor effect SPD and that editor's own history: what undo and redo bring back, and what they keep."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gui_helpers import filled_slices, use_fake
from test_gui_editor_effect import Editor, editor

pytest_plugins = ["Testing.Host.pytest_plugin"]
__all__ = ["editor"]


def paint(editor: Editor, name: str, k: int) -> None:
    """Draw a stroke in a slice of a segment, as an effect of the editor does."""
    import slicer

    editor.widget.saveStateForUndo()
    drawn = editor.mask(name).astype(np.uint8)
    drawn[k, 2:6, 2:6] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, editor.segmentation, name, editor.volume)
    editor.rest()


def test_undo_past_the_first_run_leaves_the_clicks_with_their_segment(editor: Editor) -> None:
    import slicer

    paint(editor, "Kidney", 2)
    editor.click(6)
    editor.run()
    nodes, first = editor.effect.clickNodes, editor.mask()
    for _ in range(2):
        editor.widget.undo()
        editor.rest()
    assert not editor.mask().any() and editor.effect.clickNodes == nodes and editor.clicked() == [6]
    for _ in range(2):
        editor.widget.redo()
        editor.rest()
    assert np.array_equal(editor.mask(), first) and editor.clicked() == [6]
    for _ in range(2):
        editor.widget.undo()
        editor.rest()
    editor.click(8)
    editor.run()
    assert editor.clicked() == [6, 8] and filled_slices(editor.mask()) == [4, 5, 6, 7, 8, 9, 10]
    assert len(slicer.util.getNodesByClass("vtkMRMLMarkupsFiducialNode")) == 1


def test_runs_that_were_replaced_leave_one_undo_step_and_none_where_another_segment_was_edited_since(
    host: Any, editor: Editor, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    use_fake(editor.module, f"fake?gate={gate}")
    editor.widget.setActiveEffectByName("")
    editor.choose()
    editor.click(3)
    editor.run()
    first, node = editor.mask(), editor.effect.clickNodes[0]

    def replaced(x: float) -> None:
        former = editor.effect.job
        node.SetNthControlPointPositionWorld(0, x, 20.0, 9.0)
        host.wait_until(lambda: editor.effect.job is not former and editor.effect.job.writer.changed, 5000)

    gate.unlink()
    for n in range(3):
        replaced(26.0 + 2.0 * n)
    editor.effect.segmentButton.click()
    editor.rest()
    assert np.array_equal(editor.mask(), first)
    paint(editor, "Other", 7)
    drawn = editor.mask("Other")
    replaced(36.0)
    replaced(12.0)
    gate.touch()
    editor.rest()
    assert not np.array_equal(editor.mask(), first)
    editor.widget.undo()
    editor.rest()
    assert np.array_equal(editor.mask(), first) and np.array_equal(editor.mask("Other"), drawn)
    editor.widget.undo()
    editor.rest()
    assert np.array_equal(editor.mask(), first) and not editor.mask("Other").any()
    for _ in range(2):
        editor.widget.undo()
        editor.rest()
    assert not editor.mask().any()


@pytest.mark.parametrize("button", ["deleteLastButton", "clearButton"])
def test_undo_brings_back_clicks_that_were_taken_away_and_redo_the_mask_to_them(editor: Editor, button: str) -> None:
    editor.click(3, 6)
    editor.run()
    first = editor.mask()
    editor.effect.liveCheck.checked = False
    editor.rest()
    getattr(editor.effect, button).click()
    editor.rest()
    editor.widget.undo()
    editor.rest()
    assert editor.clicked() == [3, 6] and not editor.mask().any()
    editor.widget.redo()
    editor.rest()
    assert editor.clicked() == [3, 6] and np.array_equal(editor.mask(), first)


def test_a_cloned_segmentation_has_clicks_of_its_own(editor: Editor) -> None:
    import slicer

    editor.click(3)
    editor.run()
    original, clicks, first = editor.segmentation, editor.effect.clickNodes, editor.mask()

    def turn_to(segmentation: Any) -> None:
        editor.segmentation = segmentation
        editor.widget.setSegmentationNode(segmentation)
        editor.widget.setCurrentSegmentID("Kidney")
        editor.rest()

    clone = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    clone.Copy(original)
    turn_to(clone)
    assert editor.clicked() == [3] and editor.effect.clickNodes != clicks and np.array_equal(editor.mask(), first)
    record, node = editor.effect.task.target.record, editor.effect.clickNodes[0]
    assert [fate.click_id for fate in record.fates] == [f"{node.GetID()}:{node.GetNthControlPointID(0)}"]
    node.SetNthControlPointPositionWorld(0, 24.0, 20.0, 27.0)
    editor.rest()
    assert filled_slices(editor.mask()) == [7, 8, 9, 10, 11]
    turn_to(original)
    assert editor.clicked() == [3] and editor.effect.clickNodes == clicks and np.array_equal(editor.mask(), first)
    turn_to(clone)
    assert editor.clicked() == [9] and editor.effect.clickNodes == [node]


@pytest.mark.parametrize("ran", [False, True])
def test_clicks_that_were_cleared_come_back_and_no_others_in_their_place(editor: Editor, ran: bool) -> None:
    effect = editor.effect
    editor.click(3, 6)
    if ran:
        editor.run()
    job, before = effect.job, editor.mask()
    assert not effect.bringBackButton.enabled
    effect.clearButton.click()
    editor.widget.setCurrentSegmentID("Other")
    editor.rest()
    assert not effect.bringBackButton.enabled, "these are clicks of another segment"
    editor.widget.setCurrentSegmentID("Kidney")
    editor.rest()
    effect.bringBackButton.click()
    editor.rest()
    assert editor.clicked() == [3, 6] and not effect.bringBackButton.enabled
    assert effect.job is job and np.array_equal(editor.mask(), before)
    effect.clearButton.click()
    editor.click(8)
    assert not effect.bringBackButton.enabled and editor.clicked() == [8]


def test_nothing_of_a_closed_scene_is_held_and_a_run_that_it_ends_raises_nothing(
    host: Any, editor: Editor, tmp_path: Path, slot_errors: Any
) -> None:
    import slicer

    job, effect = editor.start_behind(tmp_path / "gate"), editor.effect
    slicer.mrmlScene.Clear(0)
    host.process_events(300)
    assert job.finished and not slot_errors.take()
    assert effect.job is None and not (effect._jobs or effect._views or effect._ends)


def test_a_run_goes_on_where_its_editor_is_deleted(
    host: Any, editor: Editor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = editor.start_behind(tmp_path / "gate")
    editor.effect.deactivate()
    editor.effect.cleanup()
    monkeypatch.setattr(type(editor.effect.scriptedEffect), "parameterSetNode", property(lambda gone: 1 / 0))
    (tmp_path / "gate").touch()
    host.wait_until(lambda: job.finished)
    assert job.error is None and not host.take_slot_errors()


@pytest.fixture
def library() -> Iterator[None]:
    """Bring the library's modules back after a test that loads them again: other tests hold on to them."""
    own = ("SPDSegmentLib", "SegmentEditorSPDLib")
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in own}
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in own]:
        del sys.modules[name]
    sys.modules.update(before)


def test_reload_takes_the_effect_along(library: None, host: Any, editor: Editor, tmp_path: Path) -> None:
    editor.module.widget.onReload()
    another = Editor(host, editor.module, editor.volume)
    another.start_behind(tmp_path / "gate")
    another.effect.segmentButton.click()
    another.rest()
    assert another.effect.statusLabel.text == "Cancelled; nothing was changed."


def test_a_segments_name_with_a_percent_sign_is_no_format_of_labels(editor: Editor) -> None:
    editor.segmentation.GetSegmentation().GetSegment("Kidney").SetName("Dose 95% cover")
    editor.click(3)
    assert editor.effect.clickNodes[0].GetNthControlPointLabel(0) == "Dose 95% cover clicks-1"
