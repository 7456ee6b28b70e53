"""Slices as text."""

from __future__ import annotations

from collections.abc import Iterable


def sliceRanges(slices: Iterable[int]) -> str:
    """Return ``3, 5-7`` for 3, 5, 6, 7."""
    ranges: list[list[int]] = []
    for t in sorted(set(slices)):
        if ranges and t == ranges[-1][1] + 1:
            ranges[-1][1] = t
        else:
            ranges.append([t, t])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
