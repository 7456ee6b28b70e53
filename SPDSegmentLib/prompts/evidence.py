"""What speaks for a click besides the paper's gate: other evidence, and its person's word (ours, docs/method.md).

``adjoining`` looks into the adjoining slices too, and is content with less saliency: a structure moves little from
slice to slice, and a click at its edge is right. A click's verdict stays a matter of its neighborhood. ``soft`` weighs
as well the distance from the robust curve through all clicks, which is fitted before any saliency, and how many clicks
agree; its weights are set, not calibrated. All functions are pure.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from SPDSegmentLib.prompts.click_path import nearest_pixel

if TYPE_CHECKING:
    from SPDSegmentLib.prompts.saliency_maps import SaliencyMaps, SliceClicks

OWN, ADJOINING, ON_CURVE, REPEATED = 4.0, 2.0, 2.0, 1.5
"""Weights of saliency here and beside (both less a half), of closeness to the curve, and of repetition (0 to 1)."""
KNOT_MM = 40.0
STIFFNESS = 2.0
HUBER_MM = 3.0
ROUNDS = 15
NEAR_MM, ENOUGH = 15.0, 3
"""So many other clicks within this distance are full agreement."""
SEEN = 0.6
"""With ``adjoining``, a click is supported where the saliency, here or beside, exceeds this share of tau."""
WORD_SHARE = 0.05
"""Radius around a click that is insisted on, as a share of the map, within which the saliency is taken for high."""
WORD_HEIGHT = 0.95
"""What it is there at the least; halfway between tau and 1 where that is more."""


def raise_at(saliency: np.ndarray, points_xy: np.ndarray, threshold: float) -> np.ndarray:
    """S_t given the points (M, 2) of slice t that a person insists on.

    Around each point where S_t, (S, S), does not exceed ``threshold``, it becomes a smooth hill that does.

    Args:
        points_xy: (column, row) in pixels of the map.
    """
    size = saliency.shape[0]
    column, row = nearest_pixel(points_xy).T
    seen = (column >= 0) & (column < saliency.shape[1]) & (row >= 0) & (row < size)
    denied = seen.copy()
    denied[seen] = saliency[row[seen], column[seen]] <= threshold
    if not denied.any():
        return saliency
    rows, columns = np.mgrid[:size, : saliency.shape[1]]
    squared = [(columns - x) ** 2 + (rows - y) ** 2 for x, y in points_xy[denied]]
    height = max(WORD_HEIGHT, (1 + threshold) / 2)
    fall = np.log(height / threshold) / max(1.0, WORD_SHARE * size) ** 2
    hill = height * np.exp(-fall * np.minimum.reduce(squared))
    raised: np.ndarray = np.maximum(saliency, hill.astype(saliency.dtype))
    return raised


def believed(saliency: SaliencyMaps, t: int, clicks: SliceClicks, own: np.ndarray, evidence: str) -> np.ndarray:
    """Which of the clicks ``own`` (M,) of slice t the evidence, ``adjoining`` or ``soft``, speaks for: (M,) bool."""
    xy = clicks.xy[own]
    here = saliency.at(t, xy)
    beside = [saliency.at(j, xy) for j in (t - 1, t + 1) if 0 <= j < saliency.n_slices]
    adjoining = np.mean(beside, axis=0) if beside else here
    if evidence == "adjoining":
        return np.asarray(np.maximum(here, adjoining) > SEEN * saliency.threshold)
    distance, near = _agreement(clicks, saliency.pixel_mm, saliency.slice_px * saliency.pixel_mm)
    return score(here, adjoining, distance[own], near[own]) > 0


def score(own: np.ndarray, adjoining: np.ndarray, distance: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Weight of the evidence for clicks (N,), above 0 for those that are believed.

    Args:
        own, adjoining: saliency at the clicks in their own slices and in those beside.
        distance: from the robust curve, as a share of what is usual among the clicks.
        near: number of other clicks nearby.
    """
    weight: np.ndarray = (
        OWN * (own - 0.5)
        + ADJOINING * (adjoining - 0.5)
        + ON_CURVE * (1 - np.minimum(distance, 3.0))
        + REPEATED * np.minimum(near, ENOUGH) / ENOUGH
    )
    return weight


@functools.lru_cache(maxsize=4)
def _agreement(clicks: SliceClicks, pixel_mm: float, slice_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Distance from the robust curve as a share of the usual one, and the number of clicks nearby; (N,) each."""
    from scipy.spatial import KDTree

    position, xy = np.asarray(clicks.slice_index, dtype=float) * slice_mm, clicks.xy * pixel_mm
    distance = curve_distances_mm(position, xy)
    usual = max(2.0 * HUBER_MM, 2.0 * float(np.median(distance)))
    tree = KDTree(np.column_stack((position, xy)))
    near = tree.query_ball_point(tree.data, max(NEAR_MM, 1.5 * slice_mm), return_length=True) - 1
    return distance / usual, near


def curve_distances_mm(position_mm: np.ndarray, xy_mm: np.ndarray) -> np.ndarray:
    """Distance in the slice, (N,), of clicks from the robust curve through all of them.

    The curve is piecewise linear over the slices' position with a penalty on its bends, fitted by reweighted least
    squares with Huber's weights.

    Args:
        position_mm: (N,) position of each click's slice; xy_mm: (N, 2).
    """
    span = float(np.ptp(position_mm))
    knots = np.linspace(position_mm.min(), position_mm.max(), max(2, 1 + round(span / KNOT_MM)))
    basis = _hats(position_mm, knots)
    bends = STIFFNESS * np.diff(np.eye(len(knots)), n=2, axis=0) if len(knots) > 2 else np.zeros((0, len(knots)))
    small = 1e-6 * np.eye(len(knots))
    fitted = np.tile(np.median(xy_mm, axis=0), (len(xy_mm), 1))
    for _ in range(ROUNDS):
        weight = 1 / np.maximum(np.linalg.norm(xy_mm - fitted, axis=1) / HUBER_MM, 1.0)
        left = basis.T @ (weight[:, None] * basis) + bends.T @ bends + small
        fitted = basis @ np.linalg.solve(left, basis.T @ (weight[:, None] * xy_mm))
    return np.asarray(np.linalg.norm(xy_mm - fitted, axis=1))


def _hats(position: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Linear interpolation weights (N, K) between knots; constant where all knots are one."""
    if knots[-1] == knots[0]:
        return np.full((len(position), len(knots)), 1 / len(knots))
    return np.stack([np.interp(position, knots, row) for row in np.eye(len(knots))], axis=1)
