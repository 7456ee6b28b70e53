"""The two stages of SPD (paper), and SAM-Tuning, with which it is compared.

Stage I, the anatomical prior: encoder LoRA and saliency head learn S_t = f_sal(I_t). Stage II, the decoder: prompts by
CPD, segmentation loss and Pairwise Slice Consistency,
L_total = mean(L_seg(M_t, G_t) + lambda_psc L_psc(M_t, M_t+1)), with the quality head's squared error beside it (ours).

SAM-Tuning: encoder LoRA and decoder learn together from all raw clicks, without any prior. It takes stage I's place
with the same number of steps and slices; the decoder alone then goes on for stage II's steps, so that the budget is
SPD's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.networks.adapters import adjoining
from SPDSegmentLib.networks.spd import (
    SPDModel,
    consistency_of_run,
    dice_loss,
    focal_loss,
    hard_dice,
    segmentation_loss,
    soft_iou,
)
from SPDSegmentLib.prompts.click_tokens import pad_points
from SPDSegmentLib.prompts.distillation import SlicePrompts
from SPDSegmentLib.prompts.fates import SliceStatus
from SPDSegmentLib.prompts.saliency_maps import SaliencyMaps, SliceClicks
from SPDSegmentLib.prompts.strategies import distill_prompts
from SPDSegmentLib.training.bank import BankEntry, EmbeddingBank
from SPDSegmentLib.training.cases import AugmentedView, Case, TargetMask, apply_view, draw_view
from SPDSegmentLib.training.config import Stage1Config, Stage2Config, TrainingConfig
from SPDSegmentLib.training.loop import Phase, Processes

MAX_DRAWS = 20
BEYOND_SLICES = 2


@dataclass(eq=False)
class Stage1:
    """Draws runs of slices and computes the stage's loss; ``cases`` are the training's, in memory."""

    model: SPDModel
    cases: Sequence[Case]
    config: TrainingConfig
    processes: Processes

    def phase(self) -> Phase:
        """The stage as a phase of the training loop."""
        return Phase.of("stage1", self.model.stage1_parameters(), self.config.stage1, self.loss)

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
        hard = hard_dice(logits > 0, target)
        dice = dice_loss(logits, target).mean()
        focal = focal_loss(logits, target, stage.loss.focal_gamma, stage.loss.focal_alpha).mean()
    total = segmentation_loss(logits, target, stage.loss).mean()
    return {"total": total, "dice_loss": dice, "focal_loss": focal, "dsc": hard}


@dataclass(frozen=True, eq=False)
class Run:
    """Prompted slices of one run of neighboring slices; ``slices`` are indexes into the entry."""

    slices: np.ndarray
    prompts: list[SlicePrompts]
    embeddings: Tensor
    mask: Tensor
    saliency: Tensor


@dataclass(eq=False)
class Stage2:
    """Draws prompted runs from the bank and computes the stage's losses."""

    model: SPDModel
    bank: EmbeddingBank
    config: TrainingConfig
    processes: Processes
    validate: Callable[[int], float] | None = None

    def head_phase(self) -> Phase:
        """The end of stage I: the saliency head alone, on the bank's embeddings."""
        stage1, steps = self.config.stage1, self.config.stage2.head_steps
        parameters = list(self.model.saliency_head.parameters())
        return Phase("stage1_head", parameters, steps, stage1.learning_rate, stage1.weight_decay, 50, self.head_loss)

    def decoder_phase(self) -> Phase:
        """The decoder's phase; the bank's saliency must have been computed."""
        stage = self.config.stage2
        often = {"validate_every": stage.validate_every, "patience": stage.patience}
        return Phase.of("stage2", self.model.stage2_parameters(), stage, self.loss, validate=self.validate, **often)

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
            prompts = self.prompts_of(entry, self.bank.saliency[k], rng, strategy)
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
        return Run(
            slices,
            chosen,
            tensors["embeddings"][slices],
            tensors["mask"][slices, None].bool(),
            saliency_logits_of(self.bank.saliency[k][slices]),
        )

    def decode_slices(self, embeddings: Tensor, prompts: Sequence[SlicePrompts], saliency: np.ndarray) -> Tensor:
        """Logits (B, 1, S, S) of prompted slices of one entry, by their embeddings and saliency (B, S, S)."""
        device = self.processes.device
        points, labels = pad_points([p.points for p in prompts], self.config.prompts.max_points)
        with self.processes.autocast():
            logits, _ = self.model.decode(
                embeddings.to(device).float(),
                torch.from_numpy(points).to(device),
                torch.from_numpy(labels).to(device),
                saliency_logits_of(saliency).to(device),
            )
        return logits

    def prompts_of(
        self, entry: BankEntry, saliency: np.ndarray, rng: np.random.Generator, strategy: str
    ) -> list[SlicePrompts]:
        """The prompts of an entry's slices by fresh clicks."""
        clicks = clicks_in_view(entry.target, (entry.first, entry.last), entry.view, self.config.stage2.severities, rng)
        path = entry.target.path
        pixel_mm = float(np.sqrt(abs(np.linalg.det(entry.view.matrix)) * np.prod(path.pixel_mm)))
        maps = SaliencyMaps.from_array(saliency, self.config.prompts.threshold, path.slice_mm / pixel_mm, pixel_mm)
        prompts = list(distill_prompts(maps, clicks, self.config.prompts, strategy).slices)
        return prompt_beyond(prompts, self.config.stage2.beyond_share, rng)


