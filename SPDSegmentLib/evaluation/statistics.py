"""Statistics of paired measurements: Wilcoxon signed-rank, Holm's correction, bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def paired_wilcoxon(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p of the Wilcoxon signed-rank test on paired values; 1 where all pairs are equal or there are none."""
    from scipy import stats

    difference = np.asarray(a, float) - np.asarray(b, float)
    if len(difference) == 0 or not difference.any():
        return 1.0
    return float(stats.wilcoxon(difference).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p values, in the order given."""
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return [float(p) for p in adjusted]


def bootstrap_ci(
    values: Sequence[float], confidence: float = 0.95, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean."""
    array = np.asarray(values, float)
    rng = np.random.default_rng(seed)
    means = array[rng.integers(0, len(array), (samples, len(array)))].mean(axis=1)
    low, high = np.percentile(means, [50 * (1 - confidence), 50 * (1 + confidence)])
    return float(low), float(high)
