"""A changed click: only its neighborhood is recomputed and written; undo brings back mask and clicks together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gui_helpers import (
    add_clicks,
    add_volume,
    digests,
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


@pytest.fixture
def module(host: Any) -> Any:
    """The module with a segmented structure, from clicks on slices 2 and 8."""
    return segmented(host)


def clicks_of(module: Any) -> Any:
    return state_of(module).centerlineNodes[0]


def move_until_written(host: Any, module: Any, node: Any) -> None:
    """Move the first click and come back in the middle of the update: some slices are written."""
    move_click(node, 0, (5.0, 0.0, 0.0))
    run = module.widget.panel.run
    host.wait_until(lambda: run.isRunning and run.job.writer.changed, 5000)


def places(node: Any) -> list[tuple[str, Any]]:
    return [
        (node.GetNthControlPointLabel(n), tuple(node.GetNthControlPointPositionWorld(n)))
        for n in range(node.GetNumberOfControlPoints())
    ]


def test_moving_a_click_leaves_slices_beyond_its_reach_bit_for_bit(host: Any, module: Any) -> None:
    before = digests(mask_of(module))
    move_click(clicks_of(module), 0, (5.0, 0.0, 0.0))
    settle(host, module)
    after = digests(mask_of(module))
    assert module.widget.panel.run.job.recomputed == (0, 1, 2, 3, 4)
    assert [k for k in range(12) if before[k] != after[k]] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("change", ["add", "remove", "exclude"])
def test_every_kind_of_change_updates_the_segment(host: Any, module: Any, change: str) -> None:
    node = clicks_of(module)
    if change == "add":
        node.AddControlPointWorld(30.0, 25.0, 15.0)
    elif change == "remove":
        node.RemoveNthControlPoint(0)
    else:
        node.SetNthControlPointSelected(0, False)
    settle(host, module)
    mask = mask_of(module)
    assert mask[5, 25, 30] == (change == "add")
    assert mask[2, 20, 24] == (change == "add")
    assert mask[8, 20, 24]


def test_a_new_name_and_less_than_a_micrometer_start_nothing(host: Any, module: Any) -> None:
    started: list[Any] = []
    module.widget.panel.run.onFinished.connect(started.append)
    module.ui.clicksSection.collapsed = False
    node = clicks_of(module)
    node.SetNthControlPointLabel(0, "cranial end")
    move_click(node, 1, (0.0002, 0.0, 0.0))
    settle(host, module)
    assert module.ui.clicksTable.item(0, 0).text() == "cranial end"
    assert not started
    move_click(node, 1, (0.002, 0.0, 0.0))
    settle(host, module)
    assert len(started) == 1


def test_a_drag_updates_once_when_the_button_is_released(host: Any, module: Any) -> None:
    started: list[Any] = []
    module.widget.panel.run.onFinished.connect(started.append)
    host.slice_view("Red").drag_ras((24.0, 20.0, 6.0), (14.0, 20.0, 6.0))
    settle(host, module)
    assert mask_of(module)[2, 20, 14]
    assert len(started) == 1


def test_without_live_update_nothing_happens_until_segment_is_pressed(host: Any, module: Any) -> None:
    module.ui.liveUpdateCheck.checked = False
    move_click(clicks_of(module), 0, (5.0, 0.0, 0.0))
    settle(host, module)
    assert mask_of(module)[2, 20, 21] and not mask_of(module)[2, 20, 33]
    segment(host, module)
    assert mask_of(module)[2, 20, 33]


def test_clicks_that_change_while_another_module_is_shown_are_followed_on_return(host: Any, module: Any) -> None:
    module.widget.exit()
    move_click(clicks_of(module), 0, (5.0, 0.0, 0.0))
    settle(host, module)
    assert not mask_of(module)[2, 20, 33]
    module.widget.enter()
    settle(host, module)
    assert mask_of(module)[2, 20, 33]


def test_before_the_first_result_clicks_start_nothing(host: Any) -> None:
    add_volume(host)
    loaded = load(host)
    add_clicks((2,)).AddControlPointWorld(20.0, 20.0, 9.0)
    settle(host, loaded)
    assert loaded.widget.panel.run.job is None
    assert not loaded.logic.workerHost.client.running


def test_undo_brings_back_mask_and_clicks_and_redo_both_again(host: Any, module: Any) -> None:
    node = clicks_of(module)
    first = mask_of(module)
    move_click(node, 0, (5.0, 0.0, 0.0))
    settle(host, module)
    second = mask_of(module)
    module.ui.undoButton.click()
    settle(host, module)
    assert np.array_equal(mask_of(module), first)
    assert node.GetNthControlPointPositionWorld(0)[0] == pytest.approx(24.0)
    module.ui.editor.redo()
    settle(host, module)
    assert np.array_equal(mask_of(module), second)
    assert node.GetNthControlPointPositionWorld(0)[0] == pytest.approx(29.0)


def test_undo_and_redo_of_a_result_keep_clicks_that_are_not_segmented_yet(host: Any, module: Any) -> None:
    node, mask = clicks_of(module), mask_of(module)
    module.ui.liveUpdateCheck.checked = False
    for k in (3, 4):
        node.AddControlPointWorld(24.0, 20.0, 3.0 * k)
    settle(host, module)
    module.ui.undoButton.click()
    settle(host, module)
    assert node.GetNumberOfControlPoints() == 4 and not mask_of(module).any()
    module.ui.editor.redo()
    settle(host, module)
    assert node.GetNumberOfControlPoints() == 4 and np.array_equal(mask_of(module), mask)


def test_undo_brings_back_a_removed_click_and_takes_away_an_added_one(host: Any, module: Any) -> None:
    node = clicks_of(module)
    before = places(node)
    node.RemoveNthControlPoint(0)
    settle(host, module)
    module.ui.undoButton.click()
    settle(host, module)
    assert places(node) == before
    assert not module.widget.panel.run.isRunning
    node.AddControlPointWorld(30.0, 25.0, 15.0)
    settle(host, module)
    module.ui.undoButton.click()
    settle(host, module)
    assert places(node) == before


def test_undo_brings_back_clicks_whose_order_was_changed(host: Any, module: Any) -> None:
    node = clicks_of(module)
    before = places(node)
    node.SwapControlPoints(0, 1)
    settle(host, module)
    node.AddControlPointWorld(30.0, 25.0, 15.0)
    settle(host, module)
    for wanted in (before[::-1], before):
        module.ui.undoButton.click()
        settle(host, module)
        assert places(node) == wanted


def test_a_click_of_a_segment_without_result_starts_nothing_while_another_is_computed(host: Any) -> None:
    add_volume(host)
    loaded = load(host, "fake?delay=0.1")
    add_clicks((2, 8))
    job = press_segment(loaded)
    host.wait_until(lambda: job.writer.changed)
    state = state_of(loaded)
    second = state.segmentationNode.GetSegmentation().AddEmptySegment("second", "Second")
    other = add_clicks((4,), "Other", at=(10.0, 10.0))
    state.segmentId, state.centerlineNodes = second, [other]
    loaded.widget.panel.refresh()
    other.AddControlPointWorld(10.0, 10.0, 18.0)
    host.wait_until(lambda: job.finished)
    settle(host, loaded)
    assert job.error is None and not mask_of(loaded, second).any()


def test_work_goes_on_after_an_undo(host: Any, module: Any) -> None:
    node = clicks_of(module)
    move_click(node, 0, (5.0, 0.0, 0.0))
    settle(host, module)
    module.ui.undoButton.click()
    settle(host, module)
    move_click(node, 1, (0.0, 5.0, 0.0))
    settle(host, module)
    mask = mask_of(module)
    assert mask[2, 20, 21] and mask[8, 28, 24]
    assert not record_of(module).owned


@pytest.mark.parametrize("how", ["button", "editor"])
def test_undo_during_an_update_brings_back_mask_and_clicks(host: Any, how: str, tmp_path: Path) -> None:
    loaded, node = segmented_behind_gate(host, tmp_path / "gate")
    first = mask_of(loaded)
    move_until_written(host, loaded, node)
    (loaded.ui.undoButton.click if how == "button" else loaded.ui.editor.undo)()
    (tmp_path / "gate").touch()
    settle(host, loaded)
    assert np.array_equal(mask_of(loaded), first)
    assert node.GetNthControlPointPositionWorld(0)[0] == pytest.approx(24.0)
    assert not record_of(loaded).owned


@pytest.mark.parametrize("step", ["undo", "redo"])
def test_the_editors_history_before_a_runs_first_write_ends_the_run_and_makes_no_slice_a_persons(
    host: Any, step: str
) -> None:
    add_volume(host)
    loaded = load(host, "fake?delay=0.15")
    node = add_clicks((3,))
    segment(host, loaded)
    first = mask_of(loaded)
    if step == "redo":
        loaded.ui.editor.undo()
        settle(host, loaded)
    node.AddControlPointWorld(24.0, 20.0, 24.0)
    job = press_segment(loaded)
    host.wait_until(lambda: job.request is not None, 5000)
    assert not job.writer.hasBegun
    getattr(loaded.ui.editor, step)()
    settle(host, loaded)
    assert job.wasUndone and not record_of(loaded).owned and node.GetNumberOfControlPoints() == 1
    assert np.array_equal(mask_of(loaded), first if step == "redo" else np.zeros_like(first))
    segment(host, loaded)
    assert np.array_equal(mask_of(loaded), first)


def test_the_slices_next_to_the_view_come_first(host: Any) -> None:
    add_volume(host)
    loaded = load(host)
    add_clicks((2, 8))
    host.slice_view("Red").jump_to((24.0, 20.0, 27.0))
    assert segment(host, loaded).answer.report["first"] == 9


def test_a_run_that_was_replaced_leaves_no_undo_step_of_its_own(host: Any, tmp_path: Path) -> None:
    loaded, node = segmented_behind_gate(host, tmp_path / "gate")
    first = mask_of(loaded)
    move_until_written(host, loaded, node)
    run, former = loaded.widget.panel.run, loaded.widget.panel.run.job
    move_click(node, 0, (1.0, 0.0, 0.0))
    host.wait_until(lambda: run.job is not former)
    (tmp_path / "gate").touch()
    settle(host, loaded)
    assert not np.array_equal(mask_of(loaded), first)
    loaded.ui.undoButton.click()
    settle(host, loaded)
    assert np.array_equal(mask_of(loaded), first)
    loaded.ui.undoButton.click()
    settle(host, loaded)
    assert not mask_of(loaded).any()


@pytest.mark.parametrize("is_written", [False, True])
def test_undo_during_a_run_keeps_clicks_where_several_have_no_result_yet(
    host: Any, is_written: bool, tmp_path: Path
) -> None:
    loaded, node = segmented_behind_gate(host, tmp_path / "gate")
    loaded.ui.liveUpdateCheck.checked = False
    first = mask_of(loaded)
    for k in (3, 4, 5):
        node.AddControlPointWorld(30.0, 14.0, 3.0 * k)
    settle(host, loaded)
    placed = places(node)
    job = press_segment(loaded)
    host.wait_until(lambda: bool(job.writer.changed) if is_written else job.request is not None, 5000)
    loaded.ui.undoButton.click()
    (tmp_path / "gate").touch()
    settle(host, loaded)
    assert np.array_equal(mask_of(loaded), first) and places(node) == placed
    assert "no result yet were kept" in loaded.ui.statusLabel.text
    segment(host, loaded)
    assert mask_of(loaded)[5, 14, 30] and not record_of(loaded).owned


def test_undo_before_a_runs_first_write_takes_the_last_click_back_and_says_so(host: Any, tmp_path: Path) -> None:
    loaded, node = segmented_behind_gate(host, tmp_path / "gate")
    placed, first = places(node), mask_of(loaded)
    node.AddControlPointWorld(30.0, 14.0, 15.0)
    job = press_segment(loaded)
    host.wait_until(lambda: job.request is not None, 5000)
    loaded.ui.undoButton.click()
    (tmp_path / "gate").touch()
    settle(host, loaded)
    assert places(node) == placed and np.array_equal(mask_of(loaded), first)
    assert "nothing was changed" not in loaded.ui.statusLabel.text


def test_many_runs_that_were_replaced_leave_undo_as_it_was(
    host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("SPDSegmentLib.gui.run.job.MAX_STATES", 5)
    loaded, node = segmented_behind_gate(host, tmp_path / "gate")
    run, states = loaded.widget.panel.run, [(mask_of(loaded), places(node))]
    (tmp_path / "gate").touch()
    move_click(node, 0, (5.0, 0.0, 0.0))
    settle(host, loaded)
    states.append((mask_of(loaded), places(node)))
    (tmp_path / "gate").unlink()
    for _ in range(6):
        former = run.job
        move_click(node, 1, (1.0, 0.0, 0.0))
        host.wait_until(lambda former=former: run.job is not former and run.job.writer.changed, 5000)
    (tmp_path / "gate").touch()
    settle(host, loaded)
    for mask, clicks in reversed(states):
        loaded.ui.undoButton.click()
        settle(host, loaded)
        assert np.array_equal(mask_of(loaded), mask) and places(node) == clicks and not record_of(loaded).owned


def test_the_run_after_a_cancelled_one_is_undone_alone(host: Any, tmp_path: Path) -> None:
    loaded, node = segmented_behind_gate(host, tmp_path / "gate")
    state, first = state_of(loaded), mask_of(loaded)
    former = state.segmentId
    move_until_written(host, loaded, node)
    loaded.ui.segmentButton.click()
    (tmp_path / "gate").touch()
    settle(host, loaded)
    assert np.array_equal(mask_of(loaded), first)
    other = add_clicks((4,), "Other", at=(10.0, 10.0))
    state.segmentId, state.centerlineNodes = "", [other]
    segment(host, loaded)
    second, kept = state.segmentId, mask_of(loaded)
    state.segmentId, state.centerlineNodes = former, [node]
    segment(host, loaded)
    assert not np.array_equal(mask_of(loaded), first)
    loaded.ui.undoButton.click()
    settle(host, loaded)
    assert np.array_equal(mask_of(loaded), first) and np.array_equal(mask_of(loaded, second), kept)


def test_an_undo_that_reached_another_segment_takes_no_clicks_that_were_placed_since(host: Any, module: Any) -> None:
    state, panel, node = state_of(module), module.widget.panel, clicks_of(module)
    former = state.segmentId
    other = add_clicks((4,), "Other", at=(10.0, 10.0))

    def choose(segment_id: str, clicks: Any) -> None:
        state.segmentId, state.centerlineNodes = segment_id, [clicks]
        panel.refresh()

    choose("", other)
    segment(host, module)
    second = state.segmentId
    for now_late in (False, True):
        choose(former, node)
        settle(host, module)
        count, x = node.GetNumberOfControlPoints(), node.GetNthControlPointPositionWorld(0)[0]
        move_click(node, 0, (5.0, 0.0, 0.0))
        settle(host, module)
        choose(second, other)
        move_click(other, 0, (2.0, 0.0, 0.0))
        settle(host, module)
        for _ in range(2):
            module.ui.undoButton.click()
            settle(host, module)
        choose(former, node)
        if now_late:
            node.AddControlPointWorld(24.0, 20.0, 30.0)
            settle(host, module)
            assert node.GetNumberOfControlPoints() == count + 1 and mask_of(module)[10].any()
        else:
            settle(host, module)
            assert node.GetNthControlPointPositionWorld(0)[0] == pytest.approx(x), "its clicks go back with it"
