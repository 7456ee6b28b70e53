"""What is to be segmented, and where the result goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slicer.i18n import tr as _

from ..scene.editor_nodes import otherRepresentation
from ..scene.target import SegmentTarget
from ..scene.volumes import VolumeSnapshot, nodeById, takeSnapshot
from ..scene.write_record import WriteRecord
from .models import ModelEntry


@dataclass(frozen=True, eq=False)
class VolumeView:
    """A volume as a model looks at it.

    Attributes:
        volumeNode: scalar volume.
        model: the model.
        device: ``auto``, ``cpu`` or ``cuda[:n]``.
        axis: slicing axis; ``auto`` takes the model's.
    """

    volumeNode: Any
    model: ModelEntry
    device: str = "auto"
    axis: str = "auto"

    def snapshot(self) -> VolumeSnapshot:
        """The present state of the volume."""
        return takeSnapshot(self.volumeNode, self.model.axis if self.axis == "auto" else self.axis)


@dataclass(frozen=True, eq=False)
class Task:
    """A segmentation to be made.

    Attributes:
        view: volume and model.
        centerlineNodes: point lists and open curves.
        target: where the result goes.
        prompts: prompting strategy.
        firstSliceRas: a place to begin with, or None.
    """

    view: VolumeView
    centerlineNodes: Sequence[Any]
    target: SegmentTarget
    prompts: str = "consensus"
    firstSliceRas: tuple[float, float, float] | None = None

    @property
    def volumeNode(self) -> Any:
        """The volume."""
        return self.view.volumeNode

    @property
    def key(self) -> tuple[str, str]:
        """Identifies the segment."""
        return self.target.nodeId, self.target.segmentId

    def writtenSnapshot(self, record: WriteRecord | None = None) -> VolumeSnapshot:
        """The slices for which the segment's record holds, as they lie now.

        Args:
            record: that of the segment, where it is at hand: reading it takes some milliseconds.
        """
        record = record or self.target.record
        if record.grid is None and not record.model:
            return self.view.snapshot()
        return self.target.writtenSnapshot(record, self.volumeNode)

    def whyInvalid(self, snapshot: VolumeSnapshot) -> str:
        """Return why results for a state of the volume may no longer be written, empty if they may."""
        if nodeById(snapshot.nodeId) is None:
            return _("The volume was removed while it was segmented.")
        if self.target.node is None:
            return _("The segment was removed while it was written.")
        if otherRepresentation(self.target.node):
            return _("The segmentation is no longer stored as a binary labelmap; run again.")
        if any(nodeById(node.GetID() or "") is None for node in self.centerlineNodes):
            return _("The clicks were removed while they were used.")
        if not snapshot.isCurrent():
            return _("The volume changed while it was segmented; run again.")
        return ""
