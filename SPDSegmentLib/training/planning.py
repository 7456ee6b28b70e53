"""A training configuration from what a survey found: plane, field of view, intensity, image size, steps, memory.

The rules follow nnU-Net's (Isensee et al., Nature Methods 2021): everything comes from the data's own fingerprint, its
median spacing, the structure's extent and its intensities, and each rule is said beside the key that it decided.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tempfile
import textwrap
import time
import typing
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.files import megabytes
from SPDSegmentLib.geometry.intensity import CT_WINDOW, MIN_WINDOW_SHARE
from SPDSegmentLib.geometry.limits import free_memory_bytes
from SPDSegmentLib.settings import build_settings, documented
from SPDSegmentLib.training.config import TrainingConfig, check_split, patient_pattern
from SPDSegmentLib.training.survey import CaseFacts, Survey, shared_numbers, some_of, split_patients

if TYPE_CHECKING:
    from SPDSegmentLib.training.cases import Case

FOV_OF_EXTENT, FOV_OF_LARGEST = 2.4, 1.3
"""Field of view for the usual and for a large structure's longest side: room for clicks that are off and for what
surrounds it."""
FOV_STEP_MM, LEAST_FOV_MM = 6.0, 36.0
SIZES, CPU_SIZE = (112, 256), 168
"""Side of the network's input: below, embeddings are too coarse for SAM's decoder; above, steps take long."""
WINDOW_STEP, WINDOW_LEAST = 10.0, 250.0
MANY_BELOW = 0.05
"""Share of voxels below 0 from which an MR is no longer as scanners give it."""
ALL_COUNT = -1e6
ENTRIES = (60, 240)
WIDTH = 116
"""Of lines of the configuration."""
MEASURE_SECONDS = 4.0
MEASURED_SLICES = 8
EMBEDDING_BYTES = 2 * 256
"""Of a cell of an embedding, bfloat16."""
SALIENCY_BYTES = 2
"""Of a pixel of a kept saliency, half precision."""
BASE_MEMORY = 1_500_000_000
"""Of torch, a model with its gradients, and a batch of LiteMedSAM at 168 pixels."""
_TABLES_FIRST = ("bundle", "data", "intensity", "network", "stage1", "stage2", "prompts", "augmentation")


@dataclass(frozen=True)
class Plan:
    """A configuration, and why it is so.

    Attributes:
        reasons: by dotted key, what of the data decided it.
        notes: sentences about the data.
        disk_bytes: of the kept embeddings; memory_bytes: of the training's process.
    """

    config: TrainingConfig
    reasons: dict[str, str]
    notes: tuple[str, ...]
    disk_bytes: int
    memory_bytes: int


def plan(
    found: Survey,
    data_folder: str,
    targets: Sequence[Sequence[int]] = (),
    structure: str = "",
    name: str = "",
    backbone: str = "lite_medsam",
    validation: Sequence[str] = (),
    pattern: str = "",
    has_gpu: bool = False,
) -> Plan:
    """Plan the training for some label values.

    Args:
        data_folder: as it is written into the configuration.
        targets: label values of each structure, as the survey had them; by default each value is one of its own.
        validation: cases to choose the best checkpoint by; by default a fifth of the patients.
        pattern: regular expression whose first group is the patient; by default as case names suggest.
        has_gpu: plan larger inputs.

    Raises:
        BadInput: no case has the targets, or none that trains, or a patient would train and validate.
    """
    from SPDSegmentLib.networks.tiny_vit import TinyViTEncoder

    counts = Counter(value for facts in found.facts for value in facts.values)
    chosen = tuple(tuple(values) for values in targets) or tuple((value,) for value in sorted(counts))
    wanted = [value for values in chosen for value in values]
    for value in wanted:
        if not counts[value]:
            raise BadInput(
                f"No case has the label value {value}; they have {', '.join(map(str, sorted(counts)))}.",
                "Correct --target.",
            )
    names = [facts.name for facts in found.facts]
    guessed = not pattern
    pattern = pattern or patient_pattern(names)
    train, validating, test = split_patients(found.facts, pattern, wanted)
    if validation:
        known = {facts.name for facts in found.facts}
        if missing := sorted(set(validation) - known):
            raise BadInput(f"There is no case {missing[0]} to validate with.", f"Known: {', '.join(sorted(known))}.")
        train, validating, test = sorted(known - set(validation)), sorted(set(validation)), []
    having = {case.name for case in found.facts if any(values in case.structures for values in chosen)}
    if having and not having.intersection(train):
        raise BadInput(
            f"No case is left to train with that has the structure; it is in {', '.join(sorted(having)[:8])}.",
            "Leave one of these out of --validation.",
        )
    reasons: dict[str, str] = {}
    facts = [case.structures[values] for case in found.facts for values in chosen if values in case.structures]
    plane, reasons["data.plane"] = _plane(found, facts)
    extent, largest = (float(v) for v in np.percentile([fact.fov_mm[plane] for fact in facts], (50, 95)))
    pixel = float(np.median([case.pixel_mm[plane] for case in found.facts]))
    side = max(FOV_OF_EXTENT * extent, FOV_OF_LARGEST * largest, LEAST_FOV_MM)
    fov = math.ceil(side / FOV_STEP_MM) * FOV_STEP_MM
    reasons["fov_mm"] = f"the structure's longest side in the plane is {extent:.0f} mm, {largest:.0f} mm of a large one"
    multiple = 8 if backbone in ("lite_medsam", "tiny_random") else 16
    low, high = SIZES[0], SIZES[1] if has_gpu else CPU_SIZE
    size = math.ceil(min(max(fov / pixel, low), high) / multiple) * multiple
    reasons["network.image_size"] = f"{fov:.0f} mm at the data's pixels of {pixel:.3g} mm, from {low} to {high}"
    is_ct = found.modality == "CT" or (not found.modality and sum(f.is_ct for f in found.facts) * 2 > len(found.facts))
    below = float(np.median([case.below_zero for case in found.facts]))
    looks_so = any(case.is_ct for case in found.facts)
    intensity, reasons["intensity.kind"], odd = _intensity(is_ct, looks_so, below, facts)
    slices = int(np.median([fact.slices[plane] for fact in facts]))
    n_targets = sum(values in case.structures for case in found.facts for values in chosen if case.name in set(train))
    steps = 900 if n_targets <= 50 else 1500
    entries = int(min(max(ENTRIES[0], 4 * n_targets), ENTRIES[1]))
    reasons["stage1.steps"] = f"{n_targets} structures to learn from"
    reasons["stage2.entries"] = f"four views of each of them, from {ENTRIES[0]} to {ENTRIES[1]}"
    title = structure or (found.names.get(wanted[0], "") if len(wanted) == 1 else "") or found.title or "Structure"
    modality = "CT" if is_ct else "MR"
    short = re.sub(r"[^a-z0-9]+", "-", title.lower())[:90].strip("-") or "structure"
    values: dict[str, Any] = {
        "fov_mm": fov,
        "bundle": {
            "name": name or f"{short}-{modality.lower()}",
            "title": f"{title}, {modality}",
            "structure": title,
            "modality": modality,
            "dataset": found.title,
            "license": found.license,
        },
        "data": {
            "folder": data_folder,
            "image": found.found.image,
            "label": found.found.label,
            "targets": [list(values) for values in chosen],
            **({"series": found.found.series} if found.found.series else {}),
            **({"segments": list(found.found.segments)} if found.found.segments else {}),
            "plane": plane,
            "patient_pattern": pattern,
            "train": train,
            "validation": validating,
            "test": test,
        },
        "intensity": intensity,
        "network": {
            "backbone": backbone,
            "image_size": size,
            "lora_encoder_blocks": 8,
            "decoder": "full" if multiple == 8 else "lora",
            "saliency_slice_context": True,
            "dense_saliency_prompt": True,
        },
        "augmentation": {"bias_field": 0.0 if is_ct else 0.25},
        "stage1": {"steps": steps, "learning_rate": 2e-3},
        "stage2": {
            "steps": 1200,
            "entries": entries,
            "head_steps": 400,
            "beyond_share": 0.3,
            "validate_every": 100 if validating else 0,
            "patience": 5,
        },
    }
    config = build_settings(TrainingConfig, values, "the plan")
    check_split(config.data, Path("the plan"))
    shared = shared_numbers(names, pattern) if guessed else ""
    notes = [*found.notes, *filter(None, [odd, shared, _divided(found.facts, (train, validating, test))])]
    if not targets and len(chosen) > 1:
        named = ", ".join(f"{value} {found.names.get(value, '')}".strip() for value in wanted)
        notes.append(f"The labels have several values ({named}): each is a structure of its own; --target 1+2 joins.")
    n_validated = sum(v in case.structures for case in found.facts for v in chosen if case.name in set(validating))
    kept = (entries + n_validated) * (slices + 2 * config.stage2.margin)
    voxels = sum(math.prod(case.shape) for case in found.facts if case.name in {*train, *validating})
    memory = voxels * (3 + len(chosen)) + kept * size * size * SALIENCY_BYTES + BASE_MEMORY
    free = free_memory_bytes()
    if free is not None and memory > free:
        little = f"Training needs about {megabytes(memory)}, and {megabytes(free)} are free here"
        if free < BASE_MEMORY:
            notes.append(f"{little}: runs_per_step is 1; init on the machine that trains plans for that one.")
            values["stage1"]["runs_per_step"] = values["stage2"]["runs_per_step"] = 1
            config = build_settings(TrainingConfig, values, "the plan")
            reasons["stage1.runs_per_step"] = reasons["stage2.runs_per_step"] = "little memory is free"
        else:
            notes.append(f"{little}: crop the images, or train on a machine that has more.")
    cells = (size // (TinyViTEncoder.stride if multiple == 8 else 16)) ** 2
    disk = kept * (cells * EMBEDDING_BYTES + 2 * size * size)
    return Plan(config, reasons, tuple(notes), disk, memory)


def _divided(facts: Sequence[CaseFacts], parts: Sequence[Sequence[str]]) -> str:
    """A sentence where cases of one patient, by their DICOM files, are in several parts of the data, else empty."""
    people: dict[str, list[str]] = {}
    for fact in facts:
        people.setdefault(fact.person, []).append(fact.name)
    for person, cases in people.items():
        if person and sum(any(case in part for case in cases) for part in parts) > 1:
            return (
                f"{some_of(cases)} are of one patient by their DICOM files, and not all on one side of the split: keep "
                "them together by --patient or --validation."
            )
    return ""


def _plane(found: Survey, facts: Sequence[Any]) -> tuple[str, str]:
    """That of the thick slices where most cases have some, else across the structure's longest side."""
    coarse = Counter(case.coarse for case in found.facts if case.coarse)
    if coarse and 2 * coarse.total() > len(found.facts):
        plane = coarse.most_common(1)[0][0]
        thick = float(np.median([case.spacing_mm.max() for case in found.facts if case.coarse]))
        return plane, f"the images have slices {thick:.1f} mm apart in this plane"
    longest = np.median([fact.extent_mm for fact in facts], axis=0)
    plane = ("sagittal", "coronal", "axial")[int(np.argmax(longest))]
    return plane, f"across the structure's longest side ({longest.max():.0f} mm)"


