"""One segment as DICOM, written by what 3D Slicer has for it: SEG by its own exporter, RTSTRUCT by SlicerRT.

Patient, study and series are those of the volume in the subject hierarchy; nothing is asked for a second time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from SPDSegmentLib.errors import BadInput, DependencyMissing
from SPDSegmentLib.files import check_folder, write_error, write_whole
from SPDSegmentLib.geometry.labelmap import DEFAULT_TERMINOLOGY
from SPDSegmentLib.staging import replace_folder, staging_folder

from .export_files import ExportSource, checkPlace, fileStem, makeSource
from .volumes import parentMatrix

INSTANCES = "DICOM.instanceUIDs"
"""Attribute in which Slicer keeps what a volume was loaded from."""
CREATOR = "SPDSegment"
_PATIENT = ("PatientName", "PatientID", "PatientSex", "PatientBirthDate")
_STUDY = ("StudyDate", "StudyTime", "StudyDescription", "StudyID")


@dataclass(frozen=True)
class DicomKind:
    """A kind of DICOM object: short name, title for people, end of the name of what is written, and the way to it."""

    key: str
    title: str
    suffix: str
    write: Callable[[ExportSource, Any, Path], None]


def dicomKinds() -> tuple[DicomKind, ...]:
    """Return the kinds, the most usual one first."""
    return (
        DicomKind("seg", _("DICOM segmentation (SEG)"), "-seg.dcm", _writeSeg),
        DicomKind("rtstruct", _("DICOM structure set (RTSTRUCT)"), "-rtstruct", _writeStructureSet),
    )


def exportDicom(
    kind: DicomKind,
    segmentationNode: Any,
    segmentId: str,
    volumeNode: Any,
    folder: str | Path,
    algorithm: str,
    confirm: Callable[[Path], bool],
) -> Path:
    """Write a segment as DICOM and return the file, or the folder of the structure set's files.

    It blocks: Slicer's exporters work in the main thread.

    Args:
        kind: of :func:`dicomKinds`.
        segmentationNode: where the segment is.
        segmentId: the segment.
        volumeNode: loaded from DICOM; the result refers to its series.
        folder: where to write.
        algorithm: what made the segment, for its identification; empty where a person drew all of it.
        confirm: asked before a file that exists is replaced.

    Raises:
        BadInput: the volume is not from DICOM, its files are gone, the segment has no place in its series, the
            exporter refuses it, or its place cannot be written to.
        DependencyMissing: Slicer lacks the exporter.
        Cancelled: ``confirm`` said no.
    """
    source = makeSource(segmentationNode, segmentId, volumeNode)
    _checkSource(source, segmentationNode, volumeNode)
    segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
    if not source.terminology:
        segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), DEFAULT_TERMINOLOGY)
    segment.SetTag("DICOM.SegmentAlgorithmType", "SEMIAUTOMATIC" if algorithm else "MANUAL")
    segment.SetTag("DICOM.SegmentAlgorithmName", f"{CREATOR} {algorithm}" if algorithm else "")
    path = Path(folder) / (fileStem(source.name) + kind.suffix)
    if path.suffix:
        checkPlace(path, confirm)
    else:
        if not os.path.lexists(path.parent):
            raise BadInput(_("The folder {path} does not exist.").format(path=path.parent), _("Create it first."))
        check_folder(path)
        _refuseExisting(path)
    kind.write(source, volumeNode, path)
    return path


def _checkSource(source: ExportSource, segmentationNode: Any, volumeNode: Any) -> None:
    name = volumeNode.GetName()
    uids = (volumeNode.GetAttribute(INSTANCES) or "").split()
    if not uids:
        raise BadInput(
            _("{volume} was not loaded from DICOM.").format(volume=name),
            _("Load its series in the DICOM module and segment that, or export a label map."),
        )
    files = [slicer.dicomDatabase.fileForInstance(uid) for uid in uids]
    gone = sum(not file or not Path(file).is_file() for file in files)
    if gone:
        raise BadInput(
            _("{count} of {all} files of {volume} are no longer in the DICOM database.").format(
                count=gone, all=len(files), volume=name
            ),
            _("Import the series again in the DICOM module."),
        )
    if not np.allclose(parentMatrix(segmentationNode), parentMatrix(volumeNode)):
        raise BadInput(
            _("The segmentation {name} is under another transform than {volume}.").format(
                name=segmentationNode.GetName(), volume=name
            ),
            _("Put both under the same transform, or harden it, then export again."),
        )
    if source.reachesBeyond:
        raise BadInput(
            _("The segment {name} reaches beyond {volume}, where its series has no slices.").format(
                name=source.name, volume=name
            ),
            _("Erase what lies beyond, or export a label map."),
        )


def _writeSeg(source: ExportSource, volumeNode: Any, path: Path) -> None:
    try:
        from DICOMSegmentationPlugin import DICOMSegmentationExporter
    except ImportError as error:
        raise DependencyMissing(
            _("This 3D Slicer cannot write DICOM segmentations."),
            _("Use 3D Slicer 5.12 or later, or install the extension QuantitativeReporting, then export again."),
            repr(error),
        ) from error
    node = source.target.node
    reference = node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole())
    if reference is None:
        node.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
    elif reference is not volumeNode:
        raise BadInput(
            _("The segmentation {name} has the voxels of {volume}.").format(
                name=node.GetName(), volume=reference.GetName()
            ),
            _("Choose that volume, then export again."),
        )
    metadata = {"SeriesDescription": f"{source.name} ({CREATOR})", "ContentCreatorName": CREATOR, "SeriesNumber": ""}
    with _ownTemporaryFolder():
        exporter = DICOMSegmentationExporter(node, CREATOR)

        def write(part: Path) -> None:
            try:
                exporter.export(str(part.parent), part.name, metadata, [source.target.segmentId])
            except Exception as error:  # it raises whatever its parts and the program that it calls raise
                reason = error if isinstance(error, (ValueError, RuntimeError, OSError)) else repr(error)
                raise BadInput(_("Slicer's exporter refused the segment: {reason}").format(reason=reason)) from error

        try:
            write_whole(path, write, lambda part: part.read_bytes()[128:132] == b"DICM", "DICOM segmentation")
        finally:
            exporter.cleanup()


def _writeStructureSet(source: ExportSource, volumeNode: Any, path: Path) -> None:
    module = getattr(slicer.modules, "dicomrtimportexport", None)
    if module is None:
        raise DependencyMissing(
            _("3D Slicer writes structure sets with the extension SlicerRT, which is not installed."),
            _("Install SlicerRT in the Extensions Manager, restart 3D Slicer, then export again."),
        )
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    levels = slicer.vtkMRMLSubjectHierarchyConstants
    item = hierarchy.GetItemByDataNode(volumeNode)
    study = hierarchy.GetItemAncestorAtLevel(item, levels.GetDICOMLevelStudy())
    if not study:
        raise BadInput(
            _("{volume} is in no study of the subject hierarchy.").format(volume=volumeNode.GetName()),
            _("Load its series in the DICOM module, or move it into its study in the Data module."),
        )
    patient = hierarchy.GetItemAncestorAtLevel(item, levels.GetDICOMLevelPatient())
    tags = {name: hierarchy.GetItemAttribute(patient, f"DICOM.{name}") for name in _PATIENT if patient}
    tags |= {name: hierarchy.GetItemAttribute(study, f"DICOM.{name}") for name in _STUDY}
    with _newFolder(path) as staging, _alone(source) as node:
        own = hierarchy.GetItemByDataNode(node)
        hierarchy.SetItemParent(own, study)
        found = vtk.vtkCollection()
        for shown, modality in ((item, hierarchy.GetItemAttribute(item, "DICOM.Modality")), (own, "RTSTRUCT")):
            exportable = slicer.vtkSlicerDICOMExportable()
            exportable.SetSubjectHierarchyItemID(shown)
            exportable.SetDirectory(str(staging))
            series = {"Modality": modality, "SeriesDescription": f"{source.name} ({CREATOR})", "SeriesNumber": "1"}
            for name, value in (tags | series).items():
                if value:
                    exportable.SetTag(name, value)
            found.AddItem(exportable)
        problem = module.logic().ExportDicomRTStudy(found)
        if problem or not any(staging.iterdir()):
            reason = problem or _("nothing was written")
            raise BadInput(_("SlicerRT could not write the structure set: {reason}").format(reason=reason))


@contextmanager
def _newFolder(path: Path) -> Iterator[Path]:
    """A hidden folder beside ``path`` that gets its name once all files in it are whole; gone where anything fails."""
    try:
        with staging_folder(path.parent) as staging:
            yield staging
            _refuseExisting(path)  # it may have come meanwhile
            replace_folder(staging, path)
    except OSError as error:
        raise write_error(path, error, "structure set") from error


def _refuseExisting(path: Path) -> None:
    if path.exists():
        raise BadInput(_("{path} exists.").format(path=path), _("Choose another folder, or remove it."))


@contextmanager
def _alone(source: ExportSource) -> Iterator[Any]:
    """A segmentation with a copy of one segment only, for as long as it is needed: SlicerRT writes all there are."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", source.name)
    try:
        node.SetAndObserveTransformNodeID(source.target.node.GetTransformNodeID())
        node.GetSegmentation().CopySegmentFromSegmentation(
            source.target.node.GetSegmentation(), source.target.segmentId
        )
        yield node
    finally:
        slicer.mrmlScene.RemoveNode(node)


@contextmanager
def _ownTemporaryFolder() -> Iterator[None]:
    """Temporary files of an exporter go into a folder that is removed, even where it fails: they are patient data."""
    former = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="SPDSegment-") as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = former
