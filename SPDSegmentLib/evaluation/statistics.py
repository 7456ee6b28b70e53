"""Statistics of measurements on patients: means, paired tests, Holm's correction, bootstrap intervals.

The patient is the unit of means and tests: :func:`patient_means` comes first, the rest works on its values. What looks
at failures (:func:`worst_tenth`, :func:`below`) counts single runs: a target volume with one set of clicks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass, replace

import numpy as np

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.evaluation.protocol import EvaluationRow

Values = Sequence[float] | np.ndarray
TIE_DECIMALS = 12  # differences that agree to so many decimals are ties, whatever rounding of floats did


def patient_means(patients: Sequence[str], values: Sequence[float | None]) -> dict[str, float]:
    """Mean of each patient's values, by patient in order of first appearance.

    Args:
        patients, values: of one length, one entry per measurement; ``None`` is left out, and a patient without any
            value too.

    Raises:
        BadInput: different lengths.
    """
    _same_length(patients, values)
    found: dict[str, list[float]] = {}
    for patient, value in zip(patients, values, strict=True):
        if value is not None:
            found.setdefault(patient, []).append(float(value))
    return {patient: float(np.mean(own)) for patient, own in found.items()}


def mean_over_patients(patients: Sequence[str], values: Sequence[float | None]) -> float | None:
    """Mean over patients of their means, so that nobody counts more for having more volumes; ``None`` without values.

    Raises:
        BadInput: different lengths.
    """
    means = patient_means(patients, values)
    return float(np.mean(list(means.values()))) if means else None


def paired_wilcoxon(a: Values, b: Values) -> float:
    """Two-sided p of the Wilcoxon signed-rank test on paired values; 1 where all pairs are equal or there are none.

    ``scipy.stats.wilcoxon``: pairs that are equal are dropped; exact for small samples.

    Raises:
        BadInput: different lengths.
    """
    from scipy import stats

    _same_length(a, b)
    difference = np.round(np.asarray(a, dtype=float) - np.asarray(b, dtype=float), TIE_DECIMALS)
    difference = difference[difference != 0]
    return float(stats.wilcoxon(difference).pvalue) if len(difference) else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p values of a family of tests, in the order given (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return [float(p) for p in adjusted]


def bootstrap_ci(values: Values, confidence: float = 0.95, samples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; the same seed gives the same interval.

    For the difference of two methods give the differences of each patient.

    Raises:
        BadInput: no value.
    """
    array = np.asarray(values, dtype=float)
    if array.size == 0:
        raise BadInput("A confidence interval needs at least one value.")
    rng = np.random.default_rng(seed)
    means = array[rng.integers(0, len(array), (samples, len(array)))].mean(axis=1)
    low, high = np.percentile(means, [50 * (1 - confidence), 50 * (1 + confidence)])
    return float(low), float(high)


@dataclass(frozen=True)
class Estimate:
    """A mean over patients with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    patients: int


@dataclass(frozen=True)
class Difference:
    """One method minus another over the patients and clicks that both have.

    Attributes:
        p: two-sided paired Wilcoxon; p_holm: corrected over the family that it was tested in.
    """

    value: Estimate
    p: float
    p_holm: float = 1.0


def estimate_of(values: Iterable[float]) -> Estimate | None:
    """Mean and interval of one value per patient; ``None`` for no values."""
    known = list(values)
    if not known:
        return None
    low, high = bootstrap_ci(known)
    return Estimate(float(np.mean(known)), low, high, len(known))


def means_of_rows(rows: Iterable[EvaluationRow], metric: str) -> dict[str, float]:
    """Mean of a metric per patient, over targets and seeds; patients without a value are left out."""
    known = list(rows)
    return patient_means([row.patient for row in known], [getattr(row, metric) for row in known])


def estimate(rows: Iterable[EvaluationRow], metric: str = "dsc") -> Estimate | None:
    """Mean of a metric over patients; ``None`` without values."""
    return estimate_of(means_of_rows(rows, metric).values())


def worst_tenth(rows: Iterable[EvaluationRow]) -> float | None:
    """Mean DSC of the tenth of the runs, at least one, that came out worst; ``None`` without values."""
    values = sorted(row.dsc for row in rows if row.dsc is not None)
    return float(np.mean(values[: -(-len(values) // 10)])) if values else None


def below(rows: Iterable[EvaluationRow], limit: float = 0.5) -> tuple[int, int]:
    """How many runs have a DSC below ``limit``, and of how many."""
    values = [row.dsc for row in rows if row.dsc is not None]
    return sum(value < limit for value in values), len(values)


def difference(
    first: Iterable[EvaluationRow], second: Iterable[EvaluationRow], metric: str = "dsc"
) -> Difference | None:
    """First minus second over what both have; ``None`` where they share no patient."""
    a, b = list(first), list(second)
    places = {row.place for row in a} & {row.place for row in b}
    means = [means_of_rows((row for row in rows if row.place in places), metric) for rows in (a, b)]
    patients = sorted(means[0].keys() & means[1].keys())
    ours, theirs = ([mean[p] for p in patients] for mean in means)
    value = estimate_of(np.subtract(ours, theirs).tolist())
    return None if value is None else Difference(value, paired_wilcoxon(ours, theirs))


def corrected(tests: Sequence[Difference]) -> list[Difference]:
    """The same tests with Holm's correction over all of them."""
    return [replace(test, p_holm=p) for test, p in zip(tests, holm([t.p for t in tests]), strict=True)]


def _same_length(first: Sized, second: Sized) -> None:
    if len(first) != len(second):
        raise BadInput(
            f"The paired lists have {len(first)} and {len(second)} entries.", "Give one pair for each patient."
        )
