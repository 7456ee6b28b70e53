"""The module in the host: from clicks to a segment through the background worker."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
from gui_helpers import (
    MODULE,
    SHAPE,
    add_clicks,
    add_volume,
    filled_slices,
    load,
    mask_of,
    passes_alone,
    segment,
    state_of,
)

pytest_plugins = ["Testing.Host.pytest_plugin"]


@pytest.fixture
def module(host: Any) -> Any:
    """The loaded module with a fake worker and a fake model, in a scene with a volume."""
    add_volume(host)
    return load(host)


def test_pressing_segment_writes_the_structure_into_a_new_segment(host: Any, module: Any) -> None:
    add_clicks()
    job = segment(host, module)
    assert job.error is None, job.error
    mask = mask_of(module)
    assert filled_slices(mask) == [2, 3, 4, 5, 6, 7, 8]
    assert mask[5, 20, 24] and not mask[5, 30, 24]
    assert state_of(module).segmentationNode.GetSegmentation().GetNthSegment(0).GetName() == "Kidney"
    assert "slices updated" in module.ui.statusLabel.text


def test_the_panel_says_what_is_missing(host: Any, module: Any) -> None:
    assert "click along the structure" in module.ui.statusLabel.text
    assert not module.ui.segmentButton.enabled
    add_clicks()
    host.process_events(20)
    assert module.ui.segmentButton.enabled


def test_the_place_button_makes_a_point_list_and_the_mouse_fills_it(host: Any, module: Any) -> None:
    module.ui.placeButton.click()
    for k in (3, 5, 7):
        host.slice_view("Red").click_ras((24.0, 20.0, 3.0 * k))
    module.ui.placeButton.click()
    (node,) = state_of(module).centerlineNodes
    assert node.GetNumberOfDefinedControlPoints() == 3
    assert segment(host, module).error is None
    assert filled_slices(mask_of(module)) == list(range(1, 10))


def test_several_branches_are_segmented_together(host: Any, module: Any) -> None:
    import qt

    add_clicks((2,))
    add_clicks((9,), "Branch", at=(12.0, 12.0))
    module.widget.panel.refresh()
    (item,) = (module.ui.branchesList.item(row) for row in range(module.ui.branchesList.count))
    item.setCheckState(qt.Qt.Checked)
    segment(host, module)
    mask = mask_of(module)
    assert mask[2, 20, 24] and mask[9, 12, 12]


def test_slicer_itself_never_imports_torch(host: Any, module: Any, request: pytest.FixtureRequest) -> None:
    if "torch" in sys.modules:
        assert passes_alone(request)
        return
    add_clicks()
    segment(host, module)
    assert "torch" not in sys.modules


def test_the_first_page_needs_no_scrolling(host: Any, module: Any) -> None:
    host.window.show()
    folded = ("clicksSection", "reviewSection", "correctSection", "exportSection", "optionsSection", "setupSection")
    assert all(getattr(module.ui, name).collapsed for name in folded)
    assert module.ui.setupSection.geometry.bottom() < 620


def test_the_module_loads_in_less_than_a_second(host: Any) -> None:
    started = time.thread_time()
    host.load_module(MODULE)
    assert time.thread_time() - started < 1.0


def test_loading_starts_no_process_and_imports_nothing_heavy(host: Any, module: Any) -> None:
    assert not module.logic.workerHost.client.running
    assert not host.installs.requests
    heavy = {"torch", "peft", "segment_anything", "scipy", "skimage", "matplotlib", "highdicom", "dask"}
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import SPDSegmentLib.worker.client, SPDSegmentLib.models.bundle;"
        f"import SPDSegmentLib.geometry.slices; print(sorted({heavy!r} & set(sys.modules)))"
    )
    root = str(MODULE.parents[1])
    assert subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True).stdout.strip() == "[]"


def test_keys_segment_and_place_while_the_module_is_shown(host: Any, module: Any) -> None:
    add_clicks()
    host.process_events(20)
    keys = module.widget.panel.shortcuts
    assert {shortcut.key.toString() for shortcut in keys._installed} == {"Shift+C", "Shift+S", "Shift+N"}
    next(s for s in keys._installed if s.key.toString() == "Shift+S").activated.emit()
    run = module.widget.panel.run
    host.wait_until(lambda: run.job is not None and run.job.finished)
    assert filled_slices(mask_of(module))
    module.widget.exit()
    assert not keys._installed


def test_every_button_and_selector_has_a_tool_tip(host: Any, module: Any) -> None:
    import qt

    kinds = (qt.QPushButton, qt.QToolButton, qt.QCheckBox, qt.QComboBox)
    own = [widget for name, widget in vars(module.ui).items() if isinstance(widget, kinds)]
    assert len(own) > 10
    assert [widget.objectName for widget in own if not widget.toolTip] == []


def test_one_click_on_each_slice_of_the_volume_is_fine(host: Any, module: Any) -> None:
    add_clicks(range(SHAPE[0]))
    segment(host, module)
    assert filled_slices(mask_of(module)) == list(range(SHAPE[0]))


def test_every_stage_has_words_for_people(host: Any) -> None:
    from SPDSegmentLib.gui.panel.run_section import progressText
    from SPDSegmentLib.worker.messages import Progress

    assert progressText(Progress(1, "load_model", 0, 1, None)) == "Loading the model..."
    assert progressText(Progress(1, "encoding", 2, 9, None)) == "Looking at slices: 2 of 9"
    assert progressText(Progress(1, "decoding", 3, 9, 4.2)) == "Segmenting slices: 3 of 9, about 4 s left"
