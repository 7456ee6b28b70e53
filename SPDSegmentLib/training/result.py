"""What comes of a training: Dice of cases that it does not see, and at its end a bundle with its model card."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from SPDSegmentLib import __version__
from SPDSegmentLib.errors import BadInput, SPDError
from SPDSegmentLib.evaluation.metrics import dice
from SPDSegmentLib.files import user_path, write_csv, write_text
from SPDSegmentLib.geometry.centerline import Clicks
from SPDSegmentLib.geometry.intensity import IntensityConfig, brightness, intensity_range
from SPDSegmentLib.geometry.window import place_window
from SPDSegmentLib.models.base_weights import WEIGHTLESS_BACKBONES, base_weights_sha256, find_base_weights
from SPDSegmentLib.models.bundle import CARD_NAME, Bundle, describe_again, read_bundle, write_bundle
from SPDSegmentLib.models.bundle_info import BundleInfo, terminology_entry
from SPDSegmentLib.models.fit import intensity_facts
from SPDSegmentLib.models.storage import to_changes
from SPDSegmentLib.networks.backbones import load_state_dict
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.prompts.noise import SEVERITIES
from SPDSegmentLib.training.bank import EmbeddingBank, build_bank
from SPDSegmentLib.training.cases import Case, read_labeled_case
from SPDSegmentLib.training.config import AugmentationConfig, DataConfig, TrainingConfig
from SPDSegmentLib.training.joint_config import JointConfig
from SPDSegmentLib.training.loop import Processes
from SPDSegmentLib.training.stages import Stage2

if TYPE_CHECKING:
    from torch import Tensor

MANY = 20
_BRIGHTNESS = "brightness"
_MEASURED = "## Measured"
_MEASURED_FIELDS = ("metrics", "calibration", "adapter_sha256", "settings_sha256", "format_version")
_SPLITS = {"test": "test", "train": "training"}
_PLANES = {"auto": "across the largest spacing"}
_MODEL_OPTION = re.compile(
    r"""(?<!\S)(?P<outer>["']?)(?P<option>-m ?|--model[ =])(?P<quote>["']?)"""
    r"""(?P<folder>\S.*?)(?P<method>:[a-z-]+)?(?P=quote)(?P=outer)(?!\S)"""
)


def adapter_tensors(model: SPDModel) -> dict[str, Tensor]:
    """The adapter as a bundle stores it, see :func:`SPDSegmentLib.models.storage.to_changes`."""
    backbone = model.config.backbone
    base = {} if backbone in WEIGHTLESS_BACKBONES else load_state_dict(find_base_weights(backbone))
    return to_changes(model.adapter_state(), base)


def describe(
    config: TrainingConfig | JointConfig,
    config_name: str,
    plane: str,
    intensity: IntensityConfig,
    fov_mm: float,
    training: dict[str, Any],
) -> BundleInfo:
    """Describe the model of a finished run; nothing was measured yet.

    Args:
        plane, intensity, fov_mm: what the model takes.
        training: what it was trained on and how, beside what every configuration says of that.

    Raises:
        BadInput: a color that is none.
        ModelCorrupt: a text or a number that no bundle may have.
    """
    network, text = dataclasses.asdict(config.network), config.bundle
    backbone, image_size = network.pop("backbone"), network.pop("image_size")
    if len(text.color) != 3:
        raise BadInput(
            f"The color in [bundle] of {config_name} has not three parts.", "Give red, green and blue, 0 to 1."
        )
    red, green, blue = text.color
    said = {"dataset": text.dataset, "license": text.license, "attribution": text.attribution}
    return BundleInfo(
        name=text.name,
        title=text.title,
        structure=text.structure,
        modality=text.modality,
        slicing_axis=plane,
        normalization=dataclasses.asdict(intensity),
        backbone=backbone,
        backbone_sha256="" if backbone == "tiny_random" else base_weights_sha256(backbone),
        image_size=image_size,
        fov_mm=fov_mm,
        network=network,
        prompts=dataclasses.asdict(config.prompts),
        library_version=__version__,
        training=said | {"config": config_name, "seed": config.seed} | training,
        metrics={},
        terminology=terminology_entry(text.structure, text.code),
        color=(red, green, blue),
    )


def bundle_info(config: TrainingConfig, config_name: str) -> BundleInfo:
    """Describe the model of a finished run, as :func:`describe`."""
    taken_over = config.initialize_from and config.stage1.objective != "both"
    stage1_steps = 0 if taken_over else config.stage1.steps
    training = {
        "patients": list(config.data.train),
        "validation_patients": list(config.data.validation),
        "strategy": config.stage2.strategy,
        "steps": {f"stage I ({config.stage1.objective})": stage1_steps, "stage II": config.stage2.steps},
        "start": config.initialize_from,
    }
    return describe(config, config_name, config.data.plane, config.intensity, config.fov_mm, training)


def save_bundle(
    model: SPDModel, config: TrainingConfig, config_name: str, folder: Path, data_folder: Path | None = None
) -> Bundle:
    """Write the bundle of a finished run; its figures are measured later by ``spdsegment evaluate``.

    Args:
        data_folder: of the training cases, for what the model then knows of them: the table ``fit`` and the usual
            brightness; without it the bundle says nothing of that.
    """
    info = bundle_info(config, config_name)
    if data_folder is not None:
        info = knowing(info, config.data, data_folder)
    return write_model(folder, model, info)


def write_model(folder: Path, model: SPDModel, info: BundleInfo) -> Bundle:
    """Write a model as a bundle.

    Where this very model is there already, what was measured of it, a card that a person changed and other files stay.
    """
    tensors = adapter_tensors(model)
    there = _same_model(folder, info, tensors)
    if there is None:
        return write_bundle(folder, info, tensors, model_card(info))
    own_card = there.card not in ("", model_card(there.info))
    changes = {f.name: getattr(info, f.name) for f in dataclasses.fields(info) if f.name not in _MEASURED_FIELDS}
    updated = describe_again(there, **changes | {"fit": {**there.info.fit, **info.fit}})
    if not own_card:
        write_text(updated.folder / CARD_NAME, model_card(updated.info), "model card")
    return updated


def _same_model(folder: Path, info: BundleInfo, tensors: Mapping[str, Tensor]) -> Bundle | None:
    """The bundle of a folder if it makes the same masks as a model."""
    with contextlib.suppress(SPDError, OSError):
        there = read_bundle(folder)
        own = load_state_dict(there.adapter_path)
        if own.keys() == tensors.keys() and there.info.settings_digest() == info.settings_digest():
            pairs = [(own[name], tensors[name].cpu()) for name in own]
            return there if all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs) else None
    return None


