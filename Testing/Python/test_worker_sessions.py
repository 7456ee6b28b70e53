"""What a caller holds stays true when the session behind it is another one: other models, volumes and lessons."""

from __future__ import annotations

import time
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from fake_predictor import SPARSE, load_fake
from worker_drivers import AFFINE, FAKE_WORKER, SHAPE, Driver, driver, line, volume_array

from SPDSegmentLib.errors import BadInput, Cancelled, SPDError
from SPDSegmentLib.worker import messages as m
from SPDSegmentLib.worker.client import Callbacks, ModelChoice
from SPDSegmentLib.worker.handler import RequestHandler
from SPDSegmentLib.worker.payloads import flatten_markups, pack_masks, unpack_mask
from SPDSegmentLib.worker.requests import WorkerCommand, learn_message, suggest_message
from SPDSegmentLib.worker.server import Server

OTHER = f"{SPARSE}&name=other"
TUBE = (line(2, 9),)
PART = (line(2, 3),)


class _Held:
    """The masks of the slices that a caller was given."""

    def __init__(self) -> None:
        self.masks: dict[int, np.ndarray] = {}
        self.callbacks = Callbacks(lambda ready: self.masks.update({ready.slice_index: unpack_mask(ready.packed)}))

    def stale(self, d: Driver, markups: Any) -> list[int]:
        """The slices that a whole new answer for the same clicks shows otherwise."""
        fresh, _ = d.segment(markups=markups, send_all=True)
        masks = {t: unpack_mask(ready.packed) for t, ready in fresh.slices.items()}
        return [t for t, mask in self.masks.items() if not np.array_equal(mask, masks[t])]


@pytest.mark.parametrize("other_segments", [True, False])
def test_after_another_model_was_used_or_warmed_up_no_slice_of_before_is_left(other_segments: bool) -> None:
    held = _Held()
    with driver("subprocess", SPARSE) as d:
        d.client.open_volume("second", volume_array(seed=2), AFFINE)
        d.segment(markups=TUBE, callbacks=held.callbacks)
        connection = d.client.connection
        assert connection is not None
        before = connection.session_of("volume", ModelChoice(SPARSE))
        d.client.set_model(ModelChoice(OTHER))
        if other_segments:
            d.segment("second")
        else:
            d.result(d.client.warm_up())
        assert connection.session_of("volume", ModelChoice(SPARSE)) is None
        d.client.set_model(ModelChoice(SPARSE))
        d.segment(markups=PART, callbacks=held.callbacks)
        assert connection.session_of("volume", ModelChoice(SPARSE)) not in (before, None)
        assert held.stale(d, PART) == []


def test_a_session_that_was_forgotten_knows_nothing_of_what_the_caller_holds() -> None:
    handler, sent = _handler()
    handler.answer(_segment(3, TUBE), lambda: False)
    handler.answer(m.LoadModel(4, OTHER), lambda: False)
    handler.answer(m.LoadModel(5, SPARSE), lambda: False)
    sent.clear()
    answer = handler.answer(_segment(6, PART), lambda: False)
    assert isinstance(answer, m.Segmented) and answer.recomputed == tuple(range(SHAPE[0]))
    assert {event.slice_index for event in sent if isinstance(event, m.SliceReady)} == set(range(SHAPE[0]))


def test_a_slice_that_could_not_be_sent_comes_with_the_next_answer() -> None:
    handler, sent = _handler(room=2)
    with pytest.raises(Cancelled):
        handler.answer(_segment(3, TUBE), lambda: False)
    sent.room = 1000
    handler.answer(_segment(4, TUBE), lambda: False)
    assert {event.slice_index for event in sent if isinstance(event, m.SliceReady)} >= set(range(1, 12))


def test_a_forgotten_volume_that_two_requests_need_is_sent_again_once() -> None:
    held, tags = _Held(), []
    d = Driver("subprocess", WorkerCommand((*FAKE_WORKER.arguments, "--volume-memory", "1")))
    d.client.set_model(ModelChoice(SPARSE))
    for name in ("volume", "second"):
        d.client.open_volume(name, np.repeat(volume_array(), 2, axis=0).repeat(4, axis=1).repeat(4, axis=2), AFFINE)
    d.segment(markups=TUBE, callbacks=held.callbacks)
    d.segment("second")
    connection = d.client.connection
    assert connection is not None
    put = connection.transport.outbox.put
    connection.transport.outbox.put = lambda frames, tag=None: (tags.append(tag), put(frames, tag))[1]  # type: ignore
    requests = [d.client.segment("volume", TUBE, callbacks=held.callbacks), d.client.saliency("volume", 4)]
    for request in requests:
        d.result(request)
    d.segment(markups=PART, callbacks=held.callbacks)
    assert tags.count(("volume", "volume")) == 1
    assert held.stale(d, PART) == []
    d.client.close()


