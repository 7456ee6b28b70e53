"""Real base weights and shipped bundles: the sample from clicks to mask, and what the bundles say of themselves."""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from points_files import write_markups
from tiny_predictor import reached
from typer.testing import CliRunner

from SPDSegmentLib.cli.app import build_app
from SPDSegmentLib.errors import MUST_LOOK
from SPDSegmentLib.evaluation.metrics import dice
from SPDSegmentLib.geometry.centerline import Clicks, clicks_from_markups
from SPDSegmentLib.geometry.labelmap import read_labelmap
from SPDSegmentLib.geometry.markups import ControlPoint, Markup, read_markups
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import Volume, read_volume
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.inference.session import Session
from SPDSegmentLib.models.bundle import list_bundles, read_bundle

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLE = REPOSITORY / "Resources" / "SampleData" / "kidney-mr"
KIDNEY = REPOSITORY / "Resources" / "Models" / "kidney-mr"
SPLEEN = 4
EXPECTED_DICE = (0.90, 0.97)


@pytest.fixture(scope="module")
def session(lite_medsam: Path) -> Session:
    bundle = read_bundle(KIDNEY)
    stack = SliceStack(read_volume(SAMPLE / "image.nii.gz"), bundle.info.slicing_axis)
    return Predictor.load(bundle, "cpu").open(stack)


@pytest.fixture(scope="module")
def clicks(session: Session) -> Clicks:
    return clicks_from_markups(read_markups(SAMPLE / "clicks.mrk.json"), session.stack)


@pytest.fixture(scope="module")
def truth(session: Session) -> np.ndarray:
    return session.stack.from_volume(read_labelmap(SAMPLE / "label.nii.gz").array) > 0


def test_half_wrong_clicks_give_a_good_kidney_on_the_sample(
    session: Session, clicks: Clicks, truth: np.ndarray
) -> None:
    hits = truth[clicks.slice_index, np.rint(clicks.xy[:, 1]).astype(int), np.rint(clicks.xy[:, 0]).astype(int)]
    assert 0.4 < 1 - hits.mean() < 0.6, "about half of the sample's clicks lie outside"
    result = session.segment(clicks)
    low, high = EXPECTED_DICE
    assert low < (dice(result.mask, truth) or 0) < high
    fates = [fate.fate for fate in result.click_fates().values()]
    assert "kept" in fates and "rejected_own_slice" in fates
    supported = [s.quality or 0.0 for s in result.slices if s.status == "supported"]
    assert np.mean(supported) > 0.7


def test_moving_one_click_on_the_sample_leaves_all_other_slices_bit_identical(session: Session, clicks: Clicks) -> None:
    before = session.segment(clicks)
    xy = clicks.xy.copy()
    kept = next(i for i, fate in before.click_fates().items() if fate.fate == "kept")
    xy[kept] += 3
    moved = Clicks(clicks.slice_index, xy, clicks.outside, clicks.ids)
    reach = reached(session, clicks, moved)
    after = session.segment(moved)
    others = [t for t in range(session.stack.n_slices) if t not in reach]
    assert set(after.recomputed) == reach and after.encoded == 0
    assert np.array_equal(before.mask[others], after.mask[others])


def test_a_spleen_that_was_clicked_for_the_kidney_model_is_no_plain_success(
    lite_medsam: Path, shared_data: Path, tmp_path: Path
) -> None:
    image, labels = (sitk.ReadImage(str(shared_data / f"chaos_t2spir/chaos_01_{n}.nii.gz")) for n in ("image", "label"))
    kji = np.argwhere(sitk.GetArrayViewFromImage(labels) == SPLEEN)
    middle = int(np.median(kji[:, 0]))
    sitk.WriteImage(image[:, :, middle - 2 : middle + 3], str(tmp_path / "image.nii.gz"))
    centers = [kji[kji[:, 0] == k].mean(axis=0)[::-1].tolist() for k in range(middle - 2, middle + 3)]
    places = [np.multiply(labels.TransformContinuousIndexToPhysicalPoint(ijk), (-1, -1, 1)) for ijk in centers]
    clicks = tuple(ControlPoint(str(n), "", tuple(place.tolist())) for n, place in enumerate(places))
    write_markups(tmp_path / "clicks.mrk.json", [Markup("spleen", "Fiducial", clicks)])
    words = [
        "-i",
        tmp_path / "image.nii.gz",
        "-p",
        tmp_path / "clicks.mrk.json",
        "-m",
        KIDNEY,
        "-o",
        tmp_path / "m.nrrd",
    ]
    result = CliRunner().invoke(build_app(), ["segment", "--device", "cpu", *map(str, words)])
    assert result.exit_code == MUST_LOOK == 6
    assert "5 clicks were rejected" in result.stderr and "look at it before you use it" in result.stderr


def test_without_the_method_the_same_clicks_give_a_worse_mask(
    session: Session, clicks: Clicks, truth: np.ndarray
) -> None:
    ours = dice(session.segment(clicks).mask, truth) or 0
    assert (dice(session.segment(clicks, prompts="raw").mask, truth) or 0) < ours


