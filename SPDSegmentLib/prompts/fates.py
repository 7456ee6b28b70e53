"""What became of clicks and slices: the one vocabulary from CPD over the wire to report, table and panel; no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
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
    PAST_END = "past_end"
    OUTSIDE = "outside"


@dataclass(frozen=True)
class FateSign:
    """How a fate looks to people, in the views, the panel's table and the preview picture alike.

    Attributes:
        words: what became of the point, for somebody who does not know the method.
        color: (red, green, blue) in [0, 1], told apart by the color-blind as well (Okabe and Ito, 2008).
        shape: circle, square, triangle, diamond or cross; no two fates share both shape and color.
        character: the shape in text.
    """

    words: str
    color: tuple[float, float, float]
    shape: str
    character: str


SIGNS = {
    Fate.KEPT: FateSign("used", (0.0, 0.62, 0.45), "circle", "\u25cb"),
    Fate.INSISTED: FateSign("used, you insist", (0.0, 0.62, 0.45), "square", "\u25a1"),
    Fate.BORROWED: FateSign("borrowed", (0.34, 0.71, 0.91), "triangle", "\u25b3"),
    Fate.SYNTHESIZED: FateSign("added by the model", (0.9, 0.62, 0.0), "diamond", "\u25c7"),
    Fate.REJECTED_OWN_SLICE: FateSign("not used", (0.84, 0.37, 0.0), "cross", "\u2715"),
    Fate.PAST_END: FateSign("past the end", (0.8, 0.47, 0.65), "cross", "\u2715"),
    Fate.OUTSIDE: FateSign("outside the volume", (0.6, 0.6, 0.6), "cross", "\u2715"),
}


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
        """Whether a click is judged by its own slice, or lies outside or past an end."""
        return self.click >= 0 and (self.fate is Fate.OUTSIDE or self.slice_index == self.from_slice)


_ORDER = (Fate.OUTSIDE, Fate.PAST_END, Fate.REJECTED_OWN_SLICE, Fate.BORROWED, Fate.KEPT, Fate.INSISTED)
_RANK = {fate: rank for rank, fate in enumerate(_ORDER)}


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


GAP, END, LOW_QUALITY = "gap", "end", "low quality"


@dataclass(frozen=True)
class Review:
    """Where a person should look.

    Attributes:
        span: from the first slice of the structure to the last one, clicks that prompt their own slice included.
        doubtful: why, by slice: ``GAP`` where the structure is interrupted, ``END`` where it stops before a click that
            was used, ``LOW_QUALITY``.
        stray: slices of the clicks that were not used and that lie beyond the structure.
    """

    span: range
    doubtful: dict[int, str]
    stray: list[int]


def review(
    slices: Mapping[int, tuple[SliceStatus, float | None]],
    clicks: Iterable[tuple[int, Fate]],
    edited: Collection[int] = (),
) -> Review:
    """Return where a person should look; slices that are rightly empty, beyond the structure, are left out.

    Args:
        slices: status and predicted IoU, by slice.
        clicks: slice and fate of each click.
        edited: slices that a person drew; they need no look.
    """
    placed = [(t, fate) for t, fate in clicks if fate not in (Fate.OUTSIDE, Fate.PAST_END)]
    filled = {
        t
        for t, (status, quality) in slices.items()
        if status not in (SliceStatus.ABSTAINED, SliceStatus.EMPTY) and quality != 0
    }
    filled |= set(edited)
    used = {t for t, fate in placed if fate in (Fate.KEPT, Fate.INSISTED)} if filled else {t for t, _ in placed}
    inside = filled | used
    span = range(min(inside), max(inside) + 1) if inside else range(0)
    doubtful = {}
    for t in span:
        if t in edited or t not in slices:
            continue
        quality = slices[t][1]
        if t not in filled:
            doubtful[t] = GAP if filled and min(filled) < t < max(filled) else END
        elif quality is not None and quality < DOUBTFUL_BELOW:
            doubtful[t] = LOW_QUALITY
    return Review(span, doubtful, sorted(t for t, fate in placed if fate is Fate.REJECTED_OWN_SLICE and t not in span))
