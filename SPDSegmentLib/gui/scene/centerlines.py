"""Markups nodes as clicks in world millimeters, and back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util.numpy_support import vtk_to_numpy

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.centerline import resolve_curve
from SPDSegmentLib.geometry.markups import INSISTED, ControlPoint, Markup, Point, marks_as_text, marks_in
from SPDSegmentLib.geometry.slices import SliceStack

from .volumes import hiddenNode

Clicks = tuple[tuple[str, Markup], ...]
SAME_PLACE_MM = 0.01

_KINDS = {
    "vtkMRMLMarkupsFiducialNode": "Fiducial",
    "vtkMRMLMarkupsCurveNode": "Curve",
    "vtkMRMLMarkupsClosedCurveNode": "ClosedCurve",
}


def centerlinesOfScene() -> list[Any]:
    """Return the point lists and open curves that are not hidden."""
    nodes = slicer.util.getNodesByClass("vtkMRMLMarkupsNode")
    classes = ("vtkMRMLMarkupsFiducialNode", "vtkMRMLMarkupsCurveNode")
    return [node for node in nodes if node.GetClassName() in classes and not node.GetHideFromEditors()]


def isCurve(node: Any) -> bool:
    """Whether the points of a node are joined by a curve."""
    return bool(node.IsA("vtkMRMLMarkupsCurveNode"))


def transformEvent() -> int:
    """Return the event of a node after which it may lie elsewhere, as a transform above it changed."""
    return int(slicer.vtkMRMLTransformableNode.TransformModifiedEvent)


def clickEvents(node: Any) -> list[int]:
    """Return the events of a node after which its clicks may be others."""
    kinds = slicer.vtkMRMLMarkupsNode
    events = [
        kinds.PointAddedEvent,
        kinds.PointPositionDefinedEvent,
        kinds.PointPositionUndefinedEvent,
        kinds.PointModifiedEvent,
        kinds.PointRemovedEvent,
        transformEvent(),
    ]
    # of a curve also its type, tension or surface
    return [*events, vtk.vtkCommand.ModifiedEvent] if isCurve(node) else events


def dragEvents() -> tuple[int, int]:
    """Return the events with which the drag of a click begins and ends."""
    kinds = slicer.vtkMRMLMarkupsNode
    return kinds.PointStartInteractionEvent, kinds.PointEndInteractionEvent


def readClicks(nodes: Iterable[Any]) -> Clicks:
    """Return node IDs and clicks in world RAS, as :func:`snapshotClicks`, where they can be used.

    Raises:
        BadInput: another kind of node, or no click.
    """
    nodes = list(nodes)
    checkClicks(nodes)
    return tuple((node.GetID(), _readNode(node)) for node in nodes)


def checkClicks(nodes: Iterable[Any]) -> None:
    """Raise what :func:`readClicks` would raise, without reading all clicks."""
    nodes = list(nodes)
    for node in nodes:
        _kind(node)
    if anyIncluded(nodes):
        return
    if any(node.GetNumberOfDefinedControlPoints() for node in nodes):
        raise BadInput(_("All clicks are left out; tick one in Clicks."))
    raise BadInput(
        _("There are no clicks yet."), _("Press Place clicks, then click along the structure in the slice views.")
    )


def anyIncluded(nodes: Iterable[Any]) -> bool:
    """Whether one click of some nodes is placed and counts."""
    return any(_isUsed(node, index) for node in nodes for index in range(node.GetNumberOfControlPoints()))


def namedClicks(clicks: Clicks, stack: SliceStack) -> list[Markup]:
    """Return clicks as the worker takes them: each with a name of its own, see :func:`clickName`.

    A curve becomes the points at which it, as it is shown, meets the slices of ``stack``; those around an excluded
    control point are left out.
    """
    return [
        replace(resolved, points=tuple(_named(nodeId, p) for p in resolved.points))
        for nodeId, resolved in ((nodeId, resolve_curve(markup, stack)) for nodeId, markup in clicks)
    ]


def _named(nodeId: str, p: ControlPoint) -> ControlPoint:
    """``dataclasses.replace`` takes five times as long, which a thousand clicks notice."""
    return ControlPoint(clickName(nodeId, p.id), p.label, p.position_ras, p.placed, p.selected, p.insisted, p.ends)


def clickName(nodeId: str, pointId: str) -> str:
    """Return a name of a control point that is unique among all nodes."""
    return f"{nodeId}:{pointId}"


def snapshotClicks(nodes: Iterable[Any]) -> Clicks:
    """Return node IDs and clicks, for comparing and restoring; nodes of other kinds are left out."""
    return tuple((node.GetID(), _readNode(node)) for node in nodes if node.GetClassName() in _KINDS)


def middleOfClicks(nodes: Iterable[Any]) -> tuple[float, float, float] | None:
    """Return the median of the clicks that count, in world mm, or None where there is none yet."""
    positions = [point.position_ras for _, markup in snapshotClicks(nodes) for point in markup.points if point.is_used]
    if not positions:
        return None
    r, a, s = np.median(np.array(positions), axis=0).tolist()
    return r, a, s


def restoreClicks(clicks: Clicks) -> dict[str, str]:
    """Put the clicks of :func:`snapshotClicks` back into the nodes that still exist.

    Returns:
        Former and new names of the clicks that had to be made again: MRML names control points itself.
    """
    renamed: dict[str, str] = {}
    for nodeId, markup in clicks:
        node = slicer.mrmlScene.GetNodeByID(nodeId)
        if node is None or _readNode(node) == markup:
            continue
        wasModifying = node.StartModify()
        wanted = {point.id for point in markup.points}
        for index in reversed(_realPoints(node)):
            if node.GetNthControlPointID(index) not in wanted:
                node.RemoveNthControlPoint(index)
        for index, point in enumerate(markup.points):
            pointId = _restorePoint(node, index, point)
            if pointId != point.id:
                renamed[clickName(nodeId, point.id)] = clickName(nodeId, pointId)
        for index in reversed(_realPoints(node)[len(markup.points) :]):  # their order was another one
            node.RemoveNthControlPoint(index)
        node.EndModify(wasModifying)
    return renamed


def shareLists(clicks: Clicks, others: Iterable[Clicks]) -> bool:
    """Whether clicks are in any node that others are in too."""
    own = {nodeId for nodeId, _markup in clicks}
    return any(nodeId in own for other in others for nodeId, _markup in other)


def removeClicks(node: Any, *, lastOnly: bool = False) -> None:
    """Take all clicks of a node away, or the last one; the one that follows the pointer while placing stays."""
    wasModifying = node.StartModify()
    indexes = _realPoints(node)
    for index in reversed(indexes[-1:] if lastOnly else indexes):
        node.RemoveNthControlPoint(index)
    node.EndModify(wasModifying)


def hasAny(node: Any, places: Mapping[str, tuple[float, float, float]]) -> bool:
    """Whether a node still has one of some clicks where it was: a list that was emptied gives names again."""
    names = ((n, clickName(node.GetID(), node.GetNthControlPointID(n))) for n in range(node.GetNumberOfControlPoints()))
    return any(name in places and math.dist(positionOf(node, n), places[name]) < SAME_PLACE_MM for n, name in names)


GHOST_SCALE, GHOST_COLOR = 3.0, (0.35, 0.85, 0.95)
DESCRIPTION_ATTRIBUTE = "SPDSegment.Description."


def renameClicks(clicks: Clicks, renamed: Mapping[str, str]) -> Clicks:
    """Return clicks with the names that :func:`restoreClicks` returned."""

    def rename(nodeId: str, point: ControlPoint) -> ControlPoint:
        name = renamed.get(clickName(nodeId, point.id))
        return point if name is None else replace(point, id=name.rpartition(":")[2])

    return tuple((nodeId, replace(m, points=tuple(rename(nodeId, p) for p in m.points))) for nodeId, m in clicks)


def usedClicks(clicks: Clicks) -> list[tuple[str, str, list[list[float]]]]:
    """Return what a result depends on: nodes, every click that is placed and included, and the course of curves."""

    def told(markup: Markup) -> list[list[float]]:
        given = [(*p.position_ras, p.insisted, p.ends) for p in markup.points if p.is_used]
        points: list[list[float]] = np.round(np.array(given, dtype=float).reshape(-1, 5), 3).tolist()
        return points + np.round(markup.path, 3).tolist()

    return [(nodeId, markup.kind, told(markup)) for nodeId, markup in clicks]


def usedPlaces(clicks: Clicks) -> set[tuple[str, float, float, float, bool, bool]]:
    """Return the clicks that are placed and included: node, place rounded to micrometers, insisted on, an end."""
    places = ((nodeId, p) for nodeId, markup in clicks for p in markup.points if p.is_used)
    return {
        (nodeId, round(r, 3), round(a, 3), round(s, 3), p.insisted, p.ends)
        for nodeId, p in places
        for r, a, s in [p.position_ras]
    }


def setIncluded(node: Any, clickId: str, included: bool, insisted: bool = False) -> None:
    """Include or exclude a click; one that is ``insisted`` on prompts whatever the model believes, until excluded.

    The list keeps the description that it had before.
    """
    index = indexOf(node, clickId)
    if index < 0:
        return
    wasModifying = node.StartModify()
    wasInsisted, ends = marks_in(node.GetNthControlPointDescription(index))
    _mark(node, index, included and (insisted or wasInsisted), ends)
    node.SetNthControlPointSelected(index, included)
    node.EndModify(wasModifying)


def setEnd(node: Any, clickId: str, ends: bool) -> None:
    """Say that the structure ends at the slice of a click, or take that back; else its description stays as it was."""
    index = indexOf(node, clickId)
    if index >= 0:
        _mark(node, index, marks_in(node.GetNthControlPointDescription(index))[0], ends)


def _mark(node: Any, index: int, insisted: bool, ends: bool) -> None:
    """Say of a click what it is in place of its description, which comes back when it is neither."""
    description, kept = node.GetNthControlPointDescription(index) or "", _descriptionOf(node, index)
    before, after = marks_in(description), (insisted, ends)
    if after == before:
        return
    if not any(before):
        node.SetAttribute(kept, description)
    node.SetNthControlPointDescription(index, marks_as_text(*after) or node.GetAttribute(kept) or "")
    if not any(after):
        node.RemoveAttribute(kept)


def _descriptionOf(node: Any, index: int) -> str:
    """The attribute of a node that keeps the description that a click had."""
    return DESCRIPTION_ATTRIBUTE + str(node.GetNthControlPointID(index))


def addClick(node: Any, positionRas: Point) -> None:
    """Add a click that a person has confirmed, so that it prompts whatever the model believes; into a curve on its way.

    Where it lengthens an open curve least is its place there.
    """
    wasModifying = node.StartModify()
    index = node.GetNumberOfControlPoints()
    real = _realPoints(node)
    if isCurve(node) and len(real) > 1:
        places = np.array([positionOf(node, n) for n in real])
        away = np.linalg.norm(places - positionRas, axis=1)
        detour = [away[0], *(away[:-1] + away[1:] - np.linalg.norm(np.diff(places, axis=0), axis=1)), away[-1]]
        index = [*real, real[-1] + 1][int(np.argmin(detour))]
    node.InsertControlPointWorld(index, positionRas)
    node.SetNthControlPointDescription(index, INSISTED)
    node.EndModify(wasModifying)


class GhostClick:
    """A suggested click: a point that can be dragged; no click yet, and saved with no scene. It ends with `remove`."""

    def __init__(self) -> None:
        self._nodeId = ""

    @property
    def node(self) -> Any:
        """The hidden point list that shows it, or None."""
        return slicer.mrmlScene.GetNodeByID(self._nodeId) if self._nodeId else None

    @property
    def positionRas(self) -> Point | None:
        """Where it is now, in world mm; None where there is none."""
        node = self.node
        if node is None or not node.GetNumberOfControlPoints():
            return None
        return positionOf(node, 0)

    def show(self, positionRas: Point, name: str) -> None:
        """Show it at a place; where clicks are placed stays as it is."""
        self.remove()
        selection = slicer.app.applicationLogic().GetSelectionNode()
        placed = selection.GetActivePlaceNodeID()
        node = hiddenNode("vtkMRMLMarkupsFiducialNode", name)
        self._nodeId = node.GetID()
        display = node.GetDisplayNode()
        display.SetGlyphType(display.Diamond2D)
        display.SetGlyphScale(GHOST_SCALE)
        for setColor in (display.SetColor, display.SetSelectedColor):
            setColor(*GHOST_COLOR)
        node.AddControlPointWorld(positionRas, "?")
        selection.SetActivePlaceNodeID(placed)

    def remove(self) -> None:
        """Take it away."""
        node, self._nodeId = self.node, ""
        if node is not None:
            slicer.mrmlScene.RemoveNode(node)


def indexOf(node: Any, clickId: str) -> int:
    """Return the index of a click in its node, -1 if it is gone."""
    for index in range(node.GetNumberOfControlPoints()):
        if node.GetNthControlPointID(index) == clickId:
            return index
    return -1


def _kind(node: Any) -> str:
    kind = _KINDS.get(node.GetClassName())
    if kind is None:
        raise BadInput(
            _("{name} is neither a point list nor a curve.").format(name=node.GetName()),
            _("Choose a point list or an open curve."),
        )
    return kind


def _isUsed(node: Any, index: int) -> bool:
    defined = slicer.vtkMRMLMarkupsNode.PositionDefined
    return node.GetNthControlPointPositionStatus(index) == defined and bool(node.GetNthControlPointSelected(index))


def _readNode(node: Any) -> Markup:
    kind = _kind(node)
    defined = slicer.vtkMRMLMarkupsNode.PositionDefined
    position = [0.0, 0.0, 0.0]
    points = []
    for index in _realPoints(node):
        node.GetNthControlPointPositionWorld(index, position)
        points.append(
            ControlPoint(
                node.GetNthControlPointID(index),
                node.GetNthControlPointLabel(index),
                (position[0], position[1], position[2]),
                node.GetNthControlPointPositionStatus(index) == defined,
                bool(node.GetNthControlPointSelected(index)),
                *marks_in(node.GetNthControlPointDescription(index)),
            )
        )
    return Markup(node.GetName() or "", kind, tuple(points), _path(node))


def _path(node: Any) -> tuple[Point, ...]:
    """Vertices of a curve as it is shown, whatever its type, in world mm; empty for a point list."""
    shown = node.GetCurvePointsWorld() if isCurve(node) else None
    if shown is None or shown.GetNumberOfPoints() < 2:
        return ()
    return tuple((r, a, s) for r, a, s in vtk_to_numpy(shown.GetData()).astype(float).tolist())


def positionOf(node: Any, index: int) -> Point:
    """Return where a control point is, in world mm."""
    position = [0.0, 0.0, 0.0]
    node.GetNthControlPointPositionWorld(index, position)
    return position[0], position[1], position[2]


def _realPoints(node: Any) -> list[int]:
    """Return the indexes of all control points but the one that follows the pointer while placing."""
    preview = slicer.vtkMRMLMarkupsNode.PositionPreview
    count = node.GetNumberOfControlPoints()
    return [index for index in range(count) if node.GetNthControlPointPositionStatus(index) != preview]


def _restorePoint(node: Any, index: int, point: ControlPoint) -> str:
    if index >= node.GetNumberOfControlPoints() or node.GetNthControlPointID(index) != point.id:
        node.InsertControlPointWorld(index, point.position_ras, point.label)
        if point.insisted or point.ends:
            node.SetNthControlPointDescription(index, node.GetAttribute(DESCRIPTION_ATTRIBUTE + point.id) or "")
    if point.placed:
        node.SetNthControlPointPositionWorld(index, *point.position_ras)
    else:
        node.UnsetNthControlPointPosition(index)
    node.SetNthControlPointSelected(index, point.selected)
    _mark(node, index, point.insisted, point.ends)
    return str(node.GetNthControlPointID(index))
