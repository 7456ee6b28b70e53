"""The Paint and Erase effects: a round brush in the slice views, one undo step for each stroke."""

from __future__ import annotations

from typing import Any

import numpy as np
from vtkmodules.util.numpy_support import vtk_to_numpy

from ..runtime import qt, slicer, vtk

DEFAULT_DIAMETER_MM = 6.0
_DIAMETER = "BrushAbsoluteDiameter"


class BrushStrokes(qt.QObject):
    """Watches the mouse in the slice views while an effect is active and writes a stroke at its end.

    Positions are in patient mm; a parent transform of the segmentation is not looked at.
    """

    def __init__(self, editor: Any) -> None:
        super().__init__(editor)
        self._editor = editor
        self._effect = ""
        self._views: list[Any] = []
        self._stroke: list[np.ndarray] = []

    def activate(self, effect: str) -> None:
        """Start to paint or erase; any other name ends it."""
        for view in self._views:
            view.removeEventFilter(self)
        self._effect = effect if effect in ("Paint", "Erase") else ""
        manager = slicer.app.layoutManager()
        names = manager.sliceViewNames() if self._effect else ()
        self._views = [manager.sliceWidget(name).sliceView() for name in names]
        for view in self._views:
            view.installEventFilter(self)

    def eventFilter(self, view: Any, event: Any) -> bool:
        """Take the left button; leave everything else to the view."""
        kind = event.type()
        kinds = qt.QEvent.Type
        if kind == kinds.MouseButtonPress and event.button() == qt.Qt.MouseButton.LeftButton:
            self._stroke = [self._position(view, event)]
            return True
        if kind == kinds.MouseMove and self._stroke:
            self._stroke.append(self._position(view, event))
            return True
        if kind == kinds.MouseButtonRelease and self._stroke:
            self._stroke.append(self._position(view, event))
            self._write(view.mrmlSliceNode())
            self._stroke = []
            return True
        return False

    def _position(self, view: Any, event: Any) -> np.ndarray:
        pixel = event.position()
        return np.array(view.convertXYZToRAS([pixel.x(), view.height - 1 - pixel.y(), 0.0]))

    def _write(self, slice_node: Any) -> None:
        editor = self._editor
        logic = editor._logic
        segment_id = editor.currentSegmentID()
        if not segment_id or editor.sourceVolumeNode() is None:
            return
        editor.saveStateForUndo()
        logic.UpdateReferenceGeometryImage()
        logic.ResetModifierLabelmapToDefault()
        modifier = logic.GetModifierLabelmap()
        node = editor.mrmlSegmentEditorNode()
        radius = float(node.GetAttribute(_DIAMETER) or DEFAULT_DIAMETER_MM) / 2
        normal = np.array([slice_node.GetSliceToRAS().GetElement(row, 2) for row in range(3)])
        fill_brush(modifier, _between(self._stroke, radius / 2), normal, radius)
        mode = logic.ModificationModeAdd if self._effect == "Paint" else logic.ModificationModeRemove
        logic.ModifySegmentByLabelmap(editor.segmentationNode(), segment_id, modifier, mode, False, False)


def _between(stroke: list[np.ndarray], step_mm: float) -> np.ndarray:
    """Return positions along a stroke that are no more than a step apart."""
    points = [stroke[0]]
    for start, end in zip(stroke, stroke[1:], strict=False):
        count = max(1, int(np.ceil(np.linalg.norm(end - start) / step_mm)))
        points.extend(start + (end - start) * share for share in np.linspace(0, 1, count + 1)[1:])
    return np.array(points)


def fill_brush(image: Any, centers_ras: np.ndarray, normal: np.ndarray, radius_mm: float) -> None:
    """Set voxels of an oriented image to 1 within a disc around each center, one voxel thick along the normal."""
    to_world = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(to_world)
    matrix = np.array([[to_world.GetElement(row, column) for column in range(4)] for row in range(4)])
    half_thickness = np.abs(normal @ matrix[:3, :3]).max() / 2
    extent = image.GetExtent()
    size = [extent[2 * axis + 1] - extent[2 * axis] + 1 for axis in range(3)]
    voxels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(size[::-1])
    reach = np.full(3, radius_mm) @ np.abs(np.linalg.inv(matrix[:3, :3])).T + 1
    for center in centers_ras:
        middle = np.linalg.solve(matrix, np.append(center, 1.0))[:3]
        ranges = [
            np.arange(
                max(extent[2 * axis], int(middle[axis] - reach[axis])),
                min(extent[2 * axis + 1], int(middle[axis] + reach[axis]) + 1) + 1,
            )
            for axis in range(3)
        ]
        if any(len(indexes) == 0 for indexes in ranges):
            continue
        ijk = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1)
        offset = ijk @ matrix[:3, :3].T + matrix[:3, 3] - center
        along = offset @ normal
        in_plane = np.linalg.norm(offset - along[..., None] * normal, axis=-1)
        chosen = ijk[(in_plane <= radius_mm) & (np.abs(along) <= half_thickness)] - np.array(extent[::2])
        voxels[chosen[:, 2], chosen[:, 1], chosen[:, 0]] = 1
    image.Modified()
