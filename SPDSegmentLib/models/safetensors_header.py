"""Checks a safetensors file without torch: its header describes every byte that follows."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

from SPDSegmentLib.errors import ModelCorrupt

MAX_HEADER_BYTES = 100_000_000
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
}  # fmt: skip


def read_tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a whole safetensors file.

    Layout: 8 bytes little-endian header length, JSON header, tensor bytes without gaps (safetensors format).

    Raises:
        ModelCorrupt: truncated, extra bytes, or not a safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise _damaged(path, "it is truncated or not a safetensors file")
            header: Any = json.loads(stream.read(length))
    except OSError as error:
        raise ModelCorrupt(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error
    except ValueError as error:
        raise _damaged(path, "its header is not readable") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not readable")
    header.pop("__metadata__", None)
    try:
        entries = sorted(header.values(), key=lambda entry: entry["data_offsets"])
        end = 0
        for entry in entries:
            begin, stop = entry["data_offsets"]
            if begin != end or (stop - begin) * 8 != prod(entry["shape"]) * _BITS[entry["dtype"]]:
                raise _damaged(path, "its tensors do not fit together")
            end = stop
        shapes = {name: tuple(int(side) for side in entry["shape"]) for name, entry in header.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, "its header is not readable") from error
    if end != size - 8 - length:
        raise _damaged(path, f"it has {size - 8 - length} bytes of tensors in place of {end}")
    return shapes


def _damaged(path: Path, why: str) -> ModelCorrupt:
    return ModelCorrupt(f"{path} is damaged: {why}.", "Get a fresh copy of the bundle.")
