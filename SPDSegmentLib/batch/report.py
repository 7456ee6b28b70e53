"""The rows of a batch: one file a case, by which a batch goes on, and one report as CSV and JSON."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeGuard

from SPDSegmentLib.batch.cases import KEY_FIELDS, STAMP, BatchCase, BatchModel, case_key, input_stamp, settings_key
from SPDSegmentLib.errors import BadInput, SPDError
from SPDSegmentLib.files import write_csv, write_json
from SPDSegmentLib.models.storage import sha256_of
from SPDSegmentLib.staging import FolderLock

COLUMNS = (
    "case", "state", "error", "notes", "seconds", "volume_ml", "length_mm", "mean_diameter_mm", "largest_diameter_mm",
    "voxels", "quality", "dice", "dice_at_least", "doubtful_slices", "clicks_kept", "clicks_insisted",
    "clicks_borrowed", "clicks_rejected", "clicks_past_end", "clicks_outside", "points_synthesized", "output",
    "dicom_seg", "rtstruct", "model", "device", "image", "points",
)  # fmt: skip
ROW_SUFFIX = ".case.json"
DICOM_SUFFIX = ".dcm"
REPORT_NAME = "report"
EARLIER = "earlier"
"""Key of a row under which the row of the result lies that the last run left as it was."""
CLAIM = "claim"
"""Key under which the file of a row has the name of the run that computes its case."""
_ROW_ONLY = ("report", "output_digest", "known_digests", "beside", STAMP, EARLIER, CLAIM)
_OF_THE_CASE = ("case", "state", "error", "output", "image", "points")
_LOCK_NAME = ".spdsegment-report.lock"
_LOCK_SECONDS = 30.0
_WRITE_SHARE = 0.1
"""Share of the time that may go into reports of unfinished batches."""


class CaseState(StrEnum):
    """How a case stands.

    ``LOOK`` is done, but must be looked at; ``KEPT`` is a result that somebody changed, or that is not the batch's.
    """

    DONE = "done"
    LOOK = "look"
    FAILED = "failed"
    KEPT = "kept"
    WRITING = "writing"


def empty_row(case: BatchCase, model: str, full_paths: bool = False) -> dict[str, Any]:
    """The row of a case of which nothing is known yet; it names files, and their folders only with ``full_paths``."""
    return dict.fromkeys(COLUMNS, "") | {
        "case": case.name,
        "state": CaseState.FAILED.value,
        "model": model,
        "image": case.image if full_paths else Path(case.image).name,
        "points": case.points if full_paths else Path(case.points).name,
        "clicks": [],
    }


def read_row(path: Path) -> dict[str, Any] | None:
    """The row that a batch has left of a case, or None."""
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return row if _is_row(row) else None


def claim_row(path: Path, row: Mapping[str, Any] | None) -> str:
    """Note in the file of a row, which stays as it is, that its case is begun now; returns the name of that run.

    Raises:
        BadInput: it cannot be written.
    """
    claim = uuid.uuid4().hex
    write_json(path, {**(row or {}), CLAIM: claim})
    return claim


def has_claim(path: Path, claim: str) -> bool:
    """Whether nobody else has begun or done the case since :func:`claim_row`.

    Raises:
        BadInput: it cannot be read, and could not a moment later either.
    """
    for wait in (0.1, 0.4, 1.5, 0.0):  # disks of a network and virus scanners fail for a moment
        try:
            noted = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return False
        except OSError as error:
            reason = error
            time.sleep(wait)
        else:
            return isinstance(noted, dict) and noted.get(CLAIM) == claim
    raise BadInput(
        f"{path.name} cannot be read, by which it is known that no other batch has the case: {reason.strerror}.",
        "Run the same command again.",
        repr(reason),
    )


def check_claim(row_file: Path, row: Mapping[str, Any]) -> None:
    """Raise :class:`BadInput` where another batch has begun or done a case since this one claimed it."""
    if not has_claim(row_file, row[CLAIM]):
        raise BadInput("Another batch took this case over meanwhile.", "Run the same command again.")


def _is_row(row: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(row, dict) and "case" in row and "state" in row


def result_of(row: dict[str, Any] | None) -> dict[str, Any] | None:
    """The row of a case's result: the earlier one where the last run left that as it was."""
    earlier = row.get(EARLIER) if row is not None else None
    return earlier if _is_row(earlier) else row