def saliency_logits_of(saliency: np.ndarray) -> Tensor:
    """Logits (B, 1, S, S) of kept saliency (B, S, S)."""
    share = np.clip(saliency.astype(np.float32), 1e-4, 1 - 1e-4)
    return torch.from_numpy(np.log(share / (1 - share)))[:, None]


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


def unjudged_prompts(
    case: Case, clicks: SliceClicks, config: TrainingConfig, strategy: str
) -> tuple[SlicePrompts, ...]:
    """The prompts of a case's slices by a ``strategy`` that needs no saliency."""
    maps = SaliencyMaps.from_array(np.zeros((len(case.images), 1, 1), np.float32), config.prompts.threshold)
    return distill_prompts(maps, clicks, config.prompts, strategy).slices


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
                extended[t] = SlicePrompts(t, point[None], np.array([-1]), SliceStatus.SYNTHESIZED)
    return extended


def decoder_losses(logits: Tensor, quality: Tensor, target: Tensor, stage: Stage2Config) -> dict[str, Tensor]:
    """L_seg and the quality head's squared error of (B, 1, S, S) logits, with the batch's hard Dice for the curves."""
    segmentation = segmentation_loss(logits, target, stage.loss).mean()
    with torch.no_grad():
        iou, hard = soft_iou(logits, target), hard_dice(logits > 0, target)
    quality_error = ((quality - iou) ** 2).mean()
    total = segmentation + stage.quality_weight * quality_error
    return {"total": total, "segmentation": segmentation, "quality": quality_error, "dsc": hard}


class PromptedStage1(Stage1):
    """Draws runs of clicked slices and computes the segmentation loss through encoder and decoder."""

    def phase(self) -> Phase:
        """The stage as a phase of the training loop."""
        learning = self.model.encoder_lora_parameters() + self.model.stage2_parameters()
        return dataclasses.replace(super().phase(), parameters=learning)

    def loss(self, step: int) -> dict[str, Tensor]:
        """L_seg and the quality head's error over a fresh batch of clicked slices."""
        rng = np.random.default_rng([self.config.seed, 6, step, self.processes.rank])
        runs = [self._draw_clicked(rng) for _ in range(self.config.stage1.runs_per_step)]
        device = self.processes.device
        points, labels = pad_points([p.points for *_, chosen in runs for p in chosen], self.config.prompts.max_points)
        with self.processes.autocast():
            embeddings = self.model.encode(torch.cat([image for image, _, _ in runs]).to(device))
            logits, quality = self.model.decode(
                embeddings, torch.from_numpy(points).to(device), torch.from_numpy(labels).to(device)
            )
        target = torch.cat([mask for _, mask, _ in runs]).to(device)
        return decoder_losses(logits, quality, target, self.config.stage2)

    def _draw_clicked(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, list[SlicePrompts]]:
        """Images and masks (R, 1, S, S) of up to ``run_length`` clicked slices that lie side by side, and clicks."""
        length = self.config.stage1.run_length
        cases = [case for case in self.cases if case.targets]
        for _ in range(MAX_DRAWS):
            case = cases[int(rng.integers(len(cases)))]
            target = case.targets[int(rng.integers(len(case.targets)))]
            view = draw_view(rng, case, target, self.config)
            clicks = clicks_in_view(target, (0, len(case.images) - 1), view, self.config.stage2.severities, rng)
            if len(clicks):
                break
        else:
            raise BadInput("No click of the training data lies in the network's field of view.", "Increase fov_mm.")
        prompts = [p for p in unjudged_prompts(case, clicks, self.config, "raw") if len(p.points)]
        first = int(rng.integers(max(1, len(prompts) - length + 1)))
        chosen = prompts[first : first + length]
        part = [p.slice_index for p in chosen]
        images = apply_view(case.images[part], view, image=True)
        return images, apply_view(target.mask[part], view, image=False) > 0.5, chosen


