"""Writes the slices of one run into a segment: only what differs, never what a person edited, and back if it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import slicer
import vtk

from SPDSegmentLib.prompts.fates import PointFate
from SPDSegmentLib.worker.payloads import PackedMask, pack_mask, unpack_mask

from ..scene.editor_nodes import editTimes, freeEditorNode, labelmapsOf
from ..scene.target import SegmentTarget
from ..scene.volumes import SegmentContent, VolumeSnapshot, gridSnapshot, maskDigest, nodeById
from ..scene.write_record import Position, SliceInfo, WriteRecord, placeOf

if TYPE_CHECKING:
    from SPDSegmentLib.worker.messages import SliceReady


@dataclass
class RunParts:
    """The parts in which a run writes. Each is named in the segment: a stroke of a person may save any state between.

    Attributes:
        run: name of the run.
        before: the record when it began.
        count: of the parts so far.
        wrote: part and checksum by slice.
    """

    run: str
    before: WriteRecord
    count: int = 0
    wrote: dict[int, tuple[int, str]] = field(default_factory=dict)

    @property
    def mark(self) -> str:
        """Name of the state after the latest part."""
        return f"{self.run}/{self.count}"

    def add(self, slices: Iterable[int], written: Mapping[int, str]) -> None:
        """Take in what the next part has written."""
        self.count += 1
        self.wrote.update({t: (self.count, written.get(t, "")) for t in slices})

    def goBack(self, mark: str) -> None:
        """Forget the parts after one: the editor's history took them back and cannot bring them again."""
        part = int(mark.rpartition("/")[2])
        self.count += 1
        self.wrote = {t: (n, digest) for t, (n, digest) in self.wrote.items() if n <= part}

    def hasMade(self, mark: str) -> bool:
        """Whether a mark names a state of this run."""
        return mark.rpartition("/")[0] == self.run

    def recordAt(self, mark: str, record: WriteRecord) -> WriteRecord:
        """Return a record as it was in one of the states of this run: what no part had written yet is as before."""
        part = int(mark.rpartition("/")[2])
        then = replace(record.copy(), written=dict(self.before.written), owned=set(self.before.owned), isPartial=True)
        done = {t: digest for t, (n, digest) in self.wrote.items() if n <= part}
        then.noteWritten(done, done)
        return then


