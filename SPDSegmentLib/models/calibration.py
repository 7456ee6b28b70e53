"""How far a predicted quality can be trusted: the predicted Dice with a lower bound from validation patients.

The mask decoder predicts the IoU of each slice; as Dice it is 2q / (1 + q), and that of a volume is the mean over its
slices, weighted by their pixels. The bound is split conformal. What is exchangeable is the *patient*: two sides, or
two sets of clicks, of one patient err alike and count once. A patient's score is the largest excess of the predicted
over the measured Dice among all of that patient's volumes and clicks (for slices: the excess that nine in ten of the
patient's slices stay below), so that the bound holds for all that is segmented of a new patient. With n patients the
margin is the ceil((n + 1) 0.9)-th smallest score; below nine patients there is no finite one, and that is said.

The table ``calibration`` of a ``model.json``: ``confidence``, ``patients``, ``severity`` of the simulated clicks,
``volume_bias`` and ``slice_bias`` (median excess), ``volume_margin`` and ``slice_margin`` (null: not enough patients),
and ``coverage``, the share of patients that the bound from all others holds for (null where there is none).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np

Iou = TypeVar("Iou", float, "np.ndarray")

CONFIDENCE = 0.9
NUMBERS = ("volume_bias", "slice_bias")
MARGINS = ("volume_margin", "slice_margin", "coverage")


@dataclass(frozen=True)
class QualityEstimate:
    """Predicted Dice of a volume; ``at_least`` is None where there is no bound.

    Attributes:
        confidence: of the bound.
        patients: that the bound rests on, 0 for a model without calibration.
    """

    predicted: float
    at_least: float | None
    confidence: float = CONFIDENCE
    patients: int = 0

    def sentence(self) -> str:
        """The estimate for people."""
        said = f"Predicted Dice {self.predicted:.2f}"
        if self.at_least is not None:
            return f"{said}, at least {self.at_least:.2f} with {self.confidence:.0%} (from {self.patients} patients)."
        if self.patients:
            return f"{said}; no bound: {self.patients} validation patients are not enough for one."
        return f"{said}; the model has no calibration, so that there is no bound."

    def report(self) -> dict[str, Any]:
        """JSON-ready."""
        bound = None if self.at_least is None else round(self.at_least, 4)
        return {
            "predicted_dice": round(self.predicted, 4), "at_least": bound, "confidence": self.confidence,
            "patients": self.patients, "sentence": self.sentence(),
        }  # fmt: skip


def as_dice(iou: Iou) -> Iou:
    """Dice of an IoU, of a number or of an array (N,)."""
    dice: Iou = 2 * iou / (1 + iou)
    return dice


def predicted_dice(quality: Sequence[float], pixels: Sequence[int]) -> float | None:
    """Of a volume from the predicted IoU and the pixels of its slices; None where all are empty."""
    import numpy as np  # of this function alone: a process that only reads bundles has the standard library

    weights = np.asarray(pixels, dtype=float)
    if not weights.sum():
        return None
    return float(np.average(as_dice(np.asarray(quality, dtype=float)), weights=weights))


def estimate(calibration: Mapping[str, Any], quality: Sequence[float], pixels: Sequence[int]) -> QualityEstimate | None:
    """The predicted Dice of a volume under a model's ``calibration``, which may be empty; None for an empty mask."""
    predicted = predicted_dice(quality, pixels)
    if predicted is None:
        return None
    shown, at_least = _under(calibration, "volume", predicted)
    patients, confidence = int(calibration.get("patients", 0)), float(calibration.get("confidence", CONFIDENCE))
    return QualityEstimate(shown, at_least, confidence, patients)


def slice_estimate(calibration: Mapping[str, Any], quality: float) -> tuple[float, float | None]:
    """Predicted Dice of a slice, and its lower bound or None."""
    return _under(calibration, "slice", as_dice(quality))


def _under(calibration: Mapping[str, Any], what: str, predicted: float) -> tuple[float, float | None]:
    """A predicted Dice less the bias of ``what``, ``volume`` or ``slice``, and its lower bound or None."""

    def less(excess: float) -> float:
        return min(1.0, max(0.0, predicted - excess))

    margin = calibration.get(f"{what}_margin")
    return less(calibration.get(f"{what}_bias", 0.0)), None if margin is None else less(margin)


def is_calibration(values: Mapping[str, Any]) -> bool:
    """Whether a table of a ``model.json`` is empty or one of ``Testing/Benchmarks/calibrate.py``."""
    if not values:
        return True

    def finite(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

    known = {"confidence", "patients", "severity", *NUMBERS, *MARGINS}
    return (
        set(values) == known
        and finite(values["confidence"])
        and 0 < values["confidence"] < 1
        and isinstance(values["patients"], int)
        and values["patients"] > 0
        and isinstance(values["severity"], str)
        and all(finite(values[name]) and -1 <= values[name] <= 1 for name in NUMBERS)
        and all(values[name] is None or (finite(values[name]) and -1 <= values[name] <= 1) for name in MARGINS)
    )
