"""Clicks in patient space to clicks on slices (docs/method.md, section 6).

A point list is used as it is, each point on its nearest slice. A curve is sampled where Slicer shows it, so that every
slice that it crosses gets at least one point. A structure that runs in the slice plane puts many points on
one slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.markups import BEYOND_MM, KOCHANEK, LINEAR, LIST, POLYNOMIAL, SPLINE, Markup
from SPDSegmentLib.geometry.slices import SliceStack

VERTICES_PER_SEGMENT = 10
"""Of a curve between two control points; Slicer's ``vtkMRMLMarkupsCurveNode`` joins as many by straight lines."""
POLYNOMIAL_ORDER = 3


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
    """Points (N, 3) in patient millimeters on their nearest slices.

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
    within: np.ndarray = (np.abs(points_ras) <= BEYOND_MM).all(axis=1)
    return within


def clicks_from_markups(markups: Sequence[Markup], stack: SliceStack) -> Clicks:
    """Clicks of all nodes together; left out are boxes, planes, angles, and points that are unplaced or unselected.

    Curves are sampled as :func:`resolve_curve` does.

    Raises:
        BadInput: no point is left, or all lie outside the volume.
    """
    resolved = [resolve_curve(markup, stack) for markup in markups if not markup.is_shape]
    used = [point for markup in resolved for point in markup.points if point.placed and point.selected]
    names = ", ".join(markup.name for markup in markups)
    if not used:
        raise _no_point(markups, names or "the markups")
    positions = np.array([point.position_ras for point in used], dtype=float)
    clicks = clicks_from_points(positions, stack, [p.id for p in used], [p.insisted for p in used])
    if clicks.outside.all():
        raise BadInput(
            f"No click lies inside the volume: all {len(clicks)} of {names} are outside.",
            "Check that points and volume belong to one patient and one coordinate system.",
        )
    return clicks


def resolve_curve(markup: Markup, stack: SliceStack) -> Markup:
    """A curve as the list of the points at which it, as Slicer shows it, meets the slices; other markups as they are.

    Each sample has the id of the nearest control point, and is selected where that one is; the sample that stands for a
    control point is insisted on where that one is. A curve passes by those of its points that are beyond any volume;
    they stay as clicks of their own.
    """
    placed = [point for point in markup.points if point.placed] if markup.is_curve else []
    positions = np.array([point.position_ras for point in placed], dtype=float).reshape(-1, 3)
    reached = within_reach(positions)
    if reached.sum() < 2:
        return markup
    beyond = [replace(placed[n], insisted=False) for n in np.flatnonzero(~reached)]
    positions, placed = positions[reached], [placed[n] for n in np.flatnonzero(reached)]
    path = np.array(markup.path) if markup.path else None
    samples, nearest = sample_curve(positions, stack, markup.kind == "ClosedCurve", path, markup.curve_type)
    apart = np.linalg.norm(samples - positions[nearest], axis=1)
    order = np.lexsort((apart, nearest))
    own = np.zeros(len(samples), dtype=bool)
    own[order[np.unique(nearest[order], return_index=True)[1]]] = True
    points = [
        replace(placed[n], position_ras=(r, a, s), insisted=placed[n].insisted and is_own)
        for (r, a, s), n, is_own in zip(samples.tolist(), nearest.tolist(), own.tolist(), strict=True)
    ]
    return Markup(markup.name, LIST, (*beyond, *points))


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
    points_ras: np.ndarray,
    stack: SliceStack,
    closed: bool = False,
    path_ras: np.ndarray | None = None,
    curve_type: str = SPLINE,
) -> tuple[np.ndarray, np.ndarray]:
    """Control points and one point for each slice of the volume whose plane the curve through them crosses.

    Args:
        points_ras: (P, 3), P > 1.
        path_ras: (M, 3) vertices of the curve where they are known; without them those of :func:`curve_vertices`. Where
            the curve only passes by control points, as a polynomial does, samples on it stand for them.

    Returns:
        Points (N, 3) in the order of the curve and for each the index of the nearest control point (N,).
    """
    if path_ras is None or len(path_ras) < 2:
        dense, parameter = curve_vertices(points_ras, curve_type, closed)
        points_ras = dense[::VERTICES_PER_SEGMENT][: len(points_ras)]
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


def arc_length(path: np.ndarray) -> np.ndarray:
    """Way (N,) along a path (N, D) from its first point to each, in its units."""
    return np.concatenate(([0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))))


def _along_path(path: np.ndarray, points: np.ndarray, closed: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices of a path with their parameter, as :func:`curve_vertices`, and the vertices that stand for its points.

    What lies before the first and after the last point of an open path, as while another one is placed, is left out.
    """
    at = np.array([int(np.argmin(((path - point) ** 2).sum(axis=1))) for point in points])
    at = np.maximum.accumulate(at)
    vertices = np.arange(len(path)) if closed else np.arange(at[0], max(at[-1], at[0] + 1) + 1).clip(0, len(path) - 1)
    length = arc_length(path)
    return path[vertices], np.interp(length[vertices], length[at], np.arange(len(points), dtype=float)), path[at]


def curve_vertices(points: np.ndarray, curve_type: str = SPLINE, closed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The vertices that Slicer joins by straight lines to show a curve through points (P, 3), P > 1.

    As Slicer's ``vtkCurveGenerator`` makes them for a curve node: a cubic spline that starts and ends without speed, a
    Kochanek spline without tension, bias and continuity, a cubic polynomial of least squares, or straight lines.

    Returns:
        Vertices (M, 3) and their parameter (M,): i at control point i.
    """
    from scipy.interpolate import CubicHermiteSpline, CubicSpline

    closed = closed and curve_type != POLYNOMIAL
    points = np.concatenate((points, points[:1])) if closed else points
    knots = np.arange(len(points), dtype=float)
    parameter = np.arange((len(points) - 1) * VERTICES_PER_SEGMENT + 1) / VERTICES_PER_SEGMENT
    if curve_type == LINEAR:
        vertices = np.stack([np.interp(parameter, knots, values) for values in points.T], axis=1)
    elif curve_type == KOCHANEK:
        around = (
            np.concatenate((points[-2:-1], points, points[1:2])) if closed else points[[0, *range(len(points)), -1]]
        )
        speed = (around[2:] - around[:-2]) / 2
        if not closed:
            speed[[0, -1]] = 0
        vertices = CubicHermiteSpline(knots, points, speed)(parameter)
    elif curve_type == POLYNOMIAL:
        powers = np.arange(min(POLYNOMIAL_ORDER, len(points) - 1) + 1)
        share = (knots / knots[-1])[:, None] ** powers
        vertices = (parameter / knots[-1])[:, None] ** powers @ np.linalg.lstsq(share, points, rcond=None)[0]
    else:
        vertices = CubicSpline(knots, points, bc_type="periodic" if closed else "clamped")(parameter)
    if curve_type != POLYNOMIAL:
        vertices[::VERTICES_PER_SEGMENT] = points
    return vertices, parameter
