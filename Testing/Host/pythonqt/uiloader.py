"""Loads .ui files with Slicer's widgets, checking what Qt Designer's loader would silently drop."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

from ..errors import UiFileError
from .attributes import lenient_attributes
from .properties import object_name
from .signals import connect, normalize


class WidgetRegistry(Protocol):
    """What the loader asks about classes that are not Qt's own."""

    def knows(self, name: str) -> bool:
        """Tell whether the class is one of Slicer's."""

    def create(self, name: str, parent: QtWidgets.QWidget | None) -> QtWidgets.QWidget:
        """Make a widget of the class."""

    def has_property(self, name: str, property_name: str) -> bool:
        """Tell whether a Slicer class adds this property."""

    def qt_base(self, name: str) -> Any:
        """Return the Qt class below a Slicer class."""

    def enum_number(self, name: str, text: str) -> int:
        """Return the number of an enumeration value or of a set of flags as written in a .ui file."""


@dataclass(frozen=True)
class _Assignment:
    widget: str
    class_name: str
    name: str
    value: Any
    is_enum: bool


class CheckedUiLoader(QtUiTools.QUiLoader):
    """Takes Slicer's properties and connections out of the file, checks them, and applies them in Python."""

    registry: WidgetRegistry

    def createWidget(
        self, className: str, parent: QtWidgets.QWidget | None = None, name: str = ""
    ) -> QtWidgets.QWidget:
        """Make a widget, of Slicer's classes too."""
        if self.registry.knows(className):
            widget = self.registry.create(className, parent)
            widget.setObjectName(name)
            return widget
        widget = super().createWidget(className, parent, name)
        if widget is None:
            raise UiFileError(f"Widget class {className} of '{name}' is unknown.")
        return widget

    def load(  # type: ignore[override]
        self, device: QtCore.QIODevice, parent: QtWidgets.QWidget | None = None
    ) -> QtWidgets.QWidget:
        """Load a .ui file; UiFileError names every class, property, signal and slot that Slicer lacks."""
        root = ET.fromstring(bytes(device.readAll().data()))
        assignments = self._take_properties(root)
        connections = _take_connections(root)
        buffer = QtCore.QBuffer()
        buffer.setData(ET.tostring(root))
        buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        with lenient_attributes():
            top = super().load(buffer, parent)
        if top is None:
            raise UiFileError(str(self.errorString()))
        named = {object_name(child): child for child in (top, *top.findChildren(QtCore.QObject))}
        for assignment in assignments:
            value = assignment.value
            if assignment.is_enum:
                value = self.registry.enum_number(assignment.class_name, value)
            setattr(named[assignment.widget], assignment.name, value)
        for sender, signal, receiver, slot in connections:
            if not hasattr(named[receiver], normalize(slot).split("(")[0]):
                raise UiFileError(f"'{receiver}' has no slot {slot}.")
            connect(named[sender], signal, named[receiver], slot)
        return top

    def _take_properties(self, root: ET.Element) -> list[_Assignment]:
        taken: list[_Assignment] = []
        faults: list[str] = []
        for element in root.iter("widget"):
            class_name, widget = str(element.get("class")), str(element.get("name"))
            if not self.registry.knows(class_name):
                if class_name != "Line" and not hasattr(QtWidgets, class_name):
                    faults.append(f"widget class {class_name} of '{widget}' is unknown")
                continue
            for entry in list(element.findall("property")):
                name = str(entry.get("name"))
                if self.registry.has_property(class_name, name):
                    taken.append(
                        _Assignment(widget, class_name, name, property_value(entry), entry[0].tag in ("enum", "set"))
                    )
                    element.remove(entry)
                elif entry.get("stdset") != "0" and self._qt_lacks(class_name, name):
                    faults.append(f"{class_name} '{widget}' has no property '{name}'")
        if faults:
            raise UiFileError("; ".join(faults) + ".")
        return taken

    def _qt_lacks(self, class_name: str, name: str) -> bool:
        return self.registry.qt_base(class_name).staticMetaObject.indexOfProperty(name) < 0


def _take_connections(root: ET.Element) -> list[tuple[str, str, str, str]]:
    section = root.find("connections")
    if section is None:
        return []
    root.remove(section)
    return [
        tuple(str(entry.findtext(part)) for part in ("sender", "signal", "receiver", "slot"))  # type: ignore[misc]
        for entry in section
    ]


_READERS: dict[str, Callable[[ET.Element], Any]] = {
    "bool": lambda value: value.text == "true",
    "number": lambda value: int(value.text or 0),
    "double": lambda value: float(value.text or 0),
    "float": lambda value: float(value.text or 0),
    "stringlist": lambda value: [part.text or "" for part in value],
    "color": lambda value: QtGui.QColor(*(int(value.findtext(part) or 0) for part in ("red", "green", "blue"))),
}


def property_value(entry: ET.Element) -> Any:
    """Return the value of a <property> element; text for strings, enumerations and sets."""
    value = entry[0]
    return _READERS.get(value.tag, lambda element: element.text or "")(value)
