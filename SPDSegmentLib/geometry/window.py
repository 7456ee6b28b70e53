"""The square field of view that the network sees of a slice, and the way there and back.

A bundle has a fixed physical field of view, so that a structure has the same size in pixels whatever the scanner's
matrix. The window has the same place in all slices of a volume.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

DENSE_WEIGHTS = 1 << 22
"""Weights of an axis beyond this number are kept sparse: a slice with millions of pixels would take gigabytes."""
Weights: TypeAlias = "np.ndarray | csr_matrix"

FIELDS_OF_VIEW_MM = (48.0, 64.0, 90.0, 128.0, 180.0, 256.0, 360.0, 512.0)
FOV_AROUND_MM, FOV_PER_SPREAD, FOV_LEAST_MM = 80.0, 2.0, 180.0
FOV_PER_SLICE = 1.4


@dataclass(frozen=True)
class InputWindow:
    """Axis-aligned map between slice pixels and network pixels; both count from the first pixel's centre.

    Attributes:
        size: S, side of the network input in pixels.
        scale_xy: slice pixels per network pixel, (column, row).
        origin_xy: slice position of network pixel (0, 0), (column, row).
        slice_shape: (H, W) of a slice.
    """

    size: int
    scale_xy: tuple[float, float]
    origin_xy: tuple[float, float]
    slice_shape: tuple[int, int]

    @property
    def center_xy(self) -> tuple[float, float]:
        """Slice position of the window's middle, (column, row); :func:`place_window` there gives the same window."""
        half = (self.size - 1) / 2
        return self.origin_xy[0] + self.scale_xy[0] * half, self.origin_xy[1] + self.scale_xy[1] * half

    def to_input(self, xy: np.ndarray) -> np.ndarray:
        """Slice pixels (N, 2) to network pixels (N, 2)."""
        return (np.asarray(xy, dtype=np.float64) - self.origin_xy) / self.scale_xy

    def to_slice(self, uv: np.ndarray) -> np.ndarray:
        """Network pixels (N, 2) to slice pixels (N, 2)."""
        return np.asarray(uv, dtype=np.float64) * self.scale_xy + self.origin_xy

    def contains(self, xy: np.ndarray) -> np.ndarray:
        """Which of (N, 2) slice positions lie in the window."""
        uv = self.to_input(xy)
        inside: np.ndarray = (uv >= -0.5) & (uv <= self.size - 0.5)
        return inside[:, 0] & inside[:, 1]

    def resample(self, slices: np.ndarray) -> np.ndarray:
        """Slices (T, H, W) to the network's pixels (T, S, S) float32, area-weighted; zero outside the slice."""
        rows, columns = self._to_input_weights()
        return _weighted(rows, columns, slices.astype(np.float32, copy=False))

    def restore(self, maps: np.ndarray, outside: float) -> np.ndarray:
        """Network maps (T, S, S) to slice pixels (T, H, W) by linear interpolation; ``outside`` beyond the window."""
        height, width = self.slice_shape
        rows = self._to_slice_weights(height, self.scale_xy[1], self.origin_xy[1])
        columns = self._to_slice_weights(width, self.scale_xy[0], self.origin_xy[0])
        inside_rows, inside_columns = _covered(rows), _covered(columns)
        restored = np.full((len(maps), height, width), outside, dtype=np.float32)
        part = _weighted(rows[inside_rows], columns[inside_columns], maps.astype(np.float32, copy=False))
        restored[np.ix_(np.arange(len(maps)), inside_rows, inside_columns)] = part
        return restored

    def _to_input_weights(self) -> tuple[Weights, Weights]:
        height, width = self.slice_shape
        return (
            _triangle_weights(self.size, height, self.scale_xy[1], self.origin_xy[1]),
            _triangle_weights(self.size, width, self.scale_xy[0], self.origin_xy[0]),
        )

    def _to_slice_weights(self, length: int, scale: float, origin: float) -> Weights:
        """(length, S) linear interpolation weights; rows of zeros outside the window."""
        position = (np.arange(length) - origin) / scale
        inside = (position >= -0.5) & (position <= self.size - 0.5)
        position = position.clip(0, self.size - 1)
        if length * self.size > DENSE_WEIGHTS:
            return _sparse_interpolation(position, inside, self.size)
        weights = np.maximum(0.0, 1 - np.abs(position[:, None] - np.arange(self.size)[None]))
        return (weights * inside[:, None]).astype(np.float32)


def _triangle_weights(size: int, length: int, scale: float, origin: float) -> Weights:
    """(size, length) weights of a triangle filter as wide as the coarser of both grids (no aliasing)."""
    center = np.arange(size) * scale + origin
    width = max(scale, 1.0)
    if length * size > DENSE_WEIGHTS:
        return _sparse_triangles(center, width, length)
    weights = np.maximum(0.0, 1 - np.abs(center[:, None] - np.arange(length)[None]) / width)
    total = weights.sum(axis=1, keepdims=True)
    inside = (center >= -0.5) & (center <= length - 0.5)
    return np.where(inside[:, None], weights / np.where(total > 0, total, 1), 0).astype(np.float32)


