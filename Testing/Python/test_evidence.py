"""Soft evidence: the robust curve through the clicks, what it weighs, and that the reach stays exact."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tiny_predictor import reached, tiny_predictor, tube_volume

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.prompts.distillation import PromptConfig
from SPDSegmentLib.prompts.evidence import curve_distances_mm, score
from SPDSegmentLib.prompts.saliency_maps import SaliencyMaps, SliceClicks
from SPDSegmentLib.prompts.strategies import distill_prompts


def test_the_curve_is_not_drawn_to_clicks_beside_it() -> None:
    position = np.arange(0, 100, 5.0)
    xy = np.stack((30 + 0.2 * position, np.full(20, 40.0)), axis=1)
    xy[8:13, 1] += 25
    distance = curve_distances_mm(position, xy)
    assert distance[8:13].min() > 15 and np.delete(distance, np.s_[8:13]).max() < 5


def test_clicks_on_one_slice_have_a_curve_too() -> None:
    assert np.allclose(curve_distances_mm(np.full(3, 7.0), np.full((3, 2), 5.0)), 0, atol=1e-3)


def test_each_kind_of_evidence_counts() -> None:
    base = score(*(np.array([v]) for v in (0.4, 0.4, 1.0, 1.0)))
    for better in ((0.9, 0.4, 1.0, 1.0), (0.4, 0.9, 1.0, 1.0), (0.4, 0.4, 0.0, 1.0), (0.4, 0.4, 1.0, 3.0)):
        assert score(*(np.array([v]) for v in better)) > base


def test_repeated_clicks_on_a_curve_are_believed_where_the_saliency_is_silent_and_a_stray_one_is_not() -> None:
    maps = SaliencyMaps.from_array(np.zeros((12, 64, 64), np.float32), 0.5)
    xy = np.full((9, 2), 30.0)
    xy[4] = 60, 5
    clicks = SliceClicks(np.arange(1, 10), xy)
    fates = distill_prompts(maps, clicks, PromptConfig(evidence="soft")).fates
    own = {f.click: f.fate for f in fates if f.slice_index == f.from_slice}
    assert own.pop(4) == "rejected_own_slice" and set(own.values()) == {"kept"}
    gate = distill_prompts(maps, clicks, PromptConfig()).fates
    assert {f.fate for f in gate} == {"rejected_own_slice"}


def test_what_the_adjoining_slices_show_supports_a_click_that_its_own_hardly_shows() -> None:
    array = np.zeros((12, 64, 64), np.float32)
    array[:, 20:40, 20:40] = 0.9
    array[5, 20:40, 20:40] = 0.1
    array[8, 20:40, 40:44] = 0.35
    maps = SaliencyMaps.from_array(array, 0.5)
    clicks = SliceClicks(np.array([5, 5, 8, 8]), np.array([[30.0, 30], [55, 55], [42, 30], [50, 30]]))
    verdicts = {}
    for evidence in ("gate", "adjoining"):
        fates = distill_prompts(maps, clicks, PromptConfig(evidence=evidence)).fates
        verdicts[evidence] = [str(f.fate) for f in sorted(fates, key=lambda f: f.click) if f.is_own]
    assert set(verdicts["gate"]) == {"rejected_own_slice"}
    assert verdicts["adjoining"] == ["kept", "rejected_own_slice", "kept", "rejected_own_slice"]


def test_a_far_click_changes_nothing_of_the_verdicts_by_adjoining_slices() -> None:
    rng = np.random.default_rng(5)
    maps = SaliencyMaps.from_array(rng.random((40, 32, 32), dtype=np.float32), 0.5)
    t, xy = np.arange(0, 40, 2), rng.uniform(0, 31, (20, 2))
    moved = xy.copy()
    moved[-1] = 31 - moved[-1]
    config = PromptConfig(evidence="adjoining", unsupported="abstain")
    before, after = (distill_prompts(maps, SliceClicks(t, places), config) for places in (xy, moved))
    near = config.n_neighbors + 1
    for a, b in zip(before.slices[: 38 - near], after.slices[: 38 - near], strict=True):
        assert a.same_as(b)
    own = [{f.click: f.fate for f in of.fates if f.is_own and f.click < 19} for of in (before, after)]
    assert own[0] == own[1]


def tube(n: int = 12) -> np.ndarray:
    """S of a tube of side 20 through all slices."""
    array = np.zeros((n, 64, 64), np.float32)
    array[:, 20:40, 20:40] = 0.9
    return array


def test_a_click_that_hardly_misses_the_salient_part_leads_along_it() -> None:
    array = tube()
    array[6, 20:40, 40] = 0.4  # beside it, above what adjoining evidence asks for
    clicks = SliceClicks(np.array([6]), np.array([[40.0, 30.0]]))
    found = distill_prompts(SaliencyMaps.from_array(array, 0.5), clicks, PromptConfig(evidence="adjoining"))
    assert [str(s.status) for s in found.slices] == ["synthesized"] * 6 + ["supported"] + ["synthesized"] * 5


def test_a_slice_whose_clicks_are_believed_against_its_saliency_does_not_end_the_way() -> None:
    array = tube()
    array[[7, 9], 20:40, 20:60] = 0.9  # both slices beside slice 8 show something at its click, it itself does not
    clicks = SliceClicks(np.array([2, 8]), np.array([[30.0, 30.0], [50.0, 30.0]]))
    config = PromptConfig(evidence="adjoining", n_neighbors=0)
    found = distill_prompts(SaliencyMaps.from_array(array, 0.5), clicks, config)
    states = [str(s.status) for s in found.slices]
    assert states[2] == states[8] == "supported" and set(states) == {"supported", "synthesized"}
    assert {str(f.fate) for f in found.fates if f.is_own} >= {"kept"}


@pytest.mark.parametrize("evidence", ["adjoining", "soft"])
def test_the_reach_of_a_moved_click_stays_exact_under_other_evidence(evidence: str) -> None:
    predictor = tiny_predictor()
    soft = predictor.with_prompts(dataclasses.replace(predictor.prompts, evidence=evidence))
    session = soft.open(SliceStack(tube_volume(), "axial"))
    t = np.array([4, 8, 12, 16, 20])
    xy = np.stack((25 + t // 2, np.full(5, 30)), axis=1).astype(float)
    moved = xy.copy()
    moved[2] += 3
    before, after = (Clicks(t, places, np.zeros(5, bool), tuple("abcde")) for places in (xy, moved))
    first, reach = session.segment(before), reached(session, before, after)
    second = session.segment(after)
    untouched = [t for t in range(24) if t not in reach]
    assert set(second.recomputed) == reach and np.array_equal(first.mask[untouched], second.mask[untouched])
    assert np.array_equal(session.segment(before).mask, first.mask)


def test_an_unknown_kind_of_evidence_is_refused() -> None:
    with pytest.raises(BadInput, match="gate, adjoining, soft"):
        PromptConfig(evidence="hope")