def test_the_sample_is_not_doubted_and_neither_is_its_result(session: Session, clicks: Clicks) -> None:
    assert session.segment(clicks).doubts == []


def test_an_organ_that_is_darker_than_any_in_training_speaks_up(
    session: Session, clicks: Clicks, truth: np.ndarray
) -> None:
    """On the middle third of the slices alone."""
    filled = np.flatnonzero(truth.any(axis=(1, 2)))
    first = int(filled.mean()) - 5
    slices, whole = slice(first, first + 11), session.stack
    near = (clicks.slice_index >= slices.start) & (clicks.slice_index < slices.stop)
    assert near.sum() >= 10
    array = whole.to_volume(whole.array[slices]).astype(np.float32)
    array[whole.to_volume(truth[slices])] *= 0.35
    array[:, 90:170, 190:250] = 3 * array.max()
    assert isinstance(session.predictor, Predictor)
    dark = session.predictor.open(SliceStack(Volume(array, whole.volume.ijk_to_ras), whole.plane))
    ids = tuple(str(n) for n in np.flatnonzero(near))
    result = dark.segment(Clicks(clicks.slice_index[near] - first, clicks.xy[near], clicks.outside[near], ids))
    assert any("clicks were rejected" in doubt for doubt in result.doubts)
    assert result.report()["doubts"] == result.doubts and set(result.doubts) <= set(result.notes)


def test_a_body_darkened_by_something_bright_elsewhere_is_segmented_as_before_and_it_is_said(
    session: Session, clicks: Clicks, truth: np.ndarray
) -> None:
    stack = session.stack
    array = stack.volume.array.copy()
    array[:40, :40] = 2.2 * array.max()  # outside the body: the normalization's upper percentile more than doubles
    bright = SliceStack(Volume(array, stack.volume.ijk_to_ras), stack.plane)
    assert isinstance(session.predictor, Predictor)
    result = session.predictor.open(bright).segment(clicks)
    assert any("times brighter" in note for note in result.notes)
    assert not result.doubts
    before = dice(session.segment(clicks).mask, truth) or 0
    assert (dice(result.mask, truth) or 0) > before - 0.02
    blind = copy.copy(session.predictor)
    blind.intensity = dataclasses.replace(blind.intensity, usual_low=0.0, usual_high=0.0)
    assert (dice(blind.open(bright).segment(clicks).mask, truth) or 0) < before - 0.2


def test_every_shipped_bundle_names_its_data_and_its_measured_figures() -> None:
    bundles = [bundle for bundle in list_bundles() if bundle.shipped]
    shipped = {"kidney-mr", "hippocampus-mr", "esophagus-ct", "spleen-mr", "spinal-cord-ct"}
    assert {bundle.info.name for bundle in bundles} >= shipped
    for bundle in bundles:
        training = bundle.info.training
        assert bundle.info.license and training["attribution"] and training["patients"]
        assert not set(training["patients"]) & set(training["validation_patients"])
        assert bundle.info.metrics["summary"] and "spdsegment evaluate" in bundle.info.metrics["command"]
        assert bundle.info.title in bundle.card
        assert sum(f.stat().st_size for f in bundle.folder.iterdir()) < 10_000_000
        json.dumps(bundle.info.to_dict())


@pytest.mark.parametrize("name", ["esophagus-ct", "spleen-mr", "spinal-cord-ct"])
def test_figures_of_a_card_are_those_of_the_kept_rows(name: str) -> None:
    found: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    with (REPOSITORY / "Testing" / "Benchmarks" / "results" / "cards" / f"{name}.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            figures = float(row["dsc"]), float(row["hd95_mm"])
            found[row["method"], row["severity"]][row["patient"]].append(figures)
    card = read_bundle(REPOSITORY / "Resources" / "Models" / name).card
    assert card.count(f"\n| {name} |") == len(found) == 9
    for (method, severity), patients in found.items():
        dsc, hd95 = np.mean([np.mean(figures, axis=0) for figures in patients.values()], axis=0)
        (line,) = [row for row in card.splitlines() if row.startswith(f"| {name} | {method} | {severity} |")]
        cells = line.split(" | ")
        assert (cells[3].split()[0], cells[4]) == (f"{100 * dsc:.1f}", f"{hd95:.1f}")


def test_how_low_a_dice_may_be_was_measured_with_the_shipped_adapter_and_prompts() -> None:
    bounded = [b.info for b in list_bundles() if b.shipped and b.info.calibration.get("volume_margin") is not None]
    assert {info.name for info in bounded} == {"hippocampus-mr", "spinal-cord-ct"}
    for info in bounded:
        kept = REPOSITORY / "Testing" / "Benchmarks" / "results" / "calibration" / f"{info.name}.json"
        inputs = json.loads(kept.read_text(encoding="utf-8"))["inputs"]
        assert (inputs["adapter_sha256"], inputs["prompts"]) == (info.adapter_sha256, info.prompts)


def test_the_configurations_of_the_shipped_bundles_are_in_the_repository() -> None:
    for bundle in list_bundles():
        if bundle.shipped:
            assert (REPOSITORY / "Testing" / "Benchmarks" / "Configs" / bundle.info.training["config"]).exists()
