"""The path that a person would click along: centers of a structure's cross-sections, or its 3-D skeleton."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from SPDSegmentLib.errors import BadInput, missing_package
from SPDSegmentLib.geometry.centerline import arc_length

MIN_STEP_MM = 5.0
END_DIRECTION_MM = 15.0  # length of path that gives the direction at an end
SPECK_SHARE = 0.1  # a component smaller than this share of its slice's largest does not count as a second one
SPECK_PIXELS = 3
MAX_ELONGATION = 2.0  # radius at most this many inscribed radii, so that a tube within the slice keeps its own
MAX_SIDE = 160  # voxels of the grid on which the skeleton is computed
SMOOTHING = 5  # points of the running mean over a branch
SPUR_RADII = 1.5  # an end branch shorter than this many inscribed radii of its junction is none

Neighbors = dict[int, set[int]]  # node of the skeleton -> linked nodes


@dataclass(frozen=True, eq=False)
class ClickPath:
    """Points on a structure, in order along its branches, and the ends where the path may run on.

    Attributes:
        slice_index: (N,) int; xy: (N, 2) float, (column, row) in slice pixels; every point is inside the target.
        radius_mm: (N,) equivalent radius of the cross-section.
        end_mm: (E, 3) ends as (slice, row, column) in mm; end_direction: (E, 3) unit vectors pointing away.
        end_first_mm: (E,) distance of the first point past the end; end_radius_mm: (E,).
        step_mm: distance of points; pixel_mm: (2,) row and column spacing; slice_mm: distance of slices.
    """

    slice_index: np.ndarray
    xy: np.ndarray
    radius_mm: np.ndarray
    end_mm: np.ndarray
    end_direction: np.ndarray
    end_first_mm: np.ndarray
    end_radius_mm: np.ndarray
    step_mm: float
    pixel_mm: np.ndarray
    slice_mm: float


@dataclass(frozen=True, eq=False)
class Branch:
    """A polyline (M, 3) as (slice, row, column) in mm, and which of its two ends are free (no junction)."""

    points_mm: np.ndarray
    start_free: bool = True
    stop_free: bool = True


@dataclass(frozen=True, eq=False)
class _CrossSections:
    """Components of all slices, C in total.

    Attributes:
        labels: (T, H, W) int, 0 or 1 + the component's row below.
        slice_index: (C,); center: (C, 2) (row, column) inside the component; radius_mm: (C,); pixels: (C,) area.
    """

    labels: np.ndarray
    slice_index: np.ndarray
    center: np.ndarray
    radius_mm: np.ndarray
    pixels: np.ndarray


def nearest_pixel(positions: np.ndarray) -> np.ndarray:
    """The pixel or slice, int, that each position lies in; on the border of two it is the higher one."""
    return np.floor(positions + 0.5).astype(np.intp)


def click_path(mask_thw: np.ndarray, pixel_mm: tuple[float, float], slice_mm: float) -> ClickPath:
    """Path along a structure, with a point every 5 mm or every slice, whichever is larger.

    Args:
        mask_thw: (T, H, W) bool.
        pixel_mm: (row, column) spacing; slice_mm: distance of slices.

    Raises:
        BadInput: empty mask or not three-dimensional.
    """
    mask = np.asarray(mask_thw, dtype=bool)
    if mask.ndim != 3 or not mask.any():
        raise BadInput("The reference mask holds no target to click on.", "Choose a label value that occurs in it.")
    spacing = np.array([slice_mm, *pixel_mm], dtype=float)
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    corner = np.array([s.start for s in box])
    mask = np.pad(mask[box], 1)
    origin = (corner - 1) * spacing

    sections = _cross_sections(mask, spacing)
    branches = skeleton_branches(mask, spacing) if _several_per_slice(sections) else []
    if not branches:
        branches = [Branch(_main_centers(part) * spacing) for part in _parts(mask, sections, spacing)]

    step = max(MIN_STEP_MM, slice_mm)
    index, yx, radius = _points_inside(branches, sections, spacing, step)
    ends = [end for branch in branches for end in _free_ends(branch, slice_mm)]
    end_mm = np.array([end for end, _ in ends]).reshape(-1, 3)
    directions = np.array([direction for _, direction in ends]).reshape(-1, 3)
    first = [max(step, _way_out(mask, spacing, e, d)) for e, d in ends]
    nearest = [int(np.argmin(np.linalg.norm(np.column_stack([index, yx]) * spacing - e, axis=1))) for e in end_mm]
    return ClickPath(
        slice_index=index + corner[0] - 1,
        xy=(yx + corner[1:] - 1)[:, ::-1].copy(),
        radius_mm=radius,
        end_mm=end_mm + origin,
        end_direction=directions,
        end_first_mm=np.array(first, dtype=float),
        end_radius_mm=radius[np.array(nearest, dtype=np.intp)],
        step_mm=float(step),
        pixel_mm=spacing[1:],
        slice_mm=float(slice_mm),
    )


def _cross_sections(mask: np.ndarray, spacing: np.ndarray) -> _CrossSections:
    structure = np.zeros((3, 3, 3), dtype=bool)
    structure[1] = True
    labels, count = ndimage.label(mask, structure)
    ids = np.arange(1, count + 1)
    pixels = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    centers = np.array(ndimage.center_of_mass(mask, labels, ids)).reshape(-1, 3)
    depth = np.zeros(mask.shape)
    for t in np.flatnonzero(mask.any(axis=(1, 2))):
        depth[t] = ndimage.distance_transform_edt(mask[t], sampling=spacing[1:])
    deepest = np.array(ndimage.maximum_position(depth, labels, ids)).reshape(-1, 3)
    slices = deepest[:, 0].astype(np.intp)
    pixel = nearest_pixel(centers[:, 1:])
    strays = labels[slices, pixel[:, 0], pixel[:, 1]] != ids
    centers[strays] = deepest[strays]
    radius = np.sqrt(pixels * spacing[1] * spacing[2] / np.pi)
    inscribed = depth[slices, deepest[:, 1].astype(np.intp), deepest[:, 2].astype(np.intp)]
    return _CrossSections(labels, slices, centers[:, 1:], np.minimum(radius, MAX_ELONGATION * inscribed), pixels)


def _several_per_slice(sections: _CrossSections) -> bool:
    largest = np.zeros(len(sections.labels))
    np.maximum.at(largest, sections.slice_index, sections.pixels)
    counted = (sections.pixels >= SPECK_SHARE * largest[sections.slice_index]) & (sections.pixels >= SPECK_PIXELS)
    return bool(np.bincount(sections.slice_index[counted], minlength=1).max() > 1)


def _parts(mask: np.ndarray, sections: _CrossSections, spacing: np.ndarray) -> list[_CrossSections]:
    """Cross-sections of each part that touches no other; of the whole where no slice holds several."""
    if not _several_per_slice(sections):
        return [sections]
    labels, count = ndimage.label(mask, np.ones((3, 3, 3), dtype=bool))
    return [_cross_sections(labels == part, spacing) for part in range(1, count + 1)]


def _main_centers(sections: _CrossSections) -> np.ndarray:
    """(M, 3) center of the largest component of each slice, in voxels."""
    order = np.lexsort((-sections.pixels, sections.slice_index))
    _, first = np.unique(sections.slice_index[order], return_index=True)
    main = order[first]
    return np.column_stack([sections.slice_index[main], sections.center[main]])


def _resample(points: np.ndarray, step: float) -> np.ndarray:
    """Points at equal distances of about ``step`` from end to end; the middle of a polyline shorter than half of it."""
    arc = arc_length(points)
    pieces = int(arc[-1] / step + 0.5)
    at = np.linspace(0, arc[-1], pieces + 1) if pieces else arc[-1:] / 2
    return np.column_stack([np.interp(at, arc, points[:, d]) for d in range(3)])


def _points_inside(
    branches: list[Branch], sections: _CrossSections, spacing: np.ndarray, step: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slices (N,), pixels (N, 2) and radii (N,); a point outside the target moves to the nearest section's center."""
    points = np.concatenate([_resample(branch.points_mm, step) for branch in branches]) / spacing
    index = nearest_pixel(points[:, 0])
    yx = points[:, 1:].copy()
    pixel = nearest_pixel(yx)
    component = sections.labels[index, pixel[:, 0], pixel[:, 1]] - 1
    section_mm = np.column_stack([sections.slice_index, sections.center]) * spacing
    for i in np.flatnonzero(component < 0):
        component[i] = np.argmin(np.linalg.norm(section_mm - points[i] * spacing, axis=1))
        index[i], yx[i] = sections.slice_index[component[i]], sections.center[component[i]]
    _, first = np.unique(np.column_stack([index, yx]).round(6), axis=0, return_index=True)
    unique = np.sort(first)
    return index[unique], yx[unique], sections.radius_mm[component[unique]]


