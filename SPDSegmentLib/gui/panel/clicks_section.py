"""The clicks: table with fates, include and exclude, jump to a click, signs of the fates in the views."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import qt
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from SPDSegmentLib.geometry.markups import ControlPoint
from SPDSegmentLib.prompts.fates import SIGNS, Fate, PointFate

from ..scene.centerlines import (
    SAME_PLACE_MM,
    Clicks,
    clickEvents,
    clickName,
    dragEvents,
    indexOf,
    positionOf,
    removeClicks,
    setEnd,
    setIncluded,
    snapshotClicks,
)
from ..scene.editor_nodes import voxelDigests
from ..scene.state import ModuleState, idleTimer
from ..scene.volumes import jumpTo, nodeById
from ..scene.write_record import Position, WriteRecord, nodeOf
from .overlays import FateMarks

MAX_ROWS = 2000
ROWS_PER_PART = 60
EXCLUDED, IS_END = "excluded", "end"
REFRESH_MS = 150


@dataclass(frozen=True)
class RowContent:
    """What a row of the table shows; ``color`` is that of the fate, 0 to 1; ``ends``: the structure ends there."""

    name: str
    included: bool
    fate: str
    reason: str
    color: tuple[float, float, float] | None
    ends: bool = False


class Removals:
    """Clicks that *Delete last click* and *Clear* took away: they can come back while nothing else has changed since.

    Lists have their own, so that they are not lost where one turns to another segment and back.
    """

    def __init__(self) -> None:
        self._of: dict[tuple[str, ...], list[tuple[Clicks, Clicks, set[int]]]] = {}  # before, after, voxels then

    def remove(self, nodes: Sequence[Any], segmentationNode: Any, *, lastOnly: bool) -> bool:
        """Take the clicks of the first node away, or the last one, and return whether there were any."""
        before = snapshotClicks(nodes)
        for node in nodes[:1]:
            removeClicks(node, lastOnly=lastOnly)
        after = snapshotClicks(nodes)
        if after != before:
            known = self._of.setdefault(tuple(node.GetID() for node in nodes), [])
            known.append((before, after, voxelDigests(segmentationNode)))
        return after != before

    def latest(self, nodes: Sequence[Any], segmentationNode: Any) -> Clicks | None:
        """Return the clicks as they were before the latest removal, None where clicks or voxels have changed since."""
        known = self._of.get(tuple(node.GetID() for node in nodes))
        if not known:
            return None
        before, after, voxels = known[-1]
        isLatest = _allClicks(after) == _allClicks(snapshotClicks(nodes))
        return before if isLatest and voxels == voxelDigests(segmentationNode) else None

    def forget(self, nodes: Sequence[Any]) -> None:
        """The latest removal was taken back."""
        del self._of[tuple(node.GetID() for node in nodes)][-1:]

    def clear(self) -> None:
        """Let go of the scene."""
        self._of.clear()


class ClicksSection(VTKObservationMixin):
    """Follows the centerline nodes; ``onClicksChanged`` gets the clicks after changes, no more often than is useful."""

    def __init__(self, ui: Any, state: Callable[[], ModuleState], onClicksChanged: Callable[[Clicks], None]) -> None:
        VTKObservationMixin.__init__(self)
        self.ui = ui
        self.marks = FateMarks()
        self._state = state
        self._onClicksChanged = onClicksChanged
        self._more = 0  # clicks that the table has no rows for
        self._rows: list[tuple[str, str]] = []
        self._contents: list[RowContent] = []
        self._filled: list[RowContent | None] = []
        self._seen: Clicks = ()
        self._filling = False
        self._dragging = False
        self._record = WriteRecord()
        self._removals = Removals()
        self._turnedDown: set[str] = set()  # clicks that were rejected when they were unticked
        self._nodeIds: list[str] = []
        self._timer = idleTimer(self._onTimeout, REFRESH_MS)
        self._current: Clicks | None = None
        self._fillTimer = idleTimer(self._fillPart)
        self._contentsTimer = idleTimer(self._showContents)
        self._marksTimer = idleTimer(self._showMarks)
        table = ui.clicksTable
        table.setHorizontalHeaderLabels([_("Click"), _("Use"), _("Reason")])
        table.horizontalHeader().setStretchLastSection(True)
        table.verticalHeader().setVisible(False)
        table.setWordWrap(False)
        table.horizontalHeader().setResizeContentsPrecision(30)
        table.connect("itemChanged(QTableWidgetItem*)", self._onItemChanged)
        table.connect("cellClicked(int,int)", self._onCellClicked)
        table.connect("itemSelectionChanged()", self._showEnd)
        ui.endButton.connect("clicked(bool)", self._onEnd)
        ui.clicksSection.connect("contentsCollapsed(bool)", lambda collapsed: self.fill())
        ui.deleteLastButton.connect("clicked(bool)", lambda checked: self._remove(lastOnly=True))
        ui.clearButton.connect("clicked(bool)", lambda checked: self._remove(lastOnly=False))

    def observe(self) -> None:
        """Follow the chosen nodes."""
        nodes = self._state().centerlineNodes
        ids = [node.GetID() for node in nodes]
        if ids == self._nodeIds:
            return
        self.removeObservers()
        self._nodeIds = ids
        self._dragging = False
        dragStarts, dragEnds = dragEvents()
        for node in nodes:
            for event in clickEvents(node):
                self.addObserver(node, event, self._onPoints)
            self.addObserver(node, dragStarts, self._onDragStarts)
            self.addObserver(node, dragEnds, self._onDragEnds)
            self.addObserver(node, node.DisplayModifiedEvent, lambda caller, event: self._marksTimer.start())

    def _remove(self, *, lastOnly: bool) -> None:
        state = self._state()
        if self._removals.remove(state.centerlineNodes, state.segmentationNode, lastOnly=lastOnly):
            self.ui.undoButton.enabled = True

    def removed(self) -> Clicks | None:
        """Return the clicks as they were before the latest removal, None where clicks or voxels have changed since."""
        return self._removals.latest(self._state().centerlineNodes, self._state().segmentationNode)

    def snapshot(self) -> Clicks:
        """Return the clicks as they are now."""
        return snapshotClicks(self._state().centerlineNodes)

    def forgetRemoval(self) -> None:
        """The latest removal was taken back."""
        self._removals.forget(self._state().centerlineNodes)

    def show(self, record: WriteRecord) -> None:
        """Show the fates of a record: a thousand clicks in several events, so that each is short."""
        for button in (self.ui.deleteLastButton, self.ui.clearButton):
            button.enabled = bool(self._nodeIds)
        self._record = record
        self._showSummary()
        self._current = None
        self._marksTimer.start()

    def _showSummary(self) -> None:
        more = _("The table ends after {count} clicks; {more} more are not in it.")
        said = (summary(self._record.fates), more.format(count=MAX_ROWS, more=self._more) if self._more else "")
        self.ui.clicksLabel.text = "\n".join(filter(None, said))

    def fill(self, clicks: Clicks | None = None) -> None:
        """Fill the table, where it can be seen; ``clicks``: those of now, where they were read already."""
        if self.ui.clicksSection.collapsed:
            return
        fates = {fate.click_id: fate for fate in self._record.fates if fate.click_id}
        clicks = self.snapshot() if clicks is None else clicks
        rows = [(nodeId, point) for nodeId, markup in clicks for point in markup.points if point.placed]
        self._more, rows = max(0, len(rows) - MAX_ROWS), rows[:MAX_ROWS]
        self._showSummary()
        self._rows = [(nodeId, point.id) for nodeId, point in rows]
        texts = fateTexts()
        self._contents = [_rowContent(point, fates.get(clickName(nodeId, point.id)), texts) for nodeId, point in rows]
        self._filling = True
        self.ui.clicksTable.setRowCount(len(self._contents))
        self._filling = False
        del self._filled[len(self._contents) :]
        if len(self._contents) > ROWS_PER_PART:
            self._fillTimer.start()
        else:
            self._fillPart()

    def _fillPart(self) -> None:
        """Fill some of the rows that differ from what the table shows; the others in a moment."""
        self._filled += [None] * (len(self._contents) - len(self._filled))
        changed = [row for row, content in enumerate(self._contents) if content != self._filled[row]]
        self._filling = True
        try:
            for row in changed[:ROWS_PER_PART]:
                self._fillRow(row, self._contents[row])
                self._filled[row] = self._contents[row]
        finally:
            self._filling = False
        if len(changed) > ROWS_PER_PART:
            self._fillTimer.start()
        elif changed:
            for column in (0, 1):
                self.ui.clicksTable.resizeColumnToContents(column)
        self._showEnd()

    def close(self) -> None:
        """Let go of the nodes."""
        for timer in (self._timer, self._marksTimer, self._contentsTimer, self._fillTimer):
            timer.stop()
        self.removeObservers()
        self._nodeIds = []
        self._removals.clear()
        self._turnedDown.clear()
        self.marks.clear()

    def _showMarks(self) -> None:
        """Show the fates of the clicks that are shown and still where they were, and of the model's own points."""
        shown = {
            n.GetID() for n in self._state().centerlineNodes if n.GetDisplayNode() is None or n.GetDisplayVisibility()
        }
        fates = [fate for fate in self._record.fates if (nodeOf(fate.click_id) in shown if fate.click_id else shown)]
        places: dict[str, Position] = {}
        if self._current is None and (fates or not self.ui.clicksSection.collapsed):
            self._current = self.snapshot()
        if fates:
            for nodeId, markup in self._current or ():
                places.update({clickName(nodeId, point.id): point.position_ras for point in markup.points})
        self.marks.show(
            fate for fate in fates if not fate.click_id or _isNear(places.get(fate.click_id), fate.position_ras)
        )
        self._contentsTimer.start()

    def _showContents(self) -> None:
        clicks, self._current = self._current, None
        self.fill(clicks)

    def _fillRow(self, row: int, content: RowContent) -> None:
        name = qt.QTableWidgetItem(content.name)
        name.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsSelectable | qt.Qt.ItemIsUserCheckable)
        name.setCheckState(qt.Qt.Checked if content.included else qt.Qt.Unchecked)
        what = qt.QTableWidgetItem(content.fate)
        if content.color is not None:
            what.setForeground(qt.QBrush(qt.QColor.fromRgbF(*content.color)))
        why = qt.QTableWidgetItem(content.reason)
        why.setToolTip(content.reason)
        for column, item in enumerate((name, what, why)):
            self.ui.clicksTable.setItem(row, column, item)

    def _onItemChanged(self, item: Any) -> None:
        if self._filling or item.column() != 0:
            return
        node, clickId = self._clickOf(item.row())
        if node is None:
            return
        included, name = item.checkState() == qt.Qt.Checked, clickName(node.GetID(), clickId)
        fate = next((fate.fate for fate in self._record.fates if fate.click_id == name), None)
        if fate == Fate.REJECTED_OWN_SLICE:
            self._turnedDown.add(name)
        elif fate == Fate.INSISTED and not included:
            self._turnedDown.discard(name)
        setIncluded(node, clickId, included, insisted=included and name in self._turnedDown)

    def _onCellClicked(self, row: int, column: int) -> None:
        node, clickId = self._clickOf(row)
        index = indexOf(node, clickId) if node is not None else -1
        if index >= 0:
            jumpTo(positionOf(node, index))

    def _clickOf(self, row: int) -> tuple[Any, str]:
        """Return the node and the ID of the click in a row of the table; None and no ID where there is none."""
        nodeId, clickId = self._rows[row] if 0 <= row < len(self._rows) else ("", "")
        return nodeById(nodeId), clickId

    def _showEnd(self) -> None:
        """Show whether the structure ends at the chosen click."""
        row, button = self.ui.clicksTable.currentRow(), self.ui.endButton
        button.enabled = 0 <= row < len(self._contents) and self._contents[row].included
        button.checked = button.enabled and self._contents[row].ends

    def _onEnd(self, ends: bool) -> None:
        node, clickId = self._clickOf(self.ui.clicksTable.currentRow())
        if node is not None:
            setEnd(node, clickId, ends)

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
        clicks = self.snapshot()
        if clicks != self._seen:
            self._seen = self._current = clicks
            self._marksTimer.start()
            self._onClicksChanged(clicks)


