"""The slices of one volume as a network sees them, and what it made of them: kept while the volume stays the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from spdbench.comparators.protocol import InputSettings
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.intensity import dither, intensity_range, normalize
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.window import InputWindow, place_window


def window_of(stack: SliceStack, clicks: Clicks, inputs: InputSettings) -> InputWindow:
    """The field of view at these clicks, which lie inside the volume: the one that SPD takes too."""
    height, width = stack.array.shape[1:]
    center = np.median(clicks.xy, axis=0)
    return place_window((height, width), stack.pixel_mm, inputs.image_size, inputs.fov_mm, center)


BLOCK = 4


def pixels_in(window: InputWindow) -> tuple[slice, slice]:
    """Rows and columns of a slice that lie in the field of view."""
    height, width = window.slice_shape
    corners = window.to_slice(np.array([[-0.5, -0.5], [window.size - 0.5, window.size - 0.5]]))
    (left, top), (right, bottom) = np.rint(corners + 0.5).clip(0, [width, height]).astype(int).tolist()
    return slice(top, bottom), slice(left, right)


class FeatureCache:
    """Embedded slices of the last volume, by field of view and slice.

    Slices are embedded in fixed blocks of neighbors, so that a result never depends on what was asked for before.
    """

    def __init__(self, inputs: InputSettings) -> None:
        self.inputs = inputs
        self._stack: SliceStack | None = None
        self._limits = (0.0, 1.0)
        self._kept: dict[tuple[float, float], dict[int, Tensor]] = {}

    def get(
        self, stack: SliceStack, window: InputWindow, slices: Sequence[int], embed: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """(B, ...) what ``embed`` makes of the images (B, 1, S, S) of these slices; computed once."""
        if self._stack is not stack:
            self._stack, self._kept = stack, {}
            self._limits = intensity_range(stack.array, self.inputs.intensity)
        kept = self._kept.setdefault(window.origin_xy, {})
        for block in sorted({t // BLOCK for t in slices if t not in kept}):
            part = range(block * BLOCK, min(stack.n_slices, (block + 1) * BLOCK))
            kept.update(zip(part, embed(self._images(stack, window, part)), strict=True))
        return torch.stack([kept[t] for t in slices])

    def _images(self, stack: SliceStack, window: InputWindow, slices: Sequence[int]) -> Tensor:
        images = window.resample(normalize(stack.array[list(slices)], self._limits))
        return torch.from_numpy(dither(images, self.inputs.intensity.dither))[:, None]
