"""One segmentation and its metrics."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict

import numpy as np

from spdbench.cells import Row
from spdbench.clicks import clicks_for
from spdbench.comparators.protocol import Comparator
from spdbench.entries import Entry
from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.evaluation.metrics import MaskMetrics, slice_metrics, volume_metrics
from SPDSegmentLib.evaluation.run import EvaluationTarget

KEPT = 256


class Judge:
    """Metrics of masks; a mask that was judged before, as those of rows without clicks are, is not judged again."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str, str, bytes], tuple[MaskMetrics, MaskMetrics]] = OrderedDict()

    def metrics(self, dataset: str, target: EvaluationTarget, mask: np.ndarray) -> tuple[MaskMetrics, MaskMetrics]:
        """Of the volume, and means over the slices that hold the target; ``dataset`` tells like-named cases apart.

        Raises:
            BadInput: a mask that is not (T, H, W) bool.
        """
        if mask.shape != target.mask.shape or mask.dtype != bool:
            raise BadInput(f"The mask is {mask.dtype} {mask.shape}, not bool {target.mask.shape}.")
        key = (dataset, target.case, target.name, hashlib.sha256(np.packbits(mask).tobytes()).digest())
        if key not in self._kept:
            stack = target.stack
            volume = volume_metrics(mask, target.mask, (stack.slice_mm, *stack.pixel_mm))
            self._kept[key] = volume, slice_metrics(mask, target.mask, stack.pixel_mm)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return self._kept[key]


def measure(entry: Entry, comparator: Comparator, target: EvaluationTarget, noise: str, seed: int, judge: Judge) -> Row:
    """Segment one target with one set of clicks; whatever goes wrong is raised."""
    clicks, outside = clicks_for(entry.method.clicks, entry.dataset, target, noise, seed)
    begun = time.perf_counter()
    mask = comparator.segment(target, clicks)
    seconds = time.perf_counter() - begun
    volume, slices = judge.metrics(entry.dataset.name, target, mask)
    return Row(
        entry.fold.name,
        target.patient,
        target.case,
        target.name,
        noise,
        seed,
        len(clicks),
        round(outside, 4),
        _rounded(volume.dsc),
        _rounded(volume.iou),
        _rounded(volume.hd95_mm, 3),
        _rounded(volume.nsd),
        _rounded(slices.dsc),
        _rounded(slices.iou),
        _rounded(slices.hd95_mm, 3),
        round(seconds, 3),
    )


def _rounded(value: float | None, digits: int = 5) -> float | None:
    return None if value is None else round(float(value), digits)