def knowing(info: BundleInfo, data: DataConfig, folder: Path) -> BundleInfo:
    """The description with what its training cases are like: ranges that leave out the extreme twentieth of many.

    Shares of clicks that were kept in validation stay as they are. A field of view that is dark throughout, as bright
    padding makes it, has no usual brightness.

    Raises:
        BadInput: a case cannot be read.
    """
    facts = list(_facts(info, data, folder))
    if not facts:
        return info
    ends = (5, 95) if len(facts) >= MANY else (0, 100)
    found = {}
    for name in facts[0]:
        values = [fact[name] for fact in facts if name != _BRIGHTNESS or fact[name] > 0] or [0.0]
        low, high = np.percentile(values, ends)
        found[name] = [float(f"{low:.4g}"), float(f"{high:.4g}")]
    usual_low, usual_high = found.pop(_BRIGHTNESS)
    normalization = dict(info.normalization)
    if normalization["kind"] == "percentile":
        normalization |= {"usual_low": usual_low, "usual_high": usual_high}
    kept = {"kept_share": info.fit["kept_share"]} if "kept_share" in info.fit else {}
    return dataclasses.replace(info, fit=found | kept, normalization=normalization)


def _facts(info: BundleInfo, data: DataConfig, folder: Path) -> Iterator[dict[str, float]]:
    """Of every structure of every training case."""
    normalization = IntensityConfig.from_dict(info.normalization)
    for case in data.train:
        stack, labels, volume = read_labeled_case(folder, case, data)
        slices = stack.from_volume(labels)
        limits = intensity_range(volume.array, normalization)
        for values in data.targets:
            mask = np.isin(slices, values)
            held = np.flatnonzero(mask.any(axis=(1, 2)))
            if not len(held):
                continue
            middles = np.array([np.argwhere(mask[t]).mean(axis=0)[::-1] for t in held])
            clicks = Clicks(held, middles, np.zeros(len(held), dtype=bool), tuple(map(str, held)))
            seen = intensity_facts(stack, clicks, info.normalization, info.fov_mm)
            center = np.median(middles, axis=0)
            window = place_window(stack.array.shape[1:], stack.pixel_mm, info.image_size, info.fov_mm, center)
            rows, columns = window.to_input_weights()
            yield {
                "pixel_mm": max(stack.pixel_mm),
                "slice_mm": stack.slice_mm,
                "volume_ml": float(mask.sum()) * volume.voxel_mm3 / 1000,
                "bright_share": seen.bright_share,
                "dark_share": seen.dark_share,
                "middle": seen.middle,
                _BRIGHTNESS: brightness(stack.array[:, rows.seen, columns.seen], limits),
            }


