"""What a bundle's ``model.json`` says, strictly checked, and the DICOM codes of its structure."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from SPDSegmentLib.errors import BadInput, ModelCorrupt
from SPDSegmentLib.files import json_ready
from SPDSegmentLib.models.base_weights import BASE_WEIGHTS, WEIGHTLESS_BACKBONES
from SPDSegmentLib.settings import is_finite_number, parse_json, shorten

if TYPE_CHECKING:
    import numpy as np

    from SPDSegmentLib.geometry.dicom_objects import Structure
    from SPDSegmentLib.geometry.volume import Volume

FORMAT_VERSION = 3
"""1: without ``settings_sha256``; up to 2: adapters of half or single precision numbers only."""
MAX_INFO_BYTES = 4_000_000
MAX_IMAGE_SIZE = 1024
FOV_MM = (1.0, 10_000.0)
PLANES = ("auto", "axial", "coronal", "sagittal")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NORMALIZATION_KEYS = {"kind", "low", "high", "foreground", "dither", "usual_low", "usual_high"}
_DESCRIPTIVE = {
    "format_version", "name", "title", "structure", "modality", "library_version", "training", "metrics", "color",
    "terminology", "adapter_sha256", "settings_sha256", "fit",
    "calibration",
}  # fmt: skip
"""Fields that no mask depends on, or that are checksums themselves; every other one is a setting."""
FIT_RANGES = ("pixel_mm", "slice_mm", "volume_ml", "bright_share", "dark_share", "middle")
"""Entries of ``fit`` that are ranges."""
BIASES = ("volume_bias", "slice_bias")
MARGINS = ("volume_margin", "slice_margin", "coverage")
"""Entries of ``calibration``; the margins may be null."""
_TEXT_LIMITS = {
    "title": 200, "structure": 200, "modality": 16, "library_version": 40, "backbone_sha256": 64, "adapter_sha256": 64,
    "settings_sha256": 64, "terminology": 1000,
}  # fmt: skip
CONTEXT = "Segmentation category and type - DICOM master list"
ANATOMIC_CONTEXT = "Anatomic codes - DICOM master list"
ANATOMICAL_STRUCTURE = "SCT^123037004^Anatomical Structure"
NOTHING = "^^"

STRUCTURES = {
    "adrenal gland": ("23451007", "Adrenal gland"),
    "aorta": ("15825003", "Aorta"),
    "brain": ("12738006", "Brain"),
    "colon": ("71854001", "Colon"),
    "duodenum": ("38848004", "Duodenum"),
    "esophagus": ("32849002", "Esophagus"),
    "gallbladder": ("28231008", "Gallbladder"),
    "heart": ("80891009", "Heart"),
    "hippocampus": ("5366008", "Hippocampus"),
    "inferior vena cava": ("64131007", "Inferior vena cava"),
    "kidney": ("64033007", "Kidney"),
    "larynx": ("4596009", "Larynx"),
    "liver": ("10200004", "Liver"),
    "lung": ("39607008", "Lung"),
    "mandible": ("91609006", "Mandible"),
    "pancreas": ("15776009", "Pancreas"),
    "parotid gland": ("45289007", "Parotid gland"),
    "prostate": ("41216001", "Prostate"),
    "pulmonary artery": ("81040000", "Pulmonary artery"),
    "rectum": ("34402009", "Rectum"),
    "small intestine": ("30315005", "Small Intestine"),
    "spinal cord": ("2748008", "Spinal cord"),
    "spleen": ("78961009", "Spleen"),
    "stomach": ("69695003", "Stomach"),
    "thyroid gland": ("69748006", "Thyroid gland"),
    "trachea": ("44567001", "Trachea"),
    "urinary bladder": ("89837001", "Urinary bladder"),
}
"""SNOMED CT codes and meanings of DICOM PS3.16 (CID 7140, CID 4031), by lower-case name."""

OF_EACH_SIDE = {"23451007", "5366008", "64033007", "39607008", "45289007"}
"""Codes of what a body has on its right and on its left."""


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
        training: ``dataset``, ``license``, ``attribution``, ``patients``, ``config``.
        metrics: measured figures.
        color: red, green, blue in [0, 1].
        terminology: codes of the structure as in 3D Slicer's segment tag ``TerminologyEntry``, empty for none.
        adapter_sha256: of ``adapter.safetensors``; set by :func:`SPDSegmentLib.models.bundle.write_bundle`.
        fit: what it was trained on, see :mod:`SPDSegmentLib.models.fit`.
        calibration: how far its quality can be trusted, see :mod:`SPDSegmentLib.models.fit`; may be empty.
        settings_sha256: of the settings that a mask depends on; set with ``adapter_sha256``, empty in format 1.
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
    fit: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    adapter_sha256: str = ""
    settings_sha256: str = ""
    format_version: int = field(default=FORMAT_VERSION)

    def __post_init__(self) -> None:
        for name in (*_TEXT_LIMITS, "name"):
            check_text(name, getattr(self, name))
        _require(
            isinstance(self.slicing_axis, str) and self.slicing_axis in PLANES,
            "slicing_axis",
            f"one of {', '.join(PLANES)}",
        )
        _require(
            _is_integer(self.image_size) and 0 < self.image_size <= MAX_IMAGE_SIZE,
            "image_size",
            f"a positive whole number up to {MAX_IMAGE_SIZE}",
        )
        in_range = is_finite_number(self.fov_mm) and (self.fov_mm == 0 or FOV_MM[0] <= self.fov_mm <= FOV_MM[1])
        _require(in_range, "fov_mm", f"a number of millimeters from {FOV_MM[0]:g} to {FOV_MM[1]:g}, or 0")
        for name in ("normalization", "network", "prompts", "training", "metrics", "fit", "calibration"):
            _require(isinstance(getattr(self, name), Mapping), name, "an object")
        known = [*BASE_WEIGHTS, *WEIGHTLESS_BACKBONES]
        _require(
            isinstance(self.backbone, str) and self.backbone in known, "backbone", f"one of {', '.join(BASE_WEIGHTS)}"
        )
        random_backbone = self.backbone in WEIGHTLESS_BACKBONES and self.backbone_sha256 == ""
        _require(random_backbone or bool(_SHA256.fullmatch(self.backbone_sha256)), "backbone_sha256", "a SHA-256")
        for name in ("adapter_sha256", "settings_sha256"):
            digest = getattr(self, name)
            _require(digest == "" or bool(_SHA256.fullmatch(digest)), name, "a SHA-256")
        _check_normalization(self.normalization)
        _check_fit(self.fit)
        _require(_is_calibration(self.calibration), "calibration", "a table of a calibration")
        color = self.color
        _require(
            isinstance(color, (tuple, list))
            and len(color) == 3
            and all(is_finite_number(c) and 0 <= c <= 1 for c in color),
            "color",
            "three numbers from 0 to 1",
        )
        object.__setattr__(self, "color", tuple(float(c) for c in color))
        object.__setattr__(self, "fov_mm", float(self.fov_mm))

    @property
    def license(self) -> str:
        """License of the training data, also of bundles that spell the key as 0.1.0 did."""
        return str(self.training.get("license") or self.training.get("licence") or "")

    @property
    def entry(self) -> str:
        """Its ``terminology``, or else that of its structure where that is known here; may be empty."""
        return self.terminology or terminology_entry(self.structure)

    def settings_digest(self) -> str:
        """SHA-256 of everything here that a mask depends on, however the file was formatted."""
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _DESCRIPTIVE}
        text = json.dumps(_canonical(json_ready(settings)), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def digest(self) -> str:
        """SHA-256 that stands for everything in the bundle that changes a mask."""
        parts = (self.adapter_sha256, self.backbone_sha256, self.settings_digest())
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def check_settings(self) -> None:
        """Raise :class:`ModelCorrupt` where the settings are not those of ``settings_sha256``; format 1 has none."""
        if self.format_version > 1 and self.settings_digest() != self.settings_sha256:
            raise ModelCorrupt(
                "its settings have the wrong checksum: one was changed after the model was made.",
                details=f"expected {self.settings_sha256}\nactual   {self.settings_digest()}",
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, figures that are not finite as null; :func:`parse_info` restores it."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"format_version": values.pop("format_version"), **json_ready(values)}


def read_info(path: Path) -> BundleInfo:
    """Read a ``model.json``.

    Raises:
        ModelCorrupt: not readable, of a newer format, with unknown, missing or wrong fields.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_INFO_BYTES + 1)
        if len(content) > MAX_INFO_BYTES:
            raise ValueError(f"is larger than {MAX_INFO_BYTES / 1e6:g} MB")
        values = parse_json(content)
    except OSError as error:
        raise ModelCorrupt(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error
    except ValueError as error:
        raise ModelCorrupt(f"{path} {error}.", "Get a fresh copy of the bundle.", repr(error)) from error
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
            f"the bundle has format {shorten(version)}, and this version of SPDSegment reads format {FORMAT_VERSION}.",
            "Update SPDSegment to use it.",
        )
    fields = dataclasses.fields(BundleInfo)
    unknown = sorted(set(values) - {f.name for f in fields})
    if unknown:
        raise ModelCorrupt(f"unknown field '{shorten(unknown[0])}'.")
    optional = {"terminology", "color", "fit", "calibration"} | ({"settings_sha256"} if version == 1 else set())
    missing = [f.name for f in fields if f.name not in values and f.name not in optional]
    if missing:
        raise ModelCorrupt(f"the field '{missing[0]}' is missing.")
    return BundleInfo(**values)


