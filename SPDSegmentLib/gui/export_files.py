"""One segment as a file: label maps, meshes, measurements. Files are written beside and renamed."""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from SPDSegmentLib.errors import BadInput, Cancelled
from SPDSegmentLib.geometry.labelmap import DEFAULT_TERMINOLOGY, write_labelmap

from .measurements import COLUMNS, columnTitles, measureSource
from .target import Target
from .volumes import VolumeSnapshot, matrixFromArray, parentMatrix


@dataclass(frozen=True, eq=False)
class ExportSource:
    """A segment that is there and not empty, on the slices of a volume; see :func:`makeSource`."""

    target: Target
    snapshot: VolumeSnapshot

    @property
    def segment(self) -> Any:
        """The vtkSegment."""
        return self.target.node.GetSegmentation().GetSegment(self.target.segmentId)

    @property
    def name(self) -> str:
        """Name of the segment."""
        return str(self.segment.GetName())


@dataclass(frozen=True)
class ExportFormat:
    """A kind of file.

    Attributes:
        key: short name.
        title: for people.
        suffix: of the file, with its dot.
        write: writes a source to a path that does not exist yet. DICOM can be one more of these.
    """

    key: str
    title: str
    suffix: str
    write: Callable[[ExportSource, Path], None]

    def withSuffix(self, path: str | Path) -> Path:
        """Return a path that ends with the format's suffix."""
        text = str(path)
        return Path(text if text.lower().endswith(self.suffix) else text.rstrip(".") + self.suffix)


def exportFormats() -> tuple[ExportFormat, ...]:
    """Return the formats, the most usual one first."""
    return (
        ExportFormat("nifti", _("NIfTI label map (.nii.gz)"), ".nii.gz", _writeLabelmap),
        ExportFormat("nrrd", _("NRRD label map (.nrrd)"), ".nrrd", _writeLabelmap),
        ExportFormat("segmentation", _("Segmentation (.seg.nrrd)"), ".seg.nrrd", _writeLabelmap),
        ExportFormat("stl", _("Surface (.stl)"), ".stl", _writeSurface),
        ExportFormat("obj", _("Surface (.obj)"), ".obj", _writeSurface),
        ExportFormat("csv", _("Statistics (.csv)"), ".csv", _writeStatistics),
    )


def makeSource(segmentationNode: Any, segmentId: str, volumeNode: Any, *, emptyToo: bool = False) -> ExportSource:
    """Return what to export.

    Raises:
        BadInput: there is no such segment, it is empty (unless ``emptyToo``), or the volume is gone.
        GeometryUnsupported: one of the nodes is under a non-linear transform.
    """
    from .volumes import takeSnapshot

    target = Target(segmentationNode, segmentId) if segmentationNode is not None else None
    if target is None or target.node is None:
        raise BadInput(_("There is no segment yet."), _("Press Segment first, or choose a segment."))
    parentMatrix(segmentationNode)
    source = ExportSource(target, takeSnapshot(volumeNode, target.record.axis))
    if not emptyToo and not target.read(source.snapshot).box.any():
        raise BadInput(_("The segment {name} is empty.").format(name=source.name), _("Press Segment first."))
    return source


def exportSegment(
    source: ExportSource, format_: ExportFormat, path: str | Path, confirm: Callable[[Path], bool]
) -> Path:
    """Write a segment to a file and return its path, which ends with the format's suffix.

    Args:
        source: what to write.
        format_: how.
        path: where to.
        confirm: asked before a file that exists is replaced.

    Raises:
        BadInput: the file cannot be written; nothing is left behind.
        Cancelled: ``confirm`` said no.
    """
    path = format_.withSuffix(Path(path).expanduser())
    if not path.parent.is_dir():
        raise BadInput(_("The folder {path} does not exist.").format(path=path.parent), _("Choose another folder."))
    if path.is_dir():
        raise BadInput(_("{path} is a folder.").format(path=path), _("Give the name of a file."))
    if path.exists() and not confirm(path):
        raise Cancelled()
    staging = None
    try:
        staging = Path(tempfile.mkdtemp(prefix=".exporting-", dir=path.parent))
        format_.write(source, staging / path.name)
        os.replace(staging / path.name, path)
    except OSError as error:
        raise BadInput(
            _("{path} cannot be written: {reason}.").format(path=path, reason=error.strerror or error),
            _("Check the folder's permissions and free space."),
            repr(error),
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    return path


def _writeLabelmap(source: ExportSource, path: Path) -> None:
    volume = source.snapshot.volume
    terminology = vtk.reference("")
    source.segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), terminology)
    write_labelmap(
        path,
        maskOnVolume(source).astype(np.uint8),
        volume,
        [source.name],
        [source.segment.GetColor()],
        [str(terminology) or DEFAULT_TERMINOLOGY],
    )


def maskOnVolume(source: ExportSource) -> np.ndarray:
    """Return the segment (K, J, I) bool on the whole grid of its volume."""
    content = source.target.read(source.snapshot)
    box, (i, j, k) = source.snapshot.grid.toVolume(content.box, content.start)
    mask = np.zeros(source.snapshot.volume.array.shape, dtype=bool)
    inside: list[slice] = []
    own: list[slice] = []
    limits: tuple[int, ...] = mask.shape
    for first, size, limit in zip((k, j, i), box.shape, limits, strict=True):
        begin, end = max(first, 0), min(first + size, limit)
        inside.append(slice(begin, max(begin, end)))
        own.append(slice(begin - first, max(begin, end) - first))
    mask[tuple(inside)] = box[tuple(own)]
    return mask


def _writeSurface(source: ExportSource, path: Path) -> None:
    model = slicer.vtkMRMLModelNode()
    model.SetAndObservePolyData(closedSurface(source))
    storage = slicer.vtkMRMLModelStorageNode()
    storage.SetFileName(str(path))
    if not storage.WriteData(model) or not path.is_file():
        raise BadInput(
            _("{path} cannot be written.").format(path=path.name), _("Check the folder's permissions and free space.")
        )
    if path.suffix == ".obj":
        _dropMaterial(path)


def _dropMaterial(path: Path) -> None:
    """Make an OBJ file whole by itself: VTK names a second file with a material that says nothing."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(("mtllib", "usemtl"))]
    path.write_text("".join(kept), encoding="utf-8")
    path.with_suffix(".mtl").unlink(missing_ok=True)


def closedSurface(source: ExportSource) -> Any:
    """Return the segment's surface in world RAS; the segmentation itself is not changed."""
    node = source.target.node
    copy = slicer.vtkSegmentation()
    copy.SetSourceRepresentationName(node.GetSegmentation().GetSourceRepresentationName())
    copy.CopyConversionParameters(node.GetSegmentation())
    copy.CopySegmentFromSegmentation(node.GetSegmentation(), source.target.segmentId)
    copy.CreateRepresentation("Closed surface")
    surface = copy.GetSegment(source.target.segmentId).GetRepresentation("Closed surface")
    if surface is None or not surface.GetNumberOfPoints():
        raise BadInput(
            _("The segment {name} has no surface.").format(name=source.name),
            _("It may be too small; export it as a label map."),
        )
    transform = vtk.vtkTransform()
    transform.SetMatrix(matrixFromArray(parentMatrix(node)))
    inWorld = vtk.vtkTransformPolyDataFilter()
    inWorld.SetTransform(transform)
    inWorld.SetInputData(surface)
    inWorld.Update()
    return inWorld.GetOutput()


def _writeStatistics(source: ExportSource, path: Path) -> None:
    row = measureSource(source)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columnTitles())
        writer.writerow([row[column] for column in COLUMNS])
