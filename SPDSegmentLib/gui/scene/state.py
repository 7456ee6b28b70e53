"""The module's settings in the scene, kept by Slicer's own wrapper of its parameter node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import slicer
from slicer.parameterNodeWrapper import parameterNodeWrapper

_EARLIER_TEXTS = {"segmentId": "SegmentID", "model": "Model", "axis": "Axis", "device": "Device"}
_EARLIER_NODES = {"volumeNode": "Volume", "segmentationNode": "Segmentation"}
_EARLIER_CENTERLINES = "Centerline"
_EARLIER_LIVE_UPDATE = "LiveUpdate"
"""Names by which 0.1.0 stored the parameters."""


@parameterNodeWrapper
class ModuleState:
    """What the panel is set to; made by :func:`moduleState`.

    Attributes:
        volumeNode: the volume, or None.
        centerlines: see :attr:`centerlineNodes`.
        segmentationNode: the segmentation, or None for a new one.
        segmentId: the segment, empty for a new one.
        model: name of the model bundle.
        axis: slicing axis.
        device: as for ``inference.engine.choose_device``.
        liveUpdate: whether a changed click recomputes its neighborhood at once.
    """

    volumeNode: slicer.vtkMRMLVolumeNode
    centerlines: list[slicer.vtkMRMLMarkupsNode]
    segmentationNode: slicer.vtkMRMLSegmentationNode
    segmentId: str
    model: str
    axis: str = "auto"
    device: str = "auto"
    liveUpdate: bool = True

    @property
    def centerlineNodes(self) -> list[Any]:
        """The centerline, and its branches after it; without those that were deleted."""
        return [node for node in self.centerlines if node is not None]

    @centerlineNodes.setter
    def centerlineNodes(self, nodes: Sequence[Any]) -> None:
        if self.centerlineNodes != list(nodes):
            self.centerlines = list(nodes)


def moduleState(parameterNode: Any) -> ModuleState:
    """Return the settings that a parameter node holds, also of a scene that 0.1.0 has saved."""
    node, state = parameterNode, ModuleState(parameterNode)  # type: ignore[call-arg]
    for name, earlier in _EARLIER_TEXTS.items():
        if text := node.GetParameter(earlier):
            setattr(state, name, text)
    for name, earlier in _EARLIER_NODES.items():
        if (referenced := node.GetNodeReference(earlier)) is not None:
            setattr(state, name, referenced)
    count = node.GetNumberOfNodeReferences(_EARLIER_CENTERLINES)
    if count:
        state.centerlineNodes = [
            found for n in range(count) if (found := node.GetNthNodeReference(_EARLIER_CENTERLINES, n)) is not None
        ]
    if node.GetParameter(_EARLIER_LIVE_UPDATE) == "false":
        state.liveUpdate = False
    for earlier in (*_EARLIER_TEXTS.values(), _EARLIER_LIVE_UPDATE):
        node.UnsetParameter(earlier)
    for earlier in (*_EARLIER_NODES.values(), _EARLIER_CENTERLINES):
        node.RemoveNodeReferenceIDs(earlier)
    return state
