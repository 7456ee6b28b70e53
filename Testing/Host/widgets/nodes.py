"""Behavior of widgets that show the scene or pick nodes from it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ..runtime import qt, slicer
from .behavior import Behavior


class SceneObservations:
    """Observers on MRML objects that can be taken away together; they end with the widget they serve."""

    def __init__(self, owner: Any) -> None:
        self._tags: list[tuple[Any, int]] = []
        owner.connect("destroyed()", self.clear)

    def add(self, target: Any, callback: Callable[[Any, str], None], *events: Any) -> None:
        """Observe events of an object."""
        self._tags.extend((target, target.AddObserver(event, callback)) for event in events)

    def clear(self) -> None:
        """Remove all observers."""
        for target, tag in self._tags:
            target.RemoveObserver(tag)
        self._tags.clear()


class qMRMLWidget(Behavior):
    """A widget that knows the scene."""

    def setMRMLScene(self, scene: Any) -> None:
        """Set the scene and tell about it."""
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)

    def mrmlScene(self) -> Any:
        """Return the scene, None before it is set."""
        return self.__dict__.get("_scene")


class qSlicerWidget(Behavior):
    """Slicer's own widget that knows the scene."""

    def setMRMLScene(self, scene: Any) -> None:
        """Set the scene and tell about it."""
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)


