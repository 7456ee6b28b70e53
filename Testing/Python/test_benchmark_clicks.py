"""Clicks and boxes of the benchmark: oracle, clean, shuffled, random."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_benchmark import options, write_benchmark

from spdbench.command import plan_of
from spdbench.comparators.bundle_row import clicked_component
from spdbench.comparators.frozen_sam import box_around, random_points
from spdbench.comparators.protocol import NotRun
from spdbench.datasets import clicks_for, oracle_clicks
from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.evaluation.evaluator import shuffled_clicks, verdict_shares
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.window import place_window
from SPDSegmentLib.prompts.evidence import raise_at
from SPDSegmentLib.prompts.saliency_maps import SaliencyMaps


def test_oracle_clicks_lie_inside_and_reach_every_slice() -> None:
    mask = np.zeros((5, 20, 20), dtype=bool)
    mask[1:4, 5:12, 5:12] = True
    xy = np.array([[6.0, 6.0], [18.0, 2.0], [8.0, 8.0]])
    clicks = Clicks(np.array([1, 2, 4]), xy, np.zeros(3, dtype=bool), ("1", "2", "3"))
    oracle = oracle_clicks(clicks, mask)
    assert sorted(oracle.slice_index) == [1, 2, 3]
    column, row = oracle.xy.astype(int).T
    assert mask[oracle.slice_index, row, column].all()
    assert [8.0, 8.0] in oracle.xy.tolist()


def test_clean_and_shuffled_clicks_differ_from_the_noisy_ones_and_repeat(tmp_path: Path) -> None:
    dataset = plan_of(options(write_benchmark(tmp_path))).cells[0].dataset
    target = dataset.targets("b")[0]
    made = {kind: clicks_for(kind, dataset, target, "severe", 5)[0] for kind in ("noisy", "clean", "shuffled")}
    again = {kind: clicks_for(kind, dataset, target, "severe", 5)[0] for kind in made}
    for kind, clicks in made.items():
        assert np.array_equal(clicks.xy, again[kind].xy)
    assert not np.array_equal(made["noisy"].xy, made["clean"].xy)
    other = dataset.targets("c")[0].clicks("severe", 5)[0]
    assert np.array_equal(made["shuffled"].slice_index, other.slice_index)


def test_shuffled_clicks_are_on_the_like_structure_of_another_patient(tmp_path: Path) -> None:
    dataset = plan_of(options(write_benchmark(tmp_path))).cells[0].dataset
    (b,), (c,) = dataset.targets("b"), dataset.targets("c")
    left, right = (replace(b, name=name) for name in ("left", "right"))
    theirs = [replace(c, name=name) for name in ("left", "right")]
    for position, expected in ((0, theirs[0]), (1, theirs[1])):
        clicks = shuffled_clicks([left, right, *theirs], position, "severe", 5)
        assert np.array_equal(clicks.slice_index, expected.clicks("severe", 5)[0].slice_index)
    alone = shuffled_clicks([left, theirs[1]], 0, "severe", 5)
    assert np.array_equal(alone.slice_index, theirs[1].clicks("severe", 5)[0].slice_index)


def test_a_structure_that_no_other_patient_has_is_given_no_clicks(tmp_path: Path) -> None:
    dataset = plan_of(options(write_benchmark(tmp_path))).cells[0].dataset
    target = dataset.targets("b")[0]
    with pytest.raises(NotRun, match="no other patient has a structure left"):
        clicks_for("shuffled", dataset, replace(target, name="left"), "severe", 5)
    with pytest.raises(BadInput, match="all cases are of the patient b"):
        shuffled_clicks([target, replace(target, name="left")], 0, "severe", 5)


def test_a_click_on_the_border_of_two_pixels_is_in_the_same_one_everywhere() -> None:
    mask = np.zeros((1, 8, 8), dtype=bool)
    mask[0, 3, 3] = True
    clicks = Clicks(np.array([0]), np.array([[2.5, 2.5]]), np.zeros(1, dtype=bool), ("1",))
    assert oracle_clicks(clicks, mask).xy.tolist() == clicks.xy.tolist()
    assert clicked_component(mask, clicks).sum() == 1
    assert verdict_shares(mask, clicks, {}) == (0.0, 1.0, None)
    for copies in (1, 40):  # few points are looked up in another way than many
        maps = SaliencyMaps.from_array(np.where(mask, 0.9, 0.1).astype(np.float32), 0.5)
        assert maps.at(0, np.repeat(clicks.xy, copies, axis=0)).min() > 0.8
    saliency = np.where(mask[0], 0.9, 0.1).astype(np.float32)
    assert raise_at(saliency, clicks.xy, 0.5) is saliency


def test_random_points_are_as_many_and_come_from_nearby() -> None:
    xy = np.arange(12.0).reshape(6, 2)
    clicks = Clicks(np.array([0, 0, 1, 2, 5, 6]), xy, np.zeros(6, dtype=bool), tuple("abcdef"))
    drawn = random_points(clicks, {1: 2, 6: 4, 9: 1}, 1)
    assert {t: len(points) for t, points in drawn.items()} == {1: 2, 6: 2}
    assert all(point in xy[:4].tolist() for point in drawn[1].tolist())
    assert np.array_equal(drawn[1], random_points(clicks, {1: 2, 6: 4, 9: 1}, 1)[1])


def test_the_box_holds_the_points_and_the_margin() -> None:
    window = place_window((100, 100), (1.0, 1.0), 50, 0.0)
    box = window.to_slice(
        box_around(np.array([[40.0, 50.0], [60.0, 52.0]]), np.array([5.0, 5.0]), window).reshape(2, 2)
    )
    assert np.allclose(box, [[35.0, 45.0], [65.0, 57.0]])