def _allClicks(clicks: Clicks) -> list[Any]:
    """What a person sees of clicks, used or not; their names change where they are brought back."""

    def seen(point: ControlPoint) -> tuple[Any, ...]:
        return point.position_ras, point.placed, point.selected, point.insisted, point.ends

    return [(nodeId, list(map(seen, markup.points))) for nodeId, markup in clicks]


def _isNear(one: Position | None, other: Position) -> bool:
    return one is not None and all(abs(a - b) < SAME_PLACE_MM for a, b in zip(one, other, strict=True))


def _rowContent(point: ControlPoint, fate: PointFate | None, texts: Mapping[str, str]) -> RowContent:
    name = point.label or point.id
    if not point.selected:
        return RowContent(name, False, texts[EXCLUDED], "", None)
    name = texts[IS_END].format(name=name) if point.ends else name
    words, reason, color = "", "", None
    if fate is not None:
        words, reason = texts.get(fate.fate, fate.fate), fate.reason
        if (sign := SIGNS.get(fate.fate)) is not None:
            words, color = f"{sign.character} {words}", sign.color
    return RowContent(name, True, words, reason, color, point.ends)


def fateTexts() -> dict[str, str]:
    """Return what people read for each fate; ask once for many clicks, as translation takes its time."""
    return {
        Fate.KEPT: _("used"),
        Fate.INSISTED: _("used, you insist"),
        Fate.REJECTED_OWN_SLICE: _("not used"),
        Fate.BORROWED: _("borrowed"),
        Fate.SYNTHESIZED: _("added by the model"),
        Fate.PAST_END: _("past the end"),
        Fate.OUTSIDE: _("outside the volume"),
        EXCLUDED: _("excluded"),
        IS_END: _("{name} (end)"),
    }


def summary(fates: Iterable[PointFate]) -> str:
    """Return signs, how many points have them and their words, as one line; empty before the first run."""
    counts = Counter(fate.fate for fate in fates)
    texts = fateTexts()
    return ", ".join(f"{sign.character} {counts[fate]} {texts[fate]}" for fate, sign in SIGNS.items() if counts[fate])
