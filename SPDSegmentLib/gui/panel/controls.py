"""Placing clicks, how the views show the result, and keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from ..scene.state import ModuleState, idleTimer
from ..scene.surfaces import ShownSurfaces
from ..scene.volumes import nodeById

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
            and nodeById(self._placedId) is None
            and interaction.GetCurrentInteractionMode() == interaction.Place
            and (selection.GetActivePlaceNodeID() or self._placedId) == self._placedId
        )


def showDevice(box: Any, device: str) -> None:
    """Show which device is chosen, also one that this computer may not have: it is what a run is going to ask for."""
    if box.findData(device) < 0:
        box.addItem(device, device)
    box.currentIndex = box.findData(device)


def showPlainly(node: Any) -> None:
    """Show clicks as small glyphs without names, in a color that stands for no fate: the rings around them do."""
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetPointLabelsVisibility(False)
    display.SetGlyphScale(GLYPH_SCALE)
    for setColor in (display.SetColor, display.SetSelectedColor):
        setColor(*GLYPH_COLOR)


class ResultDisplay(VTKObservationMixin):
    """Keeps *Show 3D*, outline, fill and opacity equal with what the scene shows; it ends with :meth:`close`."""

    def __init__(self, ui: Any, surfaces: ShownSurfaces, state: Callable[[], ModuleState]) -> None:
        VTKObservationMixin.__init__(self)
        self._ui = ui
        self._surfaces = surfaces
        self._state = state
        self._timer = idleTimer(self._refresh)
        ui.displayBox.addItem(_("Fill and outline"), (True, True))
        ui.displayBox.addItem(_("Outline"), (False, True))
        ui.displayBox.addItem(_("Fill"), (True, False))
        ui.show3DButton.connect("clicked(bool)", self._onShow3D)
        ui.displayBox.connect("activated(int)", self._onStyle)
        ui.opacitySlider.connect("valueChanged(int)", self._onOpacity)

    def follow(self) -> None:
        """Turn to the segmentation that is chosen now."""
        self.removeObservers()
        node = self._state().segmentationNode
        if node is not None:
            kinds = slicer.vtkSegmentation
            changes = (kinds.SegmentAdded, kinds.SegmentRemoved, kinds.ContainedRepresentationNamesModified)
            for event in (*changes, node.DisplayModifiedEvent):
                self.addObserver(node, event, lambda caller, event: self._timer.start())
        self._refresh()

    def close(self) -> None:
        """Let go of the scene's nodes."""
        self._timer.stop()
        self.removeObservers()

    def _refresh(self) -> None:
        state, ui = self._state(), self._ui
        node, display = state.segmentationNode, self._display
        ui.show3DButton.enabled = node is not None and node.GetSegmentation().GetNumberOfSegments() > 0
        ui.show3DButton.checked = bool(ui.show3DButton.enabled and self._surfaces.isShown(node, state.segmentId))
        for widget in (ui.displayBox, ui.opacitySlider):
            widget.enabled = display is not None
        if display is not None:
            style = (bool(display.GetVisibility2DFill()), bool(display.GetVisibility2DOutline()))
            styles = [tuple(ui.displayBox.itemData(n)) for n in range(ui.displayBox.count)]
            ui.displayBox.currentIndex = styles.index(style) if style in styles else -1
            ui.opacitySlider.value = round(100 * display.GetOpacity())

    @property
    def _display(self) -> Any:
        node = self._state().segmentationNode
        return node.GetDisplayNode() if node is not None else None

    def _onShow3D(self, checked: bool) -> None:
        state = self._state()
        node = state.segmentationNode
        if node is None:
            return
        if checked:
            self._surfaces.show(node, state.segmentId)
        else:
            self._surfaces.hide(node)
        self._refresh()

    def _onStyle(self, index: int) -> None:
        display, style = self._display, self._ui.displayBox.itemData(index)
        if display is not None and style is not None:
            wasModifying = display.StartModify()
            display.SetVisibility2DFill(bool(style[0]))
            display.SetVisibility2DOutline(bool(style[1]))
            display.EndModify(wasModifying)

    def _onOpacity(self, percent: int) -> None:
        display = self._display
        if display is not None and round(100 * display.GetOpacity()) != percent:
            display.SetOpacity(percent / 100)


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
            shortcut.connect("activated()", action)
            self._installed.append(shortcut)

    def remove(self) -> None:
        """Let go of the keys."""
        for shortcut in self._installed:
            shortcut.setEnabled(False)
            shortcut.deleteLater()
        self._installed.clear()
