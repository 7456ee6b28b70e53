"""To the device and back: pinned and asynchronous on a GPU, without a copy on a CPU."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

CHUNK_BYTES = 16 << 20
_KEPT = (np.uint8, np.int8, np.int16, np.int32, np.int64, np.float16, np.float32, np.float64)
"""Types of voxels that torch computes with; others become float32 on their way."""


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """An array on the device; the caller must not change it afterward."""
    if array.dtype.newbyteorder("=") not in _KEPT:
        array = array.astype(np.uint8 if array.dtype == bool else np.float32)
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
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
