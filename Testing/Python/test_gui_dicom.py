"""*Export to DICOM*: the patient, study and series of the volume, and a sentence where something is missing.

Slicer's exporters are stood in for, after their source: ``Modules/Scripted/DICOMPlugins/DICOMSegmentationPlugin.py`` of
Slicer/Slicer (what it reads, what it raises, and the copies of the source that it leaves where it fails) and
``vtkSlicerDicomRtImportExportModuleLogic::ExportDicomRTStudy`` of SlicerRt/SlicerRT (which nodes and tags it takes).
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from export_helpers import TERMINOLOGY, block, scene

pytest_plugins = ["Testing.Host.pytest_plugin"]
__all__ = ["scene"]

UIDS = ("1.2.3.1", "1.2.3.2")


class SegExporter:
    """Writes what it was given as JSON after a DICOM preamble."""

    left: list[Path] = []
    failure: Exception | None = None

    def __init__(self, segmentationNode: Any, contentCreatorName: str | None = None) -> None:
        import slicer

        self.node, self.creator = segmentationNode, contentCreatorName
        self.tempDir = slicer.util.tempDirectory()

    def cleanup(self) -> None:
        shutil.rmtree(self.tempDir)

    def export(
        self, outputDirectory: str, segFileName: str, metadata: Any, segmentIDs: Any, skipEmpty: bool = False
    ) -> bool:
        import slicer
        import vtk

        volume = self.node.GetNodeReference(self.node.GetReferenceImageGeometryReferenceRole())
        files = [slicer.dicomDatabase.fileForInstance(uid) for uid in volume.GetAttribute("DICOM.instanceUIDs").split()]
        copies = Path(tempfile.mkdtemp())
        self.left.append(copies)
        for file in files:
            shutil.copyfile(file, copies / Path(file).name)
        if self.failure is not None:
            raise self.failure
        said: dict[str, Any] = {**metadata, "files": sorted(path.name for path in copies.iterdir()), "segments": {}}
        for segment_id in segmentIDs:
            segment, tags = self.node.GetSegmentation().GetSegment(segment_id), {}
            for tag in ("TerminologyEntry", "DICOM.SegmentAlgorithmType", "DICOM.SegmentAlgorithmName"):
                value = vtk.reference("")
                assert segment.GetTag(tag if tag.startswith("DICOM") else segment.GetTerminologyEntryTagName(), value)
                tags[tag] = str(value)
            mask = slicer.util.arrayFromSegmentBinaryLabelmap(self.node, segment_id, volume)
            said["segments"][segment.GetName()] = {**tags, "voxels": int((mask > 0).sum())}
        shutil.rmtree(copies)
        Path(outputDirectory, segFileName).write_bytes(b"\0" * 128 + b"DICM" + json.dumps(said).encode())
        return True


@pytest.fixture
def module(scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module with a volume that came from two DICOM files, in a study of the subject hierarchy."""
    import slicer

    source = tmp_path / "database"
    source.mkdir()
    for uid in UIDS:
        (source / f"{uid}.dcm").write_bytes(b"patient")
    database = SimpleNamespace(fileForInstance=lambda uid: str(source / f"{uid}.dcm"))
    monkeypatch.setattr(slicer, "dicomDatabase", database, raising=False)
    plugin = ModuleType("DICOMSegmentationPlugin")
    monkeypatch.setattr(SegExporter, "left", [])
    monkeypatch.setattr(SegExporter, "failure", None)
    vars(plugin)["DICOMSegmentationExporter"] = SegExporter
    monkeypatch.setitem(sys.modules, "DICOMSegmentationPlugin", plugin)
    volume = scene.widget.panel.state.volumeNode
    volume.SetAttribute("DICOM.instanceUIDs", " ".join(UIDS))
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Doe")
    hierarchy.SetItemAttribute(patient, "DICOM.PatientName", "Doe^Jane")
    study = hierarchy.CreateStudyItem(patient, "Abdomen")
    hierarchy.SetItemAttribute(study, "DICOM.StudyDate", "20260102")
    item = hierarchy.GetItemByDataNode(volume)
    hierarchy.SetItemAttribute(item, "DICOM.Modality", "MR")
    hierarchy.SetItemParent(item, study)
    from SPDSegmentLib.gui.scene.write_record import WriteRecord, identify, saveRecord

    state = scene.widget.panel.state
    state.model = "spleen-mr"  # chosen for the next structure
    identify(state.segmentationNode, state.segmentId)
    saveRecord(state.segmentationNode, state.segmentId, WriteRecord(model="kidney-mr", learned="lesson-1"))
    scene.widget.panel.refresh()
    return scene


