"""How bytes get to a worker process and back: with ``subprocess`` for scripts, with QProcess within Slicer."""

from __future__ import annotations

import contextlib
import math
import queue
import subprocess
import threading
import time
from collections.abc import Callable
from typing import IO, Any, Protocol

from .pipes import Budget, Outbox, write_all
from .requests import WorkerCommand

READ_BYTES = 1 << 18
MAX_UNREAD_BYTES = 32 << 20
MAX_UNREAD_LOG_BYTES = 1 << 20


class TransportSink(Protocol):
    """Who hears from a transport; always on the thread of the client."""

    def on_output(self, data: bytes) -> None:
        """Bytes of the event stream."""

    def on_log(self, data: bytes) -> None:
        """Bytes of the log."""

    def on_ended(self, code: int | None, reason: str) -> None:
        """Called once, after the last byte: the process is gone or never came."""


class Transport(Protocol):
    """One worker process; the frames to send wait in ``outbox``."""

    outbox: Outbox

    @property
    def process_id(self) -> int | None:
        """The process's number once it runs."""

    def start(self, command: WorkerCommand, sink: TransportSink) -> None:
        """Start the process; a failure is told to the sink, now or later."""

    def wake(self) -> None:
        """The outbox has frames."""

    def poll(self, timeout: float) -> None:
        """Tell the sink what has happened; wait up to ``timeout`` seconds for something to happen."""

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back on the client's thread, where an event loop runs; else the client looks while it polls."""

    def close_input(self) -> None:
        """Close the worker's stdin, after which it ends by itself."""

    def kill(self) -> None:
        """End the process at once."""


