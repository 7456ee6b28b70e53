"""A click that its person insists on prompts whatever the model believes: files, wire, distillation, predictor."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from points_files import write_markups
from tiny_predictor import reached, tiny_predictor, tube_volume

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.centerline import Clicks, clicks_from_markups
from SPDSegmentLib.geometry.markups import ControlPoint, Markup, mark_clicks, read_markups
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.inference.session import Session
from SPDSegmentLib.prompts.distillation import PromptConfig
from SPDSegmentLib.prompts.evidence import raise_at
from SPDSegmentLib.prompts.fates import Fate
from SPDSegmentLib.prompts.saliency_maps import SaliencyMaps, SliceClicks
from SPDSegmentLib.prompts.strategies import distill_prompts
from SPDSegmentLib.worker.payloads import flatten_markups, restore_markups

POINTS = Markup("line", "Fiducial", tuple(ControlPoint(str(n), f"F-{n}", (-25.0, -30.0, 3.0 * n)) for n in (6, 9, 12)))


def clicks_at(*places: tuple[int, float, float], insisted: tuple[int, ...] = ()) -> Clicks:
    array = np.array(places, dtype=float)
    word = np.isin(np.arange(len(array)), insisted)
    return Clicks(
        array[:, 0].astype(int), array[:, 1:], np.zeros(len(array), bool), tuple("abcdef"[: len(array)]), word
    )


@pytest.fixture
def session() -> Session:
    return tiny_predictor().open(SliceStack(tube_volume(), "axial"))


def test_the_word_is_kept_in_the_points_file_and_on_the_wire(tmp_path: Path) -> None:
    insisted = mark_clicks([POINTS], ["9"])
    write_markups(tmp_path / "a.mrk.json", insisted)
    assert [point.insisted for point in read_markups(tmp_path / "a.mrk.json")[0].points] == [False, True, False]
    assert [point.insisted for point in restore_markups(*flatten_markups(insisted))[0].points] == [False, True, False]


def test_an_fcsv_file_says_it_in_its_description(tmp_path: Path) -> None:
    head = "# Markups fiducial file version = 5.6\n# CoordinateSystem = LPS\n"
    lines = "1,0,0,0,0,0,0,1,1,1,0,F-1,Insisted,,\n2,0,0,0,0,0,0,1,1,1,0,F-2,,,\n"
    (tmp_path / "a.fcsv").write_text(head + lines)
    assert [point.insisted for point in read_markups(tmp_path / "a.fcsv")[0].points] == [True, False]


def test_of_a_curve_the_control_points_are_insisted_on_and_not_the_samples_between() -> None:
    curve = dataclasses.replace(mark_clicks([POINTS], ["F-6", "12"])[0], kind="Curve")
    clicks = clicks_from_markups([curve], SliceStack(tube_volume(), "axial"))
    assert len(clicks) == 7
    assert clicks.slice_index[clicks.insisted].tolist() == [6, 12]


def test_insisting_on_a_click_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(BadInput, match=r"no click '7' to insist on\. .*6, 9, 12"):
        mark_clicks([POINTS], ["6", "7"])


LEFT, RIGHT = (dataclasses.replace(POINTS, name=name) for name in ("left", "right"))


def insisted_among(lists: Sequence[Markup], *names: str) -> list[list[bool]]:
    return [[point.insisted for point in markup.points] for markup in mark_clicks(lists, names)]


@pytest.mark.parametrize("name", ["9", "F-9"])
def test_a_click_that_several_lists_have_is_insisted_on_by_list_and_id(name: str) -> None:
    with pytest.raises(BadInput, match=rf"'{name}' .*in several lists. Give left:{name} or right:{name}."):
        mark_clicks([LEFT, RIGHT], [name])
    assert insisted_among([LEFT, RIGHT], f"right:{name}") == [[False] * 3, [False, True, False]]
    assert insisted_among([LEFT, LEFT], f"list 2:{name}") == [[False] * 3, [False, True, False]]
    alone = dataclasses.replace(RIGHT, points=RIGHT.points[:1])
    assert insisted_among([LEFT, alone], name) == [[False, True, False], [False]]


def test_clicks_of_several_lists_are_told_apart_and_say_their_list() -> None:
    further = ControlPoint("p", "", (-25.0, -30.0, 15.0))
    lists = [LEFT, dataclasses.replace(RIGHT, points=(RIGHT.points[0], further))]
    clicks = clicks_from_markups(mark_clicks(lists, ["right:6"]), SliceStack(tube_volume(), "axial"))
    assert clicks.ids == ("left:6", "9", "12", "right:6", "p")
    assert clicks.lists == ("left", "left", "left", "right", "right")
    assert np.flatnonzero(clicks.insisted).tolist() == [3]


def test_a_point_that_is_insisted_on_must_be_among_those_that_arrive() -> None:
    points, ids, groups = flatten_markups([POINTS])
    with pytest.raises(BadInput, match="insisted"):
        restore_markups(points, ids, [dataclasses.replace(groups[0], insisted=(3,))])


def test_a_click_in_silence_prompts_its_slice_beside_those_that_are_supported() -> None:
    maps = np.zeros((3, 64, 64), np.float32)
    maps[1, 10:20, 10:20] = 0.9
    xy = np.array([[15.0, 15.0], [40.0, 40.0], [41.0, 40.0], [50.0, 50.0]])
    clicks = SliceClicks(np.array([1, 1, 1, 1]), xy, np.array([False, True, True, False]))
    found = distill_prompts(SaliencyMaps.from_array(maps, 0.5), clicks, PromptConfig(max_points=3))
    assert sorted(found.slices[1].sources.tolist()) == [0, 1, 2]
    assert [fate.fate for fate in sorted(found.fates, key=lambda f: f.click) if fate.slice_index == 1] == [
        "kept",
        Fate.INSISTED,
        Fate.INSISTED,
        "rejected_own_slice",
    ]


def test_of_two_salient_parts_the_one_that_is_insisted_on_is_the_target() -> None:
    maps = np.zeros((1, 64, 64), np.float32)
    maps[0, 10:20, 10:20] = maps[0, 40:50, 40:50] = 0.9
    xy = np.array([[12.0, 12.0], [17.0, 17.0], [45.0, 45.0]])
    clicks = SliceClicks(np.zeros(3, int), xy, np.array([False, False, True]))
    found = distill_prompts(SaliencyMaps.from_array(maps, 0.5), clicks, PromptConfig())
    assert found.slices[0].sources.tolist() == [2]


def test_the_saliency_rises_only_where_it_denies_what_is_insisted_on() -> None:
    saliency = np.zeros((64, 64), np.float16)
    saliency[:8, :8] = 0.9
    assert raise_at(saliency, np.array([[4.0, 4.0], [-9.0, 70.0]]), 0.5) is saliency
    raised = raise_at(saliency, np.array([[30.0, 40.0]]), 0.5)
    assert raised[40, 30] > 0.5 and raised[40, 38] < 0.5 and raised.dtype == np.float16
    assert np.array_equal(raised[:8, :8], saliency[:8, :8])


def test_insisting_on_a_rejected_click_changes_its_reach_and_nothing_else(session: Session) -> None:
    places = ((6, 28, 30), (12, 5, 5), (18, 34, 30))
    before, after = clicks_at(*places), clicks_at(*places, insisted=(1,))
    first = session.segment(before)
    assert first.click_fates()[1].fate == "rejected_own_slice"
    reach = reached(session, before, after)
    second = session.segment(after)
    assert second.click_fates()[1].fate == "insisted" and second.slices[12].status == "supported"
    assert 12 in reach and set(second.recomputed) == reach and second.encoded == 0
    untouched = [t for t in range(24) if t not in reach]
    assert np.array_equal(first.mask[untouched], second.mask[untouched])
    assert np.array_equal(session.segment(before).mask, first.mask)


def test_insisting_on_a_click_that_was_kept_changes_no_mask(session: Session) -> None:
    places = ((6, 28, 30), (12, 31, 30))
    first = session.segment(clicks_at(*places))
    second = session.segment(clicks_at(*places, insisted=(0,)))
    assert second.click_fates()[0].fate == "insisted"
    assert np.array_equal(first.mask, second.mask)


def test_a_fresh_session_and_an_updated_one_give_the_same_mask(session: Session) -> None:
    places = ((6, 28, 30), (12, 5, 5), (18, 34, 30))
    session.segment(clicks_at(*places))
    updated = session.segment(clicks_at(*places, insisted=(1,)))
    fresh = tiny_predictor().open(SliceStack(tube_volume(), "axial")).segment(clicks_at(*places, insisted=(1,)))
    assert np.array_equal(updated.mask, fresh.mask)


@pytest.mark.parametrize("strategy", ["consensus", "raw"])
def test_of_more_clicks_on_a_slice_than_prompt_it_the_others_are_told_so(strategy: str) -> None:
    saliency = np.zeros((3, 64, 64), np.float32)
    saliency[1, 10:50, 10:50] = 0.9
    xy = np.random.default_rng(0).uniform(12, 48, (15, 2))
    maps = SaliencyMaps.from_array(saliency, 0.5)
    for insisted in (True, False):
        for count in (10, 15):
            clicks = SliceClicks(np.ones(count, int), xy[:count], np.full(count, insisted))
            found = distill_prompts(maps, clicks, PromptConfig(min_distance_px=0.0), strategy)
            told = {f.click for f in found.fates if f.is_own and "10 that lie far apart prompt it" in f.reason}
            assert told == set(range(count)) - set(found.slices[1].sources.tolist()) and len(told) == count - 10


@pytest.mark.parametrize("tau", [0.5, 0.9, 0.95, 0.96, 0.99])
def test_the_hill_of_a_click_that_is_insisted_on_is_as_wide_whatever_tau_is(tau: float) -> None:
    raised = raise_at(np.zeros((64, 64), np.float16), np.array([[30.0, 30.0]]), tau)
    rows, columns = np.mgrid[:64, :64]
    squared = (rows - 30) ** 2 + (columns - 30) ** 2
    assert (raised > tau)[squared <= 8].all() and not (raised > tau)[squared > 11].any()
    assert raised.max() == raised[30, 30] <= 1
