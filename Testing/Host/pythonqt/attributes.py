"""Attribute look-up as in PythonQt: children and dynamic properties by name, no new attributes on C++ objects."""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PySide6 import QtCore

from ..errors import UnknownAttribute
from .properties import object_name
from .qt_classes import is_cpp_type, qobject_classes

_read_property = QtCore.QObject.property
_children = QtCore.QObject.children
_find_child = QtCore.QObject.findChild
_find_children = QtCore.QObject.findChildren

_generic_set = ctypes.pythonapi.PyObject_GenericSetAttr
_generic_set.argtypes = [ctypes.py_object, ctypes.py_object, ctypes.py_object]
_generic_set.restype = ctypes.c_int

_lenient = False


@contextmanager
def lenient_attributes() -> Iterator[None]:
    """Let PySide's own loader keep the children it creates as attributes."""
    global _lenient
    _lenient = True
    try:
        yield
    finally:
        _lenient = False


def _fallback(self: QtCore.QObject, name: str) -> Any:
    if not name.startswith("__"):
        for cls in type(self).__mro__:
            for value in vars(cls).values():
                if isinstance(value, type) and issubclass(value, enum.Enum) and name in value.__members__:
                    return value[name]
        dynamic = _read_property(self, name)
        if dynamic is not None:
            return dynamic
        for child in _children(self):
            if object_name(child) == name:
                return child
    raise AttributeError(f"{type(self).__name__} has no attribute named '{name}'")


def _assign(self: QtCore.QObject, name: str, value: Any) -> None:
    cls = type(self)
    setters: dict[str, Any] = getattr(cls, "_host_setters_", {})
    if name in setters:
        if setters[name] is None:
            raise AttributeError(f"Property '{name}' of {cls.__name__} object is not writable")
        setters[name](self, value)
        return
    if not _lenient and not name.startswith("_") and is_cpp_type(cls) and not hasattr(cls, name):
        if _read_property(self, name) is None:
            raise UnknownAttribute(
                f"'{name}' does not exist on {cls.__name__} and creating new attributes on C++ objects is not allowed"
            )
        self.setProperty(name, value)
        return
    _generic_set(self, name, value)


def _class_of(kind: Any) -> type:
    if isinstance(kind, str):
        import qt

        return getattr(qt, kind, QtCore.QObject)
    return kind


def install_attributes() -> None:
    """Change attribute look-up, assignment and the search for children on all QObject classes."""
    base: Any = QtCore.QObject
    base.__getattr__ = _fallback
    base.children = lambda self: tuple(_children(self))
    base.findChild = lambda self, kind, name="": _find_child(self, _class_of(kind), *([name] if name else []))
    base.findChildren = lambda self, kind, name="": tuple(
        _find_children(self, _class_of(kind), *([name] if name else []))
    )
    for cls in qobject_classes():
        cls.__setattr__ = _assign  # type: ignore[method-assign,assignment]
