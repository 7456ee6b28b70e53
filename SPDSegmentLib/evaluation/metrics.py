"""DSC, IoU, HD95 and NSD of a mask against the truth, per volume and per slice (docs/method.md, section 10).

Surface distances are in millimeters; HD95 is the larger of the two directed 95th percentiles, NSD the share of both
surfaces within a tolerance (see :mod:`SPDSegmentLib.evaluation.surfaces`). :func:`empty_mask_metrics` is the one place
that says what an empty mask is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.evaluation.surfaces import surface_distances

TOLERANCE_MM = 2.0


@dataclass(frozen=True)
class MaskMetrics:
    """Agreement of a mask with the truth; ``None`` where both are empty."""

    dsc: float | None
    iou: float | None
    hd95_mm: float | None
    nsd: float | None


def empty_mask_metrics(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float]) -> MaskMetrics | None:
    """The empty-mask policy, or ``None`` when neither mask is empty.

    Both empty: no values, the case is left out of every mean. One empty, which is a miss or a pure false alarm: DSC,
    IoU and NSD are 0 and HD95 is the diagonal of the image.
    """
    if a.any() and b.any():
        return None
    if a.any() or b.any():
        return MaskMetrics(0.0, 0.0, diagonal_mm(a.shape, spacing_mm), 0.0)
    return MaskMetrics(None, None, None, None)


def diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Length of the image's diagonal, from the outer corner of the first voxel to that of the last."""
    return float(np.linalg.norm(np.asarray(shape) * np.asarray(spacing_mm, dtype=float)))


def dice(a: np.ndarray, b: np.ndarray) -> float | None:
    """Dice similarity coefficient (DSC) of two masks of one shape.

    Raises:
        BadInput: different shapes.
    """
    a, b = _masks(a, b)
    empty = empty_mask_metrics(a, b, (1.0,) * a.ndim)
    return empty.dsc if empty else _dice(a, b)


def iou(a: np.ndarray, b: np.ndarray) -> float | None:
    """Intersection over union of two masks of one shape.

    Raises:
        BadInput: different shapes.
    """
    a, b = _masks(a, b)
    empty = empty_mask_metrics(a, b, (1.0,) * a.ndim)
    return empty.iou if empty else _iou(a, b)


def hd95(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float]) -> float | None:
    """The larger of the two directed 95th percentiles of surface distances, in mm.

    Args:
        spacing_mm: voxel spacing in the order of the axes, two or three of them.

    Raises:
        BadInput: different shapes, or a spacing that does not fit.
    """
    a, b = _masks(a, b, spacing_mm)
    empty = empty_mask_metrics(a, b, spacing_mm)
    return empty.hd95_mm if empty else surface_distances(a, b, spacing_mm).robust_hausdorff(95)


def nsd(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float = TOLERANCE_MM) -> float | None:
    """Normalized surface Dice: share of both surfaces within ``tolerance_mm`` of the other one.

    Raises:
        BadInput: different shapes, or a spacing that does not fit.
    """
    a, b = _masks(a, b, spacing_mm)
    empty = empty_mask_metrics(a, b, spacing_mm)
    return empty.nsd if empty else surface_distances(a, b, spacing_mm).surface_dice(tolerance_mm)


def volume_metrics(
    predicted: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float = TOLERANCE_MM
) -> MaskMetrics:
    """All metrics of one volume (3-D) or one slice (2-D), with a single search for surface distances.

    Args:
        spacing_mm: voxel spacing in the order of the axes.

    Raises:
        BadInput: different shapes, or a spacing that does not fit.
    """
    a, b = _masks(predicted, truth, spacing_mm)
    empty = empty_mask_metrics(a, b, spacing_mm)
    if empty:
        return empty
    distances = surface_distances(a, b, spacing_mm)
    return MaskMetrics(_dice(a, b), _iou(a, b), distances.robust_hausdorff(95), distances.surface_dice(tolerance_mm))


def metrics_per_slice(
    predicted: np.ndarray, truth: np.ndarray, pixel_mm: Sequence[float], tolerance_mm: float = TOLERANCE_MM
) -> dict[int, MaskMetrics]:
    """Metrics in the plane of every slice that holds the target, by slice index.

    Args:
        predicted, truth: (T, H, W) masks; pixel_mm: (row, column) spacing.

    Raises:
        BadInput: different shapes, or a spacing that does not fit.
    """
    a, b = _masks(predicted, truth)
    return {int(t): volume_metrics(a[t], b[t], pixel_mm, tolerance_mm) for t in np.flatnonzero(b.any(axis=(1, 2)))}


def slice_metrics(
    predicted: np.ndarray, truth: np.ndarray, pixel_mm: Sequence[float], tolerance_mm: float = TOLERANCE_MM
) -> MaskMetrics:
    """Means of :func:`metrics_per_slice`; no values where the truth is empty."""
    rows = metrics_per_slice(predicted, truth, pixel_mm, tolerance_mm).values()
    if not rows:
        return MaskMetrics(None, None, None, None)
    return MaskMetrics(*(float(np.mean([getattr(row, field.name) for row in rows])) for field in fields(MaskMetrics)))


def _masks(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Both as bool, once they are known to fit."""
    if a.shape != b.shape:
        raise BadInput(f"The masks differ in shape, {a.shape} and {b.shape}.", "Resample one to the other's grid.")
    if spacing_mm is not None:
        spacing = np.asarray(spacing_mm, dtype=float)
        if a.ndim not in (2, 3) or spacing.shape != (a.ndim,) or not (np.isfinite(spacing) & (spacing > 0)).all():
            raise BadInput(
                f"The spacing {tuple(spacing_mm)} does not fit a mask of shape {a.shape}.",
                "Give one positive number in mm for each of its two or three axes.",
            )
    return np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return np.count_nonzero(a & b) / np.count_nonzero(a | b)