def _intensity(is_ct: bool, looks_so: bool, below: float, facts: Sequence[Any]) -> tuple[dict[str, Any], str, str]:
    """MR: percentiles of the image; CT: those of the structure as in nnU-Net, with the window of soft tissue in it.

    Args:
        is_ct: by what the data set says, or else by the intensities; looks_so: by those of some images.
        below: share of an image's voxels that are below 0, as air and fat of a CT are.

    Returns:
        The table, why it is so, and a sentence where the intensities are odd, else an empty one.
    """
    low, high = np.percentile(np.concatenate([fact.intensities for fact in facts]), (0.5, 99.5))
    rescaled = not looks_so and high - low < MIN_WINDOW_SHARE * (CT_WINDOW[1] - CT_WINDOW[0])
    if not is_ct or below == 0 or rescaled:
        table: dict[str, Any] = {"kind": "percentile", "low": 0.5, "high": 99.5, "dither": 0.02}
        if below >= MANY_BELOW:
            table["foreground"] = ALL_COUNT
        if is_ct:
            said = "hold nothing below 0" if below == 0 else "hardly differ within the structure"
            way = "give the original images for a model that takes CT as scanners give it"
            return table, "no Hounsfield units", f"The CT images {said}: no Hounsfield units; {way}."
        if below < MANY_BELOW:
            return table, "no Hounsfield units", ""
        said = f"Of the images' voxels {below:.0%} are below 0, as after a z-score: all count for the percentiles"
        way = "the model takes only images that were made so"
        return table, "no Hounsfield units, and much below 0", f"{said}; {way}."
    low, high = min(float(low), CT_WINDOW[0]), max(float(high), CT_WINDOW[1])
    low, high = max(low, -1000.0), min(high, 1500.0)
    low, high = math.floor(low / WINDOW_STEP) * WINDOW_STEP, math.ceil(high / WINDOW_STEP) * WINDOW_STEP
    return (
        {"kind": "window", "low": low, "high": max(high, low + WINDOW_LEAST), "dither": 0.03},
        "Hounsfield units; soft tissue, and the 0.5th to 99.5th percentile of the structure",
        "",
    )


