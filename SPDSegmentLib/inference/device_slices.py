"""A volume on the device, as stored: from voxels to the network's inputs, and from its logits to packed masks.

One code path for CPUs and GPUs; nothing here waits for the device, but where it is the CPU itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from SPDSegmentLib.geometry.intensity import (
    LOCAL_BACKGROUND,
    LOCAL_BINS,
    LOCAL_ENOUGH,
    LOCAL_NEIGHBORS,
    LOCAL_SHARES,
    dither_pattern,
)
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.window import InputWindow, Taps, weighted

CHUNK_BYTES = 16 << 20
_KEPT = (np.uint8, np.int8, np.int16, np.int32, np.int64, np.float16, np.float32, np.float64)
"""Types of voxels that torch computes with; others become float32 on their way."""
DENSE_WEIGHTS = 1 << 22
"""A GPU takes the weights of an axis as one dense matrix up to this number."""


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """An array on the device; the caller must not change it afterward."""
    if array.dtype.newbyteorder("=") not in _KEPT:
        array = array.astype(np.uint8 if array.dtype == bool else np.float32)
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    if array.flags.writeable:
        here = torch.from_numpy(array)
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            here = torch.from_numpy(array)
    if device.type == "cpu":
        return here
    if here.nbytes <= CHUNK_BYTES:
        return here.pin_memory().to(device, non_blocking=True)
    there, flat = torch.empty(here.shape, dtype=here.dtype, device=device), here.flatten()
    count = CHUNK_BYTES // here.element_size()
    for start in range(0, len(flat), count):
        chunk = flat[start : start + count]
        there.flatten()[start : start + count].copy_(chunk.pin_memory(), non_blocking=True)
    return there


class Download:
    """Tensors on their way to the CPU.

    Args:
        tensors: of the device; they must not be changed before they have arrived.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._tensors: Sequence[Tensor] = tensors
        if tensors[0].device.type == "cuda":
            pinned = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
            self._tensors = [p.copy_(t, non_blocking=True) for p, t in zip(pinned, tensors, strict=True)]
            self._event = torch.cuda.Event()
            self._event.record()

    @property
    def arrived(self) -> bool:
        """Whether :meth:`arrays` need not wait."""
        return self._event is None or self._event.query()

    def arrays(self) -> list[np.ndarray]:
        """The tensors as arrays, once they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        return [tensor.numpy() for tensor in self._tensors]


class DeviceSlices:
    """The slices of a volume on the device.

    Args:
        stack: the slices; their voxels are uploaded once, when they are first needed, in the order they are stored in.
        dither: see :class:`IntensityConfig`.
        channels: 1, or 3 with the slice in all of them; local: the second is scaled to the local range instead.
    """

    def __init__(
        self,
        stack: SliceStack,
        device: torch.device,
        dither: float,
        channels: int = 1,
        local: bool = False,
    ) -> None:
        self.device = device
        self._stack = stack
        self._limits = (0.0, 1.0)
        self._dither = dither
        self._channels = channels
        self._local = local
        self._voxels: Tensor | None = None
        self._window: InputWindow | None = None
        self._pattern: Tensor | None = None
        self._weights: dict[tuple[int, int], tuple[Tensor, ...]] = {}
        self._counts: dict[int, Tensor] = {}
        self._ahead: dict[int, Tensor] = {}  # images that were needed for the local range of others

    @property
    def nbytes(self) -> int:
        """Bytes on a device that is not the CPU."""
        return 0 if self._voxels is None or self.device.type == "cpu" else int(self._voxels.nbytes)

    def close(self) -> None:
        """Let go of the voxels."""
        self._voxels = self._window = None
        self._counts.clear()
        self._ahead.clear()

    def look_through(self, window: InputWindow, limits: tuple[float, float]) -> None:
        """Take another field of view, with the intensities that become 0 and 1 in it."""
        self._limits = limits
        self._counts.clear()
        self._ahead.clear()
        self._window = window
        height, width = window.slice_shape
        rows, columns = window.to_input_weights()
        _, flip_rows, flip_columns = self._stack.flips
        self._to_input = (
            rows.reversed(height) if flip_rows else rows,
            columns.reversed(width) if flip_columns else columns,
        )
        self._to_slice = window.to_slice_weights()
        self._weights.clear()
        if self._pattern is None and self._dither:
            self._pattern = upload(dither_pattern((window.size, window.size), self._dither), self.device)

    def _weigh(self, taps: Taps, table: Tensor, batch: int) -> Tensor:
        """Weighted sums (B N, w) of rows of the table (B inputs, w)."""
        count = taps.seen.stop - taps.seen.start
        if self.device.type != "cpu" and len(taps) * count <= DENSE_WEIGHTS:
            (dense,) = self._prepared(taps, 0, lambda: (taps.matrix().toarray(),))
            product: Tensor = (dense @ table.unflatten(0, (batch, count))).flatten(0, 1)
            return product

        def make() -> tuple[np.ndarray, ...]:
            first = np.arange(-taps.seen.start, batch * count - taps.seen.start, count, dtype=np.int32)
            inputs = (first[:, None, None] + taps.inputs).reshape(-1)
            ends = np.arange(0, inputs.size, taps.inputs.shape[1], dtype=np.int32)
            return inputs, ends, np.tile(taps.weights.reshape(-1), batch)

        index, ends, shares = self._prepared(taps, batch, make)
        return torch.embedding_bag(table.contiguous(), index, ends, False, 0, False, shares)[0]

    def _prepared(self, taps: Taps, batch: int, make: Callable[[], tuple[np.ndarray, ...]]) -> tuple[Tensor, ...]:
        """What ``make`` gives, on the device; kept where the weights are those of all batches."""
        if not any(taps is kept for kept in (*self._to_input, *self._to_slice)):
            return tuple(upload(part, self.device) for part in make())
        key = id(taps), batch
        if key not in self._weights:
            self._weights[key] = tuple(upload(part, self.device) for part in make())
        return self._weights[key]

    def inputs(self, slices: Sequence[int]) -> Tensor:
        """Network inputs of slices in [0, 1]: (B, 1 or 3, S, S) on the device."""
        if not self._local:
            return self._images(slices)[:, None].expand(-1, self._channels, -1, -1)
        around = [list(range(t - LOCAL_NEIGHBORS, t + LOCAL_NEIGHBORS + 1)) for t in slices]
        inside = range(self._stack.n_slices)
        needed = dict.fromkeys([*slices, *(s for near in around for s in near if s in inside)])
        unseen = [t for t in needed if t not in self._ahead and (t in slices or t not in self._counts)]
        images = dict(zip(unseen, self._images(unseen), strict=True)) if unseen else {}
        if unseen:
            counts = histograms(torch.stack([images[t] for t in unseen]))
            self._counts.update(zip(unseen, counts, strict=True))
        self._ahead.update(images)
        chosen = torch.stack([self._ahead.pop(t) for t in slices])
        known = {t: n for n, t in enumerate(needed)}
        table = torch.stack([*(self._counts[t] for t in needed), torch.zeros_like(self._counts[slices[0]])])
        where = upload(np.array([[known.get(s, len(known)) for s in near] for near in around]), self.device)
        low, high = local_range(table[where].sum(1))
        low, high = low.view(-1, 1, 1), high.view(-1, 1, 1)
        local = ((chosen - low) / (high - low).clamp(min=1e-3)).clamp(0, 1)
        return torch.stack((chosen, local, chosen), 1)

    def _images(self, slices: Sequence[int]) -> Tensor:
        """Slices (B, S, S) as the network sees them, in [0, 1]."""
        assert self._window is not None, "no field of view was chosen"
        if self._voxels is None:
            self._voxels = upload(self._stack.volume.array, self.device)
        size, (low, high) = self._window.size, self._limits
        images = torch.zeros(len(slices), size, size, device=self.device)
        rows, columns = self._to_input
        if len(rows) and len(columns):
            stored = self._voxels.permute(self._stack.order)[:, rows.seen, columns.seen]
            seen = torch.empty(len(slices), *stored.shape[1:], device=self.device)
            last = self._stack.n_slices - 1
            torch._foreach_copy_(list(seen), [stored[last - t if self._stack.flips[0] else t] for t in slices])
            part = images[:, rows.outputs, columns.outputs]
            part.copy_(weighted(rows, columns, seen.clamp_(low, high), self._weigh)).sub_(low).div_(high - low).clamp_(
                0, 1
            )
        if self._pattern is not None:
            images.add_(self._pattern * (images > 0)).clamp_(0, 1)
        return images

    def masks(self, logits: Tensor, *beside: Tensor) -> MasksOnTheWay:
        """Logits (B, S, S) restored to the slice's pixels and thresholded at 0, on their way to the CPU.

        Args:
            beside: other tensors to bring along.
        """
        rows, columns = self._to_slice
        if self.device.type == "cpu":  # what lies around the positive logits needs no restoring
            rows, columns = _around_positive(rows, columns, logits)
        if not (len(rows) and len(columns)):
            return MasksOnTheWay(self._stack.shape[1:], None, Download(logits[:, :0, :0], *beside))
        seen = logits[:, rows.seen, columns.seen].to(torch.float32)
        inside = weighted(rows, columns, seen, self._weigh) > 0
        if self.device.type != "cpu":
            inside = pack_bits(inside)
        return MasksOnTheWay(self._stack.shape[1:], (rows.outputs, columns.outputs), Download(inside, *beside))


@dataclass(frozen=True, eq=False)
class MasksOnTheWay:
    """Masks of B slices, from a GPU packed, and what comes with them.

    Attributes:
        shape: (H, W); box: rows and columns beyond which all masks are empty, ``None`` where they are all empty.
    """

    shape: tuple[int, int]
    box: tuple[slice, slice] | None
    download: Download

    def arrays(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Masks (B, H, W) bool, and the arrays that came with them."""
        found, *beside = self.download.arrays()
        masks = np.zeros((len(found), *self.shape), dtype=bool)
        if self.box is not None:
            if found.dtype != bool:
                width = self.box[1].stop - self.box[1].start
                found = np.unpackbits(found, axis=-1, count=width, bitorder="little")
            masks[:, self.box[0], self.box[1]] = found
        return masks, beside


