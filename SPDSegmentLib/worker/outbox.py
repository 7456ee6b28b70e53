"""What waits to be written to the worker: frames made one at a time, urgent ones between the chunks of a volume."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable, Iterable, Iterator

from .protocol import Buffer

Buffers = list[Buffer]


class Outbox:
    """Queue of lazily made frames, shared by the client's thread and the one that writes."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._urgent: deque[Buffers] = deque()
        self._entries: deque[tuple[Hashable, Iterator[Buffers]]] = deque()
        self._started: Hashable = None
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether it takes no more."""
        return self._closed

    def put(self, frames: Iterable[Buffers], tag: Hashable = None) -> None:
        """Append frames; they are made when their turn comes."""
        with self._condition:
            if not self._closed:
                self._entries.append((tag, iter(frames)))
                self._condition.notify()

    def put_urgent(self, frame: Buffers) -> None:
        """Add a frame that goes out next, even between the frames of one entry."""
        with self._condition:
            if not self._closed:
                self._urgent.append(frame)
                self._condition.notify()

    def discard(self, tag: Hashable) -> bool:
        """Drop what is left of the entry ``tag``; return whether nothing of it had gone out yet."""
        with self._condition:
            found = any(entry_tag == tag for entry_tag, _ in self._entries)
            self._entries = deque(entry for entry in self._entries if entry[0] != tag)
            return found and self._started != tag

    def next(self) -> Buffers | None:
        """Return the next frame, or None while there is none."""
        with self._condition:
            return self._next()

    def wait_next(self) -> Buffers | None:
        """Block until there is a frame, or return None once the outbox is closed and empty."""
        with self._condition:
            while True:
                frame = self._next()
                if frame is not None or self._closed:
                    return frame
                self._condition.wait()

    def close(self, *, drop: bool = False) -> None:
        """Take no more; with ``drop``, forget what waits."""
        with self._condition:
            self._closed = True
            if drop:
                self._urgent.clear()
                self._entries.clear()
            self._condition.notify_all()

    def _next(self) -> Buffers | None:
        if self._urgent:
            return self._urgent.popleft()
        while self._entries:
            tag, frames = self._entries[0]
            frame = next(frames, None)
            if frame is not None:
                self._started = tag
                return frame
            self._entries.popleft()
        return None
