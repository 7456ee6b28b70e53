"""The measures of a segment as a row, a table node and a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import slicer
import vtk
from slicer.i18n import tr as _

from SPDSegmentLib.geometry.measure import measure

if TYPE_CHECKING:
    from .export_files import ExportSource

COLUMNS = ("segment", "volume", "length", "mean", "largest")
ID_COLUMN = len(COLUMNS)
TABLE_ATTRIBUTE = "SPDSegment.Statistics"


def columnTitles() -> tuple[str, ...]:
    """Return the titles of the columns, with units."""
    return (
        _("Segment"),
        _("Volume (ml)"),
        _("Length along the centerline (mm)"),
        _("Mean diameter (mm)"),
        _("Largest diameter (mm)"),
    )


def measureSource(source: ExportSource) -> dict[str, Any]:
    """Return the measures of a segment, see ``geometry.measure``; rounded to what the voxels can tell.

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
        "{segment}: {volume} ml, {length} mm along the centerline, {mean} mm in diameter (largest {largest} mm)."
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