class EmbeddingCache:
    """Embeddings by slice; batches that were used longest ago go first.

    Args:
        limit_bytes: what stays after :meth:`shrink`.
        half: keep them in half precision.
    """

    def __init__(self, limit_bytes: int, half: bool) -> None:
        self.limit = limit_bytes
        self._half = half
        self._slices: dict[int, tuple[int, int]] = {}  # batch and row
        self._batches: dict[int, tuple[tuple[int, ...], Tensor]] = {}  # from the longest unused
        self._count = 0
        self.nbytes = 0

    def __contains__(self, t: int) -> bool:
        return t in self._slices

    def __getitem__(self, t: int) -> Tensor:
        batch, row = self._slices[t]
        self._batches[batch] = self._batches.pop(batch)
        return self._batches[batch][1][row]

    def run(self, slices: Sequence[int]) -> Tensor | None:
        """Embeddings (B, C, h, w) of slices without a copy, where they follow one another in a batch."""
        batch, row = self._slices.get(slices[0], (0, 0))
        known = self._batches.get(batch)
        if known is None or known[0][row : row + len(slices)] != tuple(slices):
            return None
        self._batches[batch] = self._batches.pop(batch)
        return known[1][row : row + len(slices)]

    def emptied(self) -> EmbeddingCache:
        """Another one of the same bounds that holds nothing; who shares this one keeps what it holds."""
        return EmbeddingCache(self.limit, self._half)

    def add(self, slices: Sequence[int], embeddings: Tensor) -> None:
        """Keep the embeddings (B, C, h, w) of slices."""
        kept = embeddings.half() if self._half and embeddings.dtype == torch.float32 else embeddings
        self._count += 1
        self._batches[self._count] = (tuple(slices), kept)
        self.nbytes += kept.nbytes
        self._slices.update((t, (self._count, row)) for row, t in enumerate(slices))

    def shrink(self) -> None:
        """Forget batches until the limit is kept."""
        while self.nbytes > self.limit:
            batch = next(iter(self._batches))
            slices, embeddings = self._batches.pop(batch)
            self.nbytes -= embeddings.nbytes
            for t in slices:
                if self._slices.get(t, (0,))[0] == batch:
                    del self._slices[t]


