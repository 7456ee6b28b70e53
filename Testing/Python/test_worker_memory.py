"""The worker's memory is bounded, and the caller gets every slice all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from worker_drivers import AFFINE, FAKE_WORKER, SHAPE, TRANSPORTS, Driver, driver, line, volume_array

from SPDSegmentLib.errors import Cancelled, WorkerDied
from SPDSegmentLib.worker import messages as m
from SPDSegmentLib.worker.client import ModelChoice
from SPDSegmentLib.worker.handler import OpenedVolume, VolumeCache
from SPDSegmentLib.worker.health import Ending
from SPDSegmentLib.worker.payloads import unpack_mask
from SPDSegmentLib.worker.protocol import encode_message
from SPDSegmentLib.worker.requests import VolumeSource, WorkerCommand
from Testing.Host.environment import limit

ROOT = Path(__file__).resolve().parents[2]
SMALL_WORKER = WorkerCommand((*FAKE_WORKER.arguments, "--volume-memory", "3"))
everywhere = pytest.mark.parametrize("transport", TRANSPORTS)


def _small_driver(transport: str, bundle: str = "fake") -> Driver:
    """A worker that may hold 3 MB of volumes, and ten volumes of 1 MB."""
    d = Driver(transport, SMALL_WORKER)
    d.client.set_model(ModelChoice(bundle))
    for n in range(10):
        d.client.open_volume(f"v{n}", volume_array((32, 128, 128), seed=n), AFFINE)
    return d


@everywhere
def test_old_volumes_are_forgotten_and_sent_again_when_they_are_needed(
    transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    cut = VolumeSource.frames

    def frames(source: VolumeSource, request_id: int) -> Any:
        sent.append(source.volume_id)
        return cut(source, request_id)

    monkeypatch.setattr(VolumeSource, "frames", frames)
    d = _small_driver(transport)
    for n in [*range(10), 0, 9, 5]:
        _, answer = d.segment(f"v{n}", [line()])
        assert answer.report["values"] == volume_array((32, 128, 128), seed=n).sum(dtype=float)
    assert (sent.count("v0"), sent.count("v5"), sent.count("v8")) == (2, 2, 1)
    d.segment("v8", [line()])
    assert sent.count("v8") == 2, "of those that are not held it was used last"
    assert d.died == []
    d.client.close()


def test_a_volume_that_was_forgotten_gives_every_slice_again(transport: str = "subprocess") -> None:
    d = _small_driver(transport)
    d.segment("v0", [line(2, 9)])
    for n in range(1, 5):
        d.segment(f"v{n}", [line()])
    again, _ = d.segment("v0", [line(12, 15)])
    assert sorted(again.slices) == list(range(32))
    assert not unpack_mask(again.slices[3].packed).any() and unpack_mask(again.slices[13].packed).any()
    d.client.close()


def test_requests_on_many_volumes_at_once_are_all_served() -> None:
    d = _small_driver("subprocess")
    requests = [d.client.segment(f"v{n}", [line()]) for n in range(10)]
    answers = [d.result(request) for request in requests]
    assert [answer.volume_id for answer in answers] == [f"v{n}" for n in range(10)]
    d.client.close()


class _Stack:
    def __init__(self, nbytes: int) -> None:
        self.array = np.empty(nbytes, np.uint8)


def test_the_bound_counts_what_was_computed_and_spares_what_is_needed() -> None:
    cache = VolumeCache(100)
    for name in "abcd":
        cache.put(name, OpenedVolume(_Stack(20), type("S", (), {"nbytes": 20})()))  # type: ignore[arg-type]
    cache.use("b")
    cache.shrink({"a"})
    assert [name for name in "abcd" if cache.use(name)] == ["a", "b"] and cache.forgotten == {"c", "d"}


@pytest.mark.alone
def test_answers_that_nobody_reads_do_not_fill_the_memory_and_cancel_is_heard() -> None:
    process = subprocess.Popen(FAKE_WORKER.arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdin is not None
    array = np.arange(8 * 1024 * 1024, dtype="<i2").reshape(8, 1024, 1024)
    send: list[Any] = [m.Hello(1), m.LoadModel(2, "fake"), m.OpenVolume(3, "v", "<i2", array.shape, AFFINE)]
    data = array.reshape(-1).view(np.uint8)
    send += [m.VolumeChunk("v", at, data[at : at + (1 << 20)]) for at in range(0, data.size, 1 << 20)]
    send += [m.Saliency(n, "v", n % 8) for n in range(10, 200)]
    process.stdin.write(b"".join(b"".join(encode_message(message)) for message in send))
    process.stdin.flush()
    worker, sizes = psutil.Process(process.pid), []
    for _ in range(20):
        time.sleep(limit(0.1))
        sizes.append(worker.memory_info().rss)
    assert max(sizes) < 400 << 20, "4 MB for each of 190 answers that nobody reads"
    started = time.monotonic()
    process.stdin.close()
    process.wait(limit(3.0))
    assert time.monotonic() - started < limit(2.0)
    process.stdout.close()  # type: ignore[union-attr]


@everywhere
def test_answers_that_were_left_unread_all_arrive_once_they_are_read(transport: str) -> None:
    with driver(transport) as d:
        d.client.open_volume("wide", volume_array((6, 1024, 1024)), AFFINE)
        requests = [d.client.saliency("wide", n % 6) for n in range(40)]
        d.until(lambda: requests[0].finished)
        time.sleep(1.0)
        assert [d.result(request).slice_index for request in requests] == [n % 6 for n in range(40)]


@pytest.mark.alone
@everywhere
def test_a_flood_in_the_log_neither_blocks_the_worker_nor_fills_the_memory(transport: str) -> None:
    own, sizes = psutil.Process(os.getpid()), []
    with driver(transport) as d:
        d.segment()
        sizes.append(own.memory_info().rss)
        d.client.set_model(ModelChoice("fake?flood=100"))
        request = d.client.segment("volume", [line()])

        def finished() -> bool:
            sizes.append(own.memory_info().rss)
            return request.finished

        d.until(lambda: finished() or request.begun)
        if transport == "subprocess":
            time.sleep(limit(1.0))  # the caller does something else meanwhile
        d.until(finished)
        assert len(request.slices) == SHAPE[0] and request.error is None
        assert max(sizes) - sizes[0] < 30 << 20, "100 MB were written"
        assert len(d.client.log_lines) <= 200


@everywhere
def test_after_a_cancel_the_next_update_brings_every_slice_that_has_not_come(transport: str) -> None:
    with driver(transport, "fake?delay=0.03") as d:
        first = d.client.segment("volume", [line()])
        d.until(lambda: len(first.slices) >= 3)
        d.client.cancel(first, urgent=False)
        second, answer = d.segment()
        assert sorted({*first.slices, *second.slices}) == list(range(SHAPE[0]))
        assert set(answer.recomputed) == set(second.slices)


def test_slices_that_came_too_late_are_handed_over_with_the_next_answer() -> None:
    with driver("subprocess", "fake?delay=0.02") as d:
        d.segment()
        got: dict[int, np.ndarray] = {}
        for last in (8, 7, 6, 5, 9):
            request = d.client.segment("volume", [line(2, last)])
            d.until(lambda r=request: bool(r.slices) or r.finished)  # type: ignore[misc]
            if last != 9:
                time.sleep(0.15)
                d.client.cancel(request, urgent=False)
            else:
                d.result(request)
            got |= {t: unpack_mask(ready.packed) for t, ready in request.slices.items()}
        fresh, _ = d.segment(send_all=True)
        assert all(np.array_equal(got[t], unpack_mask(fresh.slices[t].packed)) for t in got)


def test_a_new_worker_gives_also_the_slices_that_are_empty_now() -> None:
    with driver("subprocess") as d:
        d.segment(markups=[line(2, 4)])
        psutil.Process(d.client.process_id or 0).kill()
        again, _ = d.segment(markups=[line(8, 9)])
        assert sorted(again.slices) == list(range(SHAPE[0]))


@everywhere
def test_of_many_updates_in_a_row_the_outdated_ones_are_not_computed(transport: str) -> None:
    with driver(transport, "fake?stuck=0.3") as d:
        d.segment()
        started = time.monotonic()
        requests = [d.client.segment("volume", [line(2, 5 + n % 4)]) for n in range(40)]
        d.result(requests[-1])
        d.until(lambda: all(request.finished for request in requests))
        done = [request for request in requests if request.error is None]
        assert len(done) < 5 and time.monotonic() - started < limit(5.0)
        assert all(isinstance(r.error, Cancelled) and "newer" in r.error.message for r in requests if r not in done)


def test_updates_of_other_volumes_are_not_outdated() -> None:
    with driver("subprocess", "fake?stuck=0.05") as d:
        for n in range(5):
            d.client.open_volume(f"v{n}", volume_array(seed=n), AFFINE)
        requests = [d.client.segment(f"v{n}", [line()]) for n in range(5)]
        assert all(len(d.result(request).recomputed) == SHAPE[0] for request in requests)


@pytest.mark.parametrize(
    ("code", "launched", "log", "says"),
    [
        (-9, False, (), "probably by the system for lack of memory"),
        (137, True, (), "probably by the system for lack of memory"),
        (1, True, ("INFO torch loaded",), "probably by the system for lack of memory"),
        (
            1,
            False,
            ("OpenBLAS error: Memory allocation still failed after 10 retries.",),
            "not enough memory",
        ),
        (-6, False, ("terminate called after throwing an instance of 'std::bad_alloc'",), "not enough memory"),
        (1, True, ("Traceback (most recent call last):", "ValueError: x"), "exit code 1"),
        (1, False, ("Traceback:", "    raise OutOfMemory from error", "SyntaxError: invalid syntax"), "exit code 1"),
        (1, False, (), "exit code 1"),
        (255, True, (), "the connection failed"),
    ],
)
def test_an_end_for_lack_of_memory_is_said_also_behind_a_launcher(
    code: int, launched: bool, log: tuple[str, ...], says: str
) -> None:
    error = Ending(code, "", log, launched).to_error(deaths=1, max_deaths=3)
    assert isinstance(error, WorkerDied) and says in error.message
    assert ("memory" in error.message) == ("Close other programs" in error.remedy)
    assert "restarted by itself" in error.remedy


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ulimit -v works on Linux")
@pytest.mark.parametrize("megabytes", [200, 400, 800])
def test_under_a_limit_on_the_address_space_every_failure_is_not_enough_memory(megabytes: int) -> None:
    command = (
        "sh",
        "-c",
        f'ulimit -v {megabytes << 10}; exec "$@"',
        "sh",
        sys.executable,
        "-m",
        "SPDSegmentLib.worker",
    )
    d = Driver("subprocess", WorkerCommand(command, str(ROOT)))
    d.client.set_model(ModelChoice("kidney-mr", "cpu"))
    d.client.open_volume("volume", volume_array(), AFFINE)
    for request in (lambda: d.client.status(probe=True), lambda: d.client.segment("volume", [line()])):
        with pytest.raises(Exception, match="not enough memory.*Close other programs"):
            d.result(request())
    d.client.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="another process holds a pipe by a fork")
@pytest.mark.parametrize("bundle", ["fake", "fake?stuck=60", "fake?hold=60"])
@pytest.mark.parametrize("launched", [False, True])
def test_the_worker_ends_with_its_parent_also_when_a_fork_holds_the_pipe(bundle: str, launched: bool) -> None:
    if launched and "hold" in bundle:
        pytest.skip("a worker that holds Python's lock sees only the end of its own parent")
    launcher = f"import subprocess, sys; sys.exit(subprocess.call({list(FAKE_WORKER.arguments)!r}))"
    command = WorkerCommand((sys.executable, "-c", launcher)) if launched else FAKE_WORKER
    script = (
        f"import os, sys, time; sys.path[:0] = {[str(ROOT), str(Path(__file__).parent)]!r}\n"
        "from worker_drivers import *\n"
        f"d = Driver('subprocess', WorkerCommand({command.arguments!r}))\n"
        f"d.client.set_model(ModelChoice({bundle!r})); d.client.open_volume('volume', volume_array(), AFFINE)\n"
        "r = d.client.segment('volume', [line()])\n"
        "d.until(lambda: r.begun)\n"
        "holder = os.fork()\n"
        "if not holder: time.sleep(60); os._exit(0)\n"
        "print(d.client.hello.process_id, holder, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker, holder = map(int, parent.stdout.readline().split())
    parent.kill()
    parent.wait()
    try:
        started, found = time.monotonic(), psutil.Process(worker)
        while found.is_running() and found.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() - started < limit(2.0)
            time.sleep(0.02)
    except psutil.NoSuchProcess:
        pass
    finally:
        os.kill(holder, signal.SIGKILL)
        parent.stdout.close()
