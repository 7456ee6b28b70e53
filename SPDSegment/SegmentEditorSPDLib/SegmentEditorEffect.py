"""The Segment Editor effect *SPD*: clicks along the current segment, segmented by the module's own worker.

Slicer loads an effect by the path of its file: the folder gives the module's name, the file the class's
(``qSlicerSegmentEditorScriptedEffect::setPythonSource``). Masking, overwriting and undo are those of the editor in
which the effect is used.
"""

from __future__ import annotations

from typing import Any

import qt
import slicer
import vtk
from SegmentEditorEffects import AbstractScriptedSegmentEditorEffect
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from SPDSegmentLib.errors import Cancelled, SPDError
from SPDSegmentLib.gui.panel.about import resourcePath
from SPDSegmentLib.gui.panel.clicks_section import Removals
from SPDSegmentLib.gui.panel.controls import MODEL, EditorChoice, showPlainly, sourceText
from SPDSegmentLib.gui.panel.run_section import endText, forSlicer, ofSegment, progressText
from SPDSegmentLib.gui.run.job import SegmentationJob
from SPDSegmentLib.gui.run.task import ModelEntry, Task, VolumeView
from SPDSegmentLib.gui.scene.centerlines import clickEvents, snapshotClicks
from SPDSegmentLib.gui.scene.editor_nodes import segmentName
from SPDSegmentLib.gui.scene.state import callAtSceneClose, idleTimer, makeClicks

CLICK_MS = 150
"""After a change of the clicks, before a run starts."""
LIVE = "LiveUpdate"
"""A parameter, which the editor's node keeps."""


