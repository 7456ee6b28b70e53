"""From a trained model to a bundle, with its model card and the curves of its training."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SPDSegmentLib import __version__
from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.files import write_png
from SPDSegmentLib.geometry.intensity import IntensityConfig
from SPDSegmentLib.models.base_weights import base_weights_sha256
from SPDSegmentLib.models.bundle import Bundle, write_bundle
from SPDSegmentLib.models.bundle_info import BundleInfo, terminology_entry
from SPDSegmentLib.networks.spd import SPDModel
from SPDSegmentLib.training.config import TrainingConfig
from SPDSegmentLib.training.joint_config import JointConfig

if TYPE_CHECKING:
    from torch import Tensor


def adapter_tensors(model: SPDModel) -> dict[str, Tensor]:
    """The adapter in half precision: what inference computes in bfloat16 anyway, at half the size."""
    return {name: tensor.half() for name, tensor in model.adapter_state().items()}


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
    stage1_steps = 0 if config.initialize_from else config.stage1.steps
    training = {
        "patients": list(config.data.train),
        "validation_patients": list(config.data.validation),
        "strategy": config.stage2.strategy,
        "steps": {f"stage I ({config.stage1.objective})": stage1_steps, "stage II": config.stage2.steps},
    }
    return describe(config, config_name, config.data.plane, config.intensity, config.fov_mm, training)


def save_bundle(model: SPDModel, config: TrainingConfig, config_name: str, folder: Path) -> Bundle:
    """Write the bundle of a finished run; its figures are measured later by ``spdsegment evaluate``."""
    info = bundle_info(config, config_name)
    return write_bundle(folder, info, adapter_tensors(model), model_card(info))


def model_card(info: BundleInfo) -> str:
    """Markdown text for people: what the model is for, what it learned from, what was measured."""
    training = info.training
    steps = training.get("steps", {})
    lines = [
        f"# {info.title}",
        "",
        f"Segments: {info.structure} in {info.modality}, sliced {info.slicing_axis}.",
        "For research; not a medical device.",
        "",
        f"- Backbone: `{info.backbone}`, input {info.image_size} x {info.image_size} pixels over "
        + (f"{info.fov_mm:g} mm" if info.fov_mm else "the whole slice"),
        f"- Prompts in training: `{training.get('strategy', 'consensus')}`",
        *([f"- Steps: {', '.join(f'{count} {name}' for name, count in steps.items())}"] if steps else []),
        f"- Trained on: {training.get('dataset', '')} ({len(training.get('patients', []))} volumes), "
        f"license {info.license}",
        f"- Attribution: {training.get('attribution', '')}",
        f"- Configuration: `{training.get('config', '')}`, seed {training.get('seed', 0)}",
        "",
        "## Measured",
        "",
    ]
    if not info.metrics:
        return "\n".join([*lines, "Nothing yet: run `spdsegment evaluate` with `--update-card`.", ""])
    lines += [f"On {info.metrics.get('cases', 0)} validation volumes with simulated clicks: ", ""]
    lines += [str(info.metrics.get("table", "")), "", f"Command: `{info.metrics.get('command', '')}`", ""]
    return "\n".join(lines)


def plot_curves(run_folder: Path) -> Path | None:
    """Draw every ``*.csv`` of a run that has steps into ``curves.png``; returns its path."""
    from matplotlib.figure import Figure

    curves = {path.stem: _read_curve(path) for path in sorted(run_folder.glob("*.csv"))}
    curves = {name: curve for name, curve in curves.items() if len(curve.get("step", [])) > 1}
    if not curves:
        return None
    figure = Figure(figsize=(9, 3.2 * len(curves)), layout="constrained")
    for row, (name, curve) in zip(figure.subplots(len(curves), 2, squeeze=False), curves.items(), strict=True):
        for axes, keys in ((row[0], [k for k in curve if k not in ("step", "dsc")]), (row[1], ["dsc"])):
            for key in keys:
                axes.plot(curve["step"], _smooth(curve[key]), label=key)
            axes.set_title(name, fontsize=9)
            axes.set_xlabel("step")
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7)
        row[0].set_yscale("log")
    path = run_folder / "curves.png"
    write_png(path, lambda part: figure.savefig(part, dpi=110), "figure")
    return path


def _read_curve(path: Path) -> dict[str, list[float]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {key: [float(row[key]) for row in rows] for key in rows[0]} if rows and "step" in rows[0] else {}


def _smooth(values: list[float], share: float = 0.03) -> list[float]:
    """Exponential moving average over about ``share`` of the curve."""
    keep = 1 - 1 / max(1.0, share * len(values))
    smoothed, current = [], values[0]
    for value in values:
        current = keep * current + (1 - keep) * value
        smoothed.append(max(current, 1e-6))
    return smoothed
