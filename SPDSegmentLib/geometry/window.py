"""The square field of view that the network sees of a slice, and the way there and back.

A bundle has a fixed physical field of view, so that a structure has the same size in pixels whatever the scanner's
matrix. The window has the same place in all slices of a volume.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from scipy import sparse

T = TypeVar("T", bound=Any)

FIELDS_OF_VIEW_MM = (48.0, 64.0, 90.0, 128.0, 180.0, 256.0, 360.0, 512.0)
FOV_HELD, FOV_MIDDLE, FOV_LEAST_MM = 60.0, 0.7, 180.0
"""This percentage of the clicks lies within that share of the field of view, which is at least so large."""
FOV_PER_SLICE = 1.4


@dataclass(frozen=True)
class InputWindow:
    """Axis-aligned map between slice pixels and network pixels; both count from the first pixel's center.

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
        both: np.ndarray = inside[:, 0] & inside[:, 1]
        return both

    def resample(self, slices: np.ndarray) -> np.ndarray:
        """Slices (T, H, W) to the network's pixels (T, S, S) float32, area-weighted; zero outside the slice."""
        result = np.zeros((len(slices), self.size, self.size), dtype=np.float32)
        return _weigh_into(result, *self.to_input_weights(), slices)

    def restore(self, maps: np.ndarray, outside: float) -> np.ndarray:
        """Network maps (T, S, S) to slice pixels (T, H, W) by linear interpolation; ``outside`` beyond the window."""
        result = np.full((len(maps), *self.slice_shape), outside, dtype=np.float32)
        return _weigh_into(result, *self.to_slice_weights(), maps)

    def to_input_weights(self) -> tuple[Taps, Taps]:
        """Weights of slice rows and columns in the network's: triangles as wide as the coarser of both grids."""
        rows, columns = (
            _triangles(self.size, length, self.scale_xy[axis], self.origin_xy[axis])
            for length, axis in zip(self.slice_shape, (1, 0), strict=True)
        )
        return rows, columns

    def to_slice_weights(self) -> tuple[Taps, Taps]:
        """Weights of the network's rows and columns in the slice's: linear interpolation."""
        rows, columns = (
            _interpolation(length, self.size, self.scale_xy[axis], self.origin_xy[axis])
            for length, axis in zip(self.slice_shape, (1, 0), strict=True)
        )
        return rows, columns


@dataclass(frozen=True, eq=False)
class Taps:
    """The weights of one axis: a run of outputs, each a weighted sum of a few inputs.

    Attributes:
        first: the first output that sees an input; those beyond the N that do see none.
        inputs: (N, K) indexes of inputs; weights: (N, K) float32, 0 where there is no input.
    """

    first: int
    inputs: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def outputs(self) -> slice:
        """The outputs that see an input."""
        return slice(self.first, self.first + len(self))

    @property
    def seen(self) -> slice:
        """The inputs that are seen."""
        return slice(int(self.inputs.min()), int(self.inputs.max()) + 1) if len(self) else slice(0, 0)

    def seeing(self, low: int, stop: int) -> Taps:
        """The weights of the outputs that see one of the inputs from ``low`` to before ``stop``."""
        at = np.flatnonzero(((self.inputs >= low) & (self.inputs < stop)).any(axis=1))
        chosen = slice(int(at[0]), int(at[-1]) + 1) if len(at) else slice(0, 0)
        return Taps(self.first + chosen.start, self.inputs[chosen], self.weights[chosen])

    def reversed(self, n_inputs: int) -> Taps:
        """The same for ``n_inputs`` inputs in the opposite order."""
        return Taps(self.first, n_inputs - 1 - self.inputs, self.weights)

    def matrix(self) -> sparse.csr_array:
        """The weights (N, inputs that are seen)."""
        ends = np.arange(0, self.inputs.size + 1, self.inputs.shape[1])
        shape = (len(self), self.seen.stop - self.seen.start)
        return sparse.csr_array((self.weights.ravel(), (self.inputs - self.seen.start).ravel(), ends), shape)


