"""From clicks to the prompts of every slice: SPD's consensus, and what it is compared with.

Slices whose consensus is empty abstain or get one synthesized point (our policy, always flagged).

A slice without any salient pixel abstains. Otherwise one point is put at the deepest place of a salient component:

- ``follow_components``: the component that connects with a supported slice through overlapping components, slice by
  slice, from either side; where nothing connects, between two supported slices the component nearest to the centerline
  through the supported points (``bridge_gaps``), beyond them none. A slice whose saliency stays below tau can still
  connect through its regions above ``follow_threshold``, a structure that moves aside from one slice to the next
  connects where the two are at most ``follow_jump`` apart, and beyond the outermost clicks and owned slices at most
  ``follow_beyond`` slices are followed.
- otherwise the component nearest to the centerline, however far the slice is from any click.

Where no click is supported in the whole volume, the salient object (components connected through the slices) with the
least mean distance to all clicks is the start from which components are followed; a click farther from it than a
quarter of the field of view counts as that far, and an object that far from every click is none. Slices that far from
every click, or more than ``follow_beyond`` past the outermost ones, are not looked at.

Where a click is supported, all of this depends only on the nearest supported slice on each side, so a changed click
reaches no farther than those.

Where a person has marked ends of the structure, slices past them are never prompted, whatever the strategy (ours).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np
from scipy.spatial import KDTree

from SPDSegmentLib.prompts.distillation import (
    STRATEGIES,
    Distillation,
    PromptConfig,
    SlicePrompts,
    consensus_of_slices,
    empty_prompts,
    fate_of,
    say_spared,
    supported_prompts,
    thin_out,
)
from SPDSegmentLib.prompts.fates import Fate, PointFate, SliceStatus
from SPDSegmentLib.prompts.saliency_maps import SaliencyMaps, SliceClicks, deepest_point, grown
from SPDSegmentLib.settings import check_choice

MIDDLE_REASON = "No click supports this slice; the point is the middle of what its saliency shows."
NEAREST_REASON = "No click is supported anywhere; this is the salient region nearest to the clicks. Please check."
FAR = 0.25
"""Share of the field of view beyond which a click's distance from an object does not matter."""
DISTILLATION_VERSION = 3
"""Raised when the same saliency and clicks give other consensus prompts, so that what rests on them is measured again.

2: where no click is supported, the start is the salient object nearest to all clicks, not the component nearest to one.
3: that object lies within ``follow_beyond``, and is what connects through slices near a click.
"""


def rests_on_distillation(strategy: str) -> bool:
    """Whether a prompt strategy takes CPD's prompts, so that its results belong to a ``DISTILLATION_VERSION``."""
    return strategy in ("consensus", "local")


def distill_prompts(
    saliency: SaliencyMaps,
    clicks: SliceClicks,
    config: PromptConfig,
    strategy: str = "consensus",
    owned: frozenset[int] = frozenset(),
    extent: range | None = None,
) -> Distillation:
    """Prompts for all slices of a volume.

    Args:
        clicks: none past a marked end.
        strategy: ``consensus`` (CPD), ``local`` (CPD without enrichment), ``raw`` (all clicks), ``interpolated`` (raw,
            and along the centerline in slices without a click between the first and the last), ``sampled`` (points
            from the saliency alone; clicks ignored).
        owned: slices whose map is a person's own mask; each supports its neighbors like a validated click.
        extent: slices that the structure may fill, see :meth:`Clicks.extent`; None for all.

    Raises:
        BadInput: unknown strategy.
    """
    check_choice(strategy, STRATEGIES, "prompt strategy")
    extent = range(saliency.n_slices) if extent is None else extent
    if strategy in ("raw", "interpolated"):
        return _raw(saliency, clicks, config, strategy == "interpolated")
    if strategy == "sampled":
        return _sampled(saliency, config, extent)
    if strategy == "local":
        config = dataclasses.replace(config, context_enrichment=False)
    supported, fates = consensus_of_slices(saliency, extent, clicks, config)
    for t in sorted(owned.intersection(extent) - supported.keys()):
        if saliency.is_salient(t):
            labels = range(1, int(saliency.components(t).max()) + 1)
            points = np.stack([saliency.deepest_point(t, label) for label in labels])
            supported[t] = SlicePrompts(t, points, np.full(len(points), -1), SliceStatus.SUPPORTED)
    others, synthesized = fill_unsupported(saliency, supported, clicks, config, owned, extent)
    prompts = supported | others
    nothing = (empty_prompts(t, SliceStatus.ABSTAINED) for t in range(saliency.n_slices))
    return Distillation(tuple(prompts.get(p.slice_index, p) for p in nothing), tuple(fates + synthesized))


