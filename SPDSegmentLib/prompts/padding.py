"""Prompts of several slices as one batch for SAM's prompt encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

POSITIVE, PADDING = 1, -1


def pad_points(points: Sequence[np.ndarray], length: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pad B lists of points (M_i, 2) to one length.

    Args:
        length: K; 0 takes the longest list. A fixed K makes a slice's result independent of the rest of its batch.

    Returns:
        Points (B, K, 2) float32 and labels (B, K) int64: 1 for a point of the target, -1 for padding.
    """
    length = max([length, 1, *(len(p) for p in points)])
    counts = np.array([len(p) for p in points], dtype=np.int64)
    used = np.arange(length) < counts[:, None]
    padded = np.zeros((len(points), length, 2), dtype=np.float32)
    if len(points):
        padded[used] = np.concatenate([np.reshape(p, (-1, 2)) for p in points])
    return padded, np.where(used, POSITIVE, PADDING).astype(np.int64)
