"""Image intensities to the network's range [0, 1]."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from SPDSegmentLib.errors import BadInput


@dataclass(frozen=True)
class IntensityConfig:
    """How a volume is normalised.

    Attributes:
        kind: ``percentile`` (MR: low and high are percentiles of the foreground) or ``window`` (CT: low and high are
            intensities).
        low, high: mapped to 0 and 1; values beyond are clipped.
        foreground: intensities above it count for the percentiles.
    """

    kind: str = "percentile"
    low: float = 0.5
    high: float = 99.5
    foreground: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("percentile", "window"):
            raise BadInput(f"Unknown intensity normalization '{self.kind}'.", "Choose percentile or window.")
        if not self.low < self.high:
            raise BadInput(f"Intensity limits {self.low} and {self.high} are not in order.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> IntensityConfig:
        """Build from a mapping; an unknown key raises :class:`BadInput`."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise BadInput(f"Unknown normalization setting '{unknown[0]}'.", f"Known: {', '.join(sorted(known))}.")
        return cls(**values)


def intensity_range(array: np.ndarray, config: IntensityConfig) -> tuple[float, float]:
    """The intensities of ``array`` (any shape) that become 0 and 1."""
    if config.kind == "window":
        return config.low, config.high
    step = max(1, array.size // 2_000_000)
    sample = array.reshape(-1)[::step] if array.flags.c_contiguous else array.ravel()[::step]
    foreground = sample[sample > config.foreground]
    if foreground.size == 0:
        foreground = sample
    low, high = np.percentile(foreground, (config.low, config.high))
    return float(low), float(high) if high > low else float(low) + 1.0


def normalize(array: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Scale intensities to [0, 1] float32 and clip."""
    low, high = limits
    return ((array.astype(np.float32) - low) / (high - low)).clip(0, 1)
