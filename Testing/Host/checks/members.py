"""Members of widgets, of Slicer's and of Qt's own, as Python sees them in each Slicer version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

from ..widget_api import ClassInfo, WidgetApi

# What PythonQt adds to every QObject.
_PYTHONQT_MEMBERS = frozenset({"connect", "disconnect", "className", "delete", "help", "name", "children"})


def qt_class(name: str) -> Any:
    """Return Qt's own class of a name, None if there is none."""
    for module in (QtWidgets, QtGui, QtCore):
        found = getattr(module, name, None)
        if isinstance(found, type):
            return found
    return None


def qt_properties(name: str) -> dict[str, bool]:
    """Return the properties of a Qt class, each with whether it can be set."""
    return _PROPERTIES.get(name, {})


def qt_signals(name: str) -> frozenset[str]:
    """Return the full signatures of the signals of a Qt class."""
    return _SIGNALS.get(name, frozenset())


def _qobject_classes() -> dict[str, Any]:
    found = {}
    for module in (QtCore, QtGui, QtWidgets):
        for name in dir(module):
            cls = getattr(module, name, None)
            if isinstance(cls, type) and issubclass(cls, QtCore.QObject):
                found[name] = cls
    return found


def _properties(meta: Any) -> dict[str, bool]:
    properties = (meta.property(index) for index in range(meta.propertyCount()))
    return {str(prop.name()): prop.isWritable() for prop in properties}


def _signals(meta: Any) -> frozenset[str]:
    methods = [meta.method(index) for index in range(meta.methodCount())]
    kind = QtCore.QMetaMethod.MethodType.Signal
    return frozenset(bytes(m.methodSignature().data()).decode() for m in methods if m.methodType() == kind)


# Read before any widget is made: where one gave away its metaObject(), PySide takes that of the class down with it.
_PROPERTIES = {name: _properties(cls.staticMetaObject) for name, cls in _qobject_classes().items()}
_SIGNALS = {name: _signals(cls.staticMetaObject) for name, cls in _qobject_classes().items()}


class Members:
    """Answers questions about one widget class."""

    def __init__(self, api: WidgetApi, name: str) -> None:
        self._api = api
        self.name = name
        self._chain: list[ClassInfo] = api.chain(name)
        self._qt = api.qt_base(name) if self._chain else name

    @property
    def known(self) -> bool:
        """Whether Slicer or Qt has the class."""
        return bool(self._chain) or qt_class(self.name) is not None

    def missing_versions(self, versions: Sequence[str]) -> list[str]:
        """Return the Slicer versions that lack the class."""
        return [v for v in versions if self._chain and v not in self._chain[0].versions]

    def property_writable(self, name: str) -> bool | None:
        """Return whether a property can be set, None if there is no such property."""
        for info in self._chain:
            if name in info.properties:
                return info.properties[name].writable
        return qt_properties(self._qt).get(name)

    def has(self, member: str) -> bool:
        """Tell whether the class has a member in some version."""
        if member in _PYTHONQT_MEMBERS or any(member in info.members() for info in self._chain):
            return True
        cls = qt_class(self._qt)
        return member in qt_properties(self._qt) or (cls is not None and hasattr(cls, member))

    def lacking_versions(self, member: str, versions: Sequence[str]) -> list[str]:
        """Return the Slicer versions in which no class of the chain has the member."""
        holders = [info for info in self._chain if member in info.members()]
        if not holders:
            return []
        return [v for v in versions if not any(v in info.versions_of(member) for info in holders)]

    def has_signal(self, signature: str) -> bool:
        """Tell whether the class has a signal of this full signature."""
        wanted = normalize(signature)
        listed = (normalize(s) for info in self._chain for s in info.signals)
        return wanted in listed or wanted in qt_signals(self._qt)

    def has_slot(self, signature: str) -> bool:
        """Tell whether something can be connected to: a listed method or one of Qt's."""
        name = signature.split("(")[0]
        if any(name == method.split("(")[0] for info in self._chain for method in info.methods):
            return True
        cls = qt_class(self._qt)
        return cls is not None and callable(getattr(cls, name, None))

    def has_enum_value(self, text: str) -> bool:
        """Tell whether `Class::Value` is a value of an enumeration of the class, its bases or Qt."""
        value = text.split("::")[-1]
        if self._api.enum_value(self.name, value) is not None:
            return True
        holders = (qt_class(self._qt), QtCore.Qt, QtWidgets.QFrame, QtWidgets.QSizePolicy, QtWidgets.QLayout)
        return any(hasattr(holder, value) for holder in holders if holder is not None)


def normalize(signature: str) -> str:
    """Return a signature as Qt's meta-object system writes it."""
    normalized: Any = QtCore.QMetaObject.normalizedSignature
    return bytes(normalized(signature).data()).decode()
