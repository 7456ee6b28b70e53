"""What SPDSegment knows about a segment, and where the scene keeps it: in an attribute of the segmentation node.

Names in the scene may change, as when it is added to another one: MRML then gives nodes new IDs. A record therefore
names other nodes by references of the segmentation node, which MRML keeps right, and its own segment by a tag of it,
since the ID of a deleted segment can be given to another one."""

from __future__ import annotations

import json
import math
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import vtk

from SPDSegmentLib.errors import SPDError
from SPDSegmentLib.prompts.fates import Fate, PointFate, Review, SliceStatus, review

RECORD_VERSION = 1
KEPT_TEXTS = 4
SAME_PLACE_VOXELS = 1e-2
_ENDING = ',"fates":%s}'

Position = tuple[float, float, float]


@dataclass(frozen=True)
class RecordGrid:
    """The voxels on whose slices a record holds.

    Attributes:
        shape: K, J, I.
        matrix: (4, 4) row by row, from I, J, K to the coordinates of the segmentation node in mm.
    """

    shape: tuple[int, int, int]
    matrix: tuple[float, ...]

    def fits(self, other: RecordGrid) -> bool:
        """Whether both are the same voxels."""
        if self.shape != other.shape:
            return False
        k, j, i = self.shape
        corners = np.array([[0, 0, 0, 1], [i, 0, 0, 1], [0, j, 0, 1], [0, 0, k, 1]], dtype=float).T
        moved = np.linalg.inv(self.toWorld) @ other.toWorld @ corners
        return bool(np.abs(moved - corners).max() < SAME_PLACE_VOXELS)

    @property
    def toWorld(self) -> np.ndarray:
        """The matrix as (4, 4) array."""
        return np.array(self.matrix).reshape(4, 4)


@dataclass(frozen=True)
class SliceInfo:
    """What the model said of one slice; ``quality`` is the predicted IoU in [0, 1] or None."""

    quality: float | None
    status: SliceStatus


@dataclass
class WriteRecord:
    """One segment's record.

    Attributes:
        written: checksum of each slice as it was after our last write; an empty slice has none.
        owned: slices that a person edited.
        info: what the model said, by slice index.
        fates: of clicks and synthesized points, latest run.
        model: bundle name.
        axis: slicing axis for which the slice indexes hold.
        volumeId: node of the volume on whose slices the record holds, empty where it is not known.
        grid: voxels of that volume, None where they are not known.
        identity: of the segment, see ``record_store``.
        anchorRas: where the model's field of view was, in world mm; a new worker puts it there again.
        learned: name of what the model had learned from corrections, empty for the model itself.
        place: by row the (4, 4) matrix from the segmentation's coordinates to world mm for which fates and anchor hold,
            empty for none; None where it is not known.
        isPartial: some slices are of a run that has not ended, the others of the result before.
        lists: nodes of the clicks that were chosen for the latest run, in their order, also those without a used click.
    """

    written: dict[int, str] = field(default_factory=dict)
    owned: set[int] = field(default_factory=set)
    info: dict[int, SliceInfo] = field(default_factory=dict)
    fates: tuple[PointFate, ...] = ()
    model: str = ""
    axis: str = "auto"
    anchorRas: Position | None = None
    volumeId: str = ""
    grid: RecordGrid | None = None
    identity: str = ""
    learned: str = ""
    isPartial: bool = False
    place: tuple[float, ...] | None = None
    lists: tuple[str, ...] = ()

    @property
    def nodeIds(self) -> set[str]:
        """Nodes that the record names: the volume and those of the clicks."""
        return {nodeOf(fate.click_id) for fate in self.fates if fate.click_id} | {*self.lists, self.volumeId} - {""}

    def findEdits(self, digests: Mapping[int, str]) -> set[int]:
        """Return the slices whose content differs from what was written."""
        return {t for t in {*digests, *self.written} if digests.get(t, "") != self.written.get(t, "")}

    def noteEdits(self, digests: Mapping[int, str]) -> set[int]:
        """Mark slices that differ as owned by a person and return the new ones."""
        new = self.findEdits(digests) - self.owned
        self.owned |= new
        return new

    def noteWritten(self, slices: Iterable[int], digests: Mapping[int, str]) -> None:
        """Remember the content of slices as ours."""
        for t in slices:
            digest = digests.get(t, "")
            if digest:
                self.written[t] = digest
            else:
                self.written.pop(t, None)

    def release(self, slices: Iterable[int], digests: Mapping[int, str]) -> None:
        """Give slices back to the model: their present content counts as written."""
        slices = set(slices)
        self.owned -= slices
        self.noteWritten(slices, digests)

    @property
    def review(self) -> Review:
        """Where a person should look."""
        return review(
            {t: (info.status, info.quality) for t, info in self.info.items()},
            [(fate.slice_index, fate.fate) for fate in self.fates if fate.click_id],
            self.owned,
        )

    @property
    def span(self) -> range:
        """From the first slice of the structure to the last one."""
        return self.review.span

    @property
    def unsupported(self) -> list[int]:
        """Slices within the span that no click supports and that were left empty, ascending."""
        return [t for t in self.doubtful if self.info[t].status is SliceStatus.ABSTAINED]

    @property
    def doubtful(self) -> list[int]:
        """Slices within the span that need a look and that nobody has edited, ascending."""
        return list(self.review.doubtful)

    def copy(self) -> WriteRecord:
        """Return an independent copy."""
        own = {name: copy(getattr(self, name)) for name in ("written", "owned", "info")}
        return replace(self, **own)

    def movedTo(self, place: tuple[float, ...] | None) -> WriteRecord:
        """Return it with fates and anchor where they are now that the segmentation was moved to another place."""
        if self.place is None or place is None or self.place == place:
            return self
        then, now = (np.array(p or np.eye(4)).reshape(4, 4) for p in (self.place, place))
        move = now @ np.linalg.inv(then)
        anchor = None if self.anchorRas is None else _moved([self.anchorRas], move)[0]
        places = _moved([fate.position_ras for fate in self.fates], move)
        fates = tuple(replace(f, position_ras=p) for f, p in zip(self.fates, places, strict=True))
        return replace(self, fates=fates, anchorRas=anchor, place=place)

    def withNames(self, renamed: Mapping[str, str]) -> WriteRecord:
        """Return a copy with other names of clicks."""
        copied = self.copy()
        if renamed:
            names = [renamed.get(fate.click_id, fate.click_id) for fate in self.fates]
            copied.fates = tuple(replace(f, click_id=name) for f, name in zip(self.fates, names, strict=True))
        return copied

    def toJson(self, names: Mapping[str, str] | None = None) -> str:
        """Return the text that a scene keeps; ``names`` stand for the IDs of nodes."""
        names = names or {}
        told = json.dumps(
            {
                "version": RECORD_VERSION,
                "written": {str(t): d for t, d in sorted(self.written.items())},
                "owned": sorted(self.owned),
                "info": {
                    str(t): [None if i.quality is None else round(i.quality, 4), i.status]
                    for t, i in sorted(self.info.items())
                },
                "model": self.model,
                "axis": self.axis,
                "anchor": self.anchorRas,
                "volume": names.get(self.volumeId, self.volumeId),
                "grid": None if self.grid is None else [self.grid.shape, self.grid.matrix],
                "segment": self.identity,
                "learned": self.learned,
                **({} if self.place is None else {"place": self.place}),
                **({"partial": True} if self.isPartial else {}),
                **({"lists": [names.get(nodeId, nodeId) for nodeId in self.lists]} if self.lists else {}),
            },
            separators=(",", ":"),
        )
        return told[:-1] + _ENDING % _fatesText(self.fates, names)

    @staticmethod
    def fromJson(text: str | None, nodeIds: Mapping[str, str] | None = None) -> WriteRecord:
        """Read :meth:`toJson`; from an unreadable text an empty record, so that all content is owned.

        Args:
            text: what a scene has kept.
            nodeIds: IDs of nodes by the names that stand for them.
        """
        return _parsed(text or "{}", tuple(sorted((nodeIds or {}).items()))).copy()


