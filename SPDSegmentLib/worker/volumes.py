"""Volumes between client and worker: cut into bounded chunks here, put together and held within a bound there."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from SPDSegmentLib.errors import BadInput, OutOfMemory
from SPDSegmentLib.geometry.limits import give_back_freed_memory, total_memory_bytes

from .codec import encode_message
from .messages import OpenVolume, VolumeChunk
from .protocol import Buffer, array_bytes

if TYPE_CHECKING:
    from SPDSegmentLib.geometry.slices import SliceStack


CHUNK_BYTES = 1 << 20
MAX_VOLUME_BYTES = 32 << 30
MEMORY_MARGIN_BYTES = 256 << 20


@dataclass(frozen=True, eq=False)
class VolumeSource:
    """A volume of the caller's, referenced and not copied: who changes its values must give it another ``volume_id``.

    Attributes:
        volume_id: the caller's name for this state of the volume.
        array: (K, J, I) numeric.
        ijk_to_ras: (4, 4), millimeters.
        axis: slicing axis, as in ``geometry.slices.SliceStack``.
    """

    volume_id: str
    array: np.ndarray
    ijk_to_ras: np.ndarray
    axis: str = "auto"

    def __post_init__(self) -> None:
        if self.array.ndim != 3:
            raise BadInput(f"The volume has {self.array.ndim} dimensions instead of three.", "Choose a scalar volume.")
        if self.array.dtype.kind not in "biuf" or self.array.dtype.itemsize > 8:
            raise BadInput(f"Volumes of type {self.array.dtype} cannot be used.", "Convert the volume to numbers.")
        if np.shape(self.ijk_to_ras) != (4, 4) or not np.isfinite(self.ijk_to_ras).all():
            raise BadInput("The volume's geometry is not a 4x4 matrix of finite numbers.")

    def announcement(self, request_id: int) -> OpenVolume:
        """Return the message that precedes the chunks."""
        shape = (int(self.array.shape[0]), int(self.array.shape[1]), int(self.array.shape[2]))
        affine = np.asarray(self.ijk_to_ras, dtype="<f8")
        dtype = self.array.dtype.newbyteorder("<").str
        return OpenVolume(request_id, self.volume_id, dtype, shape, affine, self.axis)

    def frames(self, request_id: int) -> Iterator[list[Buffer]]:
        """Yield the frames of announcement and chunks, each cut only when it is asked for."""
        yield encode_message(self.announcement(request_id))
        offset = 0
        for piece in _pieces(self.array):
            chunk = VolumeChunk(self.volume_id, offset, piece)
            yield encode_message(chunk, check_payload=False)
            offset += piece.nbytes


class VolumeAssembly:
    """Collects the chunks of one announced volume.

    Raises:
        BadInput: a type or size the protocol does not carry.
        OutOfMemory: it would not fit into the free memory.
    """

    def __init__(self, announcement: OpenVolume, free_bytes: int | None) -> None:
        size = array_bytes(announcement.dtype, announcement.shape)
        if not 0 < size <= MAX_VOLUME_BYTES:
            raise BadInput(f"A volume of shape {announcement.shape} cannot be opened.", "Check the volume.")
        if free_bytes is not None and size > max(free_bytes - MEMORY_MARGIN_BYTES, 0):
            raise OutOfMemory(
                f"There is not enough memory: the volume needs {math.ceil(size / 2**20)} MB and "
                f"{MEMORY_MARGIN_BYTES >> 20} MB beside it, and {free_bytes >> 20} MB are free.",
                "Close other programs or crop the volume.",
            )
        self.announcement = announcement
        try:
            self.array = np.empty(announcement.shape, dtype=announcement.dtype)
        except MemoryError as error:
            raise OutOfMemory(
                f"The volume needs {math.ceil(size / 2**20)} MB, which the system refused.",
                "Close other programs or crop the volume.",
            ) from error
        self._bytes = self.array.reshape(-1).view(np.uint8)
        self._filled = 0

    @property
    def missing_bytes(self) -> int:
        """How many bytes are still to come."""
        return int(self._bytes.size) - self._filled

    @property
    def complete(self) -> bool:
        """Whether every byte has arrived."""
        return self._filled == self._bytes.size

    def add(self, chunk: VolumeChunk) -> None:
        """Put one chunk in its place.

        Raises:
            BadInput: the chunk does not continue the bytes so far or goes past the end.
        """
        end = chunk.offset + chunk.data.size
        if chunk.offset != self._filled or end > self._bytes.size:
            raise BadInput("A part of the volume arrived out of order.", "Run again; the volume is sent again.")
        self._bytes[chunk.offset : end] = chunk.data
        self._filled = end


def _pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    if not array.size:
        return
    per_slice = array[0].nbytes
    step = max(1, CHUNK_BYTES // per_slice)
    for start in range(0, array.shape[0], step):
        slab = array[start : start + step]
        flat = np.ascontiguousarray(slab, dtype=slab.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
        for offset in range(0, flat.size, CHUNK_BYTES):
            yield flat[offset : offset + CHUNK_BYTES]


MAX_DEFAULT_BYTES = 2 << 30
SHARE_OF_MEMORY = 0.25


def default_limit_bytes() -> int:
    """Return a quarter of the machine's memory, at most 2 GB."""
    total = total_memory_bytes()
    return MAX_DEFAULT_BYTES if total is None else min(MAX_DEFAULT_BYTES, int(total * SHARE_OF_MEMORY))


