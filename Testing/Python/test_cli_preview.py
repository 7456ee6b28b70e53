"""The picture of a result."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from SPDSegmentLib.cli.preview import MIN_SIDE_MM, PreviewText, choose_slices, crop_box, write_preview
from SPDSegmentLib.prompts.fates import SIGNS, Fate

COLOR = (0.87, 0.56, 0.35)
TEXT = PreviewText("Kidney", "kidney-mr", 12.3)


def point(t: int, column: float, row: float, fate: str = "kept") -> Any:
    """A fate as the predictor reports it."""
    return SimpleNamespace(slice_index=t, xy=(column, row), fate=fate, click=0)


def stack_of(array: np.ndarray, pixel_mm: tuple[float, float] = (1.0, 1.0), plane: str = "axial") -> Any:
    """Slices without a volume behind them."""
    return SimpleNamespace(array=array, pixel_mm=pixel_mm, plane=plane, slice_number=lambda t: 100 - t)


def result_of(mask: np.ndarray, fates: list[Any]) -> Any:
    """A result with nothing but what the picture needs."""
    slices = [SimpleNamespace(slice_index=t, status="supported") for t in range(len(mask))]
    return SimpleNamespace(mask=mask, fates=fates, slices=slices)


def draw(path: Path, mask: np.ndarray, fates: list[Any], pixel_mm: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """The picture as an array (rows, columns, 3) in [0, 1]."""
    image = pytest.importorskip("matplotlib.image")
    array = np.random.default_rng(0).normal(100, 20, mask.shape).astype(np.float32)
    write_preview(path, stack_of(array, pixel_mm), result_of(mask, fates), (40.0, 160.0), TEXT, COLOR)
    return np.asarray(image.imread(path))[..., :3]


def count_color(picture: np.ndarray, color: tuple[float, float, float]) -> int:
    """Pixels of the picture that have nearly this color."""
    return int((np.abs(picture - np.array(color)).max(axis=-1) < 0.06).sum())


def test_slices_with_mask_or_clicks_are_shown_and_long_results_are_thinned_out() -> None:
    mask = np.zeros((40, 8, 8), dtype=bool)
    assert choose_slices(mask, []) == [20]
    mask[5, 2, 2] = mask[7, 2, 2] = True
    assert choose_slices(mask, [point(9, 1, 1), point(-3, 1, 1)]) == [5, 7, 9]
    mask[3:37, 2, 2] = True
    shown = choose_slices(mask, [])
    assert len(shown) == 12
    assert (shown[0], shown[-1]) == (3, 36)
    assert shown == sorted(set(shown))


def test_the_crop_is_square_in_millimeters_and_holds_mask_and_clicks() -> None:
    mask = np.zeros((3, 200, 100), dtype=bool)
    mask[1, 100:110, 40:45] = True
    box = crop_box(mask, [point(1, 30, 90)], (0.5, 1.0))
    assert box.top <= 90 and box.bottom >= 110 and box.left <= 30 and box.right >= 45
    height_mm, width_mm = (box.bottom - box.top) * 0.5, (box.right - box.left) * 1.0
    assert abs(height_mm - width_mm) <= 1.0
    assert width_mm >= MIN_SIDE_MM


def test_the_crop_stays_inside_the_slice() -> None:
    mask = np.zeros((1, 50, 60), dtype=bool)
    mask[0, 48:50, 0:2] = True
    box = crop_box(mask, [], (1.0, 1.0))
    assert 0 <= box.top < box.bottom == 50
    assert 0 == box.left < box.right <= 60


def test_one_click_far_away_does_not_shrink_the_structure_to_a_dot() -> None:
    mask = np.zeros((1, 500, 500), dtype=bool)
    mask[0, 20:40, 20:40] = True
    box = crop_box(mask, [point(0, 490, 490)], (1.0, 1.0))
    assert box.bottom - box.top < 100


def test_without_mask_and_clicks_the_whole_slice_is_shown() -> None:
    box = crop_box(np.zeros((2, 30, 40), dtype=bool), [], (1.0, 1.0))
    assert (box.top, box.bottom, box.left, box.right) == (0, 30, 0, 40)


def test_contour_and_fates_appear_in_their_colors(tmp_path: Path) -> None:
    mask = np.zeros((6, 80, 80), dtype=bool)
    mask[1:5, 30:50, 30:50] = True
    kept, rejected = (SIGNS[fate].color for fate in (Fate.KEPT, Fate.REJECTED_OWN_SLICE))

    without = draw(tmp_path / "a.png", mask, [])
    with_points = draw(tmp_path / "b.png", mask, [point(2, 40, 40), point(3, 60, 40, "rejected_own_slice")])

    assert count_color(without, COLOR) > 200
    assert count_color(with_points, kept) > count_color(without, kept) + 20
    assert count_color(with_points, rejected) > count_color(without, rejected) + 10


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_an_empty_result_still_gives_a_picture(tmp_path: Path, plane: str) -> None:
    pytest.importorskip("matplotlib")
    mask = np.zeros((4, 20, 30), dtype=bool)
    array = np.zeros(mask.shape, dtype=np.int16)
    write_preview(tmp_path / "p.png", stack_of(array, (3.0, 1.0), plane), result_of(mask, []), (0.0, 1.0), TEXT, COLOR)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_a_pixel_has_its_true_shape(tmp_path: Path) -> None:
    """A square in pixels of 2 x 1 mm is drawn twice as high as wide."""
    mask = np.zeros((1, 60, 120), dtype=bool)
    mask[0, 20:40, 50:70] = True
    picture = draw(tmp_path / "p.png", mask, [], pixel_mm=(2.0, 1.0))
    orange = np.abs(picture - np.array(COLOR)).max(axis=-1) < 0.06
    orange[-80:] = False  # legend
    rows, columns = np.nonzero(orange)
    assert np.ptp(rows) / np.ptp(columns) == pytest.approx(2.0, abs=0.1)
