"""The panel: hands widgets and settings to its sections and passes events between them; its keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import qt
import slicer
from slicer.util import VTKObservationMixin

from ..run.console import Console
from ..run.job import SegmentationJob
from ..scene.centerlines import Clicks
from ..scene.state import idleTimer, moduleState
from ..scene.volumes import nodeById
from ..scene.write_record import WriteRecord
from .clicks_section import ClicksSection
from .correct_section import AssistSection, CorrectSection
from .export_section import ExportSection
from .inputs_section import InputsSection
from .overlays import ResultDisplay, SaliencySection
from .review_section import ReviewSection
from .run_section import RunSection
from .setup_section import SetupSection
from .straight_section import StraightSection

REPEATED = "Shift+N"
"""The only key that goes on while it is held."""


class Shortcuts:
    """Keys of the main window.

    Args:
        actions: what to call, by key sequence such as ``Shift+S``.
    """

    def __init__(self, actions: Mapping[str, Callable[[], None]]) -> None:
        self._actions = dict(actions)
        self._installed: list[Any] = []

    def install(self) -> None:
        """Listen to the keys."""
        window = slicer.util.mainWindow()
        if self._installed or window is None:
            return
        for keys, action in self._actions.items():
            shortcut = qt.QShortcut(qt.QKeySequence(keys), window)
            shortcut.setAutoRepeat(keys == REPEATED)
            shortcut.connect("activated()", action)
            self._installed.append(shortcut)

    def remove(self) -> None:
        """Let go of the keys."""
        for shortcut in self._installed:
            shortcut.setEnabled(False)
            shortcut.deleteLater()
        self._installed.clear()


class ModulePanel(VTKObservationMixin):
    """Owns the sections of the panel; they end with :meth:`cleanup`."""

    def __init__(self, widget: Any, ui: Any, logic: Console) -> None:
        VTKObservationMixin.__init__(self)
        self.widget = widget
        self.ui = ui
        self.logic = logic
        self.state = moduleState(logic.getParameterNode())  # type: ignore[attr-defined]
        self.isClosing = False
        self._isEntered = False
        self._hasMissedClicks = False
        self._lists: tuple[str, ...] = ()  # of clicks that the result was made of
        self.inputs = InputsSection(ui, lambda: self.state, self._inputsChanged, logic.segmenter.differences)
        self.run = RunSection(ui, logic, self.inputs, lambda: self.state)
        self.clicks = ClicksSection(ui, lambda: self.state, self._clicksChanged)
        self.review = ReviewSection(ui, self.inputs.currentTask)
        self.correct = CorrectSection(
            ui, logic.segmenter, self.inputs.currentTask, self._segmentChanged, self.review.currentSlice
        )
        self.assist = AssistSection(ui, logic.segmenter, self.inputs, self.run)
        self.straight = StraightSection(ui, self.inputs.currentTask)
        self.display = ResultDisplay(ui, logic.segmenter.surfaces, lambda: self.state)
        self.saliency = SaliencySection(ui, logic.segmenter, self.inputs, self.run.show)
        self.export = ExportSection(ui, lambda: self.state, logic.segmenter.isBusy)
        self.setup = SetupSection(ui, logic, self.run, lambda: self.state, self.refresh)
        self.shortcuts = Shortcuts(
            {"Shift+C": ui.placeButton.click, "Shift+S": ui.segmentButton.click, "Shift+N": ui.nextDoubtfulButton.click}
        )
        ui.undoButton.connect("clicked(bool)", self._onUndo)
        self._later = idleTimer(self._refreshScene)
        self._showLater = idleTimer(self.showRecord)
        self._startLater = idleTimer(self._startAgain)
        self.inputs.onBranches.connect(lambda: self._clicksChanged(self.clicks.snapshot()))
        self.run.onFinished.connect(lambda job: self._showLater.start())
        self.run.onDropped.connect(self._showLater.start)
        logic.segmenter.onJob.connect(self._onJob)
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self._onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self._onSceneEnd)
        self.addObserver(scene, scene.EndImportEvent, self._onSceneEnd)
        # a saved view would name the saliency, which is not saved, instead of a person's foreground
        self.addObserver(scene, scene.StartSaveEvent, lambda caller, event: self.saliency.overlay.remove())
        self.addObserver(scene, scene.StartSaveEvent, lambda caller, event: logic.segmenter.noteChanges())
        self.addObserver(scene, scene.EndSaveEvent, lambda caller, event: self.saliency.restart())
        self.addObserver(scene, scene.NodeAddedEvent, self._onNodesChanged)
        self.addObserver(scene, scene.EndBatchProcessEvent, self._onNodesChanged)
        self.addObserver(scene, scene.NodeRemovedEvent, self._onNodeRemoved)
        self.refresh()

    def enter(self) -> None:
        """Show what the scene has now."""
        self.refresh()
        self.shortcuts.install()
        self.correct.enter()
        self.setup.offerLater()
        view = self.inputs.currentView()
        if view is not None:
            self.logic.segmenter.warmUp(view)
        self._isEntered = True
        if self._hasMissedClicks:
            self._hasMissedClicks = False
            self._clicksChanged(self.clicks.snapshot())

    def exit(self) -> None:
        """Stop placing points and editing; until the module is entered again clicks start nothing."""
        self._isEntered = False
        self.inputs.placing.stop()
        self.shortcuts.remove()
        self.correct.exit()

    def cleanup(self) -> None:
        """Let go of the scene; what runs is cancelled."""
        self.isClosing = True
        for timer in (self._startLater, self._later, self._showLater):
            timer.stop()
        self.logic.segmenter.onJob.disconnect(self._onJob)
        self.shortcuts.remove()
        self._letGo()
        self.clicks.marks.remove()
        for section in (self.setup, self.run, self.correct, self.export, self.straight):
            section.close()
        self.removeObservers()

    def _letGo(self) -> None:
        """Let go of the scene's nodes."""
        for section in (self.saliency, self.inputs, self.clicks, self.review, self.display, self.assist):
            section.close()

    def refresh(self) -> None:
        """Show models, settings, clicks and result."""
        if not self.isClosing:
            self.inputs.fill()
            self._inputsChanged()

    def _refreshScene(self) -> None:
        if not self.isClosing:
            self.inputs.fill(listAgain=False)
            self._inputsChanged()

    def showRecord(self) -> None:
        """Show what is known about the chosen segment."""
        if self.isClosing:
            return
        task = self.inputs.currentTask()
        record = task.target.record if task is not None else WriteRecord()
        self._lists = record.lists
        self.clicks.show(record)
        for button in (self.ui.deleteLastButton, self.ui.clearButton):
            button.enabled = button.enabled and not self.inputs.isForeign
        self.review.show(record)
        self.correct.edit(task.target if task is not None else None, self.state.volumeNode)
        self.correct.show(record)
        self.assist.show(record)
        self.straight.show(record)
        self.ui.undoButton.enabled = self.ui.undoButton.enabled or self.clicks.removed() is not None
        self.display.follow()
        self.export.refresh()
        self.run.refresh()

    def _inputsChanged(self) -> None:
        self.clicks.observe()
        self.saliency.restart()
        self.showRecord()

    def _clicksChanged(self, clicks: Clicks) -> None:
        self.run.refresh()
        self._hasMissedClicks |= not self._isEntered
        if self._isFollowed(clicks):
            self._startLater.start()  # an event of its own, so that each is short
        elif self._lacksLesson:
            self.run.forgetMessage()  # for a word on why nothing follows

    def _startAgain(self) -> None:
        self._hasMissedClicks |= not self._isEntered
        if not self.isClosing and self._mayFollow:
            self.run.start()

    @property
    def _mayFollow(self) -> bool:
        """Whether a run may follow clicks: while another module is shown its editor does, with settings of its own."""
        return self._isEntered and self.state.liveUpdate and not self.inputs.whyNot()

    def _isFollowed(self, clicks: Clicks) -> bool:
        """Whether a run may follow these clicks unasked: what it would replace came of the same choices."""
        if not self._mayFollow:
            return False
        task = self.inputs.currentTask()
        if task is None:
            return self.inputs.source.isNext
        if self.run.isRunningFor(task):
            isOwn = self.run.isOfRun(task)
        else:
            isOwn = bool(task.target.record.model) and self.inputs.source.isOwn(task)
        return isOwn and self.logic.segmenter.hasOtherClicks(task, clicks)

    @property
    def _lacksLesson(self) -> bool:
        """Whether clicks are not followed as the worker no longer has what corrections taught for this result."""
        task = self.inputs.currentTask() if self._mayFollow else None
        if task is None or self.run.isRunningFor(task):
            return False
        return "lesson" in self.logic.segmenter.differences(task)

    def _onUndo(self, checked: bool) -> None:
        """Bring back clicks, where taking them away was the last change and nothing runs, else mask and clicks."""
        task = self.inputs.currentTask()
        isBusy = task is not None and self.logic.segmenter.isBusy(task.target.node, task.target.segmentId)
        removed = None if isBusy else self.clicks.removed()
        if removed is None:
            self.correct.undo()
        else:
            self.clicks.forgetRemoval()
            self.logic.segmenter.bringBack(task, removed)

    def _onJob(self, job: SegmentationJob) -> None:
        """What may be done with the segment depends on whether a run writes into it, whoever started that."""
        if not self.isClosing:
            self.correct.refresh()
            self.export.refresh()
            if job.finished:
                self.correct.look()

    def _segmentChanged(self, wentBack: bool) -> None:
        if wentBack:
            self.run.forgetMessage()
            self._turnToLists()
        self._showLater.start()

    def _turnToLists(self) -> None:
        """After undo or redo choose the lists of the result that is back, where those of the former were chosen."""
        task = self.inputs.currentTask()
        lists = task.target.record.lists if task is not None else ()
        nodes = [node for nodeId in lists if (node := nodeById(nodeId)) is not None]
        chosen = tuple(node.GetID() for node in self.state.centerlineNodes)
        if nodes and self._lists == chosen != tuple(node.GetID() for node in nodes):
            self.state.centerlineNodes = nodes
            self._refreshScene()

    def _onSceneStartClose(self, caller: Any, event: str) -> None:
        self.isClosing = True
        self._hasMissedClicks = False
        self.inputs.placing.stop()
        self._letGo()
        self.run.forgetScene()
        self.correct.forgetScene()

    def _onSceneEnd(self, caller: Any, event: str) -> None:
        self.isClosing = False
        self.state = moduleState(self.logic.getParameterNode())  # type: ignore[attr-defined]
        self.refresh()

    def _onNodesChanged(self, caller: Any, event: str) -> None:
        if not self.isClosing and not slicer.mrmlScene.IsBatchProcessing():
            self._later.start()

    def _onNodeRemoved(self, caller: Any, event: str) -> None:
        if not self.isClosing:
            self.logic.segmenter.checkJobs()
        self._onNodesChanged(caller, event)
