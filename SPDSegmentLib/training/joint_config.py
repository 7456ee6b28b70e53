"""Configuration of a joint training: several data sets, one click-conditioned model for all their structures."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.intensity import CT_WINDOW, MR_PERCENTILES, IntensityConfig
from SPDSegmentLib.geometry.slices import AXES
from SPDSegmentLib.networks.config import NetworkConfig, SegmentationLossConfig
from SPDSegmentLib.prompts.distillation import PromptConfig
from SPDSegmentLib.settings import build_settings, check_choice, check_ranges
from SPDSegmentLib.training.config import BundleText, check_severities, read_toml

MAX_LABELS = 255
"""Label values that a set may name; its volumes are kept in 8 bits."""
OBJECTIVES = ("joint", "saliency_first", "frozen_encoder", "prompted")


@dataclass(frozen=True)
class SetConfig:
    """One data set.

    Attributes:
        folder: where the volumes lie; relative to the configuration file.
        structures: names and label values, of which a set has at most 255; values of one list belong together.
        image, label: file names with ``{case}`` in place of the case's name.
        series, segments: as in :class:`SPDSegmentLib.training.config.DataConfig`.
        modality: ``CT`` or ``MR``.
        plane: slicing plane, as in :class:`SPDSegmentLib.geometry.slices.SliceStack`.
        fov_mm: physical side of the network's field of view before augmentation.
        weight: how often a structure of this set is drawn.
        cases: case names; empty for all that have an image and a label.
        exclude: case names that are left out (patients of another fold).
        max_cases: at most this many cases, evenly spaced; 0 for all.
        synthetic: cases made of each volume with a synthetic structure in it.
    """

    folder: str
    structures: dict[str, tuple[int, ...]]
    image: str = "{case}_image.nii.gz"
    label: str = "{case}_label.nii.gz"
    series: str = ""
    segments: tuple[str, ...] = ()
    modality: str = "MR"
    plane: str = "axial"
    fov_mm: float = 168.0
    weight: float = 1.0
    cases: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_cases: int = 0
    synthetic: int = 0

    def __post_init__(self) -> None:
        check_choice(self.modality, ("CT", "MR"), f"modality of {self.folder}")
        check_choice(self.plane, AXES, f"plane of {self.folder}")
        limits = {"fov_mm": (1e-3, 1e6), "weight": (1e-6, 1e6), "max_cases": (0, 1e9), "synthetic": (0, 100)}
        check_ranges(self, limits)
        for structure, values in self.structures.items():
            if not values or min(values) < 1:
                raise BadInput(
                    f"The label values of {structure} in {self.folder} are {list(values)}; what is not labeled has 0.",
                    "Name at least one value, each 1 or more.",
                )
        if len({value for values in self.structures.values() for value in values}) > MAX_LABELS:
            raise BadInput(
                f"The structures of {self.folder} have more than {MAX_LABELS} different label values.",
                "Divide them among several tables [sets.NAME] with the same folder.",
            )

    @property
    def intensity(self) -> IntensityConfig:
        """How values of its modality become 0 to 1."""
        is_ct = self.modality == "CT"
        return IntensityConfig("window", *CT_WINDOW) if is_ct else IntensityConfig("percentile", *MR_PERCENTILES)


@dataclass(frozen=True)
class JointAugmentation:
    """Random changes of a run of slices (docs/method.md); clicks move along.

    Attributes:
        flip: probability of a left-right flip; rotation_deg: largest rotation.
        scale_low, scale_high: change of the field of view; shift: largest shift as a share of it.
        darker, brighter: MR intensities are multiplied by exp(U(-darker, brighter)).
        slope, level: CT intensities are multiplied by 1 +- slope and shifted by +- level.
        gamma: largest logarithm of the exponent; bias_field: logarithm of a smooth field (MR).
        noise: largest standard deviation; inversion: probability of a negative.
    """

    flip: float = 0.5
    rotation_deg: float = 15.0
    scale_low: float = 0.7
    scale_high: float = 1.4
    shift: float = 0.12
    darker: float = 0.9
    brighter: float = 0.4
    slope: float = 0.18
    level: float = 0.08
    gamma: float = 0.35
    bias_field: float = 0.25
    noise: float = 0.05
    inversion: float = 0.06

    def __post_init__(self) -> None:
        if not 0 < self.scale_low <= self.scale_high:
            raise BadInput(f"scale_low {self.scale_low} and scale_high {self.scale_high} are not in order.")
        limits = {"flip": (0.0, 1.0), "inversion": (0.0, 1.0), "shift": (0.0, 1.0), "noise": (0.0, 1.0)}
        check_ranges(self, limits | {"rotation_deg": (0.0, 180.0)})


@dataclass(frozen=True)
class JointStage:
    """Steps of a joint training.

    Attributes:
        objective: ``joint``: encoder LoRA learns through both passes of the decoder; ``saliency_first``: through pass
            one in the first half, then pass two alone (the paper's order); ``frozen_encoder``: neither; ``prompted``:
            one pass on the raw clicks and their interpolation (SAM-Tuning, the opponent in the same budget).
        steps, runs_per_step, run_length: a batch is this many runs of neighboring slices.
        entries: runs whose embeddings are computed once and kept (frozen encoder); 0 draws new images at every step.
        learning_rate: of the decoder; encoder_learning_rate: of the encoder's LoRA.
        click_sets: sets of simulated clicks of a structure, drawn once; a quarter of them is clean.
        severities: range of the simulator's severity for the rest.
        margin: slices beyond structure and clicks that are drawn, so that the network learns to stop.
        psc_weight: lambda of Pairwise Slice Consistency on pass two; quality_weight: of the quality head's error.
    """

    objective: str = "joint"
    steps: int = 1000
    runs_per_step: int = 10
    run_length: int = 4
    entries: int = 0
    learning_rate: float = 5e-4
    encoder_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 150
    click_sets: int = 60
    severities: tuple[float, float] = (0.0, 3.0)
    margin: int = 4
    psc_weight: float = 0.05
    quality_weight: float = 0.2
    loss: SegmentationLossConfig = field(default_factory=SegmentationLossConfig)

    def __post_init__(self) -> None:
        check_choice(self.objective, OBJECTIVES, "objective")
        if self.entries and self.objective not in ("frozen_encoder", "prompted"):
            raise BadInput(
                f"Kept embeddings (entries = {self.entries}) do not go with an encoder that learns.",
                'Set entries = 0, or objective = "frozen_encoder".',
            )
        check_severities(self.severities)
        counts = dict.fromkeys(("steps", "runs_per_step", "run_length", "click_sets"), (1, math.inf))
        rates = dict.fromkeys(("learning_rate", "encoder_learning_rate", "weight_decay"), (0.0, 1.0))
        others = dict.fromkeys(("entries", "margin", "warmup", "psc_weight", "quality_weight"), (0, math.inf))
        check_ranges(self, counts | rates | others)


@dataclass(frozen=True)
class JointConfig:
    """Everything that a joint training needs.

    Attributes:
        sets: data sets, by name.
        initialize_from: a bundle that the training starts from, empty for the base weights.
    """

    bundle: BundleText
    sets: dict[str, SetConfig]
    network: NetworkConfig = field(default_factory=lambda: NetworkConfig(image_size=192, saliency="conditioned"))
    prompts: PromptConfig = field(default_factory=PromptConfig)
    augmentation: JointAugmentation = field(default_factory=JointAugmentation)
    stage: JointStage = field(default_factory=JointStage)
    seed: int = 0
    initialize_from: str = ""
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        check_ranges(self, {"seed": (0, math.inf), "checkpoint_seconds": (0, math.inf)})
        if not self.sets:
            raise BadInput("The configuration names no data set.", "Add a table [sets.NAME].")
        if not self.network.conditioned:
            raise BadInput('A joint training needs network.saliency = "conditioned".')


def read_joint_config(path: str | Path) -> JointConfig:
    """Read and check a TOML file with tables ``[sets.NAME]``.

    Raises:
        BadInput: naming the file and the setting that is missing, unknown, or of the wrong kind.
    """
    path = Path(path)
    return build_settings(JointConfig, read_toml(path), str(path))


def is_joint(path: str | Path) -> bool:
    """Whether a configuration names several data sets and not one.

    Raises:
        BadInput: a file that cannot be read or is no TOML.
    """
    return "sets" in read_toml(Path(path))
