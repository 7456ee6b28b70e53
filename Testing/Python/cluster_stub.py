"""Segmenters without a model for tests and measurements of a cluster: they wait and write a small mask."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from SPDSegmentLib.batch.cases import BatchCase, BatchModel
from SPDSegmentLib.batch.segmenting import BatchSettings, CaseResult
from SPDSegmentLib.errors import DeviceUnavailable

_STARTS = ".starts"


def starts_in(folder: Path) -> list[int]:
    """Processes that made a segmenter for results in a folder, one entry for each that they made."""
    return [int(line) for line in (folder / _STARTS).read_text(encoding="utf-8").split()]


def not_here(stopped: Callable[[], bool]) -> Callable[[BatchCase, Path], CaseResult]:
    """For batches whose cases are all segmented elsewhere."""
    raise AssertionError("a case was segmented in this process")


def sleeping_segmenter(model: BatchModel, settings: BatchSettings) -> Callable[[BatchCase, Path], CaseResult]:
    """Waits as many seconds as the setting ``series`` says."""
    noted: list[bool] = []

    def segment(case: BatchCase, output: Path) -> CaseResult:
        if not noted:
            noted.append(True)
            with (output.parent / _STARTS).open("a", encoding="utf-8") as file:
                file.write(f"{os.getpid()}\n")
        time.sleep(float(settings.series))

        def write(path: Path) -> None:
            path.write_bytes(case.name.encode())

        return CaseResult({"voxels": 1}, [], {}, write)

    return segment


def segmenter_on_an_unfit_node(model: BatchModel, settings: BatchSettings) -> Callable[[BatchCase, Path], CaseResult]:
    """As :func:`sleeping_segmenter`, but the first process that takes a case has no device."""
    inner = sleeping_segmenter(model, settings)

    def segment(case: BatchCase, output: Path) -> CaseResult:
        unfit = output.parent / ".unfit"
        with contextlib.suppress(FileExistsError):
            os.close(os.open(unfit, os.O_CREAT | os.O_EXCL))
            unfit.write_text(str(os.getpid()))
        if unfit.read_text() == str(os.getpid()):
            raise DeviceUnavailable("The GPU does not answer.", "Choose --device cpu.")
        return inner(case, output)

    return segment


def segmenter_that_needs(model: BatchModel, settings: BatchSettings) -> Callable[[BatchCase, Path], CaseResult]:
    """As :func:`sleeping_segmenter`, on a disk that is full where the case's name is in the setting ``insist``."""
    inner = sleeping_segmenter(model, settings)

    def segment(case: BatchCase, output: Path) -> CaseResult:
        result = inner(case, output)

        def write(path: Path) -> None:
            if case.name in settings.insist:
                raise OSError(28, "No space left on device")
            result.write(path)

        return CaseResult(result.figures, result.fates, result.details, write)

    return segment
