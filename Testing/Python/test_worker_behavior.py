"""What a caller sees of the worker, over every transport."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worker_drivers import (
    AFFINE,
    SHAPE,
    TRANSPORTS,
    Driver,
    children,
    close_shared_drivers,
    line,
    point,
    volume_array,
)
from worker_drivers import shared_driver as driver

from SPDSegmentLib import __version__
from SPDSegmentLib.errors import BadInput, Cancelled, DependencyMissing, ModelMissing, OutOfMemory, SPDError
from SPDSegmentLib.geometry.markups import Markup
from SPDSegmentLib.worker import messages as m
from SPDSegmentLib.worker.client import Callbacks, ModelChoice
from SPDSegmentLib.worker.payloads import unpack_mask
from Testing.Host.environment import limit

pytestmark = pytest.mark.parametrize("transport", TRANSPORTS)


@pytest.fixture(autouse=True, scope="module")
def _no_worker_is_left() -> Iterator[None]:
    yield
    close_shared_drivers()


def _masks(request: Any) -> dict[int, np.ndarray]:
    return {t: unpack_mask(ready.packed) for t, ready in request.slices.items()}


def test_a_segmentation_streams_every_slice_and_ends_with_a_summary(transport: str) -> None:
    seen: list[int] = []
    with driver(transport) as d:
        callbacks = Callbacks(on_slice=lambda s: seen.append(s.slice_index), on_finished=lambda r: seen.append(-1))
        request, answer = d.segment(markups=[line(2, 7)], first_slice=5, callbacks=callbacks)
    assert isinstance(answer, m.Segmented)
    assert seen[0] == 5 and seen[-1] == -1 and sorted(seen[:-1]) == list(range(SHAPE[0]))
    assert answer.recomputed == tuple(range(SHAPE[0]))
    assert answer.report["values"] == volume_array().sum(dtype=float)
    assert answer.report["not_a_number"] is None
    masks = _masks(request)
    assert masks[5].shape == SHAPE[1:] and masks[5][20, 24] and not masks[11].any()
    assert request.slices[0].quality == pytest.approx(0.9)
    assert (request.slices[11].quality, request.slices[11].status) == (None, "abstained")
    assert request.answer is not None


def test_fates_come_with_their_place_in_millimeters(transport: str) -> None:
    markup = Markup("m", "Fiducial", (point("in", (10, 12, 4)), point("out", (10, 12, 40))))
    with driver(transport) as d:
        _, answer = d.segment(markups=[markup])
    inside, outside = answer.fates
    assert (inside.click_id, inside.fate, inside.slice_index) == ("in", "kept", 4)
    assert inside.position_ras == pytest.approx(markup.points[0].position_ras)
    assert (outside.click_id, outside.fate) == ("out", "outside")


def test_model_and_volume_are_sent_once_and_clicks_many_times(transport: str) -> None:
    with driver(transport) as d:
        d.segment()
        connection = d.client.connection
        assert connection is not None
        sent: list[object] = []
        put = connection.transport.outbox.put
        connection.transport.outbox.put = lambda frames, tag=None: (sent.append(tag), put(frames, tag))[1]  # type: ignore
        for first in range(2, 6):
            d.segment(markups=[line(first)])
        assert len(sent) == 4 and not any(isinstance(tag, tuple) for tag in sent)


def test_a_changed_click_sends_its_reach_and_nothing_else(transport: str) -> None:
    before = line()
    moved = list(before.points)
    moved[3] = point("5", (30.0, 25.0, 5.0))
    after = Markup("centerline", "Fiducial", tuple(moved))
    with driver(transport) as d:
        first, _ = d.segment(markups=[before])
        second, answer = d.segment(markups=[after])
        back, _ = d.segment(markups=[before])
    assert answer.recomputed == (3, 4, 5, 6, 7) == tuple(sorted(second.slices))
    original = _masks(first)
    assert not np.array_equal(original[5], _masks(second)[5])
    assert all(np.array_equal(original[t], mask) for t, mask in _masks(back).items())


def test_every_slice_is_sent_again_where_the_caller_asks(transport: str) -> None:
    with driver(transport) as d:
        first, _ = d.segment()
        none, answer = d.segment()
        everything, _ = d.segment(send_all=True)
    assert none.slices == {} and answer.recomputed == ()
    assert sorted(everything.slices) == list(range(SHAPE[0]))
    original = _masks(first)
    assert all(np.array_equal(original[t], mask) for t, mask in _masks(everything).items())


def test_locked_slices_arrive_in_the_worker_bit_for_bit(transport: str) -> None:
    edited = np.random.default_rng(3).random(SHAPE[1:]) < 0.3
    with driver(transport) as d:
        request, _ = d.segment(locked={4: edited, 6: np.zeros(SHAPE[1:], bool)})
    assert request.slices[4].status == "locked"
    np.testing.assert_array_equal(_masks(request)[4], edited)
    assert not _masks(request)[6].any()


def test_several_nodes_and_left_out_points(transport: str) -> None:
    second = Markup(
        "branch",
        "Fiducial",
        (point("a", (5, 5, 1)), point("b", (5, 5, 2), placed=False), point("c", (5, 5, 3), selected=False)),
    )
    with driver(transport) as d:
        _, answer = d.segment(markups=[line(), second])
    assert [fate.click_id for fate in answer.fates] == [str(k) for k in range(2, 10)] + ["a"]


def test_a_curve_of_three_points_has_a_click_on_each_slice_it_crosses(transport: str) -> None:
    curve = Markup("c", "Curve", (point("1", (20, 20, 1)), point("2", (24, 22, 5)), point("3", (28, 20, 10))))
    with driver(transport) as d:
        _, answer = d.segment(markups=[curve])
    assert {fate.slice_index for fate in answer.fates} == set(range(1, 11))
    assert {fate.click_id for fate in answer.fates} == {"1", "2", "3"}


def test_a_thousand_clicks(transport: str) -> None:
    points = tuple(point(f"p{n}", (n % 48, n % 40, n % 12)) for n in range(1000))
    with driver(transport) as d:
        _, answer = d.segment(markups=[Markup("m", "Fiducial", points)])
    assert len(answer.fates) == 1000


@pytest.mark.parametrize("points", [(), (("x", (4.0, 4.0, 99.0)),)], ids=["none", "all outside"])
def test_clicks_that_cannot_be_used_are_refused_with_a_sentence(transport: str, points: Any) -> None:
    markup = Markup("m", "Fiducial", tuple(point(*p) for p in points))
    with driver(transport) as d:
        with pytest.raises(BadInput):
            d.segment(markups=[markup])
        d.segment()


def test_saliency_of_a_slice(transport: str) -> None:
    with driver(transport) as d:
        answer = d.result(d.client.saliency("volume", 6))
        with pytest.raises(BadInput, match="99"):
            d.result(d.client.saliency("volume", 99))
    assert answer.saliency.shape == SHAPE[1:] and answer.saliency.dtype == np.float32
    assert answer.saliency[0, 0] == np.float32(0.5)


def test_two_volumes_keep_their_own_results(transport: str) -> None:
    with driver(transport) as d:
        other = volume_array((5, 30, 31), seed=1).astype(np.float32)
        d.client.open_volume("other", other, AFFINE)
        d.segment()
        _, answer = d.segment("other", [line(1, 3)])
        again, _ = d.segment()
    assert answer.report["values"] == pytest.approx(float(other.sum(dtype=float)))
    assert again.slices == {}


@pytest.mark.parametrize("dtype", ["|i1", "|u1", ">i2", "<u4", "<f4", ">f8", "<i8"])
def test_volumes_of_every_type_arrive_whole(transport: str, dtype: str) -> None:
    array = (np.arange(7 * 40 * 40).reshape(7, 40, 40) % 100).astype(dtype)[::-1, :, ::-1]
    with driver(transport) as d:
        d.client.open_volume("typed", array, AFFINE)
        _, answer = d.segment("typed", [line(1, 5)])
    assert answer.report["values"] == float(array.sum(dtype=float))


def test_a_closed_volume_drops_late_answers_and_cannot_be_used(transport: str) -> None:
    with driver(transport, "fake?delay=0.05") as d:
        request = d.client.segment("volume", [line()])
        d.until(lambda: len(request.slices) >= 2)
        d.client.close_volume("volume")
        assert isinstance(request.error, Cancelled)
        arrived = len(request.slices)
        d.until(lambda: not d.client.busy)
        assert len(request.slices) == arrived and request.answer is None
        with pytest.raises(BadInput, match="not open"):
            d.client.segment("volume", [line()])
        d.client.open_volume("volume@2", volume_array(seed=2), AFFINE)
        _, answer = d.segment("volume@2")
        assert answer.report["values"] == volume_array(seed=2).sum(dtype=float)


def test_a_volume_that_cannot_be_segmented_fails_its_requests_with_the_reason(transport: str) -> None:
    with driver(transport) as d:
        d.client.open_volume("flat", np.zeros((4, 8, 8), np.int16), AFFINE)
        for _ in range(2):
            with pytest.raises(BadInput, match="same value"):
                d.segment("flat", [line(1, 2)])
        d.segment()
        assert d.client.deaths == 0


def test_a_volume_larger_than_the_free_memory_is_refused_before_it_is_taken(transport: str) -> None:
    with driver(transport) as d:
        huge = np.broadcast_to(np.int16(0), (14_000, 1024, 1024))
        d.client.open_volume("huge", huge, AFFINE)
        request = d.client.segment("huge", [line()])
        with pytest.raises((OutOfMemory, BadInput)):
            d.result(request)
        d.client.close_volume("huge")
        d.segment()


@pytest.mark.parametrize(
    ("bundle", "kind", "word"),
    [
        ("fake?missing=1", ModelMissing, "not on this machine"),
        ("fake?no_torch=1", DependencyMissing, "'torch'"),
        ("fake?memory=1", OutOfMemory, "memory"),
        ("fake?bug=1", SPDError, "ValueError: a mistake of ours"),
    ],
)
def test_errors_arrive_by_name_and_leave_the_worker_usable(
    transport: str, bundle: str, kind: type[SPDError], word: str
) -> None:
    with driver(transport, bundle) as d:
        for _ in range(2):
            with pytest.raises(kind, match=word) as caught:
                d.segment()
            assert type(caught.value) is kind
        process = d.client.process_id
        d.client.set_model(ModelChoice("fake"))
        d.segment()
        assert d.client.process_id == process


def test_a_model_that_cannot_be_loaded_fails_every_request_until_another_is_chosen(transport: str) -> None:
    with driver(transport, "fake?missing=1") as d:
        for _ in range(2):
            with pytest.raises(ModelMissing):
                d.segment()
        d.client.set_model(ModelChoice("fake?load=0.01", "cpu"))
        assert d.segment()[1].device == "fake"


def test_another_model_works_on_the_volume_that_is_there(transport: str) -> None:
    with driver(transport) as d:
        d.segment()
        d.client.set_model(ModelChoice("fake?name=other"))
        request, _ = d.segment()
    assert sorted(request.slices) == list(range(SHAPE[0]))


def test_status_and_hello_are_answered_while_inference_runs(transport: str) -> None:
    with driver(transport, "fake?stuck=0.7") as d:
        request = d.client.segment("volume", [line()])
        d.until(lambda: d.client.hello is not None)
        assert d.client.hello is not None and d.client.hello.library_version == __version__
        d.until(lambda: request.begun)
        assert d.result(d.client.status()) is not None and not request.finished
        d.result(request)
        assert d.client.connection is not None and d.client.connection.volumes_sent == {"volume"}


def test_progress_tells_stage_count_and_time_left(transport: str) -> None:
    seen: list[m.Progress] = []
    with driver(transport, "fake?delay=0.03&load=0.1") as d:
        request, _ = d.segment(callbacks=Callbacks(on_progress=seen.append))
    assert seen[0].stage == "load_model"
    assert (seen[-1].stage, seen[-1].done, seen[-1].total) == ("decoding", SHAPE[0], SHAPE[0])
    assert all(progress.request_id == request.request_id for progress in seen)
    assert len(seen) < SHAPE[0]


def test_a_worker_of_another_version_is_said(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with driver(transport) as d:
        d.segment()
        assert not any("version" in said for said in d.logs)
    d = Driver(transport)
    monkeypatch.setattr("SPDSegmentLib.worker.connection.__version__", "9.9")
    d.result(d.client.status())
    d.client.close()
    assert any(f"is of version {__version__}, this program of 9.9" in said for said in d.logs)


def test_what_libraries_print_or_read_does_no_harm(transport: str) -> None:
    with driver(transport, "fake?noise=1") as d:
        d.segment()
        d.until(lambda: "a library prints" in d.client.log_lines)
        assert any("and native code too" in line for line in d.client.log_lines)


def test_a_greeting_of_a_remote_shell_does_no_harm(transport: str) -> None:
    others = children()
    greeting = f"import subprocess,sys; print('Welcome, SPDuser', flush=True); sys.exit(subprocess.call({_worker()!r}))"
    d = Driver(transport)
    d.client.set_command(type(d.client.command)((sys.executable, "-c", greeting)))
    d.client.set_model(ModelChoice("fake"))
    d.client.open_volume("volume", volume_array(), AFFINE)
    d.segment()
    assert "Welcome, SPDuser" in d.client.log_lines
    d.client.close()
    d.until(lambda: children() == others, seconds=limit(2))


def test_an_error_in_a_callback_is_raised_and_loses_nothing(transport: str) -> None:
    if transport != "subprocess":
        pytest.skip("Qt reports exceptions in slots by its own means")

    def fail_once(ready: m.SliceReady) -> None:
        if ready.slice_index == 6:
            raise RuntimeError("in the caller's code")

    with driver(transport) as d:
        request = d.client.segment("volume", [line()], callbacks=Callbacks(on_slice=fail_once))
        with pytest.raises(RuntimeError, match="caller's code"):
            d.result(request)
        d.result(request)
        assert len(request.slices) == SHAPE[0]


def test_a_request_made_in_a_callback_is_answered(transport: str) -> None:
    answers: list[Any] = []
    with driver(transport) as d:

        def go_on(request: Any) -> None:
            if len(answers) < 3:
                answers.append(d.client.segment("volume", [line()], callbacks=Callbacks(on_finished=go_on)))

        d.client.segment("volume", [line()], callbacks=Callbacks(on_finished=go_on))
        d.until(lambda: len(answers) == 3 and all(request.finished for request in answers))
        assert all(request.answer is not None for request in answers)


def test_waiting_within_a_callback_keeps_the_order_of_events(transport: str) -> None:
    order: list[str] = []
    with driver(transport) as d:

        def ask(ready: m.SliceReady) -> None:
            order.append(f"slice {ready.slice_index}")
            if ready.slice_index == 6:
                d.client.wait(d.client.status(), timeout=limit(5))
                order.append("status")

        d.segment(first_slice=6, callbacks=Callbacks(on_slice=ask))
    assert order[0] == "slice 6" and "status" in order
    assert sorted(text for text in order if text != "status") == sorted(f"slice {t}" for t in range(SHAPE[0]))


def test_volumes_and_models_are_checked_before_anything_is_started(transport: str) -> None:
    d = Driver(transport)
    with pytest.raises(BadInput, match="not open"):
        d.client.segment("volume", [line()])
    with pytest.raises(BadInput):
        d.client.open_volume("v", np.zeros((4, 4)), AFFINE)
    with pytest.raises(BadInput):
        d.client.open_volume("v", np.zeros((4, 4, 4), complex), AFFINE)
    with pytest.raises(BadInput):
        d.client.open_volume("v", np.zeros((4, 4, 4)), np.full((4, 4), np.nan))
    d.client.open_volume("v", volume_array(), AFFINE)
    with pytest.raises(BadInput, match="open already"):
        d.client.open_volume("v", volume_array(), AFFINE)
    with pytest.raises(ModelMissing, match="No model"):
        d.client.segment("v", [line()])
    assert not d.client.running


def _worker() -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("fake_predictor.py"))]
