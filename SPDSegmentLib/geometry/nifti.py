"""Defects of NIfTI files that ITK's reader passes over: missing data and invalid values both become 0."""

from __future__ import annotations

import gzip
import struct
import zlib
from enum import Enum
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np

BLOCK_BYTES = 1 << 24
_FLOATS = {16: "f4", 64: "f8"}


class Defect(Enum):
    """What is wrong with a file."""

    TRUNCATED = "truncated"
    INVALID_VALUES = "invalid values"


class _Layout(NamedTuple):
    """Where a file keeps its voxels, in bytes, and their type if it is a floating one."""

    start: int
    size: int
    dtype: np.dtype | None


def nifti_defect(path: Path) -> Defect | None:
    """Find missing data, or NaN and infinite voxels, in a single-file NIfTI-1 or NIfTI-2.

    Floating types are read block by block; of others only the length is compared. None for sound files and for those
    with no such header: reading them as images tells more.
    """
    with path.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
    with cast(BinaryIO, gzip.open(path)) if compressed else path.open("rb") as stream:
        try:
            layout = _layout(stream.read(540))
            if layout is None:
                return None
            if layout.dtype is None and _length_fits(path, layout.start + layout.size, compressed):
                return None
            return _scan(stream, layout)
        except (EOFError, zlib.error, gzip.BadGzipFile, struct.error):
            return Defect.TRUNCATED


def _layout(header: bytes) -> _Layout | None:
    if len(header) < 348:
        return None
    for order in "<>":
        (size,) = struct.unpack_from(f"{order}i", header)
        if size == 348:
            kind, bits = struct.unpack_from(f"{order}2h", header, 70)
            n_axes, *extent = struct.unpack_from(f"{order}8h", header, 40)
            start = int(struct.unpack_from(f"{order}f", header, 108)[0])
        elif size == 540:
            kind, bits = struct.unpack_from(f"{order}2h", header, 12)
            n_axes, *extent = struct.unpack_from(f"{order}8q", header, 16)
            (start,) = struct.unpack_from(f"{order}q", header, 168)
        else:
            continue
        if not 0 < n_axes < 8 or start < size:
            return None
        n_voxels = int(np.prod([max(1, n) for n in extent[:n_axes]], dtype=np.int64))
        dtype = np.dtype(order + _FLOATS[kind]) if kind in _FLOATS else None
        return _Layout(start, n_voxels * bits // 8, dtype)
    return None


def _length_fits(path: Path, expected: int, compressed: bool) -> bool:
    """Whether the file has the expected length; for gzip by the length that ends the file (modulo 4 GiB)."""
    if not compressed:
        return path.stat().st_size >= expected
    with path.open("rb") as raw:
        raw.seek(-4, 2)
        return struct.unpack("<I", raw.read(4))[0] == expected % (1 << 32)


def _scan(stream: BinaryIO, layout: _Layout) -> Defect | None:
    stream.seek(layout.start)
    left = layout.size
    while left > 0:
        block = stream.read(min(left, BLOCK_BYTES))
        if len(block) < min(left, BLOCK_BYTES):
            return Defect.TRUNCATED
        if layout.dtype is not None and not np.isfinite(np.frombuffer(block, layout.dtype)).all():
            return Defect.INVALID_VALUES
        left -= len(block)
    return None
