"""Inputs and options: volume, centerline with its branches, result, model, axis, device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from SPDSegmentLib.errors import SPDError
from SPDSegmentLib.models.fit import fit_of_image

from ..run.task import ModelEntry, Task, VolumeView, findModel, likelyModel, listModels
from ..scene.centerlines import anyIncluded, centerlinesOfScene, checkClicks, transformEvent
from ..scene.editor_nodes import segmentNames
from ..scene.state import ModuleState, Signal, idleTimer
from ..scene.target import SegmentTarget, makeTarget
from ..scene.volumes import VolumeSnapshot, nodeById, shownImage, viewCenter, viewNode, volumeState
from .about import cardWindow
from .controls import Placing, Source, showDevice

MOVED_MS = 200
AXES = ("auto", "axial", "coronal", "sagittal", "i", "j", "k")


class InputsSection(VTKObservationMixin):
    """Widgets of the inputs, kept equal with the settings in the scene; it ends with :meth:`close`.

    Args:
        ui: widgets.
        state: settings.
        changed: called where another choice was made.
        differences: what a result did not come of, see ``Task.differences``.
    """

    def __init__(
        self,
        ui: Any,
        state: Callable[[], ModuleState],
        changed: Callable[[], None],
        differences: Callable[[Task], set[str]],
    ) -> None:
        VTKObservationMixin.__init__(self)
        self.ui = ui
        self.models: list[ModelEntry] = []
        self.source = Source(state, self.currentTask, lambda: self.models, differences)
        self._removed = ("", "")  # segmentation and segment that was chosen until it was removed
        self._doubts = (("", ""), "")  # of volume and model
        self._held: VolumeSnapshot | None = None  # the latest, so that it is taken once for all who ask
        self.extraModels: list[ModelEntry] = []
        self._state = state
        self._changed = changed
        self.onBranches = Signal()  # a person ticked or unticked one for the result of what was chosen
        self.placing = Placing(ui, lambda: self.isForeign)
        self._pickedId = ""  # of a list that the panel chose, of whatever it may be
        self._namesTimer = idleTimer(self._fillNames)
        self._movedTimer = idleTimer(self._tell, MOVED_MS)
        self._filling = False
        self._card: Any = None
        for axis, text in zip(AXES, _axisNames(), strict=True):
            ui.axisBox.addItem(text, axis)
        for device, text in (("auto", _("Automatic")), ("cuda", _("GPU")), ("cpu", _("CPU"))):
            ui.deviceBox.addItem(text, device)
        ui.volumeSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._onVolume)
        ui.centerlineSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._onCenterline)
        ui.segmentationSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._onSegmentation)
        for box, name in (
            (ui.segmentBox, "segmentId"), (ui.modelBox, "model"), (ui.axisBox, "axis"), (ui.deviceBox, "device"),
        ):  # fmt: skip
            box.connect("activated(int)", lambda index, box=box, name=name: self._onChosen(name, box.itemData(index)))
        ui.modelCardButton.connect("clicked(bool)", self._onCard)
        ui.branchesList.connect("itemChanged(QListWidgetItem*)", self._onBranches)

    @property
    def model(self) -> ModelEntry | None:
        """The chosen model, or None."""
        index = self.ui.modelBox.currentIndex - (self.ui.modelBox.count - len(self.models))
        return self.models[index] if 0 <= index < len(self.models) else None

    @property
    def isForeign(self) -> bool:
        """Whether the list was chosen by the panel, and neither a person nor its name says that it holds clicks."""
        nodes = self._state().centerlineNodes
        return bool(nodes) and nodes[0].GetID() == self._pickedId and nodes[0].GetNumberOfControlPoints() > 0

    def fill(self, *, listAgain: bool = True) -> None:
        """Show the settings; what is not set yet is picked from the scene.

        Args:
            listAgain: look for models again, which reads and checks their files.
        """
        state = self._state()
        self._filling = True
        try:
            self._pickDefaults(state)
            self.ui.volumeSelector.setCurrentNode(state.volumeNode)
            nodes = state.centerlineNodes
            self.ui.centerlineSelector.setCurrentNode(nodes[0] if nodes else None)
            self.placing.into(nodes[0] if nodes else None)
            self.ui.segmentationSelector.setCurrentNode(state.segmentationNode)
            self._fillSegments(state)
            self._fillModels(state, listAgain)
            self._fillBranches(state)
            self.ui.axisBox.currentIndex = max(0, self.ui.axisBox.findData(state.axis))
            showDevice(self.ui.deviceBox, state.device)
        finally:
            self._filling = False
        self._followNames(state)

    def close(self) -> None:
        """Let go of the scene's nodes."""
        self._namesTimer.stop()
        self._movedTimer.stop()
        self._removed, self._held = ("", ""), None
        self.source.forgetScene()
        self.removeObservers()
        if self._card is not None:
            self._card.close()

    def whyNot(self) -> str:
        """Return what is missing before a segmentation can start, empty if nothing."""
        state = self._state()
        if state.volumeNode is None:
            return _("Load a volume to begin.") if shownImage() is None else _("Choose a volume.")
        if not self.models:
            return _("There is no model yet; open Set-up to add one.")
        if self.model is None and state.model:
            return _("The model {name} of this scene is not installed; choose another one.").format(name=state.model)
        if self.model is None:
            return _("Choose the model of the structure.")
        try:
            self._held = VolumeView(state.volumeNode, self.model, state.device, state.axis).snapshot()
        except SPDError as error:
            return error.sentence
        if not state.centerlineNodes:
            return _("Press Place clicks, then click along the structure in the slice views.")
        if not any(node.GetNumberOfDefinedControlPoints() for node in state.centerlineNodes):
            return _("Click along the structure in the slice views.")
        if not anyIncluded(state.centerlineNodes):
            return _("All clicks are left out; tick one in Clicks.")
        return ""

    def note(self) -> str:
        """Return what a person should know before a segmentation starts, empty if nothing."""
        if said := self.source.note():
            return said
        task = self.currentTask()
        if task is not None and task.target.record.isPartial:
            return _("Some slices are of a run that did not end; press Segment to complete the result.")
        if self._state().model or self.model is None:
            return ""
        return _("{model} was chosen by the names of volume and clicks.").format(model=self.model.title)

    def choice(self) -> tuple[str, ...]:
        """Return what is chosen: segment, model, axis, volume with voxels and place of now, clicks."""
        state = self._state()
        nodes = (state.segmentationNode, *state.centerlineNodes)
        ids = (node.GetID() if node is not None else "" for node in nodes)
        return (state.segmentId, state.model, state.axis, volumeState(state.volumeNode), *ids)

    def doubts(self) -> str:
        """Return why the volume may not be of the model's kind, and the better model; empty where it fits."""
        view = self.currentView()
        if view is None or view.model.info is None:
            return ""
        snapshot = view.snapshot()
        known = (snapshot.volumeId, view.model.key)
        if self._doubts[0] != known:
            self._doubts = known, " ".join(fit_of_image(view.model.info, snapshot.stack))
        return self._doubts[1]

    def currentView(self) -> VolumeView | None:
        """Return volume and model as chosen, or None where one is missing or cannot be used."""
        state = self._state()
        if state.volumeNode is None or self.model is None:
            self._held = None
            return None
        view = VolumeView(state.volumeNode, self.model, state.device, state.axis)
        try:
            self._held = view.snapshot()
        except SPDError:
            self._held = None
            return None
        return view

    @property
    def centerlineNodes(self) -> Sequence[Any]:
        """The point lists and curves that are chosen."""
        return self._state().centerlineNodes

    def currentTask(self) -> Task | None:
        """Return what was chosen, or None unless its segment exists and can be written; nothing is made."""
        state = self._state()
        view = self.currentView()
        if view is None or state.segmentationNode is None or not state.segmentId:
            return None
        target = SegmentTarget(state.segmentationNode, state.segmentId)
        return Task(view, state.centerlineNodes, target) if target.isPlaced else None

    def makeTask(self) -> Task:
        """Return what is to be segmented; a new segmentation and segment are made and become the settings.

        Raises:
            SPDError: something is missing or cannot be used.
        """
        state = self._state()
        model = self.model or findModel("")
        view = VolumeView(state.volumeNode, model, state.device, state.axis)
        snapshot = view.snapshot()
        checkClicks(state.centerlineNodes)
        target = makeTarget(
            state.segmentationNode, state.segmentId, state.volumeNode, model.structure, model.color, model.terminology
        )
        self.source.isNext, self._removed, self._pickedId = False, ("", ""), ""
        state.model = model.name
        state.segmentationNode = target.node
        state.segmentId = target.segmentId
        self.fill(listAgain=False)
        shown = viewNode(snapshot.stack)
        first = viewCenter(shown) if shown is not None else None
        return Task(view, state.centerlineNodes, target, firstSliceRas=first)

    def _pickDefaults(self, state: ModuleState) -> None:
        node, segmentId = state.segmentationNode, state.segmentId
        if node is not None and segmentId and SegmentTarget(node, segmentId).record.model:
            return  # what is not there was removed: another volume's or structure's would overwrite the result
        if state.volumeNode is None:
            state.volumeNode = shownImage()
        if not state.centerlineNodes:
            found = sorted(centerlinesOfScene(), key=lambda node: not _saysClicks(node))[:1]
            state.centerlineNodes = found
            self._pickedId = "" if not found or _saysClicks(found[0]) else found[0].GetID()

    def _followNames(self, state: ModuleState) -> None:
        """Notice what is added, removed and renamed elsewhere."""
        self.removeObservers()
        kinds = slicer.vtkSegmentation
        events = (kinds.SegmentAdded, kinds.SegmentRemoved, kinds.SegmentModified, kinds.SegmentsOrderModified)
        followed = [(state.segmentationNode, event) for event in events if state.segmentationNode is not None]
        followed += [(node, vtk.vtkCommand.ModifiedEvent) for node in self._branchNodes(state)]
        for node, event in followed:
            self.addObserver(node, event, lambda caller, event: self._namesTimer.start())
        if state.volumeNode is not None:
            self.addObserver(state.volumeNode, transformEvent(), lambda caller, event: self._movedTimer.start())

    def _fillNames(self) -> None:
        """Show the names of now; where the chosen segment is gone everybody is told."""
        state = self._state()
        box, branches = self.ui.segmentBox, self.ui.branchesList
        segments = [(box.itemText(n), box.itemData(n)) for n in range(1, box.count)]
        listed = [(i.text(), i.data(qt.Qt.UserRole)) for i in (branches.item(n) for n in range(branches.count))]
        if segments != segmentNames(state.segmentationNode):
            before = state.segmentId
            self._fillSegments(state)
            if state.segmentId != before:
                self._tell()
        if listed != [(node.GetName(), node.GetID()) for node in self._branchNodes(state)]:
            self._filling = True
            self._fillBranches(state)
            self._filling = False

    def _fillSegments(self, state: ModuleState) -> None:
        box, node = self.ui.segmentBox, state.segmentationNode
        box.clear()
        box.addItem(_("New segment"), "")
        for name, segmentId in segmentNames(node):
            box.addItem(name, segmentId)
        if box.findData(state.segmentId) < 0:
            self._removed, state.segmentId = (node.GetID() if node is not None else "", state.segmentId), ""
        elif not state.segmentId and node is not None and self._removed[0] == node.GetID():
            isBack = box.findData(self._removed[1]) >= 0  # by the editor's undo
            state.segmentId = self._removed[1] if isBack else ""
        box.currentIndex = max(0, box.findData(state.segmentId))
        box.setVisible(node is not None)

    def _fillModels(self, state: ModuleState, listAgain: bool) -> None:
        if listAgain:
            self.models = self.usableModels()
        box = self.ui.modelBox
        box.clear()
        names = [model.name for model in self.models]
        index = (
            self._likelyModel(state) if not state.model else names.index(state.model) if state.model in names else None
        )
        if index is None:
            box.addItem(_("Choose a model") if self.models else _("No model installed"), "")
        for model in self.models:
            box.addItem(model.title, model.name)
        box.currentIndex = index or 0
        box.setEnabled(bool(self.models))
        self.ui.modelCardButton.setEnabled(bool(self.models))

    def _likelyModel(self, state: ModuleState) -> int | None:
        nodes = [node for node in (state.volumeNode, *state.centerlineNodes) if node is not None]
        image = state.volumeNode.GetImageData() if state.volumeNode is not None else None
        lowest = image.GetScalarRange()[0] if image is not None and image.GetPointData().GetScalars() else None
        return likelyModel(self.models, [node.GetName() or "" for node in nodes], lowest)

    def usableModels(self) -> list[ModelEntry]:
        """Return the models that can be chosen; their files are read and checked."""
        try:
            return [*listModels(), *self.extraModels]
        except SPDError:
            return list(self.extraModels)

    def _fillBranches(self, state: ModuleState) -> None:
        chosen = [node.GetID() for node in state.centerlineNodes]
        listed = self.ui.branchesList
        listed.clear()
        for node in self._branchNodes(state):
            item = qt.QListWidgetItem(node.GetName())
            item.setData(qt.Qt.UserRole, node.GetID())
            item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
            item.setCheckState(qt.Qt.Checked if node.GetID() in chosen[1:] else qt.Qt.Unchecked)
            listed.addItem(item)
        self._nameBranches(state)

    def _nameBranches(self, state: ModuleState) -> None:
        """Name the branches, which count as much as the first list, where the list of them is folded."""
        names = ", ".join(node.GetName() or "" for node in state.centerlineNodes[1:])
        self.ui.optionsSection.text = _("Options (branches: {names})").format(names=names) if names else _("Options")

    @staticmethod
    def _branchNodes(state: ModuleState) -> list[Any]:
        """Return what can be a branch: every centerline but the chosen first one."""
        first = state.centerlineNodes[:1]
        return [node for node in centerlinesOfScene() if node not in first]

    def _tell(self) -> None:
        if not self._filling:
            self._changed()

    def _onVolume(self, node: Any) -> None:
        if not self._filling:
            self._state().volumeNode = node
            if self.source.isNext:
                self.source.turnToNext(self.ui.centerlineSelector.currentNode())
            self._tell()

    def _onCenterline(self, node: Any) -> None:
        self.placing.into(node)
        if not self._filling:
            state, self._pickedId = self._state(), ""
            if node is None:
                state.centerlineNodes = state.centerlineNodes[1:]
            elif [node] != state.centerlineNodes[:1]:
                state.centerlineNodes = [node]  # branches are those of the former list
            self.source.turnToNext(node)
            self.fill(listAgain=False)
            self._tell()

    def _onSegmentation(self, node: Any) -> None:
        if not self._filling:
            state = self._state()
            state.segmentationNode = node
            self.source.isNext = False
            self._fillSegments(state)
            self._tell()

    def _onChosen(self, name: str, value: str | None) -> None:
        setattr(self._state(), name, value or "")
        if name == "segmentId":
            self._removed = ("", "")
            self.source.isNext = False
            self.source.turnToSegment()
            self.fill(listAgain=False)
        self._tell()

    def _onBranches(self, item: Any) -> None:
        if self._filling:
            return
        state, task, listed = self._state(), self.currentTask(), self.ui.branchesList
        isOwn = task is not None and self.source.isOwn(task)  # without the branch: else a run has to be asked for
        items = [listed.item(row) for row in range(listed.count)]
        checked = [i.data(qt.Qt.UserRole) for i in items if i.checkState() == qt.Qt.Checked]
        nodes = (self.ui.centerlineSelector.currentNode(), *map(nodeById, checked))
        state.centerlineNodes = [node for node in nodes if node is not None]
        self._nameBranches(state)
        self._tell()
        if isOwn:
            self.onBranches.emit()

    def _onCard(self, checked: bool) -> None:
        if self.model is not None:
            self._card = cardWindow(self.model.title, self.model.card or _("This model has no card."))
            self._card.show()


def _saysClicks(node: Any) -> bool:
    """Whether the name of a list says that it holds clicks along a structure."""
    return any(word in (node.GetName() or "").lower() for word in ("click", "centerline"))


def _axisNames() -> tuple[str, ...]:
    of_voxels = (_("Voxel axis I"), _("Voxel axis J"), _("Voxel axis K"))
    return (_("Automatic"), _("Axial"), _("Coronal"), _("Sagittal"), *of_voxels)
