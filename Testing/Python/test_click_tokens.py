"""Tokens of clicks: what a slice is told of its own clicks, of its neighbors', and of the line between them."""

from __future__ import annotations

import numpy as np

from SPDSegmentLib.prompts.click_tokens import NEIGHBOR_TOKENS, OWN_TOKENS, TokenKind, click_tokens, tokens_of_prompts
from SPDSegmentLib.prompts.distillation import SlicePrompts
from SPDSegmentLib.prompts.fates import SliceStatus
from SPDSegmentLib.prompts.saliency_maps import SliceClicks


def clicks(*places: tuple[int, float, float]) -> SliceClicks:
    array = np.array(places, dtype=float).reshape(-1, 3)
    return SliceClicks(array[:, 0].astype(int), array[:, 1:])


def test_a_slice_sees_its_own_clicks_and_the_nearest_on_either_side() -> None:
    tokens = click_tokens([5], clicks((1, 0, 0), (3, 2, 2), (5, 4, 4), (5, 5, 5), (6, 6, 6)), 2.0, neighbors=1)
    seen = tokens.valid[0]
    assert tokens.click[0][seen].tolist() == [2, 3, 1, 4]
    assert tokens.kind[0][seen].tolist() == [TokenKind.OWN, TokenKind.OWN, TokenKind.BEFORE, TokenKind.AFTER]
    assert np.allclose(tokens.distance[0][seen][:, 0], [0, 0, -0.4, 0.2]), "distances are signed, in cm"


def test_a_slice_between_two_clicks_is_told_their_interpolation() -> None:
    tokens = click_tokens([4], clicks((2, 0, 10), (6, 8, 10)), 1.0)
    assert tokens.kind[0, 0] == TokenKind.INTERPOLATED and tokens.valid[0, 0]
    assert tokens.xy[0, 0].tolist() == [4.0, 10.0] and tokens.click[0, 0] == -1


def test_a_slice_beyond_the_last_click_is_told_where_that_was() -> None:
    tokens = click_tokens([9], clicks((2, 0, 10), (6, 8, 10), (6, 10, 12)), 1.0)
    assert tokens.kind[0, 0] == TokenKind.BEYOND
    assert tokens.xy[0, 0].tolist() == [9.0, 11.0] and tokens.distance[0, 0, 1] == 3 / 4


def test_many_clicks_on_one_slice_are_thinned_out_evenly() -> None:
    tokens = click_tokens([0], clicks(*[(0, i, 0) for i in range(21)]), 1.0)
    assert tokens.xy[0][tokens.valid[0]][:, 0].tolist() == [0, 5, 10, 15, 20]


def test_without_clicks_no_place_is_valid() -> None:
    tokens = click_tokens([0, 1], clicks(), 1.0)
    assert tokens.xy.shape == (2, OWN_TOKENS + 1 + 2 * NEIGHBOR_TOKENS, 2) and not tokens.valid.any()


def test_runs_that_are_looked_at_in_one_go_see_their_own_clicks_only() -> None:
    rng = np.random.default_rng(0)
    each = [clicks(*[(rng.integers(30), *rng.uniform(0, 99, 2)) for _ in range(n)]) for n in (1, 4, 9)]
    slices, run = np.tile(np.arange(-2, 33), 3), np.repeat(np.arange(3), 35)
    together = SliceClicks(np.concatenate([c.slice_index for c in each]), np.concatenate([c.xy for c in each]))
    at_once = click_tokens(slices, together, 3.0, runs=(run, np.repeat(np.arange(3), [1, 4, 9])))
    for row, (t, r) in enumerate(zip(slices, run, strict=True)):
        assert click_tokens([t], each[r], 3.0).key(0) == at_once.key(row)


def test_what_a_slice_is_told_changes_only_near_a_changed_click() -> None:
    places = [(t, 10.0 + t, 20.0) for t in range(0, 40, 4)]
    moved = [*places[:5], (20, 33.0, 28.0), *places[6:]]
    before, after = (click_tokens(np.arange(40), clicks(*p), 1.0, neighbors=2) for p in (places, moved))
    assert {t for t in range(40) if before.key(t) != after.key(t)} == set(range(12, 29))


def test_prompts_become_tokens_that_know_where_they_come_from() -> None:
    prompts = [
        SlicePrompts(3, np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), np.array([0, 1, -1]), SliceStatus.SUPPORTED)
    ]
    tokens = tokens_of_prompts(prompts, clicks((3, 1, 2), (5, 3, 4)), 10.0, 4)
    assert tokens.kind[0, :3].tolist() == [TokenKind.OWN, TokenKind.AFTER, TokenKind.INTERPOLATED]
    assert tokens.valid[0].tolist() == [True, True, True, False]
    assert tokens.distance[0, :3, 0].tolist() == [0.0, 2.0, 0.0]
