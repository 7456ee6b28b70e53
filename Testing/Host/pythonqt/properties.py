"""Qt properties as attributes: read without a call, set by assignment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PySide6 import QtCore

from .qt_classes import qobject_classes

# Virtual in C++ and looked up by name in Python: these stay methods.
_VIRTUAL = frozenset({"sizeHint", "minimumSizeHint"})


class QtProperty:
    """Descriptor of one Qt property of a PySide6 class."""

    def __init__(
        self, owner: type[QtCore.QObject], meta: QtCore.QMetaProperty, getter: Callable[[Any], Any] | None
    ) -> None:
        self.name = str(meta.name())
        self.type_name = str(meta.typeName())
        self.writable = meta.isWritable()
        self._getter = getter
        self._setter: Callable[[Any, Any], None] | None = getattr(owner, _setter_name(self.name), None)

    def __get__(self, instance: QtCore.QObject | None, owner: type | None = None) -> Any:
        if instance is None:
            return self
        if self._getter is not None:
            return self._getter(instance)
        return _read_property(instance, self.name)

    def __set__(self, instance: QtCore.QObject, value: Any) -> None:
        if not self.writable:
            raise AttributeError(f"Property '{self.name}' of {type(instance).__name__} object is not writable")
        if value is not None and self._assign(instance, value):
            return
        raise AttributeError(
            f"Property '{self.name}' of type '{self.type_name}' does not accept an object of type "
            f"{type(value).__name__} ({value!r})"
        )

    def _assign(self, instance: QtCore.QObject, value: Any) -> bool:
        if self.type_name == "QString" and not isinstance(value, str):
            value = str(value)
        elif self.type_name == "int" and isinstance(value, float):
            value = int(value)
        if self._setter is not None:
            try:
                self._setter(instance, value)
                return True
            except TypeError:
                pass
        return bool(_write_property(instance, self.name, value))


class ObjectNameProperty:
    """`objectName`, and `name` as PythonQt calls it too."""

    def __get__(self, instance: QtCore.QObject | None, owner: type | None = None) -> Any:
        return self if instance is None else _read_name(instance)

    def __set__(self, instance: QtCore.QObject, value: str) -> None:
        _write_name(instance, str(value))


_read_property = QtCore.QObject.property
_write_property = QtCore.QObject.setProperty
_read_name = QtCore.QObject.objectName
_write_name = QtCore.QObject.setObjectName


def object_name(instance: QtCore.QObject) -> str:
    """Return the object name without going through the patched attribute."""
    return str(_read_name(instance))


def install_properties() -> None:
    """Replace the getters of all Qt properties by attributes."""
    for cls in qobject_classes():
        _install_on(cls)
    QtCore.QObject.objectName = ObjectNameProperty()  # type: ignore[method-assign,assignment]
    QtCore.QObject.name = ObjectNameProperty()  # type: ignore[attr-defined]
    QtCore.QObject.className = lambda self: self.metaObject().className()  # type: ignore[attr-defined]


def _install_on(cls: Any) -> None:
    meta_object = cls.staticMetaObject
    for index in range(meta_object.propertyCount()):
        meta = meta_object.property(index)
        name = str(meta.name())
        own = cls.__dict__.get(name)
        redeclared = callable(own)
        if name in _VIRTUAL or name == "objectName" or (index < meta_object.propertyOffset() and not redeclared):
            continue
        if cls is QtCore.QTimer and name == "singleShot":
            continue  # PythonQt offers the static function under this name.
        setattr(cls, name, QtProperty(cls, meta, own if redeclared else None))


def _setter_name(name: str) -> str:
    return "set" + name[0].upper() + name[1:]
