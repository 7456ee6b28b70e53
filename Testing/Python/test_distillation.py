"""Contextual Prompt Distillation: what it keeps, borrows, rejects and synthesizes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.prompts.distillation import (
    PromptConfig,
    context_enrichment,
    local_validation,
    thin_out,
)
from SPDSegmentLib.prompts.fates import Fate, SliceStatus
from SPDSegmentLib.prompts.saliency_maps import SaliencyMaps, SliceClicks
from SPDSegmentLib.prompts.strategies import distill_prompts, fill_unsupported, interpolate_clicks

SIZE = 32
PAPER = PromptConfig(max_points=0, min_distance_px=0.0, single_component=False, unsupported="abstain")
OURS = PromptConfig()


def square(column: int, row: int, half: int = 4) -> np.ndarray:
    """A map that is 0.9 in a square and 0.1 elsewhere."""
    saliency = np.full((SIZE, SIZE), 0.1, dtype=np.float32)
    saliency[row - half : row + half + 1, column - half : column + half + 1] = 0.9
    return saliency


def clicks_at(*places: tuple[int, float, float]) -> SliceClicks:
    array = np.array(places, dtype=float).reshape(-1, 3)
    return SliceClicks(array[:, 0].astype(int), array[:, 1:])


def maps_of(*slices: np.ndarray) -> SaliencyMaps:
    return SaliencyMaps.from_array(np.stack(slices), 0.5)


def test_local_validation_keeps_only_clicks_that_their_own_slice_supports() -> None:
    saliency = maps_of(square(10, 10), square(20, 20))
    clicks = clicks_at((0, 10, 10), (0, 20, 20), (1, 20, 20))
    assert local_validation(saliency, 0, clicks).tolist() == [0]
    assert local_validation(saliency, 1, clicks).tolist() == [2]


def test_context_enrichment_takes_a_neighbors_click_only_when_both_slices_support_it() -> None:
    saliency = maps_of(square(10, 10), square(13, 10), square(28, 28, 2))
    clicks = clicks_at((1, 12, 10), (1, 17, 10), (2, 28, 28))
    context, refused = context_enrichment(saliency, 0, clicks, n_neighbors=1)
    assert context.tolist() == [0]
    assert refused.tolist() == [1]


def test_the_window_of_neighbors_is_n_slices_on_each_side() -> None:
    saliency = maps_of(*[square(10, 10)] * 6)
    clicks = clicks_at((5, 10, 10))
    assert context_enrichment(saliency, 3, clicks, 2)[0].tolist() == [0]
    assert context_enrichment(saliency, 2, clicks, 2)[0].tolist() == []


def test_every_click_has_a_fate_and_the_reasons_differ() -> None:
    saliency = maps_of(square(10, 10), square(12, 10), square(25, 25))
    clicks = clicks_at((0, 10, 10), (0, 30, 2), (1, 12, 10))
    fates = {(f.click, f.slice_index): f.fate for f in distill_prompts(saliency, clicks, PAPER).fates}
    assert fates[0, 0] == Fate.KEPT
    assert fates[1, 0] == Fate.REJECTED_OWN_SLICE
    assert fates[2, 0] == Fate.BORROWED
    assert fates[0, 2] == Fate.REJECTED_NEIGHBOR


def test_a_salient_slice_without_support_gets_one_point_in_the_component_that_connects() -> None:
    both = np.maximum(square(8, 8), square(24, 24))
    saliency = maps_of(*[both] * 6)
    clicks = clicks_at((0, 8, 8))
    slices = distill_prompts(saliency, clicks, OURS).slices
    assert slices[5].status == SliceStatus.SYNTHESIZED
    assert np.allclose(slices[5].points, [[8, 8]])


def test_a_slice_without_any_saliency_abstains_and_stops_the_way_outward() -> None:
    nothing = np.zeros((SIZE, SIZE), np.float32)
    saliency = maps_of(*[square(8, 8)] * 4, nothing, square(8, 8))
    slices = distill_prompts(saliency, clicks_at((0, 8, 8)), OURS).slices
    assert [s.status for s in slices[3:]] == [SliceStatus.SYNTHESIZED, SliceStatus.ABSTAINED, SliceStatus.ABSTAINED]


def test_a_weakly_salient_slice_connects_only_above_the_lower_threshold() -> None:
    weak = np.where(square(10, 10) > 0.5, 0.3, 0.05).astype(np.float32)
    saliency, clicks = maps_of(square(10, 10), weak, square(10, 10)), clicks_at((0, 10, 10))
    config = dataclasses.replace(OURS, n_neighbors=0)
    strict = distill_prompts(saliency, clicks, config).slices
    assert [p.status for p in strict] == [SliceStatus.SUPPORTED, SliceStatus.ABSTAINED, SliceStatus.ABSTAINED]
    patient = distill_prompts(saliency, clicks, dataclasses.replace(config, follow_threshold=0.2)).slices
    assert [p.status for p in patient] == [SliceStatus.SUPPORTED, SliceStatus.SYNTHESIZED, SliceStatus.SYNTHESIZED]
    assert patient[1].points.tolist() == [[10.0, 10.0]]


def test_a_structure_that_moves_aside_connects_up_to_the_jump_and_its_neighbor_farther_off_does_not() -> None:
    saliency = maps_of(square(8, 8, 2), np.maximum(square(14, 8, 2), square(24, 24, 2)), square(14, 8, 2))
    config, clicks = dataclasses.replace(OURS, n_neighbors=0), clicks_at((0, 8, 8))
    for jump, followed in ((0.0, [[]] * 2), (1.9 / SIZE, [[]] * 2), (2.1 / SIZE, [[[14.0, 8.0]]] * 2)):
        slices = distill_prompts(saliency, clicks, dataclasses.replace(config, follow_jump=jump)).slices
        assert [p.points.tolist() for p in slices[1:]] == followed
    beside = maps_of(square(8, 8, 2), square(24, 24, 2))
    slices = distill_prompts(beside, clicks, dataclasses.replace(config, follow_jump=0.1)).slices
    assert slices[1].status == SliceStatus.ABSTAINED


def test_from_a_click_that_only_weak_saliency_supports_nothing_is_followed_in_a_corner_of_the_view() -> None:
    weak = np.where(square(20, 20, 2) > 0.5, np.float32(0.35), np.float32(0))
    saliency = maps_of(weak, square(2, 2, 2), square(2, 2, 2))
    config = dataclasses.replace(OURS, n_neighbors=0, evidence="adjoining")
    for jump in (0.0, 0.06):
        slices = distill_prompts(saliency, clicks_at((0, 20, 20)), dataclasses.replace(config, follow_jump=jump)).slices
        assert [p.status for p in slices] == [SliceStatus.SUPPORTED, *[SliceStatus.ABSTAINED] * 2]


def test_beyond_the_outermost_clicks_components_are_followed_as_far_as_is_set() -> None:
    saliency = maps_of(*[square(10, 10)] * 9)
    clicks = clicks_at((4, 10, 10), (6, 25, 25))
    config = dataclasses.replace(OURS, n_neighbors=0)
    for beyond, followed in ((-1, range(9)), (0, range(4, 7)), (2, range(2, 9))):
        slices = distill_prompts(saliency, clicks, dataclasses.replace(config, follow_beyond=beyond)).slices
        assert [p.slice_index for p in slices if len(p.points)] == list(followed)


def test_slices_past_the_outermost_click_borrow_clicks_only_where_that_is_allowed() -> None:
    saliency = maps_of(*[square(10, 10)] * 9)
    clicks = clicks_at((4, 10, 10), (6, 10, 10))
    for allowed, prompted in ((True, range(2, 9)), (False, range(4, 7))):
        config = dataclasses.replace(OURS, follow_beyond=0, context_beyond=allowed)
        slices = distill_prompts(saliency, clicks, config).slices
        assert [p.slice_index for p in slices if len(p.points)] == list(prompted)


def test_an_owned_slice_leads_to_its_neighbors_and_as_far_past_it_as_past_a_click() -> None:
    config = dataclasses.replace(OURS, n_neighbors=0, follow_beyond=2, bridge_gaps=False)
    clicks = clicks_at((4, 10, 10), (6, 10, 10))
    for owned, followed in ((12, range(2, 15)), (0, range(9)), (5, range(2, 9))):
        found = distill_prompts(maps_of(*[square(10, 10)] * 18), clicks, config, owned=frozenset({owned})).slices
        assert [p.slice_index for p in found if len(p.points)] == list(followed)
    nothing = distill_prompts(maps_of(*[square(10, 10)] * 12, *[np.zeros((SIZE, SIZE))] * 6), clicks, config,
                              owned=frozenset({15})).slices  # fmt: skip
    assert [p.slice_index for p in nothing if len(p.points)] == list(range(2, 9)), "an empty owned slice leads nowhere"


@pytest.mark.parametrize(
    "clicks", [((4, 10, 10), (6, 10, 10)), ((4, 25, 4), (6, 25, 4))], ids=["supported", "rejected"]
)
def test_what_connects_with_a_far_owned_slice_through_nothing_is_not_followed(
    clicks: tuple[tuple[int, float, float], ...],
) -> None:
    # given another object beside the clicks, in the place that the owned slice has far from them
    maps = [*[square(10, 10)] * 7, np.zeros((SIZE, SIZE)), square(24, 24), *[np.zeros((SIZE, SIZE))] * 6]
    config = dataclasses.replace(OURS, n_neighbors=0, follow_beyond=2, bridge_gaps=False)
    found = distill_prompts(maps_of(*maps, square(24, 24)), clicks_at(*clicks), config, owned=frozenset({15})).slices
    assert found[15].status == SliceStatus.SUPPORTED
    assert not any(len(p.points) for p in found[7:15])


def test_between_two_supported_slices_a_gap_is_bridged_along_the_centerline() -> None:
    far = np.maximum(square(24, 24, 2), square(13, 8, 2))
    saliency = maps_of(square(4, 8, 2), far, square(22, 8, 2))
    config = dataclasses.replace(OURS, n_neighbors=0)
    slices = distill_prompts(saliency, clicks_at((0, 4, 8), (2, 22, 8)), config).slices
    assert slices[1].status == SliceStatus.SYNTHESIZED
    assert np.allclose(slices[1].points, [[13, 8]])


def test_with_the_policy_off_unsupported_slices_stay_empty() -> None:
    saliency = maps_of(*[square(8, 8)] * 6)
    slices = distill_prompts(saliency, clicks_at((0, 8, 8)), PAPER).slices
    assert [s.status for s in slices] == [SliceStatus.SUPPORTED] * 3 + [SliceStatus.ABSTAINED] * 3


def test_a_speck_beside_one_click_loses_against_the_object_that_runs_along_all() -> None:
    slices = [square(10, 10, 3)] * 8
    slices[5] = np.maximum(slices[5], square(17, 26, 1))
    clicks = clicks_at((1, 16, 10), (3, 10, 16), (4, 15, 13), (5, 17, 24), (7, 16, 8))
    result = distill_prompts(maps_of(*slices), clicks, OURS)
    assert [s.status for s in result.slices] == [SliceStatus.SYNTHESIZED] * 8
    assert all(np.allclose(s.points, [[10, 10]]) for s in result.slices)


def test_how_far_apart_slices_are_decides_which_object_is_nearest() -> None:
    maps = [square(8, 16, 2), square(8, 16, 2), *[np.zeros_like(square(8, 16))] * 3, square(14, 16, 2)]
    clicks = clicks_at((5, 8, 16), (5, 8, 17))
    for slice_px, row in ((0.5, 8), (4.0, 14)):
        near = SaliencyMaps.from_array(np.stack(maps), 0.5, slice_px)
        points = [p.points for p in distill_prompts(near, clicks, OURS).slices if len(p.points)]
        assert points and all(np.allclose(p, [[row, 16]]) for p in points), (slice_px, points)


def test_objects_connect_where_components_of_neighboring_slices_overlap() -> None:
    both = np.maximum(square(6, 6, 2), square(24, 24, 2))
    maps = maps_of(square(6, 6, 2), both, square(24, 24, 2), square(10, 24, 1))
    found = sorted((len(o), sorted(set(o[:, 0].tolist()))) for o in maps.objects(range(4)))
    assert found == [(9, [3]), (50, [0, 1]), (50, [1, 2])]
    assert [len(o) for o in maps.objects(range(2, 4))] == [25, 9]
    assert maps_of(np.zeros_like(both)).objects(range(1)) == []


def test_where_no_click_is_supported_the_salient_region_nearest_to_one_is_the_start() -> None:
    both = np.maximum(square(8, 8), square(24, 24, 3))
    result = distill_prompts(maps_of(*[both] * 4), clicks_at((1, 14, 8), (2, 2, 30)), OURS)
    assert [s.status for s in result.slices] == [SliceStatus.SYNTHESIZED] * 4
    assert all(np.allclose(s.points, [[8, 8]]) for s in result.slices)
    assert any("No click is supported anywhere" in f.reason for f in result.fates)
    far = maps_of(*[square(4, 4, 2)] * 4)
    assert {s.status for s in distill_prompts(far, clicks_at((1, 30, 30)), OURS).slices} == {SliceStatus.ABSTAINED}


@pytest.mark.parametrize(("beyond", "looked_at"), [(-1, range(12, 29)), (2, range(18, 23)), (0, range(20, 21))])
def test_where_no_click_is_supported_slices_far_from_all_clicks_are_not_looked_at(
    beyond: int, looked_at: range
) -> None:
    loaded: set[int] = set()

    def load(t: int) -> np.ndarray:
        loaded.add(t)
        return np.zeros_like(square(8, 8))

    config = dataclasses.replace(OURS, n_neighbors=0, follow_beyond=beyond)
    fill_unsupported(SaliencyMaps(200, load, 0.5), {}, clicks_at((20, 30, 30)), config)
    assert loaded == set(looked_at)


def test_a_stray_click_in_another_component_is_outvoted() -> None:
    both = np.maximum(square(8, 8), square(24, 24))
    result = distill_prompts(maps_of(both), clicks_at((0, 8, 8), (0, 9, 9), (0, 24, 24)), OURS)
    assert {int(s) for s in result.slices[0].sources} <= {0, 1}
    assert [f.fate for f in result.fates if f.click == 2] == [Fate.REJECTED_OWN_SLICE]


def test_raw_prompts_take_every_click_and_interpolated_ones_fill_the_gaps_between_them() -> None:
    saliency = maps_of(*[np.zeros((SIZE, SIZE), np.float32)] * 5)
    clicks = clicks_at((0, 0, 0), (3, 9, 6))
    raw = distill_prompts(saliency, clicks, OURS, "raw").slices
    assert [len(s.points) for s in raw] == [1, 0, 0, 1, 0]
    filled = distill_prompts(saliency, clicks, OURS, "interpolated").slices
    assert [len(s.points) for s in filled] == [1, 1, 1, 1, 0]
    assert np.allclose(filled[1].points, [[3, 2]])
    assert interpolate_clicks(clicks_at()) == {}


def test_thinning_starts_at_the_most_salient_point_and_keeps_a_distance() -> None:
    points = np.array([[0.0, 0.0], [1.0, 0.0], [10.0, 0.0], [5.0, 0.0]])
    kept = thin_out(points, np.array([0.6, 0.9, 0.7, 0.8]), min_distance_px=2.0, max_points=0)
    assert kept.tolist() == [1, 2, 3]
    assert thin_out(points, np.array([0.6, 0.9, 0.7, 0.8]), 2.0, max_points=2).tolist() == [1, 2]


def test_an_unknown_strategy_or_setting_is_refused_with_a_sentence() -> None:
    with pytest.raises(BadInput, match="Unknown prompt strategy 'magic'"):
        distill_prompts(maps_of(square(8, 8)), clicks_at((0, 8, 8)), OURS, "magic")
    with pytest.raises(BadInput, match="Unknown prompt setting 'treshold'"):
        PromptConfig.from_dict({"treshold": 0.5})


scenes = st.integers(0, 2**32 - 1)


def random_scene(seed: int, n_slices: int = 14, n_clicks: int = 12) -> tuple[np.ndarray, SliceClicks]:
    """Blobs that wander from slice to slice, some slices without any, and clicks of which many miss."""
    rng = np.random.default_rng(seed)
    saliency = np.zeros((n_slices, SIZE, SIZE), np.float32)
    place = rng.uniform(8, 24, 2)
    for t in range(n_slices):
        place = np.clip(place + rng.normal(0, 2, 2), 6, 26)
        if rng.random() < 0.8:
            saliency[t] = square(int(place[0]), int(place[1]), int(rng.integers(2, 5)))
        if rng.random() < 0.4:
            saliency[t] = np.maximum(saliency[t], square(int(rng.integers(5, 27)), int(rng.integers(5, 27)), 3))
    return saliency, SliceClicks(rng.integers(0, n_slices, n_clicks), rng.uniform(2, 30, (n_clicks, 2)))


@settings(max_examples=40, deadline=None)
@given(scenes)
def test_the_order_of_clicks_does_not_matter(seed: int) -> None:
    saliency, clicks = random_scene(seed)
    order = np.random.default_rng(seed + 1).permutation(len(clicks))
    shuffled = SliceClicks(clicks.slice_index[order], clicks.xy[order])
    first = distill_prompts(SaliencyMaps.from_array(saliency, 0.5), clicks, OURS).slices
    second = distill_prompts(SaliencyMaps.from_array(saliency, 0.5), shuffled, OURS).slices
    assert all(a.same_as(b) for a, b in zip(first, second, strict=True))


@settings(max_examples=40, deadline=None)
@given(scenes)
def test_the_consensus_is_a_subset_of_the_clicks_in_the_window(seed: int) -> None:
    saliency, clicks = random_scene(seed)
    for s in distill_prompts(SaliencyMaps.from_array(saliency, 0.5), clicks, PAPER).slices:
        for point, source in zip(s.points, s.sources, strict=True):
            assert np.array_equal(point, clicks.xy[source])
            assert abs(int(clicks.slice_index[source]) - s.slice_index) <= PAPER.n_neighbors
            column, row = np.rint(point).astype(int)
            assert saliency[s.slice_index, row, column] > 0.5
            assert saliency[clicks.slice_index[source], row, column] > 0.5


@settings(max_examples=60, deadline=None)
@given(
    scenes,
    st.sampled_from(
        (
            OURS,
            dataclasses.replace(OURS, follow_threshold=0.2, follow_beyond=1),
            dataclasses.replace(OURS, follow_beyond=0, context_beyond=False),
            dataclasses.replace(OURS, follow_jump=0.1),
        )
    ),
)
def test_a_moved_click_changes_nothing_beyond_its_reach(seed: int, config: PromptConfig) -> None:
    """Reach: n slices around both places, and unsupported slices up to the next supported one."""
    saliency, clicks = random_scene(seed)
    rng = np.random.default_rng(seed + 2)
    moved = int(rng.integers(len(clicks)))
    index, xy = clicks.slice_index.copy(), clicks.xy.copy()
    index[moved] = np.clip(index[moved] + rng.integers(-1, 2), 0, len(saliency) - 1)
    xy[moved] += rng.normal(0, 5, 2)
    maps = SaliencyMaps.from_array(saliency, 0.5)
    before = distill_prompts(maps, clicks, config).slices
    after = distill_prompts(maps, SliceClicks(index, xy), config).slices
    n = config.n_neighbors
    near = {t for place in (clicks.slice_index[moved], index[moved]) for t in range(place - n, place + n + 1)}
    steady = [t for t in range(len(saliency)) if t not in near and before[t].status == SliceStatus.SUPPORTED]
    low = max([t for t in steady if t < min(near)], default=-1)
    high = min([t for t in steady if t > max(near)], default=len(saliency))
    for a, b in zip(before, after, strict=True):
        if not low < a.slice_index < high:
            assert a.same_as(b)