def press(module: Any, folder: Path, kind: str = "seg") -> str:
    """Press the button, with a folder chosen, and return what is said below it."""
    export = module.widget.panel.export
    export.askFolder = lambda: str(folder)
    module.ui.dicomKindBox.currentIndex = [known.key for known in export.dicomKinds].index(kind)
    module.ui.exportDicomButton.click()
    return str(module.ui.exportLabel.text)


def use_slicer_rt(monkeypatch: pytest.MonkeyPatch, problem: str = "") -> list[Any]:
    """Install SlicerRT; what it is given comes into the list, as (node class, segments, tags) of each exportable."""
    import slicer
    import vtk

    given: list[Any] = []

    class Exportable(vtk.vtkObject):
        def __init__(self) -> None:
            self.item, self.directory = 0, ""
            self.tags: dict[str, str] = {}

        def SetSubjectHierarchyItemID(self, item: int) -> None:
            self.item = item

        def SetDirectory(self, directory: str) -> None:
            self.directory = directory

        def SetTag(self, name: str, value: str) -> None:
            self.tags[name] = value

    class Logic:
        def ExportDicomRTStudy(self, found: Any) -> str:
            hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
            for n in range(found.GetNumberOfItems()):
                exportable = found.GetItemAsObject(n)
                node = hierarchy.GetItemDataNode(exportable.item)
                study = hierarchy.GetItemAncestorAtLevel(exportable.item, "Study")
                names = []
                if node.IsA("vtkMRMLSegmentationNode"):
                    segmentation = node.GetSegmentation()
                    names = [segmentation.GetNthSegment(k).GetName() for k in range(segmentation.GetNumberOfSegments())]
                given.append((node.GetClassName(), names, hierarchy.GetItemName(study), dict(exportable.tags)))
                Path(exportable.directory, f"{n}.dcm").write_bytes(b"half" if problem else b"whole")
            return problem

    monkeypatch.setattr(slicer, "vtkSlicerDICOMExportable", Exportable, raising=False)
    monkeypatch.setattr(slicer.modules, "dicomrtimportexport", SimpleNamespace(logic=Logic), raising=False)
    return given


def nodes() -> list[str]:
    import slicer

    return sorted(slicer.mrmlScene.GetNthNode(n).GetID() for n in range(slicer.mrmlScene.GetNumberOfNodes()))


def test_a_seg_names_series_structure_and_algorithm(module: Any, tmp_path: Path) -> None:
    assert "Left_kidney-seg.dcm" in press(module, tmp_path)
    said = json.loads((tmp_path / "Left_kidney-seg.dcm").read_bytes()[132:])
    assert said["files"] == [f"{uid}.dcm" for uid in UIDS]
    assert said["segments"] == {
        "Left kidney": {
            "TerminologyEntry": TERMINOLOGY,
            "DICOM.SegmentAlgorithmType": "SEMIAUTOMATIC",
            "DICOM.SegmentAlgorithmName": "SPDSegment kidney-mr lesson-1",
            "voxels": int(block().sum()),
        }
    }
    assert said["SeriesDescription"] == "Left kidney (SPDSegment)"


def test_a_segment_that_was_drawn_by_hand_names_no_algorithm(module: Any, tmp_path: Path) -> None:
    from SPDSegmentLib.gui.scene.write_record import WriteRecord, saveRecord

    state = module.widget.panel.state
    saveRecord(state.segmentationNode, state.segmentId, WriteRecord())
    press(module, tmp_path)
    tags = json.loads((tmp_path / "Left_kidney-seg.dcm").read_bytes()[132:])["segments"]["Left kidney"]
    assert (tags["DICOM.SegmentAlgorithmType"], tags["DICOM.SegmentAlgorithmName"]) == ("MANUAL", "")


def test_a_failing_exporter_is_one_sentence_and_leaves_no_patient_data(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SegExporter, "failure", RuntimeError("itkimage2segimage failed"))
    before = tempfile.tempdir
    (tmp_path / "out").mkdir()
    text = press(module, tmp_path / "out")
    assert text.startswith("Slicer's exporter refused the segment: itkimage2segimage failed")
    assert list((tmp_path / "out").iterdir()) == [] and tempfile.tempdir == before
    assert SegExporter.left and not any(folder.exists() for folder in SegExporter.left)


def test_a_file_that_exists_is_replaced_only_if_the_person_agrees(module: Any, tmp_path: Path) -> None:
    (tmp_path / "Left_kidney-seg.dcm").write_bytes(b"precious")
    asked: list[Path] = []

    def refuse(path: Path) -> bool:
        asked.append(path)
        return False

    module.widget.panel.export.confirm = refuse
    press(module, tmp_path)
    assert len(asked) == 1 and (tmp_path / "Left_kidney-seg.dcm").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("seg", "install the extension QuantitativeReporting"),
        ("rtstruct", "Install SlicerRT in the Extensions Manager"),
    ],
)
def test_a_missing_exporter_is_named(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, said: str
) -> None:
    monkeypatch.setitem(sys.modules, "DICOMSegmentationPlugin", None)
    assert said in press(module, tmp_path, kind)
    assert not list(tmp_path.glob("Left*"))