class Neighbors:
    """The other segments, where the editor's settings let a write change them too: that is no edit of a person.

    Args:
        target: the segment that a run writes into.
        snapshot: the volume's state on whose slices it does.

    Attributes:
        states: of segments with a result of their own before and after each change, with checksums and record.
    """

    def __init__(self, target: SegmentTarget, snapshot: VolumeSnapshot) -> None:
        self.states: list[tuple[SegmentTarget, dict[int, str], WriteRecord]] = []
        self._target = target
        self._snapshot = snapshot
        self._taken: dict[str, tuple[SegmentTarget, VolumeSnapshot, dict[int, tuple[PackedMask, str]]]] = {}

    @property
    def _others(self) -> list[SegmentTarget]:
        node, free = self._target.node, freeEditorNode()
        images = labelmapsOf(node) if node is not None else {}
        return [SegmentTarget(node, name, free) for name in images if name != self._target.segmentId]

    def write(self, changes: Mapping[int, np.ndarray], content: SegmentContent, write: Callable[[], None]) -> None:
        """Call ``write``, which sets masks (H, W) by slice where ``content`` is now, and keep what others lose."""
        if not self._target.changesOthers:
            write()
            return
        region = {t: mask ^ content.mask(t) for t, mask in changes.items()}
        before: list[tuple[SegmentTarget, VolumeSnapshot, dict[int, PackedMask]]] = []
        for other in self._others:
            isExact = other.hasVoxelsOf(self._snapshot)
            grid = self._snapshot if isExact else _ownGrid(other, self._snapshot.nodeId)
            present = other.read(grid, changes if isExact else None)
            masks = {t: present.mask(t) for t in (region if isExact else range(grid.grid.shape[0]))}
            kept = {t: pack_mask(m) for t, m in masks.items() if (m & region[t] if isExact else m).any()}
            if kept:
                before.append((other, grid, kept))
        with self._noted([other for other, _grid, _kept in before]):
            write()
        for other, grid, kept in before:
            present = other.read(grid, kept)
            taken = self._taken.setdefault(other.segmentId, (other, grid, {}))[2]
            for t, packed in kept.items():
                if not np.array_equal(present.mask(t), unpack_mask(packed)):
                    taken[t] = (taken[t][0] if t in taken else packed, present.digest(t))

    def putBack(self) -> None:
        """Give back what was taken, except where others were changed since."""
        if not self._taken:
            return
        with self._noted([other for other, _grid, _lost in self._taken.values()]):
            for other, grid, taken in self._taken.values():
                present = other.read(grid, taken)
                lost = {t: unpack_mask(packed) for t, (packed, left) in taken.items() if present.digest(t) == left}
                if lost and other.exists:
                    other.write(grid, lost, present, everywhere=True)
        self._taken.clear()

    @contextmanager
    def _noted(self, others: Sequence[SegmentTarget]) -> Iterator[None]:
        """Count what changes meanwhile in ``others`` as written by a run, where no person had edited it."""
        known = []
        for other in others:
            record = other.record
            if record.model:
                written = other.writtenSnapshot(record, nodeById(self._snapshot.nodeId))
                known.append((other, record, written, other.digests(written)))
        yield
        for other, record, written, before in known:
            after = other.digests(written)
            changed = {t for t in {*before, *after} if before.get(t, "") != after.get(t, "")}
            if changed and other.exists:
                record.noteEdits(before)
                self.states.append((other, before, record.copy()))
                record.noteWritten(changed - record.owned, after)
                other.saveRecord(record)
                self.states.append((other, after, record))


def _ownGrid(target: SegmentTarget, nodeId: str) -> VolumeSnapshot:
    """The voxels of a segment's own labelmap, where they are not those of the volume, as a volume's state."""
    labelmap, toSegmentation = labelmapsOf(target.node)[target.segmentId], vtk.vtkMatrix4x4()
    labelmap.GetImageToWorldMatrix(toSegmentation)
    i0, i1, j0, j1, k0, k1 = labelmap.GetExtent()
    matrix = slicer.util.arrayFromVTKMatrix(toSegmentation)
    matrix[:3, 3] += matrix[:3, :3] @ (i0, j0, k0)
    shape = (k1 - k0 + 1, j1 - j0 + 1, i1 - i0 + 1)
    return replace(gridSnapshot(shape, matrix, "axial", nodeId), inSegmentation=matrix)