def _free_ends(branch: Branch, slice_mm: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Position and outward direction of each free end; a single point has one end up and one down the slices."""
    points = branch.points_mm
    if len(points) == 1:
        up = np.array([1.0, 0.0, 0.0])
        return [(points[0], -up), (points[0], up)]
    span = max(END_DIRECTION_MM, 2 * slice_mm)
    ends = []
    for free, line in ((branch.start_free, points), (branch.stop_free, points[::-1])):
        if free:
            inner = line[min(int(np.searchsorted(arc_length(line), span)), len(line) - 1)]
            away = line[0] - inner
            ends.append((line[0], away / max(float(np.linalg.norm(away)), 1e-9)))
    return ends


def _way_out(mask: np.ndarray, spacing: np.ndarray, start: np.ndarray, direction: np.ndarray) -> float:
    """Distance in mm along a ray after which it stays outside the target (0 when it starts outside for good)."""
    pitch = 0.5 * float(spacing.min())
    along = np.arange(0.0, float(np.linalg.norm(spacing * mask.shape)), pitch)
    voxel = nearest_pixel((start + direction * along[:, None]) / spacing)
    within = np.all((voxel >= 0) & (voxel < mask.shape), axis=1)
    hit = np.zeros(len(along), dtype=bool)
    hit[within] = mask[tuple(voxel[within].T)]
    return float(along[np.flatnonzero(hit)[-1]] + pitch) if hit.any() else 0.0


def skeleton_branches(mask: np.ndarray, spacing: np.ndarray) -> list[Branch]:
    """Branches of the skeleton in depth-first order; loops are cut open, short side branches left out.

    There are none where thinning leaves nothing, as it does of a few voxels in an even number.

    Args:
        mask: (T, H, W) bool, with an empty margin of one voxel; spacing: (3,) mm.

    Raises:
        DependencyMissing: scikit-image is not installed.
    """
    try:
        from skimage.morphology import skeletonize
    except ImportError as error:
        raise missing_package("skimage", f"clicks on a branching structure are simulated with it; {error}") from error
    cube, pitch = _isotropic(mask, spacing)
    voxels = np.argwhere(skeletonize(cube))
    if not len(voxels):
        return []
    depth = ndimage.distance_transform_edt(cube) * pitch
    points, radius = voxels * pitch, depth[tuple(voxels.T)]
    neighbors = _tree(voxels)
    _prune(neighbors, points, radius)
    return [_branch(line, neighbors, points) for line in _lines(neighbors)]


def _isotropic(mask: np.ndarray, spacing: np.ndarray) -> tuple[np.ndarray, float]:
    """Mask on cubic voxels, interpolated by shape (signed in-plane distance), and their side in mm.

    The first voxel keeps its center, so a position in mm is the voxel index times the side.
    """
    extent = spacing * mask.shape
    pitch = max(float(spacing.min()), float(extent.max()) / MAX_SIDE)
    signed = np.full(mask.shape, -float(np.hypot(extent[1], extent[2])))
    for t in np.flatnonzero(mask.any(axis=(1, 2))):
        inside = ndimage.distance_transform_edt(mask[t], sampling=spacing[1:])
        signed[t] = inside - ndimage.distance_transform_edt(~mask[t], sampling=spacing[1:])
    signed[~mask.any(axis=(1, 2))] = -float(spacing[1:].max())
    axes = [np.arange(int((n - 1) * s / pitch) + 1) * pitch / s for n, s in zip(mask.shape, spacing, strict=True)]
    grid = np.meshgrid(*axes, indexing="ij")
    return ndimage.map_coordinates(signed, grid, order=1, mode="nearest") > 0, pitch


def _tree(voxels: np.ndarray) -> Neighbors:
    """Neighbors of each voxel in the minimum spanning forest of the 26-neighborhood."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import minimum_spanning_tree

    index = np.full(voxels.max(axis=0) + 2, -1)
    index[tuple(voxels.T)] = np.arange(len(voxels))
    rows, columns, weights = [], [], []
    for offset in np.argwhere(np.ones((3, 3, 3))) - 1:
        if tuple(offset) <= (0, 0, 0):
            continue
        other = index[tuple((voxels + offset).T)]
        linked = np.flatnonzero(other >= 0)
        rows.append(linked)
        columns.append(other[linked])
        weights.append(np.full(len(linked), float(np.linalg.norm(offset))))
    edges = (np.concatenate(rows), np.concatenate(columns))
    n = len(voxels)
    tree = minimum_spanning_tree(coo_matrix((np.concatenate(weights), edges), shape=(n, n)).tocsr()).tocoo()
    neighbors: Neighbors = {node: set() for node in range(n)}
    for a, b in zip(tree.row.tolist(), tree.col.tolist(), strict=True):
        neighbors[a].add(b)
        neighbors[b].add(a)
    return neighbors


def _walk(neighbors: Neighbors, start: int, following: int) -> list[int]:
    """Nodes from ``start`` by way of ``following`` to the next end or junction."""
    line = [start, following]
    while len(neighbors[line[-1]]) == 2:
        line.append(next(n for n in neighbors[line[-1]] if n != line[-2]))
    return line


def _prune(neighbors: Neighbors, points: np.ndarray, radius: np.ndarray) -> None:
    """Remove, shortest first, end branches that hardly leave the inscribed ball of their junction."""
    while True:
        spurs = []
        for leaf in [node for node, around in neighbors.items() if len(around) == 1]:
            line = _walk(neighbors, leaf, next(iter(neighbors[leaf])))
            length = float(np.linalg.norm(np.diff(points[line], axis=0), axis=1).sum())
            if len(neighbors[line[-1]]) > 2 and length < SPUR_RADII * radius[line[-1]]:
                spurs.append((length, line))
        if not spurs:
            return
        line = min(spurs)[1]
        neighbors[line[-1]].discard(line[-2])
        for node in line[:-1]:
            del neighbors[node]


def _lines(neighbors: Neighbors) -> list[list[int]]:
    """Nodes of each branch, depth first from an end of each tree; a branch starts where its tree was reached."""
    lines, seen = [], set()
    for root in sorted(neighbors, key=lambda node: (len(neighbors[node]) > 1, node)):
        if root in seen:
            continue
        seen.add(root)
        if not neighbors[root]:
            lines.append([root])
        pending = [(root, following) for following in sorted(neighbors[root])]
        while pending:
            line = _walk(neighbors, *pending.pop())
            lines.append(line)
            seen.update(line)
            pending += [(line[-1], n) for n in sorted(neighbors[line[-1]]) if n != line[-2]]
    return lines


def _branch(line: list[int], neighbors: Neighbors, points: np.ndarray) -> Branch:
    curve = points[line]
    if len(line) > SMOOTHING:
        curve[1:-1] = ndimage.uniform_filter1d(curve, SMOOTHING, axis=0, mode="nearest")[1:-1]
    return Branch(curve, len(neighbors[line[0]]) == 1, len(neighbors[line[-1]]) == 1)
