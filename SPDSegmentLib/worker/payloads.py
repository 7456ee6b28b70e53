"""What messages carry in compact form: masks as bits, fates of points as columns, markups as flat arrays."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.prompts.fates import Fate, PointFate

from .protocol import MAX_JSON_BYTES, ContentError

if TYPE_CHECKING:
    from SPDSegmentLib.geometry.markups import Markup
    from SPDSegmentLib.geometry.slices import SliceStack


@dataclass(frozen=True)
class ArrayOf:
    """What an array field must look like; used as ``Annotated[np.ndarray, ArrayOf("<f8", (None, 3))]``.

    Attributes:
        dtype: the one dtype, or None for any of the protocol.
        shape: one entry per dimension, None where any size goes; None for any shape.
    """

    dtype: str | None
    shape: tuple[int | None, ...] | None

    def check(self, name: str, value: np.ndarray) -> None:
        """Raise ContentError unless ``value`` fits."""
        if self.dtype is not None and value.dtype != np.dtype(self.dtype):
            raise ContentError(f"The array {name!r} is {value.dtype}, not {np.dtype(self.dtype)}.")
        if self.shape is not None and (
            len(self.shape) != value.ndim
            or any(want is not None and want != have for want, have in zip(self.shape, value.shape, strict=True))
        ):
            raise ContentError(f"The array {name!r} has the wrong shape {value.shape}.")
        if value.dtype.kind == "f" and self.dtype is not None and not np.isfinite(value).all():
            raise ContentError(f"The array {name!r} holds numbers that are not finite.")


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
    check_packed(packed)
    mask = np.zeros(packed.shape, dtype=bool)
    row0, row1, column0, column1 = packed.box
    inside = mask[row0:row1, column0:column1]
    inside[...] = np.unpackbits(packed.bits, count=inside.size).reshape(inside.shape)
    return mask


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


def pack_fates(
    fates: Sequence[PointFate], stack: SliceStack | None = None
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return the columns of fates, without what only the predictor's side needs; placed by ``stack`` where it is given.

    Returns:
        numbers: (N, 5) int32: click, id, slice index, fate, reason; texts as indexes.
        places: (N, 3) float64: R, A, S.
        texts: every text once.
    """
    texts: dict[str, int] = {}
    numbers = np.empty((len(fates), 5), dtype="<i4")
    for row, fate in enumerate(fates):
        name, what, why = (texts.setdefault(str(t), len(texts)) for t in (fate.click_id, fate.fate, fate.reason))
        numbers[row] = (fate.click, name, fate.slice_index, what, why)
    places = np.array([fate.position_ras for fate in fates], dtype="<f8").reshape(-1, 3)
    if stack is not None:
        xy = np.array([fate.xy for fate in fates], dtype=float).reshape(-1, 2)
        places = np.asarray(stack.to_ras(numbers[:, 2].astype(float), xy), dtype="<f8")
    return numbers, places, tuple(texts)


def unpack_fates(numbers: np.ndarray, places: np.ndarray, texts: Sequence[str]) -> tuple[PointFate, ...]:
    """Return the fates of columns, the inverse of :func:`pack_fates`.

    Raises:
        ContentError: columns of different lengths, a text that is not there or no fate.
    """
    check_fates(numbers, places, texts)
    kinds = {text: Fate(text) for text in {texts[what] for what in numbers[:, 3].tolist()}}
    # By columns: a list a row would be garbage to collect.
    columns = zip(*numbers.T.tolist(), *places.T.tolist(), strict=True)
    return tuple(
        PointFate(click, t, kinds[texts[what]], reason=texts[why], click_id=texts[name], position_ras=(r, a, s))
        for click, name, t, what, why, r, a, s in columns
    )


def check_fates(numbers: np.ndarray, places: np.ndarray, texts: Sequence[str]) -> None:
    """Raise ContentError for columns of different lengths, a text that is not there or no fate."""
    if len(numbers) != len(places):
        raise ContentError("The columns of the fates differ in length.")
    if not len(numbers):
        return
    if not (numbers[:, [1, 3, 4]].min() >= 0 and numbers[:, [1, 3, 4]].max() < len(texts)):
        raise ContentError("A text of the fates is missing.")
    if unknown := {texts[what] for what in set(numbers[:, 3].tolist())} - set(Fate):
        raise ContentError(f"The fate {min(unknown)[:40]!r} of a point is unknown.")


