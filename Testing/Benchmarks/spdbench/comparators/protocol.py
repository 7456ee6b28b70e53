"""The interface of every system in the benchmark, and the systems by name.

The module of a system is imported only when it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.evaluation.evaluator import EvaluationTarget
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.intensity import IntensityConfig
from SPDSegmentLib.geometry.slices import SliceStack

OUTSIDE_LOGIT = -1.0
"""What is put beyond the window where logits are restored in whole."""


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


# name -> "module:class"; modules are relative to this package, classes take (inputs: InputSettings, **settings).
COMPARATORS: dict[str, str] = {
    "medsam-box": "sam_rows:MedSamBox",
    "medsam-box-zero-shot": "sam_rows:MedSamBoxZeroShot",
    "medsam2-video": "sam2_video:MedSam2Video",
    "msa": "sam_rows:MedicalSamAdapter",
    "nnunet": "nnunet:NnUNetWithoutClicks",
    "nnunet-clicks": "nnunet:NnUNet",
    "random-walker": "classic:RandomWalker",
    "region-growing": "classic:RegionGrowing",
    "sam-refiner": "sam_refiner:SamRefiner",
    "sam2-video": "sam2_video:Sam2Video",
    "threshold-growing": "classic:ThresholdGrowing",
    "transunet": "channel_networks:TransUNetWithoutClicks",
    "transunet-clicks": "channel_networks:TransUNet",
    "unet": "unet:UNet",
    "unet-clicks": "unet:UNetWithClicks",
}


def make_comparator(name: str, inputs: InputSettings | None = None, **settings: Any) -> Comparator:
    """A comparator that is not yet trained or loaded.

    Raises:
        BadInput: unknown name or setting.
        NotRun: a package that it needs is not installed.
    """
    if name not in COMPARATORS:
        raise BadInput(f"Unknown comparator '{name}'.", f"Known: {', '.join(sorted(COMPARATORS)) or 'none'}.")
    module_name, _, class_name = COMPARATORS[name].partition(":")
    try:
        module = importlib.import_module(f"{__package__}.{module_name}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("SPDSegmentLib"):
            raise
        raise NotRun(f"the package {error.name} is not installed") from error
    try:
        comparator: Comparator = getattr(module, class_name)(inputs or InputSettings(), **settings)
    except TypeError as error:
        raise BadInput(f"The settings {sorted(settings)} do not fit the comparator '{name}': {error}.") from error
    return comparator


OnProgress = Callable[[int, int, dict[str, float]], None]
"""Called as (steps done, steps in all, loss terms); raising from it stops the training, which the next call resumes.

Without loss terms the steps are those of a preparation, to which no limit of a budget applies.
"""


class NotRun(Exception):
    """A comparator cannot run here; its row says ``not run: <reason>`` and never a number.

    Args:
        reason: a few words without a full stop, e.g. ``weights not available``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Budget:
    """What a training may cost; whichever limit comes first ends it.

    Attributes:
        steps: optimizer steps, or rounds of a method that has none.
        seconds: of training, over all resumed parts together; 0 for no limit.
    """

    steps: int
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.seconds < 0:
            raise BadInput(f"A budget of {self.steps} steps and {self.seconds} s allows no training.")


@dataclass(frozen=True)
class InputSettings:
    """How slices reach a network: the same for every system on a data set, so that none sees more than another.

    Attributes:
        image_size: side of the square network input in pixels; a system with a fixed input resamples from it.
        fov_mm: physical side of that square, 0 for the whole slice; placed with
            :func:`SPDSegmentLib.geometry.window.place_window`.
        intensity: normalization of a volume to [0, 1].
        severities: range of the click noise that trainings draw from, as in ``Stage2Config``.
        box_margin_mm: added on each side of the points wherever a box is made of them; about the radius of the
            structure's cross-section in the training cases.
        seed: of weights and of sampling.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:n``.
    """

    image_size: int = 256
    fov_mm: float = 0.0
    intensity: IntensityConfig = field(default_factory=IntensityConfig)
    severities: tuple[float, float] = (0.5, 3.0)
    box_margin_mm: float = 10.0
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True, eq=False)
class TrainingCase:
    """One labeled volume to train on.

    Attributes:
        patient, name: whose volume, and which.
        stack: its slices (T, H, W), in the orientation that :meth:`Comparator.segment` sees too.
        targets: the structures that can be clicked, each with its mask and its simulated clicks
            (:meth:`EvaluationTarget.clicks`, severity by name).
    """

    patient: str
    name: str
    stack: SliceStack
    targets: tuple[EvaluationTarget, ...]

    def union(self) -> np.ndarray:
        """(T, H, W) bool, all targets together: what a system without clicks can learn."""
        return np.logical_or.reduce([target.mask for target in self.targets])


@runtime_checkable
class Comparator(Protocol):
    """One system.

    Attributes:
        name: as in the registry and in the tables.
        uses_clicks: whether the result depends on the clicks.
        needs_training: whether :meth:`train` must have run on cases of other patients.
    """

    name: str
    uses_clicks: bool
    needs_training: bool

    def train(self, cases: Sequence[TrainingCase], folder: Path, budget: Budget, on_progress: OnProgress) -> None:
        """Train within a budget and keep weights as safetensors in ``folder``; a stopped training goes on.

        Writes ``training.json`` with ``steps`` (done), ``seconds`` and ``parameters`` (trainable), which the report
        states beside the figures.

        Raises:
            NotRun: a package or weights are missing.
        """
        ...

    def load(self, folder: Path) -> None:
        """Get ready to segment; without training ``folder`` may be empty.

        Raises:
            NotRun: a package or weights are missing.
        """
        ...

    def segment(self, target: EvaluationTarget, clicks: Clicks) -> np.ndarray:
        """Segment one structure: (T, H, W) bool in the target's canonical slices.

        ``target.mask`` and ``target.path`` are the truth and must not be looked at. The same arguments give the same
        mask; successive calls often have the same ``target``, so what depends on its image alone may be kept.
        """
        ...
