"""What became of clicks and slices: the one vocabulary from CPD over the wire to report, table and panel; no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

DOUBTFUL_BELOW = 0.7
"""Predicted IoU below which a person should look at a slice."""
UNKNOWN = float("nan")


class Fate(StrEnum):
    """What was decided about one point in one slice."""

    KEPT = "kept"
    INSISTED = "insisted"
    REJECTED_OWN_SLICE = "rejected_own_slice"
    REJECTED_NEIGHBOR = "rejected_neighbor"
    BORROWED = "borrowed"
    SYNTHESIZED = "synthesized"
    OUTSIDE = "outside"


class SliceStatus(StrEnum):
    """What a slice's mask rests on.

    ``ABSTAINED``: salient or not, nothing vouches for it; ``LOCKED``: a person's own; ``SALIENCY``: S > tau, a control.
    """

    SUPPORTED = "supported"
    SYNTHESIZED = "synthesized"
    ABSTAINED = "abstained"
    EMPTY = "empty"
    LOCKED = "locked"
    SALIENCY = "saliency"


@dataclass(frozen=True)
class PointFate:
    """What became of one point in one slice.

    Attributes:
        click: index of the click among those given, -1 for a synthesized point.
        slice_index: the slice that the decision is about.
        xy: (column, row), of CPD in network pixels, of the predictor in the slice's own; unknown beyond the worker.
        from_slice: the slice that the click was made on; -1, unknown, beyond the worker.
        reason: short English text for the user, may be empty.
        click_id: control point id; empty for a synthesized point, and before the predictor names it.
        position_ras: the place in mm, unknown before the worker.
    """

    click: int
    slice_index: int
    fate: Fate
    xy: tuple[float, float] = (UNKNOWN, UNKNOWN)
    from_slice: int = -1
    reason: str = ""
    click_id: str = ""
    position_ras: tuple[float, float, float] = (UNKNOWN, UNKNOWN, UNKNOWN)

    @property
    def is_own(self) -> bool:
        """Whether a click is judged by its own slice, or lies outside."""
        return self.click >= 0 and (self.fate is Fate.OUTSIDE or self.slice_index == self.from_slice)


_RANK = {Fate.INSISTED: 4, Fate.KEPT: 3, Fate.BORROWED: 2, Fate.REJECTED_OWN_SLICE: 1, Fate.OUTSIDE: 0}


def best_fates(fates: Iterable[PointFate]) -> list[PointFate]:
    """One fate for each click, of several samples of a curve point the best, and one for each synthesized point.

    A click counts as ``BORROWED`` where its own slice rejected it and another slice took it.
    """
    best: dict[str, PointFate] = {}
    synthesized: list[PointFate] = []
    for fate in fates:
        if fate.click < 0:
            synthesized.append(fate)
        elif fate.fate in _RANK:
            known = best.get(fate.click_id)
            if known is None or _RANK[fate.fate] > _RANK[known.fate]:
                best[fate.click_id] = fate
    return [*best.values(), *synthesized]


def is_doubtful(status: SliceStatus, quality: float | None) -> bool:
    """Whether a person should look at a slice: no click supports it, or its predicted quality is low."""
    low = status is not SliceStatus.EMPTY and quality is not None and quality < DOUBTFUL_BELOW
    return low or status is SliceStatus.ABSTAINED