class SubprocessTransport:
    """A worker started with ``subprocess``; threads read and write, ``poll`` hands over what they got.

    What was not polled is bounded: the worker waits, and of its log the latest lines are lost.
    """

    def __init__(self) -> None:
        self.outbox = Outbox()
        self._arrived: queue.SimpleQueue[tuple[str, bytes, int | None]] = queue.SimpleQueue()
        self._unread = {"output": Budget(MAX_UNREAD_BYTES), "log": Budget(MAX_UNREAD_LOG_BYTES)}
        self._process: subprocess.Popen[bytes] | None = None
        self._sink: TransportSink | None = None

    @property
    def process_id(self) -> int | None:
        """The process's number once it runs."""
        return self._process.pid if self._process is not None else None

    def start(self, command: WorkerCommand, sink: TransportSink) -> None:
        """Start the process; a failure is told to the sink at the next ``poll``.

        The thread that starts it lives as long as the process: Linux ends the worker with that thread.
        """
        self._sink = sink
        started = threading.Event()
        try:
            self._thread("process", self._live, command, started)
        except RuntimeError as error:
            self._arrived.put(("ended", f"{command.arguments[0]!r} could not be started: {error}".encode(), None))
            return
        started.wait()

    def wake(self) -> None:
        """The writing thread wakes by itself."""

    def poll(self, timeout: float) -> None:
        """Hand over what the threads got; wait up to ``timeout`` seconds for the first piece."""
        if self._sink is None:
            return
        with contextlib.suppress(queue.Empty):
            kind, data, code = self._arrived.get(timeout=timeout) if timeout > 0 else self._arrived.get_nowait()
            while True:
                self._hand_over(self._sink, kind, data, code)
                kind, data, code = self._arrived.get_nowait()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """There is no event loop: the client looks at its deadlines while it polls."""

    def close_input(self) -> None:
        """Let the writing thread close stdin after what it has begun to write."""
        self.outbox.close(drop=True)

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.kill()

    def _hand_over(self, sink: TransportSink, kind: str, data: bytes, code: int | None) -> None:
        if kind in self._unread:
            self._unread[kind].give(len(data))
        if kind == "output":
            sink.on_output(data)
        elif kind == "log":
            sink.on_log(data)
        else:
            sink.on_ended(code, data.decode(errors="replace"))

    def _thread(self, name: str, target: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, name=f"spdsegment-worker-{name}", daemon=True)
        thread.start()
        return thread

    def _live(self, command: WorkerCommand, started: threading.Event) -> None:
        """Start the process, wait for its end and tell of both."""
        readers: list[threading.Thread] = []
        try:
            self._process = process = subprocess.Popen(
                command.arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd=command.folder,
                env=None if command.environment is None else dict(command.environment),
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
            readers += [self._thread("output", self._read, process.stdout, "output")]
            readers += [self._thread("log", self._read, process.stderr, "log")]
            self._thread("write", self._write, process.stdin)
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            self.kill()
            reason = f"{command.arguments[0]!r} could not be started: {getattr(error, 'strerror', None) or error}"
            self._arrived.put(("ended", reason.encode(), None))
            return
        finally:
            started.set()
        code = process.wait()
        self.outbox.close(drop=True)
        for reader in readers:
            reader.join(timeout=1.0)
        for pipe, reader in zip((process.stdout, process.stderr), readers, strict=True):
            if pipe is not None and not reader.is_alive():
                pipe.close()
        self._arrived.put(("ended", b"", code))

    def _read(self, pipe: IO[bytes], kind: str) -> None:
        """Copies of exactly what has come: large blocks cut to size leave holes in the memory of a long session."""
        buffer = memoryview(bytearray(READ_BYTES))
        unread = self._unread[kind]
        with contextlib.suppress(OSError, ValueError):
            while count := pipe.readinto(buffer):  # type: ignore[attr-defined]
                if unread.take(count, lambda: kind == "log" or self.outbox.closed):
                    self._arrived.put((kind, bytes(buffer[:count]), None))
                elif kind != "log":
                    return  # the worker ends or has ended, and nobody reads the rest

    def _write(self, pipe: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            while (frame := self.outbox.wait_next()) is not None:
                for part in frame:
                    write_all(pipe.fileno(), part)
        self.outbox.close(drop=True)
        with contextlib.suppress(OSError):
            pipe.close()


REFILL_BELOW_BYTES = 1 << 20
REFILL_TO_BYTES = 2 << 20
PART_BYTES = 1 << 14
LONG_SECONDS = 0.012
"""After which the rest of what the worker said waits for an event of its own, so that the window answers."""

CallLater = Callable[[int, Callable[[], None]], None]


class QProcessTransport:
    """A worker started with QProcess.

    Args:
        make_process: returns a new QProcess, or an object with the same methods and signals.
        call_later: ``QTimer.singleShot`` or its equal: milliseconds, callable.
    """

    def __init__(self, make_process: Callable[[], Any], call_later: CallLater) -> None:
        self.outbox = Outbox()
        self._process = make_process()
        self._call_later = call_later
        self._sink: TransportSink | None = None
        self._program = ""
        self._running = False
        self._closing = False
        self._writing = False
        self._unread = memoryview(b"")
        self._has_more = False

    @property
    def process_id(self) -> int | None:
        """The process's number once it runs."""
        return int(self._process.processId()) or None

    def start(self, command: WorkerCommand, sink: TransportSink) -> None:
        """Start the process; a failure is told to the sink, on some systems before this returns."""
        self._sink = sink
        self._program = command.arguments[0]
        process = self._process
        process.started.connect(self._on_started)
        process.finished.connect(self._on_finished)
        process.errorOccurred.connect(self._on_error)
        process.readyReadStandardOutput.connect(self._on_output)
        process.readyReadStandardError.connect(self._on_log)
        process.bytesWritten.connect(self._on_written)
        if command.folder is not None:
            process.setWorkingDirectory(command.folder)
        if command.environment is not None:
            process.setEnvironment([f"{name}={value}" for name, value in command.environment])
        process.start(self._program, list(command.arguments[1:]))

    def wake(self) -> None:
        """Write what fits into the process's buffer; the rest follows as it empties."""
        self._fill()

    def poll(self, timeout: float) -> None:
        """Wait for output without running the event loop; its slots are called meanwhile."""
        if self._sink is None:
            return
        if not self._running:
            self._process.waitForStarted(_milliseconds(timeout))
            return
        until = time.monotonic() + timeout
        if not self._has_more:
            self._process.waitForReadyRead(_milliseconds(timeout))
        self._on_output()
        self._on_log()
        if self._running and (left := until - time.monotonic()) > timeout / 2:
            self._process.waitForFinished(_milliseconds(min(left, 0.02)))

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back from the event loop, never too early: Qt's timers may be, and the caller looks only once."""
        due = time.monotonic() + seconds

        def fire() -> None:
            left = due - time.monotonic()
            if left > 0:
                self._call_later(_milliseconds(left), fire)
            else:
                callback()

        self._call_later(_milliseconds(seconds), fire)

    def close_input(self) -> None:
        """Close the process's stdin after what is in its buffer."""
        self.outbox.close(drop=True)
        self._closing = True
        if self._running:
            self._process.closeWriteChannel()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def _on_started(self, *_: Any) -> None:
        self._running = True
        self._fill()
        if self._closing:
            self._process.closeWriteChannel()

    def _on_output(self, *_: Any) -> None:
        try:
            self._take_output()
        finally:
            if self._has_more:
                self._call_later(0, self._on_output)

    def _take_output(self, seconds: float = LONG_SECONDS) -> None:
        """Hand on what the worker said, for about so long."""
        until = time.monotonic() + seconds
        self._has_more = self._sink is not None
        while self._sink is not None:
            if not self._unread:
                data = self._ask("readAllStandardOutput")
                self._unread = memoryview(bytes(data.data())) if data else memoryview(b"")
            if not self._unread:
                self._has_more = False
                return
            part, self._unread = self._unread[:PART_BYTES], self._unread[PART_BYTES:]
            self._sink.on_output(bytes(part))
            if time.monotonic() > until:
                return

    def _on_log(self, *_: Any) -> None:
        data = self._ask("readAllStandardError")
        if data and self._sink is not None:
            self._sink.on_log(bytes(data.data()))

    def _ask(self, method: str) -> Any:
        """What a method of the process returns; ``None`` of a process whose object is being deleted.

        Qt ends a process together with its object, and tells so when Python can no longer ask the object.
        """
        try:
            return getattr(self._process, method)()
        except RuntimeError:
            return None

    def _on_written(self, *_: Any) -> None:
        if self._process.bytesToWrite() < REFILL_BELOW_BYTES:
            self._fill()

    def _on_error(self, *_: Any) -> None:
        if not self._running:
            self._end(None, f"{self._program!r} could not be started: {self._process.errorString()}")

    def _on_finished(self, *_: Any) -> None:
        self._take_output(math.inf)
        self._on_log()
        code, status = self._ask("exitCode"), self._ask("exitStatus")
        if code is None or status is None:
            self._end(None, "the application ended it")
            return
        code = int(code)
        crashed = int(getattr(status, "value", status)) != 0
        self._end(-code if crashed and code > 0 else code, "")

    def _end(self, code: int | None, reason: str) -> None:
        self._running = False
        self.outbox.close(drop=True)
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.on_ended(code, reason)

    def _fill(self) -> None:
        if not self._running or self._writing:
            return
        self._writing = True
        try:
            while self._process.bytesToWrite() < REFILL_TO_BYTES:
                frame = self.outbox.next()
                if frame is None:
                    return
                for part in frame:
                    self._process.write(bytes(part))
        finally:
            self._writing = False


def _milliseconds(seconds: float) -> int:
    return max(0, math.ceil(seconds * 1000))
