"""Prompts that a coarse mask gives: multi-prompt excavation of SAMRefiner (Lin et al., ICLR 2025, arXiv 2502.06756).

Our own implementation of the published description. A coarse mask may be wrong at its border and in part; so its middle
is trusted more than its border, and its box may grow where the image around it looks like what it holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

GROWTH = 0.1
GROWTH_STEPS = 3
ALIKE_SHARE = 0.5
STRENGTH = 10.0
SMALLEST_SHARE = 0.05


@dataclass(frozen=True, eq=False)
class RefinementPrompts:
    """Prompts of one object in one slice, in network pixels.

    Attributes:
        points: (2, 2), (column, row): one in the object's middle, one in the box far from the object.
        labels: (2,) 1 and 0; the second is -1 where the box holds no background.
        box: (4,) first column, first row, last column, last row.
        mask: (S, S) float32 logits.
    """

    points: np.ndarray
    labels: np.ndarray
    box: np.ndarray
    mask: np.ndarray


def split_objects(mask: np.ndarray) -> list[np.ndarray]:
    """The connected parts of (S, S) bool, each prompted on its own (split-then-merge); specks are left out."""
    labels, count = ndimage.label(mask, np.ones((3, 3), dtype=bool))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    return [labels == i + 1 for i in range(count) if sizes[i] >= SMALLEST_SHARE * sizes.max()]


def excavate(mask: np.ndarray, similarity: np.ndarray) -> RefinementPrompts:
    """All prompts of one object.

    Args:
        mask: (S, S) bool, not empty; similarity: (S, S), how much a pixel's embedding is like the object's mean.
    """
    box = elastic_box(mask, similarity)
    points, labels = distance_guided_points(mask, box)
    return RefinementPrompts(points, labels, box, gaussian_mask(mask, points[0]))


def distance_guided_points(mask: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The object's pixel farthest from the background, and the pixel of the box farthest from the object."""
    inner = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(np.argmax(inner)), mask.shape)
    left, top, right, bottom = box.astype(int)
    outer = ndimage.distance_transform_edt(~mask)[top : bottom + 1, left : right + 1]
    far_row, far_column = np.unravel_index(int(np.argmax(outer)), outer.shape)
    points = np.array([[column, row], [left + far_column, top + far_row]], dtype=np.float64)
    return points, np.array([1, 0 if outer.max() > 0 else -1], dtype=np.int64)


def elastic_box(mask: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """The object's box, grown on each side for which the strip beyond it is mostly like the object.

    A strip is a tenth of the box wide; each side grows at most three times. A pixel is like the object where its
    similarity exceeds the middle between the object's and the background's mean (the threshold is our choice).
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = [int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])]
    background = similarity[~mask]
    if background.size == 0:
        return np.array(box, dtype=np.float64)
    alike = similarity > (similarity[mask].mean() + background.mean()) / 2
    steps = [max(1, round(GROWTH * (box[axis + 2] - box[axis] + 1))) for axis in (0, 1)]
    limits = [mask.shape[1] - 1, mask.shape[0] - 1]
    for _ in range(GROWTH_STEPS):
        left, top, right, bottom = box
        strips = (
            alike[top : bottom + 1, max(0, left - steps[0]) : left],
            alike[max(0, top - steps[1]) : top, left : right + 1],
            alike[top : bottom + 1, right + 1 : right + 1 + steps[0]],
            alike[bottom + 1 : bottom + 1 + steps[1], left : right + 1],
        )
        grows = [strip.size > 0 and strip.mean() > ALIKE_SHARE for strip in strips]
        if not any(grows):
            break
        for side, grow in enumerate(grows):
            if grow:
                step = steps[side % 2] if side > 1 else -steps[side % 2]
                box[side] = int(np.clip(box[side] + step, 0, limits[side % 2]))
    return np.array(box, dtype=np.float64)


def gaussian_mask(mask: np.ndarray, center_xy: np.ndarray) -> np.ndarray:
    """(S, S) float32 logits: within the object a Gaussian around its middle, as wide as the object; zero elsewhere."""
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]]
    squared = (columns - center_xy[0]) ** 2 + (rows - center_xy[1]) ** 2
    return (STRENGTH * np.exp(-squared / mask.sum()) * mask).astype(np.float32)
