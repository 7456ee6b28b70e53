"""The predictor: what is kept, what a changed click reaches, streaming, cancelling, owned slices, memory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny_predictor import SIZE, reached, tiny_predictor, tube_volume
from torch import Tensor

from SPDSegmentLib.errors import BadInput, Cancelled, DeviceUnavailable, OutOfMemory
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.inference.engine import choose_device, choose_precision
from SPDSegmentLib.inference.results import Call, SliceResult
from SPDSegmentLib.inference.session import Session
from SPDSegmentLib.prompts.distillation import PromptConfig


def clicks_at(*places: tuple[int, float, float]) -> Clicks:
    array = np.array(places, dtype=float).reshape(-1, 3)
    n = len(array)
    outside = (array[:, 0] < 0) | (array[:, 0] > 23)
    return Clicks(array[:, 0].astype(int), array[:, 1:], outside, tuple(f"p{i}" for i in range(n)))


def center(t: int) -> tuple[int, float, float]:
    """A click in the middle of the tube."""
    return t, 20 + t // 2 + 5, 30


@pytest.fixture
def session() -> Session:
    return tiny_predictor().open(SliceStack(tube_volume(), "axial"))


def test_supported_slices_are_segmented_and_those_without_saliency_abstain(session: Session) -> None:
    result = session.segment(clicks_at(center(6), center(12), center(18)))
    assert result.mask.shape == (24, SIZE, SIZE)
    assert [s.status for s in result.slices[:3]] == ["abstained"] * 3
    assert result.slices[6].status == "supported"
    assert result.slices[15].status in ("supported", "synthesized")
    assert result.report()["clicks"] == {"kept": 3}


def test_what_only_unsupported_clicks_reach_is_not_encoded_and_changes_nothing() -> None:
    stack, predictor = SliceStack(tube_volume(), "axial"), tiny_predictor(1, slice_context=False)
    clicks = clicks_at(center(6), center(8), (13, 2.0, 2.0), (21, 2.0, 60.0))
    session = predictor.open(stack)
    result = session.segment(clicks)
    known = session._features.known_slices()
    assert 13 in known and 21 in known, "a click's own slice decides about it"
    assert not known & {22, 23} and result.encoded == len(known)
    whole = predictor.open(stack)
    for t in range(24):
        whole.saliency(t)
    expected = whole.segment(clicks)
    assert np.array_equal(result.mask, expected.mask) and result.mask.any()
    assert result.fates == expected.fates and result.recomputed == expected.recomputed
    again = session.segment(clicks_at(center(6), center(8), (13, 2.0, 2.0), (21, 2.0, 58.0)))
    assert again.encoded == 0 and again.recomputed == []


def test_a_second_call_with_the_same_clicks_computes_nothing(session: Session) -> None:
    clicks = clicks_at(center(6), center(12))
    first = session.segment(clicks)
    second = session.segment(clicks)
    assert second.recomputed == [] and second.encoded == 0
    assert np.array_equal(first.mask, second.mask)


def test_a_mask_needs_the_embedding_of_its_own_slice_alone(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    session.segment(clicks_at(*map(center, (5, 6, 7))))
    features, encode, encoded = session.features, session.features._encode, list[int]()

    def note(batch: Sequence[int], call: Call) -> Tensor:
        encoded.extend(batch)
        return encode(batch, call)

    monkeypatch.setattr(features, "_encode", note)
    monkeypatch.setattr(features, "_embeddings", features._embeddings.emptied())
    features.masks([session.decided[6][0]], 10, Call())
    assert encoded == [6]


def test_a_moved_click_recomputes_only_its_reach_and_leaves_the_rest_bit_identical(session: Session) -> None:
    before = clicks_at(center(4), center(8), center(12), center(16), center(20))
    after = clicks_at(center(4), center(8), (12, 29.0, 33.0), center(16), center(20))
    first = session.segment(before)
    reach = reached(session, before, after)
    second = session.segment(after)
    assert reach and set(second.recomputed) == reach
    assert reach <= set(range(10, 15))
    assert second.encoded == 0
    untouched = [t for t in range(24) if t not in reach]
    assert np.array_equal(first.mask[untouched], second.mask[untouched])
    back = session.segment(before)
    assert np.array_equal(back.mask, first.mask)


def test_slices_come_as_soon_as_they_are_ready_nearest_to_the_view_first(session: Session) -> None:
    arrived: list[int] = []
    stages: list[str] = []

    def on_slice(result: SliceResult) -> None:
        arrived.append(result.slice_index)
        stages.append("slice")

    session.segment(
        clicks_at(*[center(t) for t in range(4, 20)]),
        first_slice=10,
        on_slice=on_slice,
        on_progress=lambda p: stages.append(p.stage),
    )
    assert abs(arrived[0] - 10) <= 2
    assert "encoding" in stages[stages.index("slice") :], "the first slice must not wait for the last encoding"
    assert len(arrived) == len(set(arrived))


def test_cancelling_stops_between_batches_and_the_next_call_goes_on(session: Session) -> None:
    clicks = clicks_at(*[center(t) for t in range(4, 20)])
    polls = iter([False, False, True])
    with pytest.raises(Cancelled):
        session.segment(clicks, cancelled=lambda: next(polls, True))
    result = session.segment(clicks)
    fresh = tiny_predictor().open(SliceStack(tube_volume(), "axial")).segment(clicks)
    assert result.encoded < fresh.encoded
    assert np.allclose(result.mask, fresh.mask)


def test_a_slice_that_a_person_owns_is_kept_and_serves_as_context(session: Session) -> None:
    clicks = clicks_at(center(6), center(18))
    free = session.segment(clicks)
    drawn = np.zeros((SIZE, SIZE), bool)
    drawn[26:30, 28:34] = True
    owned = session.segment(clicks, locked={12: drawn})
    assert owned.slices[12].status == "locked"
    assert np.array_equal(owned.mask[12], drawn)
    assert owned.slices[11].status == "synthesized"
    released = session.segment(clicks)
    assert np.array_equal(released.mask, free.mask)


def test_what_is_handed_out_again_cannot_be_written_into(session: Session) -> None:
    clicks, drawn = clicks_at(center(6), center(12)), np.ones((SIZE, SIZE), bool)
    for options in ({}, {"locked": {9: drawn}}, {"saliency_only": True, "locked": {9: drawn}}):
        found = session.segment(clicks, **options)
        assert not any(s.mask.flags.writeable for s in found.slices), options
        assert found.mask.flags.writeable, "a copy"
    drawn[:] = False
    assert session.segment(clicks, locked={9: np.ones((SIZE, SIZE), bool)}).slices[9].mask.all()


def test_the_saliency_alone_keeps_slices_that_a_person_owns_too(session: Session) -> None:
    mine = np.zeros(session.stack.shape[1:], dtype=bool)
    mine[2:5, 2:5] = True
    result = session.segment(clicks_at(center(8)), prompts="saliency-only", locked={10: mine})
    assert result.slices[10].status == "locked" and np.array_equal(result.slices[10].mask, mine)
    assert result.slices[11].status == "saliency"


def test_without_a_limit_of_points_a_slice_does_not_depend_on_the_rest_of_its_batch() -> None:
    prompts = PromptConfig(max_points=0, n_neighbors=0, min_distance_px=0.0)
    opened = [tiny_predictor().with_prompts(prompts).open(SliceStack(tube_volume(), "axial")) for _ in range(2)]
    crowd = [(9, *np.add(center(9)[1:], (dx, dy))) for dx in (-2, 0, 2) for dy in (-2, 0, 2)]
    alone = opened[0].segment(clicks_at(center(8)))
    grown = opened[0].segment(clicks_at(center(8), *crowd))
    assert 8 not in grown.recomputed and alone.slices[8].pixels
    assert np.array_equal(opened[1].segment(clicks_at(center(8), *crowd)).mask, grown.mask)


def test_clicks_outside_are_named_and_the_rest_is_used(session: Session) -> None:
    result = session.segment(clicks_at(center(6), (40, 10, 10)))
    assert result.click_fates()[1].fate == "outside"
    assert "p1" in result.notes[0]
    with pytest.raises(BadInput, match="No click lies inside"):
        session.segment(clicks_at((40, 10, 10)))


def placed(*lists: tuple[str, int, float]) -> Clicks:
    """Of each list a name, a number of clicks from slice 6 on, and their column and row; 99 is beyond the volume."""
    places = [(6 + n, at, 30.0 if at < 50 else at) for _, count, at in lists for n in range(count)]
    clicks = clicks_at(*places)
    names = tuple(name for name, count, _ in lists for _ in range(count))
    return dataclasses.replace(clicks, outside=clicks.xy[:, 0] > 64, lists=names)


@pytest.mark.parametrize("strategy", ["consensus", "raw", "saliency-only"])
def test_many_clicks_beyond_the_field_of_view_are_a_reason_to_look_and_few_are_a_note(strategy: str) -> None:
    def doubts(*lists: tuple[str, int, float]) -> list[str]:
        session = tiny_predictor(fov_mm=44).open(SliceStack(tube_volume(), "axial"))
        return session.segment(placed(*lists), prompts=strategy).doubts

    (said,) = doubts(("tube", 5, 30), ("other", 4, 56))
    assert said.startswith("4 of 9 clicks (4 in list 'other') lie outside the model's 44 mm view of the others")
    assert said.endswith("Segment each list by itself.")
    assert "1 of 6 clicks (1 in list 'other') lies" in doubts(("tube", 5, 30), ("other", 1, 56))[0], "all of a list"
    assert "3 of 9 clicks lie" in doubts(("tube", 6, 30), ("tube", 3, 56))[0]
    assert doubts(("tube", 10, 30), ("tube", 3, 56)) == doubts(("tube", 3, 30), ("tube", 2, 56)) == []


def test_half_of_the_clicks_outside_the_volume_are_a_reason_to_look(session: Session) -> None:
    (said,) = session.segment(placed(("tube", 4, 30), ("tube", 4, 99))).doubts
    assert said.startswith("4 of 8 clicks lie outside the volume. Check that points and volume belong")
    assert session.segment(placed(("tube", 5, 30), ("tube", 4, 99))).doubts == []
    (said,) = session.segment(placed(("tube", 5, 30), ("other", 1, 99))).doubts
    assert said.startswith("1 of 6 clicks (1 in list 'other') lies outside the volume.")
    predictor = tiny_predictor(fov_mm=44)
    both = predictor.open(session.stack).segment(placed(("tube", 8, 30), ("tube", 1, 56), ("other", 1, 99)))
    assert len(both.doubts) == 1, "one slip of the hand is none"


def test_clicks_that_were_left_out_are_named_once_by_where_they_lie() -> None:
    session = tiny_predictor(fov_mm=44).open(SliceStack(tube_volume(), "axial"))
    clicks = placed(("tube", 12, 30), ("tube", 6, 99), ("tube", 2, 56))
    names = (*clicks.ids[:12], *"aabcdefg"[:8])
    notes = session.segment(dataclasses.replace(clicks, ids=names)).notes
    assert notes[0] == "Clicks outside the volume (5) were left out: a, b, c, d, e."
    assert notes[1] == "Clicks outside the model's field of view (2) were left out: f, g."


def test_the_user_is_told_when_the_mask_goes_on_far_past_the_clicks(session: Session) -> None:
    along = session.segment(clicks_at(*[center(t) for t in range(2, 22)]))
    assert along.notes == []
    few = session.segment(clicks_at(center(4), center(8)))
    filled = np.flatnonzero(few.mask.any((1, 2)))
    assert f"for up to {filled[-1] - 8} slices past the outermost clicks" in few.notes[0]
    assert session.segment(clicks_at(center(4), center(8)), prompts="raw").notes == []


def test_the_user_is_told_when_the_model_supports_no_click(session: Session) -> None:
    beside = session.segment(clicks_at((8, 42, 30), (12, 42, 31)))
    assert beside.slices[10].status == "synthesized" and beside.mask[10, 30, 30]
    assert "supports no click" in beside.notes[0] and "nearest" in beside.notes[0]
    far = session.segment(clicks_at((8, 62, 2)))
    assert not far.mask.any() and "found nothing near them" in far.notes[0]
    assert not any("supports no click" in note for note in session.segment(clicks_at((8, 62, 2), center(12))).notes)
    assert session.segment(clicks_at((8, 62, 2)), prompts="raw").notes == []


def test_every_strategy_and_the_saliency_alone_give_a_result(session: Session) -> None:
    clicks = clicks_at(center(6), (8, 60, 2), center(12))
    kept = {name: session.segment(clicks, prompts=name) for name in ("consensus", "local", "raw", "interpolated")}
    assert kept["raw"].slices[8].status == "supported"
    assert kept["consensus"].click_fates()[1].fate == "rejected_own_slice"
    assert kept["interpolated"].slices[10].status == "synthesized"
    alone = session.segment(clicks, saliency_only=True)
    assert alone.mask[10, 30, 30] and not alone.mask[10, 5, 5]
    assert session.segment(clicks, prompts="sampled").slices[10].status == "synthesized"


@pytest.mark.parametrize("how", [{"prompts": "sampled"}, {"saliency_only": True}])
def test_an_empty_mask_is_a_reason_to_look_whatever_the_prompts_are(how: dict[str, Any]) -> None:
    volume = tube_volume()
    dark = dataclasses.replace(volume, array=volume.array // 4 + 1)
    result = tiny_predictor().open(SliceStack(dark, "axial")).segment(clicks_at(center(6), center(12)), **how)
    assert not result.mask.any() and result.doubts == ["Nothing was segmented."]


def test_when_memory_runs_out_the_batch_is_halved_down_to_one() -> None:
    predictor = tiny_predictor(batch_size=8)
    encode, sizes = predictor.engine.encode, []

    def hungry(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return encode(images)

    predictor.engine.encode = hungry  # type: ignore[method-assign, assignment]
    result = predictor.open(SliceStack(tube_volume(), "axial")).segment(clicks_at(center(6)))
    assert sizes[:3] == [8, 4, 2] or sizes[0] > 2
    assert predictor.engine.batch_size == 2 and result.slices[6].status == "supported"
    predictor.engine.encode = lambda images: (_ for _ in ()).throw(MemoryError())  # type: ignore[method-assign]
    with pytest.raises(OutOfMemory, match="not enough memory for one slice"):
        predictor.open(SliceStack(tube_volume(), "axial")).segment(clicks_at(center(6)))


def test_the_field_of_view_stays_where_the_first_clicks_put_it() -> None:
    session = tiny_predictor(fov_mm=40).open(SliceStack(tube_volume(), "axial"))
    session.segment(clicks_at(center(6), center(8)))
    assert session.segment(clicks_at(center(6), center(9))).encoded <= 2
    moved = session.segment(clicks_at((10, 60.0, 58.0)))
    assert "field of view" in moved.notes[0]


def test_a_look_at_the_saliency_does_not_decide_what_a_segmentation_sees() -> None:
    predictor, stack = tiny_predictor(fov_mm=40), SliceStack(tube_volume(), "axial")
    clicks = clicks_at(center(6), center(8))
    looked = predictor.open(stack)
    in_the_middle, elsewhere = looked.saliency(6), looked.saliency(6, (8.0, 8.0))
    assert not np.array_equal(in_the_middle, elsewhere)
    assert elsewhere[:, 8 + 40 :].max() == 0 < in_the_middle[:, 8 + 40 :].max()
    result, expected = looked.segment(clicks), predictor.open(stack).segment(clicks)
    assert result.center_xy == expected.center_xy and np.array_equal(result.mask, expected.mask)
    # from now on the field of view is that of the segmentation
    assert np.array_equal(looked.saliency(6, (8.0, 8.0)), looked.saliency(6))
    assert looked.segment(clicks).recomputed == []


def test_a_new_session_goes_on_in_the_field_of_view_of_another() -> None:
    # given: a session whose clicks have moved since the field of view was placed
    predictor, stack = tiny_predictor(fov_mm=40), SliceStack(tube_volume(), "axial")
    before = clicks_at(center(4), center(8), center(12), center(16), center(20))
    after = clicks_at(center(4), center(8), (12, 44.0, 40.0), (16, 45.0, 41.0), (20, 45.0, 42.0))
    session = predictor.open(stack)
    first = session.segment(before)
    expected = session.segment(after)
    assert first.center_xy == expected.center_xy
    # when: a new session, which knows the clicks of now alone
    anchored = predictor.open(stack).segment(after, anchor_xy=expected.center_xy)
    alone = predictor.open(stack).segment(after)
    # then
    assert np.array_equal(anchored.mask, expected.mask) and anchored.center_xy == expected.center_xy
    assert alone.center_xy != expected.center_xy and not np.array_equal(alone.mask, expected.mask)


def test_an_anchor_far_from_the_clicks_is_not_used() -> None:
    session = tiny_predictor(fov_mm=20).open(SliceStack(tube_volume(), "axial"))
    clicks = clicks_at(center(6), center(8))
    expected = session.segment(clicks).center_xy
    fresh = tiny_predictor(fov_mm=20).open(SliceStack(tube_volume(), "axial"))
    assert fresh.segment(clicks, anchor_xy=(60.0, 60.0)).center_xy == expected


def test_a_thousand_clicks_are_fast(session: Session) -> None:
    rng = np.random.default_rng(0)
    places = [
        (int(t), float(x), float(y))
        for t, x, y in zip(rng.integers(0, 24, 1000), *rng.uniform(0, 63, (2, 1000)), strict=True)
    ]
    session.segment(clicks_at(center(6)))
    started = time.process_time()  # of all threads: not what a busy machine does beside
    result = session.segment(clicks_at(*places))
    assert time.process_time() - started < 10
    assert all(len(s.mask) for s in result.slices)


def test_impossible_devices_and_precisions_are_refused() -> None:
    for name in ("gpu", "mps"):
        with pytest.raises(BadInput) as refused:
            choose_device(name)
        assert refused.value.exit_code == 2
    with pytest.raises(DeviceUnavailable) as missing:
        choose_device("cuda:99")
    assert missing.value.exit_code == 4
    with pytest.raises(BadInput, match="Unknown precision"):
        choose_precision("int8", choose_device("cpu"))
