"""A mask between its slices, and the way through it from end to end."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from SPDSegmentLib.geometry.slices import SliceStack

MAX_NODES = 40_000
"""Points of the mask among which the centerline is looked for."""
SMALL_PART = 0.05
"""A part of the mask with less than this share of it is none that the centerline must reach."""
BRIDGE = 5.0
"""How much longer than it is a way through a gap between two parts counts."""


class MaskField:
    """A mask as a function of place, above 0 inside: signed distance in the slice, linear between slices.

    Between slices it is interpolated along the structure, not across the slices, so that a structure that runs
    obliquely through thick slices does not shrink between them. Where the mask ends, it ends half-way between slices.
    """

    def __init__(self, mask: np.ndarray, stack: SliceStack) -> None:
        places = np.argwhere(mask)
        low, high = places.min(axis=0), places.max(axis=0) + 1
        part = np.pad(mask[low[0] : high[0], low[1] : high[1], low[2] : high[2]], 1)
        self._corner = low - 1
        self._stack = stack
        self.spacing = np.array([stack.slice_mm, *stack.pixel_mm])
        self.mean_spacing = float(self.spacing.mean())
        filled = np.asarray(part.any(axis=(1, 2)))
        signed = np.zeros(part.shape, dtype=np.float32)
        for t in np.flatnonzero(filled):
            within = ndimage.distance_transform_edt(part[t], sampling=stack.pixel_mm)
            signed[t] = within - ndimage.distance_transform_edt(~part[t], sampling=stack.pixel_mm)
        for t in np.flatnonzero(~filled):
            beside = [np.abs(signed[j]) for j in (t - 1, t + 1) if 0 <= j < len(part) and filled[j]]
            signed[t] = -np.maximum.reduce(beside) if beside else -float(self.spacing.max())
        limit = max(0.5 * stack.slice_mm, float(min(stack.pixel_mm)))  # so that neither slice outweighs the other
        self._signed = signed.clip(-limit, limit)

    def at(self, points_ras: np.ndarray, along_ras: np.ndarray, radius: float) -> np.ndarray:
        """Values (S, ...) at points (S, ..., 3), where the structure runs along unit vectors (S, 3).

        Args:
            radius: mm; where the structure moves by more from slice to slice, it runs within them.
        """
        position, xy = self._stack.to_slices(points_ras.reshape(-1, 3))
        thw = np.stack((position, xy[:, 1], xy[:, 0])) - self._corner[:, None]
        slope = self._slopes(along_ras, radius)
        slope = np.repeat(slope, len(position) // len(slope), axis=0).T
        lower = np.floor(thw[0])
        share, found = thw[0] - lower, np.zeros(len(position))
        for t, weight in ((lower, 1 - share), (lower + 1, share)):
            there = np.concatenate((t[None], thw[1:] + slope * (t - thw[0])))
            found += weight * ndimage.map_coordinates(self._signed, there, order=1, mode="constant", cval=-1.0)
        return found.reshape(points_ras.shape[:-1])

    def _slopes(self, along_ras: np.ndarray, radius: float) -> np.ndarray:
        """(S, 2) rows and columns by which the structure moves from slice to slice."""
        step = self._stack.to_slices(along_ras)
        start = self._stack.to_slices(np.zeros((1, 3)))
        t, xy = step[0] - start[0], step[1] - start[1]
        moved = xy[:, ::-1] * self.spacing[1:] / np.copysign(np.maximum(np.abs(t), 1e-6), t)[:, None]
        length = np.linalg.norm(moved, axis=1, keepdims=True)
        slopes: np.ndarray = moved * (2 - length / max(radius, 1e-9)).clip(0, 1) / self.spacing[1:]
        return slopes

    def nodes(self) -> tuple[np.ndarray, float, np.ndarray]:
        """Points (N, 3) of a grid of cubes within the mask, the grid's pitch in mm, and their depth (N,) in mm."""
        inside_mm3 = float((self._signed > 0).sum()) * float(self.spacing.prod())
        pitch = max(float(self.spacing.min()), (inside_mm3 / MAX_NODES) ** (1 / 3))
        axes = [np.arange(0, n - 1 + 1e-9, pitch / s) for n, s in zip(self._signed.shape, self.spacing, strict=True)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"))
        inside = ndimage.map_coordinates(self._signed, grid, order=1) > 0
        if not inside.any():
            grid = np.argwhere(self._signed > 0).T.astype(float)
            depth = np.full(grid.shape[1], pitch)
        else:
            depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1, 1:-1][inside] * pitch
            grid = grid[:, inside]
        thw = grid + self._corner[:, None]
        return self._stack.to_ras(thw[0], thw[[2, 1]].T), pitch, depth


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