class qMRMLNodeComboBox(Behavior):
    """A combo box of the scene's nodes of given types."""

    _defaults_ = {
        "addEnabled": True,
        "removeEnabled": True,
        "renameEnabled": False,
        "editEnabled": False,
        "noneEnabled": False,
        "noneDisplay": "None",
        "showChildNodeTypes": True,
        "selectNodeUponCreation": True,
        "showHidden": False,
        "baseName": "",
    }

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        layout = qt.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._combo = qt.QComboBox()
        self._combo.setSizeAdjustPolicy(qt.QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self._combo.setMinimumContentsLength(8)
        layout.addWidget(self._combo)
        self._scene: Any = None
        self._attributes: list[tuple[str, str, str | None]] = []
        self._labels: dict[str, str] = {}
        self._entries: list[str | Callable[[], None]] = []
        self._current = ""
        self._observations = SceneObservations(self)
        self._combo.connect("activated(int)", self._activate)
        self.setEnabled(False)

    def setMRMLScene(self, scene: Any) -> None:
        """Follow the nodes of a scene."""
        self._observations.clear()
        self._scene = scene
        self.setEnabled(scene is not None)
        if scene is not None:
            kinds = slicer.vtkMRMLScene
            events = (kinds.NodeAddedEvent, kinds.NodeRemovedEvent, kinds.EndBatchProcessEvent)
            self._observations.add(scene, lambda *_: self._refresh(), *events)
        self._refresh()

    def mrmlScene(self) -> Any:
        """Return the scene."""
        return self._scene

    def currentNode(self) -> Any:
        """Return the selected node or None."""
        return self._scene.GetNodeByID(self._current) if self._scene is not None and self._current else None

    def currentNodeId(self) -> str:
        """Return the ID of the selected node, empty if none."""
        return self._current

    def _read_currentNodeID(self) -> str:
        return self._current

    _read_currentNodeId = _read_currentNodeID

    def setCurrentNode(self, node: Any) -> None:
        """Select a node, or a node by its ID."""
        self._select(node if isinstance(node, str) else (node.GetID() if node is not None else ""))

    def setCurrentNodeID(self, node_id: str) -> None:
        """Select a node by its ID."""
        self._select(node_id)

    def _changed_currentNodeID(self, node_id: str) -> None:
        self._select(node_id)

    _changed_currentNodeId = _changed_currentNodeID

    def setCurrentNodeIndex(self, index: int) -> None:
        """Select the n-th node."""
        self._select(self._nodes()[index].GetID())

    def nodeCount(self) -> int:
        """Return how many nodes can be picked."""
        return len(self._nodes())

    def nodeFromIndex(self, index: int) -> Any:
        """Return the n-th node."""
        return self._nodes()[index]

    def addAttribute(self, node_type: str, name: str, value: Any = None) -> None:
        """Show only nodes of the type that have an attribute."""
        self._attributes.append((node_type, name, None if value is None else str(value)))
        self._refresh()

    def removeAttribute(self, node_type: str, name: str) -> None:
        """Drop a condition."""
        self._attributes = [entry for entry in self._attributes if entry[:2] != (node_type, name)]
        self._refresh()

    def setNodeTypeLabel(self, label: str, node_type: str) -> None:
        """Set what a type is called in the menu."""
        self._labels[node_type] = label
        self._refresh()

    def nodeTypeLabel(self, node_type: str) -> str:
        """Return what a type is called in the menu."""
        return self._labels.get(node_type, node_type.removeprefix("vtkMRML").removesuffix("Node"))

    def addNode(self, node_type: str = "") -> Any:
        """Make a node of a type, the first by default, and select it."""
        kind = node_type or self.nodeTypes[0]
        base = self.baseName or self.nodeTypeLabel(kind)
        node = self._scene.AddNewNodeByClass(kind, self._scene.GenerateUniqueName(base))
        for wanted, name, value in self._attributes:
            if node.IsA(wanted):
                node.SetAttribute(name, value or "")
        self._refresh()
        if self.selectNodeUponCreation:
            self._select(node.GetID())
        self.nodeAddedByUser.emit(node)
        return node

    def removeCurrentNode(self) -> None:
        """Delete the selected node."""
        node = self.currentNode()
        if node is not None:
            self.nodeAboutToBeRemoved.emit(node)
            self._scene.RemoveNode(node)

    def renameCurrentNode(self) -> None:
        """Tell that a new name was asked for."""
        self.currentNodeRenamed.emit(self.currentNode().GetName())

    def _nodes(self) -> list[Any]:
        if self._scene is None:
            return []
        nodes = self._scene.GetNodes()
        return [n for n in (nodes.GetItemAsObject(i) for i in range(nodes.GetNumberOfItems())) if self._accepts(n)]

    def _accepts(self, node: Any) -> bool:
        types = self.nodeTypes
        if self.showChildNodeTypes:
            fits = any(node.IsA(t) for t in types)
            fits = fits and not any(node.IsA(t) for t in self.hideChildNodeTypes if t not in types)
        else:
            fits = node.GetClassName() in types
        if not fits or (node.GetHideFromEditors() and not self.showHidden):
            return False
        return all(
            not node.IsA(t) or (node.GetAttribute(a) is not None and v in (None, node.GetAttribute(a)))
            for t, a, v in self._attributes
        )

    def _refresh(self, *_: Any) -> None:
        if self._scene is not None and self._scene.IsBatchProcessing():
            return
        combo = self._combo
        combo.blockSignals(True)
        combo.clear()
        self._entries = []
        if self.noneEnabled:
            self._add_entry(self.noneDisplay, "")
        for node in self._nodes():
            self._add_entry(node.GetName() or "", node.GetID())
        wanted = self._wanted()
        self._add_commands()
        combo.setCurrentIndex(self._entries.index(wanted) if wanted in self._entries else -1)
        combo.blockSignals(False)
        if wanted != self._current:
            self._current = wanted
            self._tell()

    _changed_nodeTypes = _changed_noneEnabled = _changed_addEnabled = _changed_showHidden = _refresh
    _changed_showChildNodeTypes = _changed_noneDisplay = _changed_hideChildNodeTypes = _refresh
    _changed_removeEnabled = _changed_renameEnabled = _changed_editEnabled = _refresh

    def _wanted(self) -> str:
        ids = [entry for entry in self._entries if isinstance(entry, str)]
        if self._current in ids:
            return self._current
        return "" if self.noneEnabled or not ids else ids[0]

    def _add_entry(self, text: str, entry: str | Callable[[], None]) -> None:
        self._combo.addItem(text)
        self._entries.append(entry)

    def _add_commands(self) -> None:
        if self.removeEnabled and self._current:
            self._add_entry("Delete current node", self.removeCurrentNode)
        if self.addEnabled:
            for kind in self.nodeTypes:
                self._add_entry(f"Create new {self.nodeTypeLabel(kind)}", functools.partial(self.addNode, kind))

    def _activate(self, index: int) -> None:
        entry = self._entries[index]
        if callable(entry):
            self._refresh()
            entry()
            return
        self._select(entry)
        self.nodeActivated.emit(self.currentNode())

    def _select(self, node_id: str | None) -> None:
        node_id = node_id if node_id in self._entries else ""
        self._combo.setCurrentIndex(self._entries.index(node_id) if node_id in self._entries else -1)
        if node_id != self._current:
            self._current = node_id
            self._tell()

    def _tell(self) -> None:
        node = self.currentNode()
        self.currentNodeChanged.emit(node)
        self._currentNodeChanged_overload.emit(node is not None)
        self.currentNodeIDChanged.emit(self._current)
