"""DSC, IoU, HD95 and NSD per volume and per slice, with one policy for empty masks (method section 10).

Both masks empty: no value, the case is left out. One empty (a miss or a pure false alarm): DSC, IoU and NSD are 0 and
HD95 is the diagonal of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from SPDSegmentLib.evaluation.surfaces import surface_distances, weighted_percentile


@dataclass(frozen=True)
class MaskMetrics:
    """Agreement of a mask with the truth; ``None`` where both are empty."""

    dsc: float | None
    iou: float | None
    hd95_mm: float | None
    nsd: float | None


def dice(a: np.ndarray, b: np.ndarray) -> float | None:
    """Dice similarity coefficient of two bool arrays."""
    total = int(a.sum()) + int(b.sum())
    return None if total == 0 else 2 * int((a & b).sum()) / total


def iou(a: np.ndarray, b: np.ndarray) -> float | None:
    """Intersection over union of two bool arrays."""
    union = int((a | b).sum())
    return None if union == 0 else int((a & b).sum()) / union


def diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Length of the image's diagonal."""
    return float(np.linalg.norm(np.array(shape) * np.array(spacing_mm)))


def hd95(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float]) -> float | None:
    """The larger of the two directed 95th percentiles of surface distances, in mm."""
    if not a.any() and not b.any():
        return None
    if not a.any() or not b.any():
        return diagonal_mm(a.shape, spacing_mm)
    d = surface_distances(a, b, spacing_mm)
    return max(weighted_percentile(d.a_to_b, d.a_area, 95), weighted_percentile(d.b_to_a, d.b_area, 95))


def nsd(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float = 2.0) -> float | None:
    """Normalised surface Dice: share of both surfaces within ``tolerance_mm`` of the other."""
    if not a.any() and not b.any():
        return None
    if not a.any() or not b.any():
        return 0.0
    d = surface_distances(a, b, spacing_mm)
    near = d.a_area[d.a_to_b <= tolerance_mm].sum() + d.b_area[d.b_to_a <= tolerance_mm].sum()
    return float(near / (d.a_area.sum() + d.b_area.sum()))


def volume_metrics(predicted: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]) -> MaskMetrics:
    """All metrics of a volume (or a slice); spacing in the order of the axes."""
    if not predicted.any() or not truth.any():
        far = hd95(predicted, truth, spacing_mm)
        return MaskMetrics(dice(predicted, truth), iou(predicted, truth), far, nsd(predicted, truth, spacing_mm))
    d = surface_distances(predicted, truth, spacing_mm)
    near = d.a_area[d.a_to_b <= 2.0].sum() + d.b_area[d.b_to_a <= 2.0].sum()
    far = max(weighted_percentile(d.a_to_b, d.a_area, 95), weighted_percentile(d.b_to_a, d.b_area, 95))
    share = float(near / (d.a_area.sum() + d.b_area.sum()))
    return MaskMetrics(dice(predicted, truth), iou(predicted, truth), far, share)


def slice_metrics(predicted: np.ndarray, truth: np.ndarray, pixel_mm: Sequence[float]) -> MaskMetrics:
    """Means over the slices (T, H, W) that hold the target."""
    rows = [volume_metrics(predicted[t], truth[t], pixel_mm) for t in np.flatnonzero(truth.any(axis=(1, 2)))]
    if not rows:
        return MaskMetrics(None, None, None, None)
    mean = {name: float(np.mean([getattr(row, name) for row in rows])) for name in ("dsc", "iou", "hd95_mm", "nsd")}
    return MaskMetrics(**mean)
