"""The simulator of noisy clicks: what each kind of noise does, and that a seed fixes it."""

from __future__ import annotations

import numpy as np
import pytest

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.prompts.click_path import click_path
from SPDSegmentLib.prompts.noise import (
    SEVERITIES,
    NoiseConfig,
    SimulatedClicks,
    noise_config,
    simulate_clicks,
    simulate_clicks_from_path,
)

PIXEL_MM = (1.0, 2.0)
SLICE_MM = 5.0
FIRST, LAST = 10, 39


def disk(height: int, width: int, center: tuple[float, float], radius_mm: float) -> np.ndarray:
    rows, columns = np.ogrid[:height, :width]
    return np.asarray(np.hypot((rows - center[0]) * PIXEL_MM[0], (columns - center[1]) * PIXEL_MM[1]) <= radius_mm)


@pytest.fixture(scope="module")
def tube() -> np.ndarray:
    """A straight tube of 8 mm radius on slices 10 to 39 of 50, with anisotropic pixels."""
    mask = np.zeros((50, 128, 64), dtype=bool)
    mask[FIRST : LAST + 1] = disk(128, 64, (60, 30), 8.0)
    return mask


@pytest.fixture(scope="module")
def fork() -> np.ndarray:
    """One trunk that parts into two arms."""
    mask = np.zeros((40, 128, 64), dtype=bool)
    for t in range(5, 35):
        spread = max(0, t - 18) * 2
        mask[t] = disk(128, 64, (64 - spread, 32), 6.0) | disk(128, 64, (64 + spread, 32), 6.0)
    return mask


def simulate(mask: np.ndarray, severity: str | float, seed: int = 0) -> SimulatedClicks:
    return simulate_clicks(mask, PIXEL_MM, SLICE_MM, severity, seed)


def only(monkeypatch: pytest.MonkeyPatch, **noise: float) -> str:
    """A severity with a single kind of noise."""
    none = {"jitter": 0.0, "drift_share": 0.0, "over_run": 0.0, "dropout": 0.0, "off_slice": 0.0}
    monkeypatch.setitem(SEVERITIES, "only", NoiseConfig(**(none | noise)))
    return "only"


def outside_share(mask: np.ndarray, severity: str | float, seeds: int = 40) -> float:
    path = click_path(mask, PIXEL_MM, SLICE_MM)
    draws = [simulate_clicks_from_path(path, mask, severity, seed).inside_target for seed in range(seeds)]
    return float(1 - np.concatenate(draws).mean())


def test_a_seed_fixes_the_clicks_and_another_seed_gives_others(tube: np.ndarray) -> None:
    first, again, other = simulate(tube, "clinic", 7), simulate(tube, "clinic", 7), simulate(tube, "clinic", 8)
    np.testing.assert_array_equal(first.slice_index, again.slice_index)
    np.testing.assert_array_equal(first.xy, again.xy)
    assert first.xy.shape != other.xy.shape or not np.array_equal(first.xy, other.xy)


def test_clean_clicks_lie_at_the_center_of_every_slice(tube: np.ndarray) -> None:
    clicks = simulate(tube, "clean")
    np.testing.assert_array_equal(clicks.slice_index, np.arange(FIRST, LAST + 1))
    np.testing.assert_allclose(clicks.xy, [(30.0, 60.0)] * 30, atol=1e-9)
    assert clicks.inside_target.all()


def test_severity_raises_the_share_outside_to_about_half_at_clinic(tube: np.ndarray) -> None:
    shares = [outside_share(tube, severity) for severity in (0, 0.5, 1, 1.5, 2, 2.5, 3)]
    assert shares[0] == 0
    assert all(low < high for low, high in zip(shares, shares[1:], strict=False))
    assert 0.4 < shares[4] < 0.6


def test_inside_target_tells_what_the_mask_holds_at_the_click(tube: np.ndarray) -> None:
    clicks = simulate(tube, "severe", 3)
    columns, rows = np.floor(clicks.xy + 0.5).astype(int).T
    np.testing.assert_array_equal(clicks.inside_target, tube[clicks.slice_index, rows, columns])
    assert clicks.inside_target.any() and not clicks.inside_target.all()


