"""Segment and Cancel, progress, messages, live update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
from slicer.i18n import tr as _

from SPDSegmentLib.errors import Cancelled, DependencyMissing, ModelCorrupt, ModelMissing, SPDError, WorkerDied
from SPDSegmentLib.worker.messages import Progress

from ..run.console import Console, MadeSegment
from ..run.job import JobState, SegmentationJob
from ..run.task import Task
from ..scene.editor_nodes import areaSentence, convertToLabelmap, otherRepresentation, segmentName, segmentNames
from ..scene.state import ModuleState, Signal, idleTimer
from ..scene.volumes import jumpTo
from .inputs_section import InputsSection


@dataclass(frozen=True)
class Made(MadeSegment):
    """And what was chosen before.

    Attributes:
        model: the chosen one.
        isNext: see ``Source``.
    """

    model: str
    isNext: bool


class RunSection:
    """Starts and stops jobs of the panel and says how they stand."""

    def __init__(self, ui: Any, logic: Console, inputs: InputsSection, state: Callable[[], ModuleState]) -> None:
        self.confirm: Callable[[str], bool] = slicer.util.confirmYesNoDisplay
        self.ui = ui
        self.logic = logic
        self.onFinished = Signal()
        self.onDropped = Signal()
        self.onSlices = Signal()
        self.job: SegmentationJob | None = None
        self.task: Task | None = None
        self._inputs = inputs
        self._state = state
        self._details = ""
        self._message = ""
        self._isProblem = False
        self._shown = ""  # progress or what can be done now, where it is not the message
        self._saidOf: tuple[str, ...] = ()  # what was chosen when the message was given
        self._note = ""  # to be said at the end of the run under way
        self._failures: dict[tuple[str, ...], SPDError] = {}  # of other segments' runs
        self._made: dict[tuple[str, str], Made] = {}  # segments that have no result yet
        self._dropTimer = idleTimer(self._dropMade)
        ui.segmentButton.connect("clicked(bool)", self._onSegment)
        ui.showAreaButton.connect("clicked(bool)", self._onShowArea)
        ui.writeAnywayButton.connect("clicked(bool)", self._onWriteAnyway)
        ui.liveUpdateCheck.connect("toggled(bool)", lambda on: setattr(self._state(), "liveUpdate", on))
        ui.detailsButton.connect(
            "clicked(bool)", lambda checked: slicer.app.clipboard().setText(f"{self._text}\n\n{self._allDetails}")
        )
        logic.workerHost.onDied.connect(self._onDied)

    @property
    def isRunning(self) -> bool:
        """Whether a job of the panel is under way."""
        return self.job is not None and not self.job.finished

    def isRunningFor(self, task: Task) -> bool:
        """Whether the job under way is that of a segment."""
        return self.isRunning and self.task is not None and self.task.key == task.key

    def isOfRun(self, task: Task) -> bool:
        """Whether a task is the one under way: same volume, axis and model, and clicks of the same nodes."""
        mine = self.task
        if mine is None or not self.isRunningFor(task):
            return False
        return mine.view.isLike(task.view) and any(node in mine.centerlineNodes for node in task.centerlineNodes)

    def refresh(self) -> None:
        """Show what can be done now."""
        reason = self._inputs.whyNot()
        if self._saidOf != self._inputs.choice():
            self._message, self._details, self._isProblem = "", "", False
        self._showButtons()
        self.ui.segmentButton.text = _("Cancel") if self.isRunning else _("Segment")
        self.ui.segmentButton.enabled = self.isRunning or not reason
        self.ui.liveUpdateCheck.checked = self._state().liveUpdate
        if not self.isRunning:
            self.ui.progressBar.setVisible(False)
            hints = [self._inputs.doubts(), reason or self._inputs.note()]
            if reason and self._isProblem and self._message != reason:
                hints.append(self._message)
            self._show("\n".join(filter(None, hints)) if reason or not self._message else self._message)

    def start(self, *, everywhere: bool = False, learned: str | None = None) -> SegmentationJob | None:
        """Start a job with the present settings; a problem is shown, not raised, and one under way goes on.

        Args:
            everywhere: write outside the editor's editable area too.
            learned: name of what corrections taught, see ``Segmenter.start``.
        """
        if not self.isRunning:
            self.job = None
        self._say("")
        try:
            task = self._makeTask()
            self._failures.pop(task.key, None)
            job = self.logic.segmenter.start(task, everywhere=everywhere, learned=learned)
        except SPDError as error:
            self._dropTimer.start()
            self.show(error)
            return None
        self.job, self.task = job, task
        job.onProgress.connect(self._onProgress)
        job.onSlices.connect(self.onSlices.emit)
        job.onFinished.connect(lambda done: self._onFinished(done, task))
        if job.finished:
            self._onFinished(job, task)
            return job
        self.ui.progressBar.maximum = 0
        self.ui.progressBar.setVisible(True)
        self._show(_("Starting..."))
        self.refresh()
        return job

    def show(self, error: SPDError) -> None:
        """Show a problem as one sentence."""
        self._say(self.told(error).sentence, error.details, isProblem=True)

    def told(self, error: SPDError) -> SPDError:
        """Return an error of a request, or before it, with a remedy that can be followed."""
        return forSlicer(error, isRemote=self.logic.workerHost.isRemote)

    def forgetMessage(self) -> None:
        """What was said last holds no longer, as after an undo."""
        self._say("")

    def forgetScene(self) -> None:
        """The scene closes: stop, and let go of its nodes."""
        self.logic.segmenter.forgetScene()
        self.job = None
        self.task = None
        self._dropTimer.stop()
        self._made.clear()
        self._failures.clear()
        self._say("")

    def close(self) -> None:
        """Stop for good."""
        self.logic.workerHost.onDied.disconnect(self._onDied)
        job, self.job = self.job, None
        if job is not None:
            job.cancel(urgent=False)
        self._dropTimer.stop()

    def _onSegment(self, checked: bool) -> None:
        if self.isRunning and self.job is not None:
            self.job.cancel()
        else:
            if self.logic.workerHost.client.gave_up:
                self.logic.workerHost.client.reset()
            self._failures.clear()
            self._note = self._inputs.source.turnToOwn(self.confirm)
            if self._isConverted():
                self.start()

    def _isConverted(self) -> bool:
        """Offer to convert a segmentation that cannot be edited as it is, as Slicer's editor does."""
        state = self._state()
        representation = otherRepresentation(state.segmentationNode)
        if not representation:
            return True
        named = {"name": state.segmentationNode.GetName(), "representation": representation.lower()}
        question = _(
            "The segmentation {name} is stored as {representation}. Editing it needs a binary labelmap, and details may"
            " be lost in the conversion.\n\nConvert it to a binary labelmap?"
        )
        if not self.confirm(question.format(**named)):
            kept = _("Nothing was changed: the segmentation {name} is still stored as {representation}.")
            self._say(kept.format(**named))
            return False
        try:
            convertToLabelmap(state.segmentationNode, state.volumeNode)
        except SPDError as error:
            self.show(error)
            return False
        return True

    def _onShowArea(self, checked: bool) -> None:
        """Unfold the editor, which has the settings, and show the first slice that they concern."""
        self.ui.correctSection.collapsed = False
        self.ui.editor.maskingSectionVisible = True
        job, task = self.job, self.task
        if job is None or task is None or not job.writer.withheld or self._state().volumeNode is None:
            return
        snapshot = task.writtenSnapshot()
        height, width = snapshot.grid.shape[1:]
        middle = np.array([[(width - 1) / 2, (height - 1) / 2]])
        jumpTo(snapshot.stack.to_ras(np.array(min(job.writer.withheld)), middle)[0])

    def _onWriteAnyway(self, checked: bool) -> None:
        if not self.isRunning:
            self.start(everywhere=True)

    def _onProgress(self, progress: Progress) -> None:
        bar = self.ui.progressBar
        bar.maximum = max(progress.total, 1)
        bar.value = progress.done
        self._show(progressText(progress))

    def _makeTask(self) -> Task:
        state = self._state()
        node, model, isNext = state.segmentationNode, state.model, self._inputs.source.isNext
        known = {segmentId for _name, segmentId in segmentNames(node)}
        task = self._inputs.makeTask()
        target = task.target
        if target.segmentId not in known:
            name = segmentName(target.node, target.segmentId)
            self._made[target.nodeId, target.segmentId] = Made(target, name, node is None, model, isNext)
        return task

    def _dropMade(self) -> None:
        """Take away what was made for runs that came to nothing, unless a person has painted there or named it."""
        state, source = self._state(), self._inputs.source
        said = (self._message, self._details, self._isProblem) if self._saidOf == self._inputs.choice() else None
        for key, made in list(self._made.items()):
            target, node = made.target, made.target.node
            if node is not None and self.logic.segmenter.isBusy(node, target.segmentId):
                continue
            del self._made[key]
            if not made.isUnused:
                continue
            isChosen = (state.segmentationNode, state.segmentId) == (node, target.segmentId)
            state.segmentId = "" if isChosen else state.segmentId  # before it goes: it is not to be chosen again
            made.remove()
            if isChosen:
                state.model, source.isNext = made.model, made.isNext
        self._inputs.fill(listAgain=False)
        if said is not None:
            self._say(said[0], said[1], isProblem=said[2])
        self.onDropped.emit()

    def _onFinished(self, job: SegmentationJob, task: Task) -> None:
        if job.state is JobState.DONE:
            self._made.pop((task.target.nodeId, task.target.segmentId), None)
        elif self._made:
            self._dropTimer.start()
        problem = None if isinstance(job.error, Cancelled) else job.error
        if problem is not None and (job is not self.job or not self._isChosen(task)):
            named = type(problem)(ofSegment(task, problem.message), problem.remedy, problem.details)
            self._failures[task.key] = self.told(named)
        if job is not self.job:
            self._show(self._shown)
            self.refresh()
            return
        note, self._note = self._note, ""
        if problem is not None and self._isChosen(task):
            self.show(problem)
        elif problem is not None:
            self._say("")
        else:
            text = " ".join(filter(None, (endText(job), note if job.error is None else "")))
            self._say(text if self._isChosen(task) else ofSegment(task, text))
        self.onFinished.emit(job)

    def _onDied(self, error: SPDError) -> None:
        if not self.isRunning:
            self.show(error)

    def _isChosen(self, task: Task) -> bool:
        """Whether a task's segment is the one that is chosen now."""
        state = self._state()
        node = state.segmentationNode
        return node is not None and (node.GetID(), state.segmentId) == (task.target.nodeId, task.target.segmentId)

    @property
    def _text(self) -> str:
        return "\n".join(filter(None, (*(error.sentence for error in self._failures.values()), self._message)))

    @property
    def _allDetails(self) -> str:
        details = (*(error.details for error in self._failures.values()), self._details)
        return "\n\n".join(filter(None, details))

    def _show(self, text: str) -> None:
        """Show a text below what failed elsewhere."""
        self._shown = text
        failed = [error.sentence for error in self._failures.values()]
        self.ui.statusLabel.text = "\n".join(filter(None, (*failed, text)))

    def _say(self, text: str, details: str = "", *, isProblem: bool = False) -> None:
        """Show a message for as long as what is chosen now stays chosen."""
        self._message, self._details, self._isProblem = text, details, isProblem
        self._saidOf = self._inputs.choice()
        self._show(text)
        self.refresh()

    def _showButtons(self) -> None:
        job, task = self.job, self.task
        isOwn = job is not None and task is not None and job.finished and self._isChosen(task)
        isWithheld = bool(isOwn and job is not None and job.writer.withheld and self._message)
        for button in (self.ui.showAreaButton, self.ui.writeAnywayButton):
            button.setVisible(isWithheld)
        self.ui.detailsButton.setVisible(bool(self._allDetails))


