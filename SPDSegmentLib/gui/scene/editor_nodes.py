"""Slicer's segment editor: its node of this module, its logic, and the area that its settings leave editable."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import slicer
from slicer.i18n import tr as _
from vtk.util.numpy_support import vtk_to_numpy

from SPDSegmentLib.errors import BadInput, GeometryUnsupported, SPDError
from SPDSegmentLib.geometry.volume import has_right_angles

from .volumes import SegmentContent, VolumeSnapshot, nodeById, parentMatrix
from .write_record import loadRecord

EDITOR_ATTRIBUTE = "SPDSegment.Editor"
WRITER_ATTRIBUTE = "SPDSegment.Writer"


def otherRepresentation(segmentationNode: Any) -> str:
    """Return how a segmentation is stored where that is no binary labelmap, otherwise an empty text."""
    if segmentationNode is None or not segmentationNode.GetSegmentation().GetNumberOfSegments():
        return ""
    name = str(segmentationNode.GetSegmentation().GetSourceRepresentationName())
    return "" if name == slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName() else name


def storageError(segmentationNode: Any, remedy: str = "") -> SPDError | None:
    """Return why a segmentation, or None, cannot be written to as it is stored; None if it can."""
    representation = otherRepresentation(segmentationNode)
    if not representation:
        return None
    return BadInput(
        _("The segmentation {name} is stored as {representation}, which cannot be edited.").format(
            name=segmentationNode.GetName(), representation=representation.lower()
        ),
        remedy or _("Under Representations in the module Segmentations create the binary labelmap and make it source."),
    )


def placeError(segmentationNode: Any, segmentId: str) -> SPDError | None:
    """Return why nothing can be written to a segment where its segmentation lies now, None if something can."""
    if segmentationNode.GetParentTransformNode() is None:
        return None
    try:
        matrix = parentMatrix(segmentationNode)
    except SPDError as error:
        return error
    grid = loadRecord(segmentationNode, segmentId).grid
    if has_right_angles(matrix) and (grid is None or has_right_angles(matrix @ grid.toWorld)):
        return None
    return GeometryUnsupported(
        _("The segmentation {name} is under a transform that shears it.").format(name=segmentationNode.GetName()),
        _("Harden the transform (right click in the Data module), then run again."),
    )


def isEmptySegment(segmentationNode: Any, segmentId: str) -> bool:
    """Whether a segment, which others may share a labelmap with, has no voxel."""
    segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
    labelmap = labelmapsOf(segmentationNode).get(segmentId)
    scalars = labelmap.GetPointData().GetScalars() if labelmap is not None else None
    return not scalars or not np.any(vtk_to_numpy(scalars) == segment.GetLabelValue())


def editTimes(segmentationNode: Any) -> dict[str, int]:
    """Return by segment when its voxels, or those of others in its labelmap, were changed last."""
    return {segmentId: image.GetMTime() for segmentId, image in labelmapsOf(segmentationNode).items()}


def voxelDigests(segmentationNode: Any) -> set[int]:
    """Return checksums of the voxels of all segments, empty for None: they are as before where an edit was undone."""
    images = set(labelmapsOf(segmentationNode).values()) if segmentationNode is not None else set()
    scalars = [scalars for image in images if (scalars := image.GetPointData().GetScalars())]
    return {zlib.crc32(np.ascontiguousarray(vtk_to_numpy(values)).data) for values in scalars}


def segmentIds(segmentationNode: Any) -> list[str]:
    """Return the IDs of the segments of a segmentation node, in their order."""
    segmentation = segmentationNode.GetSegmentation()
    return [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]


def segmentNames(segmentationNode: Any) -> list[tuple[str, str]]:
    """Return names and IDs of the segments of a segmentation node, or of None."""
    if segmentationNode is None:
        return []
    segmentation = segmentationNode.GetSegmentation()
    return [(segmentation.GetSegment(own).GetName(), own) for own in segmentIds(segmentationNode)]


def labelmapsOf(segmentationNode: Any) -> dict[str, Any]:
    """Return the binary labelmaps by segment, where there are any; segments may share one."""
    segmentation = segmentationNode.GetSegmentation()
    name = slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName()
    ids = segmentIds(segmentationNode)
    images = {segmentId: segmentation.GetSegment(segmentId).GetRepresentation(name) for segmentId in ids}
    return {segmentId: image for segmentId, image in images.items() if image is not None}


def segmentName(segmentationNode: Any, segmentId: str) -> str:
    """Return the name of a segment, empty where it or its segmentation is gone."""
    segment = segmentationNode.GetSegmentation().GetSegment(segmentId) if segmentationNode is not None else None
    return segment.GetName() or "" if segment is not None else ""


def convertToLabelmap(segmentationNode: Any, volumeNode: Any) -> None:
    """Store a segmentation as a binary labelmap, as Slicer's editor does; without a grid of its own on the volume's.

    Raises:
        BadInput: Slicer cannot convert it.
    """
    segmentation = segmentationNode.GetSegmentation()
    name = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    if not segmentation.GetConversionParameter(name):
        segmentationNode.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
    logic = editorLogic(segmentationNode, segmentation.GetNthSegmentID(0), volumeNode.GetID())
    if not logic.SetSourceRepresentationToBinaryLabelMap():
        raise BadInput(
            _("The segmentation {name} cannot be converted to a binary labelmap.").format(
                name=segmentationNode.GetName()
            ),
            _("Choose another segmentation, or New segmentation."),
        )


def existingEditorNode() -> Any:
    """Return the segment editor node of this module, ``None`` if there is none yet."""
    return _nodeWith(EDITOR_ATTRIBUTE)


def editorNode() -> Any:
    """Return the segment editor node of this module, made if need be; other segments are not overwritten by default.

    It is no singleton: closing the scene would set a singleton back to overwriting all segments. It is not saved:
    Slicer writes the ID of its segment as it is, and a scene with a quote or a bracket in it cannot be opened.
    """
    found = existingEditorNode()
    if found is not None:
        found.SaveWithSceneOff()
        return found
    node = _newNode("SPDSegment editor", EDITOR_ATTRIBUTE)
    node.SetOverwriteMode(node.OverwriteNone)
    return slicer.mrmlScene.AddNode(node)


def freeEditorNode() -> Any:
    """Return an editor's node, in no scene, by whose settings a write changes one segment alone, at every place."""
    node = _newNode("", WRITER_ATTRIBUTE)
    node.SetOverwriteMode(node.OverwriteNone)
    return node


