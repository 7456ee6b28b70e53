"""Rows that rest on a bundle of ours: SPD, its parts, its controls, and SAM-Tuning.

A bundle in memory with what it sees of the volume at hand, shared by all rows that rest on it.

A result must not depend on what ran before it (a resumed benchmark gives the same figures), so every volume is
understood as a whole, in one fixed order, and each set of clicks gets a session of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from spdbench.comparators.protocol import Budget, InputSettings, NotRun, OnProgress, TrainingCase
from SPDSegmentLib.errors import BadInput, SPDError
from SPDSegmentLib.evaluation.evaluator import SALIENCY_ONLY, EvaluationTarget, Fates, window_of
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.window import InputWindow
from SPDSegmentLib.inference.features import SliceFeatures
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.inference.results import Call
from SPDSegmentLib.inference.session import Session
from SPDSegmentLib.models.bundle import Bundle, read_bundle
from SPDSegmentLib.prompts.click_path import nearest_pixel
from SPDSegmentLib.prompts.distillation import STRATEGIES, PromptConfig
from SPDSegmentLib.prompts.strategies import DISTILLATION_VERSION, rests_on_distillation


class LoadedBundle:
    """A predictor and the features of one volume, by field of view."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._stack: SliceStack | None = None
        self._features: dict[InputWindow, SliceFeatures] = {}

    def session(self, stack: SliceStack, clicks: Clicks, prompts: PromptConfig) -> Session:
        """A new session; where the saliency is the image's alone, on features that are computed already."""
        predictor = self.predictor.with_prompts(prompts)
        if predictor.engine.model.config.conditioned:  # what it computes depends on the clicks
            return predictor.open(stack)
        if stack is not self._stack:
            self._stack = stack
            self._features = {}
        return predictor.open(stack, self._features_for(stack, clicks))

    def _features_for(self, stack: SliceStack, clicks: Clicks) -> SliceFeatures:
        predictor = self.predictor
        window = window_of(predictor, stack, clicks)
        features = self._features.get(window)
        if features is None or features.encoded != stack.n_slices:
            features = SliceFeatures(predictor.engine, stack, predictor.intensity, predictor.fov_mm)
            features.place_window(np.median(clicks.xy[~clicks.outside], axis=0)[None])
            features.ensure(range(stack.n_slices), Call())
            self._features[window] = features
        return features


def load_bundle(bundle: Bundle, device: str) -> LoadedBundle:
    """The bundle on a device; the latest ones stay in memory.

    Raises:
        NotRun: its files have changed since it was read.
        ModelMissing, ModelCorrupt, DependencyMissing, BadInput: as :meth:`Predictor.load`.
    """
    return _load(bundle.folder, bundle.info.adapter_sha256, device)


@lru_cache(maxsize=2)
def _load(folder: Path, adapter_sha256: str, device: str) -> LoadedBundle:
    bundle = read_bundle(folder)
    if bundle.info.adapter_sha256 != adapter_sha256:
        raise NotRun(f"the bundle {bundle.info.name} was replaced meanwhile, run again")
    torch.manual_seed(0)  # for backbones without weights
    return LoadedBundle(Predictor.load(bundle, device))


SALIENCY_CLICKED = "saliency-clicked"
CHOICES = (*STRATEGIES, SALIENCY_ONLY, SALIENCY_CLICKED)


def clicked_component(mask: np.ndarray, clicks: Clicks) -> np.ndarray:
    """The connected part of a mask (T, H, W) that most clicks lie in; empty where no click lies in it.

    Of parts with equally many clicks the larger one.
    """
    labels, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    inside = clicks.inside()
    pixel = nearest_pixel(inside.xy).clip(0, np.array(mask.shape[:0:-1]) - 1)
    hit = labels[inside.slice_index, pixel[:, 1], pixel[:, 0]]
    hit = hit[hit > 0]
    if len(hit) == 0:
        return np.zeros_like(mask)
    sizes = np.bincount(labels.ravel())
    best = max(np.unique(hit), key=lambda label: ((hit == label).sum(), sizes[label]))
    return np.asarray(labels == best)


