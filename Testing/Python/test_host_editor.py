"""The embedded Segment Editor of the host: strokes of the mouse, undo, masking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

pytest_plugins = ["Testing.Host.pytest_plugin"]


@dataclass
class Editing:
    """An editor on a segmentation with the empty segment `new` and a box in the segment `old`."""

    widget: Any
    node: Any
    segmentation: Any
    volume: Any

    def mask(self, segment: str) -> np.ndarray:
        """Return a segment (K, J, I)."""
        import slicer

        return slicer.util.arrayFromSegmentBinaryLabelmap(self.segmentation, segment, self.volume)

    def counts(self) -> tuple[int, int]:
        """Return the voxels of `new` and `old`."""
        return int(self.mask("new").sum()), int(self.mask("old").sum())


@pytest.fixture
def editing(host: Any) -> Editing:
    import slicer

    host.window.show()
    volume = host.add_volume(np.zeros((20, 64, 64), np.int16), spacing_mm=(1, 1, 2))
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    segmentation.CreateDefaultDisplayNodes()
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for name in ("new", "old"):
        segmentation.GetSegmentation().AddEmptySegment(name, name)
    box = np.zeros((20, 64, 64), np.uint8)
    box[8:12, 20:40, 20:40] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(box, segmentation, "old", volume)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
    node.SetAttribute("BrushAbsoluteDiameter", "8")
    widget = slicer.qMRMLSegmentEditorWidget()
    widget.setMRMLScene(host.scene)
    widget.setMRMLSegmentEditorNode(node)
    widget.setSegmentationNode(segmentation)
    widget.setSourceVolumeNode(volume)
    widget.setCurrentSegmentID("new")
    return Editing(widget, node, segmentation, volume)


def stroke(host: Any) -> None:
    """Draw a line through the box, in the slice at 20 mm."""
    host.slice_view("Red").drag_ras((10, 30, 20), (50, 30, 20))


def test_a_stroke_paints_one_slice_of_the_current_segment(host: Any, editing: Editing) -> None:
    editing.widget.setActiveEffectByName("Paint")
    stroke(host)
    painted = np.argwhere(editing.mask("new"))
    assert set(painted[:, 0]) == {10}
    assert np.abs(painted[:, 1] - 30).max() <= 4
    assert (painted[:, 2].min(), painted[:, 2].max()) == pytest.approx((6, 54), abs=1)


def test_painting_takes_from_other_segments_unless_told_not_to(host: Any, editing: Editing) -> None:
    editing.widget.setActiveEffectByName("Paint")
    editing.node.SetOverwriteMode(editing.node.OverwriteNone)
    stroke(host)
    assert editing.counts()[1] == 1600
    editing.node.SetOverwriteMode(editing.node.OverwriteAllSegments)
    stroke(host)
    assert editing.counts()[1] < 1600


def test_undo_and_redo_move_by_strokes(host: Any, editing: Editing) -> None:
    editing.widget.setActiveEffectByName("Paint")
    stroke(host)
    after = editing.counts()
    editing.widget.undo()
    assert editing.counts() == (0, 1600)
    editing.widget.redo()
    assert editing.counts() == after


def test_a_state_saved_by_the_module_is_undone_by_the_user(host: Any, editing: Editing) -> None:
    import slicer

    editing.widget.saveStateForUndo()
    changed = np.ones((20, 64, 64), np.uint8)
    slicer.util.updateSegmentBinaryLabelmapFromArray(changed, editing.segmentation, "old", editing.volume)
    editing.widget.undo()
    assert editing.counts() == (0, 1600)


def test_erasing_takes_from_the_current_segment_only(host: Any, editing: Editing) -> None:
    editing.widget.setCurrentSegmentID("old")
    editing.widget.setActiveEffectByName("Erase")
    stroke(host)
    assert editing.counts()[1] < 1600
    assert editing.mask("old")[8].sum() == 400


def test_without_an_effect_the_mouse_changes_nothing(host: Any, editing: Editing) -> None:
    editing.widget.setActiveEffectByName("Paint")
    editing.widget.setActiveEffectByName("")
    stroke(host)
    assert editing.counts() == (0, 1600)


def test_closing_the_scene_ends_the_effect(host: Any, editing: Editing) -> None:
    editing.widget.setActiveEffectByName("Paint")
    host.new_scene()
    assert editing.node.GetActiveEffectName() == ""


def test_nothing_can_be_set_before_there_is_a_parameter_node(host: Any, editing: Editing) -> None:
    import slicer

    widget = slicer.qMRMLSegmentEditorWidget()
    widget.setMRMLScene(host.scene)
    widget.setSegmentationNode(editing.segmentation)
    assert widget.segmentationNode() is None
