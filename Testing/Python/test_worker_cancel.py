"""Cancel: the caller is free at once, the worker idle or gone within a second, and usable after it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from worker_drivers import AFFINE, SHAPE, TRANSPORTS, Driver, children, driver, line, volume_array

from SPDSegmentLib.errors import Cancelled
from SPDSegmentLib.worker.client import Callbacks, Request
from SPDSegmentLib.worker.connection import Connection
from SPDSegmentLib.worker.messages import Event
from Testing.Host.environment import limit

pytestmark = pytest.mark.parametrize("transport", TRANSPORTS)


def _idle_or_gone(d: Driver) -> bool:
    return not d.client.busy or children() == []


def _cancel(d: Driver, request: Request) -> float:
    started = time.monotonic()
    d.client.cancel(request)
    assert time.monotonic() - started < limit(0.05)
    assert isinstance(request.error, Cancelled)
    with pytest.raises(Cancelled):
        request.result()
    d.until(lambda: _idle_or_gone(d))
    return time.monotonic() - started


def test_cancel_between_slices_keeps_the_worker_and_what_it_knows(transport: str, tmp_path: Path) -> None:
    with driver(transport, f"fake?gate={tmp_path / 'gate'}") as d:
        seen: list[int] = []
        callbacks = Callbacks(on_slice=lambda ready: seen.append(ready.slice_index))
        request = d.client.segment("volume", [line()], callbacks=callbacks)
        d.until(lambda: len(seen) >= 3)
        process, count = d.client.process_id, len(seen)
        assert _cancel(d, request) < limit(1.0)
        assert len(seen) == count
        (tmp_path / "gate").touch()
        again, answer = d.segment()
        assert d.client.process_id == process and d.client.deaths == 0
        assert len(answer.recomputed) < SHAPE[0] and len(again.slices) == len(answer.recomputed)


@pytest.mark.parametrize("bundle", ["fake?stuck=20", "fake?load=20"], ids=["one long step", "loading"])
def test_cancel_ends_a_worker_that_cannot_stop_and_counts_no_death(transport: str, bundle: str) -> None:
    with driver(transport, bundle) as d:
        request = d.client.segment("volume", [line()])
        d.result(d.client.status())
        d.until(lambda: request.begun)
        time.sleep(0.3)
        assert _cancel(d, request) < limit(1.0)
        d.until(lambda: children() == [], seconds=limit(1.0))
        assert d.client.deaths == 0 and d.died == []


@pytest.mark.skipif(os.name == "nt", reason="needs a C library call that keeps Python's lock")
@pytest.mark.parametrize("silent", [0.3, 0.9], ids=["at once", "when it would be given up a moment later"])
def test_cancel_ends_a_worker_that_does_not_even_listen(transport: str, silent: float) -> None:
    with driver(transport, "fake?hold=20") as d:
        request = d.client.segment("volume", [line()])
        d.until(lambda: request.begun and d.client.connection is not None and not d.client.connection.implicit)
        begun = time.monotonic()
        d.until(lambda: time.monotonic() - begun > silent)
        assert _cancel(d, request) < limit(1.1)
        d.until(lambda: children() == [], seconds=limit(1.0))
        assert d.client.deaths == 0 and d.died == []


def test_a_request_behind_a_cancelled_one_is_answered_by_the_next_worker(transport: str) -> None:
    with driver(transport, "fake?delay=0.3&stuck=0.0") as d:
        first = d.client.segment("volume", [line()])
        d.until(lambda: len(first.slices) > 0)
        second = d.client.status(probe=False)
        third = d.client.saliency("volume", 3)
        d.client.cancel(first)
        assert d.result(third).slice_index == 3 and second.finished


def test_requests_behind_one_that_cannot_stop_are_sent_to_a_new_worker(transport: str) -> None:
    with driver(transport, "fake?stuck=20") as d:
        first = d.client.segment("volume", [line()])
        d.until(lambda: first.begun)
        time.sleep(0.3)  # it has begun, now it is stuck
        process = d.client.process_id
        behind = d.client.saliency("volume", 6)
        d.client.cancel(first)
        assert d.result(behind).slice_index == 6
        assert d.client.process_id != process and d.client.deaths == 0


def test_a_replaced_live_update_does_not_cost_the_worker(transport: str) -> None:
    with driver(transport, "fake?stuck=1.5") as d:
        old = d.client.segment("volume", [line()])
        d.until(lambda: old.begun)
        process = d.client.process_id
        d.client.cancel(old, urgent=False)
        new, _ = d.segment(markups=[line(3)])
        assert d.client.process_id == process and len(new.slices) > 0 and old.answer is None


def test_an_urgent_cancel_also_hurries_what_was_cancelled_before(transport: str) -> None:
    with driver(transport, "fake?stuck=20") as d:
        old = d.client.segment("volume", [line()])
        d.until(lambda: old.begun)
        time.sleep(0.3)
        d.client.cancel(old, urgent=False)
        assert _cancel(d, d.client.segment("volume", [line(3)])) < limit(1.0)
        d.until(lambda: children() == [], seconds=limit(1.0))


def test_cancel_before_anything_was_sent_and_twice(transport: str) -> None:
    with driver(transport) as d:
        request = d.client.segment("volume", [line()])
        d.client.cancel(request)
        d.client.cancel(request)
        assert isinstance(request.error, Cancelled)
        d.segment()


def test_cancel_while_a_large_volume_is_on_its_way(transport: str) -> None:
    with driver(transport) as d:
        d.client.open_volume("big", volume_array((200, 512, 512)), AFFINE)
        d.segment()
        request = d.client.segment("big", [line()])
        assert _cancel(d, request) < limit(1.0)
        _, answer = d.segment("big")
        assert len(answer.recomputed) == 200


def test_cancel_after_the_answer_changes_nothing(transport: str) -> None:
    with driver(transport) as d:
        request, answer = d.segment()
        d.client.cancel(request)
        assert request.answer is not None and request.result() is answer


def test_late_answers_to_a_cancelled_request_are_dropped(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with driver(transport, "fake?delay=0.01") as d:
        late: list[Event] = []
        hear = d.client.on_event

        def listen(connection: Connection, event: Event) -> None:
            if request.finished and getattr(event, "request_id", 0) == request.request_id:
                late.append(event)
            hear(connection, event)

        monkeypatch.setattr(d.client, "on_event", listen)
        for _ in range(10):
            request = d.client.segment("volume", [line()], send_all=True)
            d.until(lambda r=request: len(r.slices) > 0 or r.finished)  # type: ignore[misc]
            d.client.cancel(request, urgent=False)
            arrived = len(request.slices)
            d.until(lambda: not d.client.busy)
            assert len(request.slices) == arrived
        assert late


def test_waiting_with_a_time_limit_cancels(transport: str) -> None:
    if transport == "qprocess-event-loop":
        pytest.skip("wait() is for callers without an event loop")
    with driver(transport, "fake?delay=0.2") as d:
        d.result(d.client.status())
        request = d.client.segment("volume", [line()])
        with pytest.raises(Cancelled):
            d.client.wait(request, timeout=0.5)
        assert isinstance(request.error, Cancelled)
