"""The training configuration, read from TOML into frozen dataclasses that validate themselves."""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.intensity import IntensityConfig
from SPDSegmentLib.models.bundle_info import PLANES, terminology_entry
from SPDSegmentLib.networks.config import NetworkConfig, SegmentationLossConfig
from SPDSegmentLib.prompts.distillation import STRATEGIES, PromptConfig
from SPDSegmentLib.prompts.noise import SEVERITIES
from SPDSegmentLib.settings import build_settings, check_choice, check_ranges, shorten

_PERSON = re.compile(r"(?i)(sub|subj|subject|pat|patient|pt)[-_]?[a-z0-9]*?\d+(?=[-_./]|$)")
_VISIT = (
    r"(?:[-_ ](?:left|right|l|r|pre|post|baseline|follow-?up\d*|visit\d+|ses-?\d+|scan\d+|t\d+|tp\d+|day-?\d+)"
    r"|(?<=\d)[lr])"
)
MOST_OF_ONE = 10
"""Cases of a patient, on average, above which what case names begin with is no patient."""


@dataclass(frozen=True)
class BundleText:
    """What the bundle says of itself.

    Attributes:
        name: of the bundle, in small letters, digits and hyphens.
        title: for people.
        structure: what is segmented; its name in results.
        modality: ``CT`` or ``MR``.
        dataset, license, attribution: name of the training data; their license; whom to name for them.
        color: red, green and blue of the segment, 0 to 1.
        code: of the structure in DICOM objects, "SCHEME VALUE MEANING" as in "SCT 71341001 Femur"; by default that of
            :data:`SPDSegmentLib.models.bundle_info.STRUCTURES`, if it is there.
    """

    name: str
    title: str
    structure: str
    modality: str
    dataset: str = ""
    license: str = ""
    attribution: str = ""
    color: tuple[float, ...] = (0.87, 0.56, 0.35)
    code: str = ""

    def __post_init__(self) -> None:
        terminology_entry(self.structure, self.code)


@dataclass(frozen=True)
class DataConfig:
    """Cases and their split.

    Attributes:
        folder: where the volumes lie; relative to the configuration file.
        image, label: files of the images; files of the labels, both with ``{case}`` in place of the case's name.
            Both may be DICOM: a folder of a series; a SEG or RTSTRUCT file or its folder.
        targets: label values of each structure that can be clicked; values of one inner list belong together.
        saliency: label values that the saliency head learns, the union of the targets when empty.
        series: of a DICOM folder with several image series, the wanted one's UID, number or description; segments: of a
            DICOM SEG or RTSTRUCT file the names that become the label values 1, 2 and so on, or patterns with ``*``; by
            default each has its own number.
        clicks: file name of given clicks (``.mrk.json``) with ``{case}``, with a list for each of several targets, in
            their order; empty for simulated ones.
        plane: slicing plane: ``axial``, ``coronal``, ``sagittal`` or ``auto``.
        train, validation, test: cases to learn from; cases to choose the best checkpoint by; cases for the
            measurement alone. No patient may be in two of them.
        patient_pattern: regular expression whose first group names the patient of a case.
    """

    folder: str
    image: str
    label: str
    targets: tuple[tuple[int, ...], ...]
    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    saliency: tuple[int, ...] = ()
    series: str = ""
    segments: tuple[str, ...] = ()
    clicks: str = ""
    plane: str = "auto"
    patient_pattern: str = "(.*)"

    def __post_init__(self) -> None:
        for name in ("image", "label", "clicks"):
            pattern = getattr(self, name)
            try:
                differs = pattern.format(case="a") != pattern.format(case="b")
            except (KeyError, IndexError, ValueError):
                differs = False
            if not differs and (pattern or name != "clicks"):
                raise BadInput(f"The file name {name} = '{pattern}' has no {{case}} in it.", "Write {case} once.")
        if not self.targets or not all(self.targets):
            raise BadInput("targets names no label value.", "Give a list of lists, such as targets = [[1]].")
        if len(set(map(frozenset, self.targets))) < len(self.targets):
            raise BadInput("targets in [data] names a structure twice.", "Name each once.")
        check_choice(self.plane, PLANES, "slicing plane")
        if any(0 in values for values in (*self.targets, self.saliency)):
            raise BadInput("targets or saliency in [data] names the label value 0, the background.", "Leave it out.")

    def saliency_values(self) -> tuple[int, ...]:
        """Label values of the saliency target."""
        return self.saliency or tuple(sorted({value for target in self.targets for value in target}))


