"""From the worker's decisions about every point on every slice to one line for each click."""

from __future__ import annotations

from collections.abc import Iterable

from SPDSegmentLib.worker.messages import Fate

from .write_record import OUTSIDE, PointFate

KEPT = "kept"
REJECTED = "rejected_own_slice"
BORROWED = "borrowed"
SYNTHESIZED = "synthesized"
_RANK = {KEPT: 3, BORROWED: 2, REJECTED: 1, OUTSIDE: 0}

COLORS = {
    KEPT: (0.20, 0.72, 0.35),
    BORROWED: (0.20, 0.55, 0.95),
    REJECTED: (0.90, 0.25, 0.20),
    SYNTHESIZED: (0.80, 0.45, 0.90),
    OUTSIDE: (0.55, 0.55, 0.55),
}


def clickFates(fates: Iterable[Fate]) -> list[PointFate]:
    """Return one fate for each click, of several samples of a curve point the best, and one for each synthesized point.

    A click counts as ``borrowed`` where its own slice rejected it and another slice took it.
    """
    best: dict[str, PointFate] = {}
    synthesized: list[PointFate] = []
    for fate in fates:
        line = PointFate(fate.click_id, fate.fate, fate.slice_index, fate.position_ras, fate.reason)
        if fate.click < 0:
            synthesized.append(line)
        elif fate.fate in _RANK:
            known = best.get(fate.click_id)
            if known is None or _RANK[line.fate] > _RANK[known.fate]:
                best[fate.click_id] = line
    return [*best.values(), *synthesized]