class BothStage1(Stage1):
    """Stage I with a second loss (ours): the clicked target through encoder and decoder, beside the saliency's.

    The encoder then keeps what the decoder needs at borders, too. Prompts are interpolated clicks; the saliency is
    given to the decoder without learning from it.
    """

    def phase(self) -> Phase:
        """The stage as a phase of the training loop."""
        learning = self.model.stage1_parameters() + self.model.stage2_parameters()
        return dataclasses.replace(super().phase(), parameters=learning)

    def loss(self, step: int) -> dict[str, Tensor]:
        """The saliency's loss plus L_seg and the quality head's error of the prompted slices of a fresh batch."""
        stage, device = self.config.stage1, self.processes.device
        rng = np.random.default_rng([self.config.seed, 7, step, self.processes.rank])
        runs = [self._draw_with_clicks(rng, stage) for _ in range(stage.runs_per_step)]
        images, salient, masks = (torch.cat(parts).to(device) for parts in zip(*(run[:3] for run in runs), strict=True))
        prompts = [p.points for run in runs for p in run[3]]
        prompted = torch.tensor([k for k, xy in enumerate(prompts) if len(xy)], device=device)
        points, labels = pad_points([xy for xy in prompts if len(xy)], self.config.prompts.max_points)
        with self.processes.autocast():
            embeddings = self.model.encode(images)
            saliency = saliency_of_runs(self.model, embeddings, [len(run[0]) for run in runs])
            terms = saliency_losses(saliency, salient, stage)
            if len(prompted) == 0:
                return terms | {"segmentation": terms["total"].new_zeros(())}
            logits, quality = self.model.decode(
                embeddings[prompted],
                torch.from_numpy(points).to(device),
                torch.from_numpy(labels).to(device),
                saliency.detach()[prompted],
            )
        decoded = decoder_losses(logits, quality, masks[prompted], self.config.stage2)
        return {**terms, "total": terms["total"] + decoded["total"], "segmentation": decoded["segmentation"]}

    def _draw_with_clicks(
        self, rng: np.random.Generator, stage: Stage1Config
    ) -> tuple[Tensor, Tensor, Tensor, Sequence[SlicePrompts]]:
        """Images, salient pixels and masks (R, 1, S, S) of a run of neighboring slices, and its slices' prompts."""
        cases = [case for case in self.cases if case.targets]
        case = cases[int(rng.integers(len(cases)))]
        target = case.targets[int(rng.integers(len(case.targets)))]
        part = draw_slices(rng, case, target, stage)
        view = draw_view(rng, case, target, self.config)
        clicks = clicks_in_view(target, (0, len(case.images) - 1), view, self.config.stage2.severities, rng)
        prompts = unjudged_prompts(case, clicks, self.config, "interpolated")[part]
        images = apply_view(case.images[part], view, image=True)
        salient, mask = (apply_view(of[part], view, image=False) > 0.5 for of in (case.salient, target.mask))
        return images, salient, mask, prompts


STAGE1 = {"saliency": Stage1, "both": BothStage1, "prompted": PromptedStage1}
"""Stage I by its objective."""