def earlier_result(row: dict[str, Any] | None, row_file: Path, output: Path) -> dict[str, Any]:
    """What a row that takes the place of another one holds of it, so that its files are known as the batch's."""
    if row is not None and "known_digests" not in row:  # of version 0.1.0, which told its masks by the row's time
        digest = None if is_foreign(row, row_file, output) else digest_of(output)
        row = row | {"known_digests": [digest] if digest else []}
    return {} if row is None else {EARLIER: row}


def is_finished(row: Mapping[str, Any] | None, output: Path, key: Mapping[str, str]) -> bool:
    """Whether a result is there, as it was written, and made of what ``key`` says."""
    if row is None or any(row.get(name) != key.get(name) for name in KEY_FIELDS):
        return False
    if row["state"] not in (CaseState.DONE, CaseState.LOOK, CaseState.WRITING):
        return False
    beside = row.get("beside", {})
    return digest_of(output) == row.get("output_digest", "") and all(
        digest_of(output.with_name(name)) == digest for name, digest in beside.items()
    )


def is_foreign(row: Mapping[str, Any] | None, row_file: Path, output: Path) -> bool:
    """Whether a file lies in a result's place that the batch did not write as it is, so that it must not be lost."""
    digest = digest_of(output)
    if digest is None or digest in known_digests(row):
        return False
    if output.suffix == DICOM_SUFFIX:
        return True
    if row is not None and "known_digests" not in row and row["state"] == CaseState.DONE:  # of version 0.1.0
        return output.stat().st_mtime > row_file.stat().st_mtime + 1
    from SPDSegmentLib.geometry.labelmap import read_labelmap
    from SPDSegmentLib.geometry.nifti import CutShort

    try:
        read_labelmap(output)
    except CutShort:
        return False
    except SPDError:  # overlapping segments, fractions, or no memory to look: somebody's work
        return True
    return True


def done_state(row: Mapping[str, Any]) -> CaseState:
    """The state of a row whose mask is written: whether its report names a reason to look at it."""
    report = row.get("report")
    return CaseState.LOOK if isinstance(report, Mapping) and report.get("doubts") else CaseState.DONE


def known_digests(row: Mapping[str, Any] | None) -> list[str]:
    """Digests of the masks that the batch may have written for a case."""
    digests = row.get("known_digests", []) if row is not None else []
    return [str(digest) for digest in digests] if isinstance(digests, list) else []


def kept_error(output: Path) -> str:
    """The sentence about a result that is left alone."""
    return (
        f"{output.name} was changed after the batch wrote it, or is not the batch's, and is left alone. "
        "Delete or rename it, or run without resuming, to have the case segmented again."
    )


