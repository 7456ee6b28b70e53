"""The worker dies, hangs or never comes: the caller learns why, and the next request works."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

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

from SPDSegmentLib.errors import WorkerDied
from SPDSegmentLib.worker.client import Callbacks, ModelChoice, Request
from SPDSegmentLib.worker.health import Ending, describe_exit
from SPDSegmentLib.worker.payloads import unpack_mask
from SPDSegmentLib.worker.requests import WorkerCommand, local_command, parse_command
from SPDSegmentLib.worker.transports import QProcessTransport
from Testing.Host.environment import limit

pytestmark = pytest.mark.parametrize("transport", TRANSPORTS)


def _kill(d: Driver) -> None:
    assert d.client.process_id is not None
    psutil.Process(d.client.process_id).kill()


def test_killed_while_idle_is_noticed_and_the_next_request_sends_everything_again(transport: str) -> None:
    with driver(transport) as d:
        _, first = d.segment()
        _kill(d)
        d.until(lambda: bool(d.died))
        assert not d.client.running and "kill" in str(d.died[0]).lower()
        started = time.monotonic()
        request, again = d.segment()
        assert time.monotonic() - started < limit(2.0)
        assert again.report["values"] == first.report["values"] and len(request.slices) == SHAPE[0]


def test_killed_while_idle_and_not_yet_noticed_the_next_request_is_served_by_another(transport: str) -> None:
    with driver(transport) as d:
        d.segment()
        old = d.client.process_id
        _kill(d)
        request, answer = d.segment(markups=[line(3)])
        assert len(request.slices) == SHAPE[0] and answer.report["values"] == volume_array().sum(dtype=float)
        assert d.client.process_id != old and d.died == [] and d.client.deaths == 0
        assert any("sent to a new one" in said for said in d.logs)


def test_killed_during_a_request_says_why_and_the_next_one_works(transport: str, tmp_path: Path) -> None:
    finished: list[Request] = []
    with driver(transport, f"fake?gate={tmp_path / 'gate'}") as d:
        request = d.client.segment("volume", [line()], callbacks=Callbacks(on_finished=finished.append))
        d.until(lambda: len(request.slices) >= 3)
        _kill(d)
        with pytest.raises(WorkerDied) as caught:
            d.result(request)
        assert "unexpectedly" in caught.value.message and "restarted by itself" in caught.value.remedy
        assert "exit code" in caught.value.details
        assert finished == [request] and request.answer is None
        (tmp_path / "gate").touch()
        again, _ = d.segment()
        assert len(again.slices) == SHAPE[0] and d.client.deaths == 0


def test_killed_while_starting(transport: str, tmp_path: Path) -> None:
    with driver(transport, command=slow_to_start(tmp_path / "started")) as d:
        request = d.client.segment("volume", [line()])
        d.until((tmp_path / "started").exists)
        _kill(d)
        d.result(request)
        assert len(request.slices) == SHAPE[0] and d.died == []


def test_requests_that_are_sent_again_keep_the_model_that_they_were_made_with(transport: str) -> None:
    with driver(transport) as d:
        d.client.open_volume("other", volume_array(), AFFINE)
        requests = []
        for volume, radius in (("volume", 2), ("other", 6)):
            d.client.set_model(ModelChoice(f"fake?radius={radius}"))
            requests.append(d.client.segment(volume, [line()]))
        d.until(lambda: d.client.process_id is not None)
        _kill(d)
        for request in requests:
            d.result(request)
        small, large = (sum(unpack_mask(s.packed).sum() for s in r.slices.values()) for r in requests)
        assert 0 < small < large / 4 and d.died == []


def test_the_log_and_the_exit_code_are_in_the_details(transport: str) -> None:
    command = WorkerCommand((sys.executable, "-c", "import sys; print('cannot go on', file=sys.stderr); sys.exit(9)"))
    d = Driver(transport, command)
    d.client.set_model(ModelChoice("fake"))
    with pytest.raises(WorkerDied, match="exit code 9") as caught:
        d.result(d.client.status())
    assert "cannot go on" in caught.value.details and "exit code: 9" in caught.value.details


@pytest.mark.parametrize("bundle", ["fake?die_segment=7", "fake?die_load=7"])
def test_after_three_deaths_in_a_row_no_other_is_started_until_something_changes(transport: str, bundle: str) -> None:
    with driver(transport, bundle) as d:
        messages = []
        for _ in range(5):
            with pytest.raises(WorkerDied) as caught:
                d.segment()
            messages.append(caught.value.message)
        assert "exit code 7" in messages[0] and "unexpectedly" in messages[1]
        assert "3 times in a row" in messages[2] and messages[2] == messages[3] == messages[4]
        assert d.client.gave_up and not d.client.running and len(d.died) == 3
        d.client.reset()
        with pytest.raises(WorkerDied, match="unexpectedly"):
            d.segment()
        d.client.set_model(ModelChoice("fake"))
        d.segment()
        assert d.client.deaths == 0


def test_a_success_between_deaths_starts_the_count_anew(transport: str) -> None:
    with driver(transport) as d:
        for _ in range(4):
            d.segment()
            _kill(d)
            d.until(lambda: not d.client.running)
            assert d.client.deaths == 1


def test_a_command_that_is_not_there_is_named(transport: str) -> None:
    d = Driver(transport, WorkerCommand(("/no/such/PythonSlicer", "-m", "SPDSegmentLib.worker")))
    with pytest.raises(WorkerDied, match="/no/such/PythonSlicer"):
        d.result(d.client.status())
    for _ in range(2):
        with pytest.raises(WorkerDied):
            d.result(d.client.status())
    assert d.client.gave_up
    d.client.set_command(FAKE_WORKER)
    assert d.result(d.client.status()).devices is None
    d.client.close()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("", "'/no/ssh' could not be started: "),
        ("echo Welcome >&2; no-spdsegment worker", ": no-spdsegment: "),
        ("cd /; .venv/bin/spdsegment worker", ": .venv/bin/spdsegment: "),
        ('exec "$PYTHON" -c "import no_SPDSegmentLib.worker"', "No module named 'no_SPDSegmentLib'"),
    ],
)
def test_a_command_that_finds_no_spdsegment_is_named_with_what_to_install(
    transport: str, script: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHON", sys.executable)
    command = WorkerCommand(("sh", "-c", script) if script else ("/no/ssh", "-c", "host"))
    with driver(transport, command=command) as d, pytest.raises(WorkerDied) as died:
        d.result(d.client.status())
    assert (
        died.value.message.startswith(f"The worker command '{command.arguments[0]} -c ") and said in died.value.message
    )
    assert "Install SPDSegment and torch on the machine that it leads to" in died.value.remedy


def test_what_is_no_missing_program_is_not_told_to_be_installed(transport: str) -> None:
    command, log = "ssh host spdsegment worker", ("WARNING No module named 'optional'",)
    endings = [Ending(255, "", log, command=command), Ending(1, "", ("Traceback:", "ValueError: x"), command=command),
               Ending(1, "", log), Ending(None, "the application ended it", log, command=command),
               Ending(None, "'ssh' could not be started: Cannot allocate memory", (), command=command),
               Ending(None, "'ssh' could not be started: Too many open files", (), command=command),
               Ending(3, "it did not answer within 120 s", log, command=command)]  # fmt: skip
    assert not any("Install" in ending.to_error(deaths=1, max_deaths=3).remedy for ending in endings)


def test_a_timer_that_fires_early_calls_back_in_time_all_the_same(transport: str) -> None:
    if transport != "qprocess":
        pytest.skip("only QProcess works with Qt's timers")
    pending: list[Any] = []
    early = QProcessTransport(lambda: None, lambda ms, callback: pending.append(callback))
    called: list[float] = []
    begun = time.monotonic()
    early.call_later(0.05, lambda: called.append(time.monotonic() - begun))
    while not called:
        pending.pop()()
    assert called[0] >= 0.05


def test_a_process_that_never_says_hello_is_ended(transport: str) -> None:
    d = Driver(
        transport, WorkerCommand((sys.executable, "-c", "import time; time.sleep(60)")), start_seconds=limit(0.5)
    )
    with pytest.raises(WorkerDied, match=r"did not answer within [\d.]+ s"):
        d.result(d.client.status())
    d.until(lambda: children() == [], seconds=limit(2))


@pytest.mark.parametrize(
    "text", ["print('x' * 100_000, flush=True)", "import os; os.write(1, b'SPDW' + bytes(20))"], ids=["text", "header"]
)
def test_a_process_that_speaks_something_else_is_ended(transport: str, text: str) -> None:
    d = Driver(transport, WorkerCommand((sys.executable, "-c", f"import time; {text}; time.sleep(60)")))
    with pytest.raises(WorkerDied, match="connection"):
        d.result(d.client.status())
    d.until(lambda: children() == [], seconds=limit(2))


def test_the_request_under_way_fails_once_and_those_behind_it_are_served(transport: str) -> None:
    finished: list[Request] = []
    with driver(transport, "fake?stuck=5") as d:
        callbacks = Callbacks(on_finished=finished.append)
        first = d.client.segment("volume", [line()], callbacks=callbacks)
        behind = [d.client.saliency("volume", t, callbacks=callbacks) for t in range(3)]
        d.until(lambda: first.begun)
        _kill(d)
        d.until(lambda: len(finished) == 4)
        assert isinstance(first.error, WorkerDied)
        assert [d.result(request).slice_index for request in behind] == [0, 1, 2]
        assert len(d.died) == 1 and sorted(map(id, finished)) == sorted(map(id, [first, *behind]))


def test_requests_that_no_worker_can_serve_all_fail_once(transport: str) -> None:
    finished: list[Request] = []
    with driver(transport, "fake?die_load=7") as d:
        callbacks = Callbacks(on_finished=finished.append)
        requests = [d.client.saliency("volume", t, callbacks=callbacks) for t in range(4)]
        d.until(lambda: len(finished) == 4)
        assert all(isinstance(request.error, WorkerDied) for request in requests)
        assert d.client.deaths <= d.client.config.max_deaths


def test_a_request_made_when_told_of_the_death_is_served(transport: str) -> None:
    served: list[Request] = []
    with driver(transport) as d:

        def again(request: Request) -> None:
            served.append(d.client.segment("volume", [line()]))

        d.segment()
        request = d.client.segment("volume", [line(4)], callbacks=Callbacks(on_finished=again))
        _kill(d)
        d.until(lambda: request.finished and served[0].finished)


def test_a_new_command_closes_the_running_worker(transport: str) -> None:
    with driver(transport) as d:
        d.segment()
        old = d.client.process_id
        d.client.set_command(WorkerCommand((*FAKE_WORKER.arguments, "--other")))
        d.segment()
        assert d.client.process_id != old
        d.until(lambda: not psutil.pid_exists(old or 0), seconds=limit(2))


def test_commands_and_exit_codes_are_put_in_words(transport: str) -> None:
    if transport != "subprocess":
        pytest.skip("the same for every transport")
    assert parse_command("  ") is None
    assert parse_command("ssh host spdsegment worker") == WorkerCommand(("ssh", "host", "spdsegment", "worker"))
    local = local_command("PythonSlicer")
    assert local.arguments == ("PythonSlicer", "-m", "SPDSegmentLib.worker")
    assert (Path(local.folder or "") / "SPDSegmentLib").is_dir()
    assert all("killed, probably by the system" in describe_exit(code) for code in (-9, 137, 247))
    assert "SIGSEGV" in describe_exit(-11)
    assert "access violation" in describe_exit(-1073741819) and "access violation" in describe_exit(0xC0000005)
    assert "not found" in describe_exit(127) and describe_exit(3) == "exit code 3"


def test_a_volume_sent_when_the_worker_died_halfway_is_sent_again_whole(transport: str) -> None:
    big = volume_array((60, 512, 512), seed=4)
    with driver(transport) as d:
        d.client.open_volume("big", big, AFFINE)
        d.result(d.client.status())
        assert d.client.process_id is not None
        stop(d.client.process_id)  # it reads no more than the pipe holds
        request = d.client.segment("big", [line()])
        d.client.poll(0.0)
        _kill(d)
        answer = d.result(request)
        assert answer.report["values"] == big.sum(dtype=float)
