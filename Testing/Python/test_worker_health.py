"""A worker that was stopped or hangs is found within two seconds; one that computes or loads is left in peace."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
from worker_drivers import (
    AFFINE,
    FAKE_WORKER,
    SHAPE,
    TRANSPORTS,
    Driver,
    children,
    driver,
    line,
    slow_to_start,
    stop,
    volume_array,
)

from SPDSegmentLib import __version__
from SPDSegmentLib.errors import WorkerDied
from SPDSegmentLib.worker.client import ModelChoice
from SPDSegmentLib.worker.connection import Connection
from SPDSegmentLib.worker.health import Heartbeat, HeartbeatLimits, ProcessLook, ProcessWatch, family, look_at
from SPDSegmentLib.worker.messages import Alive, HelloReply
from SPDSegmentLib.worker.pipes import Outbox
from SPDSegmentLib.worker.protocol import encode_message
from SPDSegmentLib.worker.requests import ClientConfig, VolumeSource, WorkerCommand
from Testing.Host.environment import limit

FOUND_SECONDS = 2.0
FRAMES_SENT = 20
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no signal that stops a process")
everywhere = pytest.mark.parametrize("transport", TRANSPORTS)


def _stop(d: Driver) -> int:
    assert d.client.process_id is not None
    stop(d.client.process_id)
    return d.client.process_id


@posix
@everywhere
def test_stopped_while_idle_the_next_request_is_served_by_another(transport: str) -> None:
    with driver(transport) as d:
        d.segment()
        old = _stop(d)
        request, _ = d.segment(markups=[line(3)])
        assert len(request.slices) == SHAPE[0], (d.logs, old, d.client.process_id)
        assert d.client.process_id != old and not psutil.pid_exists(old)


@posix
@everywhere
def test_stopped_during_a_request_it_fails_within_two_seconds_and_the_next_works(
    transport: str, tmp_path: Path
) -> None:
    with driver(transport, f"fake?gate={tmp_path / 'gate'}") as d:
        request = d.client.segment("volume", [line()])
        d.until(lambda: len(request.slices) >= 2)
        _stop(d)
        assert d.until(lambda: request.finished) < limit(FOUND_SECONDS)
        assert isinstance(request.error, WorkerDied) and "stopped" in request.error.message
        (tmp_path / "gate").touch()
        d.segment()


@posix
@everywhere
def test_stopped_while_starting_it_is_replaced(transport: str, tmp_path: Path) -> None:
    with driver(transport, command=slow_to_start(tmp_path / "started")) as d:
        request = d.client.segment("volume", [line()])
        d.until((tmp_path / "started").exists)
        old = _stop(d)
        d.until(lambda: d.client.process_id not in (old, None), seconds=limit(FOUND_SECONDS))
        assert len(d.result(request).recomputed) == SHAPE[0]


@posix
@everywhere
def test_stopped_while_a_volume_is_on_its_way_it_is_sent_again_whole(
    transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = volume_array((100, 512, 512), seed=4)
    stopped: list[int] = []
    cut = VolumeSource.frames

    def frames(source: VolumeSource, request_id: int) -> Iterator[Any]:
        for n, frame in enumerate(cut(source, request_id)):
            if n == FRAMES_SENT and not stopped:
                stopped.append(_stop(d))
            yield frame

    monkeypatch.setattr(VolumeSource, "frames", frames)
    with driver(transport) as d:
        d.client.open_volume("big", big, AFFINE)
        d.result(d.client.status())
        assert d.result(d.client.segment("big", [line()])).report["values"] == big.sum(dtype=float)
        assert stopped and d.client.process_id not in stopped


@posix
@everywhere
def test_stopped_while_it_loads_the_model_the_request_is_served_by_another(transport: str) -> None:
    with driver(transport, "fake?load=1.5") as d:
        request = d.client.segment("volume", [line()])
        d.until(lambda: request.model_only)
        old = _stop(d)
        assert len(d.result(request).recomputed) == SHAPE[0]
        assert d.client.process_id != old and not psutil.pid_exists(old)


@posix
@everywhere
@pytest.mark.parametrize("urgent", [True, False])
def test_a_stopped_worker_that_is_cancelled_is_ended(transport: str, urgent: bool) -> None:
    with driver(transport, "fake?stuck=30") as d:
        request = d.client.segment("volume", [line()])
        d.until(lambda: request.begun)
        old = _stop(d)
        d.client.cancel(request, urgent=urgent)
        d.until(lambda: not psutil.pid_exists(old), seconds=limit(FOUND_SECONDS))


@posix
@everywhere
def test_a_worker_that_hangs_in_native_code_is_found(transport: str) -> None:
    with driver(transport, "fake?hold=60") as d:
        request = d.client.segment("volume", [line()])
        d.until(lambda: request.begun)
        assert d.until(lambda: request.finished) < limit(FOUND_SECONDS + 0.5)
        assert isinstance(request.error, WorkerDied) and "no sign of life" in request.error.message


@posix
@everywhere
def test_stopped_behind_a_launcher_it_is_found_and_leaves_no_process(transport: str) -> None:
    launcher = f"import subprocess, sys; sys.exit(subprocess.call({list(FAKE_WORKER.arguments)!r}))"
    d = Driver(transport, WorkerCommand((sys.executable, "-c", launcher)))
    d.client.set_model(ModelChoice("fake?delay=0.1"))
    d.client.open_volume("volume", volume_array(), AFFINE)
    request = d.client.segment("volume", [line()])
    d.until(lambda: len(request.slices) > 1)
    assert d.client.hello is not None and d.client.hello.process_id != d.client.process_id
    os.kill(d.client.hello.process_id, signal.SIGSTOP)
    assert d.until(lambda: request.finished) < limit(FOUND_SECONDS) + 1.0
    d.until(lambda: children() == [], seconds=limit(2.0))


@everywhere
@pytest.mark.parametrize("bundle", ["fake?stuck=3", "fake?load=3", "fake?spin=3", "fake?load_hold=3"])
def test_a_worker_that_computes_or_loads_for_long_is_left_in_peace(transport: str, bundle: str) -> None:
    if os.name == "nt" and "hold" in bundle:
        pytest.skip("needs a C library call that keeps Python's lock")
    with driver(transport, bundle) as d:
        _, answer = d.segment()
        assert len(answer.recomputed) == SHAPE[0] and d.died == [] and d.client.deaths == 0


def test_a_caller_that_was_away_for_long_does_not_blame_the_worker() -> None:
    with driver("subprocess", "fake?stuck=4") as d:
        request = d.client.segment("volume", [line()])
        d.until(lambda: request.begun)
        time.sleep(3)
        d.result(request)
        assert d.died == []


@pytest.fixture
def clock() -> Iterator[Any]:
    """A clock that stands still until it is set."""

    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    yield Clock()


def _silence(clock: Any, looks: list[ProcessLook], seconds: float, *, here: bool = True, patience: float = 0) -> float:
    """Return after how many seconds of silence a worker is given up, or infinity."""
    heartbeat = Heartbeat(HeartbeatLimits(), clock, lambda process_id: looks[0])
    heartbeat.be_patient(patience)
    while clock.now < seconds:
        clock.now += 0.3
        if heartbeat.check([1], answers=True, here=here):
            return float(clock.now)
    return float("inf")


def test_only_a_process_that_neither_answers_nor_works_is_given_up_soon(clock: Any) -> None:
    assert _silence(clock, [ProcessLook(False, False, 5.0)], 10) < FOUND_SECONDS


def test_one_that_works_is_given_up_late(clock: Any) -> None:
    assert 30 < _silence(clock, [ProcessLook(False, True, 5.0)], 200) < 100


def test_one_that_was_announced_to_be_silent_is_left_alone_until_then(clock: Any) -> None:
    assert 60 < _silence(clock, [ProcessLook(False, False, 5.0)], 100, patience=60) < 63


def test_one_that_the_system_cannot_be_asked_about_has_longer(clock: Any) -> None:
    assert 10 < _silence(clock, [ProcessLook(False, False, 5.0)], 100, here=False) < 40


class BusyTransport:
    """Hands over what has arrived only when it is asked to."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.process_id = os.getpid()
        self.arrived: list[bytes] = []
        self.killed = False
        self.sink: Any = None

    def start(self, command: WorkerCommand, sink: Any) -> None:
        self.sink = sink

    def poll(self, timeout: float) -> None:
        while self.arrived:
            self.sink.on_output(self.arrived.pop(0))

    def kill(self) -> None:
        self.killed = True

    def wake(self) -> None: ...

    def call_later(self, seconds: float, callback: Any) -> None: ...

    def close_input(self) -> None: ...


