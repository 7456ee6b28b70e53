"""The way to a worker process through QProcess, for Slicer: no thread, everything on the event loop.

Written for what PythonQt and PySide6 share: signals as attributes, no enumerators, bytes from ``.data()``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from .commands import WorkerCommand
from .outbox import Outbox
from .transports import TransportSink

REFILL_BELOW_BYTES = 1 << 20
REFILL_TO_BYTES = 2 << 20

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
        data = self._ask("readAllStandardOutput")
        if data and self._sink is not None:
            self._sink.on_output(bytes(data.data()))

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
        self._on_output()
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
