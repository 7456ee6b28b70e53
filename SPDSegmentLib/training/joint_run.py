"""One joint training from configuration to bundle; stopped runs go on where they were."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from SPDSegmentLib import __version__
from SPDSegmentLib.geometry.intensity import IntensityConfig
from SPDSegmentLib.geometry.limits import keep_freed_memory
from SPDSegmentLib.locks import FolderLock
from SPDSegmentLib.models.base_weights import base_weights_sha256
from SPDSegmentLib.models.bundle import Bundle, write_bundle
from SPDSegmentLib.models.bundle_info import BundleInfo
from SPDSegmentLib.models.terminology import terminology_entry
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.training.distributed import Processes
from SPDSegmentLib.training.joint import JointStageRunner, KeptRun, keep_runs
from SPDSegmentLib.training.joint_batches import JointSampler
from SPDSegmentLib.training.joint_cases import case_names, load_joint_cases
from SPDSegmentLib.training.joint_config import JointConfig
from SPDSegmentLib.training.loop import Loop
from SPDSegmentLib.training.result import adapter_tensors, model_card
from SPDSegmentLib.training.run import RunHooks, forward_progress
from SPDSegmentLib.training.run_folder import claim, run_key

if TYPE_CHECKING:
    from torch import Tensor

KEPT = "embeddings"


def train_joint(
    config: JointConfig,
    root: Path,
    run_folder: Path,
    weights: Path | None,
    processes: Processes,
    hooks: RunHooks | None = None,
    start: dict[str, Tensor] | None = None,
) -> SPDModel:
    """Train a click-conditioned model on several data sets; the run's folder is locked meanwhile.

    Args:
        root: what the folders of the data sets are relative to.
        run_folder: checkpoints, curves and kept embeddings; made if missing.
        weights: base weights of the backbone, ``None`` for random ones.
        start: adapter tensors of a bundle that the training starts from.

    Returns:
        The trained model with its adapters unmerged.

    Raises:
        BadInput: the run folder belongs to another configuration or is in use, or a case cannot be used.
        ModelCorrupt: a checkpoint cannot be continued.
        Cancelled: the user stopped; the same call goes on.
    """
    hooks = hooks or RunHooks()
    run_folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(run_folder, "training"):
        claim(run_folder, config)
        loop = Loop(
            run_folder, config.checkpoint_seconds, forward_progress(hooks), hooks.cancelled, processes, run_key(config)
        )
        loop.check()
        if processes.device.type == "cpu":
            keep_freed_memory()
        torch.manual_seed(config.seed)
        model = SPDModel(config.network, weights).to(processes.device)
        if start is not None:
            model.load_adapter_state(start)
        volumes, targets = load_joint_cases(
            config.sets,
            root,
            config.stage,
            config.seed,
            lambda done, total: hooks.on_progress("reading cases", done, total, None, {}),
        )
        sampler = JointSampler(volumes, targets, config.network, config.stage, config.augmentation, processes.device)
        hooks.say(f"{len(volumes)} volumes, {len(targets)} structures of {len(sampler.groups)} kinds.")
        kept = _kept(model, sampler, config, run_folder / KEPT, processes, hooks)
        loop.run(JointStageRunner(model, sampler, config, processes, kept).phase())
        if (run_folder / KEPT).is_dir():
            shutil.rmtree(run_folder / KEPT, ignore_errors=True)
    return model


def _kept(
    model: SPDModel, sampler: JointSampler, config: JointConfig, folder: Path, processes: Processes, hooks: RunHooks
) -> list[KeptRun]:
    if config.stage.entries == 0:
        return []
    cells = (config.network.image_size // model.stride) ** 2
    size = config.stage.entries * config.stage.run_length * cells * model.prompt_encoder.embed_dim * 2  # type: ignore[operator]
    hooks.say(f"Embeddings are kept in {folder} until the training ends, about {size / 1e9:.1f} GB.")
    return keep_runs(
        model,
        sampler,
        config,
        folder,
        processes,
        lambda done, total: hooks.on_progress("computing embeddings", done, total, None, {}),
        hooks.cancelled,
    )


def joint_bundle_info(config: JointConfig, config_name: str, root: Path) -> BundleInfo:
    """Describe the model of a finished joint training."""
    network = dataclasses.asdict(config.network)
    backbone, image_size = network.pop("backbone"), network.pop("image_size")
    red, green, blue = config.bundle.color
    cases = [f"{key}/{name}" for key, spec in config.sets.items() for name in case_names(spec, root / spec.folder)]
    return BundleInfo(
        name=config.bundle.name,
        title=config.bundle.title,
        structure=config.bundle.structure,
        modality=config.bundle.modality,
        slicing_axis="auto",
        normalization=dataclasses.asdict(IntensityConfig("auto")),
        backbone=backbone,
        backbone_sha256="" if backbone == "tiny_random" else base_weights_sha256(backbone),
        image_size=image_size,
        fov_mm=0.0,
        network=network,
        prompts=dataclasses.asdict(config.prompts),
        library_version=__version__,
        training={
            "dataset": config.bundle.dataset,
            "license": config.bundle.license,
            "attribution": config.bundle.attribution,
            "patients": cases,
            "validation_patients": [],
            "config": config_name,
            "seed": config.seed,
            "strategy": "consensus",
            "steps": {f"of {config.stage.runs_per_step * config.stage.run_length} slices": config.stage.steps},
            "structures": sorted({structure for spec in config.sets.values() for structure in spec.structures}),
            "start": config.initialize_from,
        },
        metrics={},
        terminology=terminology_entry(config.bundle.structure, config.bundle.code),
        color=(red, green, blue),
    )


def save_joint_bundle(model: SPDModel, config: JointConfig, config_name: str, root: Path, folder: Path) -> Bundle:
    """Write the bundle of a finished joint training."""
    info = joint_bundle_info(config, config_name, root)
    return write_bundle(folder, info, adapter_tensors(model), model_card(info))
