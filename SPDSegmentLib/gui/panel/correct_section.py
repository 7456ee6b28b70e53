"""Corrections: the embedded Segment Editor, its undo, a person's slices; and what the model offers, never by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from SPDSegmentLib.errors import Cancelled, SPDError
from SPDSegmentLib.geometry.slices import slice_ranges
from SPDSegmentLib.worker.client import Request
from SPDSegmentLib.worker.messages import Answer, Learned, Suggested

from ..run.segmenter import Segmenter
from ..run.task import Task
from ..scene.centerlines import GhostClick, addClick
from ..scene.editor_nodes import editorNode
from ..scene.state import idleTimer
from ..scene.target import SegmentTarget
from ..scene.volumes import jumpTo, nodeById
from ..scene.write_record import Position, WriteRecord
from .inputs_section import InputsSection
from .run_section import RunSection, progressText

NOTICE_MS = 200


class CorrectSection(VTKObservationMixin):
    """Shows the target in the editor and takes in what a person changes there."""

    def __init__(
        self,
        ui: Any,
        segmenter: Segmenter,
        task: Callable[[], Task | None],
        onChanged: Callable[[bool], None],
        currentSlice: Callable[[], int | None],
    ) -> None:
        VTKObservationMixin.__init__(self)
        self.ui = ui
        self._segmenter = segmenter
        self._task = task
        self._onChanged = onChanged
        self._currentSlice = currentSlice
        self._entered = False
        self._hasOwned = False
        self._shown: tuple[str, str, str] | None = None
        self._timer = idleTimer(self.takeIn, NOTICE_MS)
        segmenter.saveStateForUndo = self._saveState
        ui.correctSection.connect("contentsCollapsed(bool)", self._onCollapsed)
        ui.releaseButton.connect("clicked(bool)", lambda checked: self._release(None))
        ui.releaseSliceButton.connect("clicked(bool)", self._onReleaseSlice)

    def edit(self, target: SegmentTarget | None, volumeNode: Any) -> None:
        """Show a segment in the editor and follow its changes; None for no segment.

        What a person selects there stays selected until the panel turns to another segment or volume.
        """
        node = target.node if target is not None else None
        shownNode = self.ui.editor.segmentationNode()  # whose history may bring back a segment that was removed
        isShown = shownNode is not None and nodeById(shownNode.GetID() or "") is not None
        self.ui.undoButton.enabled = node is not None or isShown
        if target is None or node is None:
            self.removeObservers()
            self._shown = None
            return
        editor = self.ui.editor
        shown = (target.nodeId, target.segmentId, volumeNode.GetID() if volumeNode is not None else "")
        if editor.mrmlSegmentEditorNode() is not editorNode():
            editor.setMRMLSegmentEditorNode(editorNode())
            self._shown = None
        if shown != self._shown or editor.segmentationNode() is not node:
            editor.setSegmentationNode(node)
            editor.setSourceVolumeNode(volumeNode)
            editor.setCurrentSegmentID(target.segmentId)
            self._shown = shown
            self._segmenter.forgetUndoStep()
            self.look()
        self.removeObservers()
        segmentation = node.GetSegmentation()
        kinds = slicer.vtkSegmentation
        for event in (kinds.SourceRepresentationModified, kinds.RepresentationModified, kinds.SegmentModified):
            self.addObserver(segmentation, event, lambda caller, event: self._timer.start())

    def show(self, record: WriteRecord) -> None:
        """Show which slices are a person's."""
        task = self._task()
        stack = task.writtenSnapshot(record).stack if task is not None else None
        owned = sorted(record.owned if stack is None else {stack.slice_number(t) for t in record.owned})
        self._hasOwned = bool(owned)
        self.refresh()
        self.ui.lockedLabel.text = (
            _("Slices edited by you and kept: {ranges}.").format(ranges=slice_ranges(owned))
            if owned
            else _("Slices that you edit are kept when clicks change.")
        )

    def refresh(self) -> None:
        """Show whether slices can be released: a run goes by those that were a person's when it began."""
        task = self._task() if self._hasOwned else None
        isFree = task is not None and not self._segmenter.isBusy(task.target.node, task.target.segmentId)
        self.ui.releaseButton.enabled = isFree
        self.ui.releaseSliceButton.enabled = isFree and self._currentSlice() is not None

    def look(self) -> None:
        """Take in, in a moment, what happened while the segment was not looked at."""
        self._timer.start()

    def takeIn(self) -> None:
        """Recognize edits, undo and redo since the last look."""
        task = self._task()
        if task is None or task.target.node is None or nodeById(task.volumeNode.GetID()) is None:
            return
        self._onChanged(self._segmenter.noteChange(task))

    def enter(self) -> None:
        """Listen to the editor's keys, where it is unfolded."""
        self._entered = True
        self._segmenter.forgetUndoStep()
        self._onCollapsed(self.ui.correctSection.collapsed)

    def exit(self) -> None:
        """Stop editing, as when another module is shown."""
        self._entered = False
        self._onCollapsed(True)

    def close(self) -> None:
        """Stop for good."""
        self._stop()
        self._segmenter.saveStateForUndo = None

    def _stop(self) -> None:
        self._timer.stop()
        self.ui.editor.setActiveEffectByName("")
        self.removeObservers()

    def forgetScene(self) -> None:
        """Let go of the scene's nodes."""
        self._stop()
        self._shown = None
        self.ui.editor.setMRMLSegmentEditorNode(None)

    def _saveState(self, task: Task) -> bool:
        """Make an undo step, where it is the panel's segmentation that is written; return whether it is."""
        mine = self._task()
        if mine is not None and mine.target.nodeId == task.target.nodeId:
            self.edit(mine.target, mine.volumeNode)
        isShown = self.ui.editor.segmentationNode() is task.target.node
        if isShown:
            self.ui.editor.saveStateForUndo()
        return isShown

    def _onCollapsed(self, collapsed: bool) -> None:
        editor = self.ui.editor
        editor.uninstallKeyboardShortcuts()
        if self._entered and not collapsed:
            editor.installKeyboardShortcuts()
        else:
            editor.setActiveEffectByName("")

    def undo(self) -> None:
        """Take back what was done last: an edit, or the run under way."""
        task = self._task()
        if task is None or not self._segmenter.takeBack(task, self.ui.editor.undo):
            self.ui.editor.undo()

    def _onReleaseSlice(self, checked: bool) -> None:
        t = self._currentSlice()
        if t is not None:
            self._release({t})

    def _release(self, slices: set[int] | None) -> None:
        task = self._task()
        node = task.target.node if task is not None else None
        if task is not None and node is not None and not self._segmenter.isBusy(node, task.target.segmentId):
            self._segmenter.release(task, slices)
            self._onChanged(False)


