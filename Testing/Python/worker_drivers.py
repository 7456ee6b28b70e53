"""Clients of the fake worker over every transport, for tests that must hold for all of them."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from SPDSegmentLib.geometry.markups import ControlPoint, Markup
from SPDSegmentLib.worker.client import ClientConfig, ModelChoice, Request, WorkerClient
from SPDSegmentLib.worker.messages import Answer
from SPDSegmentLib.worker.requests import WorkerCommand
from SPDSegmentLib.worker.transports import QProcessTransport, SubprocessTransport, Transport
from Testing.Host.environment import limit

TRANSPORTS = ("subprocess", "qprocess", "qprocess-event-loop")
FAKE_WORKER = WorkerCommand((sys.executable, str(Path(__file__).with_name("fake_predictor.py"))))
PATIENCE_SECONDS = 200.0
SHAPE = (12, 40, 48)


class Driver:
    """A client and the way its thread waits: in ``poll`` or in Qt's event loop."""

    def __init__(self, transport: str, command: WorkerCommand = FAKE_WORKER, **settings: Any) -> None:
        self.transport = transport
        self.logs: deque[str] = deque(maxlen=1000)
        self.died: list[Exception] = []
        config = ClientConfig(**settings)
        self.client = WorkerClient(
            transport_factory(transport), command, config, on_log_line=self.logs.append, on_died=self.died.append
        )

    def until(self, condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> float:
        """Let the client work until ``condition`` holds; return how long that took."""
        started = time.monotonic()
        late = False
        while not condition():
            if late:
                pytest.fail(f"nothing happened in {seconds} s; log: {self.client.log_lines}")
            late = time.monotonic() - started > seconds  # then what has happened meanwhile counts
            if self.transport == "qprocess-event-loop":
                run_event_loop(0.02)
            else:
                self.client.poll(0.02)
        return time.monotonic() - started

    def result(self, request: Request) -> Any:
        """Wait for a request and return its answer, or raise its error."""
        self.until(lambda: request.finished)
        return request.result()

    def segment(self, volume_id: str = "volume", markups: Any = None, **options: Any) -> Any:
        """Segment and wait; returns request and answer."""
        request = self.client.segment(volume_id, markups or [line()], **options)
        answer: Answer = self.result(request)
        return request, answer


@contextmanager
def driver(transport: str, bundle: str = "fake", **settings: Any) -> Iterator[Driver]:
    """A driver with a model chosen and one volume open; at the end no process of ours is left."""
    made = Driver(transport, **settings)
    made.until(lambda: children() == [], limit(5.0))  # a worker that an earlier test of the process has closed
    made.client.set_model(ModelChoice(bundle))
    made.client.open_volume("volume", volume_array(), AFFINE)
    try:
        yield made
    finally:
        made.client.close()
    assert children() == []


@contextmanager
def shared_driver(transport: str, bundle: str = "fake") -> Iterator[Driver]:
    """As :func:`driver`, with one worker for all callers; :func:`close_shared_drivers` ends it."""
    if transport not in _shared:
        _shared[transport] = Driver(transport)
    d = _shared[transport]
    d.client.set_model(ModelChoice(bundle))
    d.client.open_volume("volume", volume_array(), AFFINE)
    try:
        yield d
    finally:
        for volume_id in list(d.client.volumes):
            d.client.close_volume(volume_id)
        d.until(lambda: not d.client.busy)


_shared: dict[str, Driver] = {}


def close_shared_drivers() -> None:
    """End the workers of :func:`shared_driver`; none may be left, and none may have died."""
    while _shared:
        d = _shared.popitem()[1]
        d.client.close()
        assert d.died == []
    assert children() == []


def transport_factory(name: str) -> Callable[[], Transport]:
    """Return what makes transports; skips the test where Qt is not installed."""
    if name == "subprocess":
        return SubprocessTransport
    core = pytest.importorskip("PySide6.QtCore", reason="PySide6-Essentials is not installed: no QProcess to test")
    _application(core)
    return lambda: QProcessTransport(core.QProcess, core.QTimer.singleShot)


def slow_to_start(started: Path) -> WorkerCommand:
    """A worker of which the first process gets no further than its start; that it has begun is noted in a file."""
    code = (
        f"import runpy, time\ntry:\n    open({str(started)!r}, 'x').close()\n    time.sleep(60)\n"
        f"except FileExistsError:\n    runpy.run_path({FAKE_WORKER.arguments[-1]!r}, run_name='__main__')\n"
    )
    return WorkerCommand((sys.executable, "-c", code))


def stop(process_id: int) -> None:
    """Suspend a process, and come back when it runs no more."""
    process = psutil.Process(process_id)
    process.suspend()
    while process.status() != psutil.STATUS_STOPPED:
        time.sleep(0.001)


def run_event_loop(seconds: float) -> None:
    """Run Qt's event loop for a while."""
    from PySide6.QtCore import QEventLoop, QTimer

    loop = QEventLoop()
    QTimer.singleShot(int(seconds * 1000), loop.quit)
    loop.exec()


def children() -> list[str]:
    """Command lines of the processes that this one has started and that still run."""
    found = []
    for process in psutil.Process(os.getpid()).children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.NoSuchProcess:
            continue
    return found


def volume_array(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    """A volume (K, J, I) of int16."""
    return np.random.default_rng(seed).integers(-1000, 1000, size=shape, dtype=np.int16)


def _affine() -> np.ndarray:
    affine = np.diag([-1.0, -1.0, 3.0, 1.0])
    affine[:3, 3] = (20.0, 30.0, -100.0)
    return affine


AFFINE = _affine()


def line(first: int = 2, last: int = 9, kind: str = "Fiducial", i: float = 24.0, name: str = "centerline") -> Markup:
    """A markups node with one point on each slice from ``first`` to ``last``."""
    points = tuple(point(f"{k}", (i, 20.0, float(k))) for k in range(first, last + 1))
    return Markup(name, kind, points)


def point(name: str, ijk: tuple[float, float, float], *, placed: bool = True, selected: bool = True) -> ControlPoint:
    """A control point at a voxel position."""
    r, a, s = (AFFINE @ np.array([*ijk, 1.0]))[:3]
    return ControlPoint(name, name, (float(r), float(a), float(s)), placed, selected)


def _application(core: Any) -> Any:
    """The one application that Qt has in a process: the host's, since tests of the module may come after these."""
    if core.QCoreApplication.instance() is None and "PYTEST_CURRENT_TEST" in os.environ:
        from Testing.Host import environment

        if not environment.missing_packages():
            from Testing.Host.host import start_host

            start_host()
    return core.QCoreApplication.instance() or core.QCoreApplication([])
