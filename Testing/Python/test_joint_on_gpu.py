"""A joint training that travels: what is packed is what is trained, and comes back as a bundle."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_joint_training import configured
from tiny_training import write_cases

from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.training.joint_cases import load_joint_cases

SCRIPT = Path(__file__).parents[1] / "Benchmarks" / "joint_on_gpu.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, with a random tiny backbone in place of base weights."""
    spec = importlib.util.spec_from_file_location("joint_on_gpu", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "find_base_weights", lambda backbone: tmp_path / "base.safetensors")
    return module


def test_a_packed_training_holds_the_same_structures_and_clicks(script: ModuleType, tmp_path: Path) -> None:
    write_cases(tmp_path / "data")
    config = configured(tmp_path)
    save_file({"image_encoder.a": torch.zeros(1)}, tmp_path / "base.safetensors")
    script.pack(tmp_path / "joint.toml", tmp_path / "packed", 256)
    _, volumes, targets = script.unpack(tmp_path / "packed")
    before_volumes, before_targets = load_joint_cases(config.sets, tmp_path, config.stage, config.seed)
    assert [t.group for t in targets] == [t.group for t in before_targets]
    for target, before in zip(targets, before_targets, strict=True):
        mask = np.isin(volumes[target.volume].labels, target.values)
        assert mask.sum() == np.isin(before_volumes[before.volume].labels, before.values).sum()
        assert mask[target.first].any() and mask[target.last].any()
        slices, xy = target.clicks[0]
        hits = mask[slices, np.rint(xy[:, 1]).astype(int), np.rint(xy[:, 0]).astype(int)]
        old_slices, old_xy = before.clicks[0]
        old = np.isin(before_volumes[before.volume].labels, before.values)
        assert hits.sum() == old[old_slices, np.rint(old_xy[:, 1]).astype(int), np.rint(old_xy[:, 0]).astype(int)].sum()


def test_a_short_training_leaves_an_adapter_and_says_how_fast_it_was(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cases(tmp_path / "data")
    config = configured(tmp_path)
    save_file({"image_encoder.a": torch.zeros(1)}, tmp_path / "base.safetensors")
    script.pack(tmp_path / "joint.toml", tmp_path / "packed", 256)
    monkeypatch.setattr(script, "SPDModel", lambda network, weights: SPDModel(network, None))
    script.train(tmp_path / "packed", tmp_path / "trained", 0.0, None, 2, "joint")
    record = json.loads((tmp_path / "trained" / "training.json").read_text(encoding="utf-8"))
    assert record["steps"] == 14 and record["slices"] == 14 * 2 * config.stage.run_length
    assert record["slices_per_second"] > 0
    script.bundle(tmp_path / "joint.toml", tmp_path / "trained", tmp_path / "bundle")
    assert (
        json.loads((tmp_path / "bundle" / "model.json").read_text(encoding="utf-8"))["network"]["saliency"]
        == "conditioned"
    )
