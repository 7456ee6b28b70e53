"""Many cases, one after the other or several at once: finished ones are skipped, none that fails stops the others."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from SPDSegmentLib import __version__
from SPDSegmentLib.batch.cases import STAMP, BatchCase, BatchModel, Cases, case_key, checked_cases, settings_key
from SPDSegmentLib.batch.report import (
    CLAIM,
    EARLIER,
    REPORT_NAME,
    ROW_SUFFIX,
    CaseState,
    Report,
    check_claim,
    claim_row,
    digest_of,
    done_state,
    earlier_result,
    empty_row,
    has_claim,
    is_finished,
    is_foreign,
    kept_error,
    kept_figures,
    known_digests,
    read_row,
    report_row,
    result_of,
    without_folders,
)
from SPDSegmentLib.batch.segmenting import DICOM_SUFFIXES, FOR_NO_CASE, BatchSettings, CaseResult, check_settings
from SPDSegmentLib.errors import BadInput, Cancelled, SPDError
from SPDSegmentLib.files import user_path, write_json, write_whole
from SPDSegmentLib.geometry.labelmap import SUFFIXES
from SPDSegmentLib.models.storage import sha256_of
from SPDSegmentLib.staging import LOCK_NAME, FolderLock, is_alive

Stopped = Callable[[], bool]
SegmentCase = Callable[[BatchCase, Path], CaseResult]
OnCase = Callable[[int, int, dict[str, Any]], None]
Dispatch = Callable[["CaseProcess", Sequence[BatchCase]], Iterator[dict[str, Any]]]
_PART_LOCK = ".spdsegment-part-{}-of-{}.lock"
_PART = re.compile(r"\.spdsegment-part-\d+-of-(\d+)\.lock")
_POLL_SECONDS = 0.2


class SchedulerLost(SPDError):
    """The scheduler of a cluster has gone in the middle of a batch."""


@dataclass(frozen=True)
class CaseProcess:
    """One case, from what is there to its row, in this process or in another one."""

    folder: Path
    model: BatchModel
    settings: BatchSettings
    resume: bool

    def __call__(self, segment: SegmentCase, case: BatchCase) -> dict[str, Any]:
        """The row of a case; only a cancellation gets out, and what no case can be segmented with."""
        row_file, output = self._places(case)
        started = time.monotonic()
        row = empty_row(case, self.model.name, self.settings.full_paths)
        settings = self.settings.key(self.model)
        key = settings_key(case, self.model, settings)
        last = read_row(row_file)
        former = result_of(last)
        try:
            if case.problem:
                raise BadInput(case.problem, "Correct the list of cases.")
            key = case_key(case, self.model, settings)
            if self.resume and former is not None and is_finished(former, output, key):
                names = {name: row[name] for name in ("case", "image", "points")}
                replaces = last is not former or CLAIM in former or former.get(STAMP) != key[STAMP]
                return self._adopt(case, row_file, former | names | {STAMP: key[STAMP]}, replaces)
            lay = {path: digest_of(path) for path in self._results(case)}
            if self.resume and (kept := self._kept(case, former, former, lay)):
                return self._keep(case, row | kept, key, former)
            row["known_digests"] = known_digests(earlier_result(former, row_file, output).get(EARLIER))
            row[CLAIM] = claim_row(row_file, last)
            result = segment(case, output)
            check_claim(row_file, row)
            changed = [path for path, digest in lay.items() if digest_of(path) != digest]  # while it was computed
            if kept := self._kept(case, former, row, changed):
                del row["known_digests"]
                return self._keep(case, row | kept, key, former)
            row |= result.figures | {"clicks": result.fates, "report": result.details}
            row |= self._write(case, result, output, row_file, row | key)
        except (Cancelled, *FOR_NO_CASE):
            raise
        except SPDError as error:
            row["error"] = self.told(error.sentence, case)
        except MemoryError:
            row["error"] = "There was not enough memory for this case. Close other programs, or use fewer workers."
        except Exception as error:  # one case must not stop the others
            row["error"] = self.told(f"{type(error).__name__}: {error}", case)
        row["seconds"] = round(time.monotonic() - started, 2)
        return self._keep(case, row, key, former)

    def told(self, sentence: str, case: BatchCase) -> str:
        """A sentence on a case as the report has it: without folders, unless they are wanted."""
        return sentence if self.settings.full_paths else without_folders(sentence, case, self.folder)

    def _places(self, case: BatchCase) -> tuple[Path, Path]:
        """Where the row of a case lies, and its mask."""
        return self.folder / f"{case.file_name}{ROW_SUFFIX}", self.folder / f"{case.file_name}{self.settings.suffix}"

    def _results(self, case: BatchCase) -> list[Path]:
        """The files that are written of a case, its mask first."""
        output = self._places(case)[1]
        return [output, *map(output.with_name, self.settings.beside(case).values())]

    def _kept(
        self,
        case: BatchCase,
        former: dict[str, Any] | None,
        known: dict[str, Any] | None,
        paths: Iterable[Path],
    ) -> dict[str, Any]:
        """What the row of a case says of whose results some are not the batch's by the row ``known``; else nothing."""
        row_file, output = self._places(case)
        for path in paths:
            if is_foreign(known, row_file, path):
                told = {"state": CaseState.KEPT.value, "error": kept_error(path), "output": output.name}
                return kept_figures(former) | told
        return {}

    def _keep(
        self, case: BatchCase, row: dict[str, Any], key: dict[str, str], former: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Write a row, unless another batch has the case now.

        What is known of an earlier result stays where the case did not get as far as that.
        """
        row_file, output = self._places(case)
        try:
            if CLAIM in row and not has_claim(row_file, row.pop(CLAIM)):
                return row
            earlier = {} if "known_digests" in row else earlier_result(former, row_file, output)
            write_json(row_file, row | key | earlier)
        except SPDError as error:
            sentence = self.told(error.sentence, case)
            if sentence not in row["error"]:
                row["error"] = f"{row['error']} {sentence}".strip()
        return row

    def _adopt(self, case: BatchCase, row_file: Path, row: dict[str, Any], replaces: bool) -> dict[str, Any]:
        """The row of a finished case; of one that was killed between its mask and its row too."""
        row.pop(CLAIM, None)
        if replaces or row["state"] == CaseState.WRITING:
            row["state"] = done_state(row).value
            row["known_digests"] = self._drop_former(case, row, known_digests(row))
            with contextlib.suppress(SPDError):
                write_json(row_file, row)
        return row

    def _drop_former(self, case: BatchCase, row: Mapping[str, Any], known: Sequence[str]) -> list[str]:
        """Delete the DICOM objects that the batch wrote of a case before and ``row`` does not name.

        What somebody changed stays, and so do masks of other formats.

        Returns the digests of all its files that are there then.
        """
        beside = row.get("beside", {})
        now = [row["output_digest"], *beside.values()]
        for suffix in (*SUFFIXES, *DICOM_SUFFIXES.values()):
            path = self.folder / f"{case.file_name}{suffix}"
            if path.name == row["output"] or path.name in beside:
                continue
            with contextlib.suppress(OSError):
                digest = sha256_of(path)
                if digest in known:
                    now.append(digest)
                    if suffix not in SUFFIXES:
                        path.unlink()
                        now.pop()
        return now

    def _write(
        self, case: BatchCase, result: CaseResult, output: Path, row_file: Path, row: dict[str, Any]
    ) -> dict[str, Any]:
        """Write a mask; returns what its row says then. The row goes first, so that a kill between loses nothing."""
        told: dict[str, Any] = {"beside": {}}
        known: list[str] = row["known_digests"]  # of the caller's row too, which is kept where this fails halfway

        def stage(write: Callable[[Path], None], part: Path) -> None:
            write(part)
            known.insert(0, sha256_of(part))

        def note() -> None:
            check_claim(row_file, row)
            write_json(row_file, row | told | {"state": CaseState.WRITING.value, "known_digests": known})

        def write_mask(part: Path) -> None:
            stage(result.write, part)
            told.update(output=output.name, output_digest=known[0])
            note()

        for name, write in result.beside.items():

            def write_beside(part: Path, name: str = name, write: Callable[[Path], None] = write) -> None:
                stage(write, part)
                told["beside"][name] = known[0]
                note()

            write_whole(output.with_name(name), write_beside, what="DICOM file")
        write_whole(output, write_mask, lambda part: sha256_of(part) == told["output_digest"], "mask")
        now = self._drop_former(case, told, known)
        return told | {"state": done_state(row).value, "known_digests": now}


@dataclass
class BatchRun:
    """One batch.

    Attributes:
        make_segmenter: returns what segments a case, given the place of its mask too; called once for each worker, with
            a question whether to stop.
        folder: for masks and reports; made if need be.
        resume: skip what is finished, and leave masks alone that the batch did not write as they are.
        workers: how many cases are segmented at once; one runs on the calling thread.
        part: (i, n), the i-th of n parts of the cases, for several batches on one folder.
        on_case: told (done, all, row of the report) after each case.
        dispatch: runs the cases elsewhere and yields their rows; by default ``workers`` threads here do.
    """

    make_segmenter: Callable[[Stopped], SegmentCase]
    folder: Path
    model: BatchModel
    settings: BatchSettings = field(default_factory=BatchSettings)
    resume: bool = True
    workers: int = 1
    part: tuple[int, int] = (1, 1)
    on_case: OnCase = lambda done, total, row: None
    dispatch: Dispatch | None = None
    _stop: threading.Event = field(default_factory=threading.Event, init=False)

    def __call__(self, cases: Cases) -> dict[str, Any]:
        """Segment cases, see :func:`SPDSegmentLib.batch.cases.checked_cases`; return the report.

        Raises:
            BadInput: a list that cannot be used, a folder that cannot be used or is in use, an input where report or
                rows belong, or a report that cannot be written; the masks stay.
            Cancelled: somebody stopped it; the report holds what was finished.
            DeviceUnavailable, ModelMissing, ModelCorrupt, DependencyMissing, WorkerDied: no case can be; as above.
            SchedulerLost, OtherVersion, UnfitWorker: see :mod:`SPDSegmentLib.batch.cluster`; as above.
        """
        index, count = self.part
        if not 1 <= index <= count:
            raise BadInput(f"There is no part {index} of {count}.", "Give --part I/N with I from 1 to N.")
        check_settings(self.settings)
        listed = checked_cases(cases)
        chosen = [
            replace(case, series=case.series or self._series_of(case), frame=case.frame or self.settings.frame)
            for case in listed
        ]
        table = [user_path(cases)] if isinstance(cases, (str, Path)) else []
        every = self._guarded(chosen, table)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(
                f"The folder {self.folder} cannot be used: {error.strerror or error}.",
                "Choose another one.",
                repr(error),
            ) from error
        with _locked(self.folder, self.part):
            _sweep(self.folder)
            settings = self.settings.key(self.model)
            report = Report(self.folder, {"spdsegment": __version__}, every, self.model, settings)
            try:
                self._run_all(every[index - 1 :: count], report)
            except (SPDError, KeyboardInterrupt) as error:
                with contextlib.suppress(SPDError, KeyboardInterrupt):
                    report.finish()
                if isinstance(error, Cancelled | KeyboardInterrupt):
                    sentence = "The batch was stopped; what is finished is kept."
                    goes_on = " to go on" if self.resume else "; with --again it begins with the first case"
                    raise Cancelled(sentence, f"Run it again{goes_on}.") from None
                raise
            return report.finish()

    def _series_of(self, case: BatchCase) -> str:
        """The series of a case that names none; a file has none to choose among."""
        return "" if os.path.isfile(case.image) else self.settings.series

    def _guarded(self, cases: list[BatchCase], table: list[Path]) -> list[BatchCase]:
        """Cases whose mask would replace a file that the batch is read from cannot be segmented.

        Raises:
            BadInput: the report or the row of a case would.
        """
        read = [*table, *(Path(path) for case in cases for path in (case.image, case.points) if path)]
        inputs = set(map(_identity, read))
        rows = [f"{case.file_name}{ROW_SUFFIX}" for case in cases]
        for name in (f"{REPORT_NAME}.csv", f"{REPORT_NAME}.json", *rows):
            if _identity(self.folder / name) in inputs:
                raise BadInput(
                    f"The batch would replace its input {self.folder / name} by a file of its own.",
                    "Choose another output folder, or rename that file.",
                )
        guarded = []
        for case in cases:
            names = [f"{case.file_name}{self.settings.suffix}", *self.settings.beside(case).values()]
            taken = next((name for name in names if _identity(self.folder / name) in inputs), "")
            if taken and not case.problem:
                case = replace(case, problem=f"Its mask would replace the input {taken}.")
            guarded.append(case)
        return guarded

    def _run_all(self, cases: Sequence[BatchCase], report: Report) -> None:
        for done, row in enumerate(self._rows(cases), start=1):
            report.add(row)
            logging.info("SPDSegment batch %d/%d, %s: %s %s", done, len(cases), row["case"], row["state"], row["error"])
            self.on_case(done, len(cases), report_row(row))

    def _rows(self, cases: Sequence[BatchCase]) -> Iterator[dict[str, Any]]:
        process = CaseProcess(self.folder.absolute(), self.model, self.settings, self.resume)
        if self.dispatch is not None:
            yield from self.dispatch(process, cases)
            return
        if self.workers == 1:
            segment = self.make_segmenter(self._stop.is_set)
            for case in cases:
                yield process(segment, case)
            return
        local = threading.local()

        def work(case: BatchCase) -> dict[str, Any]:
            if not hasattr(local, "segment"):
                local.segment = self.make_segmenter(self._stop.is_set)
            return process(local.segment, case)

        with ThreadPoolExecutor(self.workers, "spdsegment-batch") as pool:
            left = {pool.submit(work, case) for case in cases}
            try:
                while left:  # in steps, so that Ctrl-C is heard on every system
                    done, left = wait(left, _POLL_SECONDS, FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            finally:
                self._stop.set()
                pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _locked(folder: Path, part: tuple[int, int]) -> Iterator[None]:
    """Keep other batches out of a folder: all of them, or for a part all but other parts of the same division."""
    index, count = part
    with contextlib.ExitStack() as locks:
        if count == 1:
            locks.enter_context(FolderLock(folder, "batch", wait_seconds=0.5))
        else:
            name = _PART_LOCK.format(index, count)
            locks.enter_context(FolderLock(folder, f"batch, part {index} of {count}", name))
            with FolderLock(folder, "batch", LOCK_NAME, wait_seconds=1.0):
                pass
        for path in sorted(folder.glob(_PART_LOCK.format("*", "*"))):
            divided = _PART.fullmatch(path.name)
            if divided is not None and (count == 1 or int(divided[1]) != count):
                with FolderLock(folder, "batch", path.name, wait_seconds=0.5):
                    pass
        yield


def _sweep(folder: Path) -> None:
    """Delete what killed batches of version 0.1.0 have left; later versions sweep as they write."""
    for path in folder.glob(".partial-*"):
        number = path.name.split("-")[1]
        if number.isdigit() and not is_alive(int(number)):
            with contextlib.suppress(OSError):
                path.unlink()


def _identity(path: Path) -> object:
    """What two names of one file have in common, also where capital letters do not count."""
    with contextlib.suppress(OSError, ValueError):
        state = path.stat()
        return state.st_dev, state.st_ino
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        return path.resolve()
    return path
