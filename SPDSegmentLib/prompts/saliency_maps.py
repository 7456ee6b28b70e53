"""The saliency of a volume's slices, with its connected components; what CPD asks it."""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from scipy import ndimage

from SPDSegmentLib.prompts.click_path import nearest_pixel

T = TypeVar("T")
FEW = 8
EDGE = 0.02
"""A point that misses a component by no more than this share of the map's side counts as in it."""
_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)
_OVERLAPPING = np.zeros((3, 3, 3), dtype=bool)
_OVERLAPPING[1] = True
_OVERLAPPING[:, 1, 1] = True


@dataclass(frozen=True, eq=False)
class SliceClicks:
    """Clicks in network pixels.

    Attributes:
        slice_index: (N,) int.
        xy: (N, 2) float, (column, row).
        insisted: (N,) bool, chosen whatever the saliency.
    """

    slice_index: np.ndarray
    xy: np.ndarray
    insisted: np.ndarray = field(default_factory=lambda: np.zeros((), dtype=bool))

    def __post_init__(self) -> None:
        object.__setattr__(self, "insisted", np.broadcast_to(self.insisted, np.shape(self.slice_index)))

    def __len__(self) -> int:
        return len(self.slice_index)

    def on(self, t: int) -> np.ndarray:
        """Indexes of the clicks on slice t."""
        slices, order, _ = self._by_slice
        return order[bisect.bisect_left(slices, t) : bisect.bisect_right(slices, t)]

    def near(self, t: int, n: int) -> bytes:
        """Equal for two sets of clicks exactly if slice t sees the same clicks, n slices to either side."""
        slices, _, table = self._by_slice
        return table[bisect.bisect_left(slices, t - n) : bisect.bisect_right(slices, t + n)].tobytes()

    @functools.cached_property
    def _by_slice(self) -> tuple[list[int], np.ndarray, np.ndarray]:
        order = np.argsort(self.slice_index, kind="stable")
        xy = np.asarray(self.xy, dtype=np.float64).reshape(-1, 2)
        table = np.column_stack((np.arange(len(order)), self.slice_index, xy, self.insisted))[order]
        return np.asarray(self.slice_index)[order].tolist(), order, table


