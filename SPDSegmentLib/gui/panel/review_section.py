"""The way to the slices that need a look: quality of every slice as a plot, in which a click jumps to a slice."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import numpy as np
import qt
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from SPDSegmentLib.geometry.slices import SliceStack, slice_ranges
from SPDSegmentLib.prompts.fates import DOUBTFUL_BELOW, END, GAP, LOW_QUALITY, Review

from ..run.task import Task
from ..scene.state import idleTimer, lineHeight, painting
from ..scene.volumes import jumpTo, nodeById, viewCenter, viewNode
from ..scene.write_record import WriteRecord

HEIGHT = 72
"""Of the bars, in pixels."""
TICK_HEIGHT = 3
MARGIN = 8
"""Left and right of the bars: room for half a number."""
TICK_PX = 56
MIN_WIDTH = 240
FOLLOW_MS = 60
_GOOD, _DOUBTFUL, _OWNED, _EMPTY, _MARK, _LINE = "#2f9e57", "#d9412f", "#8a8f98", "#e4e6ea", "#1f2933", "#b6bbc4"


class ReviewSection(VTKObservationMixin):
    """Plot and buttons."""

    def __init__(self, ui: Any, task: Callable[[], Task | None]) -> None:
        VTKObservationMixin.__init__(self)
        self.ui = ui
        self._timer = idleTimer(self._drawCurrent, FOLLOW_MS)
        ui.reviewSection.connect("contentsCollapsed(bool)", lambda collapsed: self._drawCurrent())
        self._task = task
        self._record = WriteRecord()
        self._review = Review(range(0), {}, [])
        self._pointer = Pointer(self._timer.start, self._onPress, self._onHover)
        ui.qualityPlot.installEventFilter(self._pointer)
        ui.nextDoubtfulButton.connect("clicked(bool)", lambda checked: self.step(1))
        ui.previousDoubtfulButton.connect("clicked(bool)", lambda checked: self.step(-1))

    def show(self, record: WriteRecord) -> None:
        """Show a record."""
        self._record = record
        self._review = record.review
        for button in (self.ui.nextDoubtfulButton, self.ui.previousDoubtfulButton):
            button.enabled = bool(self._review.doubtful)
        stack = self._stack()
        self.ui.reviewLabel.text = _sentence(self._review, stack) if record.info and stack is not None else ""
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
        node = viewNode(snapshot.stack)
        return snapshot.sliceAt(viewCenter(node)) if node is not None else None

    def step(self, direction: int) -> None:
        """Jump to the next doubtful slice (or the previous one), round the end."""
        doubtful = sorted(self._review.doubtful)
        if not doubtful or self._task() is None:
            return
        current = self.currentSlice()
        current = -1 if current is None else current
        ahead = [t for t in doubtful if (t - current) * direction > 0]
        self.jump((min(ahead) if direction > 0 else max(ahead)) if ahead else doubtful[0 if direction > 0 else -1])

    def jump(self, t: int) -> None:
        """Show a slice, at the place within it that its view shows now."""
        task = self._task()
        if task is None:
            return
        snapshot = task.writtenSnapshot(self._record)
        height, width = snapshot.grid.shape[1:]
        node = viewNode(snapshot.stack)
        xy = np.array([[(width - 1) / 2, (height - 1) / 2]])
        if node is not None:
            xy = snapshot.stack.to_slices(np.array(viewCenter(node)))[1]
        jumpTo(snapshot.stack.to_ras(np.array(t), xy)[0])
        self._timer.start()

    def describe(self, t: int) -> str:
        """Return what is known of a slice as one line."""
        stack = self._stack()
        text = _("Slice {number}").format(number=stack.slice_number(t) if stack is not None else t)
        info = self._record.info.get(t)
        if t in self._record.owned:
            return _("{slice}: edited by you").format(slice=text)
        if t in self._review.doubtful:
            return f"{text}: {self._reason(t)}"
        if t not in self._review.span:
            return _("{slice}: beyond the structure").format(slice=text)
        if info is None or info.quality is None:
            return _("{slice}: its quality is not estimated").format(slice=text)
        return _("{slice}: estimated quality {quality}").format(slice=text, quality=f"{info.quality:.2f}")

    def _reason(self, t: int) -> str:
        kind, info = self._review.doubtful[t], self._record.info[t]
        if kind == LOW_QUALITY:
            return _("low estimated quality, {quality}").format(quality=f"{info.quality or 0.0:.2f}")
        if kind == END:
            return _("empty, the structure stops before your last click")
        if t in self._record.unsupported:
            return _("empty, no click supports it, yet the structure goes on beyond it")
        return _("empty, yet the structure goes on beyond it")

    def _stack(self) -> SliceStack | None:
        task = self._task()
        return task.writtenSnapshot(self._record).stack if task is not None else None

    @property
    def _range(self) -> range:
        """Slices that the plot shows, from the left to the right."""
        return range(max([*self._record.info, *self._review.span], default=-1) + 1)

    def _sliceAt(self, x: int) -> int | None:
        """The slice at a place of the plot; None where there is nothing yet."""
        left, width = MARGIN, _plotWidth(self.ui) - 2 * MARGIN
        t = (x - left) * len(self._range) // max(width, 1)
        return min(max(t, 0), len(self._range) - 1) if self._range else None

    def _onPress(self, x: int) -> None:
        t = self._sliceAt(x)
        if t is not None:
            self.jump(t)

    def _onHover(self, x: int) -> None:
        t = self._sliceAt(x)
        text = _("Estimated quality of each slice, once there is a result.") if t is None else self.describe(t)
        self.ui.qualityPlot.toolTip = f"<qt>{html.escape(text)}</qt>"

    def _follow(self) -> None:
        self.removeObservers()
        stack = self._stack()
        node = viewNode(stack) if stack is not None else None
        if node is not None:
            self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self._onView)

    def _onView(self, caller: Any, event: str) -> None:
        if not self.ui.reviewSection.collapsed:
            self._timer.start()

    def _drawCurrent(self) -> None:
        if not self.ui.reviewSection.collapsed:
            self._draw(self.currentSlice())

    def _draw(self, current: int | None) -> None:
        """Bars as high as the quality, a line where doubt begins, the shown slice, and slice numbers below."""
        width = _plotWidth(self.ui)
        pixmap = qt.QPixmap(width, HEIGHT + TICK_HEIGHT + lineHeight(self.ui.qualityPlot))
        pixmap.fill(qt.QColor(qt.Qt.transparent))
        with painting(pixmap) as painter:
            painter.fillRect(0, 0, width, HEIGHT, qt.QColor(_EMPTY))
            if self._range:
                self._drawBars(painter, width, current)
        self.ui.qualityPlot.setPixmap(pixmap)

    def _drawBars(self, painter: Any, width: int, current: int | None) -> None:
        record, count = self._record, len(self._range)
        edges = [MARGIN + t * (width - 2 * MARGIN) // count for t in range(count + 1)]
        for t in self._review.span:
            owned = t in record.owned
            if t not in record.info and not owned:
                continue
            quality = 1.0 if owned else (record.info[t].quality or 0.0)
            isGap = self._review.doubtful.get(t) in (GAP, END)
            bar = 6 if isGap else max(4, round(min(max(quality, 0.0), 1.0) * (HEIGHT - 6)))
            color = _OWNED if owned else (_DOUBTFUL if t in self._review.doubtful else _GOOD)
            painter.fillRect(edges[t], HEIGHT - bar, max(1, edges[t + 1] - edges[t]), bar, qt.QColor(color))
        level = HEIGHT - round(DOUBTFUL_BELOW * (HEIGHT - 6))
        painter.fillRect(MARGIN, level, width - 2 * MARGIN, 1, qt.QColor(_LINE))
        self._drawAxis(painter, edges)
        if current is not None:
            middle = (edges[min(current, count - 1)] + edges[min(current, count - 1) + 1]) // 2
            painter.fillRect(min(middle, width - 2), 0, 2, HEIGHT, qt.QColor(_MARK))

    def _drawAxis(self, painter: Any, edges: list[int]) -> None:
        stack = self._stack()
        plot = self.ui.qualityPlot
        painter.setPen(plot.palette.color(qt.QPalette.WindowText))
        painter.setFont(plot.font)
        step = _tickStep(len(edges) - 1, max(1, (edges[-1] - edges[0]) // TICK_PX))
        for t in range(len(edges) - 1):
            number = stack.slice_number(t) if stack is not None else t
            if number % step == 0:
                middle = (edges[t] + edges[t + 1]) // 2
                painter.drawLine(middle, HEIGHT, middle, HEIGHT + TICK_HEIGHT)
                box = qt.QRect(middle - TICK_PX // 2, HEIGHT + TICK_HEIGHT, TICK_PX, lineHeight(plot))
                painter.drawText(box, qt.Qt.AlignHCenter | qt.Qt.AlignTop, str(number))


class Pointer(qt.QWidget):
    """Tells of a new size of a widget, where its button is pressed and where the pointer is, as x in pixels."""

    def __init__(
        self,
        onResize: Callable[[], None],
        onPress: Callable[[int], None] = lambda x: None,
        onHover: Callable[[int], None] = lambda x: None,
    ) -> None:
        qt.QWidget.__init__(self)
        self._onPress = onPress
        self._onHover = onHover
        self._onResize = onResize

    def eventFilter(self, watched: Any, event: Any) -> bool:
        """Look at presses and moves; nothing is taken away from the widget."""
        if event.type() == qt.QEvent.MouseButtonPress:
            self._onPress(event.pos().x())
        elif event.type() == qt.QEvent.MouseMove:
            self._onHover(event.pos().x())
        elif event.type() == qt.QEvent.Resize:
            self._onResize()
        return False


def _plotWidth(ui: Any) -> int:
    return max(MIN_WIDTH, int(ui.qualityPlot.width))


def _tickStep(count: int, most: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... with which an axis of so many slices has no more ticks than that."""
    steps = (factor * 10**power for power in range(9) for factor in (1, 2, 5))
    return next(step for step in steps if count <= step * most)


def _sentence(found: Review, stack: SliceStack) -> str:
    """How many slices need a look and why, and the clicks that led nowhere."""
    counts = {kind: sum(reason == kind for reason in found.doubtful.values()) for kind in (GAP, END, LOW_QUALITY)}
    texts = {
        GAP: _("{count} empty inside the structure"),
        END: _("{count} between its end and your last click"),
        LOW_QUALITY: _("{count} of low estimated quality"),
    }
    parts = [_("Doubtful slices: {count}").format(count=len(found.doubtful))]
    parts += [texts[kind].format(count=count) for kind, count in counts.items() if count]
    text = ", ".join(parts)
    if found.stray:
        numbers = slice_ranges(stack.slice_number(t) for t in found.stray)
        text += _(". Clicks beyond the structure that were not used: slices {numbers}").format(numbers=numbers)
    return text
