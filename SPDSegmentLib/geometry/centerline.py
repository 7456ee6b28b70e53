"""Centerlines: clicks in patient space to clicks on slices (docs/method.md, section 6), and paths through a mask.

A point list is used as it is, each point on its nearest slice. A curve is sampled where Slicer shows it, so that every
slice that it crosses gets at least one point. A structure that runs in the slice plane puts many points on
one slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.geometry.markups import BEYOND_MM, KOCHANEK, LINEAR, LIST, POLYNOMIAL, SPLINE, Markup, named_apart
from SPDSegmentLib.geometry.slices import SliceStack

VERTICES_PER_SEGMENT = 10
"""Of a curve between two control points; Slicer's ``vtkMRMLMarkupsCurveNode`` joins as many by straight lines."""
POLYNOMIAL_ORDER = 3
SMOOTHING_SHARE = 0.5
"""Of a structure's mean radius: the width of the Gaussian by which its centerline is smoothed."""
SMALL_PART = 0.05
"""A part of a mask with less than this share of it is none that the centerline must reach."""
BRIDGE = 5.0
"""How much longer than it is a way through a gap between two parts counts."""
SAME_PATIENT = "Check that points and volume belong to one patient and one coordinate system."
"""What to do where clicks lie outside the volume."""


@dataclass(frozen=True, eq=False)
class Clicks:
    """Clicks on slices; arrays of one length N.

    Attributes:
        slice_index: (N,) int, nearest slice; may lie outside [0, T) where ``outside`` is set.
        xy: (N, 2) float, (column, row) in slice pixels.
        outside: (N,) bool, more than half a voxel outside the volume.
        ids: control point ids; samples of a curve carry that of the nearest control point.
        insisted: (N,) bool, prompts whatever the model believes; of a curve only control points themselves.
        lists: names of the lists that they come from, or empty.
        ends: (N,) bool, the structure ends at this slice; of a curve only control points themselves.
    """

    slice_index: np.ndarray
    xy: np.ndarray
    outside: np.ndarray
    ids: tuple[str, ...]
    insisted: np.ndarray = field(default_factory=lambda: np.zeros((), dtype=bool))
    lists: tuple[str, ...] = ()
    ends: np.ndarray = field(default_factory=lambda: np.zeros((), dtype=bool))

    def __post_init__(self) -> None:
        for name in ("insisted", "ends"):
            object.__setattr__(self, name, np.broadcast_to(getattr(self, name), np.shape(self.slice_index)))

    def __len__(self) -> int:
        return len(self.slice_index)

    def inside(self) -> Clicks:
        """Those that lie in the volume."""
        return self.only(np.flatnonzero(~self.outside))

    def only(self, kept: np.ndarray) -> Clicks:
        """Those with the indexes ``kept``, (M,) int."""
        ids, lists = (tuple(names[int(i)] for i in kept) if names else () for names in (self.ids, self.lists))
        places = self.slice_index[kept], self.xy[kept], self.outside[kept]
        return Clicks(*places, ids, self.insisted[kept], lists, self.ends[kept])

    def extent(self, n_slices: int) -> range:
        """The slices that the structure may fill: those between its two marked ends, or all where none is marked.

        One end bounds the side on which fewer of the other clicks lie; as many on either side, and it bounds neither.
        Of more than two (of branches) so does the outermost on each side.
        """
        within = self.slice_index[~self.outside]
        marked = np.unique(self.slice_index[self.ends & ~self.outside])
        if len(marked) == 2:
            return range(int(marked[0]), int(marked[1]) + 1)
        before, after = ((side(within, marked[:, None])).sum(axis=1) for side in (np.less, np.greater))
        first = min(marked[before < after].tolist(), default=0)
        last = max(marked[before > after].tolist(), default=n_slices - 1)
        return range(first, last + 1)

    def past(self, extent: range) -> np.ndarray:
        """Which of them lie in the volume and past the ends that :meth:`extent` goes by, (N,) bool."""
        within = (self.slice_index >= extent.start) & (self.slice_index < extent.stop)
        past: np.ndarray = ~within & ~self.outside
        return past

    def within(self, extent: range) -> np.ndarray:
        """Indexes, (M,) int, of those that lie in the volume and on a slice of ``extent``."""
        return np.flatnonzero(~(self.outside | self.past(extent)))

    def up_to_ends(self, n_slices: int) -> Clicks:
        """Those that no marked end leaves out."""
        return self.only(np.flatnonzero(~self.past(self.extent(n_slices)))) if self.ends.any() else self


