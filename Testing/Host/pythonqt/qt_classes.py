"""All QObject classes of the Qt modules that Slicer wraps."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from PySide6 import QtCore, QtGui, QtNetwork, QtPrintSupport, QtSvg, QtUiTools, QtWidgets, QtXml

MODULES: tuple[ModuleType, ...] = (
    QtCore,
    QtGui,
    QtWidgets,
    QtNetwork,
    QtUiTools,
    QtSvg,
    QtXml,
    QtPrintSupport,
)


def qt_names() -> dict[str, Any]:
    """Return everything public in the Qt modules; PySide fills their dictionaries only on access."""
    return {name: getattr(module, name) for module in MODULES for name in dir(module) if not name.startswith("_")}


def qobject_classes() -> list[type[QtCore.QObject]]:
    """Return every QObject class, base classes before derived ones."""
    found = {value for value in qt_names().values() if isinstance(value, type) and issubclass(value, QtCore.QObject)}
    return sorted(found, key=lambda cls: (len(cls.__mro__), cls.__name__))


def is_cpp_type(cls: type) -> bool:
    """Tell whether PythonQt would show this class as a C++ class, not one derived in Python."""
    return cls.__module__.startswith("PySide6") or bool(cls.__dict__.get("_host_api_"))