def ofSegment(task: Task, text: str) -> str:
    """A text that names its segment, where that is still there."""
    name = segmentName(task.target.node, task.target.segmentId)
    return f"{name}: {text}" if name else text


def forSlicer(error: SPDError, *, setUp: str = "", isRemote: bool = False) -> SPDError:
    """Return the same error with a remedy that a person in front of Slicer can follow.

    Args:
        error: as it came.
        setUp: what the set-up is called, where that is not before one's eyes.
        isRemote: the worker runs elsewhere: what it lacks the set-up cannot get.
    """
    setUp = setUp or str(_("Set-up"))
    remedy = _remoteRemedy(error) if isRemote else ""
    if remedy:
        return type(error)(error.message, remedy, error.details)
    remedy = error.remedy
    if isinstance(error, ModelMissing) and "models fetch" in remedy:
        remedy = _("Open {setUp} and press Install what is missing.").format(setUp=setUp)
    elif isinstance(error, ModelCorrupt) and "add --accept-unknown" in remedy:
        remedy = _("Get a fresh copy of the model and add it in {setUp}.").format(setUp=setUp)
    elif isinstance(error, ModelCorrupt) and "models verify" in remedy:
        remedy = _("Check it in {setUp}; where that finds nothing, get another copy of the model.").format(setUp=setUp)
    elif isinstance(error, ModelCorrupt) and "models " in remedy:
        remedy = _("Open {setUp}, remove it there, and fetch or add it again.").format(setUp=setUp)
    elif isinstance(error, DependencyMissing) and any(word in remedy for word in ("pip install", "the set-up")):
        remedy = _("Open {setUp} and press Install what is missing.").format(setUp=setUp)
    elif isinstance(error, WorkerDied) and remedy.endswith("then restart it."):
        remedy = _("Change the device or the worker command in {setUp}, then press Segment to start it again.").format(
            setUp=setUp
        )
    return type(error)(error.message, remedy, error.details)