def test_jitter_scales_with_the_radius_in_millimeters(tube: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    severity = only(monkeypatch, jitter=0.25)
    offsets = np.concatenate([simulate(tube, severity, s).xy for s in range(40)]) - (30.0, 60.0)
    np.testing.assert_allclose(offsets.std(axis=0) * (2.0, 1.0), 0.25 * 8.0, rtol=0.1)


def test_drift_moves_one_run_of_the_path_out_of_the_target(tube: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    severity = only(monkeypatch, drift_share=0.3)
    for seed in range(10):
        clicks = simulate(tube, severity, seed)
        moved = np.flatnonzero(~clicks.inside_target)
        assert len(moved) == 9 and np.ptp(moved) == 8
        offset = (clicks.xy[moved] - (30.0, 60.0)) * (2.0, 1.0)
        np.testing.assert_allclose(offset, offset[:1].repeat(9, axis=0), atol=1e-6)
        assert 7.5 <= np.linalg.norm(offset[0]) <= 24.6


def test_over_run_passes_both_ends(tube: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    clicks = simulate(tube, only(monkeypatch, over_run=0.1))
    np.testing.assert_array_equal(np.sort(clicks.slice_index), np.arange(FIRST - 3, LAST + 4))
    np.testing.assert_array_equal(clicks.inside_target, np.asarray(tube.any(axis=(1, 2)))[clicks.slice_index])


def test_over_run_keeps_the_direction_of_an_oblique_end(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros((30, 128, 64), dtype=bool)
    for t in range(10, 20):
        mask[t] = disk(128, 64, (4 * t, 32), 6.0)
    clicks = simulate(mask, only(monkeypatch, over_run=0.1), 1)
    past = clicks.slice_index > 19
    assert past.any()
    assert (clicks.xy[past, 1] > 4 * 19).all()


def test_over_run_stops_at_the_border_of_the_volume(tube: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    cropped = tube[FIRST - 1 : LAST + 1]
    clicks = simulate(cropped, only(monkeypatch, over_run=0.3))
    assert clicks.slice_index.min() == 0
    assert clicks.slice_index.max() == len(cropped) - 1
    assert (clicks.slice_index == 0).sum() == 1


def test_dropout_empties_whole_runs_of_slices(tube: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    severity = only(monkeypatch, dropout=0.3)
    for seed in range(20):
        clicked = np.isin(np.arange(FIRST, LAST + 1), simulate(tube, severity, seed).slice_index)
        assert (~clicked).sum() == 9
        runs = (np.diff(np.concatenate([[1], clicked.astype(int), [1]])) == -1).sum()
        assert 1 <= runs <= 3


def test_a_share_of_the_points_lands_one_slice_off(tube: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    clicks = simulate(tube, only(monkeypatch, off_slice=0.2))
    off = clicks.slice_index - np.arange(FIRST, LAST + 1)
    assert (off != 0).sum() == 6
    assert set(np.abs(off)) == {0, 1}


def test_both_arms_of_a_fork_are_clicked(fork: np.ndarray) -> None:
    clicks = simulate(fork, "clean")
    assert clicks.inside_target.all()
    for t in range(25, 33):
        rows = clicks.xy[clicks.slice_index == t, 1]
        assert (rows < 64).any() and (rows > 64).any(), f"slice {t}"


def test_a_fork_runs_on_past_its_three_ends_only(fork: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(click_path(fork, PIXEL_MM, SLICE_MM).end_mm) == 3
    clicks = simulate(fork, only(monkeypatch, over_run=0.15))
    past = clicks.slice_index[~clicks.inside_target]
    assert (past < 5).any() and (past > 34).any()


def test_a_horseshoe_is_one_path_with_two_ends() -> None:
    mask = np.zeros((30, 128, 64), dtype=bool)
    for t in range(5, 25):
        mask[t] = disk(128, 64, (40, 32), 6.0) | disk(128, 64, (90, 32), 6.0)
    mask[22:25, 40:91, 29:36] = True
    path = click_path(mask, PIXEL_MM, SLICE_MM)
    assert len(path.end_mm) == 2
    assert simulate(mask, "clean").inside_target.all()


def test_parts_that_do_not_touch_are_all_clicked() -> None:
    mask = np.zeros((20, 128, 64), dtype=bool)
    mask[4:16] = disk(128, 64, (30, 32), 6.0) | disk(128, 64, (95, 32), 6.0)
    rows = simulate(mask, "clean").xy[:, 1]
    assert (rows < 64).any() and (rows > 64).any()


@pytest.mark.parametrize("n_slices", [1, 8])
def test_small_parts_whose_skeleton_is_empty_are_all_clicked(n_slices: int) -> None:
    mask = np.zeros((n_slices, 20, 40), dtype=bool)
    mask[:, 2:4, 2:4] = mask[:, 12:14, 30:32] = True
    path = click_path(mask, (1.0, 1.0), 3.0)
    assert {tuple(xy) for xy in path.xy.tolist()} == {(2.5, 2.5), (30.5, 12.5)}
    assert {*path.slice_index.tolist()} >= {0, n_slices - 1}
    assert simulate(mask, "clean").inside_target.all()


def test_a_crescent_is_clicked_inside() -> None:
    ring = disk(128, 64, (60, 30), 16.0) & ~disk(128, 64, (60, 33), 13.0)
    ring[:, 34:] = False
    mask = np.repeat(ring[None], 8, axis=0)
    assert not mask[0, int(np.argwhere(ring)[:, 0].mean()), int(np.argwhere(ring)[:, 1].mean().round())]
    assert simulate(mask, "clean").inside_target.all()


@pytest.mark.parametrize("n_slices", [1, 3])
def test_a_target_on_a_single_slice_is_clicked(n_slices: int) -> None:
    mask = np.zeros((n_slices, 64, 64), dtype=bool)
    mask[n_slices // 2, 20:30, 20:30] = True
    assert simulate(mask, "clean").slice_index.tolist() == [n_slices // 2]
    for seed in range(20):
        clicks = simulate(mask, "severe", seed)
        assert len(clicks.slice_index) >= 1
        assert clicks.slice_index.min() >= 0 and clicks.slice_index.max() < n_slices


def test_a_single_voxel_is_clicked() -> None:
    mask = np.zeros((5, 9, 9), dtype=bool)
    mask[2, 4, 6] = True
    clicks = simulate(mask, "clean")
    assert clicks.slice_index.tolist() == [2]
    assert clicks.xy.tolist() == [[6.0, 4.0]]


def test_clicks_stay_within_the_volume_when_the_target_fills_a_corner() -> None:
    mask = np.zeros((12, 40, 40), dtype=bool)
    mask[:, :8, :4] = True
    for seed in range(30):
        clicks = simulate(mask, "severe", seed)
        assert clicks.xy.min() >= 0 and clicks.xy.max() <= 39
        assert clicks.slice_index.min() >= 0 and clicks.slice_index.max() < 12


def test_thin_slices_get_a_click_every_five_millimeters(tube: np.ndarray) -> None:
    clicks = simulate_clicks(tube, PIXEL_MM, 1.0, "clean", 0)
    assert clicks.slice_index[0] == FIRST and clicks.slice_index[-1] == LAST
    assert np.isin(np.diff(clicks.slice_index), (4, 5)).all()


def test_a_severity_between_two_names_is_interpolated() -> None:
    assert noise_config(2) == SEVERITIES["clinic"]
    assert noise_config(1.5).jitter == pytest.approx(0.25)
    assert list(SEVERITIES) == ["clean", "mild", "clinic", "severe"]


@pytest.mark.parametrize("severity", ["brutal", "", -0.1, 3.5, float("nan")])
def test_an_unknown_severity_is_refused(severity: str | float) -> None:
    with pytest.raises(BadInput, match=r"[Ss]everity"):
        noise_config(severity)


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(BadInput, match="no target"):
        simulate(np.zeros((3, 8, 8), dtype=bool), "clean")