def interpolate_clicks(clicks: SliceClicks) -> dict[int, np.ndarray]:
    """One point (1, 2) for each slice without a click between the first and the last, on the raw centerline.

    The centerline is linear between the mean clicks of the nearest slices with clicks.
    """
    slices = np.unique(clicks.slice_index)
    if len(slices) == 0:
        return {}
    centers = np.array([clicks.xy[clicks.on(int(t))].mean(axis=0) for t in slices])
    missing = np.setdiff1d(np.arange(slices[0], slices[-1] + 1), slices)
    columns, rows = (np.interp(missing, slices, centers[:, axis]) for axis in (0, 1))
    return {int(t): np.array([[c, r]]) for t, c, r in zip(missing, columns, rows, strict=True)}


def _raw(saliency: SaliencyMaps, clicks: SliceClicks, config: PromptConfig, interpolate: bool) -> Distillation:
    between = interpolate_clicks(clicks) if interpolate else {}
    slices: list[SlicePrompts] = []
    fates: list[PointFate] = []
    for t in range(saliency.n_slices):
        own = clicks.on(t)
        if len(own):
            slices.append(supported_prompts(saliency, t, clicks, own, config))
            used = [fate_of(clicks, p, t, Fate.KEPT, "Used as it is.") for p in own]
            fates += say_spared(used, slices[-1], config.max_points)
        elif t in between:
            slices.append(SlicePrompts(t, between[t], np.array([-1]), SliceStatus.SYNTHESIZED))
            fates.append(_synthesized_fate(slices[-1], "On the centerline."))
        else:
            slices.append(empty_prompts(t, SliceStatus.EMPTY))
    return Distillation(tuple(slices), tuple(fates))


