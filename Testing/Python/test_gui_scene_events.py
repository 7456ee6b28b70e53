"""What happens to the scene, the module or Slicer while a segmentation runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
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
    segmented_behind_gate,
    settle,
    state_of,
    use_fake,
)

pytest_plugins = ["Testing.Host.pytest_plugin"]


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """The file for which a run waits in its middle."""
    return tmp_path / "gate"


@pytest.fixture
def running(host: Any, gate: Path) -> Any:
    """The module in the middle of a segmentation: some slices are written."""
    add_volume(host)
    loaded = load(host, f"fake?gate={gate}")
    add_clicks((4, 6))
    job = press_segment(loaded)
    host.wait_until(lambda: job.writer.changed)
    return loaded


def worker_gone(module: Any) -> bool:
    process_id = module.logic.workerHost.client.process_id
    return process_id is None or not psutil.pid_exists(process_id)


def test_closing_the_scene_stops_the_run(host: Any, running: Any) -> None:
    job = running.widget.panel.run.job
    host.new_scene()
    assert job.finished
    host.process_events(400)
    assert not running.ui.segmentButton.enabled
    assert running.ui.segmentButton.text == "Segment"
    host.wait_until(lambda: not running.logic.workerHost.client.busy, 1500)


def test_after_a_closed_scene_the_next_one_is_segmented(host: Any, running: Any) -> None:
    host.new_scene()
    add_volume(host)
    add_clicks((4, 6))
    use_fake(running)
    assert segment(host, running).error is None
    assert filled_slices(mask_of(running)) == [2, 3, 4, 5, 6, 7, 8]


def test_removing_the_volume_ends_the_run_and_says_so(host: Any, running: Any) -> None:
    import slicer

    job, state = running.widget.panel.run.job, state_of(running)
    node, segment_id = state.segmentationNode, state.segmentId
    slicer.mrmlScene.RemoveNode(state.volumeNode)
    assert job.finished and "volume was removed" in job.error.sentence
    host.process_events(300)
    content = node.GetSegmentation().GetSegment(segment_id).GetRepresentation("Binary labelmap")
    assert content is None or not np.any(slicer.util.arrayFromSegmentInternalBinaryLabelmap(node, segment_id))
    assert "Load a volume" in running.ui.statusLabel.text or "removed" in running.ui.statusLabel.text


def test_removing_the_clicks_ends_the_run_and_nothing_is_half_written(host: Any, running: Any) -> None:
    import slicer

    job, state = running.widget.panel.run.job, state_of(running)
    slicer.mrmlScene.RemoveNode(state.centerlineNodes[0])
    assert job.finished and "clicks were removed" in job.error.sentence
    host.process_events(300)
    assert not slicer.util.getNodesByClass("vtkMRMLSegmentationNode")


@pytest.mark.parametrize("what", ["segmentation", "segment"])
def test_removing_the_segmentation_or_its_segment_ends_the_run(host: Any, running: Any, gate: Path, what: str) -> None:
    import slicer

    job, state = running.widget.panel.run.job, state_of(running)
    if what == "segmentation":
        slicer.mrmlScene.RemoveNode(state.segmentationNode)
    else:
        state.segmentationNode.GetSegmentation().RemoveSegment(state.segmentId)
    gate.touch()  # the next slice finds it out
    host.wait_until(lambda: job.finished, 5000)
    assert "segment was removed" in job.error.sentence
    host.process_events(300)
    use_fake(running)
    assert segment(host, running).error is None
    assert filled_slices(mask_of(running)) == [2, 3, 4, 5, 6, 7, 8]


def test_a_segment_removed_during_its_run_comes_back_as_it_was_before(host: Any, running: Any, gate: Path) -> None:
    state, editor = state_of(running), running.ui.editor
    node, segment_id = state.segmentationNode, state.segmentId
    editor.saveStateForUndo()
    node.GetSegmentation().RemoveSegment(segment_id)
    gate.touch()
    settle(host, running)
    editor.undo()
    state.segmentId = segment_id
    running.widget.panel.refresh()
    settle(host, running)
    assert not mask_of(running).any() and not record_of(running).owned
    segment(host, running)
    assert mask_of(running).any()
    running.ui.undoButton.click()
    settle(host, running)
    assert not mask_of(running).any()


@pytest.mark.parametrize("among", [(), ("Other",)])
def test_a_first_run_that_comes_to_nothing_leaves_nothing_behind(host: Any, gate: Path, among: tuple[str, ...]) -> None:
    import slicer

    add_volume(host)
    module = load(host, f"fake?gate={gate}")
    clicks, state = add_clicks((4, 6)), state_of(module)
    kept: Any = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode") if among else None
    for name in among:
        kept.GetSegmentation().AddEmptySegment(name, name)
    state.segmentationNode, state.segmentId = kept, ""
    module.widget.panel.refresh()
    job = press_segment(module)
    host.wait_until(lambda: job.writer.changed)
    module.ui.segmentButton.click()
    settle(host, module)
    assert "Cancelled; nothing was changed." in module.ui.statusLabel.text
    assert (state.segmentationNode, state.segmentId, module.ui.segmentButton.text) == (kept, "", "Segment")
    for index in range(2):
        clicks.SetNthControlPointPositionWorld(index, 500.0, 500.0, 500.0)
    gate.touch()
    segment(host, module)
    assert "No click lies inside the volume" in module.ui.statusLabel.text
    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    assert [node.GetSegmentation().GetSegmentIDs() for node in nodes] == ([among] if among else [])


def test_a_stroke_in_the_segment_of_a_cancelled_first_run_is_kept(host: Any, running: Any) -> None:
    running.ui.correctSection.collapsed = False
    stroke(host, running, 11)
    running.ui.segmentButton.click()
    settle(host, running)
    assert filled_slices(mask_of(running)) == [11] and record_of(running).owned == {11}


def test_a_run_whose_clicks_are_all_unticked_can_still_be_cancelled(host: Any, running: Any) -> None:
    run, node = running.widget.panel.run, state_of(running).centerlineNodes[0]
    job = run.job
    for index in range(2):
        node.SetNthControlPointSelected(index, False)
    host.process_events(400)
    assert run.start() is None and "All clicks are left out; tick one in Clicks." in running.ui.statusLabel.text
    assert not job.finished and running.ui.segmentButton.text == "Cancel" and running.ui.segmentButton.enabled
    running.ui.segmentButton.click()
    settle(host, running)
    assert job.finished and state_of(running).segmentationNode is None and not running.ui.segmentButton.enabled


def test_a_segment_is_not_exported_while_it_is_written(
    host: Any, running: Any, gate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buttons = (running.ui.exportButton, running.ui.exportDicomButton, running.ui.statisticsButton)
    assert not any(button.enabled for button in buttons)
    gate.touch()
    settle(host, running)
    assert all(button.enabled for button in buttons)
    gate.unlink()

    def start_meanwhile(format_: Any, name: str) -> str:
        state_of(running).centerlineNodes[0].AddControlPointWorld(12.0, 12.0, 27.0)
        host.wait_until(lambda: running.widget.panel.run.isRunning)
        return str(tmp_path / "kidney.nrrd")

    monkeypatch.setattr(running.widget.panel.export, "askPath", start_meanwhile)
    running.ui.exportButton.click()
    assert running.ui.exportLabel.text == "This segment is being computed; export when it is done."
    gate.touch()
    settle(host, running)
    assert not list(tmp_path.glob("kidney*"))


def test_a_volume_that_changes_makes_the_late_result_void(host: Any, running: Any, gate: Path) -> None:
    import slicer

    job, state = running.widget.panel.run.job, state_of(running)
    slicer.util.arrayFromVolume(state.volumeNode)[:] = 7
    slicer.util.arrayFromVolumeModified(state.volumeNode)
    gate.touch()  # the next slice finds it out
    host.wait_until(lambda: job.finished, 5000)
    assert "volume changed" in job.error.sentence
    host.process_events(300)
    assert state.segmentationNode is None
    client = running.logic.workerHost.client
    host.wait_until(lambda: not client.busy, 5000)
    assert state.segmentationNode is None


def test_reloading_the_module_ends_run_and_worker(host: Any, running: Any) -> None:
    process_id = running.logic.workerHost.client.process_id
    job = running.widget.panel.run.job
    reloaded = host.reload_module("SPDSegment")
    assert job.finished
    host.wait_until(lambda: not psutil.pid_exists(process_id), 3000)
    use_fake(reloaded)
    assert segment(host, reloaded).error is None


@pytest.mark.alone
def test_quitting_leaves_no_process_behind(host: Any, running: Any) -> None:
    process_id = running.logic.workerHost.client.process_id
    started = time.monotonic()
    host.quit()
    assert time.monotonic() - started < 1.0
    host.wait_until(lambda: not psutil.pid_exists(process_id), 3000)
    assert not [child for child in psutil.Process().children(recursive=True) if child.pid == process_id]


def test_turning_to_another_module_lets_the_run_go_on(host: Any, running: Any, gate: Path) -> None:
    job = running.widget.panel.run.job
    running.widget.exit()
    gate.touch()
    host.wait_until(lambda: job.finished)
    assert job.error is None
    running.widget.enter()


def test_a_new_result_while_one_runs_replaces_it(host: Any, running: Any, gate: Path) -> None:
    former = running.widget.panel.run.job
    state_of(running).centerlineNodes[0].AddControlPointWorld(12.0, 12.0, 27.0)
    host.wait_until(lambda: running.widget.panel.run.job is not former, 2000, "a live update")
    gate.touch()
    settle(host, running)
    assert former.finished and mask_of(running)[9, 12, 12]


def test_two_volumes_are_segmented_in_turn(host: Any) -> None:
    first_volume = add_volume(host)
    second_volume = host.add_volume(
        np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), (1.0, 1.0, 3.0), name="Second"
    )
    loaded = load(host)
    state = state_of(loaded)
    results: dict[str, list[list[str]]] = {}
    for volume, slices in ((first_volume, (3,)), (second_volume, (8,)), (first_volume, (3,))):
        state.volumeNode, state.segmentationNode, state.segmentId = volume, None, ""
        state.centerlineNodes = [add_clicks(slices)]
        job = segment(host, loaded)
        assert job.error is None, job.error
        assert job.answer.report["values"] == pytest.approx(float(np.sum(_array(volume), dtype=np.float64)))
        results.setdefault(volume.GetID(), []).append(digests(mask_of(loaded)))
    first, second = results[first_volume.GetID()], results[second_volume.GetID()]
    assert first[0] == first[1] != second[0]


def _array(volume: Any) -> np.ndarray:
    import slicer

    return slicer.util.arrayFromVolume(volume)


def run_until_written(host: Any, module: Any) -> Any:
    """Press Segment and return the job in its middle: some slices are written."""
    job = press_segment(module)
    host.wait_until(lambda: job.writer.changed)
    host.process_events(300)
    return job


def stroke(host: Any, module: Any, k: int) -> None:
    """Paint in a slice while a run goes on."""
    module.ui.editor.setActiveEffectByName("Paint")
    host.slice_view("Red").drag_ras((8.0, 8.0, 3.0 * k), (14.0, 8.0, 3.0 * k))
    module.ui.editor.setActiveEffectByName("")


@pytest.mark.parametrize("end", ["done", "cancelled"])
def test_undo_of_a_stroke_that_was_painted_during_a_run_makes_no_slice_a_persons(
    host: Any, tmp_path: Path, end: str
) -> None:
    gate = tmp_path / "gate"
    module, node = segmented_behind_gate(host, gate)
    first, module.ui.correctSection.collapsed = mask_of(module), False
    module.ui.liveUpdateCheck.checked = False
    move_click(node, 0, (6.0, 0.0, 0.0))
    move_click(node, 1, (6.0, 0.0, 0.0))
    run_until_written(host, module)
    stroke(host, module, 11)
    if end == "cancelled":
        module.ui.segmentButton.click()
    gate.touch()
    settle(host, module)
    last = mask_of(module)
    assert record_of(module).owned == {11}
    module.ui.undoButton.click()
    settle(host, module)
    assert not mask_of(module)[11].any() and not record_of(module).owned
    assert "press Segment" in module.ui.statusLabel.text
    module.ui.editor.redo()
    settle(host, module)
    assert np.array_equal(mask_of(module), last) and record_of(module).owned == {11}
    for _ in range(2):
        module.ui.undoButton.click()
        settle(host, module)
    assert np.array_equal(mask_of(module), first) and not record_of(module).owned
    segment(host, module)
    shift = round(node.GetNthControlPointPositionWorld(0)[0]) - 24
    assert np.array_equal(mask_of(module), np.roll(first, shift, axis=2)) and not record_of(module).owned


def test_a_slice_erased_during_a_run_stays_a_persons_when_a_later_stroke_is_undone(host: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    add_volume(host)
    module = load(host, f"fake?gate={gate}")
    module.ui.correctSection.collapsed = False
    add_clicks((2, 5, 8))
    job = run_until_written(host, module)
    k = min(job.writer.changed)
    module.ui.editor.setActiveEffectByName("Erase")
    host.slice_view("Red").drag_ras((20.0, 20.0, 3.0 * k), (28.0, 20.0, 3.0 * k))
    stroke(host, module, 11)
    gate.touch()
    settle(host, module)
    assert record_of(module).owned == {k, 11}
    module.ui.undoButton.click()
    settle(host, module)
    assert record_of(module).owned == {k}


def test_the_editors_undo_of_a_stroke_lets_the_run_under_way_end_whole(host: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    add_volume(host)
    module = load(host, f"fake?gate={gate}&delay=0.15")
    module.ui.correctSection.collapsed = False
    add_clicks((2, 5, 8))
    job = run_until_written(host, module)
    stroke(host, module, 0)
    count = len(job.writer.changed)
    gate.touch()
    host.wait_until(lambda: len(job.writer.changed) > count + 2)
    module.ui.editor.undo()
    settle(host, module)
    assert not record_of(module).owned and filled_slices(mask_of(module)) == list(range(11))


@pytest.mark.parametrize("moment", ["before the first write", "later"])
def test_undo_of_a_stroke_in_another_segment_lets_the_run_go_on(host: Any, tmp_path: Path, moment: str) -> None:
    gate = tmp_path / "gate"
    module, node = segmented_behind_gate(host, gate)
    first, place = mask_of(module), tuple(node.GetNthControlPointPositionWorld(0))
    module.ui.correctSection.collapsed = False
    state_of(module).segmentationNode.GetSegmentation().AddEmptySegment("Other", "Other")
    module.ui.liveUpdateCheck.checked = False
    move_click(node, 0, (6.0, 0.0, 0.0))
    job = press_segment(module) if moment != "later" else run_until_written(host, module)
    module.ui.editor.setCurrentSegmentID("Other")
    stroke(host, module, 11)
    assert mask_of(module, "Other").any() and job.writer.hasBegun == (moment == "later")
    module.ui.undoButton.click()
    assert not mask_of(module, "Other").any() and not job.finished
    gate.touch()
    settle(host, module)
    assert job.state.value == "done" and not record_of(module).owned
    assert not np.array_equal(mask_of(module), first)
    for _ in range(2 if moment == "later" else 1):  # the stroke's own step holds a part of the run
        module.ui.undoButton.click()
        settle(host, module)
    assert np.array_equal(mask_of(module), first) and tuple(node.GetNthControlPointPositionWorld(0)) == place
