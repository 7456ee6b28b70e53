"""Joint rows of a benchmark as plans that a GPU trains, and what it trained as the bundles that the benchmark wants."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors.torch import load_file

from joint_pack import Plan
from spdbench.comparators.joint_training import JointTraining
from spdbench.comparators.own_training import base_weights
from spdbench.config import read_benchmark_config
from spdbench.datasets import Dataset
from spdbench.entries import Entry, EntryMaker
from SPDSegmentLib.files import write_json
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.training.joint import save_joint_bundle
from SPDSegmentLib.training.joint_config import JointConfig, read_joint_config

ABLATION = "ablation"


def entries_of(path: Path, work: Path) -> Iterator[tuple[str, Entry, JointTraining]]:
    """Name, entry and training of every model that the joint rows of a benchmark rest on, each once."""
    config = read_benchmark_config(path)
    maker, seen = EntryMaker(config, work), set[str]()
    datasets = [Dataset(spec, config.folder, config.limit) for spec in config.datasets.values()]
    for method in config.methods.values():
        for dataset in datasets:
            if method.kind != "joint" or not dataset.spec.takes(method):
                continue
            for fold in dataset.folds:
                entry = maker.entry(method.name, dataset, fold)
                if entry.not_run or entry.model in seen:
                    continue
                seen.add(entry.model)
                training = entry.make()
                assert isinstance(training, JointTraining)
                yield f"{method.name}-{fold.name}", entry, training


def plans_of(path: Path, also: Sequence[Path]) -> list[Plan]:
    """Plans of all models, ablations last; adapters of ablations are not kept."""
    plans = [
        (entry.method.group == ABLATION, Plan.of(name, training.config, training.root, entry.method.group != ABLATION))
        for name, entry, training in entries_of(path, Path("runs"))
    ]
    further = [(False, Plan.of(file.stem, read_joint_config(file), file.parent)) for file in also]
    return [plan for _, plan in sorted([*plans, *further], key=lambda item: item[0])]


def bundle(path: Path, also: Sequence[Path], trained: Path, work: Path) -> None:
    """Put what was trained where the benchmark looks for it.

    Raises:
        SystemExit: an adapter took other steps than the benchmark says.
    """
    for name, entry, training in entries_of(path, work):
        if not (trained / f"{name}.safetensors").exists():
            continue
        model, record = _trained(trained, name, training.config)
        folder = entry.folder(work)
        parameters = training.write_bundle(model, base_weights(training.config.network.backbone), folder)
        seconds = record["slices"] / record["slices_per_second"]
        write_json(
            folder / "training.json", {"steps": record["steps"], "seconds": round(seconds, 1), "parameters": parameters}
        )
        print(f"{name}: {folder}")
    for file in also:
        config = dataclasses.replace(read_joint_config(file), initialize_from="")
        model, _ = _trained(trained, file.stem, config)
        print(save_joint_bundle(model, config, file.name, file.parent, work / file.stem).folder)


def _trained(folder: Path, name: str, config: JointConfig) -> tuple[SPDModel, dict[str, float]]:
    """A model that was trained, and the record of it."""
    record: dict[str, float] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    steps = config.stage.steps
    if record["steps"] != steps:
        raise SystemExit(f"{name} was trained for {record['steps']} steps, the benchmark says {steps}: change one.")
    model = SPDModel(config.network, base_weights(config.network.backbone))
    model.load_adapter_state(load_file(folder / f"{name}.safetensors"))
    return model, record
