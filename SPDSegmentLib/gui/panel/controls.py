"""Placing clicks, how the views show the result, a model's card, what a result came of, and keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from ..run.task import ModelEntry, Task
from ..scene.centerlines import clickName, clicksOf, isCurve, positionOf
from ..scene.editor_nodes import segmentName
from ..scene.state import ModuleState, idleTimer
from ..scene.surfaces import ShownSurfaces
from ..scene.target import segmentNames
from ..scene.volumes import nodeById
from ..scene.write_record import Position, WriteRecord, loadRecord, nodeOf

GLYPH_SCALE = 2.0
GLYPH_COLOR = (1.0, 0.9, 0.3)
CARD_SIZE = (600, 520)
SAME_PLACE_MM = 0.01
REPEATED = "Shift+N"
"""The only key that goes on while it is held."""


class Placing:
    """Keeps the button, Slicer's place mode and the chosen centerline together.

    Args:
        ui: widgets.
        isForeign: whether the chosen list may be no clicks at all; then they get a new one.
    """

    def __init__(self, ui: Any, isForeign: Callable[[], bool]) -> None:
        self.ui = ui
        self._isForeign = isForeign
        self._placedId = ""
        ui.placeButton.connect("clicked(bool)", self._onPlace)
        ui.placeWidget.connect("activeMarkupsPlaceModeChanged(bool)", self._onPlacing)
        ui.placeWidget.buttonsVisible = False
        ui.placeWidget.setVisible(False)
        ui.placeWidget.placeMultipleMarkups = slicer.qSlicerMarkupsPlaceWidget.ForcePlaceMultipleMarkups

    def _onPlace(self, on: bool) -> None:
        if on and (self.ui.centerlineSelector.currentNode() is None or self._isForeign()):
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
            shortcut.setAutoRepeat(keys == REPEATED)
            shortcut.connect("activated()", action)
            self._installed.append(shortcut)

    def remove(self) -> None:
        """Let go of the keys."""
        for shortcut in self._installed:
            shortcut.setEnabled(False)
            shortcut.deleteLater()
        self._installed.clear()


def cardWindow(title: str, card: str) -> Any:
    """Return a window with a model card; what it shows is text only: no HTML, no images from files or the network."""
    window = qt.QDialog(slicer.util.mainWindow())
    window.setWindowTitle(title)
    text = qt.QTextBrowser()
    text.openLinks = False
    text.setMarkdown(card.replace("<", "&lt;").replace("![", "["))
    layout = qt.QVBoxLayout(window)
    layout.addWidget(text)
    window.resize(*CARD_SIZE)
    return window


class Source:
    """What a result came of: volume, model, clicks. A result is replaced unasked only where these are still chosen.

    A list that was cleared keeps its segment for as long as that stays chosen.

    Attributes:
        isNext: whether the chosen list was made for the next structure, which has no segment yet.
    """

    def __init__(
        self,
        state: Callable[[], ModuleState],
        task: Callable[[], Task | None],
        models: Callable[[], Sequence[ModelEntry]],
    ) -> None:
        self.isNext = False
        self._state = state
        self._task = task
        self._models = models
        self._own: tuple[str, ...] = ()

    def _differences(self, task: Task | None) -> set[str]:
        """Which of ``volume``, ``model`` and ``clicks`` is not that of the result; none where there is no result."""
        record = task.target.record if task is not None else WriteRecord()
        if task is None or not record.model:
            self._own = ()
            return set()
        found = {"model"} if record.model != task.view.model.name else set()
        if record.volumeId and record.volumeId != task.volumeNode.GetID():
            found.add("volume")
        of = {fate.click_id: fate.position_ras for fate in record.fates if fate.click_id}
        nodes = {node.GetID(): node for node in task.centerlineNodes}
        shared = [nodes[nodeId] for nodeId in {nodeOf(name) for name in of} if nodeId in nodes]
        if of and not shared:
            found.add("clicks")
        elif not of or any(isCurve(node) or _hasAny(node, of) for node in shared):
            self._own = task.key
        elif self._own != task.key:
            found.add("clicks")
        return found

    def note(self) -> str:
        """Return what a run would do with a result that came of something else; empty where there is none."""
        if self.isNext:
            return str(_("These clicks make a new segment."))
        task = self._task()
        differs = self._differences(task)
        if task is not None and differs:
            named = {"name": segmentName(task.target.node, task.target.segmentId)}
            if self._isOtherStructure(task):
                return _("{name} is another structure; Segment makes a new segment.").format(**named)
            if differs >= {"volume", "clicks"}:
                return _("{name} was segmented in another volume; Segment makes a new segmentation.").format(**named)
            if "clicks" in differs:
                return _(
                    "These clicks are not those of {name}; press Segment to replace it, or choose New segment."
                ).format(**named)
            return _(
                "{name} came of another volume or model; press Segment to compute it again, or choose New segment."
            ).format(**named)
        return ""

    def isOwn(self, task: Task) -> bool:
        """Whether volume, model and clicks are those of the result in the segment."""
        return not self._differences(task)

    def turnToOwn(self, confirm: Callable[[str], bool]) -> str:
        """Choose a new segment where a run would replace the result of another structure, volume or other clicks.

        Args:
            confirm: asked whether a result of other clicks in the same volume is to be replaced.

        Returns:
            What was done, empty where nothing was.
        """
        state, task = self._state(), self._task()
        differs = self._differences(task)
        if task is None:
            return ""
        named = {"name": segmentName(task.target.node, task.target.segmentId)}
        if self._isOtherStructure(task):
            done = _("A new segment was made; {name} stays as it is.")
        elif differs >= {"volume", "clicks"}:
            state.segmentationNode = None
            done = _("A new segmentation was made; {name} stays as it is.")
        elif "clicks" in differs:
            question = _(
                "The clicks that are chosen are not those of {name}.\n\nReplace the result in {name}? With No a new"
                " segment is made."
            )
            if confirm(question.format(**named)):
                return ""
            done = _("A new segment was made; {name} stays as it is.")
        else:
            return ""
        state.segmentId = ""
        return done.format(**named)

    def _isOtherStructure(self, task: Task) -> bool:
        """Whether the segment holds the result of a known model of another structure than the chosen one's."""
        former = next((model for model in self._models() if model.name == task.target.record.model), None)
        return former is not None and former.structure.lower() != task.view.model.structure.lower()

    def turnToNext(self, node: Any) -> None:
        """Choose a new segment for an empty list that was made where other clicks have a result."""
        state, task = self._state(), self._task()
        segmentation = state.segmentationNode
        self.isNext = False
        if node is None or node.GetNumberOfControlPoints() or segmentation is None:
            return
        records = [loadRecord(segmentation, segmentId) for _name, segmentId in segmentNames(segmentation)]
        volumes = {record.volumeId for record in records if record.model}
        self.isNext = bool(task.target.record.model if task is not None else volumes and not state.segmentId)
        if self.isNext:
            state.segmentId = ""
            if state.volumeNode is not None and not volumes & {state.volumeNode.GetID(), ""}:
                state.segmentationNode = None

    def turnToSegment(self) -> None:
        """Choose what the result in the chosen segment came of: clicks, volume, model."""
        state = self._state()
        node, segmentId = state.segmentationNode, state.segmentId
        if node is None or not segmentId:
            return
        record, clicks = loadRecord(node, segmentId), clicksOf(node, segmentId)
        if clicks and {n.GetID() for n in clicks} != {n.GetID() for n in state.centerlineNodes}:
            state.centerlineNodes = clicks
        if record.model and nodeById(record.volumeId) is not None:
            state.volumeNode = nodeById(record.volumeId)
        if any(model.name == record.model for model in self._models()):
            state.model = record.model


def _hasAny(node: Any, places: Mapping[str, Position]) -> bool:
    """Whether a node still has one of some clicks where it was: a list that was emptied gives names again."""
    names = ((n, clickName(node.GetID(), node.GetNthControlPointID(n))) for n in range(node.GetNumberOfControlPoints()))
    return any(name in places and math.dist(positionOf(node, n), places[name]) < SAME_PLACE_MM for n, name in names)
