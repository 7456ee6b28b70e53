"""The encoder on a GPU: compiled in the background for one batch size; and how much memory any encoder has to have.

Compiling takes a minute or more, so it begins after the first result, on a thread of its own; the eager encoder serves
until the compiled one is there and gives the same embeddings. Where it fails, the log says why and the eager one stays.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from SPDSegmentLib.errors import MORE_MEMORY, OutOfMemory
from SPDSegmentLib.geometry.limits import free_memory_bytes
from SPDSegmentLib.models.storage import home_folder

SWITCH = "SPDSEGMENT_COMPILE"
"""Environment variable: ``0`` leaves the encoder as it is; a GPU's is compiled otherwise."""
AGREEMENT = 0.05
"""Largest difference of compiled embeddings, as a share of the eager ones' standard deviation, on average."""
BYTES_PER_PIXEL, CHANNEL_BYTES = 2, 1024
"""A slice of S x S pixels takes about S * S * the product of these while it is encoded."""
RESERVE_BYTES = 1 << 30
"""GPU memory for weights, the volume and what is kept of it, beside the batch that is encoded."""
LARGEST_BATCH = 64

Encode = Callable[[Tensor], Tensor]
log = logging.getLogger("spdsegment.inference")


class CompiledEncoder:
    """An encoder that becomes its compiled self when that is ready.

    Args:
        eager: (B, 1 or 3, S, S) to (B, C, h, w).
        compile_: makes the compiled one of it.
    """

    def __init__(self, eager: Encode, compile_: Callable[..., Any] = torch.compile) -> None:
        self._eager = eager
        self._compile = compile_
        self._fast: Encode | None = None
        self._batch = 0
        self._thread: threading.Thread | None = None

    @property
    def is_compiled(self) -> bool:
        """Whether the compiled encoder serves."""
        return self._fast is not None

    def begin(self, batch: Tensor) -> threading.Thread | None:
        """Compile for batches like this one on a thread of its own, once; ``None`` where that has begun before."""
        if self._thread is not None:
            return None
        self._thread = threading.Thread(target=self._prepare, args=(batch,), name="compile encoder", daemon=True)
        self._thread.start()
        return self._thread

    def __call__(self, images: Tensor) -> Tensor:
        fast, count = self._fast, len(images)
        if fast is None or count > self._batch:
            return self._eager(images)
        whole = images
        if count < self._batch:  # of the one shape that was compiled
            whole = torch.cat((images, images[:1].expand(self._batch - count, *images.shape[1:])))
        try:
            return fast(whole)[:count]
        except (RuntimeError, AssertionError) as error:
            self._give_up(error)
            return self._eager(images)

    @torch.inference_mode()
    def _prepare(self, batch: Tensor) -> None:
        try:
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(home_folder() / "compiled"))
            fast = self._compile(self._eager, dynamic=False)
            found, truth = fast(batch).float(), self._eager(batch).float()
            difference = float((found - truth).abs().mean() / truth.std().clamp(min=1e-12))
            if not difference <= AGREEMENT:
                raise RuntimeError(f"its embeddings differ by {difference:.3g} standard deviations")
        except Exception as error:
            self._give_up(error)
            return
        self._batch, self._fast = len(batch), fast
        log.info("The encoder is compiled for batches of %d.", len(batch))

    def _give_up(self, error: BaseException) -> None:
        self._fast = None
        log.warning("The encoder stays as it is; compiling it failed: %s", str(error).partition("\n")[0] or error)


def compiling_is_on(device: torch.device) -> bool:
    """Whether an encoder on this device is to be compiled."""
    return device.type == "cuda" and os.environ.get(SWITCH, "1") != "0"


def batch_for(
    device: torch.device,
    image_size: int,
    free_bytes: Callable[[torch.device], int | None] | None = None,
    most: int = LARGEST_BATCH,
    beside: int = RESERVE_BYTES,
) -> int:
    """Slices per encoder call that a device's free memory allows: ``most``, or a power of two below it.

    Args:
        beside: bytes that are needed beside the batch.

    Raises:
        OutOfMemory: there is no room for one.
    """
    free = (free_bytes or free_bytes_of)(device)
    if free is None:
        return most
    each = slice_bytes(image_size)
    batch = (free - beside) // each
    if batch < 1:
        raise OutOfMemory(
            f"The device {device} has {free >> 20} MB of free memory; "
            f"the model needs {(beside + each) >> 20} MB for this volume.",
            MORE_MEMORY if device.type == "cpu" else "Close other programs that use it, or choose the CPU.",
        )
    return int(min(most, 1 << (int(batch).bit_length() - 1)))


def slice_bytes(image_size: int) -> int:
    """About what a slice of S x S pixels takes while it is encoded."""
    return image_size * image_size * BYTES_PER_PIXEL * CHANNEL_BYTES


def free_bytes_of(device: torch.device) -> int | None:
    """Free memory of a device; ``None`` where the system does not say."""
    if device.type == "cpu":
        return free_memory_bytes()
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(device)[0])