class AssistSection:
    """Buttons among the clicks (suggest, accept, dismiss) and below the editor (learn, apply, forget)."""

    def __init__(self, ui: Any, segmenter: Segmenter, inputs: InputsSection, run: RunSection) -> None:
        self.ui = ui
        self.ghost = GhostClick()
        self._segmenter = segmenter
        self._inputs = inputs
        self._task = inputs.currentTask
        self._run = run
        self._request: Request | None = None
        self._lesson: Learned | None = None
        self._asksLesson = False  # rather than a click
        self._askedFor: tuple[str, ...] = ()  # what was chosen when it was asked for what is offered
        self._record = WriteRecord()
        self._dismissed: dict[tuple[str, ...], list[Position]] = {}
        for button, action in (
            (ui.suggestButton, self._suggest),
            (ui.acceptButton, self._accept),
            (ui.dismissButton, self._dismiss),
            (ui.learnButton, self._learn),
            (ui.applyLearnedButton, self._apply),
            (ui.forgetLearnedButton, self._forget),
        ):
            button.connect("clicked(bool)", lambda checked, action=action: action())

    def show(self, record: WriteRecord) -> None:
        """Show what can be asked for now; what was offered for another state is withdrawn."""
        if record.written != self._record.written or record.owned != self._record.owned:
            self.withdraw()
        self._record = record.copy()
        self._checkChoice()
        self._refresh()

    def withdraw(self) -> None:
        """Take back what was offered, and ask no more."""
        request, self._request, self._lesson = self._request, None, None
        if request is not None and not request.finished:
            self._segmenter.workerHost.client.cancel(request, urgent=False)
        self.ghost.remove()
        self.ui.suggestLabel.text = self.ui.learnLabel.text = ""

    def close(self) -> None:
        """Let go of the scene, in whose successor other nodes have the same names."""
        self.withdraw()
        self._dismissed.clear()

    @property
    def _choice(self) -> tuple[str, ...]:
        """What an offer holds for: segment, volume, axis, lists of clicks, and the model's files."""
        model = self._inputs.model
        return (*self._inputs.choice(), model.key if model is not None else "")

    def _checkChoice(self) -> None:
        """Take back what was asked for or offered for another choice than that of now."""
        hasLesson = self._lesson is not None or self._isLearning
        isOpen = hasLesson or self._request is not None or self.ghost.node is not None
        if not isOpen or self._askedFor == self._choice:
            return
        self.withdraw()
        if hasLesson:
            self.ui.learnLabel.text = _(
                "What was learned belongs to another model, volume, axis or list of clicks; press Learn from"
                " corrections again."
            )

    @property
    def _isLearning(self) -> bool:
        return self._request is not None and self._asksLesson

    def _refresh(self) -> None:
        ui, record = self.ui, self._record
        isIdle = self._request is None and not self._run.isRunning
        task = self._task() if record.model else None
        source = self._inputs.source
        hasResult = task is not None and source.isOwnBut(task, "model", "lesson")
        ui.suggestButton.enabled = hasResult and isIdle
        for button in (ui.acceptButton, ui.dismissButton):
            button.enabled = self.ghost.positionRas is not None
        ui.learnButton.text = _("Cancel") if self._isLearning else _("Learn from corrections")
        ui.learnButton.enabled = self._isLearning or (hasResult and isIdle and len(record.owned) > 1)
        ui.applyLearnedButton.enabled = hasResult and isIdle and self._lesson is not None and bool(self._lesson.name)
        hasLearned = bool(record.learned) and task is not None and source.isOwnBut(task, "lesson")
        ui.forgetLearnedButton.enabled = isIdle and hasLearned
        if record.learned and not ui.learnLabel.text:
            ui.learnLabel.text = _("The masks are those of the model as it was adapted to your corrections.")

    def _suggest(self) -> None:
        task = self._task()
        if task is None:
            return
        self.withdraw()
        self._asksLesson, self._askedFor = False, self._choice
        dismissed = self._dismissed.get(task.key, [])
        try:
            self._request = self._segmenter.suggest(task, dismissed, lambda answer: self._offer(task, answer))
        except SPDError as error:
            self.ui.suggestLabel.text = error.sentence
        else:
            self.ui.suggestLabel.text = (
                _("Looking where the model is unsure...")
                if self._request is not None
                else _("The background process does not know this result. Press Segment first.")
            )
        self._refresh()

    def _offer(self, task: Task, answer: Answer | SPDError) -> None:
        self._request = None
        text = ""
        if isinstance(answer, Suggested) and len(answer.slices):
            r, a, s = answer.places_ras[0].tolist()
            self.ghost.show((r, a, s), _("Suggested click"))
            jumpTo((r, a, s))
            why = (
                _("Slice {number} is empty, {distance} mm from the nearest click. Does the structure pass there?")
                if answer.measures[0, 0] < 0
                else _("Slice {number}: the model's masks differ in {share} %, {distance} mm from the nearest click.")
            )
            how = _("Drag the point on to the structure if it lies beside it; accept it, or dismiss it.")
            text = f"{why} {how}".format(
                number=task.view.snapshot().stack.slice_number(answer.slices[0]),
                share=round(100 * float(answer.measures[0, 0])),
                distance=round(float(answer.measures[0, 1])),
            )
        elif isinstance(answer, Suggested):
            text = _(
                "No click is suggested: no slice is missing, and the model agrees with itself wherever it has looked."
            )
        elif isinstance(answer, SPDError) and not isinstance(answer, Cancelled):
            text = self._run.told(answer).sentence
        self.ui.suggestLabel.text = text
        self._checkChoice()
        self._refresh()

    def _accept(self) -> None:
        self._checkChoice()
        task, place = self._task(), self.ghost.positionRas
        self.withdraw()
        if task is not None and place is not None and task.centerlineNodes:
            addClick(task.centerlineNodes[0], place)
        self._refresh()

    def _dismiss(self) -> None:
        task, place = self._task(), self.ghost.positionRas
        if task is not None and place is not None:
            self._dismissed.setdefault(task.key, []).append(place)
        self.withdraw()
        self._refresh()

    def _learn(self) -> None:
        if self._request is not None:
            self.withdraw()
            self.ui.learnLabel.text = _("Cancelled; nothing was learned.")
            self._refresh()
            return
        task = self._task()
        if task is None:
            return
        self.withdraw()
        self._asksLesson, self._askedFor = True, self._choice
        label = self.ui.learnLabel
        label.text = _("Learning...")
        try:
            self._request = self._segmenter.learn(
                task,
                lambda answer: self._taught(task, answer),
                lambda progress: setattr(label, "text", progressText(progress)),
            )
        except SPDError as error:
            label.text = error.sentence
        self._refresh()

    def _taught(self, task: Task, answer: Answer | SPDError) -> None:
        self._request = None
        if isinstance(answer, Learned):
            self._lesson = answer
            number = task.view.snapshot().stack.slice_number
            changed = slice_ranges(number(int(t)) for t in answer.changed_table[:, 0])
            parts = [answer.sentence]
            if answer.name:
                parts += [_("Slices: {ranges}.").format(ranges=changed)] if changed else []
                parts += [_("Press Apply to take it over; nothing has changed yet.")]
            self.ui.learnLabel.text = " ".join(parts)
            self._checkChoice()
        elif isinstance(answer, SPDError) and not isinstance(answer, Cancelled):
            self.ui.learnLabel.text = self._run.told(answer).sentence
        self._refresh()

    def _apply(self) -> None:
        self._checkChoice()
        lesson = self._lesson
        if lesson is not None and lesson.name:
            self._run.start(learned=lesson.name)

    def _forget(self) -> None:
        self.withdraw()
        self._run.start(learned="")
