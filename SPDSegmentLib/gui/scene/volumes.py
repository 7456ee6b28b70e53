"""Volumes: nodes as arrays with a place in the patient, boxes of voxels in canonical slices, and what views show."""

from __future__ import annotations

import hashlib
import weakref
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

PARALLEL, NEARLY_PARALLEL = 0.999, 0.7
"""Cosines between normals: of slices that count as parallel, and of a view and the slices that it shows."""
OPACITY = 0.45
SHOWN_FROM = 0.05
COLOR_NODE = "vtkMRMLColorTableNodeFileHotToColdRainbow.txt"
_COLOR_FALLBACK = "vtkMRMLColorTableNodeRainbow"


def nodeById(nodeId: str | None) -> Any:
    """Return a node of the scene, or None where there is none of that ID."""
    return slicer.mrmlScene.GetNodeByID(nodeId or "")


def hiddenNode(className: str, name: str) -> Any:
    """Add a node with its display node that no selector lists and no saved scene has."""
    node = slicer.mrmlScene.CreateNodeByClass(className)
    node.UnRegister(None)
    node.SetName(name)
    node.HideFromEditorsOn()
    node.SaveWithSceneOff()
    node = slicer.mrmlScene.AddNode(node)
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SaveWithSceneOff()
    return node


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
        inSegmentation: (4, 4) from IJK to the coordinates of a segmentation in mm, where a run has fixed it: what it
            wrote stays where it is in the segmentation, wherever that is moved. None for the place of now.
    """

    nodeId: str
    volumeId: str
    volume: Volume
    stack: SliceStack
    grid: SliceGrid
    axis: str
    inSegmentation: np.ndarray | None = None

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


_inUse: weakref.WeakValueDictionary[tuple[str, str], VolumeSnapshot] = weakref.WeakValueDictionary()
"""Snapshots that somebody still has: the panel asks many times for one state."""


def takeSnapshot(node: Any, axis: str = "auto") -> VolumeSnapshot:
    """Return the present state of a scalar volume node; voxels are not copied.

    Raises:
        BadInput: no voxels, a label map, or not a scalar volume.
        GeometryUnsupported: a non-linear parent transform or axes that are not at right angles.
    """
    image = node.GetImageData() if node is not None else None
    if image is None or 0 in image.GetDimensions() or image.GetPointData().GetScalars() is None:
        raise BadInput(_("The volume has no voxels."), _("Load a volume and choose it."))
    if image.GetNumberOfScalarComponents() != 1:
        raise BadInput(
            _("{name} is a color volume.").format(name=node.GetName()), _("Choose a volume with one value per voxel.")
        )
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        raise BadInput(
            _("{name} is a label map, not an image.").format(name=node.GetName()),
            _("Choose the volume that it belongs to."),
        )
    if any(image.GetExtent()[::2]):  # as cutting filters leave it; every voxel stays where it is
        node.ShiftImageDataExtentToZeroStart()
    state, name = fingerprint(node, axis), node.GetName() or ""
    snapshot = _inUse.get((state, name))
    if snapshot is None:
        stack = SliceStack(Volume(slicer.util.arrayFromVolume(node), worldMatrix(node), name), axis)
        snapshot = VolumeSnapshot(node.GetID(), state, stack.volume, stack, SliceGrid(stack), axis)
        _inUse[state, name] = snapshot
    return snapshot


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
    if abs(float(_normal(old) @ _normal(new))) < PARALLEL:
        return None
    corner = np.zeros((1, 2))
    wanted = set(slices)
    middles = old.to_ras(np.array(sorted(wanted), dtype=float), np.zeros((len(wanted), 2)))
    near = {round(float(position)) for position in new.to_slices(middles)[0]}
    every = np.arange(new.n_slices, dtype=float)
    places = old.to_slices(new.to_ras(every, np.repeat(corner, len(every), axis=0)))[0]
    return {t for t in range(new.n_slices) if t in near or round(float(places[t])) in wanted}


def _normal(stack: SliceStack) -> np.ndarray:
    first, second = stack.to_ras(np.array([0.0, 1.0]), np.zeros((2, 2)))
    return (second - first) / np.linalg.norm(second - first)


def fingerprint(node: Any, axis: str) -> str:
    """Return a text that changes with the node's voxels, its place and the slicing axis."""
    place = ",".join(f"{value:.6g}" for value in worldMatrix(node).ravel())
    return f"{voxelState(node)}|{place}|{axis}"


def voxelState(node: Any) -> str:
    """Return the first part of :func:`fingerprint`: it names the node and changes with its voxels."""
    image = node.GetImageData()
    scalars = image.GetPointData().GetScalars() if image is not None else None
    times = (image.GetMTime(), scalars.GetMTime()) if scalars is not None else (0, 0)
    return f"{node.GetID()}|{times[0]}|{times[1]}"


def volumeState(node: Any) -> str:
    """Return what changes with a volume's voxels and, where that can be told, with its place; empty for None."""
    try:
        return fingerprint(node, "") if node is not None else ""
    except GeometryUnsupported:
        return voxelState(node)


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


Triple = tuple[int, int, int]
EMPTY = ""


