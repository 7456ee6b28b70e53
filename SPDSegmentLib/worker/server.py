"""The worker process: one thread reads requests, one infers, one writes events.

The reading thread never waits for the other two, so that cancel and the end of stdin are heard while inference runs; if
inference does not come to an end within its grace time, the reading thread ends the process.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
import os
import platform
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from SPDSegmentLib import __version__
from SPDSegmentLib.errors import BadInput, Cancelled, SPDError

from . import messages as m
from .codec import decode_message, encode_message
from .commands import EXIT_BROKEN_STREAM, EXIT_CANCELLED, EXIT_OK
from .engine import Engine, LoadPredictor, Work, load_predictor
from .failures import to_error, to_event
from .machine import free_memory_bytes
from .protocol import Buffer, ContentError, FrameParser, RawFrame, decode_frame
from .stdio import write_all
from .volume_transfer import VolumeAssembly

READ_BYTES = 1 << 18
PACKAGES = ("torch", "numpy", "SimpleITK", "peft", "segment-anything", "safetensors")

log = logging.getLogger("spdsegment.worker")


@dataclass(frozen=True)
class ServerConfig:
    """Settings of a server.

    Attributes:
        cancel_grace: seconds that a running request may take to stop after an urgent cancel.
        exit_grace: seconds that a running request may take to stop after the end of stdin.
    """

    cancel_grace: float = 0.7
    exit_grace: float = 0.7


@dataclass(eq=False)
class Job:
    """A request that waits for, or is on, the inference thread."""

    request: Work
    stop: threading.Event = field(default_factory=threading.Event)


class Server:
    """Serves one client over two descriptors.

    Args:
        requests: descriptor to read from.
        events: descriptor to write to.
        load: loads a predictor.
        config: settings.
        end_process: ends the process at once with an exit code; replaced in tests.
    """

    def __init__(
        self,
        requests: int,
        events: int,
        load: LoadPredictor = load_predictor,
        config: ServerConfig | None = None,
        end_process: Callable[[int], object] = os._exit,
    ) -> None:
        self._requests = requests
        self._events = events
        self._config = config or ServerConfig()
        self._end_process = end_process
        self._engine = Engine(load, self._emit)
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._outgoing: queue.SimpleQueue[list[Buffer] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._jobs: dict[int, Job] = {}
        self._running: Job | None = None
        self._assemblies: dict[str, VolumeAssembly | None] = {}
        self._finished = threading.Event()
        self._exit_code = EXIT_OK

    def run(self) -> int:
        """Serve until stdin ends; the calling thread is the inference thread. Return the exit code."""
        writer = threading.Thread(target=self._write, name="events", daemon=True)
        writer.start()
        threading.Thread(target=self._read, name="requests", daemon=True).start()
        while (task := self._tasks.get()) is not None:
            task()
        self._outgoing.put(None)
        writer.join(self._config.exit_grace / 2)
        self._finished.set()
        return self._exit_code

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while (frame := self._outgoing.get()) is not None:
                for part in frame:
                    write_all(self._events, part)

    def _emit(self, event: m.Event) -> None:
        self._outgoing.put(encode_message(event))

    def _read(self) -> None:
        parser = FrameParser()
        try:
            while parser.failure is None:
                data = self._read_some()
                if not data or not all(self._take(raw) for raw in parser.feed(data)):
                    break
            if parser.failure is not None:
                log.error("%s", parser.failure)
                self._exit_code = EXIT_BROKEN_STREAM
                self._emit(to_event(m.NO_REQUEST, BadInput(str(parser.failure), "", "")))
            elif parser.in_frame:
                log.warning("the stream of requests ended within a frame")
        finally:
            self._end()

    def _read_some(self) -> bytes:
        try:
            return os.read(self._requests, READ_BYTES)
        except OSError:
            return b""

    def _end(self) -> None:
        with self._lock:
            for job in self._jobs.values():
                job.stop.set()
        self._tasks.put(None)
        if not self._finished.wait(self._config.exit_grace):
            log.warning("a request is still running at the end of the stream; ending without it")
            self._end_process(self._exit_code)

    def _take(self, raw: RawFrame) -> bool:
        """Handle one frame; return whether to go on."""
        request_id = m.NO_REQUEST
        try:
            frame = decode_frame(raw)
            given = frame.header.get("request_id")
            request_id = given if type(given) is int else m.NO_REQUEST
            request = decode_message(frame, m.REQUESTS)
            if isinstance(request, m.Shutdown):
                return False
            self._dispatch(request)
        except (ContentError, SPDError) as error:
            self._emit(to_event(_bounded(request_id), to_error(error)))
        except Exception as error:
            log.exception("a request could not be taken")
            self._emit(to_event(_bounded(request_id), error))
        return True

    def _dispatch(self, request: m.Request) -> None:
        if isinstance(request, m.VolumeChunk):
            self._take_chunk(request)
        elif isinstance(request, m.OpenVolume):
            self._announce_volume(request)
        elif isinstance(request, m.CloseVolume):
            self._assemblies.pop(request.volume_id, None)
            self._tasks.put(lambda: self._engine.close_volume(request.volume_id))
        elif isinstance(request, m.Cancel):
            self._cancel(request)
        elif isinstance(request, m.Hello):
            self._emit(_hello(request))
        elif isinstance(request, m.Status) and not request.probe:
            with self._lock:
                running = self._running.request.request_id if self._running else None
                waiting = len(self._jobs) - (running is not None)
            self._emit(self._engine.status(request.request_id, running=running, waiting=waiting))
        elif not isinstance(request, m.Shutdown):
            self._queue(Job(request))

    def _queue(self, job: Job) -> None:
        request_id = job.request.request_id
        with self._lock:
            if request_id <= m.NO_REQUEST or request_id in self._jobs:
                raise BadInput(f"The request number {request_id} cannot be used.")
            self._jobs[request_id] = job
        self._tasks.put(lambda: self._run(job))

    def _run(self, job: Job) -> None:
        request_id = job.request.request_id
        with self._lock:
            if request_id not in self._jobs:
                return
            self._running = job
        try:
            event: m.Event = self._engine.answer(job.request, job.stop.is_set)
            self._leave(request_id)
            self._emit(event)
        except BaseException as raised:
            self._leave(request_id)
            if not isinstance(raised, SPDError):
                log.exception("a request failed")
            self._emit(to_event(request_id, raised))

    def _leave(self, request_id: int) -> None:
        with self._lock:
            self._jobs.pop(request_id, None)
            self._running = None

    def _cancel(self, request: m.Cancel) -> None:
        with self._lock:
            job = self._jobs.get(request.request_id)
            running = job is not None and job is self._running
            if job is not None and not running:
                del self._jobs[request.request_id]
        if job is None:
            return
        job.stop.set()
        if not running:
            self._emit(to_event(request.request_id, Cancelled()))
        elif request.urgent:
            timer = threading.Timer(self._config.cancel_grace, self._insist, (job,))
            timer.daemon = True
            timer.start()

    def _insist(self, job: Job) -> None:
        if self._running is job:
            log.warning("a cancelled request did not stop in time; ending the process")
            self._end_process(EXIT_CANCELLED)

    def _announce_volume(self, request: m.OpenVolume) -> None:
        volume_id = request.volume_id
        self._assemblies.pop(volume_id, None)
        reserved = sum(assembly.missing_bytes for assembly in self._assemblies.values() if assembly is not None)
        free = free_memory_bytes()
        try:
            assembly = VolumeAssembly(request, None if free is None else max(free - reserved, 0))
        except (ContentError, SPDError) as raised:
            error = to_error(raised)
            self._assemblies[volume_id] = None
            self._tasks.put(lambda: self._engine.refuse_volume(volume_id, error))
            raise
        self._assemblies[volume_id] = assembly

    def _take_chunk(self, chunk: m.VolumeChunk) -> None:
        if chunk.volume_id not in self._assemblies:
            raise BadInput(f"A part of the unknown volume {chunk.volume_id!r} arrived.")
        assembly = self._assemblies[chunk.volume_id]
        if assembly is None:
            return
        try:
            assembly.add(chunk)
        except BadInput as raised:
            error = raised
            self._assemblies[chunk.volume_id] = None
            self._tasks.put(lambda: self._engine.refuse_volume(chunk.volume_id, error))
            self._emit(to_event(assembly.announcement.request_id, error))
            return
        if assembly.complete:
            del self._assemblies[chunk.volume_id]
            self._tasks.put(lambda: self._open(assembly))

    def _open(self, assembly: VolumeAssembly) -> None:
        try:
            self._emit(self._engine.open_volume(assembly.announcement, assembly.array))
        except Exception as raised:
            self._emit(to_event(assembly.announcement.request_id, raised))


def _bounded(request_id: int) -> int:
    return request_id if 0 <= request_id < 1 << 53 else m.NO_REQUEST


def _hello(request: m.Hello) -> m.HelloReply:
    packages = {name: _version(name) for name in PACKAGES}
    return m.HelloReply(
        request_id=request.request_id,
        library_version=__version__,
        python_version=platform.python_version(),
        platform=platform.platform(),
        packages=packages,
        process_id=os.getpid(),
        free_bytes=free_memory_bytes(),
    )


@functools.cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
