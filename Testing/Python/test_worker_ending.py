"""The worker ends with its stdin, whatever it does at that moment, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
from worker_drivers import AFFINE, FAKE_WORKER, SHAPE, TRANSPORTS, Driver, children, driver, line, volume_array

from SPDSegmentLib import __version__
from SPDSegmentLib.errors import Cancelled
from SPDSegmentLib.worker import messages as m
from SPDSegmentLib.worker.client import ModelChoice
from SPDSegmentLib.worker.health import EXIT_CANCELLED
from SPDSegmentLib.worker.protocol import FrameParser, decode_frame, decode_message, encode_message
from SPDSegmentLib.worker.server import Server, WaitingRequest
from Testing.Host.environment import limit

ROOT = Path(__file__).resolve().parents[2]


def _start(command: tuple[str, ...] = FAKE_WORKER.arguments) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)


def _send(process: subprocess.Popen[bytes], *messages: Any) -> None:
    assert process.stdin is not None
    process.stdin.write(b"".join(b"".join(encode_message(message)) for message in messages))
    process.stdin.flush()


def _events(process: subprocess.Popen[bytes], until: type) -> list[Any]:
    assert process.stdout is not None
    parser = FrameParser()
    events: list[Any] = []
    while not events or not isinstance(events[-1], until):
        data = os.read(process.stdout.fileno(), 1 << 16)
        assert data, "the worker ended"
        events += [decode_message(decode_frame(raw), m.EVENTS) for raw in parser.feed(data)]
    return events


def _finish(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    started = time.monotonic()
    assert process.stdin is not None
    process.stdin.close()
    process.stdin = None
    process.communicate(timeout=limit(5.0))
    return process.returncode, time.monotonic() - started


def test_an_idle_worker_ends_at_once() -> None:
    process = _start()
    _send(process, m.Hello(1))
    _events(process, m.HelloReply)
    code, seconds = _finish(process)
    assert code == 0 and seconds < limit(0.5)


@pytest.mark.parametrize("bundle", ["fake?load=30", "fake?delay=0.2"], ids=["cannot stop", "stops between slices"])
def test_a_busy_worker_ends_within_a_second(bundle: str) -> None:
    process = _start()
    _send(process, m.LoadModel(1, bundle))
    _events(process, m.Progress)
    code, seconds = _finish(process)
    assert code == 0 and seconds < limit(1.0)


def test_the_real_worker_answers_hello_without_importing_torch_and_ends() -> None:
    process = _start((sys.executable, "-X", "importtime", "-m", "SPDSegmentLib.worker"))
    _send(process, m.Hello(1))
    (reply,) = _events(process, m.HelloReply)
    assert (reply.process_id, reply.library_version) == (process.pid, __version__)
    _, log = process.communicate(timeout=limit(5.0))
    imported = {line.rsplit("|", 1)[-1].strip() for line in log.decode().splitlines()}
    assert "numpy" in imported and not imported & {"torch", "peft", "segment_anything", "SimpleITK", "scipy"}


def test_the_real_worker_names_a_model_that_is_not_there() -> None:
    process = _start((sys.executable, "-m", "SPDSegmentLib.worker"))
    _send(process, m.LoadModel(1, "no such model"))
    failed = _events(process, m.Failed)[-1]
    assert failed.error in ("ModelMissing", "DependencyMissing") and failed.message
    assert _finish(process)[0] == 0


def test_a_broken_stream_is_told_and_ends_the_worker() -> None:
    process = _start()
    assert process.stdin is not None
    process.stdin.write(b"this is not a frame")
    process.stdin.flush()
    (event,) = _events(process, m.Failed)
    assert (event.request_id, event.error) == (m.NO_REQUEST, "BadInput")
    assert process.wait(limit(2.0)) == 2
    _finish(process)


def test_a_stream_that_ends_within_a_frame_ends_the_worker() -> None:
    process = _start()
    assert process.stdin is not None
    process.stdin.write(b"".join(encode_message(m.CloseVolume("x" * 100)))[:-5])
    code, seconds = _finish(process)
    assert code == 0 and seconds < limit(2.0)


def test_a_reader_that_is_gone_does_not_keep_the_worker() -> None:
    process = _start()
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _send(process, *[m.Hello(n) for n in range(1, 50)])
    assert _finish(process)[1] < limit(2.0)


def test_a_reader_that_does_not_read_does_not_keep_the_worker() -> None:
    process = _start()
    try:
        _send(process, *[m.Hello(n) for n in range(1, 2000)])
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(limit(3.0)) == 0
    finally:
        process.stdin = None
        process.communicate()


def test_the_worker_ends_when_the_process_that_started_it_is_killed(tmp_path: Path) -> None:
    script = (
        f"import sys, time; sys.path[:0] = {[str(ROOT), str(Path(__file__).parent)]!r}\n"
        "from worker_drivers import *\n"
        "d = Driver('subprocess'); d.client.set_model(ModelChoice('fake?stuck=60'))\n"
        "d.client.open_volume('volume', volume_array(), AFFINE)\n"
        "request = d.client.segment('volume', [line()])\n"
        "d.until(lambda: request.begun)\n"
        "print(d.client.process_id, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    started = time.monotonic()
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() - started < limit(1.5)
        time.sleep(0.02)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no launcher that forks")
def test_the_worker_ends_when_only_its_launcher_is_killed() -> None:
    launcher = f"import subprocess, sys; sys.exit(subprocess.call({list(FAKE_WORKER.arguments)!r}))"
    d = Driver("subprocess", type(FAKE_WORKER)((sys.executable, "-c", launcher)))
    d.client.set_model(ModelChoice("fake?stuck=60"))
    d.client.open_volume("volume", volume_array(), AFFINE)
    request = d.client.segment("volume", [line()])
    d.until(lambda: request.begun)
    worker = next(p for p in psutil.Process(d.client.process_id or 0).children())
    psutil.Process(d.client.process_id or 0).kill()
    d.until(lambda: request.finished)
    d.until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, seconds=limit(1.5))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM")
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("bundle", ["fake", "fake?stuck=30", "fake?load=30"])
def test_sigterm_ends_the_worker_and_the_next_request_works(transport: str, bundle: str) -> None:
    with driver(transport, bundle) as d:
        request = d.client.segment("volume", [line()])
        d.until(lambda: request.finished if bundle == "fake" else request.begun)
        psutil.Process(d.client.process_id or 0).terminate()
        d.until(lambda: not d.client.running, seconds=limit(2.0))
        assert children() == []
        assert len(d.died) == 1 and "ended by SIGTERM" in str(d.died[0])
        assert (request.answer is not None) == (bundle == "fake") and not isinstance(request.error, Cancelled)
        d.client.set_model(ModelChoice("fake"))
        assert len(d.segment()[0].slices) == SHAPE[0]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM")
def test_sigterm_leaves_nothing_that_the_worker_has_started() -> None:
    starts_a_child = (
        f"import subprocess, sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import fake_predictor\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import sys; sys.stdin.read()'], stdin=subprocess.PIPE)\n"
        "from SPDSegmentLib.worker.__main__ import main; main(fake_predictor.load_fake)"
    )
    process = _start((sys.executable, "-c", starts_a_child))
    _send(process, m.LoadModel(1, "fake?load=30"))
    _events(process, m.Progress)
    (child,) = psutil.Process(process.pid).children()
    process.terminate()
    assert process.wait(limit(2.0)) == -signal.SIGTERM
    child.wait(limit(2.0))
    _finish(process)


def test_a_cancelled_request_that_stops_at_the_last_moment_does_not_cost_the_worker() -> None:
    ended: list[int] = []
    server = Server(0, 1, Mock(), end_process=ended.append)
    job = server._running = WaitingRequest(m.Saliency(1, "volume", 0))
    insisting = threading.Thread(target=server._insist, args=(job,))
    with server._lock:  # it is just leaving
        insisting.start()
        insisting.join(0.2)
        server._running = None
    insisting.join()
    assert ended == []
    server._running = job
    server._insist(job)
    assert ended == [EXIT_CANCELLED]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("bundle", ["fake", "fake?stuck=30", "fake?load=30"])
@pytest.mark.parametrize("wait", [True, False])
def test_closing_the_client_leaves_no_process(transport: str, bundle: str, wait: bool) -> None:
    with driver(transport, bundle) as d:
        request = d.client.segment("volume", [line()])
        d.until(lambda: d.client.hello is not None)
        started = time.monotonic()
        d.client.close(wait=wait)
        took = time.monotonic() - started
        assert took < limit(2.0 if wait else 0.05)
        assert request.finished and not d.client.running and not d.client.busy
        d.until(lambda: children() == [], seconds=limit(2.0))
        d.client.set_model(ModelChoice("fake"))
        d.segment()


@pytest.mark.skipif(os.name == "nt", reason="needs a C library call that keeps Python's lock")
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_closing_kills_a_worker_that_does_not_listen(transport: str) -> None:
    with driver(transport, "fake?hold=30") as d:
        d.client.segment("volume", [line()])
        d.until(lambda: d.client.hello is not None)
        time.sleep(0.3)
        d.client.close()
        assert children() == []


def test_a_process_object_that_is_deleted_ends_its_worker_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raised: list[Any] = []
    with driver("qprocess") as d:
        import shiboken6  # comes with PySide6
        from PySide6.QtCore import QCoreApplication, QEvent

        monkeypatch.setattr(sys, "excepthook", lambda *error: raised.append(error))
        request = d.client.segment("volume", [line()])
        d.until(lambda: d.client.hello is not None)
        connection: Any = d.client.connection
        shiboken6.delete(connection.transport._process)
        QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
        assert children() == []
        assert request.finished
    assert raised == []


def test_closing_twice_and_without_a_start_is_harmless() -> None:
    d = Driver("subprocess")
    d.client.close()
    d.client.open_volume("volume", volume_array(), AFFINE)
    d.result(d.client.status())
    d.client.close()
    d.client.close()
    assert children() == []


def test_the_client_imports_neither_torch_nor_qt() -> None:
    code = (
        "import sys, SPDSegmentLib.worker.client, SPDSegmentLib.worker.transports\n"
        "heavy = {'torch', 'peft', 'segment_anything', 'SimpleITK', 'qt', 'PySide6', 'psutil', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
