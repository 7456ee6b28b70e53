"""Measure what is missing: data set by data set, fold by fold, methods on one bundle together, case by case.

A cell that fails says so and the others go on. Every cell's file is written whole after each case, and at least every
half minute, so that a kill costs no more than that.
"""

from __future__ import annotations

import itertools
import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spdbench.cells import FAILED, NOT_RUN, read_training_record, write_cell
from spdbench.comparators.own_training import TrainedRow
from spdbench.comparators.protocol import Comparator, NotRun
from spdbench.datasets import clicks_for
from spdbench.entries import Entry
from spdbench.plan import Place, Plan, PlannedCell, TimeLeft, steps_short
from spdbench.progress import StepClock, time_text
from SPDSegmentLib.errors import Cancelled, SPDError
from SPDSegmentLib.evaluation.evaluator import EvaluationTarget, Fates, Judge, Occasion, measure
from SPDSegmentLib.geometry.centerline import Clicks

SAVE_SECONDS = 30.0
log = logging.getLogger(__name__)
OnProgress = Callable[[str, int, int, float | None], None]
"""Called as (what is being done, rows done, rows in all, seconds left or None)."""


@dataclass
class RunnerOptions:
    """Where to write and whom to tell.

    Attributes:
        results: folder of the cells; work: folder of trainings; machine: short name for the record.
        cancelled: polled between segmentations.
    """

    results: Path
    work: Path
    machine: str
    on_progress: OnProgress = lambda *args: None
    cancelled: Callable[[], bool] = lambda: False


