"""Embeddings and saliency of a volume's slices: computed when first asked for, kept as long as the field of view stays.

Encoder, encoder LoRA and saliency head are frozen after stage I, so both depend on the image alone (paper, stage II).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from SPDSegmentLib.geometry.intensity import IntensityConfig, dither, intensity_range, normalize
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.window import InputWindow, place_window
from SPDSegmentLib.inference.call import Call
from SPDSegmentLib.inference.engine import Engine, require_numbers
from SPDSegmentLib.prompts.saliency_maps import SaliencyMaps


class SliceFeatures:
    """What the frozen part of the model knows of a volume.

    Args:
        engine: the model.
        stack: the slices.
        intensity: how they are normalised.
        fov_mm: side of the field of view, 0 for the whole slice.
    """

    def __init__(self, engine: Engine, stack: SliceStack, intensity: IntensityConfig, fov_mm: float) -> None:
        self.engine = engine
        self.stack = stack
        self.fov_mm = fov_mm
        self.encoded = 0
        self._limits = intensity_range(stack.array, intensity)
        self._dither = intensity.dither
        self._window: InputWindow | None = None
        self._fixed = False  # whether the clicks of a segmentation have placed it
        self._embeddings: dict[int, Tensor] = {}
        self._saliency: dict[int, np.ndarray] = {}
        self._uses_neighbors = engine.model.saliency_head.uses_slice_context

    @property
    def window(self) -> InputWindow:
        """The field of view; the slices' middle until it was placed."""
        if self._window is None:
            self._window = self._window_at(None)
        return self._window

    def look_at(self, center_xy: tuple[float, float] | None) -> None:
        """Move the field of view (``None``: to the middle), as long as no segmentation has fixed it; nor does this."""
        if not self._fixed:
            self._move(self._window_at(None if center_xy is None else np.array(center_xy)))

    def place_window(self, xy: np.ndarray, anchor_xy: tuple[float, float] | None = None) -> bool:
        """Fix the field of view at an anchor or the first clicks (N, 2); move it only when most clicks lie outside.

        Returns:
            Whether it was placed anew, so that everything computed before is void.
        """
        anchored = None if anchor_xy is None else self._window_at(np.array(anchor_xy))
        for window in (anchored, self._window if self._fixed else None):
            if window is not None and window.contains(xy).mean() >= 0.5:
                break
        else:
            window = self._window_at(np.median(xy, axis=0))
        self._fixed = True
        return self._move(window)

    def _move(self, window: InputWindow) -> bool:
        if window == self._window:
            return False
        self._window = window
        self._embeddings.clear()
        self._saliency.clear()
        return True

    def has_saliency(self, slices: Iterable[int]) -> bool:
        """Whether S is known for all of ``slices``."""
        return all(t in self._saliency for t in slices)

    def missing(self, slices: Iterable[int]) -> list[int]:
        """Slices that must be encoded before the saliency of ``slices`` can be known, in that order."""
        needed = (s for t in slices if t not in self._saliency for s in self._inputs_of(t))
        return [t for t in dict.fromkeys(needed) if t not in self._embeddings]

    def saliency(self, t: int, call: Call) -> np.ndarray:
        """S_t, (S, S) float16; encodes a batch of slices ahead when it is not known yet."""
        if t not in self._saliency:
            step = -1 if t + 1 in self._saliency else 1
            ahead = range(t, t + step * self.engine.batch_size, step)
            self.ensure([s for s in ahead if 0 <= s < self.stack.n_slices], call)
        return self._saliency[t]

    def embeddings(self, slices: Sequence[int]) -> Tensor:
        """Embeddings (B, C, h, w) of slices whose saliency is known."""
        return torch.stack([self._embeddings[t] for t in slices])

    def ensure(self, slices: Iterable[int], call: Call) -> None:
        """Compute the saliency of ``slices``, and the embeddings that it needs."""
        wanted = [t for t in slices if t not in self._saliency]
        self.engine.with_smaller_batches(self.missing(wanted), lambda batch: self._encode(batch, call))
        self.engine.with_smaller_batches(wanted, self._infer_saliency)

    def maps(self, threshold: float, locked: Mapping[int, np.ndarray], call: Callable[[], Call]) -> SaliencyMaps:
        """S for CPD. A slice that a person owns shows its own mask, (H, W), instead of what the model believes.

        ``call`` gives the call that is running when a slice is first asked for.
        """

        def load(t: int) -> np.ndarray:
            if t in locked:
                return self.window.resample(locked[t][None].astype(np.float32))[0]
            return self.saliency(t, call())

        pixel_mm = self.window.scale_xy[0] * self.stack.pixel_mm[1]
        return SaliencyMaps(self.stack.n_slices, load, threshold, self.stack.slice_mm / pixel_mm)

    def _window_at(self, center_xy: np.ndarray | None) -> InputWindow:
        height, width = self.stack.array.shape[1:]
        return place_window((height, width), self.stack.pixel_mm, self.engine.image_size, self.fov_mm, center_xy)

    def _inputs_of(self, t: int) -> list[int]:
        """Slices whose embeddings the saliency of slice t sees; edges repeat."""
        last = self.stack.n_slices - 1
        return [t, max(0, t - 1), min(last, t + 1)] if self._uses_neighbors else [t]

    def _encode(self, batch: Sequence[int], call: Call) -> None:
        call.check()
        images = self.window.resample(normalize(self.stack.array[list(batch)], self._limits))
        embeddings = self.engine.encode(dither(images, self._dither))
        self._embeddings.update(zip(batch, embeddings, strict=True))
        self.encoded += len(batch)
        call.encoded(len(batch))

    def _infer_saliency(self, batch: Sequence[int]) -> None:
        own = self.embeddings(batch)
        previous = following = own
        if self._uses_neighbors:
            previous = self.embeddings([self._inputs_of(t)[1] for t in batch])
            following = self.embeddings([self._inputs_of(t)[2] for t in batch])
        saliency = self.engine.saliency(own, previous, following)
        require_numbers(batch, saliency)
        self._saliency.update(zip(batch, saliency, strict=True))