def model_card(info: BundleInfo) -> str:
    """Markdown text for people: what the model is for, what it learned from, what was measured."""
    training = info.training
    steps = training.get("steps", {})
    lines = [
        f"# {info.title}",
        "",
        f"Segments: {info.structure} in {info.modality}, sliced {_PLANES.get(info.slicing_axis, info.slicing_axis)}.",
        "For research; not a medical device.",
        "",
        f"- Backbone: `{info.backbone}`, input {info.image_size} x {info.image_size} pixels over {_view(info)}",
        *([f"- Starts from: the adapter of `{Path(start).name}`"] if (start := training.get("start")) else []),
        f"- Prompts in training: `{training.get('strategy', 'consensus')}`",
        *([f"- Steps: {', '.join(f'{count} {name}' for name, count in steps.items())}"] if steps else []),
        f"- Trained on: {training.get('dataset') or 'data without a name'} "
        f"({len(training.get('patients', []))} volumes), license {info.license or 'not named'}",
        *([f"- Attribution: {named}"] if (named := training.get("attribution")) else []),
        f"- Configuration: `{training.get('config', '')}`, seed {training.get('seed', 0)}",
        "",
        _measured(info.metrics),
    ]
    return "\n".join(lines)


def _measured(metrics: Mapping[str, Any]) -> str:
    """The section of a model card that says what was measured."""
    if not metrics:
        return "\n".join([_MEASURED, "", "Nothing yet: run `spdsegment evaluate` with `--update-card`.", ""])
    split, known = str(metrics.get("split")), metrics.get("learned_from", 0)
    volumes = f"{metrics.get('cases', 0)} {_SPLITS.get(split, 'validation')} volumes"
    if known and split != "train":
        volumes += f", {known} of them of patients that it was trained on, by their names,"
    table, command = str(metrics.get("table", "")), f"Command: `{metrics.get('command', '')}`"
    return "\n".join([_MEASURED, "", f"On {volumes} with simulated clicks: ", "", table, "", command, ""])


def update_metrics(bundle: Bundle, metrics: Mapping[str, Any]) -> Bundle:
    """Write figures into a bundle's description and the section of its card; all else in its folder stays.

    Raises:
        BadInput: a file cannot be written.
    """
    metrics = {**metrics, "command": _by_name(str(metrics.get("command", "")), bundle)}
    card, section = bundle.card, _measured(metrics)
    updated = describe_again(bundle, metrics=metrics)
    former = _measured(bundle.info.metrics)
    if not card:
        card = model_card(updated.info)
    elif former in card:
        card = card.replace(former, section, 1)
    elif found := re.search(rf"^{_MEASURED}[ \t]*$.*?(?=^##? |\Z)", card, re.MULTILINE | re.DOTALL):
        card = card[: found.start()] + section + ("\n" if found.end() < len(card) else "") + card[found.end() :]
    else:
        card = f"{card.rstrip()}\n\n{section}"
    write_text(bundle.folder / CARD_NAME, card, "model card")
    return updated


def _by_name(command: str, bundle: Bundle) -> str:
    """A command that travels with a bundle: with the bundle's name in place of the folder that it was in."""

    def named(found: re.Match[str]) -> str:
        here = user_path(found["folder"]).resolve() == bundle.folder
        return f"{found['option']}{bundle.info.name}{found['method'] or ''}" if here else found[0]

    return _MODEL_OPTION.sub(named, command)


def _view(info: BundleInfo) -> str:
    if info.fov_mm:
        return f"{info.fov_mm:g} mm"
    conditioned = info.network.get("saliency") == "conditioned"
    return "a field of view that the clicks decide" if conditioned else "the whole slice"