class SaliencyMaps:
    """Saliency per slice in network pixels, with components worked out once and kept.

    Args:
        n_slices: T.
        load: gives S_t, (S, S) in [0, 1], for a slice index; called once per slice, and again after :meth:`forget`.
        threshold: tau.
        slice_px: distance of two slices in network pixels; pixel_mm: side of such a pixel.
    """

    def __init__(
        self,
        n_slices: int,
        load: Callable[[int], np.ndarray],
        threshold: float,
        slice_px: float = 1.0,
        pixel_mm: float = 1.0,
    ) -> None:
        self.pixel_mm = pixel_mm
        self.n_slices = n_slices
        self.threshold = threshold
        self.slice_px = slice_px
        self._load = load
        self._maps: dict[int, np.ndarray] = {}
        self._components: dict[int, np.ndarray] = {}
        self._decided: dict[tuple[str, int], tuple[object, range, Any]] = {}

    @classmethod
    def from_array(
        cls, saliency: np.ndarray, threshold: float, slice_px: float = 1.0, pixel_mm: float = 1.0
    ) -> SaliencyMaps:
        """From S as one array (T, S, S)."""
        return cls(len(saliency), saliency.__getitem__, threshold, slice_px, pixel_mm)

    def map(self, t: int) -> np.ndarray:
        """S_t, (S, S)."""
        if t not in self._maps:
            self._maps[t] = np.asarray(self._load(t))
        return self._maps[t]

    def forget(self, slices: Iterable[int]) -> None:
        """Load these slices again when they are next asked for."""
        gone = set(slices)
        for t in gone:
            self._maps.pop(t, None)
            self._components.pop(t, None)
        if gone:
            self._decided = {what: kept for what, kept in self._decided.items() if gone.isdisjoint(kept[1])}

    def decide(self, what: str, t: int, key: object, slices: range, make: Callable[[], T]) -> T:
        """What ``make`` gives, kept until it is asked for with another key or one of the ``slices`` is forgotten.

        Args:
            what, t: the kind of decision, and the slice that it is about.
            key: all that it depends on but the maps of ``slices``.
        """
        known = self._decided.get((what, t))
        if known is None or known[0] != key:
            known = self._decided[what, t] = (key, slices, make())
        found: T = known[2]
        return found

    def at(self, t: int, points_xy: np.ndarray) -> np.ndarray:
        """S_t at points (N, 2) in (column, row), nearest pixel; 0 outside the map."""
        return _pick(self.map(t), np.asarray(points_xy, float).reshape(-1, 2)).astype(np.float32)

    def components(self, t: int) -> np.ndarray:
        """Labels (S, S) of the connected regions of S_t > tau, 0 for the rest."""
        if t not in self._components:
            self._components[t] = _label(_exceeds(self.map(t), self.threshold))
        return self._components[t]

    def component_at(self, t: int, points_xy: np.ndarray) -> np.ndarray:
        """Component label under each of (N, 2) points, or of one that it hardly misses; 0 where not salient."""
        points = np.asarray(points_xy, float).reshape(-1, 2)
        labels = _pick(self.components(t), points)
        if not labels.all() and self.is_salient(t):
            missed = np.flatnonzero(labels == 0)
            nearest, distances = self._nearest(t, points[missed])
            hardly = distances <= EDGE * self.map(t).shape[0]
            labels[missed[hardly]] = nearest[hardly]
        return labels

    def objects(self, slices: range) -> list[np.ndarray]:
        """The connected regions of S > tau through some slices, each as the (M, 3) slice, row and column of its pixels.

        Components of two slices are connected where they overlap. All of the slices are loaded.
        """
        salient = np.stack([self.components(t) > 0 for t in slices])
        labels = ndimage.label(salient, _OVERLAPPING)[0]
        pixels = np.argwhere(salient) + (slices.start, 0, 0)
        order = np.argsort(labels[salient], kind="stable")
        sizes = np.bincount(labels[salient])[1:]
        return np.split(pixels[order], np.cumsum(sizes)[:-1]) if len(pixels) else []

    def is_salient(self, t: int) -> bool:
        """Whether any pixel of S_t exceeds tau."""
        return bool(self.components(t).any())

    def nearest_component(self, t: int, point_xy: np.ndarray) -> int:
        """Label of the component nearest to a point; the slice must be salient."""
        return int(self._nearest(t, point_xy[None])[0][0])

    def _nearest(self, t: int, points_xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels of the components nearest to points (N, 2), and their distances in pixels."""
        labels = self.components(t)
        rows, columns = np.nonzero(labels)
        nearest = [int(np.argmin((columns - x) ** 2 + (rows - y) ** 2)) for x, y in points_xy]
        places = np.stack((columns[nearest], rows[nearest]), axis=1)
        return labels[rows[nearest], columns[nearest]], np.sqrt(((places - points_xy) ** 2).sum(axis=1))

    def deepest_point(self, t: int, label: int) -> np.ndarray:
        """(column, row) of the place of a component farthest from its border."""
        return deepest_point(self.components(t) == label)

    def connected_region(self, t: int, region: np.ndarray, low_threshold: float) -> np.ndarray | None:
        """The component of slice t, (S, S) bool, that shares most pixels with ``region`` (S, S).

        Where none above tau does, one of S_t > ``low_threshold``; ``None`` where there is none either.
        """
        labels = self.components(t)
        label = _most_frequent(labels[region])
        if label == 0 and low_threshold < self.threshold:
            labels = _label(_exceeds(self.map(t), low_threshold))
            label = _most_frequent(labels[region])
        return labels == label if label else None


def grown(region: np.ndarray, pixels: float) -> np.ndarray:
    """All places at most so far from a region (S, S); none where it is empty."""
    if not region.any():
        return region
    near: np.ndarray = ndimage.distance_transform_edt(~region) <= pixels
    return near


def deepest_point(region: np.ndarray) -> np.ndarray:
    """(column, row) of the place of a region (S, S) farthest from its border; ties go to the first in raster order."""
    box = _box(region)
    depth = ndimage.distance_transform_cdt(np.pad(region[box], 1), "chessboard")
    row, column = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return np.array([box[1].start + column - 1, box[0].start + row - 1], dtype=np.float64)


def _pick(image: np.ndarray, points_xy: np.ndarray) -> np.ndarray:
    """Values (N,) of an image (H, W) at the pixels nearest to points (N, 2); 0 outside."""
    height, width = image.shape
    if len(points_xy) <= FEW:  # sparing numpy's overhead
        at = ((math.floor(x + 0.5), math.floor(y + 0.5)) for x, y in points_xy.tolist())
        found = [image[y, x] if 0 <= x < width and 0 <= y < height else 0 for x, y in at]
        return np.array(found, dtype=image.dtype)
    columns, rows = nearest_pixel(points_xy).T
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    if inside.all():
        return np.asarray(image[rows, columns])
    values = np.zeros(len(columns), dtype=image.dtype)
    values[inside] = image[rows[inside], columns[inside]]
    return values


def _exceeds(saliency: np.ndarray, threshold: float) -> np.ndarray:
    """S > threshold, of float16 by its bits: those of numbers that are not negative are in the numbers' order."""
    if saliency.dtype != np.float16:
        return saliency > threshold
    return np.ascontiguousarray(saliency).view(np.int16) > np.float16(threshold).view(np.int16)


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of (S, S) that hold all that is set; the first pixel where nothing is."""
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(axis=0)) if len(rows) else rows
    if not len(rows):
        return slice(0, 1), slice(0, 1)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _label(mask: np.ndarray) -> np.ndarray:
    labels, box = np.zeros(mask.shape, dtype=np.int32), _box(mask)
    ndimage.label(mask[box], _EIGHT_CONNECTED, output=labels[box])
    return labels


def _most_frequent(labels: np.ndarray) -> int:
    """The label other than 0 that occurs most often; 0 if there is none."""
    counts = np.bincount(labels, minlength=1)
    counts[0] = 0
    return int(np.argmax(counts)) if counts.any() else 0