def test_a_volume_that_is_not_from_dicom_is_refused(module: Any, tmp_path: Path) -> None:
    module.widget.panel.state.volumeNode.RemoveAttribute("DICOM.instanceUIDs")
    assert "was not loaded from DICOM. Load its series in the DICOM module" in press(module, tmp_path)


def test_files_that_left_the_database_are_counted(module: Any, tmp_path: Path) -> None:
    (tmp_path / "database" / f"{UIDS[1]}.dcm").unlink()
    assert "1 of 2 files of Volume are no longer in the DICOM database" in press(module, tmp_path)


def test_another_transform_of_the_segmentation_is_refused_and_a_common_one_is_not(module: Any, tmp_path: Path) -> None:
    import slicer

    moved = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = np.eye(4)
    matrix[0, 3] = 1.0
    moved.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    state = module.widget.panel.state
    state.segmentationNode.SetAndObserveTransformNodeID(moved.GetID())
    assert "is under another transform than Volume" in press(module, tmp_path)
    state.volumeNode.SetAndObserveTransformNodeID(moved.GetID())
    assert press(module, tmp_path).startswith("Written")


def test_a_structure_set_holds_this_segment_only_in_the_study_of_the_volume(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = use_slicer_rt(monkeypatch)
    module.widget.panel.state.segmentationNode.GetSegmentation().AddEmptySegment("Other", "Other")
    before = nodes()
    assert press(module, tmp_path, "rtstruct").startswith("Written")
    (image, structures) = given
    assert image[0] == "vtkMRMLScalarVolumeNode" and structures[:2] == ("vtkMRMLSegmentationNode", ["Left kidney"])
    assert image[2] == structures[2] == "Abdomen"
    assert structures[3]["PatientName"] == "Doe^Jane" and structures[3]["StudyDate"] == "20260102"
    assert (image[3]["Modality"], structures[3]["Modality"]) == ("MR", "RTSTRUCT")
    assert sorted(path.name for path in (tmp_path / "Left_kidney-rtstruct").iterdir()) == ["0.dcm", "1.dcm"]
    assert nodes() == before
    assert "exists. Choose another folder" in press(module, tmp_path, "rtstruct")


def test_half_a_structure_set_is_not_left_behind(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_slicer_rt(monkeypatch, problem="Failed to convert anatomical image")
    before = nodes()
    assert "could not write the structure set: Failed to convert" in press(module, tmp_path, "rtstruct")
    assert [path.name for path in tmp_path.iterdir()] == ["database"] and nodes() == before


def test_a_place_that_a_structure_set_cannot_have_is_named(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_slicer_rt(monkeypatch)
    (tmp_path / "file").write_text("x")
    before = nodes()
    assert press(module, tmp_path / "gone", "rtstruct").endswith("gone does not exist. Create it first.")
    assert "is a file, or lies in one" in press(module, tmp_path / "file", "rtstruct")
    state = module.widget.panel.state
    state.segmentationNode.GetSegmentation().GetSegment(state.segmentId).SetName("é" * 130)
    assert "the name is too long" in press(module, tmp_path, "rtstruct")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["database", "file"] and nodes() == before


def test_a_structure_set_is_there_as_a_whole_or_not_at_all(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_slicer_rt(monkeypatch)
    calls: list[Any] = []

    def fill(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("SPDSegmentLib.staging.sync", fill)
    assert "the disk is full. Free some space" in press(module, tmp_path, "rtstruct")
    assert [path.name for path in tmp_path.iterdir()] == ["database"]
    assert press(module, tmp_path, "rtstruct").startswith("Written"), "once there is space"


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (AttributeError("'NoneType' object has no attribute 'GetName'"), "has no attribute 'GetName'"),
        (KeyError("Modality"), "KeyError('Modality')"),
        (FileNotFoundError(2, "No such file or directory", "itkimage2segimage"), "directory: 'itkimage2segimage'"),
    ],
)
def test_whatever_the_exporter_raises_is_said(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, said: str
) -> None:
    monkeypatch.setattr(SegExporter, "failure", failure)
    text = press(module, tmp_path)
    assert text.startswith("Slicer's exporter refused the segment: ") and said in text


def test_a_failure_that_nobody_foresaw_is_said_below_the_button(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_slicer_rt(monkeypatch)
    monkeypatch.setattr("slicer.vtkSlicerDICOMExportable", None)
    assert press(module, tmp_path, "rtstruct").startswith("This failed: 'NoneType' object is not callable")
