"""One segment as a file and as numbers: label maps, meshes, measures; whole or absent, see ``SPDSegmentLib.files``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from SPDSegmentLib.errors import BadInput, Cancelled
from SPDSegmentLib.files import check_output, user_path, write_csv
from SPDSegmentLib.geometry.labelmap import DEFAULT_TERMINOLOGY, check_mask_output, filled_part, measure, write_labelmap
from SPDSegmentLib.geometry.volume import Volume

from .surfaces import SurfaceSettings, closedSurface, surfaceSettings, writeSurface
from .target import SegmentTarget
from .volumes import SegmentContent, VolumeSnapshot, parentMatrix, takeSnapshot


@dataclass(frozen=True, eq=False)
class ExportSource:
    """A segment on the slices of a volume, taken out of the scene; see :func:`makeSource`.

    Attributes:
        target: where it came from.
        snapshot: the volume.
        content: its voxels.
        name: of the segment.
        color: of the segment, red, green and blue in [0, 1].
        terminology: entry as Slicer writes it, empty for none.
        surface: how a surface is made of it.
        state: of the segment when it was taken.
        isResampled: whether its own voxels are not those of the volume.
        isCut: whether a label map leaves out what lies beyond the volume.
    """

    target: SegmentTarget
    snapshot: VolumeSnapshot
    content: SegmentContent
    name: str
    color: tuple[float, float, float]
    terminology: str
    surface: SurfaceSettings
    state: tuple[int, str]
    isResampled: bool = False
    isCut: bool = False

    @property
    def note(self) -> str:
        """What a person should know of a label map of it before it is used, as a sentence; empty for nothing."""
        text = ""
        if self.isCut:
            text = _("What lies beyond {volume} was left out.")
        elif self.reachesBeyond:
            text = _(
                "The segment reaches beyond {volume}: the label map is larger than the volume, so that none is lost."
            )
        elif self.isResampled:
            text = _("The segment has other voxels than {volume}: it was resampled to those of the volume.")
        return text.format(volume=self.snapshot.volume.name)

    @cached_property
    def reachesBeyond(self) -> bool:
        """Whether some of its voxels lie outside the volume."""
        sizes = zip(self.content.start, filled_part(self.content.box) or (), self.content.shape, strict=False)
        return any(start + part.start < 0 or start + part.stop > limit for start, part, limit in sizes)

    @property
    def question(self) -> str:
        """What a person has to decide before a label map of it is written, empty for nothing."""
        if not self.reachesBeyond:
            return ""
        return _(
            "The segment {name} reaches beyond {volume}.\n\n"
            "Cut the label map to {volume}? With Yes the voxels outside it are left out. "
            "With No the label map becomes larger than {volume}, and none is lost."
        ).format(name=self.name, volume=self.snapshot.volume.name)

    def isCurrent(self) -> bool:
        """Whether segment and volume are still as they were."""
        node = self.target.node
        return node is not None and self.snapshot.isCurrent() and _stateOf(node, self.target.segmentId) == self.state


@dataclass(frozen=True)
class ExportFormat:
    """A kind of file.

    Attributes:
        key: short name.
        title: for people.
        suffix: of the file, with its dot.
        write: writes a source to a path in one piece, by ``SPDSegmentLib.files``, and reads it back; touches no node,
            since it runs in a thread. DICOM can be one more of these.
    """

    key: str
    title: str
    suffix: str
    write: Callable[[ExportSource, Path], None]

    @property
    def isLabelmap(self) -> bool:
        """Whether it holds voxels."""
        return self.write is _writeLabelmap

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


def fileStem(name: str, kept: str = "-_") -> str:
    """Return a segment's name as a file may have it: letters, digits and what is ``kept``."""
    return "".join(letter if letter.isalnum() or letter in kept else "_" for letter in name).strip() or "segment"


