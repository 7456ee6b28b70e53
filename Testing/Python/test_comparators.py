"""Every system that SPD is compared with: trains, goes on after a stop, loads and segments a synthetic tube."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_predictor import tube_volume

from SPDSegmentLib.evaluation.comparators.protocol import Budget, Comparator, InputSettings, TrainingCase
from SPDSegmentLib.evaluation.comparators.registry import make_comparator
from SPDSegmentLib.evaluation.run import EvaluationTarget
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.intensity import IntensityConfig
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.prompts.noise import click_path

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
        raise Stop

    cases, target = training_cases(), tube_target("c")
    clicks, _ = target.clicks("mild", 1)
    with pytest.raises(Stop):
        make(name).train(cases, tmp_path / "stopped", Budget(2), stop)
    assert json.loads((tmp_path / "stopped" / "training.json").read_text())["steps"] == 1
    steps: list[int] = []
    make(name).train(cases, tmp_path / "stopped", Budget(2), lambda done, total, losses: steps.append(done))
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
    record = json.loads((tmp_path / "whole" / "training.json").read_text())
    assert record["steps"] == 2 and record["seconds"] > 0 and record["parameters"] > 0
    assert not list(tmp_path.rglob("*.pkl"))
    nothing = Clicks(np.array([0]), np.zeros((1, 2)), np.array([True]), ("1",))
    assert not comparator.segment(target, nothing).any()
