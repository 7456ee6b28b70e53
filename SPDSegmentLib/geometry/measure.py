"""Volume, length and diameter of an elongated structure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from SPDSegmentLib.geometry.slices import SliceStack

SMOOTHING_MM = 4.0


@dataclass(frozen=True)
class Measurements:
    """What :func:`measure` finds; lengths and diameters are 0 for an empty mask.

    Attributes:
        volume_ml: all voxels.
        length_mm: along the smoothed path through the centroids of its slices, from the first slice to the last, both
            with their whole thickness.
        mean_diameter_mm: mean along that path of the diameter of the circle that has the area of the cross-section
            perpendicular to the path.
        largest_diameter_mm: the largest of these diameters.
    """

    volume_ml: float
    length_mm: float
    mean_diameter_mm: float
    largest_diameter_mm: float


def measure(box: np.ndarray, start: tuple[int, int, int], stack: SliceStack) -> Measurements:
    """Measure a mask.

    Args:
        box: (t, h, w) bool, a part of the canonical slices.
        start: first slice, row and column of the box.
        stack: the slices that it is a part of.
    """
    counts = box.sum(axis=(1, 2), dtype=np.int64)
    filled = np.flatnonzero(counts)
    if not filled.size:
        return Measurements(0.0, 0.0, 0.0, 0.0)
    box, counts = box[filled[0] : filled[-1] + 1], counts[filled[0] : filled[-1] + 1]
    voxel_mm3 = stack.volume.voxel_mm3
    slice_mm = float(np.linalg.norm(np.diff(stack.to_ras(np.array([0, 1]), np.zeros((2, 2))), axis=0)))
    path = _centroids(box, counts, (start[0] + int(filled[0]), start[1], start[2]), stack)
    steps_mm = _steps(_smooth(path, SMOOTHING_MM / slice_mm), slice_mm)
    here = counts > 0
    diameters = 2 * np.sqrt(counts[here] * voxel_mm3 / steps_mm[here] / np.pi)
    return Measurements(
        float(counts.sum() * voxel_mm3 / 1000),
        float(steps_mm.sum()),
        float(np.average(diameters, weights=steps_mm[here])),
        float(diameters.max()),
    )


def _centroids(box: np.ndarray, counts: np.ndarray, start: tuple[int, int, int], stack: SliceStack) -> np.ndarray:
    """(t, 3) centroids in RAS; where a slice is empty, between those of its neighbors."""
    filled = np.flatnonzero(counts)
    rows = box.sum(axis=2) @ np.arange(box.shape[1]) + start[1] * counts
    columns = box.sum(axis=1) @ np.arange(box.shape[2]) + start[2] * counts
    every = np.arange(len(counts))
    xy = np.column_stack([np.interp(every, filled, values[filled] / counts[filled]) for values in (columns, rows)])
    return stack.to_ras(every + start[0], xy)


def _smooth(path: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian smoothing; beyond its ends the path goes on as its point reflection, so that it does not shrink."""
    reach = min(int(np.ceil(3 * sigma)), len(path) - 1)
    if reach < 1:
        return path
    before, after = 2 * path[0] - path[reach:0:-1], 2 * path[-1] - path[-2 : -reach - 2 : -1]
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    extended = np.concatenate([before, path, after])
    return np.column_stack([np.convolve(values, weights, mode="valid") for values in extended.T])


def _steps(path: np.ndarray, slice_mm: float) -> np.ndarray:
    """(t,) length of the path within each slice, in mm, never less than a slice is thick."""
    if len(path) == 1:
        return np.array([slice_mm])
    distances = np.linalg.norm(np.diff(path, axis=0), axis=1)
    distances = np.concatenate([distances[:1], distances, distances[-1:]])
    lengths: np.ndarray = np.maximum((distances[:-1] + distances[1:]) / 2, slice_mm)
    return lengths
