"""Many cases, one after the other: finished ones are skipped, one that fails does not stop the others."""

from __future__ import annotations

import csv
import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import slicer
from slicer.i18n import tr as _

from SPDSegmentLib.errors import BadInput, Cancelled, SPDError

COLUMNS = ("case", "state", "error", "seconds", "voxels", "output")
OUTPUT_SUFFIX = ".seg.nrrd"
_NAME = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class BatchCase:
    """One case: its name in the report, an image file, and a points file."""

    name: str
    image: str
    points: str


class SupportsSegment(Protocol):
    """Who segments, see ``console.Console``."""

    def segment(self, volumeNode: Any, centerlineNode: Any, model: str, **options: Any) -> Any:
        """Return a segmentation node."""


def runBatch(
    console: SupportsSegment,
    cases: Iterable[BatchCase | Sequence[Any]],
    folder: Path,
    model: str,
    *,
    resume: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Segment cases to files, see ``Console.segmentBatch``; BadInput for a bad list."""
    listed = _checked(cases)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for case in listed:
        row = _finishedRow(folder, case) if resume else None
        if row is None:
            row = _runCase(console, case, folder, model, options)
        rows.append(row)
        report = {"model": model, "cases": rows}
        _writeJson(folder / "report.json", report)
        _writeCsv(folder / "report.csv", rows)
    return {"model": model, "cases": rows}


def _checked(cases: Iterable[BatchCase | Sequence[Any]]) -> list[BatchCase]:
    listed = [
        case if isinstance(case, BatchCase) else BatchCase(*(str(part) for part in case))
        for case in cases
        if isinstance(case, BatchCase) or _isTriple(case)
    ]
    names = [_NAME.sub("_", case.name) for case in listed]
    if len(set(names)) != len(names) or "" in names:
        raise BadInput(_("Two cases of the batch have the same name."), _("Give every case a name of its own."))
    return [BatchCase(name, case.image, case.points) for name, case in zip(names, listed, strict=True)]


def _isTriple(case: Sequence[Any]) -> bool:
    if len(case) != 3:
        raise BadInput(_("A case of the batch is not (name, image, points)."), _("Give three values for each case."))
    return True


def _runCase(
    console: SupportsSegment, case: BatchCase, folder: Path, model: str, options: dict[str, Any]
) -> dict[str, Any]:
    started = time.monotonic()
    row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
    row.update(case=case.name, state="failed", voxels=0)
    known = {slicer.mrmlScene.GetNthNode(n).GetID() for n in range(slicer.mrmlScene.GetNumberOfNodes())}
    try:
        node = console.segment(_load(case.image, "VolumeFile"), _loadAll(case.points), model, **options)
        output = folder / f"{case.name}{OUTPUT_SUFFIX}"
        _save(node, output)
        row.update(state="done", output=output.name, voxels=_voxels(node))
    except Cancelled:
        raise
    except SPDError as error:
        row["error"] = error.sentence
    except Exception as error:  # one case must not stop the others
        row["error"] = f"{type(error).__name__}: {error}"
    finally:
        row["seconds"] = round(time.monotonic() - started, 2)
        _removeNew(known)
    _writeJson(folder / f"{case.name}.json", row)
    return row


def _finishedRow(folder: Path, case: BatchCase) -> dict[str, Any] | None:
    try:
        row = json.loads((folder / f"{case.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    done = isinstance(row, dict) and row.get("state") == "done" and (folder / str(row.get("output"))).is_file()
    return row if done else None


def _load(path: str, kind: str) -> Any:
    if not Path(path).is_file():
        raise BadInput(_("The file {path} is not there.").format(path=path), _("Check the list of cases."))
    loaded = slicer.util.loadNodeFromFile(path, kind)
    if loaded is None:
        raise BadInput(_("The file {path} cannot be read.").format(path=path), _("Check the file."))
    return loaded


def _loadAll(path: str) -> list[Any]:
    before = {node.GetID() for node in slicer.util.getNodesByClass("vtkMRMLMarkupsNode")}
    _load(path, "MarkupsFile")
    return [node for node in slicer.util.getNodesByClass("vtkMRMLMarkupsNode") if node.GetID() not in before]


def _save(node: Any, output: Path) -> None:
    beside = output.with_name(f"partial-{os.getpid()}-{output.name}")
    try:
        if not slicer.util.saveNode(node, str(beside)):
            raise BadInput(_("{path} cannot be written.").format(path=output), _("Check the folder."))
        os.replace(beside, output)
    finally:
        beside.unlink(missing_ok=True)


def _voxels(node: Any) -> int:
    segmentation = node.GetSegmentation()
    array = slicer.util.arrayFromSegmentInternalBinaryLabelmap(node, segmentation.GetNthSegmentID(0))
    return int((array != 0).sum())


def _removeNew(known: set[str]) -> None:
    for number in reversed(range(slicer.mrmlScene.GetNumberOfNodes())):
        node = slicer.mrmlScene.GetNthNode(number)
        if node is not None and node.GetID() not in known and not node.GetSingletonTag():
            slicer.mrmlScene.RemoveNode(node)


def _writeJson(path: Path, content: Any) -> None:
    beside = path.with_name(f"{path.name}.partial")
    beside.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(beside, path)


def _writeCsv(path: Path, rows: list[dict[str, Any]]) -> None:
    beside = path.with_name(f"{path.name}.partial")
    with beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(beside, path)