def editorLogic(
    segmentationNode: Any, segmentId: str, volumeNodeId: str, *, editor: Any = None, everywhere: bool = False
) -> Any:
    """Return Slicer's segment editor logic on an editor node of its own, with the settings of an editor's node.

    What a person has selected in the editor stays selected. ``everywhere`` leaves out the editable area; ``editor`` is
    :func:`editorNode` by default.
    """
    node = _writerNode()
    shown = editor or editorNode()
    node.SetOverwriteMode(shown.GetOverwriteMode())
    anywhere = slicer.vtkMRMLSegmentationNode.EditAllowedEverywhere
    node.SetMaskMode(anywhere if everywhere else shown.GetMaskMode())
    node.SetMaskSegmentID(shown.GetMaskSegmentID())
    node.SetSourceVolumeIntensityMask(shown.GetSourceVolumeIntensityMask() and not everywhere)
    node.SetSourceVolumeIntensityMaskRange(shown.GetSourceVolumeIntensityMaskRange())
    node.SetAndObserveSegmentationNode(segmentationNode)
    node.SetSelectedSegmentID(segmentId)
    node.SetAndObserveSourceVolumeNode(slicer.mrmlScene.GetNodeByID(volumeNodeId))
    logic = slicer.vtkSlicerSegmentEditorLogic()
    logic.SetMRMLScene(slicer.mrmlScene)
    logic.SetSegmentEditorNode(node)
    logic.SetVerbose(True)
    return logic


def _writerNode() -> Any:
    found = _nodeWith(WRITER_ATTRIBUTE)
    if found is not None:
        return found
    node = _newNode("SPDSegment writer", WRITER_ATTRIBUTE)
    node.HideFromEditorsOn()
    return slicer.mrmlScene.AddNode(node)


def _nodeWith(attribute: str) -> Any:
    for node in slicer.util.getNodesByClass("vtkMRMLSegmentEditorNode"):
        if node.GetAttribute(attribute):
            return node
    return None


def _newNode(name: str, attribute: str) -> Any:
    """A segment editor node that is not in the scene yet, and is never saved with it."""
    node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLSegmentEditorNode")
    node.UnRegister(None)
    node.SetName(name)
    node.SetAttribute(attribute, "1")
    node.SaveWithSceneOff()
    return node


ReadSegment = Callable[[str, list[int]], SegmentContent]


def describeArea(editor: Any) -> str:
    """Return what an editor node's settings restrict changes to, empty where they allow every place."""
    parts = []
    if editor.GetMaskMode() != slicer.vtkMRMLSegmentationNode.EditAllowedEverywhere:
        parts.append(_modeTexts().get(editor.GetMaskMode(), _("masking")))
    if editor.GetSourceVolumeIntensityMask():
        low, high = editor.GetSourceVolumeIntensityMaskRange()
        parts.append(_("intensities from {low} to {high}").format(low=f"{low:g}", high=f"{high:g}"))
    return ", ".join(parts)


