"""Stage II, the decoder: prompts by CPD, segmentation loss and Pairwise Slice Consistency (paper, stage II).

L_total = mean(L_seg(M_t, G_t) + lambda_psc L_psc(M_t, M_t+1)), with the quality head's squared error beside it (ours).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.networks.losses import consistency_of_run, segmentation_loss, soft_iou
from SPDSegmentLib.networks.saliency_head import adjoining
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.prompts.click_tokens import pad_points
from SPDSegmentLib.prompts.distillation import SYNTHESIZED, SlicePrompts
from SPDSegmentLib.prompts.saliency_maps import SaliencyMaps, SliceClicks
from SPDSegmentLib.prompts.strategies import distill_prompts
from SPDSegmentLib.training.augmentation import AugmentedView
from SPDSegmentLib.training.bank import BankEntry, EmbeddingBank
from SPDSegmentLib.training.cases import TargetMask
from SPDSegmentLib.training.config import Stage2Config, TrainingConfig
from SPDSegmentLib.training.distributed import Processes
from SPDSegmentLib.training.loop import Phase
from SPDSegmentLib.training.stage1 import saliency_losses

MAX_DRAWS = 20
BEYOND_SLICES = 2


@dataclass(frozen=True, eq=False)
class Run:
    """Prompted slices of one run of neighboring slices; ``slices`` are indexes into the entry."""

    slices: np.ndarray
    prompts: list[SlicePrompts]
    embeddings: Tensor
    mask: Tensor
    saliency: Tensor


class Stage2:
    """Draws prompted runs from the bank and computes the stage's losses."""

    def __init__(self, model: SPDModel, bank: EmbeddingBank, config: TrainingConfig, processes: Processes) -> None:
        self.model = model
        self.bank = bank
        self.config = config
        self.processes = processes

    def head_phase(self) -> Phase:
        """The end of stage I: the saliency head alone, on the bank's embeddings."""
        stage1, steps = self.config.stage1, self.config.stage2.head_steps
        parameters = list(self.model.saliency_head.parameters())
        return Phase("stage1_head", parameters, steps, stage1.learning_rate, stage1.weight_decay, 50, self.head_loss)

    def decoder_phase(self) -> Phase:
        """The decoder's phase; the bank's saliency must have been computed."""
        stage = self.config.stage2
        return Phase(
            "stage2",
            self.model.stage2_parameters(),
            stage.steps,
            stage.learning_rate,
            stage.weight_decay,
            stage.warmup,
            self.loss,
        )

    def head_loss(self, step: int) -> dict[str, Tensor]:
        """Saliency loss on a run of slices of a random entry."""
        rng = np.random.default_rng([self.config.seed, 3, step, self.processes.rank])
        logits, targets = [], []
        for _ in range(2):
            tensors = self.bank.entries[int(rng.integers(len(self.bank.entries)))].tensors()
            count = len(tensors["mask"])
            length = min(6, count)
            first = int(rng.integers(0, count - length + 1))
            embeddings = tensors["embeddings"][first : first + length].to(self.processes.device).float()
            with self.processes.autocast():
                logits.append(self.model.saliency_logits(embeddings, *adjoining(embeddings)))
            targets.append(tensors["salient"][first : first + length, None].bool().to(self.processes.device))
        return saliency_losses(torch.cat(logits), torch.cat(targets), self.config.stage1)

    def loss(self, step: int) -> dict[str, Tensor]:
        """L_total over a fresh batch of runs, each with fresh click noise."""
        stage = self.config.stage2
        rng = np.random.default_rng([self.config.seed, 4, step, self.processes.rank])
        runs = [self._draw(rng) for _ in range(stage.runs_per_step)]
        device = self.processes.device
        points, labels = pad_points([p.points for run in runs for p in run.prompts], self.config.prompts.max_points)
        with self.processes.autocast():
            logits, quality = self.model.decode(
                torch.cat([run.embeddings for run in runs]).to(device).float(),
                torch.from_numpy(points).to(device),
                torch.from_numpy(labels).to(device),
                torch.cat([run.saliency for run in runs]).to(device),
            )
        target = torch.cat([run.mask for run in runs]).to(device)
        terms = decoder_losses(logits, quality, target, stage)
        consistency = self._consistency(runs, logits, target)
        return {**terms, "total": terms["total"] + stage.psc_weight * consistency, "psc": consistency}

    def _consistency(self, runs: list[Run], logits: Tensor, target: Tensor) -> Tensor:
        """Mean PSC over the slices of all runs that have a pair."""
        stage = self.config.stage2
        total, count, position = logits.new_zeros(()), logits.new_zeros(()), 0
        for run in runs:
            breaks = np.flatnonzero(np.diff(run.slices) != 1) + 1
            for stretch in np.split(np.arange(len(run.slices)), breaks):
                part = slice(position + int(stretch[0]), position + int(stretch[-1]) + 1)
                losses, paired = consistency_of_run(
                    logits[part], target[part], stage.psc_direction, stage.psc_stop_gradient
                )
                total, count = total + losses.sum(), count + paired
            position += len(run.slices)
        return total / count.clamp(min=1)

    def _draw(self, rng: np.random.Generator) -> Run:
        """A run of slices of a random entry that has at least one prompted slice.

        Where the saliency supports nothing in many entries in a row, raw clicks stand in: stage I was very short.
        """
        for attempt in range(MAX_DRAWS + 1):
            k = int(rng.integers(len(self.bank.entries)))
            entry = self.bank.entries[k]
            strategy = self.config.stage2.strategy if attempt < MAX_DRAWS else "raw"
            prompts = self._prompts(entry, self.bank.saliency[k], rng, strategy)
            usable = [p.slice_index for p in prompts if len(p.points)]
            if usable:
                break
        else:
            raise BadInput("No click of the training data lies in the network's field of view.", "Increase fov_mm.")
        length = self.config.stage2.run_length
        anchor = usable[int(rng.integers(len(usable)))]
        first = int(np.clip(anchor - rng.integers(length), 0, max(0, len(prompts) - length)))
        chosen = [p for p in prompts[first : first + length] if len(p.points)]
        slices = np.array([p.slice_index for p in chosen])
        tensors = entry.tensors()
        saliency = np.clip(self.bank.saliency[k][slices].astype(np.float32), 1e-4, 1 - 1e-4)
        return Run(
            slices,
            chosen,
            tensors["embeddings"][slices],
            tensors["mask"][slices, None].bool(),
            torch.from_numpy(np.log(saliency / (1 - saliency)))[:, None],
        )

    def _prompts(
        self, entry: BankEntry, saliency: np.ndarray, rng: np.random.Generator, strategy: str
    ) -> list[SlicePrompts]:
        clicks = clicks_in_view(entry.target, (entry.first, entry.last), entry.view, self.config.stage2.severities, rng)
        path = entry.target.path
        pixel_mm = np.sqrt(abs(np.linalg.det(entry.view.matrix)) * np.prod(path.pixel_mm))
        maps = SaliencyMaps.from_array(saliency, self.config.prompts.threshold, float(path.slice_mm / pixel_mm))
        prompts = list(distill_prompts(maps, clicks, self.config.prompts, strategy).slices)
        return prompt_beyond(prompts, self.config.stage2.beyond_share, rng)


