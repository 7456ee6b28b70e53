"""The worker process: one thread reads requests, one infers, one writes events, one beats.

The reading thread does not wait for the others, so that cancel and the end of stdin are heard while inference runs; if
inference does not come to an end within its grace time, the process is ended. Inference waits while the client leaves
answers unread; the reading thread does so only where a client sends without end and never reads.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from SPDSegmentLib import __version__
from SPDSegmentLib.errors import BadInput, Cancelled, OutOfMemory, SPDError
from SPDSegmentLib.geometry.limits import free_memory_bytes

from . import messages as m
from .handler import LoadPredictor, RequestHandler, Work, default_limit_bytes
from .health import EXIT_BROKEN_STREAM, EXIT_CANCELLED, EXIT_OK
from .pipes import Outgoing, Pulse, to_error, to_event
from .protocol import ContentError, FrameParser, RawFrame, array_bytes, decode_frame, decode_message

READ_BYTES = 1 << 18
MAX_WAITING = 4096
MAX_VOLUME_BYTES = 32 << 30
MEMORY_MARGIN_BYTES = 256 << 20
LOADING_SECONDS = 180.0
"""How long the import of torch and the reading of a model may hold up signs of life."""
FLUSH_SECONDS = 0.2

log = logging.getLogger("spdsegment.worker")


@dataclass(frozen=True)
class ServerConfig:
    """Settings of a server.

    Attributes:
        cancel_grace: seconds that a running request may take to stop after an urgent cancel.
        exit_grace: seconds that a running request may take to stop after the end of stdin.
        unread_bytes: how many bytes of answers may wait for a client that does not read.
        volume_bytes: how many bytes the volumes may take together, with what was computed for them; those that were
            used longest ago are forgotten, and sent again when they are needed. None for a share of all memory.
    """

    cancel_grace: float = 0.7
    exit_grace: float = 0.7
    unread_bytes: int = 64 << 20
    volume_bytes: int | None = None


@dataclass(eq=False)
class WaitingRequest:
    """A request that waits for, or is on, the inference thread."""

    request: Work
    stop: threading.Event = field(default_factory=threading.Event)


class VolumeAssembly:
    """Collects the chunks of one announced volume.

    Raises:
        BadInput: a type or size the protocol does not carry.
        OutOfMemory: it would not fit into the free memory.
    """

    def __init__(self, announcement: m.OpenVolume, free_bytes: int | None) -> None:
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

    def add(self, chunk: m.VolumeChunk) -> None:
        """Put one chunk in its place.

        Raises:
            BadInput: the chunk does not continue the bytes so far or goes past the end.
        """
        end = chunk.offset + chunk.data.size
        if chunk.offset != self._filled or end > self._bytes.size:
            raise BadInput("A part of the volume arrived out of order.", "Run again; the volume is sent again.")
        self._bytes[chunk.offset : end] = chunk.data
        self._filled = end


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
        load: LoadPredictor,
        config: ServerConfig | None = None,
        end_process: Callable[[int], object] = os._exit,
    ) -> None:
        self._requests = requests
        self._config = config or ServerConfig()
        self._end_process = end_process
        limit = self._config.volume_bytes
        self._handler = RequestHandler(load, self._emit_patiently, default_limit_bytes() if limit is None else limit)
        self._volumes = self._handler.volumes
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._outgoing = Outgoing(events, self._config.unread_bytes, self._lose_client)
        self._pulse = Pulse(
            self._beat, lambda: bool(self._jobs or any(tuple(self._assemblies.values()))), self._end_orphaned
        )
        self._lock = threading.Lock()
        self._jobs: dict[int, WaitingRequest] = {}
        self._running: WaitingRequest | None = None
        self._assemblies: dict[str, VolumeAssembly | None] = {}
        self._finished = threading.Event()
        self._ending = False
        self._exit_code = EXIT_OK

    def run(self) -> int:
        """Serve until stdin ends; the calling thread is the inference thread. Return the exit code."""
        self._outgoing.start()
        self._pulse.start()
        threading.Thread(target=self._read, name="requests", daemon=True).start()
        while (task := self._tasks.get()) is not None:
            task()
        self._outgoing.close(self._config.exit_grace / 2)
        self._pulse.stop()
        self._finished.set()
        return self._exit_code

    def _emit(self, event: m.Event) -> None:
        self._outgoing.send(event)

    def _emit_patiently(self, event: m.Event, before: Callable[[], object] | None = None) -> None:
        """Send from the inference thread; ``before`` is called once there is room.

        Raises:
            Cancelled: while the client left too much unread.
        """
        job = self._running
        stopped = job.stop.is_set if job is not None else lambda: False
        if not self._outgoing.send_patiently(event, lambda: self._ending or stopped(), before):
            raise Cancelled()

    def _beat(self) -> None:
        """Send a sign of life, unless there is still something to read that is one itself."""
        if self._outgoing.idle:
            self._emit(self._alive())

    def _alive(self) -> m.Alive:
        running = self._running.request if self._running is not None else None
        silent = LOADING_SECONDS if isinstance(running, m.LoadModel | m.Status) else 0.0
        return m.Alive(running.request_id if running is not None else None, silent)

    def _lose_client(self, raised: BaseException) -> None:
        log.error("nothing can be sent to the client any more: %s", raised)
        self._end_process(EXIT_BROKEN_STREAM)

    def _end_orphaned(self) -> None:
        log.warning("the process that started this one is gone; ending")
        self._end_process(EXIT_OK)

    def _read(self) -> None:
        parser = FrameParser()
        try:
            while parser.failure is None:
                self._outgoing.wait_for_reader(self._hung_up)
                data = self._read_some()
                if not data:
                    break
                for raw in parser.feed(data):
                    self._take(raw)
                self._pulse.note_request()
            if parser.failure is not None:
                log.error("%s", parser.failure)
                self._exit_code = EXIT_BROKEN_STREAM
                self._emit(to_event(m.NO_REQUEST, BadInput(str(parser.failure), "", "")))
            elif parser.in_frame:
                log.warning("the stream of requests ended within a frame")
        except BaseException as raised:
            log.exception("the stream of requests cannot be read on")
            self._exit_code = EXIT_BROKEN_STREAM
            self._emit(to_event(m.NO_REQUEST, raised))
        finally:
            self._end()

    def _read_some(self) -> bytes:
        try:
            return os.read(self._requests, READ_BYTES)
        except OSError:
            return b""

    def _hung_up(self) -> bool:
        """Whether the client has closed our stdin, although not all of it was read."""
        if not hasattr(select, "poll"):
            return False
        poll = select.poll()
        poll.register(self._requests, 0)
        return bool(poll.poll(0))

    def _end(self) -> None:
        self._ending = True
        with self._lock:
            for job in self._jobs.values():
                job.stop.set()
        self._tasks.put(None)
        if not self._finished.wait(self._config.exit_grace):
            log.warning("a request is still running at the end of the stream; ending without it")
            self._end_process(self._exit_code)

    def _take(self, raw: RawFrame) -> None:
        request_id = m.NO_REQUEST
        try:
            frame = decode_frame(raw)
            given = frame.header.get("request_id")
            request_id = given if type(given) is int else m.NO_REQUEST
            self._dispatch(decode_message(frame, m.REQUESTS))
        except (ContentError, SPDError) as error:
            self._emit(to_event(_bounded(request_id), to_error(error)))
        except Exception as error:
            log.exception("a request could not be taken")
            self._emit(to_event(_bounded(request_id), error))

    def _dispatch(self, request: m.Request) -> None:
        if isinstance(request, m.VolumeChunk):
            self._take_chunk(request)
        elif isinstance(request, m.OpenVolume):
            self._announce_volume(request)
        elif isinstance(request, m.CloseVolume):
            self._assemblies.pop(request.volume_id, None)
            self._tasks.put(lambda: self._volumes.drop(request.volume_id))
        elif isinstance(request, m.Cancel):
            self._cancel(request)
        elif isinstance(request, m.Hello):
            self._emit(m.HelloReply(request.request_id, __version__, os.getpid()))
            if request.process_id is not None:
                self._pulse.watch(request.process_id)
        elif isinstance(request, m.Status) and not request.probe:
            self._emit(m.StatusReply(request.request_id))
        else:
            self._queue(WaitingRequest(request))

    def _queue(self, job: WaitingRequest) -> None:
        request_id = job.request.request_id
        outdated: list[int] = []
        with self._lock:
            if request_id <= m.NO_REQUEST or request_id in self._jobs:
                raise BadInput(f"The request number {request_id} cannot be used.")
            if len(self._jobs) >= MAX_WAITING:
                raise BadInput(f"{MAX_WAITING} requests wait already.", "Wait for their answers first.")
            if isinstance(job.request, m.Segment):
                outdated = [known for known, other in self._jobs.items() if self._replaces(job.request, other)]
                for known in outdated:
                    del self._jobs[known]
            self._jobs[request_id] = job
        for known in outdated:
            self._emit(to_event(known, Cancelled("A newer update of the same volume took its place.")))
        self._tasks.put(lambda: self._run(job))

    def _replaces(self, update: m.Segment, waiting: WaitingRequest) -> bool:
        """Whether a request that has not begun is outdated by an update of the same volume."""
        other = waiting.request
        return waiting is not self._running and isinstance(other, m.Segment) and other.volume_id == update.volume_id

    def _run(self, job: WaitingRequest) -> None:
        request_id = job.request.request_id
        with self._lock:
            if request_id not in self._jobs:
                return
            self._running = job
        try:
            self._emit(self._alive())  # before anything can go wrong the client knows which request is on
            self._outgoing.flush(FLUSH_SECONDS)
            event: m.Event = self._handler.answer(job.request, job.stop.is_set)
            self._emit_patiently(event, lambda: self._leave(request_id))
        except BaseException as raised:
            self._leave(request_id)
            if not isinstance(raised, SPDError):
                log.exception("a request failed")
            self._outgoing.send_patiently(to_event(request_id, raised), lambda: self._ending)
        self._volumes.shrink(self._volumes_needed(), keep_latest=True)

    def _volumes_needed(self) -> set[str]:
        with self._lock:
            return {str(getattr(job.request, "volume_id", "")) for job in self._jobs.values()}

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
            self._pulse.call_later(self._config.cancel_grace, lambda: self._insist(job))

    def _insist(self, job: WaitingRequest) -> None:
        with self._lock:  # one that stops at this moment has not said so yet, or is left in peace
            if self._running is job:
                log.warning("a cancelled request did not stop in time; ending the process")
                self._end_process(EXIT_CANCELLED)

    def _announce_volume(self, request: m.OpenVolume) -> None:
        volume_id = request.volume_id
        self._assemblies.pop(volume_id, None)
        reserved = sum(assembly.missing_bytes for assembly in self._assemblies.values() if assembly is not None)
        free = free_memory_bytes()
        free = None if free is None else free + self._volumes.spare_bytes()
        try:
            assembly = VolumeAssembly(request, None if free is None else max(free - reserved, 0))
        except (ContentError, SPDError) as raised:
            error = to_error(raised)
            self._assemblies[volume_id] = None
            self._tasks.put(lambda: self._volumes.refused.update({volume_id: error}))
            raise
        self._assemblies[volume_id] = assembly
        self._tasks.put(lambda: self._volumes.shrink(self._volumes_needed(), assembly.missing_bytes))

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
            self._tasks.put(lambda: self._volumes.refused.update({chunk.volume_id: error}))
            self._emit(to_event(assembly.announcement.request_id, error))
            return
        if assembly.complete:
            del self._assemblies[chunk.volume_id]
            self._tasks.put(lambda: self._open(assembly))

    def _open(self, assembly: VolumeAssembly) -> None:
        try:
            self._emit(self._handler.open_volume(assembly.announcement, assembly.array))
            self._volumes.shrink({assembly.announcement.volume_id, *self._volumes_needed()}, keep_latest=True)
        except Exception as raised:
            self._emit(to_event(assembly.announcement.request_id, raised))


def _bounded(request_id: int) -> int:
    return request_id if 0 <= request_id < 1 << 53 else m.NO_REQUEST
