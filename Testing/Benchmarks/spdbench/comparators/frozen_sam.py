"""A SAM as it was published, nothing adapted, prompted with points or with the box around them.

LiteMedSAM and MedSAM learned from boxes only, SAM from both; the table says which prompt a row used.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spdbench.comparators.bundle_row import LoadedBundle, load_bundle, prompts_of
from spdbench.comparators.protocol import Budget, InputSettings, NotRun, OnProgress, TrainingCase
from SPDSegmentLib.errors import BadInput, SPDError
from SPDSegmentLib.evaluation.evaluator import EvaluationTarget
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.intensity import intensity_range, normalize
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.window import InputWindow, place_window
from SPDSegmentLib.inference.engine import Engine, choose_device, choose_precision
from SPDSegmentLib.models.base_weights import find_base_weights
from SPDSegmentLib.models.bundle import Bundle
from SPDSegmentLib.networks.config import NetworkConfig
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.prompts.click_tokens import pad_points
from SPDSegmentLib.prompts.distillation import PromptConfig

PROMPTS = ("raw", "random", "consensus")
SHAPES = ("points", "box")
BATCH = 8
KEPT_WINDOWS = 4
Points = dict[int, np.ndarray]  # (M, 2) slice pixels by slice


class FrozenSam:
    """A frozen SAM.

    Args:
        inputs: field of view and intensities of the data set; ``box_margin_mm``; device.
        backbone: a name of :data:`SPDSegmentLib.networks.config.BACKBONES`.
        image_size: side of the network input, 0 for the one that the backbone learned with.
        prompts: ``raw`` (all clicks), ``consensus`` (CPD with the saliency of ``bundle``) or ``random`` (in each slice
            as many clicks as the consensus has, drawn blindly from its own slice and the n slices on each side).
        shape: ``points``, or ``box`` around them with the margin.
        bundle: whose saliency decides; not needed for ``raw``.
        overrides: prompt settings in place of the bundle's.
        name: of the row.
    """

    uses_clicks = True
    needs_training = False

    def __init__(
        self,
        inputs: InputSettings,
        *,
        backbone: str = "lite_medsam",
        image_size: int = 0,
        prompts: str = "raw",
        shape: str = "points",
        bundle: Bundle | None = None,
        overrides: Mapping[str, Any] | None = None,
        name: str = "frozen",
    ) -> None:
        if prompts not in PROMPTS or shape not in SHAPES:
            raise BadInput(f"Unknown prompts '{prompts}' or shape '{shape}'.", f"Choose {PROMPTS} and {SHAPES}.")
        if prompts != "raw" and bundle is None:
            raise BadInput(f"The row {name} needs a bundle whose saliency chooses the points.", "Set bundle.")
        self.name = name
        self.prompts = prompts
        self.shape = shape
        self.bundle = bundle
        self.config = prompts_of(bundle, overrides or {}) if bundle else PromptConfig(**(overrides or {}))
        natural = 256 if backbone == "lite_medsam" else 64 if backbone == "tiny_random" else 1024
        self.network = NetworkConfig(backbone, image_size or natural, lora_rank=0, decoder="frozen")
        self._inputs = inputs
        self._engine: Engine | None = None
        self._saliency: LoadedBundle | None = None

    def train(self, cases: Sequence[TrainingCase], folder: Path, budget: Budget, on_progress: OnProgress) -> None:
        """Nothing is trained."""

    def load(self, folder: Path) -> None:
        """Bring the network, and the bundle that chooses points, into memory.

        Raises:
            NotRun: the backbone's weights are not on this machine.
        """
        backbone = self.network.backbone
        try:
            weights = None if backbone == "tiny_random" else find_base_weights(backbone)
            self._saliency = load_bundle(self.bundle, self._inputs.device) if self.bundle else None
        except SPDError as error:
            raise NotRun(f"weights of {backbone} not available") from error
        torch.manual_seed(0)
        device = choose_device(self._inputs.device)
        model = SPDModel(self.network, weights, adapters=False)
        self._engine = Engine(model, device, choose_precision("auto", device), BATCH)

    def segment(self, target: EvaluationTarget, clicks: Clicks) -> np.ndarray:
        """(T, H, W) bool; slices without a point stay empty."""
        if self._engine is None:
            raise RuntimeError("load() comes first")
        stack = target.stack
        mask = np.zeros(stack.shape, dtype=bool)
        inside = clicks.inside()
        if len(inside) == 0:
            return mask
        points = self._points(stack, inside)
        window = self._window(stack, inside)
        embeddings = self._encode_volume(stack, window)
        for batch in _alike(points):
            logits = self._decode(embeddings[batch], [points[t] for t in batch], stack, window)
            mask[batch] = window.restore(logits, -1.0) > 0
        return mask

    def describe(self) -> dict[str, Any]:
        """What the result depends on, JSON-ready."""
        return {
            "network": dataclasses.asdict(self.network),
            "prompts": self.prompts,
            "shape": self.shape,
            "adapter_sha256": self.bundle.info.adapter_sha256 if self.bundle else "",
            "config": dataclasses.asdict(self.config),
        }

    def _points(self, stack: SliceStack, clicks: Clicks) -> Points:
        raw = {int(t): clicks.xy[clicks.slice_index == t] for t in np.unique(clicks.slice_index)}
        if self.prompts == "raw" or self._saliency is None:
            return raw
        distilled = self._saliency.session(stack, clicks, self.config).distill(clicks)
        chosen = {p.slice_index: p.points for p in distilled if len(p.points)}
        if self.prompts == "consensus":
            return chosen
        return random_points(clicks, {t: len(points) for t, points in chosen.items()}, self.config.n_neighbors)

    def _window(self, stack: SliceStack, clicks: Clicks) -> InputWindow:
        height, width = stack.array.shape[1:]
        size, fov_mm = self.network.image_size, self._inputs.fov_mm
        return place_window((height, width), stack.pixel_mm, size, fov_mm, np.median(clicks.xy, axis=0))

    def _encode_volume(self, stack: SliceStack, window: InputWindow) -> Tensor:
        """Embeddings (T, C, h, w) of all slices in this field of view; rows on one backbone share them."""
        engine = self._engine
        assert engine is not None
        key = (self.network.backbone, self.network.image_size, str(engine.device), self._inputs.intensity)
        kept = _SHARED.get(key)
        if kept is None or kept.stack is not stack:
            kept = _SHARED[key] = _Embedded(stack)
        if window not in kept.by_window:
            limits = intensity_range(stack.array, self._inputs.intensity)
            parts = [
                engine.encode(window.resample(normalize(stack.array[start : start + BATCH], limits))[:, None])
                for start in range(0, stack.n_slices, BATCH)
            ]
            kept.by_window[window] = torch.cat(parts)
            while len(kept.by_window) > KEPT_WINDOWS:
                kept.by_window.popitem(last=False)
        kept.by_window.move_to_end(window)
        return kept.by_window[window]

    @torch.inference_mode()
    def _decode(
        self, embeddings: Tensor, points: Sequence[np.ndarray], stack: SliceStack, window: InputWindow
    ) -> np.ndarray:
        """Mask logits (B, S, S) of slices from their embeddings (B, C, h, w) and points (M, 2) in slice pixels."""
        assert self._engine is not None
        model, device = self._engine.model, self._engine.device
        embeddings = embeddings.float()
        if self.shape == "points":
            padded, labels = pad_points([window.to_input(p) for p in points])
            xy, kinds = torch.from_numpy(padded).to(device), torch.from_numpy(labels).to(device)
            logits, _ = model.decode(embeddings, xy, kinds)
        else:
            margin = self._inputs.box_margin_mm / np.array([stack.pixel_mm[1], stack.pixel_mm[0]])
            corners = np.stack([box_around(p, margin, window) for p in points]).astype(np.float32)
            logits, _ = model.decode(embeddings, None, None, boxes=torch.from_numpy(corners).to(device))
        return np.asarray(logits[:, 0].cpu())


@dataclass
class _Embedded:
    """The embeddings of one volume, the latest few fields of view."""

    stack: SliceStack
    by_window: OrderedDict[InputWindow, Tensor] = field(default_factory=OrderedDict)


_SHARED: dict[tuple[object, ...], _Embedded] = {}
"""By everything that an embedding depends on besides volume and field of view; only the latest volume is kept."""


def _alike(points: Points) -> list[list[int]]:
    """Slices in batches of equally many points: padding would be tokens that the network never saw."""
    by_count: dict[int, list[int]] = {}
    for t in sorted(points):
        by_count.setdefault(len(points[t]), []).append(t)
    return [group[i : i + BATCH] for group in by_count.values() for i in range(0, len(group), BATCH)]


def box_around(points_xy: np.ndarray, margin_xy: np.ndarray, window: InputWindow) -> np.ndarray:
    """(4,) column and row of two corners in network pixels: the box around (M, 2) slice pixels, and a margin."""
    corners = np.stack((points_xy.min(axis=0) - margin_xy, points_xy.max(axis=0) + margin_xy))
    return window.to_input(corners).clip(0, window.size - 1).reshape(4)


def random_points(clicks: Clicks, counts: Mapping[int, int], n_neighbors: int) -> Points:
    """As many clicks per slice as ``counts`` says, drawn from the slice and its neighbors; the same clicks, same draw.

    Slices with fewer clicks around them get those that there are.
    """
    rng = np.random.default_rng(zlib.crc32(clicks.xy.tobytes()))
    drawn = {}
    for t in sorted(counts):
        near = np.flatnonzero(np.abs(clicks.slice_index - t) <= n_neighbors)
        if len(near):
            drawn[t] = clicks.xy[rng.choice(near, min(counts[t], len(near)), replace=False)]
    return drawn
