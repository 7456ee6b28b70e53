"""Statistics against values worked out by hand or published."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.evaluation.evaluator import EvaluationRow
from SPDSegmentLib.evaluation.report import (
    below,
    bootstrap_ci,
    difference,
    estimate_of,
    holm,
    paired_wilcoxon,
    patient_means,
    worst_tenth,
)


def test_a_patient_with_more_volumes_does_not_count_more() -> None:
    patients, values = ["p1", "p1", "p1", "p2"], [0.9, 0.9, 0.9, 0.5]
    assert patient_means(patients, values) == {"p1": pytest.approx(0.9), "p2": pytest.approx(0.5)}
    found = estimate_of(patient_means(patients, values).values())
    assert found is not None and found.mean == pytest.approx(0.7)


def test_values_left_out_do_not_count_as_zero() -> None:
    assert patient_means(["p1", "p1", "p2"], [0.8, None, None]) == {"p1": pytest.approx(0.8)}
    assert estimate_of(patient_means(["p1"], [None]).values()) is None


def test_values_without_their_patient_are_refused() -> None:
    with pytest.raises(BadInput, match="2 and 1"):
        patient_means(["p1", "p2"], [0.5])


@pytest.mark.parametrize("n", [5, 6, 10])
def test_wilcoxon_of_one_sided_differences_has_its_exact_value(n: int) -> None:
    # All n differences have one sign: two of the 2^n equally likely sign patterns are as extreme.
    better = 0.5 + 0.01 * np.arange(1, n + 1) ** 2
    assert paired_wilcoxon(better, np.full(n, 0.5)) == pytest.approx(2 / 2**n)
    assert paired_wilcoxon(np.full(n, 0.5), better) == pytest.approx(2 / 2**n)


def test_wilcoxon_takes_the_signed_ranks() -> None:
    # Ranks 1..5 with rank 2 negative: sums up to 2 come from {}, {1}, {2}; 3 of 32 patterns on each side.
    a = np.array([1.0, -2.0, 3.0, 4.0, 5.0])
    assert paired_wilcoxon(a, np.zeros(5)) == pytest.approx(6 / 32)


def test_wilcoxon_of_equal_pairs_finds_nothing() -> None:
    assert paired_wilcoxon([0.1 + 0.2, 0.5], [0.3, 0.5]) == 1.0
    assert paired_wilcoxon([], []) == 1.0


def test_wilcoxon_drops_equal_pairs() -> None:
    a, b = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 7.0]), np.array([0.0] * 5 + [7.0])
    assert paired_wilcoxon(a, b) == pytest.approx(paired_wilcoxon(a[:5], b[:5]))


def test_wilcoxon_needs_pairs() -> None:
    with pytest.raises(BadInput, match="3 and 2"):
        paired_wilcoxon([1.0, 2.0, 3.0], [1.0, 2.0])


def test_holm_multiplies_by_the_tests_that_remain_and_never_decreases() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_stays_a_probability() -> None:
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_bootstrap_interval_is_fixed_by_its_seed_and_holds_the_mean() -> None:
    values = np.random.default_rng(3).normal(0.8, 0.1, 20)
    low, high = bootstrap_ci(values, seed=1)
    assert (low, high) == bootstrap_ci(values, seed=1) != bootstrap_ci(values, seed=2)
    assert low < values.mean() < high


def test_bootstrap_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for draw in range(200):
        low, high = bootstrap_ci(rng.normal(0.0, 1.0, 40), samples=500, seed=draw)
        covered += low <= 0.0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_bootstrap_interval_of_one_value_is_that_value() -> None:
    assert bootstrap_ci([0.7]) == (pytest.approx(0.7), pytest.approx(0.7))


def test_bootstrap_without_values_is_refused() -> None:
    with pytest.raises(BadInput):
        bootstrap_ci([])


def row(dsc: float | None, patient: str = "p", **changes: object) -> EvaluationRow:
    """A row with this DSC and nothing else of note."""
    figures = (dsc, dsc, 1.0, dsc, dsc, dsc, 1.0, 0.1)
    made = EvaluationRow("", "m", "clean", 1, patient, patient, "1", 9, 0.2, *figures)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def test_the_worst_tenth_is_the_mean_of_the_runs_that_came_out_worst() -> None:
    rows = [row(value / 100) for value in range(60, 81)] + [row(None)]
    assert worst_tenth(rows) == pytest.approx((0.60 + 0.61 + 0.62) / 3)  # 21 runs: three of them
    assert worst_tenth([row(0.3), row(0.9)]) == pytest.approx(0.3)
    assert worst_tenth([row(None)]) is None


def test_runs_below_a_half_are_counted_without_those_left_out() -> None:
    assert below([row(0.49), row(0.5), row(0.9), row(None)]) == (1, 3)


def test_a_difference_is_over_what_both_have() -> None:
    ours = [row(0.9, "a"), row(0.8, "b"), row(0.7, "c")]
    theirs = [row(0.8, "a"), row(0.5, "b"), row(0.1, "c", seed=2)]
    found = difference(ours, theirs)
    assert found is not None and found.value.patients == 2 and found.value.mean == pytest.approx(0.2)
    assert difference(ours, [row(0.1, "z")]) is None
