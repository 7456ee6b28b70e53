"""Where the editor's settings let a run take voxels from other segments: they come back, and are no person's edit."""

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
    segmented_behind_gate,
    settle,
    state_of,
    use_fake,
)

pytest_plugins = ["Testing.Host.pytest_plugin"]


def overwrite() -> None:
    from SPDSegmentLib.gui.scene.editor_nodes import editorNode

    editorNode().SetOverwriteMode(editorNode().OverwriteAllSegments)


def add_box(module: Any) -> None:
    """Add the segment Other, a box around the place of the clicks."""
    import slicer

    state = state_of(module)
    state.segmentationNode.GetSegmentation().AddEmptySegment("Other", "Other")
    box = np.zeros(SHAPE, np.uint8)
    box[1:11, 14:26, 18:30] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(box, state.segmentationNode, "Other", state.volumeNode)


def choose(host: Any, module: Any, segment_id: str, clicks: Any) -> None:
    state_of(module).segmentId, state_of(module).centerlineNodes = segment_id, [clicks]
    module.widget.panel.refresh()
    settle(host, module)


@pytest.mark.parametrize("how", ["cancelled", "replaced"])
def test_a_run_that_ends_after_its_write_gives_back_what_it_took(host: Any, how: str) -> None:
    import qt

    add_volume(host)
    module = load(host)
    node = add_clicks((3,), at=(6.0, 34.0))
    segment(host, module)
    add_box(module)
    overwrite()
    other, own, run = mask_of(module, "Other"), mask_of(module), module.widget.panel.run
    state_of(module).liveUpdate = False  # it would compute the click after a cancel that came before it was noticed
    node.AddControlPointWorld(24.0, 20.0, 24.0)
    job = press_segment(module)

    def end(slices: Any) -> None:
        if how == "replaced":
            node.SetNthControlPointPositionWorld(1, 6.0, 34.0, 24.0)
            run.start()
        else:
            qt.QTimer.singleShot(0, module.ui.segmentButton.click)

    job.onSlices.connect(end)
    settle(host, module)
    assert job.error is not None
    assert np.array_equal(mask_of(module, "Other"), other)
    assert np.array_equal(mask_of(module), own) == (how == "cancelled")


def test_what_is_put_back_takes_nothing_from_a_segment_beside_it(host: Any, tmp_path: Path) -> None:
    module, node = segmented_behind_gate(host, tmp_path / "gate")
    add_box(module)
    other, own, run = mask_of(module, "Other"), mask_of(module), module.widget.panel.run
    assert (other & own).any()
    move_click(node, 0, (12.0, 0.0, 0.0))
    host.wait_until(lambda: run.isRunning and run.job.writer.changed, 5000)
    overwrite()
    module.ui.segmentButton.click()
    settle(host, module)
    assert np.array_equal(mask_of(module, "Other"), other) and np.array_equal(mask_of(module), own)


def test_a_neighbor_on_voxels_of_its_own_is_given_back_bit_for_bit(host: Any) -> None:
    import qt
    import slicer

    add_volume(host)
    module = load(host)
    fine = add_volume(host, (24, 80, 96), spacing_mm=(0.5, 0.5, 1.5), name="fine")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Fine")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(fine)
    noise = (np.random.default_rng(1).random((24, 80, 96)) < 0.5).astype(np.uint8)
    node.GetSegmentation().AddEmptySegment("Other", "Other")
    slicer.util.updateSegmentBinaryLabelmapFromArray(noise, node, "Other", fine)
    state_of(module).segmentationNode, state_of(module).segmentId = node, ""
    add_clicks((3,))
    overwrite()
    job = press_segment(module)
    taken: list[int] = []

    def cancel(slices: Any) -> None:
        taken.append(int((mask_of(module, "Other", fine) != noise).sum()))
        qt.QTimer.singleShot(0, module.ui.segmentButton.click)

    job.onSlices.connect(cancel)
    settle(host, module)
    assert taken[0] and np.array_equal(mask_of(module, "Other", fine), noise)


