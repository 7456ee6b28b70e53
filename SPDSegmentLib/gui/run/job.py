"""One segmentation under way: from the worker's events to the segment; the states that runs leave there; no Qt."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from SPDSegmentLib.errors import BadInput, Cancelled, SPDError
from SPDSegmentLib.prompts.fates import PointFate, best_fates
from SPDSegmentLib.worker.client import Callbacks, Request, WorkerClient
from SPDSegmentLib.worker.messages import Progress, Segmented, SliceReady

from ..scene.centerlines import Clicks, renameClicks
from ..scene.state import Signal
from ..scene.write_record import WriteRecord
from .result_writer import ResultWriter, RunParts

MAX_SLICES_PER_WRITE = 16
SHORT_WRITE_S, LONG_WRITE_S = 0.008, 0.02
"""Below the one a write takes more slices the next time, beyond the other fewer: the window answers in between."""
WRITE_EVERY_MS = 120
NEXT_PART_MS = 1

CallLater = Callable[[int, Callable[[], None]], None]


class JobState(enum.Enum):
    """Where a job stands."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class SegmentationJob:
    """A segmentation; it writes slices as they come, all of them or, where it fails or is cancelled, none.

    Args:
        client: the worker's client.
        writer: the way into the segment.
        isValid: why results may no longer be written (a sentence), or empty.
        callLater: milliseconds and a callable; None where no event loop runs, then :meth:`wait` writes.
        result: what ``job.result`` is once done.

    Attributes:
        state: see ``JobState``.
        progress: the worker's latest progress, or None.
        error: why it failed or was cancelled, or None.
        request: what was sent, or None so far; answer: the worker's answer once done.
        digests: checksums of the segment once done.
        note: what a person should know about a result, or empty.
        wasUndone: it ended because a person undid what it had written, or it itself.
        keptClicks: then, whether clicks were kept that have no result yet, as they were several.
        onProgress, onSlices, onFinished: signals; called with progress, with the changed slices, with the job.
    """

    def __init__(
        self,
        client: WorkerClient,
        writer: ResultWriter,
        isValid: Callable[[], str],
        callLater: CallLater | None,
        result: Any = None,
        model: str = "",
    ) -> None:
        self.state = JobState.RUNNING
        self.progress: Progress | None = None
        self.error: SPDError | None = None
        self.answer: Segmented | None = None
        self.digests: dict[int, str] = {}
        self.note = ""
        self.wasUndone = False
        self.keptClicks = False
        self.onProgress = Signal()
        self.onSlices = Signal()
        self.onFinished = Signal()
        self.writer = writer
        self._client = client
        self._isValid = isValid
        self._callLater = callLater
        self._result = result
        self._model = model
        self._pending: list[SliceReady] = []
        self.request: Request | None = None
        self._send: Callable[[Callbacks], Request] | None = None
        self._writeIsPlanned = False
        self._slicesPerWrite = 2
        self._fates: list[PointFate] | None = None
        self._isKept = False

    @property
    def finished(self) -> bool:
        """Whether it is done, failed or cancelled."""
        return self.state is not JobState.RUNNING

    @property
    def result(self) -> Any:
        """The segmentation node; raises the error of a job that failed or was cancelled."""
        if self.error is not None:
            raise self.error
        return self._result

    @property
    def recomputed(self) -> tuple[int, ...]:
        """Slices that the model recomputed, once done."""
        return self.answer.recomputed if self.answer is not None else ()

    def start(self, send: Callable[[Callbacks], Request]) -> None:
        """Send the request, in an event of its own where there are any; ``send`` gets the callbacks and returns it."""
        self._send = send
        if self._callLater is not None:
            self._callLater(0, self._sendNow)
        else:
            self._sendNow()

    def cancel(self, *, urgent: bool = True) -> None:
        """Stop; the segment is as it was before."""
        if self.finished:
            return
        if self.request is not None and not self.request.finished:
            self._client.cancel(self.request, urgent=urgent)
        if not self.finished:
            self._end(JobState.CANCELLED, Cancelled())

    def wait(self) -> Any:
        """Block until it has finished, without an event loop, and return the result."""
        self._sendNow()
        if self.request is not None and not self.finished:
            try:
                self._client.wait(self.request)
            except SPDError as error:
                if not self.finished:
                    self._end(JobState.FAILED, error)
        while not self.finished:
            self._writePart()
        return self.result

    def checkValid(self) -> None:
        """End at once where results may no longer be written."""
        reason = "" if self.finished else self._isValid()
        if reason:
            self._end(JobState.FAILED, BadInput(reason))
            if self.request is not None and not self.request.finished:
                self._client.cancel(self.request, urgent=False)

    def _sendNow(self) -> None:
        self.checkValid()
        send, self._send = self._send, None
        if send is None or self.finished:
            return
        try:
            self.request = send(Callbacks(self._takeSlice, self._takeProgress, self._takeFinished))
        except SPDError as error:
            self._end(JobState.FAILED, error)

    def _takeProgress(self, progress: Progress) -> None:
        if not self.finished:
            self.progress = progress
            self.onProgress.emit(progress)

    def _takeSlice(self, answer: SliceReady) -> None:
        if not self.finished:
            self._pending.append(answer)
            self._planWrite(WRITE_EVERY_MS)

    def _takeFinished(self, request: Request) -> None:
        if self.finished:
            return
        if request.error is not None:
            cancelled = isinstance(request.error, Cancelled)
            self._end(JobState.CANCELLED if cancelled else JobState.FAILED, request.error)
        elif isinstance(request.answer, Segmented):
            self.answer = request.answer
            self._writeIsPlanned = False
            self._planWrite(NEXT_PART_MS)

    def _planWrite(self, milliseconds: int) -> None:
        if self._callLater is not None and not self._writeIsPlanned:
            self._writeIsPlanned = True
            self._callLater(milliseconds, self._writePlanned)

    def _writePlanned(self) -> None:
        if self._writeIsPlanned and not self.finished:
            self._writeIsPlanned = False
            if self.answer is None and not self.writer.mayWriteParts:
                return
            self._writePart()
            if not self.finished and (self._pending or self.answer is not None):
                self._planWrite(NEXT_PART_MS)

    def _writePart(self) -> None:
        self.checkValid()
        if not self.finished and self.writer.wasUndone():
            self.wasUndone = True
            self.cancel(urgent=False)
        if self.finished:
            return
        again = self.writer.takeIn()
        if again:
            self._pending = [*again, *self._pending]
            self._fates, self._isKept = None, False
        part = self._nextPart()
        if part:
            started = time.perf_counter()
            changed = self.writer.put(part)
            if changed is None:
                self._pending = [*part, *self._pending]
                return
            self._bound(time.perf_counter() - started, len(part))
            if self.writer.wasRefused:
                self._end(JobState.FAILED, _refusal(len(part)))
            elif changed:
                self.onSlices.emit(changed)
        elif self._isKept:
            self._end(JobState.DONE, None)
        elif self.answer is not None and self._fates is None:
            self._fates = best_fates(self.answer.fates)  # a call of its own: a thousand take some milliseconds
            self.digests = self.writer.digests()
        elif self.answer is not None and self._fates is not None:
            learned = (self.answer.report.get("model") or {}).get("learned") or {}
            self.writer.finish(self._fates, self._model, self.answer.anchor_ras, str(learned.get("name") or ""))
            self._isKept = True

    def _bound(self, seconds: float, count: int) -> None:
        """Choose how many slices the next write takes by how long one took."""
        if seconds > LONG_WRITE_S:
            self._slicesPerWrite = max(1, count // 2)
        elif seconds < SHORT_WRITE_S and count == self._slicesPerWrite:
            self._slicesPerWrite = min(2 * count, MAX_SLICES_PER_WRITE)

    def _nextPart(self) -> list[SliceReady]:
        """Take the answers that are written next: the oldest and some near it, so that a write touches few slices."""
        if not self.writer.mayWriteParts:
            everything, self._pending = self._pending, []
            return everything
        part: list[SliceReady] = []
        rest: list[SliceReady] = []
        for answer in self._pending:
            near = not part or abs(answer.slice_index - part[0].slice_index) <= self._slicesPerWrite
            (part if near and len(part) < self._slicesPerWrite else rest).append(answer)
        self._pending = rest
        return part

    def _end(self, state: JobState, error: SPDError | None) -> None:
        self.state = state
        self.error = error
        self._pending.clear()
        if state is not JobState.DONE:
            self.writer.rollBack()
        self.onFinished.emit(self)


def _refusal(count: int) -> SPDError:
    from slicer.i18n import tr as _

    return BadInput(
        _("Slicer's segment editor did not take over {count} slices; nothing was changed.").format(count=count),
        _("Choose New segment, or another segmentation, and run again."),
    )


MAX_STATES = 64
"""More than an editor's history has steps; only states that one of them leads to are remembered."""


@dataclass(frozen=True)
class State:
    """One state of a segment.

    Attributes:
        mark: its name in the segment, see ``target.MARK_TAG``; a person's edits do not change it.
        digests: checksums by slice.
        clicks: it came from these.
        record: at that time.
        parts: of the run that made it, or that ended without making one; the states between count as its own.
    """

    mark: str
    digests: Mapping[int, str]
    clicks: Clicks
    record: WriteRecord
    parts: RunParts | None = None


class History:
    """Remembers the latest states and finds the one that undo or redo has brought back."""

    def __init__(self) -> None:
        self._states: list[State] = []

    def remember(
        self,
        mark: str,
        digests: Mapping[int, str],
        clicks: Clicks,
        record: WriteRecord,
        parts: RunParts | None = None,
    ) -> None:
        """Add a state; an older one of the same mark and content is replaced."""
        kept = [state for state in self._states if (state.mark, state.digests) != (mark, digests)]
        self._states = [*kept[-(MAX_STATES - 1) :], State(mark, dict(digests), clicks, record.copy(), parts)]

    def of(self, mark: str) -> list[State]:
        """Return the states of this mark, latest first; also those between parts of a run."""
        found: list[State] = []
        for state in reversed(self._states):
            if state.mark == mark:
                found.append(state)
            elif state.parts is not None and state.parts.hasMade(mark):
                found.append(replace(state, mark=mark, record=state.parts.recordAt(mark, state.record)))
        return found

    def givenBack(self, mark: str, record: WriteRecord, digests: Mapping[int, str]) -> set[int]:
        """Return what differs from a record or is a person's in it, but was a run's, as it is, in a state of this mark.

        Undo of a stroke leads there: slice by slice, since no state is remembered between two strokes.
        """
        doubtful = record.owned | record.findEdits(digests)
        known = [state.record for state in self.of(mark) if isSameStack(state.record, record)] if doubtful else []
        return {t for kept in known for t in doubtful - kept.owned if digests.get(t, "") == kept.written.get(t, "")}

    def rename(self, renamed: Mapping[str, str]) -> None:
        """Take over new names of clicks, see ``centerlines.restoreClicks``."""
        self._states = [
            replace(state, clicks=renameClicks(state.clicks, renamed), record=state.record.withNames(renamed))
            for state in self._states
        ]


def isSameStack(record: WriteRecord, other: WriteRecord) -> bool:
    """Whether two records hold for the same slices."""
    if record.axis != other.axis or record.grid is None or other.grid is None:
        return False
    return record.grid.fits(other.grid)


def areAcross(record: WriteRecord, other: WriteRecord) -> bool:
    """Whether two records hold for slices along other axes, or of another number."""
    if record.grid is None or other.grid is None:
        return False
    return (record.axis, record.grid.shape) != (other.axis, other.grid.shape)
