"""The next click: where masks differ, how far a click is, which slices are looked at; nothing is encoded or drawn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tiny_predictor import SIZE, tiny_predictor, tube_volume

from SPDSegmentLib.errors import Cancelled
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.inference.next_click import Dispute, dispute_of, perturbed, rank, suggest
from SPDSegmentLib.inference.results import Call
from SPDSegmentLib.inference.session import Session
from SPDSegmentLib.prompts.distillation import SlicePrompts
from SPDSegmentLib.prompts.fates import SliceStatus


def clicks_at(*places: tuple[int, float, float]) -> Clicks:
    array = np.array(places, dtype=float).reshape(-1, 3)
    return Clicks(array[:, 0].astype(int), array[:, 1:], np.zeros(len(array), bool), tuple(map(str, range(len(array)))))


def square(row: int, column: int, side: int) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[row : row + side, column : column + side] = True
    return mask


def test_masks_that_agree_are_not_in_dispute_and_half_of_them_count_whole() -> None:
    assert dispute_of(np.zeros((3, SIZE, SIZE), bool)) is None
    same = dispute_of(np.stack([square(10, 10, 5)] * 4))
    assert same is not None and same.pixels == 0 and same.covered == 25 and same.xy == (12, 12)
    half = dispute_of(np.stack([square(10, 10, 5), np.zeros((SIZE, SIZE), bool)]))
    assert half is not None and half.pixels == pytest.approx(25)


def test_the_click_goes_into_the_deepest_place_of_what_most_masks_cover() -> None:
    both = square(4, 4, 3) | square(20, 20, 9)
    found = dispute_of(np.stack([both, both, square(40, 40, 15)]))
    assert found is not None and found.xy == (24, 24)


def test_a_dispute_far_from_clicks_comes_before_a_like_one_near_them_and_the_second_keeps_off_the_first() -> None:
    alike = {t: Dispute(20.0, 40, (30.0, 30.0)) for t in (4, 5, 15, 16)}
    found = rank(alike, clicks_at((3, 30, 30)), (1.0, 1.0), 2.0, count=2)
    assert [s.slice_index for s in found] == [16, 5]
    assert found[0].distance_mm == pytest.approx(26.0) and found[0].score > found[1].score


def test_slices_whose_masks_agree_are_never_suggested() -> None:
    assert rank({4: Dispute(0.1, 400, (30.0, 30.0))}, clicks_at((3, 30, 30)), (1.0, 1.0), 2.0) == []


def test_a_slice_without_prompts_borrows_those_of_the_slices_around_it() -> None:
    prompts = {
        t: SlicePrompts(t, np.array([[x, x], [x + 8.0, x]]), np.arange(2), SliceStatus.SUPPORTED)
        for t, x in ((3, 10.0), (7, 20.0))
    }
    between = list(perturbed(5, prompts, [3, 7], 2.0))
    assert [p.slice_index for p in between] == [5, 5]
    assert [p.points[0].tolist() for p in between] == [[10, 10], [20, 20]]
    own = list(perturbed(7, prompts, [3, 7], 2.0))
    assert [p.points.tolist() for p in own] == [
        [[22, 22], [30, 22]], [[18, 18], [26, 18]], [[20, 20]], [[10, 10], [18, 10]],
    ]  # fmt: skip


@pytest.fixture
def session() -> Session:
    return tiny_predictor().open(SliceStack(tube_volume(), "axial"))


def test_suggestions_encode_nothing_change_nothing_and_are_the_same_again(session: Session) -> None:
    clicks = clicks_at((6, 28, 30), (8, 29, 30))
    before = session.segment(clicks)
    encoded = session.features.encoded
    found = suggest(session, clicks, count=3)
    assert found and found == suggest(session, clicks, count=3)
    assert session.features.encoded == encoded
    assert all(t in session.features.cached_slices() for t in (s.slice_index for s in found))
    assert len({s.slice_index for s in found}) == len(found)
    after = session.segment(clicks)
    assert after.recomputed == [] and np.array_equal(before.mask, after.mask)


def test_a_slice_that_a_person_owns_needs_no_click(session: Session) -> None:
    clicks = clicks_at((6, 28, 30), (8, 29, 30))
    session.segment(clicks)
    (first,) = suggest(session, clicks)
    session.segment(clicks, locked={first.slice_index: square(24, 24, 9)})
    assert first.slice_index not in [s.slice_index for s in suggest(session, clicks, count=30)]


def test_the_middle_of_the_longest_empty_run_inside_comes_before_slices_whose_masks_differ(session: Session) -> None:
    clicks = clicks_at((6, 28, 30), (8, 29, 30))
    session.segment(clicks)
    empty = np.zeros((SIZE, SIZE), dtype=bool)
    for t in (7, 9, 10, 11, 12, 13):
        prompts, result = session._slices[t]
        session._slices[t] = prompts, dataclasses.replace(result, mask=empty, quality=0.0)
    found = suggest(session, clicks, count=30)
    assert [s.slice_index for s in found[:2]] == [11, 7] and found[0].score == 3 and found[1].score == 1
    kinds = [s.disagreement == -1 for s in found]
    assert kinds == sorted(kinds, reverse=True) and not all(kinds) and len({s.slice_index for s in found}) == len(found)
    x, y = found[0].xy
    left, right = (session.decided[t][1].mask for t in (8, 14))
    assert (left | right)[round(y), round(x)], "on the salient structure, between the slices around"


def test_beyond_an_end_nobody_looked_at_the_structure_is_asked_for_and_less_far_after_each_no(session: Session) -> None:
    clicks = clicks_at((4, 27, 30), (8, 29, 30))
    session.segment(clicks)
    end = max(t for t, (_, r) in session.decided.items() if r.pixels)
    for t in range(10, end + 1):  # as with `follow_beyond`
        session._slices[t] = session.decided[t][0], session._blank(t, SliceStatus.ABSTAINED)
    (first,) = suggest(session, clicks)
    assert first.disagreement == -1 and 10 < first.slice_index <= end
    (second,) = suggest(session, clicks_at((4, 27, 30), (8, 29, 30), (first.slice_index, *first.xy)))
    assert 9 < second.slice_index < first.slice_index


def test_a_place_that_was_dismissed_counts_as_a_click(session: Session) -> None:
    clicks = clicks_at((6, 28, 30), (8, 29, 30))
    session.segment(clicks)
    (first,) = suggest(session, clicks)
    (second,) = suggest(session, clicks_at((6, 28, 30), (8, 29, 30), (first.slice_index, *first.xy)))
    assert second.slice_index != first.slice_index


def test_nothing_is_suggested_before_a_segmentation_and_it_can_be_cancelled(session: Session) -> None:
    clicks = clicks_at((6, 28, 30))
    assert suggest(session, clicks) == []
    session.segment(clicks)
    with pytest.raises(Cancelled):
        suggest(session, clicks, call=Call(cancelled=lambda: True))


def test_without_a_click_that_counts_the_suggestions_rest_on_the_masks_alone(session: Session) -> None:
    session.segment(clicks_at((4, 27, 30), (8, 29, 30)))
    nowhere = dataclasses.replace(clicks_at((900, 30, 30)), outside=np.array([True]))
    (found,) = suggest(session, nowhere)
    assert np.isinf(found.distance_mm)
