"""Run one bundle over the targets of labelled cases with simulated clicks."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from SPDSegmentLib.evaluation.metrics import slice_metrics, volume_metrics
from SPDSegmentLib.evaluation.protocol import SALIENCY_ONLY, SHUFFLED, EvaluationConfig, EvaluationRow
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.window import place_window
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.inference.results import PointResult
from SPDSegmentLib.inference.session import Session
from SPDSegmentLib.prompts.noise import ClickPath, NoiseConfig, simulate_clicks_from_path
from SPDSegmentLib.prompts.strategies import rests_on_distillation


@dataclass(frozen=True, eq=False)
class EvaluationTarget:
    """One structure of one case.

    Attributes:
        stack: the slices; mask: (T, H, W) bool; path: for the noise simulator.
    """

    patient: str
    case: str
    name: str
    stack: SliceStack
    mask: np.ndarray
    path: ClickPath

    def clicks(self, severity: str | float | NoiseConfig, seed: int) -> tuple[Clicks, float]:
        """Simulated clicks and the share of them outside the target; the seed differs from case to case."""
        own_seed = seed * 100_003 + zlib.crc32(f"{self.case}:{self.name}".encode()) % 100_003
        simulated = simulate_clicks_from_path(self.path, self.mask, severity, own_seed)
        n = len(simulated.slice_index)
        clicks = Clicks(
            simulated.slice_index, simulated.xy, np.zeros(n, dtype=bool), tuple(str(i + 1) for i in range(n))
        )
        return clicks, float(1 - simulated.inside_target.mean()) if n else 1.0


class SessionPool:
    """Sessions by target and field of view: what one set of clicks has encoded serves the next."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._sessions: dict[tuple[float, float], Session] = {}

    def session(self, target: EvaluationTarget, clicks: Clicks) -> Session:
        """A session whose field of view is the one that a new session would choose for these clicks."""
        height, width = target.stack.array.shape[1:]
        window = place_window(
            (height, width),
            target.stack.pixel_mm,
            self.predictor.engine.image_size,
            self.predictor.fov_mm,
            np.median(clicks.xy[~clicks.outside], axis=0),
        )
        if window.origin_xy not in self._sessions:
            self._sessions[window.origin_xy] = self.predictor.open(target.stack)
        return self._sessions[window.origin_xy]


def evaluate(
    predictor: Predictor,
    targets: Sequence[EvaluationTarget],
    config: EvaluationConfig,
    bundle: str,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[EvaluationRow]:
    """Yield one row per target, severity, seed and method; the clicks are the same for every method."""
    total = len(targets) * len(config.severities) * config.seeds * len(config.methods)
    done = 0
    for position, target in enumerate(targets):
        pool = SessionPool(predictor)
        for severity in config.severities:
            for seed in range(config.first_seed, config.first_seed + config.seeds):
                for method in config.methods:
                    clicks, outside = target.clicks(severity, seed)
                    if method == SHUFFLED:
                        clicks = shuffled_clicks(targets, position, severity, seed)
                    row = _run(predictor, pool, target, clicks, method, (bundle, severity, seed, outside))
                    yield row
                    done += 1
                    on_progress(done, total)


def _run(
    predictor: Predictor,
    pool: SessionPool,
    target: EvaluationTarget,
    clicks: Clicks,
    method: str,
    identity: tuple[str, str, int, float],
) -> EvaluationRow:
    bundle, severity, seed, outside = identity
    session = pool.session(target, clicks)
    strategy = "consensus" if method in (SALIENCY_ONLY, SHUFFLED) else method
    result = session.segment(clicks, prompts=strategy, saliency_only=method == SALIENCY_ONLY)
    spacing = (target.stack.slice_mm, *target.stack.pixel_mm)
    volume = volume_metrics(result.mask, target.mask, spacing)
    slices = slice_metrics(result.mask, target.mask, target.stack.pixel_mm)
    return EvaluationRow(
        bundle,
        method,
        severity,
        seed,
        target.patient,
        target.case,
        target.name,
        len(clicks.slice_index),
        round(outside, 4),
        volume.dsc,
        volume.iou,
        volume.hd95_mm,
        volume.nsd,
        slices.dsc,
        slices.iou,
        slices.hd95_mm,
        round(result.seconds, 3),
        *(verdict_shares(target.mask, clicks, result.click_fates()) if rests_on_distillation(method) else ()),
    )


def verdict_shares(
    mask_thw: np.ndarray, clicks: Clicks, fates: Mapping[int, PointResult]
) -> tuple[float | None, float | None, float | None]:
    """Shares of all clicks that were kept, of those inside the target that were rejected, of those outside kept."""
    column, row = np.rint(clicks.xy).astype(int).T
    size = np.array(mask_thw.shape)
    place = np.stack((clicks.slice_index, row, column), axis=1)
    seen = ((place >= 0) & (place < size)).all(axis=1)
    right = np.zeros(len(place), dtype=bool)
    right[seen] = mask_thw[tuple(place[seen].T)]
    kept = np.array([n in fates and fates[n].fate in ("kept", "insisted") for n in range(len(place))], dtype=bool)

    def share(of: np.ndarray, among: np.ndarray) -> float | None:
        return round(float(of[among].mean()), 4) if among.any() else None

    return share(kept, np.ones(len(kept), dtype=bool)), share(~kept, right), share(kept, ~right)


def shuffled_clicks(
    targets: Sequence[EvaluationTarget], position: int, severity: str | float | NoiseConfig, seed: int
) -> Clicks:
    """The next other patient's clicks, moved to the same place of this volume by relative position.

    They are on the like structure (the same name) where another patient has one: of two kidneys, on the same side.
    """
    own = targets[position]
    others = [t for t in (*targets[position + 1 :], *targets[:position]) if t.patient != own.patient]
    others = [t for t in others if t.name == own.name] or others or [own]
    clicks, _ = others[0].clicks(severity, seed)
    theirs, ours = np.array(others[0].mask.shape, float), np.array(own.mask.shape, float)
    index = np.clip(np.rint(clicks.slice_index * ours[0] / theirs[0]), 0, ours[0] - 1).astype(int)
    xy = clicks.xy * (ours[[2, 1]] / theirs[[2, 1]])
    return Clicks(index, xy, clicks.outside, clicks.ids)


def patient_of(case: str, pattern: str) -> str:
    """The patient that a case name belongs to: the pattern's first group."""
    match = re.match(pattern, case)
    return match.group(1) if match else case
