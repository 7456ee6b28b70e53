"""Where a scene keeps the record of a segment: in an attribute of its segmentation node.

Names in the scene may change, as when it is added to another one: MRML then gives nodes new IDs. A record therefore
names other nodes by references of the segmentation node, which MRML keeps right, and its own segment by a tag of it,
since the ID of a deleted segment can be given to another one.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from typing import Any

import vtk

from .write_record import WriteRecord

RECORD_ATTRIBUTE = "SPDSegment.Record."
NODE_ROLE = "SPDSegment.Node."
IDENTITY_TAG = "SPDSegment.Identity"
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


def loadRecord(segmentationNode: Any, segmentId: str) -> WriteRecord:
    """Return the record of a segment; an empty one where there is none."""
    text = segmentationNode.GetAttribute(attributeName(segmentId))
    record = WriteRecord.fromJson(text, _nodeIds(segmentationNode))
    if record.identity and record.identity != _identity(segmentationNode.GetSegmentation().GetSegment(segmentId)):
        return WriteRecord()
    return record


def saveRecord(segmentationNode: Any, segmentId: str, record: WriteRecord) -> None:
    """Keep the record of a segment that exists."""
    segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
    record.identity = _identity(segment)
    if not record.identity:
        record.identity = uuid.uuid4().hex[:12]
        segment.SetTag(IDENTITY_TAG, record.identity)
    names = _nodeNames(segmentationNode, record.nodeIds)
    segmentationNode.SetAttribute(attributeName(segmentId), record.toJson(names))


def attributeName(segmentId: str) -> str:
    """Return the attribute for a segment; MRML reads names only where no character has a meaning in its files."""
    escaped = _UNSAFE.sub(lambda found: "".join(f"={byte:02X}" for byte in found.group().encode()), segmentId)
    return RECORD_ATTRIBUTE + escaped


def _nodeIds(segmentationNode: Any) -> dict[str, str]:
    """IDs of the nodes that records of a segmentation name, by that name."""
    roles = [
        segmentationNode.GetNthNodeReferenceRole(n) for n in range(segmentationNode.GetNumberOfNodeReferenceRoles())
    ]
    found = {role: segmentationNode.GetNodeReferenceID(role) for role in roles if role.startswith(NODE_ROLE)}
    return {role[len(NODE_ROLE) :]: nodeId for role, nodeId in found.items() if nodeId}


def _nodeNames(segmentationNode: Any, nodeIds: Iterable[str]) -> dict[str, str]:
    """Names of nodes by ID; those without one get it."""
    taken = _nodeIds(segmentationNode)
    names = {nodeId: name for name, nodeId in taken.items()}
    for nodeId in nodeIds:
        if nodeId not in names:
            name = next(str(n) for n in range(1, len(taken) + 2) if str(n) not in taken)
            segmentationNode.SetNodeReferenceID(NODE_ROLE + name, nodeId)
            names[nodeId] = name
            taken[name] = nodeId
    return names


def _identity(segment: Any) -> str:
    if segment is None:
        return ""
    value = vtk.reference("")
    return str(value) if segment.GetTag(IDENTITY_TAG, value) else ""