@dataclass(frozen=True)
class AugmentationConfig:
    """Random changes of a run of slices, the same for all its slices; clicks move along.

    Attributes:
        flip: probability of a left-right flip.
        rotation_deg, scale, shift: largest rotation; largest relative change of size; largest shift as a share of the
            field of view.
        gamma: largest relative change of the gamma exponent.
        bias_field: strength of a smooth multiplicative field (MR).
        noise: largest standard deviation of noise added on top of the dither.
    """

    flip: float = 0.5
    rotation_deg: float = 12.0
    scale: float = 0.15
    shift: float = 0.12
    gamma: float = 0.3
    bias_field: float = 0.25
    noise: float = 0.0

    def __post_init__(self) -> None:
        limits = {"flip": 1.0, "rotation_deg": 180.0, "scale": 0.9, "shift": 1.0, "gamma": 3.0, "noise": 1.0}
        check_ranges(self, {name: (0.0, limit) for name, limit in limits.items()} | {"bias_field": (0.0, 3.0)})


_STAGE_RANGES: dict[str, tuple[float, float]] = {
    "steps": (0, math.inf), "runs_per_step": (1, math.inf), "run_length": (1, math.inf), "margin": (0, math.inf),
    "learning_rate": (0, 1), "weight_decay": (0, 1), "warmup": (0, math.inf),
}  # fmt: skip


def check_severities(severities: tuple[float, float]) -> None:
    """Raise BadInput for what is no range of the noise simulator's severity."""
    low, high = severities
    if not 0 <= low <= high <= len(SEVERITIES) - 1:
        raise BadInput(f"severities {low} to {high} is not a range within 0 and {len(SEVERITIES) - 1}.")


@dataclass(frozen=True)
class Stage1Config:
    """Stage I, the anatomical prior: encoder LoRA and saliency head.

    Attributes:
        steps: optimizer steps with encoder LoRA.
        objective: ``saliency`` (paper); ``both``: encoder LoRA, saliency head and decoder learn the saliency and, from
            interpolated clicks, the clicked target (ours); ``prompted``: encoder LoRA and decoder learn the clicked
            target from all raw clicks, and there is no prior (SAM-Tuning).
        runs_per_step, run_length: a batch is this many runs; each of this many neighboring slices.
        learning_rate, weight_decay, warmup: of AdamW; of AdamW; steps in which the learning rate rises.
        background_share: share of runs drawn from anywhere in the volume instead of around the target.
        margin: slices beyond the target that still count as around it.
        loss: weights of the segmentation loss.
    """

    steps: int = 500
    objective: str = "saliency"
    runs_per_step: int = 2
    run_length: int = 3
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 250
    background_share: float = 0.15
    margin: int = 4
    loss: SegmentationLossConfig = field(default_factory=SegmentationLossConfig)

    def __post_init__(self) -> None:
        check_choice(self.objective, ("saliency", "both", "prompted"), "objective of stage1")
        check_ranges(self, _STAGE_RANGES | {"background_share": (0.0, 1.0)})