_texts: list[tuple[tuple[PointFate, ...], dict[str, str], str]] = []


def _fatesText(fates: tuple[PointFate, ...], names: Mapping[str, str]) -> str:
    """As JSON, once for the very same fates: a record is saved with every write, and a thousand take milliseconds."""
    for kept, keptNames, text in _texts:
        if kept is fates and keptNames == names:
            return text
    quoted = json.encoder.encode_basestring_ascii
    reasons = {reason: quoted(reason) for reason in {f.reason for f in fates}}
    told = []  # of texts: a list a fate would be garbage to collect
    for f in fates:
        r, a, s = (repr(round(x, 3)) if math.isfinite(x) else json.dumps(x) for x in f.position_ras)
        name = quoted(_renamed(f.click_id, names))
        told.append(f'[{name},"{f.fate.value}",{f.slice_index},[{r},{a},{s}],{reasons[f.reason]}]')
    text = f"[{','.join(told)}]"
    _texts[:] = [(fates, dict(names), text), *_texts[: KEPT_TEXTS - 1]]
    return text


def _withoutFates(text: str, nodeIds: Mapping[str, str]) -> tuple[str, tuple[PointFate, ...] | None]:
    """A record's text less its fates, and these, where they are among the last that were written; else all of it."""
    for fates, names, told in _texts:
        if text.endswith(ending := _ENDING % told) and {name: nodeId for nodeId, name in names.items()} == nodeIds:
            return text[: -len(ending)] + "}", fates
    return text, None


