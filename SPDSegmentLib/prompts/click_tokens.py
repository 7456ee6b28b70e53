"""Clicks as the tokens of a slice: what a click-conditioned saliency is told (ours, docs/method.md).

A slice sees its own clicks, the nearest clicks before and after it on whatever slices they are, and, where it has none
of its own, one more token: between two clicked slices the linear interpolation of their mean clicks, beyond the
outermost the mean of the last. All functions are pure and loop over no slice; clicks are in network pixels,
(column, row).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from SPDSegmentLib.prompts.distillation import SlicePrompts
from SPDSegmentLib.prompts.saliency_maps import SliceClicks

OWN_TOKENS = 5
NEIGHBOR_TOKENS = 4
MILLIMETERS, SLICES = 10.0, 4.0
"""Distances of this size become 1 in a token's features."""
POSITIVE, PADDING = 1, -1
"""Labels of SAM's prompt encoder."""
_APART = 1 << 32  # keeps the slices of different runs apart


class TokenKind(IntEnum):
    """What a token is to the slice that sees it."""

    OWN = 0
    BEFORE = 1
    AFTER = 2
    INTERPOLATED = 3
    BEYOND = 4


@dataclass(frozen=True, eq=False)
class ClickTokens:
    """Tokens of M slices, K places each.

    Attributes:
        xy: (M, K, 2) float32, (column, row) in network pixels.
        kind: (M, K) int64, a :class:`TokenKind`.
        distance: (M, K, 4) float32: signed distance to the click's slice in cm and quarters of slices, then both
            without their sign.
        valid: (M, K) bool; the rest is padding.
        click: (M, K) int64, index of the click, -1 where the token is no click itself.
    """

    xy: np.ndarray
    kind: np.ndarray
    distance: np.ndarray
    valid: np.ndarray
    click: np.ndarray

    def __len__(self) -> int:
        return len(self.xy)

    def key(self, row: int) -> bytes:
        """Equal for two slices exactly if the network is told the same of them."""
        parts = (self.xy, self.kind, self.distance, self.valid)
        return b"".join(np.ascontiguousarray(part[row]).tobytes() for part in parts)

    def rows(self, rows: Sequence[int]) -> ClickTokens:
        """The tokens of some of the slices."""
        at = np.asarray(rows, dtype=np.int64)
        return ClickTokens(self.xy[at], self.kind[at], self.distance[at], self.valid[at], self.click[at])


