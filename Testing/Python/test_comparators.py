"""Every system that SPD is compared with: trains, goes on after a stop, loads and segments a synthetic tube."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_predictor import tube_volume

from spdbench.comparators import nnunet
from spdbench.comparators.inputs import ClickedSlice, NetworkClicks
from spdbench.comparators.protocol import Budget, Comparator, InputSettings, NotRun, TrainingCase, make_comparator
from spdbench.comparators.sam_refiner import excavate, split_objects
from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.evaluation.evaluator import EvaluationTarget
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.intensity import IntensityConfig
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.volume import Volume
from SPDSegmentLib.prompts.click_path import click_path
from SPDSegmentLib.prompts.saliency_maps import SliceClicks

INPUTS = InputSettings(64, 0.0, IntensityConfig("window", 0.0, 100.0), (0.5, 1.5), box_margin_mm=6.0, device="cpu")
TINY: dict[str, dict[str, object]] = {
    "unet": {"features": (4, 4, 8, 8, 8, 4)},
    "unet-clicks": {"features": (4, 4, 8, 8, 8, 4)},
    "transunet": {"width": 8, "dim": 16, "depth": 1, "heads": 2},
    "transunet-clicks": {"width": 8, "dim": 16, "depth": 1, "heads": 2},
    "medsam-box": {"backbone": "tiny_random", "entries": 2},
    "msa": {"backbone": "tiny_random"},
}


def tube_target(patient: str = "a", n_slices: int = 16) -> EvaluationTarget:
    """The left one of two bright bodies on dark ground."""
    stack = SliceStack(tube_volume(n_slices), "axial")
    mask = stack.array > 50
    mask[:, 45:, 45:] = False
    mask = np.ascontiguousarray(mask)
    return EvaluationTarget(patient, patient, "1", stack, mask, click_path(mask, stack.pixel_mm, stack.slice_mm))


def training_cases() -> list[TrainingCase]:
    targets = [tube_target("a"), tube_target("b", 18)]
    return [TrainingCase(t.patient, t.case, t.stack, (t,)) for t in targets]


def ignore(done: int, total: int, losses: dict[str, float]) -> None:
    """Progress that nobody reads."""


def dice(mask: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))


def make(name: str) -> Comparator:
    if name.startswith("unet") and importlib.util.find_spec("monai") is None:
        pytest.skip("monai is not installed")
    return make_comparator(name, INPUTS, **TINY[name])


@pytest.mark.parametrize("name", TINY)
def test_a_learned_comparator_trains_resumes_loads_and_segments(name: str, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int, losses: dict[str, float]) -> None:
        if losses:
            raise Stop

    cases, target = training_cases(), tube_target("c")
    clicks, _ = target.clicks("mild", 1)
    with pytest.raises(Stop):
        make(name).train(cases, tmp_path / "stopped", Budget(2), stop)
    assert json.loads((tmp_path / "stopped" / "training.json").read_text(encoding="utf-8"))["steps"] == 1
    steps: list[int] = []

    def note(done: int, total: int, losses: dict[str, float]) -> None:
        if losses:
            steps.append(done)

    make(name).train(cases, tmp_path / "stopped", Budget(2), note)
    assert steps == [2]
    make(name).train(cases, tmp_path / "whole", Budget(2), ignore)

    masks = []
    for folder in ("stopped", "whole"):
        comparator = make(name)
        comparator.load(tmp_path / folder)
        masks.append(comparator.segment(target, clicks))
        again = comparator.segment(target, clicks)
        assert np.array_equal(masks[-1], again)
    assert masks[0].shape == target.mask.shape and masks[0].dtype == bool
    assert np.array_equal(masks[0], masks[1])
    record = json.loads((tmp_path / "whole" / "training.json").read_text(encoding="utf-8"))
    assert record["steps"] == 2 and record["seconds"] > 0 and record["parameters"] > 0
    assert not list(tmp_path.rglob("*.pkl"))
    nothing = Clicks(np.array([0]), np.zeros((1, 2)), np.array([True]), ("1",))
    assert not comparator.segment(target, nothing).any()


def test_kept_embeddings_are_progress_too_and_are_not_computed_again(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    told: list[tuple[int, int]] = []

    def note(done: int, total: int, losses: dict[str, float]) -> None:
        if not losses:
            told.append((done, total))
            if len(told) == 1:
                raise Stop

    with pytest.raises(Stop):
        make("medsam-box").train(training_cases(), tmp_path, Budget(1), note)
    (kept,) = (tmp_path / "embeddings").iterdir()
    written = kept.stat().st_mtime_ns
    make("medsam-box").train(training_cases(), tmp_path, Budget(1), note)
    assert told == [(1, 2), (1, 2), (2, 2)]
    assert kept.stat().st_mtime_ns == written


def noisy_tube() -> EvaluationTarget:
    """The same tube with noise, as region growing needs some."""
    target = tube_target("c")
    volume = target.stack.volume
    noise = np.random.default_rng(0).normal(0, 4, volume.array.shape)
    stack = SliceStack(Volume((volume.array + noise).astype(np.float32), volume.ijk_to_ras, "tube"), "axial")
    return EvaluationTarget("c", "c", "1", stack, target.mask, target.path)


@pytest.mark.parametrize("name", ["region-growing", "threshold-growing", "random-walker"])
def test_what_people_do_today_recovers_a_bright_tube_from_clean_clicks(name: str, tmp_path: Path) -> None:
    target = noisy_tube()
    clicks, _ = target.clicks("clean", 1)
    comparator = make_comparator(name, INPUTS)
    comparator.train([], tmp_path, Budget(1), ignore)
    comparator.load(tmp_path)
    mask = comparator.segment(target, clicks)
    assert dice(mask, target.mask) > 0.9
    assert np.array_equal(mask, comparator.segment(target, clicks))


def test_weights_that_are_not_here_leave_a_row_empty(tmp_path: Path, spd_home: Path) -> None:
    with pytest.raises(NotRun, match="weights not available: sam_vit_b"):
        make_comparator("medsam-box-zero-shot", INPUTS, backbone="sam_vit_b").load(tmp_path)
    with pytest.raises(NotRun, match="not trained"):
        make_comparator("msa", INPUTS, backbone="tiny_random").load(tmp_path)


def test_a_folder_of_another_training_is_refused(tmp_path: Path) -> None:
    make("transunet").train(training_cases(), tmp_path, Budget(1), ignore)
    with pytest.raises(BadInput, match="other settings"):
        make("transunet-clicks").train(training_cases(), tmp_path, Budget(1), ignore)


def test_a_budget_of_seconds_ends_a_training_that_is_then_finished(tmp_path: Path) -> None:
    make("transunet").train(training_cases(), tmp_path, Budget(10_000, seconds=0.2), ignore)
    record = json.loads((tmp_path / "training.json").read_text(encoding="utf-8"))
    assert record["finished"] and 1 <= record["steps"] < 10_000
    make("transunet").load(tmp_path)


def test_adapters_change_nothing_before_they_have_learned() -> None:
    from spdbench.comparators.sam_rows import MedicalSamAdapter, PointNetwork

    comparator = MedicalSamAdapter(INPUTS, "tiny_random")
    torch.manual_seed(0)
    plain = PointNetwork(comparator.sam()).eval()
    torch.manual_seed(0)
    adapted = comparator.build().eval()
    names = [name for name in adapted.trainable() if ".adapter." in name]
    assert any("image_encoder" in name for name in names) and any("mask_decoder" in name for name in names)
    images = torch.rand(2, 1, 64, 64)
    clicks = NetworkClicks(SliceClicks(np.array([0, 1]), np.array([[9.0, 9], [20, 30]])), 64, 1.0, 3.0)
    where = [ClickedSlice(clicks, t) for t in (0, 1)]
    with torch.no_grad():
        assert torch.equal(adapted.predict(adapted.embed(images), where), plain.predict(plain.embed(images), where))


def test_the_click_channel_is_one_at_a_click_and_falls_with_the_distance_in_millimeters() -> None:
    clicks = NetworkClicks(SliceClicks(np.array([2, 4]), np.array([[10.0, 20], [14, 20]])), 64, 0.5, 2.0)
    here, between, after = clicks.nearness(2), clicks.nearness(3), clicks.nearness(5)
    assert here[20, 10] == 1 and here[20, 12] == pytest.approx(1 - 1.0 / 8)
    assert between[20, 12] == 1
    assert after[20, 14] == pytest.approx(1 - 2.0 / 8)
    assert clicks.nearness(40).max() == 0
    assert len(clicks.points(1)) == 0 and clicks.points(3).tolist() == [[12.0, 20.0]]
    assert clicks.box(2, 3.0).tolist() == [4.0, 14.0, 16.0, 26.0]


def test_refinement_prompts_lie_where_the_coarse_mask_is_sure() -> None:
    mask = np.zeros((40, 40), dtype=bool)
    mask[10:20, 10:30] = True
    mask[19, 10] = False
    alike = np.zeros((40, 40))
    alike[10:20, 10:34] = 1.0  # the object goes on to the right
    prompts = excavate(mask, alike)
    assert prompts.box.tolist() == [10, 10, 33, 19]
    column, row = prompts.points[0]
    assert 14 <= column <= 25 and 14 <= row <= 15
    assert prompts.labels.tolist() == [1, 0] and prompts.points[1].tolist() == [33, 10]
    assert prompts.mask[int(row), int(column)] == prompts.mask.max() > prompts.mask[10, 29] > prompts.mask[0, 0] == 0
    two = mask.copy()
    two[30:36, 5:15] = True
    two[0, 0] = True
    assert [int(part.sum()) for part in split_objects(two)] == [199, 60]


@pytest.mark.parametrize("kinds", [("points", "box", "mask"), ("box",)])
def test_the_refiner_works_on_the_mask_of_another_comparator(kinds: tuple[str, ...], tmp_path: Path) -> None:
    target = noisy_tube()
    clicks, _ = target.clicks("clean", 1)
    refiner = make_comparator("sam-refiner", INPUTS, coarse="random-walker", backbone="tiny_random", prompts=kinds)
    assert not refiner.needs_training
    refiner.train([], tmp_path, Budget(1), ignore)
    refiner.load(tmp_path)
    mask = refiner.segment(target, clicks)
    assert mask.shape == target.mask.shape and not mask[0].any()
    assert np.array_equal(mask, refiner.segment(target, clicks))


def test_the_refiner_says_what_it_needs() -> None:
    with pytest.raises(BadInput, match="a bundle is needed"):
        make_comparator("sam-refiner", INPUTS, backbone="tiny_random")


def test_packages_that_are_not_here_leave_a_row_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("nnunetv2", "sam2"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(NotRun, match=r"nnunetv2 is not installed \(pip install 'nnunetv2>=2.8'\)"):
        make_comparator("nnunet-clicks", INPUTS).train(training_cases(), tmp_path, Budget(1), ignore)


def test_nnunet_plans_trains_resumes_and_segments_through_its_own_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nnunetv2")
    monkeypatch.setattr(nnunet, "STEPS_PER_EPOCH", 1)

    class Stop(Exception):
        pass

    def stop(done: int, total: int, losses: dict[str, float]) -> None:
        raise Stop

    cases, target = training_cases(), tube_target("c")
    with pytest.raises(Stop):
        make_comparator("nnunet-clicks", INPUTS, draws=1, memory_gb=0.5).train(cases, tmp_path / "a", Budget(2), stop)
    make_comparator("nnunet-clicks", INPUTS, draws=1, memory_gb=0.5).train(cases, tmp_path / "a", Budget(2), ignore)
    record = json.loads((tmp_path / "a" / "training.json").read_text(encoding="utf-8"))
    assert record["steps"] == 2 and record["finished"] and record["parameters"] > 0
    comparator = make_comparator("nnunet-clicks", INPUTS, draws=1, memory_gb=0.5)
    comparator.load(tmp_path / "a")
    clicks, _ = target.clicks("mild", 1)
    mask = comparator.segment(target, clicks)
    assert mask.shape == target.mask.shape and mask.dtype == bool


TINY_SAM2 = [
    "++model.image_size=64",
    "++model.image_encoder.trunk.embed_dim=8",
    "++model.image_encoder.trunk.stages=[1,1,2,1]",
    "++model.image_encoder.trunk.global_att_blocks=[3]",
    "++model.image_encoder.neck.backbone_channel_list=[64,32,16,8]",
    "++model.memory_attention.num_layers=1",
    "++model.memory_attention.layer.self_attention.feat_sizes=[4,4]",
    "++model.memory_attention.layer.cross_attention.feat_sizes=[4,4]",
]


def test_sam2_without_weights_leaves_its_row_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("sam2") is not None:
        for name in ("sam2-video", "medsam2-video"):
            with pytest.raises(NotRun, match="^weights not available$"):
                make_comparator(name, INPUTS).load(tmp_path)
    monkeypatch.setitem(sys.modules, "sam2", None)
    monkeypatch.setitem(sys.modules, "sam2.build_sam", None)
    with pytest.raises(NotRun, match="sam2 is not installed"):
        make_comparator("sam2-video", INPUTS).load(tmp_path)


@pytest.mark.parametrize("prompt", ["points", "box"])
def test_sam2_propagates_from_prompted_slices_with_a_small_random_model(prompt: str, tmp_path: Path) -> None:
    build_sam = pytest.importorskip("sam2.build_sam")
    torch.manual_seed(0)
    config = "configs/sam2.1/sam2.1_hiera_t.yaml"
    model = build_sam.build_sam2_video_predictor(config, None, device="cpu", hydra_overrides_extra=TINY_SAM2)
    torch.save({"model": model.state_dict()}, tmp_path / "tiny.pt")
    target = tube_target("c")
    clicks, _ = target.clicks("mild", 1)
    comparator = make_comparator(
        "sam2-video", INPUTS, checkpoint=str(tmp_path / "tiny.pt"), overrides=TINY_SAM2, prompt=prompt
    )
    comparator.load(tmp_path)
    mask = comparator.segment(target, clicks)
    assert mask.shape == target.mask.shape and mask.dtype == bool
    assert np.array_equal(mask, comparator.segment(target, clicks))
    torch.save({"model": {"other": torch.zeros(1)}}, tmp_path / "tiny.pt")
    with pytest.raises(NotRun, match="do not belong"):
        comparator.load(tmp_path)


def test_adapters_of_the_encoder_learn(tmp_path: Path) -> None:
    make("msa").train(training_cases(), tmp_path, Budget(1), ignore)
    state = load_file(tmp_path / "weights.safetensors")
    learned = [name for name, value in state.items() if name.endswith("adapter.up.weight") and value.any()]
    assert any("image_encoder" in name for name in learned) and any("mask_decoder" in name for name in learned)
