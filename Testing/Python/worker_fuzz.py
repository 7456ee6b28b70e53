"""Random and mutated frames against server and client: each is answered, refused by type, or ends the stream."""

from __future__ import annotations

import copy
import json
import os
import random
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fake_predictor import load_fake

from SPDSegmentLib import errors
from SPDSegmentLib.prompts.fates import Fate, PointFate, SliceStatus
from SPDSegmentLib.worker import messages as m
from SPDSegmentLib.worker.client import ClientConfig, ModelChoice, WorkerClient
from SPDSegmentLib.worker.payloads import PointGroup, pack_fates, pack_mask
from SPDSegmentLib.worker.pipes import Outbox
from SPDSegmentLib.worker.protocol import (
    HEADER_BYTES,
    MAGIC,
    PROTOCOL_VERSION,
    FrameParser,
    decode_frame,
    decode_message,
    encode_message,
)
from SPDSegmentLib.worker.requests import WorkerCommand
from SPDSegmentLib.worker.server import Server, ServerConfig
from SPDSegmentLib.worker.transports import TransportSink

ANSWER_SECONDS = 10.0
FIRST_SENTINEL = 1 << 40
SHAPE = (3, 8, 8)
BYTES = np.arange(SHAPE[0] * SHAPE[1] * SHAPE[2], dtype=np.int16).view(np.uint8)
POINTS = np.array([[-4.0, -4.0, 1.0], [-3.0, -4.0, 2.0]])
GROUPS = (PointGroup("line", "Fiducial", 2),)
NO_LOCKS = (np.zeros((0, 7), np.int64), np.zeros(0, np.uint8))

REQUESTS: list[Any] = [
    m.Hello(1),
    m.LoadModel(2, "fake"),
    m.OpenVolume(3, "other", "<i2", SHAPE, np.diag([-1.0, -1.0, 1.0, 1.0])),
    m.VolumeChunk("other", 0, BYTES),
    m.Segment(4, "volume", POINTS, ("1", "2"), GROUPS, *NO_LOCKS),
    m.Learn(5, "volume", POINTS, ("1", "2"), GROUPS, *NO_LOCKS),
    m.Suggest(5, "volume", POINTS),
    m.Saliency(6, "volume", 1),
    m.CloseVolume("other"),
    m.Cancel(4),
    m.Status(7),
]
FATES = pack_fates((PointFate(0, 1, Fate.KEPT, reason="why", click_id="1", position_ras=(3.0, 4.0, 5.0)),))
MASK = pack_mask(np.eye(8, dtype=bool))
EVENTS: list[Any] = [
    m.HelloReply(2, "0.1", 1),
    m.ModelLoaded(3),
    m.VolumeOpened(4),
    m.Progress(1, "decoding", 1, 3, 0.5),
    m.SliceReady(1, "volume", 1, MASK.shape, MASK.box, MASK.bits, 0.5, SliceStatus.SUPPORTED),
    m.Segmented(1, "volume", (1,), *FATES, seconds=0.1, device="cpu", report={}),
    m.Learned(1, "volume", "", (1, 2), 0.5, 0.5, 0, *NO_LOCKS, "Nothing was gained."),
    m.Suggested(1, "volume", (1,), POINTS[:1], np.zeros((1, 3))),
    m.Failed(1, "BadInput", "What."),
]
ODD_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    7,
    2**31,
    2**53 + 1,
    10**400,
    1e308,
    -0.5,
    "",
    "volume",
    "x" * 70_000,
    "\u0000\ud7ff",
    [],
    [[[[]]]],
    [1, 2, 3],
    [-1, -1, -1],
    [1 << 20, 1 << 20, 1 << 20],
    {},
    {"kind": "hello"},
    "auto",
    "|O8",
    "<f8",
    "<u1",
]


