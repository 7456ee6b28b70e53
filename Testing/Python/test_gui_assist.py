"""The suggested click as a ghost point, and learning from corrections: shown first, taken over only when told to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gui_helpers import (
    add_clicks,
    add_volume,
    load,
    mask_of,
    move_click,
    record_of,
    segment,
    segmented,
    settle,
    state_of,
)
from test_gui_correct import paint

pytest_plugins = ["Testing.Host.pytest_plugin"]


@pytest.fixture
def module(host: Any) -> Any:
    """The module with a structure segmented from clicks on slices 2 and 5."""
    return segmented(host, (2, 5))


def press(host: Any, module: Any, name: str) -> None:
    """Press a button and wait until what it asked for is there."""
    getattr(module.ui, name).click()
    assist = module.widget.panel.assist
    host.wait_until(lambda: assist._request is None and not module.widget.panel.run.isRunning, 60_000)
    settle(host, module)


def test_a_suggested_click_is_shown_as_a_ghost_and_is_no_click_until_it_is_accepted(host: Any, module: Any) -> None:
    import slicer

    clicks, before = state_of(module).centerlineNodes[0], mask_of(module)
    active = slicer.app.applicationLogic().GetSelectionNode().GetActivePlaceNodeID()
    press(host, module, "suggestButton")
    ghost = module.widget.panel.assist.ghost
    np.testing.assert_allclose(ghost.positionRas, (22.0, 20.0, 24.0))
    assert "Slice 8" in module.ui.suggestLabel.text and "50 %" in module.ui.suggestLabel.text
    assert clicks.GetNumberOfControlPoints() == 2 and np.array_equal(mask_of(module), before)
    assert ghost.node.GetHideFromEditors() and not ghost.node.GetSaveWithScene()
    assert slicer.app.applicationLogic().GetSelectionNode().GetActivePlaceNodeID() == active
    assert state_of(module).centerlineNodes == [clicks]

    ghost.node.SetNthControlPointPositionWorld(0, 25.0, 21.0, 24.0)  # dragged
    press(host, module, "acceptButton")
    place = [0.0, 0.0, 0.0]
    clicks.GetNthControlPointPositionWorld(2, place)
    assert place == [25.0, 21.0, 24.0] and ghost.node is None
    host.wait_until(lambda: mask_of(module)[8].any(), 20_000)  # the live update took it over
    from SPDSegmentLib.gui.scene.centerlines import snapshotClicks

    assert snapshotClicks([clicks])[0][1].points[2].insisted


def test_a_dismissed_suggestion_leaves_everything_and_is_told_to_the_next(host: Any, module: Any) -> None:
    import slicer

    clicks, before = state_of(module).centerlineNodes[0], mask_of(module)
    press(host, module, "suggestButton")
    press(host, module, "dismissButton")
    assert module.widget.panel.assist.ghost.node is None and not module.ui.acceptButton.enabled
    assert clicks.GetNumberOfControlPoints() == 2 and np.array_equal(mask_of(module), before)
    press(host, module, "suggestButton")
    place = module.widget.panel.assist.ghost.positionRas
    assert place is None or place[2] != 24.0
    text = module.ui.suggestLabel.text
    assert place is None or ("is empty" in text and "Does the structure pass there? Drag" in text and "%" not in text)
    slicer.mrmlScene.RemoveNode(clicks)
    module.ui.acceptButton.click()  # there is nothing any more that would take it
    settle(host, module)
    assert module.widget.panel.assist.ghost.node is None and np.array_equal(mask_of(module), before)


def test_an_accepted_click_takes_its_place_in_a_curve(host: Any) -> None:
    from SPDSegmentLib.gui.scene.centerlines import addClick, snapshotClicks

    curve = add_clicks((2, 4, 8), kind="Curve")
    addClick(curve, (24.0, 20.0, 18.0))
    addClick(curve, (24.0, 20.0, 30.0))
    points = snapshotClicks([curve])[0][1].points
    assert [p.position_ras[2] for p in points] == [6.0, 12.0, 18.0, 24.0, 30.0]
    assert [p.insisted for p in points] == [False, False, True, False, True]


def test_corrections_teach_what_is_shown_first_then_applied_undone_and_forgotten(host: Any, module: Any) -> None:
    module.ui.correctSection.collapsed = False
    paint(host, module, 3)
    assert not module.ui.learnButton.enabled, "one corrected slice is too few"
    paint(host, module, 4)
    own = mask_of(module)
    press(host, module, "learnButton")
    text = module.ui.learnLabel.text
    assert text.startswith("Learned from 2 corrected slices") and "nothing has changed yet" in text
    assert "Slices: 0-2, 5-7." in text
    assert np.array_equal(mask_of(module), own) and not record_of(module).learned

    press(host, module, "applyLearnedButton")
    wider = mask_of(module)
    assert record_of(module).learned and wider.sum() > own.sum()
    assert np.array_equal(wider[3:5], own[3:5]), "a person's slices stay"
    assert module.ui.forgetLearnedButton.enabled

    module.ui.undoButton.click()
    settle(host, module)
    assert np.array_equal(mask_of(module), own) and not record_of(module).learned

    press(host, module, "learnButton")
    press(host, module, "applyLearnedButton")
    assert np.array_equal(mask_of(module), wider)
    segment(host, module)
    assert np.array_equal(mask_of(module), wider) and record_of(module).learned, "later runs stay adapted"
    press(host, module, "forgetLearnedButton")
    assert np.array_equal(mask_of(module), own) and not record_of(module).learned


def test_what_learning_again_would_change_is_said_of_the_masks_as_they_are(host: Any, module: Any) -> None:
    module.ui.correctSection.collapsed = False
    paint(host, module, 3)
    paint(host, module, 4)
    press(host, module, "learnButton")
    press(host, module, "applyLearnedButton")
    paint(host, module, 6)
    press(host, module, "learnButton")
    assert "0 slices and 0 voxels would change" in module.ui.learnLabel.text, "it teaches what is applied already"


def test_where_nothing_is_gained_nothing_can_be_applied(host: Any) -> None:
    add_volume(host)
    module = load(host, "fake?learns=0")
    add_clicks((2, 5))
    segment(host, module)
    module.ui.correctSection.collapsed = False
    paint(host, module, 3)
    paint(host, module, 4)
    press(host, module, "learnButton")
    assert module.ui.learnLabel.text.startswith("Nothing was gained")
    assert not module.ui.applyLearnedButton.enabled


def test_the_segment_is_straightened_measured_and_saved_when_asked(host: Any, module: Any, tmp_path: Any) -> None:
    import csv

    ui, straight = module.ui, module.widget.panel.straight
    ui.straightSection.collapsed = False
    assert ui.straightButton.enabled and not ui.saveTableButton.enabled
    ui.straightButton.click()
    host.wait_until(lambda: straight.found is not None, 60_000)
    found, mask = straight.found, mask_of(module)
    volume_mm3 = float(mask.sum()) * 3.0
    assert float(found.area_mm2.mean()) * found.centerline_mm == pytest.approx(volume_mm3, rel=0.15)
    assert (
        ui.straightTable.rowCount == len(found.position_mm) and f"{found.centerline_mm:.0f} mm" in ui.straightLabel.text
    )
    assert ui.straightPicture.pixmap.width() > 200

    straight.askPath = lambda name, suffix: str(tmp_path / f"{name}{suffix}")
    ui.saveTableButton.click()
    ui.savePictureButton.click()
    rows = list(csv.reader((tmp_path / "Kidney.csv").open(encoding="utf-8", newline="")))
    assert rows[0][0] == "position_mm" and len(rows) == 1 + len(found.position_mm)
    assert (tmp_path / "Kidney.png").read_bytes().startswith(b"\x89PNG")

    straight.askPath = lambda name, suffix: str(tmp_path / name)  # typed without the ending: the window did not ask
    asked: list[Path] = []

    def refuse(path: Path) -> bool:
        asked.append(path)
        return False

    straight.confirm = refuse
    for button, suffix in ((ui.saveTableButton, ".csv"), (ui.savePictureButton, ".png")):
        kept = tmp_path / f"Kidney{suffix}"
        kept.write_text("precious")
        button.click()
        assert asked.pop() == kept and kept.read_text() == "precious"
    straight.askPath = lambda name, suffix: str(tmp_path / f"{name}{suffix}")

    for k, how in ((3, "Paint"), (3, "Erase")):  # another state, also of a slice that is a person's already
        if straight.found is None:
            ui.straightButton.click()
            host.wait_until(lambda: straight.found is not None, 60_000)
        paint(host, module, k, how)
        assert straight.found is None and ui.straightTable.rowCount == 0 and not ui.saveTableButton.enabled

    ui.straightButton.click()
    host.wait_until(lambda: straight.found is not None, 60_000)
    (tmp_path / "Kidney.csv").unlink()
    state_of(module).volumeNode.SetSpacing(2.0, 2.0, 3.0)  # the panel is not told of that
    ui.saveTableButton.click()
    assert "measure again" in ui.straightLabel.text and not (tmp_path / "Kidney.csv").exists()


def test_what_one_model_learned_is_not_offered_for_another_and_is_applied_for_its_own(host: Any, module: Any) -> None:
    inputs = module.widget.panel.inputs
    inputs.extraModels = [*inputs.extraModels, replace(inputs.extraModels[0], key="fake?radius=5", name="wide")]
    module.widget.panel.refresh()
    module.ui.correctSection.collapsed = False
    paint(host, module, 3)
    paint(host, module, 4)
    press(host, module, "learnButton")
    assert module.ui.applyLearnedButton.enabled
    box = module.ui.modelBox
    box.currentIndex = box.findData("wide")
    box.activated.emit(box.currentIndex)
    assert not module.ui.applyLearnedButton.enabled and "another model" in module.ui.learnLabel.text
    press(host, module, "learnButton")
    press(host, module, "applyLearnedButton")
    assert record_of(module).model == "wide" and record_of(module).learned


def choose_clicks(host: Any, module: Any, slices: tuple[int, ...]) -> Any:
    """Choose another list with clicks on these slices, and return it."""
    clicks = add_clicks(slices, name="Other clicks", at=(30.0, 14.0))
    module.ui.centerlineSelector.setCurrentNode(clicks)
    settle(host, module)
    return clicks


def test_what_was_learned_is_not_applied_or_forgotten_where_other_clicks_are_chosen(host: Any, module: Any) -> None:
    own = state_of(module).centerlineNodes[0]
    module.ui.correctSection.collapsed = False
    paint(host, module, 3)
    paint(host, module, 4)
    before = mask_of(module)
    press(host, module, "learnButton")
    choose_clicks(host, module, (9,))
    assert not module.ui.applyLearnedButton.enabled and "list of clicks" in module.ui.learnLabel.text
    assert not module.ui.learnButton.enabled, "what it would teach would replace the result"
    module.widget.panel.assist._apply()
    settle(host, module)
    assert np.array_equal(mask_of(module), before)

    module.ui.centerlineSelector.setCurrentNode(own)
    settle(host, module)
    press(host, module, "learnButton")
    press(host, module, "applyLearnedButton")
    assert record_of(module).learned and module.ui.forgetLearnedButton.enabled
    choose_clicks(host, module, (9,))
    assert not module.ui.forgetLearnedButton.enabled


def test_a_suggested_click_is_withdrawn_where_another_list_is_chosen(host: Any, module: Any) -> None:
    press(host, module, "suggestButton")
    assert module.ui.acceptButton.enabled
    other = choose_clicks(host, module, (9,))
    assert module.widget.panel.assist.ghost.node is None and not module.ui.acceptButton.enabled
    assert not module.ui.suggestButton.enabled, "the result is not that of these clicks"
    module.widget.panel.assist._accept()
    assert other.GetNumberOfControlPoints() == 1


def test_live_update_replaces_nothing_where_what_was_learned_is_lost_and_segment_goes_on(
    host: Any, module: Any
) -> None:
    module.ui.correctSection.collapsed = False
    paint(host, module, 3)
    paint(host, module, 4)
    press(host, module, "learnButton")
    press(host, module, "applyLearnedButton")
    taught, clicks = mask_of(module), state_of(module).centerlineNodes[0]
    module.logic.workerHost.restart()
    move_click(clicks, 0, (1.0, 0.0, 0.0))
    settle(host, module)
    module.widget.panel.refresh()
    assert np.array_equal(mask_of(module), taught) and record_of(module).learned
    assert "taught is no longer" in module.ui.statusLabel.text and module.ui.forgetLearnedButton.enabled
    segment(host, module)
    assert not np.array_equal(mask_of(module), taught) and not record_of(module).learned
    move_click(clicks, 0, (-1.0, 0.0, 0.0))
    settle(host, module)
    assert module.widget.panel.run.job.writer.changed and "taught" not in module.ui.statusLabel.text


def test_whether_a_run_may_follow_is_only_asked(host: Any) -> None:
    module = segmented(host)
    panel, task = module.widget.panel, module.widget.panel.inputs.currentTask()
    task.target.saveRecord(replace(task.target.record, learned="lesson"))
    module.logic.workerHost.restart()
    panel.run._say("said before")
    assert not panel._isFollowed(panel.clicks.snapshot())
    assert module.ui.statusLabel.text == "said before"
