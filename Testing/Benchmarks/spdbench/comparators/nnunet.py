"""nnU-Net (Isensee et al. 2021) through its own package ``nnunetv2``: fingerprint, plan, preprocessing, training.

Its configuration ``2d`` by default. Optimizer, loss, augmentation, patch and batch size are its own; the number of
steps is the budget's, split into short epochs. Clicks are a second image channel, which its augmentation treats like
any other; it is written with a few draws of click noise per target, because nnU-Net reads its data once.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spdbench.comparators.inputs import NetworkClicks, pixels_in, random_severity, window_of
from spdbench.comparators.learned import WEIGHTS_NAME, TrainingRecord, keep_weights, open_record, take_weights
from spdbench.comparators.protocol import Budget, ClickedSegmenter, InputSettings, NotRun, OnProgress, TrainingCase
from SPDSegmentLib.evaluation.evaluator import EvaluationTarget
from SPDSegmentLib.files import write_json, write_text
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.inference.engine import choose_device
from SPDSegmentLib.networks.backbones import save_checkpoint

DATASET_ID = 1
DATASET_NAME = "Dataset001_Target"
FILE_ENDING = ".nii.gz"


def channels_of(
    stack: SliceStack, clicks: Clicks, inputs: InputSettings, with_clicks: bool
) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Image, and how near the clicks are, in the volume's own pixels within the field of view.

    Args:
        clicks: inside the volume.

    Returns:
        (C, T, h, w) float32, and the rows and columns that were cut out.
    """
    window = window_of(stack, clicks, inputs)
    part = pixels_in(window)
    channels = [stack.array[:, part[0], part[1]].astype(np.float32)]
    if with_clicks:
        seen = NetworkClicks.in_window(clicks, window, stack)
        nearness = np.stack([seen.nearness(t) for t in range(stack.n_slices)])
        channels.append(window.restore(nearness, 0.0)[:, part[0], part[1]])
    return np.stack(channels), part


def spacing_of(stack: SliceStack) -> list[float]:
    """(slice, row, column) in mm, nnU-Net's order."""
    return [stack.slice_mm, *stack.pixel_mm]


def write_dataset(
    raw: Path, cases: Sequence[TrainingCase], inputs: InputSettings, with_clicks: bool, draws: int
) -> int:
    """Write images and labels in nnU-Net's layout; returns how many samples.

    nnU-Net reads its data once, so every target is written with ``draws`` draws of click noise. Without clicks the
    label is all targets of the case together.
    """
    from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json

    folder = raw / DATASET_NAME
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([inputs.seed, 12])
    count = 0
    for case in cases:
        for target in case.targets:
            truth = target.mask if with_clicks else case.union()
            for _ in range(draws):
                clicks, _ = target.clicks(*random_severity(rng, inputs))
                channels, part = channels_of(case.stack, clicks, inputs, with_clicks)
                for i, channel in enumerate(channels):
                    _write(folder / "imagesTr" / f"case_{count:04d}_{i:04d}{FILE_ENDING}", channel, case.stack)
                label = truth[:, part[0], part[1]].astype(np.uint8)
                _write(folder / "labelsTr" / f"case_{count:04d}{FILE_ENDING}", label, case.stack)
                count += 1
    names = {0: "CT" if inputs.intensity.kind == "window" else "MRI"} | ({1: "noNorm"} if with_clicks else {})
    labels = {"background": 0, "target": 1}
    generate_dataset_json(str(folder), names, labels, count, FILE_ENDING, license="", converted_by="SPDSegment")
    return count


def _write(path: Path, array: np.ndarray, stack: SliceStack) -> None:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing(spacing_of(stack)[::-1])
    sitk.WriteImage(image, str(path))


STEPS_PER_EPOCH = 25
STATE_NAME = "training.ckpt"


