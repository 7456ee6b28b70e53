"""Surfaces in the 3-D view: nothing is made of voxels while they are written, and in the end all is as they are."""

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
    segment,
    segmented,
    segmented_behind_gate,
    settle,
    state_of,
)

pytest_plugins = ["Testing.Host.pytest_plugin"]

Surface = tuple[int, tuple[float, ...]]


@pytest.fixture
def module(host: Any) -> Any:
    """The module with a segmented structure, from clicks on slices 2 and 8, that is shown in 3-D."""
    loaded = segmented(host)
    state_of(loaded).segmentationNode.CreateClosedSurfaceRepresentation()
    return loaded


def rest(host: Any, module: Any) -> None:
    """Let the run end, and the surfaces be made."""
    settle(host, module)
    host.wait_until(lambda: module.logic.segmenter.surfaces.isQuiet, 60_000, "the surfaces")


def shown(module: Any, segment_id: str = "") -> Surface | None:
    """Points and bounds of a segment's surface, or None."""
    state = state_of(module)
    found = state.segmentationNode.GetSegmentation().GetSegment(segment_id or state.segmentId)
    surface = found.GetRepresentation("Closed surface")
    return None if surface is None else (surface.GetNumberOfPoints(), tuple(np.round(surface.GetBounds(), 3)))


def wanted(module: Any, segment_id: str = "") -> Surface:
    """What Slicer itself makes of the segment's voxels."""
    import slicer

    state = state_of(module)
    copy = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    copy.GetSegmentation().DeepCopy(state.segmentationNode.GetSegmentation())
    segmentation = copy.GetSegmentation()
    segmentation.CreateRepresentation("Closed surface", True)
    surface = segmentation.GetSegment(segment_id or state.segmentId).GetRepresentation("Closed surface")
    told = surface.GetNumberOfPoints(), tuple(np.round(surface.GetBounds(), 3))
    slicer.mrmlScene.RemoveNode(copy)
    return told


def test_the_surface_waits_for_the_end_of_the_run_and_is_slicers_then(host: Any, tmp_path: Path) -> None:
    loaded, node = segmented_behind_gate(host, tmp_path / "gate")
    state_of(loaded).segmentationNode.CreateClosedSurfaceRepresentation()
    before = shown(loaded)
    move_click(node, 0, (9.0, 0.0, 0.0))
    run = loaded.widget.panel.run
    host.wait_until(lambda: run.isRunning and run.job.writer.changed)
    assert shown(loaded) == before
    (tmp_path / "gate").touch()
    rest(host, loaded)
    assert shown(loaded) == wanted(loaded) != before