@dataclass(frozen=True)
class Stage2Config:
    """Stage II, the decoder, on embeddings that are computed once because everything before it is frozen.

    Attributes:
        steps: optimizer steps; 0 skips the stage.
        entries: random views of targets whose embeddings are computed and kept; every target once, then again.
        runs_per_step, run_length: a batch is this many runs; each of this many neighboring slices.
        learning_rate, weight_decay, warmup: of AdamW; of AdamW; steps in which the learning rate rises.
        margin: slices kept on each side of a target.
        head_steps: steps of the saliency head alone on the kept embeddings before it is frozen (part of stage I).
        strategy: prompts during training: ``consensus`` for SPD, ``raw`` for SAM-Tuning.
        beyond_share: share of the two slices before the first and after the last prompted one that get a point of that
            slice, so that the decoder learns where the target ends (ours).
        severities: range of the noise simulator's severity, drawn again at every visit (1 mild, 2 clinic, 3 severe).
        psc_weight, psc_direction, psc_stop_gradient: lambda of Pairwise Slice Consistency; ``next`` (paper),
            ``previous``, ``both`` or ``none``; whether the other slice of a pair learns nothing.
        quality_weight: weight of the quality head's error.
        validate_every: steps between two measurements on the validation cases, 0 for none. The best checkpoint of all
            measurements is kept: figures of these cases flatter the model, those of test do not.
        patience: measurements without a better one after which the training stops, 0 for never.
        loss: weights of the segmentation loss.
    """

    steps: int = 1500
    entries: int = 60
    head_steps: int = 0
    runs_per_step: int = 2
    run_length: int = 4
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    warmup: int = 250
    margin: int = 5
    strategy: str = "consensus"
    beyond_share: float = 0.0
    severities: tuple[float, float] = (0.5, 3.0)
    psc_weight: float = 0.1
    psc_direction: str = "next"
    psc_stop_gradient: bool = False
    quality_weight: float = 1.0
    validate_every: int = 0
    patience: int = 0
    loss: SegmentationLossConfig = field(default_factory=SegmentationLossConfig)

    def __post_init__(self) -> None:
        check_choice(self.strategy, STRATEGIES, "prompt strategy")
        check_choice(self.psc_direction, ("none", "previous", "next", "both"), "PSC direction")
        check_severities(self.severities)
        several = {"entries": (1, math.inf), "head_steps": (0, math.inf), "beyond_share": (0, 1)}
        several |= {"validate_every": (0, math.inf), "patience": (0, math.inf)}
        check_ranges(self, _STAGE_RANGES | several | {"psc_weight": (0, math.inf), "quality_weight": (0, math.inf)})


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that ``spdsegment train`` needs.

    Attributes:
        bundle, data, network, prompts, intensity, augmentation, stage1, stage2: tables of their own.
        fov_mm: physical side of the network's field of view, 0 for the whole slice.
        seed: of everything that is drawn at random.
        initialize_from: a bundle whose stage I (encoder LoRA, saliency head) is taken over instead of trained; with
            ``stage1.objective = "both"`` the bundle that the training begins with.
        checkpoint_seconds: how often progress is saved, in seconds.
    """

    bundle: BundleText
    data: DataConfig
    network: NetworkConfig = field(default_factory=NetworkConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    intensity: IntensityConfig = field(default_factory=IntensityConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    stage1: Stage1Config = field(default_factory=Stage1Config)
    stage2: Stage2Config = field(default_factory=Stage2Config)
    fov_mm: float = 0.0
    seed: int = 0
    initialize_from: str = ""
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        check_ranges(self, {"seed": (0, math.inf), "fov_mm": (0, math.inf), "checkpoint_seconds": (0, math.inf)})
        if self.network.conditioned:
            raise BadInput(
                'saliency = "conditioned" in [network] is trained jointly, and this configuration has a table [data].',
                "Give tables [sets.NAME] instead, or leave saliency out.",
            )
        if self.stage1.objective == "prompted" and (self.stage2.strategy != "raw" or self.stage2.head_steps):
            raise BadInput(
                'stage1.objective = "prompted" trains no saliency.',
                'Set strategy = "raw" and head_steps = 0 in [stage2].',
            )


def read_training_config(path: str | Path) -> TrainingConfig:
    """Read and check a TOML file.

    A file may begin with ``extends = "other.toml"`` and then names only what differs from that file.

    Raises:
        BadInput: naming the file and the setting that is missing, unknown, or of the wrong kind.
    """
    path = Path(path)
    values = read_toml(path)
    if "sets" in values and "data" not in values:
        raise BadInput(f"{path} is of a joint training and has no table [data].", "Give one whose [data] names cases.")
    config = build_settings(TrainingConfig, values, str(path))
    check_split(config.data, path)
    return config


def read_toml(path: Path, depth: int = 0) -> dict[str, Any]:
    """The tables of a file merged over those of the file that it extends.

    Raises:
        BadInput: a file that cannot be read or is no TOML.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise BadInput(f"The configuration {path} cannot be read.", "Check the path.", str(error)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not valid TOML: {error}.", "Correct that line.") from error
    bundle = values.get("bundle")
    if isinstance(bundle, dict) and "licence" in bundle:  # the key's name in configurations up to 0.1.0
        bundle.setdefault("license", bundle.pop("licence"))
    base = values.pop("extends", None)
    if base is None:
        return values
    if depth > 8 or not isinstance(base, str):
        raise BadInput(f"extends in {path} does not lead to a base file.", "Name one other file.")
    return _merge(read_toml(path.parent / base, depth + 1), values)


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def patient_of(case: str, pattern: str) -> str:
    """The patient that a case name belongs to: the pattern's first group."""
    match = re.match(pattern, case)
    return (match.group(1) or case) if match else case


def patient_pattern(cases: Sequence[str]) -> str:
    """A regular expression whose first group names the patient: what case names begin with, or all of them.

    Of the usual ways to name cases it is the one by which most belong together, though not every name need follow it,
    but none by which all are one patient.
    """
    patterns = ["(.*)", f"(?i)(.+?)(?:{_VISIT})+$", *(["([^/]+)"] if any("/" in case for case in cases) else [])]
    if words := sorted({match[1] for case in cases if (match := _PERSON.match(case))}):
        patterns.insert(1, f"((?:{'|'.join(words)})[-_]?[A-Za-z0-9]*?\\d+)")
    patients = {pattern: len({patient_of(case, pattern) for case in cases}) for pattern in patterns}
    likely = [p for p, n in patients.items() if n > 1 and len(cases) <= MOST_OF_ONE * n]
    return min(likely, key=patients.__getitem__, default="(.*)")


def check_pattern(pattern: str, where: str) -> None:
    """Raise :class:`BadInput` for a pattern of patients that is no regular expression or has no group."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise BadInput(
            f"'{shorten(pattern)}' ({where}) is not a regular expression: {error}.",
            r"Write it as in '(p\d+)', its first group being the patient.",
        ) from error
    if not groups:
        raise BadInput(
            f"'{shorten(pattern)}' ({where}) has no group that names the patient.",
            r"Put that part into parentheses, as in '(p\d+)'.",
        )


def check_fit(pattern: str, where: str, cases: Sequence[str], every: bool = True) -> None:
    """Raise :class:`BadInput` where a pattern finds no patient in names of cases: in one, or not ``every`` in all."""
    odd = [case for case in cases if not ((match := re.match(pattern, case)) and match.group(1))]
    if odd and (every or len(odd) == len(cases)):
        fits = "none" if len(odd) == len(cases) else f"only {len(cases) - len(odd)}"
        raise BadInput(
            f"'{shorten(pattern)}' ({where}) fits {fits} of the {len(cases)} names of cases; "
            f"one that it does not fit is {odd[0]}.",
            f"Let its first group be the patient in each name; {_all_in_one(pattern)} makes every other case one.",
        )


def _all_in_one(pattern: str) -> str:
    """A pattern whose one group is all of another one, or a whole name."""
    inner = re.sub(r"(?<!\\)[(](?![?])", "(?:", pattern)
    return f"'({inner}|.*)'"


def check_split(data: DataConfig, path: Path) -> None:
    """Raise :class:`BadInput` where a patient is in two parts, or nobody trains; ``path`` is for messages."""
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    for part, cases in parts.items():
        if twice := next((case for case, times in Counter(cases).items() if times > 1), ""):
            raise BadInput(f"Case {twice} is twice in {part} of {path}.", "Name each case once.")
    where = f"patient_pattern in {path}"
    check_pattern(data.patient_pattern, where)
    check_fit(data.patient_pattern, where, [*itertools.chain(*parts.values())], every=False)
    patients = {part: {patient_of(case, data.patient_pattern) for case in cases} for part, cases in parts.items()}
    for first, second in itertools.combinations(patients, 2):
        if both := sorted(patients[first] & patients[second]):
            raise BadInput(
                f"Patient {both[0]} is in both {first} and {second} of {path}.", "Keep every patient in one of the two."
            )
    if not data.train:
        raise BadInput(f"{path} names no training case.", "List at least one in [data] train.")
