"""Distances between the surfaces of two masks, in millimeters.

Definition of DeepMind's ``surface-distance`` (Nikolov et al. 2018, arXiv 1809.04430): the surface lies at the corners
between voxels whose 2 x 2 (2-D) or 2 x 2 x 2 (3-D) neighbors are not all alike, distances are taken between such
corners, and each corner weighs as much as the surface around it. The border of the image counts as surface.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from SPDSegmentLib.evaluation.surface_elements import element_areas, neighbor_codes


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """From each surface element of one mask to the other's surface, and the element's size.

    Attributes:
        a_to_b: (N,) mm; a_area: (N,) mm2 (2-D: mm); b_to_a: (M,); b_area: (M,).
    """

    a_to_b: np.ndarray
    a_area: np.ndarray
    b_to_a: np.ndarray
    b_area: np.ndarray

    def robust_hausdorff(self, percent: float = 95.0) -> float:
        """The larger of the two directed percentiles, in mm."""
        return max(
            weighted_percentile(self.a_to_b, self.a_area, percent),
            weighted_percentile(self.b_to_a, self.b_area, percent),
        )

    def surface_dice(self, tolerance_mm: float) -> float:
        """Share of both surfaces that lies within ``tolerance_mm`` of the other one."""
        near = self.a_area[self.a_to_b <= tolerance_mm].sum() + self.b_area[self.b_to_a <= tolerance_mm].sum()
        return float(near / (self.a_area.sum() + self.b_area.sum()))


def surface_distances(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float]) -> SurfaceDistances:
    """Distances between the surfaces of two non-empty bool arrays of one shape, 2-D or 3-D.

    Nearest elements are found by a k-d tree, whose cost does not grow with the distance of the masks.

    Args:
        spacing_mm: voxel spacing in the order of the axes.
    """
    a_points, a_area = _surface(a, spacing_mm)
    b_points, b_area = _surface(b, spacing_mm)
    return SurfaceDistances(_nearest(a_points, b_points), a_area, _nearest(b_points, a_points), b_area)


def weighted_percentile(distances: np.ndarray, areas: np.ndarray, percent: float) -> float:
    """Smallest of the distances within which ``percent`` of the area lies."""
    order = np.argsort(distances, kind="stable")
    covered = np.cumsum(areas[order]) / areas.sum()
    position = int(np.searchsorted(covered, percent / 100 - 1e-12))
    return float(distances[order][min(position, len(order) - 1)])


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Smallest box around a mask that is not empty."""
    limits = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        limits.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(limits)


def _surface(mask: np.ndarray, spacing_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Positions (N, D) in mm of the corners on the surface, and their areas (N,)."""
    box = bounding_box(mask)
    codes = neighbor_codes(np.pad(mask[box], 1))
    corners = np.nonzero((codes > 0) & (codes < 2**2**mask.ndim - 1))
    first = np.array([s.start for s in box])
    return (np.transpose(corners) + first) * np.asarray(spacing_mm, dtype=float), element_areas(spacing_mm)[
        codes[corners]
    ]


def _nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.asarray(KDTree(others, balanced_tree=False, compact_nodes=False).query(points)[0])
