"""Labelled cases for an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.evaluation.run import EvaluationTarget, patient_of
from SPDSegmentLib.geometry.labelmap import read_labels_of
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import check_image, read_volume
from SPDSegmentLib.prompts.noise import click_path


@dataclass(frozen=True)
class CaseFiles:
    """Where labelled cases lie.

    Attributes:
        folder: their folder.
        image, label: file names with ``{case}``.
        targets: label values of each structure that can be clicked.
        plane: slicing plane.
        patient_pattern: regular expression whose first group is the patient.
    """

    folder: Path
    image: str
    label: str
    targets: tuple[tuple[int, ...], ...]
    plane: str = "auto"
    patient_pattern: str = "(.*)"


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
        volume = read_volume(files.folder / files.image.format(case=case))
        check_image(volume)
        label_path = files.folder / files.label.format(case=case)
        labels = read_labels_of(label_path, volume)
        stack = SliceStack(volume, files.plane)
        slices = stack.from_volume(labels)
        masks = {values: np.ascontiguousarray(np.isin(slices, values)) for values in files.targets}
        if not any(mask.any() for mask in masks.values()):
            message = f"{label_path} holds none of the label values {files.targets}"
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
