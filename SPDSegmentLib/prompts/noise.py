"""Simulator of noisy centerline clicks, from a reference mask and a seed.

:func:`click_path` is the costly part and needs computing once per case; :func:`simulate_clicks_from_path` then costs
about a millisecond. The severity is a name, a number (0 clean, 1 mild, 2 clinic, 3 severe) or a :class:`NoiseConfig`.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields

import numpy as np

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.prompts.click_path import ClickPath, click_path, nearest_pixel

NOISE_VERSION = 1
DRIFT_RADII = (1.0, 3.0)
DRIFT_CANDIDATES = 24
MAX_DROPOUT_RUNS = 3


@dataclass(frozen=True)
class NoiseConfig:
    """One severity.

    Attributes:
        jitter: standard deviation in the plane, in radii of the cross-section.
        drift_share: share of the path's points in the run that drifts.
        over_run: points past an end, as a share of the path's points.
        dropout: share of the clicked slices that lose their points.
        off_slice: share of the points that land one slice off.
    """

    jitter: float
    drift_share: float
    over_run: float
    dropout: float
    off_slice: float

    def __post_init__(self) -> None:
        for name, value in zip((f.name for f in fields(self)), astuple(self), strict=True):
            if not 0 <= value <= (np.inf if name == "jitter" else 1):
                raise BadInput(f"The click noise {name} = {value} is out of range.", "Give a share from 0 to 1.")


SEVERITIES: dict[str, NoiseConfig] = {
    "clean": NoiseConfig(0.0, 0.0, 0.0, 0.0, 0.0),
    "mild": NoiseConfig(0.15, 0.10, 0.05, 0.10, 0.0),
    "clinic": NoiseConfig(0.35, 0.30, 0.15, 0.30, 0.10),
    "severe": NoiseConfig(0.60, 0.50, 0.30, 0.50, 0.20),
}


@dataclass(frozen=True, eq=False)
class SimulatedClicks:
    """N clicks on slices.

    Attributes:
        slice_index: (N,) int, within the volume.
        xy: (N, 2) float, (column, row) in slice pixels, within the slice.
        inside_target: (N,) bool.
    """

    slice_index: np.ndarray
    xy: np.ndarray
    inside_target: np.ndarray


def noise_config(severity: str | float | NoiseConfig) -> NoiseConfig:
    """Configuration of a severity by name, or by number with linear interpolation between the named ones.

    A configuration is returned as it is.

    Raises:
        BadInput: unknown name, or a number outside 0 to 3.
    """
    if isinstance(severity, NoiseConfig):
        return severity
    if isinstance(severity, str):
        if severity not in SEVERITIES:
            raise BadInput(f"Unknown severity '{severity}'.", f"Choose from {', '.join(SEVERITIES)}.")
        return SEVERITIES[severity]
    levels = np.array([astuple(config) for config in SEVERITIES.values()])
    top = len(levels) - 1
    if not 0 <= severity <= top:
        raise BadInput(f"Severity {severity} is out of range.", f"Choose a number from 0 (clean) to {top} (severe).")
    return NoiseConfig(*(float(np.interp(severity, np.arange(top + 1), column)) for column in levels.T))


def single_noise(part: str, severity: str | float) -> NoiseConfig:
    """One kind of noise alone, as strong as in a severity; ``part`` is an attribute of :class:`NoiseConfig`.

    Raises:
        BadInput: unknown part or severity.
    """
    names = [f.name for f in fields(NoiseConfig)]
    if part not in names:
        raise BadInput(f"Unknown kind of click noise '{part}'.", f"Choose from {', '.join(names)}.")
    return NoiseConfig(**dict.fromkeys(names, 0.0) | {part: getattr(noise_config(severity), part)})


def simulate_clicks(
    mask: np.ndarray, pixel_mm: tuple[float, float], slice_mm: float, severity: str | float | NoiseConfig, seed: int
) -> SimulatedClicks:
    """Clicks on one structure; see :func:`simulate_clicks_from_path` for repeated use.

    Args:
        mask: (T, H, W) bool; pixel_mm: (row, column) spacing; slice_mm: distance of slices.

    Raises:
        BadInput: empty mask or unknown severity.
    """
    return simulate_clicks_from_path(click_path(mask, pixel_mm, slice_mm), mask, severity, seed)


def simulate_clicks_from_path(
    path: ClickPath, mask_thw: np.ndarray, severity: str | float | NoiseConfig, seed: int
) -> SimulatedClicks:
    """Clicks along a path with the noise of a severity; the same seed gives the same clicks, never none.

    Args:
        path: of :func:`click_path` for the same mask.
        mask_thw: (T, H, W) bool, read only at the clicks.

    Raises:
        BadInput: unknown severity.
    """
    config = noise_config(severity)
    rng = np.random.default_rng(seed)
    upper = np.array(mask_thw.shape[1:]) - 1.0

    slices, yx, radius = _with_over_run(path, mask_thw.shape, config.over_run, rng)
    yx = yx + rng.normal(size=yx.shape) * (config.jitter * radius[:, None] / path.pixel_mm)
    n_path = len(path.slice_index)
    run = _drifting_run(n_path, config.drift_share, rng)
    yx[run] = _drift(yx[run], slices[run], radius[run], path.pixel_mm, mask_thw, rng)
    yx = np.clip(yx, 0.0, upper)

    kept = _kept_after_dropout(slices, config.dropout, rng)
    slices, yx = slices[kept], yx[kept]
    slices = _some_one_slice_off(slices, mask_thw.shape[0], config.off_slice, rng)
    return SimulatedClicks(slices, yx[:, ::-1].copy(), _in_target(mask_thw, slices, yx))


def _count(share: float, total: int, rng: np.random.Generator) -> int:
    """Share of a total as a whole number that is right on average."""
    return min(total, int(share * total + rng.random()))


def _in_target(mask_thw: np.ndarray, slices: np.ndarray, yx: np.ndarray) -> np.ndarray:
    """(..., N) bool of positions (..., N, 2) within the slice."""
    pixel = nearest_pixel(yx)
    covered: np.ndarray = mask_thw[slices, pixel[..., 0], pixel[..., 1]].astype(bool)
    return covered


def _with_over_run(
    path: ClickPath, shape: tuple[int, ...], share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slices (N,), pixels (N, 2) as (row, column) and radii (N,) mm: the path, then the points past its ends.

    A branching path has as many points past all its ends together as an unbranched one past its two.
    """
    spacing = np.array([path.slice_mm, *path.pixel_mm])
    slices, yx, radius = [path.slice_index], [path.xy[:, ::-1]], [path.radius_mm]
    n_ends = len(path.end_mm)
    for end, direction, first, end_radius in zip(
        path.end_mm, path.end_direction, path.end_first_mm, path.end_radius_mm, strict=True
    ):
        n = _count(2 * share / n_ends, len(path.slice_index), rng)
        beyond = end + direction * (first + path.step_mm * np.arange(n))[:, None]
        index = nearest_pixel(beyond / spacing)
        within = np.all((index >= 0) & (index < shape), axis=1)
        slices.append(index[within, 0])
        yx.append(beyond[within, 1:] / path.pixel_mm)
        radius.append(np.full(int(within.sum()), end_radius))
    return np.concatenate(slices), np.concatenate(yx), np.concatenate(radius)


