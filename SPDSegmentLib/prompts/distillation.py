"""CPD, Contextual Prompt Distillation: which clicks prompt which slice (paper, stage II).

For slice t with clicks P_t, saliency S_t and neighbors j in t-n .. t+n:

1. local validation     local_t      = {p in P_t : S_t(p) > tau}
2. context enrichment   candidates_t = union over j of {p in P_j : S_j(p) > tau}
                        context_t    = {p in candidates_t : S_t(p) > tau}
3. consensus            P*_t         = local_t union context_t

A click that its person insists on counts as supported by its own slice whatever the saliency shows (ours).

Slices with an empty consensus follow :mod:`SPDSegmentLib.prompts.strategies`. All functions are pure; clicks are given
in network pixels, (column, row).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.prompts.evidence import believed
from SPDSegmentLib.prompts.fates import Fate, PointFate, SliceStatus
from SPDSegmentLib.prompts.saliency_maps import SaliencyMaps, SliceClicks
from SPDSegmentLib.settings import build_settings, check_choice, check_ranges

STRATEGIES = ("consensus", "local", "raw", "interpolated", "sampled")
SALIENCY_ONLY = "saliency-only"
"""In place of a strategy: no prompts and no decoding; the thresholded saliency is the mask (a control)."""
EVIDENCE = ("gate", "adjoining", "soft")
UNSUPPORTED_POLICIES = ("synthesize", "abstain")
RANGES = {
    "n_neighbors": (0, 100),
    "max_points": (0, 1000),
    "min_distance_px": (0, 1024),
    "follow_jump": (0.0, 1.0),
    "follow_beyond": (-1, 100_000),
}
"""Lowest and highest value of each number that is no probability."""
_USED = (Fate.KEPT, Fate.INSISTED, Fate.BORROWED)


@dataclass(frozen=True)
class PromptConfig:
    """How clicks become prompts.

    Attributes:
        threshold: tau, a click is supported where the saliency exceeds it (paper: 0.5).
        n_neighbors: n, slices on each side whose clicks are borrowed (paper: 2).
        local_validation: keep only the clicks that their own slice supports (paper, CPD step 1).
        evidence: what supports a click in its own slice: ``gate`` (paper: S_t above tau), ``adjoining`` or ``soft``
            (:mod:`SPDSegmentLib.prompts.evidence`, ours).
        context_enrichment: borrow neighbors' clicks after dual validation (paper, CPD step 2).
        min_distance_px: of two points closer than this in a slice, the more salient stays (ours).
        max_points: K, at most this many points a slice by farthest-point sampling, 0 for the paper's no limit (ours).
        unsupported: what happens in a salient slice that no click supports (ours): ``synthesize`` or ``abstain``.
        single_component: the target is one piece per slice, so the consensus keeps to the salient component that most
            of its points lie in (ours; off for branching structures).
        follow_components: synthesize only in salient components that connect, slice by slice, with a supported slice;
            off: in the component nearest to the centerline, as far as the saliency goes (ours).
        bridge_gaps: with ``follow_components``, also synthesize between two supported slices where nothing connects,
            in the component nearest to the centerline.
        follow_threshold: with ``follow_components``, a slice without a connecting component above tau may connect
            through a region above this lower value; tau or more: never (ours).
        follow_jump: with ``follow_components``, components of adjoining slices that do not overlap connect where they
            are at most this share of the field of view apart (ours).
        follow_beyond: slices past the outermost click or owned slice that are followed at most, -1 for no limit (ours).
        context_beyond: slices past the outermost click, too, borrow clicks (paper); off where a structure ends by
            convention and is clicked to its ends (ours).
    """

    threshold: float = 0.5
    n_neighbors: int = 2
    local_validation: bool = True
    context_enrichment: bool = True
    min_distance_px: float = 2.0
    max_points: int = 10
    unsupported: str = "synthesize"
    single_component: bool = True
    follow_components: bool = True
    bridge_gaps: bool = True
    follow_threshold: float = 0.5
    follow_jump: float = 0.0
    follow_beyond: int = -1
    context_beyond: bool = True
    evidence: str = "gate"

    def __post_init__(self) -> None:
        if not 0.0 < self.threshold < 1.0:
            raise BadInput(f"threshold {self.threshold} is not between 0 and 1.")
        if not 0.0 < self.follow_threshold < 1.0:
            raise BadInput(f"follow_threshold {self.follow_threshold} is not between 0 and 1.")
        check_ranges(self, RANGES)
        check_choice(self.evidence, EVIDENCE, "evidence")
        check_choice(self.unsupported, UNSUPPORTED_POLICIES, "policy for unsupported slices")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PromptConfig:
        """Build from a mapping; an unknown key or a value of another kind raises :class:`BadInput`."""
        return build_settings(cls, values, kind="prompt")


@dataclass(frozen=True, eq=False)
class SlicePrompts:
    """The prompts of one slice.

    Attributes:
        points: (M, 2) (column, row) in network pixels, all positive.
        sources: (M,) index of the click, -1 for a synthesized point.
        status: one that CPD gives, ``SUPPORTED`` to ``EMPTY``.
    """

    slice_index: int
    points: np.ndarray
    sources: np.ndarray
    status: SliceStatus

    def same_as(self, other: SlicePrompts | None) -> bool:
        """Whether decoding would get exactly the same input."""
        if self is other:
            return True
        return other is not None and self.status == other.status and np.array_equal(self.points, other.points)


@dataclass(frozen=True, eq=False)
class Distillation:
    """Prompts of every slice of a volume, and the fate of every point."""

    slices: tuple[SlicePrompts, ...]
    fates: tuple[PointFate, ...]


def local_validation(saliency: SaliencyMaps, t: int, clicks: SliceClicks, evidence: str = "gate") -> np.ndarray:
    """Step 1: indexes of the clicks of slice t that its saliency supports, {p in P_t : S_t(p) > tau}.

    Those that are insisted on are among them; with other ``evidence`` than ``gate``, the rest are those that it
    speaks for.
    """
    own = clicks.on(t)
    if not len(own):
        return own

    def supported() -> np.ndarray:
        if evidence == "gate":
            speaks = saliency.at(t, clicks.xy[own]) > saliency.threshold
        else:
            speaks = believed(saliency, t, clicks, own, evidence)
        return np.asarray(own[speaks | clicks.insisted[own]])

    wide = int(evidence != "gate")  # other evidence looks into the adjoining slices, and soft one at all clicks
    key = evidence, clicks.near(t, saliency.n_slices if evidence == "soft" else 0)
    return saliency.decide("local", t, key, range(t - wide, t + wide + 1), supported)


def context_enrichment(
    saliency: SaliencyMaps, t: int, clicks: SliceClicks, n_neighbors: int, evidence: str = "gate"
) -> tuple[np.ndarray, np.ndarray]:
    """Step 2: dual validation of the neighbors' clicks.

    Returns:
        ``context``, indexes of neighbors' clicks that their own slice and slice t both support, and ``refused``,
        those that their own slice supports and slice t does not.
    """
    neighbors = [j for j in range(t - n_neighbors, t + n_neighbors + 1) if j != t and 0 <= j < saliency.n_slices]
    validated = [local_validation(saliency, j, clicks, evidence) for j in neighbors]
    candidates = np.concatenate(validated) if validated else np.empty(0, int)
    if not len(candidates):
        return candidates, candidates
    supported = saliency.at(t, clicks.xy[candidates]) > saliency.threshold
    return candidates[supported], candidates[~supported]


def consensus(
    saliency: SaliencyMaps, t: int, clicks: SliceClicks, config: PromptConfig
) -> tuple[np.ndarray, list[PointFate]]:
    """Step 3: indexes of P*_t = local_t union context_t, and the fate of every click looked at."""
    own = clicks.on(t)
    local = local_validation(saliency, t, clicks, config.evidence) if config.local_validation else own
    context, refused = np.empty(0, int), np.empty(0, int)
    if config.context_enrichment:
        context, refused = context_enrichment(saliency, t, clicks, config.n_neighbors, config.evidence)
    chosen = np.concatenate((local, context))
    stray = np.empty(0, int)
    if config.single_component and len(chosen) > 1:
        labels, word = saliency.component_at(t, clicks.xy[chosen]), clicks.insisted[chosen] & np.isin(chosen, own)
        if config.evidence != "gate":
            word = word | (labels == 0)  # believed against the saliency
        asked = word & (labels > 0) if (word & (labels > 0)).any() else ~word
        main = _dominant(labels[asked], saliency.at(t, clicks.xy[chosen[asked]])) if asked.any() else 0
        chosen, stray = chosen[(labels == main) | word], chosen[(labels != main) & ~word]
    mine, supported, taken = (set(part.tolist()) for part in (own, local, chosen))
    kept = sorted(supported & taken)
    fates = [fate_of(clicks, p, t, Fate.INSISTED, "You insist on it.") for p in kept if clicks.insisted[p]]
    fates += [
        fate_of(clicks, p, t, Fate.KEPT, "The saliency of its slice supports it.")
        for p in kept
        if not clicks.insisted[p]
    ]
    fates += [
        fate_of(clicks, p, t, Fate.REJECTED_OWN_SLICE, "Its slice shows no sign of the structure there.")
        for p in sorted(mine - supported)
    ]
    strayed = set(stray.tolist())
    fates += [
        fate_of(clicks, p, t, Fate.REJECTED_OWN_SLICE, "Most clicks around it lie in another part of the slice.")
        for p in sorted(mine & strayed)
    ]
    fates += [
        fate_of(clicks, p, t, Fate.BORROWED, "Both slices support it.") for p in sorted(set(context.tolist()) & taken)
    ]
    fates += [
        fate_of(clicks, p, t, Fate.REJECTED_NEIGHBOR, "Supported in its own slice, not in this one.")
        for p in sorted(set(refused.tolist()) | (strayed - mine))
    ]
    return chosen, fates


def thin_out(
    points: np.ndarray, saliency: np.ndarray, min_distance_px: float, max_points: int, first: np.ndarray | None = None
) -> np.ndarray:
    """Indexes of at most ``max_points`` of (N, 2) points, none closer than ``min_distance_px`` to another.

    Farthest-point sampling from the most salient point; the result does not depend on the order of the points.

    Args:
        first: (N,) bool, points that are taken before all others, however close to one another.
    """
    if len(points) < 2:
        return np.arange(len(points))
    before = np.zeros(len(points), dtype=bool) if first is None else first
    order = np.lexsort((points[:, 1], points[:, 0], -saliency, ~before))
    ordered = points[order]
    kept = [0]
    gap = np.linalg.norm(ordered - ordered[0], axis=1)
    for candidates, least in ((before[order], 0.0), (np.ones(len(points), dtype=bool), min_distance_px)):
        while candidates.any() and (max_points == 0 or len(kept) < max_points):
            farthest = int(np.argmax(np.where(candidates, gap, -1.0)))
            if gap[farthest] < max(least, 1e-9):
                break
            kept.append(farthest)
            gap = np.minimum(gap, np.linalg.norm(ordered - ordered[farthest], axis=1))
    return order[kept]


def supported_prompts(
    saliency: SaliencyMaps, t: int, clicks: SliceClicks, chosen: np.ndarray, config: PromptConfig
) -> SlicePrompts:
    """The prompts of a slice whose points are the clicks ``chosen``."""
    points = clicks.xy[chosen]
    word = clicks.insisted[chosen] & (clicks.slice_index[chosen] == t)
    kept = thin_out(points, saliency.at(t, points), config.min_distance_px, config.max_points, word)
    return SlicePrompts(t, points[kept], chosen[kept], SliceStatus.SUPPORTED)


def say_spared(fates: list[PointFate], prompts: SlicePrompts, max_points: int) -> list[PointFate]:
    """The fates of a slice's clicks, with a word where a click that is used has no place among its K prompts."""
    if len(prompts.points) != max_points:
        return fates
    why = f" Of more than {max_points} clicks for this slice, {max_points} that lie far apart prompt it."
    spared = {f.click for f in fates if f.fate in _USED} - set(prompts.sources.tolist())
    return [replace(f, reason=f.reason + why) if f.fate in _USED and f.click in spared else f for f in fates]


