"""Quality of every slice as a plot, and the way to the slices that need a look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from .slice_views import jumpTo, viewCenter, viewNode
from .task import Task
from .write_record import NO_SUPPORT, WriteRecord

HEIGHT = 72
WIDTH = 320
FOLLOW_MS = 60
_GOOD, _DOUBTFUL, _OWNED, _EMPTY = "#2f9e57", "#d9412f", "#8a8f98", "#e4e6ea"


class ReviewSection(VTKObservationMixin):
    """Plot and buttons."""

    def __init__(self, ui: Any, task: Callable[[], Task | None]) -> None:
        VTKObservationMixin.__init__(self)
        self.ui = ui
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(FOLLOW_MS)
        self._timer.connect("timeout()", self._drawCurrent)
        ui.reviewSection.connect("contentsCollapsed(bool)", self._onCollapsed)
        self._task = task
        self._record = WriteRecord()
        ui.nextDoubtfulButton.connect("clicked(bool)", lambda checked: self.step(1))
        ui.previousDoubtfulButton.connect("clicked(bool)", lambda checked: self.step(-1))

    def show(self, record: WriteRecord) -> None:
        """Show a record."""
        self._record = record
        doubtful = doubtfulSlices(record)
        for button in (self.ui.nextDoubtfulButton, self.ui.previousDoubtfulButton):
            button.enabled = bool(doubtful)
        without = sum(info.status in NO_SUPPORT for info in record.info.values())
        text = _("{count} doubtful slices").format(count=len(doubtful)) if record.info else ""
        if without:
            text += _(", {count} of them without a supporting click (left empty)").format(count=without)
        self.ui.reviewLabel.text = text
        self._follow()
        self._drawCurrent()

    def close(self) -> None:
        """Let go of the views."""
        self._timer.stop()
        self.removeObservers()

    def currentSlice(self) -> int | None:
        """Return the canonical slice that is nearest to what the views show, or None."""
        task = self._task()
        if task is None or slicer.mrmlScene.GetNodeByID(task.volumeNode.GetID()) is None:
            return None
        snapshot = task.writtenSnapshot()
        node = viewNode(snapshot.stack.plane)
        return snapshot.sliceAt(viewCenter(node)) if node is not None else None

    def step(self, direction: int) -> None:
        """Jump to the next doubtful slice (or the previous one), round the end."""
        doubtful = doubtfulSlices(self._record)
        task = self._task()
        if not doubtful or task is None:
            return
        current = self.currentSlice()
        current = -1 if current is None else current
        ahead = [t for t in doubtful if (t - current) * direction > 0]
        t = (min(ahead) if direction > 0 else max(ahead)) if ahead else doubtful[0 if direction > 0 else -1]
        snapshot = task.writtenSnapshot()
        height, width = snapshot.grid.shape[1:]
        node = viewNode(snapshot.stack.plane)
        xy = np.array([[(width - 1) / 2, (height - 1) / 2]])
        if node is not None:
            xy = snapshot.stack.to_slices(np.array(viewCenter(node)))[1]
        jumpTo(snapshot.stack.to_ras(np.array(t), xy)[0])
        self._timer.start()

    def _follow(self) -> None:
        self.removeObservers()
        task = self._task()
        node = viewNode(task.writtenSnapshot().stack.plane) if task is not None else None
        if node is not None:
            self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self._onView)

    def _onView(self, caller: Any, event: str) -> None:
        if not self.ui.reviewSection.collapsed:
            self._timer.start()

    def _onCollapsed(self, collapsed: bool) -> None:
        self._drawCurrent()

    def _drawCurrent(self) -> None:
        if not self.ui.reviewSection.collapsed:
            self._draw(self.currentSlice())

    def _draw(self, current: int | None) -> None:
        pixmap = qt.QPixmap(WIDTH, HEIGHT)
        pixmap.fill(qt.QColor(_EMPTY))
        info = self._record.info
        if info:
            count = max(info) + 1
            painter = qt.QPainter()
            painter.begin(pixmap)
            for t, slice_ in info.items():
                x0, x1 = t * WIDTH // count, max(t * WIDTH // count + 1, (t + 1) * WIDTH // count)
                owned = t in self._record.owned
                if slice_.status == "empty" and not owned:
                    continue
                quality = 1.0 if owned else (slice_.quality or 0.0)
                bar = max(4, round(min(max(quality, 0.0), 1.0) * (HEIGHT - 6)))
                color = _OWNED if owned else (_DOUBTFUL if slice_.doubtful else _GOOD)
                painter.fillRect(x0, HEIGHT - bar, x1 - x0, bar, qt.QColor(color))
            if current is not None:
                painter.fillRect(min(current * WIDTH // count, WIDTH - 2), 0, 2, HEIGHT, qt.QColor("#1f2933"))
            painter.end()
        self.ui.qualityPlot.setPixmap(pixmap)


def doubtfulSlices(record: WriteRecord) -> list[int]:
    """Return the slices that need a look and that nobody has edited, ascending."""
    return [t for t, info in sorted(record.info.items()) if info.doubtful and t not in record.owned]
