"""Fates in table and views, jumping to clicks, review of doubtful slices, saliency overlay."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gui_helpers import add_clicks, add_volume, load, mask_of, move_click, record_of, segment, settle, state_of

from SPDSegmentLib.cli.preview import MARKERS
from SPDSegmentLib.gui.scene.write_record import SliceInfo
from SPDSegmentLib.prompts.fates import SIGNS, Fate, PointFate, SliceStatus, review

pytest_plugins = ["Testing.Host.pytest_plugin"]

KEPT_COLOR = (0, 158, 115)
NOT_USED = (Fate.REJECTED_OWN_SLICE, Fate.PAST_END, Fate.OUTSIDE)


@pytest.fixture
def module(host: Any) -> Any:
    """The module with clicks on slices 2 and 8 and one outside the volume; nothing is segmented yet."""
    add_volume(host)
    loaded = load(host)
    add_clicks((2, 8, 40))
    return loaded


def rows_of(table: Any) -> list[list[str]]:
    return [[table.item(row, column).text() for column in range(3)] for row in range(table.rowCount)]


def marks(module: Any) -> dict[str, int]:
    return Counter(fate.fate for fate in module.widget.panel.clicks.marks.fates)


def colors_around(host: Any, ras: tuple[float, float, float]) -> set[tuple[int, ...]]:
    """Colors in the axial view within twelve pixels of a place."""
    red = host.slice_view("Red")
    red.jump_to(ras)
    x, y = red.pixel_of(ras)
    return {tuple(color) for color in red.pixels()[y - 12 : y + 13, x - 12 : x + 13].reshape(-1, 3).tolist()}


def shown_k() -> float:
    import slicer

    node = slicer.mrmlScene.GetNodeByID("vtkMRMLSliceNodeRed")
    return node.GetSliceToRAS().GetElement(2, 3) / 3.0


def test_the_table_and_the_views_show_the_fate_of_every_click(host: Any, module: Any) -> None:
    module.ui.clicksSection.collapsed = False
    segment(host, module)
    assert [row[1] for row in rows_of(module.ui.clicksTable)] == ["○ used", "○ used", "✕ outside the volume"]
    colors = [module.ui.clicksTable.item(row, 1).foreground().color().name() for row in (0, 2)]
    assert colors[0] != colors[1]
    assert marks(module) == {"kept": 2, "outside": 1}
    assert KEPT_COLOR in colors_around(host, (24.0, 20.0, 6.0))
    assert KEPT_COLOR not in colors_around(host, (24.0, 20.0, 9.0))
    assert module.ui.clicksLabel.text == "○ 2 used, ✕ 1 outside the volume"
    assert module.ui.statusLabel.text.endswith("Some clicks lie outside.")


def test_no_two_fates_share_shape_and_color_and_the_panel_says_the_words_of_the_picture() -> None:
    from SPDSegmentLib.gui.panel.clicks_section import fateTexts
    from SPDSegmentLib.gui.panel.overlays import OUTLINES

    assert len({(sign.shape, sign.color) for sign in SIGNS.values()}) == len(SIGNS) == len(Fate) - 1
    assert {sign.shape for sign in SIGNS.values()} == set(OUTLINES) == set(MARKERS)
    texts = fateTexts()
    assert {fate: texts[fate] for fate in SIGNS} == {fate: sign.words for fate, sign in SIGNS.items()}
    used, unused = ({s.shape for f, s in SIGNS.items() if (f in NOT_USED) is told} for told in (False, True))
    assert not used & unused, "a click that was not used is told from one that was without its color"


def test_a_click_that_was_moved_or_removed_has_no_mark_until_it_is_looked_at_again(host: Any, module: Any) -> None:
    segment(host, module)
    module.ui.liveUpdateCheck.checked = False
    node = state_of(module).centerlineNodes[0]
    move_click(node, 0, (9.0, 0.0, 0.0))
    node.RemoveNthControlPoint(2)
    settle(host, module)
    assert marks(module) == {"kept": 1}
    assert KEPT_COLOR not in colors_around(host, (24.0, 20.0, 6.0))


def test_marks_follow_the_views_and_leave_them_with_the_module(host: Any, module: Any) -> None:
    import slicer

    segment(host, module)
    slicer.app.layoutManager().layoutChanged.emit(4)
    assert KEPT_COLOR in colors_around(host, (24.0, 20.0, 24.0))
    marks = module.widget.panel.clicks.marks
    fates = marks.fates
    host.new_scene()
    assert not marks.fates and not marks._slices
    marks.show(fates)  # of the next scene: the layout is followed there too
    former = marks._slices[0]
    slicer.app.layoutManager().layoutChanged.emit(4)
    assert marks._slices and marks._slices[0] is not former
    host.unload_modules()
    assert KEPT_COLOR not in colors_around(host, (24.0, 20.0, 24.0))
    slicer.app.layoutManager().layoutChanged.emit(4)
    assert not marks._slices


def test_clicks_of_two_nodes_keep_their_own_fates(host: Any, module: Any) -> None:
    module.widget.panel.refresh()
    branch = add_clicks((50, 5), "Branch")
    state = state_of(module)
    state.centerlineNodes = [*state.centerlineNodes, branch]
    module.ui.clicksSection.collapsed = False
    segment(host, module)
    fates = [row[1] for row in rows_of(module.ui.clicksTable)]
    assert fates == ["○ used", "○ used", "✕ outside the volume", "✕ outside the volume", "○ used"]


def test_unticking_a_click_leaves_it_out_at_once(host: Any, module: Any) -> None:
    import qt

    module.ui.clicksSection.collapsed = False
    segment(host, module)
    module.ui.clicksTable.item(0, 0).setCheckState(qt.Qt.Unchecked)
    settle(host, module)
    assert rows_of(module.ui.clicksTable)[0][1] == "excluded"
    assert not mask_of(module)[2].any() and mask_of(module)[8].any()


def test_a_row_of_the_table_jumps_to_its_click(host: Any, module: Any) -> None:
    module.ui.clicksSection.collapsed = False
    settle(host, module)
    module.ui.clicksTable.cellClicked.emit(1, 1)
    assert shown_k() == pytest.approx(8.0)


def test_the_next_doubtful_slice_is_shown_round_and_round(host: Any, module: Any) -> None:
    module.ui.reviewSection.collapsed = False
    segment(host, module)
    assert module.ui.reviewLabel.text.startswith("Doubtful slices: 1,")
    state_of(module).centerlineNodes = [add_clicks((0, 11), "Wide")]
    segment(host, module)
    assert module.ui.reviewLabel.text.startswith("Doubtful slices: 6,")
    host.slice_view("Red").jump_to((24.0, 20.0, 15.0))
    seen = []
    for _ in range(4):
        module.ui.nextDoubtfulButton.click()
        seen.append(round(shown_k()))
    assert seen == [6, 7, 8, 3]
    module.ui.previousDoubtfulButton.click()
    assert round(shown_k()) == 8


def test_slices_beyond_the_ends_of_the_structure_are_not_doubtful(host: Any, module: Any) -> None:
    state_of(module).centerlineNodes = [add_clicks((3,), "Short")]
    segment(host, module)
    assert record_of(module).span == range(1, 6)
    assert record_of(module).doubtful == []


def test_slices_without_support_are_empty_and_marked(host: Any, module: Any) -> None:
    segment(host, module)
    record = record_of(module)
    assert record.unsupported == record.doubtful == [5]
    assert not mask_of(module)[5].any()


def test_the_plot_marks_the_shown_slice_and_the_doubtful_ones(host: Any, module: Any) -> None:
    from SPDSegmentLib.gui.panel.review_section import HEIGHT

    module.ui.reviewSection.collapsed = False
    segment(host, module)
    image = module.ui.qualityPlot.pixmap.toImage()
    bottom = [image.pixelColor(x, HEIGHT - 2).name() for x in range(image.width())]
    assert "#2f9e57" in bottom and "#d9412f" in bottom
    host.slice_view("Red").jump_to((24.0, 20.0, 24.0))
    host.process_events(120)
    top = module.ui.qualityPlot.pixmap.toImage()
    marked = [x for x in range(top.width()) if top.pixelColor(x, 1).name() == "#1f2933"]
    assert marked and marked[0] == pytest.approx(8.5 * top.width() / 12, abs=top.width() / 12)


def pointer(module: Any, kind: str, share: float) -> None:
    """Move the pointer over the quality plot, or press there, at a share of its width between the margins."""
    import qt

    from SPDSegmentLib.gui.panel.review_section import MARGIN, _plotWidth

    x = MARGIN + share * (_plotWidth(module.ui) - 2 * MARGIN)
    place, button = qt.QPointF(x, 20.0), qt.Qt.LeftButton if kind == "MouseButtonPress" else qt.Qt.NoButton
    event = qt.QMouseEvent(getattr(qt.QEvent, kind), place, place, button, button, qt.Qt.NoModifier)
    qt.QApplication.sendEvent(module.ui.qualityPlot, event)


def test_a_click_into_the_plot_jumps_and_the_tooltip_says_why_a_slice_is_doubtful(host: Any, module: Any) -> None:
    module.ui.reviewSection.collapsed = False
    segment(host, module)
    pointer(module, "MouseButtonPress", 9.5 / 12)
    assert shown_k() == pytest.approx(9.0)
    pointer(module, "MouseMove", 5.5 / 12)
    assert "Slice 5: empty, no click supports it" in module.ui.qualityPlot.toolTip
    pointer(module, "MouseMove", 8.5 / 12)
    assert "Slice 8: estimated quality 0.90" in module.ui.qualityPlot.toolTip
    pointer(module, "MouseMove", 11.5 / 12)
    assert "Slice 11: beyond the structure" in module.ui.qualityPlot.toolTip


@pytest.mark.alone
def test_the_plot_is_drawn_without_a_pause(host: Any, module: Any) -> None:
    module.ui.reviewSection.collapsed = False
    segment(host, module)
    with host.longest_block() as block:
        module.widget.panel.review._drawCurrent()
    assert block.longest_cpu_ms < 50, block.longest_was


def test_the_plot_is_as_wide_as_its_place(host: Any, module: Any) -> None:
    host.window.show()
    module.ui.reviewSection.collapsed = False
    segment(host, module)
    for width in (400, 300):
        module.ui.qualityPlot.resize(width, 90)
        host.process_events(150)
        assert module.ui.qualityPlot.pixmap.width() == module.ui.qualityPlot.width


def test_stray_clicks_are_listed_apart_and_lead_to_no_doubtful_slices(host: Any, module: Any) -> None:
    segment(host, module)
    record = record_of(module)
    record.info = {
        t: SliceInfo(0.9 if t < 4 else None, SliceStatus.SUPPORTED if t < 4 else SliceStatus.ABSTAINED)
        for t in range(12)
    }
    record.info |= {1: SliceInfo(0.4, SliceStatus.SUPPORTED), 3: SliceInfo(None, SliceStatus.SALIENCY)}
    record.fates = (
        PointFate(0, 2, Fate.KEPT, click_id="n:1"),
        PointFate(1, 9, Fate.REJECTED_OWN_SLICE, click_id="n:2"),
        PointFate(2, 3, Fate.REJECTED_OWN_SLICE, click_id="n:3"),
    )
    module.widget.panel.review.show(record)
    assert (record.span, record.doubtful, record.review.stray) == (range(4), [1], [9])
    assert module.widget.panel.review.describe(3) == "Slice 3: its quality is not estimated"
    assert module.ui.reviewLabel.text == (
        "Doubtful slices: 1, 1 of low estimated quality. Clicks beyond the structure that were not used: slices 9"
    )


@pytest.mark.parametrize(
    ("filled", "clicks", "doubtful"),
    [
        ({0, 1, 2}, {1: "kept"}, {}),
        ({0, 1, 2, 5, 6}, {1: "kept", 6: "kept"}, {3: "gap", 4: "gap"}),
        ({2, 3}, {2: "kept", 5: "kept"}, {4: "end", 5: "end"}),
        ({2, 3}, {2: "kept", 5: "borrowed"}, {}),
        ({2, 3}, {2: "kept", 5: "outside"}, {}),
        (set(), {2: "rejected_own_slice", 3: "rejected_own_slice"}, {2: "end", 3: "end"}),
    ],
)
def test_doubtful_is_what_is_worth_a_look(filled: set[int], clicks: dict[int, str], doubtful: dict[int, str]) -> None:
    nothing = (SliceStatus.ABSTAINED, SliceStatus.EMPTY)
    slices = {t: (SliceStatus.SUPPORTED, 0.9) if t in filled else (nothing[t % 2], 0.0) for t in range(8)}
    found = review(slices, [(t, Fate(fate)) for t, fate in clicks.items()])
    assert found.doubtful == doubtful


def test_the_saliency_overlay_follows_the_view_and_leaves_no_trace(host: Any, module: Any) -> None:
    import slicer

    composite = slicer.mrmlScene.GetNodeByID("vtkMRMLSliceCompositeNodeRed")
    nodes = slicer.mrmlScene.GetNumberOfNodes()
    module.ui.clicksSection.collapsed = False
    module.ui.saliencyCheck.checked = True
    overlay = module.widget.panel.saliency.overlay
    host.wait_until(lambda: overlay.node is not None)
    host.slice_view("Red").jump_to((24.0, 20.0, 9.0))
    host.wait_until(lambda: slicer.util.arrayFromVolume(overlay.node).max() == pytest.approx(3 / 12))
    assert composite.GetForegroundVolumeID() == overlay.node.GetID()
    matrix = np.zeros((3, 4))
    overlay.node.GetIJKToRASMatrix(vtk_matrix := __import__("vtk").vtkMatrix4x4())
    matrix = np.array([[vtk_matrix.GetElement(r, c) for c in range(4)] for r in range(3)])
    assert np.abs(matrix[:, 3] @ [0, 0, 1]) == pytest.approx(9.0)
    module.ui.saliencyCheck.checked = False
    assert not composite.GetForegroundVolumeID()
    assert slicer.mrmlScene.GetNumberOfNodes() <= nodes + 1
    assert overlay.node is None


def test_the_saliency_is_shown_around_the_clicks_before_anything_is_segmented(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_volume(host)
    loaded = load(host)
    add_clicks([2, 5, 8], at=(12.0, 9.0))
    settle(host, loaded)
    client = loaded.widget.panel.logic.segmenter.workerHost.client
    ask = client.saliency
    centers: list[Any] = []

    def noted(name: str, t: int, center: Any, callbacks: Any) -> Any:
        centers.append(center)
        return ask(name, t, center, callbacks)

    monkeypatch.setattr(client, "saliency", noted)
    loaded.ui.saliencyCheck.checked = True
    host.wait_until(lambda: loaded.widget.panel.saliency.overlay.node is not None)
    assert centers[-1] == pytest.approx((12.0, 9.0, 15.0))


def test_a_saliency_that_cannot_be_had_says_why(host: Any) -> None:
    add_volume(host)
    loaded = load(host, "fake?missing=1")
    loaded.ui.saliencyCheck.checked = True
    host.wait_until(lambda: "not on this machine" in loaded.ui.statusLabel.text)
    assert not loaded.ui.saliencyCheck.checked


def test_ticking_a_rejected_click_again_insists_on_it(host: Any, module: Any) -> None:
    import qt

    module.ui.clicksSection.collapsed = False
    segment(host, module)
    record = record_of(module)
    record.fates = (replace(record.fates[0], fate="rejected_own_slice"), *record.fates[1:])
    module.widget.panel.clicks.show(record)
    for state in (qt.Qt.Unchecked, qt.Qt.Checked):
        module.ui.clicksTable.item(0, 0).setCheckState(state)
        settle(host, module)
    node = state_of(module).centerlineNodes[0]
    assert [node.GetNthControlPointDescription(n) for n in (0, 1)] == ["insisted", ""]


def test_ticking_a_kept_click_again_insists_on_nothing(host: Any, module: Any) -> None:
    import qt

    module.ui.clicksSection.collapsed = False
    segment(host, module)
    for state in (qt.Qt.Unchecked, qt.Qt.Checked):
        module.ui.clicksTable.item(0, 0).setCheckState(state)
        settle(host, module)
    assert state_of(module).centerlineNodes[0].GetNthControlPointDescription(0) == ""


def places(module: Any) -> list[int]:
    """Slices of the clicks of the first centerline."""
    (node,) = state_of(module).centerlineNodes
    return [round(node.GetNthControlPointPositionWorld(n)[2] / 3.0) for n in range(node.GetNumberOfControlPoints())]


def test_removed_clicks_come_back_one_by_one_before_anything_is_segmented(host: Any, module: Any) -> None:
    settle(host, module)
    module.ui.deleteLastButton.click()
    module.ui.clearButton.click()
    settle(host, module)
    assert places(module) == [] and not module.ui.segmentButton.enabled
    module.ui.undoButton.click()
    assert places(module) == [2, 8]
    module.ui.undoButton.click()
    settle(host, module)
    assert places(module) == [2, 8, 40] and module.ui.segmentButton.enabled


def test_undo_brings_cleared_clicks_back_and_leaves_the_mask_alone(host: Any, module: Any) -> None:
    segment(host, module)
    before = mask_of(module)
    module.ui.clearButton.click()
    settle(host, module)
    assert places(module) == [] and np.array_equal(mask_of(module), before)
    module.ui.undoButton.click()
    settle(host, module)
    assert places(module) == [2, 8, 40] and np.array_equal(mask_of(module), before)
    assert marks(module) == {"kept": 2, "outside": 1}


def test_undo_brings_back_the_last_click_with_the_mask_that_came_of_it(host: Any, module: Any) -> None:
    settle(host, module)
    state_of(module).centerlineNodes[0].RemoveNthControlPoint(2)
    segment(host, module)
    before = mask_of(module)
    module.ui.deleteLastButton.click()
    settle(host, module)
    assert places(module) == [2] and not mask_of(module)[8].any()
    module.ui.undoButton.click()
    settle(host, module)
    assert places(module) == [2, 8] and np.array_equal(mask_of(module), before)


def test_a_removal_that_another_click_followed_is_no_longer_what_undo_takes_back(host: Any, module: Any) -> None:
    segment(host, module)
    module.ui.liveUpdateCheck.checked = False
    module.ui.clearButton.click()
    state_of(module).centerlineNodes[0].AddControlPointWorld(24.0, 20.0, 15.0)
    settle(host, module)
    assert module.widget.panel.clicks.removed() is None
    module.ui.undoButton.click()
    settle(host, module)
    assert not mask_of(module).any()
