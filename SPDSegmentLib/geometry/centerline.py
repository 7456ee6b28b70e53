"""Clicks in patient space to clicks on slices (method section 6).

A point list is used as it is, each point on its nearest slice. A curve is sampled along a spline through its points, so
that every slice that it crosses gets at least one point. A structure that runs in the slice plane puts many points on
one slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.markups import BEYOND_MM, Markup
from SPDSegmentLib.geometry.slices import SliceStack

SAMPLES_PER_SEGMENT = 64
MAX_SAMPLES = 400_000
"""A curve of very many points is sampled more coarsely between them."""


@dataclass(frozen=True, eq=False)
class Clicks:
    """Clicks on slices; arrays of one length N.

    Attributes:
        slice_index: (N,) int, nearest slice; may lie outside [0, T) where ``outside`` is set.
        xy: (N, 2) float, (column, row) in slice pixels.
        outside: (N,) bool, more than half a voxel outside the volume.
        ids: control point ids; samples of a curve carry that of the nearest control point.
        insisted: (N,) bool, prompts whatever the model believes; of a curve only control points themselves.
    """

    slice_index: np.ndarray
    xy: np.ndarray
    outside: np.ndarray
    ids: tuple[str, ...]
    insisted: np.ndarray = field(default_factory=lambda: np.zeros((), dtype=bool))

    def __post_init__(self) -> None:
        object.__setattr__(self, "insisted", np.broadcast_to(self.insisted, np.shape(self.slice_index)))

    def __len__(self) -> int:
        return len(self.slice_index)

    def inside(self) -> Clicks:
        """Those that lie in the volume."""
        kept = np.flatnonzero(~self.outside)
        ids = tuple(self.ids[int(i)] for i in kept)
        return Clicks(self.slice_index[kept], self.xy[kept], self.outside[kept], ids, self.insisted[kept])


def clicks_from_points(
    points_ras: np.ndarray,
    stack: SliceStack,
    ids: Sequence[str] | None = None,
    insisted: Sequence[bool] | None = None,
) -> Clicks:
    """Points (N, 3) in patient millimetres on their nearest slices.

    Points beyond any volume (:func:`within_reach`) are outside, at a finite place.
    """
    points_ras = np.asarray(points_ras, dtype=float).reshape(-1, 3)
    reached = within_reach(points_ras)
    position, xy = stack.to_slices(np.nan_to_num(points_ras, nan=BEYOND_MM).clip(-BEYOND_MM, BEYOND_MM))
    n_slices, height, width = stack.shape
    inside = reached & (position >= -0.5) & (position < n_slices - 0.5)
    inside &= ((xy >= -0.5) & (xy < np.array([width, height]) - 0.5)).all(axis=1)
    index = np.floor(position + 0.5).astype(int)
    names = tuple(str(i + 1) for i in range(len(index))) if ids is None else tuple(ids)
    word = np.zeros(len(index), dtype=bool) if insisted is None else np.array(insisted, dtype=bool)
    return Clicks(index, xy, ~inside, names, word)


def within_reach(points_ras: np.ndarray) -> np.ndarray:
    """(N,) bool: which of the points (N, 3) could lie in any volume; NaN and infinity cannot."""
    return (np.abs(points_ras) <= BEYOND_MM).all(axis=1)


def clicks_from_markups(markups: Sequence[Markup], stack: SliceStack) -> Clicks:
    """Clicks of all nodes together; left out are boxes, planes, angles, and points that are unplaced or unselected.

    A curve passes by those of its points that are beyond any volume; they stay as clicks of their own, outside.

    Raises:
        BadInput: no point is left, or all lie outside the volume.
    """
    parts: list[tuple[np.ndarray, list[str], list[bool]]] = []
    for markup in markups:
        if markup.is_shape:
            continue
        used = [p for p in markup.points if p.placed and p.selected]
        positions = np.array([p.position_ras for p in used], dtype=float).reshape(-1, 3)
        ids, insisted = [p.id for p in used], [p.insisted for p in used]
        if markup.is_curve:
            reached = np.flatnonzero(within_reach(positions))
            beyond = np.setdiff1d(np.arange(len(used)), reached)
            parts.append((positions[beyond], [ids[i] for i in beyond], [False] * len(beyond)))
            positions, ids, insisted = positions[reached], [ids[i] for i in reached], [insisted[i] for i in reached]
        if markup.is_curve and len(positions) > 1:
            placed = positions
            positions, nearest = sample_curve(placed, stack, closed=markup.kind == "ClosedCurve")
            own = (positions == placed[nearest]).all(axis=1)
            ids, insisted = [ids[i] for i in nearest], (np.array(insisted)[nearest] & own).tolist()
        parts.append((positions, ids, insisted))
    points = np.concatenate([positions for positions, _, _ in parts]) if parts else np.empty((0, 3))
    names = ", ".join(markup.name for markup in markups)
    if len(points) == 0:
        raise _no_point(markups, names or "the markups")
    names_of_points = [i for _, ids, _ in parts for i in ids]
    clicks = clicks_from_points(points, stack, names_of_points, [w for _, _, words in parts for w in words])
    if clicks.outside.all():
        raise BadInput(
            f"No click lies inside the volume: all {len(clicks)} of {names} are outside.",
            "Check that points and volume belong to one patient and one coordinate system.",
        )
    return clicks


def _no_point(markups: Sequence[Markup], names: str) -> BadInput:
    """Why there is no click in ``markups``, and the way out."""
    lists = [markup for markup in markups if not markup.is_shape]
    if markups and not lists:
        kinds = ", ".join(sorted({markup.kind for markup in markups}))
        return BadInput(f"There are no clicks in {names}, only {kinds}.", "Save a point list or a curve from Slicer.")
    deselected = sum(point.placed for markup in lists for point in markup.points)
    if deselected:
        return BadInput(
            f"No placed point in {names} is selected: {deselected} deselected, 0 selected.",
            "Select those that count in the Markups module of Slicer and save them again.",
        )
    return BadInput(f"No placed point in {names}.", "Place points along the structure.")


def sample_curve(
    points_ras: np.ndarray, stack: SliceStack, closed: bool = False, path_ras: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Control points and one point for each slice of the volume whose plane the spline through them crosses.

    Args:
        points_ras: (P, 3), P > 1.
        path_ras: (M, 3) vertices of the curve where they are known; then all samples lie on it, also those for control
            points by which the curve only passes.

    Returns:
        Points (N, 3) in the order of the curve and for each the index of the nearest control point (N,).
    """
    if path_ras is None or len(path_ras) < 2:
        dense, parameter = catmull_rom(points_ras, closed)
    else:
        dense, parameter, points_ras = _along_path(path_ras, points_ras, closed)
    position, _ = stack.to_slices(dense)
    low, high = np.minimum(position[:-1], position[1:]), np.maximum(position[:-1], position[1:])
    first = np.ceil(low).clip(0, stack.n_slices).astype(int)
    crossed = (np.floor(high).clip(-1, stack.n_slices - 1).astype(int) - first + 1).clip(0) * (high > low)
    a = np.repeat(np.arange(len(crossed)), crossed)
    t = np.arange(len(a)) - np.repeat(np.cumsum(crossed) - crossed, crossed) + first[a]
    met_again = (t == position[a + 1]) & (a < len(crossed) - 1)
    taken = ~met_again & ~np.isin(t, clicks_from_points(points_ras, stack).slice_index)
    a, t = a[taken], t[taken]
    share = ((t - position[a]) / (position[a + 1] - position[a]))[:, None]
    between = (1 - share[:, 0]) * parameter[a] + share[:, 0] * parameter[a + 1]
    where = np.concatenate((np.arange(len(points_ras), dtype=float), between))
    samples = np.concatenate((points_ras, (1 - share) * dense[a] + share * dense[a + 1]))
    order = np.argsort(where, kind="stable")
    return samples[order], np.rint(where[order]).astype(int) % len(points_ras)


