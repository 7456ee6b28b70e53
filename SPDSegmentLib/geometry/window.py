"""The square field of view that the network sees of a slice, and the way there and back.

A bundle has a fixed physical field of view, so that a structure has the same size in pixels whatever the scanner's
matrix. The window has the same place in all slices of a volume.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

BLOCK_INPUTS, BLOCK_OUTPUTS = 32, (4, 1024)
"""A block of weights sees about so many inputs, and gives at least and at most so many outputs."""

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
        rows, columns = self.to_input_weights()
        result = np.zeros((len(slices), self.size, self.size), dtype=np.float32)
        if rows.blocks and columns.blocks:
            seen = slices[:, rows.inputs, columns.inputs].astype(np.float32, copy=False)
            result[:, rows.outputs, columns.outputs] = weighted(rows, columns, seen)
        return result

    def restore(self, maps: np.ndarray, outside: float) -> np.ndarray:
        """Network maps (T, S, S) to slice pixels (T, H, W) by linear interpolation; ``outside`` beyond the window."""
        rows, columns = self.to_slice_weights()
        result = np.full((len(maps), *self.slice_shape), outside, dtype=np.float32)
        if rows.blocks and columns.blocks:
            seen = maps[:, rows.inputs, columns.inputs].astype(np.float32, copy=False)
            result[:, rows.outputs, columns.outputs] = weighted(rows, columns, seen)
        return result

    def to_input_weights(self) -> tuple[Bands, Bands]:
        """Weights of slice rows and columns in the network's: triangles as wide as the coarser of both grids."""
        rows, columns = (
            _triangles(self.size, length, self.scale_xy[axis], self.origin_xy[axis])
            for length, axis in zip(self.slice_shape, (1, 0), strict=True)
        )
        return rows, columns

    def to_slice_weights(self) -> tuple[Bands, Bands]:
        """Weights of the network's rows and columns in the slice's: linear interpolation."""
        rows, columns = (
            _interpolation(length, self.size, self.scale_xy[axis], self.origin_xy[axis])
            for length, axis in zip(self.slice_shape, (1, 0), strict=True)
        )
        return rows, columns


@dataclass(frozen=True, eq=False)
class Bands:
    """The weights of one axis, of which each output sees a short run of inputs, as dense blocks along the diagonal.

    Attributes:
        blocks: first and last output, first and last input (each the last plus one), and the weights (outputs, inputs):
            numpy arrays, or tensors, whatever they are to be applied to. Outputs follow one another without a gap;
            those before and after see no input.
    """

    blocks: tuple[tuple[int, int, int, int, Any], ...]

    @property
    def outputs(self) -> slice:
        """The outputs that see an input."""
        return slice(self.blocks[0][0], self.blocks[-1][1])

    @property
    def inputs(self) -> slice:
        """The inputs that are seen."""
        return slice(min(block[2] for block in self.blocks), max(block[3] for block in self.blocks))

    def seeing(self, first: int, stop: int) -> Bands:
        """The blocks that see one of the inputs from ``first`` to before ``stop``."""
        return Bands(tuple(block for block in self.blocks if block[2] < stop and block[3] > first))

    def merged(self) -> Bands:
        """All weights as one dense block, for a device to which their number is nothing."""
        outputs, inputs = self.outputs, self.inputs
        dense = np.zeros((outputs.stop - outputs.start, inputs.stop - inputs.start), dtype=np.float32)
        for low, high, first, stop, weights in self.blocks:
            dense[low - outputs.start : high - outputs.start, first - inputs.start : stop - inputs.start] = weights
        return Bands(((outputs.start, outputs.stop, inputs.start, inputs.stop, dense),))

    def reversed(self, n_inputs: int) -> Bands:
        """The same for ``n_inputs`` inputs in the opposite order."""
        return Bands(
            tuple((a, b, n_inputs - stop, n_inputs - first, w[:, ::-1].copy()) for a, b, first, stop, w in self.blocks)
        )

    def with_weights(self, convert: Callable[[np.ndarray], Any]) -> Bands:
        """The same weights as another kind of array."""
        return Bands(tuple((*block[:4], convert(block[4])) for block in self.blocks))


