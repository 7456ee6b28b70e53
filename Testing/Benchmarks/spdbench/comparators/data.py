"""Training cases and settings of the comparators in the form that the training code of SPD takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spdbench.comparators.protocol import InputSettings, TrainingCase
from SPDSegmentLib.geometry.intensity import intensity_range, normalize
from SPDSegmentLib.networks.config import NetworkConfig
from SPDSegmentLib.training.cases import Case, make_target
from SPDSegmentLib.training.config import BundleText, DataConfig, Stage2Config, TrainingConfig


def as_case(case: TrainingCase, inputs: InputSettings) -> Case:
    """Normalised slices and targets of one volume."""
    stack = case.stack
    images = normalize(stack.array, intensity_range(stack.volume.array, inputs.intensity)).astype(np.float16)
    targets = tuple(make_target(f"{t.case}:{t.name}", t.mask, t.path) for t in case.targets)
    return Case(case.name, images, case.union(), targets, stack.pixel_mm, stack.slice_mm)


def as_config(
    inputs: InputSettings, backbone: str = "lite_medsam", stage2: Stage2Config | None = None
) -> TrainingConfig:
    """The settings that random views and kept embeddings are made with; no adapters, the whole decoder learns."""
    return TrainingConfig(
        BundleText("comparator", "Comparator", "any", "any"),
        DataConfig("", "{case}", "{case}", ((1,),), ("given",)),  # the cases are in memory already
        NetworkConfig(backbone, inputs.image_size, lora_rank=0, decoder="full"),
        intensity=inputs.intensity,
        stage2=stage2 or Stage2Config(severities=inputs.severities),
        fov_mm=inputs.fov_mm,
        seed=inputs.seed,
    )


def random_severity(rng: np.random.Generator, inputs: InputSettings) -> tuple[float, int]:
    """Severity and seed of fresh click noise."""
    low, high = inputs.severities
    return float(rng.uniform(low, high)), int(rng.integers(2**31))


def as_cases(cases: Sequence[TrainingCase], inputs: InputSettings) -> list[Case]:
    """:func:`as_case` of each."""
    return [as_case(case, inputs) for case in cases]