def configuration_text(made: Plan, head: Sequence[str] = ()) -> str:
    """The configuration as TOML: every key with what it means; those left at their defaults are comments.

    Args:
        head: lines that the file begins with.
    """
    lines = [f"# {line}".rstrip() for line in head]
    config = made.config
    lines += ["", *_table(config, TrainingConfig, "", made.reasons)]
    for table in _TABLES_FIRST:
        value = getattr(config, table)
        lines += ["", f"[{table}]", *_table(value, type(value), f"{table}.", made.reasons)]
        for inner in dataclasses.fields(value):
            nested = getattr(value, inner.name)
            if dataclasses.is_dataclass(nested):
                lines += ["", f"[{table}.{inner.name}]"]
                lines += _table(nested, type(nested), f"{table}.{inner.name}.", made.reasons)
    return "\n".join(lines).strip() + "\n"


def _table(value: Any, cls: type, prefix: str, reasons: dict[str, str]) -> list[str]:
    meanings, lines = documented(cls), []
    for item in dataclasses.fields(cls):
        now = getattr(value, item.name)
        if dataclasses.is_dataclass(now):
            continue
        why = reasons.get(prefix + item.name, "")
        meaning = meanings[item.name] + (f" Here: {why}." if why else "")
        lines += textwrap.wrap(meaning, 118, initial_indent="# ", subsequent_indent="# ")
        kept = now == item.default and not why
        lines += [f"{'# ' if kept else ''}{line}" for line in f"{item.name} = {_toml(now)}".split("\n")]
    return lines