def _sampled(saliency: SaliencyMaps, config: PromptConfig, extent: range) -> Distillation:
    """Farthest points of the salient region of each slice, whatever was clicked (docs/method.md, section 9)."""
    slices: list[SlicePrompts] = []
    fates: list[PointFate] = []
    for t in range(saliency.n_slices):
        rows, columns = np.nonzero(saliency.components(t)) if t in extent else ((), ())
        if len(rows) == 0:
            slices.append(empty_prompts(t, SliceStatus.EMPTY))
            continue
        step = max(1, len(rows) // 500)
        points = np.stack((columns, rows), axis=1)[::step].astype(float)
        kept = thin_out(points, saliency.at(t, points), config.min_distance_px, config.max_points or 10)
        slices.append(SlicePrompts(t, points[kept], np.full(len(kept), -1), SliceStatus.SYNTHESIZED))
        fates += [
            PointFate(-1, t, Fate.SYNTHESIZED, (float(x), float(y)), t, "From the saliency alone.")
            for x, y in points[kept]
        ]
    return Distillation(tuple(slices), tuple(fates))


def fill_unsupported(
    saliency: SaliencyMaps,
    supported: dict[int, SlicePrompts],
    clicks: SliceClicks,
    config: PromptConfig,
    owned: frozenset[int] = frozenset(),
    extent: range | None = None,
) -> tuple[dict[int, SlicePrompts], list[PointFate]]:
    """Prompts for every slice of ``extent``, by default all, that is not in ``supported``; fates of synthesized points.

    Args:
        owned: slices that count as clicked where they lead to others.
    """
    extent = range(saliency.n_slices) if extent is None else extent
    if not supported and config.unsupported == "synthesize":
        start = _nearest_start(saliency, clicks, config, extent)
        if start is not None:
            others, reasons = fill_unsupported(saliency, {start.slice_index: start}, clicks, config, extent=extent)
            return {**others, start.slice_index: start}, [_synthesized_fate(start, NEAREST_REASON), *reasons]
    salient = [t for t, of in supported.items() if saliency.component_at(t, of.points).any()]
    anchors = sorted(salient or supported)  # a slice whose clicks are believed against its saliency leads nowhere
    clicked = np.append(clicks.slice_index, sorted(owned & set(anchors))) if len(clicks) else clicks.slice_index
    prompts: dict[int, SlicePrompts] = {}
    fates: list[PointFate] = []
    for before, after in zip([None, *anchors], [*anchors, None], strict=True):
        first = extent.start if before is None else before + 1
        last = extent.stop if after is None else after
        if first == last:
            continue
        gap = range(first, last)
        sides = None if before is None else supported[before], None if after is None else supported[after]
        near = _near_clicks(clicked, gap, config.follow_beyond)
        anchored = (None if side is None else (side.slice_index, side.points.tobytes()) for side in sides)
        key = (config, gap, near, *anchored)
        middles = saliency.decide(
            "gap",
            first,
            key,
            range(first - 1, last + 1),
            functools.partial(_middles, saliency, sides, near, gap, config),
        )
        for t in gap:
            if t in supported:
                continue
            prompts[t] = middles.get(t) or empty_prompts(t, SliceStatus.ABSTAINED)
            if t in middles:
                fates.append(_synthesized_fate(prompts[t], MIDDLE_REASON))
    return prompts, fates


def _middles(
    saliency: SaliencyMaps,
    sides: tuple[SlicePrompts | None, SlicePrompts | None],
    near: range,
    gap: range,
    config: PromptConfig,
) -> dict[int, SlicePrompts]:
    """The prompts of those slices of a gap that get a synthesized point."""
    regions = _choose_regions(saliency, sides, near, gap, config)
    return {
        t: SlicePrompts(t, deepest_point(region)[None], np.array([-1]), SliceStatus.SYNTHESIZED)
        for t, region in regions.items()
    }


def _synthesized_fate(prompts: SlicePrompts, reason: str) -> PointFate:
    t, (column, row) = prompts.slice_index, prompts.points[0].tolist()
    return PointFate(-1, t, Fate.SYNTHESIZED, (column, row), t, reason)


def _nearest_start(
    saliency: SaliencyMaps, clicks: SliceClicks, config: PromptConfig, extent: range
) -> SlicePrompts | None:
    """A point in the salient object that lies nearest to the clicks as a whole, in its slice nearest to a click.

    Objects connect through slices; the distances are three-dimensional, so a speck that happens to lie beside one click
    loses against a structure that runs along all of them. Each counts at most :data:`FAR`, ``None`` where all are that.
    """
    if len(clicks) == 0:
        return None
    far = FAR * saliency.map(int(clicks.slice_index[0])).shape[0]
    reach = int(far / saliency.slice_px)
    first, last = int(clicks.slice_index.min()) - reach, int(clicks.slice_index.max()) + reach
    within = range(max(extent.start, first), min(extent.stop, last + 1))
    around = _near_clicks(clicks.slice_index, within, config.follow_beyond)
    scale = np.array([saliency.slice_px, 1.0, 1.0])
    where = np.column_stack((clicks.slice_index, clicks.xy[:, ::-1])) * scale
    best = far
    start: np.ndarray | None = None
    for pixels in saliency.objects(around):
        distance, nearest = KDTree(pixels * scale).query(where)
        mean = float(np.minimum(distance, far).mean())
        if mean < best:
            best, start = mean, pixels[nearest[np.argmin(distance)]]
    if start is None:
        return None
    t, row, column = (int(index) for index in start)
    label = int(saliency.components(t)[row, column])
    return SlicePrompts(t, saliency.deepest_point(t, label)[None], np.array([-1]), SliceStatus.SYNTHESIZED)


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
    sides: tuple[SlicePrompts | None, SlicePrompts | None],
    near: range,
    gap: range,
    config: PromptConfig,
) -> dict[int, np.ndarray]:
    """Salient region (S, S) for each slice of a gap between supported slices that gets a synthesized point."""
    left, right = sides
    if config.unsupported == "abstain" or (left is None and right is None):
        return {}
    chosen: dict[int, np.ndarray] = {}
    if config.follow_components:
        if right is not None:
            chosen |= follow(saliency, right, near[::-1], config)
        if left is not None:
            chosen = _nearer_side(chosen, follow(saliency, left, near, config), left, right)
    for t in gap:
        inside = left is not None and right is not None and config.bridge_gaps
        if t not in chosen and (inside or not config.follow_components) and saliency.is_salient(t):
            chosen[t] = saliency.components(t) == saliency.nearest_component(t, centerline_at(left, right, t))
    return chosen


def _near_clicks(clicked: np.ndarray, gap: range, beyond: int) -> range:
    """The part of a gap that lies at most ``beyond`` slices past the outermost clicked ones; all of it if negative."""
    if beyond < 0 or len(clicked) == 0:
        return gap
    first, last = int(clicked.min()) - beyond, int(clicked.max()) + beyond
    return range(max(gap.start, first), max(gap.start, min(gap.stop, last + 1)))


def follow(
    saliency: SaliencyMaps, anchor: SlicePrompts, slices: Iterable[int], config: PromptConfig
) -> dict[int, np.ndarray]:
    """Regions that connect with the anchor's, away from it, until none overlaps or lies within ``follow_jump``."""
    t0 = anchor.slice_index
    labels = saliency.component_at(t0, anchor.points)
    region = np.isin(saliency.components(t0), labels[labels > 0])
    chosen: dict[int, np.ndarray] = {}
    for t in slices:
        connected = saliency.connected_region(t, region, config.follow_threshold)
        if connected is None and config.follow_jump:
            around = grown(region, config.follow_jump * region.shape[0])
            connected = saliency.connected_region(t, around, config.follow_threshold)
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
