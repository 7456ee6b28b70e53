"""A benchmark of two patients and a random network, written into a folder; it takes seconds."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import write_cases, write_config

from spdbench.command import BenchmarkOptions
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.training.config import read_training_config
from SPDSegmentLib.training.result import save_bundle

TEXT = """
name = "tiny"
seeds = 2
severities = ["clean", "severe"]
parts = ["drift_share"]
part_levels = ["severe"]
headline = "severe"
key_methods = ["spd", "saliency-only"]
{extra}

[budget]
steps = 3

[dataset.blob]
title = "Blob"
config = "tiny-consensus.toml"
box_margin_mm = 12

[method.spd]
title = "SPD"
bundle = "bundle"
parts = true

[method.saliency-only]
title = "Saliency only"
group = "control"
bundle = "bundle"
prompts = "saliency-only"

[method.shuffled]
title = "Other clicks"
group = "control"
bundle = "bundle"
clicks = "shuffled"

[method.oracle]
title = "Oracle"
group = "control"
bundle = "bundle"
prompts = "raw"
clicks = "oracle"

[method.frozen]
title = "Frozen, box"
group = "frozen"
kind = "frozen"
bundle = "bundle"
prompts = "consensus"
settings = {{ shape = "box", backbone = "tiny_random" }}

[method.no-weights]
title = "Without weights"
group = "frozen"
kind = "frozen"
prompts = "raw"
settings = {{ backbone = "sam_vit_h" }}

[method.broken]
title = "Broken"
group = "learned"
kind = "comparator"

[sweep.n]
base = "spd"
title = "n"
prompt = "n_neighbors"
values = [0, 2]
noises = ["severe"]

[[claim]]
text = "SPD against saliency only"
first = "spd"
second = "saliency-only"
noise = "severe"
at_least = 0.05

[quick]
methods = ["spd", "saliency-only"]
seeds = 1
limit = 1
"""


class Broken:
    """A comparator that fails on its second segmentation."""

    name = "broken"
    uses_clicks = True
    needs_training = False

    def __init__(self, inputs: object) -> None:
        self.calls = 0

    def train(self, cases, folder, budget, on_progress) -> None:
        raise AssertionError("nobody trains it")

    def load(self, folder) -> None:
        self.calls = 0

    def segment(self, target, clicks):
        self.calls += 1
        if self.calls > 1:
            raise ValueError("wheels came off")
        return np.zeros(target.stack.shape, dtype=bool)


def write_benchmark(folder: Path, extra: str = "") -> Path:
    """Data, a bundle with random weights that knows the first patient, and ``bench.toml``; returns its path."""
    write_cases(folder / "data")
    for kind in ("image", "label"):
        shutil.copyfile(folder / "data" / f"b_{kind}.nii.gz", folder / "data" / f"c_{kind}.nii.gz")
    config_path = write_config(folder, 2, 2, 2)
    text = config_path.read_text(encoding="utf-8")
    text = text.replace('train = ["a", "b"]', 'train = ["a"]\nvalidation = ["b", "c"]')
    config_path.write_text(text, encoding="utf-8")
    write_bundle(folder, config_path, seed=0)
    path = folder / "bench.toml"
    path.write_text(TEXT.format(extra=extra), encoding="utf-8")
    return path


def write_bundle(folder: Path, config_path: Path, seed: int) -> None:
    """A bundle of random weights; another seed gives other weights."""
    config = read_training_config(config_path)
    torch.manual_seed(seed)
    save_bundle(SPDModel(config.network), config, config_path.name, folder / "bundle")


def options(path: Path, **changes: object) -> BenchmarkOptions:
    """Run from ``path`` with everything below its folder."""
    values = {"output": path.parent / "results", "work": path.parent / "work", "device": "cpu"} | changes
    return BenchmarkOptions(path, **values)  # type: ignore[arg-type]


def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs draw nothing: that takes longer than all else, and other tests look at the figures."""
    monkeypatch.setattr("spdbench.command.draw_figures", lambda *_: None)
