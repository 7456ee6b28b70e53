"""SAM-Tuning, the comparison: encoder LoRA and decoder learn together from all raw clicks, without any prior.

It takes stage I's place with the same number of steps and slices; the decoder alone then goes on for stage II's steps,
so that the budget is SPD's.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.prompts.click_tokens import pad_points
from SPDSegmentLib.prompts.distillation import SlicePrompts
from SPDSegmentLib.prompts.saliency_maps import SaliencyMaps
from SPDSegmentLib.prompts.strategies import distill_prompts
from SPDSegmentLib.training.augmentation import apply_view
from SPDSegmentLib.training.loop import Phase
from SPDSegmentLib.training.stage1 import Stage1, draw_view
from SPDSegmentLib.training.stage2 import MAX_DRAWS, clicks_in_view, decoder_losses


class PromptedStage1(Stage1):
    """Draws runs of clicked slices and computes the segmentation loss through encoder and decoder."""

    def phase(self) -> Phase:
        """The stage as a phase of the training loop."""
        lora = [p for name, p in self.model.image_encoder.named_parameters() if "lora_" in name]
        return dataclasses.replace(super().phase(), parameters=lora + self.model.stage2_parameters())

    def loss(self, step: int) -> dict[str, Tensor]:
        """L_seg and the quality head's error over a fresh batch of clicked slices."""
        rng = np.random.default_rng([self.config.seed, 6, step, self.processes.rank])
        runs = [self._draw_clicked(rng) for _ in range(self.config.stage1.runs_per_step)]
        device = self.processes.device
        prompts = [p.points for _, _, chosen in runs for p in chosen]
        points, labels = pad_points(prompts, self.config.prompts.max_points)
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
            span = (0, len(case.images) - 1)
            clicks = clicks_in_view(target, span, view, self.config.stage2.severities, rng)
            if len(clicks):
                break
        else:
            raise BadInput("No click of the training data lies in the network's field of view.", "Increase fov_mm.")
        nowhere = np.zeros((len(case.images), 1, 1), dtype=np.float32)
        maps = SaliencyMaps.from_array(nowhere, self.config.prompts.threshold)
        prompts = [p for p in distill_prompts(maps, clicks, self.config.prompts, "raw").slices if len(p.points)]
        first = int(rng.integers(max(1, len(prompts) - length + 1)))
        chosen = prompts[first : first + length]
        part = [p.slice_index for p in chosen]
        images = apply_view(case.images[part], view, image=True)
        return images, apply_view(target.mask[part], view, image=False) > 0.5, chosen