def pack_bits(masks: Tensor) -> Tensor:
    """Bools (B, H, W) as bytes (B, H, ceil(W / 8)), the first pixel in the lowest bit."""
    whole = torch.nn.functional.pad(masks.to(torch.uint8), (0, -masks.shape[-1] % 8)).unflatten(-1, (-1, 8))
    packed: Tensor = whole[..., 0].clone()
    for bit in range(1, 8):
        packed |= whole[..., bit] << bit
    return packed


def _around_positive(rows: Taps, columns: Taps, logits: Tensor) -> tuple[Taps, Taps]:
    """The weights that see a positive logit of any of (B, S, S); interpolation makes none elsewhere."""
    highest = logits.amax(0)
    at = [np.flatnonzero(highest.amax(axis).numpy() > 0) for axis in (1, 0)]
    if not len(at[0]):
        return rows.seeing(0, 0), columns.seeing(0, 0)
    return rows.seeing(int(at[0][0]), int(at[0][-1]) + 1), columns.seeing(int(at[1][0]), int(at[1][-1]) + 1)


def histograms(images: Tensor) -> Tensor:
    """Counts (B, LOCAL_BINS) int64 of the values of (B, ...) in [0, 1] that are not air."""
    flat = images.flatten(1)
    bins = (flat * (LOCAL_BINS - 1)).round_().long()
    counts = torch.zeros(len(flat), LOCAL_BINS, dtype=torch.int64, device=images.device)
    return counts.scatter_add_(1, bins, (flat > LOCAL_BACKGROUND).long())


def local_range(counts: Tensor) -> tuple[Tensor, Tensor]:
    """The 1st and the 99th percentile (B,) by histograms (B, LOCAL_BINS); 0 and 1 where there is next to nothing."""
    cumulated = counts.cumsum(1)
    total = cumulated[:, -1:].double()
    low, high = ((cumulated < share * total).sum(1).float() / (LOCAL_BINS - 1) for share in LOCAL_SHARES)
    enough = total[:, 0] >= LOCAL_ENOUGH
    return torch.where(enough, low, 0.0), torch.where(enough, high, 1.0)
