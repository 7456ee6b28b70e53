"""Distances between the surfaces of two masks, in millimetres.

Definition of DeepMind's ``surface-distance`` (Nikolov et al. 2018): the surface lies between voxels. At every corner of
the grid the 2 x 2 (2-D) or 2 x 2 x 2 (3-D) voxels around it tell whether and with which area the surface passes there;
distances are taken between such corners and weighted by area. Here the area of a corner is estimated from the gradient
of its voxel cube (the length of the summed face normals) instead of marching-cubes triangles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances (N,) and areas (N,) of the surface elements of each mask to the other's surface."""

    a_to_b: np.ndarray
    a_area: np.ndarray
    b_to_a: np.ndarray
    b_area: np.ndarray


def surface_distances(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float]) -> SurfaceDistances:
    """Distances between the surfaces of two non-empty bool arrays of one shape, 2-D or 3-D.

    Args:
        spacing_mm: voxel spacing in the order of the array's axes.
    """
    box = _common_box(a, b)
    a, b = np.pad(a[box], 1), np.pad(b[box], 1)
    a_surface, a_area = _surface(a, spacing_mm)
    b_surface, b_area = _surface(b, spacing_mm)
    to_a = ndimage.distance_transform_edt(~a_surface, spacing_mm)
    to_b = ndimage.distance_transform_edt(~b_surface, spacing_mm)
    return SurfaceDistances(to_b[a_surface], a_area[a_surface], to_a[b_surface], b_area[b_surface])


def weighted_percentile(distances: np.ndarray, areas: np.ndarray, percent: float) -> float:
    """Smallest distance that covers ``percent`` of the area."""
    order = np.argsort(distances, kind="stable")
    covered = np.cumsum(areas[order]) / areas.sum()
    position = int(np.searchsorted(covered, percent / 100 - 1e-12))
    return float(distances[order][min(position, len(order) - 1)])


def _common_box(a: np.ndarray, b: np.ndarray) -> tuple[slice, ...]:
    both = a | b
    limits = []
    for axis in range(both.ndim):
        filled = np.flatnonzero(both.any(axis=tuple(i for i in range(both.ndim) if i != axis)))
        limits.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(limits)


def _surface(mask: np.ndarray, spacing_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Corners (one fewer than voxels along each axis) where the surface passes, and its area at each."""
    cubes = mask.astype(np.float32)
    for axis in range(mask.ndim):
        cubes = _along(cubes, axis, 0.5, 0.5)
    surface = (cubes > 0) & (cubes < 1)
    squared = np.zeros(cubes.shape, dtype=np.float64)
    for axis in range(mask.ndim):
        normal = mask.astype(np.float32)
        for other in range(mask.ndim):
            normal = _along(normal, other, -1.0, 1.0) if other == axis else _along(normal, other, 0.5, 0.5)
        face = float(np.prod([spacing_mm[i] for i in range(mask.ndim) if i != axis]))
        squared += (normal * face) ** 2
    smallest = float(np.prod(spacing_mm)) / float(np.max(spacing_mm)) / 4
    return surface, np.maximum(np.sqrt(squared), smallest)


def _along(array: np.ndarray, axis: int, first: float, second: float) -> np.ndarray:
    """Weighted sum of neighbours along an axis."""
    n = array.shape[axis]
    return first * np.take(array, range(n - 1), axis) + second * np.take(array, range(1, n), axis)
