"""What clicks say to a network on a slice: points, a box, or a map of how near the clicks are.

Slices between the first and the last click that have none get one point on the centerline through the clicks, as in the
strategy ``interpolated``: the strongest simple use of clicks, so every comparator gets it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.window import InputWindow
from SPDSegmentLib.prompts.distillation import SliceClicks
from SPDSegmentLib.prompts.strategies import interpolate_clicks
from SPDSegmentLib.training.augmentation import View
from SPDSegmentLib.training.cases import Case

REACH = 0.25
"""Share of the field of view beyond which a pixel counts as far from every click."""


@dataclass(frozen=True, eq=False)
class NetworkClicks:
    """The clicks of one volume in network pixels; those outside the field of view are left out.

    Attributes:
        clicks: (N,) slices and (N, 2) network pixels, (column, row).
        size: S; pixel_mm: side of a network pixel; slice_mm: distance of slices.
    """

    clicks: SliceClicks
    size: int
    pixel_mm: float
    slice_mm: float

    @classmethod
    def in_window(cls, clicks: Clicks, window: InputWindow, stack: SliceStack) -> NetworkClicks:
        """For inference; ``clicks`` lie inside the volume."""
        pixel_mm = window.scale_xy[0] * stack.pixel_mm[1]
        return cls(
            _visible(clicks.slice_index, window.to_input(clicks.xy), window.size), window.size, pixel_mm, stack.slice_mm
        )

    @classmethod
    def in_view(cls, clicks: SliceClicks, view: View, case: Case) -> NetworkClicks:
        """For training: clicks in slice pixels of a case, seen through a random view."""
        spacing = np.array([case.pixel_mm[1], case.pixel_mm[0]])
        pixel_mm = float(np.sqrt(abs(np.linalg.det(view.matrix * spacing[:, None]))))
        return cls(
            _visible(clicks.slice_index, view.to_input(clicks.xy), view.size), view.size, pixel_mm, case.slice_mm
        )

    @cached_property
    def _between(self) -> dict[int, np.ndarray]:
        return interpolate_clicks(self.clicks)

    def points(self, t: int) -> np.ndarray:
        """(M, 2) clicks of slice t, or the centerline's point; none before the first and after the last click."""
        own = self.clicks.xy[self.clicks.on(t)]
        return own if len(own) else self._between.get(t, np.empty((0, 2)))

    def box(self, t: int, margin_mm: float) -> np.ndarray:
        """(4,) first column, first row, last column, last row around the points of slice t; it must have some."""
        points, margin = self.points(t), margin_mm / self.pixel_mm
        corners = np.concatenate((points.min(axis=0) - margin, points.max(axis=0) + margin))
        return corners.clip(0, self.size - 1)

    def nearness(self, t: int) -> np.ndarray:
        """(S, S) float32: 1 at a click, falling linearly with the distance in 3-D mm to 0 at a quarter of the view."""
        reach = REACH * self.size * self.pixel_mm
        slices = np.concatenate((self.clicks.slice_index, np.fromiter(self._between, int, len(self._between))))
        points = np.concatenate((self.clicks.xy, *self._between.values()))
        away = (slices - t) * self.slice_mm
        near = np.abs(away) < reach
        if not near.any():
            return np.zeros((self.size, self.size), dtype=np.float32)
        grid = np.arange(self.size, dtype=np.float32)
        columns = ((grid - points[near, :1].astype(np.float32)) * self.pixel_mm) ** 2
        rows = ((grid - points[near, 1:].astype(np.float32)) * self.pixel_mm) ** 2
        squared = rows[:, :, None] + columns[:, None, :] + (away[near] ** 2).astype(np.float32)[:, None, None]
        return 1 - np.sqrt(squared.min(axis=0)).clip(max=reach) / reach


class ClickedSlice(NamedTuple):
    """Slice ``t`` of a volume with these clicks."""

    clicks: NetworkClicks
    t: int


def _visible(slice_index: np.ndarray, uv: np.ndarray, size: int) -> SliceClicks:
    seen = ((uv >= -0.5) & (uv <= size - 0.5)).all(axis=1)
    return SliceClicks(np.asarray(slice_index)[seen], uv[seen])
