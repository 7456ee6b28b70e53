"""The ideal path of clicks through a structure: centres of its cross-sections, and how large those are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage


@dataclass(frozen=True, eq=False)
class ClickPath:
    """An ordered path; where a slice holds several pieces of the structure, several points lie on one slice.

    Attributes:
        slice_index: (P,) int, ascending.
        xy: (P, 2) centres, (column, row) in slice pixels.
        radius_px: (P,) equivalent radius of the cross-section in (column-wise) pixels.
        pixel_mm: (row, column) spacing; slice_mm: distance of slices.
    """

    slice_index: np.ndarray
    xy: np.ndarray
    radius_px: np.ndarray
    pixel_mm: tuple[float, float]
    slice_mm: float


def click_path(mask: np.ndarray, pixel_mm: tuple[float, float], slice_mm: float) -> ClickPath:
    """Work out the path of a structure.

    Every connected piece of a cross-section gives one centre: its centroid, or the place deepest inside where the
    centroid lies outside the piece. A piece that runs far in the slice plane (longer than three times its width) gives
    the points of its skeleton instead, every 5 mm.

    Args:
        mask: (T, H, W) bool.
    """
    slices, centers, radii = [], [], []
    for t in np.flatnonzero(mask.any(axis=(1, 2))):
        labels, count = ndimage.label(mask[t], np.ones((3, 3)))
        for n in range(1, count + 1):
            piece = labels == n
            area = int(piece.sum())
            if count > 1 and area < 0.1 * mask[t].sum():
                continue
            points = _points_of_piece(piece, pixel_mm)
            width = area / len(points)
            slices += [int(t)] * len(points)
            centers += points
            radii += [np.sqrt(width / np.pi)] * len(points)
    return ClickPath(
        np.array(slices, dtype=int), np.array(centers, dtype=float).reshape(-1, 2), np.array(radii), pixel_mm, slice_mm
    )


def _points_of_piece(piece: np.ndarray, pixel_mm: tuple[float, float]) -> list[list[float]]:
    rows, columns = np.nonzero(piece)
    depth = ndimage.distance_transform_edt(np.pad(piece, 1))[1:-1, 1:-1]
    width = 2 * float(depth.max())
    if len(rows) > 3 * width * width:
        return _skeleton_points(piece, pixel_mm)
    row, column = rows.mean(), columns.mean()
    if not piece[int(round(row)), int(round(column))]:
        row, column = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return [[float(column), float(row)]]


def _skeleton_points(piece: np.ndarray, pixel_mm: tuple[float, float], every_mm: float = 5.0) -> list[list[float]]:
    from skimage.morphology import skeletonize

    rows, columns = np.nonzero(skeletonize(piece))
    remaining = np.stack((columns, rows), axis=1).astype(float)
    scale = np.array([pixel_mm[1], pixel_mm[0]])
    points: list[list[float]] = []
    while len(remaining):
        points.append([float(v) for v in remaining[0]])
        remaining = remaining[np.linalg.norm((remaining - remaining[0]) * scale, axis=1) >= every_mm]
    return points