@lru_cache(maxsize=KEPT_TEXTS)
def _parsed(text: str, names: tuple[tuple[str, str], ...]) -> WriteRecord:
    """A record is read several times for each change of a click, and a thousand fates take some milliseconds."""
    nodeIds = dict(names)
    rest, fates = _withoutFates(text, nodeIds)
    try:
        content: Any = json.loads(rest)
        if not isinstance(content, dict) or content.get("version") != RECORD_VERSION:
            return WriteRecord()
        return WriteRecord(
            {int(t): str(d) for t, d in content["written"].items()},
            {int(t) for t in content["owned"]},
            {int(t): SliceInfo(i[0], SliceStatus(i[1])) for t, i in content["info"].items()},
            tuple(_fate(n, f, nodeIds) for n, f in enumerate(content["fates"])) if fates is None else fates,
            str(content["model"]),
            str(content["axis"]),
            _position(content.get("anchor")),
            nodeIds.get(content.get("volume") or "", content.get("volume") or ""),
            _grid(content.get("grid")),
            str(content.get("segment") or ""),
            str(content.get("learned") or ""),
            content.get("partial") is True,
            None if content.get("place") is None else tuple(float(value) for value in content["place"]),
            tuple(nodeIds.get(name, name) for name in content.get("lists", ())),
        )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return WriteRecord()


def _moved(places: Sequence[Position], move: np.ndarray) -> list[Position]:
    """Places in mm, moved by a (4, 4) matrix."""
    moved = np.array(places, dtype=float).reshape(-1, 3) @ move[:3, :3].T + move[:3, 3]
    return [(x, y, z) for x, y, z in moved.tolist()]


def _position(given: Any) -> Position | None:
    if given is None:
        return None
    x, y, z = (float(value) for value in given)
    return x, y, z


def _grid(given: Any) -> RecordGrid | None:
    if given is None:
        return None
    shape, matrix = given
    k, j, i = (int(size) for size in shape)
    values = tuple(float(value) for value in matrix)
    return RecordGrid((k, j, i), values) if len(values) == 16 else None


def nodeOf(clickId: str) -> str:
    """Return the node of a click by the click's name, see ``centerlines.clickName``."""
    return clickId.rpartition(":")[0]


def _renamed(clickId: str, names: Mapping[str, str]) -> str:
    """The name of a click with another name of its node."""
    node, colon, point = clickId.rpartition(":")
    return names[node] + colon + point if node in names else clickId


RECORD_ATTRIBUTE = "SPDSegment.Record."
NODE_ROLE = "SPDSegment.Node."
IDENTITY_TAG = "SPDSegment.Identity"
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


def loadRecord(segmentationNode: Any, segmentId: str) -> WriteRecord:
    """Return the record of a segment; an empty one where there is none."""
    text = segmentationNode.GetAttribute(attributeName(segmentId))
    record = WriteRecord.fromJson(text, _nodeIds(segmentationNode))
    if record.identity and record.identity != identityOf(segmentationNode, segmentId):
        return WriteRecord()
    return record.movedTo(placeOf(segmentationNode))


def placeOf(segmentationNode: Any) -> tuple[float, ...] | None:
    """Return where a segmentation lies, as a record keeps it; None where that is no linear transform."""
    if segmentationNode.GetParentTransformNode() is None:
        return ()
    from .volumes import parentMatrix

    try:
        return tuple(parentMatrix(segmentationNode).ravel().tolist())
    except SPDError:
        return None


def saveRecord(segmentationNode: Any, segmentId: str, record: WriteRecord) -> None:
    """Keep the record of a segment that exists, unless it is as before its first run, where undo may have led.

    Only a run names it, see :func:`identify`: at another time that would take away what can be redone.
    """
    record.identity = identityOf(segmentationNode, segmentId)
    if not record.identity:
        return
    names = _nodeNames(segmentationNode, record.nodeIds)
    segmentationNode.SetAttribute(attributeName(segmentId), record.toJson(names))


def identify(segmentationNode: Any, segmentId: str, identity: str = "") -> None:
    """Give a segment the tag by which its record is known, where it has none; by default a new one."""
    if not identityOf(segmentationNode, segmentId):
        segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
        segment.SetTag(IDENTITY_TAG, identity or uuid.uuid4().hex[:12])


def identityOf(segmentationNode: Any, segmentId: str) -> str:
    """Return the tag of a segment, empty where it has none or is gone."""
    segment = segmentationNode.GetSegmentation().GetSegment(segmentId) if segmentationNode is not None else None
    value = vtk.reference("")
    return str(value) if segment is not None and segment.GetTag(IDENTITY_TAG, value) else ""


def attributeName(segmentId: str) -> str:
    """Return the attribute of a segmentation node that keeps the record of a segment."""
    return RECORD_ATTRIBUTE + safeName(segmentId)


def safeName(text: str) -> str:
    """Return a name in which no character has a meaning in MRML's files."""
    return _UNSAFE.sub(lambda found: "".join(f"={byte:02X}" for byte in found.group().encode()), text)


def _nodeIds(segmentationNode: Any) -> dict[str, str]:
    """IDs of the nodes that records of a segmentation name, by that name."""
    count = segmentationNode.GetNumberOfNodeReferenceRoles()
    roles = [segmentationNode.GetNthNodeReferenceRole(n) for n in range(count)]
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


def _fate(number: int, kept: Sequence[Any], nodeIds: Mapping[str, str]) -> PointFate:
    """A fate as a scene keeps it; the clicks' own numbers, which only a run knows, become those of the list."""
    name, fate, t, (r, a, s), reason = kept
    click = number if name else -1
    return PointFate(click, int(t), Fate(fate), reason=reason, click_id=_renamed(name, nodeIds), position_ras=(r, a, s))
