"""What the worker sends: events in order, written by a thread of their own, and never too many unread ones."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from .codec import encode_message
from .messages import Event
from .protocol import Buffer
from .stdio import Budget, write_all

URGENT_SHARE = 2.0
"""Answers of the reading thread may go beyond the bound so far before it reads no more."""


class Outgoing:
    """Events on their way to the client.

    Args:
        descriptor: to write to.
        limit_bytes: how much may wait for a client that does not read.
        on_broken: told once when nothing can be written any more.
    """

    def __init__(self, descriptor: int, limit_bytes: int, on_broken: Callable[[BaseException], object]) -> None:
        self._descriptor = descriptor
        self._on_broken = on_broken
        self._budget = Budget(limit_bytes)
        self._frames: queue.SimpleQueue[list[Buffer] | threading.Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="events", daemon=True)

    @property
    def idle(self) -> bool:
        """Whether everything is written."""
        return self._budget.waiting == 0

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def send(self, event: Event) -> None:
        """Send without waiting."""
        self._put(encode_message(event))

    def send_patiently(
        self, event: Event, give_up: Callable[[], bool], before: Callable[[], object] | None = None
    ) -> bool:
        """Send once the client has read enough of what was sent earlier; return False where ``give_up`` came first.

        Args:
            event: what to send.
            give_up: asked while waiting.
            before: called once there is room, just before the event goes out.
        """
        frame = encode_message(event)
        taken = self._budget.take(_size(frame), give_up)
        if not taken and not self._budget.closed:
            return False
        if before is not None:
            before()
        if taken:
            self._frames.put(frame)
        return True

    def wait_for_reader(self, give_up: Callable[[], bool]) -> None:
        """Wait while far too much is unread."""
        if self._budget.take(0, give_up, share=URGENT_SHARE):
            self._budget.give(0)

    def flush(self, seconds: float) -> bool:
        """Wait until all that was sent so far is written; return whether it is."""
        written = threading.Event()
        self._frames.put(written)
        return written.wait(seconds)

    def close(self, seconds: float) -> None:
        """Write what is left, as far as the client reads it in time."""
        self._frames.put(None)
        self._thread.join(seconds)

    def _put(self, frame: list[Buffer]) -> None:
        if not self._budget.closed:
            self._budget.add(_size(frame))
            self._frames.put(frame)

    def _write(self) -> None:
        try:
            while (frame := self._frames.get()) is not None:
                if isinstance(frame, threading.Event):
                    frame.set()
                    continue
                for part in frame:
                    write_all(self._descriptor, part)
                self._budget.give(_size(frame))
        except BaseException as raised:
            self._budget.close()
            self._on_broken(raised)


def _size(frame: list[Buffer]) -> int:
    return sum(memoryview(part).nbytes for part in frame)
