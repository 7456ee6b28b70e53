"""One segment that results are written to, through Slicer's segment editor logic."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util.numpy_support import vtk_to_numpy

from SPDSegmentLib.errors import SPDError
from SPDSegmentLib.geometry.labelmap import filled_part

from .editor_nodes import areaMasks, describeArea, editorLogic, existingEditorNode, placeError, storageError
from .surfaces import surfacesAside
from .volumes import (
    SegmentContent,
    Triple,
    VolumeSnapshot,
    gridSnapshot,
    nodeById,
    parentMatrix,
    sliceDigests,
    takeSnapshot,
    worldMatrix,
)
from .write_record import RecordGrid, WriteRecord, identityOf, loadRecord, saveRecord

MARK_TAG = "SPDSegment.State"
"""A tag of the segment: the editor's history keeps it with the voxels, so that undo and redo bring back both."""
GRID_TOLERANCE = 1e-3
LARGE_LABELMAP = 1 << 24
"""Voxels beyond which the empty margin of a labelmap is cut off before it is copied."""


class SegmentTarget:
    """A segment of a segmentation node, seen on the grid of a volume.

    Args:
        segmentationNode: in the scene.
        segmentId: of a segment, which may be removed later.
        editor: the editor's node whose masking and overwriting hold; by default that of the module.
    """

    def __init__(self, segmentationNode: Any, segmentId: str, editor: Any = None) -> None:
        self.nodeId: str = segmentationNode.GetID()
        self.segmentId = segmentId
        self.ownEditor = editor

    @property
    def _editor(self) -> Any:
        return self.ownEditor or existingEditorNode()

    @property
    def node(self) -> Any:
        """The segmentation node, or None where it or the segment is gone."""
        node = slicer.mrmlScene.GetNodeByID(self.nodeId)
        if node is None or node.GetSegmentation().GetSegment(self.segmentId) is None:
            return None
        return node

    @property
    def exists(self) -> bool:
        """Whether the segment is still there."""
        return self.node is not None

    @property
    def key(self) -> tuple[str, ...]:
        """Identifies the segment, also among those that had or get its ID."""
        return self.nodeId, self.segmentId, identityOf(self.node, self.segmentId)

    @property
    def isPlaced(self) -> bool:
        """Whether the segment is there, under no transform that shears it or is not linear."""
        return self.exists and placeError(self.node, self.segmentId) is None

    def removeNode(self) -> None:
        """Take the whole segmentation out of the scene."""
        slicer.mrmlScene.RemoveNode(self.node)

    @property
    def changesOthers(self) -> bool:
        """Whether the editor's settings let a write change other segments too."""
        node = self._editor
        if node is None:  # a new one leaves other segments alone
            return False
        inside = slicer.vtkMRMLSegmentationNode.EditAllowedInsideSingleSegment
        return node.GetOverwriteMode() != node.OverwriteNone or node.GetMaskMode() == inside

    @property
    def record(self) -> WriteRecord:
        """What is known about the segment; kept in the scene."""
        node = self.node
        return loadRecord(node, self.segmentId) if node is not None else WriteRecord()

    def saveRecord(self, record: WriteRecord) -> None:
        """Keep a record in the scene."""
        if self.exists:
            saveRecord(self.node, self.segmentId, record)

    def place(self, snapshot: VolumeSnapshot) -> VolumeSnapshot:
        """Return a volume's state whose voxels stay where they are now in the segmentation, wherever that is moved."""
        return replace(snapshot, inSegmentation=_toSegmentation(self.node, snapshot))

    def isInPlace(self, snapshot: VolumeSnapshot) -> bool:
        """Whether the segmentation still lies over a volume as it did when :meth:`place` was called."""
        return self.isPlaced and self.gridOf(snapshot).fits(self.gridOf(replace(snapshot, inSegmentation=None)))

    def gridOf(self, snapshot: VolumeSnapshot) -> RecordGrid:
        """Return a volume's voxels as a record keeps them."""
        matrix = _toSegmentation(self.node, snapshot)
        k, j, i = snapshot.volume.array.shape
        return RecordGrid((k, j, i), tuple(matrix.ravel().tolist()))

    def writtenSnapshot(self, record: WriteRecord, volumeNode: Any) -> VolumeSnapshot:
        """Return the slices for which a record holds: those of its volume, whichever is chosen now, even if it is gone.

        Args:
            record: of this segment.
            volumeNode: the chosen one; taken where the record does not know its volume.
        """
        if record.grid is None:
            return takeSnapshot(volumeNode, record.axis)
        try:
            present = takeSnapshot(nodeById(record.volumeId), record.axis)
        except SPDError:  # it is gone, or cannot be segmented as it is now
            present = None
        if present is not None and record.grid.fits(self.gridOf(present)):
            return present
        place = parentMatrix(self.node) @ record.grid.toWorld
        written = gridSnapshot(record.grid.shape, place, record.axis, record.volumeId)
        if present is not None and self.hasVoxelsOf(present) and not self.hasVoxelsOf(written):
            return present  # volume and segmentation were moved together, by a transform that was hardened
        return written

    def stateOn(self, snapshot: VolumeSnapshot) -> tuple[Any, ...]:
        """Return what changes whenever what :meth:`read` returns does, or the volume."""
        labelmap = self._labelmap()
        return self.nodeId, self.segmentId, labelmap and labelmap.GetMTime(), snapshot.volumeId, self.gridOf(snapshot)

    def hasVoxelsOf(self, snapshot: VolumeSnapshot) -> bool:
        """Whether the voxels of the segment are those of a volume, so that nothing is resampled between both."""
        labelmap = self._labelmap()
        return labelmap is None or self._wholeVoxelOffset(self.node, labelmap, snapshot) is not None

    @property
    def mark(self) -> str:
        """Name of the state that was written last and not undone, empty before the first."""
        node = self.node
        value = vtk.reference("")
        if node is not None:
            node.GetSegmentation().GetSegment(self.segmentId).GetTag(MARK_TAG, value)
        return str(value)

    def setMark(self, mark: str) -> None:
        """Name the state that is being written."""
        node = self.node
        if node is not None and mark != self.mark:
            node.GetSegmentation().GetSegment(self.segmentId).SetTag(MARK_TAG, mark)

    @property
    def area(self) -> str:
        """What the editor's settings restrict changes to, empty if nothing."""
        node = self._editor
        return "" if node is None else describeArea(node)

    def read(self, snapshot: VolumeSnapshot, slices: Collection[int] | None = None) -> SegmentContent:
        """Return the segment's voxels on the grid of a volume.

        Args:
            snapshot: the volume.
            slices: only these are wanted; the rest may be missing from the answer.
        """
        found = self._labels(snapshot, cut=slices is None)
        if found is None:
            return SegmentContent(snapshot.grid.shape, np.zeros((0, 0, 0), dtype=bool), (0, 0, 0))
        labels, startIJK, value = found
        if slices is None:
            return SegmentContent(snapshot.grid.shape, *snapshot.grid.toSlices(labels == value, startIJK))
        view, start = snapshot.grid.toSlices(labels, startIJK)
        before = min(max(min(slices, default=0) - start[0], 0), len(view))
        view = view[before : max(before, max(slices, default=-1) + 1 - start[0])]
        return SegmentContent(snapshot.grid.shape, view == value, (start[0] + before, start[1], start[2]))

    def digests(self, snapshot: VolumeSnapshot) -> dict[int, str]:
        """Return a short checksum of every slice that is not empty."""
        found = self._labels(snapshot, cut=True)
        if found is None:
            return {}
        labels, startIJK, value = found
        view, start = snapshot.grid.toSlices(labels, startIJK)
        return sliceDigests(view, value, start, snapshot.grid.shape[0])

    def write(
        self,
        snapshot: VolumeSnapshot,
        changes: Mapping[int, np.ndarray],
        content: SegmentContent,
        *,
        everywhere: bool = False,
    ) -> None:
        """Set the masks (H, W) of some slices and nothing else; masking and overwriting are the editor's.

        Args:
            snapshot: the volume on whose slices the masks lie.
            changes: masks by slice index.
            content: what :meth:`read` returned before.
            everywhere: outside the editable area too.
        """
        add = {t: mask & ~content.mask(t) for t, mask in changes.items()}
        remove = {t: content.mask(t) & ~mask for t, mask in changes.items()}
        if not everywhere and self.area and not self._hasReferenceGrid(snapshot):
            everywhere = True
            allowed = areaMasks(
                self._editor,
                self.node,
                self.segmentId,
                snapshot,
                sorted(changes),
                lambda name, slices: SegmentTarget(self.node, name).read(snapshot, slices),
            )
            add, remove = ({t: mask & allowed[t] for t, mask in masks.items()} for masks in (add, remove))
        logic = editorLogic(self.node, self.segmentId, snapshot.nodeId, editor=self._editor, everywhere=everywhere)
        with surfacesAside(self.node):
            for masks, mode in ((remove, logic.ModificationModeRemove), (add, logic.ModificationModeAdd)):
                modifier = self._modifier(snapshot, masks)
                if modifier is not None:
                    logic.ModifySegmentByLabelmap(
                        self.node, self.segmentId, modifier, mode, modifier.GetExtent(), False, False
                    )

    def _hasReferenceGrid(self, snapshot: VolumeSnapshot) -> bool:
        """Whether the segmentation's reference geometry, on which Slicer applies masking, is the volume's."""
        name = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
        text = self.node.GetSegmentation().GetConversionParameter(name)
        reference, own = slicer.vtkOrientedImageData(), slicer.vtkOrientedImageData()
        if not text or not slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, reference, False):
            return False
        own.SetGeometryFromImageToWorldMatrix(slicer.util.vtkMatrixFromArray(_toSegmentation(self.node, snapshot)))
        return bool(slicer.vtkOrientedImageDataResample.DoGeometriesMatch(reference, own))

    def _modifier(self, snapshot: VolumeSnapshot, masks: Mapping[int, np.ndarray]) -> Any:
        masks = {t: mask for t, mask in masks.items() if mask.any()}
        inside = filled_part(np.stack(list(masks.values()))) if masks else None
        if inside is None:
            return None
        _, rows, columns = inside
        first, last = min(masks), max(masks)
        box = np.zeros((last - first + 1, rows.stop - rows.start, columns.stop - columns.start), dtype=np.uint8)
        for t, mask in masks.items():
            box[t - first] = mask[rows, columns]
        array, (i, j, k) = snapshot.grid.toVolume(box, (first, rows.start, columns.start))
        nk, nj, ni = array.shape
        image = slicer.vtkOrientedImageData()
        image.SetExtent(i, i + ni - 1, j, j + nj - 1, k, k + nk - 1)
        image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
        vtk_to_numpy(image.GetPointData().GetScalars()).reshape(array.shape)[:] = array
        image.SetGeometryFromImageToWorldMatrix(slicer.util.vtkMatrixFromArray(_toSegmentation(self.node, snapshot)))
        return image

    def _labels(self, snapshot: VolumeSnapshot, *, cut: bool) -> tuple[np.ndarray, Triple, int] | None:
        """Return labels (k, j, i) on the volume's grid, their first I, J, K and the segment's value; None where empty.

        The labels are the node's own memory where its grid is the volume's: for reading, and not for keeping.

        Args:
            snapshot: the volume.
            cut: leave out the empty margin of a large labelmap.
        """
        node = self.node
        labelmap = self._labelmap()
        if labelmap is None:
            return None
        offset = self._wholeVoxelOffset(node, labelmap, snapshot)
        if offset is None:
            return self._resampled(labelmap, snapshot)
        i0, i1, j0, j1, k0, k1 = labelmap.GetExtent()
        scalars = vtk_to_numpy(labelmap.GetPointData().GetScalars())
        labels = scalars.reshape(k1 - k0 + 1, j1 - j0 + 1, i1 - i0 + 1)
        first = [0, 0, 0]
        if cut and labels.size > LARGE_LABELMAP:
            inside = filled_part(labels)
            if inside is None:
                return None
            labels = labels[inside]
            first = [part.start for part in reversed(inside)]
        i, j, k = (here + there + more for here, there, more in zip((i0, j0, k0), offset, first, strict=True))
        return labels, (i, j, k), node.GetSegmentation().GetSegment(self.segmentId).GetLabelValue()

    def _labelmap(self) -> Any:
        """The segment's labelmap, which may hold other segments too, or None where it is empty."""
        node = self.node
        segment = node.GetSegmentation().GetSegment(self.segmentId) if node is not None else None
        labelmap = segment.GetRepresentation("Binary labelmap") if segment is not None else None
        if labelmap is None or labelmap.IsEmpty() or not labelmap.GetPointData().GetScalars():
            return None
        return labelmap

    def _resampled(self, labelmap: Any, snapshot: VolumeSnapshot) -> tuple[np.ndarray, Triple, int] | None:
        """Labels on voxels like the volume's, as many as the labelmap needs; see :meth:`_labels`."""
        i0, i1, j0, j1, k0, k1 = labelmap.GetExtent()
        shape = (k1 - k0 + 1, j1 - j0 + 1, i1 - i0 + 1)
        inside = filled_part(vtk_to_numpy(labelmap.GetPointData().GetScalars()).reshape(shape))
        if inside is None:
            return None
        ends = [
            (first + part.start - 0.5, first + part.stop - 0.5)
            for first, part in zip((k0, j0, i0), inside, strict=True)
        ]
        corners = np.array([[i, j, k, 1.0] for k in ends[0] for j in ends[1] for i in ends[2]]).T
        toWorld = vtk.vtkMatrix4x4()
        labelmap.GetImageToWorldMatrix(toWorld)
        place = _toSegmentation(self.node, snapshot)
        found = (np.linalg.inv(place) @ slicer.util.arrayFromVTKMatrix(toWorld) @ corners)[:3]
        low, high = np.floor(found.min(axis=1)).astype(int), np.ceil(found.max(axis=1)).astype(int)
        grid = slicer.vtkOrientedImageData()
        grid.SetExtent(*(int(end) for pair in zip(low, high, strict=True) for end in pair))
        grid.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
        grid.SetGeometryFromImageToWorldMatrix(slicer.util.vtkMatrixFromArray(place))
        image = slicer.vtkOrientedImageData()
        slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(labelmap, grid, image, False)
        i, j, k = (int(first) for first in low)
        scalars = vtk_to_numpy(image.GetPointData().GetScalars())
        labels = scalars.reshape(tuple(int(n) for n in (high - low + 1)[::-1]))
        return labels, (i, j, k), self.node.GetSegmentation().GetSegment(self.segmentId).GetLabelValue()

    @staticmethod
    def _wholeVoxelOffset(node: Any, labelmap: Any, snapshot: VolumeSnapshot) -> tuple[int, int, int] | None:
        matrix = vtk.vtkMatrix4x4()
        labelmap.GetImageToWorldMatrix(matrix)
        relation = np.linalg.inv(_toSegmentation(node, snapshot)) @ slicer.util.arrayFromVTKMatrix(matrix)
        offset = np.rint(relation[:3, 3])
        whole = np.eye(4)
        whole[:3, 3] = offset
        if np.abs(relation - whole).max() > GRID_TOLERANCE:
            return None
        return int(offset[0]), int(offset[1]), int(offset[2])


