"""Calls one after the other: a viewer that only draws what it is told always shows the last call's mask."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_predictor import SIZE, tiny_predictor, tube_volume

from SPDSegmentLib.errors import Cancelled
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.inference.results import SegmentationResult, SliceResult
from SPDSegmentLib.inference.session import Session

STRATEGIES = ("consensus", "local", "raw", "interpolated", "sampled", "saliency-only")
PREDICTOR = tiny_predictor(fov_mm=44)
STACK = SliceStack(tube_volume(), "axial")


class Viewer:
    """Draws the slices that arrive, and nothing else."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.mask = np.zeros(STACK.shape, dtype=bool)

    def draw(self, result: SliceResult) -> None:
        self.mask[result.slice_index] = result.mask

    def segment(
        self,
        clicks: Clicks,
        strategy: str = "consensus",
        locked: dict[int, np.ndarray] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> SegmentationResult:
        alone = strategy == "saliency-only"
        return self.session.segment(
            clicks,
            prompts="consensus" if alone else strategy,
            saliency_only=alone,
            on_slice=self.draw,
            locked=locked,
            cancelled=cancelled,
        )


def random_clicks(rng: np.random.Generator) -> Clicks:
    """Clicks on the tube, beside it, or all on the other body, where the field of view moves to."""
    n = int(rng.integers(1, 8))
    t = rng.integers(0, 24, n)
    x, y = 25 + t // 2 + rng.normal(0, 5, n), 30 + rng.normal(0, 5, n)
    if rng.random() < 0.3:
        x, y = rng.uniform(50, 62, n), rng.uniform(50, 62, n)
    xy = np.stack((x, y), axis=1).clip(0, SIZE - 1)
    return Clicks(t, xy, np.zeros(n, dtype=bool), tuple(map(str, range(n))))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_what_was_sent_and_what_is_listed_covers_every_change(seed: int) -> None:
    rng = np.random.default_rng(seed)
    viewer = Viewer(PREDICTOR.open(STACK))
    before = viewer.mask.copy()
    clicks = random_clicks(rng)
    for _ in range(5):
        clicks = random_clicks(rng) if rng.random() < 0.6 else clicks
        strategy = STRATEGIES[int(rng.integers(len(STRATEGIES)))]
        locked = {int(rng.integers(24)): rng.random((SIZE, SIZE)) > 0.5} if rng.random() < 0.3 else None
        if rng.random() < 0.2:
            polls = iter([False, False])
            with pytest.raises(Cancelled):
                viewer.segment(random_clicks(rng), "sampled", cancelled=functools.partial(next, polls, True))
                raise Cancelled
            before = viewer.mask.copy()
        result = viewer.segment(clicks, strategy, locked)
        changed = np.flatnonzero((result.mask != before).any(axis=(1, 2)))
        assert set(changed) <= set(result.recomputed)
        assert np.array_equal(viewer.mask, result.mask)
        before = result.mask.copy()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_session_with_a_past_gives_the_masks_of_a_new_one(seed: int) -> None:
    """Whatever was asked before in the same field of view."""
    rng = np.random.default_rng(seed)
    predictor = tiny_predictor()
    used = predictor.open(STACK)
    for _ in range(3):
        used.segment(random_clicks(rng), prompts=STRATEGIES[int(rng.integers(5))])
    clicks = random_clicks(rng)
    past, new = used.segment(clicks), predictor.open(STACK).segment(clicks)
    assert [s.status for s in past.slices] == [s.status for s in new.slices]
    assert (past.mask != new.mask).sum() <= 2, "batches of another make-up may round another way"


def test_after_the_saliency_alone_the_clicks_count_again() -> None:
    viewer = Viewer(PREDICTOR.open(STACK))
    clicks = random_clicks(np.random.default_rng(1))
    first = viewer.segment(clicks)
    viewer.segment(clicks, "saliency-only")
    again = viewer.segment(clicks)
    assert np.array_equal(again.mask, first.mask)
    assert np.array_equal(viewer.mask, first.mask)


def test_a_session_notices_that_another_one_has_moved_the_field_of_view_that_they_share() -> None:
    predictor = tiny_predictor(fov_mm=40)
    here = Clicks(np.array([8, 12]), np.array([[29.0, 30.0], [31.0, 30.0]]), np.zeros(2, bool), ("a", "b"))
    there = Clicks(np.array([8]), np.array([[60.0, 56.0]]), np.zeros(1, bool), ("c",))
    both = Clicks(np.array([8, 12]), np.array([[29.0, 30.0], [55.0, 54.0]]), np.zeros(2, bool), ("a", "b"))
    first = predictor.open(STACK)
    first.segment(here)
    second = predictor.open(STACK, first._features)
    second.segment(there)
    assert first.segment(both, prompts="raw").mask[12].any()
    fresh = predictor.open(STACK)
    fresh.segment(there)
    assert np.array_equal(first.segment(both).mask, fresh.segment(both).mask)
