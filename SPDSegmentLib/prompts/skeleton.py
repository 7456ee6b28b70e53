"""Skeleton of a 3-D mask as branches, for structures that cross a slice more than once."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import minimum_spanning_tree

from SPDSegmentLib.errors import missing_package
from SPDSegmentLib.prompts.click_path import Branch

MAX_SIDE = 160  # voxels of the grid on which the skeleton is computed
SMOOTHING = 5  # points of the running mean over a branch
SPUR_RADII = 1.5  # an end branch shorter than this many inscribed radii of its junction is none

Neighbors = dict[int, set[int]]  # node of the skeleton -> linked nodes


def skeleton_branches(mask: np.ndarray, spacing: np.ndarray) -> list[Branch]:
    """Branches of the skeleton in depth-first order; loops are cut open, short side branches left out.

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