def areaMasks(
    editor: Any, segmentationNode: Any, segmentId: str, snapshot: VolumeSnapshot, slices: list[int], read: ReadSegment
) -> dict[int, np.ndarray]:
    """Return where an editor node's settings allow changes, as masks (H, W) by slice.

    Slicer applies them only where the segmentation's reference geometry is the volume's; elsewhere it ignores them or
    refuses every change.

    Args:
        editor: node with the settings.
        segmentationNode: what is edited.
        segmentId: what is edited there.
        snapshot: the volume.
        slices: those that are wanted.
        read: returns the content of some slices of a segment.
    """
    allowed = {t: np.ones(snapshot.grid.shape[1:], dtype=bool) for t in slices}
    inside, segments = _maskSegments(editor, segmentationNode, segmentId)
    if segments is not None:
        contents = [read(name, slices) for name in segments]
        for t in slices:
            union = np.zeros(snapshot.grid.shape[1:], dtype=bool)
            for content in contents:
                union |= content.mask(t)
            allowed[t] = union if inside else ~union
    if editor.GetSourceVolumeIntensityMask():
        low, high = editor.GetSourceVolumeIntensityMaskRange()
        values = snapshot.stack.array
        for t in slices:
            allowed[t] &= (values[t] >= low) & (values[t] <= high)
    return allowed


def _maskSegments(editor: Any, segmentationNode: Any, segmentId: str) -> tuple[bool, list[str] | None]:
    """Return whether changes are allowed inside or outside of segments, and these; None for everywhere."""
    kinds = slicer.vtkMRMLSegmentationNode
    mode = editor.GetMaskMode()
    every = segmentIds(segmentationNode)
    display = segmentationNode.GetDisplayNode()
    visible = [name for name in every if display is None or display.GetSegmentVisibility(name)]
    if mode == kinds.EditAllowedEverywhere:
        return False, None
    if mode == kinds.EditAllowedInsideSingleSegment:
        chosen = editor.GetMaskSegmentID()
        return True, [chosen] if chosen in every else []
    if mode in (kinds.EditAllowedInsideAllSegments, kinds.EditAllowedInsideVisibleSegments):
        return True, every if mode == kinds.EditAllowedInsideAllSegments else visible
    others = every if mode == kinds.EditAllowedOutsideAllSegments else visible
    return False, [name for name in others if name != segmentId]


def areaSentence(withheld: Mapping[int, bool], asked: int, area: str) -> str:
    """Return what the editable area kept from being written, empty if nothing.

    Args:
        withheld: by slice, whether nothing at all of what was asked was allowed there.
        asked: slices that were to be changed.
        area: see :func:`describeArea`.
    """
    excluded = sum(withheld.values())
    cut = len(withheld) - excluded
    if not withheld:
        return ""
    if excluded == asked:
        text = _("The editable area ({area}) excludes all {count} slices: change the masking, or write anyway once.")
        return text.format(area=area, count=excluded)
    if not cut:
        text = _("The editable area ({area}) excludes {count} slices: change the masking, or write anyway once.")
        return text.format(area=area, count=excluded)
    if not excluded:
        text = _("The editable area ({area}) cuts {count} slices: change the masking, or write anyway once.")
        return text.format(area=area, count=cut)
    text = _(
        "The editable area ({area}) excludes {count} slices and cuts {cut} more: change the masking, or write anyway"
        " once."
    )
    return text.format(area=area, count=excluded, cut=cut)


def _modeTexts() -> dict[int, str]:
    kinds = slicer.vtkMRMLSegmentationNode
    return {
        kinds.EditAllowedInsideAllSegments: _("inside all segments"),
        kinds.EditAllowedInsideVisibleSegments: _("inside visible segments"),
        kinds.EditAllowedOutsideAllSegments: _("outside all segments"),
        kinds.EditAllowedOutsideVisibleSegments: _("outside visible segments"),
        kinds.EditAllowedInsideSingleSegment: _("inside one segment"),
    }


def checkNodes(volumeNode: Any, centerlineNodes: Iterable[Any], segmentationNode: Any) -> None:
    """Refuse what is no node of its kind in the scene, such as a node's name; None is left to those who look for it.

    Raises:
        BadInput: with what was given.
    """
    given = [(volumeNode, "vtkMRMLScalarVolumeNode"), (segmentationNode, "vtkMRMLSegmentationNode")]
    given += [(node, "vtkMRMLMarkupsNode") for node in centerlineNodes]
    for node, kind in given:
        isNode = hasattr(node, "GetID")
        if node is not None and not (isNode and nodeById(node.GetID()) is node and node.IsA(kind)):
            raise BadInput(
                _("{name} is no {kind} in the scene.").format(name=node.GetName() if isNode else node, kind=kind),
                _("Give the node itself, and add it to the scene first if it is not there."),
            )
