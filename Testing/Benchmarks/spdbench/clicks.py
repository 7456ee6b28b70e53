"""The clicks of one run: noisy, clean, an oracle's choice of the noisy ones, or another patient's."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from spdbench.datasets import Dataset
from spdbench.noises import CLEAN, parse_noise
from SPDSegmentLib.evaluation.run import EvaluationTarget, shuffled_clicks
from SPDSegmentLib.geometry.centerline import Clicks


def clicks_for(kind: str, dataset: Dataset, target: EvaluationTarget, noise: str, seed: int) -> tuple[Clicks, float]:
    """Clicks of one of the kinds in ``MethodSpec.clicks``, and the share of the noisy ones outside the target.

    The noisy clicks behind every kind depend on case, target, noise and seed only: they are the same for all methods.
    """
    noisy, outside = target.clicks(parse_noise(noise), seed)
    if kind == "clean":
        return target.clicks(parse_noise(CLEAN), seed)[0], outside
    if kind == "oracle":
        return oracle_clicks(noisy, target.mask), outside
    if kind == "shuffled":
        return _of_another_patient(dataset, target, noise, seed), outside
    return noisy, outside


def oracle_clicks(clicks: Clicks, mask: np.ndarray) -> Clicks:
    """The clicks inside the target, and its deepest point in every slice that is left without one.

    What a perfect choice of points would prompt with: an upper bound, since it looks at the truth.

    Args:
        mask: (T, H, W) bool.
    """
    pixel = np.floor(clicks.xy + 0.5).astype(int).clip(0, np.array(mask.shape[:0:-1]) - 1)
    inside = mask[clicks.slice_index, pixel[:, 1], pixel[:, 0]]
    missing = np.setdiff1d(np.flatnonzero(mask.any(axis=(1, 2))), clicks.slice_index[inside])
    deepest = np.array([_deepest_point(mask[t]) for t in missing]).reshape(-1, 2)
    index = np.concatenate((clicks.slice_index[inside], missing)).astype(int)
    xy = np.concatenate((clicks.xy[inside], deepest))
    return Clicks(index, xy, np.zeros(len(index), dtype=bool), tuple(str(i + 1) for i in range(len(index))))


def _deepest_point(mask: np.ndarray) -> tuple[float, float]:
    """(column, row) of the place farthest from the border of a mask (H, W)."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))
    row, column = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return float(column - 1), float(row - 1)


def _of_another_patient(dataset: Dataset, target: EvaluationTarget, noise: str, seed: int) -> Clicks:
    """The clicks on the like target of the next patient of the data set, test cases of all folds in a ring."""
    cases = [case for fold in dataset.folds for case in fold.test]
    if len({dataset.patient(case) for case in cases}) < 2:
        cases += [case for fold in dataset.folds for case in fold.train]
    start = cases.index(target.case)
    for case in [*cases[start + 1 :], *cases[:start]]:
        if dataset.patient(case) == target.patient:
            continue
        like = [other for other in dataset.targets(case) if other.name == target.name]
        if like:
            return shuffled_clicks([target, like[0]], 0, parse_noise(noise), seed)
    return target.clicks(parse_noise(noise), seed)[0]
