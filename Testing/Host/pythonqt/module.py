"""Assembles the module `qt` that Slicer's Python code imports."""

from __future__ import annotations

import sys
from types import ModuleType

from PySide6 import QtCore

from ..errors import HostError
from .attributes import install_attributes
from .dialogs import install_dialogs
from .overrides import install_overrides
from .properties import install_properties
from .qt_classes import qt_names
from .signals import install_signals
from .uiloader import CheckedUiLoader

# Names of PySide6 that PythonQt does not have.
_PYSIDE_ONLY = ("Property", "Slot", "Signal", "SignalInstance", "SIGNAL", "SLOT", "ClassInfo")


def install_qt() -> ModuleType:
    """Patch PySide6 once and register the module `qt`."""
    if "qt" in sys.modules:
        return sys.modules["qt"]
    if not isinstance(QtCore.Qt.MouseButton.LeftButton, int):
        raise HostError("PySide6 was imported before Testing.Host: its enumerations are not numbers.")
    install_properties()
    install_signals()
    install_attributes()
    install_dialogs()
    install_overrides()
    QtCore.qInstallMessageHandler(_print_message)
    qt = ModuleType("qt")
    for name, value in qt_names().items():
        if name not in _PYSIDE_ONLY:
            setattr(qt, name, value)
    qt.QUiLoader = CheckedUiLoader
    sys.modules["qt"] = qt
    return qt


# The off-screen platform cannot do this, and says so at every window.
_NOISE = ("propagateSizeHints",)


def _print_message(kind: QtCore.QtMsgType, context: QtCore.QMessageLogContext, text: str) -> None:
    if not any(part in text for part in _NOISE):
        print(text, file=sys.stderr)
