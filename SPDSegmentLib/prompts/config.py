"""Settings of Contextual Prompt Distillation: a frozen dataclass that validates itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.settings import build_settings, check_ranges

STRATEGIES = ("consensus", "local", "raw", "interpolated", "sampled")
SALIENCY_ONLY = "saliency-only"
"""In place of a strategy: no prompts and no decoding; the thresholded saliency is the mask (a control)."""
EVIDENCE = ("gate", "adjoining", "soft")
UNSUPPORTED_POLICIES = ("synthesize", "abstain")
RANGES = {
    "n_neighbors": (0, 100),
    "max_points": (0, 1000),
    "min_distance_px": (0, 1024),
    "follow_beyond": (-1, 100_000),
}
"""Lowest and highest value of each number that is no probability."""


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
        follow_beyond: slices past the outermost click that are followed at most, -1 for no limit (ours).
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
    follow_beyond: int = -1
    evidence: str = "gate"

    def __post_init__(self) -> None:
        if not 0.0 < self.threshold < 1.0:
            raise BadInput(f"threshold {self.threshold} is not between 0 and 1.")
        if not 0.0 < self.follow_threshold < 1.0:
            raise BadInput(f"follow_threshold {self.follow_threshold} is not between 0 and 1.")
        check_ranges(self, RANGES)
        if self.evidence not in EVIDENCE:
            raise BadInput(f"Unknown evidence '{self.evidence}'.", f"Choose one of {', '.join(EVIDENCE)}.")
        if self.unsupported not in UNSUPPORTED_POLICIES:
            raise BadInput(
                f"Unknown policy '{self.unsupported}' for unsupported slices.",
                f"Choose one of {', '.join(UNSUPPORTED_POLICIES)}.",
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PromptConfig:
        """Build from a mapping; an unknown key or a value of another kind raises :class:`BadInput`."""
        return build_settings(cls, values, kind="prompt")
