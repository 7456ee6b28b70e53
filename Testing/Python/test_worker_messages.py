"""Messages: every one crosses the wire unchanged, and what does not fit its type is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from SPDSegmentLib.errors import BadInput, Cancelled, DependencyMissing, OutOfMemory, SPDError
from SPDSegmentLib.files import json_ready
from SPDSegmentLib.geometry.centerline import clicks_from_markups
from SPDSegmentLib.geometry.markups import ControlPoint, Markup
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import Volume
from SPDSegmentLib.prompts.fates import Fate, PointFate, SliceStatus
from SPDSegmentLib.worker import messages as m
from SPDSegmentLib.worker.payloads import (
    PackedMask,
    PointGroup,
    flatten_markups,
    pack_fates,
    pack_mask,
    pack_masks,
    restore_markups,
    unpack_fates,
    unpack_mask,
    unpack_masks,
)
from SPDSegmentLib.worker.pipes import to_error
from SPDSegmentLib.worker.protocol import (
    ContentError,
    DecodedFrame,
    FrameParser,
    FrameTooLarge,
    decode_frame,
    decode_message,
    encode_message,
)

GROUPS = (PointGroup("line", "Curve", 2), PointGroup("points", "Fiducial", 1))
POINTS = np.arange(9.0).reshape(3, 3)
IDS = ("1", "2", "ünï")
FATES = (
    PointFate(0, 4, Fate.KEPT, click_id="1", position_ras=(0.0, -1.0, 3.25)),
    PointFate(-1, 5, Fate.SYNTHESIZED, reason="no click survived", position_ras=(1.0, 1.0, 1.0)),
    PointFate(1, 6, Fate.BORROWED, click_id="2", position_ras=(4.0, 4.0, 4.0)),
)
MASK = pack_mask(np.eye(6, 9, k=1, dtype=bool))
BITS = np.array([1, 2, 3], np.uint8)

SAMPLES: list[Any] = [
    m.Hello(1, 77),
    m.LoadModel(2, "/a folder/modèle", "cuda:0", "bfloat16"),
    m.OpenVolume(3, "v@17", "<i2", (3, 4, 5), np.eye(4), "axial"),
    m.VolumeChunk("v@17", 1 << 40, BITS),
    m.Segment(4, "v", POINTS, IDS, GROUPS, np.zeros((0, 7), np.int64), BITS[:0], "all", 7, True, (1.0, -2.5, 3.0)),
    m.Learn(5, "v", POINTS, IDS, GROUPS, np.array([[2, 6, 9, 0, 2, 0, 9]]), BITS, "local", (1.0, -2.5, 3.0)),
    m.Suggest(5, "v", POINTS, 2, "0123456789ab"),
    m.Saliency(6, "v", 0),
    m.CloseVolume("v"),
    m.Cancel(4, False),
    m.Status(7, True),
    m.HelloReply(1, "0.1", 77),
    m.ModelLoaded(2),
    m.VolumeOpened(3),
    m.Progress(4, "encoding", 1, 10, None),
    m.SliceReady(4, "v", 2, MASK.shape, MASK.box, MASK.bits, 0.5, SliceStatus.SUPPORTED),
    m.Segmented(4, "v", (2, 3), *pack_fates(FATES), seconds=0.1, device="cpu", report={"a": [1, None, {"b": "c"}]}),
    m.Learned(5, "v", "0123456789ab", (2, 4), 0.5, 0.75, 12, np.array([[2, 6, 9, 0, 2, 0, 9]]), BITS, "Learned."),
    m.Suggested(5, "v", (3,), POINTS[:1], POINTS[1:2]),
    m.SaliencyReady(6, "v", 0, np.ones((2, 3), np.float32)),
    m.StatusReply(7, (m.Device("cuda:0", "GPU", 1), m.Device("cpu", "CPU", None))),
    m.VolumeNeeded(8, "v"),
    m.Alive(4, 60.0),
    m.Failed(8, "BadInput", "What.", "Do.", "more"),
]


def _through_the_wire(message: Any) -> Any:
    (raw,) = FrameParser().feed(b"".join(encode_message(message)))
    return decode_message(decode_frame(raw), {**m.REQUESTS, **m.EVENTS})


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: message.kind)
def test_every_message_arrives_as_it_was_sent(message: Any) -> None:
    arrived = _through_the_wire(message)
    assert type(arrived) is type(message)
    for field in dataclasses.fields(message):
        sent, got = getattr(message, field.name), getattr(arrived, field.name)
        if isinstance(sent, np.ndarray):
            np.testing.assert_array_equal(got, sent)
        else:
            assert got == sent and type(got) is type(sent), field.name


def test_there_is_a_sample_of_every_message() -> None:
    assert {message.kind for message in SAMPLES} == set(m.REQUESTS) | set(m.EVENTS)


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: message.kind)
def test_a_value_of_the_wrong_type_is_refused_in_every_field(message: Any) -> None:
    (raw,) = FrameParser().feed(b"".join(encode_message(message)))
    good = decode_frame(raw)
    for field in dataclasses.fields(message):
        if field.name == "report":
            continue
        wrong: list[Any] = [[[]], {"x": []}, 1.5e300]
        for value in wrong:
            header = {**good.header, field.name: value}
            with pytest.raises(ContentError):
                decode_message(DecodedFrame(header, {}), {message.kind: type(message)})


def test_unknown_missing_and_misplaced_fields_are_refused() -> None:
    kinds = m.REQUESTS
    for header in (
        {"kind": "no such"},
        {"kind": ["hello"]},
        {},
        {"kind": "cancel"},
        {"kind": "cancel", "request_id": 1, "extra": 1},
        {"kind": "cancel", "request_id": True},
        {"kind": "cancel", "request_id": 1 << 60},
        {"kind": "cancel", "request_id": "1"},
        {"kind": "close_volume", "volume_id": "x" * 100_000},
    ):
        with pytest.raises(ContentError):
            decode_message(DecodedFrame(header, {}), kinds)
    with pytest.raises(ContentError):
        decode_message(DecodedFrame({"kind": "cancel"}, {"request_id": np.zeros(1)}), kinds)


@pytest.mark.parametrize(
    "points", [np.zeros((3, 2)), np.zeros(3), np.zeros((3, 3), np.float32), np.full((1, 3), np.nan)]
)
def test_points_of_another_shape_or_type_and_nan_are_refused(points: np.ndarray) -> None:
    message = dataclasses.replace(SAMPLES[4], points_ras=points)
    with pytest.raises(ContentError):
        _through_the_wire(message)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.floats(0, 1), st.integers(0, 2**31))
def test_masks_are_the_same_after_packing(height: int, width: int, share: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    np.testing.assert_array_equal(unpack_mask(pack_mask(mask)), mask)
    masks = {9: mask, 2: ~mask, 5: np.zeros_like(mask)}
    restored = unpack_masks(*pack_masks(masks), shape=mask.shape)
    assert restored.keys() == masks.keys()
    assert all(np.array_equal(restored[t], masks[t]) for t in masks)


@pytest.mark.parametrize("box", [(0, 7, 0, 2), (-1, 2, 0, 2), (3, 2, 0, 2), (0, 2, 0, 3)])
def test_a_mask_whose_box_or_bits_do_not_fit_is_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ContentError):
        unpack_mask(PackedMask((6, 6), box, np.zeros(3, np.uint8)))


def test_locked_masks_of_another_slice_shape_named_twice_or_cut_are_refused() -> None:
    table, bits = pack_masks({1: np.ones((4, 4), bool)})
    with pytest.raises(ContentError):
        unpack_masks(table, bits, (4, 5))
    with pytest.raises(ContentError):
        unpack_masks(np.vstack([table, table]), np.concatenate([bits, bits]), (4, 4))
    with pytest.raises(ContentError):
        unpack_masks(table, bits[:1], (4, 4))
    with pytest.raises(ContentError):
        unpack_masks(table, np.concatenate([bits, bits]), (4, 4))


def test_fates_are_the_same_after_packing() -> None:
    assert unpack_fates(*pack_fates(FATES)) == FATES
    assert unpack_fates(*pack_fates(())) == ()


def test_fates_with_missing_or_unknown_texts_are_refused() -> None:
    numbers, places, texts = pack_fates(FATES)
    with pytest.raises(ContentError):
        unpack_fates(numbers, places, texts[:1])
    with pytest.raises(ContentError):
        unpack_fates(numbers, places[:1], texts)
    with pytest.raises(ContentError, match="'odd'"):
        unpack_fates(numbers, places, ["odd" if text == "kept" else text for text in texts])


def test_reports_become_plain_json() -> None:
    value = {"a": np.float32("nan"), 1: (np.arange(2), {3}), "b": np.bool_(True), "c": float("inf"), "d": object}
    assert json_ready(value) == {"a": None, "1": [[0, 1], [3]], "b": True, "c": None, "d": str(object)}


@pytest.mark.parametrize(
    ("raised", "kind", "word"),
    [
        (MemoryError(), OutOfMemory, "memory"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), OutOfMemory, "memory"),
        (ModuleNotFoundError("x", name="torch"), DependencyMissing, "package torch "),
        (ContentError("The mask does not fit."), BadInput, "mask"),
        (FrameTooLarge("A frame of 20000000 bytes."), BadInput, "answer is larger"),
        (KeyError("oops"), SPDError, "KeyError"),
        (Cancelled(), Cancelled, "Cancelled"),
    ],
)
def test_every_exception_becomes_a_typed_error(raised: BaseException, kind: type[SPDError], word: str) -> None:
    error = to_error(raised)
    assert type(error) is kind
    assert word in error.message


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_a_click_beyond_any_volume_crosses_the_wire_and_stays_outside(bad: float) -> None:
    # given a curve with a click that lies nowhere
    stack = SliceStack(Volume(np.arange(20 * 8 * 8, dtype=np.int16).reshape(20, 8, 8), np.eye(4)), "axial")
    places = [(3.0, 3.0, 2.0), (3.0, bad, 5.0), (3.0, 3.0, 9.0)]
    points = [ControlPoint(str(n), "", place) for n, place in enumerate(places)]
    flat = flatten_markups([Markup("line", "Curve", tuple(points))])
    # when its request is sent and read
    read = _through_the_wire(m.Segment(1, "v", *flat, *pack_masks({})))
    # then that click alone is outside, at a place that can be sent back
    clicks = clicks_from_markups(restore_markups(read.points_ras, read.point_ids, read.groups), stack)
    assert [clicks.ids[i] for i in np.flatnonzero(clicks.outside)] == ["1"]
    assert np.isfinite(clicks.xy).all() and set(clicks.inside().slice_index.tolist()) == set(range(2, 10))


@pytest.mark.parametrize(("count", "name"), [(100_000, "{}"), (30_000, "MarkupsFiducial_{}" + 150 * "x")])
def test_more_clicks_than_an_answer_can_tell_of_are_refused_before_they_are_sent(count: int, name: str) -> None:
    points = tuple(ControlPoint(name.format(n), "", (1.0, 2.0, 3.0)) for n in range(count))
    with pytest.raises(BadInput, match=rf"The points of vessel are {count} clicks, .* be sent \d+ at once\. Use fewer"):
        flatten_markups([Markup("vessel", "Fiducial", points)])
    assert len(flatten_markups([Markup("vessel", "Fiducial", points[: count // 2])])[1]) == count // 2
