"""Behavior of the table of segments and of the segment selector."""

from __future__ import annotations

from typing import Any

from ..runtime import qt, slicer
from .behavior import Behavior
from .nodes import SceneObservations

_VISIBLE, _COLOR, _NAME = range(3)


def _segment_events() -> tuple[int, ...]:
    kinds = slicer.vtkSegmentation
    return (kinds.SegmentAdded, kinds.SegmentRemoved, kinds.SegmentModified)


def _segment_ids(node: Any) -> list[str]:
    segmentation = node.GetSegmentation() if node is not None else None
    if segmentation is None:
        return []
    return [segmentation.GetNthSegmentID(index) for index in range(segmentation.GetNumberOfSegments())]


class qMRMLSegmentsTableView(Behavior):
    """A table with visibility, color and name of each segment."""

    _defaults_ = {"headerVisible": True, "visibilityColumnVisible": True, "colorColumnVisible": True}

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        layout = qt.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        table = qt.QTableWidget(0, 3)
        table.setHorizontalHeaderLabels(["", "", "Name"])
        table.horizontalHeader().setStretchLastSection(True)
        table.setSelectionBehavior(qt.QAbstractItemView.SelectionBehavior.SelectRows)
        table.setColumnWidth(_VISIBLE, 30)
        table.setColumnWidth(_COLOR, 30)
        layout.addWidget(table)
        self._table = table
        self._node: Any = None
        self._ids: list[str] = []
        self._observations = SceneObservations(self)
        table.selectionModel().connect(
            "selectionChanged(QItemSelection,QItemSelection)",
            lambda on, off: self.selectionChanged.emit(on, off),
        )
        table.connect("itemChanged(QTableWidgetItem*)", self._edited)

    def segmentationNode(self) -> Any:
        """Return the shown segmentation node."""
        return self._node

    def tableWidget(self) -> qt.QTableWidget:
        """Return the inner table."""
        return self._table

    def setSegmentationNode(self, node: Any) -> None:
        """Show the segments of a node."""
        self._observations.clear()
        self._node = node
        if node is not None:
            self._observations.add(node.GetSegmentation(), lambda *_: self._refresh(), *_segment_events())
        self._refresh()

    def selectedSegmentIDs(self) -> list[str]:
        """Return the IDs of the selected rows."""
        return [self._ids[index.row()] for index in self._table.selectionModel().selectedRows()]

    def setSelectedSegmentIDs(self, ids: list[str]) -> None:
        """Select rows."""
        self._table.clearSelection()
        for segment_id in ids:
            if segment_id in self._ids:
                self._table.selectRow(self._ids.index(segment_id))

    def clearSelection(self) -> None:
        """Select nothing."""
        self._table.clearSelection()

    def rowForSegmentID(self, segment_id: str) -> int:
        """Return the row of a segment, -1 if it is not there."""
        return self._ids.index(segment_id) if segment_id in self._ids else -1

    def segmentIDForRow(self, row: int) -> str:
        """Return the segment of a row."""
        return self._ids[row]

    def _read_segmentCount(self) -> int:
        return len(self._ids)

    def _refresh(self) -> None:
        selected = self.selectedSegmentIDs() if self._ids else []
        self._table.blockSignals(True)
        self._ids = _segment_ids(self._node)
        self._table.setRowCount(len(self._ids))
        for row, segment_id in enumerate(self._ids):
            self._fill_row(row, segment_id)
        self._table.blockSignals(False)
        if selected:
            self.setSelectedSegmentIDs(selected)

    def _fill_row(self, row: int, segment_id: str) -> None:
        segment = self._node.GetSegmentation().GetSegment(segment_id)
        display = self._node.GetDisplayNode()
        shown = display is not None and display.GetSegmentVisibility(segment_id)
        visible = qt.QTableWidgetItem()
        visible.setCheckState(qt.Qt.CheckState.Checked if shown else qt.Qt.CheckState.Unchecked)
        color = qt.QTableWidgetItem()
        color.setBackground(qt.QColor.fromRgbF(*segment.GetColor()))
        for column, item in enumerate((visible, color, qt.QTableWidgetItem(segment.GetName()))):
            self._table.setItem(row, column, item)

    def _edited(self, item: qt.QTableWidgetItem) -> None:
        segment_id = self._ids[item.row()]
        if item.column() == _NAME:
            self.segmentAboutToBeModified.emit(segment_id)
            self._node.GetSegmentation().GetSegment(segment_id).SetName(item.text())
        elif item.column() == _VISIBLE and self._node.GetDisplayNode() is not None:
            shown = item.checkState() == qt.Qt.CheckState.Checked
            self._node.GetDisplayNode().SetSegmentVisibility(segment_id, shown)


