"""Slice views: what they show, jumps, ranges of slices in words, and the saliency as an overlay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import slicer

from .volumes import VolumeSnapshot, hiddenNode


def viewNode(plane: str) -> Any:
    """Return the slice node that shows a plane (axial, coronal or sagittal), or None."""
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        if node.GetOrientation().lower() == plane:
            return node
    return None


def viewCenter(node: Any) -> tuple[float, float, float]:
    """Return the world center of a slice view."""
    matrix = node.GetSliceToRAS()
    return matrix.GetElement(0, 3), matrix.GetElement(1, 3), matrix.GetElement(2, 3)


def jumpTo(positionRas: Sequence[float]) -> None:
    """Show the slices through a place in all views."""
    node = slicer.vtkMRMLSliceNode
    node.JumpAllSlices(slicer.mrmlScene, *(float(x) for x in positionRas), node.OffsetJumpSlice)


def sliceRanges(slices: Iterable[int]) -> str:
    """Return ``3, 5-7`` for 3, 5, 6, 7."""
    ranges: list[list[int]] = []
    for t in sorted(set(slices)):
        if ranges and t == ranges[-1][1] + 1:
            ranges[-1][1] = t
        else:
            ranges.append([t, t])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


OPACITY = 0.45
SHOWN_FROM = 0.05
COLOR_NODE = "vtkMRMLColorTableNodeFileHotToColdRainbow.txt"
_COLOR_FALLBACK = "vtkMRMLColorTableNodeRainbow"


class SaliencyOverlay:
    """A volume of one slice in the foreground of the views; what was there before comes back with :meth:`remove`."""

    def __init__(self) -> None:
        self._nodeId = ""
        self._before: dict[str, tuple[str, float]] = {}

    @property
    def node(self) -> Any:
        """The volume node, or None."""
        return slicer.mrmlScene.GetNodeByID(self._nodeId) if self._nodeId else None

    def show(self, saliency: np.ndarray, t: int, snapshot: VolumeSnapshot) -> None:
        """Show the saliency (H, W) in [0, 1] of slice ``t``."""
        node = self.node or self._makeNode()
        node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(sliceMatrix(snapshot, t)))
        slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(saliency[np.newaxis], dtype=np.float32))
        for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
            if composite.GetForegroundVolumeID() != node.GetID():
                former = composite.GetForegroundVolumeID() or ""
                self._before[composite.GetID()] = (former, composite.GetForegroundOpacity())
                composite.SetForegroundVolumeID(node.GetID())
                composite.SetForegroundOpacity(OPACITY)

    def remove(self) -> None:
        """Take the layer away."""
        node = self.node
        for compositeId, (former, opacity) in self._before.items():
            composite = slicer.mrmlScene.GetNodeByID(compositeId)
            if composite is not None and composite.GetForegroundVolumeID() == self._nodeId:
                composite.SetForegroundVolumeID(former)
                composite.SetForegroundOpacity(opacity)
        self._before.clear()
        self._nodeId = ""
        if node is not None:
            slicer.mrmlScene.RemoveNode(node)

    def _makeNode(self) -> Any:
        node = hiddenNode("vtkMRMLScalarVolumeNode", "SPD saliency")
        self._nodeId = node.GetID()
        display = node.GetDisplayNode()
        known = slicer.mrmlScene.GetNodeByID(COLOR_NODE)
        display.SetAndObserveColorNodeID(COLOR_NODE if known is not None else _COLOR_FALLBACK)
        display.AutoWindowLevelOff()
        display.SetWindowLevelMinMax(0.0, 1.0)
        display.SetThreshold(SHOWN_FROM, 1.0)
        display.ApplyThresholdOn()
        return node


def sliceMatrix(snapshot: VolumeSnapshot, t: int) -> np.ndarray:
    """Return the (4, 4) matrix from (column, row, 0) of slice ``t`` to world mm."""
    pixels = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    origin, column, row = snapshot.stack.to_ras(np.array(t), pixels)
    above = snapshot.stack.to_ras(np.array(t + 1), pixels[:1])[0]
    matrix = np.eye(4)
    for index, axis in enumerate((column - origin, row - origin, above - origin)):
        matrix[:3, index] = axis
    matrix[:3, 3] = origin
    return matrix