@dataclass(frozen=True)
class PointGroup:
    """One markups node within the flat list of points.

    Attributes:
        name, kind: of the node; count: how many of the points are its own.
        insisted: which of them, counted from 0, prompt whatever the model believes.
        ends: at the slices of which of them the structure ends.
    """

    name: str
    kind: str
    count: int
    insisted: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()


CLICK_BYTES = 256
"""What an answer says of a click, beside its id, which is there twice."""
FlatPoints = tuple[np.ndarray, tuple[str, ...], tuple[PointGroup, ...]]


def flatten_markups(markups: Iterable[Markup]) -> FlatPoints:
    """Return points (N, 3) in RAS mm, their ids and groups; unplaced and unselected ones are left out.

    What is no number or beyond any volume becomes finite, and stays beyond: numbers on the wire are finite.

    Raises:
        BadInput: there are so many that the answer, which tells of each, could not be sent.
    """
    from SPDSegmentLib.geometry.markups import BEYOND_MM

    positions: list[Sequence[float]] = []
    ids: list[str] = []
    groups: list[PointGroup] = []
    for markup in markups:
        used = [point for point in markup.points if point.is_used]
        positions.extend(point.position_ras for point in used)
        ids.extend(point.id for point in used)
        insisted, ends = (tuple(n for n, p in enumerate(used) if getattr(p, said)) for said in ("insisted", "ends"))
        groups.append(PointGroup(markup.name, markup.kind, len(used), insisted, ends))
    most = MAX_JSON_BYTES * len(ids) // (CLICK_BYTES * len(ids) + 2 * len(json.dumps(ids)))
    if len(ids) > most:
        names = ", ".join(dict.fromkeys(group.name for group in groups))[:80]
        raise BadInput(
            f"The points of {names} are {len(ids)} clicks, and the background process can be sent {most} at once.",
            "Use fewer clicks; a few along the structure are enough.",
        )
    points = np.nan_to_num(np.array(positions, dtype="<f8").reshape(-1, 3), nan=2 * BEYOND_MM)
    return points.clip(-2 * BEYOND_MM, 2 * BEYOND_MM), tuple(ids), tuple(groups)


def restore_markups(points_ras: np.ndarray, ids: Sequence[str], groups: Sequence[PointGroup]) -> list[Markup]:
    """Return the markups of flat points, the inverse of :func:`flatten_markups`.

    Raises:
        BadInput: the numbers of points, ids and group members differ, or a marked point is not there.
    """
    from SPDSegmentLib.geometry.markups import ControlPoint, Markup

    total = sum(group.count for group in groups)
    if not len(points_ras) == len(ids) == total or any(group.count < 0 for group in groups):
        raise BadInput(f"{len(points_ras)} clicks arrived with {len(ids)} names in groups of {total}.")
    if any(not 0 <= n < group.count for group in groups for n in (*group.insisted, *group.ends)):
        raise BadInput("A click that is insisted on, or marked as an end, is not among those that arrived.")
    markups: list[Markup] = []
    start = 0
    for group in groups:
        members, insisted, ends = range(start, start + group.count), set(group.insisted), set(group.ends)
        points = tuple(
            ControlPoint(ids[n], ids[n], (r, a, s), True, True, n - start in insisted, n - start in ends)
            for n, (r, a, s) in zip(members, points_ras[start : start + group.count].tolist(), strict=True)
        )
        markups.append(Markup(group.name, group.kind, points))
        start += group.count
    return markups


def slice_xy(ras: tuple[float, float, float] | None, stack: SliceStack) -> tuple[float, float] | None:
    """Column and row of a place in the slices, in pixels."""
    if ras is None:
        return None
    column, row = np.asarray(stack.to_slices(np.array(ras))[1]).ravel()
    return float(column), float(row)


def center_ras(xy: tuple[float, float] | None, stack: SliceStack) -> tuple[float, float, float] | None:
    """The place of a column and row in the middle slice, in millimeters."""
    if xy is None:
        return None
    r, a, s = np.asarray(stack.to_ras(np.array([stack.shape[0] // 2]), np.array([xy]))).ravel()
    return float(r), float(a), float(s)
