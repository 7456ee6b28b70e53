"""Rows of ours that are trained for the benchmark: folds of a cross-validation, and ablations that need a training."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from spdbench.comparators.bundle_row import BundleRow, distillation_identity
from spdbench.comparators.protocol import Budget, InputSettings, NotRun, OnProgress, TrainingCase
from SPDSegmentLib.errors import SPDError
from SPDSegmentLib.evaluation.evaluator import EvaluationTarget, Fates
from SPDSegmentLib.files import write_json
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.models.base_weights import find_base_weights
from SPDSegmentLib.models.bundle import Bundle, read_bundle
from SPDSegmentLib.networks.backbones import load_adapter
from SPDSegmentLib.settings import build_settings
from SPDSegmentLib.training.config import TrainingConfig
from SPDSegmentLib.training.loop import join_processes
from SPDSegmentLib.training.result import save_bundle
from SPDSegmentLib.training.run import RunHooks, train

Config = TypeVar("Config")


class TrainedRow:
    """A row that trains its own bundle and is then used as :class:`BundleRow` is.

    Args:
        inputs: its device is used.
        prompts, overrides, name: as for :class:`BundleRow`.
    """

    needs_training = True
    uses_clicks = True

    def __init__(
        self, inputs: InputSettings, *, prompts: str, overrides: Mapping[str, Any] | None = None, name: str = "spd"
    ) -> None:
        self.name = name
        self._inputs = inputs
        self._row_settings: dict[str, Any] = {"prompts": prompts, "overrides": overrides, "name": name}
        self._row: BundleRow | None = None

    def train(self, cases: Sequence[TrainingCase], folder: Path, budget: Budget, on_progress: OnProgress) -> None:
        """Train and write ``folder/bundle``; a stopped training goes on. Cases are read from their files.

        Raises:
            NotRun: base weights, or what the training starts from, are missing.
        """
        if (folder / "bundle").is_dir():
            return
        begun = time.monotonic()
        hooks = RunHooks(lambda what, done, total, left, losses: on_progress(done, total, losses))
        parameters = self.train_bundle(folder, hooks)
        record = {"steps": self.steps, "seconds": round(time.monotonic() - begun, 1), "parameters": parameters}
        write_json(folder / "training.json", record)

    @property
    def steps(self) -> int:
        """Of a whole training."""
        raise NotImplementedError

    def train_bundle(self, folder: Path, hooks: RunHooks) -> int:
        """Train, write ``folder/bundle``, and return the number of trainable parameters."""
        raise NotImplementedError

    def describe_model(self) -> dict[str, Any]:
        """What the trained model depends on, JSON-ready."""
        raise NotImplementedError

    def load(self, folder: Path) -> None:
        """Bring the trained bundle into memory; raises :class:`NotRun` where there is none."""
        if not (folder / "bundle").is_dir():
            raise NotRun("not trained")
        self._row = BundleRow(self._inputs, bundle=self.trained_bundle(folder), **self._row_settings)
        self._row.load(folder)

    def trained_bundle(self, folder: Path) -> Bundle:
        """The bundle that was trained in ``folder``."""
        return read_bundle(folder / "bundle")

    def segment(self, target: EvaluationTarget, clicks: Clicks) -> np.ndarray:
        """(T, H, W) bool."""
        if self._row is None:
            raise RuntimeError("load() comes first")
        return self._row.segment(target, clicks)

    @property
    def click_fates(self) -> Fates | None:
        """As of :class:`BundleRow`."""
        return self._row.click_fates if self._row is not None else None

    def saliency(self, target: EvaluationTarget, clicks: Clicks) -> np.ndarray:
        """S of every slice, (T, H, W) float32."""
        if self._row is None:
            raise RuntimeError("load() comes first")
        return self._row.saliency(target, clicks)

    def describe(self) -> dict[str, Any]:
        """What the result depends on, JSON-ready."""
        identity = distillation_identity(self._row_settings["prompts"])
        return {**self.describe_model(), **self._row_settings, "name": "", **identity}


class OwnTraining(TrainedRow):
    """SPD, SAM-Tuning or an ablation, trained as ``spdsegment train`` does and used as :class:`BundleRow` does.

    The steps are those of the configuration, whatever the budget of the other comparators is.

    Args:
        inputs: its device is used.
        config: training configuration; its ``data.train`` are the training cases.
        data_folder: where they lie.
        stage1: folder of the bundle whose stage I is taken over; ``None`` trains stage I.
        stage1_identity: what stands for that bundle in :meth:`describe`.
        prompts, overrides, name: as for :class:`BundleRow`.
    """

    def __init__(
        self,
        inputs: InputSettings,
        *,
        config: TrainingConfig,
        data_folder: Path,
        stage1: Path | None = None,
        stage1_identity: str = "",
        prompts: str = "consensus",
        overrides: Mapping[str, Any] | None = None,
        name: str = "spd",
    ) -> None:
        super().__init__(inputs, prompts=prompts, overrides=overrides, name=name)
        self.config = config
        self._data_folder = data_folder
        self._stage1 = stage1
        self._stage1_identity = stage1_identity

    @property
    def steps(self) -> int:
        """See the base class."""
        return self.config.stage1.steps + self.config.stage2.head_steps + self.config.stage2.steps

    def train_bundle(self, folder: Path, hooks: RunHooks) -> int:
        """See the base class; raises :class:`NotRun` where the row whose stage I is wanted is not trained."""
        weights = base_weights(self.config.network.backbone)
        state = stage1_state(self._stage1)
        model = train(
            self.config,
            self._data_folder,
            folder / "run",
            weights,
            join_processes(self._inputs.device),
            hooks,
            state,
            embeddings=self._embeddings(folder),
        )
        parameters = sum(p.numel() for p in model.stage1_parameters() + model.stage2_parameters())
        save_bundle(model, self.config, "benchmark", folder / "bundle")
        return parameters

    def describe_model(self) -> dict[str, Any]:
        """What the trained model depends on, JSON-ready."""
        config = dataclasses.asdict(dataclasses.replace(self.config, checkpoint_seconds=0.0))
        config["data"].pop("validation")
        config["data"].pop("folder")
        return {
            "training": config,
            "stage1": self._stage1_identity,
            **distillation_identity(self.config.stage2.strategy),
        }

    def _embeddings(self, folder: Path) -> Path | None:
        """Where the kept embeddings lie: beside the run where other ablations on the same stage I can use them too."""
        if self._stage1 is None:
            return None
        depends = self.describe_model()
        depends.pop("distillation", None)
        training = depends["training"]
        stage2 = training.pop("stage2")
        depends["views"] = {"entries": stage2["entries"], "margin": stage2["margin"]}
        for name in ("bundle", "prompts", "stage1", "initialize_from"):
            training.pop(name)
        for name in ("decoder", "decoder_lora_rank", "dense_saliency_prompt"):
            training["network"].pop(name)
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True, default=str).encode()).hexdigest()
        return folder.parent / f"embeddings-{digest[:10]}"


def stage1_state(folder: Path | None) -> dict[str, Tensor] | None:
    """Adapter tensors of the bundle that a training starts from; raises :class:`NotRun` where it is not trained."""
    if folder is None:
        return None
    if not folder.is_dir():
        raise NotRun("the row whose stage I it takes over is not trained")
    return load_adapter(read_bundle(folder))


def changed_config(config: Config, changes: Mapping[str, Any], where: str = "[train]") -> Config:
    """A configuration with settings of nested tables replaced; a group of tables takes ``"*"`` for all of them.

    Raises:
        BadInput: unknown setting, or one of another kind.
    """
    fields = dataclasses.fields(config)  # type: ignore[arg-type]
    values: dict[str, Any] = {field.name: getattr(config, field.name) for field in fields}
    for key, value in changes.items():
        current = values.get(key)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(current):
            values[key] = changed_config(current, value, f"{where} {key}")
        elif isinstance(value, Mapping) and key == "sets" and isinstance(current, dict):
            values[key] = {
                name: changed_config(table, {**value.get("*", {}), **value.get(name, {})}, f"{where} {key}.{name}")
                for name, table in current.items()
            }
        else:
            values[key] = value
    changed: Config = build_settings(type(config), values, where)
    return changed


def base_weights(backbone: str) -> Path | None:
    """Verified base weights of a backbone; raises :class:`NotRun` where they are not here."""
    try:
        return None if backbone == "tiny_random" else find_base_weights(backbone)
    except SPDError as error:
        raise NotRun(f"weights of {backbone} not available") from error