class NnUNet(ClickedSegmenter):
    """nnU-Net with the click channel.

    Args:
        configuration: of nnU-Net, ``2d`` or ``3d_fullres``.
        draws: of click noise per target.
        memory_gb: of the GPU that nnU-Net plans patch, batch and network for; its own default is 8. A smaller one
            makes a CPU's steps bearable, and must then be stated beside the figures.
    """

    name = "nnunet-clicks"
    uses_clicks = True
    needs_training = True
    with_clicks = True

    def __init__(
        self, inputs: InputSettings, configuration: str = "2d", draws: int = 4, memory_gb: float = 8.0
    ) -> None:
        self.inputs = inputs
        self.memory_gb = memory_gb
        self.configuration = configuration
        self.draws = draws if self.with_clicks else 1
        self.device = choose_device(inputs.device)
        self.uses_clicks = self.with_clicks or inputs.fov_mm > 0
        self._predictor: Any = None

    def settings(self) -> dict[str, Any]:
        """What identifies a training besides its cases."""
        return {
            "name": self.name,
            "inputs": asdict(self.inputs),
            "configuration": self.configuration,
            "draws": self.draws,
            "memory_gb": self.memory_gb,
        }

    def train(self, cases: Sequence[TrainingCase], folder: Path, budget: Budget, on_progress: OnProgress) -> None:
        """Plan, preprocess and train within a budget; see the protocol."""
        _require_package()
        record = open_record(folder, self.settings())
        if record.finished:
            return
        begun = time.monotonic()
        with _environment(folder, loaders=1):
            plans_name = self._prepare(cases, folder)
        record.seconds += time.monotonic() - begun
        record.write(folder)
        with _environment(folder, loaders=0):
            trainer = self._trainer(folder, plans_name, budget, record, on_progress)
            with contextlib.suppress(_BudgetSpent):
                trainer.run_training()
            keep_weights(dict(trainer.network.named_parameters()), folder / WEIGHTS_NAME)
            for name, value in (("plans.json", trainer.plans_manager.plans), ("dataset.json", trainer.dataset_json)):
                write_json(folder / name, value)
        record.finished = True
        record.write(folder)

    def load(self, folder: Path) -> None:
        """Build the planned network and load its weights."""
        _require_package()
        if not (folder / WEIGHTS_NAME).exists():
            raise NotRun("not trained")
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
        from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        plans = PlansManager(json.loads((folder / "plans.json").read_text(encoding="utf-8")))
        dataset = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        configuration = plans.get_configuration(self.configuration)
        network = nnUNetTrainer.build_network_architecture(
            plans,
            configuration,
            determine_num_input_channels(plans, configuration, dataset),
            plans.get_label_manager(dataset).num_segmentation_heads,
            enable_deep_supervision=False,
        )
        take_weights(dict(network.named_parameters()), folder / WEIGHTS_NAME)
        axes = tuple(range(len(configuration.patch_size)))
        with _quiet(None):
            predictor = nnUNetPredictor(device=self.device, allow_tqdm=False)
        network = network.to(self.device)
        parameters = [network.state_dict()]
        predictor.manual_initialization(network, plans, configuration, parameters, dataset, "nnUNetTrainer", axes)
        self._predictor = predictor

    def segment_clicked(self, target: EvaluationTarget, clicks: Clicks) -> np.ndarray:
        """(T, H, W) bool; empty outside the field of view."""
        if self._predictor is None:
            raise RuntimeError("load() comes first")
        stack = target.stack
        mask = np.zeros(stack.shape, dtype=bool)
        channels, (rows, columns) = channels_of(stack, clicks, self.inputs, self.with_clicks)
        with _quiet(None):
            labels = self._predictor.predict_single_npy_array(channels, {"spacing": spacing_of(stack)})
        mask[:, rows, columns] = np.asarray(labels) == 1
        return mask

    def _prepare(self, cases: Sequence[TrainingCase], folder: Path) -> str:
        """Data set, fingerprint, plans and preprocessed data; done once per folder. Returns the name of the plans."""
        from nnunetv2.experiment_planning.plan_and_preprocess_api import (
            extract_fingerprints,
            plan_experiments,
            preprocess_dataset,
        )

        done = folder / "prepared.txt"
        if done.exists():
            return done.read_text(encoding="utf-8")
        with _quiet(folder / "nnunet.log"):
            write_dataset(folder / "raw", cases, self.inputs, self.with_clicks, self.draws)
            extract_fingerprints([DATASET_ID], num_processes=1, verbose=False, show_progress_bar=False)
            plans_name = plan_experiments([DATASET_ID], gpu_memory_target_in_gb=self.memory_gb)
            preprocess_dataset(DATASET_ID, plans_name, (self.configuration,), (1,), show_progress_bar=False)
        write_text(done, plans_name)
        return plans_name

    def _trainer(
        self, folder: Path, plans_name: str, budget: Budget, record: TrainingRecord, on_progress: OnProgress
    ) -> Any:
        """nnU-Net's trainer with the budget's number of steps, standing where it was stopped."""
        trainer_class = _budgeted_trainer(self, folder, budget, record, on_progress)
        preprocessed = folder / "preprocessed" / DATASET_NAME
        plans = json.loads((preprocessed / f"{plans_name}.json").read_text(encoding="utf-8"))
        dataset = json.loads((preprocessed / "dataset.json").read_text(encoding="utf-8"))
        with _quiet(folder / "nnunet.log"):
            torch.manual_seed(self.inputs.seed)
            trainer = trainer_class(
                {**plans, "continue_training": False}, self.configuration, "all", dataset, self.device
            )
            trainer.num_iterations_per_epoch = min(STEPS_PER_EPOCH, budget.steps)
            trainer.num_epochs = math.ceil(budget.steps / trainer.num_iterations_per_epoch)
            trainer.num_val_iterations_per_epoch = 1
            trainer.disable_checkpointing = True
            trainer.initialize()
        record.parameters = sum(p.numel() for p in trainer.network.parameters())
        if (folder / STATE_NAME).exists():
            trainer.restore(torch.load(folder / STATE_NAME, map_location=self.device, weights_only=True))
        return trainer