CURVE_NAME = "validation.csv"
WORST_NAME = "validation-cases.csv"
SEVERITY = float(list(SEVERITIES).index("clinic"))
SHOWN_WORST = 3
BATCH = 16


class Validation:
    """Measures the decoder on every target of the validation cases, in views without any change.

    A target's Dice is that of all its slices together, at the network's resolution, with slices beyond the last prompt
    empty: what the session does, without the way back to the volume's voxels. The clicks are the same every time.

    Args:
        folder: of the run, for the curve and the table of all cases.
        say: told a sentence with the worst cases after each measurement.
    """

    def __init__(
        self, stage2: Stage2, processes: Processes, folder: Path, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self._stage2, self._processes, self._folder, self._say = stage2, processes, folder, say
        self._prompts = [
            stage2.prompts_of(entry, saliency, np.random.default_rng([n, 9]), stage2.config.stage2.strategy)
            for n, (entry, saliency) in enumerate(zip(stage2.bank.entries, stage2.bank.saliency, strict=True))
        ]

    @torch.no_grad()
    def __call__(self, step: int) -> float:
        """Mean Dice; leaves it in the run's curve, and names the worst cases."""
        scores = {entry.target.name: self._dice(n) for n, entry in enumerate(self._stage2.bank.entries)}
        mean = float(np.mean(list(scores.values())))
        worst = sorted(scores.items(), key=lambda pair: pair[1])
        if self._processes.is_main:
            best = self._record(step, mean, worst[0][1])
            write_csv(self._folder / WORST_NAME, [["case", "dsc"], *([name, f"{s:.4f}"] for name, s in worst)])
            named = ", ".join(f"{name} {score:.2f}" for name, score in worst[:SHOWN_WORST])
            self._say(
                f"Validation after step {step}: DSC {mean:.3f}{', the best so far' if best else ''}; worst: {named}."
            )
        return round(mean, 6)

    def _dice(self, n: int) -> float:
        stage2, entry = self._stage2, self._stage2.bank.entries[n]
        tensors = entry.tensors()
        truth = tensors["mask"].numpy().astype(bool)
        found = np.zeros_like(truth)
        prompted = [p for p in self._prompts[n] if len(p.points)]
        for start in range(0, len(prompted), BATCH):
            part = prompted[start : start + BATCH]
            where = np.array([p.slice_index for p in part])
            logits = stage2.decode_slices(tensors["embeddings"][where], part, stage2.bank.saliency[n][where])
            found[where] = (logits[:, 0] > 0).cpu().numpy()
        return dice(found, truth) or 0.0

    def _record(self, step: int, mean: float, lowest: float) -> bool:
        """Append to the curve; returns whether this is its best."""
        path, rows = self._folder / CURVE_NAME, []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in list(csv.reader(file))[1:] if row and row[0].isdigit() and int(row[0]) < step]
        write_csv(path, [["step", "dsc", "lowest"], *rows, [step, f"{mean:.5f}", f"{lowest:.5f}"]], "curve")
        return all(mean > float(row[1]) for row in rows)


def make_validation(
    model: SPDModel,
    cases: Sequence[Case],
    config: TrainingConfig,
    folder: Path,
    run_folder: Path,
    processes: Processes,
    on_entry: Callable[[int, int], None],
    cancelled: Callable[[], bool],
    say: Callable[[str], None],
) -> Validation | None:
    """The validation of a run, its embeddings computed or found in ``folder``; None where no case has the structure.

    Call it once everything before the decoder is frozen.
    """
    targets = sum(len(case.targets) for case in cases)
    if not targets:
        say("No validation case has the structure: no checkpoint is better than another.")
        return None
    still = AugmentationConfig(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    plain = dataclasses.replace(
        config,
        augmentation=still,
        stage2=dataclasses.replace(config.stage2, entries=targets, severities=(SEVERITY, SEVERITY), beyond_share=0.0),
    )

    def build() -> EmbeddingBank:
        main = processes.is_main
        return build_bank(model, cases, plain, folder, processes.device, on_entry, cancelled, may_compute=main)

    bank = processes.main_first(build)
    bank.compute_saliency(model, processes.device)
    return Validation(Stage2(model, bank, plain, processes), processes, run_folder, say)
