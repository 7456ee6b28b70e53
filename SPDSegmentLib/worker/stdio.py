"""The protocol's pipes: kept to ourselves, whatever other code reads or prints, and never with too much before them."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable

WAIT_SECONDS = 0.1


def take_stdio() -> tuple[int, int]:
    """Move stdin and stdout to private descriptors, in binary mode.

    Afterwards descriptor 0 reads as empty and descriptor 1 is stderr, for Python and for native libraries alike. On
    Windows this also keeps libraries that look at their standard input while they load from waiting for our reader.

    Returns:
        The descriptors of requests (read) and of events (write).
    """
    requests, events = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    if sys.platform == "win32":
        import msvcrt

        for descriptor in (requests, events):
            msvcrt.setmode(descriptor, os.O_BINARY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    return requests, events


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write every byte.

    Raises:
        OSError: the other side is gone.
    """
    rest = memoryview(data)
    while rest.nbytes:
        rest = rest[os.write(descriptor, rest[: 1 << 20]) :]


class Budget:
    """How many bytes may wait for a slow reader; who would add more waits until it has read.

    Args:
        limit_bytes: the bound; one piece that is larger alone passes when nothing else waits.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._waiting = 0
        self._closed = False
        self._condition = threading.Condition()

    @property
    def waiting(self) -> int:
        """Bytes that wait."""
        return self._waiting

    @property
    def closed(self) -> bool:
        """Whether nobody reads any more."""
        return self._closed

    def take(self, count: int, give_up: Callable[[], bool] = lambda: False, *, share: float = 1.0) -> bool:
        """Wait until ``count`` bytes fit into ``share`` of the bound and add them; return whether they were added.

        Args:
            count: bytes.
            give_up: asked while waiting; True ends the wait.
            share: of the bound; more than one for what must not wait long.
        """
        with self._condition:
            while not self._closed and self._waiting and self._waiting + count > self._limit * share:
                if give_up():
                    return False
                self._condition.wait(WAIT_SECONDS)
            self._waiting += count
            return not self._closed

    def add(self, count: int) -> None:
        """Add bytes without waiting."""
        with self._condition:
            self._waiting += count

    def give(self, count: int) -> None:
        """Bytes were read."""
        with self._condition:
            self._waiting -= count
            self._condition.notify_all()

    def close(self) -> None:
        """Nobody reads any more: nobody waits."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
