"""Image intensities to the network's range [0, 1]."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.settings import build_settings, check_choice, check_ranges

LARGEST_LIMIT = 1e9
SMALLEST_SHARE = 1e-5
"""Two intensities that are closer than this share of the larger one are not told apart in float32."""

FEWEST_COLUMNS = 32
"""Evenly spaced intensities that lie in fewer columns than this are spaced otherwise."""
MIN_WINDOW_SHARE = 0.1
"""An image whose values span less of a window was rescaled."""
CT_WINDOW = (-160.0, 240.0)
MR_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class IntensityConfig:
    """How a volume is normalized.

    Attributes:
        kind: ``percentile`` (MR: low and high are percentiles of the foreground), ``window`` (CT: low and high are
            intensities), or ``auto``: the window of soft tissue where :func:`looks_like_ct`, percentiles elsewhere.
        low, high: what becomes 0; what becomes 1. Values beyond are clipped.
        foreground: intensities above it count for the percentiles.
        dither: standard deviation of noise added to the network's input, in training at random and in use by one fixed
            pattern. An enlarged slice is smoother than any real one; a network that learned on noisy slices needs it.
        usual_low, usual_high: range of :func:`brightness` over the training data, 0 and 0 where it is not known. A
            darker field of view is scaled to its middle: something bright elsewhere in the volume leaves little of the
            percentiles' range to the structure. Training itself does not look at it.
    """

    kind: str = "percentile"
    low: float = 0.5
    high: float = 99.5
    foreground: float = 0.0
    dither: float = 0.0
    usual_low: float = 0.0
    usual_high: float = 0.0

    def __post_init__(self) -> None:
        check_choice(self.kind, ("percentile", "window", "auto"), "intensity normalization")
        if not self.low < self.high:
            raise BadInput(f"Intensity limits {self.low} and {self.high} are not in order.")
        check_ranges(self, dict.fromkeys(("low", "high", "foreground"), (-LARGEST_LIMIT, LARGEST_LIMIT)))
        if self.high - self.low < max(1e-9, SMALLEST_SHARE * max(abs(self.low), abs(self.high))):
            raise BadInput(f"Intensity limits {self.low} and {self.high} are too close to each other.")
        if self.kind != "window" and not 0 <= self.low < self.high <= 100:
            raise BadInput(f"Percentiles {self.low} and {self.high} are not between 0 and 100.")
        if not 0 <= self.dither < 1:
            raise BadInput(f"dither {self.dither} is not between 0 and 1.")
        if not 0 <= self.usual_low <= self.usual_high <= 1 or (self.usual_low == 0 < self.usual_high):
            raise BadInput(f"The usual brightness {self.usual_low} to {self.usual_high} is no range between 0 and 1.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> IntensityConfig:
        """Build from a mapping; an unknown key or a value of another kind raises :class:`BadInput`."""
        return build_settings(cls, values, kind="normalization")


def intensity_range(array: np.ndarray, config: IntensityConfig) -> tuple[float, float]:
    """The intensities of ``array`` (any shape) that become 0 and 1."""
    if config.kind == "window":
        return config.low, config.high
    sample = _sample(array)
    if config.kind == "auto" and looks_like_ct(sample):
        return CT_WINDOW
    foreground = sample[sample > config.foreground]
    if foreground.size == 0:
        foreground = sample
    if foreground.dtype.itemsize < 4 and foreground.dtype.kind == "f":
        foreground = foreground.astype(np.float32)  # the difference of two float16 may be infinite
    low, high = (float(value) for value in np.percentile(foreground, (config.low, config.high)))
    if high <= low:
        high = low + 1.0
    return low, max(high, low + SMALLEST_SHARE * max(abs(low), abs(high)))


def check_values(array: np.ndarray, config: IntensityConfig, name: str = "") -> None:
    """Refuse an image whose values cannot be those that a model with a window (CT) was trained on.

    Args:
        name: for messages.

    Raises:
        BadInput: all values on one side of the window, all within a small part of it, or none below 0 where the window
            begins below 0: a shifted or rescaled CT.
    """
    if config.kind != "window":
        return
    low, high = float(array.min()), float(array.max())
    window = f"the model's window ({config.low:g} to {config.high:g})"
    if low >= config.high or high <= config.low:
        fault = f"lie all {'above' if low >= config.high else 'below'} {window}"
    elif high - low < MIN_WINDOW_SHARE * (config.high - config.low):
        fault = f"fill next to nothing of {window}"
    elif config.low < 0 <= low:
        fault = f"do not go below 0, though {window} does"
    else:
        return
    image = f"image {name}" if name else "volume"
    if config.low < 0:
        raise BadInput(
            f"The values of the {image}, {low:g} to {high:g}, {fault}: they are no Hounsfield units.",
            "Give a CT in Hounsfield units (air -1000, fat -100, water 0), neither shifted nor rescaled.",
        )
    raise BadInput(f"The values of the {image}, {low:g} to {high:g}, {fault}.", "Give an image of the model's kind.")


def looks_like_ct(array: np.ndarray) -> bool:
    """Whether intensities are Hounsfield units: air far below zero, or soft tissue around it with fat below."""
    low, quarter, middle, high = np.percentile(_sample(array), (1, 25, 50, 99))
    air = low <= -250 or quarter <= -250
    tissue = -250 < low <= -40 and -200 <= middle <= 200 and 20 <= high <= 2500
    return bool((air or tissue) and high < 5000)


def _sample(array: np.ndarray) -> np.ndarray:
    """About two million evenly spaced intensities, (N,), from enough columns in all parts of the volume."""
    step, width = max(1, array.size // 2_000_000), (1, *array.shape)[-1]
    if width // math.gcd(step, width) < min(width, FEWEST_COLUMNS):
        step = next(n for n in itertools.count(step) if math.gcd(n, array.size) == 1)
    return array.reshape(-1)[::step] if array.flags.c_contiguous else array.ravel()[::step]


def normalize(array: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Scale intensities to [0, 1] float32 and clip."""
    low, high = limits
    return ((array.astype(np.float32) - low) / (high - low)).clip(0, 1)


