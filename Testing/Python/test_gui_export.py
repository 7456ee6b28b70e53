"""The segment as files: in the right place, with the right codes, and what is asked before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import export_helpers
import numpy as np
import pytest
from export_helpers import SHAPE, SPACING, TERMINOLOGY, block, export, source_of
from gui_helpers import settle_export

from SPDSegmentLib.geometry.labelmap import read_labelmap

pytest_plugins = ["Testing.Host.pytest_plugin"]

scene = export_helpers.scene


@pytest.mark.parametrize("key", ["nifti", "nrrd", "segmentation"])
def test_a_label_map_lies_on_the_grid_of_the_volume(scene: Any, tmp_path: Path, key: str) -> None:
    written = read_labelmap(export(scene, key, tmp_path / "kidney"))
    assert np.array_equal(written.array, block())
    assert np.allclose(written.ijk_to_ras, np.diag([*SPACING, 1]), atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == [
        "kidney" + {"nifti": ".nii.gz", "nrrd": ".nrrd", "segmentation": ".seg.nrrd"}[key]
    ]


def test_a_segmentation_file_brings_back_name_color_and_codes(scene: Any, tmp_path: Path) -> None:
    import slicer
    import vtk

    node = slicer.util.loadNodeFromFile(str(export(scene, "segmentation", tmp_path / "k")), "SegmentationFile")
    segment = node.GetSegmentation().GetNthSegment(0)
    codes = vtk.reference("")
    segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), codes)
    assert (segment.GetName(), str(codes)) == ("Left kidney", TERMINOLOGY)
    assert np.allclose(segment.GetColor(), (0.7, 0.4, 0.5), atol=0.01)


@pytest.mark.parametrize("key", ["stl", "obj"])
def test_a_surface_lies_where_the_segment_is_and_leaves_the_segmentation_alone(
    scene: Any, tmp_path: Path, key: str
) -> None:
    import slicer

    state = scene.widget.panel.state
    model = slicer.util.loadNodeFromFile(str(export(scene, key, tmp_path / "k")), "ModelFile")
    bounds = np.zeros(6)
    model.GetRASBounds(bounds)
    low, high = (np.array(corner) * SPACING for corner in ((11.5, 9.5, 2.5), (29.5, 25.5, 8.5)))
    assert np.allclose(bounds[::2], low, atol=2.0) and np.allclose(bounds[1::2], high, atol=2.0)
    assert not state.segmentationNode.GetSegmentation().ContainsRepresentation("Closed surface")
    assert [path.name for path in tmp_path.iterdir()] == [f"k.{key}"]


def test_volume_and_segmentation_under_a_transform_are_exported_in_the_world(scene: Any, tmp_path: Path) -> None:
    import slicer
    import vtk

    shift = vtk.vtkMatrix4x4()
    for row, value in enumerate((20, -30, 40)):
        shift.SetElement(row, 3, value)
    parent = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    parent.SetMatrixTransformToParent(shift)
    state = scene.widget.panel.state
    for node in (state.volumeNode, state.segmentationNode):
        node.SetAndObserveTransformNodeID(parent.GetID())
    written = read_labelmap(export(scene, "nrrd", tmp_path / "k"))
    assert np.array_equal(written.array, block())
    assert np.allclose(written.ijk_to_ras[:3, 3], (20, -30, 40))
    model = slicer.util.loadNodeFromFile(str(export(scene, "stl", tmp_path / "k")), "ModelFile")
    bounds = np.zeros(6)
    model.GetRASBounds(bounds)
    assert np.allclose(bounds[::2], np.array((11.5, 9.5, 2.5)) * SPACING + (20, -30, 40), atol=2.0)


def test_the_shipped_models_carry_dicom_codes(host: Any) -> None:
    from SPDSegmentLib.gui.run.task import listModels
    from SPDSegmentLib.models.bundle import list_bundles
    from SPDSegmentLib.models.bundle_info import terminology_entry

    codes = {"Kidney": "64033007", "Hippocampus": "5366008", "Esophagus": "32849002"}
    models = {model.structure: model for model in listModels()}
    assert set(models) >= set(codes)
    for structure, code in codes.items():
        context, category, kind, modifier, region_context, *region = models[structure].terminology.split("~")
        assert context and region_context and (modifier, region) == ("^^", ["^^", "^^"])
        assert (category, kind) == ("SCT^123037004^Anatomical Structure", f"SCT^{code}^{structure}")
    for bundle in list_bundles():
        assert bundle.info.terminology in ("", terminology_entry(bundle.info.structure)) or not bundle.shipped
    assert terminology_entry("something else") == ""


@pytest.mark.parametrize(("smoothing", "mirrored"), [("0.5", False), ("0.2", False), ("0", False), ("0.5", True)])
def test_the_surface_is_the_one_that_slicer_makes(host: Any, scene: Any, smoothing: str, mirrored: bool) -> None:
    import slicer
    from vtk import vtkMassProperties
    from vtk.util.numpy_support import vtk_to_numpy

    from SPDSegmentLib.gui.scene.surfaces import closedSurface

    state = scene.widget.panel.state
    if mirrored:
        volume = host.add_volume(np.zeros(SHAPE, np.int16), ijk_to_ras=np.diag([-SPACING[0], *SPACING[1:], 1.0]))
        state.segmentationNode.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        slicer.util.updateSegmentBinaryLabelmapFromArray(block(), state.segmentationNode, state.segmentId, volume)
        state.volumeNode = volume
    segmentation = state.segmentationNode.GetSegmentation()
    segmentation.SetConversionParameter("Smoothing factor", smoothing)
    source = source_of(scene)
    box, start = source.snapshot.grid.toVolume(source.content.box, source.content.start)
    ours = closedSurface(box, start, source.snapshot.volume.ijk_to_ras, source.surface)
    segmentation.CreateRepresentation("Closed surface", True)
    theirs = segmentation.GetSegment(state.segmentId).GetRepresentation("Closed surface")
    assert ours.GetNumberOfPolys() == theirs.GetNumberOfPolys()
    points = [np.sort(vtk_to_numpy(s.GetPoints().GetData()).round(3), axis=0) for s in (ours, theirs)]
    assert np.allclose(points[0], points[1], atol=0.01)
    mass = vtkMassProperties()
    mass.SetInputData(ours)
    assert mass.GetVolume() == pytest.approx(block().sum() * np.prod(SPACING), rel=0.15)


def test_the_button_writes_where_the_person_says(host: Any, scene: Any, tmp_path: Path) -> None:
    assert scene.ui.exportButton.enabled
    scene.ui.exportFormatBox.currentIndex = 0
    host.dialogs.choose_file(str(tmp_path / "kidney"))
    scene.ui.exportButton.click()
    assert "Writing" in scene.ui.exportLabel.text and not scene.ui.statisticsButton.enabled
    settle_export(host, scene)
    assert (tmp_path / "kidney.nii.gz").is_file() and "kidney.nii.gz" in scene.ui.exportLabel.text
    (tmp_path / "kidney.nii.gz").write_text("mine")
    host.dialogs.choose_file(str(tmp_path / "kidney"))
    scene.ui.exportButton.click()  # the confirmation is refused by default
    assert (tmp_path / "kidney.nii.gz").read_text(encoding="utf-8") == "mine"


def test_a_transform_that_is_not_linear_is_refused_with_a_reason(scene: Any) -> None:
    import slicer
    import vtk

    warp = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode")
    spline = vtk.vtkThinPlateSplineTransform()
    warp.SetAndObserveTransformToParent(spline)
    scene.widget.panel.state.segmentationNode.SetAndObserveTransformNodeID(warp.GetID())
    for button in (scene.ui.exportButton, scene.ui.statisticsButton):
        button.click()
        assert "not linear" in scene.ui.exportLabel.text


def test_nothing_to_export_is_said(scene: Any) -> None:
    import slicer

    state = scene.widget.panel.state
    slicer.util.updateSegmentBinaryLabelmapFromArray(
        np.zeros(SHAPE, np.uint8), state.segmentationNode, state.segmentId, state.volumeNode
    )
    scene.ui.exportButton.click()
    assert "is empty" in scene.ui.exportLabel.text
    slicer.mrmlScene.RemoveNode(state.segmentationNode)
    scene.widget.panel.enter()
    assert not scene.ui.exportButton.enabled and not scene.ui.statisticsButton.enabled


@pytest.mark.parametrize("key", ["nifti", "segmentation"])
def test_a_segment_that_reaches_beyond_the_volume_is_exported_whole(
    host: Any, scene: Any, tmp_path: Path, key: str
) -> None:
    # given: another volume is chosen, which begins and ends within the segment
    state = scene.widget.panel.state
    part = host.add_volume(np.zeros((3, 20, 48), np.int16), SPACING, name="part")
    part.SetOrigin(0.0, 15 * SPACING[1], 5 * SPACING[2])
    state.volumeNode = part

    # when
    path = export(scene, key, tmp_path / "kidney")

    # then: every voxel is there, where it was
    found = read_labelmap(path)
    assert found.array.sum() == block().sum()
    places = [np.argwhere(array)[:, ::-1] for array in (found.array, block())]
    matrix = np.diag([*SPACING, 1.0])
    ras = [ijk @ m[:3, :3].T + m[:3, 3] for ijk, m in zip(places, (found.ijk_to_ras, matrix), strict=True)]
    assert np.allclose(sorted(map(tuple, ras[0])), sorted(map(tuple, ras[1])))
    scene.widget.panel.refresh()
    host.dialogs.choose_file(str(tmp_path / "again.nii.gz"))
    scene.ui.exportButton.click()
    settle_export(host, scene)
    assert "reaches beyond part" in scene.ui.exportLabel.text


def test_a_segment_of_other_voxels_is_resampled_whole_and_it_is_said(host: Any, scene: Any, tmp_path: Path) -> None:
    coarse = host.add_volume(np.zeros((5, 14, 30), np.int16), (1.5, 2.0, 2.5), name="coarse")
    scene.widget.panel.state.volumeNode = coarse
    scene.widget.panel.refresh()
    host.dialogs.choose_file(str(tmp_path / "kidney.nii.gz"))
    scene.ui.exportButton.click()
    settle_export(host, scene)
    assert "coarse" in scene.ui.exportLabel.text
    found = read_labelmap(tmp_path / "kidney.nii.gz")
    volumes = [mask.sum() * np.prod(mm) for mask, mm in ((found.array, (1.5, 2.0, 2.5)), (block(), SPACING))]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.15)


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "whole"])
def test_it_is_asked_before_anything_is_written_whether_a_segment_beyond_the_volume_is_cut(
    host: Any, scene: Any, tmp_path: Path, cut: bool
) -> None:
    # given: another volume is chosen, which begins and ends within the segment
    part = host.add_volume(np.zeros((3, 20, 48), np.int16), SPACING, name="part")
    part.SetOrigin(0.0, 15 * SPACING[1], 5 * SPACING[2])
    scene.widget.panel.state.volumeNode = part
    scene.widget.panel.refresh()
    asked: list[str] = []

    def choose(format_: Any, name: str) -> str:
        asked.append("path")
        return str(tmp_path / f"kidney{format_.suffix}")

    def ask(question: str) -> bool:
        asked.append(question)
        return cut

    export_section = scene.widget.panel.export
    export_section.askPath, export_section.askCut = choose, ask

    # when
    scene.ui.exportButton.click()
    settle_export(host, scene)

    # then
    assert "reaches beyond part" in asked[0] and asked[1:] == ["path"]
    found = read_labelmap(tmp_path / "kidney.nii.gz")
    if cut:
        assert np.array_equal(found.array, block()[5:8, 15:35])
        assert np.allclose(found.ijk_to_ras[:3, 3], (0.0, 15 * SPACING[1], 5 * SPACING[2]))
        assert "left out" in scene.ui.exportLabel.text
    else:
        assert found.array.sum() == block().sum()
        assert "none is lost" in scene.ui.exportLabel.text

    # when: a surface is written, which has no grid
    asked.clear()
    scene.ui.exportFormatBox.currentIndex = [f.key for f in export_section.formats].index("stl")
    scene.ui.exportButton.click()
    settle_export(host, scene)
    assert asked == ["path"]


def test_a_label_map_cut_to_a_volume_that_the_segment_does_not_meet_is_refused(
    host: Any, scene: Any, tmp_path: Path
) -> None:
    far = host.add_volume(np.zeros((3, 20, 48), np.int16), SPACING, name="far")
    far.SetOrigin(0.0, 0.0, 20 * SPACING[2])
    scene.widget.panel.state.volumeNode = far
    scene.widget.panel.refresh()
    export_section, path = scene.widget.panel.export, tmp_path / "kidney.nii.gz"
    export_section.askPath = lambda format_, name: str(path)
    for cut in (True, False):
        export_section.askCut = lambda question, cut=cut: cut
        scene.ui.exportButton.click()
        settle_export(host, scene)
        text = scene.ui.exportLabel.text
        assert not cut or ("Nothing of Left kidney lies in far" in text and "answer No" in text and not path.exists())
    assert read_labelmap(path).array.sum() == block().sum(), "what the sentence says helps"
