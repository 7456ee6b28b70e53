"""Quality of every slice as a plot, and the way to the slices that need a look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import qt
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from SPDSegmentLib.prompts.fates import SliceStatus

from ..run.task import Task
from ..scene.events import idleTimer
from ..scene.views import jumpTo, viewCenter, viewNode
from ..scene.volumes import nodeById
from ..scene.write_record import SliceInfo, WriteRecord

HEIGHT = 72
MIN_WIDTH = 240
FOLLOW_MS = 60
_GOOD, _DOUBTFUL, _OWNED, _EMPTY, _MARK = "#2f9e57", "#d9412f", "#8a8f98", "#e4e6ea", "#1f2933"


class ReviewSection(VTKObservationMixin):
    """Plot and buttons."""

    def __init__(self, ui: Any, task: Callable[[], Task | None]) -> None:
        VTKObservationMixin.__init__(self)
        self.ui = ui
        self._timer = idleTimer(self._drawCurrent, FOLLOW_MS)
        ui.reviewSection.connect("contentsCollapsed(bool)", self._onCollapsed)
        self._task = task
        self._record = WriteRecord()
        ui.nextDoubtfulButton.connect("clicked(bool)", lambda checked: self.step(1))
        ui.previousDoubtfulButton.connect("clicked(bool)", lambda checked: self.step(-1))

    def show(self, record: WriteRecord) -> None:
        """Show a record."""
        self._record = record
        doubtful = record.doubtful
        for button in (self.ui.nextDoubtfulButton, self.ui.previousDoubtfulButton):
            button.enabled = bool(doubtful)
        without = len(record.unsupported)
        text = _("Doubtful slices: {count}").format(count=len(doubtful)) if record.info else ""
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
        if task is None or nodeById(task.volumeNode.GetID()) is None:
            return None
        snapshot = task.writtenSnapshot(self._record)
        node = viewNode(snapshot.stack.plane)
        return snapshot.sliceAt(viewCenter(node)) if node is not None else None

    def step(self, direction: int) -> None:
        """Jump to the next doubtful slice (or the previous one), round the end."""
        doubtful = self._record.doubtful
        task = self._task()
        if not doubtful or task is None:
            return
        current = self.currentSlice()
        current = -1 if current is None else current
        ahead = [t for t in doubtful if (t - current) * direction > 0]
        t = (min(ahead) if direction > 0 else max(ahead)) if ahead else doubtful[0 if direction > 0 else -1]
        snapshot = task.writtenSnapshot(self._record)
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
        node = viewNode(task.writtenSnapshot(self._record).stack.plane) if task is not None else None
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
        record = self._record
        width = max(MIN_WIDTH, self.ui.qualityPlot.width)
        pixmap = qt.QPixmap(width, HEIGHT)
        pixmap.fill(qt.QColor(_EMPTY))
        count = max(record.info, default=0) + 1
        painter = qt.QPainter()
        painter.begin(pixmap)
        for t in record.span:
            owned = t in record.owned
            if t not in record.info and not owned:
                continue
            info = record.info.get(t, SliceInfo(None, SliceStatus.LOCKED))
            quality = 1.0 if owned else (info.quality or 0.0)
            bar = max(4, round(min(max(quality, 0.0), 1.0) * (HEIGHT - 6)))
            color = _OWNED if owned else (_DOUBTFUL if info.doubtful else _GOOD)
            left, right = t * width // count, max(t * width // count + 1, (t + 1) * width // count)
            painter.fillRect(left, HEIGHT - bar, right - left, bar, qt.QColor(color))
        if current is not None and record.info:
            middle = (2 * current + 1) * width // (2 * count)
            painter.fillRect(min(middle, width - 2), 0, 2, HEIGHT, qt.QColor(_MARK))
        painter.end()
        self.ui.qualityPlot.setPixmap(pixmap)
