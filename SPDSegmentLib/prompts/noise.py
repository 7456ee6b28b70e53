"""Simulated clicks of a hurried reader: a rough centreline with drift, over-run, gaps and slips (method section 7).

From a structure's mask and a seed: the path through the cross-sections, jitter in the plane, one run of the path that
drifts to tissue beside the structure, continuation past both ends, runs of slices without clicks, and clicks that land
one slice off. ``r`` is the equivalent radius of the cross-section.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.prompts.click_path import ClickPath, click_path

NOISE_VERSION = 1
SAMPLING_MM = 5.0


@dataclass(frozen=True)
class NoiseConfig:
    """How bad the clicks are.

    Attributes:
        jitter: standard deviation in the plane, in r.
        drift_share: share of the path that drifts away, 1 to 3 r.
        over_run: length of the continuation past each end, as a share of the path.
        dropout: share of the structure's slices that lose their clicks.
        off_slice: share of clicks that land one slice off.
    """

    jitter: float = 0.0
    drift_share: float = 0.0
    over_run: float = 0.0
    dropout: float = 0.0
    off_slice: float = 0.0


SEVERITIES: dict[str, NoiseConfig] = {
    "clean": NoiseConfig(),
    "mild": NoiseConfig(0.15, 0.10, 0.05, 0.10, 0.0),
    "clinic": NoiseConfig(0.35, 0.30, 0.15, 0.30, 0.10),
    "severe": NoiseConfig(0.60, 0.50, 0.30, 0.50, 0.20),
}


@dataclass(frozen=True, eq=False)
class SimulatedClicks:
    """Clicks with the truth about them.

    Attributes:
        slice_index: (N,) int within the volume.
        xy: (N, 2) (column, row) in slice pixels.
        inside_target: (N,) bool.
    """

    slice_index: np.ndarray
    xy: np.ndarray
    inside_target: np.ndarray


def noise_config(severity: str | float) -> NoiseConfig:
    """A severity by name, or between the named ones by number: 0 clean, 1 mild, 2 clinic, 3 severe.

    Raises:
        BadInput: unknown name or a number outside 0 to 3.
    """
    levels = list(SEVERITIES.values())
    if isinstance(severity, str):
        if severity not in SEVERITIES:
            raise BadInput(f"Unknown noise severity '{severity}'.", f"Choose one of {', '.join(SEVERITIES)}.")
        return SEVERITIES[severity]
    if not 0 <= severity <= len(levels) - 1:
        raise BadInput(f"Noise severity {severity} is not between 0 and {len(levels) - 1}.")
    low = min(int(severity), len(levels) - 2)
    share = severity - low
    values = {
        f.name: (1 - share) * getattr(levels[low], f.name) + share * getattr(levels[low + 1], f.name)
        for f in fields(NoiseConfig)
    }
    return NoiseConfig(**values)


def simulate_clicks(
    mask: np.ndarray, pixel_mm: tuple[float, float], slice_mm: float, severity: str | float, seed: int
) -> SimulatedClicks:
    """Clicks on a structure (T, H, W) bool."""
    return simulate_clicks_from_path(click_path(mask, pixel_mm, slice_mm), mask, severity, seed)


def simulate_clicks_from_path(path: ClickPath, mask: np.ndarray, severity: str | float, seed: int) -> SimulatedClicks:
    """Clicks along an already known path; the mask is only asked which of them hit."""
    config = noise_config(severity)
    rng = np.random.default_rng(seed)
    points, radius = _resample(path)
    if len(points) == 0:
        return SimulatedClicks(np.empty(0, int), np.empty((0, 2)), np.empty(0, bool))
    ratio = path.pixel_mm[1] / path.pixel_mm[0]  # the same length in rows is this many times as many pixels
    in_plane = np.array([1.0, ratio])
    n = len(points)
    noisy = points.copy()
    noisy[:, 1:] += rng.normal(0, config.jitter, (n, 2)) * radius[:, None] * in_plane
    _drift(noisy, points, radius, in_plane, mask, config, rng)
    keep = _survivors(points, config, rng)
    before = _over_run(points, radius, -1, config, in_plane, rng)
    after = _over_run(points, radius, 1, config, in_plane, rng)
    clicks = np.concatenate((before, noisy[keep], after))
    slipped = rng.random(len(clicks)) < config.off_slice
    clicks[slipped, 0] += rng.choice([-1, 1], int(slipped.sum()))
    t = np.rint(clicks[:, 0]).astype(int)
    depth, height, width = mask.shape
    inside = (t >= 0) & (t < depth)
    inside &= (clicks[:, 1] > -0.5) & (clicks[:, 1] < width - 0.5)
    inside &= (clicks[:, 2] > -0.5) & (clicks[:, 2] < height - 0.5)
    t, xy = t[inside], clicks[inside, 1:]
    columns, rows = np.rint(xy).astype(int).T
    return SimulatedClicks(t, xy, mask[t, rows, columns])


def _resample(path: ClickPath) -> tuple[np.ndarray, np.ndarray]:
    """Path points (P, 3), (slice, column, row), at least 5 mm of slices apart, and their radii (P,)."""
    step = max(1, int(round(SAMPLING_MM / path.slice_mm))) if path.slice_mm > 0 else 1
    first = path.slice_index.min() if len(path.slice_index) else 0
    chosen = (path.slice_index - first) % step == 0
    points = np.column_stack((path.slice_index.astype(float), path.xy))
    return points[chosen], path.radius_px[chosen]


def _run_of(n: int, share: float, rng: np.random.Generator) -> slice:
    """A contiguous run of ``share`` of n items."""
    length = min(n, int(round(share * n)))
    first = int(rng.integers(0, n - length + 1))
    return slice(first, first + length)


def _drift(
    noisy: np.ndarray,
    points: np.ndarray,
    radius: np.ndarray,
    in_plane: np.ndarray,
    mask: np.ndarray,
    config: NoiseConfig,
    rng: np.random.Generator,
) -> None:
    """Move one run of the path 1 to 3 r in a fixed direction, on to tissue outside the structure; in place."""
    run = _run_of(len(points), config.drift_share, rng)
    if run.start == run.stop:
        return
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(angle), np.sin(angle)]) * in_plane
    distance = rng.uniform(1, 3)
    for i in range(run.start, run.stop):
        moved = distance
        while moved < 4 and _hits(mask, points[i], noisy[i, 1:] + direction * radius[i] * moved):
            moved += 0.25
        noisy[i, 1:] += direction * radius[i] * moved


def _hits(mask: np.ndarray, point: np.ndarray, xy: np.ndarray) -> bool:
    t, column, row = int(point[0]), int(round(xy[0])), int(round(xy[1]))
    _, height, width = mask.shape
    return 0 <= column < width and 0 <= row < height and bool(mask[t, row, column])


def _survivors(points: np.ndarray, config: NoiseConfig, rng: np.random.Generator) -> np.ndarray:
    """Which points are left after whole runs of slices lost theirs; at least one stays."""
    slices = np.unique(points[:, 0])
    lost: set[float] = set()
    target = int(round(config.dropout * len(slices)))
    while len(lost) < min(target, len(slices) - 1):
        length = int(rng.integers(1, max(2, target // 2 + 1)))
        first = int(rng.integers(0, len(slices)))
        for s in slices[first : first + length]:
            if len(lost) < min(target, len(slices) - 1):
                lost.add(float(s))
    return np.array([float(s) not in lost for s in points[:, 0]])


def _over_run(
    points: np.ndarray,
    radius: np.ndarray,
    end: int,
    config: NoiseConfig,
    in_plane: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Points (Q, 3) that continue the path past one end (-1 the first, 1 the last)."""
    slices = np.unique(points[:, 0])
    count = int(round(config.over_run * len(slices)))
    if config.over_run > 0:
        count = max(count, int(rng.random() < config.over_run * len(slices)))
    edge = 0 if end < 0 else -1
    spacing = float(np.median(np.diff(slices))) if len(slices) > 1 else 1.0
    inner = points[min(2, len(points) - 1)] if end < 0 else points[-min(3, len(points))]
    travel = abs(points[edge, 0] - inner[0])
    slope = (points[edge, 1:] - inner[1:]) / travel if travel > 0 else np.zeros(2)
    steps = np.arange(1, count + 1) * spacing
    continued = np.column_stack((points[edge, 0] + end * steps, points[edge, 1:] + steps[:, None] * slope))
    continued[:, 1:] += rng.normal(0, config.jitter, (count, 2)) * radius[edge] * in_plane
    return continued if end > 0 else continued[::-1]
