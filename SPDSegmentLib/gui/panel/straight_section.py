"""The structure straightened along its centerline: the reformatted image with the mask's contour, a plot, a table."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import qt
import slicer
from slicer.i18n import tr as _

from SPDSegmentLib.errors import Cancelled, SPDError
from SPDSegmentLib.files import write_csv, write_png
from SPDSegmentLib.geometry.straighten import COLUMNS, Straightened, straighten

from ..run.task import Task
from ..scene.export_files import checkPlace
from ..scene.state import BackgroundCall, idleTimer, lineHeight, painting
from ..scene.write_record import WriteRecord
from .export_section import confirmReplace
from .review_section import FOLLOW_MS, Pointer

IMAGE_HEIGHT, PLOT_HEIGHT = 110, 90
LEFT, RIGHT = 34, 46
MIN_WIDTH = 300
SHOWN_PERCENT = (1.0, 99.0)
"""Of the straightened image's values: black and white."""
TABLE = ("position_mm", "slice_number", "area_mm2", "diameter_mm", "feret_min_mm", "feret_max_mm")
_CONTOUR, _DIAMETER, _AREA, _PAPER = "#f08c3c", "#0b6fb8", "#8a5a00", "#f4f5f7"


class StraightSection:
    """Measures when it is asked to; files are written when they are asked for."""

    def __init__(self, ui: Any, task: Callable[[], Task | None]) -> None:
        self.ui = ui
        self.askPath: Callable[[str, str], str] = _askPath
        self.confirm: Callable[[Path], bool] = confirmReplace
        self.found: Straightened | None = None
        self._task = task
        self._background = BackgroundCall()
        self._state: tuple[Any, ...] = ()
        self._hasContent = False
        self._pixmap: Any = None
        self._drawTimer = idleTimer(self._draw, FOLLOW_MS)
        self._pointer = Pointer(self._drawTimer.start)
        ui.straightPicture.installEventFilter(self._pointer)
        titles = (_("Along, mm"), _("Slice"), _("Area, mm²"), _("Diameter, mm"), _("Least, mm"), _("Greatest, mm"))
        ui.straightTable.setHorizontalHeaderLabels(list(titles))
        ui.straightTable.verticalHeader().setVisible(False)
        ui.straightTable.resizeColumnsToContents()
        ui.straightButton.connect("clicked(bool)", lambda checked: self.measure())
        ui.saveTableButton.connect("clicked(bool)", lambda checked: self._save(".csv"))
        ui.savePictureButton.connect("clicked(bool)", lambda checked: self._save(".png"))

    def show(self, record: WriteRecord) -> None:
        """What was measured of another state is taken away."""
        self._hasContent = bool(record.written or record.owned)
        self._isCurrent()
        self._refresh()

    def _isCurrent(self) -> bool:
        """Whether segment and volume are as they were when this was asked last; what was measured goes otherwise."""
        task = self._task()
        state = task.target.stateOn(task.view.snapshot()) if task is not None else ()
        if state == self._state:
            return True
        self._state, self.found, self._pixmap = state, None, None
        self.ui.straightPicture.clear()
        self.ui.straightTable.setRowCount(0)
        self.ui.straightLabel.text = ""
        return False

    def close(self) -> None:
        """Let a measurement come to its end."""
        self._drawTimer.stop()
        self._background.close()

    def measure(self) -> None:
        """Straighten the chosen segment beside the window."""
        task = self._task()
        if task is None or task.target.node is None or self._background.isRunning:
            return
        self._isCurrent()
        snapshot, state = task.view.snapshot(), self._state
        content = task.target.read(snapshot)
        self.ui.straightLabel.text = _("Measuring…")

        def call() -> Straightened:
            mask = np.stack([content.mask(t) for t in range(snapshot.grid.shape[0])])
            return straighten(mask, snapshot.stack)

        def end(found: Straightened | None, error: Exception | None) -> None:
            if self._isCurrent() and state == self._state:
                self._take(found, error)
            self._refresh()

        self._background.start(call, end)
        self._refresh()

    def _take(self, found: Straightened | None, error: Exception | None) -> None:
        if found is None or not len(found.position_mm):
            known = isinstance(error, SPDError)
            self.ui.straightLabel.text = error.sentence if known else _("This could not be measured.")  # type: ignore[union-attr]
            if error is not None and not known:
                logging.getLogger(__name__).error("straightening failed", exc_info=error)
            return
        self.found = found
        self.ui.straightLabel.text = found.sentence()
        table, columns = self.ui.straightTable, [COLUMNS.index(name) for name in TABLE]
        rows = found.table()
        table.setRowCount(len(rows))
        for n, row in enumerate(rows):
            for k, column in enumerate(columns):
                value = f"{row[column]:.0f}" if TABLE[k] == "slice_number" else f"{row[column]:.1f}"
                item = qt.QTableWidgetItem(value)
                item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
                table.setItem(n, k, item)
        table.resizeColumnsToContents()
        self._draw()

    def _draw(self) -> None:
        """Draw what was measured as wide as there is room; that is what is saved."""
        picture, found = self.ui.straightPicture, self.found
        width = max(MIN_WIDTH, int(picture.width))
        if found is not None and (self._pixmap is None or self._pixmap.width() != width):
            self._pixmap = drawStraightened(found, width, lineHeight(picture))
            picture.setPixmap(self._pixmap)

    def _refresh(self) -> None:
        task = self._task()
        isIdle = not self._background.isRunning
        self.ui.straightButton.enabled = isIdle and task is not None and self._hasContent
        for button in (self.ui.saveTableButton, self.ui.savePictureButton):
            button.enabled = isIdle and self.found is not None

    def _save(self, suffix: str) -> None:
        task, found, pixmap = self._task(), self.found, self._pixmap
        if task is None or found is None:
            return
        chosen = self.askPath(task.view.model.structure, suffix)
        if not chosen:
            return
        if not self._isCurrent():
            self.ui.straightLabel.text = _("The segment or the volume has changed since; measure again.")
            self._refresh()
            return
        asked = chosen.lower().endswith(suffix)  # the window has asked for this very name
        path = Path(chosen if asked else chosen + suffix)
        try:
            checkPlace(path, (lambda path: True) if asked else self.confirm)
            if suffix == ".csv":
                write_csv(path, [COLUMNS, *found.table()], "table of measures")
            else:
                write_png(path, lambda part: pixmap.save(str(part), "PNG"))
        except Cancelled:
            return
        except SPDError as error:
            self.ui.straightLabel.text = error.sentence
        else:
            self.ui.straightLabel.text = _("{measures} Written: {path}").format(measures=found.sentence(), path=path)


