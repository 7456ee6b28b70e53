"""Figures of a benchmark per patient: means with bootstrap intervals, and paired tests against the reference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from spdbench.cells import Row
from spdbench.config import ClaimSpec, DatasetSpec, MethodSpec
from spdbench.plan import Plan
from SPDSegmentLib.evaluation.statistics import bootstrap_ci, holm, paired_wilcoxon, patient_means

SIGNIFICANT = 0.05
NOT_YET = "not measured yet"


@dataclass(frozen=True)
class Figure95:
    """A mean over patients with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    patients: int


@dataclass(frozen=True)
class Difference:
    """Reference minus method over the patients and clicks that both have.

    Attributes:
        p: two-sided paired Wilcoxon; p_holm: corrected over the family that it was tested in.
    """

    method: str
    noise: str
    value: Figure95
    p: float
    p_holm: float = 1.0


class MethodResult:
    """One method on one data set.

    Attributes:
        state: empty, or ``not run: ...``, ``failed: ...``, ``3 of 40 measured``.
    """

    def __init__(self, method: MethodSpec, rows: list[Row], state: str, training: dict[str, dict[str, Any]]) -> None:
        self.method = method
        self.rows = rows
        self.state = state
        self.training = training
        self._by_noise: dict[str, list[Row]] = {}
        for row in rows:
            self._by_noise.setdefault(row.noise, []).append(row)

    def at(self, noise: str) -> list[Row]:
        """Rows with one noise."""
        return self._by_noise.get(noise, [])

    def patients(self, noise: str, metric: str) -> dict[str, float]:
        """Mean of a metric per patient, over targets and seeds."""
        rows = self.at(noise)
        return patient_means([row.patient for row in rows], [getattr(row, metric) for row in rows])

    def figure(self, noise: str, metric: str = "dsc") -> Figure95 | None:
        """Mean over patients; ``None`` without rows."""
        return figure_of(self.patients(noise, metric).values())


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


def figure_of(values: Iterable[float]) -> Figure95 | None:
    """Mean and interval; ``None`` for no values."""
    known = list(values)
    if not known:
        return None
    low, high = bootstrap_ci(known)
    return Figure95(float(np.mean(known)), low, high, len(known))


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
        if not states and len(rows) < wanted:
            states = [f"{len(rows)} of {wanted} measured"] if rows else [NOT_YET]
        result = MethodResult(planned.method, rows, "; ".join(states), planned.cell.training)
        collected[dataset.name].methods[planned.method.name] = result
    return list(collected.values())


def difference(reference: MethodResult, other: MethodResult, noise: str, metric: str = "dsc") -> Difference | None:
    """Reference minus other over what both have; ``None`` where they share no patient."""
    places = {row.place for row in reference.at(noise)} & {row.place for row in other.at(noise)}
    means = []
    for result in (reference, other):
        rows = [row for row in result.at(noise) if row.place in places]
        means.append(patient_means([row.patient for row in rows], [getattr(row, metric) for row in rows]))
    patients = sorted(means[0].keys() & means[1].keys())
    ours, theirs = ([mean[p] for p in patients] for mean in means)
    value = figure_of(np.subtract(ours, theirs).tolist())
    if value is None:
        return None
    return Difference(other.method.name, noise, value, paired_wilcoxon(ours, theirs))


def differences(
    dataset: DatasetResult, reference: str, noises: Iterable[str], methods: Iterable[MethodResult]
) -> dict[tuple[str, str], Difference]:
    """Reference minus each of the methods at every noise (DSC), by (method, noise).

    Holm's correction is over all of these tests: those of one table.
    """
    base = dataset.methods.get(reference)
    if base is None:
        return {}
    pairs = [(noise, result) for noise in noises for result in methods if result is not base]
    found = [test for noise, result in pairs if (test := difference(base, result, noise)) is not None]
    corrected = holm([test.p for test in found])
    return {
        (test.method, test.noise): Difference(test.method, test.noise, test.value, test.p, p)
        for test, p in zip(found, corrected, strict=True)
    }


@dataclass(frozen=True)
class ClaimResult:
    """A claim on one data set; ``hd95`` is first minus second in mm (negative is better)."""

    claim: ClaimSpec
    dataset: str
    dsc: Difference | None
    hd95: Difference | None

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
        if self.claim.bound:
            return "-"
        if not self.met:
            return "no"
        return "yes" if self.dsc.p_holm < SIGNIFICANT else "in size only"


def check_claims(claims: Iterable[ClaimSpec], datasets: Iterable[DatasetResult]) -> list[ClaimResult]:
    """All claims on all data sets that have both rows; p is Holm-corrected over the claim's data sets."""
    import fnmatch

    checked = []
    for claim in claims:
        own = []
        for dataset in datasets:
            first, second = dataset.methods.get(claim.first), dataset.methods.get(claim.second)
            if first is None or second is None:
                continue
            if not any(fnmatch.fnmatch(dataset.name, pattern) for pattern in claim.datasets):
                continue
            dsc = difference(first, second, claim.noise)
            own.append((dataset.name, dsc, difference(first, second, claim.noise, "hd95_mm")))
        corrected = iter(holm([dsc.p for _, dsc, _ in own if dsc is not None]))
        for name, dsc, hd95 in own:
            if dsc is not None:
                dsc = Difference(dsc.method, dsc.noise, dsc.value, dsc.p, next(corrected))
            checked.append(ClaimResult(claim, name, dsc, hd95))
    return checked
