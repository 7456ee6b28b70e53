"""The segment editor's nodes and logic of this module, and segmentations that can be edited with them."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

from SPDSegmentLib.errors import BadInput

EDITOR_ATTRIBUTE = "SPDSegment.Editor"
WRITER_ATTRIBUTE = "SPDSegment.Writer"


def otherRepresentation(segmentationNode: Any) -> str:
    """Return how a segmentation is stored where that is no binary labelmap, otherwise an empty text."""
    if segmentationNode is None or not segmentationNode.GetSegmentation().GetNumberOfSegments():
        return ""
    name = str(segmentationNode.GetSegmentation().GetSourceRepresentationName())
    return "" if name == slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName() else name


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
    for node in slicer.util.getNodesByClass("vtkMRMLSegmentEditorNode"):
        if node.GetAttribute(EDITOR_ATTRIBUTE):
            return node
    return None


def editorNode() -> Any:
    """Return the segment editor node of this module, made if need be; other segments are not overwritten by default.

    It is no singleton: closing the scene would set a singleton back to overwriting all segments. It is not saved:
    Slicer writes the ID of its segment as it is, and a scene with a quote or a bracket in it cannot be opened.
    """
    found = existingEditorNode()
    if found is not None:
        found.SaveWithSceneOff()
        return found
    node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLSegmentEditorNode")
    node.UnRegister(None)
    node.SetName("SPDSegment editor")
    node.SetAttribute(EDITOR_ATTRIBUTE, "1")
    node.SaveWithSceneOff()
    node.SetOverwriteMode(node.OverwriteNone)
    return slicer.mrmlScene.AddNode(node)


def editorLogic(segmentationNode: Any, segmentId: str, volumeNodeId: str, *, everywhere: bool = False) -> Any:
    """Return Slicer's segment editor logic on an editor node of its own, with the settings of :func:`editorNode`.

    What a person has selected in the editor stays selected. ``everywhere`` leaves out the editable area.
    """
    node = _writerNode()
    shown = editorNode()
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
    for node in slicer.util.getNodesByClass("vtkMRMLSegmentEditorNode"):
        if node.GetAttribute(WRITER_ATTRIBUTE):
            return node
    node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLSegmentEditorNode")
    node.UnRegister(None)
    node.SetName("SPDSegment writer")
    node.SetAttribute(WRITER_ATTRIBUTE, "1")
    node.HideFromEditorsOn()
    node.SaveWithSceneOff()
    return slicer.mrmlScene.AddNode(node)
