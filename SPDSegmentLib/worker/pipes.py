"""What goes through the pipes between client and worker: what waits in them, failures as events, signs of life."""

from __future__ import annotations

import os
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator

from SPDSegmentLib.errors import (
    BadInput,
    DependencyMissing,
    OutOfMemory,
    SPDError,
    is_out_of_memory,
    missing_package,
    out_of_memory,
)

from .health import BEAT_SECONDS, ProcessWatch, is_ancestor
from .messages import Event, Failed
from .protocol import Buffer, ContentError, FrameTooLarge, encode_message

MAX_DETAILS = 20_000
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


WAIT_SECONDS = 0.1


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


def to_error(raised: BaseException) -> SPDError:
    """Return the error that says what happened; an unforeseen exception keeps its traceback as details."""
    if isinstance(raised, OutOfMemory) or (isinstance(raised, SPDError) and not is_out_of_memory(raised)):
        return raised
    details = "".join(traceback.format_exception(raised))[-MAX_DETAILS:]
    if isinstance(raised, ContentError):
        return BadInput(str(raised), "", details)
    if isinstance(raised, FrameTooLarge):
        return BadInput("The answer is larger than the background process can send.", "Use fewer clicks.", details)
    if is_out_of_memory(raised):
        return out_of_memory(raised, details)
    if isinstance(raised, ImportError):
        missing = (raised.name or "").split(".")[0]
        if missing:
            return missing_package(missing, str(raised)[:200], details)
        return DependencyMissing("A Python package cannot be imported.", "Install it in the set-up.", details)
    return SPDError(
        f"Something unforeseen went wrong in the background process ({type(raised).__name__}: {str(raised)[:200]}).",
        "Copy the details into a report.",
        details,
    )


def to_event(request_id: int, raised: BaseException) -> Failed:
    """Return the event that tells a request's failure."""
    return Failed(request_id, **{name: text[:MAX_DETAILS] for name, text in to_error(raised).to_wire().items()})


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


TICK_SECONDS = 0.1
QUIET_AFTER_SECONDS = 10.0
"""How long after the last request signs of life go on without work."""


class Pulse:
    """One thread, started at once: when memory is short, a timer for each deadline could not be.

    Args:
        beat: sends a sign of life; called while there is work, and a while after a request arrived.
        has_work: whether something runs or waits.
        on_orphaned: told once when the process that started this one, or the client, is gone.
    """

    def __init__(
        self, beat: Callable[[], object], has_work: Callable[[], bool], on_orphaned: Callable[[], object]
    ) -> None:
        self._beat = beat
        self._has_work = has_work
        self._on_orphaned = on_orphaned
        self._watches = [ProcessWatch(os.getppid())]
        self._lock = threading.Lock()
        self._deadlines: list[tuple[float, Callable[[], object]]] = []
        self._beat_due = 0.0
        self._quiet_at = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """Beat no more."""
        self._ended.set()

    def note_request(self) -> None:
        """Something arrived from the client and was taken; before the first request nothing is sent."""
        self._quiet_at = time.monotonic() + QUIET_AFTER_SECONDS

    def watch(self, process_id: int) -> None:
        """End with this process too, if it is one that started this one through others."""
        if is_ancestor(process_id):
            self._watches = [*self._watches[:1], ProcessWatch(process_id)]

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call back, on this thread."""
        with self._lock:
            self._deadlines.append((time.monotonic() + seconds, callback))

    def _run(self) -> None:
        while not self._ended.wait(TICK_SECONDS):
            now = time.monotonic()
            with self._lock:
                due = [callback for when, callback in self._deadlines if when <= now]
                self._deadlines = [entry for entry in self._deadlines if entry[0] > now]
            for callback in due:
                callback()
            if now < self._beat_due:
                continue
            self._beat_due = now + BEAT_SECONDS
            if self._has_work() or now < self._quiet_at:
                self._beat()
            if any(watch.gone() for watch in self._watches):
                self._on_orphaned()
                return