def _check_normalization(values: Mapping[str, Any]) -> None:
    unknown = sorted(set(values) - _NORMALIZATION_KEYS)
    _require(not unknown, f"normalization.{shorten(unknown[0]) if unknown else ''}", "known")
    kinds = ["percentile", "window", "auto"]
    _require(values.get("kind") in kinds, "normalization.kind", "percentile, window or auto")
    low, high = values.get("low"), values.get("high")
    in_order = is_finite_number(low) and is_finite_number(high) and low < high
    _require(in_order, "normalization.low", "a number below normalization.high")
    for name in sorted(_NORMALIZATION_KEYS - {"kind", "low", "high"}):
        _require(is_finite_number(values.get(name, 0)), f"normalization.{name}", "a number")


def _check_fit(values: Mapping[str, Any]) -> None:
    unknown = sorted(set(values) - {*FIT_RANGES, "kept_share"})
    _require(not unknown, f"fit.{shorten(unknown[0]) if unknown else ''}", "known")
    for name in FIT_RANGES:
        limits = values.get(name, (0, 0))
        valid = isinstance(limits, (list, tuple)) and len(limits) == 2 and all(is_finite_number(v) for v in limits)
        _require(valid and 0 <= limits[0] <= limits[1], f"fit.{name}", "two numbers, the lower one first")
    kept = values.get("kept_share", {})
    _require(
        isinstance(kept, Mapping) and all(is_finite_number(v) and 0 <= v <= 1 for v in kept.values()),
        "fit.kept_share",
        "numbers from 0 to 1 by severity",
    )