class SegmentEditorEffect(AbstractScriptedSegmentEditorEffect, VTKObservationMixin):
    """One for each editor; Slicer calls its methods by their names."""

    def __init__(self, scriptedEffect: Any) -> None:
        scriptedEffect.name = "SPD"
        scriptedEffect.title = _("SPD")
        scriptedEffect.perSegment = True
        scriptedEffect.requireSegments = True
        scriptedEffect.showEffectCursorInSliceView = False
        AbstractScriptedSegmentEditorEffect.__init__(self, scriptedEffect)
        VTKObservationMixin.__init__(self)
        self._chosen = EditorChoice(scriptedEffect, lambda: self._panel.state)
        self.job: SegmentationJob | None = None  # the latest one
        self._jobs: dict[tuple[str, ...], SegmentationJob] = {}  # by segment
        self._ends: dict[tuple[str, ...], str] = {}  # what came of those of other segments, until one turns to these
        self._views: dict[tuple[str, ...], VolumeView] = {}  # of the same
        self._removals = Removals()
        self._followed: tuple[str, ...] = ()
        self._message = ""
        self._saidOf: tuple[str, ...] = ()  # what was chosen then
        self._clicksTimer = idleTimer(self._onClicks, CLICK_MS)
        self._segmentTimer = idleTimer(self._onSegment, CLICK_MS)
        self._refreshTimer = idleTimer(self._refresh)
        callAtSceneClose(self._forgetScene)

    def clone(self) -> Any:
        """Return another effect of this kind, for another editor."""
        import qSlicerSegmentationsEditorEffectsPythonQt as effects

        cloned = effects.qSlicerSegmentEditorScriptedEffect(None)
        cloned.setPythonSource(__file__.replace("\\", "/"))
        return cloned

    def icon(self) -> Any:
        """Return the picture of the button."""
        return qt.QIcon(resourcePath("Icons/SPDSegment.png"))

    def helpText(self) -> str:
        """Return what the editor says of the effect."""
        return "<html>{}</html>".format(
            _(
                "Segment the current segment from rough clicks along its centerline.<br>"
                "Choose a model, press <b>Place clicks</b>, click along the structure in the slice views, then press "
                "<b>Segment</b>. Slices that you edit by hand are kept when clicks change. "
                "Quality, fates of the clicks and set-up are in the module SPDSegment."
            )
        )

    def setupOptionsFrame(self) -> None:
        """Make the widgets of the options."""
        add = self.scriptedEffect
        self.modelBox = qt.QComboBox()
        self.modelBox.sizeAdjustPolicy = qt.QComboBox.AdjustToMinimumContentsLengthWithIcon
        self.modelBox.connect("activated(int)", self._onModel)
        add.addLabeledOptionsWidget(_("Model:"), self.modelBox)
        self.placeWidget = slicer.qSlicerMarkupsPlaceWidget()
        self.placeWidget.setMRMLScene(slicer.mrmlScene)
        self.placeWidget.setVisible(False)
        self.placeWidget.placeMultipleMarkups = slicer.qSlicerMarkupsPlaceWidget.ForcePlaceMultipleMarkups
        self.placeButton = _button(_("Place clicks"), self._onPlace, checkable=True)
        self.placeWidget.connect(
            "activeMarkupsPlaceModeChanged(bool)", lambda on: setattr(self.placeButton, "checked", on)
        )
        self.deleteLastButton = _button(_("Delete last click"), lambda checked: self._removeClicks(lastOnly=True))
        self.clearButton = _button(_("Clear"), lambda checked: self._removeClicks(lastOnly=False))
        self.clearButton.toolTip = _("Take all clicks of this segment away; Bring back clicks undoes that.")
        self.bringBackButton = _button(_("Bring back clicks"), self._onBringBack)
        self.bringBackButton.toolTip = _("Bring back what Delete last click or Clear took away last.")
        self.segmentButton = _button(_("Segment"), self._onRun)
        self.liveCheck = qt.QCheckBox(_("Live update"))
        self.liveCheck.toolTip = _("Recompute the neighborhood of a click as soon as you add, move or remove it.")
        self.liveCheck.connect("toggled(bool)", self._onLive)
        self.writeAnywayButton = _button(_("Write anyway once"), lambda checked: self.start(everywhere=True))
        grid = qt.QGridLayout()  # two columns: more would be cut off in a narrow panel
        buttons = (self.placeButton, self.deleteLastButton, self.clearButton, self.bringBackButton, self.segmentButton)
        for n, widget in enumerate((*buttons, self.liveCheck, self.placeWidget)):
            grid.addWidget(widget, n // 2, n % 2)
        grid.addWidget(self.writeAnywayButton, 4, 0, 1, 2)
        add.addOptionsWidget(grid)
        self.statusLabel = qt.QLabel()
        self.statusLabel.wordWrap, self.statusLabel.textFormat = True, qt.Qt.PlainText
        add.addOptionsWidget(self.statusLabel)

    def setMRMLDefaults(self) -> None:
        """Set the parameters that are not set yet."""
        self.scriptedEffect.setParameterDefault(MODEL, "")
        self.scriptedEffect.setParameterDefault(LIVE, 1)

    def activate(self) -> None:
        """The effect was chosen."""
        self._chosen.models = self._panel.inputs.usableModels()
        self._follow()
        self._refresh()
        task = self.task
        if task is not None:
            self.logic.segmenter.warmUp(task.view)

    def deactivate(self) -> None:
        """Another effect was chosen, or none; a run goes on."""
        self.placeWidget.placeModeEnabled = False
        self._stopFollowing()

    def cleanup(self) -> None:
        """Let go of everything before the effect is deleted; a run goes on, and its end is not said here."""
        self._stopFollowing()
        self._jobs.clear()

    def interactionNodeModified(self, _interactionNode: Any) -> None:
        """Stay active while clicks are placed; by default place mode ends an effect."""

    def updateGUIFromMRML(self) -> None:
        """Show the parameters."""
        if self.scriptedEffect.parameterSetNode() is not None:
            self._refreshTimer.start()

    def updateMRMLFromGUI(self) -> None:
        """Nothing: every widget writes its parameter at once."""

    @property
    def logic(self) -> Any:
        """The module's logic, which the panel uses too: one worker, one memory of each segment."""
        return slicer.util.getModuleLogic("SPDSegment")

    @property
    def _panel(self) -> Any:
        """The module's panel, whose models, device and slicing axis hold here too."""
        return slicer.util.getModuleWidget("SPDSegment").panel

    @property
    def task(self) -> Task | None:
        """What would be segmented, or None where something is missing."""
        return self._chosen.task

    @property
    def model(self) -> ModelEntry | None:
        """The model that a run would take, or None."""
        return self._chosen.model

    @property
    def clickNodes(self) -> list[Any]:
        """The point lists of the current segment."""
        return self._chosen.clickNodes

    def start(self, *, everywhere: bool = False) -> SegmentationJob | None:
        """Start a run; a problem is shown, not raised, and a run under way goes on."""
        job, task = None, self.task
        self._say("")
        try:
            if task is not None:
                job = self.logic.segmenter.start(task, everywhere=everywhere)
        except SPDError as error:
            self._say(self._sentence(error))
        if job is not None and task is not None:
            key = task.key
            self._jobs[key], self._views[key] = job, task.view
            self.job = job
            self._ends.pop(key, None)
            job.onProgress.connect(lambda progress: self._show(progressText(progress), key))
            job.onFinished.connect(lambda done: self._onFinished(done, task, key))
        elif not self._isRunning:
            self.job = None
        self._refresh()
        return job

    @property
    def _isRunning(self) -> bool:
        """Whether a run is under way, of whichever segment."""
        return any(not job.finished for job in self._jobs.values())

    @property
    def _ownJob(self) -> SegmentationJob | None:
        return self._jobs.get(self._chosen.key)

    @property
    def _isRunningHere(self) -> bool:
        return self._ownJob is not None and not self._ownJob.finished

    def _follow(self) -> None:
        """Listen to the editor's choices, to the segmentation, and to the clicks of the segment."""
        self.removeObservers()
        editor, modified = self._chosen.editor, vtk.vtkCommand.ModifiedEvent
        self.addObserver(editor, modified, lambda caller, event: self._refreshTimer.start())
        node, _segmentId = self._chosen.segment
        if node is not None:
            kinds = slicer.vtkSegmentation
            for event in (kinds.SourceRepresentationModified, kinds.RepresentationModified, kinds.SegmentModified):
                self.addObserver(node.GetSegmentation(), event, lambda caller, event: self._segmentTimer.start())
        for clicks in self.clickNodes:
            for event in clickEvents(clicks):
                self.addObserver(clicks, event, lambda caller, event: self._clicksTimer.start())
        if self._followed[:2] != self._present[:2]:
            self._chosen.turn()
            self.logic.segmenter.forgetUndoStep()
            self._look()
        self._followed = self._present

    def _look(self) -> None:
        """Take in, in a moment, what happened while the segment was not looked at."""
        self._segmentTimer.start()

    @property
    def _present(self) -> tuple[str, ...]:
        """What is followed: segmentation, segment, clicks."""
        return (*self._chosen.names[:2], *(clicks.GetID() for clicks in self.clickNodes))

    def _forgetScene(self) -> None:
        """Hold nothing of a scene that closes."""
        self.job = None
        for kept in (self._jobs, self._ends, self._views, self._removals, self._chosen):
            kept.clear()

    def _stopFollowing(self) -> None:
        for timer in (self._clicksTimer, self._segmentTimer, self._refreshTimer):
            timer.stop()
        self.removeObservers()
        self._followed = ()

    def _refresh(self) -> None:
        """Show what can be done now; turn to the segment that is chosen now."""
        if self._chosen.editor is None or slicer.mrmlScene.IsClosing():
            return
        if self._followed and self._followed != self._present:
            hasTurned = self._followed[:2] != self._present[:2]
            self._follow()
            if hasTurned:
                self._say(self._ends.pop(self._chosen.key, ""))
        if self._saidOf != self._chosen.names:
            self._say("")
        model, missing = self.model, self._chosen.missing()
        self.modelBox.clear()
        if model is None:
            self.modelBox.addItem(_("Choose a model") if self._chosen.models else _("No model installed"), "")
        for entry in self._chosen.models:
            self.modelBox.addItem(entry.title, entry.name)
        self.modelBox.currentIndex = 0 if model is None else self.modelBox.findData(model.name)
        nodes = self._turnPlacing()
        any_ = any(node.GetNumberOfDefinedControlPoints() for node in nodes)
        self.deleteLastButton.enabled = self.clearButton.enabled = any_
        isRunning = self._isRunningHere
        removed = self._removals.latest(nodes, self._chosen.segment[0])
        self.bringBackButton.enabled = not isRunning and removed is not None
        self.segmentButton.text = _("Cancel") if isRunning else _("Segment")
        self.segmentButton.enabled = isRunning or (any_ and not missing)
        self.placeButton.enabled = self._chosen.target is not None
        self.liveCheck.checked = bool(self.scriptedEffect.integerParameter(LIVE))
        job = self._ownJob
        withheld = job is not None and job.finished and bool(job.writer.withheld and self._message)
        self.writeAnywayButton.setVisible(withheld)
        if not isRunning:
            self.statusLabel.text = self._message or missing or self._note(any_)

    def _note(self, hasClicks: bool) -> str:
        """What a person should know before a run, empty if nothing."""
        task = self.task
        differs = self.logic.segmenter.differences(task) if task is not None else set()
        if task is not None and differs:
            return sourceText(differs).format(name=segmentName(task.target.node, task.target.segmentId))
        return "" if hasClicks else _("Press Place clicks, then click along the structure in the slice views.")

    def _say(self, text: str) -> None:
        """Show a message for as long as what is chosen now stays chosen."""
        self._message, self._saidOf = text, self._chosen.names

    def _turnPlacing(self) -> list[Any]:
        """Place into the clicks of the current segment, which get a list where they are being placed; return them."""
        nodes, target = self.clickNodes, self._chosen.target
        isPlacing = self.placeWidget.placeModeEnabled
        if not nodes and isPlacing and target is not None:
            nodes = [makeClicks(target.node, target.segmentId)]
            showPlainly(nodes[0])
            self._follow()
        if self.placeWidget.currentNode() is not (nodes[0] if nodes else None):
            self.placeWidget.setCurrentNode(nodes[0] if nodes else None)
            self.placeWidget.placeModeEnabled = isPlacing and bool(nodes)
        return nodes

    def _onModel(self, index: int) -> None:
        self._chosen.chooseModel(self.modelBox.itemData(index) or "")
        self._refresh()

    def _onLive(self, on: bool) -> None:
        if bool(self.scriptedEffect.integerParameter(LIVE)) != on:
            self.scriptedEffect.setParameter(LIVE, int(on))

    def _onPlace(self, on: bool) -> None:
        target = self._chosen.target
        if on and target is not None and not self.clickNodes:
            showPlainly(makeClicks(target.node, target.segmentId))
            self._refresh()
        self.placeWidget.placeModeEnabled = on and target is not None

    def _removeClicks(self, *, lastOnly: bool) -> None:
        self._removals.remove(self.clickNodes, self._chosen.segment[0], lastOnly=lastOnly)

    def _onBringBack(self, checked: bool) -> None:
        clicks = self._removals.latest(self.clickNodes, self._chosen.segment[0])
        if clicks is not None:
            self._removals.forget(self.clickNodes)
            self.logic.segmenter.bringBack(self.task, clicks)

    def _onRun(self, checked: bool) -> None:
        if self._ownJob is not None and self._isRunningHere:
            self._ownJob.cancel()
        else:
            if self.logic.workerHost.client.gave_up:
                self.logic.workerHost.client.reset()
            self.start()

    def _onClicks(self) -> None:
        """With live update, compute again what changed clicks reach, once there is a result of what is chosen now."""
        self._refresh()
        task = self.task
        if task is None or not self.liveCheck.checked or not self.segmentButton.enabled:
            return
        segmenter = self.logic.segmenter
        if self._isRunningHere:
            isFollowed = self._views[self._chosen.key].isLike(task.view)
        else:
            differs = segmenter.differences(task)
            isFollowed = bool(task.target.record.model) and not differs
            if "lesson" in differs:
                self._say("")
                self._refresh()
        if isFollowed and segmenter.hasOtherClicks(task, snapshotClicks(task.centerlineNodes)):
            self.start()

    def _onSegment(self) -> None:
        """Take in what was edited, undone or redone."""
        task = self.task
        hasResult = task is not None and bool(task.target.record.model)
        if hasResult and self.logic.segmenter.noteChange(task):
            self._say("")
        self._refresh()

    def _show(self, text: str, key: tuple[str, ...]) -> None:
        if key in self._jobs and key == self._chosen.key:
            self.statusLabel.text = text

    def _onFinished(self, job: SegmentationJob, task: Task, key: tuple[str, ...]) -> None:
        if self._jobs.get(key) is not job:
            return
        problem = None if isinstance(job.error, Cancelled) else job.error
        text = endText(job) if problem is None else self._sentence(problem)
        isGone = task.key != key  # its ID may be another one's by now
        if key == self._chosen.key:
            self._say(text)
        elif problem is not None:
            self._say(text if isGone else ofSegment(task, text))
        if key != self._chosen.key and not isGone:
            self._ends[key] = text
        self._refreshTimer.start()
        if self._followed:
            self._look()

    def _sentence(self, error: SPDError) -> str:
        """An error with a remedy that can be followed from the Segment Editor, which has no Set-up."""
        setUp = str(_("Set-up in the module SPDSegment"))
        return forSlicer(error, setUp=setUp, isRemote=self.logic.workerHost.isRemote).sentence


def _button(text: str, onClicked: Any, *, checkable: bool = False) -> Any:
    button = qt.QPushButton(text)
    button.checkable = checkable
    button.connect("clicked(bool)", onClicked)
    return button
