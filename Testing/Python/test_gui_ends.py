"""The structure ends at a click: the button below the table of clicks, and what the scene and the run know of it."""

from __future__ import annotations

from typing import Any

import pytest
from gui_helpers import add_clicks, add_volume, load, segment, settle, state_of

pytest_plugins = ["Testing.Host.pytest_plugin"]


@pytest.fixture
def module(host: Any) -> Any:
    """The module with clicks on slices 2, 8 and 15, their table unfolded."""
    add_volume(host)
    loaded = load(host)
    add_clicks((2, 8, 15))
    loaded.ui.clicksSection.collapsed = False
    settle(host, loaded)
    return loaded


def descriptions(module: Any) -> list[str]:
    (node,) = state_of(module).centerlineNodes
    return [node.GetNthControlPointDescription(n) for n in range(node.GetNumberOfControlPoints())]


def press_end(host: Any, module: Any, row: int) -> None:
    module.ui.clicksTable.setCurrentCell(row, 1)
    module.ui.endButton.click()
    settle(host, module)


def test_the_button_marks_the_chosen_click_and_shows_it(host: Any, module: Any) -> None:
    assert not module.ui.endButton.enabled
    press_end(host, module, 2)
    assert descriptions(module) == ["", "", "end"]
    assert module.ui.clicksTable.item(2, 0).text().endswith("(end)") and module.ui.endButton.checked
    module.ui.clicksTable.setCurrentCell(0, 1)
    assert module.ui.endButton.enabled and not module.ui.endButton.checked
    press_end(host, module, 2)
    assert descriptions(module) == ["", "", ""] and not module.ui.clicksTable.item(2, 0).text().endswith("(end)")


def test_an_excluded_click_is_no_end(host: Any, module: Any) -> None:
    import qt

    press_end(host, module, 1)
    module.ui.clicksTable.item(1, 0).setCheckState(qt.Qt.Unchecked)
    settle(host, module)
    assert not module.ui.endButton.enabled and not module.ui.endButton.checked
    module.ui.clicksTable.item(1, 0).setCheckState(qt.Qt.Checked)
    settle(host, module)
    assert module.ui.endButton.enabled and module.ui.endButton.checked, "it is one again"


def test_an_end_is_another_choice_of_clicks_and_reaches_the_background_process(host: Any, module: Any) -> None:
    from SPDSegmentLib.gui.scene.centerlines import namedClicks, snapshotClicks, usedClicks, usedPlaces
    from SPDSegmentLib.worker.payloads import flatten_markups

    segment(host, module)
    nodes = state_of(module).centerlineNodes
    before = snapshotClicks(nodes)
    press_end(host, module, 0)
    after = snapshotClicks(nodes)
    assert usedClicks(after) != usedClicks(before) and len(usedPlaces(after) - usedPlaces(before)) == 1
    stack = module.widget.panel.inputs.currentTask().view.snapshot().stack
    _, _, (group,) = flatten_markups(namedClicks(after, stack))
    assert group.ends == (0,) and group.insisted == ()


def test_a_click_is_an_end_and_insisted_on_and_its_own_description_comes_back(host: Any) -> None:
    from SPDSegmentLib.gui.scene.centerlines import setEnd, setIncluded

    node = add_clicks((3,))
    name = node.GetNthControlPointID(0)
    node.SetNthControlPointDescription(0, "hilum, see report")
    said = []
    for change in (
        lambda: setEnd(node, name, True),
        lambda: setIncluded(node, name, True, insisted=True),
        lambda: setEnd(node, name, False),
        lambda: setEnd(node, name, True),
        lambda: setIncluded(node, name, False),
        lambda: setEnd(node, name, False),
    ):
        change()
        said.append(node.GetNthControlPointDescription(0))
    assert said == ["end", "insisted, end", "insisted", "insisted, end", "end", "hilum, see report"]
    assert not list(node.GetAttributeNames())


def test_clicks_that_come_back_have_their_own_description_too(host: Any) -> None:
    from SPDSegmentLib.gui.scene.centerlines import removeClicks, restoreClicks, setEnd, snapshotClicks

    node = add_clicks((3,))
    node.SetNthControlPointDescription(0, "hilum, see report")
    before = snapshotClicks([node])
    setEnd(node, node.GetNthControlPointID(0), True)
    marked = snapshotClicks([node])
    restoreClicks(before)
    assert node.GetNthControlPointDescription(0) == "hilum, see report"
    restoreClicks(marked)
    removeClicks(node)
    restoreClicks(marked)
    assert node.GetNthControlPointDescription(0) == "end"
    setEnd(node, node.GetNthControlPointID(0), False)
    assert node.GetNthControlPointDescription(0) == "hilum, see report"


def test_undo_of_clear_brings_ends_back(host: Any, module: Any) -> None:
    press_end(host, module, 2)
    module.ui.clearButton.click()
    settle(host, module)
    module.ui.undoButton.click()
    settle(host, module)
    assert descriptions(module) == ["", "", "end"]
