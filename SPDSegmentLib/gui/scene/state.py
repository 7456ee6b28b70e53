"""The module's settings in the scene: a typed view of its parameter node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_VOLUME = "Volume"
_CENTERLINE = "Centerline"
_SEGMENTATION = "Segmentation"


class ModuleState:
    """Reads and writes the parameter node; node references survive saving and reopening the scene."""

    def __init__(self, parameterNode: Any) -> None:
        self.node = parameterNode

    @property
    def volumeNode(self) -> Any:
        """The volume, or None."""
        return self.node.GetNodeReference(_VOLUME)

    @volumeNode.setter
    def volumeNode(self, node: Any) -> None:
        self._setReference(_VOLUME, node)

    @property
    def segmentationNode(self) -> Any:
        """The segmentation, or None for a new one."""
        return self.node.GetNodeReference(_SEGMENTATION)

    @segmentationNode.setter
    def segmentationNode(self, node: Any) -> None:
        self._setReference(_SEGMENTATION, node)

    @property
    def centerlineNodes(self) -> list[Any]:
        """The centerline, and its branches after it."""
        count = self.node.GetNumberOfNodeReferences(_CENTERLINE)
        nodes = [self.node.GetNthNodeReference(_CENTERLINE, index) for index in range(count)]
        return [node for node in nodes if node is not None]

    @centerlineNodes.setter
    def centerlineNodes(self, nodes: Sequence[Any]) -> None:
        if [node.GetID() for node in self.centerlineNodes] == [node.GetID() for node in nodes]:
            return
        wasModifying = self.node.StartModify()
        self.node.RemoveNodeReferenceIDs(_CENTERLINE)
        for node in nodes:
            self.node.AddNodeReferenceID(_CENTERLINE, node.GetID())
        self.node.EndModify(wasModifying)

    @property
    def segmentId(self) -> str:
        """The segment, empty for a new one."""
        return self._text("SegmentID")

    @segmentId.setter
    def segmentId(self, value: str) -> None:
        self._setText("SegmentID", value)

    @property
    def model(self) -> str:
        """Name of the model bundle."""
        return self._text("Model")

    @model.setter
    def model(self, value: str) -> None:
        self._setText("Model", value)

    @property
    def axis(self) -> str:
        """Slicing axis."""
        return self._text("Axis") or "auto"

    @axis.setter
    def axis(self, value: str) -> None:
        self._setText("Axis", value)

    @property
    def device(self) -> str:
        """Device."""
        return self._text("Device") or "auto"

    @device.setter
    def device(self, value: str) -> None:
        self._setText("Device", value)

    @property
    def liveUpdate(self) -> bool:
        """Whether a changed click recomputes its neighborhood at once."""
        return self._text("LiveUpdate") != "false"

    @liveUpdate.setter
    def liveUpdate(self, value: bool) -> None:
        self._setText("LiveUpdate", "true" if value else "false")

    def _setReference(self, role: str, node: Any) -> None:
        nodeId = node.GetID() if node is not None else ""
        if (self.node.GetNodeReferenceID(role) or "") != nodeId:
            self.node.SetNodeReferenceID(role, nodeId)

    def _text(self, name: str) -> str:
        return self.node.GetParameter(name) or ""

    def _setText(self, name: str, value: str) -> None:
        if self._text(name) != value:
            self.node.SetParameter(name, value)
