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


def read_training_record(folder: Path) -> dict[str, Any]:
    """``steps``, ``seconds`` and ``parameters`` where they are known; empty without a record."""
    try:
        values = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


FORMAT = 1
NOT_RUN = "not run"
FAILED = "failed"


@dataclass(frozen=True)
class Row:
    """One segmentation of one target; metrics as in :class:`SPDSegmentLib.evaluation.protocol.EvaluationRow`.

    Attributes:
        noise: label of :mod:`spdbench.config`.
        seconds: of the segmentation alone, what is kept from earlier clicks on the volume not counted.
    """

    fold: str
    patient: str
    case: str
    target: str
    noise: str
    seed: int
    clicks: int
    outside_share: float
    dsc: float | None
    iou: float | None
    hd95_mm: float | None
    nsd: float | None
    slice_dsc: float | None
    slice_iou: float | None
    slice_hd95_mm: float | None
    seconds: float

    @property
    def place(self) -> tuple[str, str, str, int]:
        """What was segmented with which clicks."""
        return self.case, self.target, self.noise, self.seed


COLUMNS = tuple(f.name for f in dataclasses.fields(Row))
METRICS = ("dsc", "iou", "hd95_mm", "nsd", "slice_dsc", "slice_iou", "slice_hd95_mm")


@dataclass
class Cell:
    """The state of one data set under one method.

    Attributes:
        keys: key of each fold that has rows.
        states: of folds that gave no rows: (``not run`` or ``failed``, reason).
        training: per fold, the ``training.json`` of a trained method.
        machines: where rows were measured.
        targets: names of the targets of every case that was read.
    """

    dataset: str
    method: str
    keys: dict[str, str] = field(default_factory=dict)
    states: dict[str, tuple[str, str]] = field(default_factory=dict)
    training: dict[str, dict[str, Any]] = field(default_factory=dict)
    machines: list[str] = field(default_factory=list)
    targets: dict[str, list[str]] = field(default_factory=dict)
    rows: dict[tuple[str, str, str, int], Row] = field(default_factory=dict)

    def start_fold(self, fold: str, key: str) -> None:
        """Forget what was measured in a fold under another key."""
        if self.keys.get(fold) != key:
            self.rows = {place: row for place, row in self.rows.items() if row.fold != fold}
            self.training.pop(fold, None)
            self.keys[fold] = key

    def add(self, row: Row, machine: str) -> None:
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
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']}")
        columns = header["columns"]
        rows = [Row(**dict(zip(columns, line, strict=True))) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is not a result of this benchmark.", "Remove it; it is measured again.") from error
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
        "keys": dict(sorted(cell.keys.items())),
        "states": dict(sorted(cell.states.items())),
        "training": dict(sorted(cell.training.items())),
        "machines": cell.machines,
        "targets": dict(sorted(cell.targets.items())),
        "columns": COLUMNS,
    }
    lines = [header, *(list(dataclasses.astuple(cell.rows[place])) for place in sorted(cell.rows))]
    write_text(path, "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


def write_text(path: Path, text: str) -> None:
    """Write a text file in one piece; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, text)