def test_nothing_is_awaited_of_a_volume_that_was_closed_on_its_way() -> None:
    with driver("subprocess") as d:
        d.segment()
        connection = d.client.connection
        assert connection is not None
        d.client.open_volume("large", np.zeros((200, 512, 512), np.int16), AFFINE)
        d.client.segment("large", TUBE)
        d.client.close_volume("large")
        d.until(lambda: not d.client.busy)
        assert not connection.waits
        d.segment()
        assert d.client.connection is connection


def test_a_volume_that_was_refused_is_no_work_that_the_worker_tells_of() -> None:
    server = Server(0, 1, Mock(), end_process=Mock())
    with pytest.raises(SPDError):
        server._dispatch(m.OpenVolume(1, "huge", "<i2", (1 << 20, 1 << 14, 1 << 14), AFFINE))
    assert not server._pulse._has_work()


def test_slices_of_a_closed_volume_are_not_those_of_its_successor() -> None:
    with driver("subprocess", "fake?delay=0.05") as d:
        first = d.client.segment("volume", TUBE)
        d.until(lambda: len(first.slices) >= 1)
        time.sleep(0.4)  # slices wait in the pipe
        d.client.close_volume("volume")
        d.client.open_volume("volume", volume_array((4, 24, 32)), AFFINE)
        request, answer = d.segment("volume", [line(1, 2, i=3.0)], send_all=True)
        assert {t: ready.shape for t, ready in request.slices.items()} == dict.fromkeys(range(4), (24, 32))
        assert answer.recomputed == tuple(range(4))


def test_the_lesson_in_use_outlives_lessons_that_are_not_applied() -> None:
    with driver("subprocess") as d:
        d.segment()
        applied = _learn(d, 2)
        d.segment(learned=applied)
        for slices in (3, 4):
            _learn(d, slices)
        _, answer = d.segment(learned=applied)
        assert answer.report["model"]["learned"]["name"] == applied and answer.report["notes"] == []


def test_what_a_lesson_would_change_is_said_of_the_masks_under_the_lesson_in_use() -> None:
    with driver("subprocess") as d:
        d.segment()
        applied = _learn(d, 2)
        d.segment(learned=applied)
        locked = {t: np.ones(SHAPE[1:], bool) for t in range(2)}
        again = d.result(d.client.ask(learn_message("volume", TUBE, locked, learned=applied)))
        assert again.voxels == len(again.changed_table) == 0, "the same corrections teach the same"
        untaught, lost = (
            d.result(d.client.ask(learn_message("volume", TUBE, locked, learned=n))) for n in ("", "gone")
        )
        assert untaught.voxels == lost.voxels > 0
        assert "before it learned anything" in lost.sentence and "before it learned" not in untaught.sentence


def test_no_click_is_suggested_for_a_lesson_that_is_gone() -> None:
    with driver("subprocess") as d:
        d.segment()
        with pytest.raises(BadInput, match="no longer in the background process"):
            d.result(d.client.ask(suggest_message("volume", TUBE, learned="gone")))


def test_slices_too_large_to_be_sent_are_refused_with_a_remedy() -> None:
    with driver("subprocess") as d:
        d.client.open_volume("wide", np.zeros((260, 1500, 1500), np.uint8), AFFINE)
        full = np.ones((1500, 1500), bool)
        with pytest.raises(BadInput, match="Release slices"):
            d.client.segment("wide", TUBE, locked=dict.fromkeys(range(250), full))
        assert not d.client.busy


def _learn(d: Driver, slices: int) -> str:
    locked = {t: np.ones(SHAPE[1:], bool) for t in range(slices)}
    return str(d.result(d.client.ask(learn_message("volume", TUBE, locked))).name)


class _Sent(list[m.Event]):
    """Events, of which only so many slices find room."""

    room = 1000

    def __call__(self, event: m.Event) -> None:
        if isinstance(event, m.SliceReady):
            self.room -= 1
            if self.room < 0:
                raise Cancelled()
        self.append(event)


def _handler(room: int = 1000) -> tuple[RequestHandler, _Sent]:
    """A handler with a model and one open volume, and what it sends."""
    sent = _Sent()
    sent.room = room
    handler = RequestHandler(load_fake, sent, 1 << 30)
    handler.answer(m.LoadModel(1, SPARSE), lambda: False)
    handler.open_volume(m.OpenVolume(2, "volume", "<i2", SHAPE, AFFINE, "axial"), volume_array())
    return handler, sent


def _segment(request_id: int, markups: Any) -> m.Segment:
    return m.Segment(request_id, "volume", *flatten_markups(markups), *pack_masks({}))
