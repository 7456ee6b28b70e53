"""What speaks for a click besides the paper's gate: its person's word (ours, docs/method.md)."""

from __future__ import annotations

import numpy as np

WORD_SHARE = 0.05
"""Radius around a click that is insisted on, as a share of the map, within which the saliency is taken for high."""
WORD_HEIGHT = 0.95


def raise_at(saliency: np.ndarray, points_xy: np.ndarray, threshold: float) -> np.ndarray:
    """S_t given the points (M, 2) of slice t that a person insists on.

    Around each point where S_t, (S, S), does not exceed ``threshold``, it becomes a smooth hill that does.

    Args:
        points_xy: (column, row) in pixels of the map.
    """
    size = saliency.shape[0]
    column, row = np.rint(points_xy).astype(int).T
    seen = (column >= 0) & (column < saliency.shape[1]) & (row >= 0) & (row < size)
    denied = seen.copy()
    denied[seen] = saliency[row[seen], column[seen]] <= threshold
    if not denied.any():
        return saliency
    rows, columns = np.mgrid[:size, : saliency.shape[1]]
    squared = [(columns - x) ** 2 + (rows - y) ** 2 for x, y in points_xy[denied]]
    fall = np.log(WORD_HEIGHT / threshold) / max(1.0, WORD_SHARE * size) ** 2
    hill = WORD_HEIGHT * np.exp(-fall * np.minimum.reduce(squared))
    return np.maximum(saliency, hill.astype(saliency.dtype))