def kept_figures(former: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the row of a result that is left alone tells of the batch's own mask of that case."""
    if former is None or former["state"] not in (CaseState.DONE, CaseState.LOOK):
        return {}
    figures = {name: former[name] for name in (*COLUMNS, "clicks") if name in former}
    notes = f"{figures.get('notes', '')} The figures are those of the mask before it was changed."
    return {name: value for name, value in figures.items() if name not in _OF_THE_CASE} | {"notes": notes.strip()}


def report_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a case's row that the report shows."""
    return {name: value for name, value in row.items() if name not in _ROW_ONLY}


class Report:
    """``report.csv`` and ``report.json`` of a folder, in the order of the cases.

    Args:
        head: what the report says of the whole batch.
        cases: all cases of the table, also those of other parts.
        settings: of the batch, see :meth:`SPDSegmentLib.batch.segmenting.BatchSettings.key`.
    """

    def __init__(
        self,
        folder: Path,
        head: Mapping[str, Any],
        cases: Sequence[BatchCase],
        model: BatchModel,
        settings: Mapping[str, str],
    ) -> None:
        self._folder = folder
        self._head = {**head, "model": model.name, "settings": dict(settings)}
        self._model = model
        self._settings = dict(settings)
        self._cases = list(cases)
        self._rows: dict[str, dict[str, Any]] = {}
        self._keys: dict[str, dict[str, str]] = {}
        self._due = 0.0

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a row, and write the reports unless they were written just now, or another process writes them."""
        self._rows[str(row["case"])] = report_row(row)
        begun = time.monotonic()
        if begun >= self._due:
            try:
                self._write(False, 0.0)
            except (SPDError, OSError):
                self._due = begun + 1  # the last call says what remains
                return
            self._due = begun + (time.monotonic() - begun) / _WRITE_SHARE

    def finish(self) -> dict[str, Any]:
        """Write the reports and return what ``report.json`` holds.

        They take in what other parts or an earlier call left of the same images, clicks, model, version and settings.

        Raises:
            BadInput: they cannot be written.
        """
        for case in self._cases:
            if case.name not in self._rows:
                self._of_others(case, True)  # images are read before other parts have to wait
        return self._write(True, _LOCK_SECONDS)

    def _write(self, checked: bool, wait_seconds: float) -> dict[str, Any]:
        """Write the reports, the rows of others only with a look at their images and clicks if ``checked``."""
        with contextlib.ExitStack() as locked:
            try:
                locked.enter_context(FolderLock(self._folder, "report", _LOCK_NAME, wait_seconds))
            except BadInput as error:
                raise BadInput(
                    f"The report lacks what was just done, while every mask is kept: {error.message}",
                    f"{error.remedy} Then run the same command again: it writes the whole report.",
                    error.details,
                ) from error
            rows = []
            for case in self._cases:
                row = self._rows.get(case.name)
                if row is None:
                    row = self._of_others(case, checked)
                if row is not None:
                    rows.append(row)
            content = self._head | {"cases": rows}
            write_json(self._folder / f"{REPORT_NAME}.json", content)
            table = [[row.get(column, "") for column in COLUMNS] for row in rows]
            write_csv(self._folder / f"{REPORT_NAME}.csv", [COLUMNS, *table], marked=True)
        return content

    def _of_others(self, case: BatchCase, checked: bool) -> dict[str, Any] | None:
        """The row that another process left of a case, where it holds for the case as it is now."""
        last = read_row(self._folder / f"{case.file_name}{ROW_SUFFIX}")
        with contextlib.suppress(SPDError):
            for row in (last, result_of(last)):
                if row is not None and self._holds(row, case, checked):
                    return report_row(row)
        return None

    def _holds(self, row: Mapping[str, Any], case: BatchCase, checked: bool) -> bool:
        known = settings_key(case, self._model, self._settings)
        if row["state"] == CaseState.WRITING or any(row.get(name) != value for name, value in known.items()):
            return False
        own = {name: str(row[name]) for name in KEY_FIELDS if name in row}
        key = self._key_of(case, row.get(STAMP), own) if checked else own
        if row["state"] in (CaseState.FAILED, CaseState.KEPT):
            return all(row.get(name) == key.get(name) for name in KEY_FIELDS)
        return is_finished(row, self._folder / f"{case.file_name}{self._settings['suffix']}", key)

    def _key_of(self, case: BatchCase, stamp: object, own: dict[str, str]) -> dict[str, str]:
        """The key of a case: that of its row where its files are as they were then, else from their content."""
        if case.name not in self._keys:
            if stamp and not case.problem and input_stamp(case) == stamp:
                return own
            self._keys[case.name] = settings_key(case, self._model, self._settings)
            with contextlib.suppress(SPDError):
                if not case.problem:
                    self._keys[case.name] = case_key(case, self._model, self._settings)
        return self._keys[case.name]


def digest_of(path: Path) -> str | None:
    """Digest of a result, or None where there is none.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        return sha256_of(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadInput(f"The result {path} cannot be read: {error.strerror}.", "Check its permissions.") from error


def without_folders(sentence: str, case: BatchCase, folder: Path) -> str:
    """A sentence that names files and not the folders that they lie in."""
    parents = {str(folder), *(str(Path(path).parent) for path in (case.image, case.points) if path)}
    for parent in sorted(parents, key=len, reverse=True):  # a folder within another one goes first
        if len(parent) > 1:
            for written, end in itertools.product((repr(parent)[1:-1], parent), ("/", "\\\\", "\\")):
                sentence = sentence.replace(written + end, "")
    return sentence