def weighted(rows: Taps, columns: Taps, images: T, apply: Callable[[Taps, T, int], T]) -> T:
    """Images (B, h, w), cut to the inputs of both, as (B, outputs, outputs).

    Args:
        apply: gives (B N, w) of weights, B tables below one another (B inputs, w), and B; the table may be a transposed
            view.
    """

    def along_rows(images: T) -> T:
        batch, height, width = images.shape
        found: T = apply(rows, images.reshape(batch * height, width), batch).reshape(batch, len(rows), width)
        return found

    def along_columns(images: T) -> T:
        batch, height, width = images.shape
        found: T = apply(columns, images.reshape(batch * height, width).T, 1).T.reshape(batch, height, len(columns))
        return found

    if len(rows) <= images.shape[1]:  # the smaller one in between
        return along_columns(along_rows(images))
    return along_rows(along_columns(images))


def _weigh_into(result: np.ndarray, rows: Taps, columns: Taps, images: np.ndarray) -> np.ndarray:
    def apply(taps: Taps, table: np.ndarray, batch: int) -> np.ndarray:
        matrix = taps.matrix()
        return np.concatenate([matrix @ np.ascontiguousarray(part) for part in np.split(table, batch)])

    if len(rows) and len(columns) and len(images):
        seen = images[:, rows.seen, columns.seen].astype(np.float32, copy=False)
        result[:, rows.outputs, columns.outputs] = weighted(rows, columns, seen, apply)
    return result


def _triangles(size: int, length: int, scale: float, origin: float) -> Taps:
    """Weights of ``length`` pixels in ``size`` network pixels, each normalized to one; none beyond the slice."""
    center = np.arange(size) * scale + origin
    inside = (center >= -0.5) & (center <= length - 0.5)
    width = max(scale, 1.0)
    taps = np.ceil(center - width).astype(np.int64)[:, None] + np.arange(int(np.ceil(2 * width)) + 1)
    weights = np.maximum(0.0, 1 - np.abs(center[:, None] - taps) / width) * ((taps >= 0) & (taps < length))
    total = weights.sum(axis=1, keepdims=True)
    return _taps(inside, taps, weights / np.where(total > 0, total, 1), length)


def _interpolation(length: int, size: int, scale: float, origin: float) -> Taps:
    """Weights of ``size`` network pixels in ``length`` slice pixels: the two nearest; none beyond the window."""
    position = (np.arange(length) - origin) / scale
    inside = (position >= -0.5) & (position <= size - 0.5)
    position = position.clip(0, size - 1)
    low = np.minimum(position.astype(np.int64), max(size - 2, 0))
    share = position - low
    return _taps(inside, low[:, None] + [0, 1], np.stack([1 - share, share], axis=1), size)


def _taps(inside: np.ndarray, taps: np.ndarray, weights: np.ndarray, n_inputs: int) -> Taps:
    """Weights of the outputs ``inside`` (N,), a run of them, from the inputs ``taps`` with ``weights``, (N, K) each."""
    at = np.flatnonzero(inside)
    chosen = slice(int(at[0]), int(at[-1]) + 1) if len(at) else slice(0, 0)
    share = np.where((taps >= 0) & (taps < n_inputs), weights, 0.0)[chosen].astype(np.float32)
    return Taps(chosen.start, taps[chosen].clip(0, n_inputs - 1).astype(np.int32), share)


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
            the field of view the slice's middle is taken instead. The center is rounded to an eighth of the field of
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

    Three of five clicks lie in its middle, so that those that are off do not make the structure small; it is not
    much larger than the slice.
    """
    spacing = np.array([pixel_mm[1], pixel_mm[0]])
    mm = np.asarray(xy, float) * spacing
    away = np.abs(mm - np.median(mm, axis=0)).max(axis=1)
    wanted = max(FOV_LEAST_MM, 2 * float(np.percentile(away, FOV_HELD)) / FOV_MIDDLE)
    longest = FOV_PER_SLICE * float(max(slice_shape[1] * spacing[0], slice_shape[0] * spacing[1]))
    steps = np.array(FIELDS_OF_VIEW_MM)
    return float(steps[min(int(np.searchsorted(steps, min(wanted, longest))), len(steps) - 1)])