def weighted(rows: Bands, columns: Bands, images: Any) -> Any:
    """Images (T, h, w), cut to the inputs of both, as (T, outputs, outputs); arrays and tensors alike."""
    height, width = images.shape[1:]
    n_rows, n_columns = (bands.outputs.stop - bands.outputs.start for bands in (rows, columns))
    if n_columns * height <= n_rows * width:  # the smaller one in between
        return _along_rows(rows, _along_columns(columns, images))
    return _along_columns(columns, _along_rows(rows, images))


def _along_rows(bands: Bands, images: Any) -> Any:
    origin, base = bands.outputs.start, bands.inputs.start
    result = _empty_like(images, (len(images), bands.outputs.stop - origin, images.shape[2]))
    for low, high, first, stop, weights in bands.blocks:
        result[:, low - origin : high - origin] = weights @ images[:, first - base : stop - base]
    return result


def _along_columns(bands: Bands, images: Any) -> Any:
    origin, base = bands.outputs.start, bands.inputs.start
    result = _empty_like(images, (*images.shape[:2], bands.outputs.stop - origin))
    for low, high, first, stop, weights in bands.blocks:
        result[..., low - origin : high - origin] = images[..., first - base : stop - base] @ weights.T
    return result


def _empty_like(images: Any, shape: tuple[int, ...]) -> Any:
    return np.empty(shape, dtype=np.float32) if isinstance(images, np.ndarray) else images.new_empty(shape)


def _triangles(size: int, length: int, scale: float, origin: float) -> Bands:
    """Weights of ``length`` pixels in ``size`` network pixels, each normalized to one; none beyond the slice."""
    center = np.arange(size) * scale + origin
    inside = (center >= -0.5) & (center <= length - 0.5)
    width = max(scale, 1.0)
    taps = np.ceil(center - width).astype(np.int64)[:, None] + np.arange(int(np.ceil(2 * width)) + 1)
    weights = np.maximum(0.0, 1 - np.abs(center[:, None] - taps) / width) * ((taps >= 0) & (taps < length))
    total = weights.sum(axis=1, keepdims=True)
    return _banded(inside, taps, weights / np.where(total > 0, total, 1), length)


def _interpolation(length: int, size: int, scale: float, origin: float) -> Bands:
    """Weights of ``size`` network pixels in ``length`` slice pixels: the two nearest; none beyond the window."""
    position = (np.arange(length) - origin) / scale
    inside = (position >= -0.5) & (position <= size - 0.5)
    position = position.clip(0, size - 1)
    low = np.minimum(position.astype(np.int64), max(size - 2, 0))
    share = position - low
    return _banded(inside, low[:, None] + [0, 1], np.stack([1 - share, share], axis=1), size)


def _banded(inside: np.ndarray, taps: np.ndarray, weights: np.ndarray, n_inputs: int) -> Bands:
    """Bands of the outputs ``inside`` (N,), a run of them, from the inputs ``taps`` (N, K) with ``weights`` (N, K)."""
    outputs = np.flatnonzero(inside)
    if not len(outputs):
        return Bands(())
    step = max(1, int(taps[outputs[-1], 0] - taps[outputs[0], 0])) / len(outputs)
    count = int(np.clip(BLOCK_INPUTS / step, *BLOCK_OUTPUTS))
    blocks = []
    for low in range(int(outputs[0]), int(outputs[-1]) + 1, count):
        high = min(low + count, int(outputs[-1]) + 1)
        first, stop = max(0, int(taps[low, 0])), min(n_inputs, int(taps[high - 1, -1]) + 1)
        dense = np.zeros((high - low, stop - first), dtype=np.float32)
        at, share = taps[low:high], weights[low:high]
        row, column = np.nonzero((at >= first) & (at < stop))
        dense[row, at[row, column] - first] = share[row, column]
        blocks.append((low, high, first, stop, dense))
    return Bands(tuple(blocks))


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
