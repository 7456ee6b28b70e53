"""Volumes of every kind of geometry, and clicks of every kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gui_helpers import (
    MODULE,
    SHAPE,
    add_clicks,
    add_volume,
    filled_slices,
    load,
    mask_of,
    move_click,
    press_segment,
    record_of,
    segment,
    segmented,
    settle,
    state_of,
)

pytest_plugins = ["Testing.Host.pytest_plugin"]

CLICKS_IJK = ((24, 20, 4), (24, 20, 6))
RADIUS_MM = 4.0


def rotation(degrees: float, axis: int) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = np.eye(4)
    first, second = [n for n in range(3) if n != axis]
    matrix[[first, first, second, second], [first, second, first, second]] = c, -s, s, c
    return matrix


def placed(matrix: np.ndarray, origin: Any = (10.0, -20.0, 30.0)) -> np.ndarray:
    matrix = matrix @ np.diag([1.0, 1.0, 3.0, 1.0])
    matrix[:3, 3] = origin
    return matrix


GEOMETRIES = {
    "oblique": placed(rotation(20.0, 2) @ rotation(15.0, 0)),
    "left-handed": placed(np.diag([-1.0, 1.0, 1.0, 1.0])),
    "flipped": placed(np.diag([-1.0, -1.0, 1.0, 1.0])),
    "reversed slices": placed(np.diag([1.0, 1.0, -1.0, 1.0])),
    "anisotropic": np.diag([0.4, 1.1, 6.0, 1.0]),
}


def click_at(matrix: np.ndarray, voxels: Any = CLICKS_IJK, kind: str = "Fiducial") -> Any:
    """Clicks at voxels (I, J, K)."""
    node = add_clicks((), kind=kind)
    for voxel in voxels:
        node.AddControlPointWorld(*(matrix @ (*voxel, 1.0))[:3])
    return node


def transform(matrix: np.ndarray) -> Any:
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    node.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    return node


def assert_discs_around_clicks(mask: np.ndarray) -> None:
    """The fake model's answer for ``CLICKS_IJK``, in the volume's own voxels."""
    assert filled_slices(mask) == [2, 3, 4, 5, 6, 7, 8]
    j, i = np.nonzero(mask[5])
    assert (i.mean(), j.mean()) == pytest.approx((24.0, 20.0), abs=0.51)
    assert mask[5, 20, 24] and 45 <= mask[5].sum() <= 49


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_structure_lies_where_the_clicks_are(host: Any, name: str) -> None:
    matrix = GEOMETRIES[name]
    add_volume(host, ijk_to_ras=matrix)
    module = load(host)
    click_at(matrix)
    job = segment(host, module)
    assert job.error is None, job.error
    assert_discs_around_clicks(mask_of(module))


@pytest.mark.parametrize("name", ["oblique", "reversed slices"])
@pytest.mark.parametrize("cut_margins", [False, True])
def test_some_slices_are_read_as_they_are_among_all(
    host: Any, monkeypatch: pytest.MonkeyPatch, name: str, cut_margins: bool
) -> None:
    matrix = GEOMETRIES[name]
    add_volume(host, ijk_to_ras=matrix)
    module = load(host)
    click_at(matrix)
    assert segment(host, module).error is None
    task = module.widget.panel.run.task
    if cut_margins:
        from SPDSegmentLib.gui.scene import target

        monkeypatch.setattr(target, "LARGE_LABELMAP", 0)
    complete = task.target.read(task.writtenSnapshot())
    last = complete.shape[0] - 1
    for wanted in ((), (0,), (last,), (4,), (3, 7), (0, 5), range(last + 1)):
        some = task.target.read(task.writtenSnapshot(), wanted)
        assert some.shape == complete.shape and len(some.box) <= len(complete.box)
        for t in wanted:
            assert np.array_equal(some.mask(t), complete.mask(t)) and some.digest(t) == complete.digest(t)
    assert len(task.target.read(task.writtenSnapshot(), (4,)).box) == 1


def test_volume_and_clicks_under_a_linear_transform(host: Any) -> None:
    volume = add_volume(host)
    volume.SetAndObserveTransformNodeID(transform(placed(rotation(90.0, 2)) @ np.diag([1, 1, 1 / 3, 1])).GetID())
    module = load(host)
    clicks = click_at(np.diag([1.0, 1.0, 3.0, 1.0]))
    clicks.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    assert segment(host, module).error is None
    assert_discs_around_clicks(mask_of(module))
    assert state_of(module).segmentationNode.GetTransformNodeID() == volume.GetTransformNodeID()


def test_clicks_alone_under_a_linear_transform_count_where_they_are_seen(host: Any) -> None:
    add_volume(host)
    module = load(host)
    clicks = click_at(
        np.diag([1.0, 1.0, 3.0, 1.0]) @ np.array([[1, 0, 0, -7.0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    )
    shift = np.eye(4)
    shift[0, 3] = 7.0
    clicks.SetAndObserveTransformNodeID(transform(shift).GetID())
    assert segment(host, module).error is None
    assert_discs_around_clicks(mask_of(module))
    clicks.SetNthControlPointPositionWorld(0, 30.0, 20.0, 12.0)
    settle(host, module)
    module.ui.undoButton.click()
    settle(host, module)
    assert clicks.GetNthControlPointPositionWorld(0) == pytest.approx((24.0, 20.0, 12.0))


def warped() -> Any:
    """A transform that is not linear."""
    import slicer
    import vtk

    spline = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode")
    warp = vtk.vtkThinPlateSplineTransform()
    source, goal = vtk.vtkPoints(), vtk.vtkPoints()
    for n in range(4):
        source.InsertNextPoint(n * 5.0, n % 2 * 5.0, n // 2 * 5.0)
        goal.InsertNextPoint(n * 5.0 + n * n, n % 2 * 5.0, n // 2 * 5.0)
    warp.SetSourceLandmarks(source)
    warp.SetTargetLandmarks(goal)
    warp.SetBasisToR()
    spline.SetAndObserveTransformToParent(warp)
    return spline


def test_a_non_linear_transform_is_refused_with_a_reason(host: Any) -> None:
    volume = add_volume(host, show=False)
    volume.SetAndObserveTransformNodeID(warped().GetID())
    module = load(host)
    add_clicks()
    assert press_segment(module) is None
    assert "not linear" in module.ui.statusLabel.text and "Harden" in module.ui.statusLabel.text
    assert state_of(module).segmentationNode is None


@pytest.mark.parametrize("kind", ["linear", "not linear"])
@pytest.mark.parametrize("moved", ["volume and segmentation", "segmentation"])
def test_what_is_moved_during_a_run_is_as_before_and_nothing_is_a_persons(host: Any, moved: str, kind: str) -> None:
    import slicer

    volume = add_volume(host, show=False)
    module = load(host, "fake?delay=0.05")
    add_clicks()
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Mine")
    state = state_of(module)
    state.segmentId = segmentation.GetSegmentation().AddEmptySegment("Kidney", "Kidney")
    state.segmentationNode = segmentation
    job = press_segment(module)
    host.wait_until(lambda: job.writer.changed)
    nodes = [volume, segmentation] if moved.startswith("volume") else [segmentation]
    oblique = placed(rotation(10.0, 2) @ np.diag([1, 1, 1 / 3, 1]))
    node = transform(oblique) if kind == "linear" else warped()
    for each in nodes:
        each.SetAndObserveTransformNodeID(node.GetID())
    host.wait_until(lambda: job.finished)
    settle(host, module)
    assert ("volume changed" if len(nodes) > 1 else "segmentation was moved") in module.ui.statusLabel.text
    assert module.ui.segmentButton.text == "Segment"
    module.widget.panel.refresh()  # also while it is under the transform
    for each in nodes:
        each.SetAndObserveTransformNodeID(None)
    module.widget.panel.refresh()
    assert not mask_of(module).any() and not record_of(module).owned
    assert segment(host, module).error is None
    assert mask_of(module)[4, 20, 24]


def test_a_segmentation_under_a_transform_that_shears_it_is_named_with_the_remedy(host: Any) -> None:
    import slicer

    module = segmented(host)
    before, node = mask_of(module), state_of(module).segmentationNode
    matrix = np.eye(4)
    matrix[0, :2] = 1.05, 0.1
    affine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Affine registration")
    affine.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    node.SetAndObserveTransformNodeID(affine.GetID())
    settle(host, module)
    module.ui.segmentButton.click()
    settle(host, module)
    assert f"The segmentation {node.GetName()} is under a transform that shears it" in module.ui.statusLabel.text
    assert "Harden the transform" in module.ui.statusLabel.text
    node.SetAndObserveTransformNodeID(None)
    segment(host, module)
    assert np.array_equal(mask_of(module), before) and not record_of(module).owned


def test_clicks_that_a_transform_moves_update_the_segment(host: Any) -> None:
    import slicer

    module = segmented(host)
    before = mask_of(module)
    moved = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Moved")
    state_of(module).centerlineNodes[0].SetAndObserveTransformNodeID(moved.GetID())
    settle(host, module)
    matrix = np.eye(4)
    matrix[0, 3] = 6.0
    moved.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    settle(host, module)
    assert np.array_equal(mask_of(module), np.roll(before, 6, axis=2))


def test_a_common_transform_takes_signs_and_field_of_view_along(host: Any) -> None:
    import slicer

    from SPDSegmentLib.gui.scene.write_record import saveRecord

    module = segmented(host)
    state, marks = state_of(module), module.widget.panel.clicks.marks
    module.ui.liveUpdateCheck.checked = False
    record = record_of(module)
    record.anchorRas = (1.0, 2.0, 3.0)
    saveRecord(state.segmentationNode, state.segmentId, record)
    signs = [fate.position_ras for fate in marks.fates]
    moved = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Moved")
    for node in (state.volumeNode, state.segmentationNode, state.centerlineNodes[0]):
        node.SetAndObserveTransformNodeID(moved.GetID())
    matrix = rotation(90.0, 2)
    matrix[:3, 3] = 10.0, 5.0, 6.0
    moved.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    settle(host, module)
    places = np.array([*signs, record.anchorRas]) @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose([fate.position_ras for fate in marks.fates], places[:-1], atol=0.01)
    np.testing.assert_allclose(record_of(module).anchorRas, places[-1], atol=0.01)
    assert "not those" not in module.ui.statusLabel.text


def test_a_frame_of_a_sequence_is_segmented_and_another_frame_is_another_volume(host: Any) -> None:
    import slicer

    module = load(host)
    volume = add_volume(host)
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode")
    for value in range(2):
        frame = slicer.vtkMRMLScalarVolumeNode()
        frame.Copy(volume)
        slicer.util.updateVolumeFromArray(frame, slicer.util.arrayFromVolume(volume) + value)
        sequence.SetDataNodeAtValue(frame, str(value))
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    logic = slicer.vtkSlicerSequencesLogic()
    logic.SetMRMLScene(slicer.mrmlScene)
    logic.UpdateProxyNodesFromSequences(browser)
    proxy = browser.GetProxyNode(sequence)
    state_of(module).volumeNode = proxy
    add_clicks()
    sums = []
    for frame_number in range(2):
        browser.SetSelectedItemNumber(frame_number)
        logic.UpdateProxyNodesFromSequences(browser)
        job = segment(host, module)
        assert job.error is None, job.error
        sums.append(job.answer.report["values"])
        assert_discs_around_clicks(mask_of(module))
    assert sums[1] - sums[0] == np.prod(SHAPE)


def test_a_single_slice_is_segmented(host: Any) -> None:
    add_volume(host, (1, 40, 48))
    module = load(host)
    add_clicks((0,))
    job = segment(host, module)
    assert job.error is None, job.error
    assert filled_slices(mask_of(module)) == [0]


def test_a_structure_that_runs_in_the_slice_plane_is_segmented_in_its_slices(host: Any) -> None:
    add_volume(host)
    module = load(host)
    click_at(np.diag([1.0, 1.0, 3.0, 1.0]), [(i, 20, 5) for i in range(6, 44, 4)])
    assert segment(host, module).error is None
    mask = mask_of(module)
    assert filled_slices(mask) == [3, 4, 5, 6, 7]
    assert mask[5, 20, 4:44].all()


def test_another_slicing_axis_can_be_chosen(host: Any) -> None:
    add_volume(host)
    module = load(host)
    click_at(np.diag([1.0, 1.0, 3.0, 1.0]), [(24, 20, 5)])
    module.ui.axisBox.currentIndex = module.ui.axisBox.findData("coronal")
    module.ui.axisBox.activated.emit(module.ui.axisBox.currentIndex)
    assert segment(host, module).error is None
    assert sorted(set(np.nonzero(mask_of(module))[1])) == [18, 19, 20, 21, 22]


def test_a_curve_of_three_points_counts_between_its_points_too(host: Any) -> None:
    add_volume(host)
    module = load(host)
    click_at(np.diag([1.0, 1.0, 3.0, 1.0]), [(20, 20, 1), (24, 20, 5), (28, 20, 10)], "Curve")
    job = segment(host, module)
    assert job.error is None, job.error
    assert filled_slices(mask_of(module)) == list(range(12))
    assert len({fate.click_id for fate in job.writer.record.fates if fate.click_id}) >= 3


def test_clicks_all_outside_are_refused_with_a_reason(host: Any) -> None:
    add_volume(host)
    module = load(host)
    add_clicks((40, 50))
    job = segment(host, module)
    assert job.error is None or "inside the volume" in job.error.sentence
    assert state_of(module).segmentationNode is None
    assert "outside" in module.ui.statusLabel.text.lower() or "inside" in module.ui.statusLabel.text.lower()


def test_without_clicks_the_panel_asks_for_them(host: Any) -> None:
    add_volume(host)
    module = load(host)
    add_clicks(())
    module.widget.panel.refresh()
    assert not module.ui.segmentButton.enabled
    assert "Click along the structure" in module.ui.statusLabel.text


@pytest.mark.parametrize("kind", ["Linear", "CardinalSpline", "KochanekSpline", "Polynomial"])
def test_clicks_of_a_curve_lie_on_the_curve_that_is_shown(host: Any, kind: str) -> None:
    import slicer

    from SPDSegmentLib.gui.scene.centerlines import namedClicks, snapshotClicks
    from SPDSegmentLib.gui.scene.volumes import takeSnapshot

    # given
    host.load_module(MODULE)
    volume = add_volume(host, (56, 160, 160))
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsCurveNode", "curve")
    for place in [(60, 60, 6), (120, 70, 42), (60, 90, 81), (120, 110, 120), (60, 130, 159)]:
        node.AddControlPointWorld(*(float(x) for x in place))
    spline = namedClicks(snapshotClicks([node]), takeSnapshot(volume, "k").stack)

    # when: the curve gets another type, and one of its points is left out
    getattr(node, f"SetCurveTypeTo{kind}")()
    node.SetNthControlPointSelected(2, False)
    markup = namedClicks(snapshotClicks([node]), takeSnapshot(volume, "k").stack)[0]

    # then
    shown = node.GetCurvePointsWorld()
    vertices = np.array([shown.GetPoint(n) for n in range(shown.GetNumberOfPoints())])
    starts, steps = vertices[:-1], np.diff(vertices, axis=0)
    for point in (p.position_ras for p in markup.points):
        share = (((point - starts) * steps).sum(1) / (steps**2).sum(1).clip(1e-9)).clip(0, 1)
        assert np.linalg.norm(starts + share[:, None] * steps - point, axis=1).min() < 1e-6
    used = {round(p.position_ras[2] / 3) for p in markup.points if p.selected}
    assert used and not used & {26, 27, 28} and {3, 52} <= used
    assert kind == "CardinalSpline" or [p.position_ras for p in markup.points] != [
        p.position_ras for p in spline[0].points
    ]


def test_another_type_of_curve_updates_the_segment(host: Any) -> None:
    add_volume(host)
    module = load(host)
    node = add_clicks((2, 5, 9), kind="Curve")
    move_click(node, 1, (8.0, 6.0, 0.0))
    segment(host, module)
    before = mask_of(module)
    node.SetCurveTypeToLinear()
    settle(host, module)
    assert (mask_of(module) != before).any()
