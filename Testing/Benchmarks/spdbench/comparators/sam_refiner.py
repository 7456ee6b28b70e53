"""SAMRefiner (arXiv 2502.06756): a frozen SAM refines the coarse mask that saliency or another system gives.

Nothing is trained but the coarse system, where
it needs that. The paper takes the best of SAM's masks by its own estimate; LiteMedSAM learned one mask only, so the
single mask is taken.

Prompts: our own implementation of its multi-prompt excavation (Lin et al., ICLR 2025). A coarse mask may be wrong at
its border and in part; so its middle is trusted more than its border, and its box may grow where the image around it
looks like what it holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from spdbench.comparators.bundle_row import BundleRow
from spdbench.comparators.inputs import window_of
from spdbench.comparators.learned import BATCH, SliceNetwork
from spdbench.comparators.protocol import (
    OUTSIDE_LOGIT,
    Budget,
    Comparator,
    InputSettings,
    OnProgress,
    TrainingCase,
    make_comparator,
)
from spdbench.comparators.sam_rows import SamComparator, SamNetwork
from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.evaluation.evaluator import SALIENCY_ONLY, EvaluationTarget
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.models.bundle import Bundle
from SPDSegmentLib.networks.spd import SPDModel

GROWTH = 0.1
GROWTH_STEPS = 3
ALIKE_SHARE = 0.5
STRENGTH = 10.0
SMALLEST_SHARE = 0.05


@dataclass(frozen=True, eq=False)
class RefinementPrompts:
    """Prompts of one object in one slice, in network pixels.

    Attributes:
        points: (2, 2), (column, row): one in the object's middle, one in the box far from the object.
        labels: (2,) 1 and 0; the second is -1 where the box holds no background.
        box: (4,) first column, first row, last column, last row.
        mask: (S, S) float32 logits.
    """

    points: np.ndarray
    labels: np.ndarray
    box: np.ndarray
    mask: np.ndarray


def split_objects(mask: np.ndarray) -> list[np.ndarray]:
    """The connected parts of (S, S) bool, each prompted on its own (split-then-merge); specks are left out."""
    labels, count = ndimage.label(mask, np.ones((3, 3), dtype=bool))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    return [labels == i + 1 for i in range(count) if sizes[i] >= SMALLEST_SHARE * sizes.max()]


def excavate(mask: np.ndarray, similarity: np.ndarray) -> RefinementPrompts:
    """All prompts of one object.

    Args:
        mask: (S, S) bool, not empty; similarity: (S, S), how much a pixel's embedding is like the object's mean.
    """
    box = elastic_box(mask, similarity)
    points, labels = distance_guided_points(mask, box)
    return RefinementPrompts(points, labels, box, gaussian_mask(mask, points[0]))


def distance_guided_points(mask: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The object's pixel farthest from the background, and the pixel of the box farthest from the object."""
    inner = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(np.argmax(inner)), mask.shape)
    left, top, right, bottom = box.astype(int)
    outer = ndimage.distance_transform_edt(~mask)[top : bottom + 1, left : right + 1]
    far_row, far_column = np.unravel_index(int(np.argmax(outer)), outer.shape)
    points = np.array([[column, row], [left + far_column, top + far_row]], dtype=np.float64)
    return points, np.array([1, 0 if outer.max() > 0 else -1], dtype=np.int64)


def elastic_box(mask: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """The object's box, grown on each side for which the strip beyond it is mostly like the object.

    A strip is a tenth of the box wide; each side grows at most three times. A pixel is like the object where its
    similarity exceeds the middle between the object's and the background's mean (the threshold is our choice).
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = [int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])]
    background = similarity[~mask]
    if background.size == 0:
        return np.array(box, dtype=np.float64)
    alike = similarity > (similarity[mask].mean() + background.mean()) / 2
    steps = [max(1, round(GROWTH * (box[axis + 2] - box[axis] + 1))) for axis in (0, 1)]
    limits = [mask.shape[1] - 1, mask.shape[0] - 1]
    for _ in range(GROWTH_STEPS):
        left, top, right, bottom = box
        strips = (
            alike[top : bottom + 1, max(0, left - steps[0]) : left],
            alike[max(0, top - steps[1]) : top, left : right + 1],
            alike[top : bottom + 1, right + 1 : right + 1 + steps[0]],
            alike[bottom + 1 : bottom + 1 + steps[1], left : right + 1],
        )
        grows = [strip.size > 0 and strip.mean() > ALIKE_SHARE for strip in strips]
        if not any(grows):
            break
        for side, grow in enumerate(grows):
            if grow:
                step = steps[side % 2] if side > 1 else -steps[side % 2]
                box[side] = int(np.clip(box[side] + step, 0, limits[side % 2]))
    return np.array(box, dtype=np.float64)


def gaussian_mask(mask: np.ndarray, center_xy: np.ndarray) -> np.ndarray:
    """(S, S) float32 logits: within the object a Gaussian around its middle, as wide as the object; zero elsewhere."""
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]]
    squared = (columns - center_xy[0]) ** 2 + (rows - center_xy[1]) ** 2
    return (STRENGTH * np.exp(-squared / mask.sum()) * mask).astype(np.float32)


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