def distillation_identity(strategy: str) -> dict[str, int]:
    """What a row's results depend on besides its settings, where its points come from CPD."""
    return {"distillation": DISTILLATION_VERSION} if rests_on_distillation(strategy) else {}


def prompts_of(bundle: Bundle, overrides: Mapping[str, Any]) -> PromptConfig:
    """The bundle's prompt settings with some of them replaced.

    Raises:
        BadInput: unknown setting.
    """
    return PromptConfig.from_dict({**bundle.info.prompts, **overrides})


class BundleRow:
    """A trained bundle with one way of prompting.

    Args:
        inputs: only its device matters; the bundle knows its own field of view.
        bundle: checked bundle.
        prompts: prompt strategy; ``saliency-only`` for S > tau as the mask; ``saliency-clicked`` for its connected part
            that most clicks lie in.
        overrides: prompt settings in place of the bundle's.
        name: of the row.

    Attributes:
        click_fates: what became of the clicks of the latest segmentation, where the strategy judges clicks.
    """

    needs_training = False

    def __init__(
        self,
        inputs: InputSettings,
        *,
        bundle: Bundle,
        prompts: str = "consensus",
        overrides: Mapping[str, Any] | None = None,
        name: str = "spd",
    ) -> None:
        if prompts not in CHOICES:
            raise BadInput(f"Unknown prompts '{prompts}'.", f"Choose {', '.join(CHOICES)}.")
        self.name = name
        self.uses_clicks = prompts not in ("sampled", SALIENCY_ONLY)
        self.bundle = bundle
        self.strategy = prompts
        self.prompts = prompts_of(bundle, overrides or {})
        self._device = inputs.device
        self._loaded: LoadedBundle | None = None
        self.click_fates: Fates | None = None

    def train(self, cases: Sequence[TrainingCase], folder: Path, budget: Budget, on_progress: OnProgress) -> None:
        """A bundle comes trained."""

    def load(self, folder: Path) -> None:
        """Bring the bundle into memory.

        Raises:
            NotRun: its base weights are not here.
        """
        try:
            self._loaded = load_bundle(self.bundle, self._device)
        except SPDError as error:
            raise NotRun(error.message.rstrip(".")) from error

    def segment(self, target: EvaluationTarget, clicks: Clicks) -> np.ndarray:
        """(T, H, W) bool; empty where no click lies in the volume."""
        if self._loaded is None:
            raise RuntimeError("load() comes first")
        self.click_fates = None
        if clicks.outside.all():
            return np.zeros(target.stack.shape, dtype=bool)
        session = self._loaded.session(target.stack, clicks, self.prompts)
        if self.strategy not in (SALIENCY_ONLY, SALIENCY_CLICKED):
            result = session.segment(clicks, prompts=self.strategy)
            self.click_fates = result.click_fates() if rests_on_distillation(self.strategy) else None
            return result.mask
        mask = session.segment(clicks, saliency_only=True).mask
        return clicked_component(mask, clicks) if self.strategy == SALIENCY_CLICKED else mask

    def saliency(self, target: EvaluationTarget, clicks: Clicks) -> np.ndarray:
        """S of every slice, (T, H, W) float32; 0 outside the field of view that the clicks place."""
        if self._loaded is None:
            raise RuntimeError("load() comes first")
        session = self._loaded.session(target.stack, clicks, self.prompts)
        session.distill(clicks)
        return np.stack([session.saliency(t) for t in range(target.stack.n_slices)])

    def describe(self) -> dict[str, Any]:
        """What the result depends on, JSON-ready."""
        info = self.bundle.info
        return {
            "adapter_sha256": info.adapter_sha256,
            "backbone_sha256": info.backbone_sha256,
            "image_size": info.image_size,
            "fov_mm": info.fov_mm,
            "normalization": info.normalization,
            "network": info.network,
            "prompts": dataclasses.asdict(self.prompts),
            "strategy": self.strategy,
            **distillation_identity(self.strategy),
        }
