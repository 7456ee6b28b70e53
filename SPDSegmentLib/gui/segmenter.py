"""Runs segmentations for panel and console alike: nodes in, a job out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import slicer
from slicer.i18n import tr as _

from SPDSegmentLib.errors import SPDError
from SPDSegmentLib.worker.messages import SaliencyReady
from SPDSegmentLib.worker.request import Callbacks, Request

from .centerlines import readClicks, restoreClicks, snapshotClicks
from .history import History
from .job import CallLater, Job, JobState
from .models import ModelEntry
from .result_writer import ResultWriter
from .target import Target
from .volumes import VolumeSnapshot, takeSnapshot
from .worker_host import WorkerHost
from .write_record import WriteRecord


@dataclass(frozen=True, eq=False)
class Task:
    """What to segment.

    Attributes:
        volumeNode: scalar volume.
        centerlineNodes: point lists and open curves.
        target: where the result goes.
        model: the model.
        device: ``auto``, ``cpu`` or ``cuda[:n]``.
        axis: slicing axis; ``auto`` takes the model's.
        prompts: prompting strategy.
        firstSliceRas: a place to begin with, or None.
    """

    volumeNode: Any
    centerlineNodes: Sequence[Any]
    target: Target
    model: ModelEntry
    device: str = "auto"
    axis: str = "auto"
    prompts: str = "consensus"
    firstSliceRas: tuple[float, float, float] | None = None

    @property
    def cutAxis(self) -> str:
        """The slicing axis in use."""
        return self.model.axis if self.axis == "auto" else self.axis

    def snapshot(self) -> VolumeSnapshot:
        """The present state of the volume."""
        return takeSnapshot(self.volumeNode, self.cutAxis)


class Segmenter:
    """Starts jobs, one at a time for each segment, and keeps mask and clicks together through undo.

    Args:
        workerHost: the worker.
        callLater: ``QTimer.singleShot``.
        saveStateForUndo: called before a segment is changed; None where nobody keeps a history.
    """

    def __init__(
        self,
        workerHost: WorkerHost,
        callLater: CallLater,
        saveStateForUndo: Callable[[Task], None] | None = None,
    ) -> None:
        self.workerHost = workerHost
        self.saveStateForUndo = saveStateForUndo
        self._callLater = callLater
        self._jobs: dict[tuple[str, str], Job] = {}
        self._histories: dict[tuple[str, str], History] = {}
        self._lastClicks: dict[tuple[str, str], Any] = {}
        self._incomplete: set[tuple[str, str]] = set()

    def start(self, task: Task, *, blocking: bool = False) -> Job:
        """Send a segmentation to the worker and return its job; a running one of the same segment is replaced.

        Args:
            task: what to segment.
            blocking: the caller will call ``job.wait()``: nothing is written before.

        Raises:
            SPDError: what was given cannot be segmented.
        """
        clicks = readClicks(task.centerlineNodes)
        key = _key(task.target)
        former = self._jobs.get(key)
        if former is not None and not former.finished:
            former.cancel(urgent=False)
        snapshot = task.snapshot()
        self._adoptAxis(task, snapshot)
        history = self._histories.setdefault(key, History())
        writer = ResultWriter(task.target, snapshot, lambda: self._saveState(task))
        locked = writer.begin()
        before = snapshotClicks(task.centerlineNodes)
        history.remember(task.target.read(snapshot).digests(), self._lastClicks.get(key, before), writer.record)
        self.workerHost.useModel(task.model.key, task.device)
        self.workerHost.openVolume(snapshot)
        job = Job(
            self.workerHost.client,
            writer,
            lambda: _whyInvalid(task, snapshot),
            None if blocking else self._callLater,
            task.target.node,
            task.model.name,
        )
        job.onFinished.connect(lambda done: self._noteFinished(key, done, before))
        self._jobs[key] = job
        first = None
        if task.firstSliceRas is not None:
            first = snapshot.sliceAt(task.firstSliceRas)
        job.start(
            lambda callbacks: self.workerHost.client.segment(
                snapshot.volumeId,
                clicks,
                prompts=task.prompts,
                first_slice=first,
                send_all=key in self._incomplete,
                locked=locked,
                callbacks=callbacks,
            )
        )
        return job

    def saliency(self, task: Task, t: int, callback: Callable[[SaliencyReady | SPDError], None]) -> Request:
        """Ask for the saliency of one slice of the task's volume."""
        snapshot = task.snapshot()
        self.workerHost.useModel(task.model.key, task.device)
        self.workerHost.openVolume(snapshot)

        def answer(request: Request) -> None:
            callback(request.error if request.error is not None else request.answer)  # type: ignore[arg-type]

        return self.workerHost.client.saliency(snapshot.volumeId, t, Callbacks(on_finished=answer))

    def noteChange(self, target: Target, snapshot: VolumeSnapshot) -> bool:
        """Take in that somebody else changed the segment; return whether it went back to an earlier state.

        Undo and redo bring the clicks of that state back; any other change makes the slices a person's.
        """
        if target.node is None or any(not job.finished for job in self._jobs.values()):
            return False
        digests = target.read(snapshot).digests()
        record = target.record
        state = self._histories.get(_key(target), History()).find(digests)
        if state is not None and state.record.written != record.written:
            self._incomplete.add(_key(target))
            target.saveRecord(state.record)
            self._lastClicks[_key(target)] = state.clicks
            restoreClicks(state.clicks)
            return True
        record.owned &= record.findEdits(digests) | (state.record.owned if state is not None else record.owned)
        record.noteEdits(digests)
        target.saveRecord(record)
        return False

    def release(self, target: Target, snapshot: VolumeSnapshot, slices: set[int] | None = None) -> None:
        """Give a person's slices (all by default) back to the model; the next run may rewrite them."""
        record = target.record
        record.release(record.owned if slices is None else slices & record.owned, target.read(snapshot).digests())
        target.saveRecord(record)
        self._incomplete.add(_key(target))

    def cancelAll(self, *, urgent: bool = True) -> None:
        """Cancel every job."""
        for job in list(self._jobs.values()):
            job.cancel(urgent=urgent)
        self._jobs.clear()

    def forgetScene(self) -> None:
        """Let go of nodes and volumes of a closed scene."""
        self.cancelAll()
        self._histories.clear()
        self._lastClicks.clear()
        self._incomplete.clear()
        self.workerHost.forgetVolumes()

    def _saveState(self, task: Task) -> None:
        if self.saveStateForUndo is not None:
            self.saveStateForUndo(task)

    def _noteFinished(self, key: tuple[str, str], job: Job, clicks: Any) -> None:
        if self._jobs.get(key) is job:
            del self._jobs[key]
        if job.state is JobState.DONE:
            self._incomplete.discard(key)
            self._lastClicks[key] = clicks
            self._histories.setdefault(key, History()).remember(job.digests, clicks, job.writer.record)
        else:
            self._incomplete.add(key)

    def _adoptAxis(self, task: Task, snapshot: VolumeSnapshot) -> None:
        """Translate the record of a segment that was written along another axis: edited or not, as a whole."""
        record = task.target.record
        if record.axis == snapshot.axis:
            return
        old = takeSnapshot(task.volumeNode, record.axis)
        touched = bool(record.owned or record.findEdits(task.target.read(old).digests()))
        new = WriteRecord(axis=snapshot.axis, model=record.model)
        if not touched:
            digests = task.target.read(snapshot).digests()
            new.noteWritten(digests, digests)
        task.target.saveRecord(new)
        self._incomplete.add(_key(task.target))
        self._histories.pop(_key(task.target), None)


def _key(target: Target) -> tuple[str, str]:
    return target.nodeId, target.segmentId


def _whyInvalid(task: Task, snapshot: VolumeSnapshot) -> str:
    if slicer.mrmlScene.GetNodeByID(snapshot.nodeId) is None:
        return _("The volume was removed while it was segmented.")
    if task.target.node is None:
        return _("The segment was removed while it was written.")
    if not snapshot.isCurrent():
        return _("The volume changed while it was segmented; run again.")
    return ""
