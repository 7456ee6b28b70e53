"""The volumes that a worker holds, within a bound, and what was computed and learned of each."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from SPDSegmentLib.errors import SPDError
from SPDSegmentLib.geometry.limits import give_back_freed_memory, total_memory_bytes

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
    """A volume the worker holds.

    Attributes:
        stack: its slices; session: with the loaded model, once one was needed.
        learned: sessions under what corrections taught, by name; the latest and, for an undo, the one before it.
        served: name of the session of which the caller has every slice, None for none.
    """

    stack: SliceStack
    session: Any = None
    learned: dict[str, Any] = field(default_factory=dict)
    served: str | None = ""

    def keep_learned(self, name: str, session: Any) -> None:
        """Keep a session under what was learned; of those before it the latest stays."""
        self.learned.pop(name, None)
        self.learned = {**dict(list(self.learned.items())[-1:]), name: session}

    def forget_sessions(self) -> None:
        """Forget what was computed, and what was learned."""
        self.session = None
        self.learned.clear()

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
        refused: why volumes cannot be used, by their names.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.forgotten: set[str] = set()
        self.refused: dict[str, SPDError] = {}
        self._limit = limit_bytes
        self._volumes: dict[str, OpenedVolume] = {}

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
        """Let go of a volume for good, and of why it could not be used."""
        self.refused.pop(name, None)
        self.forgotten.discard(name)
        self._let_go([name])

    def close_sessions(self) -> None:
        """Forget what was computed from every volume."""
        for opened in self._volumes.values():
            opened.forget_sessions()
        give_back_freed_memory()

    def spare_bytes(self) -> int:
        """Return what all volumes but the latest take; safe from any thread."""
        return sum(opened.nbytes for opened in tuple(self._volumes.values())[:-1])

    def shrink(self, keep: Collection[str], more_bytes: int = 0, *, keep_latest: bool = False) -> None:
        """Forget old volumes until what is left, and ``more_bytes``, are within the bound; who needs one resends it.

        Never ``keep``, nor with ``keep_latest`` the one that was used last.
        """
        keep = {*keep, *list(self._volumes)[-1:]} if keep_latest else keep
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