def check_text(field: str, value: Any) -> None:
    """Raise :class:`ModelCorrupt` for what a field of text of a ``model.json`` cannot hold."""
    _require(isinstance(value, str), field, "a text")
    if field == "name":
        _require(bool(_NAME.fullmatch(value)), field, "a lower-case short name of at most 100 characters")
        return
    limit = _TEXT_LIMITS[field]
    _require(value.isprintable() and len(value) <= limit, field, f"one line of at most {limit} characters")
    if field in ("title", "structure", "modality"):
        _require(bool(value.strip()), field, "a text that is not empty")


def _require(valid: bool, name: str, what: str) -> None:
    if not valid:
        raise ModelCorrupt(f"the field '{name}' is not {what}.")


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _canonical(value: Any) -> Any:
    """Numbers as one form each: 16 and 16.0 are the same setting."""
    if isinstance(value, dict):
        return {key: _canonical(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_canonical(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def terminology_entry(structure: str, code: str = "") -> str:
    """Return the entry of a structure that is known here or has a code of its own, empty for any other.

    Its parts, between tildes: context, category, type, modifier of the type, context of the region, region, modifier of
    the region; each code is scheme^value^meaning.

    Args:
        code: "SCHEME VALUE MEANING", for example "SCT 71341001 Femur".

    Raises:
        BadInput: a code without these three parts.
    """
    parts = code.split(maxsplit=2)
    if code and (len(parts) < 3 or set(code) & set("~^")):
        raise BadInput(
            f"The code '{code}' of the structure {structure} has not the three parts SCHEME VALUE MEANING.",
            'Write it as in code = "SCT 71341001 Femur".',
        )
    known = STRUCTURES.get(structure.strip().lower())
    if not parts and known is None:
        return ""
    kind = "^".join(parts or ("SCT", *(known or ())))
    return "~".join((CONTEXT, ANATOMICAL_STRUCTURE, kind, NOTHING, ANATOMIC_CONTEXT, NOTHING, NOTHING))


def codes_of(entry: str) -> list[tuple[str, str, str]]:
    """Category, type, and if there is one modifier of the type of an entry, each as (scheme, value, meaning)."""
    found = []
    for part in entry.split("~")[1:4]:
        scheme, value, meaning = [*part.split("^"), "", "", ""][:3]
        if scheme and value and meaning:
            found.append((scheme, value, meaning))
    return found if len(found) >= 2 else []


def drawn_structure(
    structure: str,
    terminology: str,
    color: tuple[float, float, float],
    model: str,
    mask_kji: np.ndarray,
    volume: Volume,
    prompts: str,
) -> Structure:
    """What DICOM objects say of a mask that a model drew: its codes, and the side on which an organ of two lies."""
    from SPDSegmentLib.geometry.dicom_objects import TISSUE, Structure, side_of

    codes = codes_of(terminology or terminology_entry(structure))
    category, kind = codes[:2] or (TISSUE, TISSUE)
    side = codes[2] if len(codes) > 2 else None
    if side is None and kind[1] in OF_EACH_SIDE:
        side = side_of(mask_kji, volume)
    return Structure(structure, category, kind, side, color, model, {"prompts": prompts})


def _is_calibration(values: Mapping[str, Any]) -> bool:
    """Whether a table of a ``model.json`` is empty or one of ``Testing/Benchmarks/calibrate.py``."""
    if not values:
        return True

    def small(value: Any) -> bool:
        return is_finite_number(value) and -1 <= value <= 1

    return (
        set(values) == {"confidence", "patients", "severity", *BIASES, *MARGINS}
        and is_finite_number(values["confidence"])
        and 0 < values["confidence"] < 1
        and isinstance(values["patients"], int)
        and values["patients"] > 0
        and isinstance(values["severity"], str)
        and all(small(values[name]) for name in BIASES)
        and all(values[name] is None or small(values[name]) for name in MARGINS)
    )