def _toml(value: Any) -> str:
    """A value of a setting; long lists of names go over several lines."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        if "\\" in value and "'" not in value and value.isprintable():
            return f"'{value}'"
        return json.dumps(value, ensure_ascii=not value.isprintable()).replace("\x7f", "\\u007f")
    if isinstance(value, (tuple, list)):
        items = [_toml(item) for item in value]
        text = f"[{', '.join(items)}]"
        if len(text) < 100:
            return text
        lines = [""]
        for item in items:
            if lines[-1] and len(lines[-1]) + len(item) > WIDTH:
                lines.append("")
            lines[-1] += f" {item}," if lines[-1] else f"  {item},"
        return "\n".join(["[", *lines, "]"])
    return repr(value)


class Timing(typing.NamedTuple):
    """Seconds of each part of a training on this machine."""

    stage1: float
    embeddings: float
    stage2: float

    @property
    def total(self) -> float:
        """All together; validation and reading add some."""
        return sum(self)


def measure_time(config: TrainingConfig, case: Case, weights: Path | None, device: str = "auto") -> Timing:
    """What the training takes here: some real steps of each part on one case, times the steps of the plan."""
    from SPDSegmentLib.networks.spd import SPDModel
    from SPDSegmentLib.training.bank import build_bank
    from SPDSegmentLib.training.loop import join_processes
    from SPDSegmentLib.training.stages import Stage1, Stage2

    processes = join_processes(device)
    model = SPDModel(config.network, weights).to(processes.device)

    def seconds_of(loss: Any, parameters: Any) -> float:
        for parameter in parameters:
            parameter.requires_grad_(True)
        spent: list[float] = []
        while len(spent) < 3 and sum(spent) < MEASURE_SECONDS:
            begun = time.monotonic()
            float(_backward(loss(len(spent))))
            spent.append(time.monotonic() - begun)
        return min(spent)

    stage1 = Stage1(model, [case], config, processes)
    first = seconds_of(stage1.loss, model.stage1_parameters())
    plain = dataclasses.replace(config.stage2, entries=1, margin=0, strategy="raw", severities=(0.0, 0.0))
    one = dataclasses.replace(config, stage2=plain)
    target, middle = case.targets[0], (case.targets[0].first + case.targets[0].last) // 2
    few = dataclasses.replace(target, first=middle, last=min(target.last, middle + MEASURED_SLICES - 1))
    length = target.last - target.first + 1 + 2 * config.stage2.margin
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        bank = build_bank(model, [dataclasses.replace(case, targets=(few,))], one, Path(folder), processes.device)
        entry = (time.monotonic() - begun) / (few.last - few.first + 1) * length
        bank.compute_saliency(model, processes.device)
        second = seconds_of(Stage2(model, bank, one, processes).loss, model.stage2_parameters())
    stage2 = config.stage2
    return Timing(config.stage1.steps * first, stage2.entries * entry, (stage2.steps + stage2.head_steps / 2) * second)


def _backward(losses: dict[str, Any]) -> Any:
    losses["total"].backward()
    return losses["total"].detach()
