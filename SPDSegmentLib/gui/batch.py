"""Many cases, one after the other: finished ones are skipped, one that fails does not stop the others."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from SPDSegmentLib.errors import BadInput, Cancelled, SPDError

from .batch_files import finishedRow, readCases, removeLeftovers, saveWhole, writeCsv, writeJson
from .measurements import measureSource

COLUMNS = ("case", "state", "error", "seconds", "volume_ml", "voxels", "quality", "doubtful_slices", "output", "model")
OUTPUT_SUFFIX = ".seg.nrrd"
ROW_SUFFIX = ".case.json"
_NAME = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class BatchCase:
    """One case: its name in the report, an image file, and a points file."""

    name: str
    image: str
    points: str


Cases = Iterable[BatchCase | Sequence[Any]] | str | Path
SegmentNodes = Callable[[Any, list[Any]], Any]


def runBatch(
    segment: SegmentNodes, cases: Cases, folder: Path, model: str, *, resume: bool = True, settings: str = ""
) -> dict[str, Any]:
    """Segment cases to files, see ``Console.segmentBatch``.

    Args:
        segment: takes a volume node and centerline nodes and returns a segmentation node.
        cases: see ``Console.segmentBatch``.
        folder: for results and reports; made if need be.
        model: its name, for the report; with another one, finished cases are done again.
        resume: skip the cases that are finished.
        settings: of the run, as text; with others, finished cases are done again.

    Raises:
        BadInput: a bad list, or the folder cannot be written.
        Cancelled: somebody stopped it; the report holds what was finished.
    """
    listed = checkedCases(cases)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _runAll(segment, listed, folder, model, resume, settings)
    except OSError as error:
        raise BadInput(
            _("The folder {path} cannot be used: {reason}.").format(path=folder, reason=error.strerror or error),
            _("Choose another one; what is finished there is kept."),
            repr(error),
        ) from error


def checkedCases(cases: Cases) -> list[BatchCase]:
    """Return cases with names that can be file names; raises BadInput for a bad list."""
    if isinstance(cases, (str, Path)):
        cases = readCases(Path(cases))
    listed = []
    for case in cases:
        if not isinstance(case, BatchCase):
            if isinstance(case, str) or len(case) != 3:
                raise BadInput(
                    _("A case of the batch is not (name, image, points)."), _("Give three values for each case.")
                )
            case = BatchCase(*(str(part) for part in case))
        listed.append(BatchCase(_NAME.sub("_", case.name).lstrip("."), str(case.image), str(case.points)))
    names = [case.name.lower() for case in listed]
    if len(set(names)) != len(names) or "" in names:
        raise BadInput(
            _("Two cases of the batch have the same name, or one has none."), _("Give every case a name of its own.")
        )
    return listed


def _runAll(
    segment: SegmentNodes, cases: list[BatchCase], folder: Path, model: str, resume: bool, settings: str
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    report = {"model": model, "settings": settings, "cases": rows}
    for number, case in enumerate(cases, start=1):
        key = {"image": case.image, "points": case.points, "model": model, "settings": settings}
        rowFile, output = folder / f"{case.name}{ROW_SUFFIX}", folder / f"{case.name}{OUTPUT_SUFFIX}"
        row = finishedRow(rowFile, output, key) if resume else None
        if row is None:
            rowFile.unlink(missing_ok=True)
            removeLeftovers(output)
            row = _runCase(segment, case, output) | key
            writeJson(rowFile, row)
            logging.info("SPDSegment batch %d/%d, %s: %s %s", number, len(cases), case.name, row["state"], row["error"])
        rows.append(row)
        writeJson(folder / "report.json", report)
        writeCsv(folder / "report.csv", COLUMNS, rows)
    return report


def _runCase(segment: SegmentNodes, case: BatchCase, output: Path) -> dict[str, Any]:
    started = time.monotonic()
    row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
    row.update(case=case.name, state="failed")
    known = _nodeIds()
    try:
        volumeNode = _load(case.image, "VolumeFile", {"show": False})
        node = segment(volumeNode, _loadPoints(case.points))
        row.update(_figures(node, volumeNode))
        saveWhole(node, output)
        row.update(state="done", output=output.name)
    except Cancelled:
        raise
    except SPDError as error:
        row["error"] = error.sentence
    except Exception as error:  # one case must not stop the others
        row["error"] = f"{type(error).__name__}: {error}"
    finally:
        _removeNew(known)
    row["seconds"] = round(time.monotonic() - started, 2)
    return row


def _figures(node: Any, volumeNode: Any) -> dict[str, Any]:
    from .export_files import makeSource

    source = makeSource(node, node.GetSegmentation().GetNthSegmentID(0), volumeNode, emptyToo=True)
    info = source.target.record.info.values()
    qualities = [slice_.quality for slice_ in info if slice_.quality is not None and slice_.status != "empty"]
    return {
        "volume_ml": measureSource(source)["volume"],
        "voxels": int(source.content.box.sum()),
        "quality": round(sum(qualities) / len(qualities), 3) if qualities else "",
        "doubtful_slices": sum(slice_.doubtful for slice_ in info),
    }


def _load(path: str, kind: str, properties: dict[str, Any]) -> Any:
    if not os.path.exists(path):
        raise BadInput(_("The file {path} is not there.").format(path=path), _("Check the list of cases."))
    try:
        return slicer.util.loadNodeFromFile(path, kind, properties)
    except RuntimeError as error:
        raise BadInput(_("The file {path} cannot be read.").format(path=path), "", str(error)) from error


def _loadPoints(path: str) -> list[Any]:
    before = _nodeIds()
    _load(path, "MarkupsFile", {})
    return [node for node in slicer.util.getNodesByClass("vtkMRMLMarkupsNode") if node.GetID() not in before]


def _nodeIds() -> set[str]:
    scene = slicer.mrmlScene
    return {scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())}


def _removeNew(known: set[str]) -> None:
    for number in reversed(range(slicer.mrmlScene.GetNumberOfNodes())):
        node = slicer.mrmlScene.GetNthNode(number)
        if node is not None and node.GetID() not in known and not node.GetSingletonTag():
            slicer.mrmlScene.RemoveNode(node)
