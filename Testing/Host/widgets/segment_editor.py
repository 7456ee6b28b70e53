"""Behavior of the embedded Segment Editor, on Slicer's own segment editor logic."""

from __future__ import annotations

from typing import Any

from ..runtime import qt, slicer, vtk
from .behavior import Behavior
from .effects import registered_effects
from .nodes import SceneObservations
from .paint import BrushStrokes

_EFFECTS = ("Paint", "Erase", "Threshold", "Islands")


class qMRMLSegmentEditorWidget(Behavior):
    """Table of segments, effect buttons, undo and redo; edits go through vtkSlicerSegmentEditorLogic."""

    _defaults_ = {
        "segmentationNodeSelectorVisible": True,
        "sourceVolumeNodeSelectorVisible": True,
        "switchToSegmentationsButtonVisible": True,
        "maskingSectionVisible": True,
        "undoEnabled": True,
        "autoShowSourceVolumeNode": True,
        "maximumNumberOfUndoStates": 10,
    }

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._scene: Any = None
        self._logic = slicer.vtkSlicerSegmentEditorLogic()
        self._logic.SetMaximumNumberOfUndoStates(self.maximumNumberOfUndoStates)
        layout = qt.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._segments = self._host_factory_.create("qMRMLSegmentsTableView")
        layout.addWidget(self._segments)
        effects = qt.QHBoxLayout()
        layout.addLayout(effects)
        self._buttons: dict[str, qt.QToolButton] = {}
        for name in ("", *_EFFECTS):
            button = qt.QToolButton()
            button.text = name or "None"
            button.setCheckable(True)
            button.connect("clicked()", lambda name=name: self.setActiveEffectByName(name))
            effects.addWidget(button)
            self._buttons[name] = button
        self._effects: dict[str, Any] = {}
        self._active: Any = None
        self._effects_row = effects
        self._options = layout
        self._undo = self._history_button("Undo", self.undo)
        self._redo = self._history_button("Redo", self.redo)
        history = qt.QHBoxLayout()  # a row of its own: beside the effects it would be wider than the panel
        layout.addLayout(history)
        for button in (self._undo, self._redo):
            history.addWidget(button)
        history.addStretch(1)
        self._segments.connect("selectionChanged(QItemSelection,QItemSelection)", self._row_selected)
        self._strokes = BrushStrokes(self)
        self._observations = SceneObservations(self)
        self._scene_observations = SceneObservations(self)
        self._node_observations = SceneObservations(self)
        changed = self._logic.SegmentationHistoryChangedEvent
        self._observations.add(self._logic, lambda *_: self._refresh(), changed)
        self.updateEffectList()
        self._refresh()

    def updateEffectList(self) -> None:
        """Copy the scripted effects that were registered since the last call, each with its button and options."""
        for original in registered_effects():
            if original.name in self._effects:
                continue
            effect = original._call("clone")
            effect._editor = self
            self._effects[effect.name] = effect
            if self.mrmlSegmentEditorNode() is not None:
                effect.setParameterSetNode(self.mrmlSegmentEditorNode())
                effect._call("setMRMLDefaults")
            button = qt.QToolButton()
            button.text = effect.title or effect.name
            button.setCheckable(True)
            button.connect("clicked()", lambda name=effect.name: self.setActiveEffectByName(name))
            self._effects_row.insertWidget(len(self._buttons), button)
            self._buttons[effect.name] = button
            effect._call("setupOptionsFrame")
            effect.optionsFrame().setVisible(False)
            self._options.addWidget(effect.optionsFrame())

    def _history_button(self, text: str, action: Any) -> qt.QToolButton:
        button = qt.QToolButton()
        button.text = text
        button.connect("clicked()", action)
        return button

    def setMRMLScene(self, scene: Any) -> None:
        """Set the scene."""
        self._scene = scene
        self._logic.SetMRMLScene(scene)
        self._scene_observations.clear()
        if scene is not None:
            closed = slicer.vtkMRMLScene.StartCloseEvent
            self._scene_observations.add(scene, lambda *_: self.setActiveEffectByName(""), closed)
        self.mrmlSceneChanged.emit(scene)

    def mrmlScene(self) -> Any:
        """Return the scene."""
        return self._scene

    def setMRMLSegmentEditorNode(self, node: Any) -> None:
        """Use a parameter node of the editor."""
        self._logic.SetSegmentEditorNode(node)
        self._node_observations.clear()
        for effect in self._effects.values():
            effect.setParameterSetNode(node)
            if node is not None:
                effect._call("setMRMLDefaults")
                changed = slicer.vtkMRMLSegmentEditorNode.EffectParameterModified
                self._node_observations.add(node, lambda *_, effect=effect: effect._call("updateGUIFromMRML"), changed)
        interaction = slicer.mrmlScene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
        if node is not None and interaction is not None:
            self._node_observations.add(interaction, self._interaction_changed, vtk.vtkCommand.ModifiedEvent)
        if node is not None:
            self._segments.setSegmentationNode(node.GetSegmentationNode())
        self._refresh()

    def mrmlSegmentEditorNode(self) -> Any:
        """Return the editor's parameter node."""
        return self._logic.GetSegmentEditorNode()

    def setSegmentationNode(self, node: Any) -> None:
        """Edit a segmentation; without a parameter node nothing happens, as in Slicer."""
        if self.mrmlSegmentEditorNode() is None or node is self.segmentationNode():
            return
        self._logic.SetSegmentationNode(node)
        self._segments.setSegmentationNode(node)
        if node is not None and node.GetSegmentation().GetNumberOfSegments() and not self.currentSegmentID():
            self.setCurrentSegmentID(node.GetSegmentation().GetNthSegmentID(0))
        self.segmentationNodeChanged.emit(node)
        self._refresh()

    def segmentationNode(self) -> Any:
        """Return the edited segmentation."""
        node = self.mrmlSegmentEditorNode()
        return node.GetSegmentationNode() if node is not None else None

    def setSourceVolumeNode(self, node: Any) -> None:
        """Use a volume for intensities and geometry."""
        if self.mrmlSegmentEditorNode() is None or node is self.sourceVolumeNode():
            return
        self._logic.SetSourceVolumeNode(node)
        self.sourceVolumeNodeChanged.emit(node)
        self.masterVolumeNodeChanged.emit(node)

    def sourceVolumeNode(self) -> Any:
        """Return the source volume."""
        node = self.mrmlSegmentEditorNode()
        return node.GetSourceVolumeNode() if node is not None else None

    def setCurrentSegmentID(self, segment_id: str) -> None:
        """Select a segment."""
        node = self.mrmlSegmentEditorNode()
        if node is None or segment_id == self.currentSegmentID():
            return
        node.SetSelectedSegmentID(segment_id)
        self._segments.setSelectedSegmentIDs([segment_id])
        self.currentSegmentIDChanged.emit(segment_id)

    def currentSegmentID(self) -> str:
        """Return the selected segment, empty if none."""
        node = self.mrmlSegmentEditorNode()
        return (node.GetSelectedSegmentID() or "") if node is not None else ""

    def saveStateForUndo(self) -> None:
        """Remember the segmentation before a change."""
        self._logic.SaveStateForUndo()

    def undo(self) -> None:
        """Go one remembered state back."""
        self._logic.Undo()

    def redo(self) -> None:
        """Go one state forward again."""
        self._logic.Redo()

    def _changed_maximumNumberOfUndoStates(self, count: int) -> None:
        self._logic.SetMaximumNumberOfUndoStates(count)

    def availableEffectNames(self) -> tuple[str, ...]:
        """Return the names of the effects."""
        return (*_EFFECTS, *self._effects)

    def effectByName(self, name: str) -> Any:
        """Return this editor's copy of a scripted effect, None for others."""
        return self._effects.get(name)

    def activeEffect(self) -> Any:
        """Return the scripted effect that is chosen, None for others."""
        return self._active

    def setActiveEffectByName(self, name: str) -> None:
        """Choose an effect, none by an empty name."""
        node = self.mrmlSegmentEditorNode()
        if node is not None:
            node.SetActiveEffectName(name)
        self._activate(self._effects.get(name) if node is not None else None)
        for effect, button in self._buttons.items():
            button.setChecked(effect == name)
        self._strokes.activate(name if node is not None else "")

    def _activate(self, effect: Any) -> None:
        """Deactivate the former scripted effect, leave place mode, and activate another."""
        if effect is self._active:
            return
        if self._active is not None:
            self._active.deactivate()
            self._active.optionsFrame().setVisible(False)
        if effect is not None:
            interaction = slicer.mrmlScene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
            interaction.SetCurrentInteractionMode(interaction.ViewTransform)
            effect.activate()
            effect.optionsFrame().setVisible(True)
        self._active = effect

    def _interaction_changed(self, *_: Any) -> None:
        if self._active is not None:
            self._active._interaction_changed(slicer.mrmlScene.GetNodeByID("vtkMRMLInteractionNodeSingleton"))

    def _row_selected(self, *_: Any) -> None:
        selected = self._segments.selectedSegmentIDs()
        if selected:
            self.setCurrentSegmentID(selected[0])

    def _refresh(self) -> None:
        self._undo.setEnabled(self._logic.CanUndo())
        self._redo.setEnabled(self._logic.CanRedo())
