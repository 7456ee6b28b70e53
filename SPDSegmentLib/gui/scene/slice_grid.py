"""Boxes of voxels between the volume's own grid and its canonical slices; numpy only."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from SPDSegmentLib.geometry.slices import SliceStack

Triple = tuple[int, int, int]
EMPTY = ""


class SliceGrid:
    """The whole-voxel relation between slices (T, H, W) and the volume's indexes (I, J, K)."""

    def __init__(self, stack: SliceStack) -> None:
        origin, *ends = (self._index(stack, thw) for thw in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)))
        steps = [end - origin for end in ends]
        self._axes = tuple(int(np.argmax(np.abs(step))) for step in steps)
        self._flips = tuple(int(step[axis]) < 0 for step, axis in zip(steps, self._axes, strict=True))
        self.shape: Triple = stack.shape

    @staticmethod
    def _index(stack: SliceStack, thw: Triple) -> np.ndarray:
        ras = stack.to_ras(np.array([thw[0]]), np.array([[thw[2], thw[1]]]))[0]
        return np.rint((stack.volume.ras_to_ijk @ np.append(ras, 1.0))[:3]).astype(int)

    def toSlices(self, arrayKJI: np.ndarray, startIJK: Triple) -> tuple[np.ndarray, Triple]:
        """Return the view (t, h, w) of a box (k, j, i) and its first slice, row and column."""
        view = arrayKJI.transpose([2 - axis for axis in self._axes])
        view = view[tuple(slice(None, None, -1 if flip else 1) for flip in self._flips)]
        start = [
            self.shape[n] - startIJK[axis] - view.shape[n] if flip else startIJK[axis]
            for n, (axis, flip) in enumerate(zip(self._axes, self._flips, strict=True))
        ]
        return view, (start[0], start[1], start[2])

    def toVolume(self, arrayTHW: np.ndarray, startTHW: Triple) -> tuple[np.ndarray, Triple]:
        """Return a box (t, h, w) as (k, j, i) and its first I, J and K: the inverse of :meth:`toSlices`."""
        view = arrayTHW[tuple(slice(None, None, -1 if flip else 1) for flip in self._flips)]
        view = view.transpose(np.argsort([2 - axis for axis in self._axes]))
        start = [0, 0, 0]
        for n, (axis, flip) in enumerate(zip(self._axes, self._flips, strict=True)):
            start[axis] = self.shape[n] - startTHW[n] - arrayTHW.shape[n] if flip else startTHW[n]
        return view, (start[0], start[1], start[2])


@dataclass(frozen=True, eq=False)
class SegmentContent:
    """The voxels of a segment, as a box in canonical slices.

    Attributes:
        shape: (T, H, W) of the volume.
        box: (t, h, w) bool.
        start: first slice, row and column of the box; the box may stick out of the volume.
    """

    shape: Triple
    box: np.ndarray
    start: Triple

    def mask(self, t: int) -> np.ndarray:
        """Return the mask (H, W) of one slice."""
        mask = np.zeros(self.shape[1:], dtype=bool)
        n = t - self.start[0]
        if 0 <= n < self.box.shape[0]:
            rows, ownRows = _overlap(self.start[1], self.box.shape[1], self.shape[1])
            columns, ownColumns = _overlap(self.start[2], self.box.shape[2], self.shape[2])
            mask[rows, columns] = self.box[n, ownRows, ownColumns]
        return mask

    def digest(self, t: int) -> str:
        """Return a short checksum of one slice, empty for an empty slice."""
        n = t - self.start[0]
        if not 0 <= n < self.box.shape[0]:
            return EMPTY
        return maskDigest(self.box[n], self.start[1], self.start[2])


def sliceDigests(labels: np.ndarray, value: int, start: Triple, count: int) -> dict[int, str]:
    """Return a short checksum of every slice of a segment that is not empty, see :func:`maskDigest`.

    One mask at a time in memory that is used again: fresh pages for a mask of the whole segment cost several times
    what the comparison does.

    Args:
        labels: (t, h, w) view of a labelmap.
        value: the segment's label.
        start: first slice, row and column of the view; it may stick out of the volume.
        count: slices of the volume.
    """
    mask = np.empty(labels.shape[1:], dtype=bool)
    digests = {}
    for n in range(max(-start[0], 0), min(labels.shape[0], count - start[0])):
        digest = maskDigest(np.equal(labels[n], value, out=mask), start[1], start[2])
        if digest != EMPTY:
            digests[n + start[0]] = digest
    return digests


def maskDigest(mask: np.ndarray, row: int = 0, column: int = 0) -> str:
    """Return a checksum of where a mask (h, w) is set, its first pixel at ``row``, ``column``; empty if nowhere."""
    mask = np.ascontiguousarray(mask, dtype=bool)  # a flipped view takes twice as long
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return EMPTY
    columns = np.flatnonzero(mask.any(axis=0))
    r0, r1, c0, c1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    box = np.array([r0 + row, r1 + row, c0 + column, c1 + column], dtype="<i8")
    bits = np.packbits(mask[r0:r1, c0:c1])
    return hashlib.blake2b(box.tobytes() + bits.tobytes(), digest_size=8).hexdigest()


def filledPart(voxels: np.ndarray) -> tuple[slice, slice, slice] | None:
    """Return the box around everything that is not 0 in an array of three axes; None where there is nothing.

    Makes no copy, and reads all of a large array once only.
    """
    flat = voxels.max(axis=0, initial=0)
    middle, last = (np.flatnonzero(flat.any(axis=axis)) for axis in (1, 0))
    if not middle.size:
        return None
    rows, columns = (slice(int(filled[0]), int(filled[-1]) + 1) for filled in (middle, last))
    first = np.flatnonzero(voxels[:, rows, columns].any(axis=(1, 2)))
    return slice(int(first[0]), int(first[-1]) + 1), rows, columns


def boxAround(masks: list[np.ndarray]) -> tuple[int, int, int, int] | None:
    """Return first row, row after the last, first column, column after the last of masks (H, W); None if all empty."""
    union = np.logical_or.reduce(masks)
    rows = np.flatnonzero(union.any(axis=1))
    if not rows.size:
        return None
    columns = np.flatnonzero(union.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _overlap(start: int, size: int, limit: int) -> tuple[slice, slice]:
    first, last = max(start, 0), min(start + size, limit)
    last = max(first, last)
    return slice(first, last), slice(first - start, last - start)
