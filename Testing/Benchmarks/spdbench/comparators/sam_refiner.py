"""SAMRefiner (arXiv 2502.06756): a frozen SAM refines the coarse mask that saliency or another system gives.

Prompts: :mod:`spdbench.comparators.refinement_prompts`. Nothing is trained but the coarse system, where
it needs that. The paper takes the best of SAM's masks by its own estimate; LiteMedSAM learned one mask only, so the
single mask is taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spdbench.comparators.bundle_row import BundleRow
from spdbench.comparators.features import window_of
from spdbench.comparators.learned import BATCH, SliceNetwork
from spdbench.comparators.protocol import Budget, Comparator, InputSettings, OnProgress, TrainingCase
from spdbench.comparators.refinement_prompts import RefinementPrompts, excavate, split_objects
from spdbench.comparators.registry import make_comparator
from spdbench.comparators.sam_rows import SamComparator, SamNetwork
from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.evaluation.protocol import SALIENCY_ONLY
from SPDSegmentLib.evaluation.run import EvaluationTarget
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.inference.session import OUTSIDE_LOGIT
from SPDSegmentLib.models.bundle import Bundle
from SPDSegmentLib.networks.spd import SPDModel

KINDS = ("points", "box", "mask")


class _Object(NamedTuple):
    t: int
    prompts: RefinementPrompts


class RefinerNetwork(SamNetwork):
    """A SAM that takes points, a box and a mask together.

    Args:
        kinds: which of them it is given.
    """

    def __init__(self, model: SPDModel, kinds: Sequence[str]) -> None:
        super().__init__(model)
        self.kinds = tuple(kinds)

    def refine(self, embedded: Tensor, prompts: Sequence[RefinementPrompts]) -> Tensor:
        """Mask logits (B, 1, S, S) of embeddings (B, C, h, w)."""

        def stacked(kind: str, values: list[np.ndarray], dtype: torch.dtype) -> Tensor | None:
            return torch.from_numpy(np.stack(values)).to(embedded.device, dtype) if kind in self.kinds else None

        mask = stacked("mask", [p.mask for p in prompts], torch.float32)
        return self.model.decode(
            embedded,
            stacked("points", [p.points for p in prompts], torch.float32),
            stacked("points", [p.labels for p in prompts], torch.int64),
            None if mask is None else mask[:, None],
            stacked("box", [p.box for p in prompts], torch.float32),
        )[0]


class SamRefiner(SamComparator):
    """Refines the masks of another comparator.

    Args:
        bundle: whose saliency (``coarse = "saliency-only"``) or whose mask by a prompt strategy is refined; without
            one ``coarse`` names a comparator of the registry, which is trained in the same folder if it has to.
        coarse_settings: of that comparator.
        prompts: which kinds SAM is given.
    """

    name = "sam-refiner"

    def __init__(
        self,
        inputs: InputSettings,
        *,
        bundle: Bundle | None = None,
        coarse: str = SALIENCY_ONLY,
        coarse_settings: Mapping[str, Any] | None = None,
        backbone: str = "lite_medsam",
        image_size: int = 0,
        prompts: Sequence[str] = KINDS,
    ) -> None:
        super().__init__(inputs, backbone, image_size)
        if not prompts or not set(prompts) <= {*KINDS} or set(prompts) == {"mask"}:
            raise BadInput(f"Unknown prompts {list(prompts)}.", f"Choose from {', '.join(KINDS)}; not the mask alone.")
        self.kinds = tuple(prompts)
        self.coarse: Comparator
        if bundle is not None:
            self.coarse = BundleRow(inputs, bundle=bundle, prompts=coarse)
        elif coarse == SALIENCY_ONLY:
            raise BadInput("To refine saliency a bundle is needed.", "Set bundle, or name another coarse comparator.")
        else:
            self.coarse = make_comparator(coarse, inputs, **(coarse_settings or {}))
        self.needs_training = self.coarse.needs_training
        self.uses_clicks = self.coarse.uses_clicks or inputs.fov_mm > 0

    def build(self) -> SliceNetwork:
        """The published SAM."""
        model = self.sam()
        model.config = dataclasses.replace(model.config, dense_saliency_prompt=True)
        return RefinerNetwork(model, self.kinds)

    def train(self, cases: Sequence[TrainingCase], folder: Path, budget: Budget, on_progress: OnProgress) -> None:
        """Train the coarse comparator."""
        self.coarse.train(cases, folder, budget, on_progress)

    def load(self, folder: Path) -> None:
        """Load the coarse comparator and the published SAM."""
        self.coarse.load(folder)
        self.use(self.fresh())

    def segment_clicked(self, target: EvaluationTarget, clicks: Clicks) -> np.ndarray:
        """(T, H, W) bool; a slice whose coarse mask is empty stays empty."""
        network, stack = self.network, target.stack
        assert isinstance(network, RefinerNetwork)
        mask = np.zeros(stack.shape, dtype=bool)
        window = window_of(stack, clicks, self.inputs)
        coarse = window.resample(self.coarse.segment(target, clicks)) > 0.5
        objects: list[_Object] = []
        for t in np.flatnonzero(coarse.any(axis=(1, 2))).tolist():
            embedding = self.embedded(stack, window, [t])
            for part in split_objects(coarse[t]):
                objects.append(_Object(t, excavate(part, similarity(embedding, part))))
        for first in range(0, len(objects), BATCH):
            batch = objects[first : first + BATCH]
            embeddings = self.embedded(stack, window, [o.t for o in batch])
            with torch.inference_mode(), self.autocast():
                logits = network.refine(embeddings, [o.prompts for o in batch])
            refined = window.restore(logits[:, 0].float().cpu().numpy(), OUTSIDE_LOGIT) > 0
            for o, part in zip(batch, refined, strict=True):
                mask[o.t] |= part
        return mask


def similarity(embedding: Tensor, mask: np.ndarray) -> np.ndarray:
    """(S, S) cosine of each cell of an embedding (1, C, h, w) with the mean over a mask (S, S)."""
    features = F.normalize(embedding.float(), dim=1)
    height, width = features.shape[-2:]
    pixels = torch.from_numpy(mask[None, None].astype(np.float32))
    weights = F.adaptive_avg_pool2d(pixels, (height, width)).to(features.device)
    mean = F.normalize((features * weights).sum(dim=(2, 3), keepdim=True), dim=1)
    cosine = (features * mean).sum(dim=1, keepdim=True)
    resized = F.interpolate(cosine, mask.shape, mode="bilinear", align_corners=False)
    return np.asarray(resized[0, 0].cpu())
