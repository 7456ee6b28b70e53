"""Runs segmentations for panel and console alike: nodes in, a job out."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from SPDSegmentLib.errors import SPDError
from SPDSegmentLib.worker.client import Callbacks, Request
from SPDSegmentLib.worker.messages import Progress, SaliencyReady
from SPDSegmentLib.worker.requests import learn_message, suggest_message

from ..scene.centerlines import Clicks, checkClicks, namedClicks, readClicks, renameClicks, restoreClicks, shareLists
from ..scene.editor_nodes import editTimes, placeError, segmentNames, storageError
from ..scene.state import Signal, nameSegment, ownClicks
from ..scene.surfaces import ShownSurfaces
from ..scene.write_record import Position, WriteRecord
from .job import CallLater, JobState, SegmentationJob, areAcross
from .result_writer import ResultWriter
from .task import SegmentMemory, Task, VolumeView, adoptGrid, letGo
from .worker_host import OnAnswer, WorkerHost, answerTo, volumeName


class Segmenter:
    """Starts jobs, one at a time for each segment, and keeps mask and clicks together through undo.

    Args:
        workerHost: the worker.
        callLater: ``QTimer.singleShot``.
        saveStateForUndo: called before a segment is changed, returns whether an undo step was made; None where nobody
            keeps a history.

    Attributes:
        onJob: signal; called with a job when it was started and when it has ended.
    """

    def __init__(
        self, workerHost: WorkerHost, callLater: CallLater, saveStateForUndo: Callable[[Task], bool] | None = None
    ) -> None:
        self.workerHost = workerHost
        self.saveStateForUndo = saveStateForUndo
        self.onJob = Signal()
        self.surfaces = ShownSurfaces(lambda: any(not job.finished for job in self._jobs))
        self._callLater = callLater
        self._memories: dict[tuple[str, ...], SegmentMemory] = {}
        self._undoStep: tuple[tuple[str, ...], Any, Mapping[str, int] | None] | None = None  # segment, editor, times

    def start(
        self, task: Task, *, blocking: bool = False, everywhere: bool = False, learned: str | None = None
    ) -> SegmentationJob:
        """Send a segmentation to the worker and return its job; a running one of the same segment is replaced.

        Args:
            task: what to segment.
            blocking: the caller will call ``job.wait()``: nothing is written before.
            everywhere: write outside the editable area too.
            learned: name of what corrections taught, empty for the model itself; None for that of the last result.

        Raises:
            SPDError: what was given cannot be segmented.
        """
        if task.target.exists:
            problem = storageError(task.target.node) or placeError(task.target.node, task.target.segmentId)
            if problem is not None:
                raise problem
            nameSegment(task.target.node, task.target.segmentId)
            ownClicks(task.target.node, task.target.segmentId)
        letGo(self._memories.values())
        memory = self._memoryOf(task)
        checkClicks(task.centerlineNodes)  # a start that fails leaves the run under way alone
        snapshot = task.view.snapshot()
        if memory.job is not None:
            memory.job.cancel(urgent=False)
        if memory.mark != task.target.mark:
            self.noteChange(task)
        before = readClicks(task.centerlineNodes)
        clicks = namedClicks(before, snapshot.stack)
        if memory.isCut and not memory.areOther(before):
            memory.isCut, memory.isIncomplete = False, True
        former = adoptGrid(task, snapshot, memory)
        writer = ResultWriter(
            task.target, snapshot, lambda: self._saveState(task), uuid.uuid4().hex[:12], everywhere=everywhere
        )
        job = SegmentationJob(
            self.workerHost.client,
            writer,
            lambda: task.whyInvalid(writer.snapshot),
            None if blocking else self._callLater,
            task.target.node,
            task.view.model.name,
        )
        owner = "|".join(task.key)
        name = volumeName(snapshot, owner)
        job.onFinished.connect(lambda done: self._noteFinished(task, memory, done, former))
        job.onFinished.connect(lambda done: self._updateSurfaces(task, now=blocking))
        memory.task, memory.job = task, job
        memory.startedClicks, memory.startedEdits = before, editTimes(task.target.node)
        self.onJob.emit(job)

        def send(callbacks: Callbacks) -> Request:
            locked = writer.begin()
            memory.rememberBefore(task, writer, former)
            writer.record.lists = tuple(node.GetID() for node in task.centerlineNodes)
            memory.noteOtherGrids(task, isOurs=False)
            self.workerHost.useModel(task.view.model, task.view.device)
            self.workerHost.openVolume(snapshot, owner)
            isSameModel = writer.record.model == task.view.model.name
            formerLesson = writer.record.learned if isSameModel else ""
            return self.workerHost.client.segment(
                name,
                clicks,
                prompts=task.prompts,
                first_slice=None if task.firstSliceRas is None else snapshot.sliceAt(task.firstSliceRas),
                send_all=memory.isIncomplete or memory.served != name or not self.workerHost.hasServed(name),
                locked=locked,
                anchor_ras=writer.record.anchorRas if isSameModel else None,
                learned=formerLesson if learned is None else learned,
                callbacks=callbacks,
            )

        job.start(send)
        return job

    def warmUp(self, view: VolumeView) -> None:
        """Have the worker of this machine started and the model loaded before they are needed, if nothing runs."""
        host = self.workerHost
        if not (host.isRemote or host.client.busy or host.client.deaths):
            host.useModel(view.model, view.device)
            host.client.warm_up()

    def hasOtherClicks(self, task: Task, clicks: Clicks) -> bool:
        """Whether the clicks, as they are now, differ from those of the run under way or of the last result."""
        return self._memoryOf(task).areOther(clicks)

    def differences(self, task: Task) -> set[str]:
        """What the segment's result did not come of, see ``Task.differences``."""
        served, view, host = self._memoryOf(task).served, task.view, self.workerHost
        return task.differences(served, hasLesson=host.hasServed(served, host.choiceOf(view.model, view.device)))

    def saliency(
        self,
        view: VolumeView,
        task: Task | None,
        t: int,
        callback: Callable[[SaliencyReady | SPDError], None],
        centerRas: tuple[float, float, float] | None = None,
    ) -> Request:
        """Ask for the saliency of one slice of a volume.

        Args:
            view: volume and model.
            task: a segment that was made; its field of view is taken.
            t: the slice.
            callback: gets the answer.
            centerRas: where to look while nothing was segmented, by default the slices' middle.
        """
        snapshot = view.snapshot()
        self.workerHost.useModel(view.model, view.device)
        name = self.workerHost.openVolume(snapshot, "|".join(task.key) if task is not None else "")
        return self.workerHost.client.saliency(name, t, centerRas, answerTo(callback))  # type: ignore[arg-type]

    def suggest(self, task: Task, dismissedRas: Sequence[Position], callback: OnAnswer) -> Request | None:
        """Ask where one more click would help the last result most; None where the worker does not know that result.

        Args:
            dismissedRas: places in world mm where a person wanted none.
            callback: gets ``Suggested``, or the error.
        """
        snapshot = task.view.snapshot()
        name = volumeName(snapshot, "|".join(task.key))
        if not self.workerHost.hasServed(name):
            return None
        clicks = namedClicks(readClicks(task.centerlineNodes), snapshot.stack)
        message = suggest_message(name, clicks, dismissedRas, task.target.record.learned)
        return self.workerHost.client.ask(message, answerTo(callback))

    def learn(self, task: Task, callback: OnAnswer, onProgress: Callable[[Progress], None] | None = None) -> Request:
        """Let the model learn from the slices that a person edited; nothing changes. ``callback`` gets ``Learned``.

        Raises:
            SPDError: what was given cannot be segmented.
        """
        self.noteChange(task)
        snapshot, owner = task.view.snapshot(), "|".join(task.key)
        clicks, record = namedClicks(readClicks(task.centerlineNodes), snapshot.stack), task.target.record
        content = task.target.read(snapshot, record.owned)
        locked = {t: content.mask(t) for t in sorted(record.owned)}
        self.workerHost.useModel(task.view.model, task.view.device)
        name = self.workerHost.openVolume(snapshot, owner)
        isSameModel = record.model == task.view.model.name
        anchor, learned = (record.anchorRas, record.learned) if isSameModel else (None, "")
        self._memoryOf(task).isIncomplete = True
        message = learn_message(name, clicks, locked, task.prompts, anchor, learned)
        return self.workerHost.client.ask(message, answerTo(callback, onProgress))

    def isBusy(self, segmentationNode: Any, segmentId: str) -> bool:
        """Whether a run is writing into a segment."""
        return any(m.isRunning for key, m in self._memories.items() if key[:2] == (segmentationNode.GetID(), segmentId))

    def checkJobs(self) -> None:
        """End the jobs whose volume, clicks or segment are gone; a volume that is gone is not held."""
        for job in self._jobs:
            job.checkValid()
        letGo(self._memories.values())

    def noteChange(self, task: Task, *, isBeside: bool = False) -> bool:
        """Take in that somebody else changed the segment; return whether undo or redo did.

        Undo and redo bring the clicks of that state back, unless there are some that are not segmented yet; any other
        change makes the slices a person's. The mark that travels with the voxels through the editor's history tells
        which of both it was. While a run writes into the segment nothing is taken in.

        Args:
            task: with the segment.
            isBeside: another segment may be looked at; a list of the latest result of any other keeps its clicks.
        """
        target, memory = task.target, self._memoryOf(task)
        if not target.isPlaced or memory.isRunning:
            return False
        memory.task = task
        if memory.halfWritten is not None and memory.halfWritten.isBack:
            memory.halfWritten.rollBack()
            memory.halfWritten, memory.mark = None, target.mark
            self._updateSurfaces(task)
        mark, (record, digests) = target.mark, task.present()
        state = memory.stateOf(task, mark, record, digests)
        wentBack = memory.mark != mark or (state is not None and areAcross(state.record, record))
        if wentBack or (self._undoStep is not None and self._undoStep[0] != task.key):
            self.forgetUndoStep()
        if wentBack:
            memory.mark, memory.isIncomplete, memory.released = mark, True, set()
            self._updateSurfaces(task)
            state = state or next(iter(memory.history.of(mark)), None)
            if state is None:  # somebody else has written it
                memory.lastClicks = None
            else:
                others = [m.lastClicks or () for m in self._memories.values() if isBeside and m is not memory]
                keepsClicks = memory.newClicks > 0 or shareLists(state.clicks, others)
                self._restore(task, state.clicks, state.record, keepsClicks=keepsClicks)
            record, digests = task.present((record, digests))
        memory.noteEdits(record, digests)
        target.saveRecord(record)
        self.noteChanges(onlyStates=True)  # undo may have reached another segment
        return wentBack

    def noteChanges(self, *, onlyStates: bool = False) -> None:
        """Take in what somebody else has changed in any segment that has been worked on, as before a scene is saved.

        Args:
            onlyStates: only where the segment is in another state than seen last, which takes no time to find.
        """
        letGo(self._memories.values())
        for memory, task in [(m, m.task) for key, m in self._memories.items() if m.task and m.task.key == key]:
            if not (onlyStates and task.target.mark == memory.mark):
                with suppress(SPDError):  # of a volume that cannot be segmented now: the other segments are looked at
                    self.noteChange(task, isBeside=True)

    def release(self, task: Task, slices: set[int] | None = None) -> None:
        """Give a person's slices (all by default) back to the model; the next run may rewrite them."""
        record = task.target.record
        memory, digests = self._memoryOf(task), task.target.digests(task.writtenSnapshot())
        released = record.owned if slices is None else slices & record.owned
        memory.released |= released
        record.release(released, digests)
        task.target.saveRecord(record)
        memory.isIncomplete = True

    def takeBack(self, task: Task, undo: Callable[[], None]) -> bool:
        """Take back what was done last while a run of a segment is under way; return whether one is.

        Where a person has edited any segment since, that is the edit; otherwise the run is stopped, and the clicks of
        the result before it come back, unless more than the last change of a click were lost.

        Args:
            undo: takes back the top of the editor's history.
        """
        memory, target = self._memoryOf(task), task.target
        job, step = memory.job, self._undoStep
        if job is None or job.finished:
            return False
        hasStep = job.writer.hasBegun and step is not None and step[0] == task.key
        if hasStep or (not job.writer.hasBegun and memory.startedEdits != editTimes(target.node)):
            mark = target.mark
            undo()
            memory.startedEdits = editTimes(target.node)
            if target.mark == mark or (hasStep and not job.writer.wasUndone()):
                return True
            step = None
        job.wasUndone = True
        job.cancel(urgent=False)
        self._undoStep = step
        return True

    def bringBack(self, task: Task | None, clicks: Clicks) -> None:
        """Put clicks that were taken away back into their nodes, for the segment of a task, if there is one."""
        renamed = restoreClicks(clicks)
        if task is not None:
            memory = self._memoryOf(task)
            memory.rename(renamed)
            task.target.saveRecord(task.target.record.withNames(renamed))

    def cancelAll(self, *, urgent: bool = True) -> None:
        """Cancel every job."""
        for job in self._jobs:
            job.cancel(urgent=urgent)

    def forgetScene(self) -> None:
        """Let go of nodes and volumes of a closed scene."""
        self.cancelAll()
        self._memories.clear()
        self.surfaces.forgetScene()
        self.workerHost.forgetVolumes()

    def _memoryOf(self, task: Task) -> SegmentMemory:
        memory = self._memories.setdefault(task.key, SegmentMemory())
        if memory.mark is None:
            memory.mark = task.target.mark
        return memory

    @property
    def _jobs(self) -> list[SegmentationJob]:
        return [memory.job for memory in self._memories.values() if memory.job is not None]

    def _saveState(self, task: Task) -> None:
        """Make an undo step, unless the top of the history is this very state, from a run that was rolled back."""
        step = (task.key, task.target.ownEditor)
        if self._undoStep == (*step, editTimes(task.target.node)):
            return
        if task.saveStateForUndo is not None:
            task.saveStateForUndo()
        isMade = task.saveStateForUndo or (self.saveStateForUndo and self.saveStateForUndo(task))
        self._undoStep = (*step, None) if isMade else None

    def forgetUndoStep(self) -> None:
        """Be told that the top of the history may be another one than the last run made."""
        self._undoStep = None

    def _restore(self, task: Task, clicks: Clicks, record: WriteRecord, *, keepsClicks: bool = False) -> None:
        """Bring back the clicks and the record of an earlier state."""
        renamed = {} if keepsClicks else restoreClicks(clicks)
        memory = self._memoryOf(task)
        memory.rename(renamed)
        task.target.saveRecord(record.withNames(renamed))
        memory.lastClicks = renameClicks(clicks, renamed)

    def _noteFinished(
        self, task: Task, memory: SegmentMemory, job: SegmentationJob, former: WriteRecord | None
    ) -> None:
        clicks = memory.startedClicks or ()
        if memory.job is job:
            memory.job = None
        mark = memory.mark = task.target.mark
        if job.state is JobState.DONE:
            memory.isIncomplete = bool(job.writer.withheld)
            assert job.request is not None
            memory.served = job.request.volume_id or ""
            self.workerHost.noteServed(memory.served, job.request.session)
            if job.writer.changed:
                self.forgetUndoStep()
            memory.lastClicks, memory.released = clicks, set()
            edited = job.writer.record.owned | job.writer.record.findEdits(job.digests)
            memory.noteOtherGrids(task, isOurs=edited <= job.writer.parts.before.owned)
            job.note = memory.crossingNote(job.writer.record)
            memory.history.remember(mark, job.digests, clicks, job.writer.record, job.writer.parts)
        else:
            memory.isIncomplete = True
            if self._undoStep is not None and self._undoStep[0] == task.key and job.writer.times is not None:
                self._undoStep = (*self._undoStep[:2], job.writer.times)
            if job.writer.parts.count and job.writer.times is None:  # otherwise no step leads into it
                last = clicks if memory.lastClicks is None else memory.lastClicks
                memory.history.remember(job.writer.parts.run, {}, last, job.writer.record, job.writer.parts)
            if former is not None and task.target.isPlaced:
                former.noteEdits(task.target.digests(task.writtenSnapshot(former)))
                task.target.saveRecord(former)
            if job.wasUndone:
                self.forgetUndoStep()
                for state in memory.history.of(mark)[:1]:
                    isOther = mark != job.writer.markBefore  # the record of before the run holds for another state
                    record = state.record if isOther else memory.withReleased(task.target.record)
                    job.keptClicks = memory.newClicks > 1
                    self._restore(task, state.clicks, record, keepsClicks=job.keptClicks)
        memory.halfWritten = None if task.target.exists else job.writer
        for other, digests, record in job.writer.neighbors.states:
            key = (other.nodeId, other.segmentId, record.identity)
            theirs = self._memories.setdefault(key, SegmentMemory(mark=other.mark))
            theirs.task, theirs.isCut = theirs.task or Task(task.view, (), other), True  # its undo is to be noticed
            theirs.history.remember(other.mark, digests, theirs.lastClicks or (), record)
        self.onJob.emit(job)

    def _updateSurfaces(self, task: Task, *, now: bool = False) -> None:
        """Make again what the 3-D view shows of a segment, and of all that may have been overwritten."""
        node = task.target.node
        if node is None:
            return
        ids = [own for _name, own in segmentNames(node)] if task.target.changesOthers else [task.target.segmentId]
        (self.surfaces.updateNow if now else self.surfaces.updateLater)(node, ids)
