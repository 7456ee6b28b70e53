"""Clicks in patient space to clicks on slices (method section 6).

A point list is used as it is, each point on its nearest slice. A curve is sampled along a spline through its points, so
that every slice that it crosses gets at least one point. A structure that runs in the slice plane puts many points on
one slice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.markups import Markup
from SPDSegmentLib.geometry.slices import SliceStack

SAMPLES_PER_SEGMENT = 64
FARTHEST = 1e9
"""Slice indexes of points that lie farther outside are cut off here."""


@dataclass(frozen=True, eq=False)
class Clicks:
    """Clicks on slices; arrays of one length N.

    Attributes:
        slice_index: (N,) int, nearest slice; may lie outside [0, T) where ``outside`` is set.
        xy: (N, 2) float, (column, row) in slice pixels.
        outside: (N,) bool, more than half a voxel outside the volume.
        ids: control point ids; samples of a curve carry that of the nearest control point.
    """

    slice_index: np.ndarray
    xy: np.ndarray
    outside: np.ndarray
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.slice_index)

    def inside(self) -> Clicks:
        """Those that lie in the volume."""
        kept = np.flatnonzero(~self.outside)
        return Clicks(self.slice_index[kept], self.xy[kept], self.outside[kept], tuple(self.ids[int(i)] for i in kept))


def clicks_from_points(points_ras: np.ndarray, stack: SliceStack, ids: Sequence[str] | None = None) -> Clicks:
    """Points (N, 3) in patient millimetres on their nearest slices; positions that are not finite are outside."""
    with np.errstate(invalid="ignore"):
        position, xy = stack.to_slices(points_ras)
    n_slices, height, width = stack.shape
    inside = (position >= -0.5) & (position < n_slices - 0.5)
    inside &= ((xy >= -0.5) & (xy < np.array([width, height]) - 0.5)).all(axis=1)
    outside = ~inside
    index = np.floor(np.nan_to_num(position).clip(-FARTHEST, FARTHEST) + 0.5).astype(int)
    names = tuple(str(i + 1) for i in range(len(index))) if ids is None else tuple(ids)
    return Clicks(index, xy, outside, names)


def clicks_from_markups(markups: Sequence[Markup], stack: SliceStack) -> Clicks:
    """Clicks of all nodes together; left out are boxes, planes, angles, and points that are unplaced or unselected.

    Raises:
        BadInput: no point is left, or all lie outside the volume.
    """
    parts: list[tuple[np.ndarray, list[str]]] = []
    for markup in markups:
        if markup.is_shape:
            continue
        used = [p for p in markup.points if p.placed and p.selected]
        positions = np.array([p.position_ras for p in used], dtype=float).reshape(-1, 3)
        ids = [p.id for p in used]
        if markup.is_curve and len(used) > 1:
            positions, nearest = sample_curve(positions, stack, closed=markup.kind == "ClosedCurve")
            ids = [ids[i] for i in nearest]
        parts.append((positions, ids))
    points = np.concatenate([positions for positions, _ in parts]) if parts else np.empty((0, 3))
    names = ", ".join(markup.name for markup in markups)
    if len(points) == 0:
        raise BadInput(f"No placed point in {names or 'the markups'}.", "Place points along the structure.")
    clicks = clicks_from_points(points, stack, [i for _, ids in parts for i in ids])
    if clicks.outside.all():
        raise BadInput(
            f"No click lies inside the volume: all {len(clicks)} of {names} are outside.",
            "Check that points and volume belong to one patient and one coordinate system.",
        )
    return clicks


def sample_curve(points_ras: np.ndarray, stack: SliceStack, closed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Control points and one point for each slice of the volume whose plane the spline through them crosses.

    Args:
        points_ras: (P, 3), P > 1.

    Returns:
        Points (N, 3) in the order of the curve and for each the index of the nearest control point (N,).
    """
    dense, parameter = catmull_rom(points_ras, closed)
    position, _ = stack.to_slices(dense)
    samples = [(float(i), point) for i, point in enumerate(points_ras)]
    covered = set(clicks_from_points(points_ras, stack).slice_index.tolist())
    for a in range(len(dense) - 1):
        low, high = sorted((position[a], position[a + 1]))
        for t in range(max(0, math.ceil(low)), min(stack.n_slices - 1, math.floor(high)) + 1):
            met_again = t == position[a + 1] and a < len(dense) - 2
            if high > low and t not in covered and not met_again:
                share = (t - position[a]) / (position[a + 1] - position[a])
                samples.append(
                    (
                        float((1 - share) * parameter[a] + share * parameter[a + 1]),
                        (1 - share) * dense[a] + share * dense[a + 1],
                    )
                )
    samples.sort(key=lambda sample: sample[0])
    nearest = np.rint([s[0] for s in samples]).astype(int) % len(points_ras)
    return np.array([s[1] for s in samples]), nearest


def catmull_rom(points: np.ndarray, closed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Dense samples of the cardinal spline with tension 1/2 through (P, 3) points.

    Returns:
        Samples (M, 3) and their parameter (M,): i at control point i.
    """
    n = len(points)
    if closed and n > 2:
        extended = np.concatenate((points[-1:], points, points[:2]))
        segments = n
    else:
        extended = np.concatenate((2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]))
        segments = n - 1
    u = np.linspace(0, 1, SAMPLES_PER_SEGMENT, endpoint=False)[:, None]
    samples, parameters = [], []
    for i in range(segments):
        p0, p1, p2, p3 = extended[i : i + 4]
        samples.append(
            0.5 * (2 * p1 + (p2 - p0) * u + (2 * p0 - 5 * p1 + 4 * p2 - p3) * u**2 + (3 * p1 - p0 - 3 * p2 + p3) * u**3)
        )
        parameters.append(i + u[:, 0])
    samples.append(extended[segments + 1][None])
    parameters.append(np.array([float(segments)]))
    return np.concatenate(samples), np.concatenate(parameters)
