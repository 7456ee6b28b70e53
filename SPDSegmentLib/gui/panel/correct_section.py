"""The embedded Segment Editor, its undo, and the slices that a person edited."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from SPDSegmentLib.geometry.slices import slice_ranges

from ..run.segmenter import Segmenter
from ..run.task import Task
from ..scene.editor_nodes import editorNode
from ..scene.state import idleTimer
from ..scene.target import SegmentTarget
from ..scene.volumes import nodeById
from ..scene.write_record import WriteRecord

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
        self._shown: tuple[str, str, str] | None = None
        self._timer = idleTimer(self.takeIn, NOTICE_MS)
        segmenter.saveStateForUndo = self._saveState
        ui.correctSection.connect("contentsCollapsed(bool)", self._onCollapsed)
        ui.releaseButton.connect("clicked(bool)", self._onRelease)
        ui.releaseSliceButton.connect("clicked(bool)", self._onReleaseSlice)

    def edit(self, target: SegmentTarget | None, volumeNode: Any) -> None:
        """Show a segment in the editor and follow its changes; None for no segment.

        What a person selects there stays selected until the panel turns to another segment or volume.
        """
        node = target.node if target is not None else None
        self.ui.undoButton.enabled = node is not None
        if target is None or node is None:
            self.removeObservers()
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
        self.removeObservers()
        segmentation = node.GetSegmentation()
        kinds = slicer.vtkSegmentation
        for event in (kinds.SourceRepresentationModified, kinds.RepresentationModified, kinds.SegmentModified):
            self.addObserver(segmentation, event, self._onSegmentation)

    def show(self, record: WriteRecord) -> None:
        """Show which slices are a person's."""
        task = self._task()
        stack = task.writtenSnapshot(record).stack if task is not None else None
        owned = sorted(record.owned if stack is None else {stack.slice_number(t) for t in record.owned})
        self.ui.releaseButton.enabled = bool(owned)
        self.ui.releaseSliceButton.enabled = bool(owned)
        self.ui.lockedLabel.text = (
            _("Slices edited by you and kept: {ranges}.").format(ranges=slice_ranges(owned))
            if owned
            else _("Slices that you edit are kept when clicks change.")
        )

    def takeIn(self) -> None:
        """Recognize edits, undo and redo since the last look."""
        task = self._task()
        if task is None or task.target.node is None or nodeById(task.volumeNode.GetID()) is None:
            return
        self._onChanged(self._segmenter.noteChange(task))

    def enter(self) -> None:
        """Listen to the editor's keys, where it is unfolded."""
        self._entered = True
        self._onCollapsed(self.ui.correctSection.collapsed)

    def exit(self) -> None:
        """Stop editing, as when another module is shown."""
        self._entered = False
        self._onCollapsed(True)

    def close(self) -> None:
        """Stop for good."""
        self._timer.stop()
        self.ui.editor.setActiveEffectByName("")
        self.removeObservers()
        self._segmenter.saveStateForUndo = None

    def forgetScene(self) -> None:
        """Let go of the scene's nodes."""
        self._timer.stop()
        self.ui.editor.setActiveEffectByName("")
        self.removeObservers()
        self._shown = None
        self.ui.editor.setMRMLSegmentEditorNode(None)

    def _saveState(self, task: Task) -> None:
        """Make an undo step, where it is the panel's segmentation that is written."""
        mine = self._task()
        if mine is not None and mine.target.nodeId == task.target.nodeId:
            self.edit(mine.target, mine.volumeNode)
        if self.ui.editor.segmentationNode() is task.target.node:
            self.ui.editor.saveStateForUndo()

    def _onCollapsed(self, collapsed: bool) -> None:
        editor = self.ui.editor
        editor.uninstallKeyboardShortcuts()
        if self._entered and not collapsed:
            editor.installKeyboardShortcuts()
        else:
            editor.setActiveEffectByName("")

    def _onSegmentation(self, caller: Any, event: str) -> None:
        self._timer.start()

    def undo(self) -> None:
        """Take back the run under way, otherwise the last change in the editor's history."""
        task = self._task()
        if task is None or not self._segmenter.takeBack(task):
            self.ui.editor.undo()

    def _onRelease(self, checked: bool) -> None:
        self._release(None)

    def _onReleaseSlice(self, checked: bool) -> None:
        t = self._currentSlice()
        if t is not None:
            self._release({t})

    def _release(self, slices: set[int] | None) -> None:
        task = self._task()
        if task is not None and task.target.node is not None:
            self._segmenter.release(task, slices)
            self._onChanged(False)