def test_a_sign_of_life_that_nobody_has_taken_in_yet_counts(clock: Any) -> None:
    transport = BusyTransport()
    connection = Connection(transport, Mock(), ClientConfig(), itertools.count(1), clock, lambda: True)
    connection._heartbeat = Heartbeat(HeartbeatLimits(), clock, lambda process_id: ProcessLook(False, False, 5.0))
    connection.start(FAKE_WORKER)
    connection.on_output(b"".join(encode_message(HelloReply(1, __version__, os.getpid()))))
    # given: the caller's window is busy, so that the timer that looks at the worker fires before what it said is read
    transport.arrived.append(b"".join(encode_message(Alive(2, 0.0))))
    for _ in range(6):
        clock.now += 0.3
        connection.check_alive()
    assert not transport.arrived and not transport.killed
    # when it is silent indeed
    for _ in range(6):
        clock.now += 0.3
        connection.check_alive()
    assert transport.killed and connection.was_stopped


def test_the_system_tells_of_this_process_and_of_one_that_is_gone() -> None:
    here = look_at(os.getpid())
    assert here is not None and not here.stopped and here.cpu_seconds > 0
    assert os.getpid() in family(os.getppid())
    child = psutil.Popen([sys.executable, "-c", "input()"], stdin=-1)
    watch = ProcessWatch(child.pid)
    assert not watch.gone()
    child.kill()
    child.wait()
    assert watch.gone()
