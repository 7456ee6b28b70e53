"""Files of a batch: its list of cases, results and reports; each is whole or not there."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from SPDSegmentLib.errors import BadInput

PARTIAL = ".partial"


def readCases(path: Path) -> list[tuple[str, str, str]]:
    """Return (name, image, points) of each line of a CSV file with these columns; paths are relative to the file.

    Raises:
        BadInput: the file cannot be read, or a column is missing.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(_("The list {path} cannot be read.").format(path=path), "", repr(error)) from error
    for column in ("name", "image", "points"):
        if any(not line.get(column) for line in lines):
            raise BadInput(
                _("The list {path} lacks a value in the column {column}.").format(path=path, column=column),
                _("Its columns are name, image and points."),
            )
    return [(line["name"], str(path.parent / line["image"]), str(path.parent / line["points"])) for line in lines]


def finishedRow(rowFile: Path, output: Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the row of a case that is finished: its output is there and was made from the same things."""
    try:
        row = json.loads(rowFile.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(row, dict) or row.get("state") != "done" or not output.is_file():
        return None
    return row if all(row.get(name) == value for name, value in key.items()) else None


def saveWhole(node: Any, output: Path) -> None:
    """Write a node beside its place and rename it; raises BadInput where that fails."""
    beside = output.with_name(f"{PARTIAL}-{os.getpid()}-{output.name}")
    try:
        if not slicer.util.saveNode(node, str(beside)):
            raise BadInput(_("{path} cannot be written.").format(path=output), _("Check the folder."))
        os.replace(beside, output)
    finally:
        beside.unlink(missing_ok=True)


def removeLeftovers(output: Path) -> None:
    """Delete what a killed run left of a result."""
    for path in output.parent.glob(f"{PARTIAL}-*-{output.name}"):
        path.unlink(missing_ok=True)


def writeJson(path: Path, content: Any) -> None:
    """Write JSON beside its place and rename it."""
    beside = path.with_name(f"{PARTIAL}-{os.getpid()}-{path.name}")
    beside.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(beside, path)


def writeCsv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table beside its place and rename it."""
    beside = path.with_name(f"{PARTIAL}-{os.getpid()}-{path.name}")
    with beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(beside, path)