def makeTarget(
    segmentationNode: Any,
    segmentId: str,
    volumeNode: Any,
    name: str,
    color: tuple[float, float, float],
    terminology: str,
) -> SegmentTarget:
    """Return a target; a missing segmentation node or segment is made.

    Raises:
        GeometryUnsupported: a transform is not linear, or shears the segmentation.
        BadInput: the segmentation has to be converted first, see :func:`convertToLabelmap`.
    """
    worldMatrix(volumeNode)
    remedy = _("Press Segment and agree to convert it to a binary labelmap, or choose New segmentation.")
    if (stored := storageError(segmentationNode, remedy)) is not None:
        raise stored
    if segmentationNode is None:
        unique = slicer.mrmlScene.GenerateUniqueName(_("{volume} SPD").format(volume=volumeNode.GetName()))
        segmentationNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", unique)
        segmentationNode.CreateDefaultDisplayNodes()
        segmentationNode.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
        segmentationNode.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
    if (misplaced := placeError(segmentationNode, segmentId)) is not None:
        raise misplaced
    segmentation = segmentationNode.GetSegmentation()
    if segmentation.GetNumberOfSegments() == 0:
        segmentationNode.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
    if segmentation.GetSegment(segmentId) is None:
        segmentId = segmentation.AddEmptySegment("", _freeName(segmentation, name), color)
        if terminology:
            segmentation.GetSegment(segmentId).SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), terminology)
    return SegmentTarget(segmentationNode, segmentId)


def _freeName(segmentation: Any, name: str) -> str:
    """Return a name that no segment has: Kidney, Kidney 2, Kidney 3."""
    count = segmentation.GetNumberOfSegments()
    taken = {segmentation.GetNthSegment(n).GetName() for n in range(count)}
    return next(free for n in range(1, count + 2) if (free := name if n == 1 else f"{name} {n}") not in taken)


def _toSegmentation(node: Any, snapshot: VolumeSnapshot) -> np.ndarray:
    if snapshot.inSegmentation is not None:
        return snapshot.inSegmentation
    return np.linalg.inv(parentMatrix(node)) @ snapshot.volume.ijk_to_ras
