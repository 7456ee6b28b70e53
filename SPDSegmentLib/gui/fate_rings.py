"""Rings around clicks, and marks of synthesized points, in the color of their fate; not saved, not clickable."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import slicer
import vtk

from .fates import COLORS
from .write_record import PointFate

ATTRIBUTE = "SPDSegment.Fate"


class FateRings:
    """One locked point list for each fate."""

    def __init__(self) -> None:
        self._nodeIds: dict[str, str] = {}

    def show(self, fates: Iterable[PointFate]) -> None:
        """Show these fates and nothing else."""
        places: dict[str, list[tuple[float, float, float]]] = {fate: [] for fate in COLORS}
        for fate in fates:
            if fate.fate in places:
                places[fate.fate].append(fate.positionRas)
        for name, positions in places.items():
            node = self._node(name, make=bool(positions))
            if node is not None:
                points = vtk.vtkPoints()
                for position in positions:
                    points.InsertNextPoint(position)
                node.SetControlPointPositionsWorld(points)

    def remove(self) -> None:
        """Take all rings out of the scene."""
        for nodeId in self._nodeIds.values():
            node = slicer.mrmlScene.GetNodeByID(nodeId)
            if node is not None:
                slicer.mrmlScene.RemoveNode(node)
        self._nodeIds.clear()

    def _node(self, fate: str, *, make: bool) -> Any:
        node = slicer.mrmlScene.GetNodeByID(self._nodeIds.get(fate, ""))
        if node is not None and node.GetAttribute(ATTRIBUTE) == fate:
            return node
        if not make:
            return None
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLMarkupsFiducialNode")
        node.UnRegister(None)
        node.SetName(f"SPD {fate}")
        node.SetAttribute(ATTRIBUTE, fate)
        node.HideFromEditorsOn()
        node.SaveWithSceneOff()
        node.SetLocked(True)
        node.UndoEnabledOff()
        node = slicer.mrmlScene.AddNode(node)
        self._nodeIds[fate] = node.GetID()
        node.CreateDefaultDisplayNodes()
        display = node.GetDisplayNode()
        display.SaveWithSceneOff()
        for setColor in (display.SetColor, display.SetSelectedColor):
            setColor(*COLORS[fate])
        display.SetGlyphType(display.Circle2D)
        display.SetGlyphScale(3.0)
        display.SetPointLabelsVisibility(False)
        return node
