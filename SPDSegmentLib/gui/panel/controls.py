"""Placing clicks, what a result came of and what is chosen in a Segment Editor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import slicer
from slicer.i18n import tr as _

from SPDSegmentLib.errors import SPDError

from ..run.task import ModelEntry, Task, VolumeView, likelyModel
from ..scene.centerlines import hasAny, isCurve, positionOf
from ..scene.editor_nodes import EDITOR_ATTRIBUTE, segmentName, segmentNames
from ..scene.state import ModuleState, clicksOf, isOfOthers
from ..scene.target import SegmentTarget
from ..scene.volumes import nodeById, viewCenter, viewNode, volumeState
from ..scene.write_record import Position, WriteRecord, loadRecord, nodeOf

GLYPH_SCALE = 2.0
GLYPH_COLOR = (1.0, 0.9, 0.3)
MODEL = "Model"
"""A parameter of the effect, which the editor's node keeps."""


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


class Source:
    """What a result came of: volume, model, axis, clicks. It is replaced unasked only where these are still chosen.

    A list that was cleared keeps its segment, unless it was used for another one since.

    Attributes:
        isNext: whether the chosen list was made for the next structure, which has no segment yet.
    """

    def __init__(
        self,
        state: Callable[[], ModuleState],
        task: Callable[[], Task | None],
        models: Callable[[], Sequence[ModelEntry]],
        differences: Callable[[Task], set[str]],
    ) -> None:
        self.isNext = False
        self._differencesOf = differences
        self._state = state
        self._task = task
        self._models = models
        self._own: tuple[str, ...] = ()
        self._begins: dict[str, Position | None] = {}  # first clicks of the lists that are chosen while no result is
        self._elsewhere: set[str] = set()  # those lists that have got another one meanwhile

    def forgetScene(self) -> None:
        """In another scene other nodes have the same names."""
        self.isNext, self._own = False, ()
        self._begins.clear()
        self._elsewhere.clear()

    def _differences(self, task: Task | None) -> set[str]:
        """What is not that of the result, see ``Task.differences``, or is ``clicks``; none where there is no result."""
        record = task.target.record if task is not None else WriteRecord()
        if task is None or not record.model:
            self._own = ()
            for node in self._state().centerlineNodes:
                begin = positionOf(node, 0) if node.GetNumberOfControlPoints() else None
                if self._begins.setdefault(node.GetID(), begin) != begin:
                    self._elsewhere.add(node.GetID())
            return set()
        self._begins.clear()
        found = self._differencesOf(task)
        of = {fate.click_id: fate.position_ras for fate in record.fates if fate.click_id}
        nodes = {node.GetID(): node for node in task.centerlineNodes}
        shared = [nodes[nodeId] for nodeId in {nodeOf(name) for name in of} if nodeId in nodes]
        if of and not shared:
            found.add("clicks")
        elif not of or any(isCurve(node) or hasAny(node, of) for node in shared):
            self._own = task.key
            self._elsewhere -= nodes.keys()
        elif self._own != task.key:
            if any(node.GetID() in self._elsewhere or isOfOthers(node, *task.key[:2]) for node in shared):
                found.add("clicks")
            else:
                self._own = task.key
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
            return " ".join((sourceText(differs).format(**named), str(_("To keep it, choose New segment."))))
        return ""

    def isOwn(self, task: Task) -> bool:
        """Whether volume, model, axis and clicks are those of the result in the segment."""
        return not self._differences(task)

    def isOwnBut(self, task: Task, *but: str) -> bool:
        """Whether all is that of the result, but perhaps for some things; a model is one of the same structure."""
        return self._differences(task) <= set(but) and not self._isOtherStructure(task)

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
        if clicks:
            state.centerlineNodes = clicks
        if record.model and nodeById(record.volumeId) is not None:
            state.volumeNode = nodeById(record.volumeId)
        if any(model.name == record.model for model in self._models()):
            state.model = record.model