@dataclass
class FuzzSummary:
    """What came of it: counts by outcome, and descriptions of what must not happen."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def join(header: dict[str, Any], payload: bytes) -> bytes:
    """A frame with right checksums around any content."""
    text = json.dumps(header).encode()
    head = struct.pack("<4sBBHIII", MAGIC, PROTOCOL_VERSION, 1, 0, len(text), len(payload), zlib.crc32(text + payload))
    return head + struct.pack("<I", zlib.crc32(head)) + text + payload


def mutate_content(rng: random.Random, message: Any) -> bytes:
    """A well delimited frame whose JSON or payload was changed."""
    data = b"".join(encode_message(message))
    (raw,) = FrameParser().feed(data)
    header: dict[str, Any] = json.loads(raw.json_text)
    payload = bytearray(raw.payload)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        choice = rng.random()
        if choice < 0.6:
            _mutate_value(rng, header)
        elif choice < 0.7:
            header.pop(rng.choice(sorted(header)), None)
        elif choice < 0.75:
            header[rng.choice(("extra", "request_id", "volume_id", "arrays"))] = copy.deepcopy(rng.choice(ODD_VALUES))
        elif choice < 0.85 and payload:
            payload[rng.randrange(len(payload))] ^= 1 << rng.randrange(8)
        elif choice < 0.95:
            del payload[rng.randrange(len(payload) + 1) :]
        else:
            payload += rng.randbytes(rng.randrange(20))
    if header.get("kind") == "shutdown":
        header["kind"] = "hello"
    return join(header, bytes(payload))


def _mutate_value(rng: random.Random, header: dict[str, Any]) -> None:
    holder: Any = header
    key: Any = rng.choice(sorted(header))
    while isinstance(holder[key], (dict, list)) and holder[key] and rng.random() < 0.7:
        holder = holder[key]
        key = rng.choice(sorted(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))


def mutate_bytes(rng: random.Random, message: Any) -> bytes:
    """A frame with flipped, lost, repeated or foreign bytes; or nothing but random bytes."""
    data = bytearray(b"".join(encode_message(message)))
    choice = rng.random()
    if choice < 0.15:
        return rng.randbytes(rng.randrange(1, 400))
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(min(len(data), HEADER_BYTES) if rng.random() < 0.5 else len(data))
        if choice < 0.6:
            data[at] ^= 1 << rng.randrange(8)
        elif choice < 0.75:
            del data[at : at + rng.randrange(1, 9)]
        elif choice < 0.9:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        else:
            data += data[at:]
        if not data:
            break
    return bytes(data)


def fuzz_server(count: int, seed: int) -> FuzzSummary:
    """Send ``count`` frames to servers in this process; after each, reader and inference thread must still answer."""
    rng, summary = random.Random(seed), FuzzSummary()
    server = _ServerUnderTest()
    for number in range(count):
        message = rng.choice(REQUESTS)
        whole = rng.random() < 0.6
        data = mutate_content(rng, message) if whole else mutate_bytes(rng, message)
        outcome = server.try_frame(data, number, delimited=whole)
        summary.outcomes[outcome] += 1
        if server.faults:
            summary.faults += [f"frame {number} ({data[:200]!r}): {fault}" for fault in server.faults]
            server.faults.clear()
        if outcome != "still serving":
            server.close()
            server = _ServerUnderTest()
    server.close()
    return summary


def fuzz_client(count: int, seed: int) -> FuzzSummary:
    """Feed ``count`` frames to clients; a client never raises, and a request it gives up fails with WorkerDied."""
    rng, summary = random.Random(seed), FuzzSummary()
    client, transport, request = _client_under_test()
    for number in range(count):
        message = rng.choice(EVENTS)
        whole = rng.random() < 0.7
        data = mutate_content(rng, message) if whole else mutate_bytes(rng, message)
        try:
            transport.arrive(data)
            outcome = type(request.error or request.answer).__name__ if request.finished else "running"
        except Exception as error:
            outcome = "raised"
            summary.faults.append(f"frame {number} ({data[:200]!r}): {error!r}")
        summary.outcomes[outcome] += 1
        if outcome != "running":
            client, transport, request = _client_under_test()
    return summary


class _ServerUnderTest:
    """A server on pipes within this process, with a model and a small volume."""

    def __init__(self) -> None:
        requests, self._to_server = os.pipe()
        self._from_server, events = os.pipe()
        self.faults: list[str] = []
        self._ended: list[int] = []
        self._sentinel = FIRST_SENTINEL
        self._events: Iterator[m.Event] = self._read_events()
        self._server = Server(requests, events, load_fake, ServerConfig(exit_grace=5.0), self._ended.append)
        self._descriptors = (requests, events)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        for message in (
            m.LoadModel(FIRST_SENTINEL - 2, "fake"),
            m.OpenVolume(FIRST_SENTINEL - 1, "volume", "<i2", SHAPE, np.diag([-1.0, -1.0, 1.0, 1.0])),
            m.VolumeChunk("volume", 0, BYTES),
        ):
            os.write(self._to_server, b"".join(encode_message(message)))

    def try_frame(self, data: bytes, number: int, *, delimited: bool) -> str:
        """Send a frame and two questions; return what the server did."""
        first, second = self._sentinel + 1, self._sentinel + 2
        self._sentinel += 2
        questions = (m.Hello(first), m.Saliency(second, "volume", 1))
        try:
            os.write(self._to_server, data + b"".join(b"".join(encode_message(q)) for q in questions))
        except OSError:
            return "ended before"
        waiting = {first, second}
        # Bytes that happen to be a frame's beginning wait for its rest: the end of the stream must settle that.
        deadline = threading.Timer(ANSWER_SECONDS if delimited else 0.2, self._close_input)
        deadline.start()
        started = time.monotonic()
        try:
            for event in self._events:
                self._judge(event)
                waiting.discard(getattr(event, "request_id", 0))
                if not waiting:
                    return "still serving"
        finally:
            deadline.cancel()
        if delimited:
            self.faults.append(f"a delimited frame ended the server after {time.monotonic() - started:.1f} s")
        return "stream ended"

    def close(self) -> None:
        """End the server; note if it does not end by itself."""
        self._close_input()
        self._thread.join(ANSWER_SECONDS)
        if self._thread.is_alive() or self._ended:
            self.faults.append("the server did not end by itself")
        for descriptor in (self._from_server, self._descriptors[0]):
            os.close(descriptor)

    def _serve(self) -> None:
        code = self._server.run()
        os.close(self._descriptors[1])
        if code not in (0, 2):
            self.faults.append(f"exit code {code}")

    def _close_input(self) -> None:
        descriptor, self._to_server = self._to_server, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _read_events(self) -> Iterator[m.Event]:
        parser = FrameParser()
        while data := os.read(self._from_server, 1 << 16):
            for raw in parser.feed(data):
                yield decode_message(decode_frame(raw), m.EVENTS)
            assert parser.failure is None

    def _judge(self, event: m.Event) -> None:
        if isinstance(event, m.Failed):
            known = isinstance(getattr(errors, event.error, None), type) and event.error != "SPDError"
            if not known or not event.message:
                self.faults.append(f"untyped failure {event.error}: {event.message} {event.details[-600:]}")


class _MemoryTransport:
    """A transport without a process."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.process_id: int | None = 1
        self._sink: TransportSink | None = None

    def start(self, command: WorkerCommand, sink: TransportSink) -> None:
        self._sink = sink

    def arrive(self, data: bytes) -> None:
        assert self._sink is not None
        self._sink.on_output(data)

    def wake(self) -> None: ...

    def poll(self, timeout: float) -> None: ...

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None: ...

    def close_input(self) -> None: ...

    def kill(self) -> None:
        assert self._sink is not None
        self._sink.on_ended(-9, "")


def _client_under_test() -> tuple[WorkerClient, _MemoryTransport, Any]:
    transport = _MemoryTransport()
    client = WorkerClient(lambda: transport, WorkerCommand(("none",)), ClientConfig())
    client.set_model(ModelChoice("fake"))
    client.open_volume("volume", np.arange(192, dtype=np.int16).reshape(SHAPE), np.eye(4))
    request = client.segment("volume", [])
    return client, transport, request
