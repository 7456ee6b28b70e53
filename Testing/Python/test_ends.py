"""Clicks at which the structure ends: nothing is segmented past them, and clicks past them do not count."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from points_files import write_markups
from tiny_predictor import listening_predictor, reached, tiny_predictor, tube_volume

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.centerline import Clicks, clicks_from_markups
from SPDSegmentLib.geometry.markups import ControlPoint, Markup, mark_clicks, marks_as_text, marks_in, read_markups
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.inference.next_click import suggest
from SPDSegmentLib.inference.session import Session
from SPDSegmentLib.prompts.distillation import STRATEGIES, PromptConfig
from SPDSegmentLib.prompts.fates import Fate, SliceStatus, review
from SPDSegmentLib.training.cases import _given_clicks
from SPDSegmentLib.training.config import DataConfig
from SPDSegmentLib.worker.payloads import flatten_markups, restore_markups

POINTS = Markup("line", "Fiducial", tuple(ControlPoint(str(n), f"F-{n}", (-25.0, -30.0, 3.0 * n)) for n in (6, 9, 12)))
LINE = (4, 7, 10, 13, 16, 19)


def clicks_on(*slices: int, ends: tuple[int, ...] = (), xy: tuple[float, float] = (30.0, 30.0)) -> Clicks:
    index, n = np.array(slices), len(slices)
    names = tuple(map(str, slices))
    return Clicks(index, np.tile(xy, (n, 1)), np.zeros(n, bool), names, ends=np.isin(index, ends))


@pytest.fixture
def session() -> Session:
    return tiny_predictor().open(SliceStack(tube_volume(), "axial"))


def filled(result: object) -> list[int]:
    return np.flatnonzero(result.mask.any(axis=(1, 2))).tolist()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("ends", "first", "stop"),
    [
        ((), 0, 24),
        ((7,), 7, 24),
        ((16,), 0, 17),
        ((7, 16), 7, 17),
        ((4, 7), 4, 8),
        ((4, 7, 16), 4, 17),
        ((19,), 0, 20),
    ],
)
def test_two_ends_bound_what_lies_between_and_others_the_side_with_fewer_clicks(
    ends: tuple[int, ...], first: int, stop: int
) -> None:
    assert clicks_on(*LINE, ends=ends).extent(24) == range(first, stop)


def test_an_end_in_the_middle_of_the_clicks_bounds_nothing() -> None:
    assert clicks_on(5, 9, ends=(5, 9)).extent(24) == range(5, 10)
    assert clicks_on(5, 9, 13, ends=(9,)).extent(24) == range(24)
    assert clicks_on(5, ends=(5,)).extent(24) == range(24)


def test_a_click_outside_the_volume_is_no_end() -> None:
    clicks = dataclasses.replace(clicks_on(-4, 7, 10, ends=(-4,)), outside=np.array([True, False, False]))
    assert clicks.extent(24) == range(24)
    assert not clicks.past(range(8, 24))[0]


@pytest.mark.parametrize("strategy", [*STRATEGIES, "saliency-only"])
def test_nothing_is_segmented_past_an_end_whatever_the_strategy(session: Session, strategy: str) -> None:
    free = session.segment(clicks_on(*LINE), prompts=strategy)
    bounded = session.segment(clicks_on(*LINE, ends=(7, 16)), prompts=strategy)
    assert not filled(free) or min(filled(free)) <= 4
    assert not set(filled(bounded)) - set(range(7, 17))
    gone = set(filled(free)) - set(range(7, 17))
    assert gone <= set(bounded.recomputed), "what became empty is named as changed"
    assert not {p.slice_index for p in bounded.fates if p.fate is Fate.SYNTHESIZED} - set(range(7, 17))


@pytest.mark.parametrize("make", [tiny_predictor, listening_predictor])
def test_clicks_past_an_end_say_so_and_the_mask_is_that_of_the_others(make: object) -> None:
    stack = SliceStack(tube_volume(), "axial")
    bounded = make().open(stack).segment(clicks_on(*LINE, ends=(7, 16)))  # type: ignore[operator]
    fates = {n: f.fate for n, f in bounded.click_fates().items()}
    assert [n for n, fate in fates.items() if fate is Fate.PAST_END] == [0, 5]
    assert [bounded.click_fates()[n].click_id for n in range(6)] == [str(t) for t in LINE]
    alone = make().open(stack).segment(clicks_on(7, 10, 13, 16))  # type: ignore[operator]
    within = slice(7, 17)
    assert np.array_equal(bounded.mask[within], alone.mask[within])


def test_many_clicks_past_an_end_are_no_reason_for_doubt(session: Session) -> None:
    result = session.segment(clicks_on(*range(1, 21), ends=(12, 20)))
    assert sum(f.fate is Fate.PAST_END for f in result.click_fates().values()) == 11
    assert not result.doubts and not any("end" in note for note in result.notes)


def test_an_end_that_bounds_nothing_is_said(session: Session) -> None:
    assert any("bounds nothing" in note for note in session.segment(clicks_on(5, 9, 13, ends=(9,))).notes)
    for clicks in (clicks_on(0, 9, 13, ends=(0,)), clicks_on(0, 4, 7, 10, 13, 16, 23, ends=(0, 13, 23))):
        assert not any("bounds nothing" in note for note in session.segment(clicks).notes)


def test_marking_an_end_changes_what_lies_past_it_and_its_reach_alone(session: Session) -> None:
    before, after = clicks_on(*LINE), clicks_on(*LINE, ends=(7,))
    first = session.segment(before)
    second = session.segment(after)
    untouched = [t for t in range(24) if t not in second.recomputed]
    assert set(second.recomputed) <= reached(session, before, after) and max(second.recomputed) < 10
    assert np.array_equal(first.mask[untouched], second.mask[untouched])
    assert np.array_equal(session.segment(before).mask, first.mask)


@pytest.mark.parametrize("make", [tiny_predictor, listening_predictor])
def test_ends_that_come_and_go_leave_what_a_fresh_session_finds(make: object) -> None:
    stack = SliceStack(tube_volume(), "axial")
    session = make().open(stack)  # type: ignore[operator]
    for ends in ((7, 16), (), (10,), (13, 4), (10, 16), (7,)):
        fresh = make().open(stack).segment(clicks_on(*LINE, ends=ends))  # type: ignore[operator]
        assert np.array_equal(session.segment(clicks_on(*LINE, ends=ends)).mask, fresh.mask), ends


def test_slices_at_an_end_come_as_soon_as_the_others() -> None:
    predictor, stages = tiny_predictor(), list[int | str]()
    predictor.prompts = PromptConfig(evidence="adjoining")  # which looks at the slice past the end
    predictor.open(SliceStack(tube_volume(), "axial")).segment(
        clicks_on(*range(5, 17), ends=(5, 16)),
        first_slice=16,
        on_slice=lambda result: stages.append(result.slice_index),
        on_progress=lambda progress: stages.append(progress.stage),
    )
    assert "encoding" in stages[stages.index(16) :], "it does not wait for the last encoding"


def test_a_slice_that_a_person_drew_stays_past_an_end(session: Session) -> None:
    drawn = np.zeros(session.stack.shape[1:], bool)
    drawn[20:40, 20:40] = True
    result = session.segment(clicks_on(*LINE, ends=(7,)), locked={2: drawn})
    assert np.array_equal(result.mask[2], drawn) and filled(result)[:2] == [2, 7]


def test_no_click_is_suggested_past_an_end(session: Session) -> None:
    clicks = clicks_on(9, 12, 15, ends=(9, 15))
    session.segment(clicks)
    assert all(9 <= found.slice_index <= 15 for found in suggest(session, clicks, 20))
    dismissed = clicks_on(9, 12, 15, 2, ends=(9, 15))
    assert all(9 <= found.slice_index <= 15 for found in suggest(session, dismissed, 20))


def test_files_and_wire_keep_ends_and_what_is_insisted_on(tmp_path: Path) -> None:
    marked = mark_clicks([POINTS], insist=["9"], ends=["F-6", "9"])
    write_markups(tmp_path / "a.mrk.json", marked)
    for points in (
        read_markups(tmp_path / "a.mrk.json")[0].points,
        restore_markups(*flatten_markups(marked))[0].points,
    ):
        assert [(p.insisted, p.ends) for p in points] == [(False, True), (True, True), (False, False)]
    (tmp_path / "a.csv").write_text("r,a,s,description\n1,2,3,END\n1,2,4,end of trial\n1,2,5,insisted; end\n")
    points = read_markups(tmp_path / "a.csv")[0].points
    assert [(p.insisted, p.ends) for p in points] == [(False, True), (False, False), (True, True)]


@pytest.mark.parametrize("marks", [(False, False), (True, False), (False, True), (True, True)])
def test_marks_are_read_as_they_are_written(marks: tuple[bool, bool]) -> None:
    assert marks_in(marks_as_text(*marks)) == marks_in(f" {marks_as_text(*marks).title()}, ") == marks


def test_an_end_must_be_among_the_clicks() -> None:
    with pytest.raises(BadInput, match="no click '7' to end at"):
        mark_clicks([POINTS], ends=["6", "7"])
    points, ids, groups = flatten_markups([POINTS])
    with pytest.raises(BadInput, match="marked as an end"):
        restore_markups(points, ids, [dataclasses.replace(groups[0], ends=(3,))])


def test_of_a_curve_the_control_point_is_the_end_and_the_samples_past_it_do_not_count() -> None:
    curve = dataclasses.replace(mark_clicks([POINTS], ends=["12"])[0], kind="Curve")
    clicks = clicks_from_markups([curve], SliceStack(tube_volume(), "axial"))
    assert clicks.slice_index[clicks.ends].tolist() == [12] and clicks.extent(24) == range(13)


def test_training_learns_from_the_clicks_that_use_would_take(tmp_path: Path) -> None:
    write_markups(tmp_path / "a.mrk.json", mark_clicks([POINTS], ends=["9", "12"]))
    data = DataConfig("", "{case}.nii.gz", "{case}.nii.gz", ((1,),), ("a",), clicks="{case}.mrk.json")
    (given,) = _given_clicks(tmp_path, "a", data, SliceStack(tube_volume(), "axial"), [True])
    assert given is not None and given.slice_index.tolist() == [9, 12]


def test_clicks_past_an_end_are_no_places_to_look_at() -> None:
    slices = dict.fromkeys((5, 6, 7), (SliceStatus.SUPPORTED, 0.9))
    assert review(slices, [(5, Fate.KEPT), (9, Fate.PAST_END)]).stray == []
