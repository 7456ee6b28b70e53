"""Whether image, clicks and result are of a model's kind, and how far its quality can be trusted; free of torch.

What a model knows is in the table ``fit`` of its ``model.json``, each entry optional and a range ``[lowest, highest]``
over the training data unless said otherwise:

- ``pixel_mm``, ``slice_mm``: spacing in the slice and of slices;
- ``volume_ml``: size of the structure;
- ``bright_share``, ``dark_share``: share of the field of view, in the slices of the structure, that the normalization
  clips at its upper and its lower end;
- ``middle``: median of the normalized intensities there;
- ``kept_share``: by severity of the noise, the mean share of clicks that were kept in validation.

How far a predicted quality can be trusted: the mask decoder predicts the IoU of each slice; as Dice it is 2q / (1 + q),
and that of a volume is the mean over its slices, weighted by their pixels. The lower bound is split conformal. What is
exchangeable is the *patient*: two sides, or two sets of clicks, of one patient err alike and count once. A patient's
score is the largest excess of the predicted over the measured Dice among all of that patient's volumes and clicks (for
slices: the excess that nine in ten of the patient's slices stay below), so that the bound holds for all that is
segmented of a new patient. With n patients the margin is the ceil((n + 1) 0.9)-th smallest score; below nine patients
there is no finite one, and that is said.

The table ``calibration`` of a ``model.json``: ``confidence``, ``patients``, ``severity`` of the simulated clicks,
``volume_bias`` and ``slice_bias`` (median excess), ``volume_margin`` and ``slice_margin`` (null: not enough patients),
and ``coverage``, the share of patients that the bound from all others holds for (null where there is none). It counts
only for what was measured: the prompts of SPD, by the model as it was shipped (:func:`calibration_for`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from SPDSegmentLib.errors import SPDError
from SPDSegmentLib.geometry.intensity import IntensityConfig, check_values, intensity_range, looks_like_ct, normalize
from SPDSegmentLib.models.bundle import list_bundles

if TYPE_CHECKING:
    from SPDSegmentLib.geometry.centerline import Clicks
    from SPDSegmentLib.geometry.slices import SliceStack
    from SPDSegmentLib.models.bundle_info import BundleInfo

SPACING_FACTOR = 1.6
VOLUME_FACTOR = 4.0
SHARE_MARGIN = 0.25
LEAST_KEPT = 0.4
LEAST_COVERED = 0.25
"""A mask on less than this share of the slices between the outermost clicks is almost empty."""
GENERAL = "any"
"""First word of the structure of a model for any structure."""
NOTHING = "Nothing was segmented."
_CT, _MR = "CT", "MR"
CONFIDENCE = 0.9
CALIBRATED_PROMPTS = "consensus"
Iou = TypeVar("Iou", float, np.ndarray)


@dataclass(frozen=True)
class IntensityFacts:
    """Shares of the field of view that a normalization clips at either end, and the median of what it gives there."""

    bright_share: float
    dark_share: float
    middle: float


def intensity_facts(
    stack: SliceStack, clicks: Clicks, normalization: Mapping[str, Any], fov_mm: float
) -> IntensityFacts:
    """What a model sees around the clicks: the slices between the outermost ones, a square of ``fov_mm``."""
    t, xy = clicks.slice_index[~clicks.outside], clicks.xy[~clicks.outside]
    height, width = stack.array.shape[1:]
    column, row = np.median(xy, axis=0)
    half = (fov_mm or max(height * stack.pixel_mm[0], width * stack.pixel_mm[1])) / 2
    down, across = half / stack.pixel_mm[0], half / stack.pixel_mm[1]
    part = stack.array[
        int(t.min()) : int(t.max()) + 1,
        max(0, int(row - down)) : int(row + down) + 1,
        max(0, int(column - across)) : int(column + across) + 1,
    ]
    values = normalize(part, intensity_range(stack.array, IntensityConfig.from_dict(normalization)))
    return IntensityFacts(float((values >= 1).mean()), float((values <= 0).mean()), float(np.median(values)))


def fit_of_image(info: BundleInfo, stack: SliceStack, clicks: Clicks | None = None) -> list[str]:
    """Sentences for a person before a run: why an image does not fit, and the better installed model; none if it does.

    Values that the model refuses are among the reasons. Without clicks the brightness around them is not looked at, nor
    is it around those past a marked end.
    """
    clicks = None if clicks is None else clicks.up_to_ends(stack.n_slices)
    try:
        check_values(stack.array, IntensityConfig.from_dict(info.normalization), stack.volume.name)
        doubts = doubts_of_image(info, stack, clicks)
    except SPDError as error:
        doubts = [error.sentence]
    return [*doubts, better_model(info, stack, clicks)] if doubts else []


def doubts_of_image(info: BundleInfo, stack: SliceStack, clicks: Clicks | None) -> list[str]:
    """Sentences on why an image is not of the kind that the model was trained on; none where it is."""
    doubts = [*_modality(info, stack.array), *_geometry(info, stack)]
    if not doubts:
        doubts += _intensities(info, stack, clicks)
    return doubts


def doubts_of_result(
    info: BundleInfo, stack: SliceStack, clicks: Clicks, fates: Iterable[str], pixels: np.ndarray
) -> list[str]:
    """Sentences on why a result must be looked at; none where it is as expected.

    Args:
        fates: of the clicks, each in its own slice.
        pixels: (T,) number of pixels of each slice's mask.
    """
    looked_at = [fate for fate in fates if fate != "outside"]
    rejected = sum(fate.startswith("rejected") for fate in looked_at)
    doubts = []
    if looked_at and rejected == len(looked_at):
        every = "The only click was" if rejected == 1 else f"All {rejected} clicks were"
        doubts.append(
            f"{every} rejected: the model {info.name} does not recognize what you clicked, and what "
            "it segmented, if anything, is something else."
        )
    elif rejected > (1 - LEAST_KEPT) * len(looked_at):
        doubts.append(
            f"{rejected} of {len(looked_at)} clicks were rejected{_usually(info)}: "
            f"the model {info.name} hardly recognizes this structure."
        )
    return doubts + _size(info, stack, clicks, pixels)


def better_model(
    info: BundleInfo,
    stack: SliceStack,
    clicks: Clicks | None,
    installed: Sequence[BundleInfo] | None = None,
    unrecognized: bool = False,
) -> str:
    """A sentence that names the installed model that fits an image better, or says that there is none.

    Args:
        installed: to choose from; None for the bundles of this machine.
        unrecognized: the image fits, and the model does not recognize the structure: only a model for any structure is
            better.
    """
    if installed is None:
        installed = [bundle.info for bundle in list_bundles()]
    others = [other for other in installed if other.name != info.name and _accepts(other, stack, clicks)]
    general = [other for other in others if is_general(other)]
    same = [other for other in others if other.structure == info.structure]
    choice = general if unrecognized else [*same, *general]
    if choice:
        return f"Use the model {choice[0].name} ({choice[0].title})."
    if unrecognized:
        return "Insist on clicks that are right, or choose the model that is made for this structure."
    named = ", ".join(other.name for other in others)
    return f"Models for such images are: {named}." if named else "No installed model is made for such an image."


def is_general(info: BundleInfo) -> bool:
    """Whether a model is for whatever is clicked."""
    return info.structure.lower().split()[0] == GENERAL


def _accepts(info: BundleInfo, stack: SliceStack, clicks: Clicks | None) -> bool:
    """Whether a model has no doubt about an image; its own slicing plane is taken for granted."""
    try:
        check_values(stack.array, IntensityConfig.from_dict(info.normalization))
        return not [*_modality(info, stack.array), *_spacing(info, stack), *_intensities(info, stack, clicks)]
    except SPDError:
        return False


def _modality(info: BundleInfo, array: np.ndarray) -> list[str]:
    rescaled = info.modality == _CT and info.normalization.get("kind") == "percentile"  # as it may look like anything
    if info.modality not in (_CT, _MR) or is_general(info) or rescaled:
        return []
    found = _CT if looks_like_ct(array) else _MR
    if found == info.modality:
        return []
    if found == _CT:
        return [f"This image looks like CT (its values go down to {array.min():g}); the model {info.name} is for MR."]
    return [f"This image does not look like CT in Hounsfield units; the model {info.name} is for CT."]


def _geometry(info: BundleInfo, stack: SliceStack) -> list[str]:
    if info.slicing_axis in ("auto", stack.plane):
        return _spacing(info, stack)
    known = f"the model {info.name} was trained on {info.slicing_axis} ones"
    return [f"The image is cut into {stack.plane} slices; {known}. Leave out --axis, or choose the model's plane."]


def _spacing(info: BundleInfo, stack: SliceStack) -> list[str]:
    doubts = []
    for name, value, what in (
        ("pixel_mm", max(stack.pixel_mm), "Pixels are {0:.3g} mm wide"),
        ("slice_mm", stack.slice_mm, "Slices are {0:.3g} mm apart"),
    ):
        known = _range(info, name)
        if known is not None and not known[0] / SPACING_FACTOR <= value <= known[1] * SPACING_FACTOR:
            doubts.append(
                f"{what.format(value)}; the model {info.name} was trained on {_words(known)} mm. "
                "Check the spacing of the image."
            )
    return doubts


def _intensities(info: BundleInfo, stack: SliceStack, clicks: Clicks | None) -> list[str]:
    names = ("bright_share", "dark_share", "middle")
    known = {name: _range(info, name) for name in names}
    if clicks is None or clicks.outside.all() or not any(known.values()):
        return []
    facts = intensity_facts(stack, clicks, info.normalization, info.fov_mm)
    words = {
        "bright_share": "{0:.0%} of the field of view are brighter than all that the model {1} tells apart",
        "dark_share": "{0:.0%} of the field of view are darker than all that the model {1} tells apart",
        "middle": "The brightness of the field of view ({0:.2f} of 1) is unlike that of the images of the model {1}",
    }
    doubts = []
    for name, limits in known.items():
        value = getattr(facts, name)
        if limits is None:
            continue
        below = name == "middle" and value < limits[0] - SHARE_MARGIN  # less air or bone than usual is no fault
        if below or value > limits[1] + SHARE_MARGIN:
            doubts.append(f"{words[name].format(value, info.name)} (in training {limits[0]:.2f} to {limits[1]:.2f}).")
    return doubts[:1]


def _size(info: BundleInfo, stack: SliceStack, clicks: Clicks, pixels: np.ndarray) -> list[str]:
    """Doubts about a mask that is empty, almost empty, or of another size than the structure."""
    filled: np.ndarray = np.asarray(pixels > 0)
    if not filled.any():
        return [NOTHING]
    t = clicks.slice_index[~clicks.outside]
    first, last = int(t.min()), int(t.max())
    between = filled[first : last + 1]
    if between.mean() < LEAST_COVERED:
        return [
            f"The mask is almost empty: it has {int(between.sum())} of the {len(between)} slices from the first click "
            "to the last."
        ]
    known = _range(info, "volume_ml")
    volume_ml = float(pixels.sum()) * stack.volume.voxel_mm3 / 1000
    if known is None or known[0] / VOLUME_FACTOR <= volume_ml <= known[1] * VOLUME_FACTOR:
        return []
    return [f"The mask has {volume_ml:.3g} ml; those that {info.name} was trained on have {_words(known)} ml."]


def _usually(info: BundleInfo) -> str:
    kept = info.fit.get("kept_share")
    share = kept.get("clinic") if isinstance(kept, Mapping) else None
    return f" (in validation with noisy clicks {1 - share:.0%})" if share is not None else ""


def _range(info: BundleInfo, name: str) -> tuple[float, float] | None:
    known = info.fit.get(name)
    return None if known is None else (float(known[0]), float(known[1]))


def _words(limits: tuple[float, float]) -> str:
    low, high = (f"{value:.3g}" for value in limits)
    return low if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class QualityEstimate:
    """Predicted Dice of a volume; ``at_least`` is None where there is no bound.

    Attributes:
        confidence: of the bound.
        patients: that the bound rests on, 0 for a model without calibration.
        not_for: what was asked that the model's calibration does not count for; empty where there is nothing.
    """

    predicted: float
    at_least: float | None
    confidence: float = CONFIDENCE
    patients: int = 0
    not_for: str = ""

    def sentence(self) -> str:
        """The estimate for people."""
        said = f"Predicted Dice {self.predicted:.2f}"
        if self.at_least is not None:
            return f"{said}, at least {self.at_least:.2f} with {self.confidence:.0%} (from {self.patients} patients)."
        if self.patients:
            return f"{said}. How low it may be is not known: the model was checked on only {self.patients} patients."
        which = f" for {self.not_for}" if self.not_for else ""
        return f"{said}. How low it may be is not known: the model was not calibrated{which}."

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


def calibration_for(info: BundleInfo | None, prompts: str, learned: bool) -> Mapping[str, Any]:
    """A model's ``calibration`` if it counts for these prompts; otherwise the one entry ``not_for`` says what for."""
    if info is None or not info.calibration:
        return {}
    if prompts != CALIBRATED_PROMPTS:
        return {"not_for": "these prompts"}
    return {"not_for": "what it has learned since"} if learned else info.calibration


