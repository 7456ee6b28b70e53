"""Training cases: normalised slices, targets and click paths, read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.centerline import clicks_from_markups
from SPDSegmentLib.geometry.intensity import IntensityConfig, intensity_range, normalize
from SPDSegmentLib.geometry.labelmap import read_labels_of
from SPDSegmentLib.geometry.markups import read_markups
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import check_image, read_volume
from SPDSegmentLib.prompts.distillation import SliceClicks
from SPDSegmentLib.prompts.noise import ClickPath, click_path, simulate_clicks_from_path
from SPDSegmentLib.training.config import DataConfig


@dataclass(frozen=True, eq=False)
class Target:
    """One structure of a case that can be clicked.

    Attributes:
        name: case and label values.
        mask: (T, H, W) bool.
        path: for the noise simulator.
        first, last: slices that the target spans.
        center_xy: (column, row) of its centroid in slice pixels.
        given: clicks of a person in slice pixels, when the data set has some.
    """

    name: str
    mask: np.ndarray
    path: ClickPath
    first: int
    last: int
    center_xy: np.ndarray
    given: SliceClicks | None = None

    def clicks(self, severity: str | float, seed: int) -> SliceClicks:
        """Given clicks, or simulated ones, in slice pixels."""
        if self.given is not None:
            return self.given
        simulated = simulate_clicks_from_path(self.path, self.mask, severity, seed)
        return SliceClicks(simulated.slice_index, simulated.xy)


@dataclass(frozen=True, eq=False)
class Case:
    """One volume.

    Attributes:
        images: (T, H, W) float16 in [0, 1].
        salient: (T, H, W) bool, what the saliency head learns.
        pixel_mm: (row, column); slice_mm: distance of slices.
    """

    name: str
    images: np.ndarray
    salient: np.ndarray
    targets: tuple[Target, ...]
    pixel_mm: tuple[float, float]
    slice_mm: float


def load_case(folder: Path, name: str, data: DataConfig, intensity: IntensityConfig) -> Case:
    """Read a case.

    Raises:
        BadInput: image and label do not have the same grid, or no target has a voxel.
    """
    volume = read_volume(folder / data.image.format(case=name))
    check_image(volume)
    label_path = folder / data.label.format(case=name)
    labels = read_labels_of(label_path, volume)
    stack = SliceStack(volume, data.plane)
    label_slices = stack.from_volume(labels)
    images = normalize(stack.array, intensity_range(volume.array, intensity)).astype(np.float16)
    targets = []
    for values in data.targets:
        mask = np.isin(label_slices, values)
        if mask.any():
            targets.append(_target(f"{name}:{'+'.join(map(str, values))}", mask, stack, folder, name, data))
    if not targets:
        raise BadInput(f"{label_path} holds none of the label values {data.targets}.", "Check targets in [data].")
    salient = np.isin(label_slices, data.saliency_values())
    return Case(name, images, np.ascontiguousarray(salient), tuple(targets), stack.pixel_mm, stack.slice_mm)


def load_cases(
    folder: Path,
    names: Sequence[str],
    data: DataConfig,
    intensity: IntensityConfig,
    on_case: Callable[[int, int], None] | None = None,
) -> list[Case]:
    """Read several cases; ``on_case(done, total)`` reports progress."""
    cases = []
    for i, name in enumerate(names):
        cases.append(load_case(folder, name, data, intensity))
        if on_case is not None:
            on_case(i + 1, len(names))
    return cases


def _target(name: str, mask: np.ndarray, stack: SliceStack, folder: Path, case: str, data: DataConfig) -> Target:
    mask = np.ascontiguousarray(mask)
    given = None
    if data.clicks:
        clicks = clicks_from_markups(read_markups(folder / data.clicks.format(case=case)), stack).inside()
        given = SliceClicks(clicks.slice_index, clicks.xy)
    return make_target(name, mask, click_path(mask, stack.pixel_mm, stack.slice_mm), given)


def make_target(name: str, mask: np.ndarray, path: ClickPath, given: SliceClicks | None = None) -> Target:
    """A target from its mask (T, H, W) bool, not empty, and the path that clicks are simulated along."""
    spans = np.flatnonzero(mask.any(axis=(1, 2)))
    _, rows, columns = np.nonzero(mask)
    center_xy = np.array([columns.mean(), rows.mean()])
    return Target(name, mask, path, int(spans[0]), int(spans[-1]), center_xy, given)
