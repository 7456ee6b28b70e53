"""Embeddings and saliency of a volume's slices: computed when first asked for, kept as long as the field of view stays.

Encoder, encoder LoRA and saliency head are frozen after stage I, so both depend on the image alone (paper, stage II). A
conditioned saliency depends on the clicks near its slice as well: it is computed again where those have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from SPDSegmentLib.geometry.intensity import (
    LOCAL_NEIGHBORS,
    IntensityConfig,
    dither,
    histogram,
    intensity_range,
    local_range,
    normalize,
)
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.window import InputWindow, fov_of_clicks, place_window
from SPDSegmentLib.inference.call import Call
from SPDSegmentLib.inference.engine import Engine, require_numbers
from SPDSegmentLib.prompts.click_tokens import ClickTokens, click_tokens, tokens_of_prompts
from SPDSegmentLib.prompts.distillation import SliceClicks, SlicePrompts
from SPDSegmentLib.prompts.evidence import raise_at
from SPDSegmentLib.prompts.saliency_maps import SaliencyMaps


class SliceFeatures:
    """What the frozen part of the model knows of a volume.

    Args:
        engine: the model.
        stack: the slices.
        intensity: how they are normalised.
        fov_mm: side of the field of view; 0 for the whole slice, or of a conditioned model for one chosen from the
            first clicks.
        threshold: tau, which the saliency exceeds where a person insists.
    """

    def __init__(
        self, engine: Engine, stack: SliceStack, intensity: IntensityConfig, fov_mm: float, threshold: float = 0.5
    ) -> None:
        self.threshold = threshold
        self.engine = engine
        self.stack = stack
        self.fov_mm = fov_mm
        self.encoded = 0
        self._limits = intensity_range(stack.array, intensity)
        self._dither = intensity.dither
        self._window: InputWindow | None = None
        self._chosen_fov_mm = 0.0  # where the model has no field of view of its own
        self._fixed = False  # whether the clicks of a segmentation have placed it
        self._embeddings: dict[int, Tensor] = {}
        self._saliency: dict[int, np.ndarray] = {}
        self._histograms: dict[int, np.ndarray] = {}
        self._clicks: SliceClicks | None = None
        self._tokens: ClickTokens | None = None
        self._insisted: dict[int, np.ndarray] = {}
        self._uses_neighbors = engine.model.sees_neighbors
        self.conditioned = engine.model.config.conditioned

    @property
    def nbytes(self) -> int:
        """Bytes of embeddings and saliency, here and on the device."""
        embeddings = sum(int(embedding.nbytes) for embedding in self._embeddings.values())
        return embeddings + sum(saliency.nbytes for saliency in self._saliency.values())

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
        if not self._fixed and self.conditioned and self.fov_mm == 0:
            self._chosen_fov_mm = fov_of_clicks(xy, self.stack.array.shape[1:], self.stack.pixel_mm)
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
        self._histograms.clear()
        self._tokens = None
        return True

    def tell(self, clicks: SliceClicks) -> set[int]:
        """The clicks in network pixels that the saliency listens to from now on; an image's to those insisted on.

        Returns:
            Slices whose S_t may change; it is computed again when it is next asked for.
        """
        told = self._insisted
        self._insisted = {int(t): clicks.xy[clicks.insisted & (clicks.slice_index == t)] for t in _insisted_on(clicks)}
        changed = {t for t in told.keys() | self._insisted.keys() if not _same(told.get(t), self._insisted.get(t))}
        if not self.conditioned:
            return changed
        self._clicks = clicks
        network, before = self.engine.model.config, self._tokens
        self._tokens = click_tokens(
            np.arange(self.stack.n_slices),
            clicks,
            self.stack.slice_mm,
            network.neighbor_tokens,
            network.interpolated_token,
        )
        every = range(self.stack.n_slices)
        retold = {t for t in every if before is None or before.key(t) != self._tokens.key(t)}
        for t in retold:
            self._saliency.pop(t, None)
        return changed | retold

    def told(self, t: int) -> bytes:
        """What the saliency of slice t was told; empty of an image saliency where no click is insisted on."""
        word = self._insisted[t].tobytes() if t in self._insisted else b""
        return word if self._tokens is None else self._tokens.key(t) + word

    def has_saliency(self, slices: Iterable[int]) -> bool:
        """Whether S is known for all of ``slices``."""
        return all(t in self._saliency for t in slices)

    def missing(self, slices: Iterable[int]) -> list[int]:
        """Slices that must be encoded before the saliency of ``slices`` can be known, in that order."""
        needed = (s for t in slices if t not in self._saliency for s in self._inputs_of(t))
        return [t for t in dict.fromkeys(needed) if t not in self._embeddings]

    def saliency(self, t: int, call: Call) -> np.ndarray:
        """S_t, (S, S) float16, given what is insisted on; encodes a batch of slices ahead when it is not known yet."""
        if t not in self._saliency:
            step = -1 if t + 1 in self._saliency else 1
            ahead = range(t, t + step * self.engine.batch_size, step)
            self.ensure([s for s in ahead if 0 <= s < self.stack.n_slices], call)
        known = self._saliency[t]
        return raise_at(known, self._insisted[t], self.threshold) if t in self._insisted else known

    def embeddings(self, slices: Sequence[int]) -> Tensor:
        """Embeddings (B, C, h, w) of slices whose saliency is known; those of a conditioned model with context."""
        own = self._stacked(slices)
        return self.engine.with_context(own, *self._adjoining(slices)) if self.conditioned else own

    def _stacked(self, slices: Iterable[int]) -> Tensor:
        return torch.stack([self._embeddings[t] for t in slices])

    def _adjoining(self, slices: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Embeddings of the slices before and after."""
        sides = zip(*(self._inputs_of(t)[1:] for t in slices), strict=True)
        previous, following = (self._stacked(side) for side in sides)
        return previous, following

    def ensure(self, slices: Iterable[int], call: Call) -> None:
        """Compute the saliency of ``slices``, and the embeddings that it needs."""
        wanted = [t for t in slices if t not in self._saliency]
        self.engine.with_smaller_batches(self.missing(wanted), lambda batch: self._encode(batch, call))
        self.engine.with_smaller_batches(wanted, self._infer_saliency)

    def decode(self, prompts: Sequence[SlicePrompts], saliency: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mask logits (B, S, S) and predicted IoU (B,) of slices with their prompts and S_t (B, S, S)."""
        embeddings = self.embeddings([p.slice_index for p in prompts])
        if not self.conditioned:
            return self.engine.decode(embeddings, [p.points for p in prompts], saliency)
        assert self._clicks is not None
        tokens = tokens_of_prompts(prompts, self._clicks, self.stack.slice_mm, self.engine.max_points)
        return self.engine.decode_conditioned(embeddings, tokens, saliency)

    def maps(self, threshold: float, locked: Mapping[int, np.ndarray], call: Callable[[], Call]) -> SaliencyMaps:
        """S for CPD. A slice that a person owns shows its own mask, (H, W), instead of what the model believes.

        ``call`` gives the call that is running when a slice is first asked for.
        """

        def load(t: int) -> np.ndarray:
            if t in locked:
                return self.window.resample(locked[t][None].astype(np.float32))[0]
            return self.saliency(t, call())

        pixel_mm = self.window.scale_xy[0] * self.stack.pixel_mm[1]
        return SaliencyMaps(self.stack.n_slices, load, threshold, self.stack.slice_mm / pixel_mm, pixel_mm)

    def _window_at(self, center_xy: np.ndarray | None) -> InputWindow:
        height, width = self.stack.array.shape[1:]
        fov_mm = self._chosen_fov_mm or self.fov_mm
        return place_window((height, width), self.stack.pixel_mm, self.engine.image_size, fov_mm, center_xy)

    def _inputs_of(self, t: int) -> list[int]:
        """Slices whose embeddings the saliency of slice t sees; edges repeat."""
        last = self.stack.n_slices - 1
        return [t, max(0, t - 1), min(last, t + 1)] if self._uses_neighbors else [t]

    def _encode(self, batch: Sequence[int], call: Call) -> None:
        call.check()
        embeddings = self.engine.encode(self._inputs(batch))
        self._embeddings.update(zip(batch, embeddings, strict=True))
        self.encoded += len(batch)
        call.encoded(len(batch))

    def _inputs(self, batch: Sequence[int]) -> np.ndarray:
        """Network inputs of slices: (B, 1, S, S), or (B, 3, S, S) with the local range as the second of three."""
        images = dict(zip(batch, self._resampled(batch), strict=True))
        if not self.conditioned:
            return np.stack([images[t] for t in batch])[:, None]
        if not self.engine.model.config.local_normalization:
            return np.stack([np.stack((images[t],) * 3) for t in batch])
        around = {t: self._around(t) for t in batch}
        needed = dict.fromkeys([*batch, *(s for near in around.values() for s in near)])
        unknown = [t for t in needed if t not in images and t not in self._histograms]
        images |= dict(zip(unknown, self._resampled(unknown), strict=True))
        self._histograms.update((t, histogram(image)) for t, image in images.items() if t not in self._histograms)
        inputs = []
        for t in batch:
            low, high = local_range(np.sum([self._histograms[s] for s in around[t]], axis=0))
            local = ((images[t] - low) / max(high - low, 1e-3)).clip(0, 1)
            inputs.append(np.stack((images[t], local, images[t])))
        return np.stack(inputs)

    def _resampled(self, slices: Sequence[int]) -> np.ndarray:
        """Slices (B, S, S) as the network sees them, in [0, 1]."""
        images = self.window.resample(normalize(self.stack.array[list(slices)], self._limits))
        return dither(images, self._dither)

    def _around(self, t: int) -> range:
        """Slices whose intensities give the local range of slice t."""
        return range(max(0, t - LOCAL_NEIGHBORS), min(self.stack.n_slices, t + LOCAL_NEIGHBORS + 1))

    def _infer_saliency(self, batch: Sequence[int]) -> None:
        if self.conditioned:
            assert self._tokens is not None, "a conditioned saliency needs clicks"
            found, _ = self.engine.conditioned_saliency(self.embeddings(batch), self._tokens.rows(batch))
        else:
            own = self._stacked(batch)
            adjoining = self._adjoining(batch) if self._uses_neighbors else (own, own)
            found = self.engine.saliency(own, *adjoining)
        require_numbers(batch, found)
        self._saliency.update(zip(batch, found, strict=True))


def _insisted_on(clicks: SliceClicks) -> np.ndarray:
    """Slices with a click that is insisted on, ascending."""
    return np.unique(clicks.slice_index[clicks.insisted])


def _same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return one is not None and other is not None and np.array_equal(one, other)