LOCAL_BACKGROUND = 0.012
"""Normalized values up to this count as air when the inside of the field of view is looked at."""
LARGEST_GAIN = 4.0
LOCAL_SHARES = (0.01, 0.99)
LOCAL_BINS = 256
LOCAL_ENOUGH = 100
LOCAL_NEIGHBORS = 2


def brightness(array: np.ndarray, limits: tuple[float, float]) -> float:
    """Median of the normalized intensities of a field of view in all slices (T, H, W), air left out; 0 of air alone."""
    step = max(1, round((array.size / 1_000_000) ** (1 / 3)))
    values = normalize(array[::step, ::step, ::step], limits)
    lit = values[values > LOCAL_BACKGROUND]
    return float(np.median(lit)) if lit.size else 0.0


def gain_in_view(array: np.ndarray, limits: tuple[float, float], config: IntensityConfig) -> float:
    """How many times brighter a field of view (T, H, W) must be for the brightness usual in training; 1 if it is."""
    if config.kind == "window" or not config.usual_high:
        return 1.0
    found = brightness(array, limits)
    if not 0 < found < config.usual_low:
        return 1.0
    return float(min(LARGEST_GAIN, math.sqrt(config.usual_low * config.usual_high) / found))


def dither(images: np.ndarray, strength: float) -> np.ndarray:
    """Add the fixed noise pattern to network inputs (B, S, S) in [0, 1]; the background at 0 stays as it is."""
    if strength == 0:
        return images
    dithered: np.ndarray = (images + dither_pattern(images.shape[1:], strength) * (images > 0)).clip(0, 1)
    return dithered


def dither_pattern(shape: tuple[int, ...], strength: float) -> np.ndarray:
    """The noise (S, S) float32 that :func:`dither` adds."""
    pattern = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return pattern * np.float32(strength)