def makeSource(segmentationNode: Any, segmentId: str, volumeNode: Any) -> ExportSource:
    """Return what to export.

    Raises:
        BadInput: there is no such segment, it is empty, or the volume is gone.
        GeometryUnsupported: one of the nodes is under a non-linear transform.
    """
    target = SegmentTarget(segmentationNode, segmentId) if segmentationNode is not None else None
    if target is None or target.node is None:
        raise BadInput(_("There is no segment yet."), _("Press Segment first, or choose a segment."))
    parentMatrix(segmentationNode)
    snapshot = takeSnapshot(volumeNode, target.record.axis)
    segmentation = segmentationNode.GetSegmentation()
    segment = segmentation.GetSegment(segmentId)
    terminology = vtk.reference("")
    segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), terminology)
    source = ExportSource(
        target,
        snapshot,
        target.read(snapshot),
        str(segment.GetName()),
        segment.GetColor(),
        str(terminology),
        surfaceSettings(segmentation),
        _stateOf(segmentationNode, segmentId),
        not target.hasVoxelsOf(snapshot),
    )
    if not source.content.box.any():
        raise BadInput(_("The segment {name} is empty.").format(name=source.name), _("Press Segment first."))
    return source


def _stateOf(segmentationNode: Any, segmentId: str) -> tuple[int, str]:
    """Time of the last change of a segment's voxels, and its name."""
    segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
    labelmap = segment.GetRepresentation("Binary labelmap")
    return int(labelmap.GetMTime()) if labelmap is not None else 0, str(segment.GetName())


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
        BadInput: the file cannot be written, or is read-only; what was there stays, and nothing is left behind.
        Cancelled: ``confirm`` said no.
    """
    return writeFile(source, format_, choosePath(format_, path, confirm))


def choosePath(format_: ExportFormat, path: str | Path, confirm: Callable[[Path], bool]) -> Path:
    """Return where a file may be written; arguments and errors as for :func:`exportSegment`."""
    path = format_.withSuffix(user_path(path))
    checkPlace(path, confirm)
    return path


def checkPlace(path: Path, confirm: Callable[[Path], bool]) -> None:
    """Find out whether a file may be written.

    Raises:
        BadInput: it cannot be.
        Cancelled: it exists, and ``confirm`` said no.
    """
    check_output(path)
    if path.exists() and not confirm(path):
        raise Cancelled()


def writeFile(source: ExportSource, format_: ExportFormat, path: Path) -> Path:
    """Write a segment to a path of :func:`choosePath` and return it. Touches no node, so it may run in a thread.

    Raises:
        BadInput: the file cannot be written; what was there stays, and nothing is left behind.
    """
    format_.write(source, path)
    return path


def _writeLabelmap(source: ExportSource, path: Path) -> None:
    mask, volume = maskOnVolume(source)
    check_mask_output(path, volume)
    write_labelmap(
        path, mask.view(np.uint8), volume, [source.name], [source.color], [source.terminology or DEFAULT_TERMINOLOGY]
    )


def maskOnVolume(source: ExportSource) -> tuple[np.ndarray, Volume]:
    """Return the segment (K, J, I) bool on the grid of its volume, and that grid.

    Where the segment reaches beyond the volume the grid is extended by whole voxels, unless it is to be cut.

    Raises:
        BadInput: it is to be cut, and nothing would be left.
    """
    box, (i, j, k) = source.snapshot.grid.toVolume(source.content.box, source.content.start)
    volume = source.snapshot.volume
    firsts, limits = np.array([k, j, i]), np.array(volume.array.shape)
    if source.isCut:
        box = box[tuple(slice(max(-f, 0), max(n - f, 0)) for f, n in zip(firsts, limits, strict=True))]
        firsts = np.maximum(firsts, 0)
        if not box.any():
            named = {"name": source.name, "volume": volume.name}
            raise BadInput(
                _("Nothing of {name} lies in {volume}: a label map cut to it would be empty.").format(**named),
                _("Choose the volume that {name} belongs to, or export again and answer No.").format(**named),
            )
    inside = filled_part(box) or (slice(0, 0),) * 3
    part = box[inside]
    low = firsts + [axis.start for axis in inside] if part.size else np.zeros(3, dtype=int)
    before = np.maximum(-low, 0)
    mask = np.zeros(before + np.maximum(low + part.shape, limits), dtype=bool)
    mask[tuple(slice(b, b + n) for b, n in zip(low + before, part.shape, strict=True))] = part
    shift = np.eye(4)
    shift[:3, 3] = -before[::-1]
    grid = np.broadcast_to(np.zeros((), dtype=np.uint8), mask.shape)
    return mask, Volume(grid, volume.ijk_to_ras @ shift, volume.name)


def _writeSurface(source: ExportSource, path: Path) -> None:
    box, start = source.snapshot.grid.toVolume(source.content.box, source.content.start)
    surface = closedSurface(box, start, source.snapshot.volume.ijk_to_ras, source.surface)
    if not surface.GetNumberOfPoints():
        raise BadInput(
            _("The segment {name} has no surface.").format(name=source.name),
            _("It may be too small; export it as a label map."),
        )
    writeSurface(surface, path)


def _writeStatistics(source: ExportSource, path: Path) -> None:
    row = measureSource(source)
    write_csv(path, [columnTitles(), [row[column] for column in COLUMNS]], "table")


COLUMNS = ("segment", "volume", "length", "mean", "largest")
ID_COLUMN = len(COLUMNS)
TABLE_ATTRIBUTE = "SPDSegment.Statistics"


def columnTitles() -> tuple[str, ...]:
    """Return the titles of the columns, with units."""
    return (
        _("Segment"),
        _("Volume (ml)"),
        _("Length from slice to slice (mm)"),
        _("Mean diameter of the slices (mm)"),
        _("Largest diameter of the slices (mm)"),
    )


def measureSource(source: ExportSource) -> dict[str, Any]:
    """Return the measures of a segment, see ``geometry.labelmap``; rounded to what the voxels can tell.

    Touches no node, so it may run in a thread.
    """
    found = measure(source.content.box, source.content.start, source.snapshot.stack)
    return {
        "segment": source.name,
        "volume": round(found.volume_ml, 3),
        "length": round(found.length_mm, 1),
        "mean": round(found.mean_diameter_mm, 1),
        "largest": round(found.largest_diameter_mm, 1),
    }


def writeTable(row: dict[str, Any], segmentationNode: Any, segmentId: str) -> Any:
    """Write a segment's row into the statistics table of a segmentation (made if need be) and return the table node."""
    node = _tableOf(segmentationNode)
    table = node.GetTable()
    known = [
        (table.GetValue(n, ID_COLUMN).ToString(), table.GetValue(n, 0).ToString())
        for n in range(node.GetNumberOfRows())
    ]
    n = next(
        (n for n, (ownId, name) in enumerate(known) if ownId == segmentId or (not ownId and name == row["segment"])), -1
    )
    if n < 0:
        n = node.AddEmptyRow()
    table.SetValue(n, ID_COLUMN, vtk.vtkVariant(segmentId))
    for column, name in enumerate(COLUMNS):
        table.SetValue(n, column, vtk.vtkVariant(row[name]))
    node.Modified()
    return node


