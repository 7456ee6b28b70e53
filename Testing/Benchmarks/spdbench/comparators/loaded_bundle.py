"""A bundle in memory with what it sees of the volume at hand, shared by all rows that rest on it.

A result must not depend on what ran before it (a resumed benchmark gives the same figures), so every volume is
understood as a whole, in one fixed order, and each set of clicks gets a session of its own.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from spdbench.comparators.protocol import NotRun
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.window import place_window
from SPDSegmentLib.inference.call import Call
from SPDSegmentLib.inference.features import SliceFeatures
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.inference.session import Session
from SPDSegmentLib.models.bundle import Bundle, read_bundle
from SPDSegmentLib.prompts.config import PromptConfig


class LoadedBundle:
    """A predictor and the features of one volume, by field of view."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._stack: SliceStack | None = None
        self._features: dict[tuple[float, float], SliceFeatures] = {}

    def session(self, stack: SliceStack, clicks: Clicks, prompts: PromptConfig) -> Session:
        """A new session on features that are already computed for the field of view of these clicks."""
        if stack is not self._stack:
            self._stack = stack
            self._features = {}
        return self.predictor.with_prompts(prompts).open(stack, self._features_for(stack, clicks))

    def _features_for(self, stack: SliceStack, clicks: Clicks) -> SliceFeatures:
        predictor = self.predictor
        center = np.median(clicks.xy[~clicks.outside], axis=0)
        height, width = stack.array.shape[1:]
        size = predictor.engine.image_size
        origin = place_window((height, width), stack.pixel_mm, size, predictor.fov_mm, center).origin_xy
        features = self._features.get(origin)
        if features is None or features.encoded != stack.n_slices:
            features = SliceFeatures(predictor.engine, stack, predictor.intensity, predictor.fov_mm)
            features.place_window(center[None])
            features.ensure(range(stack.n_slices), Call())
            self._features[origin] = features
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