def clicks_in_view(
    target: TargetMask,
    span: tuple[int, int],
    view: AugmentedView,
    severities: tuple[float, float],
    rng: np.random.Generator,
) -> SliceClicks:
    """Fresh clicks of a target in network pixels: those on slices ``span`` (first, last), counted from its first."""
    clicks = target.clicks(float(rng.uniform(*severities)), int(rng.integers(2**31)))
    inside = (clicks.slice_index >= span[0]) & (clicks.slice_index <= span[1])
    uv = view.to_input(clicks.xy[inside])
    visible = ((uv >= 0) & (uv <= view.size - 1)).all(axis=1)
    return SliceClicks(clicks.slice_index[inside][visible] - span[0], uv[visible])


def prompt_beyond(prompts: list[SlicePrompts], share: float, rng: np.random.Generator) -> list[SlicePrompts]:
    """Prompts in which a share of the slices just beyond the first and the last prompted one got a point of those."""
    prompted = [p.slice_index for p in prompts if len(p.points)]
    if not prompted or share == 0:
        return prompts
    extended = list(prompts)
    for end, direction in ((prompted[0], -1), (prompted[-1], 1)):
        points = prompts[end].points
        for t in range(end + direction, end + (BEYOND_SLICES + 1) * direction, direction):
            if 0 <= t < len(prompts) and rng.random() < share:
                point = points[int(rng.integers(len(points)))]
                extended[t] = SlicePrompts(t, point[None], np.array([-1]), SYNTHESIZED)
    return extended


def decoder_losses(logits: Tensor, quality: Tensor, target: Tensor, stage: Stage2Config) -> dict[str, Tensor]:
    """L_seg and the quality head's squared error of (B, 1, S, S) logits, with the batch's hard Dice for the curves."""
    segmentation = segmentation_loss(logits, target, stage.loss).mean()
    with torch.no_grad():
        iou = soft_iou(logits, target)
        predicted = logits > 0
        hard = 2 * (predicted & target).sum() / (predicted.sum() + target.sum()).clamp(min=1)
    quality_error = ((quality - iou) ** 2).mean()
    total = segmentation + stage.quality_weight * quality_error
    return {"total": total, "segmentation": segmentation, "quality": quality_error, "dsc": hard}