def _along_path(path: np.ndarray, points: np.ndarray, closed: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices of a path with their parameter, as :func:`catmull_rom`, and the vertices that stand for its points.

    What lies before the first and after the last point of an open path, as while another one is placed, is left out.
    """
    at = np.array([int(np.argmin(((path - point) ** 2).sum(axis=1))) for point in points])
    at = np.maximum.accumulate(at)
    vertices = np.arange(len(path)) if closed else np.arange(at[0], max(at[-1], at[0] + 1) + 1).clip(0, len(path) - 1)
    length = np.concatenate(([0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))))
    return path[vertices], np.interp(length[vertices], length[at], np.arange(len(points), dtype=float)), path[at]


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
    u = np.linspace(0, 1, max(2, min(SAMPLES_PER_SEGMENT, MAX_SAMPLES // segments)), endpoint=False)[:, None]
    i = np.arange(segments)[:, None]
    p0, p1, p2, p3 = (extended[i + k] for k in range(4))
    samples = 0.5 * (
        2 * p1 + (p2 - p0) * u + (2 * p0 - 5 * p1 + 4 * p2 - p3) * u**2 + (3 * p1 - p0 - 3 * p2 + p3) * u**3
    )
    return (
        np.concatenate((samples.reshape(-1, 3), extended[segments + 1][None])),
        np.append((i + u[:, 0]).ravel(), float(segments)),
    )
