"""What is evaluated: labeled cases and their targets, simulated clicks, severities, ways of prompting; and one row."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.labels import read_labeled
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.prompts.config import SALIENCY_ONLY, STRATEGIES
from SPDSegmentLib.prompts.noise import SEVERITIES, ClickPath, NoiseConfig, click_path, simulate_clicks_from_path
from SPDSegmentLib.settings import check_choice

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
            check_choice(severity, SEVERITIES, "severity")
        for method in self.methods:
            check_choice(method, METHODS, "method")
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


@dataclass(frozen=True, eq=False)
class EvaluationTarget:
    """One structure of one case.

    Attributes:
        stack: the slices; mask: (T, H, W) bool; path: for the noise simulator.
    """

    patient: str
    case: str
    name: str
    stack: SliceStack
    mask: np.ndarray
    path: ClickPath

    def clicks(self, severity: str | float | NoiseConfig, seed: int) -> tuple[Clicks, float]:
        """Simulated clicks and the share of them outside the target; the seed differs from case to case."""
        own_seed = seed * 100_003 + zlib.crc32(f"{self.case}:{self.name}".encode()) % 100_003
        simulated = simulate_clicks_from_path(self.path, self.mask, severity, own_seed)
        n = len(simulated.slice_index)
        clicks = Clicks(
            simulated.slice_index, simulated.xy, np.zeros(n, dtype=bool), tuple(str(i + 1) for i in range(n))
        )
        return clicks, float(1 - simulated.inside_target.mean()) if n else 1.0


@dataclass(frozen=True)
class CaseFiles:
    """Where labeled cases lie.

    Attributes:
        folder: their folder.
        image, label: file names with ``{case}``.
        targets: label values of each structure that can be clicked.
        plane: slicing plane.
        patient_pattern: regular expression whose first group is the patient.
        series, segments: what is chosen of DICOM, see :class:`SPDSegmentLib.training.config.DataConfig`.
    """

    folder: Path
    image: str
    label: str
    targets: tuple[tuple[int, ...], ...]
    plane: str = "auto"
    patient_pattern: str = "(.*)"
    series: str = ""
    segments: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path, data: Any) -> CaseFiles:
        """Those of a training configuration's table ``data``."""
        said = {name: getattr(data, name) for name in cls.__dataclass_fields__ if name != "folder"}
        return cls(folder, **said)


def load_targets(
    files: CaseFiles, cases: Sequence[str], on_empty: Callable[[str], None] | None = None
) -> list[EvaluationTarget]:
    """Read every target of the cases.

    Args:
        on_empty: told a sentence about each case that holds no target and is left out; None refuses such a case.

    Raises:
        BadInput: a file is missing, grids differ, or no case (without ``on_empty``: not every case) holds a target.
    """
    targets = []
    for case in cases:
        volume, labels = read_labeled(files.folder, files, case)
        stack = SliceStack(volume, files.plane)
        slices = stack.from_volume(labels)
        masks = {values: np.ascontiguousarray(np.isin(slices, values)) for values in files.targets}
        if not any(mask.any() for mask in masks.values()):
            message = f"{files.folder / files.label.format(case=case)} holds none of the label values {files.targets}"
            if on_empty is None:
                raise BadInput(f"{message}.", "Check targets in [data].")
            on_empty(f"{message}: case {case} is left out.")
        for values, mask in masks.items():
            if mask.any():
                path = click_path(mask, stack.pixel_mm, stack.slice_mm)
                name = "+".join(map(str, values))
                patient = patient_of(case, files.patient_pattern)
                targets.append(EvaluationTarget(patient, case, name, stack, mask, path))
    if not targets:
        raise BadInput(f"None of the cases {', '.join(cases)} holds a target.", "Check targets in [data].")
    return targets


def shuffled_clicks(
    targets: Sequence[EvaluationTarget], position: int, severity: str | float | NoiseConfig, seed: int
) -> Clicks:
    """The next other patient's clicks, moved to the same place of this volume by relative position.

    They are on the like structure (the same name) where another patient has one: of two kidneys, on the same side.
    """
    own = targets[position]
    others = [t for t in (*targets[position + 1 :], *targets[:position]) if t.patient != own.patient]
    others = [t for t in others if t.name == own.name] or others or [own]
    clicks, _ = others[0].clicks(severity, seed)
    theirs, ours = np.array(others[0].mask.shape, float), np.array(own.mask.shape, float)
    index = np.clip(np.rint(clicks.slice_index * ours[0] / theirs[0]), 0, ours[0] - 1).astype(int)
    xy = clicks.xy * (ours[[2, 1]] / theirs[[2, 1]])
    return Clicks(index, xy, clicks.outside, clicks.ids)


def patient_of(case: str, pattern: str) -> str:
    """The patient that a case name belongs to: the pattern's first group."""
    match = re.match(pattern, case)
    return match.group(1) if match else case
