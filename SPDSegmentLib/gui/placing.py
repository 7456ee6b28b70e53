"""Placing clicks: where they go, and when it ends."""

from __future__ import annotations

from typing import Any

import slicer

GLYPH_SCALE = 2.0
GLYPH_COLOR = (1.0, 0.9, 0.3)


class Placing:
    """Keeps the button, Slicer's place mode and the chosen centerline together."""

    def __init__(self, ui: Any) -> None:
        self.ui = ui
        self._placedId = ""
        ui.placeButton.connect("clicked(bool)", self._onPlace)
        ui.placeWidget.connect("activeMarkupsPlaceModeChanged(bool)", self._onPlacing)
        ui.placeWidget.buttonsVisible = False
        ui.placeWidget.setVisible(False)
        ui.placeWidget.placeMultipleMarkups = slicer.qSlicerMarkupsPlaceWidget.ForcePlaceMultipleMarkups

    def _onPlace(self, on: bool) -> None:
        if on and self.ui.centerlineSelector.currentNode() is None:
            self.ui.centerlineSelector.addNode()
            showPlainly(self.ui.centerlineSelector.currentNode())
        self.ui.placeWidget.placeModeEnabled = on

    def _onPlacing(self, on: bool) -> None:
        if on:
            self._placedId = self.ui.placeWidget.currentNode().GetID()
        self.ui.placeButton.checked = on

    def stop(self) -> None:
        """Leave place mode, where clicks are placed for this module."""
        if self.ui.placeWidget.placeModeEnabled:
            self.ui.placeWidget.placeModeEnabled = False
        self._placedId = ""

    def into(self, node: Any) -> None:
        """Choose where clicks go; those that are being placed go there from now on.

        Slicer would go on placing into the former node, and into a new one where that was removed.
        """
        widget = self.ui.placeWidget
        former = widget.currentNode()
        isPlacing, isNowhere = widget.placeModeEnabled, self._isNowhere()
        if node is not former:
            widget.setCurrentNode(node)
        if isNowhere or (isPlacing and node is None):
            slicer.app.applicationLogic().GetInteractionNode().SwitchToViewTransformMode()
            self._placedId = ""
        elif isPlacing and node is not former:
            widget.placeModeEnabled = True

    def _isNowhere(self) -> bool:
        """Whether place mode is on for the node that we placed into and that is gone."""
        logic = slicer.app.applicationLogic()
        interaction, selection = logic.GetInteractionNode(), logic.GetSelectionNode()
        return bool(
            self._placedId
            and slicer.mrmlScene.GetNodeByID(self._placedId) is None
            and interaction.GetCurrentInteractionMode() == interaction.Place
            and (selection.GetActivePlaceNodeID() or self._placedId) == self._placedId
        )


def showPlainly(node: Any) -> None:
    """Show clicks as small glyphs without names, in a color that stands for no fate: the rings around them do."""
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetPointLabelsVisibility(False)
    display.SetGlyphScale(GLYPH_SCALE)
    for setColor in (display.SetColor, display.SetSelectedColor):
        setColor(*GLYPH_COLOR)
