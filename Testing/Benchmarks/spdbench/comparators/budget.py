"""One optimisation within a budget: resumed where it stopped, its cost written beside the weights."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spdbench.comparators.protocol import Budget, OnProgress
from SPDSegmentLib.errors import BadInput, Cancelled
from SPDSegmentLib.files import write_json
from SPDSegmentLib.training.loop import Loop, LoopProgress, Phase

RECORD_NAME = "training.json"
RECORD_SECONDS = 5.0


@dataclass
class TrainingRecord:
    """What a training has cost so far.

    Attributes:
        steps, seconds: done, over all parts together; parameters: trainable ones.
        finished: whether the budget is spent and the weights are those to use.
        settings: of the comparator; another one may not continue this training.
    """

    steps: int = 0
    seconds: float = 0.0
    parameters: int = 0
    finished: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write it into a comparator's folder."""
        write_json(folder / RECORD_NAME, asdict(self))


def open_record(folder: Path, settings: Mapping[str, Any]) -> TrainingRecord:
    """The record of a training that is begun or continued; makes the folder.

    Raises:
        BadInput: the folder belongs to other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = json.loads(json.dumps(dict(settings)))
    path = folder / RECORD_NAME
    if not path.exists():
        return TrainingRecord(settings=wanted)
    record = TrainingRecord(**json.loads(path.read_text(encoding="utf-8")))
    if record.settings != wanted:
        raise BadInput(f"{folder} holds a training with other settings.", "Choose another folder, or remove this one.")
    return record


def run_phase(phase: Phase, folder: Path, budget: Budget, record: TrainingRecord, on_progress: OnProgress) -> None:
    """Train until the steps or the seconds are spent, and note the cost in ``record``.

    What ``on_progress`` raises is raised again after a checkpoint was written.
    """
    before, begun = record.seconds, time.monotonic()
    written = begun
    failures: list[BaseException] = []

    def note() -> None:
        record.seconds = before + time.monotonic() - begun

    def forward(progress: LoopProgress) -> None:
        nonlocal written
        note()
        record.steps = progress.step
        if time.monotonic() - written > RECORD_SECONDS:
            record.write(folder)
            written = time.monotonic()
        try:
            on_progress(progress.step, progress.steps, progress.losses)
        except (Exception, KeyboardInterrupt) as error:
            failures.append(error)

    def stopped() -> bool:
        return bool(failures) or 0 < budget.seconds <= record.seconds

    with contextlib.suppress(Cancelled):
        Loop(folder, on_progress=forward, cancelled=stopped).run(phase)
    note()
    record.write(folder)
    if failures:
        raise failures[0]
