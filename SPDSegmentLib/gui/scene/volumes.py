"""Volume nodes as arrays with a place in the patient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from SPDSegmentLib.errors import BadInput, GeometryUnsupported
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import Volume

from .slice_grid import SliceGrid

PARALLEL = 0.999
"""Cosine between the normals of slices that count as parallel."""


def nodeById(nodeId: str | None) -> Any:
    """Return a node of the scene, or None where there is none of that ID."""
    return slicer.mrmlScene.GetNodeByID(nodeId or "")


def shownImage() -> Any:
    """Return the image that the views show, otherwise the first one of the scene; None where there is none.

    Label maps, color volumes and hidden nodes are none.
    """
    selection = slicer.app.applicationLogic().GetSelectionNode()
    shown = nodeById(selection.GetActiveVolumeID()) if selection is not None else None
    nodes = [shown, *slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")]
    return next((node for node in nodes if _isImage(node)), None)


def _isImage(node: Any) -> bool:
    return node is not None and node.GetClassName() == "vtkMRMLScalarVolumeNode" and not node.GetHideFromEditors()


@dataclass(frozen=True, eq=False)
class VolumeSnapshot:
    """One state of a volume node.

    Attributes:
        nodeId: the node.
        volumeId: name of exactly this state: node, voxels, place and slicing axis.
        volume: voxels (a view) and world matrix.
        stack: its canonical slices.
        grid: whole-voxel relation between both.
        axis: slicing axis as chosen.
    """

    nodeId: str
    volumeId: str
    volume: Volume
    stack: SliceStack
    grid: SliceGrid
    axis: str

    def isCurrent(self) -> bool:
        """Whether the node still shows this state."""
        node = slicer.mrmlScene.GetNodeByID(self.nodeId)
        try:
            return node is not None and fingerprint(node, self.axis) == self.volumeId
        except GeometryUnsupported:
            return False

    def sliceAt(self, positionRas: Sequence[float]) -> int:
        """Return the slice nearest to a place in world mm."""
        t = round(float(self.stack.to_slices(np.asarray(positionRas))[0][0]))
        return min(max(t, 0), self.grid.shape[0] - 1)


def takeSnapshot(node: Any, axis: str = "auto") -> VolumeSnapshot:
    """Return the present state of a scalar volume node; voxels are not copied.

    Raises:
        BadInput: no voxels, a label map, or not a scalar volume.
        GeometryUnsupported: a non-linear parent transform or axes that are not at right angles.
    """
    if node is None or node.GetImageData() is None or 0 in node.GetImageData().GetDimensions():
        raise BadInput(_("The volume has no voxels."), _("Load a volume and choose it."))
    if node.GetImageData().GetNumberOfScalarComponents() != 1:
        raise BadInput(
            _("{name} is a color volume.").format(name=node.GetName()), _("Choose a volume with one value per voxel.")
        )
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        raise BadInput(
            _("{name} is a label map, not an image.").format(name=node.GetName()),
            _("Choose the volume that it belongs to."),
        )
    if any(node.GetImageData().GetExtent()[::2]):  # as cutting filters leave it; every voxel stays where it is
        node.ShiftImageDataExtentToZeroStart()
    volume = Volume(slicer.util.arrayFromVolume(node), worldMatrix(node), node.GetName() or "")
    stack = SliceStack(volume, axis)
    return VolumeSnapshot(node.GetID(), fingerprint(node, axis), volume, stack, SliceGrid(stack), axis)


def gridSnapshot(shape: tuple[int, int, int], matrix: np.ndarray, axis: str, nodeId: str = "") -> VolumeSnapshot:
    """Return the slices of voxels (K, J, I) without values, which are of a volume that is gone or has changed.

    Args:
        shape: K, J, I.
        matrix: (4, 4) from IJK to world mm.
        axis: slicing axis.
        nodeId: of the volume.
    """
    stack = SliceStack(Volume(np.broadcast_to(np.zeros((), dtype=np.uint8), shape), matrix), axis)
    return VolumeSnapshot(nodeId, "", stack.volume, stack, SliceGrid(stack), axis)


def slicesBeside(old: SliceStack, new: SliceStack, slices: Iterable[int]) -> set[int] | None:
    """Return which slices of another stack lie where some slices of a stack do; None where they are not parallel.

    Args:
        old: a stack.
        new: the other one.
        slices: of ``old``.
    """
    ends = [stack.to_ras(np.array([0.0, 1.0]), np.zeros((2, 2))) for stack in (old, new)]
    normals = [(second - first) / np.linalg.norm(second - first) for first, second in ends]
    if abs(float(normals[0] @ normals[1])) < PARALLEL:
        return None
    corner = np.zeros((1, 2))
    wanted = set(slices)
    middles = old.to_ras(np.array(sorted(wanted), dtype=float), np.zeros((len(wanted), 2)))
    near = {round(float(position)) for position in new.to_slices(middles)[0]}
    every = np.arange(new.n_slices, dtype=float)
    places = old.to_slices(new.to_ras(every, np.repeat(corner, len(every), axis=0)))[0]
    return {t for t in range(new.n_slices) if t in near or round(float(places[t])) in wanted}


def fingerprint(node: Any, axis: str) -> str:
    """Return a text that changes with the node's voxels, its place and the slicing axis."""
    image = node.GetImageData()
    scalars = image.GetPointData().GetScalars() if image is not None else None
    place = ",".join(f"{value:.6g}" for value in worldMatrix(node).ravel())
    times = (image.GetMTime(), scalars.GetMTime()) if scalars is not None else (0, 0)
    return f"{node.GetID()}|{times[0]}|{times[1]}|{place}|{axis}"


def worldMatrix(node: Any) -> np.ndarray:
    """Return the (4, 4) matrix from IJK to world RAS in mm; raises GeometryUnsupported under a non-linear transform."""
    local = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(local)
    return parentMatrix(node) @ slicer.util.arrayFromVTKMatrix(local)


def parentMatrix(node: Any) -> np.ndarray:
    """Return the (4, 4) matrix of all parent transforms of a node; raises GeometryUnsupported if one is not linear."""
    parent = node.GetParentTransformNode()
    if parent is None:
        return np.eye(4)
    if not parent.IsTransformToWorldLinear():
        raise GeometryUnsupported(
            _("{name} is under a transform that is not linear.").format(name=node.GetName()),
            _("Harden the transform (right click in the Data module), then run again."),
        )
    matrix = vtk.vtkMatrix4x4()
    parent.GetMatrixTransformToWorld(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)
