"""Embeddings and saliency of a volume's slices: computed when first asked for, kept as long as the field of view stays.

Encoder, encoder LoRA and saliency head are frozen after stage I, so both depend on the image alone (paper, stage II). A
conditioned saliency depends on the clicks near its slice as well: it is computed again where those have changed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.intensity import IntensityConfig, gain_in_view, intensity_range
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.window import InputWindow, fov_of_clicks, place_window
from SPDSegmentLib.inference.device_slices import DeviceSlices, Download, EmbeddingCache, MasksOnTheWay, upload
from SPDSegmentLib.inference.engine import CACHE_BYTES, Engine, Rows, SaliencyBatch, failed
from SPDSegmentLib.inference.results import Call
from SPDSegmentLib.prompts.click_tokens import ClickTokens, click_tokens, tokens_of_prompts
from SPDSegmentLib.prompts.distillation import SlicePrompts
from SPDSegmentLib.prompts.evidence import raise_at
from SPDSegmentLib.prompts.saliency_maps import SaliencyMaps, SliceClicks

DECODED = 2
"""So many batches of the encoder are one of the decoder."""
CONTEXT_SHARE = 0.25
"""Of the memory for embeddings, for what the decoder of a conditioned model takes of slices."""


class SliceFeatures:
    """What the frozen part of the model knows of a volume.

    Args:
        engine: the model.
        stack: the slices.
        intensity: how they are normalized.
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
        self.gain = 1.0  # how many times brighter the field of view is seen than the volume's normalization has it
        self._intensity = intensity
        self._limits = intensity_range(stack.array, intensity)
        self.conditioned = engine.model.config.conditioned
        self._slices = self._device_slices()
        self._window: InputWindow | None = None
        self._chosen_fov_mm = 0.0  # where the model has no field of view of its own
        self._fixed = False  # whether the clicks of a segmentation have placed it
        # Half precision for all slices or for none, and whatever the cache: a slice is the same whenever it is decoded.
        self._embeddings = EmbeddingCache(engine.cache_bytes, stack.n_slices * engine.embedding_bytes > CACHE_BYTES)
        self._contexts = EmbeddingCache(0, False)  # what the decoder of a conditioned model takes of slices
        self._stale: set[int] = set()  # slices whose S was known before the clicks near them changed
        self._memory: dict[int, Tensor] = {}
        self._saliency: dict[int, tuple[SaliencyBatch, int]] = {}
        self._clicks: SliceClicks | None = None
        self._tokens: ClickTokens | None = None
        self._insisted: dict[int, np.ndarray] = {}
        self._uses_neighbors = engine.model.sees_neighbors

    def _device_slices(self) -> DeviceSlices:
        kind = (3, self.engine.model.config.local_normalization) if self.conditioned else (1, False)
        return DeviceSlices(self.stack, self.engine.device, self._intensity.dither, *kind)

    @property
    def _seen_limits(self) -> tuple[float, float]:
        low, high = self._limits
        return low, low + (high - low) / self.gain

    def adapted(self, engine: Engine) -> SliceFeatures:
        """The same slices under another saliency head of the same encoder: embeddings are shared until one moves on."""
        other = copy.copy(self)
        other.engine, other._saliency, other._memory = engine, {}, {}
        other._slices = other._device_slices()
        if self._window is not None:
            other._slices.look_through(self._window, self._seen_limits)
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of voxels on a device, embeddings, what they are stacked in, and saliency, here and on the device."""
        batches = {id(batch): batch.maps.nbytes for batch, _ in tuple(self._saliency.values())}
        stacked = sum(memory.nbytes for memory in tuple(self._memory.values()))
        return self._slices.nbytes + self._embeddings.nbytes + self._contexts.nbytes + sum(batches.values()) + stacked

    @property
    def window(self) -> InputWindow:
        """The field of view; the slices' middle until it was placed."""
        if self._window is None:
            self._move(self._window_at(None))
        assert self._window is not None
        return self._window

    def close(self) -> None:
        """Let go of everything; a GPU's memory goes back to it."""
        self._window = None
        self._fixed = False
        self._slices.close()
        self._forget()
        self._memory.clear()
        if self.engine.device.type == "cuda":
            torch.cuda.empty_cache()

    def make_room(self) -> None:
        """Before anything is computed, compare what it takes with the memory that is free.

        Raises:
            OutOfMemory: one slice alone does not fit.
        """
        if not (self._embeddings.nbytes or self._saliency):
            room = self.engine.fit_memory(self.stack.volume.array.nbytes)
            self._contexts.limit = int(CONTEXT_SHARE * room) if self.conditioned else 0
            self._embeddings.limit = room - self._contexts.limit

    def look_at(self, center_xy: tuple[float, float] | None) -> None:
        """Move the field of view (``None``: to the middle), as long as no segmentation has fixed it; nor does this."""
        if not self._fixed:
            self._move(self._window_at(None if center_xy is None else np.array(center_xy)))

    def place_window(self, xy: np.ndarray, anchor_xy: tuple[float, float] | None = None) -> bool:
        """Fix the field of view at an anchor or the first clicks (N, 2); move it only when most clicks lie outside.

        Returns:
            Whether it was placed again, so that everything computed before is void.
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
        rows, columns = window.to_input_weights()
        self.gain = gain_in_view(self.stack.array[:, rows.seen, columns.seen], self._limits, self._intensity)
        self._slices.look_through(window, self._seen_limits)
        self._forget()
        self._tokens = None
        return True

    def _forget(self) -> None:
        self._embeddings, self._contexts = self._embeddings.emptied(), self._contexts.emptied()
        self._saliency.clear()
        self._stale.clear()

    def network_clicks(self, clicks: Clicks, inside: np.ndarray) -> tuple[SliceClicks, np.ndarray]:
        """Those of the clicks ``inside`` that lie in the field of view, in network pixels, and their indexes."""
        seen = inside[self.window.contains(clicks.xy[inside])] if len(inside) else inside
        xy = self.window.to_input(clicks.xy[seen])
        return SliceClicks(clicks.slice_index[seen].astype(int), xy, clicks.insisted[seen]), seen

    def learning_inputs(self, slices: Sequence[int], call: Call) -> list[Tensor]:
        """Embeddings (B, C, h, w) float32 of slices, and of those before and after each, that gradients may go to."""
        last = self.stack.n_slices - 1
        sides = [list(slices), [max(0, t - 1) for t in slices], [min(last, t + 1) for t in slices]]
        found = [self._stacked(side, call).to(torch.float32, copy=True) for side in sides]
        self._shrink()
        return found

    def tell(self, clicks: SliceClicks) -> set[int]:
        """The clicks in network pixels that the saliency listens to from now on; an image's to those insisted on.

        Returns:
            Slices whose S_t may change; it is computed again when it is next asked for.
        """
        told = self._insisted
        self._insisted = {
            int(t): clicks.xy[clicks.insisted & (clicks.slice_index == t)]
            for t in set(clicks.slice_index[clicks.insisted])
        }
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
        retold = {t for t in range(self.stack.n_slices) if before is None or before.key(t) != self._tokens.key(t)}
        self._stale |= retold & self._saliency.keys()
        for t in retold:
            self._saliency.pop(t, None)
        return changed | retold

    def told(self, t: int) -> bytes:
        """What the saliency of slice t was told; empty of an image saliency where no click is insisted on."""
        word = self._insisted[t].tobytes() if t in self._insisted else b""
        return word if self._tokens is None else self._tokens.key(t) + word

    def known_slices(self) -> set[int]:
        """Slices whose S is known, or under way on the device."""
        return set(self._saliency)

    def cached_slices(self) -> set[int]:
        """Slices that can be decoded without encoding any."""
        known = self._embeddings
        return {t for t in self._saliency if all(s in known for s in (self._inputs_of(t) if self.conditioned else [t]))}

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
        batch, row = self._saliency[t]
        known: np.ndarray = batch.on_cpu()[row]
        return raise_at(known, self._insisted[t], self.threshold) if t in self._insisted else known

    def _saliency_maps(self, slices: Sequence[int], call: Call) -> Tensor:
        """S (B, S, S) of slices on the device, given what is insisted on."""
        self.ensure(slices, call)
        device = self.engine.device
        maps = {t: self._saliency[t][0].maps[self._saliency[t][1]] for t in slices}
        maps |= {t: upload(self.saliency(t, call), device) for t in self._insisted.keys() & maps.keys()}
        return torch.stack([maps[t] for t in slices])

    def _stacked(self, slices: Sequence[int], call: Call, place: int = 0) -> Tensor:
        """Embeddings (B, C, h, w) of slices, as they are kept or in memory that the next call takes again.

        Those that had to go are computed again.
        """
        run = self._embeddings.run(slices)
        if run is not None and run.dtype == self.engine.precision:
            return run
        kept = self._kept(slices, call)
        memory = self._memory.get(place)
        if memory is None or len(memory) < len(kept):
            shape = (max(len(kept), self.engine.batch_size), *kept[0].shape)
            flat = kept[0].permute(1, 2, 0).is_contiguous()
            memory = self._memory[place] = torch.empty(
                shape,
                dtype=self.engine.precision,
                device=kept[0].device,
                memory_format=torch.channels_last if flat else torch.contiguous_format,
            )
        stacked = memory[: len(kept)]
        torch._foreach_copy_(list(stacked), kept)
        return stacked

    def _kept(self, slices: Sequence[int], call: Call) -> list[Tensor]:
        """Embeddings of slices, (C, h, w) each, as they are kept."""
        gone = [t for t in dict.fromkeys(slices) if t not in self._embeddings]
        self.engine.with_smaller_batches(gone, lambda batch: self._encode(batch, call))
        return [self._embeddings[t] for t in slices]

    def _given(self, slices: Sequence[int], call: Call, place: int = 0) -> Rows:
        """Embeddings of slices as the decoder takes them."""
        return self._kept(slices, call) if self.engine.shares_cores else self._stacked(slices, call, place)

    def _sides_of(self, slices: Sequence[int]) -> Iterator[tuple[int, Sequence[int]]]:
        """The slices themselves, and where the saliency sees them those before and those after, numbered."""
        return enumerate(zip(*(self._inputs_of(t) for t in slices), strict=True))

    def _with_context(self, slices: Sequence[int], call: Call) -> list[Tensor]:
        """What the decoder of a conditioned model takes of slices, made where it is not kept."""
        gone = [t for t in dict.fromkeys(slices) if t not in self._contexts]
        if gone:
            given = [self._given(side, call, place) for place, side in self._sides_of(gone)]
            for t, made in zip(gone, self.engine.with_context(*given), strict=True):
                self._contexts.add([t], made[None])
        return [self._contexts[t] for t in slices]

    def ensure(self, slices: Iterable[int], call: Call) -> None:
        """Compute S of ``slices`` and of those that clicks made stale, and the embeddings; not waiting for a GPU.

        Raises:
            BadInput: the saliency listens to clicks, and none were told yet.
        """
        wanted = [t for t in slices if t not in self._saliency]
        if wanted and self.conditioned and self._tokens is None:
            raise BadInput("The saliency of this model listens to clicks, and it has none yet.", "Segment first.")
        missing = self.missing(wanted)
        if not self.conditioned and not self._uses_neighbors:  # what was encoded is there for the saliency as it is
            self.engine.with_smaller_batches(
                missing, lambda batch: self._find_saliency(batch, *(self._encode(batch, call),) * 3)
            )
            wanted = [t for t in wanted if t not in self._saliency]
        else:
            self.engine.with_smaller_batches(missing, lambda batch: self._encode(batch, call))
        if wanted and self._stale:
            wanted += [t for t in sorted(self._stale - {*wanted}) if not self.missing([t])]
            self._stale.clear()
        run, factor = (self._listen, DECODED) if self.conditioned else (self._infer_saliency, 1)
        self.engine.with_smaller_batches(wanted, lambda batch: run(batch, call), factor)
        self._shrink()

    def _shrink(self) -> None:
        self._embeddings.shrink()
        self._contexts.shrink()

    def masks(self, prompts: Sequence[SlicePrompts], max_points: int, call: Call) -> MasksOnTheWay:
        """Masks of slices with their prompts, and beside them the predicted IoU (B,), NaN where the network failed.

        Args:
            max_points: K of the prompts; without a limit, 0, slices of as many points are decoded together, so that
                none depends on the rest of its batch.
        """
        numbers = np.array([len(p.points) for p in prompts])
        alike = [np.arange(len(prompts))] if max_points else [np.flatnonzero(numbers == n) for n in np.unique(numbers)]
        batches = [[prompts[int(n)] for n in rows] for rows in alike]
        found = [self._logits(batch, max_points or len(batch[0].points), call) for batch in batches]
        logits, quality = found[0]
        if len(found) > 1:
            order = torch.from_numpy(np.argsort(np.concatenate(alike))).to(self.engine.device)
            logits, quality = (torch.cat(parts)[order] for parts in zip(*found, strict=True))
        self._shrink()
        return self._slices.masks(logits, quality)

    def _logits(self, prompts: Sequence[SlicePrompts], places: int, call: Call) -> tuple[Tensor, Tensor]:
        slices = [p.slice_index for p in prompts]
        saliency = self._saliency_maps(slices, call) if self.engine.decodes_saliency else None
        if not self.conditioned:
            return self.engine.decode(self._given(slices, call), [p.points for p in prompts], saliency, places)
        assert saliency is not None
        assert self._clicks is not None
        tokens = tokens_of_prompts(prompts, self._clicks, self.stack.slice_mm, places)
        return self.engine.decode_conditioned(self._with_context(slices, call), tokens, saliency)

    def maps(self, threshold: float, locked: Mapping[int, np.ndarray], call: Callable[[], Call]) -> SaliencyMaps:
        """S for CPD. A slice that a person owns shows its own mask, (H, W), instead of what the model believes.

        ``call`` gives the call that is running when a slice is first asked for.
        """

        def load(t: int) -> np.ndarray:
            if t in locked:
                resampled: np.ndarray = self.window.resample(locked[t][None].astype(np.float32))[0]
                return resampled
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

    def _encode(self, batch: Sequence[int], call: Call) -> Tensor:
        call.check()
        embeddings = self.engine.encode(self._slices.inputs(batch))
        self._embeddings.add(batch, embeddings)
        self.encoded += len(batch)
        call.advance("encoding", len(batch))
        return embeddings

    def _infer_saliency(self, batch: Sequence[int], call: Call) -> None:
        given = [self._stacked(side, call, place) for place, side in self._sides_of(batch)]
        self._find_saliency(batch, *(given if self._uses_neighbors else given * 3))

    def _find_saliency(self, batch: Sequence[int], own: Tensor, previous: Tensor, following: Tensor) -> None:
        self._found(batch, self.engine.saliency(own, previous, following))

    def _listen(self, batch: Sequence[int], call: Call) -> None:
        """The saliency of slices, given the clicks near them."""
        assert self._tokens is not None
        self._found(batch, self.engine.conditioned_saliency(self._with_context(batch, call), self._tokens.rows(batch)))

    def _found(self, batch: Sequence[int], maps: Tensor) -> None:
        found = SaliencyBatch(list(batch), maps, Download(maps, failed(maps)))
        self._saliency.update((t, (found, row)) for row, t in enumerate(batch))


def _same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return one is not None and other is not None and np.array_equal(one, other)