class qMRMLSegmentSelectorWidget(Behavior):
    """Selectors of a segmentation and of one segment in it."""

    _defaults_ = {
        "segmentationNodeSelectorVisible": True,
        "editEnabled": False,
        "selectNodeUponCreation": True,
    }

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        layout = qt.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._nodes = self._host_factory_.create("qMRMLNodeComboBox")
        self._nodes.nodeTypes = ["vtkMRMLSegmentationNode"]
        self._nodes.addEnabled = False
        self._segments = qt.QComboBox()
        layout.addWidget(self._nodes, 1)
        layout.addWidget(self._segments, 1)
        self._ids: list[str] = []
        self._segment = ""
        self._observations = SceneObservations(self)
        self._nodes.connect("currentNodeChanged(vtkMRMLNode*)", self._node_changed)
        self._segments.connect("currentIndexChanged(int)", self._segment_changed)

    def setMRMLScene(self, scene: Any) -> None:
        """Follow the segmentations of a scene."""
        self._scene = scene
        self._nodes.setMRMLScene(scene)
        self.mrmlSceneChanged.emit(scene)

    def currentNode(self) -> Any:
        """Return the selected segmentation node."""
        return self._nodes.currentNode()

    def currentNodeID(self) -> str:
        """Return the ID of the selected segmentation node."""
        return self._nodes.currentNodeID

    def setCurrentNode(self, node: Any) -> None:
        """Select a segmentation node."""
        self._nodes.setCurrentNode(node)

    def setCurrentNodeID(self, node_id: str) -> None:
        """Select a segmentation node by its ID."""
        self._nodes.setCurrentNodeID(node_id)

    def currentSegmentID(self) -> str:
        """Return the ID of the selected segment, empty if none."""
        return self._segment

    def setCurrentSegmentID(self, segment_id: str) -> None:
        """Select a segment."""
        if segment_id in self._ids:
            self._segments.setCurrentIndex(self._ids.index(segment_id))

    def segmentIDs(self) -> list[str]:
        """Return the segments that can be selected."""
        return [segment_id for segment_id in self._ids if segment_id]

    def _changed_noneEnabled(self, on: bool) -> None:
        self._nodes.noneEnabled = on
        self._refresh()

    def _changed_segmentationNodeSelectorVisible(self, on: bool) -> None:
        self._nodes.setVisible(on)

    def _node_changed(self, node: Any) -> None:
        self._observations.clear()
        if node is not None:
            self._observations.add(node.GetSegmentation(), lambda *_: self._refresh(), *_segment_events())
        self._refresh()
        self.currentNodeChanged.emit(node)
        self._currentNodeChanged_overload.emit(node is not None)

    def _refresh(self) -> None:
        node = self.currentNode()
        self._segments.blockSignals(True)
        self._segments.clear()
        self._ids = ([""] if self.noneEnabled else []) + _segment_ids(node)
        for segment_id in self._ids:
            segment = node.GetSegmentation().GetSegment(segment_id) if segment_id else None
            self._segments.addItem(segment.GetName() if segment is not None else "None")
        wanted = self._segment if self._segment in self._ids else (self._ids[0] if self._ids else "")
        self._segments.setCurrentIndex(self._ids.index(wanted) if wanted in self._ids else -1)
        self._segments.blockSignals(False)
        self._tell(wanted)

    def _segment_changed(self, index: int) -> None:
        self._tell(self._ids[index] if 0 <= index < len(self._ids) else "")

    def _tell(self, segment_id: str) -> None:
        if segment_id != self._segment:
            self._segment = segment_id
            self.currentSegmentChanged.emit(segment_id)