class NnUNetWithoutClicks(NnUNet):
    """nnU-Net on the image alone; learns all structures of a case together."""

    name = "nnunet"
    with_clicks = False


class _BudgetSpent(Exception):
    """The seconds are used up."""


def _budgeted_trainer(
    owner: NnUNet, folder: Path, budget: Budget, record: TrainingRecord, on_progress: OnProgress
) -> Any:
    """nnU-Net's trainer class, seeded by epoch, reporting and saving after every epoch."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    before, begun = record.seconds, time.monotonic()

    class BudgetedTrainer(nnUNetTrainer):
        """Writes plain tensors instead of nnU-Net's own checkpoints, which would have to be unpickled."""

        def run_training(self) -> None:
            with _quiet(folder / "nnunet.log"):
                super().run_training()

        def plot_network_architecture(self) -> None:
            """Not needed."""

        def on_epoch_start(self) -> None:
            seed = owner.inputs.seed * 100_003 + self.current_epoch
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            super().on_epoch_start()

        def on_epoch_end(self) -> None:
            loss = float(self.logger.get_value("train_losses", step=-1))
            super().on_epoch_end()
            record.steps = self.current_epoch * self.num_iterations_per_epoch
            record.seconds = before + time.monotonic() - begun
            self._keep()
            record.write(folder)
            with contextlib.redirect_stdout(sys.__stdout__):
                on_progress(record.steps, self.num_epochs * self.num_iterations_per_epoch, {"total": loss})
            if 0 < budget.seconds <= record.seconds:
                raise _BudgetSpent

        def _keep(self) -> None:
            state = {
                "epoch": self.current_epoch,
                "network": dict(self.network.named_parameters()),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.grad_scaler.state_dict() if self.grad_scaler is not None else {},
                "logging": json.loads(json.dumps(self.logger.get_checkpoint(), default=float)),
                "best": float(self._best_ema),
            }
            save_checkpoint(folder / STATE_NAME, state)

        def restore(self, state: dict[str, Any]) -> None:
            """Continue from what :meth:`_keep` wrote."""
            with torch.no_grad():
                for name, parameter in self.network.named_parameters():
                    parameter.copy_(state["network"][name])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.grad_scaler is not None:
                self.grad_scaler.load_state_dict(state["scaler"])
            self.logger.load_checkpoint(state["logging"])
            self._best_ema = state["best"]
            self.current_epoch = state["epoch"]

    return BudgetedTrainer


def _require_package() -> None:
    """Raise :class:`NotRun` where nnU-Net is not installed."""
    try:
        import nnunetv2  # noqa: F401
    except ImportError as error:
        raise NotRun("the package nnunetv2 is not installed (pip install 'nnunetv2>=2.8')") from error


@contextlib.contextmanager
def _environment(folder: Path, loaders: int) -> Iterator[None]:
    """nnU-Net's folders below ``folder``; without loader processes its order of cases is repeatable."""
    values = {
        "nnUNet_raw": str(folder / "raw"),
        "nnUNet_preprocessed": str(folder / "preprocessed"),
        "nnUNet_results": str(folder / "results"),
        "nnUNet_n_proc_DA": str(loaders),
        "nnUNet_def_n_proc": "1",
        "nnUNet_compile": "f",
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _quiet(log: Path | None) -> Iterator[None]:
    """What nnU-Net prints goes into a file, or nowhere."""
    with open(log or os.devnull, "a", encoding="utf-8") as stream, contextlib.redirect_stdout(stream):
        yield