def _sparse_triangles(center: np.ndarray, width: float, length: int) -> csr_matrix:
    """The same weights as :func:`_triangle_weights`, kept where they are not zero."""
    from scipy.sparse import csr_matrix

    columns, values = [], []
    for middle in center:
        inside = -0.5 <= middle <= length - 0.5
        taps = np.arange(max(0, np.floor(middle - width)), min(length - 1, np.ceil(middle + width)) + 1, dtype=np.int64)
        weights = np.maximum(0.0, 1 - np.abs(middle - taps) / width)
        total = weights.sum()
        columns.append(taps if inside else taps[:0])
        values.append(weights / total if inside and total > 0 else weights[: len(columns[-1])])
    ends = np.concatenate([[0], np.cumsum([len(part) for part in columns])])
    found = np.concatenate(values).astype(np.float32), np.concatenate(columns), ends
    return csr_matrix(found, shape=(len(center), length))


def _sparse_interpolation(position: np.ndarray, inside: np.ndarray, size: int) -> csr_matrix:
    """(length, size) weights of the two nearest of ``size`` pixels."""
    from scipy.sparse import csr_matrix

    low = np.minimum(position.astype(np.int64), max(size - 2, 0))
    share = position - low
    columns = np.stack([low, np.minimum(low + 1, size - 1)], axis=1)[inside]
    weights = np.stack([1 - share, share], axis=1)[inside].astype(np.float32)
    ends = np.concatenate([[0], np.cumsum(2 * inside)])
    return csr_matrix((weights.ravel(), columns.ravel(), ends), shape=(len(position), size))


def _covered(weights: Weights) -> np.ndarray:
    """Which rows have a weight."""
    return np.asarray(weights.any(axis=1) if isinstance(weights, np.ndarray) else np.diff(weights.indptr) > 0)


def _weighted(rows: Weights, columns: Weights, images: np.ndarray) -> np.ndarray:
    """``rows @ image @ columns.T`` of each of (T, H, W) images."""
    if isinstance(rows, np.ndarray) and isinstance(columns, np.ndarray):
        return np.matmul(rows, np.matmul(images, columns.T))
    result = np.empty((len(images), rows.shape[0], columns.shape[0]), dtype=np.float32)
    for image, part in zip(images, result, strict=True):
        if columns.shape[0] * image.shape[0] <= rows.shape[0] * image.shape[1]:  # the smaller one in between
            part[:] = rows @ (columns @ image.T).T
        else:
            part[:] = (columns @ (rows @ image).T).T
    return result


def place_window(
    slice_shape: tuple[int, int],
    pixel_mm: tuple[float, float],
    size: int,
    fov_mm: float,
    center_xy: np.ndarray | None = None,
) -> InputWindow:
    """Choose the window of a volume.

    Args:
        slice_shape: (H, W).
        pixel_mm: (row, column) spacing.
        size: S.
        fov_mm: side of the field of view; 0 fits the whole slice.
        center_xy: where to look, (column, row) in slice pixels, usually the median click. Along an axis that fits into
            the field of view the slice's middle is taken instead. The centre is rounded to an eighth of the field of
            view, so that small changes of the clicks leave it in place.
    """
    height, width = slice_shape
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    spacing = np.array([pixel_mm[1], pixel_mm[0]])
    extent = np.array([width, height]) * spacing
    fov = fov_mm if fov_mm > 0 else float(extent.max())
    center = middle.copy()
    if center_xy is not None:
        grid = fov / 8 / spacing
        wanted = middle + np.round((np.asarray(center_xy, float) - middle) / grid) * grid
        center = np.where(extent <= fov * 1.001, middle, wanted)
    scale = fov / size / spacing
    origin = center - scale * (size - 1) / 2
    return InputWindow(size, (float(scale[0]), float(scale[1])), (float(origin[0]), float(origin[1])), (height, width))


def fov_of_clicks(xy: np.ndarray, slice_shape: tuple[int, ...], pixel_mm: tuple[float, float]) -> float:
    """A field of view in mm for a structure that was clicked at (N, 2) slice pixels, one of a few steps.

    It holds the clicks with room around them, whatever the structure's size, but is not much larger than the slice.
    """
    spacing = np.array([pixel_mm[1], pixel_mm[0]])
    low, high = np.percentile(np.asarray(xy, float) * spacing, (25, 75), axis=0)
    wanted = max(FOV_LEAST_MM, FOV_PER_SPREAD * float((high - low).max()) + FOV_AROUND_MM)
    longest = FOV_PER_SLICE * float(max(slice_shape[1] * spacing[0], slice_shape[0] * spacing[1]))
    steps = np.array(FIELDS_OF_VIEW_MM)
    return float(steps[min(int(np.searchsorted(steps, min(wanted, longest))), len(steps) - 1)])
