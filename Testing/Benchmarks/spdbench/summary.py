"""Figures of a benchmark per patient: means with bootstrap intervals, and paired tests against the reference."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from spdbench.config import ClaimSpec, DatasetSpec, MethodSpec
from spdbench.plan import Plan, PlannedCell
from SPDSegmentLib.evaluation.evaluator import EvaluationRow
from SPDSegmentLib.evaluation.report import Difference, Estimate, corrected, difference, estimate

SIGNIFICANT = 0.05
NOT_YET = "not run"
EARLIER = "earlier version"
"""State of rows that were measured with another version of their model or method, and not since."""


class MethodResult:
    """One method on one data set.

    Attributes:
        state: empty, or ``not run: ...``, ``failed: ...``, ``3 of 40 measured``, ``earlier version``, or, of a model
            that had a part of its training, ``535 of 1050 steps``.
    """

    def __init__(
        self, method: MethodSpec, rows: list[EvaluationRow], state: str, training: dict[str, dict[str, Any]]
    ) -> None:
        self.method = method
        self.rows = rows
        self.state = state
        self.training = training
        self._by_noise: dict[str, list[EvaluationRow]] = {}
        for row in rows:
            self._by_noise.setdefault(row.severity, []).append(row)

    def at(self, noise: str) -> list[EvaluationRow]:
        """Rows with one noise."""
        return self._by_noise.get(noise, [])

    def figure(self, noise: str, metric: str = "dsc") -> Estimate | None:
        """Mean over patients; ``None`` without rows."""
        return estimate(self.at(noise), metric)


@dataclass
class DatasetResult:
    """All methods on one data set, in the order of the file."""

    spec: DatasetSpec
    folds: dict[str, tuple[int, int]]
    methods: dict[str, MethodResult]

    @property
    def name(self) -> str:
        """As the benchmark's file names it."""
        return self.spec.name

    @property
    def title(self) -> str:
        """As printed."""
        return self.spec.title

    @property
    def measured(self) -> bool:
        """Whether any row was."""
        return any(result.rows for result in self.methods.values())

    def of_group(self, *groups: str) -> list[MethodResult]:
        """Methods of some groups."""
        return [result for result in self.methods.values() if result.method.group in groups]

    @property
    def patients(self) -> int:
        """How many patients were tested."""
        return len({row.patient for result in self.methods.values() for row in result.rows})


def collect(plan: Plan) -> list[DatasetResult]:
    """The results of a plan's cells, as far as they were measured."""
    collected: dict[str, DatasetResult] = {}
    for planned in plan.cells:
        dataset = planned.dataset
        if dataset.name not in collected:
            folds = {fold.name: (len(fold.train), len(fold.test)) for fold in dataset.folds}
            collected[dataset.name] = DatasetResult(dataset.spec, folds, {})
        rows, wanted = plan.rows(planned), plan.wanted(planned)
        states = list(dict.fromkeys(f"{state}: {reason}" for state, reason in planned.cell.states.values()))
        if not states and not rows:
            rows = plan.rows(planned, earlier=True)
            states = _of_earlier(planned, rows) or [NOT_YET]
        elif not states and len(rows) < wanted:
            states = [f"{len(rows)} of {wanted} measured"]
        result = MethodResult(planned.method, rows, "; ".join(states), planned.cell.training)
        collected[dataset.name].methods[planned.method.name] = result
    return list(collected.values())


def _of_earlier(planned: PlannedCell, rows: Sequence[EvaluationRow]) -> list[str]:
    """What rows that do not count are of: an earlier version, or a part of a training."""
    entries = {entry.fold.name: entry for entry in planned.entries}
    folds = sorted({row.fold for row in rows})
    return list(dict.fromkeys(planned.half_trained(entries[fold]) or EARLIER for fold in folds))


def compare_methods(reference: MethodResult, other: MethodResult, noise: str, metric: str = "dsc") -> Difference | None:
    """Reference minus other over what both have; ``None`` where they share no patient."""
    return difference(reference.at(noise), other.at(noise), metric)


def differences(
    dataset: DatasetResult, reference: str, noises: Iterable[str], methods: Iterable[MethodResult]
) -> dict[tuple[str, str], Difference]:
    """Reference minus each of the methods at every noise (DSC), by (method, noise).

    Holm's correction is over all of these tests: those of one table.
    """
    base = dataset.methods.get(reference)
    if base is None:
        return {}
    methods = [result for result in methods if result is not base]
    found = {
        (result.method.name, noise): test
        for noise in noises
        for result in methods
        if (test := compare_methods(base, result, noise)) is not None
    }
    return dict(zip(found, corrected(list(found.values())), strict=True))


@dataclass(frozen=True)
class ClaimResult:
    """A claim on one data set; ``hd95`` is first minus second in mm (negative is better).

    Attributes:
        states: of the two rows, where they are not whole and of today.
    """

    claim: ClaimSpec
    dataset: str
    dsc: Difference | None
    hd95: Difference | None
    states: tuple[str, ...] = ()

    @property
    def met(self) -> bool | None:
        """Whether the mean difference is large enough; ``None`` where it was not measured or nothing is wanted."""
        if self.dsc is None or self.claim.bound:
            return None
        closer = not self.claim.lower_hd95 or (self.hd95 is not None and self.hd95.value.mean < 0)
        return closer and self.dsc.value.mean >= self.claim.at_least

    @property
    def shortfall(self) -> str:
        """What is missing where the claim is not met, as text; empty where it is, was not measured or is a bound."""
        if self.dsc is None or self.met is not False:
            return ""
        mean, wanted = self.dsc.value.mean, self.claim.at_least
        return f"{100 * mean:+.1f} instead of {100 * wanted:+.0f} DSC" if mean < wanted else "HD95 is not lower"

    @property
    def verdict(self) -> str:
        """``yes`` needs the size and p < 0.05 after correction; few patients can show the size only."""
        if self.dsc is None:
            return NOT_YET
        shown = "yes" if self.dsc.p_holm < SIGNIFICANT else "in size only"
        return ", ".join(["-" if self.claim.bound else shown if self.met else "no", *self.states])


def check_claims(claims: Iterable[ClaimSpec], datasets: Iterable[DatasetResult]) -> list[ClaimResult]:
    """All claims on all data sets that have both rows; p is Holm-corrected over the claim's data sets."""
    checked = []
    for claim in claims:
        own = []
        for dataset in datasets:
            first, second = dataset.methods.get(claim.first), dataset.methods.get(claim.second)
            if first is None or second is None:
                continue
            if not any(fnmatch.fnmatch(dataset.name, pattern) for pattern in claim.datasets):
                continue
            hd95 = compare_methods(first, second, claim.noise, "hd95_mm")
            states = tuple(dict.fromkeys(state for state in (first.state, second.state) if state))
            own.append((dataset.name, compare_methods(first, second, claim.noise), hd95, states))
        tests = iter(corrected([dsc for _, dsc, _, _ in own if dsc is not None]))
        checked += [ClaimResult(claim, name, dsc and next(tests), hd95, states) for name, dsc, hd95, states in own]
    return checked
