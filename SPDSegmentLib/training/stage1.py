"""Stage I, the anatomical prior: encoder LoRA and saliency head learn S_t = f_sal(I_t) (paper, stage I)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from SPDSegmentLib.networks.losses import dice_loss, focal_loss, segmentation_loss
from SPDSegmentLib.networks.saliency_head import adjoining
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.training.augmentation import AugmentedView, apply_view, random_view
from SPDSegmentLib.training.cases import Case, TargetMask
from SPDSegmentLib.training.config import Stage1Config, TrainingConfig
from SPDSegmentLib.training.distributed import Processes
from SPDSegmentLib.training.loop import Phase


class Stage1:
    """Draws runs of slices and computes the stage's loss.

    Args:
        cases: training cases in memory.
    """

    def __init__(self, model: SPDModel, cases: Sequence[Case], config: TrainingConfig, processes: Processes) -> None:
        self.model = model
        self.cases = cases
        self.config = config
        self.processes = processes

    def phase(self) -> Phase:
        """The stage as a phase of the training loop."""
        stage = self.config.stage1
        return Phase(
            "stage1",
            self.model.stage1_parameters(),
            stage.steps,
            stage.learning_rate,
            stage.weight_decay,
            stage.warmup,
            self.loss,
        )

    def loss(self, step: int) -> dict[str, Tensor]:
        """Mean segmentation loss of the saliency over a fresh batch."""
        stage = self.config.stage1
        rng = np.random.default_rng([self.config.seed, 1, step, self.processes.rank])
        runs = [self._draw(rng, stage) for _ in range(stage.runs_per_step)]
        images = torch.cat([image for image, _ in runs]).to(self.processes.device)
        target = torch.cat([mask for _, mask in runs]).to(self.processes.device)
        with self.processes.autocast():
            embeddings = self.model.encode(images)
            logits = saliency_of_runs(self.model, embeddings, [len(image) for image, _ in runs])
        return saliency_losses(logits, target, stage)

    def _draw(self, rng: np.random.Generator, stage: Stage1Config) -> tuple[Tensor, Tensor]:
        case = self.cases[int(rng.integers(len(self.cases)))]
        target = case.targets[int(rng.integers(len(case.targets)))] if case.targets else None
        part = draw_slices(rng, case, target, stage)
        view = draw_view(rng, case, target, self.config)
        return apply_view(case.images[part], view, image=True), apply_view(case.salient[part], view, image=False) > 0.5


def draw_slices(rng: np.random.Generator, case: Case, target: TargetMask | None, stage: Stage1Config) -> slice:
    """A run of neighboring slices, around the target or, with ``background_share`` or without any, anywhere."""
    n = len(case.images)
    length = min(stage.run_length, n)
    if rng.random() < stage.background_share or target is None:
        first = int(rng.integers(0, n - length + 1))
    else:
        low = max(0, target.first - stage.margin)
        high = min(n, target.last + 1 + stage.margin)
        first = int(np.clip(rng.integers(low, max(low + 1, high - length + 1)), 0, n - length))
    return slice(first, first + length)


def draw_view(rng: np.random.Generator, case: Case, target: TargetMask | None, config: TrainingConfig) -> AugmentedView:
    """A random view around a target, or of the whole slice where the field of view is not limited.

    In a case without the structure it lies anywhere in the middle half of the slice.
    """
    center = target.center_xy if config.fov_mm > 0 and target is not None else slice_middle(case)
    if config.fov_mm > 0 and target is None:
        center = center * rng.uniform(0.5, 1.5, 2)
    fov = field_of_view(case, config.fov_mm)
    size, dither = config.network.image_size, config.intensity.dither
    return random_view(rng, config.augmentation, size, fov, case.pixel_mm, center, dither)


def field_of_view(case: Case, fov_mm: float) -> float:
    """The configured field of view, or the longest side of the case's slices, in mm."""
    height, width = case.images.shape[1:]
    return fov_mm if fov_mm > 0 else max(height * case.pixel_mm[0], width * case.pixel_mm[1])


def slice_middle(case: Case) -> np.ndarray:
    """(column, row) of a slice's center."""
    height, width = case.images.shape[1:]
    return np.array([(width - 1) / 2, (height - 1) / 2])


def saliency_of_runs(model: SPDModel, embeddings: Tensor, lengths: Sequence[int]) -> Tensor:
    """Saliency logits of several runs of neighboring slices laid end to end, (B, 1, S, S)."""
    if not model.saliency_head.uses_slice_context:
        return model.saliency_logits(embeddings)
    neighbors = [adjoining(run) for run in embeddings.split(list(lengths))]
    previous = torch.cat([pair[0] for pair in neighbors])
    following = torch.cat([pair[1] for pair in neighbors])
    return model.saliency_logits(embeddings, previous, following)


def saliency_losses(logits: Tensor, target: Tensor, stage: Stage1Config) -> dict[str, Tensor]:
    """Named loss terms and the batch's hard Dice, for the curves."""
    with torch.no_grad():
        predicted = logits > 0
        hard = 2 * (predicted & target).sum() / (predicted.sum() + target.sum()).clamp(min=1)
        dice = dice_loss(logits, target).mean()
        focal = focal_loss(logits, target, stage.loss.focal_gamma, stage.loss.focal_alpha).mean()
    total = segmentation_loss(logits, target, stage.loss).mean()
    return {"total": total, "dice_loss": dice, "focal_loss": focal, "dsc": hard}
