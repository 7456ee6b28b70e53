"""Images, clicks and results that are not of a model's kind: each is said in a sentence, with the way out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models_helpers import tiny_info
from tiny_predictor import tiny_predictor

from SPDSegmentLib.errors import BadInput, ModelCorrupt
from SPDSegmentLib.evaluation.evaluator import verdict_shares
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.intensity import IntensityConfig, check_values
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import Volume
from SPDSegmentLib.models.bundle_info import BundleInfo, parse_info, read_info
from SPDSegmentLib.models.fit import better_model, doubts_of_image, doubts_of_result, fit_of_image
from SPDSegmentLib.prompts.fates import Fate, PointFate

SHIPPED = Path(__file__).resolve().parents[2] / "Resources" / "Models"
KIDNEY, ESOPHAGUS, HIPPOCAMPUS = (
    read_info(SHIPPED / name / "model.json") for name in ("kidney-mr", "esophagus-ct", "hippocampus-mr")
)
GENERAL = tiny_info(name="any-structure", title="Any structure", structure="Any structure", modality="OT")


def volume(array: np.ndarray, spacing: tuple[float, float, float]) -> Volume:
    """Voxels (K, J, I) with spacing I, J, K in mm."""
    return Volume(array, np.diag([-spacing[0], -spacing[1], spacing[2], 1.0]), "image")


def like_ct(spacing: tuple[float, float, float] = (3.9, 3.9, 2.5), scale: float = 1.0, shift: float = 0.0) -> Volume:
    """A body of soft tissue and fat in air."""
    rng = np.random.default_rng(0)
    array = np.full((20, 64, 64), -1000.0)
    array[:, 6:58, 6:58] = -90
    array[:, 12:52, 12:52] = rng.normal(40, 20, (20, 40, 40))
    return volume((array * scale + shift).astype(np.float32), spacing)


def like_mr(spacing: tuple[float, float, float] = (1.25, 1.25, 7.7)) -> Volume:
    """A body whose tissues spread over the range of intensities, none below 0."""
    rng = np.random.default_rng(0)
    array = np.zeros((20, 128, 128))
    array[:, 10:118, 10:118] = rng.gamma(2.5, 90, (20, 108, 108))
    return volume(array.astype(np.float32), spacing)


def clicked(image: Volume, axis: str = "axial") -> tuple[SliceStack, Clicks]:
    """Slices, and clicks in the middle of every other one."""
    stack = SliceStack(image, axis)
    n, height, width = stack.shape
    t = np.arange(2, n - 2, 2)
    xy = np.tile([width / 2, height / 2], (len(t), 1))
    return stack, Clicks(t, xy, np.zeros(len(t), bool), tuple(map(str, t)))


def said(info: BundleInfo, image: Volume, axis: str = "axial") -> str:
    return " ".join(doubts_of_image(info, *clicked(image, axis)))


def pixels_of(stack: SliceStack, first: int, last: int, side: int = 20) -> np.ndarray:
    mask = np.zeros(stack.shape, bool)
    mask[first : last + 1, :side, :side] = True
    return mask.sum(axis=(1, 2))


def test_images_of_a_models_kind_are_not_doubted() -> None:
    assert said(KIDNEY, like_mr()) == ""
    assert said(ESOPHAGUS, like_ct()) == ""


def test_what_lies_past_a_marked_end_is_no_reason_to_doubt_an_image() -> None:
    image = like_ct()
    image.array[9:] = 1500
    stack, clicks = clicked(image)
    marked = dataclasses.replace(clicks, ends=np.isin(clicks.slice_index, (2, 8)))
    assert fit_of_image(ESOPHAGUS, stack, clicks) and not fit_of_image(ESOPHAGUS, stack, marked)


def test_ct_given_to_a_model_for_mr_and_the_reverse() -> None:
    assert "looks like CT" in said(KIDNEY, like_ct((1.25, 1.25, 7.7))) and "for MR" in said(KIDNEY, like_ct())
    assert "does not look like CT" in said(ESOPHAGUS, like_mr((3.9, 3.9, 2.5)))


@pytest.mark.parametrize(("scale", "shift"), [(1, 1024), (255 / 2000, 255 / 2), (1 / 2000, 0.5)])
def test_ct_that_is_shifted_or_rescaled_is_refused(scale: float, shift: float) -> None:
    image = like_ct(scale=scale, shift=shift)
    with pytest.raises(BadInput, match="Hounsfield"):
        check_values(image.array, IntensityConfig.from_dict(ESOPHAGUS.normalization))


def test_ct_that_is_shifted_and_padded_below_zero_is_doubted() -> None:
    image = like_ct(shift=1024)
    image.array[0, 0, 0] = -2000
    assert "look like CT" in said(ESOPHAGUS, image) or "brighter than" in said(ESOPHAGUS, image)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.00125, 0.00125, 0.0077), (12.5, 12.5, 77.0)])
def test_spacing_that_was_lost_or_is_in_another_unit(spacing: tuple[float, float, float]) -> None:
    text = said(KIDNEY, like_mr(spacing))
    assert "Slices are" in text and "Check the spacing" in text


def test_the_esophagus_on_a_fine_chest_ct() -> None:
    assert "Pixels are 1 mm wide" in said(ESOPHAGUS, like_ct((1.0, 1.0, 1.0)))


def test_slices_across_another_axis_than_the_models() -> None:
    assert "coronal" in said(KIDNEY, like_mr(), "coronal") and "axial ones" in said(KIDNEY, like_mr(), "coronal")


def test_clicks_that_were_all_or_mostly_rejected() -> None:
    stack, clicks = clicked(like_mr())
    pixels = pixels_of(stack, 2, 16)
    no, yes = "rejected_own_slice", "kept"
    result = doubts_of_result(KIDNEY, stack, clicks, [no] * 8, pixels)
    assert "All 8 clicks were rejected" in result[0] and "something else" in result[0]
    assert doubts_of_result(KIDNEY, stack, clicks, [no], pixels)[0].startswith("The only click was rejected: ")
    assert "6 of 8 clicks were rejected" in doubts_of_result(KIDNEY, stack, clicks, [no] * 6 + [yes] * 2, pixels)[0]
    assert doubts_of_result(KIDNEY, stack, clicks, [no] * 4 + [yes] * 4, pixels) == []
    assert doubts_of_result(KIDNEY, stack, clicks, ["insisted"] * 8, pixels) == []


def test_masks_that_are_empty_almost_empty_or_far_too_large() -> None:
    stack, clicks = clicked(like_mr())
    kept = ["kept"] * 8
    assert doubts_of_result(KIDNEY, stack, clicks, kept, pixels_of(stack, 0, -1)) == ["Nothing was segmented."]
    assert "2 of the 15 slices" in doubts_of_result(KIDNEY, stack, clicks, kept, pixels_of(stack, 8, 9))[0]
    assert " ml; those that kidney-mr" in doubts_of_result(KIDNEY, stack, clicks, kept, pixels_of(stack, 0, 19, 120))[0]


def test_the_better_installed_model_is_named() -> None:
    ct, mr = clicked(like_ct()), clicked(like_mr())
    installed = [KIDNEY, ESOPHAGUS, HIPPOCAMPUS]
    assert "esophagus-ct" in better_model(KIDNEY, *ct, installed)
    assert "No installed model" in better_model(HIPPOCAMPUS, *ct, [HIPPOCAMPUS, KIDNEY])
    assert "any-structure" in better_model(KIDNEY, *mr, [*installed, GENERAL], unrecognized=True)
    assert "Insist" in better_model(KIDNEY, *mr, installed, unrecognized=True)


@pytest.mark.parametrize(
    ("info", "image", "axis", "reason", "way_out"),
    [
        (KIDNEY, like_ct(), "axial", "looks like CT", "esophagus-ct"),
        (ESOPHAGUS, like_mr(), "axial", "Hounsfield", "kidney-mr"),
        (ESOPHAGUS, like_ct(shift=1024), "axial", "Hounsfield", ""),
        (ESOPHAGUS, like_ct(scale=255 / 1100, shift=232), "axial", "Hounsfield", ""),
        (ESOPHAGUS, like_ct(scale=1 / 1100, shift=0.91), "axial", "Hounsfield", ""),
        (KIDNEY, like_mr((1.0, 1.0, 1.0)), "axial", "Check the spacing", ""),
        (KIDNEY, like_mr((0.00125, 0.00125, 0.0077)), "axial", "Check the spacing", ""),
        (ESOPHAGUS, like_ct((1.0, 1.0, 1.0)), "axial", "Check the spacing", ""),
        (KIDNEY, like_mr(), "coronal", "axial ones", ""),
    ],
)
def test_without_a_click_or_torch_a_bad_fit_is_said_with_the_way_out(
    info: BundleInfo, image: Volume, axis: str, reason: str, way_out: str
) -> None:
    said = fit_of_image(info, SliceStack(image, axis))
    assert len(said) >= 2 and reason in " ".join(said[:-1]) and way_out in said[-1]
    assert "model" in said[-1].lower()


def test_nothing_is_said_of_an_image_that_fits() -> None:
    assert fit_of_image(KIDNEY, *clicked(like_mr())) == fit_of_image(ESOPHAGUS, *clicked(like_ct())) == []


def test_a_model_of_ct_that_was_in_no_hounsfield_units_doubts_no_image_for_its_units() -> None:
    rescaled = dataclasses.replace(ESOPHAGUS, normalization={"kind": "percentile", "low": 0.5, "high": 99.5}, fit={})
    assert "Hounsfield" not in said(rescaled, like_mr()) + said(rescaled, like_ct())


def test_a_bundle_without_the_table_is_doubted_by_modality_and_plane_alone() -> None:
    bare = dataclasses.replace(KIDNEY, fit={})
    assert said(bare, like_mr((1.0, 1.0, 1.0))) == ""
    assert "looks like CT" in said(bare, like_ct())


def test_the_table_is_no_setting_and_is_checked() -> None:
    assert dataclasses.replace(KIDNEY, fit={}).settings_digest() == KIDNEY.settings_digest()
    for wrong in ({"pixel_mm": [2, 1]}, {"pixel_mm": "1"}, {"kept_share": {"clinic": 2}}, {"color": [0, 1]}):
        values: dict[str, Any] = json.loads((SHIPPED / "kidney-mr" / "model.json").read_text(encoding="utf-8")) | {
            "fit": wrong
        }
        with pytest.raises(ModelCorrupt, match="fit"):
            parse_info(values)


def test_an_evaluation_counts_right_clicks_rejected_and_wrong_clicks_kept() -> None:
    mask = np.zeros((4, 8, 8), bool)
    mask[:, :4, :4] = True
    xy = np.array([[1.0, 1.0], [1, 1], [6, 6], [6, 6], [30, 1]])
    clicks = Clicks(np.array([0, 1, 2, 3, 3]), xy, np.zeros(5, bool), tuple("abcde"))
    words = ("kept", "rejected_own_slice", "kept", "rejected_own_slice", "outside")
    fates = {n: PointFate(n, 0, Fate(word)) for n, word in enumerate(words)}
    assert verdict_shares(mask, clicks, fates) == (0.4, 0.5, 0.3333)


@pytest.mark.parametrize("strategy", ["consensus", "raw", "interpolated", "sampled", "saliency-only"])
def test_an_image_of_another_kind_must_be_looked_at_whatever_prompts_its_slices(strategy: str) -> None:
    predictor = tiny_predictor()
    predictor.info = KIDNEY
    stack, clicks = clicked(like_ct(scale=1.0))
    result = predictor.open(stack).segment(clicks, prompts=strategy)
    assert any("looks like CT" in doubt for doubt in result.doubts) and set(result.doubts) <= set(result.notes)
