"""Training cases as a data set folder of nnU-Net, and what its networks see of a volume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spdbench.comparators.clicks import NetworkClicks
from spdbench.comparators.data import random_severity
from spdbench.comparators.features import pixels_in, window_of
from spdbench.comparators.protocol import InputSettings, TrainingCase
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.slices import SliceStack

DATASET_ID = 1
DATASET_NAME = "Dataset001_Target"
FILE_ENDING = ".nii.gz"


def channels_of(
    stack: SliceStack, clicks: Clicks, inputs: InputSettings, with_clicks: bool
) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Image, and how near the clicks are, in the volume's own pixels within the field of view.

    Args:
        clicks: inside the volume.

    Returns:
        (C, T, h, w) float32, and the rows and columns that were cut out.
    """
    window = window_of(stack, clicks, inputs)
    part = pixels_in(window)
    channels = [stack.array[:, part[0], part[1]].astype(np.float32)]
    if with_clicks:
        seen = NetworkClicks.in_window(clicks, window, stack)
        nearness = np.stack([seen.nearness(t) for t in range(stack.n_slices)])
        channels.append(window.restore(nearness, 0.0)[:, part[0], part[1]])
    return np.stack(channels), part


def spacing_of(stack: SliceStack) -> list[float]:
    """(slice, row, column) in mm, nnU-Net's order."""
    return [stack.slice_mm, *stack.pixel_mm]


def write_dataset(
    raw: Path, cases: Sequence[TrainingCase], inputs: InputSettings, with_clicks: bool, draws: int
) -> int:
    """Write images and labels in nnU-Net's layout; returns how many samples.

    nnU-Net reads its data once, so every target is written with ``draws`` draws of click noise. Without clicks the
    label is all targets of the case together.
    """
    from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json

    folder = raw / DATASET_NAME
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([inputs.seed, 12])
    count = 0
    for case in cases:
        for target in case.targets:
            truth = target.mask if with_clicks else case.union()
            for _ in range(draws):
                clicks, _ = target.clicks(*random_severity(rng, inputs))
                channels, part = channels_of(case.stack, clicks, inputs, with_clicks)
                for i, channel in enumerate(channels):
                    _write(folder / "imagesTr" / f"case_{count:04d}_{i:04d}{FILE_ENDING}", channel, case.stack)
                label = truth[:, part[0], part[1]].astype(np.uint8)
                _write(folder / "labelsTr" / f"case_{count:04d}{FILE_ENDING}", label, case.stack)
                count += 1
    names = {0: "CT" if inputs.intensity.kind == "window" else "MRI"} | ({1: "noNorm"} if with_clicks else {})
    labels = {"background": 0, "target": 1}
    generate_dataset_json(str(folder), names, labels, count, FILE_ENDING, license="", converted_by="SPDSegment")
    return count


def _write(path: Path, array: np.ndarray, stack: SliceStack) -> None:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing(spacing_of(stack)[::-1])
    sitk.WriteImage(image, str(path))
