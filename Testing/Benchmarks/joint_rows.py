"""Joint rows of a benchmark as plans that a GPU trains, and what it trained as the bundles that the benchmark wants."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from joint_files import Trained, adapter_of
from joint_pack import Plan, same_slices
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
                alone = "{dataset}" in method.joint or method.learns in ("own", "other-structures")
                place = f"{method.name}-{dataset.name}" if alone else method.name
                yield f"{place}-{fold.name}", entry, training


def plans_of(path: Path, also: Sequence[Path]) -> list[Plan]:
    """Plans of all models, ablations last; adapters of ablations are not kept.

    Raises:
        SystemExit: two plans have one name, or one starts from a model.
    """
    plans = []
    for name, entry, training in entries_of(path, Path("runs")):
        if training.describe_model().get("stage1"):
            raise SystemExit(
                f"{name} starts from stage I of {entry.method.stage1_from}, which is not packed: take its row out of "
                "the benchmark, or let python -m spdbench train it."
            )
        ablation = entry.method.group == ABLATION
        plans.append((ablation, Plan.of(name, training.config, training.root, not ablation)))
    for file in also:
        config = read_joint_config(file)
        if config.initialize_from:
            raise SystemExit(
                f"{file} starts from {config.initialize_from}, which is not packed: take initialize_from out, or let "
                "spdsegment train train it."
            )
        plans.append((False, Plan.of(file.stem, config, file.parent)))
    names = [plan.name for _, plan in plans]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SystemExit(f"Two plans are named {twice[0]}: rename the row, or the file of --also.")
    return [plan for _, plan in sorted(plans, key=lambda item: item[0])]


def bundle(path: Path, also: Sequence[Path], trained: Sequence[Path], work: Path) -> None:
    """Put what was trained where the benchmark looks for it.

    Args:
        trained: folders of :class:`joint_files.Trained`; of what several have that of the last is taken.

    Raises:
        SystemExit: after all others, an adapter took other steps than the benchmark says, or is of no row.
    """
    problems = []
    records = {name: record for folder in trained for name, record in Trained(folder).records().items()}
    left = {name for name, record in records.items() if record.get("keep")}
    for name, entry, training in entries_of(path, work):
        left.discard(name)
        found = _trained(trained, records, name, training.config)
        if isinstance(found, str):
            problems.append(found)
        if not isinstance(found, tuple):
            continue
        model, training.config = found
        folder = entry.folder(work)
        parameters = training.write_bundle(model, base_weights(training.config.network.backbone), folder)
        about = {"steps": training.config.stage.steps, "seconds": records[name]["seconds"], "parameters": parameters}
        write_json(folder / "training.json", about)
        print(f"{name}: {folder}")
    for file in also:
        left.discard(file.stem)
        found = _trained(trained, records, file.stem, read_joint_config(file))
        if isinstance(found, str):
            problems.append(found)
        elif found is not None:
            print(save_joint_bundle(*found, file.name, file.parent, work / file.stem).folder)
    if left:
        problems.append(f"No row of {path} is named {', '.join(sorted(left))}: name the benchmark and --also of pack.")
    if problems:
        raise SystemExit("\n".join(problems))


def _trained(
    folders: Sequence[Path], records: Mapping[str, Mapping[str, Any]], name: str, config: JointConfig
) -> tuple[SPDModel, JointConfig] | str | None:
    """A model that was trained, and its configuration with the steps that it took; or why it cannot be used.

    ``None`` where nothing is to be used.
    """
    record = records.get(name)
    if record is None or not record.get("keep"):
        return None
    stage = config.stage
    runs = record["runs_per_step"]
    steps = same_slices(stage, runs)
    if record["steps"] != steps:
        return (
            f"{name} was trained for {record['steps']} steps, the benchmark says {steps}: go on with train, or change "
            "the benchmark."
        )
    weights = base_weights(config.network.backbone)
    adapter = adapter_of(folders, name, weights)
    if not adapter:
        return f"{name} was trained, but its adapter is in none of the folders: name all that came back."
    model = SPDModel(config.network, weights)
    model.load_adapter_state(adapter)
    return model, dataclasses.replace(config, stage=dataclasses.replace(stage, steps=steps, runs_per_step=runs))
