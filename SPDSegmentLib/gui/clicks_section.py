"""The clicks: table with fates, include and exclude, jump to a click, rings in fate colors in the views."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from SPDSegmentLib.geometry.markups import ControlPoint

from .centerlines import Clicks, clickName, indexOf, setIncluded, snapshotClicks
from .fate_rings import FateRings
from .fates import BORROWED, COLORS, KEPT, OUTSIDE, REJECTED, SYNTHESIZED
from .slice_views import jumpTo
from .state import ModuleState
from .write_record import PointFate, WriteRecord

MAX_ROWS = 2000
REFRESH_MS = 150


class ClicksSection(VTKObservationMixin):
    """Follows the centerline nodes; ``onClicksChanged`` is called, not more often than it is useful, after changes."""

    def __init__(self, ui: Any, state: Callable[[], ModuleState], onClicksChanged: Callable[[], None]) -> None:
        VTKObservationMixin.__init__(self)
        self.ui = ui
        self.rings = FateRings()
        self._state = state
        self._onClicksChanged = onClicksChanged
        self._rows: list[tuple[str, str]] = []
        self._seen: Clicks = ()
        self._filling = False
        self._dragging = False
        self._record = WriteRecord()
        self._nodeIds: list[str] = []
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(REFRESH_MS)
        self._timer.connect("timeout()", self._onTimeout)
        table = ui.clicksTable
        table.setHorizontalHeaderLabels([_("Click"), _("Fate"), _("Reason")])
        table.horizontalHeader().setStretchLastSection(True)
        table.verticalHeader().setVisible(False)
        table.setWordWrap(False)
        for column in (0, 1):
            table.horizontalHeader().setSectionResizeMode(column, qt.QHeaderView.ResizeToContents)
        table.connect("itemChanged(QTableWidgetItem*)", self._onItemChanged)
        table.connect("cellClicked(int,int)", self._onCellClicked)
        ui.clicksSection.connect("contentsCollapsed(bool)", self._onCollapsed)

    def observe(self) -> None:
        """Follow the chosen nodes."""
        nodes = self._state().centerlineNodes
        ids = [node.GetID() for node in nodes]
        if ids == self._nodeIds:
            return
        self.removeObservers()
        self._nodeIds = ids
        self._dragging = False
        events = slicer.vtkMRMLMarkupsNode
        for node in nodes:
            for event in (
                events.PointAddedEvent,
                events.PointPositionDefinedEvent,
                events.PointPositionUndefinedEvent,
                events.PointModifiedEvent,
                events.PointRemovedEvent,
            ):
                self.addObserver(node, event, self._onPoints)
            self.addObserver(node, events.PointStartInteractionEvent, self._onDragStarts)
            self.addObserver(node, events.PointEndInteractionEvent, self._onDragEnds)

    def show(self, record: WriteRecord) -> None:
        """Show the fates of a record."""
        self._record = record
        self.fill()
        self.rings.show(record.fates)

    def fill(self) -> None:
        """Fill the table, where it can be seen."""
        self.ui.clicksLabel.text = summary(self._record.fates)
        if self.ui.clicksSection.collapsed:
            return
        fates = {fate.clickId: fate for fate in self._record.fates if fate.clickId}
        rows = [
            (nodeId, point)
            for nodeId, markup in snapshotClicks(self._state().centerlineNodes)
            for point in markup.points
            if point.placed
        ][:MAX_ROWS]
        self._filling = True
        try:
            self.ui.clicksTable.setRowCount(len(rows))
            self._rows = [(nodeId, point.id) for nodeId, point in rows]
            for row, (nodeId, point) in enumerate(rows):
                self._fillRow(row, point, fates.get(clickName(nodeId, point.id)))
        finally:
            self._filling = False

    def close(self) -> None:
        """Let go of the nodes."""
        self._timer.stop()
        self.removeObservers()
        self._nodeIds = []
        self.rings.remove()

    def _fillRow(self, row: int, point: ControlPoint, fate: PointFate | None) -> None:
        name = qt.QTableWidgetItem(point.label or point.id)
        name.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsSelectable | qt.Qt.ItemIsUserCheckable)
        name.setCheckState(qt.Qt.Checked if point.selected else qt.Qt.Unchecked)
        text = fateText(fate.fate) if fate is not None and point.selected else ("" if point.selected else _("excluded"))
        what = qt.QTableWidgetItem(text)
        if fate is not None and point.selected and fate.fate in COLORS:
            what.setForeground(qt.QBrush(qt.QColor.fromRgbF(*COLORS[fate.fate])))
        why = qt.QTableWidgetItem(fate.reason if fate is not None and point.selected else "")
        why.setToolTip(why.text())
        for column, item in enumerate((name, what, why)):
            self.ui.clicksTable.setItem(row, column, item)

    def _onItemChanged(self, item: Any) -> None:
        if self._filling or item.column() != 0 or item.row() >= len(self._rows):
            return
        nodeId, clickId = self._rows[item.row()]
        node = slicer.mrmlScene.GetNodeByID(nodeId)
        if node is not None:
            setIncluded(node, clickId, item.checkState() == qt.Qt.Checked)

    def _onCellClicked(self, row: int, column: int) -> None:
        nodeId, clickId = self._rows[row]
        node = slicer.mrmlScene.GetNodeByID(nodeId)
        index = indexOf(node, clickId) if node is not None else -1
        if index >= 0:
            position = [0.0, 0.0, 0.0]
            node.GetNthControlPointPositionWorld(index, position)
            jumpTo(position)

    def _onPoints(self, caller: Any, event: str) -> None:
        if not self._dragging:
            self._timer.start()

    def _onDragStarts(self, caller: Any, event: str) -> None:
        self._dragging = True
        self._timer.stop()

    def _onDragEnds(self, caller: Any, event: str) -> None:
        self._dragging = False
        self._timer.start()

    def _onTimeout(self) -> None:
        clicks = snapshotClicks(self._state().centerlineNodes)
        if clicks != self._seen:
            self._seen = clicks
            self.fill()
            self._onClicksChanged()

    def _onCollapsed(self, collapsed: bool) -> None:
        self.fill()


def fateText(fate: str) -> str:
    """Return a fate for people."""
    texts = {
        KEPT: _("kept"),
        REJECTED: _("rejected"),
        BORROWED: _("used by a neighbor"),
        SYNTHESIZED: _("synthesized"),
        OUTSIDE: _("outside the volume"),
    }
    return texts.get(fate, fate)


def summary(fates: list[PointFate]) -> str:
    """Return how many points have which fate, as one line; empty before the first run."""
    counts: dict[str, int] = {}
    for fate in fates:
        counts[fate.fate] = counts.get(fate.fate, 0) + 1
    return ", ".join(f"{count} {fateText(fate)}" for fate, count in counts.items())