class ResultWriter:
    """One run's way into a segment.

    Args:
        target: the segment.
        snapshot: the volume's state on whose slices the results lie; from now on where it is in the segmentation.
        saveStateForUndo: called once, before the first write.
        run: name of this run, see ``RunParts``.
        everywhere: write outside the editable area too.

    Attributes:
        neighbors: what its writes change in other segments.
        markBefore: names the state of the segment when the run began.
        asked: slices that were to be changed.
        changed: those of them that did change.
        withheld: those that are not as asked, and whether nothing at all of it was allowed there.
        area: what the editor's settings restricted changes to while they were withheld.
        times: of the latest edits of the segmentation, see ``editTimes``, where all since the state for undo are this
            run's; otherwise None.
    """

    def __init__(
        self,
        target: SegmentTarget,
        snapshot: VolumeSnapshot,
        saveStateForUndo: Callable[[], None],
        run: str,
        *,
        everywhere: bool = False,
    ) -> None:
        self.record = target.record
        self.asked: set[int] = set()
        self.changed: set[int] = set()
        self.withheld: dict[int, bool] = {}
        self.area = ""
        self.times: dict[str, int] | None = None
        self.digestsBefore: dict[int, str] = {}
        self._target = target
        self.snapshot = target.place(snapshot)
        self.neighbors = Neighbors(target, self.snapshot)
        self._saveState = saveStateForUndo
        self.parts = RunParts(run, self.record.copy())
        self.markBefore = target.mark
        self._place = placeOf(target.node)
        self._everywhere = everywhere
        self._hasBegun = False
        self._before: dict[int, PackedMask] = {}
        self._answers: dict[int, SliceReady] = {}
        self._renamed: dict[str, str] = {}

    @property
    def mayWriteParts(self) -> bool:
        """Whether slices may be written as they come; otherwise they are written at once, at the end."""
        return not self._target.changesOthers and self._target.hasVoxelsOf(self.snapshot)

    def begin(self) -> dict[int, np.ndarray]:
        """Recognize what a person edited and return the masks (H, W) of all slices that belong to a person."""
        self.digestsBefore = self._target.digests(self.snapshot)
        self.record.noteEdits(self.digestsBefore)
        self.parts.before = self.record.copy()
        self._target.saveRecord(self.record)
        if not self.record.owned:
            return {}
        content = self._target.read(self.snapshot, self.record.owned)
        return {t: content.mask(t) for t in sorted(self.record.owned)}

    def put(self, slices: Iterable[SliceReady]) -> set[int] | None:
        """Write slices where they differ, and return those that changed; a person's are left alone.

        Before the first that differs the state for undo is saved, which takes as long as a write: that is all, and
        ``None`` asks for the same slices once more.
        """
        answers = list(slices)
        content = self._target.read(self.snapshot, [answer.slice_index for answer in answers])
        changes: dict[int, np.ndarray] = {}
        for answer in answers:
            t = answer.slice_index
            self._answers[t] = answer
            self.record.info[t] = SliceInfo(answer.quality, answer.status)
            present = content.digest(t)
            if present != self.record.written.get(t, ""):
                self.record.owned.add(t)
            mask = unpack_mask(answer.packed)
            if t not in self.record.owned and maskDigest(mask) != present:
                changes[t] = mask
        if changes and not self._hasBegun:
            self._hasBegun = True
            self._saveState()
            self._target.setMark(self.parts.mark)
            self.times = editTimes(self._target.node)
            return None
        return self._write(changes, content) if changes else set()

    @property
    def hasBegun(self) -> bool:
        """Whether the state for undo was saved, as the first write is near or done."""
        return self._hasBegun

    def wasUndone(self) -> bool:
        """Whether the editor's history has led away from the state that this run began with and wrote into."""
        mark = self._target.mark
        return not self.parts.hasMade(mark) if self._hasBegun else mark != self.markBefore

    def takeIn(self) -> list[SliceReady]:
        """Return what is to be written once more, since the editor's history took back some parts of this run."""
        mark = self._target.mark
        if not self._hasBegun or mark == self.parts.mark:
            return []
        then = self.parts.recordAt(mark, self.record)
        self.record.written, self.record.owned = then.written, then.owned
        self.parts.goBack(mark)
        self._target.setMark(self.parts.mark)
        return list(self._answers.values())

    @property
    def isBack(self) -> bool:
        """Whether the segment, which was removed before it could be put back, is there again as this run left it."""
        return self._hasBegun and bool(self._before) and self.parts.hasMade(self._target.mark)

    def rename(self, renamed: Mapping[str, str]) -> None:
        """Take over new names of clicks, see ``centerlines.restoreClicks``; the worker knows the former ones."""
        self._renamed = {former: renamed.get(name, name) for former, name in self._renamed.items()} | dict(renamed)
        self.record = self.record.withNames(renamed)
        self.parts.before = self.parts.before.withNames(renamed)

    @property
    def wasRefused(self) -> bool:
        """Whether nothing could be written although no setting of the editor forbids it."""
        return bool(self.withheld) and not self.changed and not self.area

    def rollBack(self) -> None:
        """Put back what this run has changed, also of other segments, except where a person edited since."""
        with self._timed():
            self._rollBack()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Notice whether somebody else has edited the segmentation since the latest edit of this run."""
        node = self._target.node
        isOurs = node is not None and self.times == editTimes(node)
        yield
        node = self._target.node
        self.times = editTimes(node) if isOurs and node is not None else None

    def _rollBack(self) -> None:
        self.neighbors.putBack()
        if not self._target.exists:
            return
        isMine = self.parts.hasMade(self._target.mark)  # otherwise what is there is of another state
        content = self._target.read(self.snapshot, self._before)
        back = {t for t in self._before if content.digest(t) == self.digestsBefore.get(t, "")}
        mine = {
            t: unpack_mask(packed)
            for t, packed in self._before.items()
            if isMine and content.digest(t) == self.record.written.get(t, "")
        }
        edited = set(self._before) - set(mine) - back
        if mine:
            alone = SegmentTarget(self._target.node, self._target.segmentId, freeEditorNode())
            alone.write(self.snapshot, mine, content, everywhere=True)
        if self._hasBegun and isMine:
            self._target.setMark(self.markBefore)
        self._hasBegun = False
        self.record = self.parts.before.copy()
        self.record.owned |= edited
        self._target.saveRecord(self.record)
        for kept in (self.asked, self.changed, self.withheld, self._before, self._answers):
            kept.clear()

    def finish(self, fates: list[PointFate], model: str, anchor: Position | None = None, learned: str = "") -> None:
        """Keep the record of a complete run."""
        self.record.isPartial = False
        self.record.learned = learned
        self.record.fates = tuple(fates)
        self.record.model = model
        self.record.anchorRas = anchor
        self.record.place = self._place
        if self._renamed:
            self.record = self.record.withNames(self._renamed)
        self._target.saveRecord(self.record)

    def digests(self) -> dict[int, str]:
        """The checksums of the segment as it is now."""
        return self._target.digests(self.snapshot)

    def _write(self, changes: Mapping[int, np.ndarray], content: SegmentContent) -> set[int]:
        self.asked |= set(changes)
        for t in changes:
            self._before.setdefault(t, pack_mask(content.mask(t)))
        isExact = self._target.hasVoxelsOf(self.snapshot)
        before = {} if isExact else self._target.digests(self.snapshot)
        with self._timed():
            self.neighbors.write(
                changes,
                content,
                lambda: self._target.write(self.snapshot, changes, content, everywhere=self._everywhere),
            )
        after = self._target.read(self.snapshot, changes)
        digests = {t: after.digest(t) for t in changes}
        changed = {t for t in changes if digests[t] != content.digest(t)}
        self.record.noteWritten(changes, digests)
        self.record.isPartial = True
        reached = set() if isExact else self._noteNeighbors(before)
        self.parts.add({*changes, *reached}, self.record.written)
        self._target.setMark(self.parts.mark)
        self._noteWithheld(changes, after, changed)
        self.changed |= changed
        self._target.saveRecord(self.record)
        return changed

    def _noteNeighbors(self, before: Mapping[int, str]) -> set[int]:
        """On a coarser grid a write reaches into the slices beside it: that is not a person's edit; return which."""
        digests = self._target.digests(self.snapshot)
        reached = {t for t in {*before, *digests} if before.get(t, "") != digests.get(t, "")} - self.record.owned
        self.record.noteWritten(reached, digests)
        return reached

    def _noteWithheld(self, changes: Mapping[int, np.ndarray], after: SegmentContent, changed: set[int]) -> None:
        isExact = self._target.hasVoxelsOf(self.snapshot)
        for t, mask in changes.items():
            if t not in changed or (isExact and not np.array_equal(after.mask(t), mask)):
                self.withheld[t] = t not in changed
        if self.withheld and not self._everywhere:
            self.area = self._target.area
