"""One evaluator: segment labeled targets with simulated clicks and measure the masks.

:func:`measure` makes one row of any system's mask; :func:`evaluate` runs a bundle's methods over all targets. The
benchmark measures every system with the same function.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.evaluation.cases import (
    SALIENCY_ONLY,
    SHUFFLED,
    EvaluationConfig,
    EvaluationRow,
    EvaluationTarget,
    shuffled_clicks,
)
from SPDSegmentLib.evaluation.metrics import MaskMetrics, slice_metrics, volume_metrics
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.window import InputWindow, fov_of_clicks, place_window
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.inference.session import Session
from SPDSegmentLib.prompts.fates import Fate, PointFate
from SPDSegmentLib.prompts.strategies import rests_on_distillation

KEPT_JUDGMENTS = 256
Fates = Mapping[int, PointFate]
Segment = Callable[[EvaluationTarget, Clicks], tuple[np.ndarray, Fates | None]]
"""A system: from a target's slices and clicks to its mask (T, H, W) bool, and the fates of the clicks if it judges
them."""


class Judge:
    """Metrics of masks; a mask that was judged before, as those of methods without clicks are, is not judged again."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str, str, bytes], tuple[MaskMetrics, MaskMetrics]] = OrderedDict()

    def metrics(self, target: EvaluationTarget, mask: np.ndarray, dataset: str = "") -> tuple[MaskMetrics, MaskMetrics]:
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
            if len(self._kept) > KEPT_JUDGMENTS:
                self._kept.popitem(last=False)
        return self._kept[key]


@dataclass(frozen=True)
class Occasion:
    """What a row says of where it comes from: see :class:`EvaluationRow`; ``dataset`` tells like-named cases apart."""

    bundle: str
    method: str
    severity: str
    seed: int
    outside_share: float
    fold: str = ""
    dataset: str = ""


def measure(
    segment: Segment, target: EvaluationTarget, clicks: Clicks, occasion: Occasion, judge: Judge
) -> EvaluationRow:
    """Segment one target with one set of clicks; whatever goes wrong is raised."""
    begun = time.perf_counter()
    mask, fates = segment(target, clicks)
    seconds = time.perf_counter() - begun
    volume, slices = judge.metrics(target, mask, occasion.dataset)
    verdicts = (None, None, None) if fates is None else verdict_shares(target.mask, clicks, fates)
    return EvaluationRow(
        occasion.bundle,
        occasion.method,
        occasion.severity,
        occasion.seed,
        target.patient,
        target.case,
        target.name,
        len(clicks),
        round(occasion.outside_share, 4),
        *_rounded(volume),
        *_rounded(slices)[:3],
        round(seconds, 3),
        *verdicts,
        fold=occasion.fold,
    )


class BundleMethods:
    """A bundle's ways of prompting as systems; what one set of clicks has encoded serves the next."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._target: EvaluationTarget | None = None
        self._sessions: dict[InputWindow, Session] = {}

    def segment(self, target: EvaluationTarget, clicks: Clicks, method: str) -> tuple[np.ndarray, Fates | None]:
        """Mask, and the fates of the clicks where the method judges them."""
        strategy = "consensus" if method in (SALIENCY_ONLY, SHUFFLED) else method
        session = self._session(target, clicks)
        result = session.segment(clicks, prompts=strategy, saliency_only=method == SALIENCY_ONLY)
        return result.mask, result.click_fates() if rests_on_distillation(method) else None

    def _session(self, target: EvaluationTarget, clicks: Clicks) -> Session:
        """A session whose field of view is the one that a new session would choose for these clicks."""
        if target is not self._target:
            self._target, self._sessions = target, {}
        window = window_of(self.predictor, target.stack, clicks)
        if window not in self._sessions:
            self._sessions[window] = self.predictor.open(target.stack)
        return self._sessions[window]


def window_of(predictor: Predictor, stack: SliceStack, clicks: Clicks) -> InputWindow:
    """The field of view that a new session chooses for some clicks."""
    height, width = stack.array.shape[1:]
    xy, fov_mm = clicks.xy[~clicks.outside], predictor.fov_mm
    if predictor.engine.model.config.conditioned and fov_mm == 0:
        fov_mm = fov_of_clicks(xy, (height, width), stack.pixel_mm)
    center = np.median(xy, axis=0)
    return place_window((height, width), stack.pixel_mm, predictor.engine.image_size, fov_mm, center)


def evaluate(
    predictor: Predictor, targets: Sequence[EvaluationTarget], config: EvaluationConfig, bundle: str
) -> Iterator[EvaluationRow]:
    """Yield one row per target, severity, seed and method; the clicks are the same for every method."""
    methods, judge = BundleMethods(predictor), Judge()
    for position, target in enumerate(targets):
        for severity in config.severities:
            for seed in range(config.first_seed, config.first_seed + config.seeds):
                for method in config.methods:
                    clicks, outside = target.clicks(severity, seed)
                    if method == SHUFFLED:
                        clicks = shuffled_clicks(targets, position, severity, seed)
                    occasion = Occasion(bundle, method, severity, seed, outside)

                    def segment(
                        target: EvaluationTarget, clicks: Clicks, method: str = method
                    ) -> tuple[np.ndarray, Fates | None]:
                        return methods.segment(target, clicks, method)

                    yield measure(segment, target, clicks, occasion, judge)


def verdict_shares(
    mask_thw: np.ndarray, clicks: Clicks, fates: Fates
) -> tuple[float | None, float | None, float | None]:
    """Shares of all clicks that were kept, of those inside the target that were rejected, of those outside kept."""
    column, row = np.rint(clicks.xy).astype(int).T
    size = np.array(mask_thw.shape)
    place = np.stack((clicks.slice_index, row, column), axis=1)
    seen = ((place >= 0) & (place < size)).all(axis=1)
    right = np.zeros(len(place), dtype=bool)
    right[seen] = mask_thw[tuple(place[seen].T)]
    kept = np.array([n in fates and fates[n].fate in (Fate.KEPT, Fate.INSISTED) for n in range(len(place))], dtype=bool)

    def share(of: np.ndarray, among: np.ndarray) -> float | None:
        return round(float(of[among].mean()), 4) if among.any() else None

    return share(kept, np.ones(len(kept), dtype=bool)), share(~kept, right), share(kept, ~right)


def _rounded(of: MaskMetrics) -> tuple[float | None, float | None, float | None, float | None]:
    dsc, iou, nsd = (None if value is None else round(float(value), 5) for value in (of.dsc, of.iou, of.nsd))
    return dsc, iou, None if of.hd95_mm is None else round(float(of.hd95_mm), 3), nsd
