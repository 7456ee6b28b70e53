"""Invalid values of NIfTI files, which ITK's reader silently turns into 0."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

BLOCK_BYTES = 1 << 24
_FLOATS = {16: "f4", 64: "f8"}


def has_invalid_values(path: Path) -> bool:
    """Whether a single-file NIfTI of a floating type holds NaN or infinite voxels.

    Reads block by block. False for files that are no such NIfTI or end early: reading them as images tells more.
    """
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
        with cast(BinaryIO, gzip.open(path)) if compressed else path.open("rb") as stream:
            return _scan(stream)
    except (OSError, EOFError, zlib.error, struct.error):
        return False


def _scan(stream: BinaryIO) -> bool:
    header = stream.read(540)
    for order in "<>":
        (size,) = struct.unpack_from(f"{order}i", header)
        if size == 348:
            (kind,) = struct.unpack_from(f"{order}h", header, 70)
            n_axes, *extent = struct.unpack_from(f"{order}8h", header, 40)
            start = int(struct.unpack_from(f"{order}f", header, 108)[0])
            break
        if size == 540:
            (kind,) = struct.unpack_from(f"{order}h", header, 12)
            n_axes, *extent = struct.unpack_from(f"{order}8q", header, 16)
            (start,) = struct.unpack_from(f"{order}q", header, 168)
            break
    else:
        return False
    if kind not in _FLOATS or not 0 < n_axes < 8 or start < size:
        return False
    dtype = np.dtype(order + _FLOATS[kind])
    left = int(np.prod(extent[:n_axes], dtype=np.int64)) * dtype.itemsize
    stream.seek(start)
    while left > 0:
        block = stream.read(min(left, BLOCK_BYTES))
        whole = len(block) // dtype.itemsize
        if not np.isfinite(np.frombuffer(block, dtype, count=whole)).all():
            return True
        if not block:
            return False
        left -= len(block)
    return False