def test_a_surface_is_made_once_for_a_run_of_many_writes(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from SPDSegmentLib.gui.scene import surfaces as shown_surfaces

    made: list[int] = []
    make = shown_surfaces.closedSurface

    def counted(*arguments: Any, **options: Any) -> Any:
        made.append(1)
        return make(*arguments, **options)

    monkeypatch.setattr(shown_surfaces, "closedSurface", counted)
    add_volume(host)
    loaded = load(host, "fake?delay=0.05")
    add_clicks((1, 3, 5, 7, 9, 11))
    segment(host, loaded)
    state_of(loaded).segmentationNode.CreateClosedSurfaceRepresentation()
    move_click(state_of(loaded).centerlineNodes[0], 2, (9.0, 0.0, 0.0))
    rest(host, loaded)
    assert len(made) == 1 and shown(loaded) == wanted(loaded)


def test_undo_and_redo_show_their_own_surfaces(host: Any, module: Any) -> None:
    first = shown(module)
    move_click(state_of(module).centerlineNodes[0], 0, (9.0, 0.0, 0.0))
    rest(host, module)
    second = shown(module)
    module.ui.undoButton.click()
    rest(host, module)
    assert shown(module) == first == wanted(module)
    module.ui.editor.redo()
    rest(host, module)
    assert shown(module) == second != first and mask_of(module)[2, 20, 33]


def test_a_cancelled_run_leaves_the_surface_of_before(host: Any, tmp_path: Path) -> None:
    loaded, node = segmented_behind_gate(host, tmp_path / "gate")
    state_of(loaded).segmentationNode.CreateClosedSurfaceRepresentation()
    before = shown(loaded)
    move_click(node, 0, (9.0, 0.0, 0.0))
    run = loaded.widget.panel.run
    host.wait_until(lambda: run.isRunning and run.job.writer.changed)
    loaded.ui.segmentButton.click()
    rest(host, loaded)
    assert shown(loaded) == before == wanted(loaded)


def test_a_surface_that_is_hidden_meanwhile_stays_hidden(host: Any, module: Any) -> None:
    move_click(state_of(module).centerlineNodes[0], 0, (9.0, 0.0, 0.0))
    surfaces = module.logic.segmenter.surfaces
    host.wait_until(lambda: not surfaces.isQuiet)
    state_of(module).segmentationNode.RemoveClosedSurfaceRepresentation()
    rest(host, module)
    assert shown(module) is None


@pytest.mark.parametrize("what", ["segment", "segmentation", "scene"])
def test_what_is_removed_meanwhile_is_forgotten(host: Any, module: Any, what: str) -> None:
    import slicer

    state = state_of(module)
    move_click(state.centerlineNodes[0], 0, (9.0, 0.0, 0.0))
    host.wait_until(lambda: not module.logic.segmenter.surfaces.isQuiet)
    if what == "segment":
        state.segmentationNode.GetSegmentation().RemoveSegment(state.segmentId)
    elif what == "segmentation":
        slicer.mrmlScene.RemoveNode(state.segmentationNode)
    else:
        host.new_scene()
    rest(host, module)


def test_the_surface_of_a_segment_that_was_overwritten_is_new_too(host: Any, module: Any) -> None:
    import slicer

    from SPDSegmentLib.gui.scene.editor_nodes import editorNode

    state = state_of(module)
    other = state.segmentationNode.GetSegmentation().AddEmptySegment("other", "Other")
    box = np.zeros(SHAPE, np.uint8)
    box[0:6, 15:25, 28:40] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(box, state.segmentationNode, other, state.volumeNode)
    state.segmentationNode.CreateClosedSurfaceRepresentation()
    before = shown(module, other)
    editorNode().SetOverwriteMode(editorNode().OverwriteAllSegments)
    move_click(state.centerlineNodes[0], 0, (9.0, 0.0, 0.0))
    rest(host, module)
    assert shown(module, other) == wanted(module, other) != before
    assert shown(module) == wanted(module)


def test_a_blocking_call_ends_with_the_new_surface(host: Any, module: Any) -> None:
    state = state_of(module)
    before = shown(module)
    clicks = add_clicks((5,), "Other clicks", at=(12.0, 12.0))
    module.logic.segment(
        state.volumeNode, clicks, "fake", segmentation=state.segmentationNode, segmentId=state.segmentId
    )
    assert shown(module) == wanted(module) != before


def test_a_mirrored_volume_under_a_transform_has_its_surface_in_place(host: Any) -> None:
    import slicer
    import vtk

    matrix = np.diag([-1.0, 1.0, 3.0, 1.0])
    matrix[0, 3] = 47.0
    volume = add_volume(host, ijk_to_ras=matrix)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    moved = vtk.vtkMatrix4x4()
    moved.SetElement(2, 3, 30.0)
    transform.SetMatrixTransformToParent(moved)
    volume.SetAndObserveTransformNodeID(transform.GetID())
    loaded = load(host)
    node = add_clicks(())
    for k in (2, 8):
        node.AddControlPointWorld(24.0, 20.0, 3.0 * k + 30.0)
    segment(host, loaded)
    state_of(loaded).segmentationNode.CreateClosedSurfaceRepresentation()
    move_click(node, 0, (9.0, 0.0, 0.0))
    rest(host, loaded)
    assert shown(loaded) == wanted(loaded)


@pytest.mark.parametrize(
    "setting", [("Joint smoothing", "1"), ("Smoothing factor", "0.0"), ("Decimation factor", "0.5")]
)
def test_the_segmentations_own_settings_hold(host: Any, module: Any, setting: tuple[str, str]) -> None:
    state_of(module).segmentationNode.GetSegmentation().SetConversionParameter(*setting)
    move_click(state_of(module).centerlineNodes[0], 0, (9.0, 0.0, 0.0))
    rest(host, module)
    assert shown(module) == wanted(module)


def test_the_view_draws_the_new_surface(host: Any, module: Any) -> None:
    display = state_of(module).segmentationNode.GetDisplayNode()
    display.SetPreferredDisplayRepresentationName3D("Closed surface")
    view = host.threed_view()
    view.widget.resetCamera()
    before = view.pixels().astype(int)
    move_click(state_of(module).centerlineNodes[0], 0, (9.0, 0.0, 0.0))
    rest(host, module)
    host.wait_until(lambda: np.abs(view.pixels().astype(int) - before).sum() > 10_000, 10_000)


def test_a_new_run_goes_on_while_a_surface_is_made(host: Any, module: Any) -> None:
    node = state_of(module).centerlineNodes[0]
    for by in (5.0, -3.0, 4.0):
        move_click(node, 0, (by, 0.0, 0.0))
        settle(host, module)
    job = press_segment(module)
    host.wait_until(lambda: job.finished)
    rest(host, module)
    assert shown(module) == wanted(module)