def drawStraightened(found: Straightened, width: int, line: int) -> Any:
    """Return a pixmap: one plane along the centerline with the mask's contour, diameter and area below it.

    Args:
        found: what was measured.
        width: of the pixmap, in pixels.
        line: height of a line of text, in pixels.
    """
    pixmap = qt.QPixmap(width, IMAGE_HEIGHT + PLOT_HEIGHT + line + 4)
    pixmap.fill(qt.QColor(_PAPER))
    with painting(pixmap) as painter:
        count, right, bottom = len(found.position_mm), width - RIGHT, IMAGE_HEIGHT + PLOT_HEIGHT
        columns = [LEFT + n * (right - LEFT) // count for n in range(count + 1)]
        _drawPlane(painter, found, columns)
        places = [(a + b) // 2 for a, b in zip(columns, columns[1:], strict=False)]
        for values, color, x, align in (
            (found.area_mm2, _AREA, right + 3, qt.Qt.AlignLeft),
            (found.diameter_mm, _DIAMETER, 0, qt.Qt.AlignRight),
        ):
            top = 1.15 * max(float(values.max()), 1e-3)
            heights = [bottom - round(float(value) / top * (PLOT_HEIGHT - 8)) for value in values]
            painter.setPen(qt.QPen(qt.QColor(color), 2))
            for n in range(count - 1):
                painter.drawLine(places[n], heights[n], places[n + 1], heights[n + 1])
            box = qt.QRect(x, min(heights) - line // 2, (LEFT if x == 0 else RIGHT) - 5, line)
            painter.drawText(box, align | qt.Qt.AlignVCenter, f"{float(values.max()):.0f}")
        painter.setPen(qt.QPen(qt.QColor(_AREA), 1))
        painter.drawText(qt.QRect(right - 160, IMAGE_HEIGHT + 2, 157, line), qt.Qt.AlignRight, _("area, mm²"))
        painter.setPen(qt.QPen(qt.QColor(_DIAMETER), 1))
        painter.drawText(qt.QRect(LEFT + 3, IMAGE_HEIGHT + 2, 160, line), qt.Qt.AlignLeft, _("diameter, mm"))
        painter.setPen(qt.QPen(qt.QColor("#1f2933"), 1))
        painter.drawLine(LEFT, bottom, right, bottom)
        painter.drawText(qt.QRect(LEFT - 20, bottom + 2, 40, line), qt.Qt.AlignHCenter, "0")
        end = _("{length} mm along").format(length=f"{found.centerline_mm:.0f}")
        painter.drawText(qt.QRect(right - 120, bottom + 2, 120, line), qt.Qt.AlignRight, end)
    return pixmap


def _drawPlane(painter: Any, found: Straightened, columns: list[int]) -> None:
    """The middle plane of the sections, a column of pixels a section, and the border of the mask in it."""
    middle, side = found.masks.shape[1] // 2, found.masks.shape[1]
    mask = found.masks[:, :, middle]
    image = np.zeros(mask.shape) if found.image is None else found.image[:, :, middle].astype(float)
    seen = image[np.isfinite(image)]
    low, high = np.percentile(seen, SHOWN_PERCENT) if seen.size else (0.0, 1.0)
    gray = np.nan_to_num((image - low) / max(high - low, 1e-6)).clip(0, 1)
    levels = np.rint(gray * 63).astype(int)
    colors = [qt.QColor(4 * level, 4 * level, 4 * level) for level in range(64)]
    rows = [n * IMAGE_HEIGHT // side for n in range(side + 1)]
    padded = np.pad(mask, 1)
    inner = padded[1:-1, :-2] & padded[1:-1, 2:] & padded[:-2, 1:-1] & padded[2:, 1:-1]
    border, orange = mask & ~inner, qt.QColor(_CONTOUR)
    for n, (x, end) in enumerate(zip(columns, columns[1:], strict=False)):
        for k in range(side):
            color = orange if border[n, k] else colors[levels[n, k]]
            if rows[k + 1] > rows[k]:
                painter.fillRect(x, rows[k], max(1, end - x), rows[k + 1] - rows[k], color)


def _askPath(name: str, suffix: str) -> str:
    kind = _("Table") if suffix == ".csv" else _("Picture")
    return str(
        qt.QFileDialog.getSaveFileName(slicer.util.mainWindow(), _("Save"), f"{name}{suffix}", f"{kind} (*{suffix})")
    )
