"""What comparators have in common whatever they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spdbench.comparators.protocol import Budget, OnProgress, TrainingCase
from SPDSegmentLib.evaluation.run import EvaluationTarget
from SPDSegmentLib.geometry.centerline import Clicks


class ClickedSegmenter:
    """Segments only where a click lies inside the volume."""

    def segment(self, target: EvaluationTarget, clicks: Clicks) -> np.ndarray:
        """(T, H, W) bool; empty where no click lies inside the volume."""
        inside = clicks.inside()
        if len(inside) == 0:
            return np.zeros(target.stack.shape, dtype=bool)
        return self.segment_clicked(target, inside)

    def segment_clicked(self, target: EvaluationTarget, clicks: Clicks) -> np.ndarray:
        """(T, H, W) bool from at least one click, all of them inside the volume."""
        raise NotImplementedError


class Untrained(ClickedSegmenter):
    """A comparator that learns nothing and has nothing to load."""

    uses_clicks = True
    needs_training = False

    def train(self, cases: Sequence[TrainingCase], folder: Path, budget: Budget, on_progress: OnProgress) -> None:
        """Nothing is trained."""

    def load(self, folder: Path) -> None:
        """Nothing to load."""
