"""What is evaluated: cases, severities, seeds, and the ways of prompting that are compared."""

from __future__ import annotations

from dataclasses import dataclass

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.prompts.config import SALIENCY_ONLY, STRATEGIES
from SPDSegmentLib.prompts.noise import SEVERITIES

SHUFFLED = "shuffled"
METHODS = (*STRATEGIES, SALIENCY_ONLY, SHUFFLED)


@dataclass(frozen=True)
class EvaluationConfig:
    """One evaluation of one bundle.

    Attributes:
        severities: noise of the clicks, names or numbers of :mod:`SPDSegmentLib.prompts.noise`.
        seeds: click sets per target and severity.
        methods: prompt strategies; ``saliency-only`` (S > tau as the mask); ``shuffled`` (another patient's clicks).
        first_seed: seeds count from here; the same numbers give the same clicks for every bundle.
    """

    severities: tuple[str, ...] = ("clean", "mild", "clinic", "severe")
    seeds: int = 3
    methods: tuple[str, ...] = ("consensus",)
    first_seed: int = 1000

    def __post_init__(self) -> None:
        for severity in self.severities:
            if severity not in SEVERITIES:
                raise BadInput(f"Unknown severity '{severity}'.", f"Choose from {', '.join(SEVERITIES)}.")
        for method in self.methods:
            if method not in METHODS:
                raise BadInput(f"Unknown method '{method}'.", f"Choose from {', '.join(METHODS)}.")
        if self.seeds < 1:
            raise BadInput("At least one seed is needed.")


@dataclass(frozen=True)
class EvaluationRow:
    """One segmentation of one target: what ``spdsegment evaluate`` and the benchmark measure.

    Attributes:
        bundle, method, severity, seed: what was run; the severity may be a label of one kind of noise alone.
        patient, case, target: on what.
        clicks, outside_share: how many clicks, and which share of them lay outside the target.
        dsc, iou, nsd: per volume; hd95_mm in millimeters; ``None`` where the empty-mask policy leaves a case out.
        slice_dsc, slice_iou, slice_hd95_mm: means over the slices that hold the target.
        seconds: of the segmentation, without what was kept from earlier clicks on the volume.
        kept_share, right_rejected, wrong_kept: shares of all clicks that were kept, of those inside the target that
            were rejected, of those outside that were kept; ``None`` where there is no such click or verdict.
        fold: of a cross-validation.
    """

    bundle: str
    method: str
    severity: str
    seed: int
    patient: str
    case: str
    target: str
    clicks: int
    outside_share: float
    dsc: float | None
    iou: float | None
    hd95_mm: float | None
    nsd: float | None
    slice_dsc: float | None
    slice_iou: float | None
    slice_hd95_mm: float | None
    seconds: float
    kept_share: float | None = None
    right_rejected: float | None = None
    wrong_kept: float | None = None
    fold: str = ""

    @property
    def place(self) -> tuple[str, str, str, int]:
        """What was segmented with which clicks."""
        return self.case, self.target, self.severity, self.seed


METRICS = (
    "dsc", "iou", "hd95_mm", "nsd", "slice_dsc", "slice_iou", "slice_hd95_mm", "kept_share", "right_rejected",
    "wrong_kept",
)  # fmt: skip
