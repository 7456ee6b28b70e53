"""Connection of one parameter to one widget; only the pairs of types that Slicer connects."""

from __future__ import annotations

import enum
import math
import pathlib
import typing
from collections.abc import Callable
from typing import Any

import ctk
import qt
import shiboken6
import slicer

from .serializers import Choice, Decimals, Maximum, Minimum, SingleStep, WithinRange


class GuiConnector:
    """Reads and writes a widget, and tells when the user changed it."""

    SIGNAL = ""

    def __init__(self, widget: Any, kind: Any, extra: tuple[Any, ...] = ()) -> None:
        self._widget = widget
        self.kind = kind
        self.extra = extra
        self._callback: Callable[[], None] | None = None
        self.prepare()

    def widget(self) -> Any:
        """Return the widget."""
        return self._widget

    def changed(self, *_: Any) -> None:
        """Tell that the user changed the widget."""
        if self._callback is not None:
            self._callback()

    def onChanged(self, callback: Callable[[], None] | None) -> None:
        """Set what is called after a change; None ends the connection."""
        self._callback = callback
        if callback is not None:
            self._widget.connect(self.SIGNAL, self.changed)
        elif self.isAlive():
            self._widget.disconnect(self.SIGNAL, self.changed)

    def isAlive(self) -> bool:
        """Tell whether the widget still exists."""
        return shiboken6.isValid(self._widget)

    def prepare(self) -> None:
        """Set limits and choices of the widget."""

    def read(self) -> Any:
        """Return the widget's value."""
        raise NotImplementedError

    def write(self, value: Any) -> None:
        """Show a value."""
        raise NotImplementedError


class CheckConnector(GuiConnector):
    """Check boxes and checkable push buttons."""

    SIGNAL = "toggled(bool)"

    def prepare(self) -> None:
        """Make a push button checkable."""
        self._widget.checkable = True

    def read(self) -> bool:
        """Return whether it is checked."""
        return bool(self._widget.checked)

    def write(self, value: Any) -> None:
        """Check or uncheck."""
        self._widget.checked = value


class IntegerConnector(GuiConnector):
    """Sliders and spin boxes of whole numbers."""

    SIGNAL = "valueChanged(int)"
    _UNLIMITED: tuple[float, float] = (-(2**31), 2**31 - 1)

    def prepare(self) -> None:
        """Take limits, decimals and step from the annotations; a slider must have both limits."""
        minimum, maximum = self._UNLIMITED
        for item in self.extra:
            minimum = item.minimum if isinstance(item, (WithinRange, Minimum)) else minimum
            maximum = item.maximum if isinstance(item, (WithinRange, Maximum)) else maximum
            if isinstance(item, Decimals):
                self._widget.decimals = item.value
            if isinstance(item, SingleStep):
                self._widget.singleStep = item.value
        if type(self._widget) in (qt.QSlider, ctk.ctkSliderWidget) and (minimum, maximum) == self._UNLIMITED:
            raise RuntimeError("A slider cannot be connected to a number without limits.")
        self._widget.minimum = minimum
        self._widget.maximum = maximum

    def read(self) -> Any:
        """Return the number."""
        return self.kind(self._widget.value)

    def write(self, value: Any) -> None:
        """Show the number."""
        self._widget.value = value


class RealConnector(IntegerConnector):
    """Sliders and spin boxes of real numbers."""

    SIGNAL = "valueChanged(double)"
    _UNLIMITED = (-math.inf, math.inf)


class LineConnector(GuiConnector):
    """Line edits."""

    SIGNAL = "textChanged(QString)"

    def read(self) -> str:
        """Return the text."""
        return str(self._widget.text)

    def write(self, value: Any) -> None:
        """Show the text."""
        self._widget.text = value


class TextConnector(GuiConnector):
    """Text edits."""

    SIGNAL = "textChanged()"

    def read(self) -> str:
        """Return the text."""
        return str(self._widget.toPlainText())

    def write(self, value: Any) -> None:
        """Show the text."""
        self._widget.setPlainText(value)


class PathConnector(GuiConnector):
    """Path editors."""

    SIGNAL = "currentPathChanged(QString)"

    def read(self) -> Any:
        """Return the path."""
        return self.kind(self._widget.currentPath)

    def write(self, value: Any) -> None:
        """Show the path."""
        self._widget.currentPath = str(value)


class ChoiceConnector(GuiConnector):
    """Combo boxes of an enumeration or of a choice; they are filled from the type."""

    SIGNAL = "currentIndexChanged(int)"

    def prepare(self) -> None:
        """Fill the box."""
        if isinstance(self.kind, type) and issubclass(self.kind, enum.Enum):
            label = getattr(self.kind, "label", lambda value: value.name)
            self._values: list[Any] = list(self.kind)
            names = [label(value) for value in self._values]
        else:
            choice = next((item for item in self.extra if isinstance(item, Choice)), None)
            if choice is None:
                raise RuntimeError("A combo box needs the annotation Choice.")
            self._values = list(choice.choices)
            names = [str(value) for value in self._values]
        self._widget.clear()
        for name in names:
            self._widget.addItem(name)

    def read(self) -> Any:
        """Return the selected value."""
        return self._values[self._widget.currentIndex]

    def write(self, value: Any) -> None:
        """Select a value."""
        self._widget.currentIndex = self._values.index(value)


class NodeConnector(GuiConnector):
    """Node selectors; they offer the nodes of the parameter's type."""

    SIGNAL = "currentNodeChanged(vtkMRMLNode*)"

    def prepare(self) -> None:
        """Set the types of nodes."""
        members = typing.get_args(self.kind) or (self.kind,)
        self._widget.nodeTypes = [member.__name__ for member in members if member is not type(None)]

    def read(self) -> Any:
        """Return the node."""
        return self._widget.currentNode()

    def write(self, value: Any) -> None:
        """Select the node."""
        self._widget.setCurrentNode(value)


def create_connector(widget: Any, annotation: Any) -> GuiConnector:
    """Return the connector of a widget and a type; RuntimeError if Slicer has none."""
    kind, extra = annotation, ()
    if typing.get_origin(annotation) is typing.Annotated:
        kind, *rest = typing.get_args(annotation)
        extra = tuple(rest)
    connector = _choose(type(widget), kind)
    if connector is None:
        raise RuntimeError(f"A {type(widget).__name__} cannot be connected to a parameter of type {annotation}.")
    return connector(widget, kind, extra)


def _choose(widget: type, kind: Any) -> type[GuiConnector] | None:
    pairs: list[tuple[tuple[type, ...], bool, type[GuiConnector]]] = [
        ((qt.QCheckBox, qt.QPushButton), kind is bool, CheckConnector),
        ((qt.QSlider, qt.QSpinBox), kind is int, IntegerConnector),
        ((qt.QDoubleSpinBox, ctk.ctkSliderWidget), kind is float, RealConnector),
        ((qt.QComboBox,), _is_enum(kind) or kind in (int, float, str, bool), ChoiceConnector),
        ((qt.QLineEdit,), kind is str, LineConnector),
        ((qt.QTextEdit,), kind is str, TextConnector),
        ((ctk.ctkPathLineEdit,), kind is pathlib.Path, PathConnector),
        ((slicer.qMRMLNodeComboBox,), _is_node(kind), NodeConnector),
    ]
    return next((connector for widgets, fits, connector in pairs if widget in widgets and fits), None)


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


def _is_node(kind: Any) -> bool:
    members = [member for member in typing.get_args(kind) or (kind,) if member is not type(None)]
    return all(isinstance(member, type) and issubclass(member, slicer.vtkMRMLNode) for member in members)
