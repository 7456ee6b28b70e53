"""Where one more click would help most: in slices that stayed empty, then where the decoder disagrees (ours).

**Empty slices.** Between filled slices a slice without a mask is a gap. Beyond them the structure may go on: surely as
far as saliency that is known connects with it, and farther the less likely; of K clicks spread at random over a
structure, as much is expected beyond the last as lies between two. The click belongs in the middle of the longest run.

**Filled slices** are decoded with several prompts that the same clicks could as well have given: their own, moved a
little, half of them, and those of the prompted slices before and after. Where these masks differ, a click decides.

Only embeddings and saliency that are kept are looked at; nothing is encoded, and nothing is drawn at random.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.inference.results import Call
from SPDSegmentLib.inference.session import Session
from SPDSegmentLib.prompts.distillation import SlicePrompts
from SPDSegmentLib.prompts.fates import SliceStatus
from SPDSegmentLib.prompts.saliency_maps import SaliencyMaps, deepest_point
from SPDSegmentLib.prompts.strategies import follow

JITTER = 0.03
"""How far prompts are moved, as a share of the field of view."""
MOST_SLICES = 48
"""So many slices are decoded with other prompts at most: those that are farthest from clicks and of least quality."""
AGREED = 0.02
"""Slices whose masks differ in no larger share of what any of them covers need no click."""
CONNECTED, SILENT = 0.5, 0.25
"""A slice beyond the end counts for so many where its saliency connects; so much is expected where it does not."""
LEAST_GAIN = 1.0
"""Empty slices from which fewer slices are expected to be gained are not asked about."""
NEAR = 0.1
"""Salient regions within this share of the field of view draw the suggested place to their middle."""


@dataclass(frozen=True)
class Suggestion:
    """A place where a person's word would help.

    Attributes:
        slice_index: position in the stack; xy: (column, row) in slice pixels.
        disagreement: share of what any of the masks covers that not all of them cover, 0 to 1; -1 in an empty slice.
        distance_mm: to the nearest click.
        score: slices that may be gained in an empty slice, otherwise the area in dispute in mm2, weighed by quality and
            distance. Empty slices come first; within either kind the highest score.
    """

    slice_index: int
    xy: tuple[float, float]
    disagreement: float
    distance_mm: float
    score: float


@dataclass(frozen=True)
class Dispute:
    """What the masks of one slice show: pixels that not all cover, that any covers, and where a click would decide.

    ``doubt`` is 1 less the predicted quality.
    """

    pixels: float
    covered: int
    xy: tuple[float, float]
    doubt: float = 1.0


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
            score = dispute.doubt * dispute.pixels * pixel_mm2 * (1 - float(np.exp(-distance / near_mm)))
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
    """Where ``count`` more clicks would help most, the best first; none where nothing is empty and all masks agree.

    Args:
        session: what has been segmented with these clicks; slices that a person owns need none.
        clicks: in the stack's pixels, with the places where a person wants none.

    Raises:
        Cancelled: between two batches.
    """
    call = call or Call()
    decided = session.decided
    if not decided:
        return []
    inside = clicks.only(clicks.within(session.extent))
    found = in_empty_slices(session, inside, count, call)
    prompts = {t: p for t, (p, _) in decided.items() if len(p.points)}
    anchors, stack = sorted(prompts), session.stack
    if len(found) == count or not anchors:
        return found
    kept = session.features.cached_slices().intersection(session.extent)
    candidates = [t for t in sorted(kept) if t not in decided or decided[t][1].status is not SliceStatus.LOCKED]
    away = np.abs(np.subtract.outer(np.array(candidates, dtype=int), inside.slice_index)).min(axis=1, initial=10**6)
    doubts = {t: 1 - (decided[t][1].quality or 0.0) if t in decided else 1.0 for t in candidates}
    doubt = np.array(list(doubts.values()))
    order = np.argsort(-doubt * (away + 1), kind="stable")[:MOST_SLICES]
    jitter_px = JITTER * session.features.window.size
    asked = [p for n in np.sort(order) for p in perturbed(candidates[int(n)], prompts, anchors, jitter_px)]
    masks: dict[int, list[np.ndarray]] = {}
    call.expect("decoding", len(asked))

    def decode(batch: Sequence[SlicePrompts]) -> None:
        call.check()
        found, _ = session.features.masks(batch, session.predictor.prompts.max_points, call).arrays()
        for p, mask in zip(batch, found, strict=True):
            masks.setdefault(p.slice_index, []).append(mask)
        call.advance("decoding", len(batch))

    session.predictor.engine.with_smaller_batches(asked, decode, 2)
    nothing = np.zeros(stack.shape[1:], dtype=bool)
    disputes: dict[int, Dispute] = {}
    offered = {s.slice_index for s in found}
    for t, others in masks.items():
        own = decided[t][1].mask if t in decided else nothing
        dispute = dispute_of(np.stack([own, *others]))
        if dispute is not None and t not in offered:
            disputes[t] = dataclasses.replace(dispute, doubt=doubts[t])
    return found + rank(disputes, inside, stack.pixel_mm, stack.slice_mm, count - len(found))


def in_empty_slices(session: Session, clicks: Clicks, count: int, call: Call) -> list[Suggestion]:
    """Places for ``count`` clicks at most in slices without a mask, those from which most slices may be gained first.

    Args:
        clicks: those inside the volume; see :func:`suggest`.
    """
    decided, stack, window = session.decided, session.stack, session.features.window
    asked, known = set(clicks.slice_index.tolist()), session.features.known_slices()
    owned = {t: result.mask for t, (_, result) in decided.items() if result.status is SliceStatus.LOCKED}
    filled = {t for t, (_, result) in decided.items() if result.pixels}
    line = {t: deepest_point(_largest(decided[t][1].mask)) for t in filled}
    if not filled:  # the clicks are all that there is to go by
        line = {t: clicks.xy[clicks.slice_index == t].mean(axis=0) for t in asked}
    if not line:
        return []
    maps = session.features.maps(session.predictor.prompts.threshold, owned, lambda: call)
    likely, regions = _going_on(session, maps, min(line), max(line), asked, with_regions=bool(filled))

    def place_in(t: int) -> np.ndarray:
        """(column, row) on the interpolated line, drawn to a salient region near it."""
        if t in regions:
            return window.to_slice(deepest_point(regions[t]))
        slices = sorted(line)
        xy = np.array([np.interp(t, slices, [line[s][axis] for s in slices]) for axis in (0, 1)])
        if t in known and maps.is_salient(t):
            place = window.to_input(xy)
            middle = maps.deepest_point(t, maps.nearest_component(t, place))
            if np.linalg.norm(middle - place) <= NEAR * window.size:
                return window.to_slice(middle)
        return xy

    scale = np.array([stack.slice_mm, stack.pixel_mm[1], stack.pixel_mm[0]])
    placed = np.column_stack((clicks.slice_index, clicks.xy)) * scale
    found: list[Suggestion] = []
    while len(found) < count:
        borders = np.array(sorted(filled | asked))
        free = [t for t in sorted(likely) if t in session.extent and not (t in filled or t in asked or t in owned)]
        gains = [likely[t] * np.abs(borders - t).min() for t in free]
        if not gains or max(gains) < LEAST_GAIN:
            break
        t = free[int(np.argmax(gains))]
        column, row = place_in(t).tolist()
        away = np.linalg.norm(placed - np.array([t, column, row]) * scale, axis=1)
        found.append(Suggestion(t, (column, row), -1.0, float(away.min(initial=np.inf)), max(gains)))
        asked.add(t)
    return found


def _going_on(
    session: Session, maps: SaliencyMaps, first: int, last: int, asked: Collection[int], *, with_regions: bool
) -> tuple[dict[int, float], dict[int, np.ndarray]]:
    """How likely the structure is in each slice, and its salient regions (S, S) before ``first`` and after ``last``.

    Args:
        asked: slices that were clicked in.
        with_regions: follow the saliency beyond the ends, from the masks that there are.
    """
    decided, known = session.decided, session.features.known_slices()
    recognized = any(result.status is SliceStatus.SUPPORTED for _, result in decided.values())
    usual = max(1.0, (max(asked) - min(asked)) / max(1, len(asked) - 1)) if asked else 1.0
    likely = dict.fromkeys(range(first, last + 1), 1.0)
    regions: dict[int, np.ndarray] = {}
    for end, beyond in ((first, range(first)[::-1]), (last, range(last + 1, session.stack.n_slices))):
        seen = list(itertools.takewhile(known.__contains__, beyond))
        chain = follow(maps, decided[end][0], seen, session.predictor.prompts) if with_regions else {}
        regions |= chain
        pace = SILENT if recognized and len(chain) < len(seen) else 1.0
        far = [CONNECTED * min(k, len(chain)) + max(0, k - len(chain)) / pace for k in range(1, len(beyond) + 1)]
        going_on = np.exp(-np.array(far) / usual)
        empty = next((k for k, t in enumerate(beyond) if t in asked), None)
        if empty is not None:  # where a click did not fill its slice the structure may have ended before
            share = going_on[empty]
            going_on[: empty + 1] = (going_on[: empty + 1] - share) / (1 - share)
        likely |= zip(beyond, going_on.tolist(), strict=True)
    return likely, regions


def _largest(region: np.ndarray) -> np.ndarray:
    """The largest connected piece of a region (H, W)."""
    labels, count = ndimage.label(region)
    if count < 2:
        return region
    largest: np.ndarray = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return largest
