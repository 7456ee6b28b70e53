"""Checks a safetensors file without torch: its header describes every byte that follows, and every value is finite."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from SPDSegmentLib.errors import ModelCorrupt
from SPDSegmentLib.settings import parse_json, shorten

MAX_HEADER_BYTES = 8_000_000
_EXPONENTS = {"F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F32": ("<u4", 0x7F800000)}
"""Types of a bundle's tensors: their bits as numpy reads them, and those bits that are all set in NaN and infinity."""
_BLOCK_BYTES = 1 << 24


def read_tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a whole safetensors file of half or single precision numbers.

    Layout: 8 bytes little-endian header length, JSON header, tensor bytes without gaps (safetensors format).

    Raises:
        ModelCorrupt: truncated, extra bytes, not a safetensors file, another type of numbers.
    """
    return {name: shape for name, (shape, _, _) in _read_header(path).items()}


def check_finite(path: Path) -> None:
    """Raise :class:`ModelCorrupt` where a value of a file that :func:`read_tensor_shapes` took is NaN or infinite."""
    import numpy as np

    header = _read_header(path)
    with path.open("rb") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
        for name, (shape, dtype, begin) in header.items():
            bits, exponent = _EXPONENTS[dtype]
            itemsize = np.dtype(bits).itemsize
            stream.seek(start + begin)
            left = prod(shape) * itemsize
            while left:
                block = np.frombuffer(stream.read(min(left, _BLOCK_BYTES)), bits)
                left -= block.nbytes
                if not len(block) or ((block & exponent) == exponent).any():
                    raise _damaged(path, f"the tensor '{shorten(name)}' holds values that are NaN or infinite")


def _read_header(path: Path) -> dict[str, tuple[tuple[int, ...], str, int]]:
    """Shape, type and first byte of each tensor."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise _damaged(path, "it is truncated or not a safetensors file")
            header: Any = parse_json(stream.read(length))
    except OSError as error:
        raise ModelCorrupt(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error
    except ValueError as error:
        raise _damaged(path, f"its header {error}") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not readable")
    header.pop("__metadata__", None)
    tensors: dict[str, tuple[tuple[int, ...], str, int]] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        if not isinstance(entry, dict):
            raise _damaged(path, "its header is not readable")
        dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
            raise _damaged(path, "its header is not readable")
        if not isinstance(dtype, str) or dtype not in _EXPONENTS:
            raise _damaged(path, f"the tensor '{shorten(name)}' has the type {shorten(dtype)}, not F16, BF16 or F32")
        if offsets[1] - offsets[0] != prod(shape) * int(_EXPONENTS[dtype][0][-1]):
            raise _damaged(path, "its tensors do not fit together")
        tensors[name] = (tuple(shape), dtype, offsets[0])
        spans.append((offsets[0], offsets[1]))
    end = 0
    for begin, stop in sorted(spans):
        if begin != end:
            raise _damaged(path, "its tensors do not fit together")
        end = stop
    if end != size - 8 - length:
        raise _damaged(path, f"it has {size - 8 - length} bytes of tensors in place of {end}")
    return tensors


def _whole_numbers(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value)


def _damaged(path: Path, why: str) -> ModelCorrupt:
    return ModelCorrupt(f"{path} is damaged: {why}.", "Get a fresh copy of the bundle.")
