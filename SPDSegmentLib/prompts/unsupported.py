"""Slices whose consensus is empty: abstain, or synthesize one point (our policy, always flagged).

A slice without any salient pixel abstains. Otherwise one point is put at the deepest place of a salient component:

- ``follow_components``: the component that connects with a supported slice through overlapping components, slice by
  slice, from either side; where nothing connects, between two supported slices the component nearest to the centerline
  through the supported points (``bridge_gaps``), beyond them none. A slice whose saliency stays below tau can still
  connect through its regions above ``follow_threshold``, and beyond the outermost clicks at most ``follow_beyond``
  slices are followed.
- otherwise the component nearest to the centerline, however far the slice is from any click.

Where no click is supported in the whole volume, the salient object (components connected through the slices) with the
least mean distance to all clicks is the start from which components are followed; a click farther from it than a
quarter of the field of view counts as that far, and an object that far from every click is none.

Where a click is supported, all of this depends only on the nearest supported slice on each side, so a changed click
reaches no farther than those.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import KDTree

from SPDSegmentLib.prompts.config import PromptConfig
from SPDSegmentLib.prompts.distillation import ABSTAINED, SYNTHESIZED, PointFate, SlicePrompts, empty_prompts
from SPDSegmentLib.prompts.saliency_maps import SaliencyMaps, SliceClicks, deepest_point

MIDDLE_REASON = "No click supports this slice; the point is the middle of what its saliency shows."
NEAREST_REASON = "No click is supported anywhere; this is the salient region nearest to the clicks. Please check."
FAR = 0.25
"""Share of the field of view beyond which a click's distance from an object does not matter."""


def fill_unsupported(
    saliency: SaliencyMaps, supported: dict[int, SlicePrompts], clicks: SliceClicks, config: PromptConfig
) -> tuple[dict[int, SlicePrompts], list[PointFate]]:
    """Prompts for every slice that is not in ``supported``, and the fates of synthesized points."""
    if not supported and config.unsupported == "synthesize":
        start = _nearest_start(saliency, clicks)
        if start is not None:
            others, reasons = fill_unsupported(saliency, {start.slice_index: start}, clicks, config)
            return {**others, start.slice_index: start}, [_synthesized_fate(start, NEAREST_REASON), *reasons]
    anchors = sorted(supported)
    prompts: dict[int, SlicePrompts] = {}
    fates: list[PointFate] = []
    for before, after in zip([None, *anchors], [*anchors, None], strict=True):
        first = 0 if before is None else before + 1
        last = saliency.n_slices if after is None else after
        chosen = _choose_regions(saliency, supported, clicks, (before, after), range(first, last), config)
        for t in range(first, last):
            if t not in chosen:
                prompts[t] = empty_prompts(t, ABSTAINED)
                continue
            prompts[t] = SlicePrompts(t, deepest_point(chosen[t])[None], np.array([-1]), SYNTHESIZED)
            fates.append(_synthesized_fate(prompts[t], MIDDLE_REASON))
    return prompts, fates


def _synthesized_fate(prompts: SlicePrompts, reason: str) -> PointFate:
    column, row = prompts.points[0]
    return PointFate(-1, prompts.slice_index, SYNTHESIZED, (float(column), float(row)), prompts.slice_index, reason)


def _nearest_start(saliency: SaliencyMaps, clicks: SliceClicks) -> SlicePrompts | None:
    """A point in the salient object that lies nearest to the clicks as a whole, in its slice nearest to a click.

    Objects connect through slices; the distances are three-dimensional, so a speck that happens to lie beside one click
    loses against a structure that runs along all of them. Each counts at most :data:`FAR`, ``None`` where all are that.
    """
    if len(clicks) == 0:
        return None
    scale = np.array([saliency.slice_px, 1.0, 1.0])
    where = np.column_stack((clicks.slice_index, clicks.xy[:, ::-1])) * scale
    far = FAR * saliency.map(0).shape[0]
    best = far
    start: np.ndarray | None = None
    for pixels in saliency.objects():
        distance, nearest = KDTree(pixels * scale).query(where)
        mean = float(np.minimum(distance, far).mean())
        if mean < best:
            best, start = mean, pixels[nearest[np.argmin(distance)]]
    if start is None:
        return None
    t, row, column = (int(index) for index in start)
    label = int(saliency.components(t)[row, column])
    return SlicePrompts(t, saliency.deepest_point(t, label)[None], np.array([-1]), SYNTHESIZED)


