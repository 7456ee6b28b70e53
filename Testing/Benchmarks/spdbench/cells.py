"""One file per data set and method: what was measured, under which key, and what became of it.

A file is JSON lines: first a header, then one list per row in the order of :data:`COLUMNS`. It is written beside its
place and renamed, so that a killed benchmark leaves every file whole. Rows whose fold has another key by now (another
bundle, other settings) do not count any more and are measured again.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from SPDSegmentLib import files
from SPDSegmentLib.errors import BadInput
from SPDSegmentLib.evaluation.evaluator import EvaluationRow
from SPDSegmentLib.prompts.noise import NOISE_VERSION


def read_training_record(folder: Path) -> dict[str, Any]:
    """``steps``, ``seconds`` and ``parameters`` where they are known; empty without a record."""
    try:
        values = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


FORMAT = 2
NOT_RUN = "not run"
FAILED = "failed"


COLUMNS = tuple(f.name for f in dataclasses.fields(EvaluationRow) if f.name not in ("bundle", "method"))
OLD_NAMES = {"noise": "severity"}
"""Columns of format 1."""


@dataclass
class Cell:
    """The state of one data set under one method.

    Attributes:
        keys: key of each fold that has rows.
        states: of folds that gave no rows: (``not run`` or ``failed``, reason).
        training: per fold, the ``training.json`` of a trained method.
        machines: where rows were measured.
        targets: names of the targets of every case that was read.
        noise_version: of the simulated clicks; rows of another version are on other clicks.
    """

    dataset: str
    method: str
    keys: dict[str, str] = field(default_factory=dict)
    states: dict[str, tuple[str, str]] = field(default_factory=dict)
    training: dict[str, dict[str, Any]] = field(default_factory=dict)
    machines: list[str] = field(default_factory=list)
    targets: dict[str, list[str]] = field(default_factory=dict)
    noise_version: int = NOISE_VERSION
    rows: dict[tuple[str, str, str, int], EvaluationRow] = field(default_factory=dict)

    def start_fold(self, fold: str, key: str) -> None:
        """Forget what was measured in a fold under another key."""
        if self.keys.get(fold) != key:
            self.forget(fold)
            self.keys[fold] = key

    def forget(self, fold: str) -> None:
        """Drop the rows of a fold, and the record of its training."""
        self.rows = {place: row for place, row in self.rows.items() if row.fold != fold}
        self.training.pop(fold, None)

    def add(self, row: EvaluationRow, machine: str) -> None:
        """Take in a row."""
        self.rows[row.place] = row
        self.states.pop(row.fold, None)
        if machine not in self.machines:
            self.machines.append(machine)


def cell_path(folder: Path, dataset: str, method: str) -> Path:
    """Where a cell is kept."""
    return folder / "cells" / dataset / f"{method}.jsonl"


def read_cell(folder: Path, dataset: str, method: str) -> Cell:
    """A cell as it was left, or an empty one.

    Raises:
        BadInput: a file that this version does not understand.
    """
    path = cell_path(folder, dataset, method)
    cell = Cell(dataset, method)
    if not path.is_file():
        return cell
    try:
        header, *lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        if header["format"] not in (1, FORMAT):
            raise ValueError(f"format {header['format']}")
        columns = [OLD_NAMES.get(name, name) for name in header["columns"]]
        rows = [EvaluationRow("", method, **dict(zip(columns, line, strict=True))) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is not a result of this benchmark.", "Remove it; it is measured again.") from error
    cell.noise_version = header.get("noise_version", 1)
    cell.keys = header["keys"]
    cell.states = {fold: (state, reason) for fold, (state, reason) in header["states"].items()}
    cell.training = header["training"]
    cell.machines = header["machines"]
    cell.targets = header["targets"]
    cell.rows = {row.place: row for row in rows}
    return cell


def write_cell(folder: Path, cell: Cell) -> None:
    """Write a cell in one piece, rows sorted, so that the order of measuring leaves no trace."""
    path = cell_path(folder, cell.dataset, cell.method)
    header = {
        "format": FORMAT,
        "dataset": cell.dataset,
        "method": cell.method,
        "noise_version": NOISE_VERSION,
        "keys": dict(sorted(cell.keys.items())),
        "states": dict(sorted(cell.states.items())),
        "training": dict(sorted(cell.training.items())),
        "machines": cell.machines,
        "targets": dict(sorted(cell.targets.items())),
        "columns": COLUMNS,
    }
    lines = [header, *([getattr(cell.rows[place], name) for name in COLUMNS] for place in sorted(cell.rows))]
    write_text(path, "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


def write_text(path: Path, text: str) -> None:
    """Write a text file in one piece; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, text)