def predicted_dice(quality: Sequence[float | None], pixels: Sequence[int]) -> float | None:
    """Of a volume from the pixels and the predicted IoU, None where unknown, of its slices; None for an empty mask."""
    iou = np.array(quality, dtype=float)
    known = ~np.isnan(iou)
    weights = np.array(pixels, dtype=float)[known]
    if not weights.sum():
        return None
    return float(np.average(as_dice(iou[known]), weights=weights))


def estimate(
    calibration: Mapping[str, Any], quality: Sequence[float | None], pixels: Sequence[int]
) -> QualityEstimate | None:
    """The predicted Dice of a volume under what :func:`calibration_for` gives; None where nothing is predicted."""
    predicted = predicted_dice(quality, pixels)
    if predicted is None:
        return None
    shown, at_least = _under(calibration, "volume", predicted)
    patients, confidence = int(calibration.get("patients", 0)), float(calibration.get("confidence", CONFIDENCE))
    return QualityEstimate(shown, at_least, confidence, patients, calibration.get("not_for", ""))


def slice_estimate(calibration: Mapping[str, Any], quality: float) -> tuple[float, float | None]:
    """Predicted Dice of a slice, and its lower bound or None."""
    return _under(calibration, "slice", as_dice(quality))


def _under(calibration: Mapping[str, Any], what: str, predicted: float) -> tuple[float, float | None]:
    """A predicted Dice less the bias of ``what``, ``volume`` or ``slice``, and its lower bound or None."""

    def less(excess: float) -> float:
        return min(1.0, max(0.0, predicted - excess))

    margin = calibration.get(f"{what}_margin")
    return less(calibration.get(f"{what}_bias", 0.0)), None if margin is None else less(margin)
