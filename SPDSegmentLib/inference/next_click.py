"""Where one more click would help most: where the decoder does not agree with itself, far from all clicks (ours).

Each slice is decoded with several prompts that the same clicks could as well have given: its own, moved a little, half
of them, and those of the prompted slices before and after it. Where these masks differ, a click decides. Only slices
whose embeddings are kept are looked at; nothing is encoded, and nothing is drawn at random.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.inference.results import Call
from SPDSegmentLib.inference.session import Session
from SPDSegmentLib.prompts.distillation import SlicePrompts
from SPDSegmentLib.prompts.fates import SliceStatus
from SPDSegmentLib.prompts.saliency_maps import deepest_point

JITTER = 0.03
"""How far prompts are moved, as a share of the field of view."""
MOST_SLICES = 48
"""So many slices are decoded with other prompts at most: those that are farthest from clicks and of least quality."""
AGREED = 0.02
"""Slices whose masks differ in no larger share of what any of them covers need no click."""


@dataclass(frozen=True)
class Suggestion:
    """A place where a person's word would help.

    Attributes:
        slice_index: position in the stack; xy: (column, row) in slice pixels.
        disagreement: share of what any of the masks covers that not all of them cover, 0 to 1.
        distance_mm: to the nearest click.
        score: area in dispute in mm2, weighed by the distance; suggestions come with the highest first.
    """

    slice_index: int
    xy: tuple[float, float]
    disagreement: float
    distance_mm: float
    score: float


@dataclass(frozen=True)
class Dispute:
    """What the masks of one slice show: pixels that not all cover, that any covers, and where a click would decide."""

    pixels: float
    covered: int
    xy: tuple[float, float]


def dispute_of(masks: np.ndarray) -> Dispute | None:
    """How far masks (V, H, W) of one slice differ; None where all are empty.

    A pixel that half of the masks cover counts whole, one that all or none cover not at all: 4 p (1 - p). The click
    belongs in the deepest place of what most of them cover, where that is nothing of what any covers.
    """
    share = masks.mean(axis=0)
    covered = share > 0
    if not covered.any():
        return None
    agreed = share > 0.5
    x, y = deepest_point(_largest(agreed if agreed.any() else covered)).tolist()
    return Dispute(float((4 * share * (1 - share)).sum()), int(covered.sum()), (x, y))


def rank(
    disputes: Mapping[int, Dispute],
    clicks: Clicks,
    pixel_mm: tuple[float, float],
    slice_mm: float,
    count: int = 1,
) -> list[Suggestion]:
    """The best places for ``count`` clicks at most; each counts as a click for the next.

    Args:
        disputes: of slices; clicks: those that there are, with those that were dismissed.
        pixel_mm: (row, column) spacing; slice_mm: distance of slices.
    """
    scale = np.array([slice_mm, pixel_mm[1], pixel_mm[0]])
    placed = np.column_stack((clicks.slice_index, clicks.xy)) * scale
    open_ = {t: d for t, d in disputes.items() if d.pixels > AGREED * d.covered}
    if not open_:
        return []
    pixel_mm2 = float(scale[1] * scale[2])
    near_mm = max(2 * slice_mm, float(np.sqrt(np.median([d.covered for d in open_.values()]) * pixel_mm2)))
    found: list[Suggestion] = []
    while open_ and len(found) < count:
        tree = KDTree(placed) if len(placed) else None
        best: Suggestion | None = None
        for t, dispute in sorted(open_.items()):
            place = np.array([t, *dispute.xy]) * scale
            distance = float(tree.query(place)[0]) if tree is not None else np.inf
            score = dispute.pixels * pixel_mm2 * (1 - float(np.exp(-distance / near_mm)))
            if best is None or score > best.score:
                best = Suggestion(t, dispute.xy, min(1.0, dispute.pixels / dispute.covered), distance, score)
        assert best is not None
        if best.score <= 0:
            break
        found.append(best)
        del open_[best.slice_index]
        placed = np.vstack((placed, np.array([best.slice_index, *best.xy]) * scale))
    return found


def perturbed(
    t: int, prompts: Mapping[int, SlicePrompts], anchors: Sequence[int], jitter_px: float
) -> Iterator[SlicePrompts]:
    """Other prompts that slice t could have: its own moved, half of its own, and those of the prompted slices around.

    Args:
        prompts: of the slices ``anchors``, ascending, that have any.
    """
    own = prompts.get(t)
    if own is not None and len(own.points):
        for direction in ((jitter_px, jitter_px), (-jitter_px, -jitter_px)):
            yield dataclasses.replace(own, points=own.points + direction)
        if len(own.points) > 1:
            yield dataclasses.replace(own, points=own.points[::2], sources=own.sources[::2])
    at = int(np.searchsorted(anchors, t))
    for side in (at - 1, at + (at < len(anchors) and anchors[at] == t)):
        if 0 <= side < len(anchors):
            yield dataclasses.replace(prompts[anchors[side]], slice_index=t)


def suggest(session: Session, clicks: Clicks, count: int = 1, call: Call | None = None) -> list[Suggestion]:
    """Where ``count`` more clicks would help most, the best first; none where all masks agree.

    Args:
        session: what has been segmented with these clicks; slices that a person owns need none.
        clicks: in the stack's pixels, with the places where a person wants none.

    Raises:
        Cancelled: between two batches.
    """
    call = call or Call()
    decided = session.decided
    prompts = {t: p for t, (p, _) in decided.items() if len(p.points)}
    anchors, stack = sorted(prompts), session.stack
    if not anchors:
        return []
    kept = session.features.cached_slices()
    candidates = [t for t in sorted(kept) if t not in decided or decided[t][1].status is not SliceStatus.LOCKED]
    inside = clicks.inside()
    away = np.abs(np.subtract.outer(np.array(candidates, dtype=int), inside.slice_index)).min(axis=1, initial=10**6)
    doubt = np.array([1 - decided[t][1].quality if t in decided else 1.0 for t in candidates])
    order = np.argsort(-doubt * (away + 1), kind="stable")[:MOST_SLICES]
    jitter_px = JITTER * session.features.window.size
    asked = [p for n in np.sort(order) for p in perturbed(candidates[int(n)], prompts, anchors, jitter_px)]
    masks: dict[int, list[np.ndarray]] = {}
    call.expect("decoding", len(asked))

    def decode(batch: Sequence[SlicePrompts]) -> None:
        call.check()
        found, _ = session.features.masks(batch, call).arrays()
        for p, mask in zip(batch, found, strict=True):
            masks.setdefault(p.slice_index, []).append(mask)
        call.decoded(len(batch))

    session.predictor.engine.with_smaller_batches(asked, decode, 2)
    nothing = np.zeros(stack.shape[1:], dtype=bool)
    disputes: dict[int, Dispute] = {}
    for t, others in masks.items():
        own = decided[t][1].mask if t in decided else nothing
        dispute = dispute_of(np.stack([own, *others]))
        if dispute is not None:
            disputes[t] = dispute
    return rank(disputes, inside, stack.pixel_mm, stack.slice_mm, count)


def _largest(region: np.ndarray) -> np.ndarray:
    """The largest connected piece of a region (H, W)."""
    labels, count = ndimage.label(region)
    if count < 2:
        return region
    largest: np.ndarray = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return largest