@dataclass
class OpenedVolume:
    """A volume the worker holds, its slices, and its session with the loaded model once one was needed."""

    stack: SliceStack
    session: Any = None

    @property
    def nbytes(self) -> int:
        """Bytes of the voxels and of what was computed from them."""
        return int(self.stack.array.nbytes) + int(getattr(self.session, "nbytes", 0))


class VolumeCache:
    """Open volumes by name, from the one that was used longest ago to the latest.

    Args:
        limit_bytes: how much they may take together.

    Attributes:
        forgotten: names of volumes that were open and had to go.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.forgotten: set[str] = set()
        self._limit = limit_bytes
        self._volumes: dict[str, OpenedVolume] = {}

    def __iter__(self) -> Any:
        return iter(tuple(self._volumes))

    def put(self, name: str, opened: OpenedVolume) -> None:
        """Add a volume as the latest."""
        self.forgotten.discard(name)
        self._volumes[name] = opened

    def use(self, name: str) -> OpenedVolume | None:
        """Return a volume and make it the latest, or None."""
        opened = self._volumes.pop(name, None)
        if opened is not None:
            self._volumes[name] = opened
        return opened

    def drop(self, name: str) -> None:
        """Let go of a volume for good."""
        self.forgotten.discard(name)
        self._let_go([name])

    def close_sessions(self) -> None:
        """Forget what was computed from every volume."""
        for opened in self._volumes.values():
            opened.session = None
        give_back_freed_memory()

    def spare_bytes(self) -> int:
        """Return what all volumes but the latest take; safe from any thread."""
        return sum(opened.nbytes for opened in tuple(self._volumes.values())[:-1])

    def shrink(self, keep: Collection[str], more_bytes: int = 0) -> None:
        """Forget old volumes until what is left, and ``more_bytes``, are within the bound; never ``keep``."""
        sizes = {name: opened.nbytes for name, opened in self._volumes.items()}
        left = sum(sizes.values()) + more_bytes
        gone = []
        for name, size in sizes.items():
            if left <= self._limit:
                break
            if name not in keep:
                gone.append(name)
                left -= size
        self._let_go(gone)
        self.forgotten.update(gone)

    def _let_go(self, names: Collection[str]) -> None:
        gone = [self._volumes.pop(name) for name in names if name in self._volumes]
        if gone:
            gone.clear()
            give_back_freed_memory()