def centerline_at(before: SlicePrompts | None, after: SlicePrompts | None, t: int) -> np.ndarray:
    """(column, row) of the centerline in slice t, linear between the mean points of the supported slices around it."""
    if before is None or after is None:
        nearest = after if before is None else before
        assert nearest is not None
        return np.asarray(nearest.points.mean(axis=0))
    share = (t - before.slice_index) / (after.slice_index - before.slice_index)
    place: np.ndarray = (1 - share) * before.points.mean(axis=0) + share * after.points.mean(axis=0)
    return place


def _choose_regions(
    saliency: SaliencyMaps,
    supported: dict[int, SlicePrompts],
    clicks: SliceClicks,
    sides: tuple[int | None, int | None],
    gap: range,
    config: PromptConfig,
) -> dict[int, np.ndarray]:
    """Salient region (S, S) for each slice of a gap between supported slices that gets a synthesized point."""
    left, right = (None if side is None else supported[side] for side in sides)
    if config.unsupported == "abstain" or (left is None and right is None):
        return {}
    chosen: dict[int, np.ndarray] = {}
    if config.follow_components:
        near = _near_clicks(clicks, gap, config.follow_beyond)
        if right is not None:
            chosen |= _follow(saliency, right, [t for t in reversed(gap) if t in near], config)
        if left is not None:
            chosen = _nearer_side(chosen, _follow(saliency, left, [t for t in gap if t in near], config), left, right)
    for t in gap:
        inside = left is not None and right is not None and config.bridge_gaps
        if t not in chosen and (inside or not config.follow_components) and saliency.is_salient(t):
            chosen[t] = saliency.components(t) == saliency.nearest_component(t, centerline_at(left, right, t))
    return chosen


def _near_clicks(clicks: SliceClicks, gap: range, beyond: int) -> range:
    """The part of a gap that lies at most ``beyond`` slices past the outermost clicks; all of it if negative."""
    if beyond < 0 or len(clicks) == 0:
        return gap
    first, last = int(clicks.slice_index.min()) - beyond, int(clicks.slice_index.max()) + beyond
    return range(max(gap.start, first), max(gap.start, min(gap.stop, last + 1)))


def _follow(
    saliency: SaliencyMaps, anchor: SlicePrompts, slices: list[int], config: PromptConfig
) -> dict[int, np.ndarray]:
    """Regions that connect with the anchor's, away from it, until none overlaps."""
    t0 = anchor.slice_index
    labels = saliency.component_at(t0, anchor.points)
    region = np.isin(saliency.components(t0), labels[labels > 0])
    chosen: dict[int, np.ndarray] = {}
    for t in slices:
        connected = saliency.connected_region(t, region, config.follow_threshold)
        if connected is None:
            break
        chosen[t] = region = connected
    return chosen


def _nearer_side(
    from_right: dict[int, np.ndarray],
    from_left: dict[int, np.ndarray],
    left: SlicePrompts,
    right: SlicePrompts | None,
) -> dict[int, np.ndarray]:
    """Union of two sets of choices; where both have one, that of the nearer supported slice."""
    chosen = dict(from_right)
    for t, region in from_left.items():
        nearer = right is None or t - left.slice_index <= right.slice_index - t
        if t not in chosen or nearer:
            chosen[t] = region
    return chosen
