"""Long runs of the worker: many updates, kills at random moments, a large volume, many volumes."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import pytest
from worker_drivers import AFFINE, SHAPE, Driver, driver, line, point, volume_array

from SPDSegmentLib.errors import WorkerDied
from SPDSegmentLib.geometry.markups import Markup
from SPDSegmentLib.worker.client import ModelChoice, Request
from SPDSegmentLib.worker.requests import WorkerCommand
from SPDSegmentLib.worker.transports import QProcessTransport

WARM_UP_SHARE = 0.2


@dataclass(frozen=True)
class Growth:
    """Resident memory in bytes, after the warm-up and at the end, of this process and of the worker."""

    client_before: int
    client_after: int
    worker_before: int
    worker_after: int

    @property
    def client_share(self) -> float:
        """Growth of this process, 0.05 for 5 %."""
        return self.client_after / self.client_before - 1

    @property
    def worker_share(self) -> float:
        """Growth of the worker."""
        return self.worker_after / self.worker_before - 1


@dataclass(frozen=True)
class Kills:
    """Kills at random moments: how many, how many requests had failed by them, seconds to the next whole result."""

    count: int
    failed_requests: int
    median_seconds: float
    longest_seconds: float


@dataclass(frozen=True)
class Sending:
    """Cost of one large volume for the thread of the caller, in seconds.

    Attributes:
        submit: the call that makes the client send the volume.
        longest_call: processor time of the longest of our calls on the thread, that one or one from the event loop.
        all_calls: processor time of all those calls together.
        arrived: until the worker had the whole volume.
    """

    megabytes: float
    submit: float
    longest_call: float
    all_calls: float
    arrived: float


def updates(transport: str, count: int) -> Growth:
    """Move one click ``count`` times, each time waiting for the result."""
    rng = random.Random(1)
    warm_up = max(5, int(count * WARM_UP_SHARE))
    before = (0, 0)
    with driver(transport) as d:
        d.client.open_volume("soak", volume_array((40, 256, 256)), AFFINE)
        for n in range(count + warm_up):
            if n == warm_up:
                before = _resident(d)
            d.segment("soak", [_moved(rng)], locked={3: volume_array((1, 256, 256), n)[0] > 0})
        after = _resident(d)
    return Growth(before[0], after[0], before[1], after[1])


def kills(transport: str, count: int, seed: int = 7) -> Kills:
    """Kill the worker at ``count`` random moments of start, loading, sending and inference."""
    rng = random.Random(seed)
    seconds: list[float] = []
    failed = 0
    with driver(transport, "fake?delay=0.003&load=0.02") as d:
        for _ in range(count):
            request = d.client.segment("volume", [line()])
            moment = time.monotonic() + rng.random() * 0.5
            d.until(lambda end=moment: time.monotonic() >= end)  # type: ignore[misc]
            killed = d.client.process_id
            if killed is not None:
                psutil.Process(killed).kill()
            unnoticed = d.client.saliency("volume", 1)
            d.until(lambda pair=(request, unnoticed): all(r.finished for r in pair))  # type: ignore[misc]
            assert unnoticed.error is None, "a request after the death failed with it"
            assert request.error is None or isinstance(request.error, WorkerDied)
            failed += request.error is not None
            d.client.reset()
            started = time.monotonic()
            again, answer = d.segment(send_all=True)
            seconds.append(time.monotonic() - started)
            assert len(again.slices) == SHAPE[0]
            served = request.error is None and request.repeated  # by the very worker that answers now
            assert len(answer.recomputed) == (0 if served else SHAPE[0])
    return Kills(count, failed, statistics.median(seconds), max(seconds))


def sending(transport: str, shape: tuple[int, int, int] = (300, 512, 512)) -> Sending:
    """Send one volume of int16 to a warm worker."""
    array = volume_array(shape)
    with driver(transport) as d:
        d.segment()
        d.client.open_volume("large", array, AFFINE)
        with _timed_calls() as calls:
            thread, started = time.thread_time(), time.monotonic()
            d.client.saliency("large", 0)
            submit, calls[0] = time.monotonic() - started, time.thread_time() - thread
            arrived = d.until(lambda: d.client.connection is None or not d.client.connection.implicit)
    return Sending(array.nbytes / 2**20, submit, max(calls), sum(calls), arrived)


def volumes(
    counts: Sequence[int],
    shape: tuple[int, int, int],
    model: ModelChoice,
    command: WorkerCommand,
) -> dict[int, int]:
    """Segment one volume after the other, none of which the caller closes.

    Args:
        counts: after how many volumes to look, ascending.
        shape: (K, J, I) of each, int16.

    Returns:
        The most memory in bytes that the worker had held up to then, by number of volumes.
    """
    array, peaks, most = volume_array(shape), {}, 0
    middle = shape[0] // 2
    d = Driver("subprocess", command)
    d.client.set_model(model)
    for n in range(1, counts[-1] + 1):
        d.client.open_volume(f"v{n}", array, AFFINE)
        request = d.client.segment(f"v{n}", [line(middle - 2, middle + 2, i=shape[2] / 2)])
        assert d.client.process_id is not None
        worker = psutil.Process(d.client.process_id)

        def finished(request: Request = request, worker: psutil.Process = worker) -> bool:
            nonlocal most
            most = max(most, worker.memory_info().rss)
            return request.finished

        d.until(finished)
        assert request.error is None, request.error
        if n in counts:
            peaks[n] = most
    d.client.close()
    return peaks


@contextmanager
def _timed_calls() -> Iterator[list[float]]:
    """Collect the processor time of each slot of the QProcess transport; the first place is the caller's."""
    calls = [0.0]
    fill = QProcessTransport._fill

    def timed(self: QProcessTransport) -> None:
        started = time.thread_time()
        fill(self)
        calls.append(time.thread_time() - started)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QProcessTransport, "_fill", timed)
        yield calls


def _moved(rng: random.Random) -> Markup:
    points = [point(str(k), (100.0, 120.0, float(k))) for k in range(5, 35)]
    k = rng.randrange(5, 35)
    points[k - 5] = point(str(k), (100.0 + rng.random() * 40, 120.0, float(k)))
    return Markup("centerline", "Fiducial", tuple(points))


def _resident(d: Driver) -> tuple[int, int]:
    assert d.client.hello is not None
    return psutil.Process().memory_info().rss, psutil.Process(d.client.hello.process_id).memory_info().rss
