"""Connection of one parameter to one widget."""

from __future__ import annotations

import enum
import pathlib
import typing
from collections.abc import Callable
from typing import Any

import shiboken6

from .serializers import Choice, Decimals, Maximum, Minimum, SingleStep, WithinRange


class GuiConnector:
    """Reads and writes a widget, and tells when the user changed it."""

    def __init__(self, widget: Any, annotation: Any) -> None:
        self.widget = widget
        self.annotation, *self.extra = (
            typing.get_args(annotation)
            if typing.get_origin(annotation) is typing.Annotated
            else (annotation,)
        )
        self._callback: Callable[[], None] | None = None
        self.prepare()
        widget.connect(self.signal(), self._changed)

    def _changed(self, *_: Any) -> None:
        if self._callback is not None:
            self._callback()

    def onChanged(self, callback: Callable[[], None] | None) -> None:
        """Set what is called after a change; None for nothing."""
        self._callback = callback

    def isAlive(self) -> bool:
        """Tell whether the widget still exists."""
        return shiboken6.isValid(self.widget)

    def prepare(self) -> None:
        """Set limits and choices of the widget."""

    def signal(self) -> str:
        """Return the signal that tells of changes."""
        raise NotImplementedError

    def read(self) -> Any:
        """Return the widget's value."""
        raise NotImplementedError

    def write(self, value: Any) -> None:
        """Show a value."""
        raise NotImplementedError


class CheckConnector(GuiConnector):
    """Check boxes and checkable buttons."""

    def signal(self) -> str:
        """Follow the check mark."""
        return "toggled(bool)"

    def read(self) -> bool:
        """Return whether it is checked."""
        return bool(self.widget.checked)

    def write(self, value: Any) -> None:
        """Check or uncheck."""
        self.widget.checked = value


class NumberConnector(GuiConnector):
    """Sliders and spin boxes."""

    def prepare(self) -> None:
        """Take limits, decimals and step from the annotations."""
        for item in self.extra:
            if isinstance(item, (WithinRange, Minimum)):
                self.widget.minimum = self.annotation(item.minimum)
            if isinstance(item, (WithinRange, Maximum)):
                self.widget.maximum = self.annotation(item.maximum)
            if isinstance(item, Decimals):
                self.widget.decimals = item.value
            if isinstance(item, SingleStep):
                self.widget.singleStep = item.value

    def signal(self) -> str:
        """Follow the value."""
        return "valueChanged(int)" if self.annotation is int else "valueChanged(double)"

    def read(self) -> Any:
        """Return the number."""
        return self.annotation(self.widget.value)

    def write(self, value: Any) -> None:
        """Show the number."""
        self.widget.value = value


class LineConnector(GuiConnector):
    """Line edits."""

    def signal(self) -> str:
        """Follow the text."""
        return "textChanged(QString)"

    def read(self) -> str:
        """Return the text."""
        return str(self.widget.text)

    def write(self, value: Any) -> None:
        """Show the text."""
        if self.widget.text != value:
            self.widget.text = value


class PathConnector(GuiConnector):
    """Path editors."""

    def signal(self) -> str:
        """Follow the path."""
        return "currentPathChanged(QString)"

    def read(self) -> Any:
        """Return the path as str or pathlib.Path."""
        path = str(self.widget.currentPath)
        return pathlib.Path(path) if self.annotation is pathlib.Path else path

    def write(self, value: Any) -> None:
        """Show the path."""
        self.widget.currentPath = str(value)


class ChoiceConnector(GuiConnector):
    """Combo boxes of an enumeration or of a choice of texts: they are filled from the type, as in Slicer."""

    def prepare(self) -> None:
        """Fill the box."""
        choice = next((item for item in self.extra if isinstance(item, Choice)), None)
        if choice is not None:
            self._values: list[Any] = list(choice.choices)
            names = [str(value) for value in self._values]
        elif isinstance(self.annotation, type) and issubclass(self.annotation, enum.Enum):
            self._values = list(self.annotation)
            label = getattr(self.annotation, "label", None)
            names = [value.label() if callable(label) else value.name for value in self._values]
        else:
            raise TypeError("A combo box needs an enumeration or a Choice.")
        self.widget.clear()
        self.widget.addItems(names)

    def signal(self) -> str:
        """Follow the selection."""
        return "currentIndexChanged(int)"

    def read(self) -> Any:
        """Return the selected value."""
        return self._values[self.widget.currentIndex]

    def write(self, value: Any) -> None:
        """Select a value."""
        self.widget.currentIndex = self._values.index(value)


class NodeConnector(GuiConnector):
    """Node selectors."""

    def signal(self) -> str:
        """Follow the selected node."""
        return "currentNodeChanged(vtkMRMLNode*)"

    def read(self) -> Any:
        """Return the node."""
        return self.widget.currentNode()

    def write(self, value: Any) -> None:
        """Select the node."""
        self.widget.setCurrentNode(value)


_BY_CLASS: dict[str, type[GuiConnector]] = {
    "QCheckBox": CheckConnector,
    "QPushButton": CheckConnector,
    "QToolButton": CheckConnector,
    "ctkCollapsibleButton": CheckConnector,
    "ctkSliderWidget": NumberConnector,
    "ctkDoubleSpinBox": NumberConnector,
    "QDoubleSpinBox": NumberConnector,
    "QSpinBox": NumberConnector,
    "QSlider": NumberConnector,
    "QLineEdit": LineConnector,
    "ctkPathLineEdit": PathConnector,
    "QComboBox": ChoiceConnector,
    "qMRMLNodeComboBox": NodeConnector,
}


def create_connector(widget: Any, annotation: Any) -> GuiConnector:
    """Return the connector of a widget; TypeError if there is none."""
    for cls in type(widget).__mro__:
        if cls.__name__ in _BY_CLASS:
            return _BY_CLASS[cls.__name__](widget, annotation)
    raise TypeError(f"A {type(widget).__name__} cannot be connected to a parameter of type {annotation}.")