def sentence(row: dict[str, Any]) -> str:
    """Return a row as one line."""
    volume = f"{row['volume']:.1f}" if row["volume"] >= 10 else f"{row['volume']:.2f}"
    return _(
        "{segment}: {volume} ml, from slice to slice {length} mm, {mean} mm in diameter (largest {largest} mm)."
    ).format(**row | {"volume": volume})


def _tableOf(segmentationNode: Any) -> Any:
    for node in slicer.util.getNodesByClass("vtkMRMLTableNode"):
        if node.GetAttribute(TABLE_ATTRIBUTE) and node.GetNodeReference("Segmentation") is segmentationNode:
            if node.GetNumberOfColumns() <= ID_COLUMN:  # of an earlier version
                _addColumn(node, _("Segment ID"), vtk.vtkStringArray())
            return node
    name = slicer.mrmlScene.GenerateUniqueName(_("{name} statistics").format(name=segmentationNode.GetName()))
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", name)
    node.SetAttribute(TABLE_ATTRIBUTE, "1")
    node.SetNodeReferenceID("Segmentation", segmentationNode.GetID())
    node.SetUseColumnTitleAsColumnHeader(True)
    for column, title in enumerate(columnTitles()):
        _addColumn(node, title, vtk.vtkStringArray() if column == 0 else vtk.vtkDoubleArray())
    _addColumn(node, _("Segment ID"), vtk.vtkStringArray())
    return node


def _addColumn(node: Any, title: str, array: Any) -> None:
    array.SetName(title)
    array.SetNumberOfValues(node.GetNumberOfRows())
    node.AddColumn(array)
