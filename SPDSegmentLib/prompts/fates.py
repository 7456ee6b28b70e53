"""What became of clicks and slices: the rules that panel, batch and report share; no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

KEPT = "kept"
INSISTED = "insisted"
REJECTED = "rejected_own_slice"
BORROWED = "borrowed"
SYNTHESIZED = "synthesized"
OUTSIDE = "outside"
ABSTAINED = "abstained"
EMPTY = "empty"
DOUBTFUL_BELOW = 0.7
"""Predicted IoU below which a person should look at a slice."""
_RANK = {INSISTED: 4, KEPT: 3, BORROWED: 2, REJECTED: 1, OUTSIDE: 0}


class Decision(Protocol):
    """One decision about one point on one slice; ``click`` is negative for a synthesized point."""

    @property
    def click(self) -> int:
        """Number of the click."""

    @property
    def click_id(self) -> str:
        """Control point id."""

    @property
    def fate(self) -> str:
        """What was decided."""


D = TypeVar("D", bound=Decision)


def best_fates(decisions: Iterable[D]) -> list[D]:
    """One decision for each click, of several samples of a curve point the best, and one for each synthesized point.

    A click counts as ``borrowed`` where its own slice rejected it and another slice took it.
    """
    best: dict[str, D] = {}
    synthesized: list[D] = []
    for decision in decisions:
        if decision.click < 0:
            synthesized.append(decision)
        elif decision.fate in _RANK:
            known = best.get(decision.click_id)
            if known is None or _RANK[decision.fate] > _RANK[known.fate]:
                best[decision.click_id] = decision
    return [*best.values(), *synthesized]


def is_doubtful(status: str, quality: float | None) -> bool:
    """Whether a person should look at a slice: no click supports it, or its predicted quality is low."""
    return status == ABSTAINED or (status != EMPTY and quality is not None and quality < DOUBTFUL_BELOW)