def empty_prompts(t: int, status: SliceStatus) -> SlicePrompts:
    """The prompts of a slice that gets none."""
    return SlicePrompts(t, np.empty((0, 2)), np.empty(0, int), status)


def _dominant(labels: np.ndarray, saliency: np.ndarray) -> int:
    """The label with most points, ties by summed saliency, then by label."""
    candidates = np.unique(labels)
    if len(candidates) == 1:
        return int(candidates[0])
    score = [((labels == c).sum(), float(saliency[labels == c].sum()), -int(c)) for c in candidates]
    return int(candidates[max(range(len(candidates)), key=score.__getitem__)])


def fate_of(clicks: SliceClicks, click: int, t: int, fate: Fate, reason: str) -> PointFate:
    """What became of a click in slice ``t``."""
    column, row = clicks.xy[click]
    return PointFate(int(click), t, fate, (float(column), float(row)), int(clicks.slice_index[click]), reason)


def consensus_of_slice(
    saliency: SaliencyMaps, t: int, clicks: SliceClicks, config: PromptConfig
) -> tuple[SlicePrompts | None, list[PointFate]]:
    """Consensus prompts of a slice, ``None`` without a consensus, and all fates.

    Both are remembered with the maps until a click near the slice or a map near it changes.
    """
    n = config.n_neighbors + (config.evidence != "gate")
    key = (config, clicks.near(t, saliency.n_slices if config.evidence == "soft" else n))

    def agree() -> tuple[SlicePrompts | None, list[PointFate]]:
        chosen, fates = consensus(saliency, t, clicks, config)
        if not len(chosen):
            return None, fates
        prompts = supported_prompts(saliency, t, clicks, chosen, config)
        return prompts, say_spared(fates, prompts, config.max_points)

    return saliency.decide("consensus", t, key, range(t - n, t + n + 1), agree)


def consensus_of_slices(
    saliency: SaliencyMaps, slices: Iterable[int], clicks: SliceClicks, config: PromptConfig
) -> tuple[dict[int, SlicePrompts], list[PointFate]]:
    """Consensus prompts of those of ``slices`` that have a consensus, with all fates."""
    prompts: dict[int, SlicePrompts] = {}
    fates: list[PointFate] = []
    if not config.context_beyond and len(clicks):
        first, last = int(clicks.slice_index.min()), int(clicks.slice_index.max())
        slices = (t for t in slices if first <= t <= last)
    for t in slices:
        found, looked_at = consensus_of_slice(saliency, t, clicks, config)
        fates += looked_at
        if found is not None:
            prompts[t] = found
    return prompts, fates
