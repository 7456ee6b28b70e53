"""The volumes that the worker holds: bounded by bytes, those that were used longest ago are forgotten first."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from SPDSegmentLib.geometry.limits import total_memory_bytes
from SPDSegmentLib.inference.memory import give_back_freed_memory

if TYPE_CHECKING:
    from SPDSegmentLib.geometry.slices import SliceStack

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

    def close_session(self) -> None:
        """Forget what was computed."""
        close(self.session)
        self.session = None


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
        opened = self._volumes.pop(name, None)
        if opened is not None:
            opened.close_session()

    def close_sessions(self) -> None:
        """Forget what was computed from every volume."""
        for opened in self._volumes.values():
            opened.close_session()

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
        for name in gone:
            self.drop(name)
            self.forgotten.add(name)
        if gone:
            give_back_freed_memory()


def close(thing: Any) -> None:
    """Call the ``close`` of an object that has one."""
    method = getattr(thing, "close", None)
    if callable(method):
        method()
