"""Behavior of the widget that switches placing of control points on and off."""

from __future__ import annotations

from typing import Any

from ..runtime import qt, slicer, vtk
from .behavior import Behavior
from .nodes import SceneObservations

_FORCE_SINGLE = 2
_FORCE_MULTIPLE = 3


class qSlicerMarkupsPlaceWidget(Behavior):
    """Buttons for placing and deleting control points of one markups node."""

    _defaults_ = {
        "buttonsVisible": True,
        "placeMultipleMarkups": 0,
        "deleteAllControlPointsOptionVisible": True,
    }

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        layout = qt.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._node: Any = None
        self._scene: Any = None
        self._was_placing = False
        self._observations = SceneObservations(self)
        self._place = qt.QToolButton()
        self._place.text = "Place"
        self._place.setCheckable(True)
        self._delete = qt.QToolButton()
        self._delete.text = "Delete"
        for button in (self._place, self._delete):
            layout.addWidget(button)
        self._place.connect("toggled(bool)", lambda on: setattr(self, "placeModeEnabled", on))
        self._delete.connect("clicked()", self.deleteLastPoint)
        self._refresh()

    def setMRMLScene(self, scene: Any) -> None:
        """Follow the interaction mode of a scene."""
        self._scene = scene
        self._observe()
        self.mrmlSceneChanged.emit(scene)

    def interactionNode(self) -> Any:
        """Return the scene's interaction node."""
        return self._scene.GetNodeByID("vtkMRMLInteractionNodeSingleton") if self._scene is not None else None

    def selectionNode(self) -> Any:
        """Return the scene's selection node."""
        return self._scene.GetNodeByID("vtkMRMLSelectionNodeSingleton") if self._scene is not None else None

    def placeButton(self) -> qt.QToolButton:
        """Return the button that starts and ends placing."""
        return self._place

    def deleteButton(self) -> qt.QToolButton:
        """Return the button that deletes the last point."""
        return self._delete

    def setCurrentNode(self, node: Any) -> None:
        """Choose the node that gets the points when placing is switched on.

        As in Slicer, placing that goes on goes on into the node that it was switched on for.
        """
        if node is self._node:
            return
        self._node = node
        self._observe()

    def currentNode(self) -> Any:
        """Return the node that gets the points."""
        return self._node

    currentMarkupsNode = currentNode

    def _read_currentNodeActive(self) -> bool:
        selection = self.selectionNode()
        return bool(
            self._node
            and selection
            and selection.GetActivePlaceNodeID() == self._node.GetID()
            and selection.GetActivePlaceNodeClassName() == self._node.GetClassName()
        )

    def _changed_currentNodeActive(self, active: bool) -> None:
        if active == self._read_currentNodeActive():
            return
        slicer.modules.markups.logic().SetActiveList(self._node if active else None)
        if not active:
            self._leave()

    def _placing(self) -> bool:
        interaction = self.interactionNode()
        return bool(
            interaction
            and self._read_currentNodeActive()
            and interaction.GetCurrentInteractionMode() == interaction.Place
        )

    _read_placeModeEnabled = _placing

    def _changed_placeModeEnabled(self, on: bool) -> None:
        interaction = self.interactionNode()
        if self._node is None or interaction is None:
            return
        if on:
            self._changed_currentNodeActive(True)
            if self.placeMultipleMarkups in (_FORCE_SINGLE, _FORCE_MULTIPLE):
                interaction.SetPlaceModePersistence(int(self.placeMultipleMarkups == _FORCE_MULTIPLE))
            interaction.SetCurrentInteractionMode(interaction.Place)
        else:
            self._leave()
        self._refresh()

    def _leave(self) -> None:
        """Leave place mode, whichever node is placed: Slicer's widget does not ask."""
        interaction = self.interactionNode()
        interaction.SetCurrentInteractionMode(interaction.ViewTransform)

    def _read_placeModePersistency(self) -> bool:
        interaction = self.interactionNode()
        return bool(interaction and interaction.GetPlaceModePersistence())

    def _changed_placeModePersistency(self, on: bool) -> None:
        interaction = self.interactionNode()
        if interaction is not None:
            interaction.SetPlaceModePersistence(1 if on else 0)

    def deleteLastPoint(self) -> None:
        """Delete the control point placed last."""
        if self._node is not None and self._node.GetNumberOfControlPoints():
            self._node.RemoveNthControlPoint(self._node.GetNumberOfControlPoints() - 1)

    def deleteAllPoints(self) -> None:
        """Delete all control points."""
        if self._node is not None:
            self._node.RemoveAllControlPoints()

    def _observe(self) -> None:
        self._observations.clear()
        for target in (self.interactionNode(), self.selectionNode(), self._node):
            if target is not None:
                self._observations.add(target, lambda *_: self._refresh(), vtk.vtkCommand.ModifiedEvent)
        self._refresh()

    def _refresh(self) -> None:
        placing = self._placing()
        self._place.blockSignals(True)
        self._place.setChecked(placing)
        self._place.blockSignals(False)
        self._place.setEnabled(self._node is not None)
        self._delete.setEnabled(bool(self._node is not None and self._node.GetNumberOfControlPoints()))
        self._place.setVisible(self.buttonsVisible)
        self._delete.setVisible(self.buttonsVisible)
        if placing != self._was_placing:
            self._was_placing = placing
            self.activeMarkupsPlaceModeChanged.emit(placing)
            self.activeMarkupsFiducialPlaceModeChanged.emit(placing)

    def _changed_buttonsVisible(self, _visible: bool) -> None:
        self._refresh()
