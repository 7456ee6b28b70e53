"""One evaluator: labeled cases and their targets, simulated clicks, ways of prompting, and a row a measured mask.

:func:`measure` makes one row of any system's mask; :func:`evaluate` runs a bundle's methods over all targets. The
benchmark measures every system with the same function.
"""

from __future__ import annotations

import functools
import hashlib
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.evaluation.metrics import MaskMetrics, slice_metrics, volume_metrics
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.labels import read_labeled
from SPDSegmentLib.geometry.slices import SliceStack
from SPDSegmentLib.geometry.window import InputWindow, fov_of_clicks, place_window
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.inference.session import Session
from SPDSegmentLib.models.bundle_info import BundleInfo
from SPDSegmentLib.prompts.click_path import ClickPath, click_path, nearest_pixel
from SPDSegmentLib.prompts.distillation import SALIENCY_ONLY, STRATEGIES
from SPDSegmentLib.prompts.fates import Fate, PointFate
from SPDSegmentLib.prompts.noise import SEVERITIES, NoiseConfig, simulate_clicks_from_path
from SPDSegmentLib.prompts.strategies import rests_on_distillation
from SPDSegmentLib.settings import check_choice
from SPDSegmentLib.training.config import DataConfig, patient_of

KEPT_JUDGMENTS = 256
SHUFFLED = "shuffled"
METHODS = (*STRATEGIES, SALIENCY_ONLY, SHUFFLED)


@dataclass(frozen=True)
class EvaluationConfig:
    """One evaluation of one bundle.

    Attributes:
        severities: noise of the clicks, names of :data:`SPDSegmentLib.prompts.noise.SEVERITIES`.
        seeds: click sets per target and severity; one where the clicks are clean, as all seeds give the same.
        methods: prompt strategies; ``saliency-only`` (S > tau as the mask); ``shuffled`` (another patient's clicks).
        first_seed: seeds count from here; the same numbers give the same clicks for every bundle.
    """

    severities: tuple[str, ...] = ("clean", "mild", "clinic", "severe")
    seeds: int = 3
    methods: tuple[str, ...] = ("consensus",)
    first_seed: int = 1000

    def __post_init__(self) -> None:
        for severity in self.severities:
            check_choice(severity, SEVERITIES, "severity")
        for method in self.methods:
            check_choice(method, METHODS, "method")
        if self.seeds < 1:
            raise BadInput("At least one seed is needed.")

    @property
    def draws(self) -> list[tuple[str, int]]:
        """(severity, seed) of every set of clicks that a target gets."""
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        noisy = {severity: any(astuple(SEVERITIES[severity])) for severity in self.severities}
        return [(severity, seed) for severity in self.severities for seed in (seeds if noisy[severity] else seeds[:1])]


@dataclass(frozen=True)
class EvaluationRow:
    """One segmentation of one target: what ``spdsegment evaluate`` and the benchmark measure.

    Attributes:
        bundle, method, severity, seed: what was run; the severity may be a label of one kind of noise alone.
        patient, case, target: on what.
        clicks, outside_share: how many clicks, and which share of them lay outside the target.
        dsc, iou, nsd: per volume; hd95_mm in millimeters; ``None`` where the empty-mask policy leaves a case out.
        slice_dsc, slice_iou, slice_hd95_mm: means over the slices that hold the target.
        seconds: of the segmentation, without what was kept from earlier clicks on the volume.
        kept_share, right_rejected, wrong_kept: shares of all clicks that were kept, of those inside the target that
            were rejected, of those outside that were kept; ``None`` where there is no such click or verdict.
        fold: of a cross-validation.
    """

    bundle: str
    method: str
    severity: str
    seed: int
    patient: str
    case: str
    target: str
    clicks: int
    outside_share: float
    dsc: float | None
    iou: float | None
    hd95_mm: float | None
    nsd: float | None
    slice_dsc: float | None
    slice_iou: float | None
    slice_hd95_mm: float | None
    seconds: float
    kept_share: float | None = None
    right_rejected: float | None = None
    wrong_kept: float | None = None
    fold: str = ""

    @property
    def place(self) -> tuple[str, str, str, int]:
        """What was segmented with which clicks."""
        return self.case, self.target, self.severity, self.seed


METRICS = (
    "dsc", "iou", "hd95_mm", "nsd", "slice_dsc", "slice_iou", "slice_hd95_mm", "kept_share", "right_rejected",
    "wrong_kept",
)  # fmt: skip


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


def plane_of(models: Iterable[BundleInfo], plane: str) -> str:
    """The slicing plane that models are measured in: their own, in which they are used; ``plane`` where they take any.

    Raises:
        BadInput: they have different ones.
    """
    own = {info.slicing_axis: info.name for info in models if info.slicing_axis != "auto"}
    if len(own) > 1:
        said = ", ".join(f"{name} {axis}" for axis, name in own.items())
        raise BadInput(f"The models are made for different slices ({said}).", "Measure them one by one.")
    return next(iter(own), plane)