def _drifting_run(n: int, share: float, rng: np.random.Generator) -> slice:
    length = _count(share, n, rng)
    start = int(rng.integers(0, n - length + 1))
    return slice(start, start + length)


def _drift(
    yx: np.ndarray,
    slices: np.ndarray,
    radius: np.ndarray,
    pixel_mm: np.ndarray,
    mask_thw: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Move a run of points (R, 2) by 1 to 3 radii in one direction.

    Several directions and lengths are drawn; the first that brings every point out of the target is taken, or else
    the one that brings out most. Points that would leave the slice count as not brought out.
    """
    if not len(yx):
        return yx
    angle = rng.uniform(0, 2 * np.pi, DRIFT_CANDIDATES)
    length = rng.uniform(*DRIFT_RADII, DRIFT_CANDIDATES)
    offset = (np.stack([np.sin(angle), np.cos(angle)], axis=1) * length[:, None])[:, None] * radius[:, None] / pixel_mm
    moved = yx + offset
    upper = np.array(mask_thw.shape[1:]) - 1.0
    clipped = np.clip(moved, 0.0, upper)
    out = np.all(clipped == moved, axis=2) & ~_in_target(mask_thw, slices, clipped)
    farthest: np.ndarray = clipped[int(np.argmax(out.sum(axis=1)))]
    return farthest


def _kept_after_dropout(slices: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """(N,) bool; up to three runs of successive clicked slices lose their points, one slice always keeps its own."""
    clicked = np.unique(slices)
    n_dropped = min(_count(share, len(clicked), rng), len(clicked) - 1)
    if n_dropped == 0:
        return np.ones(len(slices), dtype=bool)
    n_kept = len(clicked) - n_dropped
    n_runs = int(rng.integers(1, min(MAX_DROPOUT_RUNS, n_dropped, n_kept + 1) + 1))
    cuts = np.sort(rng.choice(np.arange(1, n_dropped), n_runs - 1, replace=False))
    lengths = np.diff([0, *cuts, n_dropped])
    gaps = np.sort(rng.choice(n_kept + 1, n_runs, replace=False))
    starts = gaps + np.concatenate([[0], np.cumsum(lengths)[:-1]])
    dropped = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)])
    return ~np.isin(slices, clicked[dropped])


def _some_one_slice_off(slices: np.ndarray, n_slices: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """A share of the points on the slice before or after; at the volume's edge, on the one that exists."""
    if n_slices == 1:
        return slices
    moved = rng.choice(len(slices), _count(share, len(slices), rng), replace=False)
    step = rng.choice([-1, 1], len(moved))
    target = slices[moved] + step
    step = np.where((target < 0) | (target >= n_slices), -step, step)
    result = slices.copy()
    result[moved] += step
    return result
