"""The slice views: which one shows a plane, and where it looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import slicer


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
