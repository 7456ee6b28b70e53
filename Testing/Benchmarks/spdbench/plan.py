"""What there is to measure: places of every cell, which of them are done, and how long the rest will take."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spdbench.cells import Cell, read_cell
from spdbench.config import BenchmarkConfig, MethodSpec, is_clean
from spdbench.datasets import Dataset
from spdbench.entries import Entry, EntryMaker
from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.evaluation.evaluator import EvaluationRow
from SPDSegmentLib.prompts.noise import NOISE_VERSION

Place = tuple[str, str, str, int]
SECONDS_UNKNOWN = 2.0


def steps_short(training: Mapping[str, Any], entry: Entry) -> str:
    """``535 of 1050 steps`` where a training's record says others than its configuration promises; else empty."""
    steps = training.get("steps", entry.steps)
    return f"{steps} of {entry.steps} steps" if entry.steps and steps != entry.steps else ""


@dataclass
class PlannedCell:
    """One data set under one method."""

    dataset: Dataset
    method: MethodSpec
    entries: list[Entry]
    cell: Cell

    @property
    def label(self) -> str:
        """As ``--only`` names it."""
        return f"{self.dataset.name}/{self.method.name}"

    def key(self, entry: Entry) -> str:
        """What rows of a fold stand under today: as they were written where that means the same."""
        kept = self.cell.keys.get(entry.fold.name)
        return entry.whole_key if kept is not None and kept == entry.whole_key else entry.key

    def counts(self, entry: Entry) -> bool:
        """Whether the rows of a fold are of today's key and of a whole training."""
        return self.cell.keys.get(entry.fold.name) == self.key(entry) and not self.half_trained(entry)

    def half_trained(self, entry: Entry) -> str:
        """``535 of 1050 steps`` where our own training of a fold had others than its configuration says."""
        if self.cell.keys.get(entry.fold.name) != self.key(entry):
            return ""
        return steps_short(self.cell.training.get(entry.fold.name, {}), entry)


@dataclass
class Plan:
    """All cells of a benchmark.

    Attributes:
        cells: in the order in which they are measured.
        target_names: names of a case's targets, known once it was read.
    """

    config: BenchmarkConfig
    cells: list[PlannedCell]
    target_names: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def draws(self, planned: PlannedCell) -> Iterator[tuple[str, int]]:
        """(noise, seed) of a cell; clean clicks are alike for all seeds and so drawn once."""
        dataset = planned.dataset.spec
        seeds = self.config.seeds_of(dataset)
        for noise in self.config.noises_of(planned.method, dataset):
            for seed in seeds[:1] if is_clean(noise) else seeds:
                yield noise, seed

    def missing(self, planned: PlannedCell, entry: Entry, case: str) -> list[Place]:
        """Places of a case that were not measured under today's key with a whole training.

        The case is read when its targets are not known yet.
        """
        known = self.target_names.get((planned.dataset.name, case))
        if known is None:
            known = [target.name for target in planned.dataset.targets(case)]
            self.target_names[planned.dataset.name, case] = known
        cell = planned.cell
        done = cell.rows if planned.counts(entry) else {}
        places = ((case, target, *draw) for target in known for draw in self.draws(planned))
        return [place for place in places if place not in done]

    def rows(self, planned: PlannedCell, earlier: bool = False) -> list[EvaluationRow]:
        """What counts, of what is wanted today; no case is read.

        Args:
            earlier: instead what was measured under keys of an earlier version or with a part of the training, with
                the same clicks.
        """
        cell, draws = planned.cell, set(self.draws(planned))
        if earlier and cell.noise_version != NOISE_VERSION:
            return []
        folds = {e.fold.name: set(e.fold.test) for e in planned.entries if planned.counts(e) != earlier}
        return [
            row
            for _, row in sorted(cell.rows.items())
            if row.case in folds.get(row.fold, ()) and (row.severity, row.seed) in draws
        ]

    def wanted(self, planned: PlannedCell) -> int:
        """How many rows a complete cell has."""
        draws = sum(1 for _ in self.draws(planned))
        targets = len(planned.dataset.training.data.targets)
        known = self.target_names
        cases = [case for entry in planned.entries for case in entry.fold.test]
        return draws * sum(len(known.get((planned.dataset.name, case), range(targets))) for case in cases)


def make_plan(config: BenchmarkConfig, results: Path, maker: EntryMaker, only: Sequence[str] = ()) -> Plan:
    """The plan of a benchmark, with what its results folder already holds.

    Args:
        only: patterns of ``data-set/method``; empty for all cells.

    Raises:
        BadInput: a pattern fits no cell, or a file is not understood.
    """
    cells = []
    for spec in config.datasets.values():
        methods = [m for m in config.methods.values() if spec.takes(m) and _chosen(f"{spec.name}/{m.name}", only)]
        if not methods:
            continue
        dataset = Dataset(spec, config.folder, config.limit)
        for method in methods:
            entries = [maker.entry(method.name, dataset, fold) for fold in dataset.folds]
            cells.append(
                PlannedCell(
                    dataset, method, entries, _with_patients(read_cell(results, spec.name, method.name), dataset)
                )
            )
    for pattern in only:
        if not any(fnmatch.fnmatch(cell.label, pattern) for cell in cells):
            raise BadInput(f"--only {pattern} fits no cell.", "Give data-set/method, for example kidney-mr/spd.")
    names = {(c.dataset.name, case): targets for c in cells for case, targets in c.cell.targets.items()}
    return Plan(config, cells, names)


def _with_patients(cell: Cell, dataset: Dataset) -> Cell:
    """A cell whose rows name the patients as the data set does today."""
    cell.rows = {place: replace(row, patient=dataset.patient(row.case)) for place, row in cell.rows.items()}
    return cell


def _chosen(label: str, only: Sequence[str]) -> bool:
    return not only or any(fnmatch.fnmatch(label, pattern) for pattern in only)


class TimeLeft:
    """Seconds left, from the pace of each method so far.

    Args:
        remaining: rows to measure, by label of the cell.
    """

    def __init__(self, remaining: dict[str, int]) -> None:
        self._remaining = dict(remaining)
        self._spent: dict[str, tuple[float, int]] = {}

    def spend(self, label: str, seconds: float) -> None:
        """One more row of a cell is done."""
        self._remaining[label] = max(0, self._remaining.get(label, 0) - 1)
        total, count = self._spent.get(label, (0.0, 0))
        self._spent[label] = total + seconds, count + 1

    def drop(self, label: str) -> None:
        """No more rows of a cell will be measured."""
        self._remaining.pop(label, None)

    def rows(self) -> int:
        """How many rows are still to be measured."""
        return sum(self._remaining.values())

    def seconds(self) -> float:
        """Estimate for all remaining rows; unmeasured cells count as the mean of the measured ones."""
        total = sum(spent for spent, _ in self._spent.values())
        rows = sum(count for _, count in self._spent.values())
        usual = total / rows if rows else SECONDS_UNKNOWN
        pace = {label: spent / count for label, (spent, count) in self._spent.items()}
        return sum(count * pace.get(label, usual) for label, count in self._remaining.items())