class EditorChoice:
    """What is chosen in a Segment Editor for the effect *SPD*; the editor of the panel, which has its own, has nothing.

    Args:
        effect: Slicer's effect.
        state: settings of the module, whose device and axis hold here too.

    Attributes:
        models: those that can be chosen.
    """

    def __init__(self, effect: Any, state: Callable[[], ModuleState]) -> None:
        self.models: Sequence[ModelEntry] = ()
        self._effect = effect
        self._state = state
        self._modelBefore: str | None = None  # the parameter as the segment was turned to, None where chosen since
        self._turnedTo: tuple[Any, str] = None, ""

    def turn(self) -> None:
        """Be told that a segment is chosen: of another one the result's model holds until one is chosen for it."""
        if self.segment != self._turnedTo:
            self._turnedTo, self._modelBefore = self.segment, self._effect.parameter(MODEL)

    def clear(self) -> None:
        """Let go of the scene."""
        self._turnedTo, self._modelBefore = (None, ""), None

    def chooseModel(self, name: str) -> None:
        """Choose the model for this segment, and for those that have no result and name none."""
        self._modelBefore = None
        self._effect.setParameter(MODEL, name)

    @property
    def editor(self) -> Any:
        """The editor's node, or None."""
        return self._effect.parameterSetNode()

    @property
    def isOfPanel(self) -> bool:
        """Whether the editor is that of the panel."""
        return self.editor is not None and bool(self.editor.GetAttribute(EDITOR_ATTRIBUTE))

    @property
    def volumeNode(self) -> Any:
        """The source volume, or None."""
        return self.editor.GetSourceVolumeNode() if self.editor is not None else None

    @property
    def target(self) -> SegmentTarget | None:
        """The current segment, or None."""
        node, segmentId = self.segment
        target = SegmentTarget(node, segmentId, self.editor) if node is not None and segmentId else None
        return target if target is not None and target.exists else None

    @property
    def segment(self) -> tuple[Any, str]:
        """The segmentation's node, or None, and the segment's ID, even if it is gone."""
        editor = self.editor
        if editor is None or self.isOfPanel:
            return None, ""
        return editor.GetSegmentationNode(), editor.GetSelectedSegmentID() or ""

    @property
    def key(self) -> tuple[str, ...]:
        """Names the current segment among all, as ``Task.key``."""
        target = self.target
        return () if target is None else target.key

    @property
    def clickNodes(self) -> list[Any]:
        """The point lists of the current segment: those that were placed for it, here or in the module."""
        target = self.target
        return clicksOf(target.node, target.segmentId) if target is not None else []

    @property
    def model(self) -> ModelEntry | None:
        """The model chosen for the segment, else that of its result, else one chosen before, else the one it names."""
        target, volumeNode = self.target, self.volumeNode
        name = self._effect.parameter(MODEL) if self.editor is not None else ""
        installed = {model.name: model for model in reversed(self.models)}
        if target is not None and name in ("", self._modelBefore) and (own := target.record.model) in installed:
            name = own
        if name:
            return installed.get(name)
        names = [volumeNode.GetName() or ""] if volumeNode is not None else []
        if target is not None:
            names.append(segmentName(target.node, target.segmentId))
        image = volumeNode.GetImageData() if volumeNode is not None else None
        lowest = image.GetScalarRange()[0] if image is not None and image.GetPointData().GetScalars() else None
        likely = likelyModel(self.models, names, lowest)
        return None if likely is None else self.models[likely]

    @property
    def task(self) -> Task | None:
        """What would be segmented, or None where something is missing."""
        target, volumeNode, model = self.target, self.volumeNode, self.model
        if target is None or volumeNode is None or model is None:
            return None
        view = VolumeView(volumeNode, model, self._state().device, self._state().axis)
        try:
            shown = viewNode(view.snapshot().stack)
        except SPDError:
            shown = None
        first = viewCenter(shown) if shown is not None else None
        save = self._effect.saveStateForUndo
        return Task(view, self.clickNodes, target, firstSliceRas=first, saveStateForUndo=save)

    @property
    def names(self) -> tuple[str, ...]:
        """Segment, model, axis and volume with voxels and place of now: what is said holds for these."""
        node, segmentId = self.segment
        model, volume = self.model, volumeState(self.volumeNode)
        nodeId = node.GetID() if node is not None else ""
        return nodeId, segmentId, model.name if model is not None else "", self._state().axis, volume

    def missing(self) -> str:
        """Return what has to be chosen before a run, empty if nothing."""
        if self.isOfPanel:
            return _("In this editor the panel SPDSegment places clicks and segments; choose another effect.")
        if self.volumeNode is None:
            return _("Choose a source volume.")
        if not self.models:
            return _("There is no model yet; open Set-up in the module SPDSegment to add one.")
        return _("Choose a model.") if self.model is None else ""


def sourceText(differs: set[str]) -> str:
    """Return what a result, ``{name}``, did not come of, see ``Task.differences``, and how it is computed again."""
    if differs - {"lesson"} == {"voxels"}:
        text = _("{name} was moved or the volume was changed since; press Segment to compute it again.")
    elif differs == {"lesson"}:
        text = _(
            "What your corrections of {name} taught is no longer in the background process; press Segment to compute"
            " {name} again without it."
        )
    else:
        text = _("{name} came of another volume, model or axis; press Segment to compute it again.")
    return str(text)
