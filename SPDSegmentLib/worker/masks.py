"""Masks of slices as packed bits within their bounding box."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .protocol import ContentError


@dataclass(frozen=True, eq=False)
class PackedMask:
    """One slice's mask.

    Attributes:
        shape: (H, W) of the slice in pixels.
        box: first row, row after the last, first column, column after the last; all 0 for an empty mask.
        bits: uint8, ``numpy.packbits`` of the box in row order.
    """

    shape: tuple[int, int]
    box: tuple[int, int, int, int]
    bits: np.ndarray


def pack_mask(mask: np.ndarray) -> PackedMask:
    """Pack a mask (H, W) of bool."""
    height, width = mask.shape
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return PackedMask((height, width), (0, 0, 0, 0), np.empty(0, np.uint8))
    columns = np.flatnonzero(mask.any(axis=0))
    box = (int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)
    inside = np.asarray(mask[box[0] : box[1], box[2] : box[3]], dtype=bool)
    return PackedMask((height, width), box, np.packbits(inside))


def unpack_mask(packed: PackedMask) -> np.ndarray:
    """Return the mask (H, W) of bool.

    Raises:
        ContentError: the box leaves the slice or does not fit the number of bits.
    """
    inside = unpack_box(packed)
    mask = np.zeros(packed.shape, dtype=bool)
    row0, row1, column0, column1 = packed.box
    mask[row0:row1, column0:column1] = inside
    return mask


def unpack_box(packed: PackedMask) -> np.ndarray:
    """Return the part of the mask within its box, bool.

    Raises:
        ContentError: the box leaves the slice or does not fit the number of bits.
    """
    check_packed(packed)
    row0, row1, column0, column1 = packed.box
    count = (row1 - row0) * (column1 - column0)
    return np.unpackbits(packed.bits, count=count).astype(bool).reshape(row1 - row0, column1 - column0)


def check_packed(packed: PackedMask) -> None:
    """Raise ContentError unless the box lies in the slice and fits the number of bits."""
    row0, row1, column0, column1 = packed.box
    height, width = packed.shape
    if not (0 <= row0 <= row1 <= height and 0 <= column0 <= column1 <= width):
        raise ContentError(f"The box {packed.box} of a mask leaves its slice {packed.shape}.")
    count = (row1 - row0) * (column1 - column0)
    if packed.bits.ndim != 1 or packed.bits.size != (count + 7) // 8:
        raise ContentError("The bits of a mask do not fit its box.")


def pack_masks(masks: Mapping[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Pack the masks (H, W) of several slices.

    Returns:
        table: (N, 7) int64, slice index, H, W and the box of each.
        bits: uint8, the packed boxes one after the other.
    """
    packed = [(t, pack_mask(mask)) for t, mask in sorted(masks.items())]
    table = np.array([(t, *mask.shape, *mask.box) for t, mask in packed], dtype=np.int64).reshape(-1, 7)
    bits = np.concatenate([mask.bits for _, mask in packed]) if packed else np.empty(0, np.uint8)
    return table, bits


def unpack_masks(table: np.ndarray, bits: np.ndarray, shape: tuple[int, int]) -> dict[int, np.ndarray]:
    """Return masks (H, W) of bool by slice index, the inverse of :func:`pack_masks`.

    Args:
        table: (N, 7) int64.
        bits: uint8.
        shape: (H, W) that every slice must have.

    Raises:
        ContentError: a slice of another shape or named twice, or bits that do not fit.
    """
    masks: dict[int, np.ndarray] = {}
    offset = 0
    for t, height, width, row0, row1, column0, column1 in table.tolist():
        if (height, width) != shape or t in masks:
            raise ContentError(f"The mask given for slice {t} does not fit the volume.")
        count = (max(row1 - row0, 0) * max(column1 - column0, 0) + 7) // 8
        packed = PackedMask(shape, (row0, row1, column0, column1), bits[offset : offset + count])
        masks[t] = unpack_mask(packed)
        offset += count
    if offset != bits.size:
        raise ContentError("The bits of the given masks do not fit their boxes.")
    return masks
