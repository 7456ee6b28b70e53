"""Writes the slices of one run into a segment: only what differs, never what a person edited, and back if it fails."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from SPDSegmentLib.worker.masks import PackedMask, pack_mask, unpack_mask

from .slice_grid import SegmentContent, maskDigest
from .write_record import PointFate, Position, SliceInfo, WriteRecord


class WritableTarget(Protocol):
    """The segment, see ``target.Target``."""

    @property
    def exists(self) -> bool:
        """Whether it is still there."""

    @property
    def changesOthers(self) -> bool:
        """Whether a write may change other segments too, which :meth:`ResultWriter.rollBack` could not put back."""

    @property
    def record(self) -> WriteRecord:
        """What is known about the segment."""

    def hasVoxelsOf(self, snapshot: Any) -> bool:
        """Whether nothing is resampled between segment and volume: only then :meth:`ResultWriter.rollBack` is exact."""

    def saveRecord(self, record: WriteRecord) -> None:
        """Keep a record."""

    def read(self, snapshot: Any, slices: Collection[int] | None = None) -> SegmentContent:
        """Return the voxels, of some slices only or of all."""

    def digests(self, snapshot: Any) -> dict[int, str]:
        """Return a short checksum of every slice that is not empty."""

    def write(self, snapshot: Any, changes: Mapping[int, np.ndarray], content: SegmentContent) -> None:
        """Set the masks of some slices."""


class SliceAnswer(Protocol):
    """One slice as the worker sends it, see ``messages.SliceReady``."""

    @property
    def slice_index(self) -> int:
        """The slice."""

    @property
    def quality(self) -> float | None:
        """The predicted IoU."""

    @property
    def status(self) -> str:
        """What supports the slice."""

    @property
    def packed(self) -> PackedMask:
        """The mask."""


class ResultWriter:
    """One run's way into a segment.

    Args:
        target: the segment.
        snapshot: the volume's state on whose slices the results lie.
        saveStateForUndo: called once, before the first write.
    """

    def __init__(self, target: WritableTarget, snapshot: Any, saveStateForUndo: Callable[[], None]) -> None:
        self.record = target.record
        self.changed: set[int] = set()
        self.digestsBefore: dict[int, str] = {}
        self._target = target
        self._snapshot = snapshot
        self._saveState = saveStateForUndo
        self._before: dict[int, PackedMask] = {}
        self._recordBefore = self.record.copy()

    @property
    def mayWriteParts(self) -> bool:
        """Whether slices may be written as they come; otherwise they are written at once, at the end."""
        return not self._target.changesOthers and self._target.hasVoxelsOf(self._snapshot)

    def begin(self) -> dict[int, np.ndarray]:
        """Recognize what a person edited and return the masks (H, W) of all slices that belong to a person."""
        self.digestsBefore = self._target.digests(self._snapshot)
        self.record.noteEdits(self.digestsBefore)
        self._recordBefore = self.record.copy()
        self._target.saveRecord(self.record)
        if not self.record.owned:
            return {}
        content = self._target.read(self._snapshot, self.record.owned)
        return {t: content.mask(t) for t in sorted(self.record.owned)}

    def put(self, slices: Iterable[SliceAnswer]) -> set[int]:
        """Write slices where they differ, and return those that changed; a person's are left alone."""
        answers = list(slices)
        content = self._target.read(self._snapshot, [answer.slice_index for answer in answers])
        changes: dict[int, np.ndarray] = {}
        for answer in answers:
            t = answer.slice_index
            self.record.info[t] = SliceInfo(answer.quality, answer.status)
            present = content.digest(t)
            if present != self.record.written.get(t, ""):
                self.record.owned.add(t)
            mask = unpack_mask(answer.packed)
            if t not in self.record.owned and maskDigest(mask) != present:
                changes[t] = mask
        if changes:
            self._write(changes, content)
        return set(changes)

    def wasUndone(self) -> bool:
        """Whether everything that this run has written is as it was before: somebody pressed Undo."""
        return bool(self.changed) and all(self._digest(t) == self.digestsBefore.get(t, "") for t in self.changed)

    def rollBack(self) -> None:
        """Put back what this run has changed, except where a person edited since."""
        if not self._target.exists:
            return
        content = self._target.read(self._snapshot, self._before)
        back = {t for t in self._before if content.digest(t) == self.digestsBefore.get(t, "")}
        mine = {
            t: unpack_mask(packed)
            for t, packed in self._before.items()
            if content.digest(t) == self.record.written.get(t, "")
        }
        edited = set(self._before) - set(mine) - back
        if mine:
            self._target.write(self._snapshot, mine, content)
        self.record = self._recordBefore.copy()
        self.record.owned |= edited
        self._target.saveRecord(self.record)
        self.changed.clear()
        self._before.clear()

    def finish(self, fates: list[PointFate], model: str, anchor: Position | None = None) -> dict[int, str]:
        """Keep the record of a complete run and return the checksums of the segment."""
        self.record.fates = fates
        self.record.model = model
        self.record.anchorRas = anchor
        self._target.saveRecord(self.record)
        return self._target.digests(self._snapshot)

    def _write(self, changes: Mapping[int, np.ndarray], content: SegmentContent) -> None:
        if not self._before:
            self._saveState()
        for t in changes:
            self._before.setdefault(t, pack_mask(content.mask(t)))
        self._target.write(self._snapshot, changes, content)
        after = self._target.read(self._snapshot, changes)
        self.record.noteWritten(changes, {t: after.digest(t) for t in changes})
        self.changed |= set(changes)
        self._target.saveRecord(self.record)

    def _digest(self, t: int) -> str:
        return self._target.read(self._snapshot, (t,)).digest(t)