def learned_from(info: BundleInfo, cases: Sequence[str], pattern: str) -> list[str]:
    """Those of the cases whose patient, by the first group of ``pattern``, a model says that it was trained on.

    Patients are known by their names alone; a model of several data sets has the data set's before each.
    """
    names = [str(name) for name in info.training.get("patients") or ()]
    known = {patient_of(part, pattern) for name in names for part in (name, name.partition("/")[2]) if part}
    return [case for case in cases if patient_of(case, pattern) in known]


def load_targets(
    folder: Path, data: DataConfig, cases: Sequence[str], on_empty: Callable[[str], None] | None = None
) -> list[EvaluationTarget]:
    """Read every target of the cases.

    Args:
        folder: where the cases lie; data: how their files are named, and what of them is a target.
        on_empty: told a sentence about each case that holds no target and is left out; None refuses such a case.

    Raises:
        BadInput: a file is missing, grids differ, or no case (without ``on_empty``: not every case) holds a target.
    """
    targets = []
    for case in cases:
        volume, labels = read_labeled(folder, data, case)
        stack = SliceStack(volume, data.plane)
        slices = stack.from_volume(labels)
        masks = {values: np.ascontiguousarray(np.isin(slices, values)) for values in data.targets}
        if not any(mask.any() for mask in masks.values()):
            message = f"{folder / data.label.format(case=case)} holds none of the label values {data.targets}"
            if on_empty is None:
                raise BadInput(f"{message}.", "Check targets in [data].")
            on_empty(f"{message}: case {case} is left out.")
        for values, mask in masks.items():
            if mask.any():
                path = click_path(mask, stack.pixel_mm, stack.slice_mm)
                name = "+".join(map(str, values))
                patient = patient_of(case, data.patient_pattern)
                targets.append(EvaluationTarget(patient, case, name, stack, mask, path))
    if not targets:
        raise BadInput(f"None of the cases {', '.join(cases)} holds a target.", "Check targets in [data].")
    return targets


def shuffled_clicks(
    targets: Sequence[EvaluationTarget], position: int, severity: str | float | NoiseConfig, seed: int
) -> Clicks:
    """The next other patient's clicks, moved to the same place of this volume by relative position.

    They are on the like structure (the same name) where another patient has one: of two kidneys, on the same side.

    Raises:
        BadInput: all targets are of one patient.
    """
    own, other = targets[position], _of_another_patient(targets, position)
    clicks, _ = other.clicks(severity, seed)
    theirs, ours = np.array(other.mask.shape, float), np.array(own.mask.shape, float)
    index = np.clip(np.rint(clicks.slice_index * ours[0] / theirs[0]), 0, ours[0] - 1).astype(int)
    xy = clicks.xy * (ours[[2, 1]] / theirs[[2, 1]])
    return Clicks(index, xy, clicks.outside, clicks.ids)


def _of_another_patient(targets: Sequence[EvaluationTarget], position: int) -> EvaluationTarget:
    own = targets[position]
    others = [t for t in (*targets[position + 1 :], *targets[:position]) if t.patient != own.patient]
    if not others:
        raise BadInput(
            f"Another patient's clicks ({SHUFFLED}) are wanted, and all cases are of the patient {own.patient}.",
            f"Leave the method {SHUFFLED} out, or add a case of another patient.",
        )
    return next((t for t in others if t.name == own.name), others[0])


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
    o, t, outside = occasion, target, round(occasion.outside_share, 4)
    return EvaluationRow(
        o.bundle, o.method, o.severity, o.seed, t.patient, t.case, t.name, len(clicks), outside,
        *_rounded(volume), *_rounded(slices)[:3], round(seconds, 3), *verdicts, fold=o.fold,
    )  # fmt: skip


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
    """Yield one row per target, severity, seed and method; the clicks are the same for every method.

    Raises:
        BadInput: another patient's clicks are wanted, and there is one patient only.
    """
    methods, judge = BundleMethods(predictor), Judge()
    if SHUFFLED in config.methods and targets:
        _of_another_patient(targets, 0)
    for position, target in enumerate(targets):
        for severity, seed in config.draws:
            for method in config.methods:
                clicks, outside = target.clicks(severity, seed)
                if method == SHUFFLED:
                    clicks = shuffled_clicks(targets, position, severity, seed)
                occasion = Occasion(bundle, method, severity, seed, outside)
                segment = functools.partial(methods.segment, method=method)
                yield measure(segment, target, clicks, occasion, judge)


def verdict_shares(
    mask_thw: np.ndarray, clicks: Clicks, fates: Fates
) -> tuple[float | None, float | None, float | None]:
    """Shares of all clicks that were kept, of those inside the target that were rejected, of those outside kept."""
    column, row = nearest_pixel(clicks.xy).T
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