class SliceGrid:
    """The whole-voxel relation between slices (T, H, W) and the volume's indexes (I, J, K)."""

    def __init__(self, stack: SliceStack) -> None:
        self._stack = stack
        self._axes = tuple(2 - axis for axis in stack.order)
        self._flips = stack.flips
        self.shape: Triple = stack.shape

    def toSlices(self, arrayKJI: np.ndarray, startIJK: Triple) -> tuple[np.ndarray, Triple]:
        """Return the view (t, h, w) of a box (k, j, i) and its first slice, row and column."""
        view = self._stack.from_volume(arrayKJI)
        start = [
            self.shape[n] - startIJK[axis] - view.shape[n] if flip else startIJK[axis]
            for n, (axis, flip) in enumerate(zip(self._axes, self._flips, strict=True))
        ]
        return view, (start[0], start[1], start[2])

    def toVolume(self, arrayTHW: np.ndarray, startTHW: Triple) -> tuple[np.ndarray, Triple]:
        """Return a box (t, h, w) as (k, j, i) and its first I, J and K: the inverse of :meth:`toSlices`."""
        view = arrayTHW[tuple(slice(None, None, -1 if flip else 1) for flip in self._flips)]
        view = view.transpose(np.argsort(self._stack.order))
        start = [0, 0, 0]
        for n, (axis, flip) in enumerate(zip(self._axes, self._flips, strict=True)):
            start[axis] = self.shape[n] - startTHW[n] - arrayTHW.shape[n] if flip else startTHW[n]
        return view, (start[0], start[1], start[2])


@dataclass(frozen=True, eq=False)
class SegmentContent:
    """The voxels of a segment, as a box in canonical slices.

    Attributes:
        shape: (T, H, W) of the volume.
        box: (t, h, w) bool.
        start: first slice, row and column of the box; the box may stick out of the volume.
    """

    shape: Triple
    box: np.ndarray
    start: Triple

    def mask(self, t: int) -> np.ndarray:
        """Return the mask (H, W) of one slice."""
        mask = np.zeros(self.shape[1:], dtype=bool)
        n = t - self.start[0]
        if 0 <= n < self.box.shape[0]:
            rows, ownRows = _overlap(self.start[1], self.box.shape[1], self.shape[1])
            columns, ownColumns = _overlap(self.start[2], self.box.shape[2], self.shape[2])
            mask[rows, columns] = self.box[n, ownRows, ownColumns]
        return mask

    def digest(self, t: int) -> str:
        """Return a short checksum of one slice, empty for an empty slice."""
        n = t - self.start[0]
        if not 0 <= n < self.box.shape[0]:
            return EMPTY
        return maskDigest(self.box[n], self.start[1], self.start[2])


def sliceDigests(labels: np.ndarray, value: int, start: Triple, count: int) -> dict[int, str]:
    """Return a short checksum of every slice of a segment that is not empty, see :func:`maskDigest`.

    One mask at a time in memory that is used again: fresh pages for a mask of the whole segment cost several times
    what the comparison does.

    Args:
        labels: (t, h, w) view of a labelmap.
        value: the segment's label.
        start: first slice, row and column of the view; it may stick out of the volume.
        count: slices of the volume.
    """
    mask = np.empty(labels.shape[1:], dtype=bool)
    digests = {}
    for n in range(max(-start[0], 0), min(labels.shape[0], count - start[0])):
        digest = maskDigest(np.equal(labels[n], value, out=mask), start[1], start[2])
        if digest != EMPTY:
            digests[n + start[0]] = digest
    return digests


def maskDigest(mask: np.ndarray, row: int = 0, column: int = 0) -> str:
    """Return a checksum of where a mask (h, w) is set, its first pixel at ``row``, ``column``; empty if nowhere."""
    mask = np.ascontiguousarray(mask, dtype=bool)  # a flipped view takes twice as long
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return EMPTY
    columns = np.flatnonzero(mask.any(axis=0))
    r0, r1, c0, c1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    box = np.array([r0 + row, r1 + row, c0 + column, c1 + column], dtype="<i8")
    bits = np.packbits(mask[r0:r1, c0:c1])
    return hashlib.blake2b(box.tobytes() + bits.tobytes(), digest_size=8).hexdigest()


def _overlap(start: int, size: int, limit: int) -> tuple[slice, slice]:
    first, last = max(start, 0), min(start + size, limit)
    last = max(first, last)
    return slice(first, last), slice(first - start, last - start)


def viewNode(stack: SliceStack) -> Any:
    """Return the node of the shown view that lies nearest to the slices of a stack, the latest of several; or None."""
    found = []
    nodes = slicer.util.getNodesByClass("vtkMRMLSliceNode")
    for node in [node for node in nodes if node.IsMappedInLayout()] or nodes:  # none is before views are laid out
        normal = slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS())[:3, 2]
        found.append((round(abs(float(normal @ _normal(stack))), 3), node.GetMTime(), node))
    cosine, _time, node = max(found, key=lambda view: view[:2], default=(0.0, 0, None))
    return node if cosine > NEARLY_PARALLEL else None


def viewCenter(node: Any) -> tuple[float, float, float]:
    """Return the world center of a slice view."""
    matrix = node.GetSliceToRAS()
    return matrix.GetElement(0, 3), matrix.GetElement(1, 3), matrix.GetElement(2, 3)


def jumpTo(positionRas: Sequence[float]) -> None:
    """Show the slices through a place in all views."""
    node = slicer.vtkMRMLSliceNode
    node.JumpAllSlices(slicer.mrmlScene, *(float(x) for x in positionRas), node.OffsetJumpSlice)


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
