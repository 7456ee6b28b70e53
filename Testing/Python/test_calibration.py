"""The predicted quality with its lower bound: coverage by patient, honesty with few patients, and where it is shown."""

from __future__ import annotations

import json

import numpy as np
import pytest
from models_helpers import tiny_info
from tiny_predictor import tiny_predictor, tube_volume

from calibrate import calibrate, conformal_margin, coverage
from SPDSegmentLib.batch.segmenting import _promised
from SPDSegmentLib.errors import ModelCorrupt
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.inference.results import SegmentationResult, SliceResult
from SPDSegmentLib.models.bundle import find_bundle
from SPDSegmentLib.models.bundle_info import parse_info
from SPDSegmentLib.models.fit import estimate, predicted_dice, slice_estimate
from SPDSegmentLib.prompts.fates import SliceStatus


def _patients(n, seed=0):
    generator = np.random.default_rng(seed)
    shift = generator.normal(0, 0.05, n)
    return {f"p{k}": list(shift[k] + generator.normal(0, 0.01, 4)) for k in range(n)}


def test_a_new_patient_stays_above_the_bound_as_often_as_is_said():
    held = []
    for seed in range(300):
        everyone = list(_patients(30, seed).values())
        margin = conformal_margin([max(values) for values in everyone[:-1]])
        held.append(max(everyone[-1]) <= margin)
    assert 0.86 <= np.mean(held) <= 0.98


def test_two_volumes_of_one_patient_count_once():
    apart = calibrate({f"p{k}": [0.01 * k] for k in range(18)}, {f"p{k}": [0.0] for k in range(18)}, "clinic")
    paired = calibrate(
        {f"p{k}": [0.02 * k, 0.02 * k + 0.01] for k in range(9)}, {f"p{k}": [0.0] for k in range(9)}, "clinic"
    )
    assert (apart["patients"], paired["patients"]) == (18, 9)
    assert paired["volume_margin"] == pytest.approx(0.17)
    assert apart["volume_margin"] == pytest.approx(0.17)


@pytest.mark.parametrize(("n", "finite"), [(3, False), (8, False), (9, True), (30, True)])
def test_too_few_patients_have_no_bound_and_that_is_said(n, finite):
    table = calibrate(_patients(n), _patients(n), "clinic")
    assert (table["volume_margin"] is not None) == finite
    found = estimate(table, [0.8, 0.9], [100, 300])
    assert found is not None and (found.at_least is not None) == finite
    assert ("at least" in found.sentence()) == finite
    assert (f"checked on only {found.patients} patients" in found.sentence()) != finite
    assert (slice_estimate(table, 0.8)[1] is not None) == finite
    expected = "too few patients" if found.at_least is None else round(found.at_least, 3)
    assert _promised(found.report())["dice_at_least"] == expected


def test_coverage_is_measured_on_patients_that_the_margin_does_not_know():
    assert coverage([0.1] * 9) is None
    scores = [float(x) for x in np.random.default_rng(1).normal(0, 1, 40)]
    held = coverage(scores)
    assert held is not None and 0.85 <= held <= 0.95


def test_larger_slices_weigh_more_and_an_empty_mask_promises_nothing():
    assert predicted_dice([1.0, 0.5], [300, 100]) == pytest.approx((3 + 2 / 3) / 4)
    assert predicted_dice([], []) is None
    assert estimate({}, [0.0], [0]) is None
    plain = estimate({}, [0.5], [10])
    assert plain is not None and "the model was not calibrated" in plain.sentence()


def test_the_report_has_the_quality_and_leaves_a_persons_slices_out():
    table = calibrate(_patients(20), _patients(20), "clinic")
    full = np.ones((4, 4), dtype=bool)
    slices = [
        SliceResult(0, full, 0.6, SliceStatus.SUPPORTED),
        SliceResult(1, full, 1.0, SliceStatus.LOCKED),
        SliceResult(2, ~full, 0.0, SliceStatus.EMPTY),
    ]
    report = SegmentationResult(slices, [], [], 0, 0.0, "cpu", calibration=table).report()
    said = report["quality"]
    assert said["at_least"] == pytest.approx(0.75 - table["volume_margin"], abs=1e-3)
    assert said["sentence"].startswith("Predicted Dice 0.")
    assert "dice_at_least" in report["slices"][0] and "dice" not in report["slices"][1]
    json.dumps(report, allow_nan=False)


def _session(patients):
    """A model that was calibrated on so many patients, and clicks on the tube and beside it."""
    predictor = tiny_predictor()
    predictor.info = tiny_info(calibration=calibrate(_patients(patients), _patients(patients), "clinic"))
    xy = np.array([[28.0, 30.0], [60.0, 2.0], [31.0, 30.0]])
    clicks = Clicks(np.array([6, 8, 12]), xy, np.zeros(3, dtype=bool), ("1", "2", "3"))
    return predictor, predictor.open(SliceStack(tube_volume(), "axial")), clicks


@pytest.mark.parametrize("patients", [3, 20])
def test_what_was_calibrated_counts_for_the_prompts_that_were_calibrated_alone(patients):
    predictor, session, clicks = _session(patients)
    found = session.segment(clicks).quality
    assert found is not None and found.patients == patients and (found.at_least is not None) == (patients == 20)
    for prompts in ("local", "raw", "interpolated", "sampled"):
        report = session.segment(clicks, prompts=prompts).report()
        assert report["quality"]["sentence"].endswith("the model was not calibrated for these prompts."), prompts
        assert report["quality"]["at_least"] is None
        assert all(part.get("dice_at_least") is None for part in report["slices"])
        assert _promised(report["quality"])["dice_at_least"] == "not calibrated"
    predictor.identity["learned"] = {"slices": 2}
    adapted = session.segment(clicks).quality
    assert adapted is not None and adapted.sentence().endswith("not calibrated for what it has learned since.")


def test_of_the_saliency_alone_no_quality_is_predicted():
    _, session, clicks = _session(20)
    mine = np.ones(session.stack.shape[1:], dtype=bool)
    for found in (session.segment(clicks, saliency_only=True), session.segment(clicks, prompts="saliency-only")):
        report = found.report()
        assert found.mask.any() and report["quality"] is None
        assert {part["quality"] for part in report["slices"]} == {None}
        assert not any("dice" in part for part in report["slices"])
    owned = session.segment(clicks, saliency_only=True, locked={8: mine})
    assert owned.quality is None and owned.slices[8].quality == 1


@pytest.mark.parametrize(
    "change", [{"patients": 0}, {"volume_margin": "0.1"}, {"volume_bias": 4}, {"confidence": 1.0}, {"more": 1}]
)
def test_a_damaged_calibration_is_refused_when_the_bundle_is_read(change):
    table = calibrate(_patients(12), _patients(12), "clinic")
    known = tiny_info().to_dict()
    assert parse_info(known | {"calibration": table}).calibration == table
    with pytest.raises(ModelCorrupt, match="calibration"):
        parse_info(known | {"calibration": table | change})


def test_the_kidney_model_says_that_its_patients_are_too_few_for_a_bound():
    found = estimate(find_bundle("kidney-mr").info.calibration, [0.9], [100])
    assert found is not None and found.at_least is None
    assert "the model was checked on only 3 patients" in found.sentence()
