"""Placing clicks: they go where the panel says, whatever the module shows, and nothing is added to the scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gui_helpers import SPACING_MM, add_clicks, add_volume, load, move_click, press_segment, segment, settle, state_of

from SPDSegmentLib.prompts.fates import SIGNS

pytest_plugins = ["Testing.Host.pytest_plugin"]


@pytest.fixture
def module(host: Any) -> Any:
    """The module while clicks are placed; two are there."""
    add_volume(host)
    loaded = load(host)
    loaded.ui.placeButton.click()
    click(host, loaded, 4)
    click(host, loaded, 6)
    return loaded


def click(host: Any, module: Any, k: int, x: float = 24.0) -> None:
    """Click into an axial slice."""
    host.slice_view("Red").click_ras((x, 20.0, SPACING_MM[2] * k))
    settle(host, module)


def placed() -> dict[str, int]:
    """Clicks of every markups node."""
    import slicer

    nodes = slicer.util.getNodesByClass("vtkMRMLMarkupsNode")
    return {node.GetName(): node.GetNumberOfDefinedControlPoints() for node in nodes}


def in_place_mode() -> bool:
    import slicer

    interaction = slicer.app.applicationLogic().GetInteractionNode()
    return bool(interaction.GetCurrentInteractionMode() == interaction.Place)


def test_clicks_go_on_into_the_centerline_after_a_run(host: Any, module: Any) -> None:
    segment(host, module)
    assert module.ui.placeButton.checked and in_place_mode()
    click(host, module, 8)
    click(host, module, 9, x=26.0)
    assert placed() == {"Centerline": 4}
    assert module.ui.placeButton.checked


def test_fates_add_no_node(host: Any, module: Any) -> None:
    import slicer

    segment(host, module)
    before = slicer.mrmlScene.GetNumberOfNodes()
    move_click(state_of(module).centerlineNodes[0], 0, (0.0, 0.0, 60.0))
    settle(host, module)
    assert {fate.fate for fate in module.widget.panel.clicks.marks.fates} == {"kept", "outside"}
    assert slicer.mrmlScene.GetNumberOfNodes() == before
    assert list(placed()) == ["Centerline"]


def test_a_click_in_the_middle_of_a_run_goes_into_the_centerline(host: Any) -> None:
    add_volume(host)
    loaded = load(host, "fake?delay=0.1")
    loaded.ui.placeButton.click()
    click(host, loaded, 4)
    job = press_segment(loaded)
    host.wait_until(lambda: job.writer.changed)
    click(host, loaded, 6)
    assert placed() == {"Centerline": 2} and in_place_mode()


def test_undo_keeps_place_mode_and_the_next_click_is_in_the_centerline(host: Any, module: Any) -> None:
    segment(host, module)
    click(host, module, 9)
    module.ui.undoButton.click()
    settle(host, module)
    assert placed() == {"Centerline": 2} and module.ui.placeButton.checked
    click(host, module, 8)
    assert placed() == {"Centerline": 3}


def test_another_centerline_gets_the_clicks_as_soon_as_it_is_chosen(host: Any, module: Any) -> None:
    import slicer

    other = slicer.mrmlScene.CreateNodeByClass("vtkMRMLMarkupsCurveNode")
    other.UnRegister(None)
    scene = slicer.mrmlScene
    scene.StartState(scene.BatchProcessState)  # so that Slicer does not make it the placed one
    other = scene.AddNode(other)
    scene.EndState(scene.BatchProcessState)
    other.CreateDefaultDisplayNodes()
    module.ui.centerlineSelector.setCurrentNode(other)
    assert module.ui.placeButton.checked
    click(host, module, 8)
    assert placed()["Centerline"] == 2 and other.GetNumberOfDefinedControlPoints() == 1


@pytest.mark.parametrize("others", [0, 1])
def test_placing_ends_when_the_centerline_is_removed(host: Any, module: Any, others: int) -> None:
    import slicer

    for _ in range(others):
        add_clicks((2,), "Other")
        module.ui.placeButton.checked = False
        module.ui.placeButton.click()
    slicer.mrmlScene.RemoveNode(state_of(module).centerlineNodes[0])
    settle(host, module)
    assert not module.ui.placeButton.checked and not in_place_mode()
    click(host, module, 8)
    assert placed() == ({"Other": 1} if others else {})


def test_turning_to_another_module_or_closing_the_scene_ends_placing(host: Any, module: Any) -> None:
    module.widget.exit()
    assert not in_place_mode()
    module.widget.enter()
    module.ui.placeButton.click()
    assert in_place_mode()
    import slicer

    slicer.mrmlScene.Clear(0)
    assert not in_place_mode()


def test_placing_for_another_module_is_left_alone(host: Any, module: Any) -> None:
    module.ui.placeButton.click()
    add_clicks((), "Elsewhere")
    import slicer

    interaction = slicer.app.applicationLogic().GetInteractionNode()
    interaction.SetCurrentInteractionMode(interaction.Place)
    module.widget.exit()
    assert in_place_mode()


def test_a_saved_scene_holds_the_clicks_and_nothing_of_their_marks(host: Any, module: Any, tmp_path: Path) -> None:
    segment(host, module)
    host.save_scene(tmp_path / "scene.mrb")
    host.open_scene(tmp_path / "scene.mrb")
    settle(host, module)
    assert placed() == {"Centerline": 2}
    assert len(module.widget.panel.clicks.marks.fates) == 2


def test_a_click_that_was_not_used_is_crossed_out_in_3d(host: Any, module: Any) -> None:
    import slicer

    segment(host, module)
    move_click(state_of(module).centerlineNodes[0], 0, (0.0, 0.0, 60.0))
    settle(host, module)
    fates = module.widget.panel.clicks.marks.fates
    crossed = sum(SIGNS[fate.fate].shape == "cross" for fate in fates)
    assert 0 < crossed < len(fates)
    view = slicer.app.layoutManager().threeDWidget(0).threeDView()
    props = view.renderWindow().GetRenderers().GetFirstRenderer().GetViewProps()
    drawn = [(data.GetNumberOfVerts(), data.GetNumberOfLines()) for data in map(_data_of, props) if data is not None]
    assert (len(fates) - crossed, 3 * crossed) in drawn


def _data_of(prop: Any) -> Any:
    mapper = prop.GetMapper() if hasattr(prop, "GetMapper") else None
    data = mapper.GetInput() if mapper is not None else None
    return data if data is not None and data.IsA("vtkPolyData") else None