def click_tokens(
    slices: np.ndarray | Sequence[int],
    clicks: SliceClicks,
    slice_mm: float | np.ndarray,
    neighbors: int = NEIGHBOR_TOKENS,
    interpolated: bool = True,
    runs: tuple[np.ndarray, np.ndarray] | None = None,
) -> ClickTokens:
    """Tokens of ``slices`` (M,).

    Args:
        slice_mm: distance of slices, one for all or (M,).
        neighbors: clicks that a slice sees on either side at most.
        interpolated: give slices without a click of their own the token between or beyond the clicks.
        runs: the run (M,) of each slice and the run (N,) of each click where several volumes are looked at in one go; a
            slice sees the clicks of its own run.
    """
    where = np.asarray(slices, dtype=np.int64)
    at = np.asarray(clicks.slice_index, dtype=np.int64)
    run, run_of_click = (np.zeros(len(where), int), np.zeros(len(at), int)) if runs is None else runs
    order = np.lexsort((at, run_of_click))
    at, group = at[order], np.asarray(run_of_click)[order]
    xy = np.asarray(clicks.xy, dtype=np.float64).reshape(-1, 2)[order]
    placed = group * _APART + at
    first, stop = (np.searchsorted(placed, run * _APART + where, side) for side in ("left", "right"))
    begin, end = (np.searchsorted(group, run, side) for side in ("left", "right"))

    count, places = (stop - first)[:, None], np.arange(OWN_TOKENS)
    spread = np.where(count > OWN_TOKENS, places * (count - 1) // (OWN_TOKENS - 1), places)
    own = np.where(places < count, first[:, None] + spread, -1)
    before = first[:, None] - 1 - np.arange(neighbors)
    after = stop[:, None] + np.arange(neighbors)
    before, after = np.where(before >= begin[:, None], before, -1), np.where(after < end[:, None], after, -1)
    row = np.concatenate((own, before, after), axis=1)
    kind = np.repeat([TokenKind.OWN, TokenKind.BEFORE, TokenKind.AFTER], [OWN_TOKENS, neighbors, neighbors])
    valid = row >= 0
    padded_xy, padded_at, padded_order = np.vstack((xy, np.zeros((1, 2)))), np.append(at, 0), np.append(order, -1)
    offset = (padded_at[row] - where[:, None]) * valid

    guess = _guess(where, _Clicked(at, group, xy), run, (first, stop, begin, end), interpolated)
    return ClickTokens(
        np.concatenate((guess.xy[:, None], padded_xy[row]), axis=1).astype(np.float32),
        np.concatenate((guess.kind[:, None], kind * valid), axis=1).astype(np.int64),
        distance_features(np.concatenate((guess.offset[:, None], offset), axis=1), slice_mm),
        np.concatenate((guess.valid[:, None], valid), axis=1),
        np.concatenate((np.full((len(where), 1), -1), padded_order[row]), axis=1),
    )


def tokens_of_prompts(
    prompts: Sequence[SlicePrompts], clicks: SliceClicks, slice_mm: float, places: int
) -> ClickTokens:
    """The consensus points of M slices as tokens of at most ``places`` each, for the decoder's second pass.

    A synthesized point is told as an interpolated one on its own slice.
    """
    used = np.arange(places) < np.array([len(p.points) for p in prompts])[:, None]
    xy, click = np.zeros((*used.shape, 2), np.float32), np.full(used.shape, -1)
    xy[used] = np.concatenate([p.points[:places] for p in prompts])
    click[used] = np.concatenate([p.sources[:places] for p in prompts])
    slices = np.array([p.slice_index for p in prompts])[:, None]
    real = click >= 0
    at = np.append(clicks.slice_index, 0)[click]
    offset = np.where(real, at - slices, 0).astype(np.int64)
    kind = np.select([offset < 0, offset > 0], [int(TokenKind.BEFORE), int(TokenKind.AFTER)], int(TokenKind.OWN))
    kind = np.where(real, kind, int(TokenKind.INTERPOLATED)) * used
    return ClickTokens(xy, kind.astype(np.int64), distance_features(offset, slice_mm), used, click)


def pad_points(points: Sequence[np.ndarray], length: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pad B lists of points (M_i, 2) to one length.

    Args:
        length: K; 0 takes the longest list. A fixed K makes a slice's result independent of the rest of its batch.

    Returns:
        Points (B, K, 2) float32 and labels (B, K) int64: 1 for a point of the target, -1 for padding.
    """
    length = max([length, 1, *(len(p) for p in points)])
    counts = np.array([len(p) for p in points], dtype=np.int64)
    used = np.arange(length) < counts[:, None]
    padded = np.zeros((len(points), length, 2), dtype=np.float32)
    if len(points):
        padded[used] = np.concatenate([np.reshape(p, (-1, 2)) for p in points])
    return padded, np.where(used, POSITIVE, PADDING).astype(np.int64)


def distance_features(offset_slices: np.ndarray, slice_mm: float | np.ndarray) -> np.ndarray:
    """Signed distances in slices (M, K) to the tokens' features (M, K, 4) float32; ``slice_mm`` for all or (M,)."""
    d = np.asarray(offset_slices, dtype=np.float32)
    mm, steps = d * (np.reshape(slice_mm, (-1, 1)) / MILLIMETERS), d / SLICES
    return np.stack((mm, steps, np.abs(mm), np.abs(steps)), axis=-1).astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Clicked:
    """Clicks sorted by run, then slice."""

    slice_index: np.ndarray
    run: np.ndarray
    xy: np.ndarray


@dataclass(frozen=True, eq=False)
class _Guess:
    """The token between or beyond the clicks of M slices."""

    xy: np.ndarray
    offset: np.ndarray
    kind: np.ndarray
    valid: np.ndarray


def _guess(
    where: np.ndarray, clicks: _Clicked, run: np.ndarray, bounds: tuple[np.ndarray, ...], wanted: bool
) -> _Guess:
    first, stop, begin, end = bounds
    m = len(where)
    guess = _Guess(np.zeros((m, 2)), np.zeros(m, np.int64), np.zeros(m, np.int64), np.zeros(m, bool))
    free = (first == stop) & (begin < end) & wanted
    if not free.any():
        return guess
    places, member = np.unique(clicks.run * _APART + clicks.slice_index, return_inverse=True)
    mean = np.stack([np.bincount(member, clicks.xy[:, d]) / np.bincount(member) for d in (0, 1)], axis=1)
    left, right = member[(first - 1).clip(0)], member[stop.clip(max=len(member) - 1)]
    has_left, has_right = first > begin, stop < end
    left, right = np.where(has_left, left, right), np.where(has_right, right, left)
    to_left, to_right = (places[side] - (run * _APART + where) for side in (left, right))
    between = has_left & has_right
    share = np.where(between, -to_left / np.maximum(to_right - to_left, 1), 0.0)[:, None]
    guess.xy[free] = ((1 - share) * mean[left] + share * mean[right])[free]
    guess.offset[free] = np.where(between, np.minimum(-to_left, to_right), -to_left)[free]
    guess.kind[free] = np.where(between, int(TokenKind.INTERPOLATED), int(TokenKind.BEYOND))[free]
    guess.valid[free] = True
    return guess