def test_what_a_run_takes_from_a_neighbor_is_no_persons_edit_nor_is_it_when_undone(host: Any) -> None:
    add_volume(host)
    module = load(host)
    node = add_clicks((3,))
    segment(host, module)
    first, before = state_of(module).segmentId, mask_of(module)
    overwrite()
    other = add_clicks((3,), "Other", at=(28.0, 20.0))
    choose(host, module, "", other)
    segment(host, module)
    second = state_of(module).segmentId
    assert (mask_of(module, first) != before).any()
    choose(host, module, first, node)
    assert not record_of(module).owned
    choose(host, module, second, other)
    module.ui.undoButton.click()
    settle(host, module)
    choose(host, module, first, node)
    assert np.array_equal(mask_of(module), before) and not record_of(module).owned
    move_click(node, 0, (-12.0, 0.0, 0.0))
    settle(host, module)
    assert not mask_of(module)[3, 20, 24] and mask_of(module)[3, 20, 12]
    assert "edited by you" not in module.ui.statusLabel.text


def test_a_result_that_a_run_cannot_touch_is_not_looked_through(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from SPDSegmentLib.gui.scene.target import SegmentTarget

    add_volume(host)
    module = load(host)
    add_clicks((3,))
    segment(host, module)
    first = state_of(module).segmentId
    overwrite()
    choose(host, module, "", add_clicks((9,), "Other", at=(36.0, 6.0)))
    looked: list[str] = []
    digests = SegmentTarget.digests

    def look(self: SegmentTarget, *given: Any) -> Any:
        looked.append(self.segmentId)
        return digests(self, *given)

    monkeypatch.setattr(SegmentTarget, "digests", look)
    segment(host, module)
    second = state_of(module).segmentId
    assert not (mask_of(module, first) & mask_of(module, second)).any()
    assert second in looked and first not in looked


def test_a_neighbor_that_was_not_chosen_since_the_scene_was_opened_is_a_runs_when_undone_and_saved(
    host: Any, tmp_path: Path
) -> None:
    import slicer

    def reopen() -> None:
        slicer.mrmlScene.StartState(slicer.mrmlScene.SaveState)  # as Slicer's Save window does
        host.save_scene(tmp_path / "case.mrb")
        slicer.mrmlScene.EndState(slicer.mrmlScene.SaveState)
        host.open_scene(tmp_path / "case.mrb")
        use_fake(module)
        settle(host, module)

    # given
    add_volume(host)
    module = load(host)
    add_clicks((3,))
    segment(host, module)
    first, before = state_of(module).segmentId, mask_of(module)
    choose(host, module, "", add_clicks((3,), "Other", at=(6.0, 34.0)))
    segment(host, module)
    reopen()
    overwrite()

    # when
    move_click(slicer.util.getNode("Other"), 0, (20.0, -14.0, 0.0))
    settle(host, module)
    assert (before & ~mask_of(module, first)).any()
    module.ui.undoButton.click()
    settle(host, module)
    reopen()

    # then
    choose(host, module, first, slicer.util.getNode("Centerline"))
    assert np.array_equal(mask_of(module), before) and not record_of(module).owned


def test_what_a_run_took_comes_back_where_the_same_clicks_are_run_again_and_not_where_one_is_moved(host: Any) -> None:
    add_volume(host)
    module = load(host)
    node = add_clicks((3, 9))
    segment(host, module)
    first, before = state_of(module).segmentId, mask_of(module)
    overwrite()
    choose(host, module, "", add_clicks((3,), "Other", at=(28.0, 20.0)))
    segment(host, module)
    cut = mask_of(module, first)
    choose(host, module, first, node)
    for x in (2.0, -2.0):
        move_click(node, 1, (x, 0.0, 0.0))
        settle(host, module)
    assert (before & ~cut).any() and np.array_equal(mask_of(module, first), cut), "slices beyond the click's stay"
    segment(host, module)
    assert np.array_equal(mask_of(module, first), before) and not record_of(module).owned
    job = segment(host, module)
    assert not job.request.message.send_all and not job.writer.changed