def clicks_from_points(
    points_ras: np.ndarray, stack: SliceStack, ids: Sequence[str] | None = None, insisted: Sequence[bool] | None = None
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

    Curves are sampled as :func:`resolve_curve` does; ids are those of :func:`named_apart`.

    Raises:
        BadInput: no point is left, or all lie outside the volume.
    """
    resolved = [resolve_curve(markup, stack) for markup in named_apart(markups) if not markup.is_shape]
    used = [(markup.name, point) for markup in resolved for point in markup.points if point.is_used]
    names = ", ".join(markup.name for markup in markups)
    if not used:
        raise _no_point(markups, names or "the markups")
    lists, points = zip(*used, strict=True)
    positions = np.array([point.position_ras for point in points], dtype=float)
    clicks = clicks_from_points(positions, stack, [p.id for p in points], [p.insisted for p in points])
    if clicks.outside.all():
        raise BadInput(
            f"No click lies inside the volume: all {len(clicks)} of {names} are outside.",
            SAME_PATIENT,
        )
    return replace(clicks, lists=lists, ends=np.array([point.ends for point in points], dtype=bool))


def resolve_curve(markup: Markup, stack: SliceStack) -> Markup:
    """A curve as the list of the points at which it, as Slicer shows it, meets the slices; other markups as they are.

    Each sample has the id of the nearest control point, and is selected where that one is; the sample that stands for a
    control point is insisted on, or an end, where that one is. A curve passes by those of its points that are beyond
    any volume; they stay as clicks of their own.
    """
    placed = [point for point in markup.points if point.placed] if markup.is_curve else []
    positions = np.array([point.position_ras for point in placed], dtype=float).reshape(-1, 3)
    reached = within_reach(positions)
    if reached.sum() < 2:
        return markup
    beyond = [replace(placed[n], insisted=False, ends=False) for n in np.flatnonzero(~reached)]
    positions, placed = positions[reached], [placed[n] for n in np.flatnonzero(reached)]
    path = np.array(markup.path) if markup.path else None
    samples, nearest = sample_curve(positions, stack, markup.kind == "ClosedCurve", path, markup.curve_type)
    apart = np.linalg.norm(samples - positions[nearest], axis=1)
    order = np.lexsort((apart, nearest))
    own = np.zeros(len(samples), dtype=bool)
    own[order[np.unique(nearest[order], return_index=True)[1]]] = True
    points = [
        replace(
            placed[n], position_ras=(r, a, s), insisted=placed[n].insisted and is_own, ends=placed[n].ends and is_own
        )
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


def way_through(nodes: np.ndarray, pitch: float, depth: np.ndarray) -> np.ndarray:
    """(M, 3) from one end of the points (N, 3) to the other, as deep as it can be."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import dijkstra
    from scipy.spatial import KDTree

    if len(nodes) < 2:
        return nodes
    pairs = KDTree(nodes).query_pairs(1.8 * pitch, output_type="ndarray")
    apart = np.linalg.norm(nodes[pairs[:, 0]] - nodes[pairs[:, 1]], axis=1)
    pairs, apart = _bridged(nodes, depth, pairs, apart)
    n = len(nodes)

    def graph(weights: np.ndarray) -> coo_matrix:
        return coo_matrix((weights, (pairs[:, 0], pairs[:, 1])), shape=(n, n)).tocsr()

    plain = graph(apart)
    start = int(np.argmax(depth))
    for _ in range(2):
        far = dijkstra(plain, directed=False, indices=start)
        start, before = int(np.argmax(np.where(np.isfinite(far), far, -1))), start
    shallow = (2 * depth.max() / (depth[pairs[:, 0]] + depth[pairs[:, 1]])) ** 2
    _, came_from = dijkstra(graph(apart * shallow), directed=False, indices=before, return_predecessors=True)
    way = [start]
    while way[-1] != before and came_from[way[-1]] >= 0:
        way.append(int(came_from[way[-1]]))
    return nodes[way]


def _bridged(
    nodes: np.ndarray, depth: np.ndarray, pairs: np.ndarray, apart: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (E, 2) and their distances (E,), with the shortest ways between parts that are not connected."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    n = len(nodes)
    _, label = connected_components(coo_matrix((apart, (pairs[:, 0], pairs[:, 1])), shape=(n, n)), directed=False)
    sizes = np.bincount(label)
    joined, left = label == int(np.argmax(sizes)), set(np.flatnonzero(sizes >= SMALL_PART * n).tolist())
    left.discard(int(np.argmax(sizes)))
    while left:
        tree, ways = KDTree(nodes[joined]), []
        for part in left:
            own = np.flatnonzero(label == part)
            distance, nearest = tree.query(nodes[own])
            k = int(np.argmin(distance - depth[own]))
            ways.append((float(distance[k]), int(own[k]), int(np.flatnonzero(joined)[nearest[k]]), part))
        distance_mm, here, there, part = min(ways)
        pairs, apart = np.concatenate((pairs, [[here, there]])), np.append(apart, BRIDGE * distance_mm)
        joined |= label == part
        left.discard(part)
    return pairs, apart


def smooth_path(path: np.ndarray, radius: float, pitch: float) -> np.ndarray:
    """A path (M, 3) smoothed, without what bends to the rim at its ends, and prolonged straight beyond them.

    Points are at equal distances; the ends are prolonged by three radii and two voxels.
    """
    from scipy.ndimage import gaussian_filter1d

    arc = arc_length(path)
    if arc[-1] <= 0:
        along = np.array([0.0, 0.0, 1.0])
        return path[:1] + along * np.linspace(-3 * radius - 2 * pitch, 3 * radius + 2 * pitch, 33)[:, None]
    cut = min(radius, 0.3 * arc[-1])
    step = max(min(radius / 4, (arc[-1] - 2 * cut) / 8), 1e-6)
    at = np.linspace(cut, arc[-1] - cut, max(9, round((arc[-1] - 2 * cut) / step) + 1))
    points = np.stack([np.interp(at, arc, values) for values in path.T], axis=1)
    step = float(at[1] - at[0])
    sigma = max(SMOOTHING_SHARE * radius, pitch) / step
    reach = min(int(np.ceil(3 * sigma)), len(points) - 1)
    ends = (2 * points[0] - points[reach:0:-1], 2 * points[-1] - points[-2 : -reach - 2 : -1])
    points = gaussian_filter1d(np.concatenate((ends[0], points, ends[1])), sigma, axis=0, mode="nearest")
    points = points[reach : len(points) - reach]
    back = min(len(points) - 1, max(1, round(radius / step)))
    more = np.arange(1, int(np.ceil((3 * radius + 2 * pitch + cut) / step)) + 1)[:, None] * step
    first, last = points[0] - points[back], points[-1] - points[-1 - back]
    before = points[0] + more[::-1] * first / max(float(np.linalg.norm(first)), 1e-9)
    after = points[-1] + more * last / max(float(np.linalg.norm(last)), 1e-9)
    return np.concatenate((before, points, after))


def tangents(points: np.ndarray) -> np.ndarray:
    """Unit vectors (N, 3) along a path (N, 3)."""
    tangent = np.gradient(points, axis=0) if len(points) > 1 else np.array([[0.0, 0.0, 1.0]])
    unit: np.ndarray = tangent / np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-12)
    return unit


def frames(points: np.ndarray, tangent: np.ndarray) -> np.ndarray:
    """(S, 2, 3) directions across a path (S, 3) that turn round it as little as they can."""
    first = np.eye(3)[int(np.argmin(np.abs(tangent[0])))]
    first = first - (first @ tangent[0]) * tangent[0]
    normal = [first / np.linalg.norm(first)]
    for s in range(len(points) - 1):
        r, t = normal[-1], tangent[s]
        v = points[s + 1] - points[s]
        r, t = r - 2 * (v @ r) / (v @ v) * v, t - 2 * (v @ t) / (v @ v) * v
        v = tangent[s + 1] - t
        length = float(v @ v)
        normal.append(r - 2 * (v @ r) / length * v if length > 1e-20 else r)
    rows = np.array(normal)
    return np.stack((rows, np.cross(tangent, rows)), axis=1)
