"""Outlines of the pixels of a mask, and the pixels within outlines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """The closed outlines of the pixels of a mask (H, W): each (N, 2), corners (column, row) in pixels.

    Pixels lie at whole numbers, corners at halves. Outer outlines have a positive area, those of holes a negative one;
    pixels that meet at a corner alone are apart.
    """
    padded = np.pad(mask.astype(bool), 1)
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # Edges have the mask on their right hand (rows point down); corner (c, r) is the upper left one of pixel (c, r).
    for (dr, dc), start, end in (
        ((-1, 0), (0, 0), (1, 0)), ((0, 1), (1, 0), (1, 1)), ((1, 0), (1, 1), (0, 1)), ((0, -1), (0, 1), (0, 0))
    ):  # fmt: skip
        rows, columns = np.nonzero(padded & ~np.roll(padded, (-dr, -dc), axis=(0, 1)))
        for row, column in zip((rows - 1).tolist(), (columns - 1).tolist(), strict=True):
            steps.setdefault((column + start[0], row + start[1]), []).append((column + end[0], row + end[1]))
    loops = []
    while steps:
        first = next(iter(steps))
        corners, at, before = [first], first, (0, 0)
        while True:
            following = steps[at]
            # Where two pixels meet at a corner the turn to the right stays with the same pixel.
            turn = next(
                (n for n, to in enumerate(following) if (to[0] - at[0], to[1] - at[1]) == (-before[1], before[0])), 0
            )
            to = following.pop(turn)
            if not following:
                del steps[at]
            step = (to[0] - at[0], to[1] - at[1])
            if step == before:
                corners.pop()
            corners.append(to)
            at, before = to, step
            if at == first:
                break
        loops.append(np.array(corners[:-1], dtype=float) - 0.5)
    return loops


def keyholes(loops: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Outer outlines, with those of the holes joined in at the nearest corners."""
    joined = [loop for loop in loops if _area(loop) > 0]
    for hole in (loop for loop in loops if _area(loop) <= 0):
        apart = [np.linalg.norm(outer[:, None] - hole, axis=2) for outer in joined]
        n = int(np.argmin([distances.min() for distances in apart]))
        i, j = np.unravel_index(int(np.argmin(apart[n])), apart[n].shape)
        joined[n] = np.concatenate((joined[n][: i + 1], np.roll(hole, -j, axis=0), hole[j : j + 1], joined[n][i:]))
    return joined


def inside(loops: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """The pixels (H, W) whose centers lie within an odd number of closed outlines (N, 2) of (column, row)."""
    crossings = np.zeros(shape, dtype=int)
    columns = np.arange(shape[1])
    for loop in loops:
        for ends in zip(loop.tolist(), np.roll(loop, -1, axis=0).tolist(), strict=True):
            (y0, x0), (y1, x1) = sorted((y, x) for x, y in ends)
            rows = np.arange(max(0, int(np.ceil(y0))), min(shape[0], int(np.ceil(y1))))
            if len(rows):
                at = x0 + (rows - y0) / (y1 - y0) * (x1 - x0)
                crossings[rows] += columns[None] < at[:, None]
    odd: np.ndarray = crossings % 2 == 1
    return odd


def _area(loop: np.ndarray) -> float:
    x, y = loop.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)
