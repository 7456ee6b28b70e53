"""Mouse and pictures of one view, as a test or a tutorial uses them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PySide6.QtTest import QTest

from .runtime import qt

_LEFT = qt.Qt.MouseButton.LeftButton
_NO_KEYS = qt.Qt.KeyboardModifier.NoModifier
Point = tuple[int, int]


class ViewDriver:
    """Moves, clicks and drags in a view; positions are pixels from the top left corner."""

    def __init__(self, widget: Any) -> None:
        self.widget = widget

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.widget.width, self.widget.height

    def move(self, position: Point) -> None:
        """Move the pointer."""
        QTest.mouseMove(self.widget, qt.QPoint(*position))
        _settle()

    def click(self, position: Point, button: Any = _LEFT, keys: Any = _NO_KEYS) -> None:
        """Move and click."""
        self.move(position)
        QTest.mouseClick(self.widget, button, keys, qt.QPoint(*position))
        _settle()

    def drag(self, start: Point, end: Point, button: Any = _LEFT, keys: Any = _NO_KEYS, steps: int = 8) -> None:
        """Press at one position, move in steps, release at another; keys count at press and release."""
        self.move(start)
        QTest.mousePress(self.widget, button, keys, qt.QPoint(*start))
        for step in range(1, steps + 1):
            share = step / steps
            between = qt.QPoint(*(round(a + share * (b - a)) for a, b in zip(start, end, strict=True)))
            QTest.mouseMove(self.widget, between)
            _settle()
        QTest.mouseRelease(self.widget, button, keys, qt.QPoint(*end))
        _settle()

    def pixels(self) -> np.ndarray:
        """Draw and return the picture: (height, width, 3) uint8, first row on top."""
        self.widget.forceRender()
        return self.widget._view.pixels()

    def save_png(self, path: Path | str) -> None:
        """Draw and write the picture."""
        self.widget.forceRender()
        self.widget._picture.save(str(path))

    @property
    def frames(self) -> int:
        """How many frames were drawn so far, with the one that is due."""
        self.widget._draw_due()
        return self.widget._frames


class SliceViewDriver(ViewDriver):
    """A slice view; positions can be patient millimeters (RAS) too."""

    @property
    def node(self) -> Any:
        """The slice node."""
        return self.widget.mrmlSliceNode()

    def pixel_of(self, ras: Sequence[float]) -> Point:
        """Return the pixel that shows a point; the slice may be another one."""
        x, y, _ = self.widget.convertRASToXYZ([float(value) for value in ras])
        return round(x), self.size[1] - 1 - round(y)

    def ras_of(self, position: Point) -> tuple[float, float, float]:
        """Return the point in patient mm that a pixel shows."""
        x, y = position
        r, a, s = self.widget.convertXYZToRAS([float(x), float(self.size[1] - 1 - y), 0.0])
        return r, a, s

    def jump_to(self, ras: Sequence[float]) -> None:
        """Show the slice through a point."""
        self.node.JumpSliceByOffsetting(*(float(value) for value in ras))
        _settle()

    def click_ras(self, ras: Sequence[float]) -> None:
        """Show the slice through a point and click it; ValueError if the view does not reach it."""
        self.jump_to(ras)
        self.click(self._inside(self.pixel_of(ras)))

    def drag_ras(self, start: Sequence[float], end: Sequence[float]) -> None:
        """Drag from a point to another of the same slice."""
        self.jump_to(start)
        self.drag(self._inside(self.pixel_of(start)), self._inside(self.pixel_of(end)))

    def scroll(self, steps: int) -> None:
        """Turn the wheel: forward if positive."""
        middle = qt.QPointF(self.widget.mapTo(self.widget.window(), self.widget.rect.center()))
        turn = qt.QPoint(0, 120 if steps > 0 else -120)
        for _ in range(abs(steps)):
            QTest.wheelEvent(self.widget.window().windowHandle(), middle, turn)
            _settle()

    def _inside(self, position: Point) -> Point:
        if not all(0 <= value < limit for value, limit in zip(position, self.size, strict=True)):
            raise ValueError(f"Pixel {position} is outside the view of {self.size} pixels.")
        return position


def _settle() -> None:
    qt.QApplication.processEvents()
