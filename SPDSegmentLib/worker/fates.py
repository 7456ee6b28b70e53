"""The fates of points as columns, so that thousands of them cost the receiver nothing until it looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .protocol import ContentError

NOWHERE = -1


@dataclass(frozen=True)
class Fate:
    """What became of one point on one slice.

    Attributes:
        click: index of the click, -1 for a synthesised point.
        click_id: control point id, empty for a synthesised point.
        slice_index: the slice for which this was decided.
        fate: kept, insisted, rejected_own_slice, rejected_neighbor, borrowed, synthesized or outside.
        xy: (column, row) in pixels of the slice.
        position_ras: the same place in millimetres.
        from_slice: the slice a borrowed point came from, else None.
        reason: short English text, may be empty.
    """

    click: int
    click_id: str
    slice_index: int
    fate: str
    xy: tuple[float, float]
    position_ras: tuple[float, float, float]
    from_slice: int | None
    reason: str


def pack_fates(fates: Sequence[Fate]) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return the columns of fates.

    Returns:
        numbers: (N, 6) int32: click, id, slice index, fate, from slice (-1 for none), reason; texts as indexes.
        places: (N, 5) float64: column, row, R, A, S.
        texts: every text once.
    """
    texts: dict[str, int] = {}
    numbers = np.empty((len(fates), 6), dtype="<i4")
    places = np.empty((len(fates), 5), dtype="<f8")
    for row, fate in enumerate(fates):
        name, what, why = (texts.setdefault(t, len(texts)) for t in (fate.click_id, fate.fate, fate.reason))
        origin = NOWHERE if fate.from_slice is None else fate.from_slice
        numbers[row] = (fate.click, name, fate.slice_index, what, origin, why)
        places[row] = (*fate.xy, *fate.position_ras)
    return numbers, places, tuple(texts)


def unpack_fates(numbers: np.ndarray, places: np.ndarray, texts: Sequence[str]) -> tuple[Fate, ...]:
    """Return the fates of columns, the inverse of :func:`pack_fates`.

    Raises:
        ContentError: columns of different lengths or a text that is not there.
    """
    check_fates(numbers, places, texts)
    return tuple(
        Fate(click, texts[name], t, texts[what], (x, y), (r, a, s), None if origin == NOWHERE else origin, texts[why])
        for (click, name, t, what, origin, why), (x, y, r, a, s) in zip(numbers.tolist(), places.tolist(), strict=True)
    )


def check_fates(numbers: np.ndarray, places: np.ndarray, texts: Sequence[str]) -> None:
    """Raise ContentError for columns of different lengths or a text that is not there."""
    if len(numbers) != len(places):
        raise ContentError("The columns of the fates differ in length.")
    if len(numbers) and not (numbers[:, [1, 3, 5]].min() >= 0 and numbers[:, [1, 3, 5]].max() < len(texts)):
        raise ContentError("A text of the fates is missing.")