def _remoteRemedy(error: SPDError) -> str:
    """What to do where the worker runs; empty for what is mended here."""
    remedy = error.remedy
    if isinstance(error, DependencyMissing) and "the set-up" in remedy:
        return str(_("Install it on the computer where the worker runs."))
    if isinstance(error, ModelMissing) and "Give a folder" in remedy:
        return str(_("Add it on the computer where the worker runs, by: spdsegment models add FOLDER"))
    isOfCommand = "spdsegment " in remedy or "pip install" in remedy
    if not isOfCommand or not isinstance(error, (DependencyMissing, ModelCorrupt, ModelMissing)):
        return ""
    return str(_("On the computer where the worker runs, {command}")).format(command=remedy[0].lower() + remedy[1:])


def progressText(progress: Progress) -> str:
    """Return stage, slices done and time left as one line."""
    if progress.stage == "load_model":
        return _("Loading the model...")
    stages = {"encoding": _("Looking at slices"), "decoding": _("Segmenting slices"), "learning": _("Learning")}
    text = _("{stage}: {done} of {total}").format(
        stage=stages.get(progress.stage, progress.stage), done=progress.done, total=progress.total
    )
    if progress.seconds_left is not None and progress.seconds_left >= 1:
        text += _(", about {seconds} s left").format(seconds=round(progress.seconds_left))
    return text


def endText(job: SegmentationJob) -> str:
    """Return what came of a run that ended without a problem: done, undone or cancelled."""
    if job.state is JobState.DONE:
        return _doneText(job)
    if job.keptClicks:
        return str(_("Undone; the segment is as it was before. Clicks that have no result yet were kept."))
    if job.wasUndone:
        return str(_("Undone; the segment and its clicks are as they were before."))
    return str(_("Cancelled; nothing was changed."))


def _doneText(job: SegmentationJob) -> str:
    assert job.answer is not None
    writer = job.writer
    parts = [areaSentence(writer.withheld, len(writer.asked), writer.area)]
    if writer.changed or not writer.withheld:
        updated = _("{count} slices updated in {seconds} s.")
        parts.insert(0, updated.format(count=len(writer.changed), seconds=f"{job.answer.seconds:.1f}"))
    owned = len(writer.record.owned)
    if owned:
        parts.append(_("{count} slices edited by you were kept.").format(count=owned))
    quality = job.answer.report.get("quality") or {}
    parts += [quality.get("sentence", ""), *job.answer.report.get("notes", []), job.note]
    return " ".join(filter(None, parts))
