"""The segment as files and as numbers: right place, right codes, whole or not at all."""

from __future__ import annotations

import csv
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gui_helpers import settle_export

from SPDSegmentLib.errors import BadInput, Cancelled
from SPDSegmentLib.geometry.labelmap import read_labelmap

pytest_plugins = ["Testing.Host.pytest_plugin"]

MODULE = Path(__file__).resolve().parents[2] / "SPDSegment" / "SPDSegment.py"
SHAPE = (12, 40, 48)
SPACING = (1.0, 1.5, 3.0)
TERMINOLOGY = "List~SCT^123037004^Anatomical Structure~SCT^64033007^Kidney~^^~Anatomic codes - DICOM master list~^^~^^"
FORMATS = ("nifti", "nrrd", "segmentation", "stl", "obj", "csv")


def block() -> np.ndarray:
    """Voxels (K, J, I) of the segment."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[3:9, 10:26, 12:30] = 1
    return mask


@pytest.fixture
def scene(host: Any) -> Any:
    """The module with a volume and a segment, chosen in its settings."""
    import slicer

    volume = host.add_volume(np.zeros(SHAPE, np.int16), SPACING)
    module = host.load_module(MODULE)
    from SPDSegmentLib.gui.target import makeTarget

    target = makeTarget(None, "", volume, "Left kidney", (0.7, 0.4, 0.5), TERMINOLOGY)
    slicer.util.updateSegmentBinaryLabelmapFromArray(block(), target.node, target.segmentId, volume)
    state = module.widget.panel.state
    state.volumeNode, state.segmentationNode, state.segmentId = volume, target.node, target.segmentId
    module.widget.panel.enter()
    return module


def source_of(module: Any) -> Any:
    """What the panel would export."""
    from SPDSegmentLib.gui.export_files import makeSource

    state = module.widget.panel.state
    return makeSource(state.segmentationNode, state.segmentId, state.volumeNode)


def export(module: Any, key: str, path: str | Path, confirm: Any = None) -> Path:
    """Export without the panel."""
    from SPDSegmentLib.gui.export_files import exportFormats, exportSegment

    (format_,) = [f for f in exportFormats() if f.key == key]
    return exportSegment(source_of(module), format_, path, confirm or (lambda path: pytest.fail("asked")))


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
    from SPDSegmentLib.gui.models import listModels
    from SPDSegmentLib.models.bundle import list_bundles
    from SPDSegmentLib.models.terminology import terminology_entry

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


def test_statistics_are_a_table_and_a_file(host: Any, scene: Any, tmp_path: Path) -> None:
    import slicer

    volume_ml = 6 * 16 * 18 * np.prod(SPACING) / 1000
    for _ in range(2):
        scene.ui.statisticsButton.click()
        settle_export(host, scene)
    (table,) = slicer.util.getNodesByClass("vtkMRMLTableNode")
    assert table.GetNumberOfRows() == 1
    assert table.GetCellText(0, 0) == "Left kidney"
    assert float(table.GetCellText(0, 1)) == pytest.approx(volume_ml, rel=1e-3)
    assert float(table.GetCellText(0, 2)) == pytest.approx(18.0)
    assert f"{volume_ml:.2f} ml" in scene.ui.exportLabel.text
    rows = list(csv.reader(export(scene, "csv", tmp_path / "k").open(encoding="utf-8")))
    assert rows[0][1] == "Volume (ml)" and float(rows[1][1]) == pytest.approx(volume_ml, rel=1e-3)


@pytest.mark.parametrize("key", FORMATS)
def test_a_file_that_exists_is_replaced_only_when_allowed(scene: Any, tmp_path: Path, key: str) -> None:
    path = export(scene, key, tmp_path / "kidney")
    path.write_text("mine")
    with pytest.raises(Cancelled):
        export(scene, key, path, confirm=lambda asked: False)
    assert path.read_text() == "mine"
    export(scene, key, path, confirm=lambda asked: asked == path)
    assert path.read_bytes() != b"mine"


@pytest.mark.parametrize("key", FORMATS)
def test_a_failed_export_is_one_sentence_and_leaves_nothing(
    scene: Any, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(BadInput, match="does not exist"):
        export(scene, key, tmp_path / "nowhere" / "kidney")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(BadInput, match="cannot be written"):
        export(scene, key, tmp_path / "kidney")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="rights of POSIX")
def test_a_read_only_file_is_refused_before_anything_is_asked(scene: Any, tmp_path: Path) -> None:
    for key in FORMATS:
        path = export(scene, key, tmp_path / "kidney")
        path.write_text("mine")
        path.chmod(0o444)
        with pytest.raises(BadInput, match="read-only"):
            export(scene, key, path)
        assert path.read_text() == "mine" and path.stat().st_mode & 0o777 == 0o444
    assert len(list(tmp_path.iterdir())) == len(FORMATS)


def test_a_disk_that_is_full_leaves_the_old_file(scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    paths = {key: export(scene, key, tmp_path / "kidney") for key in FORMATS}
    old = {path: path.read_bytes() for path in paths.values()}
    monkeypatch.setattr(os, "fsync", full)
    for key, path in paths.items():
        with pytest.raises(BadInput, match="disk is full") as caught:
            export(scene, key, path, confirm=lambda asked: True)
        assert str(path) in caught.value.message
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == old


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
@pytest.mark.parametrize("key", ["stl", "obj"])
def test_a_limit_on_file_sizes_is_said_of_a_surface(scene: Any, tmp_path: Path, key: str) -> None:
    import resource

    path = export(scene, key, tmp_path / "kidney")
    old, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, limits[1]))
    try:
        with pytest.raises(BadInput, match="limit on file sizes"):
            export(scene, key, path, confirm=lambda asked: True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("key", ["stl", "obj"])
def test_a_surface_that_lacks_its_end_replaces_nothing(
    scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    from SPDSegmentLib.gui import surface

    def lie(written: Any, part: Path, writer: Any) -> None:
        write(written, part, writer)
        part.write_bytes(part.read_bytes()[:-200])

    write, path = surface._write, export(scene, key, tmp_path / "kidney")
    old = path.read_bytes()
    monkeypatch.setattr(surface, "_write", lie)
    with pytest.raises(BadInput, match="not whole"):
        export(scene, key, path, confirm=lambda asked: True)
    assert path.read_bytes() == old


def test_links_stay_links_and_odd_names_are_taken_as_they_are(
    scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for key in FORMATS:
        path = export(scene, key, Path("data") / "kidney")
        path.write_text("older")
        link = Path(path.name)
        link.symlink_to(path)
        export(scene, key, link, confirm=lambda asked: True)
        assert link.is_symlink() and path.read_bytes() != b"older"
    assert export(scene, "nifti", "~nobody-of-that-name.hdr").name == "~nobody-of-that-name.hdr.nii.gz"
    assert (tmp_path / "~nobody-of-that-name.hdr.nii.gz").is_file()
    with pytest.raises(BadInput, match="name is too long"):
        export(scene, "csv", "n" * 300)


def test_what_changed_while_the_file_was_chosen_is_in_the_file(host: Any, scene: Any, tmp_path: Path) -> None:
    import slicer

    state = scene.widget.panel.state
    more = block()
    more[9] = more[8]

    def choose(format_: Any, name: str) -> str:
        node, volume = state.segmentationNode, state.volumeNode
        slicer.util.updateSegmentBinaryLabelmapFromArray(more, node, state.segmentId, volume)
        return str(tmp_path / "kidney.nii.gz")

    scene.widget.panel.export.askPath = choose
    scene.ui.exportButton.click()
    settle_export(host, scene)
    assert np.array_equal(read_labelmap(tmp_path / "kidney.nii.gz").array, more)


def test_a_failure_beside_the_window_is_said_as_well(
    host: Any, scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    host.dialogs.choose_file(str(tmp_path / "kidney"))
    scene.ui.exportButton.click()
    settle_export(host, scene)
    assert f"{tmp_path / 'kidney.nii.gz'} cannot be written" in scene.ui.exportLabel.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["scene", "module", "segmentation"])
def test_a_file_becomes_whole_whatever_is_closed_meanwhile(
    host: Any, scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    import threading

    import slicer

    from SPDSegmentLib.gui import export_files

    begun, go_on = threading.Event(), threading.Event()

    def slowly(source: Any) -> Any:
        begun.set()
        assert go_on.wait(20)
        return mask_on_volume(source)

    mask_on_volume = export_files.maskOnVolume
    monkeypatch.setattr(export_files, "maskOnVolume", slowly)
    host.dialogs.choose_file(str(tmp_path / "kidney.nii.gz"))
    scene.ui.exportButton.click()
    assert begun.wait(20)
    threading.Timer(0.2, go_on.set).start()
    if what == "scene":
        slicer.mrmlScene.Clear(0)
    elif what == "module":
        scene.widget.cleanup()
    else:
        slicer.mrmlScene.RemoveNode(scene.widget.panel.state.segmentationNode)
    host.wait_until(lambda: [path.name for path in tmp_path.iterdir()] == ["kidney.nii.gz"])
    assert np.array_equal(read_labelmap(tmp_path / "kidney.nii.gz").array, block())


@pytest.mark.parametrize(("smoothing", "mirrored"), [("0.5", False), ("0.2", False), ("0", False), ("0.5", True)])
def test_the_surface_is_the_one_that_slicer_makes(host: Any, scene: Any, smoothing: str, mirrored: bool) -> None:
    import slicer
    from vtk import vtkMassProperties
    from vtk.util.numpy_support import vtk_to_numpy

    from SPDSegmentLib.gui.surface import closedSurface

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
    assert (tmp_path / "kidney.nii.gz").read_text() == "mine"


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


def test_segments_of_one_name_have_rows_of_their_own(host: Any, scene: Any) -> None:
    import slicer

    # given: another segment of the same name, and both are measured, one of them twice
    state = scene.widget.panel.state
    first, segmentation = state.segmentId, state.segmentationNode.GetSegmentation()
    second = segmentation.AddEmptySegment("", "Left kidney")
    slicer.util.updateSegmentBinaryLabelmapFromArray(block()[::-1], state.segmentationNode, second, state.volumeNode)
    for segment_id in (first, second, first):
        state.segmentId = segment_id
        scene.widget.panel.refresh()
        scene.ui.statisticsButton.click()
        settle_export(host, scene)

    # when: one gets another name and is measured again
    segmentation.GetSegment(second).SetName("Right kidney")
    state.segmentId = second
    scene.widget.panel.refresh()
    scene.ui.statisticsButton.click()
    settle_export(host, scene)

    # then
    table = slicer.util.getNodesByClass("vtkMRMLTableNode")[0].GetTable()
    assert [table.GetValue(row, 0).ToString() for row in range(table.GetNumberOfRows())] == [
        "Left kidney",
        "Right kidney",
    ]


def test_a_second_segment_gets_a_name_of_its_own(host: Any, scene: Any) -> None:
    from SPDSegmentLib.gui.target import makeTarget

    state = scene.widget.panel.state
    names = []
    for _ in range(2):
        target = makeTarget(state.segmentationNode, "", state.volumeNode, "Left kidney", (1.0, 0.0, 0.0), "")
        names.append(target.node.GetSegmentation().GetSegment(target.segmentId).GetName())
    assert names == ["Left kidney 2", "Left kidney 3"]


def test_nobody_is_asked_twice_about_a_file_that_exists(host: Any, scene: Any, tmp_path: Path) -> None:
    # given: the window, which asked already, returns the path with separators of its own, as on Windows
    (tmp_path / "kidney.nii.gz").write_text("old")
    host.dialogs.choose_file(f"{tmp_path}//kidney.nii.gz", f"{tmp_path}//KIDNEY.NII.GZ", f"{tmp_path}/kidney")
    for _ in range(2):
        scene.ui.exportButton.click()
        settle_export(host, scene)
        assert not host.dialogs.texts("confirm")
        assert "Written" in scene.ui.exportLabel.text

    # when: the suffix was added later, so that the window asked about another name
    scene.ui.exportButton.click()
    settle_export(host, scene)
    assert len(host.dialogs.texts("confirm")) == 1
