"""What a bundle's ``model.json`` says, strictly checked."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from SPDSegmentLib.errors import ModelCorrupt
from SPDSegmentLib.models.manifest import BASE_WEIGHTS, WEIGHTLESS_BACKBONES

FORMAT_VERSION = 1
PLANES = ("auto", "axial", "coronal", "sagittal")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NORMALIZATION_KEYS = {"kind", "low", "high", "foreground", "dither"}


@dataclass(frozen=True)
class BundleInfo:
    """The description of one trained model.

    The parts ``network`` and ``prompts`` are the code's configuration classes as dictionaries; those classes check
    them when the model is loaded.

    Attributes:
        name: short name for the command line, lower case.
        title: name for people.
        structure: what is segmented.
        modality: ``CT``, ``MR`` or another DICOM modality.
        slicing_axis: ``axial``, ``coronal``, ``sagittal`` or ``auto``.
        normalization: ``kind`` (``percentile`` or ``window``), ``low``, ``high``, ``foreground``, ``dither``.
        backbone: name of the base weights.
        backbone_sha256: checksum of the base weights that it was trained on, empty for a random backbone.
        image_size: side of the network input in pixels.
        fov_mm: side of the field of view, 0 for the whole slice.
        network, prompts: configuration of the code.
        library_version: of the library that wrote it.
        training: ``dataset``, ``licence``, ``attribution``, ``patients``, ``config``.
        metrics: measured figures.
        color: red, green, blue in [0, 1].
        terminology: codes of the structure as in 3D Slicer's segment tag ``TerminologyEntry``, empty for none.
        adapter_sha256: of ``adapter.safetensors``; set by :func:`SPDSegmentLib.models.bundle.write_bundle`.
        format_version: of this description.

    Raises:
        ModelCorrupt: a field has a wrong type or an impossible value.
    """

    name: str
    title: str
    structure: str
    modality: str
    slicing_axis: str
    normalization: Mapping[str, Any]
    backbone: str
    backbone_sha256: str
    image_size: int
    fov_mm: float
    network: Mapping[str, Any]
    prompts: Mapping[str, Any]
    library_version: str
    training: Mapping[str, Any]
    metrics: Mapping[str, Any]
    color: tuple[float, float, float] = (0.87, 0.56, 0.35)
    terminology: str = ""
    adapter_sha256: str = ""
    format_version: int = field(default=FORMAT_VERSION)

    def __post_init__(self) -> None:
        for name in (
            "title",
            "structure",
            "modality",
            "library_version",
            "backbone_sha256",
            "adapter_sha256",
            "terminology",
        ):
            _require(isinstance(getattr(self, name), str), name, "a text")
        for name in ("title", "structure", "modality"):
            _require(bool(getattr(self, name).strip()), name, "a text that is not empty")
        _require(isinstance(self.name, str) and bool(_NAME.fullmatch(self.name)), "name", "a lower-case short name")
        _require(self.slicing_axis in PLANES, "slicing_axis", f"one of {', '.join(PLANES)}")
        _require(_is_integer(self.image_size) and self.image_size > 0, "image_size", "a positive whole number")
        _require(_is_number(self.fov_mm) and self.fov_mm >= 0, "fov_mm", "a number of millimetres, 0 or more")
        for name in ("normalization", "network", "prompts", "training", "metrics"):
            _require(isinstance(getattr(self, name), Mapping), name, "an object")
        known = [*BASE_WEIGHTS, *WEIGHTLESS_BACKBONES]
        _require(self.backbone in known, "backbone", f"one of {', '.join(BASE_WEIGHTS)}")
        random_backbone = self.backbone in WEIGHTLESS_BACKBONES and self.backbone_sha256 == ""
        _require(random_backbone or bool(_SHA256.fullmatch(self.backbone_sha256)), "backbone_sha256", "a SHA-256")
        _require(
            self.adapter_sha256 == "" or bool(_SHA256.fullmatch(self.adapter_sha256)), "adapter_sha256", "a SHA-256"
        )
        _check_normalization(self.normalization)
        color = self.color
        _require(
            isinstance(color, (tuple, list)) and len(color) == 3 and all(_is_number(c) and 0 <= c <= 1 for c in color),
            "color",
            "three numbers from 0 to 1",
        )
        object.__setattr__(self, "color", tuple(float(c) for c in color))
        object.__setattr__(self, "fov_mm", float(self.fov_mm))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, figures that are not finite as null; :func:`parse_info` restores it."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"format_version": values.pop("format_version"), **_json_ready(values)}


def read_info(path: Path) -> BundleInfo:
    """Read a ``model.json``.

    Raises:
        ModelCorrupt: not readable, of a newer format, with unknown, missing or wrong fields.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except OSError as error:
        raise ModelCorrupt(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error
    except ValueError as error:
        raise ModelCorrupt(f"{path} is not valid JSON.", "Get a fresh copy of the bundle.", repr(error)) from error
    try:
        return parse_info(values)
    except ModelCorrupt as error:
        remedy = error.remedy or "Get a fresh copy of the bundle."
        raise ModelCorrupt(f"{path}: {error.message}", remedy, error.details) from error


def parse_info(values: Any) -> BundleInfo:
    """Check the content of a ``model.json``; raises :class:`ModelCorrupt`."""
    if not isinstance(values, dict):
        raise ModelCorrupt("it does not describe a model.")
    version = values.get("format_version")
    if not _is_integer(version) or version < 1:
        raise ModelCorrupt("it has no format_version.")
    if version > FORMAT_VERSION:
        raise ModelCorrupt(
            f"the bundle has format {version}, and this version of SPDSegment reads format {FORMAT_VERSION}.",
            "Update SPDSegment to use it.",
        )
    fields = dataclasses.fields(BundleInfo)
    unknown = sorted(set(values) - {f.name for f in fields})
    if unknown:
        raise ModelCorrupt(f"unknown field '{unknown[0]}'.")
    optional = {"terminology", "color"}
    missing = [f.name for f in fields if f.name not in values and f.name not in optional]
    if missing:
        raise ModelCorrupt(f"the field '{missing[0]}' is missing.")
    return BundleInfo(**values)


def _check_normalization(values: Mapping[str, Any]) -> None:
    unknown = sorted(set(values) - _NORMALIZATION_KEYS)
    _require(not unknown, f"normalization.{unknown[0] if unknown else ''}", "known")
    _require(values.get("kind") in ("percentile", "window"), "normalization.kind", "percentile or window")
    low, high = values.get("low"), values.get("high")
    in_order = _is_number(low) and _is_number(high) and low < high
    _require(in_order, "normalization.low", "a number below normalization.high")
    for name in ("foreground", "dither"):
        _require(_is_number(values.get(name, 0)), f"normalization.{name}", "a number")


def _require(valid: bool, name: str, what: str) -> None:
    if not valid:
        raise ModelCorrupt(f"the field '{name}' is not {what}.")


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _json_ready(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json_ready(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_ready(part) for part in value]
    if hasattr(value, "item"):  # a number of numpy
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")
