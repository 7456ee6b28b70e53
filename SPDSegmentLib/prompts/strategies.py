"""From clicks to the prompts of every slice: SPD's consensus, and what it is compared with."""

from __future__ import annotations

import dataclasses

import numpy as np

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.prompts.config import STRATEGIES, PromptConfig
from SPDSegmentLib.prompts.distillation import (
    EMPTY,
    KEPT,
    SUPPORTED,
    SYNTHESIZED,
    Distillation,
    PointFate,
    SlicePrompts,
    consensus_of_slices,
    empty_prompts,
    supported_prompts,
    thin_out,
)
from SPDSegmentLib.prompts.saliency_maps import SaliencyMaps, SliceClicks
from SPDSegmentLib.prompts.unsupported import fill_unsupported

DISTILLATION_VERSION = 2
"""Raised when the same saliency and clicks give other consensus prompts, so that what rests on them is measured again.

2: where no click is supported, the start is the salient object nearest to all clicks, not the component nearest to one.
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
) -> Distillation:
    """Prompts for all slices of a volume.

    Args:
        strategy: ``consensus`` (CPD), ``local`` (CPD without enrichment), ``raw`` (all clicks), ``interpolated`` (raw,
            and along the centerline in slices without a click between the first and the last), ``sampled`` (points
            from the saliency alone; clicks ignored).
        owned: slices whose map is a person's own mask; each supports its neighbors like a validated click.

    Raises:
        BadInput: unknown strategy.
    """
    if strategy not in STRATEGIES:
        raise BadInput(f"Unknown prompt strategy '{strategy}'.", f"Choose one of {', '.join(STRATEGIES)}.")
    if strategy in ("raw", "interpolated"):
        return _raw(saliency, clicks, config, strategy == "interpolated")
    if strategy == "sampled":
        return _sampled(saliency, config)
    if strategy == "local":
        config = dataclasses.replace(config, context_enrichment=False)
    supported, fates = consensus_of_slices(saliency, range(saliency.n_slices), clicks, config)
    for t in sorted(owned - supported.keys()):
        if saliency.is_salient(t):
            labels = range(1, int(saliency.components(t).max()) + 1)
            points = np.stack([saliency.deepest_point(t, label) for label in labels])
            supported[t] = SlicePrompts(t, points, np.full(len(points), -1), SUPPORTED)
    others, synthesized = fill_unsupported(saliency, supported, clicks, config)
    prompts = supported | others
    return Distillation(tuple(prompts[t] for t in range(saliency.n_slices)), tuple(fates + synthesized))


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
            fates += [
                PointFate(int(p), t, KEPT, (float(clicks.xy[p][0]), float(clicks.xy[p][1])), t, "Used as it is.")
                for p in own
            ]
        elif t in between:
            slices.append(SlicePrompts(t, between[t], np.array([-1]), SYNTHESIZED))
            fates.append(
                PointFate(
                    -1, t, SYNTHESIZED, (float(between[t][0, 0]), float(between[t][0, 1])), t, "On the centerline."
                )
            )
        else:
            slices.append(empty_prompts(t, EMPTY))
    return Distillation(tuple(slices), tuple(fates))


def _sampled(saliency: SaliencyMaps, config: PromptConfig) -> Distillation:
    """Farthest points of the salient region of each slice, whatever was clicked (docs/method.md, section 9)."""
    slices: list[SlicePrompts] = []
    fates: list[PointFate] = []
    for t in range(saliency.n_slices):
        rows, columns = np.nonzero(saliency.components(t))
        if len(rows) == 0:
            slices.append(empty_prompts(t, EMPTY))
            continue
        step = max(1, len(rows) // 500)
        points = np.stack((columns, rows), axis=1)[::step].astype(float)
        kept = thin_out(points, saliency.at(t, points), config.min_distance_px, config.max_points or 10)
        slices.append(SlicePrompts(t, points[kept], np.full(len(kept), -1), SYNTHESIZED))
        fates += [
            PointFate(-1, t, SYNTHESIZED, (float(x), float(y)), t, "From the saliency alone.") for x, y in points[kept]
        ]
    return Distillation(tuple(slices), tuple(fates))