class Runner:
    """Carries out a plan."""

    def __init__(self, plan: Plan, options: RunnerOptions) -> None:
        self.plan = plan
        self.options = options
        self._judge = Judge()
        wanted = {c.label: plan.wanted(c) for c in plan.cells}
        done = {c.label: min(wanted[c.label], len(plan.rows(c))) for c in plan.cells}
        self._done = sum(done.values())
        self._left = TimeLeft({label: wanted[label] - done[label] for label in wanted})

    def remaining(self) -> int:
        """How many rows are not measured yet."""
        return self._left.rows()

    def run(self) -> None:
        """Measure everything that is missing.

        Raises:
            Cancelled: the user stopped; the same call goes on.
        """
        for _, by_dataset in itertools.groupby(self.plan.cells, key=lambda c: c.dataset.name):
            cells = list(by_dataset)
            for position in range(len(cells[0].entries)):
                groups: dict[str, list[tuple[PlannedCell, Entry]]] = {}
                for planned in cells:
                    entry = planned.entries[position]
                    groups.setdefault(entry.shares or planned.label, []).append((planned, entry))
                for group in groups.values():
                    self._run_group(group)

    def _run_group(self, group: list[tuple[PlannedCell, Entry]]) -> None:
        ready: list[tuple[PlannedCell, Entry, Comparator]] = []
        for planned, entry in group:
            try:
                if not any(self.plan.missing(planned, entry, case) for case in entry.fold.test):
                    continue
            except Exception as error:  # a case cannot be read
                self._give_up(planned, entry.fold.name, error)
                continue
            comparator = self._prepare(planned, entry)
            if comparator is not None:
                ready.append((planned, entry, comparator))
        for case in group[0][1].fold.test:
            for planned, entry, comparator in list(ready):
                if not self._run_case(planned, entry, comparator, case):
                    ready.remove((planned, entry, comparator))

    def _prepare(self, planned: PlannedCell, entry: Entry) -> Comparator | None:
        """A comparator ready to segment; ``None``, with the reason on record, where that cannot be."""
        cell, fold = planned.cell, entry.fold.name
        cell.start_fold(fold, planned.key(entry))
        try:
            if entry.not_run:
                raise NotRun(entry.not_run)
            comparator = entry.make()
            folder = entry.folder(self.options.work)
            if comparator.needs_training:
                self._train(planned, entry, comparator, folder)
                record = read_training_record(folder)
                if short := steps_short(record, entry):
                    raise NotRun(f"its model had {short}; remove {folder.name} from the folder of trainings (--work)")
                if planned.half_trained(entry):
                    cell.forget(fold)
                cell.training[fold] = record
            comparator.load(folder)
        except Exception as error:
            self._give_up(planned, fold, error)
            return None
        return comparator

    def _train(self, planned: PlannedCell, entry: Entry, comparator: Comparator, folder: Path) -> None:
        if not self.plan.config.training and not (folder / "training.json").is_file():
            raise NotRun("not trained, trainings are switched off")
        folder.mkdir(parents=True, exist_ok=True)
        label = f"{planned.label}, fold {entry.fold.name}"
        reads_files = isinstance(comparator, TrainedRow)
        clock = StepClock(0.0 if reads_files else self.plan.config.budget.seconds)

        def on_progress(step: int, steps: int, losses: dict[str, float]) -> None:
            if self.options.cancelled():
                raise Cancelled()
            doing = "training" if losses else "preparing training"
            left = clock.seconds_left(step, steps, limited=bool(losses))
            of_these = "" if left is None else f"{time_text(left)} of these steps"
            self._tell(f"{doing} {label}, step {step}/{steps}{of_these}", None)

        cases = [] if reads_files else planned.dataset.training_cases(entry.fold, entry.train_patients)
        comparator.train(cases, folder, self.plan.config.budget, on_progress)

    def _run_case(self, planned: PlannedCell, entry: Entry, comparator: Comparator, case: str) -> bool:
        """Measure what a case lacks; whether the cell can go on."""
        try:
            places = self.plan.missing(planned, entry, case)
            if not places:
                return True
            targets = {target.name: target for target in planned.dataset.targets(case)}
            planned.cell.targets[case] = list(targets)
            self._measure(planned, entry, comparator, targets, places)
        except Exception as error:
            self._give_up(planned, entry.fold.name, error)
            return False
        return True

    def _measure(
        self,
        planned: PlannedCell,
        entry: Entry,
        comparator: Comparator,
        targets: dict[str, EvaluationTarget],
        places: list[Place],
    ) -> None:
        def segment(target: EvaluationTarget, clicks: Clicks) -> tuple[np.ndarray, Fates | None]:
            return comparator.segment(target, clicks), getattr(comparator, "click_fates", None)

        saved = time.monotonic()
        try:
            for _, name, noise, seed in places:
                if self.options.cancelled():
                    raise Cancelled()
                begun = time.monotonic()
                clicks, outside = clicks_for(entry.method.clicks, entry.dataset, targets[name], noise, seed)
                fold, dataset = entry.fold.name, entry.dataset.name
                occasion = Occasion("", entry.method.name, noise, seed, outside, fold, dataset)
                row = measure(segment, targets[name], clicks, occasion, self._judge)
                planned.cell.add(row, self.options.machine)
                self._done += 1
                self._left.spend(planned.label, time.monotonic() - begun)
                self._tell(planned.label, self._left.seconds())
                if time.monotonic() - saved > SAVE_SECONDS:
                    write_cell(self.options.results, planned.cell)
                    saved = time.monotonic()
        finally:
            write_cell(self.options.results, planned.cell)

    def _give_up(self, planned: PlannedCell, fold: str, error: Exception) -> None:
        """Put the reason on record; a cancellation goes on up."""
        if isinstance(error, Cancelled):
            raise error
        if isinstance(error, NotRun):
            state, reason = NOT_RUN, error.reason
        else:
            reason = error.message if isinstance(error, SPDError) else f"{type(error).__name__}: {error}"
            state = FAILED
            log.error("%s, fold %s failed\n%s", planned.label, fold, "".join(traceback.format_exception(error)))
        planned.cell.states[fold] = (state, reason)
        write_cell(self.options.results, planned.cell)
        self._left.drop(planned.label)
        self._tell(f"{planned.label}: {state}, {reason}", self._left.seconds())

    def _tell(self, what: str, seconds_left: float | None) -> None:
        self.options.on_progress(what, self._done, self._done + self._left.rows(), seconds_left)
